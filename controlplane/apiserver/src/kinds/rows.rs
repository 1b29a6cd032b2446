//! What `kubectl get -o wide` shows of objects in every state worth a cell of its own. Pods have
//! rows enough for a table beside their code (`core::pod::row`).

use serde_json::{Value, json};

use super::{all, tested};

const NOW: &str = "2026-01-01T00:10:00Z";
const BORN: &str = "2026-01-01T00:05:00Z";

/// The row of an object that is named `o` and five minutes old.
fn shown(plural: &str, mut object: Value) -> String {
    let resources = all();
    let mut named = resources.iter().filter(|resource| !resource.descriptor.virtual_ || plural == "componentstatuses");
    let resource = named.find(|resource| resource.descriptor.plural == plural).unwrap();
    for (key, value) in [("name", "o"), ("creationTimestamp", BORN)] {
        if object["metadata"].get(key).is_none() {
            object["metadata"][key] = value.into();
        }
    }
    tested::cells(&*resource.hooks, &object, NOW)
}

fn check(plural: &str, rows: &[(Value, &str)]) {
    for (object, expected) in rows {
        assert_eq!(shown(plural, object.clone()), *expected, "{plural} {object}");
    }
}

fn pods() -> Value {
    json!({"spec": {"nodeSelector": {"b": "2", "a": "1"}, "containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "k"}]}})
}

#[test]
fn workloads() {
    check(
        "deployments",
        &[
            (
                json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"b": "2", "a": "1"}}, "template": pods()}, "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}}),
                "o|1/3|2|1|5m|c,d|i:1,k|a=1,b=2",
            ),
            (
                json!({"spec": {"replicas": 0, "selector": {"matchExpressions": [{"key": "x", "operator": "Sometimes"}]}}}),
                "o|0/0|0|0|5m|||<invalid>",
            ),
            (json!({"spec": {"selector": {}}}), "o|0/0|0|0|5m|||"),
        ],
    );
    check(
        "replicasets",
        &[
            (
                json!({"spec": {"replicas": 3, "template": pods(), "selector": {"matchLabels": {"z": "1"}, "matchExpressions": [
                    {"key": "tier", "operator": "In", "values": ["web"]}, {"key": "app", "operator": "NotIn", "values": ["y", "x"]},
                    {"key": "old", "operator": "DoesNotExist"}, {"key": "new", "operator": "Exists"}]}},
                    "status": {"replicas": 2, "readyReplicas": 1}}),
                "o|3|2|1|5m|c,d|i:1,k|app notin (x,y),new,!old,tier in (web),z=1",
            ),
            (
                json!({"spec": {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}}),
                "o|0|0|0|5m|||<error>",
            ),
            (json!({}), "o|0|0|0|5m|||<none>"),
        ],
    );
    check(
        "replicationcontrollers",
        &[
            (json!({"spec": {"replicas": 1, "selector": {"b": "2", "a": "1"}}}), "o|1|0|0|5m|||a=1,b=2"),
            (json!({}), "o|0|0|0|5m|||<none>"),
        ],
    );
    check(
        "daemonsets",
        &[
            (
                json!({"spec": {"template": pods()}, "status": {"desiredNumberScheduled": 3}}),
                "o|3|0|0|0|0|a=1,b=2|5m|c,d|i:1,k|<none>",
            ),
            (json!({}), "o|0|0|0|0|0|<none>|5m|||<none>"),
        ],
    );
    check(
        "statefulsets",
        &[(json!({"spec": {"replicas": 2, "template": pods()}, "status": {"readyReplicas": 1}}), "o|1/2|5m|c,d|i:1,k")],
    );
    check(
        "podtemplates",
        &[(json!({"template": {"metadata": {"labels": {"a": "b"}}, "spec": pods()["spec"]}}), "o|c,d|i:1,k|a=b")],
    );
    let owner = |version: &str, controller: bool| json!({"metadata": {"ownerReferences": [{"apiVersion": version, "kind": "StatefulSet", "name": "s", "controller": controller}]}, "revision": 4});
    check(
        "controllerrevisions",
        &[
            (owner("apps/v1", true), "o|statefulset.apps/s|4|5m"),
            (owner("v1", true), "o|statefulset/s|4|5m"),
            (owner("apps/v1", false), "o|<none>|4|5m"),
        ],
    );
}

