//! Validation of a pod's spec and of pod templates (`ValidatePodSpec`, `ValidatePodTemplateSpec`):
//! the checks of all parts, in Kubernetes' order.

use api::field::{Error, ErrorList};
use api::names;

use super::container::{self, PodFacts};
use super::{annotations, placement, resources, security, volume, windows};
use crate::kinds::check::{Node, Seen, labels};
use crate::kinds::core::pod::internal::{self, CLAIM};
use crate::kinds::value::{self, annotation};

/// A pod's metadata and spec, as they are checked at creation and at every update.
pub fn validate_pod(pod: &Node<'_>, errors: &mut ErrorList) {
    let spec = pod.child("spec");
    annotations::validate(pod, &pod.child("metadata.annotations").path, errors);
    validate(&spec, Some(pod), errors);
    if spec.child("serviceAccountName").text().is_empty() {
        for source in spec.items("volumes").iter().flat_map(|volume| volume.items("projected.sources")) {
            if source.has("serviceAccountToken") {
                source
                    .child("serviceAccountToken")
                    .forbidden(errors, "must not be specified when serviceAccountName is not set");
            }
        }
    }
    spec.child("terminationGracePeriodSeconds").non_negative(errors);
    for field in ["containers", "initContainers"] {
        for container in spec.items(field) {
            container::trimmed_image(&container, errors);
        }
    }
}

/// The spec of `pod`, or of a template.
fn validate(spec: &Node<'_>, pod: Option<&Node<'_>>, errors: &mut ErrorList) {
    let grace = spec.child("terminationGracePeriodSeconds");
    if !grace.exists() {
        grace.missing(errors, "");
    }
    let name = pod.map(|pod| value::name(pod.value));
    let volumes = volume::validate_all(spec, name, errors);
    let mirror = pod.is_some_and(|pod| annotation(pod.value, annotations::MIRROR).is_some());
    let claims = claims(spec, mirror, errors);
    let facts = PodFacts {
        volumes,
        claims,
        grace_period: value::opt_int(spec.value, "terminationGracePeriodSeconds").unwrap_or(i64::MAX),
        restart_policy: spec.child("restartPolicy").text(),
        os: spec.child("os.name").text(),
        host_users: spec.child("hostUsers").value.as_bool() != Some(false),
    };
    container::validate_all(spec, &facts, errors);
    resources::pod(spec, &facts.claims, errors);
    host_network(spec, pod.is_some(), errors);
    spec.child("restartPolicy").required_one_of(errors, &["Always", "OnFailure", "Never"]);
    spec.child("dnsPolicy").required_one_of(errors, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]);
    labels(&spec.child("nodeSelector"), errors);
    security::pod(spec, errors);
    placement::affinity(&spec.child("affinity"), errors);
    dns(spec, errors);
    gates(spec, errors);
    placement::spread(spec, errors);
    windows::host_process(spec, errors);
    security::host_users(spec, errors);
    hostname_override(spec, errors);
    others(spec, errors);
    windows::os(spec, errors);
    file_volumes(spec, errors);
}

/// The names and numbers that stand for themselves.
fn others(spec: &Node<'_>, errors: &mut ErrorList) {
    let named = |fields: &[&str], check: fn(&str) -> Vec<String>, errors: &mut ErrorList| {
        for field in fields.iter().filter(|field| !spec.child(field).text().is_empty()) {
            spec.child(field).format(errors, check);
        }
    };
    named(&["serviceAccountName", "nodeName"], names::dns1123_subdomain, errors);
    let deadline = spec.child("activeDeadlineSeconds");
    if deadline.exists() && !(1..=i64::from(i32::MAX)).contains(&deadline.int()) {
        deadline.invalid(errors, "must be between 1 and 2147483647, inclusive");
    }
    named(&["hostname", "subdomain"], names::dns1123_label, errors);
    placement::tolerations(spec, errors);
    for alias in spec.items("hostAliases") {
        alias.child("ip").ip(errors);
        for host in alias.items("hostnames") {
            host.format(errors, names::dns1123_subdomain);
        }
    }
    named(&["priorityClassName"], names::dns1123_subdomain, errors);
    if spec.has("runtimeClassName") {
        spec.child("runtimeClassName").format(errors, names::dns1123_subdomain);
    }
    if spec.has("preemptionPolicy") {
        spec.child("preemptionPolicy").required_one_of(errors, &["PreemptLowerPriority", "Never"]);
    }
    overhead(spec, errors);
}

/// Checked as if it was the limits of a container, and named so.
fn overhead(spec: &Node<'_>, errors: &mut ErrorList) {
    if spec.has("overhead") {
        let limits = serde_json::json!({ "limits": spec.child("overhead").value });
        resources::container(&Node::new(&limits, spec.child("overhead").path), &[], errors);
    }
}

/// On the host's network a container's ports are the host's. Templates get theirs from the pod.
fn host_network(spec: &Node<'_>, is_pod: bool, errors: &mut ErrorList) {
    if !spec.child("hostNetwork").flag() {
        return;
    }
    for port in spec.items("containers").iter().flat_map(|container| container.items("ports")) {
        let (host, own) = (port.child("hostPort"), port.child("containerPort").int());
        if (is_pod || host.int() != 0) && host.int() != own {
            host.invalid_int(errors, "must match `containerPort` when `hostNetwork` is true");
        }
    }
}

