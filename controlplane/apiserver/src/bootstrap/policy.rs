//! The roles and bindings of `roles.txt` as objects. Pure.

use serde_json::{Value, json};

use crate::authz::rbac::Rule;
use crate::kinds::value;

const TEXT: &str = include_str!("roles.txt");
const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const API_GROUP: &str = "rbac.authorization.k8s.io";

/// Plural of the resource, and the object.
pub type Object = (&'static str, Value);

/// Everything, roles before their bindings.
pub fn objects() -> Vec<Object> {
    let mut objects: Vec<Object> = Vec::new();
    let mut bindings = Vec::new();
    for line in TEXT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let Some((_, role)) = objects.last_mut()
                && let Some(rules) = role["rules"].as_array_mut()
            {
                rules.push(rule(&words));
            }
            continue;
        }
        match words.as_slice() {
            ["role", name, labels @ ..] => objects.push(role(name, labels)),
            ["aggregate", name, from, labels @ ..] => {
                let (plural, mut object) = role(name, labels);
                object["aggregationRule"] =
                    json!({"clusterRoleSelectors": [{"matchLabels": {aggregate_label(from): "true"}}]});
                objects.push((plural, object));
            }
            ["controller", name] => {
                let full = format!("system:controller:{name}");
                objects.push(role(&full, &[]));
                bindings.push(binding(&full, &full, &format!("s:kube-system/{name}")));
            }
            ["bind", role, subjects] => bindings.push(binding(role, role, subjects)),
            ["bindas", name, role, subjects] => bindings.push(binding(name, role, subjects)),
            _ => {}
        }
    }
    objects.extend(bindings);
    objects
}

fn aggregate_label(name: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{name}")
}

