//! LimitRanges and ResourceQuotas.

use api::field::{Error, ErrorList};
use api::names;
use api::quantity::Quantity;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::pod::container::resource_quantity;
use super::pod::quantity;
use crate::kinds::check::{Node, Seen};
use crate::kinds::table::{created_at_row, named, row, words};
use crate::kinds::value::{entries, list_mut, map, set, text};
use crate::resource::{Column, Context, Hooks};

pub struct LimitRange;

impl Hooks for LimitRange {
    /// A container's default limit is its maximum; its default request its default limit, else
    /// its minimum.
    fn defaults(&self, range: &mut Value) {
        for item in list_mut(range, "spec.limits") {
            if text(item, "type") != "Container" {
                continue;
            }
            let part = |item: &Value, field: &str| map(item, field).cloned().unwrap_or_default();
            let (mut limits, mut requests) = (part(item, "default"), part(item, "defaultRequest"));
            fill(&mut limits, &part(item, "max"));
            fill(&mut requests, &limits);
            fill(&mut requests, &part(item, "min"));
            for (field, amounts) in [("default", limits), ("defaultRequest", requests)] {
                if !amounts.is_empty() {
                    set(item, field, amounts);
                }
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, range: &Value) -> ErrorList {
        validate_range(range)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate_range(new)
    }

    fn row(&self, range: &Value, _now: Timestamp) -> Vec<Value> {
        created_at_row(range)
    }
}

fn fill(amounts: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (resource, amount) in from {
        amounts.entry(resource).or_insert_with(|| amount.clone());
    }
}

fn validate_range(range: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut types = Seen::default();
    for item in Node::root(range).items("spec.limits") {
        let type_ = item.child("type");
        if !type_.text().contains('/') {
            type_.one_of(&mut errors, &["Container", "PersistentVolumeClaim", "Pod"]);
        }
        if !types.insert(type_.text()) {
            type_.duplicate(&mut errors);
        }
        if type_.text() == "Pod" {
            for field in ["default", "defaultRequest"] {
                if !item.child(field).is_empty() {
                    item.child(field).forbidden(&mut errors, "may not be specified when `type` is 'Pod'");
                }
            }
        }
        if type_.text() == "PersistentVolumeClaim" {
            let storage = |field: &str| map(item.value, field).is_some_and(|amounts| amounts.contains_key("storage"));
            if !storage("min") && !storage("max") {
                errors.push(Error::required(
                    &item.path,
                    "either minimum or maximum storage value is required, but neither was provided",
                ));
            }
        }
        for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            for (name, amount) in item.entries(field) {
                resource_name(name, &amount, &mut errors);
                resource_quantity(name, &amount, &mut errors);
            }
        }
        ordered(&item, &mut errors);
    }
    errors
}

/// min ≤ defaultRequest ≤ default ≤ max.
fn ordered(item: &Node<'_>, errors: &mut ErrorList) {
    let amount = |field: &str, name: &str| map(item.value, field).and_then(|m| m.get(name)).and_then(quantity);
    let mut names: Vec<&str> = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
        .iter()
        .flat_map(|f| entries(item.value, f))
        .map(|(n, _)| n)
        .collect();
    names.sort_unstable();
    names.dedup();
    let words = |field: &str| match field {
        "defaultRequest" => "default request".to_owned(),
        other => other.to_owned(),
    };
    for name in names {
        for (low, high) in [
            ("min", "max"),
            ("min", "defaultRequest"),
            ("defaultRequest", "max"),
            ("defaultRequest", "default"),
            ("min", "default"),
            ("default", "max"),
        ] {
            let (Some(small), Some(large)) = (amount(low, name), amount(high, name)) else { continue };
            if small > large {
                let shown = if low == "min" && high == "max" {
                    "min"
                } else if high == "max" || high == "default" && low != "min" {
                    low
                } else {
                    high
                };
                errors.push(Error::invalid(
                    &item.child(shown).path.key(name),
                    amount(shown, name).unwrap_or(Quantity::ZERO).to_string(),
                    format!("{} value {small} is greater than {} value {large}", words(low), words(high)),
                ));
            }
        }
        if let Some(ratio) = amount("maxLimitRequestRatio", name)
            && ratio < Quantity::from_units(1, api::quantity::Format::DecimalSi)
        {
            errors.push(Error::invalid(
                &item.child("maxLimitRequestRatio").path.key(name),
                ratio.to_string(),
                format!("ratio {ratio} is less than 1"),
            ));
        }
    }
}

fn resource_name(name: &str, node: &Node<'_>, errors: &mut ErrorList) {
    for problem in names::qualified_name(name) {
        errors.push(Error::invalid(&node.path, name, problem));
    }
    if !name.contains('/') && !STANDARD.contains(&name) && !is_prefixed_standard(name) {
        errors.push(Error::invalid(&node.path, name, "must be a standard resource type or fully qualified"));
    }
}

const STANDARD: [&str; 23] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "storage",
    "pods",
    "services",
    "secrets",
    "configmaps",
    "replicationcontrollers",
    "resourcequotas",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "requests.hugepages",
    "limits.hugepages",
    "hugepages",
];

