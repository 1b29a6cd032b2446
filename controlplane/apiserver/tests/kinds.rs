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
        let patch = method == "PATCH";
        request =
            request.header("content-type", if patch { "application/merge-patch+json" } else { "application/json" });
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

/// Addresses and ports come and go with a Service's type, and clients may leave out what was given.
#[tokio::test(flavor = "multi_thread")]
async fn services_change_their_type() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let services = "/api/v1/namespaces/default/services";
    let ports = json!([{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}]);
    let with = |mut spec: Value| {
        spec["ports"] = ports.clone();
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec})
    };
    let put = |object: Value| {
        let client = client.clone();
        async move { call(&client, "PUT", &format!("{services}/s"), Some(&object)).await }
    };
    let made = call(&client, "POST", services, Some(&with(json!({"type": "NodePort"})))).await.unwrap();
    let (address, node_port) = (&made["spec"]["clusterIP"], &made["spec"]["ports"][0]["nodePort"]);
    assert_eq!(node_port, &made["spec"]["ports"][1]["nodePort"], "one number for both protocols: {made}");

    let balancer =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false});
    let balanced = put(with(balancer)).await.unwrap();
    let checked = balanced["spec"]["healthCheckNodePort"].as_i64().unwrap();
    assert_eq!((&balanced["spec"]["clusterIP"], &balanced["spec"]["ports"][1]["nodePort"]), (address, node_port));
    let mut answering = balanced.clone();
    answering["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    let answering = call(&client, "PUT", &format!("{services}/s/status"), Some(&answering)).await.unwrap();
    assert_eq!(answering["status"]["loadBalancer"]["ingress"], json!([{"ip": "192.0.2.1", "ipMode": "VIP"}]));

    let mut moved = answering.clone();
    moved["spec"]["healthCheckNodePort"] = json!(if checked == 32000 { 32001 } else { 32000 });
    let refused = put(moved).await.unwrap_err();
    assert!(refused.contains("spec.healthCheckNodePort: Forbidden: field is immutable"), "{refused}");

    let mut plain = answering.clone();
    plain["spec"]["type"] = json!("ClusterIP");
    let plain = put(plain).await.unwrap();
    for field in ["healthCheckNodePort", "externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
        assert_eq!(plain["spec"].get(field), None, "{plain}");
    }
    assert_eq!((&plain["status"]["loadBalancer"], plain["spec"]["ports"][0].get("nodePort")), (&json!({}), None));

    let named = put(with(json!({"type": "ExternalName", "externalName": "example.com"}))).await.unwrap();
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
        assert_eq!(named["spec"].get(field), None, "{named}");
    }
    let back = put(with(json!({"clusterIP": address.clone()}))).await.unwrap();
    assert_eq!(back["spec"]["clusterIPs"], json!([address]), "the address was free again: {back}");
    let other = put(with(json!({"clusterIP": "10.43.99.99"}))).await.unwrap_err();
    assert!(other.contains("spec.clusterIPs[0]: Invalid value: [\"10.43.99.99\"]: may not change once set"), "{other}");
    let endpoints = "/api/v1/namespaces/default/endpoints";
    for name in ["s", "t"] {
        let made = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}});
        call(&client, "POST", endpoints, Some(&made)).await.unwrap();
    }
    call(&client, "DELETE", &format!("{services}/s"), None).await.unwrap();
    call(&client, "GET", &format!("{endpoints}/s"), None).await.unwrap_err();
    call(&client, "GET", &format!("{endpoints}/t"), None).await.unwrap();
}

/// What comes through `events.k8s.io` is held to stricter rules than what comes through `v1`.
#[tokio::test(flavor = "multi_thread")]
async fn events_have_the_rules_of_their_group() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let old = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}, "reason": "R", "type": "Odd"});
    call(&client, "POST", "/api/v1/namespaces/default/events", Some(&old)).await.unwrap();
    let new = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = |name: &str, fields: Value| {
        let mut event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name}, "regarding": {"namespace": "default"},
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i", "action": "a", "reason": "R", "type": "Normal"});
        for (key, value) in fields.as_object().unwrap() {
            event[key] = value.clone();
        }
        event
    };
    call(&client, "POST", new, Some(&event("f", json!({})))).await.unwrap();
    let refused =
        call(&client, "POST", new, Some(&event("g", json!({"type": "Odd", "deprecatedCount": 1})))).await.unwrap_err();
    assert!(
        refused.contains(
            "[type: Invalid value: \"\": has invalid value: Odd, count: Invalid value: \"\": needs to be unset]"
        ),
        "{refused}"
    );
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}});
    call(&client, "PATCH", &format!("{new}/f"), Some(&series)).await.unwrap();
    call(&client, "PATCH", &format!("{new}/f"), Some(&json!({"note": "n"}))).await.unwrap();
    call(&client, "PATCH", "/api/v1/namespaces/default/events/f", Some(&json!({"message": "n"}))).await.unwrap();
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
