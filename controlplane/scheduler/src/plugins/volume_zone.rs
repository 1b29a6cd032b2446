//! VolumeZone: a pod goes into the zone and region that its volumes are labelled with.
//!
//! Newer volumes say where they are by node affinity (VolumeBinding); these labels are what older cloud
//! providers set.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PersistentVolume;

use super::storage::{Storage, class_name, shared_claims, volume_name, waits_for_consumer};
use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const CONFLICT: &str = "node(s) had no available volume zone";

/// Labels of volumes and nodes; the first two are older names of the last two.
const LABELS: [&str; 4] = [
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

pub struct VolumeZone {
    storage: Storage,
}

/// Where a pod's volumes are.
#[derive(Debug, PartialEq)]
struct Places(Vec<Place>);

/// One label of a volume and the values that a node may have.
#[derive(Debug, PartialEq)]
struct Place {
    label: &'static str,
    values: BTreeSet<String>,
}

impl Place {
    fn has(&self, node: &NodeInfo) -> bool {
        let value = node.label(self.label).or_else(|| node.label(newer(self.label)));
        value.is_some_and(|value| self.values.contains(value))
    }
}

fn newer(label: &'static str) -> &'static str {
    match label {
        "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
        label => label,
    }
}

fn places(volume: &PersistentVolume) -> Vec<Place> {
    let labels = volume.metadata.labels.as_ref();
    let place = |label: &'static str| {
        let values = labels?.get(label)?.split("__").map(|value| value.trim().to_owned());
        let values: BTreeSet<String> = values.collect();
        // A list with a gap in it is not understood, and says nothing.
        (!values.contains("")).then_some(Place { label, values })
    };
    LABELS.into_iter().filter_map(place).collect()
}

impl VolumeZone {
    pub fn new(storage: Storage) -> Self {
        Self { storage }
    }

    fn places(&self, pod: &PodInfo) -> Result<Vec<Place>, String> {
        let mut all = Vec::new();
        for name in shared_claims(pod) {
            let claim = self.storage.claim(pod, name)?;
            if let Some(volume) = volume_name(&claim) {
                let found = self.storage.volumes.get("", volume);
                all.extend(places(&*found.ok_or_else(|| format!("persistentvolume \"{volume}\" not found"))?));
                continue;
            }
            let class = class_name(&claim);
            if class.is_empty() {
                return Err("PersistentVolumeClaim had no pv name and storageClass name".to_owned());
            }
            let found = self.storage.class_of(&claim);
            let found = found.ok_or_else(|| format!("storageclass.storage.k8s.io \"{class}\" not found"))?;
            if !waits_for_consumer(&found) {
                return Err("PersistentVolume had no name".to_owned());
            }
        }
        Ok(all)
    }
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        match self.places(pod) {
            Ok(places) if places.is_empty() => PreFilter::Skip,
            Ok(places) => {
                state.put(Places(places));
                PreFilter::Go
            }
            Err(why) => PreFilter::Reject(Rejection::unresolvable(why)),
        }
    }

    fn filter(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(Places(places)) = state.get::<Places>() else { return Ok(()) };
        // In a cluster of one zone nodes need no such labels.
        let is_somewhere = LABELS.iter().any(|label| node.label(label).is_some());
        if is_somewhere && !places.iter().all(|place| place.has(node)) {
            return Err(Rejection::unresolvable(CONFLICT));
        }
        Ok(())
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => old.node.metadata.labels != new.node.metadata.labels,
            ClusterEvent::StorageClass(change) => change.is_new() && waits_for_consumer(&change.new),
            ClusterEvent::VolumeClaim(change) => {
                let name = change.new.metadata.name.as_deref();
                change.new.metadata.namespace.as_deref() == Some(&pod.namespace)
                    && shared_claims(pod).any(|own| Some(own) == name)
            }
            ClusterEvent::Volume(change) => change.old.as_ref().is_none_or(|old| places(old) != places(&change.new)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::Changed;
    use crate::plugins::storage::testing::{bound, claim, from, using};
    use crate::testing::node;
    use serde_json::{Value, json};

    fn volume(labels: &Value) -> PersistentVolume {
        from(json!({"metadata": {"name": "v", "labels": labels}}))
    }

    #[test]
    fn nodes_with_zones_must_have_the_volumes() {
        let (zone, old_zone) = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone");
        let region = "topology.kubernetes.io/region";
        for (of_volume, of_node, want) in [
            (json!({zone: "a"}), json!({zone: "a"}), true),
            (json!({zone: "a"}), json!({zone: "b"}), false),
            (json!({zone: "a__b"}), json!({zone: "b"}), true),
            (json!({zone: "a__"}), json!({zone: "b"}), true),
            (json!({zone: "a", region: "r"}), json!({zone: "a", region: "s"}), false),
            (json!({zone: "a"}), json!({region: "r"}), false),
            (json!({zone: "a"}), json!({}), true),
            (json!({old_zone: "a"}), json!({zone: "a"}), true),
            (json!({old_zone: "a"}), json!({zone: "b"}), false),
            (json!({}), json!({zone: "b"}), true),
        ] {
            let storage = Storage::detached();
            storage.claims.apply(bound("c", "v"));
            storage.volumes.apply(volume(&of_volume));
            let (plugin, pod) = (VolumeZone::new(storage), using("p", &["c"]));
            let mut state = CycleState::default();
            plugin.pre_filter(&mut state, &pod, &Snapshot::default());
            let node = node("n", json!({"metadata": {"labels": of_node}}));
            let want = if want { Ok(()) } else { Err(Rejection::unresolvable(CONFLICT)) };
            assert_eq!(plugin.filter(&state, &pod, &node), want, "{of_volume} on {of_node}");
        }
    }

    #[test]
    fn a_volume_that_is_not_there_is_waited_for() {
        let storage = Storage::detached();
        storage.claims.apply(bound("gone", "v"));
        storage.claims.apply(claim("later", json!({"storageClassName": "late"})));
        storage.claims.apply(claim("soon", json!({"storageClassName": "early"})));
        storage.claims.apply(claim("classless", json!({"storageClassName": "none"})));
        storage.classes.apply(from(
            json!({"metadata": {"name": "late"}, "provisioner": "x", "volumeBindingMode": "WaitForFirstConsumer"}),
        ));
        storage
            .classes
            .apply(from(json!({"metadata": {"name": "early"}, "provisioner": "x", "volumeBindingMode": "Immediate"})));
        let plugin = VolumeZone::new(storage);
        for (claim, want) in [
            ("gone", Some("persistentvolume \"v\" not found")),
            ("later", None),
            ("soon", Some("PersistentVolume had no name")),
            ("classless", Some("storageclass.storage.k8s.io \"none\" not found")),
        ] {
            let want = want.map_or(PreFilter::Skip, |why| PreFilter::Reject(Rejection::unresolvable(why)));
            let pod = using("p", &[claim]);
            assert_eq!(plugin.pre_filter(&mut CycleState::default(), &pod, &Snapshot::default()), want, "{claim}");
        }
    }

    #[test]
    fn a_volume_moved_helps() {
        let plugin = VolumeZone::new(Storage::detached());
        let zone = |zone: &str| Arc::new(volume(&json!({"topology.kubernetes.io/zone": zone})));
        let change = |old, new| ClusterEvent::Volume(Changed { old, new });
        let pod = using("p", &["c"]);
        assert!(plugin.helps(&pod, &change(Some(zone("a")), zone("b"))));
        assert!(!plugin.helps(&pod, &change(Some(zone("a")), zone("a"))));
        assert!(plugin.helps(&pod, &change(None, zone("a"))));
    }
}
