//! APIServices: local ones by themselves, remote ones proxied, judged and shown in discovery.

use std::process::Command;

use apiserver::KeyPair;
use apiserver::testing::{Cluster, authority, leaf};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::extension::{self, Extension};
use super::{ask, connect, eventually};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const METRICS: &str = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
const REMOTE: &str = "/apis/metrics.k8s.io/v1beta1";

fn condition(object: &Value) -> (&str, &str, &str) {
    let condition = &object["status"]["conditions"][0];
    let text = |key: &str| condition[key].as_str().unwrap_or_default();
    (text("status"), text("reason"), text("message"))
}

struct Aggregated {
    cluster: Cluster,
    client: kube::Client,
    extension: Extension,
    _dir: tempfile::TempDir,
}

/// A cluster with a front-proxy certificate, and an extension server that no object names yet.
async fn aggregated() -> Aggregated {
    let dir = tempfile::tempdir().unwrap();
    let (ca, pem) = authority();
    let pair: KeyPair = leaf(dir.path(), &ca, "front-proxy-client", &[], false);
    let ca_file = dir.path().join("front-proxy-ca.crt");
    std::fs::write(&ca_file, &pem).unwrap();
    let extension = extension::start(dir.path(), &pem).await;
    let cluster = Cluster::start_with(|config| {
        config.kubelet_client = Some(pair.clone());
        config.front_proxy_client = Some(pair);
        config.front_proxy_ca = Some(ca_file);
    })
    .await;
    Aggregated { client: cluster.admin(), cluster, extension, _dir: dir }
}

impl Aggregated {
    async fn register(&self) {
        let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.metrics.k8s.io"}, "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "caBundle": self.extension.ca_bundle, "service": {"namespace": "default", "name": "metrics", "port": self.extension.port}}});
        let (code, answer) = ask(&self.client, "POST", SERVICES, &object.to_string()).await;
        assert_eq!(code, 201, "{answer}");
    }

    async fn name_service(&self) {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "metrics"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
        let (code, answer) =
            ask(&self.client, "POST", "/api/v1/namespaces/default/services", &object.to_string()).await;
        assert_eq!(code, 201, "{answer}");
    }

    async fn available(&self) {
        self.register().await;
        self.name_service().await;
        eventually(&self.client, METRICS, |_, object| condition(object).1 == "Passed").await;
    }
}

#[tokio::test]
async fn what_is_served_has_local_api_services_and_definitions_come_and_go() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let apps = eventually(&client, &format!("{SERVICES}/v1.apps"), |code, _| code == 200).await;
    assert_eq!(condition(&apps), ("True", "Local", "Local APIServices are always available"));
    assert_eq!((&apps["spec"]["groupPriorityMinimum"], &apps["spec"]["versionPriority"]), (&json!(17800), &json!(15)));
    assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
    eventually(&client, &format!("{SERVICES}/v1."), |code, _| code == 200).await;

    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, answer) = ask(&client, "POST", definitions, &definition.to_string()).await;
    assert_eq!(code, 201, "{answer}");
    let own = format!("{SERVICES}/v1.example.com");
    let widgets = eventually(&client, &own, |code, _| code == 200).await;
    assert_eq!(widgets["spec"]["groupPriorityMinimum"], 1000);
    assert_eq!(ask(&client, "DELETE", &format!("{definitions}/widgets.example.com"), "").await.0, 200);
    eventually(&client, &own, |code, _| code == 404).await;
}

#[tokio::test]
async fn an_api_service_without_its_service_is_unavailable_and_says_why() {
    let test = aggregated().await;
    test.register().await;
    let object = eventually(&test.client, METRICS, |_, object| condition(object).0 == "False").await;
    assert_eq!(condition(&object), ("False", "ServiceNotFound", "service/metrics in \"default\" is not present"));
    let (code, answer) = ask(&test.client, "GET", &format!("{REMOTE}/nodes"), "").await;
    assert_eq!((code, answer.as_str()), (503, Some("service unavailable\n")));
    let found = discovered(&test.client).await;
    let metrics = found["items"].as_array().unwrap().iter().find(|group| group["metadata"]["name"] == "metrics.k8s.io");
    assert_eq!(metrics.unwrap()["versions"][0]["freshness"], "Stale");

    let port = test.extension.port;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "metrics"}, "spec": {"ports": [{"port": port, "name": "https"}]}});
    assert_eq!(ask(&test.client, "POST", "/api/v1/namespaces/default/services", &service.to_string()).await.0, 201);
    let object = eventually(&test.client, METRICS, |_, object| condition(object).1 == "EndpointsNotFound").await;
    assert_eq!(condition(&object).2, "cannot find endpointslices for service/metrics in \"default\"");
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"name": "https", "port": port}],
        "metadata": {"name": "metrics-1", "labels": {"kubernetes.io/service-name": "metrics"}},
        "endpoints": [{"addresses": ["192.0.2.9"], "conditions": {"ready": false}}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    assert_eq!(ask(&test.client, "POST", slices, &slice.to_string()).await.0, 201);
    eventually(&test.client, METRICS, |_, object| condition(object).1 == "MissingEndpoints").await;
}

