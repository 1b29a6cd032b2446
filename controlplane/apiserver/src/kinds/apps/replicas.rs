//! ReplicaSets and their elder, core's ReplicationControllers.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Counts, immutable_selector, named_template_warnings, template_cells, template_defaults, validate_counts,
    validate_selector, validate_template, validate_template_labels,
};
use crate::kinds::check::Node;
use crate::kinds::core::pod::gated;
use crate::kinds::table::{count, labels, named_wide, number, row_wide, selector, template_columns};
use crate::kinds::value::{at, default, get, has, map, set};
use crate::registry::delete::Propagation;
use crate::resource::{Column, Context, Hooks, SwitchedOff};

const COUNTS: Counts = Counts {
    fields: &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"],
    within_replicas: &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    within_ready: Some("cannot be greater than readyReplicas"),
};

pub struct ReplicaSet;

impl Hooks for ReplicaSet {
    fn defaults(&self, set: &mut Value) {
        default(set, "spec.replicas", 1);
        template_defaults(set);
    }

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("spec.template")
    }

    fn prepare_create(&self, _ctx: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({"replicas": 0}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, set: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(set).child("spec");
        for field in ["replicas", "minReadySeconds"] {
            spec.child(field).non_negative(&mut errors);
        }
        validate_selector(&spec, "deployment", &mut errors);
        if validate_template_labels(&spec, "invalid label selector", &mut errors) {
            validate_template(&spec.child("template"), "ReplicaSet", &mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        immutable_selector(new, old, &mut errors);
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        if ctx.subresource == "status" { validate_counts(new, old, &COUNTS) } else { ErrorList::new() }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        named_template_warnings(new, old)
    }

    fn row(&self, set: &Value, now: Timestamp) -> Vec<Value> {
        replica_row(set, now, selector(at(set, "spec.selector")))
    }
}

pub struct ReplicationController;

impl Hooks for ReplicationController {
    fn defaults(&self, controller: &mut Value) {
        default(controller, "spec.replicas", 1);
        // The template is a pointer here: a missing one stays missing.
        if has(controller, "spec.template") {
            template_defaults(controller);
        }
        // What the template's labels say goes for selector and labels too.
        if let Some(own) = map(controller, "spec.template.metadata.labels").filter(|labels| !labels.is_empty()).cloned()
        {
            for path in ["spec.selector", "metadata.labels"] {
                if map(controller, path).is_none_or(serde_json::Map::is_empty) {
                    set(controller, path, own.clone());
                }
            }
        }
    }

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("spec.template")
    }

    fn prepare_create(&self, _ctx: &Context<'_>, controller: &mut Value) {
        set(controller, "status", json!({"replicas": 0}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, controller: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(controller).child("spec");
        spec.child("selector").required(&mut errors, "");
        validate_controlled(&spec, &mut errors);
        // Declared rules speak last.
        for field in ["replicas", "minReadySeconds"] {
            spec.child(field).non_negative(&mut errors);
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        if ctx.subresource == "status" { validate_counts(new, old, &COUNTS) } else { ErrorList::new() }
    }

    fn default_propagation(&self) -> Option<Propagation> {
        Some(Propagation::Orphan)
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        named_template_warnings(new, old)
    }

    fn row(&self, controller: &Value, now: Timestamp) -> Vec<Value> {
        replica_row(controller, now, labels(get(controller, "spec.selector").and_then(Value::as_object)))
    }
}

/// `ValidatePodTemplateSpecForRC`
fn validate_controlled(spec: &Node<'_>, errors: &mut ErrorList) {
    let template = spec.child("template");
    if !template.exists() {
        return template.missing(errors, "");
    }
    let labels = map(template.value, "metadata.labels");
    let matches = |(key, value): (&String, &Value)| labels.and_then(|labels| labels.get(key)) == Some(value);
    if !map(spec.value, "selector").into_iter().flatten().all(matches) {
        template.child("metadata.labels").invalid(errors, "`selector` does not match template `labels`");
    }
    validate_template(&template, "ReplicationController", errors);
}

fn replica_row(object: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    row_wide(
        object,
        now,
        vec![count(object, "spec.replicas"), count(object, "status.replicas"), count(object, "status.readyReplicas")],
        template_cells(object, Some(selector)),
    )
}

pub fn set_columns() -> Vec<Column> {
    columns(
        "Replicas is the number of desired pods. This is a pointer to distinguish between explicit zero and unspecified. Defaults to 1. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
        "Replicas is the most recently observed number of non-terminating pods. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicaset",
        "The number of non-terminating pods targeted by this ReplicaSet with a Ready Condition.",
        "Selector is a label query over pods that should match the replica count.",
    )
}

pub fn controller_columns() -> Vec<Column> {
    columns(
        "Replicas is the number of desired replicas. This is a pointer to distinguish between explicit zero and unspecified. Defaults to 1. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
        "Replicas is the most recently observed number of replicas. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
        "The number of ready replicas for this replication controller.",
        "Selector is a label query over pods that should match the Replicas count.",
    )
}

/// Both print alike; the words differ.
fn columns(desired: &'static str, current: &'static str, ready: &'static str, selector: &'static str) -> Vec<Column> {
    let counts = vec![number("Desired", desired), number("Current", current), number("Ready", ready)];
    named_wide(counts, template_columns(selector))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated_sub};

    #[test]
    fn controllers_take_the_templates_labels() {
        let mut controller =
            json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}});
        ReplicationController.defaults(&mut controller);
        assert_eq!(controller["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(controller["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(controller["spec"]["replicas"], 1);
    }

    #[test]
    fn controllers_refused() {
        let template = |labels: Value, spec: Value| {
            let mut template =
                json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
            for (key, value) in spec.as_object().unwrap() {
                template["spec"][key] = value.clone();
            }
            template
        };
        for (spec, expected) in [
            (json!({"template": template(json!({"a": "b"}), json!({}))}), "[]"),
            (
                json!({"replicas": -1, "minReadySeconds": -2}),
                "[spec.selector: Required value, spec.template: Required value, \
                 spec.replicas: Invalid value: -1: must be greater than or equal to 0, \
                 spec.minReadySeconds: Invalid value: -2: must be greater than or equal to 0]",
            ),
            (
                json!({"selector": {"a": "c"}, "template": template(json!({"a": "b"}), json!({"restartPolicy": "Never", "activeDeadlineSeconds": 1}))}),
                "[spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`, \
                 spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\", \
                 spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicationController is not Supported]",
            ),
        ] {
            let controller = json!({"metadata": {"name": "r"}, "spec": spec});
            assert_eq!(created(&ReplicationController, &controller), expected, "{spec}");
        }
        let status = |status: Value| json!({"metadata": {"name": "r"}, "status": status});
        assert_eq!(
            updated_sub(
                &ReplicationController,
                "status",
                &status(json!({})),
                &status(json!({"replicas": 1, "fullyLabeledReplicas": 2, "readyReplicas": -1, "availableReplicas": 1}))
            ),
            "[status.readyReplicas: Invalid value: -1: must be greater than or equal to 0, \
             status.fullyLabeledReplicas: Invalid value: 2: cannot be greater than status.replicas, \
             status.availableReplicas: Invalid value: 1: cannot be greater than readyReplicas]"
        );
    }
}
