//! Validation of a pod's volumes.

use std::collections::HashMap;

use api::field::{Error, ErrorList};
use api::names;

use super::container::{field_ref, relative_path, resource_ref};
use super::quantity;
use crate::kinds::check::{Node, Seen, no_backsteps};

const FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
const HOST_PATH_TYPES: [&str; 8] =
    ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];

/// Checks all volumes. Names of those that are sound, with whether they may be block devices.
pub fn validate_all<'a>(spec: &Node<'a>, errors: &mut ErrorList) -> HashMap<&'a str, bool> {
    let mut names = HashMap::new();
    for volume in spec.items("volumes") {
        let name = volume.child("name");
        if name.required_format(errors, names::dns1123_label) {
            let block = volume.has("persistentVolumeClaim") || volume.has("ephemeral");
            if names.insert(name.text(), block).is_some() {
                name.duplicate(errors);
            }
        }
        source(&volume, errors);
    }
    names
}

fn source(volume: &Node<'_>, errors: &mut ErrorList) {
    let fields = volume.value.as_object().into_iter().flatten();
    let sources: Vec<&str> =
        fields.filter(|(key, v)| *key != "name" && !v.is_null()).map(|(key, _)| key.as_str()).collect();
    if sources.is_empty() {
        return volume.missing(errors, "must specify a volume type");
    }
    for extra in &sources[1..] {
        volume.child(extra).forbidden(errors, "may not specify more than 1 volume type");
    }
    one(&volume.child(sources[0]), sources[0], errors);
}

fn one(source: &Node<'_>, kind: &str, errors: &mut ErrorList) {
    match kind {
        "emptyDir" => empty_dir(source, errors),
        "secret" => {
            source.child("secretName").required(errors, "");
            files(source, errors);
        }
        "configMap" => {
            source.child("name").required(errors, "");
            files(source, errors);
        }
        "downwardAPI" => {
            mode(&source.child("defaultMode"), errors);
            downward(source, errors);
        }
        "projected" => projected(source, errors),
        "persistentVolumeClaim" => {
            source.child("claimName").required(errors, "");
        }
        "ephemeral" => ephemeral(source, errors),
        "image" => {
            source.child("reference").required(errors, "");
            source.child("pullPolicy").required_one_of(errors, &["Always", "IfNotPresent", "Never"]);
        }
        "gitRepo" => source.forbidden(errors, "gitRepo volumes are no longer supported; use an init container instead"),
        _ => remote(source, kind, errors),
    }
}

/// Volume types which PersistentVolumes have too.
pub fn remote(source: &Node<'_>, kind: &str, errors: &mut ErrorList) {
    match kind {
        "hostPath" => {
            if source.child("path").required(errors, "") {
                no_backsteps(&source.child("path"), errors);
            }
            source.child("type").optional_one_of(errors, &HOST_PATH_TYPES);
        }
        "nfs" => {
            source.child("server").required(errors, "");
            let path = source.child("path");
            if path.required(errors, "") && !path.text().starts_with('/') {
                path.invalid(errors, "must be an absolute path");
            }
        }
        "csi" => {
            let driver = source.child("driver");
            if driver.required(errors, "") {
                csi_driver_name(&driver, errors);
            }
        }
        "iscsi" => {
            for field in ["targetPortal", "iqn"] {
                source.child(field).required(errors, "");
            }
        }
        "gcePersistentDisk" => {
            source.child("pdName").required(errors, "");
        }
        "awsElasticBlockStore" => {
            source.child("volumeID").required(errors, "");
        }
        "cephfs" => {
            source.child("monitors").required(errors, "");
        }
        "fc" if source.items("targetWWNs").is_empty() && source.items("wwids").is_empty() => {
            source.child("targetWWNs").missing(errors, "must specify either targetWWNs or wwids, but not both");
        }
        _ => {}
    }
}

