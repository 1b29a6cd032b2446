//! Deciding: what a pod's claims allow, and how those that are not bound would be met on a node.

use std::collections::HashMap;
use std::sync::OnceLock;

use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;

use super::SELECTED_NODE;
use super::capacity::{Place, Room, Use, places, requested, room};
use super::matching::{Claim, Volume, can_provision, find_volume, reaches, size};
use crate::framework::Rejection;
use crate::node::NodeInfo;
use crate::plugins::storage::{
    ClaimName, Storage, bound_volume, claim_names, class_name, is_made_for, volume_name, waits_for_consumer,
};
use crate::pod::{PodInfo, Uid};

pub const NODE_CONFLICT: &str = "node(s) didn't match PersistentVolume's node affinity";
pub const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
pub const NO_ROOM: &str = "node(s) did not have enough free storage";
pub const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
pub const UNBOUND_IMMEDIATE: &str = "pod has unbound immediate PersistentVolumeClaims";

pub struct Offers {
    pub storage: Storage,
    /// What placed pods were promised and do not have yet.
    pub promised: Mutex<HashMap<Uid, Vec<Promise>>>,
}

/// What is to be done for one claim before its pod can be bound.
#[derive(Debug, Clone, PartialEq)]
pub enum Promise {
    /// Bind it to this volume.
    Bind { claim: String, volume: String },
    /// Have a volume made for the pod's node.
    Provision { claim: String },
}

/// The claims of the pod in this cycle.
#[derive(Default)]
pub struct Wanted {
    bound: Vec<Volume>,
    /// A volume that one is bound to is not there.
    lost: bool,
    pub waiting: Vec<Claim>,
    /// What the waiting ones can be bound to, but for the volumes promised to other pods.
    volumes: Vec<Volume>,
    promised: Vec<String>,
    /// Where there is room for the waiting ones, by name; looked up once a volume is to be made.
    places: OnceLock<HashMap<String, Vec<Place>>>,
    /// How good nodes are for the waiting ones, by name.
    scores: Mutex<HashMap<String, i64>>,
}

impl Wanted {
    pub fn score(&self, node: &str) -> i64 {
        self.scores.lock().get(node).copied().unwrap_or(0)
    }
}

/// How the waiting claims of a pod would be met on a node.
pub struct Met {
    pub promises: Vec<Promise>,
    score: i64,
}

impl Offers {
    pub fn new(storage: Storage) -> Self {
        Self { storage, promised: Mutex::default() }
    }

