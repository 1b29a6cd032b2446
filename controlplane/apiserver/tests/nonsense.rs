//! Whatever a client sends to whichever resource, the answer is never a 5xx and never a lost
//! connection: below 400, or a `Status` that says what is wrong.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use apiserver::testing::Cluster;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use serde_json::{Value, json};

mod generator;
mod samples;
use generator::Generator;
use samples::samples;

const JSON: &str = "application/json";
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Subresources that need a node or a backend: without one 503 is right.
const CONNECTED: [&str; 5] = ["exec", "attach", "portforward", "proxy", "log"];

struct Probe {
    client: Client,
    faults: Vec<String>,
    sent: usize,
}

impl Probe {
    fn new(cluster: &Cluster) -> Self {
        Self { client: cluster.admin(), faults: Vec::new(), sent: 0 }
    }

    /// Sends, and notes a fault when the answer is not one that a client can work with.
    async fn send(&mut self, method: &str, uri: &str, media: &str, body: &[u8]) -> Option<(StatusCode, Value)> {
        let mut request = Request::builder().method(method).uri(uri);
        if !media.is_empty() {
            request = request.header("content-type", media);
        }
        let request = request.body(kube::client::Body::from(body.to_vec())).unwrap();
        self.sent += 1;
        let shown = || format!("{method} {uri} ({media}) {}", String::from_utf8_lossy(&body[..body.len().min(700)]));
        let answer = match self.client.send(request).await {
            Ok(answer) => answer,
            Err(why) => {
                self.faults.push(format!("no answer: {why}: {}", shown()));
                return None;
            }
        };
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let is_page = status == StatusCode::NOT_FOUND && &bytes[..] == b"404 page not found\n";
        if status.is_client_error() && method != "HEAD" && !is_page {
            let says = value["message"].as_str().is_some_and(|message| !message.is_empty());
            if value["kind"] != "Status" || value["status"] != "Failure" || !says || value["code"] != status.as_u16() {
                self.faults.push(format!("{status} without a Status: {value}: {}", shown()));
            }
        } else if status.is_server_error() && !is_unmergeable(&value) {
            self.faults.push(format!("{status} {}: {}", value["message"], shown()));
        }
        Some((status, value))
    }

    async fn get(&mut self, uri: &str) -> Value {
        self.send("GET", uri, "", b"").await.unwrap().1
    }

    fn finish(self) {
        let mut shown = String::new();
        for fault in self.faults.iter().take(40) {
            writeln!(shown, "{fault}\n").unwrap();
        }
        assert!(self.faults.is_empty(), "{} of {} requests:\n{shown}", self.faults.len(), self.sent);
        assert!(self.sent > 100, "only {} requests", self.sent);
    }
}

/// A configuration that cannot be merged: Kubernetes has no better code for it than 500.
fn is_unmergeable(status: &Value) -> bool {
    status["message"].as_str().is_some_and(|text| text.starts_with("failed to create typed patch object"))
}

/// Path, resource (with subresource) and verbs of all that discovery names.
async fn endpoints(probe: &mut Probe) -> Vec<(String, Value)> {
    let mut roots = vec!["/api/v1".to_owned()];
    for group in probe.get("/apis").await["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            roots.push(format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
        }
    }
    let mut found = Vec::new();
    for root in roots {
        for resource in probe.get(&root).await["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            let (plural, sub) = name.split_once('/').map_or((name, String::new()), |(p, s)| (p, format!("/{s}")));
            if CONNECTED.iter().any(|connected| sub == format!("/{connected}")) {
                continue;
            }
            let namespace = if resource["namespaced"] == true { "/namespaces/default" } else { "" };
            let item = if sub.is_empty() { String::new() } else { format!("/sample{sub}") };
            let mut resource = resource.clone();
            resource["root"] = root.clone().into();
            found.push((format!("{root}{namespace}/{plural}{item}"), resource));
        }
    }
    assert!(found.len() > 90, "{}", found.len());
    found
}

