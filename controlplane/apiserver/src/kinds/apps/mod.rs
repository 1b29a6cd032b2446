//! The `apps` group, and core's ReplicationController and PodTemplate, which share its pod template
//! rules.

mod daemon_set;
mod deployment;
mod replicas;
mod stateful_set;

use api::field::{Error, ErrorList};
use jiff::Timestamp;
use serde_json::{Value, json};

pub use replicas::{ReplicationController, controller_columns};

use crate::kinds::check::{Node, label_selector, selector_is_empty};
use crate::kinds::core::pod::{defaults, gated, spec};
use crate::kinds::table::{NONE, containers, labels, named, row, template_columns, words};
use crate::kinds::value::{at, default, get, get_mut, int, list, map, opt_int, same_at, text};
use crate::resource::{Column, Context, Descriptor, Hooks, NameRule, Resource, SwitchedOff};

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
        Resource::new(
            scaled(workload("ReplicaSet", "replicasets", "rs")).columns(replicas::set_columns()),
            replicas::ReplicaSet,
        ),
        Resource::new(
            scaled(workload("StatefulSet", "statefulsets", "sts"))
                .names(NameRule::DnsLabel)
                .columns(stateful_set::columns()),
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

/// Defaults of `spec.template`, which is a plain struct upstream: a missing one is defaulted too.
pub fn template_defaults(object: &mut Value) {
    default(object, "spec.template", json!({}));
    if let Some(template) = get_mut(object, "spec.template") {
        defaults::template(template);
    }
}

/// A selector that is there, is sound and selects something in particular.
pub fn validate_selector(spec: &Node<'_>, what: &str, errors: &mut ErrorList) {
    let selector = spec.child("selector");
    if !selector.exists() {
        return selector.missing(errors, "");
    }
    label_selector(&selector, errors);
    if selector_is_empty(selector.value) {
        selector.invalid(errors, format!("empty selector is invalid for {what}"));
    }
}

/// Whether the selector can be read at all; if it can, it must choose the template's own labels.
/// No selector chooses nothing.
pub fn validate_template_labels(spec: &Node<'_>, malformed: &str, errors: &mut ErrorList) -> bool {
    let selector = spec.child("selector");
    let own = spec.child("template.metadata.labels");
    let Ok(parsed) = api::selector::Selector::from_json(Some(selector.value)) else {
        selector.invalid(errors, malformed);
        return false;
    };
    if !selector.exists()
        || !parsed.is_everything() && !parsed.matches_json(get(spec.value, "template.metadata.labels"))
    {
        own.invalid(errors, "`selector` does not match template `labels`");
    }
    true
}

/// A template whose pods always restart. `kind` is named where a deadline is refused.
pub fn validate_template(template: &Node<'_>, kind: &str, errors: &mut ErrorList) {
    spec::validate_template(template, errors);
    restarts_always(template, kind, errors);
}

pub fn restarts_always(template: &Node<'_>, kind: &str, errors: &mut ErrorList) {
    let policy = template.child("spec.restartPolicy");
    if policy.text() != "Always" {
        errors.push(Error::not_supported(&policy.path, policy.text(), &["Always"]));
    }
    if template.has("spec.activeDeadlineSeconds") {
        template
            .child("spec.activeDeadlineSeconds")
            .forbidden(errors, format!("activeDeadlineSeconds in {kind} is not Supported"));
    }
}

/// `spec.strategy: Unsupported value: {...}`: the whole strategy is shown, under the names of its Go fields.
pub fn strategy_not_supported(strategy: &Node<'_>, supported: &[&str], errors: &mut ErrorList) {
    let shown = json!({"Type": strategy.child("type").text(), "RollingUpdate": rolling_in_go(strategy)});
    errors.push(Error::not_supported(&strategy.path, shown, supported));
}

/// `rollingUpdate` as Go would print the internal struct: its fields by their Go names.
pub fn rolling_in_go(strategy: &Node<'_>) -> Value {
    let Some(fields) = map(strategy.value, "rollingUpdate") else { return Value::Null };
    let named = |(key, value): (&String, &Value)| {
        let mut letters = key.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        (first.into_iter().chain(letters).collect::<String>(), value.clone())
    };
    Value::Object(fields.iter().map(named).collect())
}

/// Selectors of workloads never change.
pub fn immutable_selector(new: &Value, old: &Value, errors: &mut ErrorList) {
    Node::root(new).child("spec.selector").immutable(errors, &Node::root(old).child("spec.selector"));
}

/// Counters of a status: which there are, which may not exceed `status.replicas`, and whether the
/// available ones are compared with the ready ones (and how that is said).
pub struct Counts {
    pub fields: &'static [&'static str],
    pub within_replicas: &'static [&'static str],
    pub within_ready: Option<&'static str>,
}

