//! Nodes, storage, devices.

use serde_json::{Value, json};

use super::{NOW, check};

#[test]
fn nodes() {
    let ready =
        |status: &str| json!([{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": status}]);
    check(
        "nodes",
        &[
            (json!({}), "o|Unknown|<none>|5m||<none>|<none>|<unknown>|<unknown>|<unknown>"),
            (
                json!({"status": {"conditions": ready("Unknown")}}),
                "o|NotReady|<none>|5m||<none>|<none>|<unknown>|<unknown>|<unknown>",
            ),
            (
                json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/": "", "kubernetes.io/role": "edge"}},
                    "spec": {"unschedulable": true},
                    "status": {"conditions": ready("True"), "addresses": [{"type": "ExternalIP", "address": "1.2.3.4"}, {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "10.0.0.2"}],
                        "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": "containerd://2"}}}),
                "o|Ready,SchedulingDisabled|edge,worker|5m|v1.37.0|10.0.0.1|1.2.3.4|Debian|6.1|containerd://2",
            ),
            (
                json!({"status": {"nodeInfo": {"kernelVersion": "6.1", "architecture": "arm64"}}}),
                "o|Unknown|<none>|5m||<none>|<none>|<unknown>|6.1 (arm64)|<unknown>",
            ),
        ],
    );
    check("leases", &[(json!({"spec": {"holderIdentity": "me"}}), "o|me|5m"), (json!({}), "o||5m")]);
    check("runtimeclasses", &[(json!({"handler": "runc"}), "o|runc|5m")]);
    check("namespaces", &[(json!({"status": {"phase": "Active"}}), "o|Active|5m")]);
    check(
        "componentstatuses",
        &[
            (json!({}), "o|Unknown||"),
            (json!({"conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]}), "o|Healthy|ok|"),
            (json!({"conditions": [{"type": "Healthy", "status": "Unknown", "error": "no"}]}), "o|Unhealthy||no"),
        ],
    );
}

#[test]
fn storage() {
    let gone = |mut object: Value| {
        object["metadata"]["deletionTimestamp"] = NOW.into();
        object
    };
    let volume = json!({"spec": {"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce", "ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "fast", "volumeAttributesClassName": "gold", "volumeMode": "Block"}, "status": {"phase": "Bound", "reason": "Why"}});
    check(
        "persistentvolumes",
        &[
            (volume.clone(), "o|5Gi|RWO,RWX|Retain|Bound|n/c|fast|gold|Why|5m|Block"),
            (gone(volume), "o|5Gi|RWO,RWX|Retain|Terminating|n/c|fast|gold|Why|5m|Block"),
            (json!({"status": {"phase": "Pending"}}), "o|0|||Pending|||<unset>||5m|<unset>"),
            (
                json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "old"}}}),
                "o|0|||||old|<unset>||5m|<unset>",
            ),
        ],
    );
    let status =
        json!({"phase": "Bound", "accessModes": ["ReadOnlyMany", "ReadWriteOncePod"], "capacity": {"storage": "1Gi"}});
    check(
        "persistentvolumeclaims",
        &[
            (
                json!({"spec": {"volumeName": "v", "storageClassName": "fast", "volumeMode": "Filesystem"}, "status": status}),
                "o|Bound|v|1Gi|ROX,RWOP|fast|<unset>|5m|Filesystem",
            ),
            (
                json!({"spec": {"volumeName": "v"}, "status": {"phase": "Pending"}}),
                "o|Pending|v|0|||<unset>|5m|<unset>",
            ),
            // Without a volume nothing is said of one.
            (gone(json!({"status": status})), "o|Terminating|||||<unset>|5m|<unset>"),
        ],
    );
    let default = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}, "provisioner": "p"});
    check(
        "storageclasses",
        &[
            (default("storageclass.kubernetes.io/is-default-class", "true"), "o (default)|p|Delete|Immediate|false|5m"),
            (
                default("storageclass.beta.kubernetes.io/is-default-class", "true"),
                "o (default)|p|Delete|Immediate|false|5m",
            ),
            (default("storageclass.kubernetes.io/is-default-class", "false"), "o|p|Delete|Immediate|false|5m"),
            (
                json!({"provisioner": "p", "reclaimPolicy": "Retain", "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true}),
                "o|p|Retain|WaitForFirstConsumer|true|5m",
            ),
        ],
    );
    check(
        "csidrivers",
        &[
            (json!({}), "o|true|false|false|<unset>|false|<none>|5m"),
            (
                json!({"spec": {"attachRequired": false, "podInfoOnMount": true, "storageCapacity": true, "tokenRequests": [{"audience": "a"}, {"audience": "b"}], "requiresRepublish": true, "volumeLifecycleModes": ["Persistent", "Ephemeral"]}}),
                "o|false|true|true|a,b|true|Persistent,Ephemeral|5m",
            ),
        ],
    );
    check("csinodes", &[(json!({"spec": {"drivers": [{}, {}]}}), "o|2|5m")]);
    check(
        "csistoragecapacities",
        &[
            (json!({"storageClassName": "c", "capacity": "3Gi"}), "o|c|3Gi"),
            (json!({"storageClassName": "c"}), "o|c|<unset>"),
        ],
    );
    check(
        "volumeattachments",
        &[
            (
                json!({"spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "v"}}, "status": {"attached": true}}),
                "o|d|v|n|true|5m",
            ),
            (
                json!({"spec": {"attacher": "d", "nodeName": "n", "source": {"inlineVolumeSpec": {}}}}),
                "o|d||n|false|5m",
            ),
        ],
    );
    check("volumeattributesclasses", &[(json!({"driverName": "d"}), "o|d|5m")]);
}

#[test]
fn devices() {
    let deleted = |status: Value| json!({"metadata": {"deletionTimestamp": NOW}, "status": status});
    let allocated = json!({"allocation": {}, "reservedFor": [{}]});
    check(
        "resourceclaims",
        &[
            (json!({}), "o|pending|5m"),
            (json!({"status": {"reservedFor": [{}]}}), "o|pending|5m"),
            (json!({"status": {"allocation": {}}}), "o|allocated|5m"),
            (json!({"status": allocated}), "o|allocated,reserved|5m"),
            (deleted(allocated), "o|deleted,allocated,reserved|5m"),
            (deleted(json!({})), "o|deleted|5m"),
        ],
    );
    check("resourceclaimtemplates", &[(json!({}), "o|5m")]);
    check("deviceclasses", &[(json!({}), "o|5m")]);
    check(
        "resourceslices",
        &[
            (json!({"spec": {"nodeName": "n", "driver": "d", "pool": {"name": "p"}}}), "o|n|d|p|5m"),
            (json!({"spec": {"allNodes": true, "driver": "d", "pool": {"name": "p"}}}), "o||d|p|5m"),
        ],
    );
    check(
        "devicetaintrules",
        &[
            (
                json!({"spec": {"taint": {"key": "k", "value": "v", "effect": "NoExecute", "timeAdded": "2026-01-01T00:09:00Z"}}}),
                "o|k|v|NoExecute|60s|5m",
            ),
            (json!({"spec": {"taint": {"key": "k", "effect": "None"}}}), "o|k||None||5m"),
        ],
    );
}
