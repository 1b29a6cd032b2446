//! The `storagemigration.k8s.io` group: StorageVersionMigration.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

use super::check::Node;
use super::table::words;
use super::value::{at, name, text};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    let descriptor =
        Descriptor::new("storagemigration.k8s.io", "v1", "StorageVersionMigration", "storageversionmigrations")
            .cluster_scoped()
            .with_status()
            .columns(columns());
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

    fn row(&self, migration: &Value, _now: Timestamp) -> Vec<Value> {
        let resource = at(migration, "spec.resource");
        vec![name(migration).into(), format!("{}.{}", text(resource, "resource"), text(resource, "group")).into()]
    }
}

fn columns() -> Vec<Column> {
    let mut name = Column::name();
    name.format = "".into();
    vec![name, words("Resource", "Fully qualified resource to migrate")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::cells;
    use serde_json::json;

    #[test]
    fn rows() {
        for (resource, shown) in [
            (json!({"group": "apps", "resource": "deployments"}), "m|deployments.apps"),
            (json!({"resource": "secrets"}), "m|secrets."),
        ] {
            let migration = json!({"metadata": {"name": "m"}, "spec": {"resource": resource}});
            assert_eq!(cells(&Migration, &migration, "2026-01-01T00:00:00Z"), shown);
        }
    }
}