fn is_prefixed_standard(name: &str) -> bool {
    ["hugepages-", "requests.hugepages-", "limits.hugepages-", "count/"].iter().any(|prefix| name.starts_with(prefix))
}

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
        let sorted = |quota: &Value| {
            let mut scopes: Vec<String> =
                crate::kinds::value::texts(quota, "spec.scopes").into_iter().map(str::to_owned).collect();
            scopes.sort();
            scopes
        };
        if sorted(new) != sorted(old) {
            Node::root(new).child("spec.scopes").invalid(&mut errors, "field is immutable");
        }
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

pub fn quota_columns() -> Vec<Column> {
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

/// What a quota counts in any case, beside pods and their compute.
const UNSCOPED: [&str; 12] = [
    "ephemeral-storage",
    "requests.ephemeral-storage",
    "limits.ephemeral-storage",
    "resourcequotas",
    "services",
    "services.nodeports",
    "services.loadbalancers",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "requests.storage",
];
const COMPUTE: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// Scopes select pods (one of them claims): other standard resources cannot be counted by them.
fn counted_in_scope(spec: &Node<'_>, scope: &str, at: &Node<'_>, errors: &mut ErrorList) {
    let fits = |name: &str| match scope {
        "VolumeAttributesClass" => matches!(name, "persistentvolumeclaims" | "requests.storage"),
        "BestEffort" => name == "pods",
        _ => name == "pods" || COMPUTE.contains(&name),
    };
    let standard = |name: &str| name == "pods" || COMPUTE.contains(&name) || UNSCOPED.contains(&name);
    if SCOPES.contains(&scope) && spec.entries("hard").iter().any(|(name, _)| standard(name) && !fits(name)) {
        at.invalid(errors, "unsupported scope applied to resource");
    }
}

fn validate_quota(quota: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(quota).child("spec");
    for (name, amount) in spec.entries("hard") {
        resource_name(name, &amount, &mut errors);
        resource_quantity(name, &amount, &mut errors);
        let whole = !name.contains("cpu") && !name.contains("memory") && !name.contains("storage");
        if whole && quantity(amount.value).is_some_and(|q| !q.is_integer()) && !name.contains('/') {
            amount.invalid(&mut errors, "must be an integer");
        }
    }
    let scopes = spec.items("scopes");
    for scope in &scopes {
        if !SCOPES.contains(&scope.text()) {
            spec.child("scopes").invalid(&mut errors, "unsupported scope");
        }
        counted_in_scope(&spec, scope.text(), &spec.child("scopes"), &mut errors);
    }
    let has = |name: &str| scopes.iter().any(|scope| scope.text() == name);
    if has("BestEffort") && has("NotBestEffort") || has("Terminating") && has("NotTerminating") {
        spec.child("scopes").invalid(&mut errors, "conflicting scopes");
    }
    for expression in spec.items("scopeSelector.matchExpressions") {
        let (scope, operator, values) =
            (expression.child("scopeName"), expression.child("operator"), expression.child("values"));
        if !SCOPES.contains(&scope.text()) {
            scope.invalid(&mut errors, "unsupported scope");
        }
        counted_in_scope(&spec, scope.text(), &spec.child("scopeSelector.matchExpressions"), &mut errors);
        if !matches!(scope.text(), "PriorityClass" | "VolumeAttributesClass") && operator.text() != "Exists" {
            operator.invalid(&mut errors, "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity");
        }
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => values.missing(
                &mut errors,
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => values.invalid(
                &mut errors,
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => operator.invalid(&mut errors, "not a valid selector operator"),
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    #[test]
    fn ranges() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1", "memory": "1Mi"}}]}});
        LimitRange.defaults(&mut range);
        assert_eq!(range["spec"]["limits"][0]["default"], json!({"cpu": "2"}));
        assert_eq!(range["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
        let bad = json!({"spec": {"limits": [{"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}, "default": {"cpu": "1"}}, {"type": "X"}]}});
        let found = join(&validate_range(&bad));
        assert!(
            found.contains("spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"),
            "{found}"
        );
        assert!(
            found.contains("spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"),
            "{found}"
        );
        assert!(found.contains("spec.limits[1].type: Unsupported value: \"X\""), "{found}");
    }

    #[test]
    fn quotas() {
        let quota = json!({"spec": {"hard": {"cpu": "-1", "x": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}});
        let found = join(&validate_quota(&quota));
        for expected in [
            "spec.hard[cpu]: Invalid value: \"-1\"",
            "spec.hard[x]: Invalid value: \"x\": must be a standard resource type or fully qualified",
            "conflicting scopes",
            "unsupported scope applied to resource",
        ] {
            assert!(found.contains(expected), "{found}");
        }
        let shown = ResourceQuota.row(&json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "10", "limits.cpu": "2"}, "used": {"pods": "1"}}}), Timestamp::UNIX_EPOCH);
        assert_eq!((shown[1].as_str(), shown[2].as_str()), (Some("pods: 1/10"), Some("limits.cpu: 0/2")));
    }
}
