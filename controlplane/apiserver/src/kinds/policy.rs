//! The `policy` group: PodDisruptionBudget. Evictions are decided in `core::pod::eviction`.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Node, label_selector, not_more_than_hundred_percent, positive_int_or_percent};
use super::table::{count, int_or_string, named, number, row, words};
use super::value::{at, has, set};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Budget)]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
        .short(&["pdb"])
        .with_status()
        .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}

struct Budget;

impl Hooks for Budget {
    fn prepare_create(&self, _ctx: &Context<'_>, budget: &mut Value) {
        set(
            budget,
            "status",
            json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
        );
    }

    fn validate_create(&self, _ctx: &Context<'_>, budget: &Value) -> ErrorList {
        validate(budget)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate(new)
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            Node::root(new).child("status").child(field).non_negative(&mut errors);
        }
        errors
    }

    fn row(&self, budget: &Value, now: Timestamp) -> Vec<Value> {
        let bound = |path: &str| {
            Value::from(if has(budget, path) { int_or_string(at(budget, path)) } else { "N/A".to_owned() })
        };
        row(
            budget,
            now,
            vec![bound("spec.minAvailable"), bound("spec.maxUnavailable"), count(budget, "status.disruptionsAllowed")],
        )
    }
}

fn validate(budget: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(budget).child("spec");
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        spec.invalid(&mut errors, "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        let bound = spec.child(field);
        if bound.exists() {
            positive_int_or_percent(&bound, &mut errors);
            not_more_than_hundred_percent(&bound, &mut errors);
        }
    }
    label_selector(&spec.child("selector"), &mut errors);
    spec.child("unhealthyPodEvictionPolicy").optional_one_of(&mut errors, &["AlwaysAllow", "IfHealthyBudget"]);
    errors
}

fn columns() -> Vec<Column> {
    named(vec![
        words("Min Available", "The minimum number of pods that must be available."),
        words("Max Unavailable", "The maximum number of pods that may be unavailable."),
        number("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    #[test]
    fn budgets() {
        for (spec, expected) in [
            (json!({"minAvailable": 1}), "[]"),
            (
                json!({"minAvailable": "120%"}),
                "spec.minAvailable: Invalid value: \"120%\": must not be greater than 100%",
            ),
            (
                json!({"maxUnavailable": -1}),
                "spec.maxUnavailable: Invalid value: -1: must be greater than or equal to 0",
            ),
        ] {
            assert_eq!(join(&validate(&json!({"spec": spec}))), expected);
        }
        assert!(
            join(&validate(&json!({"spec": {"minAvailable": 1, "maxUnavailable": 1}})))
                .ends_with("minAvailable and maxUnavailable cannot be both set")
        );
    }
}
