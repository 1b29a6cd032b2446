//! The `scheduling.k8s.io` group: PriorityClass.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

use super::check::Node;
use super::table::{boolean, count, number, words};
use super::value::{default_text, flag, int, name, set, text};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource, age};

/// The largest priority that users may give.
const USER_MAXIMUM: i64 = 1_000_000_000;
/// The system's own classes and their values.
const SYSTEM: [(&str, i64); 2] = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Class)]
}

fn descriptor() -> Descriptor {
    Descriptor::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses").cluster_scoped().short(&["pc"])
}

struct Class;

impl Hooks for Class {
    fn defaults(&self, class: &mut Value) {
        default_text(class, "preemptionPolicy", "PreemptLowerPriority");
    }

    /// What may change of a class makes no further generation.
    fn prepare_create(&self, _ctx: &Context<'_>, class: &mut Value) {
        set(class, "metadata.generation", 1);
    }

    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        validate(class)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(new);
        if int(new, "value") != int(old, "value") {
            root.child("value").forbidden(&mut errors, "may not be changed in an update.");
        }
        root.child("preemptionPolicy").immutable(&mut errors, &Node::root(old).child("preemptionPolicy"));
        errors
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(class).into(),
            count(class, "value"),
            flag(class, "globalDefault").into(),
            age(class, now),
            text(class, "preemptionPolicy").into(),
        ]
    }
}

fn validate(class: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(class);
    let (own, value) = (name(class), int(class, "value"));
    if own.starts_with("system-") {
        let why = match SYSTEM.iter().find(|(known, _)| *known == own) {
            None => Some(format!("{own} is not a known system priority class")),
            Some((_, fixed)) if *fixed != value => Some(format!("value of {own} PriorityClass must be {fixed}")),
            Some(_) if flag(class, "globalDefault") => {
                Some(format!("globalDefault of {own} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(why) = why {
            root.child("metadata.name").forbidden(
                &mut errors,
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"),
            );
        }
    } else if value > USER_MAXIMUM {
        root.child("value")
            .forbidden(&mut errors, format!("maximum allowed value of a user defined priority is {USER_MAXIMUM}"));
    }
    if root.has("preemptionPolicy") {
        root.child("preemptionPolicy").required_one_of(&mut errors, &["PreemptLowerPriority", "Never"]);
    }
    errors
}

fn columns() -> Vec<Column> {
    vec![
        Column::name(),
        number(
            "Value",
            "value represents the integer value of this priority class. This is the actual priority that pods receive when they have the name of this class in their pod spec.",
        ),
        boolean(
            "Global-Default",
            "globalDefault specifies whether this PriorityClass should be considered as the default priority for pods that do not have any priority class.",
        ),
        Column::age(),
        words(
            "PreemptionPolicy",
            "preemptionPolicy is the Policy for preempting pods with lower priority. One of Never, PreemptLowerPriority. Defaults to PreemptLowerPriority if unset.",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::with;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn a_class_is_of_the_first_generation() {
        assert!(!descriptor().generation, "the registry would count on");
        let mut class = json!({"metadata": {"name": "a"}});
        with(&json!({}), "", |ctx| Class.prepare_create(ctx, &mut class));
        assert_eq!(class["metadata"]["generation"], 1);
    }

    #[test]
    fn classes() {
        for (class, expected) in [
            (json!({"metadata": {"name": "a"}, "value": 5}), "[]"),
            (
                json!({"metadata": {"name": "a"}, "value": 2_000_000_000}),
                "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
            ),
            (json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000}), "[]"),
            (
                json!({"metadata": {"name": "system-node-critical"}, "value": 1}),
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: value of system-node-critical PriorityClass must be 2000001000",
            ),
            (
                json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000, "globalDefault": true}),
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: globalDefault of system-node-critical PriorityClass must be false",
            ),
            (
                json!({"metadata": {"name": "a"}, "preemptionPolicy": "X"}),
                "preemptionPolicy: Unsupported value: \"X\": supported values: \"PreemptLowerPriority\", \"Never\"",
            ),
            (
                json!({"metadata": {"name": "system-x"}, "value": 1}),
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class",
            ),
        ] {
            assert_eq!(join(&validate(&class)), expected, "{class}");
        }
    }
}
