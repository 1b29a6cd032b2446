//! The `node.k8s.io` group: RuntimeClass.

use api::field::ErrorList;
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::check::{Node, labels};
use super::core::pod::container::resource_quantity;
use super::core::pod::placement::validate_toleration;
use super::table::{cell, named, row, words};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Class)]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses").cluster_scoped();
    descriptor.unconditional_update = false;
    descriptor
}

struct Class;

impl Hooks for Class {
    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(class);
        root.child("handler").format(&mut errors, names::dns1123_label);
        for (name, amount) in root.entries("overhead.podFixed") {
            resource_quantity(name, &amount, &mut errors);
        }
        labels(&root.child("scheduling.nodeSelector"), &mut errors);
        for toleration in root.items("scheduling.tolerations") {
            validate_toleration(&toleration, &mut errors);
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("handler").immutable(&mut errors, &Node::root(old).child("handler"));
        errors
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        row(class, now, vec![cell(class, "handler")])
    }
}

fn columns() -> Vec<Column> {
    named(vec![words(
        "Handler",
        "handler specifies the underlying runtime and configuration that the CRI implementation will use to handle pods of this class.",
    )])
}
