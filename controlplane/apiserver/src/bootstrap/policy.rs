//! The roles and bindings of `roles.txt` as objects. Pure.

use serde_json::{Value, json};

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

fn rule(words: &[&str]) -> Value {
    let list = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
    match words {
        ["events"] => {
            json!({"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]})
        }
        ["url", verbs, paths] => json!({"verbs": list(verbs), "nonResourceURLs": list(paths)}),
        [verbs, groups, resources, names @ ..] => {
            let groups: Vec<String> =
                list(groups).into_iter().map(|group| if group == "core" { String::new() } else { group }).collect();
            let mut rule = json!({"verbs": expand(verbs), "apiGroups": groups, "resources": list(resources)});
            if let [names] = names {
                rule["resourceNames"] = json!(list(names));
            }
            rule
        }
        _ => json!({"verbs": []}),
    }
}

fn expand(verbs: &str) -> Vec<&str> {
    match verbs {
        "read" => READ.to_vec(),
        "write" => WRITE.to_vec(),
        "all" => [READ, WRITE].concat(),
        verbs => verbs.split(',').collect(),
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

/// What of a bootstrap object is missing in the one that is there: rules, subjects, labels are
/// added, never taken away. None if nothing is, or if the object asks to be left alone.
pub fn reconciled(held: &Value, wanted: &Value) -> Option<Value> {
    if held["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] == "false" {
        return None;
    }
    let mut merged = held.clone();
    for part in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][part].as_object().into_iter().flatten() {
            merged["metadata"][part][key] = value.clone();
        }
    }
    for part in ["rules", "subjects"] {
        if held["aggregationRule"].is_object() && part == "rules" {
            continue;
        }
        for entry in wanted[part].as_array().into_iter().flatten() {
            if !held[part].as_array().is_some_and(|entries| entries.contains(entry)) {
                if merged[part].as_array().is_none() {
                    merged[part] = json!([]);
                }
                if let Some(entries) = merged[part].as_array_mut() {
                    entries.push(entry.clone());
                }
            }
        }
    }
    (merged != *held).then_some(merged)
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
        let wanted = json!({"metadata": {"labels": {"a": "b"}}, "rules": [{"verbs": ["get"]}]});
        let held = json!({"metadata": {"name": "x"}, "rules": [{"verbs": ["list"]}]});
        let merged = reconciled(&held, &wanted).unwrap();
        assert_eq!(merged["rules"], json!([{"verbs": ["list"]}, {"verbs": ["get"]}]));
        assert!(reconciled(&merged, &wanted).is_none());
    }

    #[test]
    fn aggregation_follows_labels() {
        let part = json!({"metadata": {"name": "p", "labels": {"x": "true"}}, "rules": [{"verbs": ["get"]}]});
        let role = json!({"metadata": {"name": "r"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"x": "true"}}]}});
        assert_eq!(aggregated_rules(&role, &[&part, &role]), [json!({"verbs": ["get"]})]);
    }
}
