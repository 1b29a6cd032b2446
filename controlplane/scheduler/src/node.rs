//! A node as the scheduler looks at it: what it has, what is taken, who is on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod::{HostPort, PodInfo};
use crate::resource::Resources;

#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub name: String,
    pub node: Arc<Node>,
    pub allocatable: Resources,
    pub allowed_pods: usize,
    pub requested: Resources,
    pub scored_milli_cpu: i64,
    pub scored_memory: i64,
    /// Pods bound here, or about to be.
    pub pods: Vec<Arc<PodInfo>>,
    /// How many of them have affinity or anti-affinity terms of any kind.
    pub with_affinity: usize,
    pub with_required_anti_affinity: usize,
    pub used_ports: Vec<HostPort>,
    /// Bytes by image name.
    pub images: BTreeMap<String, i64>,
}

impl NodeInfo {
    pub fn new(node: Arc<Node>) -> Self {
        let mut info = Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            node: node.clone(),
            allocatable: Resources::default(),
            allowed_pods: 0,
            requested: Resources::default(),
            scored_milli_cpu: 0,
            scored_memory: 0,
            pods: Vec::new(),
            with_affinity: 0,
            with_required_anti_affinity: 0,
            used_ports: Vec::new(),
            images: BTreeMap::new(),
        };
        info.set_node(node);
        info
    }

    /// Takes over a new version of the node object.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        self.allocatable = Resources::from_wire(allocatable);
        let pods = allocatable.and_then(|allocatable| allocatable.get("pods")).map(|pods| Quantity::from(pods).units());
        self.allowed_pods = usize::try_from(pods.unwrap_or(0)).unwrap_or(0);
        self.images = images(&node);
        self.node = node;
    }

    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.count(&pod);
        self.with_affinity += usize::from(has_affinity(&pod));
        self.with_required_anti_affinity += usize::from(!pod.anti_affinity.required.is_empty());
        self.used_ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod);
    }

    /// Takes out the pod with this UID, if it is here.
    pub fn remove_pod(&mut self, uid: &str) {
        let Some(at) = self.pods.iter().position(|pod| &*pod.uid == uid) else { return };
        let pod = self.pods.swap_remove(at);
        self.recount();
        self.with_affinity -= usize::from(has_affinity(&pod));
        self.with_required_anti_affinity -= usize::from(!pod.anti_affinity.required.is_empty());
        for port in &pod.host_ports {
            if let Some(at) = self.used_ports.iter().position(|used| used == port) {
                self.used_ports.swap_remove(at);
            }
        }
    }

    fn count(&mut self, pod: &PodInfo) {
        self.requested.add(&pod.requests);
        self.scored_milli_cpu = self.scored_milli_cpu.saturating_add(pod.scored_milli_cpu);
        self.scored_memory = self.scored_memory.saturating_add(pod.scored_memory);
    }

    /// Sums anew: from one that stands at its limit nothing can be subtracted.
    fn recount(&mut self) {
        (self.requested, self.scored_milli_cpu, self.scored_memory) = (Resources::default(), 0, 0);
        let pods = std::mem::take(&mut self.pods);
        pods.iter().for_each(|pod| self.count(pod));
        self.pods = pods;
    }

    pub fn taints(&self) -> &[Taint] {
        self.node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
    }

    pub fn is_unschedulable(&self) -> bool {
        self.node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str)
    }
}

fn has_affinity(pod: &PodInfo) -> bool {
    [&pod.affinity, &pod.anti_affinity].iter().any(|terms| !terms.required.is_empty() || !terms.preferred.is_empty())
}

fn images(node: &Node) -> BTreeMap<String, i64> {
    let images = node.status.as_ref().and_then(|status| status.images.as_ref());
    let named = images.into_iter().flatten().flat_map(|image| {
        let size = image.size_bytes.unwrap_or(0);
        image.names.iter().flatten().map(move |name| (name.clone(), size))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{asking, named, node};
    use serde_json::json;

    #[test]
    fn sums_that_reached_a_limit_come_back_down() {
        let mut here = node("n", json!({}));
        let sums = |node: &NodeInfo| (node.requested.memory, node.requested.other("x.io/gpu"), node.scored_memory);
        let huge = |name: &str| {
            let requests = json!({"memory": "7Ei", "x.io/gpu": "7E"});
            named(name, json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
        };
        for pod in [huge("a"), huge("b"), asking("c", "1", "1Gi")] {
            here.add_pod(Arc::new(pod));
        }
        assert_eq!(sums(&here), (i64::MAX, i64::MAX, i64::MAX));
        here.remove_pod("a");
        assert_eq!(sums(&here), ((7 << 60) + (1 << 30), 7_000_000_000_000_000_000, (7 << 60) + (1 << 30)));
        here.remove_pod("b");
        assert_eq!(sums(&here), (1 << 30, 0, 1 << 30));
        here.remove_pod("c");
        assert_eq!((sums(&here), here.requested.milli_cpu, here.scored_milli_cpu), ((0, 0, 0), 0, 0));
    }
}
