//! What of a claim may change, and what its status may say.

use api::field::{Error, ErrorList};
use api::names;
use api::quantity::Quantity;
use serde_json::Value;

use super::super::diff;
use super::super::pod::internal::{self, CLAIM_SPEC};
use super::super::pod::quantity;
use super::super::pod::resources::{basic_quantity, is_native, resource_quantity};
use super::{CLASS_ANNOTATION, Kept, validate_kept};
use crate::kinds::check::{IMMUTABLE, Node};
use crate::kinds::value::{annotation, at, copy, has, map, opt_text, remove, same_at, text};

const RESIZES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

pub fn update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, was) = (Node::root(new).child("spec"), Node::root(old).child("spec"));
    validate_kept(&spec, &Kept::of(old), &mut errors);
    let (mut munged, mut before) = (new.clone(), old.clone());
    if text(old, "spec.volumeName").is_empty() {
        copy(new, &mut before, "spec.volumeName");
    }
    class_change(new, old, &mut munged, &mut errors);
    if text(new, "status.phase") == "Bound" {
        if has(new, "spec.resources.requests") {
            copy(old, &mut munged, "spec.resources.requests.storage");
        }
        if has(new, "spec.volumeAttributesClassName") {
            copy(old, &mut munged, "spec.volumeAttributesClassName");
        }
    }
    if !same_at(&munged, &before, "spec") {
        let shown = |claim: &Value| internal::lines(at(claim, "spec"), CLAIM_SPEC);
        spec.forbidden(
            &mut errors,
            format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
                diff::unified_lines(&shown(&before), &shown(&munged))
            ),
        );
    }
    shrinks(new, old, &mut errors);
    let mode = Node::new(spec.child("volumeMode").value, api::field::Path::root("volumeMode"));
    mode.immutable(&mut errors, &was.child("volumeMode"));
    let attributes = spec.child("volumeAttributesClassName");
    if was.has("volumeAttributesClassName") {
        if !attributes.exists() {
            attributes.forbidden(&mut errors, "update from non-nil value to nil is forbidden");
        } else if attributes.text().is_empty() && !was.child("volumeAttributesClassName").text().is_empty() {
            attributes.forbidden(&mut errors, "update from non-nil value to an empty string is forbidden");
        }
    }
    errors
}

/// A class may be named once where none was: the default one, or what the old annotation says.
fn class_change(new: &Value, old: &Value, munged: &mut Value, errors: &mut ErrorList) {
    let (said, was) = (annotation(new, CLASS_ANNOTATION), annotation(old, CLASS_ANNOTATION));
    let named = opt_text(new, "spec.storageClassName").filter(|_| !has(old, "spec.storageClassName"));
    let from_annotation = was.is_some() && named == was && said.is_none_or(|said| Some(said) == was);
    if !from_annotation && said.unwrap_or("") != was.unwrap_or("") {
        let path = Node::root(new).child("metadata.annotations").child(CLASS_ANNOTATION).path;
        errors.push(Error::invalid(&path, said.unwrap_or(""), IMMUTABLE));
    }
    if named.is_some() && (was.is_none() || named == was) {
        remove(munged, "spec.storageClassName");
    }
}

/// A claim shrinks only while it grows: back to more than it really has.
fn shrinks(new: &Value, old: &Value, errors: &mut ErrorList) {
    let storage = |object: &Value, path: &str| {
        map(object, path).and_then(|m| m.get("storage")).and_then(quantity).unwrap_or(Quantity::ZERO)
    };
    let (now, was) = (storage(new, "spec.resources.requests"), storage(old, "spec.resources.requests"));
    if now < was && now <= storage(old, "status.capacity") {
        Node::root(new)
            .child("spec.resources.requests.storage")
            .forbidden(errors, "field can not be less than status.capacity");
    }
}

pub fn status(claim: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (root, status) = (Node::root(claim), Node::root(claim).child("status"));
    if root.child("spec.accessModes").is_empty() {
        errors.push(Error::required(&root.child("Spec.accessModes").path, ""));
    }
    for (_, amount) in status.entries("capacity") {
        basic_quantity(&amount, &mut errors);
    }
    // The path is Kubernetes' own.
    let statuses = status.child("allocatedResourceStatus").path;
    for (name, state) in status.entries("allocatedResourceStatuses") {
        resource_key(name, &statuses, &mut errors);
        if !RESIZES.contains(&state.text()) {
            errors.push(Error::not_supported(&statuses, name, &RESIZES));
        }
    }
    for (name, amount) in status.entries("allocatedResources") {
        let before = errors.len();
        resource_key(name, &status.child("allocatedResources").path, &mut errors);
        if errors.len() == before {
            basic_quantity(&amount, &mut errors);
        }
        if errors.len() == before {
            resource_quantity("storage", &amount, &mut errors);
        }
    }
    errors
}

