//! PersistentVolumes (`pkg/api/persistentvolume`). Neighbours: [`super::claim`], and
//! [`super::pod::remote`] for what one source needs.

mod change;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::claim::{class, modes, old_class, positive_quantity, storage};
use super::pod::defaults::remote_volume;
use super::pod::resources::basic_quantity;
use super::pod::warn::old_keys;
use super::pod::{placement, remote};
use crate::kinds::check::Node;
use crate::kinds::table::{UNSET, access_modes, named_wide, row_wide, words};
use crate::kinds::value::{
    annotation, at, copy, default, default_text, get_mut, has, list, name, opt_text, same_at, set, text,
};
use crate::resource::{Column, Context, Hooks};

const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
const TRANSITION: &str = "status.lastPhaseTransitionTime";

/// Volume sources in the order they are looked at, and how the error of one too many calls them.
const SOURCES: [(&str, &str); 22] = [
    ("hostPath", "hostPath"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("nfs", "nfs"),
    ("rbd", "rbd"),
    ("quobyte", "quobyte"),
    ("cephfs", "cephFS"),
    ("iscsi", "iscsi"),
    ("cinder", "cinder"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("scaleIO", "scaleIO"),
    ("local", "local"),
    ("storageos", "storageos"),
    ("csi", "csi"),
];

/// Sources that may have mount options by the old annotation.
const WITH_MOUNT_OPTIONS: [&str; 13] = [
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "nfs",
    "rbd",
    "quobyte",
    "iscsi",
    "cinder",
    "cephfs",
    "azureFile",
    "vsphereVolume",
    "azureDisk",
    "photonPersistentDisk",
];

/// Volume types that were given up, and how warnings call them.
const GONE: [(&str, &str, &str); 6] = [
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

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
        set(volume, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": api::scalar::time(ctx.now)}));
    }

    /// The time of the last phase goes with the phase, whatever the client knows of it.
    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if ctx.subresource != "status" {
            return;
        }
        let moved = !same_at(new, old, "status.phase");
        if moved && (!has(new, TRANSITION) || same_at(new, old, TRANSITION)) {
            set(new, TRANSITION, api::scalar::time(ctx.now));
        } else if !moved && !has(new, TRANSITION) {
            copy(old, new, TRANSITION);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, volume: &Value) -> ErrorList {
        validate_volume(volume, true)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        change::update(new, old)
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found: Vec<String> = old_class(new).into_iter().collect();
        if annotation(new, MOUNT_OPTIONS).is_some() {
            found.push(format!(
                "metadata.annotations[{MOUNT_OPTIONS}]: deprecated since v1.31; use \"mountOptions\" attribute instead"
            ));
        }
        if text(new, "spec.persistentVolumeReclaimPolicy") == "Recycle" {
            found.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
        }
        for (index, term) in list(new, "spec.nodeAffinity.required.nodeSelectorTerms").iter().enumerate() {
            old_keys(term, &format!("spec.nodeAffinity.required.nodeSelectorTerms[{index}]"), &mut found);
        }
        let gone = GONE.iter().filter(|(kind, ..)| has(at(new, "spec"), kind));
        found.extend(gone.map(|(_, named, words)| format!("spec.{named}: {words}")));
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

fn validate_volume(object: &Value, affinity_values: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(object).child("spec");
    spec.child("accessModes").required(&mut errors, "");
    modes(&spec, &mut errors);
    capacity(&spec, &mut errors);
    if !spec.child("persistentVolumeReclaimPolicy").text().is_empty() {
        spec.child("persistentVolumeReclaimPolicy").one_of(&mut errors, &["Delete", "Recycle", "Retain"]);
    }
    let affinity = spec.child("nodeAffinity");
    if affinity.exists() {
        let required = affinity.child("required");
        if required.exists() {
            placement::node_selector_where(&required, affinity_values, &mut errors);
        } else {
            required.missing(&mut errors, "must specify required node constraints");
        }
    }
    sources(&spec, name(object), &mut errors);
    let policy = spec.child("persistentVolumeReclaimPolicy");
    if policy.text() == "Recycle" && is_root(spec.child("hostPath.path").text()) {
        policy.forbidden(&mut errors, "may not be 'recycle' for a hostPath mount of '/'");
    }
    if !spec.child("storageClassName").text().is_empty() {
        spec.child("storageClassName").format(&mut errors, names::dns1123_subdomain);
    }
    spec.child("volumeMode").optional_one_of(&mut errors, &["Block", "Filesystem"]);
    let attributes = spec.child("volumeAttributesClassName");
    if attributes.exists() {
        if attributes.required(&mut errors, "an empty string is disallowed") {
            attributes.format(&mut errors, names::dns1123_subdomain);
        }
        if !spec.has("csi") {
            spec.child("csi").missing(&mut errors, "has to be specified when using volumeAttributesClassName");
        }
    }
    if annotation(object, MOUNT_OPTIONS).is_some() && !WITH_MOUNT_OPTIONS.iter().any(|kind| spec.has(kind)) {
        Node::root(object)
            .child("metadata.annotations")
            .child(MOUNT_OPTIONS)
            .forbidden(&mut errors, "may not specify mount options for this volume type");
    }
    errors
}

/// A volume's spec inside of a VolumeAttachment: it is of a CSI driver, and nobody's yet.
pub fn inline_spec(spec: &Node<'_>, errors: &mut ErrorList) {
    const NOT_HERE: &str = "may not be specified in the context of inline volumes";
    let unset = |field: &str, errors: &mut ErrorList| {
        let field = spec.child(field);
        if field.exists() && field.value != "" {
            field.forbidden(errors, NOT_HERE);
        }
    };
    unset("claimRef", errors);
    if !spec.child("capacity").is_empty() {
        spec.child("capacity").forbidden(errors, NOT_HERE);
    }
    if !spec.has("csi") {
        spec.child("csi").missing(errors, "has to be specified in the context of inline volumes");
    }
    spec.child("accessModes").required(errors, "");
    modes(spec, errors);
    let (policy, mode) = (spec.child("persistentVolumeReclaimPolicy"), spec.child("volumeMode"));
    if !matches!(policy.text(), "" | "Retain") {
        policy.forbidden(errors, "may only be Retain in the context of inline volumes");
    }
    unset("nodeAffinity", errors);
    sources(spec, "", errors);
    unset("storageClassName", errors);
    if mode.exists() && mode.text() != "Filesystem" {
        mode.forbidden(errors, "may not specify volumeMode other than Filesystem in the context of inline volumes");
    }
}

fn capacity(spec: &Node<'_>, errors: &mut ErrorList) {
    let capacity = spec.child("capacity");
    capacity.required(errors, "");
    if !spec.has("capacity.storage") || capacity.len() > 1 {
        errors.push(Error::not_supported(&capacity.path, capacity.value.clone(), &["storage"]));
    }
    for (_, amount) in spec.entries("capacity") {
        basic_quantity(&amount, errors);
        positive_quantity(&amount, errors);
    }
}

/// One source, sound.
fn sources(spec: &Node<'_>, name: &str, errors: &mut ErrorList) {
    let mut given = 0;
    for (kind, named) in SOURCES {
        let source = spec.child(kind);
        if !source.exists() {
            continue;
        }
        given += 1;
        if given > 1 && kind != "flexVolume" {
            spec.child(named).forbidden(errors, "may not specify more than 1 volume type");
            continue;
        }
        remote::in_volume(&source, kind, name, errors);
        if kind == "local" && !spec.has("nodeAffinity") {
            spec.child("nodeAffinity").missing(errors, "Local volume requires node affinity");
        }
    }
    if given == 0 {
        spec.missing(errors, "must specify a volume type");
    }
}

/// Whether an absolute path, once cleaned, is `/`.
fn is_root(path: &str) -> bool {
    let mut depth = 0;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = i32::max(depth - 1, 0),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

pub fn columns() -> Vec<Column> {
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
    use crate::kinds::tested::{created, with};

    pub fn volume(extra: Value) -> Value {
        let mut volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
        for (path, value) in extra.as_object().expect("the test's own fields") {
            set(&mut volume, path, value.clone());
        }
        volume
    }

    pub fn host(extra: Value) -> Value {
        let mut volume = volume(extra);
        default(&mut volume, "spec.hostPath.path", "/x");
        volume
    }

    #[test]
    fn created_volumes() {
        for (volume, expected) in [
            (host(json!({})), "[]"),
            (
                json!({"metadata": {"name": "v"}}),
                "[spec.accessModes: Required value, spec.capacity: Required value, spec.capacity: Unsupported value: null: supported values: \"storage\", \
                 spec: Required value: must specify a volume type]",
            ),
            (
                host(json!({"spec.capacity": {"storage": "0", "cpu": "1"}})),
                "[spec.capacity: Unsupported value: {\"cpu\":\"1\",\"storage\":\"0\"}: supported values: \"storage\", \
                 spec.capacity[storage]: Invalid value: \"0\": must be greater than zero]",
            ),
            (
                host(json!({"spec.nfs": {"server": "s", "path": "/"}, "spec.cephfs": {}})),
                "[spec.nfs: Forbidden: may not specify more than 1 volume type, spec.cephFS: Forbidden: may not specify more than 1 volume type]",
            ),
            (
                volume(json!({"spec.local": {"path": "/x"}})),
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ),
            (
                volume(json!({"spec.nodeAffinity": {}, "spec.local": {"path": "/x"}})),
                "spec.nodeAffinity.required: Required value: must specify required node constraints",
            ),
            (
                host(json!({"spec.hostPath": {"path": "//./"}, "spec.persistentVolumeReclaimPolicy": "Recycle"})),
                "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
            ),
            (
                host(json!({"spec.volumeAttributesClassName": ""})),
                "[spec.volumeAttributesClassName: Required value: an empty string is disallowed, \
                 spec.csi: Required value: has to be specified when using volumeAttributesClassName]",
            ),
            (
                host(json!({"metadata.annotations": {MOUNT_OPTIONS: "ro"}})),
                "metadata.annotations.volume.beta.kubernetes.io/mount-options: Forbidden: may not specify mount options for this volume type",
            ),
            (
                volume(
                    json!({"metadata.annotations": {MOUNT_OPTIONS: "ro"}, "spec.nfs": {"server": "s", "path": "/"}}),
                ),
                "[]",
            ),
            (
                volume(json!({"spec.csi": {"driver": "d", "volumeHandle": "", "nodePublishSecretRef": {"name": "s"}}})),
                "[spec.csi.volumeHandle: Required value, spec.csi.nodePublishSecretRef.namespace: Required value]",
            ),
        ] {
            assert_eq!(created(&Volume, &volume), expected, "{volume}");
        }
    }

    #[test]
    fn phases_have_their_time() {
        let (then, now) = ("2026-01-01T00:00:00Z", "1970-01-01T00:00:00Z");
        let old = json!({"status": {"phase": "Available", "lastPhaseTransitionTime": then}});
        for (status, expected) in [
            (json!({"phase": "Bound"}), now),
            (json!({"phase": "Bound", "lastPhaseTransitionTime": then}), now),
            (json!({"phase": "Bound", "lastPhaseTransitionTime": "2026-01-02T00:00:00Z"}), "2026-01-02T00:00:00Z"),
            (json!({"phase": "Available"}), then),
        ] {
            let mut new = json!({ "status": status });
            with(&json!({}), "status", |ctx| Volume.prepare_subresource_update(ctx, &mut new, &old));
            assert_eq!(text(&new, TRANSITION), expected, "{status}");
        }
    }

    #[test]
    fn warned() {
        let volume = json!({"metadata": {"annotations": {MOUNT_OPTIONS: "ro"}}, "spec": {
            "persistentVolumeReclaimPolicy": "Recycle", "storageos": {},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "beta.kubernetes.io/os"}]}]}}}});
        assert_eq!(
            Volume.warnings(&volume, None),
            [
                "metadata.annotations[volume.beta.kubernetes.io/mount-options]: deprecated since v1.31; use \"mountOptions\" attribute instead",
                "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.",
                "spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key: beta.kubernetes.io/os is deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.storageOS: deprecated in v1.22, non-functional in v1.25+",
            ]
        );
    }
}