async fn discovered(client: &kube::Client) -> Value {
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let request = Request::get("/apis").header("accept", accept).body(kube::client::Body::empty()).unwrap();
    let bytes = client.send(request).await.unwrap().into_body().collect_bytes().await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_remote_group_version_is_proxied_with_the_users_name_and_shown_in_discovery() {
    let test = aggregated().await;
    test.available().await;
    let (code, answer) = ask(&test.client, "POST", &format!("{REMOTE}/echo?a=1"), "{\"x\":2}").await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(
        (&answer["method"], &answer["query"], &answer["body"]),
        (&json!("POST"), &json!("a=1"), &json!("{\"x\":2}"))
    );
    let values = |name: &str| -> Vec<&str> {
        let headers = answer["headers"].as_array().unwrap().iter();
        headers.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
    };
    assert_eq!(values("x-remote-user"), ["system:admin"]);
    assert_eq!(values("x-remote-group"), ["system:masters", "system:authenticated"]);
    assert!(values("authorization").is_empty());

    // Rights are this server's business.
    let (code, answer) = ask(&test.cluster.client("jane"), "GET", &format!("{REMOTE}/nodes"), "").await;
    assert_eq!(code, 403, "{answer}");
    assert_eq!(ask(&test.client, "GET", &format!("{REMOTE}/nothing"), "").await.0, 404);

    let found = discovered(&test.client).await;
    let groups = found["items"].as_array().unwrap();
    let metrics = groups.last().unwrap();
    assert_eq!(metrics["metadata"]["name"], "metrics.k8s.io", "the lowest priority comes last");
    assert_eq!(
        (&metrics["versions"][0]["freshness"], &metrics["versions"][0]["resources"][0]["resource"]),
        (&json!("Current"), &json!("nodes"))
    );
    let (_, classic) = ask(&test.client, "GET", "/apis/metrics.k8s.io", "").await;
    assert_eq!(classic["preferredVersion"]["groupVersion"], "metrics.k8s.io/v1beta1");
    // It has no v1, and nobody has it in its place.
    assert_eq!(classic["versions"].as_array().map(Vec::len), Some(1), "{classic}");
    for path in ["/apis/metrics.k8s.io/v1", "/apis/metrics.k8s.io/v1/nodes"] {
        assert_eq!(ask(&test.client, "GET", path, "").await.0, 404, "{path}");
    }
    let (_, list) = ask(&test.client, "GET", REMOTE, "").await;
    assert_eq!(list["resources"][1]["name"], "pods");

    let (_, index) = ask(&test.client, "GET", "/openapi/v3", "").await;
    let url = index["paths"]["apis/metrics.k8s.io/v1beta1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert_eq!(url, "/openapi/v3/apis/metrics.k8s.io/v1beta1?hash=ABC");
    assert!(index["paths"]["apis/apps/v1"].is_object());
    assert_eq!(ask(&test.client, "GET", &url, "").await.1["openapi"], "3.0.0");
    let (_, old) = ask(&test.client, "GET", "/openapi/v2", "").await;
    let operation = &old["paths"][format!("{REMOTE}/nodes")]["get"]["operationId"];
    assert_eq!(
        (operation, &old["definitions"]["io.k8s.metrics.NodeMetrics"]["type"]),
        (&json!("listNodeMetrics"), &json!("object"))
    );
    assert!(old["paths"]["/apis/apps/v1/deployments"].is_object());
}

#[tokio::test]
async fn watches_and_upgrades_of_a_remote_server_are_streamed() {
    let test = aggregated().await;
    test.available().await;
    let request = Request::get(format!("{REMOTE}/nodes?watch=true")).body(Vec::new()).unwrap();
    let mut lines = test.client.request_stream(request).await.unwrap().lines();
    assert_eq!(lines.next().await.unwrap().unwrap(), "one");
    assert_eq!(lines.try_next().await.unwrap().unwrap(), "two");

    let address = test.cluster.listen().await;
    let root = test.cluster.key_pair("root", &["system:masters"]);
    let mut stream = connect(test.cluster.ca_pem(), Some(&root), address).await.unwrap();
    let request =
        format!("GET {REMOTE}/upgrade HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: test\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
    assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"HELLO");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_top_reads_a_remote_servers_metrics_until_it_dies() {
    let test = aggregated().await;
    test.available().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "status": {"capacity": {"cpu": "1", "memory": "1Gi"}, "allocatable": {"cpu": "1", "memory": "1Gi"}}});
    assert_eq!(ask(&test.client, "POST", "/api/v1/nodes", &node.to_string()).await.0, 201);
    test.cluster.listen().await;
    let kubeconfig = test.cluster.kubeconfig("root", &["system:masters"]);
    let kubectl = |arguments: &[&str]| {
        let output = Command::new("kubectl")
            .arg("--cache-dir")
            .arg(kubeconfig.with_extension("cache"))
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let (done, shown) = kubectl(&["top", "nodes"]);
    assert!(done && shown.contains("250m") && shown.contains("512Mi"), "{shown}");
    let (done, shown) = kubectl(&["get", "apiservices", "v1beta1.metrics.k8s.io", "v1.apps"]);
    assert!(done && shown.contains("default/metrics") && shown.contains("Local"), "{shown}");

    let Aggregated { cluster: _cluster, client, extension, _dir } = test;
    drop(extension);
    // Any change of what it depends on makes it look at once.
    let (_, mut service) = ask(&client, "GET", "/api/v1/namespaces/default/services/metrics", "").await;
    service["metadata"]["labels"] = json!({"touched": "yes"});
    ask(&client, "PUT", "/api/v1/namespaces/default/services/metrics", &service.to_string()).await;
    let object = eventually(&client, METRICS, |_, object| condition(object).0 == "False").await;
    assert_eq!(condition(&object).1, "FailedDiscoveryCheck");
    assert!(
        condition(&object).2.starts_with("failing or missing response from https://metrics.default.svc:"),
        "{object}"
    );
    let (done, shown) = kubectl(&["get", "--raw", &format!("{REMOTE}/nodes")]);
    assert!(!done && shown.contains("ServiceUnavailable"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_top_works_without_a_metrics_server() {
    let test = aggregated().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {
        "capacity": {"cpu": "1", "memory": "128Mi"}, "allocatable": {"cpu": "1", "memory": "128Mi"},
        "addresses": [{"type": "Hostname", "address": "localhost"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": test.extension.port}}}});
    assert_eq!(ask(&test.client, "POST", "/api/v1/nodes", &node.to_string()).await.0, 201);
    test.cluster.listen().await;
    let kubeconfig = test.cluster.kubeconfig("root", &["system:masters"]);
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("--cache-dir").arg(kubeconfig.with_extension("cache")).arg("--kubeconfig").arg(&kubeconfig);
    let output = kubectl.args(["top", "nodes"]).output().unwrap();
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && shown.contains("64Mi") && shown.contains("50%"), "{shown}");
    let (_, group) = ask(&test.client, "GET", "/apis/metrics.k8s.io", "").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    for version in ["v1", "v1beta1"] {
        let (_, list) = ask(&test.client, "GET", &format!("/apis/metrics.k8s.io/{version}/nodes"), "").await;
        let node = &list["items"][0];
        assert_eq!(list["apiVersion"], format!("metrics.k8s.io/{version}"), "{list}");
        assert_eq!((&node["metadata"]["name"], &node["apiVersion"]), (&json!("n1"), &list["apiVersion"]));
    }
    let (code, found) = ask(&test.client, "GET", &format!("{REMOTE}/nodes/n2"), "").await;
    assert_eq!((code, &found["reason"]), (404, &json!("NotFound")));
    assert_eq!(ask(&test.cluster.client("jane"), "GET", &format!("{REMOTE}/nodes"), "").await.0, 403);
}
