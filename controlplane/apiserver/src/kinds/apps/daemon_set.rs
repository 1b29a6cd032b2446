//! DaemonSets.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::deployment::is_zero;
use super::{
    Counts, immutable_selector, strategy_not_supported, template_cells, template_defaults, template_warnings,
    validate_counts, validate_template,
};
use crate::kinds::check::{
    Node, label_selector, not_more_than_hundred_percent, positive_int_or_percent, selector_is_empty,
};
use crate::kinds::core::pod::gated;
use crate::kinds::table::{count, labels, named_wide, number, row_wide, selector, template_columns, words};
use crate::kinds::value::{annotation, at, default, default_text, get, get_mut, map, same_at, set, text};
use crate::resource::{Column, Context, Hooks, SwitchedOff};

const COUNTS: Counts = Counts {
    fields: &[
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ],
    within_replicas: &[],
    within_ready: None,
};

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
        let generation = template_generation(set);
        set_template_generation(set, generation);
    }

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("spec.template")
    }

    fn prepare_create(&self, _ctx: &Context<'_>, object: &mut Value) {
        set(
            object,
            "status",
            json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0}),
        );
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        // What is switched off is no change.
        self.switched_off().drop_from(new, Some(old));
        let changes = i64::from(!same_at(new, old, "spec.template"));
        set_template_generation(new, template_generation(old).saturating_add(changes));
    }

    fn prepare_subresource_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        set_template_generation(new, template_generation(old));
    }

    fn validate_create(&self, _ctx: &Context<'_>, set: &Value) -> ErrorList {
        validate(set)
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

/// How often the template was changed, counted from 1. Older API versions had it in the spec; since then it is an
/// annotation that the server keeps, and clients cannot set it but when they create.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(daemons: &Value) -> i64 {
    annotation(daemons, TEMPLATE_GENERATION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn set_template_generation(daemons: &mut Value, generation: i64) {
    default(daemons, "metadata.annotations", json!({}));
    if let Some(Value::Object(annotations)) = get_mut(daemons, "metadata.annotations") {
        annotations.insert(TEMPLATE_GENERATION.to_owned(), generation.to_string().into());
    }
}

fn validate(set: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(set).child("spec");
    selector_and_labels(&spec, &mut errors);
    validate_template(&spec.child("template"), "DaemonSet", &mut errors);
    spec.child("minReadySeconds").non_negative(&mut errors);
    update_strategy(&spec.child("updateStrategy"), &mut errors);
    spec.child("revisionHistoryLimit").non_negative(&mut errors);
    errors
}

/// A missing selector is said by the labels it does not choose.
fn selector_and_labels(spec: &Node<'_>, errors: &mut ErrorList) {
    let (selector, labels) = (spec.child("selector"), spec.child("template.metadata.labels"));
    label_selector(&selector, errors);
    let given = get(spec.value, "template.metadata.labels");
    let chosen = match api::selector::Selector::from_json(Some(selector.value)) {
        Ok(parsed) => selector.exists() && parsed.matches_json(given),
        Err(_) => true,
    };
    if !chosen {
        labels.invalid(errors, "`selector` does not match template `labels`");
    }
    if selector.exists() && selector_is_empty(selector.value) {
        selector.invalid(errors, "empty selector is invalid for daemonset");
    }
}

fn update_strategy(strategy: &Node<'_>, errors: &mut ErrorList) {
    match strategy.child("type").text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.child("rollingUpdate");
            let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
            for check in [positive_int_or_percent, not_more_than_hundred_percent] {
                check(&unavailable, errors);
                check(&surge, errors);
            }
            match (is_zero(unavailable.value), is_zero(surge.value)) {
                (true, true) => unavailable.missing(errors, "cannot be 0 when maxSurge is 0"),
                (false, false) => surge.invalid(errors, "may not be set when maxUnavailable is non-zero"),
                _ => {}
            }
        }
        _ => strategy_not_supported(strategy, &["RollingUpdate", "OnDelete"], errors),
    }
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            number(
                "Desired",
                "The total number of nodes that should be running the daemon pod (including nodes correctly running the daemon pod). More info: https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
            ),
            number(
                "Current",
                "The number of nodes that are running at least 1 daemon pod and are supposed to run the daemon pod. More info: https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
            ),
            number(
                "Ready",
                "The number of nodes that should be running the daemon pod and have one or more of the daemon pod running and ready.",
            ),
            number("Up-to-date", "The total number of nodes that are running updated daemon pod"),
            number(
                "Available",
                "The number of nodes that should be running the daemon pod and have one or more of the daemon pod running and available (ready for at least spec.minReadySeconds)",
            ),
            words(
                "Node Selector",
                "NodeSelector is a selector which must be true for the pod to fit on a node. Selector which must match a node's labels for the pod to be scheduled on that node. More info: https://kubernetes.io/docs/concepts/configuration/assign-pod-node/",
            ),
        ],
        template_columns(
            "A label query over pods that are managed by the daemon set. Must match in order to be controlled. If empty, defaulted to labels on Pod template. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;

    fn daemons(extra: Value) -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        for (key, value) in extra.as_object().unwrap() {
            set(&mut object, key, value.clone());
        }
        object
    }

    #[test]
    fn refused() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"spec.selector": null}),
                "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
            ),
            (json!({"spec.selector": {}}), "spec.selector: Invalid value: {}: empty selector is invalid for daemonset"),
            (
                json!({"spec.updateStrategy.type": "X"}),
                "spec.updateStrategy: Unsupported value: {\"RollingUpdate\":null,\"Type\":\"X\"}: supported values: \"RollingUpdate\", \"OnDelete\"",
            ),
            (
                json!({"spec.updateStrategy.rollingUpdate": {"maxSurge": 1, "maxUnavailable": "150%"}}),
                "[spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"150%\": must not be greater than 100%, \
                 spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero]",
            ),
            (
                json!({"spec.updateStrategy.rollingUpdate.maxUnavailable": 0}),
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
            ),
            (
                json!({"spec.template.spec.activeDeadlineSeconds": 1, "spec.minReadySeconds": -1}),
                "[spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in DaemonSet is not Supported, \
                 spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0]",
            ),
        ] {
            assert_eq!(tested::created(&DaemonSet, &daemons(extra.clone())), expected, "{extra}");
        }
    }

    #[test]
    fn the_template_generation_counts_changes_of_the_template() {
        let generation = |object: &Value| annotation(object, TEMPLATE_GENERATION).map(str::to_owned);
        let mut old = daemons(json!({}));
        DaemonSet.defaults(&mut old);
        assert_eq!(generation(&old).as_deref(), Some("0"));
        tested::with(&old.clone(), "", |ctx| DaemonSet.prepare_create(ctx, &mut old));
        assert_eq!(generation(&old).as_deref(), Some("1"));
        for (change, expected) in [
            (json!({"spec.minReadySeconds": 5}), "1"),
            (json!({"spec.template.spec.nodeSelector": {"a": "b"}}), "2"),
            (json!({"metadata.annotations": {TEMPLATE_GENERATION: "9"}}), "1"),
            (json!({"metadata.annotations": null}), "1"),
        ] {
            let mut new = old.clone();
            for (path, value) in change.as_object().unwrap() {
                set(&mut new, path, value.clone());
            }
            DaemonSet.defaults(&mut new);
            let mut status = new.clone();
            tested::prepared(&DaemonSet, &mut new, &old);
            assert_eq!(generation(&new).as_deref(), Some(expected), "{change}");
            tested::with(&old, "status", |ctx| DaemonSet.prepare_subresource_update(ctx, &mut status, &old));
            assert_eq!(generation(&status).as_deref(), Some("1"), "{change}");
        }
    }

    #[test]
    fn rows() {
        let object = daemons(
            json!({"spec.template.spec.nodeSelector": {"disk": "ssd"}, "status": {"desiredNumberScheduled": 3, "currentNumberScheduled": 2, "numberReady": 1, "updatedNumberScheduled": 2, "numberAvailable": 1}}),
        );
        assert_eq!(
            tested::cells(&DaemonSet, &object, "2026-01-01T00:00:00Z"),
            "d|3|2|1|2|1|disk=ssd|<unknown>|c|i|a=b"
        );
    }
}