    /// The pod's claims; the error says which holds it back, on whatever node.
    pub fn wanted(&self, pod: &PodInfo) -> Result<Wanted, String> {
        let mut wanted = Wanted::default();
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
        if !wanted.waiting.is_empty() {
            // In this order, so that a promise being kept now is not missing from both.
            wanted.promised = self.promised_to_others(pod);
            wanted.volumes = self.storage.volumes.list();
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

    pub fn fits(&self, wanted: &Wanted, node: &NodeInfo) -> Result<(), Rejection> {
        let mut reasons = Vec::new();
        if !wanted.bound.iter().all(|volume| reaches(volume, &node.node)) {
            reasons.push(NODE_CONFLICT.into());
        }
        if !wanted.waiting.is_empty() {
            match self.meet(wanted, &node.node) {
                Ok(met) => {
                    wanted.scores.lock().insert(node.name.clone(), met.score);
                }
                Err(why) => reasons.push(why.into()),
            }
        }
        if wanted.lost {
            reasons.push(NO_VOLUME.into());
        }
        if reasons.is_empty() { Ok(()) } else { Err(Rejection { resolvable: false, reasons, failed: false }) }
    }

    /// How the waiting claims would be met on a node; the error says why they would not. Free volumes
    /// come first, for the smallest claims first; what has none has one made.
    pub fn meet(&self, wanted: &Wanted, node: &Node) -> Result<Met, &'static str> {
        let mut taken: Vec<&str> = wanted.promised.iter().map(String::as_str).collect();
        // Of these a volume is being made for a node already.
        let (mut made, mut unmet): (Vec<&Claim>, Vec<&Claim>) =
            wanted.waiting.iter().partition(|claim| selected_node(claim).is_some());
        if made.iter().any(|claim| selected_node(claim) != node.metadata.name.as_deref()) {
            return Err(BIND_CONFLICT);
        }
        unmet.sort_by_key(|claim| requested(claim));
        let (mut promises, mut uses) = (Vec::new(), Use::default());
        for claim in unmet {
            let Some(found) = find_volume(claim, &wanted.volumes, node, |name| taken.contains(&name)) else {
                made.push(claim);
                continue;
            };
            let volume = found.metadata.name.as_deref().unwrap_or_default();
            uses.volume(class_name(claim), requested(claim).unwrap_or(0), size(found).units());
            taken.push(volume);
            promises.push(Promise::Bind { claim: name(claim).to_owned(), volume: volume.to_owned() });
        }
        let only_made = uses.is_empty();
        for claim in made {
            let class = self.storage.class_of(claim).filter(|class| can_provision(Some(class), node));
            let driver = self.storage.drivers.get("", &class.ok_or(BIND_CONFLICT)?.provisioner);
            match room(claim, driver.as_deref(), || self.places(wanted, claim), node) {
                Room::Lacking => return Err(NO_ROOM),
                // Nodes are compared by the volumes that are there, where there are any.
                Room::Enough(Some(capacity)) if only_made => {
                    uses.part(class_name(claim), requested(claim).unwrap_or(0), capacity);
                }
                Room::Enough(_) | Room::Unknown => {}
            }
            promises.push(Promise::Provision { claim: name(claim).to_owned() });
        }
        Ok(Met { promises, score: uses.score() })
    }

    /// Where there is room for one of the waiting claims.
    fn places<'w>(&self, wanted: &'w Wanted, claim: &Claim) -> &'w [Place] {
        let by_claim = wanted.places.get_or_init(|| {
            let capacities = self.storage.capacities.list();
            wanted.waiting.iter().map(|claim| (name(claim).to_owned(), places(claim, &capacities))).collect()
        });
        by_claim.get(name(claim)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The volumes that other pods were promised.
    fn promised_to_others(&self, pod: &PodInfo) -> Vec<String> {
        let promised = self.promised.lock();
        let others = promised.iter().filter(|(uid, _)| **uid != pod.uid).flat_map(|(_, promises)| promises);
        let volumes = others.filter_map(|promise| match promise {
            Promise::Bind { volume, .. } => Some(volume.clone()),
            Promise::Provision { .. } => None,
        });
        volumes.collect()
    }
}

fn name(claim: &Claim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

/// The node that a volume for the claim is being made for.
pub fn selected_node(claim: &Claim) -> Option<&str> {
    claim.metadata.annotations.as_ref()?.get(SELECTED_NODE).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::storage::testing::{bound, claim, from, using};
    use crate::testing::node;
    use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
    use k8s_openapi::api::storage::v1::{CSIDriver, CSIStorageCapacity};
    use serde_json::json;

    const DRIVER: &str = "disks.example.com";

    fn offers() -> Offers {
        let storage = Storage::detached();
        storage.classes.apply(from(json!({"metadata": {"name": "fast"}, "provisioner": DRIVER,
            "volumeBindingMode": "WaitForFirstConsumer"})));
        storage.drivers.apply(driver(true));
        Offers::new(storage)
    }

    fn driver(counts: bool) -> CSIDriver {
        from(json!({"metadata": {"name": DRIVER}, "spec": {"storageCapacity": counts}}))
    }

    fn waiting(name: &str, size: &str) -> PersistentVolumeClaim {
        claim(
            name,
            json!({"storageClassName": "fast", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}}}),
        )
    }

