//! Built-in kinds and admission against a running server: one sound object of every kind goes in,
//! comes back defaulted and survives an update that changes nothing; addresses are never given out
//! twice; plugins see real namespaces and accounts.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use apiserver::testing::Cluster;
use http::Request;
use kube::Client;
use serde_json::{Value, json};

mod samples;
use samples::samples;

async fn call(client: &Client, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
    let bytes = body.map(|body| serde_json::to_vec(body).unwrap()).unwrap_or_default();
    let mut request = Request::builder().method(method).uri(path);
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let answer = client.request::<Value>(request.body(bytes).unwrap()).await;
    answer.map_err(|error| match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    })
}

/// Puts back what is there. Another writer (a definition's own status, say) may come in between.
async fn update_without_change(client: &kube::Client, path: &str) -> Result<(), String> {
    for _ in 0..10 {
        let stored = call(client, "GET", path, None).await.map_err(|why| format!("get: {why}"))?;
        match call(client, "PUT", path, Some(&stored)).await {
            Ok(same) if same["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"] => return Ok(()),
            Ok(same) => return Err(format!("an update without a change wrote\n{stored}\n{same}")),
            Err(why) if why.to_string().contains("has been modified") => {}
            Err(why) => return Err(format!("update: {why}")),
        }
    }
    Err("ten updates in a row met another writer".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_stable() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    call(&client, "POST", "/api/v1/namespaces/default/serviceaccounts", Some(&account)).await.unwrap();
    let mut failures = Vec::new();
    for (path, mut object) in samples() {
        let kind = object["kind"].as_str().unwrap().to_owned();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let created = match call(&client, "POST", &format!("{path}?fieldValidation=Strict"), Some(&object)).await {
            Ok(created) => created,
            Err(why) => {
                failures.push(format!("{kind}: create: {why}"));
                continue;
            }
        };
        if let Err(why) = update_without_change(&client, &format!("{path}/{name}")).await {
            failures.push(format!("{kind}: {why}"));
        }
        // The manifest as it was sent applies again, too.
        object["metadata"]["resourceVersion"] = created["metadata"]["resourceVersion"].clone();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_given_out_once() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let services = "/api/v1/namespaces/default/services";
    let service = |name: String, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let creates = (0..40).map(|index| {
        let (client, object) =
            (client.clone(), service(format!("s{index}"), json!({"type": "NodePort", "ports": [{"port": 80}]})));
        async move { call(&client, "POST", services, Some(&object)).await.unwrap() }
    });
    let created = futures::future::join_all(creates).await;
    let addresses: HashSet<&str> = created.iter().map(|s| s["spec"]["clusterIP"].as_str().unwrap()).collect();
    let ports: HashSet<i64> = created.iter().map(|s| s["spec"]["ports"][0]["nodePort"].as_i64().unwrap()).collect();
    assert_eq!((addresses.len(), ports.len()), (40, 40));

    let taken = created[0]["spec"]["clusterIP"].as_str().unwrap();
    let wanted = service("again".into(), json!({"clusterIP": taken, "ports": [{"port": 80}]}));
    let refused = call(&client, "POST", services, Some(&wanted)).await.unwrap_err();
    assert!(refused.contains(&format!("failed to allocate IP {taken}: provided IP is already allocated")), "{refused}");
    call(&client, "DELETE", &format!("{services}/s0"), None).await.unwrap();
    let again = call(&client, "POST", services, Some(&wanted)).await.unwrap();
    assert_eq!(again["spec"]["clusterIP"], taken);

    // The other way to lose an address: by becoming a mere name.
    let name = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s1", "resourceVersion": created[1]["metadata"]["resourceVersion"]},
        "spec": {"type": "ExternalName", "externalName": "example.com"}});
    let changed = call(&client, "PUT", &format!("{services}/s1"), Some(&name)).await.unwrap();
    assert!(changed["spec"]["clusterIP"].is_null(), "{changed}");
    let freed = created[1]["spec"]["clusterIP"].as_str().unwrap();
    let reuse = service("reuse".into(), json!({"clusterIP": freed, "ports": [{"port": 80}]}));
    assert_eq!(call(&client, "POST", services, Some(&reuse)).await.unwrap()["spec"]["clusterIP"], freed);
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_holds_under_concurrency() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5"}}});
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let mut stored = call(&client, "POST", quotas, Some(&quota)).await.unwrap();
    // As the quota controller does once it has counted.
    stored["status"] = json!({"hard": {"configmaps": "5"}, "used": {"configmaps": "0"}});
    call(&client, "PUT", &format!("{quotas}/q/status"), Some(&stored)).await.unwrap();
    wait_for_quota(&client).await;
    let creates = (0..20).map(|index| {
        let client = client.clone();
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("c{index}")}});
        async move { call(&client, "POST", "/api/v1/namespaces/default/configmaps", Some(&object)).await }
    });
    let outcomes = futures::future::join_all(creates).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 5);
    let refused = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).unwrap();
    assert!(
        refused.contains("exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5"),
        "{refused}"
    );
}

/// Plugins read quotas from the watch cache: a dry run is refused as soon as it has caught up.
async fn wait_for_quota(client: &Client) {
    let object = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}});
    for _ in 0..200 {
        let listed =
            call(client, "GET", "/api/v1/namespaces/default/resourcequotas?resourceVersion=0", None).await.unwrap();
        if listed["items"][0]["status"]["hard"]["configmaps"] == "5" {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the cache never showed the status of {object}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_see_the_cluster() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let pod = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
    let plain = pod(json!({"serviceAccountName": "x", "containers": [{"name": "c", "image": "i"}]}));
    let missing = call(&client, "POST", "/api/v1/namespaces/nowhere/pods", Some(&plain)).await.unwrap_err();
    assert_eq!(missing, "namespaces \"nowhere\" not found");
    let account = call(&client, "POST", "/api/v1/namespaces/default/pods", Some(&plain)).await.unwrap_err();
    assert_eq!(
        account,
        "pods \"p\" is forbidden: error looking up service account default/x: serviceaccount \"x\" not found"
    );
    let stays = call(&client, "DELETE", "/api/v1/namespaces/kube-system", None).await.unwrap_err();
    assert_eq!(stays, "namespaces \"kube-system\" is forbidden: this namespace may not be deleted");
    let critical = pod(json!({"priorityClassName": "none-such", "containers": [{"name": "c", "image": "i"}]}));
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    call(&client, "POST", "/api/v1/namespaces/default/serviceaccounts", Some(&account)).await.unwrap();
    let refused = call(&client, "POST", "/api/v1/namespaces/default/pods", Some(&critical)).await.unwrap_err();
    assert_eq!(refused, "pods \"p\" is forbidden: no PriorityClass with name none-such was found");
    let high = pod(json!({"priorityClassName": "system-node-critical", "containers": [{"name": "c", "image": "i"}]}));
    let stored = call(&client, "POST", "/api/v1/namespaces/default/pods", Some(&high)).await.unwrap();
    assert_eq!(stored["spec"]["priority"], 2_000_001_000);
}
