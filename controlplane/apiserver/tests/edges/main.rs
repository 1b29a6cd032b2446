//! The server's edges: what lies in its store, who it passes requests on to, how it ends.
#![allow(clippy::unwrap_used)]

mod aggregation;
mod encryption;
mod extension;

use std::time::Duration;

use http::Request;
use serde_json::{Value, json};

/// Status code and body of one request.
async fn ask(client: &kube::Client, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response =
        client.send(request.body(kube::client::Body::from(body.as_bytes().to_vec())).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes))))
}

/// Asks again until `wanted` of the answer holds.
async fn eventually(client: &kube::Client, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..600 {
        let (code, answer) = ask(client, "GET", path, "").await;
        if wanted(code, &answer) {
            return answer;
        }
        last = answer;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{path} never became what was wanted; at last {last:#}");
}
