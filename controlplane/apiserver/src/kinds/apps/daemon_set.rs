//! DaemonSets.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::deployment::is_zero;
use super::{
    immutable_selector, template_cells, template_defaults, template_warnings, validate_counts, validate_workload,
};
use crate::kinds::check::{Node, not_more_than_hundred_percent, positive_int_or_percent};
use crate::kinds::table::{count, labels, named_wide, number, row_wide, selector, template_columns, words};
use crate::kinds::value::{at, default, default_text, map, set, text};
use crate::resource::{Column, Context, Hooks};

pub struct DaemonSet;

impl Hooks for DaemonSet {
    fn defaults(&self, set: &mut Value) {
        default_text(set, "spec.updateStrategy.type", "RollingUpdate");
        if text(set, "spec.updateStrategy.type") == "RollingUpdate" {
            default(set, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
            default(set, "spec.updateStrategy.rollingUpdate.maxSurge", 0);
        }
        default(set, "spec.revisionHistoryLimit", 10);
        template_defaults(set);
    }

    fn prepare_create(&self, _ctx: &Context<'_>, object: &mut Value) {
        set(
            object,
            "status",
            json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0}),
        );
    }

    fn validate_create(&self, _ctx: &Context<'_>, set: &Value) -> ErrorList {
        validate(set)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new);
        immutable_selector(new, old, &mut errors);
        errors
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate_counts(
            new,
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
            ],
        )
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(new, old)
    }

    fn row(&self, set: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells: Vec<Value> = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ]
        .iter()
        .map(|field| count(at(set, "status"), field))
        .collect();
        cells.push(labels(map(set, "spec.template.spec.nodeSelector")).into());
        row_wide(set, now, cells, template_cells(set, Some(selector(at(set, "spec.selector")))))
    }
}

fn validate(set: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(set).child("spec");
    validate_workload(&spec, "daemonset", &mut errors);
    let strategy = spec.child("updateStrategy");
    match strategy.child("type").text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.child("rollingUpdate");
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            for field in [&unavailable, &surge] {
                positive_int_or_percent(field, &mut errors);
                not_more_than_hundred_percent(field, &mut errors);
            }
            match (is_zero(unavailable.value), is_zero(surge.value)) {
                (true, true) => unavailable.missing(&mut errors, "cannot be 0 when maxSurge is 0"),
                (false, false) => surge.invalid(&mut errors, "may not be set when maxUnavailable is non-zero"),
                _ => {}
            }
        }
        _ => {
            strategy.child("type").one_of(&mut errors, &["OnDelete", "RollingUpdate"]);
        }
    }
    errors
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            number(
                "Desired",
                "The total number of nodes that should be running the daemon pod (including nodes correctly running the daemon pod).",
            ),
            number(
                "Current",
                "The number of nodes that are running at least 1 daemon pod and are supposed to run the daemon pod.",
            ),
            number(
                "Ready",
                "numberReady is the number of nodes that should be running the daemon pod and have one or more of the daemon pod running with a Ready Condition.",
            ),
            number("Up-to-date", "The total number of nodes that are running updated daemon pod"),
            number(
                "Available",
                "The number of nodes that should be running the daemon pod and have one or more of the daemon pod running and available.",
            ),
            words("Node Selector", "NodeSelector is a selector which must be true for the pod to fit on a node."),
        ],
        template_columns(true),
    )
}
