//! What a node's pods have to do with an object.

use serde_json::Value;

use super::Request;
use crate::admit::Cluster;
use crate::server::Api;

/// Whether the object of the request has to do with the node.
pub async fn to_node(api: &Api, node: &str, request: &Request<'_>) -> bool {
    let Request { group, resource, namespace, name, .. } = *request;
    match resource {
        "resourceslices" | "volumeattachments" | "podcertificaterequests" => {
            let object = api.get(group, resource, namespace, name).await.ok().flatten();
            object.is_some_and(|object| object["spec"]["nodeName"] == node)
        }
        "pods" => {
            let pod = api.get("", "pods", namespace, name).await.ok().flatten();
            pod.is_some_and(|pod| pod["spec"]["nodeName"] == node)
        }
        "persistentvolumes" => is_fresh(api).await && mounts(api, node, name).await,
        "secrets" => {
            is_fresh(api).await && (refers(api, node, request) || volumes_need(api, node, namespace, name).await)
        }
        _ => is_fresh(api).await && refers(api, node, request),
    }
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

/// Waits until the cache of pods has what is stored.
async fn is_fresh(api: &Api) -> bool {
    match api.resources().by_hub("", "pods") {
        Some(endpoint) => endpoint.cache.fresh().await.is_ok(),
        None => false,
    }
}

fn refers(api: &Api, node: &str, request: &Request<'_>) -> bool {
    !request.namespace.is_empty()
        && pods(api, node, request.namespace).iter().any(|pod| references(pod, request.resource, request.name))
}

/// Whether a pod of the node uses the claim that the volume is bound to.
async fn mounts(api: &Api, node: &str, volume: &str) -> bool {
    let Some(volume) = api.get("", "persistentvolumes", "", volume).await.ok().flatten() else { return false };
    let claim = &volume["spec"]["claimRef"];
    let (Some(namespace), Some(name)) = (claim["namespace"].as_str(), claim["name"].as_str()) else { return false };
    pods(api, node, namespace).iter().any(|pod| references(pod, "persistentvolumeclaims", name))
}

/// Whether a volume that a pod of the node mounts needs the Secret.
async fn volumes_need(api: &Api, node: &str, namespace: &str, name: &str) -> bool {
    let volumes = api.list("", "persistentvolumes", "").await.unwrap_or_default();
    let needing = volumes.iter().filter(|volume| volume_needs(volume, namespace, name));
    let claims = needing.filter_map(|volume| {
        let claim = &volume["spec"]["claimRef"];
        Some((claim["namespace"].as_str()?, claim["name"].as_str()?))
    });
    claims.into_iter().any(|(namespace, name)| {
        pods(api, node, namespace).iter().any(|pod| references(pod, "persistentvolumeclaims", name))
    })
}

/// Whether a node that mounts the volume has to read the Secret. A driver that names no namespace
/// means the claim's. Pure.
fn volume_needs(volume: &Value, namespace: &str, name: &str) -> bool {
    let spec = &volume["spec"];
    let own = &spec["claimRef"]["namespace"];
    let is_it = |reference: &Value, key: &str, within: &str| {
        let given = &reference[within];
        let home = if given.as_str().is_none_or(str::is_empty) { own } else { given };
        reference[key] == name && home == namespace
    };
    let csi = ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"]
        .iter()
        .any(|field| is_it(&spec["csi"][field], "name", "namespace"));
    let old = ["cephfs", "cinder", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"]
        .iter()
        .any(|driver| is_it(&spec[driver]["secretRef"], "name", "namespace"));
    csi || old || is_it(&spec["azureFile"], "secretName", "secretNamespace")
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether a pod names the object. Pure.
fn references(pod: &Value, plural: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    match plural {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "persistentvolumeclaims" => items(&spec["volumes"]).iter().any(|volume| {
            let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
            let generated = || format!("{}-{}", text(&pod["metadata"]["name"]), text(&volume["name"]));
            volume["persistentVolumeClaim"]["claimName"] == name
                || (volume["ephemeral"].is_object() && generated() == name)
        }),
        "resourceclaims" => {
            let made = &pod["status"];
            items(&spec["resourceClaims"]).iter().any(|claim| claim["resourceClaimName"] == name)
                || items(&made["resourceClaimStatuses"]).iter().any(|claim| claim["resourceClaimName"] == name)
                || made["extendedResourceClaimStatus"]["resourceClaimName"] == name
        }
        "secrets" => {
            let pulls = items(&spec["imagePullSecrets"]).iter().any(|secret| secret["name"] == name);
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
            "serviceAccountName": "bot",
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}], "envFrom": [{"configMapRef": {"name": "cm-env"}}]}],
            "resourceClaims": [{"name": "x", "resourceClaimName": "device"}, {"name": "y", "resourceClaimTemplateName": "t"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "vol"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "proj"}}, {"configMap": {"name": "cm-proj"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "d", "ephemeral": {}},
            ],
        }, "status": {"resourceClaimStatuses": [{"name": "y", "resourceClaimName": "p-y-1"}]}});
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
            ("resourceclaims", "device", true),
            ("resourceclaims", "p-y-1", true),
            ("resourceclaims", "t", false),
            ("serviceaccounts", "bot", true),
            ("serviceaccounts", "default", false),
        ] {
            assert_eq!(references(&pod, plural, name), found, "{plural} {name}");
        }
    }

    #[test]
    fn volumes_need_the_secrets_of_their_drivers() {
        let volume = |source: Value| {
            let mut spec = source;
            spec["claimRef"] = json!({"namespace": "ns", "name": "c"});
            json!({"spec": spec})
        };
        for (source, found) in [
            (json!({"csi": {"nodeStageSecretRef": {"name": "s", "namespace": "ns"}}}), true),
            (json!({"csi": {"nodeStageSecretRef": {"name": "s", "namespace": "other"}}}), false),
            (json!({"csi": {"controllerPublishSecretRef": {"name": "s", "namespace": "ns"}}}), false),
            (json!({"rbd": {"secretRef": {"name": "s"}}}), true),
            (json!({"azureFile": {"secretName": "s", "secretNamespace": "ns"}}), true),
        ] {
            assert_eq!(volume_needs(&volume(source.clone()), "ns", "s"), found, "{source}");
        }
    }
}
