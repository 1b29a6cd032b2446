//! From the answer to a pod's create to Running, as a watcher sees it; beside it the same pod driven
//! through CRI by hand on the same containerd.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use futures::stream::BoxStream;
use integration::figures::{Figure, median, milliseconds};
use integration::{BUSYBOX, Lab};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use proto::runtime::v1 as cri;
use proto::runtime::v1::runtime_service_client::RuntimeServiceClient;

const IN_SEQUENCE: usize = 20;
const AT_ONCE: usize = 50;

pub async fn client(lab: &Lab) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(&lab.kubeconfig)?;
    Ok(Client::try_from(kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)?)
}

pub async fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    let pods: Api<Pod> = Api::default_namespaced(client(lab).await?);
    let socket =
        lab.member("node-1")["runDir"].as_str().context("no runDir")?.to_owned() + "/containerd/containerd.sock";
    let runtime = RuntimeServiceClient::new(proto::unix_channel(socket.as_ref()).await?);

    // warm both ways
    let (_, warm) = start(&pods, &["warm".to_owned()]).await?;
    let by_hand = ByHand::like(runtime, "warm").await?;
    remove(&pods, warm, &["warm".to_owned()]).await?;
    let (id, _) = by_hand.start("warm").await?;
    by_hand.remove(id).await?;

    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for index in 0..IN_SEQUENCE {
        let names = [format!("one-{index}")];
        let (times, events) = start(&pods, &names).await?;
        ours.extend(times);
        remove(&pods, events, &names).await?;
        let (id, took) = by_hand.start(&names[0]).await?;
        floor.push(took);
        by_hand.remove(id).await?;
    }
    let names: Vec<String> = (0..AT_ONCE).map(|index| format!("many-{index}")).collect();
    let began = Instant::now();
    let (mut many, events) = start(&pods, &names).await?;
    let all = began.elapsed();
    remove(&pods, events, &names).await?;

    let began = Instant::now();
    let started = futures::future::try_join_all(names.iter().map(|name| by_hand.start(name))).await?;
    let floor_all = began.elapsed();
    futures::future::try_join_all(started.into_iter().map(|(id, _)| by_hand.remove(id))).await?;
    let (ours, floor) = (median(&mut ours), median(&mut floor));
    let ratio = |a: Duration, b: Duration| format!("{:.2}", a.as_secs_f64() / b.as_secs_f64());
    Ok(vec![
        Figure::new(
            format!("pod start, median of {IN_SEQUENCE} in sequence"),
            milliseconds(ours),
            format!("raw CRI {}: ratio {}", milliseconds(floor), ratio(ours, floor)),
        ),
        Figure::new(
            format!("{AT_ONCE} pods at once, until all run (median {})", milliseconds(median(&mut many))),
            milliseconds(all),
            format!("raw CRI {}: ratio {}", milliseconds(floor_all), ratio(all, floor_all)),
        ),
    ])
}

fn pod(name: &str) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]}],
        },
    }))?)
}

type Events = BoxStream<'static, kube::Result<WatchEvent<Pod>>>;

/// Creates pods and waits until a watcher saw each Running; how long each took, and that watch.
async fn start(pods: &Api<Pod>, names: &[String]) -> anyhow::Result<(Vec<Duration>, Events)> {
    let mut events = pods.watch(&WatchParams::default().timeout(290), "0").await?.boxed();
    let mut answered = HashMap::new();
    for name in names {
        pods.create(&PostParams::default(), &pod(name)?).await?;
        answered.insert(name.clone(), Instant::now());
    }
    let mut times = HashMap::new();
    while times.len() < names.len() {
        let event = events.next().await.context("the watch ended")??;
        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
            && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
            && let Some(at) = answered.get(&pod.name_any())
        {
            times.entry(pod.name_any()).or_insert_with(|| at.elapsed());
        }
    }
    Ok((times.into_values().collect(), events))
}