#[test]
fn jobs() {
    let with = |conditions: Value, extra: Value| {
        let mut status = json!({"startTime": "2026-01-01T00:05:00Z", "conditions": conditions});
        status.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"spec": {"completions": 1}, "status": status})
    };
    let on = |kind: &str| json!([{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:06:00Z"}]);
    let mut going = with(json!([]), json!({}));
    going["metadata"]["deletionTimestamp"] = NOW.into();
    check(
        "jobs",
        &[
            (with(json!([]), json!({})), "o|Running|0/1|5m|5m|||<none>"),
            (
                with(on("Complete"), json!({"completionTime": "2026-01-01T00:05:07Z", "succeeded": 1})),
                "o|Complete|1/1|7s|5m|||<none>",
            ),
            // Without a completion time the clock runs on.
            (with(on("Failed"), json!({})), "o|Failed|0/1|5m|5m|||<none>"),
            (with(on("SuccessCriteriaMet"), json!({})), "o|SuccessCriteriaMet|0/1|5m|5m|||<none>"),
            (going, "o|Terminating|0/1|5m|5m|||<none>"),
        ],
    );
    check(
        "cronjobs",
        &[(json!({"spec": {"schedule": "@daily", "timeZone": ""}}), "o|@daily||<unset>|0|<none>|5m|||<none>")],
    );
}

#[test]
fn services() {
    let lb = |ingress: Value, extra: &[&str]| json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.0.0.1"], "externalIPs": extra}, "status": {"loadBalancer": {"ingress": ingress}}});
    check(
        "services",
        &[
            (
                json!({"spec": {"type": "ClusterIP", "clusterIPs": ["None"]}}),
                "o|ClusterIP|None|<none>|<none>|5m|<none>",
            ),
            (
                json!({"spec": {"type": "ClusterIP", "clusterIPs": ["10.0.0.1", "fd00::1"], "externalIPs": ["1.2.3.4", "5.6.7.8"]}}),
                "o|ClusterIP|10.0.0.1|1.2.3.4,5.6.7.8|<none>|5m|<none>",
            ),
            (
                json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
                "o|NodePort|<none>|<none>|80:30001/TCP,53/UDP|5m|<none>",
            ),
            (lb(json!([]), &[]), "o|LoadBalancer|10.0.0.1|<pending>|<none>|5m|<none>"),
            (
                lb(json!([{"hostname": "b.example"}, {"ip": "9.9.9.9"}]), &[]),
                "o|LoadBalancer|10.0.0.1|9.9.9.9,b.example|<none>|5m|<none>",
            ),
            (lb(json!([{"ip": "9.9.9.9"}]), &["1.2.3.4"]), "o|LoadBalancer|10.0.0.1|9.9.9.9,1.2.3.4|<none>|5m|<none>"),
            (lb(json!([]), &["1.2.3.4"]), "o|LoadBalancer|10.0.0.1|1.2.3.4|<none>|5m|<none>"),
            (
                json!({"spec": {"type": "ExternalName", "externalName": "e.example"}}),
                "o|ExternalName|<none>|e.example|<none>|5m|<none>",
            ),
            (json!({"spec": {"type": "Odd", "selector": {"a": "b"}}}), "o|Odd|<none>|<unknown>|<none>|5m|a=b"),
        ],
    );
    let ports = json!([{"port": 80}, {"port": 81}]);
    check(
        "endpoints",
        &[
            (json!({}), "o|<none>|5m"),
            (json!({"subsets": [{"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": ports}]}), "o||5m"),
            (json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}), "o|10.0.0.1|5m"),
            (
                json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": ports}]}),
                "o|10.0.0.1:80,[fd00::1]:80,10.0.0.1:81 + 1 more...|5m",
            ),
        ],
    );
    check("endpointslices", &[(json!({"addressType": "IPv4", "ports": [{"name": ""}]}), "o|IPv4|<unset>|<unset>|5m")]);
    let rules = |hosts: &[&str]| hosts.iter().map(|host| json!({"host": host})).collect::<Value>();
    check(
        "ingresses",
        &[
            (json!({}), "o|<none>|*||80|5m"),
            (
                json!({"spec": {"ingressClassName": "n", "rules": rules(&["a", "", "b"]), "tls": [{}]}, "status": {"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}, {"hostname": "h"}]}}}),
                "o|n|a,b|9.9.9.9,h|80, 443|5m",
            ),
            (json!({"spec": {"rules": rules(&["a", "b", "c", "d", "e"])}}), "o|<none>|a,b,c + 2 more...||80|5m"),
        ],
    );
    check(
        "ingressclasses",
        &[
            (json!({"spec": {"controller": "e.example/c"}}), "o|e.example/c|<none>|5m"),
            (
                json!({"spec": {"controller": "c", "parameters": {"apiGroup": "k.example", "kind": "P", "name": "p"}}}),
                "o|c|P.k.example/p|5m",
            ),
            (json!({"spec": {"controller": "c", "parameters": {"kind": "P", "name": "p"}}}), "o|c|P/p|5m"),
        ],
    );
    check(
        "networkpolicies",
        &[
            (json!({"spec": {"podSelector": {}}}), "o|<none>|5m"),
            (json!({"spec": {"podSelector": {"matchLabels": {"a": "b"}}}}), "o|a=b|5m"),
        ],
    );
    check("servicecidrs", &[(json!({"spec": {"cidrs": ["10.0.0.0/16", "fd00::/64"]}}), "o|10.0.0.0/16,fd00::/64|5m")]);
    check(
        "ipaddresses",
        &[
            (json!({}), "o|<none>"),
            (
                json!({"spec": {"parentRef": {"group": "Gateway.example", "resource": "gateways", "name": "g"}}}),
                "o|gateways.gateway.example/g",
            ),
        ],
    );
}

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
fn data_and_rights() {
    check(
        "configmaps",
        &[(json!({"data": {"a": "", "b": ""}, "binaryData": {"c": ""}}), "o|3|5m"), (json!({}), "o|0|5m")],
    );
    check("secrets", &[(json!({"type": "Opaque", "data": {"a": ""}}), "o|Opaque|1|5m")]);
    check("serviceaccounts", &[(json!({"secrets": [{}]}), "o|5m")]);
    let subjects = json!([{"kind": "User", "name": "u"}, {"kind": "Group", "name": "g"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}, {"kind": "User", "name": "v"}]);
    for plural in ["rolebindings", "clusterrolebindings"] {
        check(
            plural,
            &[
                (
                    json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": subjects}),
                    "o|ClusterRole/r|5m|u, v|g|n/s",
                ),
                (json!({"roleRef": {"kind": "Role", "name": "r"}}), "o|Role/r|5m|||"),
            ],
        );
    }
    for plural in ["roles", "clusterroles", "limitranges", "customresourcedefinitions"] {
        check(plural, &[(json!({}), "o|2026-01-01T00:05:00Z")]);
    }
    check(
        "resourcequotas",
        &[(
            json!({"status": {"hard": {"requests.cpu": "2", "limits.memory": "1Gi", "pods": "9", "limits": "1"}, "used": {"pods": "3", "limits.memory": "512Mi"}}}),
            "o|limits: 0/1, pods: 3/9, requests.cpu: 0/2|limits.memory: 512Mi/1Gi|5m",
        )],
    );
    check(
        "priorityclasses",
        &[
            (json!({"value": 7, "globalDefault": true, "preemptionPolicy": "Never"}), "o|7|true|5m|Never"),
            (json!({}), "o|0|false|5m|"),
        ],
    );
    check("poddisruptionbudgets", &[(json!({"spec": {"maxUnavailable": "10%"}}), "o|N/A|10%|0|5m")]);
    let condition = |kind: &str| json!({"type": kind, "status": "True"});
    check(
        "certificatesigningrequests",
        &[
            (json!({}), "o|5m|<none>||<none>|Pending"),
            (
                json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 86400}, "status": {"conditions": [condition("Approved"), condition("Denied"), condition("Failed")], "certificate": "eA=="}}),
                "o|5m|s|u|24h|Denied,Failed,Issued",
            ),
        ],
    );
    check("clustertrustbundles", &[(json!({"spec": {"signerName": "s"}}), "o|s")]);
    let request = |conditions: Value| json!({"spec": {"podName": "p", "serviceAccountName": "a", "nodeName": "n", "signerName": "s"}, "status": {"conditions": conditions}});
    check(
        "podcertificaterequests",
        &[
            (request(json!([])), "o|p|a|n|s|Pending"),
            (request(json!([condition("Issued"), condition("Odd")])), "o|p|a|n|s|Issued"),
            (request(json!([condition("Failed")])), "o|p|a|n|s|Failed"),
        ],
    );
}

