//! The `apps` group, and core's ReplicationController and PodTemplate, which share its pod template
//! rules.

mod daemon_set;
mod deployment;
mod replicas;
mod stateful_set;

use api::field::{Error, ErrorList};
use jiff::Timestamp;
use serde_json::{Value, json};

pub use replicas::{ReplicationController, columns as replica_columns};

use crate::kinds::check::{Node, label_selector, selector_is_empty};
use crate::kinds::core::pod::{defaults, spec};
use crate::kinds::core::selectable_or;
use crate::kinds::table::{NONE, containers, labels, named, number, row, template_columns, words};
use crate::kinds::value::{at, default, get, get_mut, int, list, map, same_at, text};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            Descriptor::new("apps", "v1", "ControllerRevision", "controllerrevisions").columns(revision_columns()),
            Revision,
        ),
        Resource::new(workload("DaemonSet", "daemonsets", "ds").columns(daemon_set::columns()), daemon_set::DaemonSet),
        Resource::new(
            scaled(workload("Deployment", "deployments", "deploy")).columns(deployment::columns()),
            deployment::Deployment,
        ),
        Resource::new(replica_set_descriptor().columns(replica_columns()), replicas::ReplicaSet),
        Resource::new(
            scaled(workload("StatefulSet", "statefulsets", "sts")).columns(stateful_set::columns()),
            stateful_set::StatefulSet,
        ),
    ]
}

fn workload(kind: &'static str, plural: &'static str, short: &'static str) -> Descriptor {
    Descriptor::new("apps", "v1", kind, plural).short(&[short]).categories(&["all"]).with_status().with_generation()
}

fn scaled(descriptor: Descriptor) -> Descriptor {
    descriptor.with_scale("spec.replicas", "status.replicas", "spec.selector")
}

fn replica_set_descriptor() -> Descriptor {
    let mut descriptor = scaled(workload("ReplicaSet", "replicasets", "rs"));
    descriptor.selectable.push(selectable_or("status.replicas", "status.replicas", "0"));
    descriptor
}

/// Defaults of `spec.template` and an empty status, which is always served.
pub fn template_defaults(object: &mut Value) {
    if let Some(template) = get_mut(object, "spec.template") {
        defaults::template(template);
    }
}

/// Everything with a selector and a template: replicas not negative, a selector that selects
/// something and matches the template, a sound template that restarts always.
pub fn validate_workload(spec: &Node<'_>, what: &str, errors: &mut ErrorList) {
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
        spec.child(field).non_negative(errors);
    }
    let selector = spec.child("selector");
    if !selector.exists() {
        selector.missing(errors, "");
    } else {
        label_selector(&selector, errors);
        if selector_is_empty(selector.value) {
            selector.invalid(errors, format!("empty selector is invalid for {what}"));
        }
    }
    let template = spec.child("template");
    if !template.exists() {
        return template.missing(errors, "");
    }
    let parsed = api::selector::Selector::from_json(Some(selector.value));
    let own = template.child("metadata.labels");
    if parsed.is_ok_and(|selector| {
        !selector.is_everything() && !selector.matches_json(get(template.value, "metadata.labels"))
    }) {
        own.invalid(errors, "`selector` does not match template `labels`");
    }
    validate_template(&template, errors);
}

/// A template whose pods always restart.
pub fn validate_template(template: &Node<'_>, errors: &mut ErrorList) {
    spec::validate_template(template, errors);
    let policy = template.child("spec.restartPolicy");
    if policy.text() != "Always" {
        errors.push(Error::not_supported(&policy.path, policy.text(), &["Always"]));
    }
    if template.has("spec.activeDeadlineSeconds") {
        template
            .child("spec.activeDeadlineSeconds")
            .forbidden(errors, "activeDeadlineSeconds in ReplicaSet is not Supported");
    }
}

/// Selectors of workloads never change.
pub fn immutable_selector(new: &Value, old: &Value, errors: &mut ErrorList) {
    Node::root(new).child("spec.selector").immutable(errors, &Node::root(old).child("spec.selector"));
}

/// Counters of a status are not negative.
pub fn validate_counts(new: &Value, fields: &[&str]) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(new).child("status");
    for field in fields {
        status.child(field).non_negative(&mut errors);
    }
    let replicas = int(status.value, "replicas");
    for field in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas", "updatedReplicas"] {
        if fields.contains(&field) && int(status.value, field) > replicas {
            status.child(field).invalid(&mut errors, "cannot be greater than status.replicas");
        }
    }
    errors
}

/// Warnings about the template.
pub fn template_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| same_at(old, new, "spec.template")) {
        return Vec::new();
    }
    crate::kinds::core::pod::warnings(at(new, "spec.template"), "spec.template")
}

/// Cells of `-o wide` for a template and the object's selector.
pub fn template_cells(object: &Value, selector: Option<String>) -> Vec<Value> {
    let mut cells: Vec<Value> = containers(at(object, "spec.template.spec")).into();
    cells.extend(selector.map(Value::from));
    cells
}

/// The history of DaemonSets and StatefulSets.
struct Revision;

impl Hooks for Revision {
    fn validate_create(&self, _ctx: &Context<'_>, revision: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(revision).child("revision").non_negative(&mut errors);
        if get(revision, "data").is_none() {
            Node::root(revision).child("data").missing(&mut errors, "data is mandatory");
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        Node::root(new).child("data").immutable(&mut errors, &Node::root(old).child("data"));
        errors
    }

    fn row(&self, revision: &Value, now: Timestamp) -> Vec<Value> {
        let owner = list(revision, "metadata.ownerReferences").iter().find(|owner| owner["controller"] == json!(true));
        let controller = owner.map_or(NONE.to_owned(), |owner| {
            let (group, _) = crate::resource::split_api_version(text(owner, "apiVersion"));
            let kind = text(owner, "kind").to_lowercase();
            let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
            format!("{kind}/{}", text(owner, "name"))
        });
        row(revision, now, vec![controller.into(), int(revision, "revision").into()])
    }
}

fn revision_columns() -> Vec<Column> {
    named(vec![
        words("Controller", "Controller of the object"),
        number("Revision", "Revision indicates the revision of the state represented by Data."),
    ])
}

pub struct PodTemplate;

impl Hooks for PodTemplate {
    fn defaults(&self, object: &mut Value) {
        default(object, "template", json!({}));
        if let Some(template) = get_mut(object, "template") {
            defaults::template(template);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        spec::validate_template(&Node::root(object).child("template"), &mut errors);
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
    }

    fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let [names, images] = containers(at(object, "template.spec"));
        vec![
            text(object, "metadata.name").into(),
            names,
            images,
            labels(map(object, "template.metadata.labels")).into(),
        ]
    }
}

pub fn pod_template_columns() -> Vec<Column> {
    let mut columns = vec![Column::name()];
    columns.extend(template_columns(false));
    columns.push(words("Pod Labels", "The labels for the pod template."));
    columns
}