fn bodies(api_version: &str, kind: &str) -> Vec<Vec<u8>> {
    let typed = |more: Value| {
        let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "sample"}});
        for (key, value) in more.as_object().unwrap() {
            object[key] = value.clone();
        }
        object.to_string().into_bytes()
    };
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "null",
        "[]",
        "[{}]",
        "{}",
        "1",
        "-0",
        "1e999",
        "\"x\"",
        "true",
        "{",
        "}",
        "{\"a\":}",
        "{]",
        "{\"a\":1,\"a\":2}",
        "\u{feff}{}",
        "---\n---\n",
        "a: b: c",
        "kind: [",
        "[{\"op\":\"add\"}]",
        "[{\"op\":\"remove\",\"path\":\"/nowhere\"}]",
        "[{\"op\":\"test\",\"path\":\"/metadata/name\",\"value\":7}]",
        "[{\"op\":\"move\",\"from\":\"/metadata\",\"path\":\"/metadata/name/x\"}]",
        "[{\"op\":\"replace\",\"path\":\"\",\"value\":7}]",
        "[{\"op\":\"add\",\"path\":\"/metadata\",\"value\":null}]",
        "{\"metadata\":{\"name\":99999999999999999999999999}}",
        "{\"$patch\":\"delete\"}",
        "{\"$patch\":\"nonsense\"}",
        "{\"metadata\":{\"$patch\":\"replace\"}}",
        "{\"metadata\":{\"$retainKeys\":7,\"$deleteFromPrimitiveList/finalizers\":{}}}",
        "{\"metadata\":{\"$setElementOrder/ownerReferences\":[7],\"ownerReferences\":[{\"$patch\":\"delete\"}]}}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    bodies.extend([
        b"\xff\xfe{}".to_vec(),
        b"{\"metadata\":{\"name\":\"\xc3\x28\"}}".to_vec(),
        b"k8s\0\xff\xff\xff\xff\xff".to_vec(),
        b"k8s\0\n\x02\n\x00\x12\xff".to_vec(),
        "[".repeat(20_000).into_bytes(),
        format!("{}{}", "{\"a\":".repeat(3000), "1").into_bytes(),
        typed(json!({})),
        typed(json!({"kind": null})),
        typed(json!({"kind": "Other"})),
        typed(json!({"kind": 5, "apiVersion": []})),
        typed(json!({"apiVersion": "a/b/c"})),
        typed(json!({"apiVersion": "v99"})),
        typed(json!({"metadata": null})),
        typed(json!({"metadata": []})),
        typed(json!({"metadata": {"name": "other", "namespace": "elsewhere"}})),
        typed(json!({"metadata": {"name": "Ä b/c%", "labels": {"": "", "a b": "ö"}, "annotations": {"x/y/z": "1"}}})),
        typed(json!({"metadata": {"name": "x".repeat(300), "generateName": "y".repeat(300)}})),
        typed(json!({"metadata": {"name": "sample", "resourceVersion": "nonsense", "uid": "none", "generation": -1}})),
        typed(json!({"metadata": {"name": "sample", "creationTimestamp": "yesterday", "finalizers": ["x", 7]}})),
        typed(json!({"metadata": {"name": "sample", "managedFields": [{"manager": "m", "fieldsV1": {"f:x": 7}, "fieldsType": "?"}]}})),
        typed(json!({"metadata": {"name": "sample", "ownerReferences": [{}]}})),
        typed(json!({"spec": null, "status": null, "data": null, "rules": null})),
        typed(json!({"spec": [], "status": 7, "data": [], "rules": {}, "webhooks": {}, "subsets": {}, "endpoints": 1})),
        typed(json!({"spec": "x", "status": "x", "data": "x", "rules": "x", "webhooks": "x", "roleRef": "x"})),
    ]);
    bodies
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_by_every_resource() {
    let cluster = Cluster::start().await;
    let mut probe = Probe::new(&cluster);
    store_samples(&mut probe).await;
    // Every body goes to every resource, by the verbs and media types in turn.
    for (turn, (path, resource)) in endpoints(&mut probe).await.into_iter().enumerate() {
        let verbs = resource["verbs"].to_string();
        let api_version = resource["root"].as_str().unwrap().trim_start_matches("/apis/").trim_start_matches("/api/");
        let item =
            if resource["name"].as_str().unwrap().contains('/') { path.clone() } else { format!("{path}/sample") };
        let mut sends: Vec<(&str, String, &str)> = Vec::new();
        if verbs.contains("create") {
            for media in [JSON, "application/yaml", "application/vnd.kubernetes.protobuf"] {
                sends.push(("POST", format!("{path}?dryRun=All"), media));
            }
        }
        if verbs.contains("update") {
            sends.push(("PUT", format!("{item}?dryRun=All"), JSON));
        }
        if verbs.contains("patch") {
            for media in PATCHES {
                let manager = if media.contains("apply") { "&fieldManager=m&force=true" } else { "" };
                sends.push(("PATCH", format!("{item}?dryRun=All{manager}"), media));
            }
        }
        if verbs.contains("\"delete\"") {
            sends.push(("DELETE", format!("{item}?dryRun=All"), JSON));
        }
        for (index, body) in bodies(api_version, resource["kind"].as_str().unwrap()).iter().enumerate() {
            for step in 0..sends.len().min(3) {
                let (method, uri, media) = &sends[(turn + index + step * 4) % sends.len()];
                probe.send(method, uri, media, body).await;
            }
        }
        let medias =
            ["", "text/plain", "application/x-www-form-urlencoded", "*/*", "application/json;stream=watch", "/"];
        for (index, method) in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "BREW"].iter().enumerate()
        {
            let media = medias[(turn + index) % medias.len()];
            probe.send(method, &format!("{item}?dryRun=All"), media, b"{}").await;
            probe.send(method, &format!("{path}?dryRun=All"), media, b"{}").await;
        }
    }
    probe.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_queries_and_paths_are_refused() {
    let cluster = Cluster::start().await;
    let mut probe = Probe::new(&cluster);
    let queries = [
        "limit=-1",
        "limit=x",
        "limit=99999999999999999999",
        "continue=%00",
        "continue=e30",
        "continue=%7B%7D",
        "resourceVersion=x",
        "resourceVersion=-1",
        "resourceVersion=99999999999999999999",
        "resourceVersionMatch=Exact",
        "resourceVersionMatch=Nope&resourceVersion=1",
        "labelSelector=%3D%3D",
        "labelSelector=a+in+(",
        "labelSelector=!",
        "labelSelector=a%3D%FF",
        "fieldSelector=x",
        "fieldSelector=spec.none%3D1",
        "fieldSelector=metadata.name%3D%5C",
        "fieldSelector=%2C%2C",
        "timeoutSeconds=x&limit=1",
        "pretty=%FF",
        "sendInitialEvents=1",
        "sendInitialEvents=true",
        "allowWatchBookmarks=7",
        "%=%",
        "=&&=",
        "fieldValidation=Nope",
        "dryRun=Some",
        "fieldManager=%0A",
        "propagationPolicy=Nope",
        "gracePeriodSeconds=x",
        "gracePeriodSeconds=-5",
        "orphanDependents=7",
        "force=7",
    ];
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sample"}}).to_string();
    probe.send("POST", "/api/v1/namespaces/default/configmaps", JSON, object.as_bytes()).await;
    for (path, _) in endpoints(&mut probe).await {
        for query in queries {
            probe.send("GET", &format!("{path}?{query}"), "", b"").await;
        }
    }
    let maps = "/api/v1/namespaces/default/configmaps";
    for query in queries {
        for (method, path, media) in [
            ("POST", maps.to_owned(), JSON),
            ("PUT", format!("{maps}/sample"), JSON),
            ("PATCH", format!("{maps}/sample"), PATCHES[1]),
            ("DELETE", format!("{maps}/other"), JSON),
            ("DELETE", "/api/v1/namespaces/none/configmaps".into(), JSON),
        ] {
            probe.send(method, &format!("{path}?{query}&dryRun=All"), media, object.as_bytes()).await;
        }
    }
    for path in [
        "/api",
        "/apis",
        "/api/",
        "/apis/",
        "/api/v2",
        "/api/v1/",
        "/apis//v1",
        "/apis/apps",
        "/apis/apps/",
        "/apis/apps/v9",
        "/apis/none/v1/things",
        "/api/v1/namespaces/default/",
        "/api/v1/namespaces//pods",
        "/api/v1/namespaces/%FF/pods",
        "/api/v1/namespaces/default/pods/%00",
        "/api/v1/namespaces/default/pods/a%2Fb",
        "/api/v1/namespaces/default/pods/../../nodes",
        "/api/v1/namespaces/default/pods/x/none/y/z",
        "/api/v1/pods/x",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/namespaces/default/configmaps/sample/status",
        "/api/v1/watch/pods/x/y/z/w",
        "/openapi/v3/nope",
        "/openapi/v2/x",
        "/openapi/v3/apis/none/v1",
        "/.well-known/",
        "/healthz/none",
        "/readyz/none?verbose",
        "//",
        "/%",
        "/logs/x",
    ] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            probe.send(method, path, JSON, b"{}").await;
        }
    }
    probe.finish();
}

