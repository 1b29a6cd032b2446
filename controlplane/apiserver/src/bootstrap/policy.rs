//! Reads `policy.txt`, the RBAC objects of a new cluster, into objects.

use serde_json::{Value, json};

const POLICY: &str = include_str!("policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// Every bootstrap role and binding, complete but for what the registry adds.
pub fn objects() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for line in POLICY.lines().map(|line| line.split(" #").next().unwrap_or_default().trim_end()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let Some(rules) = objects.last_mut().and_then(|role| role["rules"].as_array_mut()) {
                rules.push(rule(&words));
            }
            continue;
        }
        match words.as_slice() {
            ["clusterrole", name, rest @ ..] => objects.push(cluster_role(name, rest)),
            ["role", namespace, name] => objects.push(role("Role", namespace, name)),
            ["controller", name] => {
                let role_name = format!("system:controller:{name}");
                objects.push(binding("", &role_name, &role_name, &[&format!("sa:kube-system/{name}")]));
                let mut role = role("ClusterRole", "", &role_name);
                // Every controller tells what it does.
                role["rules"] = json!([rule(&["create,patch,update", "core,events.k8s.io", "events"])]);
                objects.push(role);
            }
            ["bind", name, role, subjects @ ..] => objects.push(binding("", name, role, subjects)),
            ["bindin", namespace, name, role, subjects @ ..] => objects.push(binding(namespace, name, role, subjects)),
            // The test below reads the whole table and refuses what is not understood.
            _ => debug_assert!(false, "policy.txt: {line:?} is not understood"),
        }
    }
    objects
}

fn role(kind: &str, namespace: &str, name: &str) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata(namespace, name), "rules": []})
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn cluster_role(name: &str, options: &[&str]) -> Value {
    let mut object = role("ClusterRole", "", name);
    for option in options.chunks(2) {
        match option {
            ["aggregates", to] => {
                let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
                object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
            }
            ["adds-to", to] => {
                object["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{to}")] = json!("true");
            }
            _ => debug_assert!(false, "policy.txt: {option:?} is no option of a role"),
        }
    }
    object
}

fn rule(words: &[&str]) -> Value {
    let list = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
    match words {
        [verbs, urls] => json!({"verbs": list(verbs), "nonResourceURLs": list(urls.trim_start_matches("url="))}),
        [verbs, groups, resources, rest @ ..] => {
            let groups: Vec<String> = list(groups).into_iter().map(|g| if g == "core" { String::new() } else { g }).collect();
            let mut rule = json!({"verbs": list(verbs), "apiGroups": groups, "resources": list(resources)});
            if let [names] = rest {
                rule["resourceNames"] = json!(list(names.trim_start_matches("names=")));
            }
            rule
        }
        _ => Value::Null,
    }
}

fn binding(namespace: &str, name: &str, role: &str, subjects: &[&str]) -> Value {
    let (kind, role_kind) = if namespace.is_empty() { ("ClusterRoleBinding", "ClusterRole") } else { ("RoleBinding", "Role") };
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata(namespace, name),
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role},
    });
    if !subjects.is_empty() {
        object["subjects"] = subjects.iter().map(|subject| subject_of(subject)).collect();
    }
    object
}

fn subject_of(text: &str) -> Value {
    let (kind, name) = text.split_once(':').unwrap_or(("user", text));
    match kind {
        "group" => json!({"kind": "Group", "apiGroup": GROUP, "name": name}),
        "sa" => {
            let (namespace, name) = name.split_once('/').unwrap_or(("kube-system", name));
            json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
        }
        _ => json!({"kind": "User", "apiGroup": GROUP, "name": name}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood_and_every_binding_has_its_role() {
        let objects = objects();
        let named = |kind: &str, name: &str| objects.iter().any(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        for object in &objects {
            let kind = object["kind"].as_str().unwrap();
            if kind.ends_with("Binding") {
                let reference = &object["roleRef"];
                assert!(named(reference["kind"].as_str().unwrap(), reference["name"].as_str().unwrap()), "{object}");
            } else {
                let aggregated = object.get("aggregationRule").is_some();
                let rules = object["rules"].as_array().unwrap();
                assert_eq!(rules.is_empty(), aggregated, "{object}");
                assert!(rules.iter().all(|rule| rule["verbs"].is_array()), "{object}");
            }
        }
        assert!(named("ClusterRole", "system:controller:job-controller"));
    }

    #[test]
    fn a_rule_reads_as_upstream_writes_it() {
        assert_eq!(
            rule(&["get,update", "core", "configmaps", "names=a,b"]),
            json!({"verbs": ["get", "update"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a", "b"]})
        );
    }
}
