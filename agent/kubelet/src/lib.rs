//! The kubelet: the pods of one node.
//!
//! - [`manager`]: which pods there are, one worker each; [`pod`]: a worker, its rules and its steps;
//! - [`spec`]: a pod's spec as the runtime takes it; [`downward`]: what a pod learns about itself;
//! - [`cri`]: the container runtime; [`images`], [`cgroups`], [`probes`], [`volumes`];
//! - [`plugins`]: drivers that register; [`devices`]: device plugins; [`dra`]: claimed resources;
//!   `pod_resources`: who has what of both; `pods_api`: the pods themselves, both on sockets (`unix_server`,
//!   and `grpc_authority`: what their clients call them);
//! - [`node`]: the Node object; [`status_writer`]: pods' statuses; [`static_pods`], [`admission`];
//! - `preemption`: who makes room for a pod that the node needs;
//! - `user_namespaces`: users of their own for pods;
//! - `retry`, `locks`, `files`: what several of these need to try again, to take turns, to remember;
//! - [`server_contract`], [`volume_contract`] and [`network_contract`]: what the 10250 server, the volumes and the
//!   pod network are to this room.
//!
//! Deciding is pure throughout; effects are at the edge of each module. Nothing is kept on disk but
//! what pods need (which users, too), what only plugins' answers said (which device, which mount) and whose
//! pulls brought which image: everything else is found again in the runtime, the API and the kernel.

pub mod admission;
pub mod cgroups;
pub mod config;
pub mod context;
pub mod cri;
pub mod devices;
pub mod downward;
pub mod dra;
pub mod eviction;
mod files;
mod grpc_authority;
pub mod images;
pub mod layout;
mod locks;
pub mod log_rotation;
pub mod manager;
pub mod network_contract;
pub mod node;
pub mod plugins;
pub mod pod;
mod pod_resources;
pub mod pods_api;
mod preemption;
pub mod probes;
pub mod resize;
mod retry;
pub mod server;
pub mod server_contract;
pub mod spec;
pub mod static_pods;
pub mod status_writer;
mod unix_server;
mod user_namespaces;
pub mod volume_contract;
pub mod volumes;

use std::sync::Arc;

use component::{EventRecorder, Informers, Supervisor};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use parking_lot::RwLock;

pub use config::Config;

use cgroups::{CgroupError, Cgroups};
use context::{NodeContext, References};
use cri::Runtime;
use images::Images;
use manager::Manager;
use network_contract::PodNetwork;
use node::heartbeat::Heartbeat;
use node::machine::{Machine, file_system};
use status_writer::StatusWriter;
use user_namespaces::UserNamespaces;
use volume_contract::Volumes;