#[test]
fn events() {
    let involved = json!({"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"});
    check(
        "events",
        &[
            (
                json!({"involvedObject": involved, "type": "Warning", "reason": "BackOff", "message": " no \n", "firstTimestamp": "2026-01-01T00:07:00Z", "lastTimestamp": "2026-01-01T00:09:30Z", "count": 5, "source": {"component": "kubelet", "host": "n"}}),
                "30s|Warning|BackOff|pod/p|spec.containers{c}|kubelet, n|no|3m|5|o",
            ),
            // The newer sort has a time with fractions, a controller, and a series.
            (
                json!({"involvedObject": {"kind": "Node"}, "eventTime": "2026-01-01T00:09:00.500000Z", "firstTimestamp": null, "lastTimestamp": null, "reportingComponent": "k", "reportingInstance": "k-1"}),
                "59s|||node||k, k-1||59s|1|o",
            ),
            (
                json!({"eventTime": "2026-01-01T00:00:00.000000Z", "series": {"count": 7, "lastObservedTime": "2026-01-01T00:09:59.100000Z"}, "count": 2, "source": {"component": "c"}}),
                "0s|||||c||10m|7|o",
            ),
            (json!({}), "<unknown>|||||||<unknown>|1|o"),
        ],
    );
}

#[test]
fn autoscalers() {
    let with = |spec: Value, current: Value| json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 2, "maxReplicas": 5, "metrics": spec}, "status": {"currentReplicas": 3, "currentMetrics": current}});
    let metric =
        |kind: &str, field: &str, target: Value| json!({"type": kind, field: {"name": "cpu", "target": target}});
    let current =
        |kind: &str, field: &str, current: Value| json!([{"type": kind, field: {"name": "cpu", "current": current}}]);
    let (value, average) = (json!({"value": "5"}), json!({"averageValue": "6"}));
    for (spec, now, targets) in [
        (json!([]), json!(null), "<none>"),
        (json!([metric("External", "external", value.clone())]), json!(null), "<unknown>/5"),
        (
            json!([metric("External", "external", value.clone())]),
            current("External", "external", json!({"value": "3"})),
            "3/5",
        ),
        (json!([metric("External", "external", value.clone())]), current("External", "external", json!({})), "<nil>/5"),
        (
            json!([metric("External", "external", average.clone())]),
            current("External", "external", average.clone()),
            "6/6 (avg)",
        ),
        (
            json!([metric("External", "external", average.clone())]),
            current("External", "external", json!({})),
            "<unknown>/6 (avg)",
        ),
        (json!([metric("Object", "object", value.clone())]), current("Object", "object", json!({"value": "4"})), "4/5"),
        (json!([metric("Object", "object", average.clone())]), json!(null), "<unknown>/6 (avg)"),
        (
            json!([metric("Pods", "pods", average.clone())]),
            current("Pods", "pods", json!({"averageValue": "1500m"})),
            "1500m/6",
        ),
        (json!([metric("Pods", "pods", average.clone())]), json!(null), "<unknown>/6"),
        (json!([metric("Resource", "resource", average.clone())]), json!(null), "cpu: <unknown>/6"),
        (json!([metric("Resource", "resource", json!({"averageUtilization": 80}))]), json!(null), "cpu: <unknown>/80%"),
        (
            json!([metric("ContainerResource", "containerResource", json!({}))]),
            current("ContainerResource", "containerResource", json!({"averageUtilization": 7})),
            "cpu: 7%/<auto>",
        ),
        (
            json!([
                metric("X", "x", json!({})),
                metric("Pods", "pods", average.clone()),
                metric("Pods", "pods", average.clone()),
                metric("Pods", "pods", average)
            ]),
            json!(null),
            "<unknown type>, <unknown>/6 + 2 more...",
        ),
    ] {
        assert_eq!(
            shown("horizontalpodautoscalers", with(spec.clone(), now)),
            format!("o|Deployment/d|{targets}|2|5|3|5m"),
            "{spec}"
        );
    }
    check("horizontalpodautoscalers", &[(json!({}), "o|/|<none>|<unset>|0|0|5m")]);
}

