//! What of the API a pod refers to: a static pod must not, for it has to run without it
//! (`pkg/api/pod: HasAPIObjectReference`).

use serde_json::Value;

static NULL: Value = Value::Null;

fn get<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, key| value.get(key).unwrap_or(&NULL))
}

fn has(value: &Value, path: &str) -> bool {
    !get(value, path).is_null()
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    get(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// The first resource that a pod, as JSON, refers to, in Kubernetes' words.
pub fn of_pod(pod: &Value) -> Option<&'static str> {
    let spec = get(pod, "spec");
    let containers =
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|field| list(spec, field));
    let containers: Vec<&Value> = containers.collect();
    let uses = |variable: &str, source: &str| {
        containers.iter().any(|container| {
            list(container, "env").iter().any(|entry| has(entry, variable))
                || list(container, "envFrom").iter().any(|entry| has(entry, source))
        })
    };
    let volumes = list(spec, "volumes");
    let projects = |field: &str| volumes.iter().flat_map(|v| list(v, "projected.sources")).any(|from| has(from, field));
    let mounts = |field: &str| volumes.iter().any(|volume| has(volume, field));
    if get(spec, "serviceAccountName").as_str().is_some_and(|name| !name.is_empty()) {
        return Some("serviceaccounts");
    }
    let secret_volumes = ["secret", "azureFile.secretName", "csi.nodePublishSecretRef"];
    if !list(spec, "imagePullSecrets").is_empty()
        || uses("valueFrom.secretKeyRef", "secretRef")
        || secret_volumes.into_iter().any(mounts)
        || volumes.iter().any(driver_secret)
        || projects("secret")
    {
        return Some("secrets");
    }
    if uses("valueFrom.configMapKeyRef", "configMapRef") || mounts("configMap") || projects("configMap") {
        return Some("configmaps");
    }
    if !list(spec, "resourceClaims").is_empty() {
        return Some("resourceclaims");
    }
    let of_volumes = [
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
    ];
    let projected = [
        ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
        ("clusterTrustBundle", "clustertrustbundles"),
        ("podCertificate", "podcertificates"),
    ];
    let mounted = of_volumes.into_iter().find(|(field, _)| mounts(field));
    mounted.or_else(|| projected.into_iter().find(|(field, _)| projects(field))).map(|(_, what)| what)
}

/// Whether a volume of one of the old drivers has its `secretRef`.
fn driver_secret(volume: &Value) -> bool {
    let sources = volume.as_object().into_iter().flatten();
    sources.into_iter().any(|(_, source)| has(source, "secretRef.name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pod_refers_to() {
        let with_env = |env: Value| json!({"containers": [{"name": "c", "env": [env]}]});
        let with_volume = |volume: Value| json!({"volumes": [volume]});
        for (spec, what) in [
            (json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "hostPath": {"path": "/etc"}}]}), None),
            (json!({"serviceAccountName": "a"}), Some("serviceaccounts")),
            (json!({"imagePullSecrets": [{"name": "s"}]}), Some("secrets")),
            (json!({"initContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}), Some("secrets")),
            (with_env(json!({"valueFrom": {"configMapKeyRef": {"name": "m"}}})), Some("configmaps")),
            (with_env(json!({"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})), None),
            (with_volume(json!({"flexVolume": {"secretRef": {"name": "s"}}})), Some("secrets")),
            (with_volume(json!({"projected": {"sources": [{"configMap": {"name": "m"}}]}})), Some("configmaps")),
            (with_volume(json!({"projected": {"sources": [{"podCertificate": {}}]}})), Some("podcertificates")),
            (with_volume(json!({"persistentVolumeClaim": {"claimName": "c"}})), Some("persistentvolumeclaims")),
        ] {
            assert_eq!(of_pod(&json!({"spec": spec})), what, "{spec}");
        }
    }
}
