//! The `coordination.k8s.io` group: Lease.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

use super::check::Node;
use super::table::{cell, named, row, words};
use super::value::{has, remove};
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

/// Fields of coordinated leader election, which is off: nobody may begin to use them.
const COORDINATED: [&str; 2] = ["spec.strategy", "spec.preferredHolder"];

impl Hooks for Lease {
    fn prepare_create(&self, _ctx: &Context<'_>, lease: &mut Value) {
        for field in COORDINATED {
            remove(lease, field);
        }
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        for field in COORDINATED.into_iter().filter(|field| !has(old, field)) {
            remove(new, field);
        }
    }

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
    } else if !spec.child("preferredHolder").text().is_empty() {
        spec.child("preferredHolder").forbidden(&mut errors, "may only be specified when strategy is defined");
    }
    errors
}

fn columns() -> Vec<Column> {
    named(vec![words(
        "Holder",
        "holderIdentity contains the identity of the holder of a current lease. If Coordinated Leader Election is used, the holder identity must be equal to the elected LeaseCandidate.metadata.name field.",
    )])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, updated};
    use serde_json::json;

    #[test]
    fn leases() {
        let with = |spec: Value| json!({"metadata": {"name": "l"}, "spec": spec});
        for (spec, expected) in [
            (json!({"leaseDurationSeconds": 15, "leaseTransitions": 0}), "[]"),
            (json!({"leaseDurationSeconds": 0}), "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"),
            (
                json!({"leaseTransitions": -1}),
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ),
            // What is not in use is dropped, not refused.
            (json!({"strategy": "X", "preferredHolder": "p"}), "[]"),
        ] {
            assert_eq!(created(&Lease, &with(spec.clone())), expected, "{spec}");
            assert_eq!(updated(&Lease, &with(json!({})), &with(spec.clone())), expected, "{spec}");
        }
        let shown = |spec: Value| cells(&Lease, &with(spec), "2026-01-01T00:00:00Z");
        assert_eq!(
            (shown(json!({"holderIdentity": "me"})), shown(json!({}))),
            ("l|me|<unknown>".to_owned(), "l||<unknown>".to_owned())
        );
    }
}
