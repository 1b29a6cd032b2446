//! VolumeRestrictions: a volume that only one pod may use is used by one pod only.
//!
//! Of claims these are those with the access mode ReadWriteOncePod, anywhere in the cluster; of volumes
//! in the pod itself the disks that a node cannot attach for two.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Volume;

use super::storage::{Storage, names, shared_claims, volumes};
use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const DISK_CONFLICT: &str = "node(s) had no available disk";
pub const CLAIM_CONFLICT: &str =
    "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

pub struct VolumeRestrictions {
    storage: Storage,
}

/// A claim of the pod that it must have for itself is some other pod's.
struct InUse(bool);

impl VolumeRestrictions {
    pub fn new(storage: Storage) -> Self {
        Self { storage }
    }

    /// The claims that the pod must have for itself.
    fn exclusive<'p>(&self, pod: &'p PodInfo) -> Result<BTreeSet<&'p str>, String> {
        let mut exclusive = BTreeSet::new();
        for name in shared_claims(pod) {
            let claim = self.storage.claim(pod, name)?;
            let mut modes = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
            if modes.any(|mode| mode == "ReadWriteOncePod") {
                exclusive.insert(name);
            }
        }
        Ok(exclusive)
    }
}

fn is_disk(volume: &Volume) -> bool {
    volume.gce_persistent_disk.is_some()
        || volume.aws_elastic_block_store.is_some()
        || volume.iscsi.is_some()
        || volume.rbd.is_some()
}

/// Whether two volumes are one disk that a node cannot attach for both.
fn conflict(a: &Volume, b: &Volume) -> bool {
    let both_read = |a: Option<bool>, b: Option<bool>| a == Some(true) && b == Some(true);
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk)
        && a.pd_name == b.pd_name
        && !both_read(a.read_only, b.read_only)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store)
        && a.volume_id == b.volume_id
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi)
        && a.iqn == b.iqn
        && !both_read(a.read_only, b.read_only)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        let same = a.pool == b.pool && a.image == b.image && a.monitors.iter().any(|one| b.monitors.contains(one));
        return same && !both_read(a.read_only, b.read_only);
    }
    false
}

