//! What the API promises, asked over the in-process client: each test is one story.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use apiserver::testing::Cluster;
use http::{Request, StatusCode};
use serde_json::{Value, json};

const BASE: &str = "/api/v1/namespaces/default";

/// Status code and body of one request.
async fn ask(client: &kube::Client, method: &str, path: &str, content: &str, body: &str) -> (u16, Value) {
    let request =
        Request::builder().method(method).uri(path).header("content-type", content).header("user-agent", "test/1");
    let request = request.body(kube::client::Body::from(body.as_bytes().to_vec())).unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))))
}

async fn post(client: &kube::Client, path: &str, body: &Value) -> (u16, Value) {
    ask(client, "POST", path, "application/json", &body.to_string()).await
}

async fn get(client: &kube::Client, path: &str) -> (u16, Value) {
    ask(client, "GET", path, "", "").await
}

async fn delete(client: &kube::Client, path: &str) -> (u16, Value) {
    ask(client, "DELETE", path, "", "").await
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "nginx"}], "automountServiceAccountToken": false}})
}

async fn with_account(client: &kube::Client) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    assert_eq!(post(client, &format!("{BASE}/serviceaccounts"), &account).await.0, 201);
}

#[tokio::test]
async fn writes_conflict_only_when_they_should() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{BASE}/configmaps");
    let (code, first) = post(&client, &path, &config_map("a")).await;
    assert_eq!(code, 201, "{first}");
    assert_eq!(first["metadata"]["managedFields"][0]["manager"], "test");
    let (code, status) = post(&client, &path, &config_map("a")).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("AlreadyExists")), "{status}");

    // An update that changes nothing writes nothing.
    let one = format!("{path}/a");
    let (code, same) = ask(&client, "PUT", &one, "application/json", &first.to_string()).await;
    assert_eq!((code, &same["metadata"]["resourceVersion"]), (200, &first["metadata"]["resourceVersion"]));

    let mut changed = first.clone();
    changed["data"]["a"] = "2".into();
    let (code, second) = ask(&client, "PUT", &one, "application/json", &changed.to_string()).await;
    assert_eq!(code, 200, "{second}");
    changed["data"]["a"] = "3".into();
    let (code, status) = ask(&client, "PUT", &one, "application/json", &changed.to_string()).await;
    assert_eq!(code, 409);
    assert_eq!(
        status["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    changed["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(ask(&client, "PUT", &one, "application/json", &changed.to_string()).await.0, 200);
    let (code, status) =
        ask(&client, "DELETE", &one, "application/json", &json!({"preconditions": {"uid": "x"}}).to_string()).await;
    assert_eq!(code, 409, "{status}");
    let (code, status) = delete(&client, &one).await;
    assert_eq!((code, status["status"].as_str()), (200, Some("Success")), "{status}");
    assert_eq!(delete(&client, &one).await.0, 404);
}

#[tokio::test]
async fn names_are_generated_and_dry_runs_leave_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{BASE}/configmaps");
    let object = json!({"metadata": {"generateName": "gen-"}});
    let (code, made) = post(&client, &path, &object).await;
    assert_eq!(code, 201, "{made}");
    assert!(made["metadata"]["name"].as_str().unwrap().starts_with("gen-"));
    let (code, dry) = post(&client, &format!("{path}?dryRun=All"), &config_map("dry")).await;
    assert_eq!(code, 201, "{dry}");
    assert_eq!(get(&client, &format!("{path}/dry")).await.0, 404);
    assert_eq!(post(&client, &format!("{path}?dryRun=Some"), &config_map("dry")).await.0, 422);
}

/// Writers of one object that wait for each other hand on what they wrote; a dry run wrote nothing.
#[tokio::test]
async fn dry_runs_among_other_writers_leave_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{BASE}/configmaps/a");
    assert_eq!(post(&client, &format!("{BASE}/configmaps"), &config_map("a")).await.0, 201);
    let patch = |query: &'static str, patch: Value| {
        let (client, path) = (client.clone(), format!("{path}{query}"));
        async move { ask(&client, "PATCH", &path, "application/merge-patch+json", &patch.to_string()).await }
    };
    for round in 0..20 {
        let writes = (0..8).map(|at| patch("", json!({"data": {format!("k{at}"): round.to_string()}})));
        let trials = (0..8).map(|at| patch("?dryRun=All", json!({"data": {"dry": format!("{round}-{at}")}})));
        let (written, tried) = futures::join!(futures::future::join_all(writes), futures::future::join_all(trials));
        assert!(written.iter().chain(&tried).all(|(code, _)| *code == 200), "{written:?} {tried:?}");
        assert!(written.iter().all(|(_, object)| object["data"].get("dry").is_none()), "{written:?}");
    }
    let (_, left) = get(&client, &path).await;
    assert_eq!(left["data"].as_object().unwrap().len(), 9, "{left}");
}

