//! Containers: environment, mounts, probes, resources.

use serde_json::{Value, json};

use super::{containers, specs};
use crate::patch::merge;

#[test]
fn environment() {
    let from = |source: Value| json!({"env": [{"name": "A", "valueFrom": source}]});
    let field = |path: &str| from(json!({"fieldRef": {"fieldPath": path}}));
    let resource =
        |name: &str, divisor: &str| from(json!({"resourceFieldRef": {"resource": name, "divisor": divisor}}));
    let both = json!({"configMapRef": {"name": "m"}, "secretRef": {"name": "s"}});
    containers(&[
        (from(json!({})), "env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"),
        (
            json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            "env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            from(json!({"fieldRef": {"fieldPath": "metadata.name"}, "secretKeyRef": {"name": "s", "key": "k"}})),
            "env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a time",
        ),
        (
            from(json!({"fieldRef": {"apiVersion": "v2", "fieldPath": "metadata.name"}})),
            "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"metadata.name\": error converting fieldPath: unsupported pod version: v2",
        ),
        (field("spec['x']"), "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec['x']\": error converting fieldPath: field label does not support subscript: spec['x']"),
        (
            field("status.phase"),
            "env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
        ),
        (field("metadata.labels['a']"), "[]"),
        (resource("limits.cpu", "2"), "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource"),
        (
            resource("requests.memory", "3"),
            "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"requests.memory\": only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ),
        (
            resource("limits.ephemeral-storage", "3"),
            "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.ephemeral-storage\": only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource",
        ),
        (json!({"envFrom": [{}]}), "envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"),
        (json!({"envFrom": [both]}), "envFrom: Invalid value: \"\": may not have more than one field specified at a time"),
        (
            from(json!({"fileKeyRef": {"volumeName": "w", "key": "K", "path": "f"}})),
            "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Invalid value: \"w\": referenced volume must be of type emptyDir".trim_start_matches("spec.containers[0]."),
        ),
    ]);
}

#[test]
fn mounts_and_devices() {
    let mount = |extra: Value| merge(&json!({"name": "v", "mountPath": "/m"}), &extra).unwrap();
    let one = |extra: Value| json!({"volumeMounts": [mount(extra)]});
    containers(&[
        (
            json!({"volumeMounts": [mount(json!({})), mount(json!({"subPath": "x"}))]}),
            "volumeMounts[1].mountPath: Invalid value: \"/m\": must be unique",
        ),
        (
            json!({"volumeMounts": [{"name": "w", "mountPath": "/m"}], "volumeDevices": [{"name": "w", "devicePath": "/d"}]}),
            "[volumeMounts[0].name: Invalid value: \"w\": must not already exist in volumeDevices, volumeDevices[0].name: Invalid value: \"w\": must not already exist in volumeMounts]",
        ),
        (
            json!({"volumeMounts": [mount(json!({}))], "volumeDevices": [{"name": "w", "devicePath": "/m"}]}),
            "[volumeMounts[0].mountPath: Invalid value: \"/m\": must not already exist as a path in volumeDevices, volumeDevices[0].devicePath: Invalid value: \"/m\": must not already exist as a path in volumeMounts]",
        ),
        (
            one(json!({"subPath": "a", "subPathExpr": "b"})),
            "volumeMounts[0].subPathExpr: Invalid value: \"b\": subPathExpr and subPath are mutually exclusive",
        ),
        (one(json!({"subPath": "/a"})), "volumeMounts.subPath: Invalid value: \"/a\": must be a relative path"),
        (
            one(json!({"subPathExpr": "a/../b"})),
            "volumeMounts.subPathExpr: Invalid value: \"a/../b\": must not contain '..'",
        ),
        (
            one(json!({"mountPropagation": "Bidirectional"})),
            "volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
        ),
        (
            one(json!({"recursiveReadOnly": "Enabled", "mountPropagation": "HostToContainer"})),
            "[volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true, volumeMounts.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified]",
        ),
        (
            json!({"volumeDevices": [{"name": "w", "devicePath": "/d"}, {"name": "w", "devicePath": "/d"}]}),
            "[volumeDevices[1].name: Invalid value: \"w\": must be unique, volumeDevices[1].devicePath: Invalid value: \"/d\": must be unique]",
        ),
        (
            json!({"volumeDevices": [{"name": "v", "devicePath": "/a/../b"}]}),
            "[volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode, volumeDevices[0].devicePath: Invalid value: \"/a/../b\": can not contain backsteps ('..')]",
        ),
    ]);
}

#[test]
fn containers_alone() {
    containers(&[
        (
            json!({"readinessProbe": {"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 5}}),
            "readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
        ),
        (
            json!({"livenessProbe": {"httpGet": {"path": "/", "port": 80, "httpHeaders": [{"name": "X Y", "value": ""}]}}}),
            "livenessProbe.httpGet.httpHeaders: Invalid value: \"X Y\": a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
        ),
        (
            json!({"livenessProbe": {"exec": {"command": ["x"]}, "tcpSocket": {"port": 1}}}),
            "livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            json!({"startupProbe": {"grpc": {"port": 1}, "successThreshold": 2}}),
            "startupProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}),
            "lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
        ),
        // Its feature is off: it goes before it is looked at.
        (json!({"lifecycle": {"stopSignal": "SIGTERM"}}), "[]"),
        (
            json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}),
            "restartPolicy: Required value: must specify restartPolicy when restart rules are used",
        ),
        (
            json!({"resources": {"limits": {"hugepages-2Mi": "2Mi"}}}),
            "resources: Forbidden: HugePages require cpu or memory",
        ),
        (
            json!({"resources": {"claims": [{"name": "x"}]}}),
            "resources.claims[0]: Not found: \"x\": must be one of the names in pod.spec.resourceClaims which is empty",
        ),
    ]);
    specs(&[
        (
            json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
            "containers[0].resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when pod `restartPolicy` is 'Never'",
        ),
        (
            json!({"initContainers": [{"name": "j", "image": "i", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
            "initContainers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": must not be set to 'RestartContainer' for non-sidecar initContainers",
        ),
        (
            json!({"ephemeralContainers": [{"name": "e", "image": "i"}]}),
            "ephemeralContainers: Forbidden: cannot be set on create",
        ),
    ]);
}

#[test]
fn resources() {
    let asks = |limits: Value, requests: Value| json!({"resources": {"limits": limits, "requests": requests}});
    containers(&[
        (
            asks(json!({"cpu": "1"}), json!({"cpu": "2"})),
            "resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            asks(json!({"example.com/gpu": "1"}), json!({"example.com/gpu": "2"})),
            "resources.requests: Invalid value: \"2\": must be equal to example.com/gpu limit of 1",
        ),
        (
            json!({"resources": {"requests": {"example.com/gpu": "2"}}}),
            "resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            asks(json!({"hugepages-2Mi": "3Mi", "cpu": "1"}), json!({})),
            "[resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi, resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple of hugepages-2Mi]",
        ),
        (
            asks(json!({"pods": "1"}), json!({"pods": "1"})),
            "[resources.limits[pods]: Invalid value: \"pods\": must be a standard resource for containers, resources.requests[pods]: Invalid value: \"pods\": must be a standard resource for containers]",
        ),
    ]);
    let pod = |own: Value, container: Value| json!({"resources": own, "containers": [{"name": "c", "image": "i", "resources": container}]});
    specs(&[
        (
            pod(json!({"requests": {"cpu": "1"}}), json!({"requests": {"cpu": "2"}})),
            "resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 2",
        ),
        (
            pod(json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}})),
            "resources.containers[0][cpu].limits: Invalid value: \"2\": must be less than or equal to pod limits of 1",
        ),
        (
            json!({"os": {"name": "windows"}, "resources": {"limits": {"cpu": "1"}}}),
            "resources: Forbidden: may not be set for a windows pod",
        ),
        (
            json!({"resourceClaims": [{"name": "r", "resourceClaimName": "r"}], "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "r"}, {"name": "r"}, {"name": "x"}]}}]}),
            "[containers[0].resources.claims[1]: Duplicate value: \"r\", containers[0].resources.claims[2]: Not found: \"x\": must be one of the names in pod.resourceClaims: r]",
        ),
    ]);
}