fn disks_conflict(pod: &PodInfo, other: &PodInfo) -> bool {
    volumes(pod).filter(|volume| is_disk(volume)).any(|volume| volumes(other).any(|other| conflict(volume, other)))
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let exclusive = match self.exclusive(pod) {
            Ok(exclusive) => exclusive,
            Err(why) => return PreFilter::Reject(Rejection::unresolvable(why)),
        };
        let uses = |other: &PodInfo| {
            other.namespace == pod.namespace && shared_claims(other).any(|claim| exclusive.contains(claim))
        };
        let mut others = snapshot.nodes.iter().flat_map(|node| &node.pods);
        let in_use = !exclusive.is_empty() && others.any(|other| uses(other));
        if !in_use && !volumes(pod).any(is_disk) {
            return PreFilter::Skip;
        }
        state.put(InUse(in_use));
        PreFilter::Go
    }

    /// Wherever the pod is that uses a claim, no node will do; preemption helps on that pod's node.
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if node.pods.iter().any(|other| disks_conflict(pod, other)) {
            return Err(Rejection::unschedulable(DISK_CONFLICT));
        }
        match state.get::<InUse>() {
            Some(InUse(true)) => Err(Rejection::unschedulable(CLAIM_CONFLICT)),
            _ => Ok(()),
        }
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodGone(gone) => {
                let shares = || shared_claims(gone).any(|claim| shared_claims(pod).any(|own| own == claim));
                disks_conflict(pod, gone) || gone.namespace == pod.namespace && shares()
            }
            ClusterEvent::VolumeClaim(change) => change.is_new() && names(pod, &change.new),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::Changed;
    use crate::plugins::storage::testing::{claim, using};
    use crate::testing::{named, node};
    use serde_json::{Value, json};

    fn plugin() -> VolumeRestrictions {
        let storage = Storage::detached();
        storage.claims.apply(claim("own", json!({"accessModes": ["ReadWriteOncePod"]})));
        storage.claims.apply(claim("shared", json!({"accessModes": ["ReadWriteOnce"]})));
        VolumeRestrictions::new(storage)
    }

    fn with(volume: Value) -> PodInfo {
        named("p", json!({"containers": [], "volumes": [volume]}))
    }

    #[test]
    fn a_claim_for_one_pod_is_one_pods_wherever_that_is() {
        let plugin = plugin();
        let mut busy = node("busy", json!({}));
        busy.add_pod(Arc::new(using("q", &["own", "shared"])));
        let snapshot = Snapshot {
            nodes: Arc::new(vec![Arc::new(busy.clone()), Arc::new(node("free", json!({})))]),
            ..Snapshot::default()
        };
        let mut state = CycleState::default();
        let pod = using("p", &["own"]);
        assert_eq!(plugin.pre_filter(&mut state, &pod, &snapshot), PreFilter::Go);
        for node in snapshot.nodes.iter() {
            assert_eq!(plugin.filter(&state, &pod, node), Err(Rejection::unschedulable(CLAIM_CONFLICT)));
        }

        // As preemption asks: what if that pod were gone?
        busy.remove_pod("q");
        let freed = snapshot.with_node(0, busy);
        assert_eq!(plugin.pre_filter(&mut CycleState::default(), &pod, &freed), PreFilter::Skip);
        let others = using("p", &["shared"]);
        assert_eq!(plugin.pre_filter(&mut CycleState::default(), &others, &snapshot), PreFilter::Skip);
        let missing = plugin.pre_filter(&mut CycleState::default(), &using("p", &["none"]), &snapshot);
        let text = "persistentvolumeclaim \"none\" not found";
        assert_eq!(missing, PreFilter::Reject(Rejection::unresolvable(text)));
    }

    #[test]
    fn disks_are_attached_for_one_pod_unless_all_only_read() {
        let gce =
            |name: &str, reads: bool| json!({"name": "v", "gcePersistentDisk": {"pdName": name, "readOnly": reads}});
        let ebs = |id: &str| json!({"name": "v", "awsElasticBlockStore": {"volumeID": id, "readOnly": true}});
        let iscsi = |iqn: &str, reads: bool| json!({"name": "v", "iscsi": {"iqn": iqn, "lun": 0, "targetPortal": "t", "readOnly": reads}});
        let rbd = |monitors: &[&str], image: &str| json!({"name": "v", "rbd": {"monitors": monitors, "image": image}});
        for (wanted, there, want) in [
            (gce("a", false), gce("a", true), true),
            (gce("a", true), gce("a", true), false),
            (gce("a", false), gce("b", false), false),
            (ebs("a"), ebs("a"), true),
            (ebs("a"), ebs("b"), false),
            (iscsi("a", true), iscsi("a", false), true),
            (iscsi("a", true), iscsi("a", true), false),
            (rbd(&["m", "n"], "i"), rbd(&["n"], "i"), true),
            (rbd(&["m"], "i"), rbd(&["n"], "i"), false),
            (rbd(&["m"], "i"), rbd(&["m"], "j"), false),
            (gce("a", false), ebs("a"), false),
        ] {
            let mut busy = node("n", json!({}));
            busy.add_pod(Arc::new(with(there.clone())));
            let verdict = plugin().filter(&CycleState::default(), &with(wanted.clone()), &busy);
            assert_eq!(verdict.is_err(), want, "{wanted} beside {there}");
        }
    }

    #[test]
    fn what_frees_a_volume_helps() {
        let plugin = plugin();
        let pod = using("p", &["own"]);
        let gone = |pod: PodInfo| ClusterEvent::PodGone(Arc::new(pod));
        assert!(plugin.helps(&pod, &gone(using("q", &["own"]))));
        assert!(!plugin.helps(&pod, &gone(using("q", &["shared"]))));
        let disk = || with(json!({"name": "v", "awsElasticBlockStore": {"volumeID": "a"}}));
        assert!(plugin.helps(&disk(), &gone(disk())));
        let made = |name: &str| ClusterEvent::VolumeClaim(Changed { old: None, new: Arc::new(claim(name, json!({}))) });
        assert!(plugin.helps(&pod, &made("own")));
        assert!(!plugin.helps(&pod, &made("shared")));
    }
}
