//! Which volumes fit which claims on which node. Pure.

use std::sync::Arc;

use api::quantity::Quantity;
use api::selector::Selector;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::node_selector::NodeTerm;
use crate::plugins::storage::class_name;

pub type Claim = Arc<PersistentVolumeClaim>;
pub type Volume = Arc<PersistentVolume>;

/// The class of volumes that are only bound by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// The mode of volumes and claims that name none.
const FILESYSTEM: &str = "Filesystem";

/// Whether a volume can be used on a node.
pub fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) else { return true };
    required.node_selector_terms.iter().any(|term| NodeTerm::of(term).matches(node))
}

/// The smallest free volume for a claim on a node; `taken` are those promised to other pods.
pub fn find_volume<'v>(
    claim: &PersistentVolumeClaim,
    volumes: &'v [Volume],
    node: &Node,
    taken: impl Fn(&str) -> bool,
) -> Option<&'v Volume> {
    let selector = selector_of(claim);
    let fitting = volumes.iter().filter(|volume| {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        !taken(name) && satisfies(volume, claim) && is_selected(volume, &selector) && reaches(volume, node)
    });
    // One that was reserved for this claim by its claimRef goes before all others.
    fitting.min_by_key(|volume| (!is_reserved_for(volume, claim), size(volume)))
}

fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && reference.uid.as_ref().is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
    })
}

/// What the claim says of the labels of its volume; a selector that cannot be read selects none.
fn selector_of(claim: &PersistentVolumeClaim) -> Selector {
    match claim.spec.as_ref().and_then(|spec| spec.selector.as_ref()) {
        None => Selector::everything(),
        selector => Selector::from_label_selector(selector).unwrap_or_else(|_| Selector::nothing()),
    }
}

fn is_selected(volume: &PersistentVolume, selector: &Selector) -> bool {
    let labels = volume.metadata.labels.as_ref();
    selector.matches_with(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
}

fn satisfies(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(has), Some(wants)) = (&volume.spec, &claim.spec) else { return false };
    let free = has.claim_ref.is_none() && volume.metadata.deletion_timestamp.is_none();
    let modes = wants.access_modes.iter().flatten();
    let request = wants.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get("storage"));
    (free || is_reserved_for(volume, claim))
        && has.storage_class_name.as_deref().unwrap_or_default() == class_name(claim)
        && has.volume_mode.as_deref().unwrap_or(FILESYSTEM) == wants.volume_mode.as_deref().unwrap_or(FILESYSTEM)
        && modes.into_iter().all(|mode| has.access_modes.iter().flatten().any(|own| own == mode))
        && request.is_none_or(|request| size(volume) >= Quantity::from(request))
}

pub fn size(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    capacity.map_or(Quantity::ZERO, Quantity::from)
}

/// Whether a volume for the claim can be made for a node.
pub fn can_provision(class: Option<&StorageClass>, node: &Node) -> bool {
    let Some(class) = class.filter(|class| class.provisioner != NO_PROVISIONER) else { return false };
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key));
    topologies.is_empty()
        || topologies.iter().any(|topology| {
            let mut expressions = topology.match_label_expressions.iter().flatten();
            expressions.all(|expression| label(&expression.key).is_some_and(|value| expression.values.contains(value)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;
    use serde_json::{Value, json};

    fn volume(name: &str, size: &str, patch: Value) -> Volume {
        let mut spec =
            json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local"});
        spec.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    fn claim(size: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "default", "uid": "u"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "resources": {"requests": {"storage": size}}}}))
        .unwrap()
    }

    #[test]
    fn the_smallest_volume_that_fits_is_found() {
        let here = node("n1", json!({})).node;
        let on = |name: &str| {
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]}]}}})
        };
        let volumes = [
            volume("large", "10Gi", json!({})),
            volume("elsewhere", "5Gi", on("n2")),
            volume("here", "5Gi", on("n1")),
            volume("small", "1Gi", json!({})),
            volume("used", "5Gi", json!({"claimRef": {"name": "other", "namespace": "default"}})),
            volume("shared", "5Gi", json!({"accessModes": ["ReadOnlyMany"]})),
            volume("fast", "5Gi", json!({"storageClassName": "fast"})),
        ];
        let found = |size: &str, taken: &str| {
            let volume = find_volume(&claim(size), &volumes, &here, |name| name == taken)?;
            volume.metadata.name.clone()
        };
        assert_eq!(found("2Gi", "").as_deref(), Some("here"));
        assert_eq!(found("2Gi", "here").as_deref(), Some("large"), "the other is promised");
        assert_eq!(found("6Gi", "").as_deref(), Some("large"));
        assert_eq!(found("11Gi", ""), None);
    }

    #[test]
    fn labels_decide_where_a_claim_selects() {
        let here = node("n", json!({})).node;
        let labelled = |labels: Value| {
            let mut volume = Arc::unwrap_or_clone(volume("v", "5Gi", json!({})));
            volume.metadata.labels = serde_json::from_value(labels).unwrap();
            Arc::new(volume)
        };
        for (labels, selector, want) in [
            (json!({"tier": "fast"}), json!(null), true),
            (json!({"tier": "fast"}), json!({}), true),
            (json!({"tier": "fast"}), json!({"matchLabels": {"tier": "fast"}}), true),
            (json!({"tier": "slow"}), json!({"matchLabels": {"tier": "fast"}}), false),
            (json!(null), json!({"matchLabels": {"tier": "fast"}}), false),
            (json!(null), json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), true),
            (json!({"tier": "fast"}), json!({"matchExpressions": [{"key": "tier", "operator": "Near"}]}), false),
        ] {
            let mut claim = claim("1Gi");
            claim.spec.as_mut().unwrap().selector = serde_json::from_value(selector.clone()).unwrap();
            let volumes = [labelled(labels.clone())];
            assert_eq!(find_volume(&claim, &volumes, &here, |_| false).is_some(), want, "{labels} {selector}");
        }
    }

    #[test]
    fn provisioning_respects_allowed_topologies() {
        let class = |value: Value| serde_json::from_value::<StorageClass>(value).unwrap();
        let here = node("n", json!({"metadata": {"labels": {"zone": "a"}}})).node;
        let topologies = |zone: &str| json!([{"matchLabelExpressions": [{"key": "zone", "values": [zone]}]}]);
        for (class, want) in [
            (class(json!({"provisioner": "x"})), true),
            (class(json!({"provisioner": NO_PROVISIONER})), false),
            (class(json!({"provisioner": "x", "allowedTopologies": topologies("a")})), true),
            (class(json!({"provisioner": "x", "allowedTopologies": topologies("b")})), false),
        ] {
            assert_eq!(can_provision(Some(&class), &here), want, "{class:?}");
        }
        assert!(!can_provision(None, &here));
    }
}
