//! The scheduler's picture of the cluster, and snapshots of it.
//!
//! [`Cluster`] is kept current by informers, plus pods that were placed but whose binding is not
//! seen yet (assumed). A [`Snapshot`] shares its memory: taking one copies a few pointers, and the
//! next change copies only what it touches (the node's entry, and the array if a snapshot still
//! holds it).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Node;

use crate::node::NodeInfo;
use crate::pod::{PodInfo, Uid};

type Labels = BTreeMap<String, String>;
/// The labels that Services select pods by, by namespace and name.
type Services = HashMap<String, BTreeMap<String, Labels>>;

#[derive(Debug, Default)]
pub struct Cluster {
    nodes: Arc<Vec<Arc<NodeInfo>>>,
    positions: HashMap<String, usize>,
    pods: HashMap<Uid, Placed>,
    namespaces: Arc<HashMap<String, Labels>>,
    services: Arc<Services>,
}

#[derive(Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    node: String,
    assumed: bool,
}

/// The nodes, with their pods, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub nodes: Arc<Vec<Arc<NodeInfo>>>,
    /// Labels by namespace.
    pub namespaces: Arc<HashMap<String, Labels>>,
    pub services: Arc<Services>,
    /// When, if that matters: a long search ends so long after it.
    pub taken: Option<Instant>,
}

impl Snapshot {
    pub fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace)
    }

    /// What the Services in front of a pod select by, all together; empty: there are none.
    pub fn service_labels(&self, pod: &PodInfo) -> Labels {
        let here = self.services.get(&pod.namespace).into_iter().flat_map(BTreeMap::values);
        let of_pod = here.filter(|selector| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
        of_pod.flat_map(Clone::clone).collect()
    }

    /// The same with another entry for one node.
    pub fn with_node(&self, at: usize, node: NodeInfo) -> Self {
        let mut changed = self.clone();
        Arc::make_mut(&mut changed.nodes)[at] = Arc::new(node);
        changed
    }
}

