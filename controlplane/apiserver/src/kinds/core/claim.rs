//! PersistentVolumes and PersistentVolumeClaims.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::pod::container::resource_quantity;
use super::pod::defaults::remote_volume;
use super::pod::{placement, quantity, remote, timestamp};
use crate::kinds::check::{IMMUTABLE, Node, label_selector};
use crate::kinds::table::{UNSET, access_modes, named_wide, row_wide, words};
use crate::kinds::value::{
    annotation, at, copy, default, default_text, get_mut, has, list, map, name, opt_text, remove, same, same_at, set,
    text,
};
use crate::resource::{Column, Context, Hooks};

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// The class of a volume or claim: the old annotation goes first.
pub fn class(object: &Value) -> Option<&str> {
    annotation(object, CLASS_ANNOTATION).or_else(|| opt_text(object, "spec.storageClassName"))
}

/// An amount of storage; an absent one counts as none at all.
fn storage<'a>(object: &'a Value, path: &str) -> &'a str {
    opt_text(object, path).unwrap_or("0")
}

/// The annotation that stood for the class before there was a field.
fn old_class(object: &Value) -> Option<String> {
    annotation(object, CLASS_ANNOTATION)?;
    Some(format!(
        "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
    ))
}

pub struct Claim;

impl Hooks for Claim {
    fn defaults(&self, claim: &mut Value) {
        default_text(claim, "status.phase", "Pending");
        claim_spec_defaults(claim);
    }

    fn prepare_create(&self, _ctx: &Context<'_>, claim: &mut Value) {
        set(claim, "status", json!({"phase": "Pending"}));
        data_sources(claim);
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, _old: &Value) {
        data_sources(new);
    }

    fn validate_create(&self, _ctx: &Context<'_>, claim: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validate_spec(&Node::root(claim).child("spec"), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_claim_update(new, old)
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        for (name, amount) in Node::root(new).entries("status.capacity") {
            resource_quantity(name, &amount, &mut errors);
        }
        errors
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_class(new).into_iter().collect()
    }

    fn row(&self, claim: &Value, now: Timestamp) -> Vec<Value> {
        let phase = if has(claim, "metadata.deletionTimestamp") { "Terminating" } else { text(claim, "status.phase") };
        let bound = !text(claim, "spec.volumeName").is_empty();
        let (capacity, modes) = if bound {
            (storage(claim, "status.capacity.storage"), access_modes(list(claim, "status.accessModes")))
        } else {
            ("", String::new())
        };
        row_wide(
            claim,
            now,
            vec![
                phase.into(),
                text(claim, "spec.volumeName").into(),
                capacity.into(),
                modes.into(),
                class(claim).unwrap_or("").into(),
                opt_text(claim, "spec.volumeAttributesClassName").unwrap_or(UNSET).into(),
            ],
            vec![opt_text(claim, "spec.volumeMode").unwrap_or(UNSET).into()],
        )
    }
}

fn claim_spec_defaults(claim: &mut Value) {
    default(claim, "spec.volumeMode", "Filesystem");
}

/// `dataSource` and `dataSourceRef` say the same when they can.
fn data_sources(claim: &mut Value) {
    if has(claim, "spec.dataSource") && !has(claim, "spec.dataSourceRef") {
        let source = at(claim, "spec.dataSource").clone();
        set(claim, "spec.dataSourceRef", source);
    } else if has(claim, "spec.dataSourceRef")
        && !has(claim, "spec.dataSource")
        && text(claim, "spec.dataSourceRef.namespace").is_empty()
    {
        let mut source = at(claim, "spec.dataSourceRef").clone();
        remove(&mut source, "namespace");
        set(claim, "spec.dataSource", source);
    }
}

/// Warnings about a claim's spec at `path` (`GetWarningsForPersistentVolumeClaimSpec`).
pub fn fractional_sizes(spec: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for side in ["requests", "limits"] {
        let amount = map(spec, &format!("resources.{side}")).and_then(|amounts| amounts.get("storage"));
        if let Some(amount) = amount.and_then(quantity).filter(|amount| !amount.is_integer()) {
            found.push(format!(
                "{path}.resources.{side}[storage]: fractional byte value \"{amount}\" is invalid, must be an integer"
            ));
        }
    }
    found
}

