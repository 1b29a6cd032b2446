//! APIServices for what this server itself serves. Pure.
//!
//! Objects that others made under such a name stay as they are: one that names a Service takes the
//! group version over.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Priority;
use super::remote::Remote;
use crate::registry::usage;
use crate::resources::Resources;

/// Marks objects that the server keeps: `onstart` for built-in groups, `true` for definitions'.
pub const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Priorities of built-in groups; other groups come after them.
const GROUPS: &[(&str, i64)] = &[
    ("", 18000),
    ("apps", 17800),
    ("events.k8s.io", 17750),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("apiextensions.k8s.io", 16700),
    ("admissionregistration.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("discovery.k8s.io", 16200),
    ("resource.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
    ("internal.apiserver.k8s.io", 16000),
    ("storagemigration.k8s.io", 15800),
    (usage::GROUP, 100),
];

/// The group of APIServices: always the first, and not itself registered.
pub const OWN_GROUP: &str = "apiregistration.k8s.io";

/// Of a group version that this server serves.
pub fn priority(group: &str, version: &str) -> Priority {
    if group == OWN_GROUP {
        return Priority { group: 20_001, version: 1000 };
    }
    let Some((_, priority)) = GROUPS.iter().find(|(name, _)| *name == group) else {
        return Priority { group: 1000, version: 100 };
    };
    let version = match (group, version) {
        ("", _) => 1,
        (usage::GROUP, _) => 100,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        (_, version) if version.contains("alpha") => 1,
        (_, version) if version.contains("beta") => 9,
        _ => 15,
    };
    Priority { group: *priority, version }
}

/// Group versions served here, and whether they are of definitions only.
pub fn served(resources: &Resources) -> BTreeMap<(String, String), bool> {
    let mut found = BTreeMap::new();
    for endpoint in resources.all() {
        let descriptor = endpoint.descriptor();
        for served in descriptor.served.iter().filter(|served| served.served) {
            let custom = found.entry((served.group.to_string(), served.version.to_string())).or_insert(true);
            *custom &= descriptor.custom;
        }
    }
    found
}

/// Whether another server tells what nodes and pods use. It may have fewer versions of that group than
/// there are here: clients prefer the newest, and would pass it over.
pub fn displaced(group: &str, remotes: &[Arc<Remote>]) -> bool {
    group == usage::GROUP && remotes.iter().any(|remote| remote.group == group)
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Create(Value),
    Update(Value),
    /// Name and `resourceVersion`.
    Delete(String, u64),
}

/// What brings the stored objects in line with what is served.
pub fn plan(served: &BTreeMap<(String, String), bool>, held: &[Arc<Value>]) -> Vec<Action> {
    let text = |object: &Value, key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    // One that somebody pointed at a Service since is theirs.
    let managed =
        |object: &Value| object["metadata"]["labels"][MANAGED].is_string() && !object["spec"]["service"].is_object();
    let mut actions = Vec::new();
    let wanted: BTreeMap<String, Value> = served
        .iter()
        // Those who install a metrics server bring its object along: nothing of ours is in their way.
        .filter(|((group, _), _)| group != OWN_GROUP && group != usage::GROUP)
        .map(|((group, version), custom)| (format!("{version}.{group}"), object(group, version, *custom)))
        .collect();
    for (name, object) in &wanted {
        match held.iter().find(|held| text(held, "name") == *name) {
            None => actions.push(Action::Create(object.clone())),
            Some(held) if managed(held) && held["spec"] != object["spec"] => {
                let mut changed = (**held).clone();
                changed["spec"] = object["spec"].clone();
                actions.push(Action::Update(changed));
            }
            Some(_) => {}
        }
    }
    for object in held.iter().filter(|object| managed(object) && !wanted.contains_key(&text(object, "name"))) {
        let revision = text(object, "resourceVersion").parse().unwrap_or(0);
        actions.push(Action::Delete(text(object, "name"), revision));
    }
    actions
}

fn object(group: &str, version: &str, custom: bool) -> Value {
    let priority = priority(group, version);
    let mut spec = json!({
        "version": version, "groupPriorityMinimum": priority.group, "versionPriority": priority.version,
    });
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "metadata": {"name": format!("{version}.{group}"), "labels": {MANAGED: if custom { "true" } else { "onstart" }}},
        "spec": spec,
    })
}

/// The condition of what is served here.
pub fn local_condition(now: &str) -> Value {
    json!({
        "type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available", "lastTransitionTime": now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_is_registered_and_what_is_not_any_more_is_removed() {
        let served = BTreeMap::from([
            ((String::new(), "v1".to_owned()), false),
            (("apps".to_owned(), "v1".to_owned()), false),
            ((OWN_GROUP.to_owned(), "v1".to_owned()), false),
            (("example.com".to_owned(), "v1".to_owned()), true),
            (("taken.io".to_owned(), "v1".to_owned()), true),
        ]);
        let mut apps = object("apps", "v1", false);
        apps["spec"]["versionPriority"] = 3.into();
        let mut gone = object("gone.io", "v1", true);
        gone["metadata"]["resourceVersion"] = "7".into();
        let foreign =
            json!({"metadata": {"name": "v1.taken.io"}, "spec": {"group": "taken.io", "service": {"name": "x"}}});
        let other = json!({"metadata": {"name": "v1.other.io"}, "spec": {"group": "other.io"}});
        let held = [apps, gone, foreign, other].map(Arc::new);
        let actions = plan(&served, &held);
        assert_eq!(
            actions,
            [
                Action::Create(object("", "v1", false)),
                Action::Update(object("apps", "v1", false)),
                Action::Create(object("example.com", "v1", true)),
                Action::Delete("v1.gone.io".to_owned(), 7),
            ]
        );
        assert_eq!(object("", "v1", false)["metadata"]["name"], "v1.");
        assert_eq!(object("example.com", "v1", true)["spec"]["groupPriorityMinimum"], 1000);
        let settled: Vec<_> = ["apps"].map(|group| Arc::new(object(group, "v1", false))).into();
        assert_eq!(plan(&BTreeMap::from([(("apps".to_owned(), "v1".to_owned()), false)]), &settled), []);
    }
}
