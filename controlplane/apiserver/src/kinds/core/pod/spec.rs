//! Validation of a pod's spec and of pod templates (`ValidatePodSpec`, `ValidatePodTemplateSpec`).

use api::field::{Error, ErrorList};
use api::names;

use super::container::{self, PodFacts};
use super::{placement, security, volume};
use crate::kinds::check::{Node, Seen, labels, parse_ip};
use crate::kinds::meta::annotations;
use crate::kinds::value;

/// The spec of a pod or of a pod template.
pub fn validate(spec: &Node<'_>, errors: &mut ErrorList) {
    let grace = value::opt_int(spec.value, "terminationGracePeriodSeconds").unwrap_or(30);
    let facts = PodFacts {
        volumes: volume::validate_all(spec, errors),
        host_network: spec.child("hostNetwork").flag(),
        grace_period: grace,
    };
    container::validate_all(spec, &facts, errors);
    if spec.has("resources") {
        container::resources(&spec.child("resources"), false, errors);
    }
    spec.child("restartPolicy").required_one_of(errors, &["Always", "Never", "OnFailure"]);
    dns(spec, errors);
    security::pod(spec, errors);
    placement::validate(spec, errors);
    names_of_others(spec, errors);
    host_aliases(spec, errors);
    gates(spec, errors);
    let deadline = spec.child("activeDeadlineSeconds");
    if deadline.exists() && !(1..=i64::from(i32::MAX)).contains(&deadline.int()) {
        deadline.invalid(errors, "must be between 1 and 2147483647, inclusive");
    }
    spec.child("preemptionPolicy").optional_one_of(errors, &["Never", "PreemptLowerPriority"]);
    if spec.has("os") {
        spec.child("os.name").required_one_of(errors, &["linux", "windows"]);
    }
    for (name, amount) in spec.entries("overhead") {
        container::resource_quantity(name, &amount, errors);
    }
    claims(spec, errors);
}

fn names_of_others(spec: &Node<'_>, errors: &mut ErrorList) {
    for field in ["serviceAccountName", "nodeName", "priorityClassName"] {
        if !spec.child(field).text().is_empty() {
            spec.child(field).format(errors, names::dns1123_subdomain);
        }
    }
    if spec.has("runtimeClassName") {
        spec.child("runtimeClassName").format(errors, names::dns1123_subdomain);
    }
    for field in ["hostname", "subdomain"] {
        if !spec.child(field).text().is_empty() {
            spec.child(field).format(errors, names::dns1123_label);
        }
    }
    let whole = spec.child("hostnameOverride");
    if whole.exists() {
        whole.format(errors, names::dns1123_subdomain);
        if whole.text().len() > 64 {
            errors.push(Error::too_long(&whole.path, 64));
        }
        if spec.child("setHostnameAsFQDN").flag() {
            whole.forbidden(errors, "may not be set when `setHostnameAsFQDN` is true");
        }
        if spec.child("hostNetwork").flag() {
            whole.forbidden(errors, "may not be set when `hostNetwork` is true");
        }
    }
    if !spec.child("schedulerName").text().is_empty() {
        spec.child("schedulerName").format(errors, names::dns1123_subdomain);
    }
}

fn dns(spec: &Node<'_>, errors: &mut ErrorList) {
    let (policy, config) = (spec.child("dnsPolicy"), spec.child("dnsConfig"));
    policy.required_one_of(errors, &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]);
    let servers = config.items("nameservers");
    if policy.text() == "None" {
        if !config.exists() {
            return config.missing(errors, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_empty() {
            config
                .child("nameservers")
                .missing(errors, "must provide at least one DNS nameserver when `dnsPolicy` is None");
        }
    }
    if servers.len() > 3 {
        config.child("nameservers").invalid(errors, "must not have more than 3 nameservers");
    }
    for server in servers {
        if parse_ip(server.text()).is_none() {
            server.ip(errors);
        }
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
    for search in searches {
        // A lone dot and underscores are names that resolvers take.
        let bare = search.text().strip_suffix('.').unwrap_or(search.text()).replace('_', "x");
        if (!bare.is_empty() || search.text() != ".")
            && let Some(problem) = names::dns1123_subdomain(&bare)
        {
            search.invalid(errors, problem);
        }
    }
    for option in config.items("options") {
        option.child("name").required(errors, "must not be empty");
    }
}

fn host_aliases(spec: &Node<'_>, errors: &mut ErrorList) {
    for alias in spec.items("hostAliases") {
        alias.child("ip").ip(errors);
        for host in alias.items("hostnames") {
            host.format(errors, names::dns1123_subdomain);
        }
    }
}

fn gates(spec: &Node<'_>, errors: &mut ErrorList) {
    for gate in spec.items("readinessGates") {
        gate.child("conditionType").format(errors, names::qualified_name);
    }
    let mut seen = Seen::default();
    let gates = spec.items("schedulingGates");
    for gate in &gates {
        let name = gate.child("name").text();
        if let Some(problem) = names::qualified_name(name) {
            errors.push(Error::invalid(&gate.path, name, problem));
        }
        if !seen.insert(name) {
            errors.push(Error::duplicate(&gate.path, name));
        }
    }
    if !gates.is_empty() && !spec.child("nodeName").text().is_empty() {
        spec.child("nodeName").forbidden(errors, "cannot be set until all schedulingGates have been cleared");
    }
}

/// Resource claims of the pod, and that containers name only those.
fn claims(spec: &Node<'_>, errors: &mut ErrorList) {
    let mut names_seen = Seen::default();
    let mut known = Vec::new();
    for claim in spec.items("resourceClaims") {
        let name = claim.child("name");
        if name.required_format(errors, names::dns1123_label) && !names_seen.insert(name.text()) {
            name.duplicate(errors);
        }
        known.push(name.text());
        if claim.has("resourceClaimName") == claim.has("resourceClaimTemplateName") {
            let words = if claim.has("resourceClaimName") {
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            } else {
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
            };
            claim.invalid(errors, words);
        }
    }
    for field in ["initContainers", "containers"] {
        for container in spec.items(field) {
            for claim in container.items("resources.claims") {
                let name = claim.child("name");
                if !known.contains(&name.text()) {
                    errors.push(Error::not_found(&claim.path, name.text()));
                }
            }
        }
    }
}

/// `PodTemplateSpec`: labels, annotations and spec; no name is needed.
pub fn validate_template(template: &Node<'_>, errors: &mut ErrorList) {
    labels(&template.child("metadata.labels"), errors);
    annotations(&template.child("metadata.annotations"), errors);
    validate(&template.child("spec"), errors);
    if !template.items("spec.ephemeralContainers").is_empty() {
        template
            .child("spec.ephemeralContainers")
            .forbidden(errors, "ephemeral containers not allowed in pod template");
    }
}
