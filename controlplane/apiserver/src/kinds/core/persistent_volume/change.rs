//! What of a volume may change.

use api::field::{ErrorList, Path};
use serde_json::Value;

use super::super::diff;
use super::super::pod::internal::{self, NODE_AFFINITY, VOLUME_SOURCE};
use super::super::pod::placement;
use super::super::pod::warn::OLD_LABELS;
use super::{SOURCES, validate_volume};
use crate::kinds::check::{IMMUTABLE, Node};
use crate::kinds::value::{list, list_mut, remove, same, same_at, set, text};

pub fn update(new: &Value, old: &Value) -> ErrorList {
    let (spec, was) = (Node::root(new).child("spec"), Node::root(old).child("spec"));
    let mut wrong = ErrorList::new();
    if was.has("nodeAffinity.required") {
        placement::node_selector(&was.child("nodeAffinity.required"), &mut wrong);
    }
    let mut errors = validate_volume(new, wrong.is_empty());
    let mut munged = spec.value.clone();
    // It may be given afterwards.
    if was.has("csi") && !was.has("csi.controllerExpandSecretRef") {
        remove(&mut munged, "csi.controllerExpandSecretRef");
    }
    if !SOURCES.iter().all(|(kind, _)| same_at(&munged, was.value, kind)) {
        let shown = |spec: &Value| internal::lines(spec, VOLUME_SOURCE);
        spec.child("persistentvolumesource").forbidden(
            &mut errors,
            format!(
                "spec.persistentvolumesource is immutable after creation\n{}",
                diff::unified_lines(&shown(was.value), &shown(&munged))
            ),
        );
    }
    let mode = Node::new(spec.child("volumeMode").value, Path::root("volumeMode"));
    mode.immutable(&mut errors, &was.child("volumeMode"));
    let affinity = spec.child("nodeAffinity").value;
    if was.has("nodeAffinity") && !same_but_newer_labels(affinity, was.child("nodeAffinity").value) {
        let path = Path::root("nodeAffinity");
        let detail = format!("{IMMUTABLE}, except for updating from beta label to GA");
        errors.push(internal::invalid(&path, affinity, NODE_AFFINITY, &detail));
    }
    if was.has("volumeAttributesClassName") && !spec.has("volumeAttributesClassName") {
        spec.child("volumeAttributesClassName").forbidden(&mut errors, "update from non-nil value to nil is forbidden");
    }
    errors
}

/// Whether the affinity is what it was, labels of before under the names they have now.
fn same_but_newer_labels(new: &Value, old: &Value) -> bool {
    let mut old = old.clone();
    let terms = list(new, "required.nodeSelectorTerms");
    for (index, term) in list_mut(&mut old, "required.nodeSelectorTerms").enumerate() {
        let now = terms.get(index).map_or(&[][..], |term| list(term, "matchExpressions"));
        for (requirement, now) in list_mut(term, "matchExpressions").zip(now) {
            let key = text(now, "key");
            if OLD_LABELS.iter().any(|(old, _, new)| *old == text(requirement, "key") && *new == key) {
                set(requirement, "key", key);
            }
        }
    }
    same(new, &old)
}

#[cfg(test)]
mod tests {
    use super::super::Volume;
    use super::super::tests::{host, volume};
    use crate::kinds::tested::{created, updated};
    use serde_json::{Value, json};

    #[test]
    fn updated_volumes() {
        let affinity = |key: &str| json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": "In", "values": ["a"]}]}]}});
        let csi = |extra: Value| {
            let mut csi = json!({"driver": "d", "volumeHandle": "h"});
            for (key, value) in extra.as_object().expect("the test's own fields") {
                csi[key] = value.clone();
            }
            volume(json!({ "spec.csi": csi }))
        };
        let beta = host(json!({"spec.nodeAffinity": affinity("failure-domain.beta.kubernetes.io/zone")}));
        let secret = json!({"controllerExpandSecretRef": {"name": "s", "namespace": "n"}});
        for (old, new, expected) in [
            (host(json!({})), host(json!({"spec.claimRef": {"name": "c", "namespace": "n"}})), "[]"),
            (host(json!({})), host(json!({"spec.nodeAffinity": affinity("a")})), "[]"),
            (beta.clone(), host(json!({"spec.nodeAffinity": affinity("topology.kubernetes.io/zone")})), "[]"),
            (
                beta,
                host(json!({})),
                "nodeAffinity: Invalid value: null: field is immutable, except for updating from beta label to GA",
            ),
            (
                host(json!({"spec.nodeAffinity": affinity("a")})),
                host(json!({"spec.nodeAffinity": affinity("b")})),
                "nodeAffinity: Invalid value: {\"Required\":{\"NodeSelectorTerms\":[{\"MatchExpressions\":[{\"Key\":\"b\",\"Operator\":\"In\",\"Values\":[\"a\"]}],\"MatchFields\":null}]}}: field is immutable, except for updating from beta label to GA",
            ),
            (
                host(json!({})),
                host(json!({"spec.volumeMode": "Block"})),
                "volumeMode: Invalid value: \"Block\": field is immutable",
            ),
            (csi(json!({})), csi(secret.clone()), "[]"),
            (
                host(json!({})),
                host(json!({"spec.hostPath": {"path": "/y"}})),
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\n@@ -2,7 +2,7 @@\n  \"GCEPersistentDisk\": null,\n  \"AWSElasticBlockStore\": null,\n  \"HostPath\": {\n-  \"Path\": \"/x\",\n+  \"Path\": \"/y\",\n   \"Type\": \"\"\n  },\n  \"Glusterfs\": null,\n",
            ),
            (
                volume(
                    json!({"spec.csi": {"driver": "d", "volumeHandle": "h"}, "spec.volumeAttributesClassName": "gold"}),
                ),
                csi(json!({})),
                "spec.volumeAttributesClassName: Forbidden: update from non-nil value to nil is forbidden",
            ),
        ] {
            assert_eq!(updated(&Volume, &old, &new), expected, "{new}");
        }
        assert!(updated(&Volume, &csi(secret), &csi(json!({}))).contains("is immutable after creation"));
        let stored = host(
            json!({"spec.nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["-"]}]}]}}}),
        );
        assert_eq!(updated(&Volume, &stored, &stored), "[]");
        assert_ne!(created(&Volume, &stored), "[]");
    }
}
