//! Validation of a pod's volumes.
//!
//! Neighbours: [`super::projected`] for projected volumes, [`super::remote`] for the types which
//! PersistentVolumes have too.

use std::collections::HashMap;

use api::field::{Error, ErrorList};
use api::names;

use super::env::{field_ref, resource_ref};
use super::mounts::relative_path;
pub use super::remote::csi_driver_name;
use super::{projected, quantity, remote};
use crate::kinds::check::{Node, Seen};
use crate::kinds::core::claim;
use crate::kinds::value;

const FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const TOO_MANY: &str = "may not specify more than 1 volume type";

/// In the order in which Kubernetes looks at them.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// What matters of a volume to those that use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// A PersistentVolumeClaim's, its own or of the pod: may be a block device.
    Claim,
    Other,
}

/// Checks all volumes. `pod` is the name of the pod (none in a template). Returns those that are
/// sound, by name.
pub fn validate_all<'a>(spec: &Node<'a>, pod: Option<&str>, errors: &mut ErrorList) -> HashMap<&'a str, VolumeKind> {
    let mut sound = HashMap::new();
    let pod_name = pod.filter(|name| !name.is_empty());
    let volumes = spec.items("volumes");
    let created: Vec<String> = volumes
        .iter()
        .filter(|volume| volume.has("ephemeral"))
        .filter_map(|volume| Some(format!("{}-{}", pod_name?, volume.child("name").text())))
        .collect();
    for volume in &volumes {
        let before = errors.len();
        source(volume, pod, errors);
        let name = volume.child("name");
        name.required_format(errors, names::dns1123_label);
        if sound.contains_key(name.text()) {
            name.duplicate(errors);
        }
        if errors.len() == before {
            let claim = volume.has("persistentVolumeClaim") || volume.has("ephemeral");
            sound.insert(name.text(), if claim { VolumeKind::Claim } else { VolumeKind::Other });
        }
        let claim = volume.child("persistentVolumeClaim.claimName");
        if created.iter().any(|name| name == claim.text()) {
            claim.invalid(errors, "must not reference a PVC that gets created for an ephemeral volume");
        }
    }
    sound
}

fn source(volume: &Node<'_>, pod: Option<&str>, errors: &mut ErrorList) {
    let mut found = SOURCES.iter().filter(|kind| volume.has(kind));
    let Some(first) = found.next() else {
        return volume.missing(errors, "must specify a volume type");
    };
    one(volume, first, pod, errors);
    for extra in found {
        // Two fields go by other names here than in the API.
        let named = match *extra {
            "cephfs" => "cephFS",
            "downwardAPI" => "downwarAPI",
            other => other,
        };
        errors.push(Error::forbidden(&volume.path.child(named), TOO_MANY));
    }
}

fn one(volume: &Node<'_>, kind: &str, pod: Option<&str>, errors: &mut ErrorList) {
    let source = volume.child(kind);
    match kind {
        "emptyDir" => {
            let limit = source.child("sizeLimit");
            if quantity(limit.value).is_some_and(|amount| amount.is_negative()) {
                limit.forbidden(errors, "SizeLimit field must be a valid resource quantity");
            }
        }
        "gitRepo" => {
            source.child("repository").required(errors, "");
            relative_path(&source.child("directory"), errors);
        }
        "secret" => {
            source.child("secretName").required(errors, "");
            files(&source, errors);
        }
        "configMap" => {
            source.child("name").required(errors, "");
            files(&source, errors);
        }
        "downwardAPI" => {
            mode(&source.child("defaultMode"), errors);
            for item in source.items("items") {
                downward_file(&item, &source, errors);
            }
        }
        "projected" => projected::validate(&source, errors),
        "persistentVolumeClaim" => {
            source.child("claimName").required(errors, "");
        }
        "ephemeral" => ephemeral(volume, &source, pod.unwrap_or(""), errors),
        "image" => {
            source.child("reference").required(errors, "");
            source.child("pullPolicy").required_one_of(errors, &["Always", "IfNotPresent", "Never"]);
        }
        _ => remote::in_pod(&source, kind, volume, errors),
    }
}

/// A file mode: 0 to 0777.
pub fn mode(node: &Node<'_>, errors: &mut ErrorList) {
    if node.exists() && !(0..=0o777).contains(&node.int()) {
        node.invalid(errors, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn files(source: &Node<'_>, errors: &mut ErrorList) {
    mode(&source.child("defaultMode"), errors);
    for item in source.items("items") {
        key_to_path(&item, errors);
    }
}

/// A key and the file it is written to.
pub fn key_to_path(item: &Node<'_>, errors: &mut ErrorList) {
    item.child("key").required(errors, "");
    item.child("path").required(errors, "");
    local_path(&item.child("path"), errors);
    mode(&item.child("mode"), errors);
}

/// A path below the volume's own directory, not one of its bookkeeping files.
pub fn local_path(path: &Node<'_>, errors: &mut ErrorList) {
    relative_path(path, errors);
    if path.text().starts_with("..") && !path.text().starts_with("../") {
        path.invalid(errors, "must not start with '..'");
    }
}

/// A file of the downward API. Errors name the volume, not the item, as in Kubernetes.
pub fn downward_file(item: &Node<'_>, owner: &Node<'_>, errors: &mut ErrorList) {
    let at = |field: &str| Node::new(item.child(field).value, owner.path.child(field));
    at("path").required(errors, "");
    local_path(&at("path"), errors);
    if item.has("fieldRef") {
        field_ref(&at("fieldRef"), &FIELDS, errors);
        if item.has("resourceFieldRef") {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(Error::invalid(&owner.path, "resource", detail));
        }
    } else if item.has("resourceFieldRef") {
        resource_ref(&at("resourceFieldRef"), true, errors);
    } else {
        owner.missing(errors, "one of fieldRef and resourceFieldRef is required");
    }
    mode(&at("mode"), errors);
}

fn ephemeral(volume: &Node<'_>, source: &Node<'_>, pod: &str, errors: &mut ErrorList) {
    let template = source.child("volumeClaimTemplate");
    if !template.exists() {
        template.missing(errors, "");
    } else {
        template_metadata(&template.child("metadata"), errors);
        claim::validate_spec(&template.child("spec"), errors);
    }
    let name = volume.child("name");
    if pod.is_empty() || name.text().is_empty() {
        return;
    }
    let claim = format!("{pod}-{}", name.text());
    for problem in names::dns1123_subdomain(&claim) {
        name.invalid(errors, format!("PVC name {claim:?}: {problem}"));
    }
}

/// Metadata of something that gets its name from its owner: labels and annotations only.
pub fn template_metadata(meta: &Node<'_>, errors: &mut ErrorList) {
    crate::kinds::meta::annotations(&meta.child("annotations"), errors);
    crate::kinds::check::labels(&meta.child("labels"), errors);
    for (field, found) in meta.value.as_object().into_iter().flatten() {
        let unset = found.is_null() || value::same(found, &serde_json::Value::Null) || found == "" || found == 0;
        if !matches!(field.as_str(), "annotations" | "labels") && !unset {
            meta.child(field).forbidden(errors, "cannot be set");
        }
    }
}

/// Paths that the sources of one volume write.
#[derive(Default)]
pub struct Written(Seen);

impl Written {
    /// `shown` is what Kubernetes says when `path` was there before.
    pub fn insert(&mut self, path: &str, owner: &Node<'_>, shown: &str, errors: &mut ErrorList) {
        if !self.0.insert(path) {
            errors.push(Error::invalid(&owner.path, shown, "conflicting duplicate paths"));
        }
    }
}
