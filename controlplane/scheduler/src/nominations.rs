//! Pods that preemption made room for, until they are placed. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cycle::Nominated;
use crate::pod::{PodInfo, Uid};

#[derive(Debug, Default)]
pub struct Nominations {
    by_pod: HashMap<Uid, (String, Arc<PodInfo>)>,
}

impl Nominations {
    pub fn set(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.by_pod.insert(pod.uid.clone(), (node.to_owned(), pod));
    }

    /// Returns where the pod was expected, and the pod.
    pub fn remove(&mut self, uid: &str) -> Option<(String, Arc<PodInfo>)> {
        self.by_pod.remove(uid)
    }

    /// A waiting pod changed; `before` is the node that its status named. What its status says counts,
    /// unless a newer nomination is on its way there. Returns whether a node expects it no more.
    pub fn update(&mut self, pod: &Arc<PodInfo>, before: Option<&str>) -> bool {
        match (pod.nominated_node(), self.by_pod.get_mut(&pod.uid)) {
            (Some(node), known) => {
                let moved = known.is_some_and(|known| known.0 != node);
                self.set(pod.clone(), node);
                moved
            }
            (None, Some(_)) if before.is_some() => self.by_pod.remove(&pod.uid).is_some(),
            (None, Some(known)) => {
                known.1 = pod.clone();
                false
            }
            (None, None) => false,
        }
    }

    /// The pods nominated to each node.
    pub fn by_node(&self) -> Nominated {
        let mut nodes = Nominated::new();
        for (node, pod) in self.by_pod.values() {
            nodes.entry(node.clone()).or_default().push(pod.clone());
        }
        nodes
    }

    /// Takes out those of lower priority on `node`: someone more important goes there.
    pub fn displace(&mut self, node: &str, priority: i32) -> Vec<Arc<PodInfo>> {
        let lower = self.by_pod.values().filter(|(at, pod)| at == node && pod.priority < priority);
        let lower: Vec<_> = lower.map(|(_, pod)| pod.clone()).collect();
        lower.iter().for_each(|pod| drop(self.by_pod.remove(&pod.uid)));
        lower
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::json;

    fn pod(node: Option<&str>) -> Arc<PodInfo> {
        let status = json!({ "nominatedNodeName": node });
        Arc::new(object(json!({"metadata": {"name": "p"}, "spec": {"containers": []}, "status": status})))
    }

    #[test]
    fn a_nomination_stands_until_it_was_seen_and_taken_back() {
        let mut nominations = Nominations::default();
        nominations.set(pod(None), "a");
        assert!(!nominations.update(&pod(None), None));
        assert!(nominations.by_node().contains_key("a"), "it is on its way into the status");
        assert!(!nominations.update(&pod(Some("a")), None));
        assert!(nominations.update(&pod(Some("b")), Some("a")), "a is free of it");
        assert!(nominations.by_node().contains_key("b"), "somebody else's word counts");
        assert!(nominations.update(&pod(None), Some("b")));
        assert!(nominations.by_node().is_empty());
        assert!(!nominations.update(&pod(None), Some("b")), "nothing was kept for it");
    }
}