/// `PersistentVolumeClaimSpec`, also of templates.
pub fn validate_spec(spec: &Node<'_>, errors: &mut ErrorList) {
    modes(spec, "at least 1 access mode is required", errors);
    label_selector(&spec.child("selector"), errors);
    let storage = spec.child("resources.requests.storage");
    if !storage.exists() {
        errors.push(Error::required(&spec.child("resources").path.key("storage"), ""));
    } else if quantity(storage.value).is_none_or(|amount| amount.is_negative() || amount.is_zero()) {
        let path = spec.child("resources").path.key("storage");
        errors.push(Error::invalid(&path, storage.value.clone(), "must be greater than zero"));
    }
    if !spec.child("storageClassName").text().is_empty() {
        spec.child("storageClassName").format(errors, names::dns1123_subdomain);
    }
    spec.child("volumeMode").optional_one_of(errors, &["Block", "Filesystem"]);
    for field in ["dataSource", "dataSourceRef"] {
        let source = spec.child(field);
        if source.exists() {
            for part in ["kind", "name"] {
                source.child(part).required(errors, "");
            }
        }
    }
    if !spec.child("volumeAttributesClassName").text().is_empty() {
        spec.child("volumeAttributesClassName").format(errors, names::dns1123_subdomain);
    }
}

fn modes(spec: &Node<'_>, none: &str, errors: &mut ErrorList) {
    let given = spec.items("accessModes");
    if given.is_empty() {
        spec.child("accessModes").missing(errors, none);
    }
    for mode in &given {
        if !MODES.contains(&mode.text()) {
            errors.push(Error::not_supported(&spec.child("accessModes").path, mode.text(), &MODES));
        }
    }
    if given.len() > 1 && given.iter().any(|mode| mode.text() == "ReadWriteOncePod") {
        spec.child("accessModes").forbidden(errors, "may not use ReadWriteOncePod with other access modes");
    }
}

fn validate_claim_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(new);
    validate_spec(&root.child("spec"), &mut errors);
    let mut munged = new.clone();
    if text(old, "spec.volumeName").is_empty() {
        copy(old, &mut munged, "spec.volumeName");
    }
    if text(old, "status.phase") == "Bound" {
        copy(old, &mut munged, "spec.resources.requests.storage");
        copy(old, &mut munged, "spec.volumeAttributesClassName");
    }
    // The default class may be filled in afterwards.
    if !has(old, "spec.storageClassName")
        && !text(new, "spec.storageClassName").is_empty()
        && text(old, "status.phase") != "Bound"
    {
        remove(&mut munged, "spec.storageClassName");
    }
    if !same_at(&munged, old, "spec") {
        root.child("spec").forbidden(
            &mut errors,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let storage = |object: &Value, path: &str| map(object, path).and_then(|m| m.get("storage")).and_then(quantity);
    let (now, was) = (storage(new, "spec.resources.requests"), storage(old, "spec.resources.requests"));
    if let (Some(now), Some(was)) = (now, was) {
        let actual = storage(old, "status.capacity");
        if now < was && actual.is_none_or(|actual| now <= actual) && text(old, "status.phase") == "Bound" {
            root.child("spec.resources.requests.storage")
                .forbidden(&mut errors, "field can not be less than status.capacity");
        }
    }
    root.child("spec.volumeMode").immutable(&mut errors, &Node::root(old).child("spec.volumeMode"));
    errors
}

pub fn claim_columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Status", "phase represents the current phase of PersistentVolumeClaim."),
            words("Volume", "volumeName is the binding reference to the PersistentVolume backing this claim."),
            words("Capacity", "capacity represents the actual resources of the underlying volume."),
            words(
                "Access Modes",
                "accessModes contains the actual access modes the volume backing the PVC has. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes-1",
            ),
            words("StorageClass", "StorageClass of the pvc"),
            words("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
        ],
        vec![words(
            "VolumeMode",
            "volumeMode defines what type of volume is required by the claim. Value of Filesystem is implied when not included in claim spec.",
        )],
    )
}

