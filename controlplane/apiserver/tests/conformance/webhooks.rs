//! Admission webhooks, as conformance drives them.

use std::sync::Arc;
use std::time::Duration;

use apiserver::testing::Cluster;
use base64::Engine;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::hook::Hook;
use super::{Answer, DEFINITIONS, FOOS, MAPS, MERGE, define, definition, delete, get, map, patch, post, put};

const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

fn patched(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": base64::prelude::BASE64_STANDARD.encode(operations.to_string())})
}

fn rule(group: &str, version: &str, resource: &str, operations: &[&str]) -> Value {
    json!([{"apiGroups": [group], "apiVersions": [version], "operations": operations, "resources": [resource]}])
}

fn configuration(kind: &str, config: &Value, rules: Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}WebhookConfiguration"), "metadata": {"name": "h", "labels": {"of": "test"}}, "webhooks": [{
        "name": "h.example.com", "clientConfig": config, "sideEffects": "None", "admissionReviewVersions": ["v1"], "rules": rules,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}]})
}

fn path(kind: &str) -> String {
    format!("{REGISTRATION}/{}webhookconfigurations", kind.to_lowercase())
}

/// Sends again until the configuration is in force (or is no more).
async fn until(send: impl AsyncFn() -> Answer, wanted: impl Fn(&Answer) -> bool) -> Answer {
    for _ in 0..400 {
        let answer = send().await;
        if wanted(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it never became what was wanted: {:#?}", send().await)
}

fn dry(path: &str) -> String {
    format!("{path}?dryRun=All")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_denies_is_denied_with_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let hook = Hook::start(dir.path(), |request| {
        let data = &request["object"]["data"];
        match (request["operation"].as_str().unwrap(), &request["oldObject"]["data"]["keep"]) {
            ("DELETE", Value::String(_)) => json!({"allowed": false, "status": {"reason": "the object is kept"}}),
            (_, _) if !data["bad"].is_null() => json!({"allowed": false, "status": {"message": "the configmap contains unwanted key and value", "reason": "unwanted", "code": 418}, "auditAnnotations": {"why": "bad"}}),
            (_, _) if !data["bare"].is_null() => json!({"allowed": false}),
            _ => json!({"allowed": true, "warnings": ["seen"]}),
        }
    })
    .await;
    let mut configured =
        configuration("Validating", &hook.config(), rule("", "v1", "configmaps", &["CREATE", "UPDATE", "DELETE"]));
    post(&client, &path("Validating"), &configured).await.expect(201);
    let answer =
        until(async || post(&client, &dry(MAPS), &map("a", json!({"bad": "1"}))).await, |answer| answer.code == 418)
            .await;
    answer.refused(
        418,
        "unwanted",
        "admission webhook \"h.example.com\" denied the request: the configmap contains unwanted key and value",
    );
    let bare = post(&client, MAPS, &map("a", json!({"bare": "1"}))).await;
    bare.refused(400, "", "admission webhook \"h.example.com\" denied the request without explanation");
    let fine = post(&client, MAPS, &map("a", json!({"keep": "1"}))).await;
    assert_eq!((fine.code, fine.warnings()), (201, vec!["299 - \"seen\""]));
    for change in [
        put(&client, &format!("{MAPS}/a"), &map("a", json!({"bad": "1"}))).await,
        patch(&client, &format!("{MAPS}/a"), MERGE, &json!({"data": {"bad": "1"}})).await,
    ] {
        assert_eq!(change.code, 418);
    }
    let kept = delete(&client, &format!("{MAPS}/a")).await;
    assert_eq!(
        (kept.code, kept.message()),
        (400, "admission webhook \"h.example.com\" denied the request: the object is kept")
    );
    // Another namespace is not selected.
    post(&client, "/api/v1/namespaces", &json!({"metadata": {"name": "exempt"}})).await.expect(201);
    post(&client, "/api/v1/namespaces/exempt/configmaps", &map("a", json!({"bad": "1"}))).await.expect(201);
    // The rules of a configuration can be changed, and changed back.
    let item = format!("{}/h", path("Validating"));
    for (operations, code) in [(json!(["UPDATE"]), 201), (json!(["CREATE"]), 418)] {
        let operation = json!([{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": operations}]);
        patch(&client, &item, super::JSON_PATCH, &operation).await.expect(200);
        until(async || post(&client, &dry(MAPS), &map("b", json!({"bad": "1"}))).await, |answer| answer.code == code)
            .await;
    }
    // Webhooks have no say in configurations of webhooks.
    configured["metadata"]["name"] = "g".into();
    configured["webhooks"][0]["rules"] = rule("admissionregistration.k8s.io", "*", "*", &["*"]);
    configured["webhooks"][0].as_object_mut().unwrap().remove("namespaceSelector");
    post(&client, &path("Validating"), &configured).await.expect(201);
    let list = get(&client, &format!("{}?labelSelector=of%3Dtest", path("Validating"))).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    delete(&client, &format!("{}?labelSelector=of%3Dtest", path("Validating"))).await.expect(200);
    until(async || post(&client, &dry(MAPS), &map("b", json!({"bad": "1"}))).await, |answer| answer.code == 201).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_a_webhook_follow_its_policy_and_its_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let hook = Hook::start(dir.path(), |_| {
        std::thread::sleep(Duration::from_secs(3));
        json!({"allowed": true})
    })
    .await;
    let mut configured = configuration("Validating", &hook.config(), rule("", "v1", "configmaps", &["CREATE"]));
    configured["webhooks"][0]["timeoutSeconds"] = 1.into();
    post(&client, &path("Validating"), &configured).await.expect(201);
    let answer =
        until(async || post(&client, &dry(MAPS), &map("a", json!({}))).await, |answer| answer.code == 500).await;
    let url = hook.config()["url"].as_str().unwrap().to_owned();
    answer.refused(500, "InternalError", &format!("Internal error occurred: failed calling webhook \"h.example.com\": failed to call webhook: Post \"{url}?timeout=1s\": context deadline exceeded"));
    let item = format!("{}/h", path("Validating"));
    let operation = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    patch(&client, &item, super::JSON_PATCH, &operation).await.expect(200);
    until(async || post(&client, &dry(MAPS), &map("a", json!({}))).await, |answer| answer.code == 201).await;
    let unavailable = json!({"service": {"namespace": "default", "name": "none", "path": "/x"}});
    let operations = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}, {"op": "replace", "path": "/webhooks/0/clientConfig", "value": unavailable}]);
    patch(&client, &item, super::JSON_PATCH, &operations).await.expect(200);
    let answer =
        until(async || post(&client, &dry(MAPS), &map("a", json!({}))).await, |answer| answer.code == 500).await;
    assert_eq!(
        answer.message(),
        "Internal error occurred: failed calling webhook \"h.example.com\": failed to call webhook: Post \"https://none.default.svc:443/x?timeout=1s\": service \"none\" not found"
    );
    for (key, value, why) in [
        (
            "timeoutSeconds",
            json!(31),
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
        ),
        (
            "sideEffects",
            json!("Some"),
            "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
        ),
        (
            "matchConditions",
            json!([{"name": "bad", "expression": "..."}]),
            "webhooks[0].matchConditions[0].expression: Invalid value: \"...\": compilation failed: ERROR: <input>:1:2: Syntax error",
        ),
        (
            "matchConditions",
            json!([{"name": "bad", "expression": "oldObject == null || oldObject"}]),
            "webhooks[0].matchConditions[0].expression: Invalid value",
        ),
    ] {
        let mut wrong = configuration("Validating", &unavailable, rule("", "v1", "configmaps", &["CREATE"]));
        wrong["metadata"]["name"] = "wrong".into();
        wrong["webhooks"][0][key] = value;
        let answer = post(&client, &path("Validating"), &wrong).await;
        if why.ends_with("Invalid value") && answer.code == 201 {
            // A dynamic value may be a boolean.
            continue;
        }
        assert!(answer.code == 422 && answer.message().contains(why), "{key}: {}", answer.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_webhook_changes_is_defaulted_validated_and_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let hook = Hook::start(dir.path(), |request| match request["resource"]["resource"].as_str().unwrap() {
        "pods" => patched(json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "added", "image": "added:1", "resources": {}}]}])),
        "foos" => patched(json!([{"op": "add", "path": "/data", "value": {"known": "by-webhook", "unknown": "x"}}])),
        _ => patched(json!([{"op": "add", "path": "/data/stage-1", "value": "yes"}])),
    })
    .await;
    let mut rules = rule("", "v1", "configmaps", &["CREATE"]);
    for (group, resource) in [("", "pods"), ("example.com", "foos")] {
        rules.as_array_mut().unwrap().push(rule(group, "v1", resource, &["CREATE"])[0].clone());
    }
    let mut configured = configuration("Mutating", &hook.config(), rules);
    configured["webhooks"][0]["matchConditions"] =
        json!([{"name": "not-me", "expression": "object.metadata.name != 'skip-me'"}]);
    post(&client, &path("Mutating"), &configured).await.expect(201);
    let changed = until(
        async || post(&client, &dry(MAPS), &map("a", json!({"start": "yes"}))).await,
        |answer| answer.value["data"]["stage-1"] == "yes",
    )
    .await;
    assert_eq!(changed.value["data"], json!({"start": "yes", "stage-1": "yes"}));
    let skipped = post(&client, &dry(MAPS), &map("skip-me", json!({"start": "yes"}))).await.expect(201);
    assert_eq!(skipped["data"], json!({"start": "yes"}));
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "skip-me", "namespace": "default"}});
    post(&client, "/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"serviceAccountName": "skip-me", "containers": [{"name": "c", "image": "i"}]}});
    let made = post(&client, &dry("/api/v1/namespaces/default/pods"), &pod).await.expect(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(
        (&added["terminationMessagePolicy"], &added["imagePullPolicy"]),
        (&json!("File"), &json!("IfNotPresent")),
        "{added:#}"
    );
    define(&client, &definition(json!({"type": "object", "properties": {"data": {"type": "object", "properties": {"known": {"type": "string"}}}}}))).await;
    let foo = json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}});
    let made = post(&client, FOOS, &foo).await.expect(201);
    assert_eq!(made["data"], json!({"known": "by-webhook"}), "what the schema does not know is pruned");
    assert_eq!(get(&client, &format!("{FOOS}/f")).await.expect(200)["data"], made["data"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_and_custom_resources_can_be_denied() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))).await;
    let hook = Hook::start(dir.path(), |request| match request["resource"]["resource"].as_str().unwrap() {
        "customresourcedefinitions" if request["object"]["metadata"]["labels"]["deny"] == "yes" => {
            json!({"allowed": false, "status": {"reason": "the crd contains unwanted label"}})
        }
        "foos" if request["object"]["data"] == "bad" => {
            json!({"allowed": false, "status": {"reason": "the custom resource contains unwanted data"}})
        }
        _ => json!({"allowed": true}),
    })
    .await;
    let mut configured = configuration("Validating", &hook.config(), rule("*", "*", "*", &["CREATE", "UPDATE"]));
    configured["webhooks"][0].as_object_mut().unwrap().remove("namespaceSelector");
    post(&client, &path("Validating"), &configured).await.expect(201);
    let foo =
        |data: &str| json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}, "data": data});
    let denied = until(async || post(&client, &dry(FOOS), &foo("bad")).await, |answer| answer.code == 400).await;
    denied.refused(
        400,
        "the custom resource contains unwanted data",
        "admission webhook \"h.example.com\" denied the request: the custom resource contains unwanted data",
    );
    post(&client, FOOS, &foo("good")).await.expect(201);
    let mut other = definition(json!({"type": "object"}));
    (other["metadata"]["name"], other["metadata"]["labels"]) = ("bars.example.com".into(), json!({"deny": "yes"}));
    other["spec"]["names"] = json!({"plural": "bars", "kind": "Bar"});
    let denied = post(&client, DEFINITIONS, &other).await;
    assert_eq!(
        (denied.code, denied.message()),
        (400, "admission webhook \"h.example.com\" denied the request: the crd contains unwanted label")
    );
}

