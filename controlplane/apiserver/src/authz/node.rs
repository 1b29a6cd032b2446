//! The node authorizer: a node may read what its own pods refer to, and act on its own objects.
//!
//! Everything in the `system:node` role is allowed to every node, except that Secrets, ConfigMaps,
//! claims, volumes, tokens, leases and CSI nodes are looked at one by one.

use std::sync::LazyLock;

use serde_json::Value;

use super::Request;
use super::rbac::Rule;
use crate::admit::Cluster;
use crate::server::Api;

static NODE_RULES: LazyLock<Vec<Rule>> = LazyLock::new(crate::bootstrap::node_rules);

const NO_RELATION: &str = "no relationship found between node";

/// Whether `node` may; `Err` says why not.
pub async fn decide(api: &Api, node: &str, request: &Request<'_>) -> Result<(), String> {
    let reads = matches!(request.verb, "get" | "list" | "watch");
    match (request.group, request.resource, request.subresource) {
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") if reads => {
            related(refers(api, node, request).await, node)
        }
        ("", "persistentvolumes", "") if request.verb == "get" => related(mounts(api, node, request.name).await, node),
        ("", "serviceaccounts", "token") if request.verb == "create" => {
            related(runs_as(api, node, request).await, node)
        }
        ("", "serviceaccounts", "") if request.verb == "get" => related(runs_as(api, node, request).await, node),
        ("coordination.k8s.io", "leases", "") => own_lease(node, request),
        ("storage.k8s.io", "csinodes", "") if request.verb != "list" && request.verb != "watch" => {
            if request.name == node || request.verb == "create" {
                Ok(())
            } else {
                Err(format!("can only access CSINode with the same name as the requesting node: node '{node}' cannot"))
            }
        }
        ("storage.k8s.io", "volumeattachments", "") if request.verb == "get" => {
            let attachment = api.get("storage.k8s.io", "volumeattachments", "", request.name).await.ok().flatten();
            related(attachment.is_some_and(|attachment| attachment["spec"]["nodeName"] == node), node)
        }
        _ => {
            if NODE_RULES.iter().any(|rule| rule.allows(request)) {
                Ok(())
            } else {
                Err(String::new())
            }
        }
    }
}

fn related(found: bool, node: &str) -> Result<(), String> {
    if found { Ok(()) } else { Err(format!("{NO_RELATION} '{node}' and this object")) }
}

fn own_lease(node: &str, request: &Request<'_>) -> Result<(), String> {
    if !matches!(request.verb, "get" | "create" | "update" | "patch" | "delete") {
        return Err("can only get, create, update, patch, or delete a node lease".to_owned());
    }
    if request.namespace != "kube-node-lease" {
        return Err("can only access leases in the \"kube-node-lease\" system namespace".to_owned());
    }
    if request.verb != "create" && request.name != node {
        return Err("can only access node lease with the same name as the requesting node".to_owned());
    }
    Ok(())
}

/// Pods of a namespace (empty: all) that run on the node.
fn pods(api: &Api, node: &str, namespace: &str) -> Vec<Value> {
    let Some(endpoint) = api.resources().by_hub("", "pods").cloned() else { return Vec::new() };
    let state = endpoint.cache.read();
    let here = state.scan(namespace).filter(|item| item.field(endpoint.descriptor(), "spec.nodeName") == Some(node));
    let here: Vec<_> = here.cloned().collect();
    drop(state);
    // What a static pod's mirror says was written by the node itself: it gives no rights.
    here.iter()
        .map(|item| item.decode())
        .filter(|pod| pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null())
        .collect()
}

async fn is_fresh(api: &Api) -> bool {
    match api.resources().by_hub("", "pods") {
        Some(endpoint) => endpoint.cache.fresh().await.is_ok(),
        None => false,
    }
}

async fn refers(api: &Api, node: &str, request: &Request<'_>) -> bool {
    if request.name.is_empty() || request.namespace.is_empty() || !is_fresh(api).await {
        return false;
    }
    pods(api, node, request.namespace).iter().any(|pod| references(pod, request.resource, request.name))
}

async fn runs_as(api: &Api, node: &str, request: &Request<'_>) -> bool {
    is_fresh(api).await
        && pods(api, node, request.namespace).iter().any(|pod| pod["spec"]["serviceAccountName"] == request.name)
}

async fn mounts(api: &Api, node: &str, volume: &str) -> bool {
    if !is_fresh(api).await {
        return false;
    }
    let Some(volume) = api.get("", "persistentvolumes", "", volume).await.ok().flatten() else { return false };
    let claim = &volume["spec"]["claimRef"];
    let (Some(namespace), Some(name)) = (claim["namespace"].as_str(), claim["name"].as_str()) else { return false };
    pods(api, node, namespace).iter().any(|pod| references(pod, "persistentvolumeclaims", name))
}

/// Whether a pod's spec names the object. Pure.
fn references(pod: &Value, plural: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    match plural {
        "persistentvolumeclaims" => spec["volumes"].as_array().into_iter().flatten().any(|volume| {
            let generated = || {
                format!(
                    "{}-{}",
                    pod["metadata"]["name"].as_str().unwrap_or_default(),
                    volume["name"].as_str().unwrap_or_default()
                )
            };
            volume["persistentVolumeClaim"]["claimName"] == name
                || (volume["ephemeral"].is_object() && generated() == name)
        }),
        "secrets" => {
            let pulls = spec["imagePullSecrets"].as_array().into_iter().flatten().any(|secret| secret["name"] == name);
            pulls || mentions(spec, &["secretKeyRef", "secretRef", "secret", "nodePublishSecretRef", "azureFile"], name)
        }
        "configmaps" => mentions(spec, &["configMapKeyRef", "configMapRef", "configMap"], name),
        _ => false,
    }
}

/// Whether an object under one of `keys`, anywhere in `value`, has the name.
fn mentions(value: &Value, keys: &[&str], name: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(key, inner)| {
            (keys.contains(&key.as_str()) && (inner["name"] == name || inner["secretName"] == name))
                || mentions(inner, keys, name)
        }),
        Value::Array(list) => list.iter().any(|inner| mentions(inner, keys, name)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_a_pod_has_them() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}], "envFrom": [{"configMapRef": {"name": "cm-env"}}]}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "vol"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "cm-proj"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "d", "ephemeral": {}},
            ],
        }});
        for (plural, name, found) in [
            ("secrets", "pull", true),
            ("secrets", "env", true),
            ("secrets", "vol", true),
            ("secrets", "proj", true),
            ("secrets", "cm-env", false),
            ("configmaps", "cm-env", true),
            ("configmaps", "cm-proj", true),
            ("configmaps", "vol", false),
            ("persistentvolumeclaims", "claim", true),
            ("persistentvolumeclaims", "p-d", true),
            ("persistentvolumeclaims", "other", false),
        ] {
            assert_eq!(references(&pod, plural, name), found, "{plural} {name}");
        }
    }

    #[test]
    fn leases_are_the_nodes_own() {
        let ask = |verb, name| Request {
            verb,
            name,
            group: "coordination.k8s.io",
            resource: "leases",
            namespace: "kube-node-lease",
            ..Request::default()
        };
        assert!(own_lease("n1", &ask("update", "n1")).is_ok());
        assert!(own_lease("n1", &ask("update", "n2")).is_err());
        assert!(own_lease("n1", &ask("create", "")).is_ok());
        assert!(own_lease("n1", &ask("list", "")).is_err());
    }
}