/// Why a kubelet could not start. What can come right by itself is not an error: it is waited for.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the node has no usable cgroups: {0}")]
    Cgroups(#[from] CgroupError),
    #[error("making the kubelet's directory {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error("the users of pods with hostUsers: false: {0}")]
    UserNamespaces(#[from] user_namespaces::UserNamespaceError),
}

/// A running kubelet.
#[derive(Clone)]
pub struct Running {
    /// The node's pods, for the 10250 server and for tests.
    pub manager: Arc<Manager>,
}

/// Starts the kubelet below `supervisor`. It registers the node and runs its pods until cancelled;
/// the pods' containers outlive it. `network` is asked before a pod's containers start.
pub fn start(
    config: Config,
    network: Option<Arc<dyn PodNetwork>>,
    informers: Informers,
    supervisor: &Supervisor,
) -> Result<Running, StartError> {
    let supervisor = supervisor.child("kubelet");
    let path = config.layout.root.display().to_string();
    let layout = config.layout.settle().map_err(|source| StartError::Directory { path, source })?;
    let config = Config { layout, ..config };
    let allocatable = Arc::new(RwLock::new(api::resources::Amounts::new()));
    let shown = allocatable.clone();
    let recorder = EventRecorder::new(informers.client(), &supervisor, "kubelet", &config.node_name);
    let csi =
        volumes::csi::Csi::start(config.layout.clone(), &config.node_name, &informers, recorder.clone(), &supervisor);
    let home = volumes::Home {
        layout: config.layout.clone(),
        node: &config.node_name,
        informers: &informers,
        recorder: recorder.clone(),
    };
    let volumes = volumes::NodeVolumes::start(home, Arc::new(move || shown.read().clone()), csi.clone(), &supervisor);
    let dra = dra::Dra::start(&config.layout, informers.client(), &config.node_name, &supervisor);
    let devices = devices::Devices::start(&config.layout, &supervisor);
    let handlers: plugins::Handlers = [
        ("CSIPlugin", Arc::new(volumes::csi::Registration(csi)) as Arc<dyn plugins::Handler>),
        ("DRAPlugin", Arc::new(dra::Registration(dra.clone()))),
        ("DevicePlugin", Arc::new(devices::ByRegistry(devices.clone()))),
    ]
    .into();
    let layout = config.layout.clone();
    let watched = layout.plugins_registry();
    let resolve: plugins::Resolve = Arc::new(move |path| layout.own(path));
    let registering = plugins::watch(watched, Arc::new(handlers), resolve, supervisor.child("plugins"));
    let parts = Parts { volumes, devices, dra, network, allocatable, recorder };
    let running = start_with(config, informers, &supervisor, parts)?;
    supervisor.spawn("plugins", registering);
    Ok(running)
}

/// What is there before the pods' workers.
struct Parts {
    volumes: Arc<dyn Volumes>,
    devices: Arc<devices::Devices>,
    dra: Arc<dra::Dra>,
    network: Option<Arc<dyn PodNetwork>>,
    allocatable: Arc<RwLock<api::resources::Amounts>>,
    recorder: EventRecorder,
}

fn start_with(
    config: Config,
    informers: Informers,
    supervisor: &Supervisor,
    parts: Parts,
) -> Result<Running, StartError> {
    let Parts { volumes, devices, dra, network, allocatable, recorder } = parts;
    let layout = &config.layout;
    for directory in [layout.pods(), layout.plugins(), layout.device_plugins(), layout.logs.clone()] {
        std::fs::create_dir_all(&directory)
            .map_err(|source| StartError::Directory { path: directory.display().to_string(), source })?;
    }
    if let Err(error) = volumes::mounts::make_shared(&config.layout.root) {
        tracing::warn!(%error, directory = %config.layout.root.display(), "mounts that pods make in the kubelet's directory will not be seen outside of them: storage drivers in pods will not work");
    }
    let cgroups = Cgroups::on_host(&config.cgroup_root, config.cgroup_driver)?;
    let client = informers.client();
    let runtime = Runtime::new(&config.runtime_endpoint);
    let machine = Machine::detect();
    let root = file_system(&config.layout.root).unwrap_or_default();
    *allocatable.write() = node::status::allocatable(&config, &node::status::capacity(&config, &machine, root));
    let pods = informers.selected::<Pod>(&format!("spec.nodeName={}", config.node_name));
    let nodes = informers.of::<Node>();
    let images = Images::new(runtime.clone(), client.clone(), &config).map_err(|source| {
        let path = config.layout.image_manager().display().to_string();
        StartError::Directory { path, source }
    })?;
    let node = Arc::new(NodeContext {
        images,
        statuses: StatusWriter::new(client.clone(), supervisor),
        feed: Arc::default(),
        feed_totals: Arc::default(),
        recorder,
        devices,
        dra,
        network,
        services: informers.of::<Service>(),
        references: References::default(),
        runtime_features: RwLock::default(),
        relisted: RwLock::default(),
        pressure: RwLock::default(),
        user_namespaces: UserNamespaces::start(&config.layout, config.max_pods)?,
        probe_totals: probes::Totals::default(),
        supervisor: supervisor.clone(),
        client,
        runtime,
        volumes,
        cgroups,
        machine,
        allocatable,
        config,
    });
    let manager = Manager::new(node.clone(), nodes, supervisor);
    let heartbeat = Arc::new(Heartbeat::default());
    node::heartbeat::start(&node, &heartbeat, supervisor);
    supervisor.spawn("pod-resources", pod_resources::serve(node.clone(), manager.clone()));
    supervisor.spawn("pods-api", pods_api::serve(node.clone()));
    supervisor.spawn("image-gc", images::gc::run(node.clone()));
    supervisor.spawn("eviction", eviction::run(node.clone(), manager.clone(), heartbeat.clone()));
    supervisor.spawn("log-rotation", log_rotation::run(node.clone(), manager.clone()));
    if node.config.server.is_some() {
        supervisor.spawn("serve", serve(node.clone(), manager.clone(), supervisor.clone()));
    }
    if let Some(address) = node.config.healthz {
        supervisor.spawn("healthz", server::serve_healthz(address));
    }
    supervisor.spawn("sources", run_sources(node, manager.clone(), pods, heartbeat, supervisor.clone()));
    Ok(Running { manager })
}

/// Listens on the kubelet's port; waits for it as long as someone else holds it.
async fn serve(node: Arc<NodeContext>, manager: Arc<Manager>, supervisor: Supervisor) {
    let Some(config) = node.config.server.clone() else { return };
    loop {
        let options = server::Options {
            config: config.clone(),
            node_name: node.config.node_name.clone(),
            client: node.client.clone(),
            root: node.config.layout.root.clone(),
            configz: node.config.as_json(),
        };
        match server::start(options, manager.clone(), &supervisor).await {
            Ok(_) => return,
            Err(error) => tracing::error!(%error, "the kubelet's server does not run; trying again"),
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

/// Brings the parts up in their order: what the runtime already has, then the pods that are wanted.
async fn run_sources(
    node: Arc<NodeContext>,
    manager: Arc<Manager>,
    pods: component::Informer<Pod>,
    heartbeat: Arc<Heartbeat>,
    supervisor: Supervisor,
) {
    make_cgroups(&node).await;
    manager.inherit().await;
    node.images.adopt().await;
    heartbeat.wake();
    let events = manager.clone();
    supervisor
        .spawn("runtime-events", cri::events::follow(node.runtime.clone(), move |event| events.runtime_event(event)));
    supervisor.spawn("audit", manager.clone().audit());
    supervisor.spawn("device-health", manager.clone().follow_devices());
    if let Some(directory) = node.config.manifests_dir.clone() {
        manager.static_pods(static_pods::read_all(&directory, &node.config.node_name));
        supervisor.spawn("manifests", static_pods::follow(directory, node.config.node_name.clone(), manager.clone()));
    }
    // Environments show every Service: the first containers must not miss any.
    node.services.synced().await;
    let posted = manager.clone();
    pods.on_change(move |change| posted.api_pod(change.old, change.new));
    pods.synced().await;
    manager.sources_complete();
}

/// The groups above all pods: what they may use together, and the classes' weights.
async fn make_cgroups(node: &NodeContext) {
    use api::resources::QosClass;
    let allocatable = node.allocatable.read().clone();
    let cpus = allocatable.get("cpu").map_or(0, |cpu| cpu.milli());
    let limits = cgroups::Limits { cpu_shares: Some(cpus.max(0).unsigned_abs() * 1024 / 1000), ..Default::default() };
    let groups = [
        (node.cgroups.node(), limits),
        (node.cgroups.qos(QosClass::Burstable), cgroups::Limits { cpu_shares: Some(2), ..Default::default() }),
        (node.cgroups.qos(QosClass::BestEffort), cgroups::Limits { cpu_shares: Some(2), ..Default::default() }),
    ];
    for (group, limits) in groups {
        if let Err(error) = node.cgroups.apply(&group, &limits).await {
            tracing::warn!(%error, "a cgroup of the node could not be made; pods cannot start until it can");
        }
    }
}