/// Of Kubernetes' own resources, a claim has only storage.
fn resource_key(name: &str, path: &api::field::Path, errors: &mut ErrorList) {
    let problems = names::qualified_name(name);
    if problems.is_empty() && is_native(name) && name != "storage" {
        errors.push(Error::not_supported(path, name, &["storage"]));
    }
    for problem in problems {
        errors.push(Error::invalid(path, name, problem));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Claim;
    use super::super::tests::claim;
    use super::*;
    use crate::kinds::tested::{updated, updated_sub};
    use crate::kinds::value::set;
    use serde_json::json;

    #[test]
    fn updated_claims() {
        let bound = claim(
            json!({"spec.volumeName": "v", "spec.storageClassName": "a", "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}}),
        );
        let growing = {
            let mut claim = bound.clone();
            set(&mut claim, "spec.resources.requests.storage", "4Gi");
            claim
        };
        let spec_diff = |lines: &str| {
            format!(
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{lines}"
            )
        };
        let changed_class = spec_diff(
            "@@ -10,7 +10,7 @@\n   }\n  },\n  \"VolumeName\": \"v\",\n- \"StorageClassName\": \"a\",\n+ \"StorageClassName\": \"b\",\n  \"VolumeMode\": \"Filesystem\",\n  \"DataSource\": null,\n  \"DataSourceRef\": null,\n",
        );
        for (old, path, value, expected) in [
            (&bound, "spec.resources.requests.storage", json!("2Gi"), "[]".to_owned()),
            (
                &bound,
                "spec.resources.requests.storage",
                json!("1Mi"),
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity".to_owned(),
            ),
            (&growing, "spec.resources.requests.storage", json!("2Gi"), "[]".to_owned()),
            (
                &growing,
                "spec.resources.requests.storage",
                json!("1Gi"),
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity".to_owned(),
            ),
            (&bound, "spec.storageClassName", json!("b"), changed_class),
            (&bound, "spec.volumeAttributesClassName", json!("gold"), "[]".to_owned()),
        ] {
            let mut new = old.clone();
            set(&mut new, path, value);
            assert_eq!(updated(&Claim, old, &new), expected, "{path}");
        }
        let gold = claim(json!({"spec.volumeAttributesClassName": "gold", "status.phase": "Bound"}));
        let none = claim(json!({"spec.volumeAttributesClassName": "", "status.phase": "Bound"}));
        assert_eq!(
            updated(&Claim, &gold, &none),
            "spec.volumeAttributesClassName: Forbidden: update from non-nil value to an empty string is forbidden"
        );
        let blocks = claim(json!({"spec.volumeMode": "Block"}));
        assert!(
            updated(&Claim, &claim(json!({})), &blocks)
                .ends_with(", volumeMode: Invalid value: \"Block\": field is immutable]")
        );
    }

    #[test]
    fn a_class_is_named_once() {
        let annotated = |class: &str, extra: Value| {
            let mut claim = claim(extra);
            set(&mut claim, "metadata.annotations", json!({ CLASS_ANNOTATION: class }));
            claim
        };
        let moved =
            "metadata.annotations.volume.beta.kubernetes.io/storage-class: Invalid value: \"b\": field is immutable";
        for (old, new, expected) in [
            (claim(json!({})), claim(json!({"spec.storageClassName": "a"})), "[]"),
            (
                claim(json!({"status.phase": "Bound"})),
                claim(json!({"spec.storageClassName": "", "status.phase": "Bound"})),
                "[]",
            ),
            (annotated("a", json!({})), annotated("a", json!({"spec.storageClassName": "a"})), "[]"),
            (annotated("a", json!({})), claim(json!({"spec.storageClassName": "a"})), "[]"),
            (annotated("a", json!({})), annotated("b", json!({})), moved),
        ] {
            assert_eq!(updated(&Claim, &old, &new), expected, "{new}");
        }
    }

    #[test]
    fn statuses() {
        for (status, expected) in [
            (
                json!({"allocatedResources": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "NodeResizePending", "example.com/x": "NodeResizePending"}}),
                "[]",
            ),
            (
                json!({"capacity": {"storage": "-1"}}),
                "status.capacity[storage]: Invalid value: -1: must be a valid resource quantity",
            ),
            (
                json!({"allocatedResources": {"cpu": "1"}, "allocatedResourceStatuses": {"storage": "Soon"}}),
                "[status.allocatedResourceStatus: Unsupported value: \"storage\": supported values: \"ControllerResizeInProgress\", \"ControllerResizeInfeasible\", \"NodeResizeInProgress\", \"NodeResizeInfeasible\", \"NodeResizePending\", \
                 status.allocatedResources: Unsupported value: \"cpu\": supported values: \"storage\"]",
            ),
        ] {
            let new = claim(json!({ "status": status }));
            assert_eq!(updated_sub(&Claim, "status", &claim(json!({})), &new), expected, "{status}");
        }
        assert_eq!(updated_sub(&Claim, "status", &json!({}), &json!({})), "Spec.accessModes: Required value");
    }
}
