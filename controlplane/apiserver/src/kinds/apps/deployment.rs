//! Deployments.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Counts, immutable_selector, named_template_warnings, strategy_not_supported, template_cells, template_defaults,
    validate_counts, validate_selector, validate_template, validate_template_labels,
};
use crate::kinds::check::{Node, not_more_than_hundred_percent, positive_int_or_percent};
use crate::kinds::core::pod::gated;
use crate::kinds::table::{count, named_wide, row_wide, selector_or, template_columns, words};
use crate::kinds::value::{at, default, default_text, int, same_at, set, text};
use crate::resource::{Column, Context, Hooks, Paths, SwitchedOff};

const COUNTS: Counts = Counts {
    fields: &[
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ],
    within_replicas: &["updatedReplicas", "readyReplicas", "availableReplicas"],
    within_ready: Some("cannot be greater than readyReplicas"),
};

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

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("spec.template")
    }

    fn prepare_create(&self, _ctx: &Context<'_>, deployment: &mut Value) {
        set(deployment, "status", json!({}));
    }

    /// A Deployment's annotations count as much as its spec: ReplicaSets carry them.
    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        if !same_at(new, old, "metadata.annotations") && same_at(new, old, "spec") {
            set(new, "metadata.generation", int(old, "metadata.generation") + 1);
        }
    }

    fn reset_by_status(&self) -> Paths {
        &[&["spec"], &["metadata", "labels"]]
    }

    fn validate_create(&self, _ctx: &Context<'_>, deployment: &Value) -> ErrorList {
        validate(deployment)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new);
        immutable_selector(new, old, &mut errors);
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        if ctx.subresource == "status" { validate_counts(new, old, &COUNTS) } else { ErrorList::new() }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        named_template_warnings(new, old)
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
            template_cells(deployment, Some(selector_or(at(deployment, "spec.selector"), "", "<invalid>"))),
        )
    }
}

fn validate(deployment: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(deployment).child("spec");
    spec.child("replicas").non_negative(&mut errors);
    validate_selector(&spec, "deployment", &mut errors);
    if validate_template_labels(&spec, "invalid label selector", &mut errors) {
        validate_template(&spec.child("template"), "ReplicaSet", &mut errors);
    }
    strategy(&spec.child("strategy"), &mut errors);
    for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        spec.child(field).non_negative(&mut errors);
    }
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
            if is_zero(unavailable.value) && is_zero(surge.value) {
                unavailable.invalid(errors, "may not be 0 when `maxSurge` is 0");
            }
            not_more_than_hundred_percent(&unavailable, errors);
        }
        _ => strategy_not_supported(strategy, &["Recreate", "RollingUpdate"], errors),
    }
}

/// `0`, `0%`, or what is neither a number nor a percentage: Go reads that as 0.
pub fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => crate::kinds::check::percent(text).unwrap_or_else(|| text.parse().unwrap_or(0)) == 0,
        other => other.as_i64().unwrap_or(0) == 0,
    }
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Ready", "Number of the pod with ready state"),
            words(
                "Up-to-date",
                "Total number of non-terminating pods targeted by this deployment that have the desired template spec.",
            ),
            words(
                "Available",
                "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted by this deployment.",
            ),
        ],
        template_columns(
            "Label selector for pods. Existing ReplicaSets whose pods are selected by this will be the ones affected by this deployment.",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
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
                "spec.strategy: Unsupported value: {\"RollingUpdate\":null,\"Type\":\"X\"}: supported values: \"Recreate\", \"RollingUpdate\"",
            ),
            (
                json!({"spec.strategy.rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ),
            (
                json!({"spec.strategy.rollingUpdate": {"maxSurge": "x", "maxUnavailable": "101%"}}),
                "[spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%'), \
                 spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%]",
            ),
            (
                json!({"spec.strategy": {"type": "Recreate", "rollingUpdate": {}}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                json!({"spec.selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
                "[spec.selector.matchExpressions[0].operator: Invalid value: \"Is\": not a valid selector operator, \
                 spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Is\"}]}: invalid label selector]",
            ),
            (
                json!({"spec.template.spec.activeDeadlineSeconds": 5, "spec.revisionHistoryLimit": -1}),
                "[spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported, \
                 spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0]",
            ),
            (
                json!({"spec.template": null}),
                "[spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`, \
                 spec.template.spec.containers: Required value]",
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
    fn updates() {
        let old = deployment(json!({}));
        for (extra, expected) in [
            (json!({"spec.replicas": 3}), "[]"),
            (
                json!({"spec.selector": {"matchLabels": {"a": "b", "c": "d"}}, "spec.template.metadata.labels": {"a": "b", "c": "d"}}),
                "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"c\":\"d\"}}: field is immutable",
            ),
        ] {
            assert_eq!(tested::updated(&Deployment, &old, &deployment(extra.clone())), expected, "{extra}");
        }
        let with = |status: Value| deployment(json!({ "status": status }));
        for (status, expected) in [
            (json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 3}), "[]"),
            (
                json!({"replicas": 1, "readyReplicas": 2, "updatedReplicas": -1, "availableReplicas": 3, "collisionCount": 1}),
                "[status.updatedReplicas: Invalid value: -1: must be greater than or equal to 0, \
                 status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas, \
                 status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas, \
                 status.availableReplicas: Invalid value: 3: cannot be greater than readyReplicas, \
                 status.collisionCount: Invalid value: 1: cannot be decremented]",
            ),
            (json!({}), "status.collisionCount: Invalid value: 0: cannot be decremented"),
        ] {
            let old = with(json!({"collisionCount": 2}));
            assert_eq!(tested::updated_sub(&Deployment, "status", &old, &with(status.clone())), expected, "{status}");
        }
    }

    #[test]
    fn annotations_are_a_generation() {
        let mut old = deployment(json!({}));
        old["metadata"]["generation"] = 4.into();
        let mut new = old.clone();
        new["metadata"]["annotations"] = json!({"kubernetes.io/change-cause": "x"});
        tested::prepared(&Deployment, &mut new, &old);
        assert_eq!(new["metadata"]["generation"], 5);
        // Of a changed spec the registry counts the generation itself.
        new["metadata"]["generation"] = 4.into();
        new["spec"]["replicas"] = 2.into();
        tested::prepared(&Deployment, &mut new, &old);
        assert_eq!(new["metadata"]["generation"], 4);
    }

    #[test]
    fn doubtful_names() {
        assert!(named_template_warnings(&deployment(json!({})), None).is_empty());
        let dotted = deployment(json!({"metadata.name": "a.b"}));
        let warned = named_template_warnings(&dotted, None);
        assert!(warned[0].starts_with("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]"), "{warned:?}");
        assert!(named_template_warnings(&dotted, Some(&dotted)).is_empty());
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
