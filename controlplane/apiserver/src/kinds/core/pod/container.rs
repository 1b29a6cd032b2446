//! Validation of containers of all three roles.
//!
//! Neighbours: [`super::env`], [`super::mounts`], [`super::resources`], [`super::probe`] and
//! [`super::security`] for their parts, [`super::volume`] for what mounts refer to.

use std::collections::HashMap;

use api::field::{Error, ErrorList, Path};
use api::names;

pub use super::resources::resource_quantity;
use super::volume::VolumeKind;
use super::{env, mounts, probe, resources, security};
use crate::kinds::check::{Node, Seen};

/// What a container's checks need to know of its pod.
pub struct PodFacts<'a> {
    /// Volumes that are sound, by name.
    pub volumes: HashMap<&'a str, VolumeKind>,
    /// Names of the pod's resource claims.
    pub claims: Vec<&'a str>,
    /// Seconds.
    pub grace_period: i64,
    pub restart_policy: &'a str,
    /// `spec.os.name`
    pub os: &'a str,
    /// Users of the pod are users of the host.
    pub host_users: bool,
}

/// Containers of all roles in a pod spec.
pub fn validate_all(spec: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    regular(spec, facts, errors);
    init(spec, facts, errors);
    ephemeral(spec, facts, errors);
}

fn regular(spec: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    let containers = spec.items("containers");
    if containers.is_empty() {
        return spec.child("containers").missing(errors, "");
    }
    let mut names = Seen::default();
    for container in &containers {
        common(container, facts, errors);
        unique(container, &mut names, errors);
        probe::lifecycle(&container.child("lifecycle"), facts, errors);
        probe::validate_all(container, errors);
        restart_policy(container, errors);
    }
    let mut ports = Seen::default();
    for container in &containers {
        host_ports(container, &container.path, &mut ports, errors);
    }
}

fn init(spec: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    let mut names = Seen::default();
    for container in spec.items("containers") {
        names.insert(container.child("name").text());
    }
    let first = spec.child("initContainers").path.index(0);
    for container in spec.items("initContainers") {
        let sidecar = container.child("restartPolicy").text() == "Always";
        common(&container, facts, errors);
        restart_policy(&container, errors);
        if !container.child("name").text().is_empty() {
            unique(&container, &mut names, errors);
        }
        // They run one by one; Kubernetes looks at each as if it was the only one.
        host_ports(&container, &first, &mut Seen::default(), errors);
        if sidecar {
            probe::lifecycle(&container.child("lifecycle"), facts, errors);
            probe::validate_all(&container, errors);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.has(field) {
                container
                    .child(field)
                    .forbidden(errors, "may not be set for init containers without restartPolicy=Always");
            }
        }
        for policy in container.items("resizePolicy") {
            let policy = policy.child("restartPolicy");
            if policy.text() == "RestartContainer" {
                policy.invalid(errors, "must not be set to 'RestartContainer' for non-sidecar initContainers");
            }
        }
    }
}

fn ephemeral(spec: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    let mut names = Seen::default();
    let mut targets = Vec::new();
    for field in ["containers", "initContainers"] {
        for container in spec.items(field) {
            names.insert(container.child("name").text());
            targets.push(container.child("name").text());
        }
    }
    for container in spec.items("ephemeralContainers") {
        common(&container, facts, errors);
        trimmed_image(&container, errors);
        unique(&container, &mut names, errors);
        let target = container.child("targetContainerName");
        if !target.text().is_empty() && !targets.contains(&target.text()) {
            errors.push(Error::not_found(&target.path, target.text()));
        }
        only_what_helps(&container, errors);
    }
}

/// What no container for debugging may have.
fn only_what_helps(container: &Node<'_>, errors: &mut ErrorList) {
    const REFUSED: &str = "cannot be set for an Ephemeral Container";
    for field in [
        "ports",
        "resources",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
    ] {
        let found = container.child(field);
        let set = match found.value {
            serde_json::Value::Array(items) => !items.is_empty(),
            serde_json::Value::Object(fields) => field != "resources" || !fields.is_empty(),
            other => !other.is_null(),
        };
        if set {
            found.forbidden(errors, REFUSED);
        }
    }
    for mount in container.items("volumeMounts") {
        for field in ["subPath", "subPathExpr"] {
            if !mount.child(field).text().is_empty() {
                mount.child(field).forbidden(errors, REFUSED);
            }
        }
    }
}

