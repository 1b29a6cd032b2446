//! A node in a network namespace of its own: API server in process, containerd, kubelet.
//!
//! Each test has its own of everything, under one temporary directory and one cgroup, and removes
//! all of it. Needs root, containerd, runc, busybox-static and Debian's containernetworking-plugins.
#![allow(clippy::unwrap_used, dead_code)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::containerd::{CgroupDriver, Containerd, Options, Paths};
use agent::images::{Importer, pause, presets};
use apiserver::testing::Cluster;
use component::{Informers, Supervisor};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use kubelet::layout::Layout;
use serde_json::{Value, json};

pub const NODE: &str = "node-1";
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";
pub const SOON: Duration = Duration::from_secs(60);

pub struct Node {
    pub cluster: Cluster,
    pub client: kube::Client,
    pub directory: PathBuf,
    pub cgroup: String,
    pub kubelet: Option<Supervisor>,
    pub running: Option<kubelet::Running>,
    pub runtime: Supervisor,
    pub options: Options,
}

/// Runs `test` on a node of its own, in a fresh network namespace.
pub fn on_a_node<F>(name: &'static str, test: impl FnOnce(Arc<tokio::sync::Mutex<Node>>) -> F + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let _ = tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or_default())
        .with_test_writer()
        .try_init();
    // Threads inherit the namespace of the thread that makes them: the runtime's and containerd too.
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root: run them with sudo");
        run(&["ip", "link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(async move {
            let node = Arc::new(tokio::sync::Mutex::new(Node::start(name).await));
            let outcome = tokio::spawn(test(node.clone())).await;
            node.lock().await.tear_down().await;
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic.into_panic());
            }
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(command: &[&str]) {
    let status = Command::new(command[0]).args(&command[1..]).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

impl Node {
    async fn start(name: &str) -> Self {
        let directory = PathBuf::from(format!("/tmp/skiff-kubelet-test-{name}-{}", std::process::id()));
        let cgroup = format!("/skiff-kubelet-test-{name}-{}", std::process::id());
        for part in ["cni", "data", "run", "registries", "manifests"] {
            std::fs::create_dir_all(directory.join(part)).unwrap();
        }
        std::fs::write(directory.join("cni/10-test.conflist"), conflist(&directory)).unwrap();
        let cluster = Cluster::start().await;
        let client = cluster.admin();
        // There are no controllers here to make it.
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), "default");
        accounts.create(&PostParams::default(), &account).await.unwrap();
        let options = Options {
            paths: Paths::under(&directory.join("data"), &directory.join("run")),
            binary: None,
            cni_bin_dir: "/usr/lib/cni".into(),
            cni_conf_dir: directory.join("cni"),
            registry_dir: directory.join("registries"),
            cgroup_driver: CgroupDriver::Cgroupfs,
        };
        let runtime = Supervisor::new("runtime");
        let mut node = Self { cluster, client, directory, cgroup, kubelet: None, running: None, runtime, options };
        node.start_runtime().await;
        node.start_kubelet();
        node
    }

    pub async fn start_runtime(&mut self) {
        self.runtime = Supervisor::new("runtime");
        let containerd = Containerd::start(self.options.clone(), &self.runtime).await.unwrap();
        let importer = Importer::new(containerd.channel);
        importer.import_pinned(&pause::image().unwrap()).await.unwrap();
        importer.import(&presets::busybox().unwrap()).await.unwrap();
    }

    pub fn start_kubelet(&mut self) {
        let supervisor = Supervisor::new("node");
        let informers = Informers::new(self.client.clone(), &supervisor);
        let layout = Layout::new(self.directory.join("kubelet"), self.directory.join("logs"));
        let ip = "127.0.0.1".parse().unwrap();
        let mut config = kubelet::Config::new(NODE, vec![ip], layout, self.options.paths.socket.clone());
        config.cgroup_root = self.cgroup.clone();
        // How full the test host is decides no test.
        config.eviction.memory_available = 0;
        config.eviction.nodefs_available_percent = 0;
        config.eviction.nodefs_inodes_percent = 0;
        config.eviction.imagefs_available_percent = 0;
        config.eviction.imagefs_inodes_percent = 0;
        config.image_gc.high_percent = 100;
        config.manifests_dir = Some(self.directory.join("manifests"));
        self.running = Some(kubelet::start(config, None, informers, &supervisor).unwrap());
        self.kubelet = Some(supervisor);
    }

    pub async fn stop_kubelet(&mut self) {
        self.running = None;
        if let Some(supervisor) = self.kubelet.take() {
            assert!(
                supervisor.shut_down(Duration::from_secs(5)).await,
                "the kubelet's tasks end with their supervisor"
            );
        }
    }

    /// SIGKILL to containerd; its supervisor starts it again.
    pub fn kill_runtime(&self) {
        let pid = std::fs::read_to_string(&self.options.paths.pid).unwrap();
        let pid: i32 = pid
            .split_whitespace()
            .find_map(|word| word.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok())
            .unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    async fn tear_down(&mut self) {
        let pods: Api<Pod> = Api::all(self.client.clone());
        for pod in pods.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            let (namespace, name) = (pod.metadata.namespace.unwrap(), pod.metadata.name.unwrap());
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            let _ = api.delete(&name, &DeleteParams { grace_period_seconds: Some(1), ..Default::default() }).await;
        }
        for entry in std::fs::read_dir(self.directory.join("manifests")).unwrap().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        let cri = kubelet::cri::Runtime::new(&self.options.paths.socket);
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until && !cri.list_sandboxes(None).await.is_ok_and(|list| list.is_empty()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.stop_kubelet().await;
        self.runtime.shut_down(Duration::from_secs(2)).await;
        let problems = agent::containerd::remove(&self.options.paths).await;
        assert!(problems.is_empty(), "{problems:?}");
        let cgroups = kubelet::cgroups::Cgroups::on_host(&self.cgroup, Default::default()).unwrap();
        cgroups.remove(&cgroups.node()).await.unwrap();
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let _ = std::fs::remove_dir(controller.path().join(self.cgroup.trim_start_matches('/')));
        }
        // Where the host's mounts are not shared, the kubelet's directory is a mount of its own.
        let _ = nix::mount::umount(&self.directory.join("kubelet"));
        kubelet::pod::cleanup::remove_tree(&self.directory).unwrap();
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates a pod on the node.
    pub async fn create(&self, name: &str, spec: Value) -> Pod {
        self.create_with(name, json!({}), spec).await
    }

    pub async fn create_with(&self, name: &str, metadata: Value, mut spec: Value) -> Pod {
        spec["nodeName"] = json!(NODE);
        if spec.get("terminationGracePeriodSeconds").is_none() {
            spec["terminationGracePeriodSeconds"] = json!(2);
        }
        spec["automountServiceAccountToken"] = json!(false);
        let mut metadata = metadata;
        metadata["name"] = json!(name);
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    /// Waits until the pod is as wished; shows it when it does not come to be.
    pub async fn wait(&self, name: &str, what: &str, wished: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(name, what, SOON, wished).await
    }

    pub async fn wait_for(&self, name: &str, what: &str, limit: Duration, wished: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + limit;
        loop {
            let pod = self.pods().get_opt(name).await.unwrap();
            let value = pod.map_or(Value::Null, |pod| serde_json::to_value(pod).unwrap());
            if wished(&value) {
                return value;
            }
            if Instant::now() > until {
                let events = self.events(name).await.join("\n  ");
                panic!("{name}: {what} did not come to be: {:#}\nevents:\n  {events}", value["status"]);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `type reason message` of the events about a pod.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let api: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(self.client.clone(), "default");
        let list = api.list(&ListParams::default()).await.unwrap();
        let about = list.items.into_iter().filter(|event| event.involved_object.name.as_deref() == Some(name));
        about
            .map(|event| {
                let text = |field: Option<String>| field.unwrap_or_default();
                format!("{} {} {}", text(event.type_), text(event.reason), text(event.message))
            })
            .collect()
    }

    pub async fn wait_event(&self, name: &str, start: &str) {
        let until = Instant::now() + SOON;
        loop {
            let events = self.events(name).await;
            if events.iter().any(|event| event.starts_with(start)) {
                return;
            }
            assert!(Instant::now() < until, "{name}: no event {start:?} among {events:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a container has written so far, without CRI's framing.
    pub fn log(&self, pod: &Value, container: &str, attempt: u32) -> String {
        let meta = &pod["metadata"];
        let text = |key: &str| meta[key].as_str().unwrap().to_owned();
        let directory = format!("{}_{}_{}", text("namespace"), text("name"), text("uid"));
        let file = self.directory.join("logs").join(directory).join(container).join(format!("{attempt}.log"));
        let raw = std::fs::read_to_string(&file).unwrap_or_default();
        raw.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).map(|line| format!("{line}\n")).collect()
    }
}

pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or("")
}

pub fn condition(pod: &Value, name: &str) -> String {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == name);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or("").to_owned()
}

pub fn ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True"
}

pub fn main_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// A container that runs a shell script on busybox.
pub fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

fn conflist(directory: &Path) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "test",
        "plugins": [{
            "type": "bridge", "bridge": "test0", "isGateway": true, "ipMasq": false,
            "ipam": {"type": "host-local", "dataDir": directory.join("ipam"), "ranges": [[{"subnet": "10.99.0.0/24"}]]}
        }, {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]
    })
    .to_string()
}
