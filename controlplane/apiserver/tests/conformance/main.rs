//! What Kubernetes' conformance and integration tests of the API machinery ask of a server, step by
//! step: status codes, reasons, causes, messages, headers. `docs/conformance.md` names them.
#![allow(clippy::unwrap_used)]

mod apply;
mod chunking;
mod definitions;
mod discovery;
mod fields;
#[path = "../edges/hook.rs"]
mod hook;
mod large;
mod lifecycles;
mod negotiation;
mod options;
mod watchers;
mod webhooks;
mod wire;
mod writes;

use http::{HeaderMap, Request};
use kube::Client;
use serde_json::{Value, json};

pub const JSON: &str = "application/json";
pub const MERGE: &str = "application/merge-patch+json";
pub const JSON_PATCH: &str = "application/json-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const APPLY: &str = "application/apply-patch+yaml";
pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// What one request was answered.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Vec<u8>,
    pub value: Value,
}

impl Answer {
    pub fn message(&self) -> &str {
        self.value["message"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    pub fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{:#}", self.value);
        self.value
    }

    /// A `Status` of this code, reason and message.
    #[track_caller]
    pub fn refused(&self, code: u16, reason: &str, message: &str) {
        let found = (self.code, self.value["reason"].as_str().unwrap_or_default(), self.message());
        assert_eq!(found, (code, reason, message));
        assert_eq!((&self.value["kind"], &self.value["code"]), (&json!("Status"), &json!(code)));
    }
}

/// One request with its headers.
pub async fn request(client: &Client, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let builder = headers.iter().fold(Request::builder().method(method).uri(path), |all, (k, v)| all.header(*k, *v));
    let response = client.send(builder.body(kube::client::Body::from(body.to_vec())).unwrap()).await.unwrap();
    let (code, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.into_body().collect_bytes().await.unwrap().to_vec();
    Answer { code, headers, value: serde_json::from_slice(&bytes).unwrap_or_default(), bytes }
}

pub async fn get(client: &Client, path: &str) -> Answer {
    request(client, "GET", path, &[], b"").await
}

pub async fn post(client: &Client, path: &str, object: &Value) -> Answer {
    request(client, "POST", path, &[("content-type", JSON)], object.to_string().as_bytes()).await
}

pub async fn put(client: &Client, path: &str, object: &Value) -> Answer {
    request(client, "PUT", path, &[("content-type", JSON)], object.to_string().as_bytes()).await
}

pub async fn patch(client: &Client, path: &str, media: &str, patch: &Value) -> Answer {
    request(client, "PATCH", path, &[("content-type", media)], patch.to_string().as_bytes()).await
}

pub async fn delete(client: &Client, path: &str) -> Answer {
    request(client, "DELETE", path, &[], b"").await
}

/// Applies as a manager; `query` begins with `&` or is empty.
pub async fn apply(client: &Client, path: &str, manager: &str, query: &str, config: &Value) -> Answer {
    patch(client, &format!("{path}?fieldManager={manager}{query}"), APPLY, config).await
}

/// Asks again until `wanted` holds of the answer.
pub async fn until(client: &Client, path: &str, wanted: impl Fn(&Answer) -> bool) -> Value {
    let mut last = None;
    for _ in 0..400 {
        let answer = get(client, path).await;
        if wanted(&answer) {
            return answer.value;
        }
        last = Some(answer);
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("{path} never became what was wanted; at last {last:#?}");
}

pub fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

/// A definition of `foos.example.com` in `v1` with a status subresource.
pub fn definition(schema: Value) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "foos.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}]}})
}

pub const FOOS: &str = "/apis/example.com/v1/namespaces/default/foos";

/// Makes a definition and waits until it is established and its objects are served.
pub async fn define(client: &Client, definition: &Value) {
    let spec = &definition["spec"];
    post(client, DEFINITIONS, definition).await.expect(201);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let path = format!("{DEFINITIONS}/{}", text(&definition["metadata"]["name"]));
    let established = |answer: &Answer| {
        let mut conditions = answer.value["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|one| one["type"] == "Established" && one["status"] == "True")
    };
    until(client, &path, established).await;
    for version in spec["versions"].as_array().unwrap().iter().filter(|version| version["served"] == true) {
        let path =
            format!("/apis/{}/{}/{}", text(&spec["group"]), text(&version["name"]), text(&spec["names"]["plural"]));
        until(client, &path, |answer| answer.code == 200).await;
    }
}
