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
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Effects, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::{PodInfo, Uid};
use matching::{Claim, Volume, bound_volume, can_provision, claim_names, class_name, find_volume, reaches};

pub const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
pub const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
pub const UNBOUND_IMMEDIATE: &str = "pod has unbound immediate PersistentVolumeClaims";

pub struct VolumeBinding {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
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
    waiting: Vec<Claim>,
}

impl VolumeBinding {
    pub fn new(informers: &Informers) -> Self {
        let (claims, changed) = (informers.of::<PersistentVolumeClaim>(), Arc::new(Notify::new()));
        let notify = changed.clone();
        claims.on_change(move |_| notify.notify_waiters());
        Self {
            client: informers.client(),
            claims,
            changed,
            volumes: informers.of(),
            classes: informers.of(),
            nodes: informers.of(),
            promised: Mutex::default(),
        }
    }

    fn wanted(&self, pod: &PodInfo) -> Result<Wanted, String> {
        let mut wanted = Wanted { bound: Vec::new(), waiting: Vec::new() };
        for name in claim_names(pod) {
            let claim = self.claims.get(&pod.namespace, &name.name).ok_or_else(|| {
                if name.ephemeral {
                    let claim = &name.name;
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{claim}\"")
                } else {
                    format!("persistentvolumeclaim \"{}\" not found", name.name)
                }
            })?;
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{}\" is being deleted", name.name));
            }
            if let Some(volume) = bound_volume(&claim) {
                let found = self.volumes.get("", volume).ok_or_else(|| {
                    format!(
                        "persistentvolumeclaim \"{}\" bound to non-existent persistentvolume \"{volume}\"",
                        name.name
                    )
                })?;
                wanted.bound.push(found);
            } else if matching::waits_for_consumer(self.class_of(&claim).as_deref()) {
                wanted.waiting.push(claim);
            } else {
                return Err(UNBOUND_IMMEDIATE.to_owned());
            }
        }
        Ok(wanted)
    }

    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        self.classes.get("", class_name(claim))
    }

    /// How each waiting claim would be met on a node; none: not all can.
    fn meet(&self, pod: &PodInfo, waiting: &[Claim], node: &Node) -> Option<Vec<Promise>> {
        let volumes = self.volumes.list();
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
            can_provision(self.class_of(claim).as_deref(), node).then_some(Promise::Provision { claim: name })
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
        if !wanted.bound.iter().all(|volume| reaches(volume, &node.node)) {
            return Err(Rejection::unresolvable(NODE_CONFLICT));
        }
        if !wanted.waiting.is_empty() && self.meet(pod, &wanted.waiting, &node.node).is_none() {
            return Err(Rejection::unresolvable(BIND_CONFLICT));
        }
        Ok(())
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
            ClusterEvent::StorageChanged => !claim_names(pod).is_empty(),
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => old.node.metadata.labels != new.node.metadata.labels,
            _ => false,
        }
    }

    fn effects(&self) -> Option<&dyn Effects> {
        Some(self)
    }
}
