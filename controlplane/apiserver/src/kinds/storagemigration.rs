//! The `storagemigration.k8s.io` group: StorageVersionMigration.

use api::field::ErrorList;
use serde_json::Value;

use super::check::Node;
use crate::resource::{Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    let descriptor =
        Descriptor::new("storagemigration.k8s.io", "v1", "StorageVersionMigration", "storageversionmigrations")
            .cluster_scoped()
            .with_status();
    vec![Resource::new(descriptor, Migration)]
}

struct Migration;

impl Hooks for Migration {
    fn validate_create(&self, _ctx: &Context<'_>, migration: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(migration).child("spec.resource.resource").required(&mut errors, "resource is required");
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("spec").immutable(&mut errors, &Node::root(old).child("spec"));
        errors
    }
}