#[test]
fn admission_and_the_server() {
    for plural in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        check(plural, &[(json!({"webhooks": [{}, {}]}), "o|2|5m"), (json!({}), "o|0|5m")]);
    }
    for (plural, rules) in [("mutatingadmissionpolicies", "mutations"), ("validatingadmissionpolicies", "validations")]
    {
        check(
            plural,
            &[
                (
                    json!({"spec": {rules: [{}], "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}}}),
                    "o|1|v1/ConfigMap|5m",
                ),
                (json!({}), "o|0|<unset>|5m"),
            ],
        );
    }
    let selector = json!({"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]});
    for plural in ["mutatingadmissionpolicybindings", "validatingadmissionpolicybindings"] {
        for (params, expected) in [
            (json!(null), "<unset>"),
            (json!({"name": "c"}), "*/c"),
            (json!({"name": "c", "namespace": "n"}), "n/c"),
            (json!({"namespace": "n"}), "<unset>"),
            (
                json!({"selector": selector}),
                "&LabelSelector{MatchLabels:map[string]string{a: 1,b: 2,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:k,Operator:In,Values:[x y],},},}",
            ),
        ] {
            let binding = json!({"spec": {"policyName": "p", "paramRef": params}});
            assert_eq!(shown(plural, binding), format!("o|p|{expected}|5m"), "{params}");
        }
    }
    let available = |condition: Value| json!({"spec": {"service": {"namespace": "n", "name": "s"}}, "status": {"conditions": [condition]}});
    check(
        "apiservices",
        &[
            (json!({}), "o|Local|Unknown|5m"),
            (available(json!({"type": "Available", "status": "True", "reason": "Local"})), "o|n/s|True|5m"),
            (
                available(json!({"type": "Available", "status": "False", "reason": "MissingEndpoints"})),
                "o|n/s|False (MissingEndpoints)|5m",
            ),
            (available(json!({"type": "Available", "status": "False"})), "o|n/s|False|5m"),
        ],
    );
    let schema = json!({"priorityLevelConfiguration": {"name": "p"}, "matchingPrecedence": 9000});
    check(
        "flowschemas",
        &[
            (json!({"spec": schema}), "o|p|9000|<none>|5m|?"),
            (
                json!({"spec": {"priorityLevelConfiguration": {"name": "p"}, "matchingPrecedence": 1, "distinguisherMethod": {"type": "ByUser"}}, "status": {"conditions": [{"type": "Dangling", "status": "False"}]}}),
                "o|p|1|ByUser|5m|False",
            ),
        ],
    );
    check(
        "prioritylevelconfigurations",
        &[
            (json!({"spec": {"type": "Exempt"}}), "o|Exempt|<none>|<none>|<none>|<none>|5m"),
            (
                json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 0, "limitResponse": {"type": "Reject"}}}}),
                "o|Limited|0|<none>|<none>|<none>|5m",
            ),
            (
                json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "limitResponse": {"queuing": {"queues": 16, "handSize": 4, "queueLengthLimit": 50}}}}}),
                "o|Limited|5|16|4|50|5m",
            ),
        ],
    );
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

/// Ages in all their forms, of an object like any other.
#[test]
fn ages() {
    for (born, expected) in [
        (json!(null), "<unknown>"),
        (json!("2026-01-01T00:10:05Z"), "<invalid>"),
        (json!("2026-01-01T00:10:01Z"), "0s"),
        (json!("2026-01-01T00:08:01Z"), "119s"),
        (json!("2026-01-01T00:07:55Z"), "2m5s"),
        (json!("2025-12-31T23:50:00Z"), "20m"),
        (json!("2025-12-31T20:05:00Z"), "4h5m"),
        (json!("2025-12-31T10:10:00Z"), "14h"),
        (json!("2025-12-29T21:10:00Z"), "2d3h"),
        (json!("2025-12-01T00:10:00Z"), "31d"),
        (json!("2023-01-01T00:10:00Z"), "3y1d"),
        (json!("2010-01-01T00:10:00Z"), "16y"),
    ] {
        let map = json!({"metadata": {"creationTimestamp": born}});
        assert_eq!(shown("configmaps", map), format!("o|0|{expected}"), "{born}");
    }
}
