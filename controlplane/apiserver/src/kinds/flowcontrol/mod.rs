//! The `flowcontrol.apiserver.k8s.io` group.

mod level;
mod schema;

use serde_json::Value;

use super::check::{Node, Seen};
use super::value::name;
use crate::resource::{Descriptor, Resource};
use api::field::{Error, ErrorList};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(descriptor("FlowSchema", "flowschemas").columns(schema::columns()), schema::Schema),
        Resource::new(
            descriptor("PriorityLevelConfiguration", "prioritylevelconfigurations").columns(level::columns()),
            level::Level,
        ),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    Descriptor::new("flowcontrol.apiserver.k8s.io", "v1", kind, plural).cluster_scoped().with_status().with_generation()
}

/// The spec that one of the objects every cluster has must keep.
fn fixed(plural: &str, object: &Value) -> Option<Value> {
    if !matches!(name(object), "exempt" | "catch-all") {
        return None;
    }
    let mut standard = crate::bootstrap::flowcontrol::objects(plural);
    let found = standard.iter_mut().find(|standard| name(standard) == name(object))?;
    Some(found["spec"].take())
}

/// Every type of condition once, and named.
fn conditions(object: &Value) -> ErrorList {
    let (mut errors, mut seen) = (ErrorList::new(), Seen::default());
    for condition in Node::root(object).items("status.conditions") {
        let type_ = condition.child("type");
        if !seen.insert(type_.text()) {
            errors.push(Error::duplicate(&type_.path, type_.text()));
        }
        type_.required(&mut errors, "must not be empty");
    }
    errors
}
