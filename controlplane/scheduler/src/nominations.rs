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

    pub fn remove(&mut self, uid: &str) -> bool {
        self.by_pod.remove(uid).is_some()
    }

    /// A waiting pod changed. What its status says counts, unless a newer nomination is on its way
    /// there.
    pub fn update(&mut self, pod: &Arc<PodInfo>) {
        match (pod.nominated_node(), self.by_pod.get_mut(&pod.uid)) {
            (Some(node), _) => self.set(pod.clone(), node),
            (None, Some(known)) => known.1 = pod.clone(),
            (None, None) => {}
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