/// One object of every kind; the names of those which have a rule of their own stay.
async fn store_samples(probe: &mut Probe) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}).to_string();
    probe.send("POST", "/api/v1/namespaces/default/serviceaccounts", JSON, account.as_bytes()).await;
    for (path, object) in samples() {
        let (status, answer) = probe.send("POST", path, JSON, object.to_string().as_bytes()).await.unwrap();
        assert!(status.is_success(), "{path}: {answer}");
    }
}

/// Objects made from the OpenAPI schema of each kind, most of them wrong somewhere.
#[tokio::test(flavor = "multi_thread")]
async fn random_objects_of_every_kind_are_answered() {
    let cluster = Cluster::start().await;
    let mut probe = Probe::new(&cluster);
    store_samples(&mut probe).await;
    let mut accepted = 0;
    for (path, sample) in samples() {
        let api_version = sample["apiVersion"].as_str().unwrap();
        let name = sample["metadata"]["name"].as_str().unwrap();
        let root = if api_version.contains('/') { "apis" } else { "api" };
        let document = probe.get(&format!("/openapi/v3/{root}/{api_version}")).await;
        let mut generator = Generator::new(&document["components"]["schemas"], path.len() as u64);
        for round in 0..60 {
            let object = generator.object(&sample, round);
            let bytes = object.to_string().into_bytes();
            let strict = if round % 2 == 0 { "Ignore" } else { "Strict" };
            let query = format!("dryRun=All&fieldValidation={strict}");
            probe.send("PUT", &format!("{path}/{name}?{query}"), JSON, &bytes).await;
            probe.send("PUT", &format!("{path}/{name}/status?{query}"), JSON, &bytes).await;
            for media in &PATCHES[1..] {
                let manager = if media.contains("apply") { "&fieldManager=m&force=true" } else { "" };
                probe.send("PATCH", &format!("{path}/{name}?{query}{manager}"), media, &bytes).await;
            }
            let mut other = object;
            if let Some(metadata) = other["metadata"].as_object_mut() {
                metadata.insert("name".to_owned(), "other".into());
            }
            let answer = probe.send("POST", &format!("{path}?{query}"), JSON, other.to_string().as_bytes()).await;
            accepted += usize::from(answer.is_some_and(|(status, _)| status.is_success()));
        }
    }
    assert!(accepted > 50, "only {accepted} random objects were sound: they test little");
    probe.finish();
}