#[tokio::test]
async fn components_of_the_control_plane_write_under_their_names() {
    let cluster = Cluster::start().await;
    for (at, (user, manager)) in [
        ("system:kube-scheduler", "kube-scheduler"),
        ("system:kube-controller-manager", "kube-controller-manager"),
        ("system:serviceaccount:kube-system:job-controller", "kube-controller-manager"),
        ("system:admin", "kube-apiserver"),
    ]
    .into_iter()
    .enumerate()
    {
        let info = apiserver::UserInfo::new(user, &["system:masters"]);
        let body = config_map(&format!("m{at}")).to_string().into_bytes();
        let request = Request::post(format!("{BASE}/configmaps")).body(kube::client::Body::from(body)).unwrap();
        let response = cluster.server.client(&info).send(request).await.unwrap();
        let made: Value = serde_json::from_slice(&response.into_body().collect_bytes().await.unwrap()).unwrap();
        assert_eq!(made["metadata"]["managedFields"][0]["manager"], manager, "{made}");
    }
}

#[tokio::test]
async fn lists_are_paged_at_one_revision_and_selected() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{BASE}/configmaps");
    for at in 0..7 {
        let mut object = config_map(&format!("m{at}"));
        object["metadata"]["labels"] = json!({"odd": (at % 2 == 1).to_string()});
        assert_eq!(post(&client, &path, &object).await.0, 201);
    }
    let (_, page) = get(&client, &format!("{path}?limit=3")).await;
    assert_eq!(page["items"].as_array().unwrap().len(), 3);
    assert_eq!(page["metadata"]["remainingItemCount"], 4);
    assert!(page["items"][0].get("kind").is_none(), "items of a typed list carry no kind");
    delete(&client, &format!("{path}/m4")).await;
    let token = page["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = get(&client, &format!("{path}?limit=10&continue={token}")).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 4, "the list shows one revision: {rest}");
    assert_eq!(rest["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
    let (_, odd) = get(&client, &format!("{path}?labelSelector=odd%3Dtrue")).await;
    assert_eq!(odd["items"].as_array().unwrap().len(), 3);
    let (_, one) = get(&client, &format!("{path}?fieldSelector=metadata.name%3Dm1")).await;
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
    let (code, status) = get(&client, &format!("{path}?fieldSelector=spec.x%3D1")).await;
    assert_eq!(code, 400, "{status}");
    let (code, status) = get(&client, &format!("{path}?resourceVersion=99999")).await;
    assert_eq!(code, 504, "{status}");
    let (code, status) = get(&client, &format!("{path}?resourceVersion=abc")).await;
    assert_eq!(code, 400, "{status}");
}

#[tokio::test]
async fn bad_requests_are_refused_with_a_status() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{BASE}/configmaps");
    for (method, path, content, body, code) in [
        ("POST", path.as_str(), "application/json", "{", 400),
        ("POST", &path, "application/json", "[]", 400),
        ("POST", &path, "text/html", "{}", 415),
        ("POST", &path, "application/json", r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"}}"#, 400),
        ("POST", &path, "application/json", r#"{"apiVersion":"v2","kind":"ConfigMap","metadata":{"name":"x"}}"#, 400),
        ("POST", &path, "application/json", r#"{"metadata":{"name":"x","namespace":"other"}}"#, 400),
        ("POST", &path, "application/json", r#"{"metadata":{"name":"Bad_Name"}}"#, 422),
        ("POST", &path, "application/json", r#"{"metadata":{}}"#, 422),
        ("POST", &path, "application/json", r#"{"metadata":{"name":"x","resourceVersion":"5"}}"#, 400),
        ("POST", &path, "application/json", r#"{"metadata":{"name":"x"},"data":{"a":1}}"#, 400),
        ("POST", "/api/v1/namespaces/none/configmaps", "application/json", r#"{"metadata":{"name":"x"}}"#, 404),
        ("POST", "/api/v1/configmaps", "application/json", r#"{"metadata":{"name":"x"}}"#, 405),
        ("GET", "/api/v1/nothing", "", "", 404),
        ("GET", "/apis/apps/v1/nothing", "", "", 404),
        ("PATCH", "/api/v1/namespaces/default", "application/json", "{}", 415),
        (
            "PATCH",
            "/api/v1/namespaces/default",
            "application/json-patch+json",
            "[{\"op\":\"test\",\"path\":\"/x\",\"value\":1}]",
            422,
        ),
        ("DELETE", "/api/v1/namespaces/default/configmaps/none", "application/json", "{\"kind\":\"Pod\"}", 400),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/none",
            "application/json",
            r#"{"metadata":{"name":"other"}}"#,
            404,
        ),
        ("POST", "/version", "", "", 405),
    ] {
        let (got, status) = ask(&client, method, path, content, body).await;
        assert_eq!(got, code, "{method} {path} {body}: {status}");
        assert_eq!(status["kind"], "Status", "{method} {path} {body}: {status}");
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["code"], code);
        assert!(!status["message"].as_str().unwrap().is_empty());
    }
    let strict = format!("{path}?fieldValidation=Strict");
    let (code, status) =
        ask(&client, "POST", &strict, "application/json", r#"{"metadata":{"name":"x"},"dota":{}}"#).await;
    assert_eq!(code, 400);
    assert!(status["message"].as_str().unwrap().contains("unknown field \"dota\""), "{status}");
    let large = json!({"metadata": {"name": "x"}, "data": {"a": "x".repeat(4 << 20)}});
    let (code, status) = post(&client, &path, &large).await;
    assert_eq!((code, status["reason"].as_str()), (413, Some("RequestEntityTooLarge")));
}

#[tokio::test]
async fn patches_of_every_kind_change_objects() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{BASE}/configmaps/a");
    post(&client, &format!("{BASE}/configmaps"), &config_map("a")).await;
    for (content, patch) in [
        ("application/merge-patch+json", json!({"data": {"b": "2"}})),
        ("application/json-patch+json", json!([{"op": "add", "path": "/data/c", "value": "3"}])),
        ("application/strategic-merge-patch+json", json!({"data": {"a": null}})),
    ] {
        let (code, after) = ask(&client, "PATCH", &path, content, &patch.to_string()).await;
        assert_eq!(code, 200, "{content}: {after}");
    }
    let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"c": "4"}});
    let target = format!("{path}?fieldManager=me");
    let (code, status) = ask(&client, "PATCH", &target, "application/apply-patch+yaml", &apply.to_string()).await;
    assert_eq!(code, 409, "{status}");
    let forced = format!("{target}&force=true");
    let (code, after) = ask(&client, "PATCH", &forced, "application/apply-patch+yaml", &apply.to_string()).await;
    assert_eq!(code, 200, "{after}");
    assert_eq!(after["data"], json!({"b": "2", "c": "4"}));
    let made = format!("{BASE}/configmaps/fresh?fieldManager=me");
    let fresh = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fresh"}, "data": {"c": "4"}});
    assert_eq!(ask(&client, "PATCH", &made, "application/apply-patch+yaml", &fresh.to_string()).await.0, 201);
}

#[tokio::test]
async fn pods_are_bound_and_deleted_gracefully() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    with_account(&client).await;
    let (code, made) = post(&client, &format!("{BASE}/pods"), &pod("web")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["spec"]["terminationGracePeriodSeconds"], 30);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}});
    let path = format!("{BASE}/pods/web");
    let mut wrong = binding.clone();
    wrong["metadata"]["name"] = json!("other");
    let (code, status) = post(&client, &format!("{path}/binding"), &wrong).await;
    assert_eq!((code, &status["message"]), (400, &json!("name in URL does not match name in Binding object")));
    let (code, status) = post(
        &client,
        &format!("{path}/binding"),
        &json!({"metadata": {"name": "web"}, "target": {"kind": "Pod", "name": "n"}}),
    )
    .await;
    assert_eq!(code, 422, "{status}");
    assert_eq!(
        status["message"],
        "Binding \"web\" is invalid: target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\""
    );
    assert_eq!(post(&client, &format!("{path}/binding"), &binding).await.0, 201);
    let (code, status) = post(&client, &format!("{path}/binding"), &binding).await;
    assert_eq!(code, 409, "{status}");
    let (_, bound) = get(&client, &path).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let patch = json!({"status": {"phase": "Running"}, "spec": {"nodeName": "other"}}).to_string();
    let (code, after) = ask(&client, "PATCH", &format!("{path}/status"), "application/merge-patch+json", &patch).await;
    assert_eq!(
        (code, after["status"]["phase"].as_str(), after["spec"]["nodeName"].as_str()),
        (200, Some("Running"), Some("n1"))
    );
    let (code, going) = delete(&client, &path).await;
    assert_eq!((code, going["metadata"]["deletionGracePeriodSeconds"].as_i64()), (200, Some(30)), "{going}");
    let now = json!({"gracePeriodSeconds": 0}).to_string();
    assert_eq!(ask(&client, "DELETE", &path, "application/json", &now).await.0, 200);
    assert_eq!(get(&client, &path).await.0, 404);
}

/// The eviction itself writes to the pod, which is no reason to refuse it.
#[tokio::test]
async fn evictions_may_insist_on_a_version_of_the_pod() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    with_account(&client).await;
    let path = format!("{BASE}/pods/web");
    assert_eq!(post(&client, &format!("{BASE}/pods"), &pod("web")).await.0, 201);
    let binding = json!({"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}});
    assert_eq!(post(&client, &format!("{path}/binding"), &binding).await.0, 201);
    let (_, bound) = get(&client, &path).await;
    let evict = async |version: &Value| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web"},
            "deleteOptions": {"preconditions": {"resourceVersion": version}}});
        post(&client, &format!("{path}/eviction"), &eviction).await
    };
    let (code, status) = evict(&json!("1")).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")), "{status}");
    assert_eq!(get(&client, &path).await.1, bound);
    let (code, status) = evict(&bound["metadata"]["resourceVersion"]).await;
    assert_eq!(code, 201, "{status}");
    let (_, going) = get(&client, &path).await;
    assert!(going["metadata"]["deletionTimestamp"].is_string(), "{going}");
    let why = going["status"]["conditions"].as_array().unwrap().iter().find(|held| held["type"] == "DisruptionTarget");
    assert_eq!(why.unwrap()["reason"], "EvictionByEvictionAPI");
}

