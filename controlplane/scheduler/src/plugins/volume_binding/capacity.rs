//! Where drivers have room for volumes that are to be made, and how good a node is for a pod's volumes.
//! Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use api::selector::Selector;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIStorageCapacity};

use crate::framework::MAX_SCORE;
use crate::plugins::storage::class_name;

/// What is known of the room for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// Nobody says how much there is.
    Unknown,
    /// There is enough, of so many bytes if the driver says how many.
    Enough(Option<i64>),
    Lacking,
}

/// A place with room for a claim.
pub struct Place {
    /// The nodes that reach it.
    nodes: Selector,
    /// Bytes, if the driver says how many.
    capacity: Option<i64>,
}

/// Where there is room for a claim, whatever the node.
pub fn places(claim: &PersistentVolumeClaim, capacities: &[Arc<CSIStorageCapacity>]) -> Vec<Place> {
    let (class, Some(size)) = (class_name(claim), requested(claim)) else { return Vec::new() };
    let place = |capacity: &Arc<CSIStorageCapacity>| {
        // Without a topology it is reached from nowhere.
        let topology = capacity.node_topology.as_ref()?;
        let nodes = Selector::from_label_selector(Some(topology)).ok()?;
        Some(Place { nodes, capacity: capacity.capacity.as_ref().map(|capacity| Quantity::from(capacity).units()) })
    };
    let fits = |capacity: &&Arc<CSIStorageCapacity>| {
        capacity.storage_class_name == class && largest_volume(capacity).is_some_and(|limit| limit >= size)
    };
    capacities.iter().filter(fits).filter_map(place).collect()
}

/// The room that a claim's driver has for it where a node reaches. `places` is only called for a driver
/// that says how much it has.
pub fn room<'p>(
    claim: &PersistentVolumeClaim,
    driver: Option<&CSIDriver>,
    places: impl FnOnce() -> &'p [Place],
    node: &Node,
) -> Room {
    if requested(claim).is_none() || !driver.is_some_and(counts) {
        return Room::Unknown;
    }
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    let found = places().iter().find(|place| place.nodes.matches_with(label));
    found.map_or(Room::Lacking, |place| Room::Enough(place.capacity))
}

/// Whether a driver says how much room it has.
pub fn counts(driver: &CSIDriver) -> bool {
    driver.spec.storage_capacity == Some(true)
}

/// The size in bytes of the largest volume that can be made there.
pub fn largest_volume(capacity: &CSIStorageCapacity) -> Option<i64> {
    // The driver's own word says more than what is free altogether.
    let limit = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref())?;
    Some(Quantity::from(limit).units())
}

/// The size in bytes that a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Option<i64> {
    let resources = claim.spec.as_ref()?.resources.as_ref()?;
    resources.requests.as_ref()?.get("storage").map(|size| Quantity::from(size).units())
}

/// How much of what there is a pod would use, by class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Use(BTreeMap<String, Share>);

#[derive(Debug, Clone, Default, PartialEq)]
struct Share {
    requested: i64,
    capacity: i64,
}

impl Use {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A volume of its own for a claim: each adds to what there is.
    pub fn volume(&mut self, class: &str, requested: i64, capacity: i64) {
        let share = self.0.entry(class.to_owned()).or_default();
        share.requested = share.requested.saturating_add(requested);
        share.capacity = share.capacity.saturating_add(capacity);
    }

    /// A volume made for a claim out of what all of its class share.
    pub fn part(&mut self, class: &str, requested: i64, capacity: i64) {
        let share = self.0.entry(class.to_owned()).or_default();
        share.requested = share.requested.saturating_add(requested);
        share.capacity = capacity;
    }

    /// More for a smaller part of what there is; the mean of all classes.
    pub fn score(&self) -> i64 {
        let unused = |share: &Share| {
            if share.capacity <= 0 || share.requested > share.capacity {
                return 0;
            }
            let used = i128::from(share.requested) * i128::from(MAX_SCORE) / i128::from(share.capacity);
            MAX_SCORE - i64::try_from(used).unwrap_or(MAX_SCORE)
        };
        let (sum, classes) = (self.0.values().map(unused).sum::<i64>(), self.0.len() as i64);
        // Rounded half up, as all of this is positive.
        if classes == 0 { 0 } else { (2 * sum + classes) / (2 * classes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::storage::testing::{claim, from};
    use crate::testing::node;
    use serde_json::{Value, json};

    fn capacity(fields: Value) -> Arc<CSIStorageCapacity> {
        let mut capacity = json!({"metadata": {"name": "c"}, "storageClassName": "fast",
            "nodeTopology": {"matchLabels": {"zone": "a"}}});
        capacity.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Arc::new(from(capacity))
    }

    fn driver(counts: bool) -> CSIDriver {
        from(json!({"metadata": {"name": "d"}, "spec": {"storageCapacity": counts}}))
    }

    #[test]
    fn room_is_where_class_topology_and_size_fit() {
        const GI: i64 = 1 << 30;
        let here = node("n", json!({"metadata": {"labels": {"zone": "a"}}})).node;
        let wanted = claim("c", json!({"storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}}));
        for (capacities, want) in [
            (vec![], Room::Lacking),
            (vec![json!({"capacity": "5Gi"})], Room::Enough(Some(5 * GI))),
            (vec![json!({"capacity": "4Gi"})], Room::Lacking),
            (vec![json!({"capacity": "4Gi"}), json!({"capacity": "6Gi"})], Room::Enough(Some(6 * GI))),
            (vec![json!({"capacity": "9Gi", "maximumVolumeSize": "4Gi"})], Room::Lacking),
            (vec![json!({"maximumVolumeSize": "5Gi"})], Room::Enough(None)),
            (vec![json!({"capacity": "9Gi", "storageClassName": "slow"})], Room::Lacking),
            (vec![json!({"capacity": "9Gi", "nodeTopology": {"matchLabels": {"zone": "b"}}})], Room::Lacking),
            (vec![json!({"capacity": "9Gi", "nodeTopology": null})], Room::Lacking),
            (vec![json!({"capacity": "9Gi", "nodeTopology": {}})], Room::Enough(Some(9 * GI))),
            (vec![json!({})], Room::Lacking),
        ] {
            let listed: Vec<_> = capacities.iter().cloned().map(capacity).collect();
            let places = places(&wanted, &listed);
            let room = room(&wanted, Some(&driver(true)), || places.as_slice(), &here);
            assert_eq!(room, want, "{capacities:?}");
        }
        let unasked = || -> &'static [Place] { panic!("nobody counts") };
        assert_eq!(room(&wanted, Some(&driver(false)), unasked, &here), Room::Unknown);
        assert_eq!(room(&wanted, None, unasked, &here), Room::Unknown);
    }

    #[test]
    fn what_leaves_more_scores_more() {
        let mut parts = Use::default();
        assert_eq!(parts.score(), 0);
        parts.part("fast", 10, 100);
        assert_eq!(parts.score(), 90);
        parts.part("fast", 30, 100);
        assert_eq!(parts.score(), 60, "both come out of the same");
        parts.part("slow", 101, 100);
        assert_eq!(parts.score(), 30);
        parts.part("none", 0, 0);
        assert_eq!(parts.score(), 20);

        let mut volumes = Use::default();
        volumes.volume("fast", 10, 20);
        volumes.volume("fast", 10, 80);
        assert_eq!(volumes.score(), 80, "each has its own");
        volumes.volume("huge", i64::MAX, i64::MAX);
        assert_eq!(volumes.score(), 40);
    }
}