fn metadata(name: &str) -> (Option<&str>, Value) {
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, name),
    };
    let mut metadata = json!({
        "name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    (namespace, metadata)
}

fn role(name: &str, labels: &[&str]) -> Object {
    let (namespace, mut metadata) = metadata(name);
    for label in labels.iter().filter_map(|label| label.strip_prefix('+')) {
        metadata["labels"][aggregate_label(label)] = "true".into();
    }
    let plural = if namespace.is_some() { "roles" } else { "clusterroles" };
    (plural, json!({"metadata": metadata, "rules": []}))
}

/// Every list of a rule is in order, as upstream's builder leaves it.
fn rule(words: &[&str]) -> Value {
    match words {
        ["events"] => {
            json!({"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]})
        }
        ["url", verbs, paths] => {
            json!({"verbs": sorted(verbs.split(',')), "nonResourceURLs": sorted(paths.split(','))})
        }
        [verbs, groups, resources, names @ ..] => {
            let groups = groups.split(',').map(|group| if group == "core" { "" } else { group });
            let mut rule = json!({"verbs": sorted(verbs.split(',').flat_map(expand)), "apiGroups": sorted(groups),
                "resources": sorted(resources.split(','))});
            if let [names] = names {
                rule["resourceNames"] = sorted(names.split(',')).into();
            }
            rule
        }
        _ => json!({"verbs": []}),
    }
}

fn sorted<'a>(items: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut items: Vec<&str> = items.collect();
    items.sort_unstable();
    items
}

fn expand(verb: &str) -> Vec<&str> {
    match verb {
        "read" => READ.to_vec(),
        "write" => WRITE.to_vec(),
        "all" => [READ, WRITE].concat(),
        verb => vec![verb],
    }
}

fn binding(name: &str, role: &str, subjects: &str) -> Object {
    let (namespace, metadata) = metadata(name);
    let subjects: Vec<Value> = subjects.split(',').filter_map(subject).collect();
    let (plural, kind) =
        if namespace.is_some() { ("rolebindings", "Role") } else { ("clusterrolebindings", "ClusterRole") };
    let role = role.rsplit_once('/').map_or(role, |(_, name)| name);
    let mut object = json!({"metadata": metadata, "roleRef": {"apiGroup": API_GROUP, "kind": kind, "name": role}});
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    (plural, object)
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once(':')?;
    Some(match kind {
        "u" => json!({"apiGroup": API_GROUP, "kind": "User", "name": name}),
        "g" => json!({"apiGroup": API_GROUP, "kind": "Group", "name": name}),
        _ => {
            let (namespace, name) = name.split_once('/')?;
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
    })
}

/// What of a bootstrap object is missing in the one that is there: rights, subjects, selectors,
/// labels and annotations are added, never taken away or changed. None if nothing is, or if the
/// object asks to be left alone.
pub fn reconciled(held: &Value, wanted: &Value) -> Option<Value> {
    if held["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] == "false" {
        return None;
    }
    let mut merged = held.clone();
    for part in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][part].as_object().into_iter().flatten() {
            if held["metadata"][part].get(key).is_none() {
                merged["metadata"][part][key] = value.clone();
            }
        }
    }
    if wanted["aggregationRule"].is_object() {
        let selectors = "clusterRoleSelectors";
        add(&mut merged["aggregationRule"][selectors], &wanted["aggregationRule"][selectors], |held, selector| {
            held.contains(selector)
        });
    } else {
        let rights = Rule::all_of(held);
        add(&mut merged["rules"], &wanted["rules"], |_, rule| Rule::from_json(rule).covered_by(&rights));
    }
    add(&mut merged["subjects"], &wanted["subjects"], |held, subject| held.contains(subject));
    for part in ["rules", "subjects", "aggregationRule"] {
        if held.get(part).is_none() && merged[part].is_null() {
            value::remove(&mut merged, part);
        }
    }
    (merged != *held).then_some(merged)
}

/// Appends those of `wanted` that `is_there` does not find in `list`.
fn add(list: &mut Value, wanted: &Value, is_there: impl Fn(&[Value], &Value) -> bool) {
    let held = list.as_array().cloned().unwrap_or_default();
    let missing: Vec<Value> =
        wanted.as_array().into_iter().flatten().filter(|entry| !is_there(&held, entry)).cloned().collect();
    if !missing.is_empty() {
        *list = [held, missing].concat().into();
    }
}

/// The rules of an aggregated role, from the roles that its selectors choose, in order of name.
pub fn aggregated_rules(role: &Value, all: &[&Value]) -> Vec<Value> {
    let selectors: Vec<_> = role["aggregationRule"]["clusterRoleSelectors"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|selector| api::selector::Selector::from_json(Some(selector)).ok())
        .collect();
    let mut rules: Vec<Value> = Vec::new();
    for other in all.iter().filter(|other| other["metadata"]["name"] != role["metadata"]["name"]) {
        if selectors.iter().any(|selector| selector.matches_json(other["metadata"].get("labels"))) {
            for rule in other["rules"].as_array().into_iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_line_is_understood() {
        let objects = objects();
        let mut names = HashSet::new();
        for (plural, object) in &objects {
            let name = (plural, object["metadata"]["namespace"].as_str(), object["metadata"]["name"].as_str().unwrap());
            assert!(names.insert(name), "{name:?} twice");
            for rule in object["rules"].as_array().into_iter().flatten() {
                let verbs = rule["verbs"].as_array().unwrap();
                assert!(!verbs.is_empty(), "{rule}");
            }
        }
        // Every binding's role is there.
        for (plural, object) in objects.iter().filter(|(plural, _)| plural.ends_with("bindings")) {
            let role = object["roleRef"]["name"].as_str().unwrap();
            let namespace = object["metadata"]["namespace"].as_str();
            let of = if *plural == "rolebindings" { "roles" } else { "clusterroles" };
            assert!(names.contains(&(&of, namespace, role)), "{role}");
        }
        let admin = objects.iter().find(|(_, object)| object["metadata"]["name"] == "edit").unwrap();
        assert_eq!(admin.1["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"], "true");
    }

    #[test]
    fn reconciling_adds_and_never_removes() {
        let rule = |verbs: &[&str]| json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"]});
        let selector = |label: &str| json!({"matchLabels": {label: "true"}});
        let held = json!({"metadata": {"name": "x", "labels": {"a": "own"}}, "rules": [rule(&["list"])]});
        for (wanted, expected) in [
            (json!({"rules": [rule(&["get"])]}), Some(("rules", json!([rule(&["list"]), rule(&["get"])])))),
            // Rights that other rules give already are not repeated.
            (json!({"rules": [rule(&["list", "list"])]}), None),
            (json!({"metadata": {"labels": {"a": "b"}}}), None),
            (
                json!({"metadata": {"labels": {"a": "b", "c": "d"}}}),
                Some(("metadata", json!({"name": "x", "labels": {"a": "own", "c": "d"}}))),
            ),
            (
                json!({"subjects": [{"kind": "User", "name": "u"}]}),
                Some(("subjects", json!([{"kind": "User", "name": "u"}]))),
            ),
            (
                json!({"aggregationRule": {"clusterRoleSelectors": [selector("a")]}, "rules": []}),
                Some(("aggregationRule", json!({"clusterRoleSelectors": [selector("a")]}))),
            ),
        ] {
            let merged = reconciled(&held, &wanted);
            let changed = expected.map(|(part, value)| {
                let mut changed = held.clone();
                changed[part] = value;
                changed
            });
            assert_eq!(merged, changed, "{wanted}");
            assert_eq!(merged.and_then(|merged| reconciled(&merged, &wanted)), None, "{wanted}");
        }
        let protected = json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}});
        assert_eq!(reconciled(&protected, &json!({"rules": [rule(&["get"])]})), None);
    }

    #[test]
    fn rules_are_in_order() {
        let words: Vec<&str> = "write,get core pods/exec,pods b,a".split(' ').collect();
        assert_eq!(
            rule(&words),
            json!({"verbs": ["create", "delete", "deletecollection", "get", "patch", "update"], "apiGroups": [""],
                "resources": ["pods", "pods/exec"], "resourceNames": ["a", "b"]})
        );
    }

    #[test]
    fn aggregation_follows_labels() {
        let part = json!({"metadata": {"name": "p", "labels": {"x": "true"}}, "rules": [{"verbs": ["get"]}]});
        let role = json!({"metadata": {"name": "r"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"x": "true"}}]}});
        assert_eq!(aggregated_rules(&role, &[&part, &role]), [json!({"verbs": ["get"]})]);
    }
}
