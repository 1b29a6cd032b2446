//! Data, rights, events, and what steers the server itself.

use serde_json::{Value, json};

use super::{check, shown};

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
    for plural in ["roles", "clusterroles", "limitranges"] {
        check(plural, &[(json!({}), "o|2026-01-01T00:05:00Z")]);
    }
    check(
        "customresourcedefinitions",
        &[
            (json!({}), "o|||2026-01-01T00:05:00Z||||false"),
            (
                json!({"spec": {"group": "e.com", "scope": "Namespaced", "names": {"kind": "Foo", "shortNames": ["f", "fo"]},
                    "versions": [{"name": "v1beta1", "served": true}, {"name": "v1", "served": true, "storage": true}, {"name": "v0"}]},
                    "status": {"conditions": [{"type": "Established", "status": "True"}]}}),
                "o|Namespaced|v1(storage),v1beta1|2026-01-01T00:05:00Z|e.com|Foo|f,fo|true",
            ),
        ],
    );
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