    fn capacity(node: &str, size: &str) -> CSIStorageCapacity {
        from(json!({"metadata": {"name": node, "namespace": "default"}, "storageClassName": "fast", "capacity": size,
            "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": node}}}))
    }

    fn volume(name: &str, size: &str) -> PersistentVolume {
        from(json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "fast"}}))
    }

    /// The score of a node, or why it is none.
    fn verdict(offers: &Offers, pod: &PodInfo, on: &str) -> Result<i64, String> {
        let wanted = offers.wanted(pod)?;
        let node = node(on, json!({}));
        offers.fits(&wanted, &node).map_err(|rejection| rejection.reasons.join(", "))?;
        Ok(wanted.score(on))
    }

    #[test]
    fn volumes_are_made_where_there_is_room_and_rather_where_there_is_more() {
        let offers = offers();
        offers.storage.claims.apply(waiting("data", "5Gi"));
        let pod = using("p", &["data"]);
        for (node, size) in [("small", "4Gi"), ("medium", "10Gi"), ("large", "100Gi")] {
            offers.storage.capacities.apply(capacity(node, size));
        }
        let no_room = || Err(NO_ROOM.to_owned());
        for (on, want) in [("small", no_room()), ("medium", Ok(50)), ("large", Ok(95)), ("other", no_room())] {
            assert_eq!(verdict(&offers, &pod, on), want, "{on}");
        }
        offers.storage.drivers.apply(driver(false));
        assert_eq!(verdict(&offers, &pod, "small"), Ok(0), "nobody counts");
    }

    #[test]
    fn capacities_are_listed_once_a_volume_is_to_be_made() {
        let offers = offers();
        offers.storage.claims.apply(waiting("data", "5Gi"));
        offers.storage.volumes.apply(volume("v", "10Gi"));
        offers.storage.capacities.apply(capacity("n", "50Gi"));
        let (pod, here) = (using("p", &["data"]), node("n", json!({})));
        let wanted = offers.wanted(&pod).unwrap();
        assert_eq!((offers.fits(&wanted, &here), wanted.places.get().is_none()), (Ok(()), true));

        offers.promised.lock().insert("q".into(), vec![Promise::Bind { claim: "other".into(), volume: "v".into() }]);
        let wanted = offers.wanted(&pod).unwrap();
        assert_eq!((offers.fits(&wanted, &here), wanted.score("n")), (Ok(()), 90), "the volume is promised");
        offers.storage.capacities.apply(capacity("n", "1Gi"));
        assert_eq!(offers.fits(&wanted, &here), Ok(()), "this cycle has its list");
        assert_eq!(verdict(&offers, &pod, "n"), Err(NO_ROOM.to_owned()));
    }

    #[test]
    fn volumes_that_are_there_are_filled_as_little_as_can_be() {
        let offers = offers();
        offers.storage.claims.apply(waiting("data", "5Gi"));
        offers.storage.claims.apply(waiting("log", "1Gi"));
        offers.storage.volumes.apply(volume("v", "10Gi"));
        offers.storage.capacities.apply(capacity("n", "100Gi"));
        assert_eq!(verdict(&offers, &using("p", &["data"]), "n"), Ok(50));
        // The smaller claim gets the volume; what is made counts no more.
        assert_eq!(verdict(&offers, &using("p", &["data", "log"]), "n"), Ok(90));
    }

    #[test]
    fn a_volume_being_made_for_a_node_is_used_there() {
        let offers = offers();
        let mut claim = waiting("data", "5Gi");
        claim.metadata.annotations = Some([(SELECTED_NODE.to_owned(), "there".to_owned())].into());
        offers.storage.claims.apply(claim);
        offers.storage.volumes.apply(volume("v", "10Gi"));
        offers.storage.capacities.apply(capacity("there", "50Gi"));
        let pod = using("p", &["data"]);
        assert_eq!(verdict(&offers, &pod, "here"), Err(BIND_CONFLICT.to_owned()));
        assert_eq!(verdict(&offers, &pod, "there"), Ok(90));
        let Ok(met) = offers.meet(&offers.wanted(&pod).unwrap(), &node("there", json!({})).node) else { panic!() };
        assert_eq!(met.promises, [Promise::Provision { claim: "data".into() }], "no other volume is bound to it");
    }

    #[test]
    fn claims_that_hold_a_pod_back_are_named() {
        let offers = offers();
        let mut lost = bound("lost", "v");
        lost.status = Some(from(json!({"phase": "Lost"})));
        let prebound = claim("prebound", json!({"storageClassName": "fast", "volumeName": "v"}));
        let mut foreign = waiting("p-scratch", "1Gi");
        foreign.metadata.owner_references = Some(vec![from(
            json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "other", "controller": true}),
        )]);
        for claim in [lost, prebound, bound("unseen", "w"), foreign] {
            offers.storage.claims.apply(claim);
        }
        let ephemeral = crate::testing::named(
            "p",
            json!({"containers": [], "volumes": [{"name": "scratch",
            "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}),
        );
        for (pod, want) in [
            (using("p", &["lost"]), "persistentvolumeclaim \"lost\" bound to non-existent persistentvolume \"v\""),
            (using("p", &["prebound"]), UNBOUND_IMMEDIATE),
            (using("p", &["unseen"]), NO_VOLUME),
            (ephemeral, "PVC default/p-scratch was not created for pod default/p (pod is not owner)"),
        ] {
            assert_eq!(verdict(&offers, &pod, "n"), Err(want.to_owned()));
        }
    }
}
