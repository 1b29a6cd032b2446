//! The FlowSchemas and PriorityLevelConfigurations of every cluster, and how they are kept. Pure.

use serde_json::{Value, json};

/// Says whether the server may overwrite the spec.
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Name, shares, percent that may be lent, queues, hand size; those without queues reject.
const LEVELS: &[(&str, u32, u32, u32, u32)] = &[
    ("catch-all", 5, 0, 0, 0),
    ("global-default", 20, 50, 128, 6),
    ("leader-election", 10, 0, 16, 4),
    ("node-high", 40, 25, 64, 6),
    ("system", 30, 33, 64, 6),
    ("workload-high", 40, 50, 128, 6),
    ("workload-low", 100, 90, 128, 6),
];

/// The standard objects of a resource.
pub fn objects(plural: &str) -> Vec<Value> {
    if plural == "flowschemas" { schemas() } else { levels() }
}

fn levels() -> Vec<Value> {
    let limited = LEVELS.iter().map(|(name, shares, lendable, queues, hand)| {
        let response = if *queues == 0 {
            json!({"type": "Reject"})
        } else {
            json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}})
        };
        let limited =
            json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        object(name, json!({"type": "Limited", "limited": limited}))
    });
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    std::iter::once(object("exempt", exempt)).chain(limited).collect()
}

fn schemas() -> Vec<Value> {
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
    let system_accounts =
        || json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}});
    let everybody = || json!([group("system:unauthenticated"), group("system:authenticated")]);
    let rule = |verbs: &[&str], api: &str, resources: &[&str], cluster: bool| {
        let mut rule = json!({"verbs": verbs, "apiGroups": [api], "resources": resources, "namespaces": ["*"]});
        if cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let everything = |subjects: Value| {
        json!({"subjects": subjects, "resourceRules": [rule(&["*"], "*", &["*"], true)],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]})
    };
    let leases = |verbs: &[&str]| rule(verbs, "coordination.k8s.io", &["leases"], false);
    let managers = json!([user("system:kube-controller-manager"), user("system:kube-scheduler"), system_accounts()]);
    let nodes = || json!([group("system:nodes")]);
    let own_nodes = rule(&["*"], "", &["nodes", "nodes/status"], true);
    [
        ("exempt", "exempt", 1, "", everything(json!([group("system:masters")]))),
        (
            "probes",
            "exempt",
            2,
            "",
            json!({"subjects": everybody(),
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]}),
        ),
        (
            "system-leader-election",
            "leader-election",
            100,
            "ByUser",
            json!({"subjects": managers, "resourceRules": [leases(&["get", "create", "update"])]}),
        ),
        (
            "system-node-high",
            "node-high",
            400,
            "ByUser",
            json!({"subjects": nodes(), "resourceRules": [own_nodes, leases(&["*"])]}),
        ),
        ("system-nodes", "system", 500, "ByUser", everything(nodes())),
        (
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            everything(json!([user("system:kube-controller-manager")])),
        ),
        ("kube-scheduler", "workload-high", 800, "ByNamespace", everything(json!([user("system:kube-scheduler")]))),
        ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", everything(json!([system_accounts()]))),
        ("service-accounts", "workload-low", 9000, "ByUser", everything(json!([group("system:serviceaccounts")]))),
        ("global-default", "global-default", 9900, "ByUser", everything(everybody())),
        ("catch-all", "catch-all", 10_000, "ByUser", everything(everybody())),
    ]
    .into_iter()
    .map(|(name, level, precedence, distinguisher, rules)| {
        let mut spec =
            json!({"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": [rules]});
        if !distinguisher.is_empty() {
            spec["distinguisherMethod"] = json!({"type": distinguisher});
        }
        object(name, spec)
    })
    .collect()
}

fn object(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "annotations": {AUTO_UPDATE: "true"}}, "spec": spec})
}

/// A held standard object put right; none when it is, or when its owner wants it as it is. What
/// nobody has marked is the server's as long as it was never changed.
pub fn maintained(held: &Value, wanted: &Value) -> Option<Value> {
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    // Of the two that there must always be, only the exempt level's shares are the user's affair.
    let mandatory = matches!(name, "exempt" | "catch-all") && wanted["spec"]["exempt"].is_null();
    let ours = match held["metadata"]["annotations"][AUTO_UPDATE].as_str() {
        Some(mark) => mark == "true",
        None => held["metadata"]["generation"].as_i64().unwrap_or(1) <= 1,
    };
    let mark = if ours || mandatory { "true" } else { "false" };
    let mut changed = held.clone();
    changed["metadata"]["annotations"][AUTO_UPDATE] = mark.into();
    if ours || mandatory {
        changed["spec"] = wanted["spec"].clone();
    }
    (changed != *held).then_some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_may_keep_their_changes() {
        let wanted = &levels()[5];
        let mut held = wanted.clone();
        assert!(maintained(&held, wanted).is_none());
        held["spec"]["limited"]["nominalConcurrencyShares"] = 7.into();
        assert_eq!(maintained(&held, wanted).unwrap()["spec"], wanted["spec"]);
        held["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert!(maintained(&held, wanted).is_none());
        held["metadata"]["annotations"] = json!({});
        held["metadata"]["generation"] = 2.into();
        let marked = maintained(&held, wanted).unwrap();
        assert_eq!(marked["metadata"]["annotations"][AUTO_UPDATE], "false");
        assert_eq!(marked["spec"], held["spec"]);
    }

    #[test]
    fn the_two_that_must_be_are_not_anybodys_to_change() {
        let schemas = schemas();
        let wanted = schemas.iter().find(|schema| schema["metadata"]["name"] == "catch-all").unwrap();
        let mut held = wanted.clone();
        held["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        held["spec"]["matchingPrecedence"] = 5.into();
        assert_eq!(maintained(&held, wanted).unwrap()["spec"], wanted["spec"]);
    }

    #[test]
    fn every_schema_names_a_standard_level() {
        let levels = levels();
        for schema in schemas() {
            let level = &schema["spec"]["priorityLevelConfiguration"]["name"];
            assert!(levels.iter().any(|held| held["metadata"]["name"] == *level), "{level}");
        }
    }
}
