//! Validation of containers: ports, environment, mounts, resources, pull policy.
//!
//! Neighbours: [`super::probe`] for probes and hooks, [`super::security`] for security contexts,
//! [`super::volume`] for what mounts refer to.

use std::collections::HashMap;

use api::field::{Error, ErrorList};
use api::names;
use api::quantity::Quantity;

use super::{probe, quantity, security};
use crate::kinds::check::{Node, Seen, no_backsteps};

/// What a container's checks need to know of its pod.
pub struct PodFacts<'a> {
    /// Volume names; the value says whether it is a PersistentVolumeClaim's (block devices).
    pub volumes: HashMap<&'a str, bool>,
    pub host_network: bool,
    /// Seconds.
    pub grace_period: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Regular,
    Init,
    Ephemeral,
}

/// Containers of all roles in a pod spec.
pub fn validate_all(spec: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    let mut names = Seen::default();
    if spec.items("containers").is_empty() {
        spec.child("containers").missing(errors, "");
    }
    for (field, role) in
        [("containers", Role::Regular), ("initContainers", Role::Init), ("ephemeralContainers", Role::Ephemeral)]
    {
        for container in spec.items(field) {
            let name = container.child("name");
            if name.required_format(errors, names::dns1123_label) && !names.insert(name.text()) {
                name.duplicate(errors);
            }
            validate(&container, role, facts, errors);
        }
    }
    for field in ["containers", "initContainers"] {
        unique_host_ports(spec, field, errors);
    }
}

fn validate(container: &Node<'_>, role: Role, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    image(container, errors);
    container.child("terminationMessagePolicy").required_one_of(errors, &["File", "FallbackToLogsOnError"]);
    container.child("imagePullPolicy").required_one_of(errors, &["Always", "IfNotPresent", "Never"]);
    environment(container, errors);
    mounts(container, facts, errors);
    devices(container, facts, errors);
    security::container(container, errors);
    if role == Role::Ephemeral {
        return ephemeral(container, errors);
    }
    ports(container, facts.host_network, errors);
    resources(&container.child("resources"), true, errors);
    resize_policy(container, errors);
    restart_policy(container, errors);
    let sidecar = container.child("restartPolicy").text() == "Always";
    if role == Role::Init && !sidecar {
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if container.has(field) {
                container
                    .child(field)
                    .forbidden(errors, "may not be set for init containers without restartPolicy=Always");
            }
        }
        return;
    }
    probe::lifecycle(&container.child("lifecycle"), facts.grace_period, errors);
    probe::validate_all(container, errors);
}

fn image(container: &Node<'_>, errors: &mut ErrorList) {
    let image = container.child("image");
    if image.required(errors, "") && image.text().trim() != image.text() {
        image.invalid(errors, "must not have leading or trailing whitespace");
    }
}

fn ephemeral(container: &Node<'_>, errors: &mut ErrorList) {
    for field in
        ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "restartPolicy", "resizePolicy"]
    {
        let found = container.child(field);
        let set = match found.value {
            serde_json::Value::Array(items) => !items.is_empty(),
            other => !other.is_null(),
        };
        if set {
            found.forbidden(errors, "cannot be set for an Ephemeral Container");
        }
    }
    if !container.child("resources").is_empty() {
        container.child("resources").forbidden(errors, "cannot be set for an Ephemeral Container");
    }
    for mount in container.items("volumeMounts") {
        for field in ["subPath", "subPathExpr"] {
            if !mount.child(field).text().is_empty() {
                mount.child(field).forbidden(errors, "cannot be set for an Ephemeral Container");
            }
        }
    }
}

fn restart_policy(container: &Node<'_>, errors: &mut ErrorList) {
    container.child("restartPolicy").optional_one_of(errors, &["Always", "Never", "OnFailure"]);
}