/// Counters are not negative and fit each other; `collisionCount` never goes back.
pub fn validate_counts(new: &Value, old: &Value, counts: &Counts) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(new).child("status");
    for field in counts.fields {
        status.child(field).non_negative(&mut errors);
    }
    let replicas = int(status.value, "replicas");
    for field in counts.within_replicas {
        if int(status.value, field) > replicas {
            status.child(field).invalid(&mut errors, "cannot be greater than status.replicas");
        }
    }
    if let Some(detail) = counts.within_ready
        && int(status.value, "availableReplicas") > int(status.value, "readyReplicas")
    {
        status.child("availableReplicas").invalid(&mut errors, detail);
    }
    let collisions = (opt_int(new, "status.collisionCount"), opt_int(old, "status.collisionCount"));
    if counts.fields.contains(&"collisionCount") && collisions.0.unwrap_or(i64::MIN) < collisions.1.unwrap_or(i64::MIN)
    {
        let path = &status.child("collisionCount").path;
        errors.push(Error::invalid(path, collisions.0.unwrap_or(0), "cannot be decremented"));
    }
    errors
}

/// A name that pods get too and that is no DNS label.
pub fn name_warning(object: &Value) -> Option<String> {
    let problems = api::names::dns1123_label(text(object, "metadata.name"));
    (!problems.is_empty()).then(|| format!(
        "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
        problems.join(" ")
    ))
}

/// As [`template_warnings`], with a creation's warning about the name.
pub fn named_template_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings: Vec<String> = if old.is_none() { name_warning(new).into_iter().collect() } else { Vec::new() };
    warnings.extend(template_warnings(new, old));
    warnings
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
        if get(revision, "data").is_none() {
            Node::root(revision).child("data").missing(&mut errors, "data is mandatory");
        }
        Node::root(revision).child("revision").non_negative(&mut errors);
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
        words("Revision", "revision indicates the revision of the state represented by Data."),
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

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("template")
    }

    fn validate_create(&self, _ctx: &Context<'_>, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        spec::validate_template(&Node::root(object).child("template"), &mut errors);
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some_and(|old| same_at(old, new, "template")) {
            return Vec::new();
        }
        crate::kinds::core::pod::warnings(at(new, "template"), "template")
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
    columns.extend(template_columns(""));
    columns.push(words("Pod Labels", "The labels for the pod template."));
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::created;

    #[test]
    fn templates() {
        let template = |spec: Value| json!({"metadata": {"name": "t"}, "template": {"spec": spec}});
        let container = json!({"name": "c", "image": "i"});
        assert_eq!(created(&PodTemplate, &template(json!({"containers": [container]}))), "[]");
        assert_eq!(
            created(&PodTemplate, &template(json!({"containers": []}))),
            "template.spec.containers: Required value"
        );
        let old = template(json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}}));
        let said = "template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead";
        assert_eq!(PodTemplate.warnings(&old, None), [said]);
        assert_eq!(PodTemplate.warnings(&old, Some(&old)), Vec::<String>::new(), "an unchanged template is known");
    }
}
