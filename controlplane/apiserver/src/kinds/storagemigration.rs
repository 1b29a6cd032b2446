//! The `storagemigration.k8s.io` group: StorageVersionMigration.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::check::{IMMUTABLE, Node, conditions};
use super::table::words;
use super::value::{at, list, name, same_at, text};
use crate::resource::{ALL_BUT_STATUS, Column, Context, Descriptor, Hooks, Paths, Resource};

pub fn resources() -> Vec<Resource> {
    let mut descriptor =
        Descriptor::new("storagemigration.k8s.io", "v1", "StorageVersionMigration", "storageversionmigrations")
            .cluster_scoped()
            .with_status()
            .columns(columns());
    descriptor.unconditional_update = false;
    vec![Resource::new(descriptor, Migration)]
}

struct Migration;

impl Hooks for Migration {
    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn validate_create(&self, _ctx: &Context<'_>, migration: &Value) -> ErrorList {
        validate(migration)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new);
        if !same_at(new, old, "spec") {
            let of = |field: &str| text(new, &format!("spec.resource.{field}"));
            // The structure as it is inside, where the fields of the resource have names in the API.
            let shown = format!(
                "{{\"Resource\":{{\"group\":{:?},\"resource\":{:?}}}}}: {IMMUTABLE}",
                of("group"),
                of("resource")
            );
            errors.push(Error::invalid_unshown(&Node::root(new).child("spec").path, shown));
        }
        errors
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_status(new, old)
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

fn validate(migration: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let resource = Node::root(migration).child("spec.resource");
    let (name, group) = (resource.child("resource"), resource.child("group"));
    if name.required(&mut errors, "resource is required to be set") {
        joined(&name, names::dns1035_label(name.text()), &mut errors);
    }
    if !group.text().is_empty() {
        joined(&group, names::dns1123_subdomain(group.text()), &mut errors);
    }
    errors
}

/// All that is wrong with a name, in one error.
fn joined(node: &Node<'_>, problems: Vec<String>, errors: &mut ErrorList) {
    if !problems.is_empty() {
        node.invalid_text(errors, problems.join(","));
    }
}

fn is(migration: &Value, type_: &str) -> bool {
    let found = list(migration, "status.conditions").iter().find(|condition| text(condition, "type") == type_);
    found.is_some_and(|condition| text(condition, "status") == "True")
}

/// A version once seen stays, and so does an end.
fn validate_status(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(new).child("status");
    let (version, was) = (status.child("resourceVersion"), text(old, "status.resourceVersion"));
    if !is_version(version.text()) {
        version.invalid_text(&mut errors, format!("resource version is not well formed: {}", version.text()));
    }
    conditions(&Node::root(new), "status.conditions", &mut errors);
    if !was.is_empty() && was != version.text() {
        version.invalid_text(&mut errors, IMMUTABLE);
    }
    let (succeeded, failed, running) = (is(new, "Succeeded"), is(new, "Failed"), is(new, "Running"));
    for (wrong, detail) in [
        (succeeded && failed, "Both success and failed conditions cannot be true at the same time"),
        (succeeded && running, "Running condition cannot be true when success condition is true"),
        (failed && running, "Running condition cannot be true when failed condition is true"),
        (is(old, "Succeeded") && !succeeded, "Success condition cannot be set to false once it is true"),
        (is(old, "Failed") && !failed, "Failed condition cannot be set to false once it is true"),
    ] {
        if wrong {
            status.child("conditions").invalid(&mut errors, detail);
        }
    }
    errors
}

/// A positive decimal number.
fn is_version(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, updated, updated_sub};
    use serde_json::json;

    fn migration(group: &str, resource: &str) -> Value {
        json!({"metadata": {"name": "m"}, "spec": {"resource": {"group": group, "resource": resource}}})
    }

    #[test]
    fn migrations_refused() {
        assert_eq!(created(&Migration, &migration("", "pods")), "[]");
        assert_eq!(
            created(&Migration, &migration("", "")),
            "spec.resource.resource: Required value: resource is required to be set"
        );
        let found = created(&Migration, &migration("A", "B"));
        assert!(found.starts_with("[spec.resource.resource: Invalid value: \"B\": a DNS-1035 label"), "{found}");
        assert!(found.contains("spec.resource.group: Invalid value: \"A\": a lowercase RFC 1123 subdomain"), "{found}");
        assert_eq!(
            updated(&Migration, &migration("", "pods"), &migration("", "secrets")),
            "spec: Invalid value: {\"Resource\":{\"group\":\"\",\"resource\":\"secrets\"}}: field is immutable"
        );
    }

    #[test]
    fn statuses() {
        let status = |version: &str, conditions: &[(&str, &str)]| {
            let conditions: Vec<Value> = conditions
                .iter()
                .map(|(type_, status)| json!({"type": type_, "status": status, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}))
                .collect();
            json!({"status": {"resourceVersion": version, "conditions": conditions}})
        };
        for (old, new, expected) in [
            (status("", &[]), status("5", &[("Running", "True")]), "[]"),
            (status("5", &[]), status("6", &[]), "status.resourceVersion: Invalid value: \"6\": field is immutable"),
            (
                status("", &[]),
                status("a", &[]),
                "status.resourceVersion: Invalid value: \"a\": resource version is not well formed: a",
            ),
        ] {
            assert_eq!(updated_sub(&Migration, "status", &old, &new), expected);
        }
        for (old, new, expected) in [
            (
                &[("Running", "True")][..],
                &[("Succeeded", "True"), ("Failed", "True")][..],
                "Both success and failed conditions cannot be true at the same time",
            ),
            (
                &[],
                &[("Succeeded", "True"), ("Running", "True")],
                "Running condition cannot be true when success condition is true",
            ),
            (
                &[],
                &[("Failed", "True"), ("Running", "True")],
                "Running condition cannot be true when failed condition is true",
            ),
            (
                &[("Succeeded", "True")],
                &[("Succeeded", "False")],
                "Success condition cannot be set to false once it is true",
            ),
            (&[("Failed", "True")], &[], "Failed condition cannot be set to false once it is true"),
        ] {
            let found = updated_sub(&Migration, "status", &status("5", old), &status("5", new));
            assert!(
                found.starts_with("status.conditions: Invalid value: [")
                    || found.starts_with("status.conditions: Invalid value: null"),
                "{found}"
            );
            assert!(found.ends_with(expected), "{found}");
        }
    }

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
