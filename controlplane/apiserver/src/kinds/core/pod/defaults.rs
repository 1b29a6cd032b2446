//! Defaults of a pod, of a pod template and of their parts (`pkg/apis/core/v1/defaults.go`).
//!
//! Key functions: [`pod`] for Pods, [`template`] for everything that embeds a `PodTemplateSpec`:
//! what differs is only what upstream sets on Pods alone (requests from limits, service links,
//! host ports of the host network). [`pod_level`] waits until admission has seen the containers.

use api::quantity::{Format, Quantity};
use serde_json::{Value, json};

use super::resources;
use crate::kinds::check::Node;
use crate::kinds::value::{
    at, default, default_int, default_text, ensure_map, flag, get, get_mut, has, int, list, list_mut, map, opt_text,
    set, text,
};

/// Where the three kinds of containers are.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a Pod.
pub fn pod(pod: &mut Value) {
    let spec = ensure_spec(pod);
    requests_from_limits(spec);
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
    for amounts in ["overhead", "resources.limits", "resources.requests"] {
        thousandths(spec, amounts);
    }
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
    for amounts in ["resources.limits", "resources.requests"] {
        thousandths(container, amounts);
    }
    for port in list_mut(container, "ports") {
        default_text(port, "protocol", "TCP");
    }
    for variable in list_mut(container, "env") {
        if has(variable, "valueFrom.fieldRef") {
            default_text(variable, "valueFrom.fieldRef.apiVersion", "v1");
        }
        if has(variable, "valueFrom.fileKeyRef") {
            default(variable, "valueFrom.fileKeyRef.optional", false);
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

/// Amounts are whole thousandths, rounded up (`SetDefaults_ResourceList`).
fn thousandths(owner: &mut Value, amounts: &str) {
    let Some(Value::Object(amounts)) = get_mut(owner, amounts) else { return };
    for amount in amounts.values_mut() {
        // Whatever is finer is written with one of these.
        let fine = amount.as_str().filter(|text| text.ends_with(['n', 'u']) || text.contains("e-"));
        let exact = fine.and_then(|text| text.parse::<Quantity>().ok());
        if let Some(exact) = exact.filter(|exact| exact.nanos() % 1_000_000 != 0) {
            *amount = Quantity::from_milli(exact.milli(), Format::DecimalSi).to_string().into();
        }
    }
}

/// `Always` for `:latest`, also beside a digest, and for neither tag nor digest; `IfNotPresent` otherwise.
pub fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match (last.split_once(':'), digest) {
        (Some((_, "latest")), _) => "Always",
        (None, None) if !image.is_empty() => "Always",
        _ => "IfNotPresent",
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

/// What a pod as a whole asks for and may use, once it says any of it itself: the rest follows from its
/// containers (`DefaultPodLevelResources`). Each step builds on the one before.
pub fn pod_level(pod: &mut Value) {
    let spec = ensure_spec(pod);
    let given: &Value = spec;
    let own = |side: &str| map(given, &format!("resources.{side}")).cloned().unwrap_or_default();
    let (mut requests, mut limits) = (own("requests"), own("limits"));
    if requests.is_empty() && limits.is_empty() {
        return;
    }
    let root = Node::root(given);
    let (asked, most) = (resources::aggregate(&root, "requests"), resources::aggregate(&root, "limits"));
    for (name, limit) in &most {
        if resources::is_huge(name) && !requests.contains_key(*name) {
            limits.entry(*name).or_insert_with(|| limit.to_string().into());
        }
    }
    for name in resources::POD_LEVEL {
        if let Some(sum) = asked.get(name) {
            requests.entry(name).or_insert_with(|| sum.to_string().into());
        }
    }
    for (name, limit) in &limits {
        if resources::POD_LEVEL.contains(&name.as_str()) || resources::is_huge(name) {
            requests.entry(name).or_insert_with(|| limit.clone());
        }
    }
    let containers: Vec<&Value> =
        ["containers", "initContainers"].iter().flat_map(|field| list(given, field)).collect();
    for name in resources::POD_LEVEL {
        // One container without a limit leaves the pod without one.
        let limited = |container: &&Value| map(container, "resources.limits").is_some_and(|own| own.contains_key(name));
        if let Some(sum) = most.get(name).filter(|_| containers.iter().all(limited)) {
            let least = requests.get(name).and_then(super::quantity).unwrap_or(Quantity::ZERO);
            limits.entry(name).or_insert_with(|| least.max(*sum).to_string().into());
        }
    }
    for (side, amounts) in [("resources.requests", requests), ("resources.limits", limits)] {
        if !amounts.is_empty() {
            set(spec, side, amounts);
        }
    }
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
            ("registry:5000/nginx:1@sha256:00", "IfNotPresent"),
            ("nginx:latest@sha256:00", "Always"),
            ("", "IfNotPresent"),
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
    fn amounts_finer_than_thousandths_are_rounded_up() {
        let amounts = json!({"cpu": "100u", "memory": "1500001n", "ephemeral-storage": "1500m", "x/y": "1e-3"});
        let rounded = json!({"cpu": "1m", "memory": "2m", "ephemeral-storage": "1500m", "x/y": "1e-3"});
        let mut given = json!({"spec": {"overhead": {"cpu": "1n"}, "containers": [{"name": "c", "image": "a", "resources": {"limits": amounts}}]}});
        template(&mut given);
        assert_eq!(given["spec"]["containers"][0]["resources"]["limits"], rounded);
        assert_eq!(given["spec"]["overhead"], json!({"cpu": "1m"}));
    }

    #[test]
    fn keys_of_files_must_be_there() {
        let variable = json!({"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}});
        let mut given = json!({"spec": {"containers": [{"name": "c", "image": "a", "env": [variable]}]}});
        template(&mut given);
        assert_eq!(given["spec"]["containers"][0]["env"][0]["valueFrom"]["fileKeyRef"]["optional"], false);
    }

    #[test]
    fn a_pods_own_resources_follow_from_all_its_containers() {
        let container = |asked: Value, most: Value| json!({"resources": {"requests": asked, "limits": most}});
        let whole = container(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "2", "memory": "1Gi"}));
        let setup = container(json!({"cpu": "3"}), json!({"cpu": "3"}));
        let mut sidecar = container(json!({"cpu": "1"}), json!({"cpu": "1"}));
        set(&mut sidecar, "restartPolicy", "Always");
        let huge = json!({"cpu": "1", "hugepages-2Mi": "4Mi"});
        for (own, containers, init, expected) in [
            (json!({}), json!([whole]), json!([]), json!({})),
            (
                json!({"requests": {"memory": "2Gi"}}),
                json!([whole]),
                json!([]),
                json!({"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}),
            ),
            // What an init container asks for is asked for, and it has no limit of memory.
            (
                json!({"requests": {"memory": "1Gi"}}),
                json!([whole]),
                json!([setup]),
                json!({"requests": {"cpu": "3", "memory": "1Gi"}, "limits": {"cpu": "3"}}),
            ),
            (
                json!({"limits": {"memory": "4Gi"}}),
                json!([whole]),
                json!([sidecar]),
                json!({"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "3", "memory": "4Gi"}}),
            ),
            (
                json!({"limits": {"cpu": "4"}}),
                json!([{}]),
                json!([]),
                json!({"requests": {"cpu": "4"}, "limits": {"cpu": "4"}}),
            ),
            (
                json!({"requests": {"cpu": "1"}}),
                json!([container(huge.clone(), huge.clone())]),
                json!([]),
                json!({"requests": huge, "limits": huge}),
            ),
        ] {
            let mut given = json!({"spec": {"resources": own, "containers": containers, "initContainers": init}});
            pod_level(&mut given);
            assert_eq!(given["spec"]["resources"], expected, "{own}");
            let once = given.clone();
            pod_level(&mut given);
            assert_eq!(given, once);
        }
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
