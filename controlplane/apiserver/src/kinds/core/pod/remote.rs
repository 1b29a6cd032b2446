//! Validation of volume types which pods and PersistentVolumes share: those on other machines, and
//! `hostPath`.

use api::field::{Error, ErrorList};
use api::names;

use crate::kinds::check::{Node, no_backsteps};

const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const INITIATOR: &str = "must be valid format";

/// A pod's volume of type `kind`.
pub fn in_pod(source: &Node<'_>, kind: &str, volume: &Node<'_>, errors: &mut ErrorList) {
    match kind {
        "csi" => {
            csi_driver_name(&source.child("driver"), errors);
            let secret = source.child("nodePublishSecretRef");
            if secret.exists() && secret.child("name").required(errors, "") {
                // The path is Kubernetes' own.
                let name = Node::new(secret.child("name").value, source.path.child("name"));
                name.format(errors, names::dns1123_subdomain);
            }
        }
        "iscsi" => {
            initiators(source, "must be valid format starting with iqn, eui, or naa", errors);
            let name = volume.child("name");
            let portal = source.child("targetPortal").text();
            if source.has("initiatorName") && name.text().len() + 1 + portal.len() > 64 {
                name.invalid_text(errors, LONG_ISCSI);
            }
        }
        "cinder" | "storageos" => {
            shared(source, kind, errors);
            secret(source, false, errors);
        }
        _ => shared(source, kind, errors),
    }
}

const LONG_ISCSI: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";

/// A PersistentVolume's source of type `kind`; `name` is the volume's.
pub fn in_volume(source: &Node<'_>, kind: &str, name: &str, errors: &mut ErrorList) {
    match kind {
        "csi" => persistent_csi(source, errors),
        "iscsi" => {
            let portal = source.child("targetPortal");
            if source.has("initiatorName") && name.len() + 1 + portal.text().len() > 64 {
                errors.push(Error::invalid(&source.path.child("targetportal"), portal.text(), LONG_ISCSI));
            }
            initiators(source, INITIATOR, errors);
            let secret = source.child("secretRef");
            if secret.exists() {
                secret.child("name").required(errors, "");
            }
        }
        "cinder" | "storageos" => {
            shared(source, kind, errors);
            secret(source, true, errors);
        }
        "azureFile" => {
            shared(source, kind, errors);
            let namespace = source.child("secretNamespace");
            if namespace.exists() {
                namespace.required(errors, "");
            }
        }
        "glusterfs" => {
            shared(source, kind, errors);
            let namespace = source.child("endpointsNamespace");
            if namespace.exists() && namespace.text().is_empty() {
                namespace.invalid(errors, "if the endpointnamespace is set, it must be a valid namespace name");
            } else if namespace.exists() {
                namespace.format(errors, names::dns1123_label);
            }
        }
        "local" => {
            if source.child("path").required(errors, "") {
                no_backsteps(&source.child("path"), errors);
            }
        }
        _ => shared(source, kind, errors),
    }
}

fn shared(source: &Node<'_>, kind: &str, errors: &mut ErrorList) {
    let required = |fields: &[&str], errors: &mut ErrorList| {
        for field in fields {
            source.child(field).required(errors, "");
        }
    };
    match kind {
        "hostPath" if !source.child("path").required(errors, "") => {}
        "hostPath" => {
            no_backsteps(&source.child("path"), errors);
            source.child("type").optional_one_of(errors, &HOST_PATH_TYPES);
        }
        "nfs" => {
            required(&["server", "path"], errors);
            if !source.child("path").text().starts_with('/') {
                source.child("path").invalid_text(errors, "must be an absolute path");
            }
        }
        // Kubernetes calls the disk differently in its errors.
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            let (field, named) =
                if kind == "gcePersistentDisk" { ("pdName", "persistentDisk") } else { ("volumeID", kind) };
            let owner = source.path.parent().child(named);
            Node::new(source.child(field).value, owner.child(field)).required(errors, "");
            let partition = Node::new(source.child("partition").value, owner.child("partition"));
            range(&partition, 0..=255, "must be between 1 and 255, inclusive", errors);
        }
        "glusterfs" => required(&["endpoints", "path"], errors),
        "rbd" => required(&["monitors", "image"], errors),
        "cephfs" => required(&["monitors"], errors),
        "cinder" | "portworxVolume" => required(&["volumeID"], errors),
        "flocker" => flocker(source, errors),
        "quobyte" => quobyte(source, errors),
        "fc" => fibre_channel(source, errors),
        "flexVolume" => flex(source, errors),
        "azureFile" => required(&["secretName", "shareName"], errors),
        "azureDisk" => azure_disk(source, errors),
        "vsphereVolume" => required(&["volumePath"], errors),
        "photonPersistentDisk" => required(&["pdID"], errors),
        "scaleIO" => required(&["gateway", "system", "volumeName"], errors),
        "storageos" => {
            source.child("volumeName").required_format(errors, names::dns1123_label);
            if !source.child("volumeNamespace").text().is_empty() {
                source.child("volumeNamespace").format(errors, names::dns1123_label);
            }
        }
        _ => {}
    }
}

fn range(node: &Node<'_>, range: std::ops::RangeInclusive<i64>, words: &str, errors: &mut ErrorList) {
    if !range.contains(&node.int()) {
        node.invalid(errors, words);
    }
}

/// A reference to a Secret, where there is one.
fn secret(source: &Node<'_>, namespaced: bool, errors: &mut ErrorList) {
    let secret = source.child("secretRef");
    if !secret.exists() {
        return;
    }
    secret.child("name").required(errors, "");
    if namespaced {
        secret.child("namespace").required(errors, "");
    }
}