#[tokio::test]
async fn namespaces_end_when_their_finalizer_goes() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let (code, _) = post(&client, "/api/v1/namespaces", &json!({"metadata": {"name": "work"}})).await;
    assert_eq!(code, 201);
    let (code, going) = delete(&client, "/api/v1/namespaces/work").await;
    assert_eq!((code, going["status"]["phase"].as_str()), (200, Some("Terminating")), "{going}");
    let (code, status) = post(&client, "/api/v1/namespaces/work/configmaps", &config_map("late")).await;
    assert_eq!(code, 403, "{status}");
    assert!(status["message"].as_str().unwrap().contains("because it is being terminated"), "{status}");
    let mut finalized = going.clone();
    finalized["spec"]["finalizers"] = json!([]);
    let (code, answer) =
        ask(&client, "PUT", "/api/v1/namespaces/work/finalize", "application/json", &finalized.to_string()).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(get(&client, "/api/v1/namespaces/work").await.0, 404);
}

#[tokio::test]
async fn scales_are_read_and_written() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let template =
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let (code, made) = post(&client, path, &deployment).await;
    assert_eq!(code, 201, "{made}");
    let scale = format!("{path}/web/scale");
    let (_, shown) = get(&client, &scale).await;
    assert_eq!((&shown["spec"]["replicas"], &shown["status"]["selector"]), (&json!(2), &json!("app=web")));
    let patch = json!({"spec": {"replicas": 5}}).to_string();
    let (code, after) = ask(&client, "PATCH", &scale, "application/merge-patch+json", &patch).await;
    assert_eq!((code, after["spec"]["replicas"].as_i64()), (200, Some(5)), "{after}");
    let (_, deployment) = get(&client, &format!("{path}/web")).await;
    assert_eq!((&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]), (&json!(5), &json!(2)));
    let patch = json!({"spec": {"replicas": -1}}).to_string();
    assert_eq!(ask(&client, "PATCH", &scale, "application/merge-patch+json", &patch).await.0, 422);
}

