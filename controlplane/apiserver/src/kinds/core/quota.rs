//! ResourceQuotas. Neighbour: [`super::limits`].

use std::collections::BTreeSet;

use api::field::ErrorList;
use api::quantity::Quantity;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::pod::internal::{self, Field, Is};
use super::pod::quantity;
use super::pod::resources::{is_standard_quota, quota_name, resource_quantity};
use crate::kinds::check::{IMMUTABLE, Node};
use crate::kinds::table::{named, row, words};
use crate::kinds::value::{entries, map, set, texts};
use crate::resource::{Column, Context, Hooks};

pub struct ResourceQuota;

impl Hooks for ResourceQuota {
    fn prepare_create(&self, _ctx: &Context<'_>, quota: &mut Value) {
        set(quota, "status", json!({}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, quota: &Value) -> ErrorList {
        validate_quota(quota)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_quota(new);
        let scopes = |quota| texts(quota, "spec.scopes").into_iter().collect::<BTreeSet<_>>();
        if scopes(new) != scopes(old) {
            Node::root(new).child("spec.scopes").invalid(&mut errors, IMMUTABLE);
        }
        errors
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let (mut errors, status) = (ErrorList::new(), Node::root(new).child("status"));
        amounts(&status, "hard", &mut errors);
        amounts(&status, "used", &mut errors);
        errors
    }

    fn row(&self, quota: &Value, now: Timestamp) -> Vec<Value> {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, hard) in entries(quota, "status.hard") {
            let used = map(quota, "status.used")
                .and_then(|used| used.get(resource))
                .and_then(quantity)
                .unwrap_or(Quantity::ZERO);
            let part = format!("{resource}: {used}/{}", quantity(hard).unwrap_or(Quantity::ZERO));
            if resource.starts_with("limits.") { limits.push(part) } else { requests.push(part) }
        }
        row(quota, now, vec![requests.join(", ").into(), limits.join(", ").into()])
    }
}

pub fn columns() -> Vec<Column> {
    named(vec![
        words("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
        words(
            "Limit",
            "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
        ),
    ])
}

const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];

/// Scopes that leave nothing over for one another.
const CONFLICTS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
const COMPUTE: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

const SELECTOR: &[Field] = &[Field(
    "matchExpressions",
    "MatchExpressions",
    Is::Of(&[
        Field("scopeName", "ScopeName", Is::Text),
        Field("operator", "Operator", Is::Text),
        Field("values", "Values", Is::Nil),
    ]),
)];

fn validate_quota(quota: &Value) -> ErrorList {
    let (mut errors, spec) = (ErrorList::new(), Node::root(quota).child("spec"));
    amounts(&spec, "hard", &mut errors);
    scopes(&spec, &mut errors);
    scope_selector(&spec, &mut errors);
    errors
}

fn amounts(owner: &Node<'_>, field: &str, errors: &mut ErrorList) {
    for (name, amount) in owner.entries(field) {
        quota_name(name, &amount, errors);
        resource_quantity(name, &amount, errors);
    }
}

/// How many of the resources that are bounded cannot be counted in a scope: scopes select pods, one
/// of them claims.
fn uncounted(spec: &Node<'_>, scope: &str) -> usize {
    let fits = |name: &str| match scope {
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        "BestEffort" => name == "pods",
        scope if SCOPES.contains(&scope) => name == "pods" || COMPUTE.contains(&name),
        _ => true,
    };
    spec.entries("hard").iter().filter(|(name, _)| is_standard_quota(name) && !fits(name)).count()
}

fn conflicts(given: &[&str]) -> usize {
    CONFLICTS.iter().filter(|pair| pair.iter().all(|scope| given.contains(scope))).count()
}

fn scopes(spec: &Node<'_>, errors: &mut ErrorList) {
    let (all, given) = (spec.child("scopes"), texts(spec.value, "scopes"));
    for scope in &given {
        if !SCOPES.contains(scope) {
            all.invalid(errors, "unsupported scope");
        }
        for _ in 0..uncounted(spec, scope) {
            all.invalid(errors, "unsupported scope applied to resource");
        }
    }
    for _ in 0..conflicts(&given) {
        all.invalid(errors, "conflicting scopes");
    }
}

/// The paths have no index, as upstream.
fn scope_selector(spec: &Node<'_>, errors: &mut ErrorList) {
    let selector = spec.child("scopeSelector");
    let path = selector.child("matchExpressions").path;
    let mut given = Vec::new();
    for expression in selector.items("matchExpressions") {
        let field = |name: &str| Node::new(expression.child(name).value, path.child(name));
        let (scope, operator, values) = (field("scopeName"), field("operator"), field("values"));
        if !SCOPES.contains(&scope.text()) {
            scope.invalid_text(errors, "unsupported scope");
        }
        for _ in 0..uncounted(spec, scope.text()) {
            let detail = "unsupported scope applied to resource";
            errors.push(internal::invalid(&path, selector.value, SELECTOR, detail));
        }
        let only_exists = !matches!(scope.text(), "PriorityClass" | "VolumeAttributesClass");
        if only_exists && SCOPES.contains(&scope.text()) && operator.text() != "Exists" {
            operator.invalid_text(errors, "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => values
                .missing(errors, "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"),
            "Exists" | "DoesNotExist" if !values.is_empty() => values
                .invalid(errors, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => operator.invalid_text(errors, "not a valid selector operator"),
        }
        given.push(scope.text());
    }
    for _ in 0..conflicts(&given) {
        spec.child("scopes").invalid(errors, "conflicting scopes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, updated, updated_sub};

    fn quota(spec: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": spec})
    }

    #[test]
    fn quotas_refused() {
        let exist = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        for (spec, expected) in [
            (json!({"hard": {"cpu": "1", "hugepages-2Mi": "1", "requests.hugepages-2Mi": "1", "count/pods": "1", "requests.example.com/gpu": "1", "a.storageclass.storage.k8s.io/requests.storage": "1"}}), "[]".to_owned()),
            (
                json!({"hard": {"cpu": "-1", "limits.hugepages-2Mi": "1", "pods": "1500m", "storage": "1"}}),
                "[spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0, \
                 spec.hard[limits.hugepages-2Mi]: Invalid value: \"limits.hugepages-2Mi\": must be a standard resource type or fully qualified, \
                 spec.hard[limits.hugepages-2Mi]: Invalid value: \"limits.hugepages-2Mi\": must be a standard resource for quota, \
                 spec.hard[pods]: Invalid value: \"1500m\": must be an integer, \
                 spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota]".to_owned(),
            ),
            (
                json!({"hard": {"services": "1"}, "scopes": ["Never", "Terminating", "NotTerminating"]}),
                "[spec.scopes: Invalid value: [\"Never\",\"Terminating\",\"NotTerminating\"]: unsupported scope, \
                 spec.scopes: Invalid value: [\"Never\",\"Terminating\",\"NotTerminating\"]: unsupported scope applied to resource, \
                 spec.scopes: Invalid value: [\"Never\",\"Terminating\",\"NotTerminating\"]: conflicting scopes]".to_owned(),
            ),
            (json!({"hard": {"pods": "1", "requests.example.com/gpu": "1"}, "scopes": ["BestEffort"]}), "[]".to_owned()),
            (
                json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [{"scopeName": "Terminating", "operator": "In", "values": ["a"]}]}}),
                format!("spec.scopeSelector.matchExpressions.operator: Invalid value: \"In\": {exist}"),
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}, {"scopeName": "PriorityClass", "operator": "Exists", "values": ["a"]}, {"scopeName": "X", "operator": "Is"}]}}),
                "[spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector, \
                 spec.scopeSelector.matchExpressions.values: Invalid value: [\"a\"]: must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector, \
                 spec.scopeSelector.matchExpressions.scopeName: Invalid value: \"X\": unsupported scope, \
                 spec.scopeSelector.matchExpressions.operator: Invalid value: \"Is\": not a valid selector operator]".to_owned(),
            ),
            (
                json!({"hard": {"services": "1"}, "scopeSelector": {"matchExpressions": [{"scopeName": "BestEffort", "operator": "Exists"}, {"scopeName": "NotBestEffort", "operator": "Exists"}]}}),
                "[spec.scopeSelector.matchExpressions: Invalid value: {\"MatchExpressions\":[{\"ScopeName\":\"BestEffort\",\"Operator\":\"Exists\",\"Values\":null},{\"ScopeName\":\"NotBestEffort\",\"Operator\":\"Exists\",\"Values\":null}]}: unsupported scope applied to resource, \
                 spec.scopes: Invalid value: null: conflicting scopes]".to_owned(),
            ),
        ] {
            assert_eq!(created(&ResourceQuota, &quota(spec.clone())), expected, "{spec}");
        }
    }

    #[test]
    fn scopes_stay() {
        let of = |scopes: &[&str]| quota(json!({"hard": {"pods": "1"}, "scopes": scopes}));
        assert_eq!(
            updated(&ResourceQuota, &of(&["Terminating", "BestEffort"]), &of(&["BestEffort", "Terminating"])),
            "[]"
        );
        assert_eq!(
            updated(&ResourceQuota, &of(&["Terminating"]), &of(&["BestEffort"])),
            "spec.scopes: Invalid value: [\"BestEffort\"]: field is immutable"
        );
    }

    #[test]
    fn statuses() {
        let counted = json!({"status": {"hard": {"x": "1"}, "used": {"pods": "-1"}}});
        assert_eq!(
            updated_sub(&ResourceQuota, "status", &json!({}), &counted),
            "[status.hard[x]: Invalid value: \"x\": must be a standard resource type or fully qualified, \
             status.hard[x]: Invalid value: \"x\": must be a standard resource for quota, \
             status.used[pods]: Invalid value: \"-1\": must be greater than or equal to 0]"
        );
    }

    #[test]
    fn rows() {
        let quota = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "10", "limits.cpu": "2"}, "used": {"pods": "1"}}});
        assert!(cells(&ResourceQuota, &quota, "2026-01-01T00:00:00Z").starts_with("q|pods: 1/10|limits.cpu: 0/2|"));
    }
}
