//! NodeVolumeLimits: a node attaches no more volumes of a CSI driver than the driver says it can.
//!
//! Counted are the volumes of the node's pods and what is attached to it besides. A volume of a driver
//! that insists on being installed goes nowhere else. Volumes of the kinds that Kubernetes has moved to
//! CSI drivers are counted under no driver: nothing here translates them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use component::Change;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use parking_lot::Mutex;

use super::storage::{Storage, claim_names, names, shared_claims, volume_name};
use crate::cluster::Snapshot;
use crate::event::{Changed, ClusterEvent};
use crate::framework::{CycleState, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const TOO_MANY: &str = "node(s) exceed max volume count";

pub struct NodeVolumeLimits {
    storage: Storage,
    attachments: Arc<Mutex<ByNode>>,
}

/// What is attached, by node and the attachment's name: many nodes are looked at for one pod.
type ByNode = HashMap<String, HashMap<String, Arc<VolumeAttachment>>>;

/// A volume as it is counted: once, however many pods use it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Counted {
    driver: String,
    volume: Volume,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Volume {
    /// The driver's name for it.
    Handle(String),
    /// It will be made for this claim.
    ToBeMade { namespace: String, claim: String },
}

/// What the pod of this cycle would have attached.
struct Wanted(BTreeSet<Counted>);

impl NodeVolumeLimits {
    pub fn new(storage: Storage) -> Self {
        let attachments = Arc::new(Mutex::new(ByNode::new()));
        let by_node = attachments.clone();
        storage.attachments.on_change(move |change| note(&mut by_node.lock(), change));
        Self { storage, attachments }
    }

    /// A pod's volumes of CSI drivers. Claims that are not there are not counted: a pod that waits to be
    /// placed is held back for them by VolumeBinding.
    fn volumes(&self, pod: &PodInfo) -> BTreeSet<Counted> {
        let claims = claim_names(pod).into_iter().filter_map(|claim| self.storage.claim(pod, &claim.name).ok());
        claims.filter_map(|claim| self.counted(&claim)).collect()
    }

    fn counted(&self, claim: &PersistentVolumeClaim) -> Option<Counted> {
        let volume = volume_name(claim).and_then(|name| self.storage.volumes.get("", name));
        if let Some(volume) = volume {
            return handle(&volume).map(|(driver, handle)| Counted { driver, volume: Volume::Handle(handle) });
        }
        // Not made yet, or gone: its driver will be the one that the class names.
        let class = self.storage.class_of(claim)?;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let volume = Volume::ToBeMade { namespace: text(&claim.metadata.namespace), claim: text(&claim.metadata.name) };
        Some(Counted { driver: class.provisioner.clone(), volume })
    }

    fn attached(&self, node: &str) -> Vec<Counted> {
        let attachments = self.attachments.lock();
        let here = attachments.get(node).into_iter().flat_map(HashMap::values);
        here.filter_map(|attachment| self.attached_as(attachment)).collect()
    }

    fn attached_as(&self, attachment: &VolumeAttachment) -> Option<Counted> {
        let name = attachment.spec.source.persistent_volume_name.as_deref()?;
        let (_, handle) = handle(&*self.storage.volumes.get("", name)?)?;
        Some(Counted { driver: attachment.spec.attacher.clone(), volume: Volume::Handle(handle) })
    }

    /// Whether pods with volumes of the driver go only where it is.
    fn insists(&self, driver: &str) -> bool {
        let driver = self.storage.drivers.get("", driver);
        driver.is_some_and(|driver| driver.spec.prevent_pod_scheduling_if_missing == Some(true))
    }
}

/// Keeps what is attached current.
fn note(by_node: &mut ByNode, change: &Change<'_, VolumeAttachment>) {
    let name = |attachment: &VolumeAttachment| attachment.metadata.name.clone().unwrap_or_default();
    if let Some(old) = change.old
        && let Some(there) = by_node.get_mut(&old.spec.node_name)
    {
        there.remove(&name(old));
        if there.is_empty() {
            by_node.remove(&old.spec.node_name);
        }
    }
    if let Some(new) = change.new {
        by_node.entry(new.spec.node_name.clone()).or_default().insert(name(new), new.clone());
    }
}

/// Driver and the driver's name of a volume.
fn handle(volume: &PersistentVolume) -> Option<(String, String)> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some((csi.driver.clone(), csi.volume_handle.clone()))
}

