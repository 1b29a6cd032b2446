//! VolumeBinding: a pod goes where its volumes are, or can be.
//!
//! Bound claims limit the nodes to those their volumes reach. Claims whose class waits for a
//! consumer are matched with a free volume of the node, or left to the class's provisioner, which
//! is told the node by an annotation; PreBind waits until all of them are bound. `offers` decides,
//! by `matching` and `capacity`; `binding` does.

mod binding;
mod capacity;
mod matching;
mod offers;

use std::sync::Arc;

use component::{Informer, Informers};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use kube::Client;
use tokio::sync::Notify;

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Effects, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::plugins::storage::{Storage, claim_names, names};
use crate::pod::PodInfo;
use capacity::{counts, largest_volume};
use offers::{Offers, Wanted};

/// What tells a provisioner where the volume for a claim will be used.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub struct VolumeBinding {
    client: Client,
    offers: Offers,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    /// Some claim or volume changed, or a pod or node has gone.
    changed: Arc<Notify>,
}

impl VolumeBinding {
    pub fn new(storage: Storage, informers: &Informers) -> Self {
        let changed = Arc::new(Notify::new());
        let (nodes, pods) = (informers.of::<Node>(), informers.of::<Pod>());
        let notify = changed.clone();
        storage.claims.on_change(move |_| notify.notify_waiters());
        let notify = changed.clone();
        storage.volumes.on_change(move |_| notify.notify_waiters());
        let notify = changed.clone();
        pods.on_change(move |change| {
            if change.new.is_none() {
                notify.notify_waiters();
            }
        });
        let notify = changed.clone();
        nodes.on_change(move |change| {
            if change.new.is_none() {
                notify.notify_waiters();
            }
        });
        Self { client: informers.client(), offers: Offers::new(storage), nodes, pods, changed }
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score, Point::Reserve, Point::PreBind]
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        if claim_names(pod).is_empty() {
            return PreFilter::Skip;
        }
        match self.offers.wanted(pod) {
            Ok(wanted) => {
                state.put(wanted);
                PreFilter::Go
            }
            Err(why) => PreFilter::Reject(Rejection::unresolvable(why)),
        }
    }

    fn filter(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        state.get::<Wanted>().map_or(Ok(()), |wanted| self.offers.fits(wanted, node))
    }

    fn pre_score(&self, state: &mut CycleState, _pod: &PodInfo, _snapshot: &Snapshot, _nodes: &[usize]) -> bool {
        state.get::<Wanted>().is_some_and(|wanted| !wanted.waiting.is_empty())
    }

    fn score(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        state.get::<Wanted>().map_or(0, |wanted| wanted.score(&node.name))
    }

    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        if claim_names(pod).is_empty() {
            return Ok(());
        }
        let wanted = self.offers.wanted(pod)?;
        let node = self.nodes.get("", node).ok_or_else(|| format!("node \"{node}\" is gone"))?;
        let met = self.offers.meet(&wanted, &node)?;
        self.offers.promised.lock().insert(pod.uid.clone(), met.promises);
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _node: &str) {
        self.offers.promised.lock().remove(&pod.uid);
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        helps(pod, event)
    }

    fn effects(&self) -> Option<&dyn Effects> {
        Some(self)
    }
}

/// Whether a change could help a pod whose claims were not met.
fn helps(pod: &PodInfo, event: &ClusterEvent) -> bool {
    match event {
        ClusterEvent::VolumeClaim(change) => names(pod, &change.new),
        ClusterEvent::Volume(_) => true,
        ClusterEvent::StorageClass(change) => {
            let places = |class: &StorageClass| class.allowed_topologies.clone();
            change.old.as_ref().is_none_or(|old| places(old) != places(&change.new))
        }
        ClusterEvent::Driver(change) => change.old.as_ref().is_some_and(|old| counts(old)) && !counts(&change.new),
        ClusterEvent::Capacity(change) => {
            let limit = |capacity: &Arc<CSIStorageCapacity>| largest_volume(capacity);
            change.is_new() || limit(&change.new) > change.old.as_ref().and_then(limit)
        }
        ClusterEvent::NodeAdded(_) => true,
        ClusterEvent::NodeUpdated { old, new } => old.node.metadata.labels != new.node.metadata.labels,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Changed;
    use crate::plugins::storage::testing::{claim, from, using};
    use k8s_openapi::api::storage::v1::CSIDriver;
    use serde_json::json;

    #[test]
    fn changes_of_storage_help_whom_they_concern() {
        let pod = using("p", &["data"]);
        fn changed<K>(old: Option<K>, new: K) -> Changed<K> {
            Changed { old: old.map(Arc::new), new: Arc::new(new) }
        }
        let class = |zone: &str| -> StorageClass {
            from(json!({"metadata": {"name": "fast"}, "provisioner": "x",
                "allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": [zone]}]}]}))
        };
        let driver = |counts: bool| -> CSIDriver {
            from(json!({"metadata": {"name": "x"}, "spec": {"storageCapacity": counts}}))
        };
        let capacity = |size: &str| -> CSIStorageCapacity {
            from(json!({"metadata": {"name": "c"}, "storageClassName": "fast", "capacity": size}))
        };
        let room = |old: Option<&str>, new: &str| ClusterEvent::Capacity(changed(old.map(&capacity), capacity(new)));
        for (event, want) in [
            (ClusterEvent::VolumeClaim(changed(None, claim("data", json!({})))), true),
            (ClusterEvent::VolumeClaim(changed(None, claim("other", json!({})))), false),
            (ClusterEvent::StorageClass(changed(Some(class("a")), class("a"))), false),
            (ClusterEvent::StorageClass(changed(Some(class("a")), class("b"))), true),
            (ClusterEvent::Driver(changed(Some(driver(true)), driver(false))), true),
            (ClusterEvent::Driver(changed(Some(driver(false)), driver(true))), false),
            (room(None, "1Gi"), true),
            (room(Some("1Gi"), "2Gi"), true),
            (room(Some("2Gi"), "1Gi"), false),
        ] {
            assert_eq!(helps(&pod, &event), want, "{event:?}");
        }
    }
}