fn resize_policy(container: &Node<'_>, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for policy in container.items("resizePolicy") {
        let resource = policy.child("resourceName");
        resource.one_of(errors, &["cpu", "memory"]);
        policy.child("restartPolicy").one_of(errors, &["NotRequired", "RestartContainer"]);
        if !seen.insert(resource.text()) {
            errors.push(Error::duplicate(&policy.path, resource.text()));
        }
    }
}

fn ports(container: &Node<'_>, host_network: bool, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for port in container.items("ports") {
        let name = port.child("name");
        if !name.text().is_empty() {
            let problems = names::port_name(name.text());
            for problem in &problems {
                name.invalid(errors, problem.clone());
            }
            if problems.is_empty() && !seen.insert(name.text()) {
                name.duplicate(errors);
            }
        }
        let number = port.child("containerPort");
        if number.int() == 0 {
            number.missing(errors, "");
        } else {
            number.port_number(errors);
        }
        let host = port.child("hostPort");
        if host.int() != 0 {
            host.port_number(errors);
            if host_network && host.int() != number.int() {
                number.invalid(errors, "must match `hostPort` when `hostNetwork` is true");
            }
        } else if host_network {
            number.invalid(errors, "must match `hostPort` when `hostNetwork` is true");
        }
        if !port.child("hostIP").text().is_empty() {
            port.child("hostIP").ip(errors);
        }
        port.child("protocol").required_one_of(errors, &["SCTP", "TCP", "UDP"]);
    }
}

fn unique_host_ports(spec: &Node<'_>, field: &str, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for container in spec.items(field) {
        for port in container.items("ports") {
            let number = port.child("hostPort");
            if number.int() == 0 {
                continue;
            }
            let key = format!("{}/{}/{}", port.child("protocol").text(), port.child("hostIP").text(), number.int());
            if !seen.insert(key.clone()) {
                errors.push(Error::duplicate(&number.path, key));
            }
        }
    }
}

const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const ENV_RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

