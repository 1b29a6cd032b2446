//! The built-in kinds: one [`Resource`] (data and hooks) per kind, one directory or file per API
//! group. Adding a kind is adding a descriptor and its hooks here.
//!
//! Layer: above `resource` (the contract), below the registry, which only ever sees what [`all`]
//! returns. `value`, `check` and `table` are the shared tools; everything here is synchronous and
//! pure but for Service addresses (`core::service`), which are reserved around a write.

pub mod check;
pub mod meta;
mod metrics;
pub mod names;
pub mod table;
pub mod value;

pub mod admissionregistration;
pub mod apiextensions;
mod apiregistration;
pub mod apps;
mod authentication;
pub mod authorization;
mod autoscaling;
mod batch;
pub mod certificates;
mod coordination;
pub mod core;
mod discovery;
mod dra;
mod flowcontrol;
mod networking;
mod node;
pub mod policy;
mod rbac;
mod scheduling;
mod storage;
mod storagemigration;

use crate::resource::Resource;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod tested;

pub use core::allocator::ServiceRanges;

/// Every built-in resource, with the default Service ranges.
pub fn all() -> Vec<Resource> {
    all_with(ServiceRanges::default())
}

/// Every built-in resource, in the order of groups that discovery shows.
pub fn all_with(ranges: ServiceRanges) -> Vec<Resource> {
    let mut resources = core::resources(ranges);
    for group in [
        apiregistration::resources(),
        apps::resources(),
        authentication::resources(),
        authorization::resources(),
        autoscaling::resources(),
        batch::resources(),
        certificates::resources(),
        networking::resources(),
        policy::resources(),
        rbac::resources(),
        storage::resources(),
        storagemigration::resources(),
        admissionregistration::resources(),
        apiextensions::resources(),
        scheduling::resources(),
        coordination::resources(),
        node::resources(),
        discovery::resources(),
        dra::resources(),
        flowcontrol::resources(),
        metrics::resources(),
    ] {
        resources.extend(group);
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn descriptors_are_consistent() {
        let mut seen = HashSet::new();
        for resource in all() {
            let descriptor = &resource.descriptor;
            for served in &descriptor.served {
                let key = (served.group.clone(), served.version.clone(), descriptor.plural.clone());
                assert!(seen.insert(key.clone()), "{key:?} twice");
            }
            let object = serde_json::json!({"metadata": {"name": "x"}});
            let cells = resource.hooks.row(&object, jiff::Timestamp::UNIX_EPOCH).len();
            assert_eq!(cells, descriptor.columns.len(), "{}: cells and columns", descriptor.plural);
        }
    }

    /// What `kubectl get -o wide` shows of every kind: columns of `-o wide` alone in brackets, and the
    /// type of those that are no strings.
    #[test]
    fn columns_are_kubectls() {
        let mut lines = Vec::new();
        for resource in all().iter().filter(|resource| !resource.descriptor.virtual_) {
            let shown = resource.descriptor.columns.iter().map(|column| {
                let mut name = column.name.to_uppercase();
                if column.type_ != "string" {
                    name = format!("{name}:{}", column.type_);
                }
                if column.priority > 0 { format!("[{name}]") } else { name }
            });
            lines.push(format!("{}: {}", resource.descriptor.plural, shown.collect::<Vec<_>>().join(", ")));
        }
        lines.sort();
        let golden: Vec<&str> = include_str!("columns.golden").lines().collect();
        assert_eq!(lines, golden, "columns.golden holds other columns:\n{}", lines.join("\n"));
    }

    /// What discovery says of every resource, and which fields may be selected by.
    #[test]
    fn resources_are_kubernetes() {
        let join = |words: &[crate::resource::Text]| words.join(",");
        let mut lines = Vec::new();
        for resource in all() {
            let descriptor = &resource.descriptor;
            let versions: Vec<String> = descriptor
                .served
                .iter()
                .map(|served| crate::resource::api_version(&served.group, &served.version))
                .collect();
            let mut subresources: Vec<String> =
                descriptor.subresources.iter().map(|sub| format!("{}({})", sub.name, sub.verbs.join(","))).collect();
            subresources.extend(descriptor.scale.iter().map(|_| "scale".to_owned()));
            subresources.extend(descriptor.status.then(|| "status".to_owned()));
            subresources.sort();
            let all_verbs = descriptor.verbs == crate::resource::ALL_VERBS;
            let selectable: Vec<&str> = descriptor.selectable.iter().map(|field| &*field.label).collect();
            lines.push(format!(
                "{} {} {} {} {} short={} categories={} verbs={} subresources={} fields={}",
                versions.join("+"),
                descriptor.plural,
                descriptor.kind,
                descriptor.singular,
                if descriptor.namespaced { "namespaced" } else { "cluster" },
                join(&descriptor.short_names),
                join(&descriptor.categories),
                if all_verbs { "all".to_owned() } else { join(&descriptor.verbs) },
                subresources.join(","),
                selectable.join(","),
            ));
        }
        lines.sort();
        let golden: Vec<&str> = include_str!("resources.golden").lines().collect();
        assert_eq!(lines, golden, "resources.golden holds other resources:\n{}", lines.join("\n"));
    }

    #[test]
    fn documentation_names_every_kind() {
        let document = include_str!("../../../../docs/api.md");
        let words: HashSet<&str> = document.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        let missing: Vec<_> =
            all().iter().map(|r| r.descriptor.kind.clone()).filter(|kind| !words.contains(&**kind)).collect();
        assert!(missing.is_empty(), "docs/api.md does not say what is enforced of {missing:?}");
    }

    #[test]
    fn hooks_survive_any_object() {
        for resource in all() {
            for mut object in [
                serde_json::json!({}),
                serde_json::json!({"spec": 5, "status": [], "metadata": {"name": 1}}),
                serde_json::json!({"metadata": null, "spec": {"template": [], "containers": {}, "ports": 7}, "rules": {}, "data": "x", "webhooks": [1]}),
            ] {
                resource.hooks.defaults(&mut object);
                resource.hooks.row(&object, jiff::Timestamp::UNIX_EPOCH);
            }
        }
    }
}