/// No name twice (`names` are those before).
fn unique(container: &Node<'_>, names: &mut Seen, errors: &mut ErrorList) {
    let name = container.child("name");
    if !names.insert(name.text()) {
        errors.push(Error::duplicate(&name.path, name.text()));
    }
}

/// What holds for every container.
fn common(container: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    container.child("name").required_format(errors, names::dns1123_label);
    container.child("image").required(errors, "");
    container.child("terminationMessagePolicy").required_one_of(errors, &["File", "FallbackToLogsOnError"]);
    ports(container, errors);
    env::validate(container, errors);
    mounts::validate(container, facts, errors);
    container.child("imagePullPolicy").required_one_of(errors, &["Always", "IfNotPresent", "Never"]);
    resources::container(&container.child("resources"), &facts.claims, errors);
    resize_policy(container, facts.restart_policy, errors);
    security::container(container, facts.host_users, errors);
}

/// Of pods, not of templates: a blank image is a placeholder there.
pub fn trimmed_image(container: &Node<'_>, errors: &mut ErrorList) {
    let image = container.child("image");
    if image.text().trim() != image.text() {
        image.invalid(errors, "must not have leading or trailing whitespace");
    }
}

fn restart_policy(container: &Node<'_>, errors: &mut ErrorList) {
    let policy = container.child("restartPolicy");
    let rules = container.items("restartPolicyRules");
    if policy.exists() {
        policy.one_of(errors, &["Always", "Never", "OnFailure"]);
    } else if !rules.is_empty() {
        policy.missing(errors, "must specify restartPolicy when restart rules are used");
        return;
    }
    if rules.len() > 20 {
        errors.push(Error::too_many(&container.child("restartPolicyRules").path, rules.len(), 20));
    }
    for rule in rules {
        rule.child("action").one_of(errors, &["Restart", "RestartAllContainers"]);
        let codes = rule.child("exitCodes");
        if !codes.exists() {
            codes.missing(errors, "must be specified");
            continue;
        }
        codes.child("operator").one_of(errors, &["In", "NotIn"]);
        let values = codes.child("values");
        if values.len() > 255 {
            errors.push(Error::too_many(&values.path, values.len(), 255));
        }
    }
}

fn resize_policy(container: &Node<'_>, pod_policy: &str, errors: &mut ErrorList) {
    let all = container.child("resizePolicy").path;
    let mut seen = Seen::default();
    for policy in container.items("resizePolicy") {
        let resource = Node::new(policy.child("resourceName").value, all.clone());
        let restart = Node::new(policy.child("restartPolicy").value, all.clone());
        if !seen.insert(resource.text()) {
            errors.push(Error::duplicate(&policy.path, resource.text()));
        }
        resource.required_one_of(errors, &["cpu", "memory"]);
        restart.required_one_of(errors, &["NotRequired", "RestartContainer"]);
        if pod_policy == "Never" && restart.text() != "NotRequired" {
            restart.invalid_text(errors, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn ports(container: &Node<'_>, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for port in container.items("ports") {
        let name = port.child("name");
        if !name.text().is_empty() && name.format(errors, names::port_name) && !seen.insert(name.text()) {
            name.duplicate(errors);
        }
        let number = port.child("containerPort");
        if number.int() == 0 {
            number.missing(errors, "");
        } else {
            number.port_number(errors);
        }
        if port.child("hostPort").int() != 0 {
            port.child("hostPort").port_number(errors);
        }
        port.child("protocol").required_one_of(errors, &["SCTP", "TCP", "UDP"]);
    }
}

/// No port of the host twice; `path` is where errors say the container is.
fn host_ports(container: &Node<'_>, path: &Path, seen: &mut Seen, errors: &mut ErrorList) {
    for (index, port) in container.items("ports").iter().enumerate() {
        let number = port.child("hostPort").int();
        if number == 0 {
            continue;
        }
        let key = format!("{}/{}/{number}", port.child("protocol").text(), port.child("hostIP").text());
        if !seen.insert(key.clone()) {
            errors.push(Error::duplicate(&path.child("ports").index(index).child("hostPort"), key));
        }
    }
}
