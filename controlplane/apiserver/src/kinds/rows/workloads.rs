//! Workloads, and what scales and exposes them.

use serde_json::{Value, json};

use super::{NOW, check, shown};

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
            (
                json!({"metadata": {"annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}, "spec": {"controller": "c"}}),
                "o (default)|c|<none>|5m",
            ),
            (
                json!({"metadata": {"annotations": {"ingressclass.kubernetes.io/is-default-class": "false"}}, "spec": {"controller": "c"}}),
                "o|c|<none>|5m",
            ),
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
