//! Validation of a container's environment, and of references to fields of the pod.

use api::field::{Error, ErrorList};
use api::names;

use super::quantity;
use crate::kinds::check::{Node, no_backsteps};

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
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const CPU_UNITS: [&str; 2] = ["1m", "1"];
const BYTE_UNITS: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

pub fn validate(container: &Node<'_>, errors: &mut ErrorList) {
    for variable in container.items("env") {
        variable.child("name").required_format(errors, names::env_var_name);
        let source = variable.child("valueFrom");
        if source.exists() {
            value_from(&source, !variable.child("value").text().is_empty(), errors);
        }
    }
    let all = container.child("envFrom").path;
    for source in container.items("envFrom") {
        if !source.child("prefix").text().is_empty() {
            source.child("prefix").format(errors, names::env_var_name);
        }
        let refs: Vec<Node<'_>> =
            ["configMapRef", "secretRef"].iter().map(|f| source.child(f)).filter(Node::exists).collect();
        for reference in &refs {
            reference.child("name").required_format(errors, prefix_of_subdomain);
        }
        match refs.len() {
            0 => errors.push(Error::invalid(&all, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(Error::invalid(&all, "", "may not have more than one field specified at a time")),
        }
    }
}

/// Kubernetes checks these names as if something was still to be appended to them.
fn prefix_of_subdomain(name: &str) -> Vec<String> {
    crate::kinds::meta::name_problems(crate::resource::NameRule::DnsSubdomain, name, true)
}

fn value_from(source: &Node<'_>, has_value: bool, errors: &mut ErrorList) {
    let mut sources = 0;
    for field in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let found = source.child(field);
        if !found.exists() {
            continue;
        }
        sources += 1;
        match field {
            "fieldRef" => field_ref(&found, &ENV_FIELDS, errors),
            "resourceFieldRef" => resource_ref(&found, false, errors),
            "fileKeyRef" => file_key(&found, errors),
            _ => {
                found.child("name").format(errors, names::dns1123_subdomain);
                found.child("key").required_format(errors, names::config_map_key);
            }
        }
    }
    let detail = match sources {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        _ if has_value => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(Error::invalid(&source.path, "", detail));
}

fn file_key(reference: &Node<'_>, errors: &mut ErrorList) {
    reference.child("key").required_format(errors, names::env_var_name);
    reference.child("volumeName").required_format(errors, names::dns1123_label);
    if reference.child("path").required(errors, "") {
        no_backsteps(&reference.child("path"), errors);
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
    let version = reference.child("apiVersion").text();
    if version != "v1" {
        return path.invalid(errors, format!("error converting fieldPath: unsupported pod version: {version}"));
    }
    let Some((map, key)) = subscript(path.text()) else {
        const OTHERS: [&str; 5] =
            ["metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"];
        // The name of `nodeName` in the first version of the API.
        let name = if path.text() == "spec.host" { "spec.nodeName" } else { path.text() };
        if !ENV_FIELDS.contains(&name) && !OTHERS.contains(&name) {
            path.invalid(errors, format!("error converting fieldPath: field label not supported: {name}"));
        } else if !supported.contains(&name) {
            errors.push(Error::not_supported(&path.path, name, supported));
        }
        return;
    };
    let problems = match map {
        "metadata.annotations" => names::qualified_name(&key.to_lowercase()),
        "metadata.labels" => names::qualified_name(key),
        _ => {
            let name = path.text();
            return path.invalid(
                errors,
                format!("error converting fieldPath: field label does not support subscript: {name}"),
            );
        }
    };
    for problem in problems {
        let shown = if map == "metadata.annotations" { key.to_lowercase() } else { key.to_owned() };
        errors.push(Error::invalid(&reference.path, shown, problem));
    }
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    let key = rest.strip_suffix("']")?;
    (!map.is_empty()).then_some((map, key))
}

/// `resourceFieldRef`; in volumes the container must be named.
pub fn resource_ref(reference: &Node<'_>, in_volume: bool, errors: &mut ErrorList) {
    let resource = reference.child("resource");
    let name = resource.text();
    let huge = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if in_volume && reference.child("containerName").text().is_empty() {
        reference.child("containerName").missing(errors, "");
    } else if resource.required(errors, "") && !huge && !RESOURCES.contains(&name) {
        errors.push(Error::not_supported(&resource.path, name, &RESOURCES));
    }
    let divisor = reference.child("divisor");
    let Some(amount) = quantity(divisor.value).filter(|amount| !amount.is_zero()) else { return };
    let (units, kind): (&[&str], _) = match name {
        "limits.cpu" | "requests.cpu" => (&CPU_UNITS, "cpu"),
        "limits.memory" | "requests.memory" => (&BYTE_UNITS, "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (&BYTE_UNITS, "local ephemeral storage"),
        _ if huge => (&BYTE_UNITS, "hugepages"),
        _ => return,
    };
    if !units.contains(&amount.to_string().as_str()) {
        let listed = if kind == "cpu" { "1m and 1".to_owned() } else { units.join(", ") };
        let detail = format!("only divisor's values {listed} are supported with the {kind} resource");
        errors.push(Error::invalid(&divisor.path, name, detail));
    }
}