fn environment(container: &Node<'_>, errors: &mut ErrorList) {
    for variable in container.items("env") {
        variable.child("name").required_format(errors, names::env_var_name);
        let source = variable.child("valueFrom");
        if source.exists() {
            env_source(&source, !variable.child("value").text().is_empty(), errors);
        }
    }
    for source in container.items("envFrom") {
        if !source.child("prefix").text().is_empty() {
            source.child("prefix").format(errors, names::env_var_name);
        }
        let refs: Vec<Node<'_>> =
            ["configMapRef", "secretRef"].iter().map(|f| source.child(f)).filter(Node::exists).collect();
        for reference in &refs {
            reference.child("name").required_format(errors, names::dns1123_subdomain);
        }
        match refs.len() {
            0 => errors.push(Error::invalid(&source.path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(Error::invalid(&source.path, "", "may not have more than one field specified at a time")),
        }
    }
}

fn env_source(source: &Node<'_>, has_value: bool, errors: &mut ErrorList) {
    let mut sources = 0;
    if source.has("fieldRef") {
        sources += 1;
        field_ref(&source.child("fieldRef"), &ENV_FIELDS, errors);
    }
    if source.has("resourceFieldRef") {
        sources += 1;
        resource_ref(&source.child("resourceFieldRef"), false, errors);
    }
    for field in ["configMapKeyRef", "secretKeyRef"] {
        if source.has(field) {
            sources += 1;
            source.child(field).child("key").required_format(errors, names::config_map_key);
        }
    }
    if source.has("fileKeyRef") {
        sources += 1;
        for field in ["volumeName", "path", "key"] {
            source.child("fileKeyRef").child(field).required(errors, "");
        }
    }
    if sources == 0 {
        errors.push(Error::invalid(
            &source.path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ));
    } else if has_value {
        errors.push(Error::invalid(&source.path, "", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(Error::invalid(&source.path, "", "may not have more than one field specified at a time"));
    }
}

/// `metadata.labels['key']`, `metadata.annotations['key']` or one of `supported`.
pub fn field_ref(reference: &Node<'_>, supported: &[&str], errors: &mut ErrorList) {
    if !reference.child("apiVersion").required(errors, "") {
        return;
    }
    let path = reference.child("fieldPath");
    if !path.required(errors, "") {
        return;
    }
    if let Some((map, key)) = subscript(path.text()) {
        match map {
            "metadata.annotations" => {
                if let Some(problem) = names::qualified_name(&key.to_lowercase()) {
                    path.invalid(errors, problem);
                }
            }
            "metadata.labels" => {
                if let Some(problem) = names::qualified_name(key) {
                    path.invalid(errors, problem);
                }
            }
            _ => path.invalid(
                errors,
                format!("error converting fieldPath: field label does not support subscript: {}", path.text()),
            ),
        }
    } else if !supported.contains(&path.text()) {
        errors.push(Error::not_supported(&path.path, path.text(), supported));
    }
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// `resourceFieldRef`; in volumes the container must be named.
pub fn resource_ref(reference: &Node<'_>, in_volume: bool, errors: &mut ErrorList) {
    if in_volume {
        reference.child("containerName").required(errors, "");
    }
    let resource = reference.child("resource");
    if !resource.required(errors, "") {
        return;
    }
    let name = resource.text();
    let huge = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if !huge && !ENV_RESOURCES.contains(&name) {
        errors.push(Error::not_supported(&resource.path, name, &ENV_RESOURCES));
        return;
    }
    let divisor = reference.child("divisor");
    let Some(amount) = quantity(divisor.value) else { return };
    let allowed: &[&str] = if name.ends_with(".cpu") {
        &["0", "1m", "1"]
    } else {
        &["0", "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"]
    };
    if !allowed.contains(&amount.to_string().as_str()) {
        let words = if name.ends_with(".cpu") {
            "only divisor's values 1m and 1 are supported with the cpu resource"
        } else {
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource"
        };
        divisor.invalid(errors, words);
    }
}

fn mounts(container: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    let mut paths = Seen::default();
    let device_paths: Vec<&str> =
        container.items("volumeDevices").iter().map(|d| d.child("devicePath").text()).collect();
    let privileged = container.child("securityContext.privileged").flag();
    for mount in container.items("volumeMounts") {
        let name = mount.child("name");
        if name.required(errors, "") && !facts.volumes.contains_key(name.text()) {
            errors.push(Error::not_found(&name.path, name.text()));
        }
        let path = mount.child("mountPath");
        path.required(errors, "");
        if !paths.insert(path.text()) {
            path.invalid(errors, "must be unique");
        }
        if device_paths.contains(&path.text()) {
            path.invalid(errors, "must not already exist as a path in volumeDevices");
        }
        for field in ["subPath", "subPathExpr"] {
            relative_path(&mount.child(field), errors);
        }
        if !mount.child("subPath").text().is_empty() && !mount.child("subPathExpr").text().is_empty() {
            mount.child("subPathExpr").invalid(errors, "subPathExpr and subPath are mutually exclusive");
        }
        propagation(&mount, privileged, errors);
    }
}

fn propagation(mount: &Node<'_>, privileged: bool, errors: &mut ErrorList) {
    let mode = mount.child("mountPropagation");
    mode.optional_one_of(errors, &["Bidirectional", "HostToContainer", "None"]);
    if mode.text() == "Bidirectional" && !privileged {
        mode.forbidden(errors, "Bidirectional mount propagation is available only to privileged containers");
    }
    let recursive = mount.child("recursiveReadOnly");
    if !recursive.exists() || recursive.text() == "Disabled" {
        return;
    }
    recursive.one_of(errors, &["Disabled", "Enabled", "IfPossible"]);
    if !mount.child("readOnly").flag() {
        recursive.forbidden(errors, "may only be specified when readOnly is true");
    }
    if !matches!(mode.text(), "" | "None") {
        recursive.forbidden(errors, "may only be specified when mountPropagation is None or not specified");
    }
}

/// A path that stays below where it starts.
pub fn relative_path(path: &Node<'_>, errors: &mut ErrorList) {
    if path.text().is_empty() {
        return;
    }
    if path.text().starts_with('/') {
        path.invalid(errors, "must be a relative path");
    }
    no_backsteps(path, errors);
}

fn devices(container: &Node<'_>, facts: &PodFacts<'_>, errors: &mut ErrorList) {
    let (mut names, mut paths) = (Seen::default(), Seen::default());
    for device in container.items("volumeDevices") {
        let name = device.child("name");
        if name.required(errors, "") {
            if !names.insert(name.text()) {
                name.invalid(errors, "must be unique");
            }
            match facts.volumes.get(name.text()) {
                None => errors.push(Error::not_found(&name.path, name.text())),
                Some(false) => name.invalid(
                    errors,
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ),
                Some(true) => {}
            }
        }
        let path = device.child("devicePath");
        if path.required(errors, "") {
            no_backsteps(&path, errors);
            if !paths.insert(path.text()) {
                path.invalid(errors, "must be unique");
            }
        }
    }
}

/// `ResourceRequirements`; `container` tells a container's from a pod's own.
pub fn resources(resources: &Node<'_>, container: bool, errors: &mut ErrorList) {
    let mut named = Vec::new();
    for side in ["limits", "requests"] {
        for (name, amount) in resources.entries(side) {
            if container {
                container_resource_name(name, &amount, errors);
            } else if !(matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")) {
                errors.push(Error::not_supported(&amount.path, name, &["cpu", "hugepages-", "memory"]));
            }
            resource_quantity(name, &amount, errors);
            named.push(name);
        }
    }
    let requests = resources.child("requests");
    for (name, amount) in resources.entries("requests") {
        let limit = resources.child("limits").value.get(name).and_then(quantity);
        let Some(asked) = quantity(amount.value) else { continue };
        match limit {
            Some(limit) if !overcommits(name) && limit != asked => {
                errors.push(Error::invalid(
                    &requests.path,
                    asked.to_string(),
                    format!("must be equal to {name} limit of {limit}"),
                ));
            }
            Some(limit) if asked > limit => {
                errors.push(Error::invalid(
                    &requests.path,
                    asked.to_string(),
                    format!("must be less than or equal to {name} limit of {limit}"),
                ));
            }
            None if !overcommits(name) => {
                resources.child("limits").missing(errors, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
    let huge = named.iter().any(|name| name.starts_with("hugepages-"));
    if container && huge && !named.iter().any(|name| matches!(*name, "cpu" | "memory")) {
        resources.forbidden(errors, "HugePages require cpu or memory");
    }
}

/// Resources whose request may be below their limit.
fn overcommits(name: &str) -> bool {
    !name.contains('/') && !name.starts_with("hugepages-")
}

fn container_resource_name(name: &str, node: &Node<'_>, errors: &mut ErrorList) {
    if let Some(problem) = names::qualified_name(name) {
        errors.push(Error::invalid(&node.path, name, problem));
    } else if !name.contains('/') {
        if !(matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")) {
            errors.push(Error::invalid(&node.path, name, "must be a standard resource for containers"));
        }
    } else if name.starts_with("requests.")
        || (name.split_once('/').is_some_and(|(prefix, _)| prefix.contains("kubernetes.io")))
    {
        errors.push(Error::invalid(&node.path, name, "doesn't follow extended resource name standard"));
    }
}

/// Not negative, and whole where only whole things can be counted.
pub fn resource_quantity(name: &str, node: &Node<'_>, errors: &mut ErrorList) {
    let Some(amount) = quantity(node.value) else {
        return node.invalid(
            errors,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        );
    };
    if amount < Quantity::ZERO {
        errors.push(Error::invalid(&node.path, amount.to_string(), crate::kinds::check::NON_NEGATIVE));
    }
    if !overcommits(name) && !amount.is_integer() {
        errors.push(Error::invalid(&node.path, amount.to_string(), "must be an integer"));
    }
}
