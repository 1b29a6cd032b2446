//! The `node.k8s.io` group: RuntimeClass.

use api::field::ErrorList;
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Node, labels};
use super::core::pod::placement::validate_toleration;
use super::core::pod::resources::container as container_resources;
use super::core::pod::warn::old_label;
use super::table::{cell, named, row, words};
use super::value::entries;
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Class)]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster_scoped();
    descriptor.create_on_update = true;
    descriptor.unconditional_update = false;
    descriptor
}

struct Class;

impl Hooks for Class {
    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(class);
        // The overhead is checked as the limits of a container are, and named so.
        let limits = json!({ "limits": root.child("overhead.podFixed").value });
        container_resources(&Node::new(&limits, root.child("overhead").path), &[], &mut errors);
        labels(&root.child("scheduling.nodeSelector"), &mut errors);
        for toleration in root.items("scheduling.tolerations") {
            validate_toleration(&toleration, &mut errors);
        }
        // Declared rules speak last.
        root.child("handler").required_format(&mut errors, names::dns1123_label);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("handler").immutable_declared(&mut errors, &Node::root(old).child("handler"));
        errors
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let selected = entries(new, "scheduling.nodeSelector").filter_map(|(key, _)| old_label(key));
        selected.map(|words| format!("scheduling.nodeSelector: {words}")).collect()
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        row(class, now, vec![cell(class, "handler")])
    }
}

fn columns() -> Vec<Column> {
    named(vec![words("Handler", "")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, updated};

    #[test]
    fn classes() {
        let with = |handler: &str| json!({"metadata": {"name": "r"}, "handler": handler});
        for (class, expected) in [
            (with("runc"), "[]"),
            (with(""), "handler: Required value"),
            (
                json!({"metadata": {"name": "r"}, "handler": "a", "overhead": {"podFixed": {"cpu": "-1"}}}),
                "overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                json!({"metadata": {"name": "r"}, "handler": "a", "overhead": {"podFixed": {"pods": "1"}}}),
                "overhead.limits[pods]: Invalid value: \"pods\": must be a standard resource for containers",
            ),
        ] {
            assert_eq!(created(&Class, &class), expected, "{class}");
        }
        assert_eq!(updated(&Class, &with("a"), &with("b")), "handler: Invalid value: null: field is immutable");
        assert_eq!(cells(&Class, &with("runc"), "2026-01-01T00:00:00Z"), "r|runc|<unknown>");
    }

    #[test]
    fn node_labels_of_before_are_warned_of() {
        let class = json!({"scheduling": {"nodeSelector": {"beta.kubernetes.io/os": "linux", "a": "b"}}});
        assert_eq!(
            Class.warnings(&class, None),
            ["scheduling.nodeSelector: deprecated since v1.14; use \"kubernetes.io/os\" instead"]
        );
    }
}