fn persistent_csi(source: &Node<'_>, errors: &mut ErrorList) {
    csi_driver_name(&source.child("driver"), errors);
    source.child("volumeHandle").required(errors, "");
    for field in
        ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
    {
        let secret = source.child(field);
        if secret.exists() {
            secret.child("name").required_format(errors, names::dns1123_subdomain);
            secret.child("namespace").required_format(errors, names::dns1123_label);
        }
    }
}

/// At most 63 characters of a subdomain, any case.
pub fn csi_driver_name(name: &Node<'_>, errors: &mut ErrorList) {
    name.required(errors, "");
    if name.text().len() > 63 {
        errors.push(Error::too_long(&name.path, 63));
    }
    for problem in names::dns1123_subdomain(&name.text().to_lowercase()) {
        name.invalid_text(errors, problem);
    }
}

fn initiators(source: &Node<'_>, unknown: &str, errors: &mut ErrorList) {
    source.child("targetPortal").required(errors, "");
    if source.child("iqn").required(errors, "") {
        initiator(&source.child("iqn"), unknown, errors);
    }
    range(&source.child("lun"), 0..=255, "must be between 0 and 255, inclusive", errors);
    let authenticates = source.child("chapAuthDiscovery").flag() || source.child("chapAuthSession").flag();
    if authenticates && !source.has("secretRef") {
        source.child("secretRef").missing(errors, "");
    }
    if source.has("initiatorName") {
        let name = Node::new(source.child("initiatorName").value, source.path.child("initiatorname"));
        initiator(&name, unknown, errors);
    }
}

/// `iqn.2015-02.example.com:name`, `eui.` and 16 or `naa.` and 32 characters.
fn initiator(name: &Node<'_>, unknown: &str, errors: &mut ErrorList) {
    let text = name.text();
    let hex = |prefix: &str, length: usize| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == length && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    let fits = match text.get(..3) {
        Some("iqn") => is_iqn(text),
        Some("eui") => hex("eui.", 16),
        Some("naa") => hex("naa.", 32),
        _ => return name.invalid_text(errors, unknown),
    };
    if !fits {
        name.invalid_text(errors, INITIATOR);
    }
}

fn is_iqn(text: &str) -> bool {
    let Some((head, tail)) = text.split_once(':') else { return false };
    let mut parts = head.splitn(3, '.');
    let (prefix, date, authority) = (parts.next(), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let digits = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
    prefix == Some("iqn")
        && date.split_once('-').is_some_and(|(year, month)| digits(year, 4) && digits(month, 2))
        && !authority.is_empty()
        && authority.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        && !tail.is_empty()
        && !tail.contains(|c: char| ",;*&$|".contains(c) || c.is_whitespace())
}

fn flocker(source: &Node<'_>, errors: &mut ErrorList) {
    let (name, uuid) = (source.child("datasetName"), source.child("datasetUUID"));
    match (name.text().is_empty(), uuid.text().is_empty()) {
        (true, true) => source.missing(errors, "one of datasetName and datasetUUID is required"),
        (false, false) => errors.push(Error::invalid(
            &source.path,
            "resource",
            "datasetName and datasetUUID can not be specified simultaneously",
        )),
        _ => {}
    }
    if name.text().contains('/') {
        name.invalid(errors, "must not contain '/'");
    }
}

fn quobyte(source: &Node<'_>, errors: &mut ErrorList) {
    const HOSTS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = source.child("registry");
    if registry.required(errors, HOSTS) {
        if source.child("tenant").text().len() >= 65 {
            source.child("tenant").missing(errors, "must be a UUID and may not exceed a length of 64 characters");
        } else {
            for _ in registry.text().split(',').filter(|pair| !pair.contains(':')) {
                registry.invalid(errors, HOSTS);
            }
        }
    }
    source.child("volume").required(errors, "");
}

fn fibre_channel(source: &Node<'_>, errors: &mut ErrorList) {
    let (targets, ids, lun) = (source.child("targetWWNs"), source.child("wwids"), source.child("lun"));
    match (targets.is_empty(), ids.is_empty()) {
        (true, true) => targets.missing(errors, "must specify either targetWWNs or wwids, but not both"),
        (false, false) => targets.invalid(errors, "targetWWNs and wwids can not be specified simultaneously"),
        _ => {}
    }
    if targets.is_empty() {
        return;
    }
    if lun.exists() {
        range(&lun, 0..=255, "must be between 0 and 255, inclusive", errors);
    } else {
        lun.missing(errors, "lun is required if targetWWNs is specified");
    }
}

fn flex(source: &Node<'_>, errors: &mut ErrorList) {
    source.child("driver").required(errors, "");
    for (key, option) in source.entries("options") {
        let namespace = format!(".{}", key.split('/').next().unwrap_or("").to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            errors.push(Error::invalid(&option.path, key, "kubernetes.io and k8s.io namespaces are reserved"));
        }
    }
}

fn azure_disk(source: &Node<'_>, errors: &mut ErrorList) {
    const MANAGED: &str =
        "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let (uri, kind) = (source.child("diskURI"), source.child("kind"));
    source.child("diskName").required(errors, "");
    uri.required(errors, "");
    source.child("cachingMode").optional_one_of(errors, &["None", "ReadOnly", "ReadWrite"]);
    kind.optional_one_of(errors, &["Dedicated", "Managed", "Shared"]);
    let (prefix, form) = if kind.text() == "Managed" { ("/subscriptions/", MANAGED) } else { ("https://", BLOB) };
    if kind.exists() && !uri.text().starts_with(prefix) {
        errors.push(Error::not_supported(&uri.path, uri.text(), &[form]));
    }
}
