//! What a node owes the pod network: the CNI configuration, the bridge, routes or VXLAN to the other
//! nodes' pods, masquerading of what leaves the cluster, and network policies.
//!
//! Layer: node, beside `proxy` and `dns`; below `agent`. It knows the cluster only through the
//! informers and the kernel through `netlink`.
//!
//! - [`plan`]: the pure part: (Nodes, this node, its link) → [`plan::Plan`], what should exist.
//! - [`kernel`]: compares a plan with what is there and changes what differs.
//! - [`conflist`]: the CNI configuration as text, written atomically.
//! - [`cni`]: GC and STATUS calls to the configured plugins.
//! - [`routes`]: routes alone, for a server's machine that is no node.
//! - [`policy`]: NetworkPolicy objects into one nf_tables table.
//!
//! Pods of one node are routed, not switched: each has a single address and sends everything to the
//! gateway. So every packet between pods passes the host's netfilter hooks once, which makes Services
//! and network policies work between neighbours with and without `br_netfilter`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

mod cleanup;
mod cni;
mod conflist;
mod forwarding;
mod kernel;
mod masquerade;
mod plan;
pub mod policy;
pub mod routes;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use component::{Informer, Informers, Supervisor};
use k8s_openapi::api::core::v1::{Node, Pod};
use netlink::IpNet;
use tokio::sync::{Notify, watch};

pub use cleanup::cleanup;
pub use cni::Attachment;
pub use forwarding::Exception;
pub use plan::Backend;

/// The bridge that pods hang on.
pub const BRIDGE: &str = "skiff0";
/// The VXLAN link to nodes that share no link with this one.
pub const VXLAN: &str = "skiff.vxlan";

/// What was made by others is looked at again this often.
const AUDIT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    /// The address by which other nodes reach this one.
    pub node_ip: Ipv4Addr,
    /// Where the container runtime looks for network configurations.
    pub cni_conf_dir: PathBuf,
    /// Where the plugins are.
    pub cni_bin_dir: PathBuf,
    /// Where `host-local` keeps its reservations.
    pub cni_data_dir: PathBuf,
    /// The pods of all nodes, e.g. 10.42.0.0/16.
    pub cluster_cidr: IpNet,
    /// The cluster IPs, e.g. 10.43.0.0/16: routed into the bridge, so that this node's own processes
    /// can send to them without a default route, and none leaves by one.
    pub service_cidr: IpNet,
    pub backend: Backend,
    /// VXLAN network identifier; all nodes of a cluster use the same.
    pub vxlan_id: u32,
    pub vxlan_port: u16,
    /// Of the pods' interfaces; 0 to follow the node's link.
    pub mtu: u32,
    /// Whether NetworkPolicy objects are enforced.
    pub enforce_policies: bool,
}