/// How many volumes of each driver a node takes; none where a driver does not say.
fn limits(on_node: Option<&CSINode>) -> BTreeMap<&str, Option<i64>> {
    let drivers = on_node.into_iter().flat_map(|node| &node.spec.drivers);
    let count = drivers.map(|driver| {
        let count = driver.allocatable.as_ref().and_then(|allocatable| allocatable.count);
        (driver.name.as_str(), count.map(i64::from))
    });
    count.collect()
}

/// Whether a node's drivers take more than before, or there are more of them.
fn takes_more(change: &Changed<CSINode>) -> bool {
    let before = limits(change.old.as_deref());
    limits(Some(&change.new)).iter().any(|(driver, count)| match before.get(driver) {
        None => true,
        Some(before) => count.unwrap_or(0) > before.unwrap_or(0),
    })
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        let volumes = self.volumes(pod);
        if volumes.is_empty() {
            return PreFilter::Skip;
        }
        state.put(Wanted(volumes));
        PreFilter::Go
    }

    fn filter(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(Wanted(wanted)) = state.get::<Wanted>() else { return Ok(()) };
        let on_node = self.storage.on_nodes.get("", &node.name);
        let limits = limits(on_node.as_deref());
        let drivers: BTreeSet<&str> = wanted.iter().map(|volume| volume.driver.as_str()).collect();
        if let Some(missing) = drivers.iter().find(|driver| !limits.contains_key(*driver) && self.insists(driver)) {
            return Err(Rejection::unschedulable(format!("{missing} CSI driver is not installed on the node")));
        }
        if drivers.iter().all(|driver| limits.get(driver).copied().flatten().is_none()) {
            return Ok(());
        }
        let mut all: BTreeSet<Counted> = node.pods.iter().flat_map(|pod| self.volumes(pod)).collect();
        all.extend(self.attached(&node.name));
        let fresh: Vec<&Counted> = wanted.difference(&all).collect();
        let is_over = |driver: &&&str| {
            let Some(limit) = limits.get(**driver).copied().flatten() else { return false };
            let new = fresh.iter().filter(|volume| volume.driver == ***driver).count();
            let held = all.iter().filter(|volume| volume.driver == ***driver).count();
            // What is there already takes no more room, also where there is too much of it.
            new > 0 && i64::try_from(held + new).unwrap_or(i64::MAX) > limit
        };
        match drivers.iter().find(|driver| is_over(driver)) {
            Some(_) => Err(Rejection::unschedulable(TOO_MANY)),
            None => Ok(()),
        }
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::DriverNode(change) => change.is_new() || takes_more(change),
            ClusterEvent::PodGone(gone) => !claim_names(gone).is_empty(),
            ClusterEvent::VolumeClaim(change) => change.is_new() && names(pod, &change.new),
            ClusterEvent::Detached => shared_claims(pod).next().is_some(),
            ClusterEvent::Driver(change) => {
                let insists = |driver: &Arc<k8s_openapi::api::storage::v1::CSIDriver>| {
                    driver.spec.prevent_pod_scheduling_if_missing == Some(true)
                };
                change.old.as_ref().is_some_and(insists) && !insists(&change.new)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::storage::testing::{bound, claim, from, using};
    use crate::testing::node;
    use serde_json::json;

    const DRIVER: &str = "disks.example.com";

    fn on_node(count: Option<i32>) -> CSINode {
        let allocatable = count.map(|count| json!({"count": count}));
        from(json!({"metadata": {"name": "n"}, "spec": {"drivers": [
            {"name": DRIVER, "nodeID": "n", "allocatable": allocatable}]}}))
    }

    /// Three claims with volumes, one that waits for its, one with a volume of no driver.
    fn plugin(limit: Option<i32>) -> NodeVolumeLimits {
        let storage = Storage::detached();
        for name in ["a", "b", "c"] {
            storage.claims.apply(bound(name, name));
            storage.volumes.apply(from(json!({"metadata": {"name": name}, "spec": {
                "csi": {"driver": DRIVER, "volumeHandle": name}}})));
        }
        storage.claims.apply(claim("later", json!({"storageClassName": "disks"})));
        storage.classes.apply(from(json!({"metadata": {"name": "disks"}, "provisioner": DRIVER})));
        storage.claims.apply(bound("other", "other"));
        storage.volumes.apply(from(json!({"metadata": {"name": "other"}, "spec": {"local": {"path": "/"}}})));
        storage.on_nodes.apply(on_node(limit));
        NodeVolumeLimits::new(storage)
    }

    fn verdict(plugin: &NodeVolumeLimits, pod: &PodInfo, there: &[PodInfo]) -> Result<(), String> {
        let mut node = node("n", json!({}));
        there.iter().for_each(|pod| node.add_pod(Arc::new(PodInfo::new(pod.pod.clone()))));
        let mut state = CycleState::default();
        match plugin.pre_filter(&mut state, pod, &Snapshot::default()) {
            PreFilter::Skip => Ok(()),
            _ => plugin.filter(&state, pod, &node).map_err(|rejection| rejection.reasons.join(", ")),
        }
    }

    #[test]
    fn volumes_are_counted_once_against_the_limit() {
        let too_many = || Err(TOO_MANY.to_owned());
        for (limit, pod, there, want) in [
            (Some(2), using("p", &["a"]), vec![using("q", &["b"])], Ok(())),
            (Some(1), using("p", &["a"]), vec![using("q", &["b"])], too_many()),
            (Some(1), using("p", &["a"]), vec![using("q", &["a"]), using("r", &["a"])], Ok(())),
            (Some(2), using("p", &["a", "c"]), vec![using("q", &["b"])], too_many()),
            (Some(1), using("p", &["later"]), vec![using("q", &["b"])], too_many()),
            (Some(1), using("p", &["later"]), vec![using("q", &["later"])], Ok(())),
            (Some(0), using("p", &["other"]), vec![], Ok(())),
            (Some(0), using("p", &["none"]), vec![], Ok(())),
            (None, using("p", &["a", "b", "c"]), vec![], Ok(())),
        ] {
            assert_eq!(verdict(&plugin(limit), &pod, &there), want, "{limit:?} {:?}", claim_names(&pod));
        }
    }

    #[test]
    fn what_is_attached_counts_also_without_a_pod() {
        let plugin = plugin(Some(1));
        let attachment = |volume: &str| {
            from(json!({"metadata": {"name": "x"}, "spec": {"attacher": DRIVER, "nodeName": "n",
                "source": {"persistentVolumeName": volume}}}))
        };
        plugin.storage.attachments.apply(attachment("b"));
        assert_eq!(verdict(&plugin, &using("p", &["a"]), &[]), Err(TOO_MANY.to_owned()));
        assert_eq!(verdict(&plugin, &using("p", &["b"]), &[]), Ok(()));
        plugin.storage.attachments.remove(&(String::new(), "x".to_owned()));
        assert_eq!(verdict(&plugin, &using("p", &["a"]), &[]), Ok(()));
        plugin.storage.attachments.apply(attachment("none"));
        assert_eq!(verdict(&plugin, &using("p", &["a"]), &[]), Ok(()));
    }

    #[test]
    fn a_driver_that_insists_must_be_on_the_node() {
        let plugin = plugin(None);
        let driver = |insists: bool| -> k8s_openapi::api::storage::v1::CSIDriver {
            from(json!({"metadata": {"name": DRIVER}, "spec": {"preventPodSchedulingIfMissing": insists}}))
        };
        let pod = using("p", &["later"]);
        plugin.storage.drivers.apply(driver(true));
        assert_eq!(verdict(&plugin, &pod, &[]), Ok(()));
        plugin.storage.on_nodes.remove(&(String::new(), "n".to_owned()));
        let text = format!("{DRIVER} CSI driver is not installed on the node");
        assert_eq!(verdict(&plugin, &pod, &[]), Err(text));
        plugin.storage.drivers.apply(driver(false));
        assert_eq!(verdict(&plugin, &pod, &[]), Ok(()));
        let relaxed = Changed { old: Some(Arc::new(driver(true))), new: Arc::new(driver(false)) };
        assert!(plugin.helps(&pod, &ClusterEvent::Driver(relaxed)));
    }

    #[test]
    fn more_room_helps_and_less_does_not() {
        let (plugin, pod) = (plugin(Some(1)), using("p", &["a"]));
        let change = |old: Option<CSINode>, new: CSINode| {
            ClusterEvent::DriverNode(Changed { old: old.map(Arc::new), new: Arc::new(new) })
        };
        for (old, new, want) in [
            (None, on_node(None), true),
            (Some(on_node(Some(1))), on_node(Some(2)), true),
            (Some(on_node(Some(2))), on_node(Some(1)), false),
            (Some(on_node(Some(2))), on_node(Some(2)), false),
            (Some(from(json!({"metadata": {"name": "n"}, "spec": {"drivers": []}}))), on_node(None), true),
        ] {
            let event = change(old, new);
            assert_eq!(plugin.helps(&pod, &event), want, "{event:?}");
        }
        assert!(plugin.helps(&pod, &ClusterEvent::PodGone(Arc::new(using("q", &["b"])))));
        assert!(!plugin.helps(&pod, &ClusterEvent::PodGone(Arc::new(using("q", &[])))));
    }
}