fn hostname_override(spec: &Node<'_>, errors: &mut ErrorList) {
    let whole = spec.child("hostnameOverride");
    if !whole.exists() {
        return;
    }
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if spec.child(field).flag() {
            whole.forbidden(errors, format!("may not be specified when {field} is true"));
        }
    }
    if whole.text().len() > 64 {
        errors.push(Error::too_long(&whole.path, 64));
    }
    whole.format(errors, names::dns1123_subdomain);
}

fn dns(spec: &Node<'_>, errors: &mut ErrorList) {
    let config = spec.child("dnsConfig");
    let servers = config.items("nameservers");
    if spec.child("dnsPolicy").text() == "None" {
        if !config.exists() {
            return config.missing(errors, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            return config
                .child("nameservers")
                .missing(errors, "must provide at least one DNS nameserver when `dnsPolicy` is None");
        }
    }
    if servers.len() > 3 {
        config.child("nameservers").invalid(errors, "must not have more than 3 nameservers");
    }
    for server in servers {
        server.ip(errors);
    }
    let searches = config.items("searches");
    if searches.len() > 32 {
        config.child("searches").invalid(errors, "must not have more than 32 search paths");
    }
    if searches.iter().map(|search| search.text().len() + 1).sum::<usize>() > 2049 {
        config
            .child("searches")
            .invalid(errors, "must not have more than 2048 characters (including spaces) in the search list");
    }
    for search in searches.iter().filter(|search| search.text() != ".") {
        let bare = search.text().strip_suffix('.').unwrap_or(search.text());
        for problem in names::dns1123_subdomain_with_underscore(bare) {
            errors.push(Error::invalid(&search.path, bare, problem));
        }
    }
    for option in config.items("options") {
        if option.child("name").text().is_empty() {
            option.missing(errors, "must not be empty");
        }
    }
}

fn gates(spec: &Node<'_>, errors: &mut ErrorList) {
    for gate in spec.items("readinessGates") {
        gate.child("conditionType").format(errors, names::qualified_name);
    }
    let mut seen = Seen::default();
    for gate in spec.items("schedulingGates") {
        let name = gate.child("name").text();
        for problem in names::qualified_name(name) {
            errors.push(Error::invalid(&gate.path, name, problem));
        }
        if !seen.insert(name) {
            errors.push(Error::duplicate(&gate.path, name));
        }
    }
}

/// Resource claims of the pod; their names.
fn claims<'a>(spec: &Node<'a>, mirror: bool, errors: &mut ErrorList) -> Vec<&'a str> {
    let mut seen = Seen::default();
    let claims = spec.items("resourceClaims");
    for claim in &claims {
        if mirror {
            errors.push(Error::forbidden(&api::field::Path::unnamed(), "static pods do not support resource claims"));
            continue;
        }
        let name = claim.child("name");
        if name.text().is_empty() {
            name.missing(errors, "");
        } else if seen.has(name.text()) {
            name.duplicate(errors);
        } else {
            name.format(errors, names::dns1123_label);
            seen.insert(name.text());
        }
        match (claim.has("resourceClaimName"), claim.has("resourceClaimTemplateName")) {
            (true, true) => errors.push(internal::invalid(
                &claim.path,
                claim.value,
                CLAIM,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            )),
            (false, false) => errors.push(internal::invalid(
                &claim.path,
                claim.value,
                CLAIM,
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            )),
            _ => {}
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if claim.has(field) {
                claim.child(field).format(errors, names::dns1123_subdomain);
            }
        }
    }
    claims.iter().map(|claim| claim.child("name").text()).filter(|name| !name.is_empty()).collect()
}

/// Files that hold environment variables lie in an `emptyDir`.
fn file_volumes(spec: &Node<'_>, errors: &mut ErrorList) {
    let volumes = spec.items("volumes");
    for container in security::all_containers(spec) {
        for reference in container.items("env").iter().map(|variable| variable.child("valueFrom.fileKeyRef")) {
            let name = reference.child("volumeName");
            if !reference.exists() {
                continue;
            }
            match volumes.iter().find(|volume| volume.child("name").text() == name.text()) {
                None => errors.push(Error::not_found(&name.path, name.text())),
                Some(volume) if !volume.has("emptyDir") => {
                    name.invalid_text(errors, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    }
}

/// `PodTemplateSpec`: labels, annotations and spec; no name is needed. Errors name labels and
/// annotations as if they were the template's own fields, as Kubernetes' do.
pub fn validate_template(template: &Node<'_>, errors: &mut ErrorList) {
    let own =
        |field: &str| Node::new(value::at(template.value, &format!("metadata.{field}")), template.path.child(field));
    labels(&own("labels"), errors);
    crate::kinds::meta::annotations(&own("annotations"), errors);
    annotations::validate(template, &template.path.child("annotations"), errors);
    validate(&template.child("spec"), None, errors);
    annotations::match_fields(template, errors);
    if !template.items("spec.ephemeralContainers").is_empty() {
        template
            .child("spec.ephemeralContainers")
            .forbidden(errors, "ephemeral containers not allowed in pod template");
    }
}