/// Removes pods and waits until they are gone.
async fn remove(pods: &Api<Pod>, mut events: Events, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    }
    let mut left = names.len();
    while left > 0 {
        if let WatchEvent::Deleted(pod) = events.next().await.context("the watch ended")??
            && names.contains(&pod.name_any())
        {
            left -= 1;
        }
    }
    Ok(())
}

/// The same pod driven by hand: what the kubelet asks of the runtime for it, and nothing around.
struct ByHand {
    runtime: RuntimeServiceClient<tonic::transport::Channel>,
    /// Of a pod that the kubelet started: its cgroup's parent and the directory of its logs.
    cgroup: PathBuf,
    logs: PathBuf,
    /// Files that the containers mount, as the kubelet would write them.
    files: tempfile::TempDir,
}

impl ByHand {
    /// Learns from the running pod `name` where pods live on this node.
    async fn like(mut runtime: RuntimeServiceClient<tonic::transport::Channel>, name: &str) -> anyhow::Result<Self> {
        let labels = HashMap::from([("io.kubernetes.pod.name".to_owned(), name.to_owned())]);
        let filter = cri::PodSandboxFilter { label_selector: labels, ..Default::default() };
        let found = runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }).await?.into_inner();
        let id = found.items.first().with_context(|| format!("no sandbox of pod {name}"))?.id.clone();
        let asked = cri::PodSandboxStatusRequest { pod_sandbox_id: id, verbose: true };
        let info = runtime.pod_sandbox_status(asked).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no verbose status")?)?;
        let parent = |pointer: &str| {
            let path = info.pointer(pointer).and_then(serde_json::Value::as_str).map(PathBuf::from);
            path.and_then(|path| path.parent().map(PathBuf::from))
                .with_context(|| format!("no {pointer} in the status"))
        };
        let files = tempfile::tempdir()?;
        for file in ["hosts", "termination"] {
            std::fs::write(files.path().join(file), "")?;
        }
        let (cgroup, logs) = (parent("/config/linux/cgroup_parent")?, parent("/config/log_directory")?);
        Ok(Self { runtime, cgroup, logs, files })
    }

    fn sandbox(&self, name: &str) -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: format!("raw-{name}"),
                uid: format!("raw-{name}"),
                namespace: "raw".to_owned(),
                attempt: 0,
            }),
            hostname: format!("raw-{name}"),
            log_directory: self.logs.join(format!("raw-{name}")).display().to_string(),
            dns_config: Some(cri::DnsConfig {
                servers: vec!["10.43.0.10".to_owned()],
                searches: ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]
                    .map(str::to_owned)
                    .to_vec(),
                options: vec!["ndots:5".to_owned()],
            }),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.join(format!("raw-{name}")).display().to_string(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    seccomp: Some(cri::SecurityProfile::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container(&self) -> cri::ContainerConfig {
        let mount = |container: &str, file: &str| cri::Mount {
            container_path: container.to_owned(),
            host_path: self.files.path().join(file).display().to_string(),
            ..Default::default()
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
            command: vec!["sleep".to_owned(), "3600".to_owned()],
            mounts: vec![mount("/etc/hosts", "hosts"), mount("/dev/termination-log", "termination")],
            log_path: "c/0.log".to_owned(),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_shares: 2,
                    oom_score_adj: 1000,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// RunPodSandbox, CreateContainer, StartContainer: the sandbox's id and the time it took.
    async fn start(&self, name: &str) -> anyhow::Result<(String, Duration)> {
        let mut runtime = self.runtime.clone();
        let sandbox = self.sandbox(name);
        std::fs::create_dir_all(Path::new(&sandbox.log_directory).join("c"))?;
        let began = Instant::now();
        let request = cri::RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: String::new() };
        let id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(self.container()),
            sandbox_config: Some(sandbox),
        };
        let container_id = runtime.create_container(request).await?.into_inner().container_id;
        runtime.start_container(cri::StartContainerRequest { container_id }).await?;
        Ok((id, began.elapsed()))
    }

    async fn remove(&self, id: String) -> anyhow::Result<()> {
        let mut runtime = self.runtime.clone();
        runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        Ok(())
    }
}
