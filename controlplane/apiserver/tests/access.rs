//! Who may do what, how much, and what is written down, seen from outside.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use apiserver::testing::Cluster;
use apiserver::{AuditConfig, Config, LogConfig};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use tempfile::TempDir;

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"a": "b"}})).unwrap()
}

/// The events of an audit log, waited for until `enough` says that they are all there.
async fn events(path: &std::path::Path, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    for _ in 0..600 {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if enough(&events) {
            return events;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not all events came: {}", std::fs::read_to_string(path).unwrap_or_default());
}

struct Audited {
    cluster: Cluster,
    log: PathBuf,
    _dir: TempDir,
}

/// A server that keeps an audit log by this policy.
async fn audited(policy: &str) -> Audited {
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    std::fs::write(&file, policy).unwrap();
    let adjust = |config: &mut Config| {
        config.options.audit = AuditConfig {
            policy_file: Some(file.clone()),
            log: Some(LogConfig { path: log.clone(), ..LogConfig::default() }),
            ..AuditConfig::default()
        };
    };
    Audited { cluster: Cluster::start_with(adjust).await, log, _dir: dir }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_audited_as_the_policy_says() {
    let text = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: RequestResponse, users: [jane], resources: [{resources: [configmaps]}]}
- {level: Metadata, users: [jane]}
";
    let Audited { cluster, log, _dir } = audited(text).await;
    let admin: Api<ConfigMap> = Api::default_namespaced(cluster.admin());
    admin.create(&PostParams::default(), &config_map("unseen")).await.unwrap();
    let jane: Api<ConfigMap> = Api::default_namespaced(cluster.client("jane"));
    jane.create(&PostParams::default(), &config_map("a")).await.unwrap_err();
    Api::<Namespace>::all(cluster.client("jane")).list(&ListParams::default()).await.unwrap_err();
    let events = events(&log, |events| events.len() >= 2).await;
    assert_eq!(events.len(), 2, "{events:?}");
    let create = &events[0];
    assert_eq!((&create["kind"], &create["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    assert_eq!((&create["level"], &create["stage"]), (&json!("RequestResponse"), &json!("ResponseComplete")));
    assert_eq!((&create["verb"], &create["user"]["username"]), (&json!("create"), &json!("jane")));
    assert_eq!(create["objectRef"], json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"}));
    assert_eq!(create["requestObject"]["data"], Value::Null, "a refused request's body is not read");
    assert_eq!(
        (&create["responseStatus"]["code"], &create["responseStatus"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    assert_eq!(create["responseObject"]["kind"], "Status");
    assert_eq!(create["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(events[1]["level"], "Metadata");
    assert!(events[1].get("responseObject").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_are_audited_when_they_begin_and_when_they_end() {
    let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, verbs: [watch], users: ['system:admin'], resources: [{resources: [configmaps]}]}]}";
    let Audited { cluster, log, _dir } = audited(text).await;
    let watch = http::Request::get("/api/v1/configmaps?watch=true&timeoutSeconds=1").body(Vec::new()).unwrap();
    cluster.admin().request_text(watch).await.unwrap();
    let events = events(&log, |events| events.len() >= 3).await;
    let stages: Vec<&str> = events.iter().map(|event| event["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    assert_eq!(events[2]["responseStatus"]["code"], 200);
    assert_eq!(events[0]["auditID"], events[2]["auditID"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_classified_and_counted() {
    let cluster = Cluster::start().await;
    let schemas = http::Request::get("/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas").body(Vec::new()).unwrap();
    let schemas: Value = cluster.admin().request(schemas).await.unwrap();
    let items = schemas["items"].as_array().unwrap();
    assert_eq!(items.len(), 11);
    let default = items.iter().find(|item| item["metadata"]["name"] == "global-default").unwrap();
    assert_eq!(default["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"], "true");
    assert_eq!(default["status"]["conditions"][0]["reason"], "Found");
    let get = http::Request::get("/version").body(kube::client::Body::empty()).unwrap();
    let response = cluster.client("jane").send(get).await.unwrap();
    assert_eq!(response.headers()["x-kubernetes-pf-flowschema-uid"], default["metadata"]["uid"].as_str().unwrap());
    assert!(response.headers().contains_key("x-kubernetes-pf-prioritylevel-uid"));
    let page = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let page = cluster.admin().request_text(page).await.unwrap();
    let labels = "flow_schema=\"global-default\",priority_level=\"global-default\"";
    assert!(page.contains(&format!("apiserver_flowcontrol_dispatched_requests_total{{{labels}}} ")), "{page}");
    assert!(page.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} 245"));
    let dump = http::Request::get("/debug/api_priority_and_fairness/dump_priority_levels").body(Vec::new()).unwrap();
    assert!(cluster.admin().request_text(dump).await.unwrap().contains("\nworkload-low,"));
}

/// A level without seats lets one request in at a time, and says to the others when to come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_which_there_is_no_seat_is_429() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let post = |path: &str, body: Value| {
        let request = http::Request::post(path).header("content-type", "application/json");
        admin.request::<Value>(request.body(body.to_string().into_bytes()).unwrap())
    };
    let flow = "/apis/flowcontrol.apiserver.k8s.io/v1";
    post(
        &format!("{flow}/prioritylevelconfigurations"),
        json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": "none"}, "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}}}),
    )
    .await
    .unwrap();
    let schema = post(
        &format!("{flow}/flowschemas"),
        json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": "joe"},
            "spec": {"priorityLevelConfiguration": {"name": "none"}, "matchingPrecedence": 3,
                "rules": [{"subjects": [{"kind": "User", "user": {"name": "joe"}}], "resourceRules": [
                    {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]}]}}),
    )
    .await
    .unwrap();
    post(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "joe"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "joe"}]}),
    )
    .await
    .unwrap();
    for name in ["a", "b"] {
        let mut large = config_map(name);
        large.data = Some([("a".to_owned(), "x".repeat(200 << 10))].into());
        Api::default_namespaced(admin.clone()).create(&PostParams::default(), &large).await.unwrap();
    }
    let list =
        || http::Request::get("/api/v1/namespaces/default/configmaps").body(kube::client::Body::empty()).unwrap();
    let uid = schema["metadata"]["uid"].as_str().unwrap();
    for _ in 0..600 {
        // A large list holds its seat until it has been read.
        let unread = cluster.client("joe").send(list()).await.unwrap();
        let second = cluster.client("joe").send(list()).await.unwrap();
        if unread.headers().get("x-kubernetes-pf-flowschema-uid").is_some_and(|held| held == uid) {
            assert_eq!(unread.status(), 200);
            assert_eq!(second.status(), 429);
            assert_eq!(second.headers()["retry-after"], "1");
            assert_eq!(second.headers()["x-kubernetes-pf-flowschema-uid"], uid);
            drop(unread);
            assert_eq!(cluster.client("joe").send(list()).await.unwrap().status(), 200);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the flow schema had no effect");
}

/// The URL of a create does not say what is made; its record does, whatever the level.
#[tokio::test(flavor = "multi_thread")]
async fn the_record_of_a_create_names_the_object() {
    let text = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata, verbs: [create, update], resources: [{resources: [configmaps]}], namespaces: [default]}]
";
    let Audited { cluster, log, _dir } = audited(text).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.admin());
    let made = maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    maps.replace("a", &PostParams::default(), &made).await.unwrap();
    let events = events(&log, |events| events.len() >= 2).await;
    let reference = json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"});
    assert_eq!(events[0]["objectRef"], reference);
    assert_eq!(events[1]["objectRef"]["uid"], json!(made.metadata.uid));
    assert_eq!(events[1]["objectRef"]["resourceVersion"], json!(made.metadata.resource_version));
    assert!(events[0].get("requestObject").is_none());
}

/// How a request was answered is recorded at every level, in whatever the client took it.
#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_recorded_without_bodies() {
    let text = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata, users: ['system:admin'], verbs: [get, delete], resources: [{resources: [configmaps]}]}]
";
    let Audited { cluster, log, _dir } = audited(text).await;
    for accept in ["application/json", "application/vnd.kubernetes.protobuf"] {
        let get = http::Request::get("/api/v1/namespaces/default/configmaps/none").header("accept", accept);
        let get = get.body(kube::client::Body::empty()).unwrap();
        assert_eq!(cluster.admin().send(get).await.unwrap().status(), 404);
    }
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.admin());
    maps.create(&PostParams::default(), &config_map("a")).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let events = events(&log, |events| events.len() >= 3).await;
    for event in &events[..2] {
        let status = &event["responseStatus"];
        assert_eq!((&status["code"], &status["reason"]), (&json!(404), &json!("NotFound")), "{event}");
        assert_eq!(status["details"]["name"], "none");
    }
    let status = &events[2]["responseStatus"];
    assert_eq!((&status["code"], &status["status"]), (&json!(200), &json!("Success")), "{status}");
    assert_eq!(status["details"]["name"], "a");
    assert!(events.iter().all(|event| event["requestObject"].is_null() && event["responseObject"].is_null()));
}