/// That it says nothing does not make it none: whoever scales by what he reads would take all away.
#[tokio::test]
async fn custom_resources_that_say_no_replicas_have_no_scale() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let definition = json!({"metadata": {"name": "sets.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "sets", "kind": "Set"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            "subresources": {"scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(post(&client, definitions, &definition).await.0, 201);
    let path = "/apis/example.com/v1/namespaces/default/sets";
    let served = async {
        while get(&client, path).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), served).await.expect("served within a second");
    let object = json!({"apiVersion": "example.com/v1", "kind": "Set", "metadata": {"name": "a"}, "spec": {}});
    assert_eq!(post(&client, path, &object).await.0, 201);
    let scale = format!("{path}/a/scale");
    let patched = async |patch: Value| {
        let patch = patch.to_string();
        ask(&client, "PATCH", &scale, "application/merge-patch+json", &patch).await
    };
    let (code, status) = get(&client, &scale).await;
    let missing = "Internal error occurred: the spec replicas field \".spec.replicas\" does not exist";
    assert_eq!((code, status["message"].as_str()), (500, Some(missing)));
    let (code, status) = patched(json!({"metadata": {"labels": {"a": "b"}}})).await;
    let empty = "the spec replicas field \".spec.replicas\" cannot be empty";
    assert_eq!((code, status["message"].as_str()), (400, Some(empty)));
    let (code, after) = patched(json!({"spec": {"replicas": 0}})).await;
    assert_eq!((code, &after["spec"]["replicas"]), (200, &json!(0)), "{after}");
    assert_eq!(get(&client, &scale).await.0, 200);
}

#[tokio::test]
async fn rights_come_from_roles_and_cannot_be_given_away() {
    let cluster = Cluster::start().await;
    let (admin, jane) = (cluster.admin(), cluster.client("jane"));
    let (code, status) = get(&jane, &format!("{BASE}/pods")).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let binding = json!({"metadata": {"name": "jane-admin"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    let (code, answer) = post(&admin, &format!("{rbac}/namespaces/default/rolebindings"), &binding).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(get(&jane, &format!("{BASE}/pods")).await.0, 200, "the role admin is aggregated");
    assert_eq!(get(&jane, "/api/v1/nodes").await.0, 403);
    // Jane may make roles, but only of what she may do herself.
    let role = |verb: &str, resource: &str| json!({"metadata": {"name": format!("r-{resource}")}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": [verb]}]});
    let roles = format!("{rbac}/namespaces/default/roles");
    assert_eq!(post(&jane, &roles, &role("get", "pods")).await.0, 201);
    let (code, status) = post(&jane, &roles, &role("get", "nodes")).await;
    assert_eq!(code, 403, "{status}");
    assert!(
        status["message"].as_str().unwrap().contains("attempting to grant RBAC permissions not currently held"),
        "{status}"
    );
    let mut greedy = binding.clone();
    greedy["metadata"]["name"] = "greedy".into();
    greedy["roleRef"]["name"] = "cluster-admin".into();
    let (code, status) = post(&jane, &format!("{rbac}/namespaces/default/rolebindings"), &greedy).await;
    assert_eq!(code, 403, "{status}");
    let review = json!({"spec": {"resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}});
    let (code, answer) = post(&jane, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await;
    assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(true)), "{answer}");
}

#[tokio::test]
async fn nodes_see_only_what_their_pods_refer_to() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    with_account(&admin).await;
    let node =
        cluster.server.client(&apiserver::UserInfo::new("system:node:n1", &["system:nodes", "system:authenticated"]));
    for name in ["mine", "other"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"a": "b"}});
        assert_eq!(post(&admin, &format!("{BASE}/secrets"), &secret).await.0, 201);
    }
    let mut web = pod("web");
    web["spec"]["nodeName"] = "n1".into();
    web["spec"]["automountServiceAccountToken"] = true.into();
    web["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "mine"}}]);
    let (code, answer) = post(&admin, &format!("{BASE}/pods"), &web).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(get(&node, &format!("{BASE}/secrets/mine")).await.0, 200);
    let (code, status) = get(&node, &format!("{BASE}/secrets/other")).await;
    assert_eq!(code, 403);
    assert!(
        status["message"].as_str().unwrap().ends_with("no relationship found between node 'n1' and this object"),
        "{status}"
    );
    assert_eq!(get(&node, &format!("{BASE}/secrets")).await.0, 403);
    let request = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": answer["metadata"]["uid"]}}});
    let (code, token) = post(&node, &format!("{BASE}/serviceaccounts/default/token"), &request).await;
    assert_eq!(code, 201, "{token}");
    let review = json!({"spec": {"token": token["status"]["token"]}});
    let (_, answer) = post(&admin, "/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert_eq!(answer["status"]["user"]["username"], "system:serviceaccount:default:default", "{answer}");
    assert_eq!(answer["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["web"]));
    let mut elsewhere = request.clone();
    elsewhere["spec"]["audiences"] = json!(["registry.example.com"]);
    let (code, status) = post(&node, &format!("{BASE}/serviceaccounts/default/token"), &elsewhere).await;
    assert_eq!(code, 403, "{status}");
    assert_eq!(
        status["message"],
        "serviceaccounts \"default\" is forbidden: audience \"registry.example.com\" not found in pod spec volume, system:node:n1 is not authorized to request tokens for this audience"
    );
    let now = json!({"gracePeriodSeconds": 0}).to_string();
    ask(&admin, "DELETE", &format!("{BASE}/pods/web"), "application/json", &now).await;
    let (_, answer) = post(&admin, "/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    assert!(answer["status"]["authenticated"].is_null(), "a token ends with its pod: {answer}");
}

#[tokio::test]
async fn informers_follow_the_watch_cache() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let informers = component::Informers::new(client.clone(), &cluster.supervisor);
    let maps = informers.of::<k8s_openapi::api::core::v1::ConfigMap>();
    maps.synced().await;
    post(&client, &format!("{BASE}/configmaps"), &config_map("seen")).await;
    let appeared = async {
        while maps.get("default", "seen").is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), appeared).await.unwrap();
    let (code, _) = delete(&client, &format!("{BASE}/configmaps/seen")).await;
    assert_eq!(code, StatusCode::OK.as_u16());
    let vanished = async {
        while maps.get("default", "seen").is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), vanished).await.unwrap();
}

#[tokio::test]
async fn custom_resources_are_served_and_cleaned_up() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let definition = json!({"metadata": {"name": "crons.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "crons", "kind": "Cron", "shortNames": ["cn"]},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {
                    "size": {"type": "integer", "default": 3, "minimum": 1},
                    "color": {"type": "string"}}},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
            "subresources": {"status": {}},
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, made) = post(&client, definitions, &definition).await;
    assert_eq!(code, 201, "{made}");
    let path = "/apis/example.com/v1/namespaces/default/crons";
    let served = async {
        while get(&client, path).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), served).await.expect("served within a second");
    let object = json!({"apiVersion": "example.com/v1", "kind": "Cron", "metadata": {"name": "a"}, "spec": {"color": "red", "other": 1}, "status": {"x": 1}});
    let (code, made) = post(&client, path, &object).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"], json!({"color": "red", "size": 3}), "pruned and defaulted");
    assert!(made["status"].is_null());
    let patch = json!({"spec": {"color": "blue"}}).to_string();
    let (code, after) = ask(&client, "PATCH", &format!("{path}/a"), "application/merge-patch+json", &patch).await;
    assert_eq!((code, after["metadata"]["generation"].as_i64()), (200, Some(2)), "{after}");
    let strategic = ask(&client, "PATCH", &format!("{path}/a"), "application/strategic-merge-patch+json", &patch).await;
    assert_eq!(strategic.0, 415);
    let wrong = json!({"spec": {"size": 0}}).to_string();
    let (code, status) = ask(&client, "PATCH", &format!("{path}/a"), "application/merge-patch+json", &wrong).await;
    assert_eq!(code, 422, "{status}");
    assert!(
        status["message"].as_str().unwrap().contains("spec.size in body should be greater than or equal to 1"),
        "{status}"
    );
    let (_, group) = get(&client, "/apis/example.com/v1").await;
    assert_eq!(group["resources"][0]["name"], "crons", "{group}");
    let (code, going) = delete(&client, &format!("{definitions}/crons.example.com")).await;
    assert_eq!(code, 200, "{going}");
    let gone = async {
        while get(&client, &format!("{definitions}/crons.example.com")).await.0 != 404
            || get(&client, path).await.0 != 404
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("cleaned up");
}
