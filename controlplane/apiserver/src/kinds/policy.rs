//! The `policy` group: PodDisruptionBudget. Evictions are decided in `core::pod::eviction`.

use api::field::{Error, ErrorList};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Node, conditions, label_selector, not_more_than_hundred_percent, positive_int_or_percent};
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
        conditions(&Node::root(new), "status.conditions", &mut errors);
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
        // The whole spec is shown, by the names of its Go fields.
        let field = |name: &str| spec.child(name).value.clone();
        let shown = json!({
            "MinAvailable": field("minAvailable"),
            "Selector": field("selector"),
            "MaxUnavailable": field("maxUnavailable"),
            "UnhealthyPodEvictionPolicy": field("unhealthyPodEvictionPolicy"),
        });
        errors.push(Error::invalid(&spec.path, shown, "minAvailable and maxUnavailable cannot be both set"));
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
    use crate::kinds::tested::{cells, updated_sub};
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
        assert_eq!(
            join(&validate(
                &json!({"spec": {"minAvailable": 1, "maxUnavailable": "5%", "unhealthyPodEvictionPolicy": "X"}})
            )),
            "[spec: Invalid value: {\"MaxUnavailable\":\"5%\",\"MinAvailable\":1,\"Selector\":null,\"UnhealthyPodEvictionPolicy\":\"X\"}: minAvailable and maxUnavailable cannot be both set, \
             spec.unhealthyPodEvictionPolicy: Unsupported value: \"X\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"]"
        );
        let status = |conditions: Value| json!({"status": {"currentHealthy": -1, "conditions": conditions}});
        let condition = json!({"type": "A", "status": "Maybe", "reason": "9"});
        assert_eq!(
            updated_sub(&Budget, "status", &json!({}), &status(json!([condition, {"type": "A"}]))),
            "[status.conditions[0].status: Unsupported value: \"Maybe\": supported values: \"False\", \"True\", \"Unknown\", \
             status.conditions[0].lastTransitionTime: Required value, \
             status.conditions[0].reason: Invalid value: \"9\": a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?'), \
             status.conditions[1]: Duplicate value: \"A\", \
             status.conditions[1].status: Required value, \
             status.conditions[1].lastTransitionTime: Required value, \
             status.conditions[1].reason: Required value, \
             status.currentHealthy: Invalid value: -1: must be greater than or equal to 0]"
        );
    }

    #[test]
    fn rows() {
        for (spec, shown) in [
            (json!({"minAvailable": "50%"}), "p|50%|N/A|2|<unknown>"),
            (json!({"maxUnavailable": 1}), "p|N/A|1|2|<unknown>"),
            (json!({}), "p|N/A|N/A|2|<unknown>"),
        ] {
            let budget = json!({"metadata": {"name": "p"}, "spec": spec, "status": {"disruptionsAllowed": 2}});
            assert_eq!(cells(&Budget, &budget, "2026-01-01T00:00:00Z"), shown);
        }
    }
}
