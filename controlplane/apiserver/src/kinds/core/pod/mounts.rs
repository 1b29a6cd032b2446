//! Validation of what a container mounts.

use api::field::{Error, ErrorList, Path};

use super::container::PodFacts;
use super::volume::VolumeKind;
use crate::kinds::check::{Node, Seen, no_backsteps};

pub fn validate(container: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    mounts(container, facts, errors);
    devices(container, facts, errors);
}

fn texts<'a>(container: &Node<'a>, list: &str, field: &str) -> Vec<&'a str> {
    container.items(list).iter().map(|item| item.child(field).text()).collect()
}

fn mounts(container: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    let mut paths = Seen::default();
    let all = container.child("volumeMounts").path;
    let device_names = texts(container, "volumeDevices", "name");
    let device_paths = texts(container, "volumeDevices", "devicePath");
    let privileged = container.child("securityContext.privileged").flag();
    for mount in container.items("volumeMounts") {
        let (name, path) = (mount.child("name"), mount.child("mountPath"));
        name.required(errors, "");
        if !facts.volumes.contains_key(name.text()) {
            errors.push(Error::not_found(&name.path, name.text()));
        }
        path.required(errors, "");
        if !paths.insert(path.text()) {
            text_invalid(&path, errors, "must be unique");
        }
        if device_names.contains(&name.text()) {
            text_invalid(&name, errors, "must not already exist in volumeDevices");
        }
        if device_paths.contains(&path.text()) {
            text_invalid(&path, errors, "must not already exist as a path in volumeDevices");
        }
        // Kubernetes names these fields without the mount's index.
        for field in ["subPath", "subPathExpr"] {
            let below = mount.child(field);
            if field == "subPathExpr" && !below.text().is_empty() && !mount.child("subPath").text().is_empty() {
                below.invalid(errors, "subPathExpr and subPath are mutually exclusive");
            }
            relative_path(&Node::new(below.value, all.child(field)), errors);
        }
        propagation(&mount, privileged, &all, errors);
    }
}

/// As [`Node::invalid`], a missing string shown as `""`.
fn text_invalid(node: &Node<'_>, errors: &mut ErrorList, detail: &str) {
    errors.push(Error::invalid(&node.path, node.text(), detail));
}

fn propagation(mount: &Node<'_>, privileged: bool, all: &Path, errors: &mut ErrorList) {
    let mode = Node::new(mount.child("mountPropagation").value, all.child("mountPropagation"));
    mode.optional_one_of(errors, &["Bidirectional", "HostToContainer", "None"]);
    if mode.text() == "Bidirectional" && !privileged {
        mode.forbidden(errors, "Bidirectional mount propagation is available only to privileged containers");
    }
    let recursive = Node::new(mount.child("recursiveReadOnly").value, all.child("recursiveReadOnly"));
    match recursive.text() {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.child("readOnly").flag() {
                recursive.forbidden(errors, "may only be specified when readOnly is true");
            }
            if !matches!(mode.text(), "" | "None") {
                recursive.forbidden(errors, "may only be specified when mountPropagation is None or not specified");
            }
        }
        _ => recursive.optional_one_of(errors, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// A path that stays below where it starts.
pub fn relative_path(path: &Node<'_>, errors: &mut ErrorList) {
    if path.text().starts_with('/') {
        path.invalid(errors, "must be a relative path");
    }
    no_backsteps(path, errors);
}

fn devices(container: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    let (mut names, mut paths) = (Seen::default(), Seen::default());
    let mount_names = texts(container, "volumeMounts", "name");
    let mount_paths = texts(container, "volumeMounts", "mountPath");
    for device in container.items("volumeDevices") {
        let (name, path) = (device.child("name"), device.child("devicePath"));
        name.required(errors, "");
        if !name.text().is_empty() && !names.insert(name.text()) {
            text_invalid(&name, errors, "must be unique");
        }
        match facts.volumes.get(name.text()) {
            None => errors.push(Error::not_found(&name.path, name.text())),
            Some(VolumeKind::Claim) => {}
            Some(_) => text_invalid(
                &name,
                errors,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
        }
        path.required(errors, "");
        if paths.has(path.text()) {
            text_invalid(&path, errors, "must be unique");
        }
        if path.text().split('/').any(|part| part == "..") {
            text_invalid(&path, errors, "can not contain backsteps ('..')");
        } else {
            paths.insert(path.text());
        }
        if mount_names.contains(&name.text()) {
            text_invalid(&name, errors, "must not already exist in volumeMounts");
        }
        if mount_paths.contains(&path.text()) {
            text_invalid(&path, errors, "must not already exist as a path in volumeMounts");
        }
    }
}