impl Cluster {
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.clone(),
            namespaces: self.namespaces.clone(),
            services: self.services.clone(),
            taken: None,
        }
    }

    /// A node appeared or changed. Pods seen before their node are on it from now on.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        if let Some(info) = self.node_mut(&name) {
            info.set_node(node);
            return;
        }
        let mut info = NodeInfo::new(node);
        for placed in self.pods.values().filter(|placed| placed.node == name) {
            info.add_pod(placed.pod.clone());
        }
        let nodes = Arc::make_mut(&mut self.nodes);
        self.positions.insert(name, nodes.len());
        nodes.push(Arc::new(info));
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(at) = self.positions.remove(name) else { return };
        let nodes = Arc::make_mut(&mut self.nodes);
        nodes.swap_remove(at);
        if let Some(moved) = nodes.get(at) {
            self.positions.insert(moved.name.clone(), at);
        }
    }

    /// A pod is bound, as the API says. Confirms it if it was assumed, corrects it if it was
    /// assumed elsewhere.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, false);
    }

    /// A pod will be bound to `node`.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.place(pod, node, true);
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(&pod.uid);
        if let Some(info) = self.node_mut(node) {
            info.add_pod(pod.clone());
        }
        self.pods.insert(pod.uid.clone(), Placed { pod, node: node.to_owned(), assumed });
    }

    /// Takes back [`Cluster::assume`], unless the binding was seen meanwhile.
    pub fn forget(&mut self, uid: &str) {
        if self.pods.get(uid).is_some_and(|placed| placed.assumed) {
            self.remove_pod(uid);
        }
    }

    /// Whether the pod is placed here (assumed or bound), and what it was.
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|placed| &placed.pod)
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(uid)?;
        if let Some(info) = self.node_mut(&placed.node) {
            info.remove_pod(uid);
        }
        Some(placed.pod)
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let namespaces = Arc::make_mut(&mut self.namespaces);
        match labels {
            Some(labels) => namespaces.insert(name.to_owned(), labels),
            None => namespaces.remove(name),
        };
    }

    /// A Service appeared, changed or went; `selector`: the labels of its pods, if it selects any.
    pub fn set_service(&mut self, namespace: &str, name: &str, selector: Option<Labels>) {
        let services = Arc::make_mut(&mut self.services);
        if let Some(selector) = selector {
            services.entry(namespace.to_owned()).or_default().insert(name.to_owned(), selector);
        } else if let Some(here) = services.get_mut(namespace) {
            here.remove(name);
            if here.is_empty() {
                services.remove(namespace);
            }
        }
    }

    fn node_mut(&mut self, name: &str) -> Option<&mut NodeInfo> {
        let at = *self.positions.get(name)?;
        Arc::make_mut(&mut self.nodes).get_mut(at).map(Arc::make_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{asking, node};
    use serde_json::json;

    fn used(cluster: &Cluster, name: &str) -> i64 {
        cluster.nodes[cluster.positions[name]].requested.milli_cpu
    }

    #[test]
    fn pods_count_where_they_are_whatever_came_first() {
        let mut cluster = Cluster::default();
        let pod = Arc::new(asking("p", "500m", "1Gi"));
        cluster.set_pod(pod.clone(), "n1");
        cluster.set_node(node("n1", json!({})).node.clone());
        assert_eq!(used(&cluster, "n1"), 500, "the pod was seen before its node");

        cluster.set_node(node("n2", json!({})).node.clone());
        cluster.set_pod(pod.clone(), "n2");
        assert_eq!((used(&cluster, "n1"), used(&cluster, "n2")), (0, 500), "it turned out to be elsewhere");

        cluster.remove_node("n1");
        cluster.remove_pod(&pod.uid);
        assert_eq!(used(&cluster, "n2"), 0);
    }

    #[test]
    fn an_assumed_pod_is_forgotten_unless_it_was_bound() {
        let mut cluster = Cluster::default();
        cluster.set_node(node("n1", json!({})).node.clone());
        let pod = Arc::new(asking("p", "1", "1Gi"));
        cluster.assume(pod.clone(), "n1");
        cluster.forget(&pod.uid);
        assert_eq!(used(&cluster, "n1"), 0);
        cluster.assume(pod.clone(), "n1");
        cluster.set_pod(pod.clone(), "n1");
        cluster.forget(&pod.uid);
        assert_eq!(used(&cluster, "n1"), 1000);
    }

    #[test]
    fn the_labels_of_all_services_of_a_pod_tell_its_siblings() {
        let mut cluster = Cluster::default();
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        cluster.set_service("default", "web", Some(labels(&[("app", "web")])));
        cluster.set_service("default", "front", Some(labels(&[("tier", "front")])));
        cluster.set_service("default", "other", Some(labels(&[("app", "web"), ("tier", "back")])));
        cluster.set_service("elsewhere", "web", Some(labels(&[("zone", "a")])));
        let pod = crate::testing::object(json!({"spec": {"containers": []},
            "metadata": {"name": "p", "labels": {"app": "web", "tier": "front", "zone": "a"}}}));
        assert_eq!(cluster.snapshot().service_labels(&pod), labels(&[("app", "web"), ("tier", "front")]));
        cluster.set_service("default", "front", None);
        assert_eq!(cluster.snapshot().service_labels(&pod), labels(&[("app", "web")]));
        cluster.set_service("default", "web", None);
        cluster.set_service("default", "other", None);
        assert!(cluster.snapshot().service_labels(&pod).is_empty() && !cluster.services.contains_key("default"));
    }

    #[test]
    fn a_snapshot_does_not_change() {
        let mut cluster = Cluster::default();
        cluster.set_node(node("n1", json!({})).node.clone());
        let snapshot = cluster.snapshot();
        cluster.assume(Arc::new(asking("p", "1", "1Gi")), "n1");
        assert_eq!((snapshot.nodes[0].requested.milli_cpu, used(&cluster, "n1")), (0, 1000));
    }
}
