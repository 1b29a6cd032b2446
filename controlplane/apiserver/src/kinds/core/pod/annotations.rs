//! Validation of annotations that mean something to a pod: older forms of fields, and the mirror of
//! a static pod.

use api::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::security::all_containers;
use crate::kinds::check::Node;
use crate::kinds::value::{annotation, entries};

pub const MIRROR: &str = "kubernetes.io/config.mirror";
pub const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
pub const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
pub const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Annotations of `owner` (a pod or a template), at `path`.
pub fn validate(owner: &Node<'_>, path: &Path, errors: &mut ErrorList) {
    let spec = owner.child("spec");
    if let Some(mirror) = annotation(owner.value, MIRROR)
        && spec.child("nodeName").text().is_empty()
    {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(Error::invalid(&path.key(MIRROR), mirror, detail));
    }
    if let Some(cost) = annotation(owner.value, DELETION_COST)
        && !is_cost(cost)
    {
        errors.push(Error::invalid(&path.key(DELETION_COST), cost, "must be a 32bit integer"));
    }
    let known: Vec<&str> = all_containers(&spec).iter().map(|container| container.child("name").text()).collect();
    for (key, value) in entries(owner.value, "metadata.annotations") {
        let profile = value.as_str().unwrap_or("");
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            seccomp(profile, &path.child(key), errors);
        }
        let Some(container) = key.strip_prefix(APP_ARMOR) else { continue };
        if !known.contains(&container) {
            errors.push(Error::invalid(&path.key(key), container, "container not found"));
        }
        if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
            let detail = format!("invalid AppArmor profile name: {profile:?}");
            errors.push(Error::invalid(&path.key(key), profile, detail));
        }
    }
}

/// A number as Go writes it: no plus, no zeros in front.
fn is_cost(text: &str) -> bool {
    text == "0" || text.starts_with(|c: char| c == '-' || ('1'..='9').contains(&c)) && text.parse::<i32>().is_ok()
}

fn seccomp(profile: &str, path: &Path, errors: &mut ErrorList) {
    if matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        return;
    }
    match profile.strip_prefix("localhost/") {
        Some(file) => {
            let file = Value::from(file);
            super::mounts::relative_path(&Node::new(&file, path.clone()), errors);
        }
        None => errors.push(Error::invalid(path, profile, "must be a valid seccomp profile")),
    }
}

/// What annotations say of profiles is what the fields say.
pub fn match_fields(owner: &Node<'_>, errors: &mut ErrorList) {
    let spec = owner.child("spec");
    let pod_seccomp = spec.child("securityContext.seccompProfile");
    matches(owner, "seccomp", SECCOMP_POD, &pod_seccomp, &pod_seccomp.path, errors);
    let containers = all_containers(&spec);
    for container in &containers {
        let key = format!("{SECCOMP_CONTAINER}{}", container.child("name").text());
        let field = container.child("securityContext.seccompProfile");
        matches(owner, "seccomp", &key, &field, &field.path, errors);
    }
    if spec.child("os.name").text() == "windows" {
        return;
    }
    for container in &containers {
        let key = format!("{APP_ARMOR}{}", container.child("name").text());
        let own = container.child("securityContext.appArmorProfile");
        let path = own.path.clone();
        let field = if own.exists() { own } else { spec.child("securityContext.appArmorProfile") };
        matches(owner, "apparmor", &key, &field, &path, errors);
    }
}

fn matches(owner: &Node<'_>, what: &str, key: &str, field: &Node<'_>, path: &Path, errors: &mut ErrorList) {
    let Some(annotation) = annotation(owner.value, key).filter(|_| field.exists()) else { return };
    let local = annotation.strip_prefix("localhost/");
    let same_type = match field.child("type").text() {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" => annotation == "runtime/default" || what == "seccomp" && annotation == "docker/default",
        "Localhost" => local.is_some(),
        _ => true,
    };
    if !same_type {
        let detail = format!("{what} type in annotation and field must match");
        errors.push(Error::forbidden(&path.child("type"), detail));
    } else if field.child("type").text() == "Localhost" && local != field.child("localhostProfile").value.as_str() {
        let detail = format!("{what} profile in annotation and field must match");
        errors.push(Error::forbidden(&path.child("localhostProfile"), detail));
    }
}

/// Mirrors and AppArmor annotations stay what they are.
pub fn unchanged(new: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let what = |key: &str| match key {
        MIRROR => Some("mirror pod annotation"),
        key => key.starts_with(APP_ARMOR).then_some("AppArmor annotations"),
    };
    for (key, value) in entries(old, "metadata.annotations") {
        if let Some(what) = what(key)
            && annotation(new, key) != value.as_str()
        {
            errors.push(Error::forbidden(&path.key(key), format!("may not remove or update {what}")));
        }
    }
    for (key, _) in entries(new, "metadata.annotations") {
        if let Some(what) = what(key)
            && annotation(old, key).is_none()
        {
            errors.push(Error::forbidden(&path.key(key), format!("may not add {what}")));
        }
    }
}
