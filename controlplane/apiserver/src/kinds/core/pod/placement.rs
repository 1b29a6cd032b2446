//! Validation of what steers a pod's placement: selectors, affinity, spreading, tolerations.

use api::field::{Error, ErrorList};
use api::names;

use crate::kinds::check::{Node, Seen, label_selector, labels};

pub fn validate(spec: &Node<'_>, errors: &mut ErrorList) {
    labels(&spec.child("nodeSelector"), errors);
    affinity(&spec.child("affinity"), errors);
    tolerations(spec, errors);
    spread(spec, errors);
}

fn affinity(affinity: &Node<'_>, errors: &mut ErrorList) {
    let node = affinity.child("nodeAffinity");
    let required = node.child("requiredDuringSchedulingIgnoredDuringExecution");
    if required.exists() {
        node_selector(&required, errors);
    }
    for preferred in node.items("preferredDuringSchedulingIgnoredDuringExecution") {
        weight(&preferred, errors);
        node_selector_term(&preferred.child("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.child(kind);
        for term in pods.items("requiredDuringSchedulingIgnoredDuringExecution") {
            pod_term(&term, errors);
        }
        for preferred in pods.items("preferredDuringSchedulingIgnoredDuringExecution") {
            weight(&preferred, errors);
            pod_term(&preferred.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(preferred: &Node<'_>, errors: &mut ErrorList) {
    let weight = preferred.child("weight");
    if !(1..=100).contains(&weight.int()) {
        weight.invalid(errors, "must be in the range 1-100");
    }
}

/// `NodeSelector`, also of PersistentVolumes.
pub fn node_selector(selector: &Node<'_>, errors: &mut ErrorList) {
    let terms = selector.items("nodeSelectorTerms");
    if terms.is_empty() {
        selector.child("nodeSelectorTerms").missing(errors, "must have at least one node selector term");
    }
    for term in terms {
        node_selector_term(&term, errors);
    }
}

fn node_selector_term(term: &Node<'_>, errors: &mut ErrorList) {
    for requirement in term.items("matchExpressions") {
        node_requirement(&requirement, errors);
        requirement.child("key").format(errors, names::qualified_name);
    }
    for requirement in term.items("matchFields") {
        let operator = requirement.child("operator");
        if !matches!(operator.text(), "In" | "NotIn") {
            operator.invalid(errors, "not a valid selector operator");
        } else if requirement.items("values").len() != 1 {
            requirement
                .child("values")
                .missing(errors, "must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
        }
        if requirement.child("key").text() != "metadata.name" {
            requirement.child("key").invalid(errors, "not a valid field selector key");
        }
    }
}

fn node_requirement(requirement: &Node<'_>, errors: &mut ErrorList) {
    let values = requirement.child("values");
    match requirement.child("operator").text() {
        "In" | "NotIn" => {
            if values.is_empty() {
                values.missing(errors, "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                values.forbidden(errors, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
        }
        "Gt" | "Lt" => {
            if values.len() != 1 {
                values.missing(errors, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
        }
        _ => requirement.child("operator").invalid(errors, "not a valid selector operator"),
    }
}

fn pod_term(term: &Node<'_>, errors: &mut ErrorList) {
    label_selector(&term.child("labelSelector"), errors);
    label_selector(&term.child("namespaceSelector"), errors);
    for namespace in term.items("namespaces") {
        namespace.format(errors, names::dns1123_label);
    }
    topology_key(&term.child("topologyKey"), errors);
    let keys: Vec<&str> = term.items("matchLabelKeys").iter().map(Node::text).collect();
    for key in term.items("mismatchLabelKeys") {
        if keys.contains(&key.text()) {
            key.invalid(errors, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        if !term.items(field).is_empty() && !term.has("labelSelector") {
            term.child(field).forbidden(errors, "must not be specified when labelSelector is not set");
        }
    }
}

fn topology_key(key: &Node<'_>, errors: &mut ErrorList) {
    if key.required(errors, "can not be empty") {
        key.format(errors, names::qualified_name);
    }
}

fn spread(spec: &Node<'_>, errors: &mut ErrorList) {
    let mut pairs = Seen::default();
    for constraint in spec.items("topologySpreadConstraints") {
        let skew = constraint.child("maxSkew");
        if skew.int() <= 0 {
            skew.invalid(errors, "must be greater than zero");
        }
        topology_key(&constraint.child("topologyKey"), errors);
        let unsatisfiable = constraint.child("whenUnsatisfiable");
        unsatisfiable.one_of(errors, &["DoNotSchedule", "ScheduleAnyway"]);
        let pair = format!("{{{}, {}}}", constraint.child("topologyKey").text(), unsatisfiable.text());
        if !pairs.insert(pair.clone()) {
            errors.push(Error::duplicate(&constraint.path.child("{topologyKey, whenUnsatisfiable}"), pair));
        }
        let domains = constraint.child("minDomains");
        if domains.exists() {
            if domains.int() <= 0 {
                domains.invalid(errors, "must be greater than zero");
            }
            if unsatisfiable.text() != "DoNotSchedule" {
                domains
                    .invalid(errors, "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway");
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint.child(field).optional_one_of(errors, &["Honor", "Ignore"]);
        }
        label_selector(&constraint.child("labelSelector"), errors);
        if !constraint.items("matchLabelKeys").is_empty() && !constraint.has("labelSelector") {
            constraint.child("matchLabelKeys").forbidden(errors, "must not be specified when labelSelector is not set");
        }
    }
}

fn tolerations(spec: &Node<'_>, errors: &mut ErrorList) {
    for toleration in spec.items("tolerations") {
        validate_toleration(&toleration, errors);
    }
}

pub fn validate_toleration(toleration: &Node<'_>, errors: &mut ErrorList) {
    let (key, operator) = (toleration.child("key"), toleration.child("operator"));
    let (value, effect) = (toleration.child("value"), toleration.child("effect"));
    if !key.text().is_empty() {
        key.format(errors, names::qualified_name);
    } else if operator.text() != "Exists" {
        operator.invalid(
            errors,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if toleration.has("tolerationSeconds") && effect.text() != "NoExecute" {
        effect.invalid(errors, "effect must be 'NoExecute' when `tolerationSeconds` is set");
    }
    match operator.text() {
        "" | "Equal" => {
            value.format(errors, names::label_value);
        }
        "Exists" => {
            if !value.text().is_empty() {
                errors.push(Error::invalid(
                    &operator.path,
                    value.text(),
                    "value must be empty when `operator` is 'Exists'",
                ));
            }
        }
        "Lt" | "Gt" => {
            if value.text().parse::<i64>().is_err() {
                value.invalid(errors, "value must be a valid integer when `operator` is 'Lt' or 'Gt'");
            }
        }
        _ => {
            operator.one_of(errors, &["Equal", "Exists"]);
        }
    }
    if !effect.text().is_empty() {
        effect.one_of(errors, &["NoExecute", "NoSchedule", "PreferNoSchedule"]);
    }
}
