//! The `coordination.k8s.io` group: Lease.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

use super::check::Node;
use super::table::{cell, named, row, words};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![Resource::new(descriptor().columns(columns()), Lease)]
}

fn descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new("coordination.k8s.io", "v1", "Lease", "leases");
    descriptor.create_on_update = true;
    descriptor.unconditional_update = false;
    descriptor
}

struct Lease;

impl Hooks for Lease {
    fn validate_create(&self, _ctx: &Context<'_>, lease: &Value) -> ErrorList {
        validate(lease)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate(new)
    }

    fn row(&self, lease: &Value, now: Timestamp) -> Vec<Value> {
        row(lease, now, vec![cell(lease, "spec.holderIdentity")])
    }
}

fn validate(lease: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(lease).child("spec");
    let duration = spec.child("leaseDurationSeconds");
    if duration.exists() {
        duration.positive(&mut errors);
    }
    spec.child("leaseTransitions").non_negative(&mut errors);
    let strategy = spec.child("strategy");
    if strategy.exists() {
        strategy.required_one_of(&mut errors, &["OldestEmulationVersion"]);
    }
    errors
}

fn columns() -> Vec<Column> {
    named(vec![words("Holder", "holderIdentity contains the identity of the holder of a current lease.")])
}
