//! Hollow nodes: Node objects and heartbeats without machines, on which pods run as far as the API
//! can tell. For schedulers, controllers and quotas at sizes that one machine could not run.
//!
//! Layer: beside [`crate::start()`], which brings up a real node; below `cli`. One process holds any
//! number of them with one connection. [`node`] is what keeps a Node alive, [`pod`] the pure
//! decision about a pod: it uses the kubelet's own rules for statuses, given a runtime in which
//! every container started at once. A Job's pods succeed, all others run until they are deleted.

mod addresses;
mod node;
mod pod;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use component::{Informer, Informers, Outcome, Supervisor, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;

use addresses::Addresses;
use pod::Step;

/// Keeps pods of real work off hollow nodes.
pub const TAINT: &str = "skiff/hollow";
/// Pods dealt with at once.
const WORKERS: usize = 8;
/// A pod waits this long when its node has no address left, or no pod network yet.
const WITHOUT_ADDRESS: Duration = Duration::from_secs(1);

/// What is to be simulated.
#[derive(Clone)]
pub struct Config {
    /// The nodes' names.
    pub names: Vec<String>,
    /// The address that all of them call theirs.
    pub address: IpAddr,
    /// Whether only pods that tolerate [`TAINT`] come here.
    pub tainted: bool,
    /// Needs the rights of every node: the administrator's.
    pub client: kube::Client,
}

struct Hollow {
    names: HashSet<String>,
    address: IpAddr,
    client: kube::Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    addresses: Mutex<Addresses>,
}

type Key = (String, String);

/// Registers the nodes and keeps them and their pods going under `supervisor`.
pub fn start(config: Config, supervisor: &Supervisor) {
    let supervisor = supervisor.child("hollow");
    let informers = Informers::new(config.client.clone(), &supervisor);
    let hollow = Arc::new(Hollow {
        names: config.names.iter().cloned().collect(),
        address: config.address,
        client: config.client.clone(),
        nodes: informers.of::<Node>(),
        pods: informers.of::<Pod>(),
        addresses: Mutex::default(),
    });
    let taint = Taint { key: TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    let taints = if config.tainted { vec![taint] } else { Vec::new() };
    let mut wrong = HashMap::new();
    for name in config.names {
        let kept = node::Kept::new(name.clone(), config.address, taints.clone(), config.client.clone());
        wrong.insert(name.clone(), kept.wrong.clone());
        supervisor.spawn(format_args!("node-{name}"), kept.run());
    }
    hollow.nodes.on_change(move |change| {
        let wrong = change.object().metadata.name.as_ref().and_then(|name| wrong.get(name));
        if let Some(wrong) = wrong.filter(|_| change.new.is_none_or(|node| !node::is_ready(node))) {
            wrong.notify_one();
        }
    });
    let queue = WorkQueue::<Key>::new();
    hollow.pods.on_change({
        let (queue, hollow) = (queue.clone(), hollow.clone());
        move |change| {
            let pod = change.object();
            if !hollow.is_ours(pod) {
                return;
            }
            if change.new.is_none() {
                hollow.addresses.lock().give_back(pod);
            }
            queue.add(key_of(pod));
        }
    });
    queue.run(&supervisor, WORKERS, move |key| {
        let hollow = hollow.clone();
        async move { hollow.reconcile(&key).await }
    });
}

fn key_of(pod: &Pod) -> Key {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

impl Hollow {
    fn is_ours(&self, pod: &Pod) -> bool {
        node_of(pod).is_some_and(|node| self.names.contains(node))
    }

    async fn reconcile(&self, key: &Key) -> Outcome {
        // Addresses of pods not seen yet are not to be given out again.
        self.pods.synced().await;
        let Some(pod) = self.pods.get(&key.0, &key.1) else { return Outcome::Done };
        let Some(ip) = self.address_of(&pod) else { return Outcome::After(WITHOUT_ADDRESS) };
        let done = match pod::step(&pod, ip, self.address, Timestamp::now()) {
            Step::Nothing => Ok(()),
            Step::Publish(status) => self.publish(key, &pod, *status).await,
            Step::Remove => self.remove(key, &pod).await,
        };
        match done {
            Ok(()) => Outcome::Done,
            // It went, or was made anew: its next event tells.
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Outcome::Done,
            Err(error) => {
                tracing::warn!(pod = %format_args!("{}/{}", key.0, key.1), "a hollow pod's turn failed; trying again: {}", component::brief(&error));
                Outcome::Retry
            }
        }
    }

    /// The pod's address: the node's own in the host's network, else one of the node's pod network.
    fn address_of(&self, pod: &Pod) -> Option<IpAddr> {
        let spec = pod.spec.as_ref()?;
        if spec.host_network == Some(true) {
            return Some(self.address);
        }
        let node = self.nodes.get("", spec.node_name.as_deref()?)?;
        let network = node.spec.as_ref()?.pod_cidr.as_deref()?;
        let known = self.pods.list();
        let neighbours = known.iter().filter(|other| node_of(other) == node.metadata.name.as_deref());
        self.addresses.lock().of(pod, network, neighbours.map(AsRef::as_ref))
    }

    async fn publish(
        &self,
        key: &Key,
        pod: &Pod,
        status: k8s_openapi::api::core::v1::PodStatus,
    ) -> Result<(), kube::Error> {
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        api.patch_status(&key.1, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
    }

    /// Nothing runs: the pod is gone as soon as that is wished.
    async fn remove(&self, key: &Key, pod: &Pod) -> Result<(), kube::Error> {
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        api.delete(&key.1, &parameters).await.map(drop)
    }
}