/// The write to the pod that a Binding or an Eviction brings about is not asked about once more.
#[tokio::test(flavor = "multi_thread")]
async fn bindings_and_evictions_are_admitted_as_such_alone() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    let hook = Hook::start(dir.path(), move |request| {
        let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = [&request["operation"], &request["subResource"], &request["kind"]["kind"]].map(part);
        noted.lock().push(of.join(" "));
        json!({"allowed": true, "warnings": ["seen"]})
    })
    .await;
    let core = "/api/v1/namespaces/default";
    let pods = format!("{core}/pods");
    post(&client, &format!("{core}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await.expect(201);
    let configured = configuration("Validating", &hook.config(), rule("", "v1", "pods/*", &["*"]));
    post(&client, &path("Validating"), &configured).await.expect(201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false}});
    until(async || post(&client, &dry(&pods), &pod).await, |answer| !answer.warnings().is_empty()).await;
    post(&client, &pods, &pod).await.expect(201);
    asked.lock().clear();
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    post(&client, &format!("{pods}/p/binding"), &binding).await.expect(201);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    post(&client, &format!("{pods}/p/eviction"), &eviction).await.expect(201);
    let going = get(&client, &format!("{pods}/p")).await.expect(200);
    assert!(going["spec"]["nodeName"] == "n" && going["metadata"]["deletionTimestamp"].is_string(), "{going}");
    assert_eq!(*asked.lock(), ["CREATE binding Binding", "CREATE eviction Eviction"]);
}
