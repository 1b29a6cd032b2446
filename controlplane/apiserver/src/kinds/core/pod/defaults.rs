//! Defaults of a pod, of a pod template and of their parts (`pkg/apis/core/v1/defaults.go`).
//!
//! Key functions: [`pod`] for Pods, [`template`] for everything that embeds a `PodTemplateSpec`:
//! what differs is only what upstream sets on Pods alone (requests from limits, service links,
//! host ports of the host network).

use serde_json::{Map, Value, json};

use crate::kinds::value::{
    at, default, default_int, default_text, ensure_map, flag, get, get_mut, has, int, list_mut, map, opt_text, set,
    text,
};

/// Where the three kinds of containers are.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a Pod.
pub fn pod(pod: &mut Value) {
    let spec = ensure_spec(pod);
    requests_from_limits(spec);
    pod_level_requests(spec);
    default(spec, "enableServiceLinks", true);
    if flag(spec, "hostNetwork") {
        host_ports(spec);
    }
    pod_spec(spec);
}

/// Defaults of the `PodTemplateSpec` at `template`.
pub fn template(template: &mut Value) {
    pod_spec(ensure_spec(template));
}

fn ensure_spec(owner: &mut Value) -> &mut Value {
    ensure_map(owner, "").entry("spec").or_insert_with(|| json!({}))
}

