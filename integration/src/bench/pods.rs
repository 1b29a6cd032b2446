//! From the answer to a pod's create to Running, as a watcher sees it; beside it the same pod driven
//! through CRI by hand on the same containerd.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use integration::{BUSYBOX, Lab};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use proto::runtime::v1 as cri;
use proto::runtime::v1::runtime_service_client::RuntimeServiceClient;

use crate::{Figure, median, milliseconds};

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
    let mut runtime = RuntimeServiceClient::new(proto::unix_channel(socket.as_ref()).await?);

    // warm both ways
    start(&pods, &["warm".to_owned()]).await?;
    by_hand(&mut runtime, "warm").await?;

    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for index in 0..IN_SEQUENCE {
        ours.extend(start(&pods, &[format!("one-{index}")]).await?);
        floor.push(by_hand(&mut runtime, &format!("one-{index}")).await?);
    }
    let names: Vec<String> = (0..AT_ONCE).map(|index| format!("many-{index}")).collect();
    let began = Instant::now();
    let mut many = start(&pods, &names).await?;
    let all = began.elapsed();

    let began = Instant::now();
    let runs = names.iter().map(|name| {
        let mut runtime = runtime.clone();
        async move { by_hand(&mut runtime, name).await }
    });
    futures::future::try_join_all(runs).await?;
    let floor_all = began.elapsed();
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

/// Creates pods and waits until a watcher saw each Running; then removes them and waits for that.
async fn start(pods: &Api<Pod>, names: &[String]) -> anyhow::Result<Vec<Duration>> {
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
    Ok(times.into_values().collect())
}

/// RunPodSandbox, CreateContainer, StartContainer; then the removal, outside the time.
async fn by_hand(
    runtime: &mut RuntimeServiceClient<tonic::transport::Channel>,
    name: &str,
) -> anyhow::Result<Duration> {
    let sandbox = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: format!("raw-{name}"),
            uid: format!("raw-{name}"),
            namespace: "raw".to_owned(),
            attempt: 0,
        }),
        hostname: "raw".to_owned(),
        linux: Some(cri::LinuxPodSandboxConfig::default()),
        ..Default::default()
    };
    let container = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
        command: vec!["sleep".to_owned(), "3600".to_owned()],
        linux: Some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    };
    let began = Instant::now();
    let request = cri::RunPodSandboxRequest { config: Some(sandbox.clone()), runtime_handler: String::new() };
    let sandbox_id = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox_id.clone(),
        config: Some(container),
        sandbox_config: Some(sandbox),
    };
    let container_id = runtime.create_container(request).await?.into_inner().container_id;
    runtime.start_container(cri::StartContainerRequest { container_id }).await?;
    let took = began.elapsed();
    runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: sandbox_id.clone() }).await?;
    runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox_id }).await?;
    Ok(took)
}
