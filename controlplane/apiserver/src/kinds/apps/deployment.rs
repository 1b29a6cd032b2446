//! Deployments.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    immutable_selector, template_cells, template_defaults, template_warnings, validate_counts, validate_workload,
};
use crate::kinds::check::{Node, not_more_than_hundred_percent, positive_int_or_percent};
use crate::kinds::table::{count, named_wide, number, row_wide, selector, template_columns, words};
use crate::kinds::value::{at, copy, default, default_text, int, set, text};
use crate::resource::{Column, Context, Hooks};

pub struct Deployment;

impl Hooks for Deployment {
    fn defaults(&self, deployment: &mut Value) {
        default(deployment, "spec.replicas", 1);
        default_text(deployment, "spec.strategy.type", "RollingUpdate");
        if text(deployment, "spec.strategy.type") == "RollingUpdate" {
            default(deployment, "spec.strategy.rollingUpdate.maxUnavailable", "25%");
            default(deployment, "spec.strategy.rollingUpdate.maxSurge", "25%");
        }
        default(deployment, "spec.revisionHistoryLimit", 10);
        default(deployment, "spec.progressDeadlineSeconds", 600);
        template_defaults(deployment);
    }

    fn prepare_create(&self, _ctx: &Context<'_>, deployment: &mut Value) {
        set(deployment, "status", json!({}));
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if ctx.subresource == "status" {
            copy(old, new, "metadata.labels");
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, deployment: &Value) -> ErrorList {
        validate(deployment)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new);
        immutable_selector(new, old, &mut errors);
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        if ctx.subresource != "status" {
            return ErrorList::new();
        }
        validate_counts(
            new,
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
            ],
        )
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(new, old)
    }

    fn row(&self, deployment: &Value, now: Timestamp) -> Vec<Value> {
        let ready = format!("{}/{}", int(deployment, "status.readyReplicas"), int(deployment, "spec.replicas"));
        row_wide(
            deployment,
            now,
            vec![
                ready.into(),
                count(deployment, "status.updatedReplicas"),
                count(deployment, "status.availableReplicas"),
            ],
            template_cells(deployment, Some(selector(at(deployment, "spec.selector")))),
        )
    }
}

fn validate(deployment: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(deployment).child("spec");
    validate_workload(&spec, "deployment", &mut errors);
    strategy(&spec.child("strategy"), &mut errors);
    let deadline = spec.child("progressDeadlineSeconds");
    if deadline.exists() && deadline.int() <= spec.child("minReadySeconds").int() {
        deadline.invalid(&mut errors, "must be greater than minReadySeconds");
    }
    errors
}

fn strategy(strategy: &Node<'_>, errors: &mut ErrorList) {
    let rolling = strategy.child("rollingUpdate");
    match strategy.child("type").text() {
        "Recreate" => {
            if rolling.exists() {
                rolling.forbidden(errors, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            positive_int_or_percent(&unavailable, errors);
            positive_int_or_percent(&surge, errors);
            not_more_than_hundred_percent(&unavailable, errors);
            if is_zero(unavailable.value) && is_zero(surge.value) {
                unavailable.invalid(errors, "may not be 0 when `maxSurge` is 0");
            }
        }
        _ => {
            strategy.child("type").one_of(errors, &["Recreate", "RollingUpdate"]);
        }
    }
}

/// `0` or `0%`.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => crate::kinds::check::percent(text) == Some(0),
        other => other.as_i64() == Some(0),
    }
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Ready", "Number of the pod with ready state"),
            number(
                "Up-to-date",
                "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
            ),
            number(
                "Available",
                "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this deployment.",
            ),
        ],
        template_columns(true),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    fn deployment(extra: Value) -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        for (key, value) in extra.as_object().unwrap() {
            set(&mut object, key, value.clone());
        }
        Deployment.defaults(&mut object);
        object
    }

    #[test]
    fn defaulted() {
        let spec = &deployment(json!({}))["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(
            (spec["revisionHistoryLimit"].as_i64(), spec["progressDeadlineSeconds"].as_i64()),
            (Some(10), Some(600))
        );
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
        assert_eq!(
            deployment(json!({"spec.strategy.type": "Recreate"}))["spec"]["strategy"],
            json!({"type": "Recreate"})
        );
    }

    #[test]
    fn refused() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (json!({"spec.replicas": -1}), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                json!({"spec.selector": null}),
                "[spec.selector: Required value, spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`]",
            ),
            (
                json!({"spec.selector": {}}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                json!({"spec.template.metadata.labels": {"a": "x"}}),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"x\"}: `selector` does not match template `labels`",
            ),
            (
                json!({"spec.template.spec.restartPolicy": "Never"}),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                json!({"spec.strategy.type": "X"}),
                "spec.strategy.type: Unsupported value: \"X\": supported values: \"Recreate\", \"RollingUpdate\"",
            ),
            (
                json!({"spec.strategy.rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ),
            (
                json!({"spec.minReadySeconds": 600}),
                "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
            ),
        ] {
            assert_eq!(join(&validate(&deployment(extra.clone()))), expected, "{extra}");
        }
    }

    #[test]
    fn rows() {
        let object = deployment(
            json!({"status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}, "spec.replicas": 3}),
        );
        let shown: Vec<String> =
            Deployment.row(&object, Timestamp::UNIX_EPOCH).iter().map(|c| c.to_string().replace('"', "")).collect();
        assert_eq!(shown.join("|"), "d|2/3|3|2|<unknown>|c|i|a=b");
    }
}