impl Config {
    /// The defaults of DESIGN.md for everything that is not this node's own.
    pub fn new(node_name: impl Into<String>, node_ip: Ipv4Addr) -> Self {
        Self {
            node_name: node_name.into(),
            node_ip,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            cni_data_dir: "/var/lib/cni/networks".into(),
            cluster_cidr: IpNet::new(Ipv4Addr::new(10, 42, 0, 0).into(), 16),
            service_cidr: IpNet::new(Ipv4Addr::new(10, 43, 0, 0).into(), 16),
            backend: Backend::Auto,
            vxlan_id: 1,
            vxlan_port: 8472,
            mtu: 0,
            enforce_policies: true,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Netlink(#[from] netlink::Error),
    #[error("write CNI configuration {path}: {source}", path = .path.display())]
    Conflist { path: PathBuf, source: std::io::Error },
    #[error("node address {address} is on no interface of this network namespace; set the node IP to one that is")]
    NoSuchNodeAddress { address: Ipv4Addr },
    #[error(
        "{program} refused the rules for pods leaving the cluster: {message}; install iptables, or a kernel with nf_tables"
    )]
    Iptables { program: &'static str, message: String },
    #[error("CNI plugin {plugin} {command}: {message}")]
    Plugin { plugin: String, command: &'static str, message: String },
}

/// The running network of a node. Cloning shares it.
#[derive(Clone)]
pub struct Network {
    config: Arc<Config>,
    state: watch::Receiver<State>,
    conflist: Arc<watch::Sender<Option<serde_json::Value>>>,
    /// None where they are not enforced.
    policies: Option<policy::Policies>,
}

/// How far the pod network is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// No pod CIDR has been given to the node yet.
    Waiting,
    Ready,
    Failed(String),
}

impl Network {
    /// The message of the node's NetworkReady condition, or nothing when pods can be connected.
    pub fn problem(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Ready => None,
            State::Waiting => Some(format!("node {} has no pod CIDR yet", self.config.node_name)),
            State::Failed(message) => Some(message.clone()),
        }
    }

    /// Returns once the CNI configuration is written and the kernel is as planned.
    pub async fn ready(&self) {
        let mut state = self.state.clone();
        // The sender lives in the reconcile task; when that has gone nobody will be ready any more.
        if state.wait_for(|state| *state == State::Ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Tells the plugins which attachments still exist; they release everything else. To be called
    /// with the runtime's sandboxes at start and now and then, never while one is being made that is
    /// not in the list.
    pub async fn collect(&self, valid: Vec<Attachment>) -> Result<(), Error> {
        let Some(conflist) = self.conflist.borrow().clone() else { return Ok(()) };
        cni::collect(&self.config.cni_bin_dir, &conflist, &valid).await
    }

    /// Returns once network policies hold for a pod of this node that has these addresses, which the API may not
    /// show yet. To be waited for before a container of the pod starts.
    pub async fn isolate(&self, pod: &Arc<Pod>, addresses: &[IpAddr]) {
        let Some(policies) = &self.policies else { return };
        let first = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        if let Some(address) = first {
            policies.hold(pod, address).await;
        }
    }

    /// Asks the plugins whether they could serve an ADD.
    pub async fn status(&self) -> Result<(), Error> {
        let Some(conflist) = self.conflist.borrow().clone() else { return Ok(()) };
        cni::status(&self.config.cni_bin_dir, &conflist).await
    }
}

/// Starts keeping this node's pod network. Returns at once; see [`Network::ready`].
pub fn start(config: Config, informers: Informers, supervisor: &Supervisor) -> Network {
    let supervisor = supervisor.child("network");
    let nodes = informers.of::<Node>();
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    nodes.on_change(move |change| {
        if plan::matters(change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref)) {
            wake.notify_one();
        }
    });
    let config = Arc::new(config);
    let (state, state_seen) = watch::channel(State::Waiting);
    let conflist = Arc::new(watch::Sender::new(None));
    if config.backend == Backend::None {
        state.send_replace(State::Ready);
    } else {
        supervisor.spawn("nodes", reconcile_forever(config.clone(), nodes, changed, state, conflist.clone()));
    }
    let policies = config.enforce_policies.then(|| policy::start(&config.node_name, &informers, &supervisor));
    Network { config, state: state_seen, conflist, policies }
}

async fn reconcile_forever(
    config: Arc<Config>,
    nodes: Informer<Node>,
    changed: Arc<Notify>,
    state: watch::Sender<State>,
    conflist: Arc<watch::Sender<Option<serde_json::Value>>>,
) {
    // Half a list would remove the routes to the other half.
    nodes.synced().await;
    loop {
        let seen = nodes.list();
        let config = config.clone();
        let outcome = tokio::task::spawn_blocking(move || reconcile(&config, &seen)).await;
        let next = match outcome {
            Ok(Ok(Some(written))) => {
                conflist.send_replace(Some(written));
                State::Ready
            }
            Ok(Ok(None)) => State::Waiting,
            Ok(Err(error)) => State::Failed(error.to_string()),
            Err(panic) => State::Failed(format!("reconciling the pod network panicked: {panic}")),
        };
        let retry_soon = matches!(next, State::Failed(_));
        state.send_if_modified(|now| {
            if *now == next {
                return false;
            }
            match &next {
                State::Failed(message) => tracing::warn!(%message, "pod network is not as planned; retrying"),
                State::Ready => tracing::info!("pod network is ready"),
                State::Waiting => tracing::info!("waiting for the node's pod CIDR"),
            }
            *now = next.clone();
            true
        });
        let pause = if retry_soon { Duration::from_secs(1) } else { AUDIT };
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One pass; returns the CNI configuration once there is one.
fn reconcile(config: &Config, nodes: &[Arc<Node>]) -> Result<Option<serde_json::Value>, Error> {
    let uplink = kernel::uplink(config.node_ip)?;
    let peers = nodes.iter().filter_map(|node| plan::peer(node));
    let Some(plan) = plan::plan(config, &uplink, peers) else { return Ok(None) };
    kernel::apply(&plan)?;
    forwarding::accept(config.cluster_cidr, config.service_cidr);
    let content = conflist::render(config, &plan);
    conflist::write(&config.cni_conf_dir, &content)?;
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_a_list_of_nodes_changes_nothing() {
        let nodes = Informer::<Node>::detached();
        let own = serde_json::json!({ "metadata": { "name": "n1" }, "spec": { "podCIDR": "10.42.7.0/24" } });
        nodes.apply(serde_json::from_value(own).unwrap());
        // The address is on no interface: a pass fails before it touches anything of this machine.
        let config = Arc::new(Config::new("n1", Ipv4Addr::new(192, 0, 2, 77)));
        let (state, mut seen) = watch::channel(State::Waiting);
        let conflist = Arc::new(watch::Sender::new(None));
        let supervisor = Supervisor::new("test");
        supervisor.spawn("nodes", reconcile_forever(config, nodes.clone(), Arc::default(), state, conflist));
        let early = tokio::time::timeout(Duration::from_millis(200), seen.changed()).await;
        assert!(early.is_err(), "{:?}", *seen.borrow());
        nodes.mark_synced();
        tokio::time::timeout(Duration::from_secs(10), seen.changed()).await.unwrap().unwrap();
        assert!(matches!(*seen.borrow(), State::Failed(_)));
        supervisor.cancel();
    }
}
