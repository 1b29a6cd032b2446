//! VolumeBinding: a pod goes where its volumes are, or can be.
//!
//! Bound claims limit the nodes to those their volumes reach. Claims whose class waits for a
//! consumer are matched with a free volume of the node, or left to the class's provisioner, which
//! is told the node by an annotation; PreBind waits until all of them are bound. `matching` decides,
//! `binding` does.

mod binding;
mod matching;

use std::collections::HashMap;
use std::sync::Arc;

use component::{Informer, Informers};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Effects, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::plugins::storage::{
    ClaimName, Storage, bound_volume, claim_names, is_made_for, names, volume_name, waits_for_consumer,
};
use crate::pod::{PodInfo, Uid};
use matching::{Claim, Volume, can_provision, find_volume, reaches};

pub const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
pub const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
pub const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
pub const UNBOUND_IMMEDIATE: &str = "pod has unbound immediate PersistentVolumeClaims";

pub struct VolumeBinding {
    client: Client,
    storage: Storage,
    nodes: Informer<Node>,
    /// What placed pods were promised and do not have yet.
    promised: Mutex<HashMap<Uid, Vec<Promise>>>,
    /// Some claim changed.
    changed: Arc<Notify>,
}

/// What is to be done for one claim before its pod can be bound.
#[derive(Debug, Clone, PartialEq)]
enum Promise {
    /// Bind it to this volume.
    Bind { claim: String, volume: String },
    /// Have a volume made for the pod's node.
    Provision { claim: String },
}

/// The claims of the pod in this cycle.
struct Wanted {
    bound: Vec<Volume>,
    /// A volume that one is bound to is not there.
    lost: bool,
    waiting: Vec<Claim>,
}

impl VolumeBinding {
    pub fn new(storage: Storage, informers: &Informers) -> Self {
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        storage.claims.on_change(move |_| notify.notify_waiters());
        Self { client: informers.client(), storage, changed, nodes: informers.of(), promised: Mutex::default() }
    }

    fn wanted(&self, pod: &PodInfo) -> Result<Wanted, String> {
        let mut wanted = Wanted { bound: Vec::new(), lost: false, waiting: Vec::new() };
        for name in claim_names(pod) {
            let claim = self.claim(pod, &name)?;
            if let Some(volume) = bound_volume(&claim) {
                match self.storage.volumes.get("", volume) {
                    Some(found) => wanted.bound.push(found),
                    None => wanted.lost = true,
                }
            } else if volume_name(&claim).is_none()
                && self.storage.class_of(&claim).is_some_and(|class| waits_for_consumer(&class))
            {
                wanted.waiting.push(claim);
            } else {
                return Err(UNBOUND_IMMEDIATE.to_owned());
            }
        }
        Ok(wanted)
    }

    /// One claim of a pod, if the pod can be placed with it.
    fn claim(&self, pod: &PodInfo, name: &ClaimName) -> Result<Claim, String> {
        let ClaimName { name, ephemeral } = name;
        let claim = self.storage.claim(pod, name).map_err(|missing| match ephemeral {
            true => format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""),
            false => missing,
        })?;
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            let volume = volume_name(&claim).unwrap_or_default();
            return Err(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            ));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        }
        if *ephemeral && !is_made_for(&claim, pod) {
            let (namespace, pod) = (&pod.namespace, pod.full_name());
            return Err(format!("PVC {namespace}/{name} was not created for pod {pod} (pod is not owner)"));
        }
        Ok(claim)
    }

    /// How each waiting claim would be met on a node; none: not all can.
    fn meet(&self, pod: &PodInfo, waiting: &[Claim], node: &Node) -> Option<Vec<Promise>> {
        let volumes = self.storage.volumes.list();
        let promised = self.promised.lock();
        let mut taken: Vec<String> = promised
            .iter()
            .filter(|(uid, _)| **uid != pod.uid)
            .flat_map(|(_, promises)| promises)
            .filter_map(|promise| match promise {
                Promise::Bind { volume, .. } => Some(volume.clone()),
                Promise::Provision { .. } => None,
            })
            .collect();
        let meet_one = |claim: &Claim| {
            let name = claim.metadata.name.clone().unwrap_or_default();
            if let Some(volume) = find_volume(claim, &volumes, node, |name| taken.iter().any(|taken| taken == name)) {
                let volume = volume.metadata.name.clone().unwrap_or_default();
                taken.push(volume.clone());
                return Some(Promise::Bind { claim: name, volume });
            }
            can_provision(self.storage.class_of(claim).as_deref(), node).then_some(Promise::Provision { claim: name })
        };
        waiting.iter().map(meet_one).collect()
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::Reserve, Point::PreBind]
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        if claim_names(pod).is_empty() {
            return PreFilter::Skip;
        }
        match self.wanted(pod) {
            Ok(wanted) => {
                state.put(wanted);
                PreFilter::Go
            }
            Err(why) => PreFilter::Reject(Rejection::unresolvable(why)),
        }
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(wanted) = state.get::<Wanted>() else { return Ok(()) };
        let mut reasons = Vec::new();
        if !wanted.bound.iter().all(|volume| reaches(volume, &node.node)) {
            reasons.push(NODE_CONFLICT.into());
        }
        if !wanted.waiting.is_empty() && self.meet(pod, &wanted.waiting, &node.node).is_none() {
            reasons.push(BIND_CONFLICT.into());
        }
        if wanted.lost {
            reasons.push(NO_VOLUME.into());
        }
        if reasons.is_empty() { Ok(()) } else { Err(Rejection { resolvable: false, reasons, failed: false }) }
    }

    fn reserve(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        if claim_names(pod).is_empty() {
            return Ok(());
        }
        let wanted = self.wanted(pod)?;
        let node = self.nodes.get("", node).ok_or_else(|| format!("node \"{node}\" is gone"))?;
        let promises = self.meet(pod, &wanted.waiting, &node).ok_or(BIND_CONFLICT)?;
        self.promised.lock().insert(pod.uid.clone(), promises);
        Ok(())
    }

    fn unreserve(&self, pod: &PodInfo, _node: &str) {
        self.promised.lock().remove(&pod.uid);
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::VolumeClaim(change) => names(pod, &change.new),
            ClusterEvent::Volume(_) => true,
            ClusterEvent::StorageClass(change) => {
                let places = |class: &StorageClass| class.allowed_topologies.clone();
                change.old.as_ref().is_none_or(|old| places(old) != places(&change.new))
            }
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => old.node.metadata.labels != new.node.metadata.labels,
            _ => false,
        }
    }

    fn effects(&self) -> Option<&dyn Effects> {
        Some(self)
    }
}