pub struct Volume;

impl Hooks for Volume {
    fn defaults(&self, volume: &mut Value) {
        default_text(volume, "status.phase", "Pending");
        default_text(volume, "spec.persistentVolumeReclaimPolicy", "Retain");
        default(volume, "spec.volumeMode", "Filesystem");
        if let Some(spec) = get_mut(volume, "spec") {
            remote_volume(spec);
        }
    }

    fn prepare_create(&self, ctx: &Context<'_>, volume: &mut Value) {
        set(volume, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": timestamp(ctx.now)}));
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if ctx.subresource == "status"
            && !same_at(new, old, "status.phase")
            && same_at(new, old, "status.lastPhaseTransitionTime")
        {
            set(new, "status.lastPhaseTransitionTime", timestamp(ctx.now));
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, volume: &Value) -> ErrorList {
        validate_volume(volume)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_volume(new);
        let (spec, was) = (Node::root(new).child("spec"), Node::root(old).child("spec"));
        if source_of(spec.value) != source_of(was.value) {
            spec.child("persistentvolumesource")
                .forbidden(&mut errors, "spec.persistentvolumesource is immutable after creation");
        }
        spec.child("volumeMode").immutable(&mut errors, &was.child("volumeMode"));
        if was.has("nodeAffinity") && !same(spec.child("nodeAffinity").value, was.child("nodeAffinity").value) {
            spec.child("nodeAffinity").invalid(&mut errors, IMMUTABLE);
        }
        errors
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found: Vec<String> = old_class(new).into_iter().collect();
        if text(new, "spec.persistentVolumeReclaimPolicy") == "Recycle" {
            found.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
        }
        found
    }

    fn row(&self, volume: &Value, now: Timestamp) -> Vec<Value> {
        let phase =
            if has(volume, "metadata.deletionTimestamp") { "Terminating" } else { text(volume, "status.phase") };
        let claim = if has(volume, "spec.claimRef") {
            format!("{}/{}", text(volume, "spec.claimRef.namespace"), text(volume, "spec.claimRef.name"))
        } else {
            String::new()
        };
        row_wide(
            volume,
            now,
            vec![
                storage(volume, "spec.capacity.storage").into(),
                access_modes(list(volume, "spec.accessModes")).into(),
                text(volume, "spec.persistentVolumeReclaimPolicy").into(),
                phase.into(),
                claim.into(),
                class(volume).unwrap_or("").into(),
                opt_text(volume, "spec.volumeAttributesClassName").unwrap_or(UNSET).into(),
                text(volume, "status.reason").into(),
            ],
            vec![opt_text(volume, "spec.volumeMode").unwrap_or(UNSET).into()],
        )
    }
}

const NOT_SOURCES: [&str; 9] = [
    "capacity",
    "accessModes",
    "claimRef",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "mountOptions",
    "volumeMode",
    "nodeAffinity",
    "volumeAttributesClassName",
];

/// The volume sources of a spec: one, when it is sound.
fn source_of(spec: &Value) -> Vec<(&String, &Value)> {
    let fields = spec.as_object().into_iter().flatten();
    fields.filter(|(key, value)| !NOT_SOURCES.contains(&key.as_str()) && !value.is_null()).collect()
}

fn validate_volume(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(object).child("spec");
    modes(&spec, "", &mut errors);
    if spec.child("capacity").is_empty() {
        spec.child("capacity").missing(&mut errors, "");
    } else if !spec.has("capacity.storage") || spec.child("capacity").len() > 1 {
        errors.push(Error::not_supported(
            &spec.child("capacity").path,
            spec.child("capacity").value.clone(),
            &["storage"],
        ));
    }
    if let Some(amount) = quantity(spec.child("capacity.storage").value)
        && (amount.is_zero() || amount.is_negative())
    {
        errors.push(Error::invalid(
            &spec.child("capacity").path.key("storage"),
            amount.to_string(),
            "must be greater than zero",
        ));
    }
    spec.child("persistentVolumeReclaimPolicy").one_of(&mut errors, &["Delete", "Recycle", "Retain"]);
    spec.child("volumeMode").optional_one_of(&mut errors, &["Block", "Filesystem"]);
    if spec.has("nodeAffinity") {
        let required = spec.child("nodeAffinity.required");
        if required.exists() {
            placement::node_selector(&required, &mut errors);
        } else {
            required.missing(&mut errors, "must specify required node constraints");
        }
    }
    let sources = source_of(spec.value);
    for (index, (kind, _)) in sources.iter().enumerate() {
        let source = spec.child(kind);
        if index > 0 {
            source.forbidden(&mut errors, "may not specify more than 1 volume type");
        } else {
            remote::in_volume(&source, kind, name(object), &mut errors);
            if *kind == "local" && !spec.has("nodeAffinity") {
                spec.child("nodeAffinity").missing(&mut errors, "Local volume requires node affinity");
            }
        }
    }
    if sources.is_empty() {
        spec.missing(&mut errors, "must specify a volume type");
    }
    if !spec.child("storageClassName").text().is_empty() {
        spec.child("storageClassName").format(&mut errors, names::dns1123_subdomain);
    }
    errors
}

pub fn volume_columns() -> Vec<Column> {
    named_wide(
        vec![
            words(
                "Capacity",
                "capacity is the description of the persistent volume's resources and capacity. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#capacity",
            ),
            words(
                "Access Modes",
                "accessModes contains all ways the volume can be mounted. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes",
            ),
            words(
                "Reclaim Policy",
                "persistentVolumeReclaimPolicy defines what happens to a persistent volume when released from its claim.",
            ),
            words(
                "Status",
                "phase indicates if a volume is available, bound to a claim, or released by a claim. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#phase",
            ),
            words(
                "Claim",
                "claimRef is part of a bi-directional binding between PersistentVolume and PersistentVolumeClaim. Expected to be non-nil when bound. claim.VolumeName is the authoritative bind between PV and PVC. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#binding",
            ),
            words("StorageClass", "StorageClass of the pv"),
            words("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
            words(
                "Reason",
                "reason is a brief CamelCase string that describes any failure and is meant for machine parsing and tidy display in the CLI.",
            ),
        ],
        vec![words(
            "VolumeMode",
            "volumeMode defines if a volume is intended to be used with a formatted filesystem or to remain in raw block state. Value of Filesystem is implied when not included in spec.",
        )],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    #[test]
    fn claims() {
        let old = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeName": "v", "storageClassName": "a"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}}});
        let mut errors = ErrorList::new();
        validate_spec(&Node::root(&json!({"spec": {}})).child("spec"), &mut errors);
        assert_eq!(
            join(&errors),
            "[spec.accessModes: Required value: at least 1 access mode is required, spec.resources[storage]: Required value]"
        );
        for (path, value, expected) in [
            ("spec.resources.requests.storage", json!("2Gi"), "[]"),
            (
                "spec.resources.requests.storage",
                json!("1Mi"),
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity",
            ),
            (
                "spec.storageClassName",
                json!("b"),
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ),
        ] {
            let mut new = old.clone();
            set(&mut new, path, value);
            assert_eq!(join(&validate_claim_update(&new, &old)), expected, "{path}");
        }
    }

    #[test]
    fn volumes() {
        let mut volume = json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}});
        Volume.defaults(&mut volume);
        assert_eq!(join(&validate_volume(&volume)), "[]");
        assert_eq!(volume["spec"]["hostPath"]["type"], "");
        assert_eq!(
            join(&validate_volume(&json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}))),
            "[spec.accessModes: Required value, spec.capacity: Required value, spec: Required value: must specify a volume type]"
        );
    }
}
