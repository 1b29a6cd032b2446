//! Validation of what steers a pod's placement: affinity, spreading, tolerations.

use std::collections::HashSet;

use api::field::{Error, ErrorList, Path};
use api::names;

use crate::kinds::check::{Node, label_selector};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(affinity: &Node<'_>, errors: &mut ErrorList) {
    let node = affinity.child("nodeAffinity");
    if node.has(REQUIRED) {
        node_selector(&node.child(REQUIRED), errors);
    }
    for preferred in node.items(PREFERRED) {
        weight(&preferred, errors);
        // Any value may be preferred: such a term just never matches.
        node_selector_term(&preferred.child("preference"), false, errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.child(kind);
        for term in pods.items(REQUIRED) {
            pod_term(&term, errors);
        }
        for preferred in pods.items(PREFERRED) {
            weight(&preferred, errors);
            pod_term(&preferred.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(preferred: &Node<'_>, errors: &mut ErrorList) {
    let weight = preferred.child("weight");
    if !(1..=100).contains(&weight.int()) {
        weight.invalid_int(errors, "must be in the range 1-100");
    }
}

/// `NodeSelector`, also of PersistentVolumes.
pub fn node_selector(selector: &Node<'_>, errors: &mut ErrorList) {
    node_selector_where(selector, true, errors);
}

/// As [`node_selector`]; values that were always wrong may stay (`values_count` is false).
pub fn node_selector_where(selector: &Node<'_>, values_count: bool, errors: &mut ErrorList) {
    let terms = selector.items("nodeSelectorTerms");
    if terms.is_empty() {
        selector.child("nodeSelectorTerms").missing(errors, "must have at least one node selector term");
    }
    for term in terms {
        node_selector_term(&term, values_count, errors);
    }
}

fn node_selector_term(term: &Node<'_>, check_values: bool, errors: &mut ErrorList) {
    for requirement in term.items("matchExpressions") {
        node_requirement(&requirement, errors);
        requirement.child("key").format(errors, names::qualified_name);
        if check_values {
            for value in requirement.items("values") {
                value.format(errors, names::label_value);
            }
        }
    }
    for requirement in term.items("matchFields") {
        let (operator, values) = (requirement.child("operator"), requirement.items("values"));
        if !matches!(operator.text(), "In" | "NotIn") {
            operator.invalid_text(errors, "not a valid selector operator");
        } else if values.len() != 1 {
            requirement
                .child("values")
                .missing(errors, "must be only one value when `operator` is 'In' or 'NotIn' for node field selector");
        }
        if requirement.child("key").text() != "metadata.name" {
            requirement.child("key").invalid_text(errors, "not a valid field selector key");
            continue;
        }
        for value in values {
            value.format(errors, names::dns1123_subdomain);
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
        _ => requirement.child("operator").invalid_text(errors, "not a valid selector operator"),
    }
}

fn pod_term(term: &Node<'_>, errors: &mut ErrorList) {
    label_selector(&term.child("labelSelector"), errors);
    label_selector(&term.child("namespaceSelector"), errors);
    for namespace in term.items("namespaces") {
        // Kubernetes names the field so, and without an index.
        Node::new(namespace.value, term.path.child("namespace")).format(errors, names::dns1123_label);
    }
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = term.items(field);
        if !keys.is_empty() && !term.has("labelSelector") {
            term.child(field).forbidden(errors, "must not be specified when labelSelector is not set");
            continue;
        }
        for key in keys {
            key.format(errors, names::qualified_name);
        }
    }
    keys_selected_twice(term, &term.path, errors);
    let mismatch: Vec<&str> = term.items("mismatchLabelKeys").iter().map(Node::text).collect();
    for key in term.items("matchLabelKeys") {
        if mismatch.contains(&key.text()) {
            key.invalid(errors, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
    let topology = term.child("topologyKey");
    topology.required(errors, "can not be empty");
    topology.format(errors, names::qualified_name);
}

/// `matchLabelKeys` became requirements of the selector: no other may be about the same key.
fn keys_selected_twice(term: &Node<'_>, path: &Path, errors: &mut ErrorList) {
    let keys: Vec<&str> = term.items("matchLabelKeys").iter().map(Node::text).collect();
    let mut selected: HashSet<&str> =
        term.entries("labelSelector.matchLabels").into_iter().map(|(key, _)| key).collect();
    for expression in term.items("labelSelector.matchExpressions") {
        let key = expression.child("key").text();
        if !selected.insert(key)
            && let Some(index) = keys.iter().rposition(|listed| *listed == key)
        {
            errors.push(Error::invalid(&path.index(index), key, "exists in both matchLabelKeys and labelSelector"));
        }
    }
}

pub fn spread(spec: &Node<'_>, errors: &mut ErrorList) {
    let constraints = spec.items("topologySpreadConstraints");
    let pair = |constraint: &Node<'_>| {
        format!("{{{}, {}}}", constraint.child("topologyKey").text(), constraint.child("whenUnsatisfiable").text())
    };
    for (index, constraint) in constraints.iter().enumerate() {
        let skew = constraint.child("maxSkew");
        if skew.int() <= 0 {
            skew.invalid_int(errors, "must be greater than zero");
        }
        constraint.child("topologyKey").required(errors, "can not be empty");
        let unsatisfiable = constraint.child("whenUnsatisfiable");
        unsatisfiable.one_of(errors, &["DoNotSchedule", "ScheduleAnyway"]);
        if constraints[index + 1..].iter().any(|later| pair(later) == pair(constraint)) {
            let path = constraint.path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(Error::duplicate(&path, pair(constraint)));
        }
        let domains = constraint.child("minDomains");
        if domains.exists() {
            if domains.int() <= 0 {
                domains.invalid(errors, "must be greater than zero");
            }
            if unsatisfiable.text() != "DoNotSchedule" {
                let given = unsatisfiable.text();
                domains.invalid(
                    errors,
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {given}"),
                );
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint.child(field).optional_one_of(errors, &["Honor", "Ignore"]);
        }
        let keys = constraint.items("matchLabelKeys");
        if !keys.is_empty() && !constraint.has("labelSelector") {
            constraint.child("matchLabelKeys").forbidden(errors, "must not be specified when labelSelector is not set");
        }
        for key in keys {
            key.format(errors, names::qualified_name);
        }
        keys_selected_twice(constraint, &constraint.child("matchLabelKeys").path, errors);
        label_selector(&constraint.child("labelSelector"), errors);
    }
}

pub fn tolerations(spec: &Node<'_>, errors: &mut ErrorList) {
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
        operator.invalid_text(
            errors,
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        );
    }
    if toleration.has("tolerationSeconds") && effect.text() != "NoExecute" {
        effect.invalid_text(errors, "effect must be 'NoExecute' when `tolerationSeconds` is set");
    }
    match operator.text() {
        "" | "Equal" => {
            let problems = names::label_value(value.text());
            if !problems.is_empty() {
                errors.push(Error::invalid(&operator.path, value.text(), problems.join(";")));
            }
        }
        "Exists" => {
            if !value.text().is_empty() {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(Error::invalid(&operator.path, value.text(), detail));
            }
        }
        // The feature behind them is off by default.
        "Lt" | "Gt" => {
            let known = ["Equal", "Exists", "Lt", "Gt"];
            errors.push(Error::not_supported(&operator.path, operator.text(), &known));
        }
        _ => {
            operator.one_of(errors, &["Equal", "Exists"]);
        }
    }
    if !effect.text().is_empty() {
        taint_effect(&effect, errors);
    }
}

pub fn taint_effect(effect: &Node<'_>, errors: &mut ErrorList) {
    effect.required_one_of(errors, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
}