/// At most 63 characters of a subdomain, any case.
pub fn csi_driver_name(name: &Node<'_>, errors: &mut ErrorList) {
    if name.text().len() > 63 {
        errors.push(Error::too_long(&name.path, 63));
    }
    if let Some(problem) = names::dns1123_subdomain(&name.text().to_lowercase()) {
        name.invalid(errors, problem);
    }
}

fn empty_dir(source: &Node<'_>, errors: &mut ErrorList) {
    let limit = source.child("sizeLimit");
    if limit.exists() && quantity(limit.value).is_none_or(|amount| amount.is_negative()) {
        limit.forbidden(errors, "SizeLimit field must be a valid resource quantity");
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
        item.child("key").required(errors, "");
        mode(&item.child("mode"), errors);
        local_path(&item.child("path"), errors);
    }
}

/// A path below the volume's own directory, not one of its bookkeeping files.
fn local_path(path: &Node<'_>, errors: &mut ErrorList) {
    if !path.required(errors, "") {
        return;
    }
    relative_path(path, errors);
    if path.text().starts_with("..") && !path.text().starts_with("../") {
        path.invalid(errors, "must not start with '..'");
    }
}

fn downward(source: &Node<'_>, errors: &mut ErrorList) {
    for item in source.items("items") {
        local_path(&item.child("path"), errors);
        mode(&item.child("mode"), errors);
        if item.has("fieldRef") {
            field_ref(&item.child("fieldRef"), &FIELDS, errors);
            if item.has("resourceFieldRef") {
                item.invalid(errors, "fieldRef and resourceFieldRef can not be specified simultaneously");
            }
        } else if item.has("resourceFieldRef") {
            resource_ref(&item.child("resourceFieldRef"), true, errors);
        } else {
            item.missing(errors, "one of fieldRef and resourceFieldRef is required");
        }
    }
}

fn projected(source: &Node<'_>, errors: &mut ErrorList) {
    mode(&source.child("defaultMode"), errors);
    let mut paths = Seen::default();
    for item in source.items("sources") {
        let kinds: Vec<&str> =
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
                .into_iter()
                .filter(|kind| item.has(kind))
                .collect();
        for extra in kinds.iter().skip(1) {
            item.child(extra).forbidden(errors, "may not specify more than 1 volume type");
        }
        for kind in kinds {
            projected_source(&item.child(kind), kind, errors);
            for path in written_paths(&item.child(kind), kind) {
                if !paths.insert(path.text()) {
                    errors.push(Error::invalid(&source.path, path.text(), "conflicting duplicate paths"));
                }
            }
        }
    }
}

fn written_paths<'a>(source: &Node<'a>, kind: &str) -> Vec<Node<'a>> {
    match kind {
        "serviceAccountToken" | "clusterTrustBundle" => vec![source.child("path")],
        _ => source.items("items").iter().map(|item| item.child("path")).collect(),
    }
}

fn projected_source(source: &Node<'_>, kind: &str, errors: &mut ErrorList) {
    match kind {
        "secret" | "configMap" => {
            source.child("name").required(errors, "");
            files(source, errors);
        }
        "downwardAPI" => downward(source, errors),
        "serviceAccountToken" => {
            let expiry = source.child("expirationSeconds");
            if expiry.int() < 600 {
                expiry.invalid(errors, "may not specify a duration less than 10 minutes");
            } else if expiry.int() > 1 << 32 {
                expiry.invalid(errors, "may not specify a duration larger than 2^32 seconds");
            }
            local_path(&source.child("path"), errors);
        }
        "clusterTrustBundle" => {
            if source.child("name").text().is_empty() == source.child("signerName").text().is_empty() {
                source.missing(errors, "either name or signerName must be specified");
            }
            local_path(&source.child("path"), errors);
        }
        _ => {
            source.child("signerName").required(errors, "");
        }
    }
}

fn ephemeral(source: &Node<'_>, errors: &mut ErrorList) {
    let template = source.child("volumeClaimTemplate");
    if !template.exists() {
        return template.missing(errors, "");
    }
    crate::kinds::core::claim::validate_spec(&template.child("spec"), errors);
}