fn pod_spec(spec: &mut Value) {
    default_text(spec, "dnsPolicy", "ClusterFirst");
    default_text(spec, "restartPolicy", "Always");
    default(spec, "securityContext", json!({}));
    default(spec, "terminationGracePeriodSeconds", 30);
    default_text(spec, "schedulerName", "default-scheduler");
    service_account_alias(spec);
    for containers in CONTAINER_LISTS {
        for item in list_mut(spec, containers) {
            container(item);
        }
    }
    for item in list_mut(spec, "volumes") {
        volume(item);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are always served.
pub fn service_account_alias(spec: &mut Value) {
    let name = match opt_text(spec, "serviceAccountName") {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => text(spec, "serviceAccount").to_owned(),
    };
    if !name.is_empty() {
        set(spec, "serviceAccountName", name.clone());
        set(spec, "serviceAccount", name);
    }
}

fn container(container: &mut Value) {
    if text(container, "imagePullPolicy").is_empty() {
        let policy = pull_policy(text(container, "image"));
        set(container, "imagePullPolicy", policy);
    }
    default_text(container, "terminationMessagePath", "/dev/termination-log");
    default_text(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    for port in list_mut(container, "ports") {
        default_text(port, "protocol", "TCP");
    }
    for variable in list_mut(container, "env") {
        if has(variable, "valueFrom.fieldRef") {
            default_text(variable, "valueFrom.fieldRef.apiVersion", "v1");
        }
    }
    for probe_name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = get_mut(container, probe_name) {
            probe(found);
        }
    }
    for hook in ["lifecycle.postStart", "lifecycle.preStop"] {
        if let Some(found) = get_mut(container, hook) {
            http_get(found);
        }
    }
}

fn probe(probe: &mut Value) {
    default_int(probe, "timeoutSeconds", 1);
    default_int(probe, "periodSeconds", 10);
    default_int(probe, "successThreshold", 1);
    default_int(probe, "failureThreshold", 3);
    http_get(probe);
    if has(probe, "grpc") {
        default(probe, "grpc.service", "");
    }
}

fn http_get(handler: &mut Value) {
    if has(handler, "httpGet") {
        default_text(handler, "httpGet.path", "/");
        default_text(handler, "httpGet.scheme", "HTTP");
    }
}

/// `Always` for `:latest` and for no tag at all, `IfNotPresent` otherwise.
pub fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') || image.is_empty() {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn volume(volume: &mut Value) {
    let sourceless =
        volume.as_object().is_some_and(|fields| fields.iter().all(|(key, value)| key == "name" || value.is_null()));
    if sourceless {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(found) = get_mut(volume, source) {
            default(found, "defaultMode", 0o644);
        }
    }
    downward_items(volume, "downwardAPI.items");
    for source in list_mut(volume, "projected.sources") {
        if has(source, "serviceAccountToken") {
            default(source, "serviceAccountToken.expirationSeconds", 3600);
        }
        downward_items(source, "downwardAPI.items");
    }
    if has(volume, "image") && text(volume, "image.pullPolicy").is_empty() {
        let policy = pull_policy(text(volume, "image.reference"));
        set(volume, "image.pullPolicy", policy);
    }
    if has(volume, "ephemeral.volumeClaimTemplate.spec") {
        default(volume, "ephemeral.volumeClaimTemplate.spec.volumeMode", "Filesystem");
    }
    remote_volume(volume);
}

/// Volume types which a PersistentVolume has too.
pub fn remote_volume(volume: &mut Value) {
    if has(volume, "hostPath") {
        default(volume, "hostPath.type", "");
    }
    if has(volume, "iscsi") {
        default_text(volume, "iscsi.iscsiInterface", "default");
    }
    if has(volume, "rbd") {
        default_text(volume, "rbd.pool", "rbd");
        default_text(volume, "rbd.user", "admin");
        default_text(volume, "rbd.keyring", "/etc/ceph/keyring");
    }
    if has(volume, "azureDisk") {
        default(volume, "azureDisk.cachingMode", "ReadWrite");
        default(volume, "azureDisk.kind", "Shared");
        default(volume, "azureDisk.fsType", "ext4");
        default(volume, "azureDisk.readOnly", false);
    }
    if has(volume, "scaleIO") {
        default_text(volume, "scaleIO.storageMode", "ThinProvisioned");
        default_text(volume, "scaleIO.fsType", "xfs");
    }
}

fn downward_items(owner: &mut Value, path: &str) {
    for item in list_mut(owner, path) {
        if has(item, "fieldRef") {
            default_text(item, "fieldRef.apiVersion", "v1");
        }
    }
}

/// A limit without a request is also the request.
fn requests_from_limits(spec: &mut Value) {
    for containers in ["initContainers", "containers"] {
        for container in list_mut(spec, containers) {
            let Some(limits) = map(container, "resources.limits").cloned() else { continue };
            let requests = ensure_map(container, "resources.requests");
            for (resource, amount) in limits {
                requests.entry(resource).or_insert(amount);
            }
        }
    }
}

/// Defaults of a pod's own resources, after they changed.
pub fn pod_level(pod: &mut Value) {
    pod_level_requests(ensure_spec(pod));
}

/// Requests of the pod as a whole, where only its limits or its containers' requests are given.
fn pod_level_requests(spec: &mut Value) {
    if !has(spec, "resources") {
        return;
    }
    let mut requests: Map<String, Value> = map(spec, "resources.requests").cloned().unwrap_or_default();
    let asked = container_requests(spec);
    for (resource, amount) in &asked {
        requests.entry(resource).or_insert_with(|| amount.clone());
    }
    for (resource, limit) in map(spec, "resources.limits").into_iter().flatten() {
        requests.entry(resource).or_insert_with(|| limit.clone());
    }
    if !requests.is_empty() {
        set(spec, "resources.requests", requests);
    }
}

/// Sum of the containers' requests for what can be asked at pod level.
fn container_requests(spec: &Value) -> Map<String, Value> {
    let mut sums: std::collections::BTreeMap<String, api::quantity::Quantity> = std::collections::BTreeMap::new();
    for container in crate::kinds::value::list(spec, "containers") {
        for (resource, amount) in crate::kinds::value::entries(container, "resources.requests") {
            let supported = resource == "cpu" || resource == "memory" || resource.starts_with("hugepages-");
            if let (true, Some(amount)) = (supported, super::quantity(amount)) {
                let sum = sums.get(resource).map_or(amount, |sum| *sum + amount);
                sums.insert(resource.to_owned(), sum);
            }
        }
    }
    sums.into_iter().map(|(resource, sum)| (resource, Value::from(sum.to_string()))).collect()
}

/// On the host's network a container port is a host port.
fn host_ports(spec: &mut Value) {
    for containers in ["containers", "initContainers"] {
        for container in list_mut(spec, containers) {
            for port in list_mut(container, "ports") {
                if int(port, "hostPort") == 0 {
                    let number = at(port, "containerPort").clone();
                    if get(port, "containerPort").is_some() {
                        set(port, "hostPort", number);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn smallest_pod() {
        let mut given = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
        pod(&mut given);
        assert_eq!(
            given["spec"],
            json!({
                "containers": [{
                    "name": "c", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"
                }],
                "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
                "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30
            })
        );
    }

    #[test]
    fn parts() {
        let mut given = json!({"spec": {"hostNetwork": true, "serviceAccount": "x", "containers": [{
            "name": "c", "image": "a:1", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "livenessProbe": {"httpGet": {"port": 80}}, "startupProbe": {"grpc": {"port": 1}, "failureThreshold": 9}
        }], "volumes": [
            {"name": "none"}, {"name": "s", "secret": {"secretName": "s"}}, {"name": "h", "hostPath": {"path": "/"}},
            {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
        ]}});
        pod(&mut given);
        let spec = &given["spec"];
        let container = &spec["containers"][0];
        assert_eq!(container["ports"][0], json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}));
        assert_eq!(container["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(
            container["livenessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                   "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(container["startupProbe"]["failureThreshold"], 9);
        assert_eq!(container["startupProbe"]["grpc"]["service"], "");
        assert_eq!(spec["serviceAccountName"], "x");
        assert_eq!(
            spec["volumes"],
            json!([
                {"name": "none", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}},
                {"name": "p", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}
            ])
        );
    }

    #[test]
    fn templates_keep_requests_unset() {
        let mut given =
            json!({"spec": {"containers": [{"name": "c", "image": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        template(&mut given);
        assert_eq!(given["spec"]["containers"][0]["resources"], json!({"limits": {"cpu": "1"}}));
        assert_eq!(given["spec"].get("enableServiceLinks"), None);
    }
}
