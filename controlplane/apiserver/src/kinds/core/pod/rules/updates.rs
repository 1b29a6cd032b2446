//! What later writes of a pod are refused with.

use serde_json::{Value, json};

use super::base;
use crate::kinds::core::pod::Pod;
use crate::kinds::tested::{updated, updated_sub};
use crate::patch::merge;

/// A running pod with `extra` merged into it.
fn pod(extra: &Value) -> Value {
    use crate::resource::Hooks;
    let mut pod = merge(&base(), extra).unwrap();
    Pod.defaults(&mut pod);
    pod
}

#[test]
fn specs_after_creation() {
    for (old, new, expected) in [
        (
            json!({"activeDeadlineSeconds": 5}),
            json!({"activeDeadlineSeconds": 6}),
            "spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value",
        ),
        (
            json!({"activeDeadlineSeconds": 5}),
            json!({"activeDeadlineSeconds": null}),
            "spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive integer to nil value",
        ),
        (
            json!({}),
            json!({"schedulingGates": [{"name": "g"}]}),
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'g'",
        ),
    ] {
        let before = pod(&json!({ "spec": old }));
        let after = pod(&json!({ "spec": merge(&old, &new).unwrap() }));
        let found = updated(&Pod, &before, &after);
        assert!(found.trim_start_matches('[').starts_with(expected), "{new}: {found}");
    }
}

#[test]
fn resizes() {
    let with =
        |resources: Value| json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}});
    let asks = json!({"requests": {"cpu": "1"}});
    for (old, new, expected) in [
        (
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "m"}}, "spec": {"nodeName": "n"}}),
            json!({}),
            "[]: Forbidden: static pods cannot be resized",
        ),
        (json!({"spec": {"os": {"name": "windows"}}}), json!({}), "[]: Forbidden: windows pods cannot be resized"),
        (
            with(asks.clone()),
            json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": asks}, {"name": "d", "image": "i"}]}}),
            "spec.containers: Forbidden: containers may not be added or removed on resize",
        ),
        (
            with(json!({"requests": {"cpu": "1", "memory": "1Mi"}})),
            with(asks),
            "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
        ),
    ] {
        let before = pod(&old);
        let after = pod(&merge(&old, &new).unwrap());
        assert_eq!(updated_sub(&Pod, "resize", &before, &after), expected, "{new}");
    }
}

#[test]
fn statuses() {
    for (status, expected) in [
        (
            json!({"observedGeneration": -1}),
            "status.observedGeneration: Invalid value: -1: must be a non-negative integer",
        ),
        (
            json!({"conditions": [{"type": "A", "status": "True", "observedGeneration": -2}]}),
            "status.conditions[0].observedGeneration: Invalid value: -2: must be a non-negative integer",
        ),
        (
            json!({"containerStatuses": [{"name": "c", "user": {"linux": {"uid": -1, "gid": 0}}}]}),
            "status.containerStatuses[0].linux.uid: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
    ] {
        let found = updated_sub(&Pod, "status", &pod(&json!({})), &pod(&json!({ "status": status })));
        assert_eq!(found, expected, "{status}");
    }
}

#[test]
fn mirrors_get_no_ephemeral_containers() {
    let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "m"}}, "spec": {"nodeName": "n"}});
    let more = merge(&mirror, &json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i"}]}})).unwrap();
    let found = updated_sub(&Pod, "ephemeralcontainers", &pod(&mirror), &pod(&more));
    assert_eq!(found, "[]: Forbidden: static pods do not support ephemeral containers");
}
