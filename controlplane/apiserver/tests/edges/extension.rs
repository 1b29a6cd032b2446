//! A small API server of `metrics.k8s.io`, over TLS, that takes front-proxy certificates only.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use apiserver::testing::{authority, leaf};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

pub struct Extension {
    pub port: u16,
    /// As an APIService has it.
    pub ca_bundle: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Extension {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts it; `front_proxy_ca` signs the only clients that it takes.
pub async fn start(dir: &Path, front_proxy_ca: &str) -> Extension {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (ca, pem) = authority();
    let pair = leaf(dir, &ca, "metrics.default.svc", &[], true);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(front_proxy_ca.as_bytes()).unwrap()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&pair.certificate).unwrap()],
            PrivateKeyDer::from_pem_file(&pair.key).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service =
                    hyper::service::service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
            });
        }
    });
    Extension { port, ca_bundle: BASE64_STANDARD.encode(pem), task }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn json_answer(value: &Value) -> Answer {
    let mut response = Response::new(Full::from(value.to_string()).boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    response
}

const GROUP_VERSION: &str = "/apis/metrics.k8s.io/v1beta1";

async fn answer(request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    if path == "/openapi/v3" {
        let url = format!("/openapi/v3{GROUP_VERSION}?hash=ABC");
        return json_answer(&json!({"paths": {"apis/metrics.k8s.io/v1beta1": {"serverRelativeURL": url}}}));
    }
    if path == "/stats/summary" {
        // What a kubelet says: half a core in use.
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let cpu = u64::try_from(since.as_nanos() / 2).unwrap();
        let used = json!({"usageCoreNanoSeconds": cpu});
        let memory = json!({"workingSetBytes": 64 << 20});
        return json_answer(&json!({"node": {"cpu": used, "memory": memory}, "pods": []}));
    }
    if path == "/openapi/v2" {
        let (paths, definition) = (
            json!({(format!("{GROUP_VERSION}/nodes")): {"get": {"operationId": "listNodeMetrics", "responses": {}}}, "/version": {}}),
            json!({"type": "object"}),
        );
        return json_answer(
            &json!({"swagger": "2.0", "paths": paths, "definitions": {"io.k8s.metrics.NodeMetrics": definition}}),
        );
    }
    match path.trim_start_matches("/openapi/v3").strip_prefix(GROUP_VERSION) {
        Some("") if path.starts_with("/openapi") => json_answer(&json!({"openapi": "3.0.0", "paths": {}})),
        Some("") => json_answer(
            &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "metrics.k8s.io/v1beta1", "resources": [
                {"name": "nodes", "singularName": "", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"]},
                {"name": "pods", "singularName": "", "namespaced": true, "kind": "PodMetrics", "verbs": ["get", "list"]},
            ]}),
        ),
        Some("/nodes") if watches => {
            let events = futures::stream::iter(["one\n", "two\n"]).chain(futures::stream::pending());
            let body = StreamBody::new(events.map(|text| Ok(Frame::data(Bytes::from(text)))));
            Response::new(BodyExt::boxed(body))
        }
        Some("/nodes") => json_answer(
            &json!({"kind": "NodeMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": [
                {"metadata": {"name": "n1"}, "timestamp": "2026-01-01T00:00:00Z", "window": "10s", "usage": {"cpu": "250m", "memory": "512Mi"}},
            ]}),
        ),
        Some("/echo") => echo(request).await,
        Some("/upgrade") => upgrade(request),
        _ => {
            let mut response = json_answer(
                &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not here"}),
            );
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    }
}

/// Says who asked and what was sent.
async fn echo(request: Request<Incoming>) -> Answer {
    let headers: Vec<(String, String)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()))
        .collect();
    let (method, query) = (request.method().to_string(), request.uri().query().unwrap_or_default().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    json_answer(&json!({"method": method, "query": query, "headers": headers, "body": String::from_utf8_lossy(&body)}))
}

/// Takes the connection over and sends back what comes, in capitals.
fn upgrade(request: Request<Incoming>) -> Answer {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            if stream.write_all(&buffer[..length].to_ascii_uppercase()).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::new(Full::default().boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
    response.headers_mut().insert(header::UPGRADE, "test".parse().unwrap());
    response
}
