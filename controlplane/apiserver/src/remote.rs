//! Servers that this one asks: webhooks named by a kubeconfig file, and issuers of tokens.
//!
//! The connection (TLS, client certificates, tokens, proxies, keeping alive) is `kube::Client`'s.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;

use crate::error::ApiError;

/// Larger answers are refused.
const MOST: usize = 3 << 20;

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url}: context deadline exceeded")]
    TimedOut { url: String },
    #[error("{url} answered {code}: {text}")]
    Refused { url: String, code: StatusCode, text: String },
    #[error("{url} answered what is no JSON: {why}")]
    Garbled { url: String, why: String },
}

impl RemoteError {
    /// Whether the same may succeed a little later.
    pub fn is_worth_retrying(&self) -> bool {
        match self {
            RemoteError::Unreachable { .. } | RemoteError::TimedOut { .. } => true,
            RemoteError::Refused { code, .. } => code.is_server_error() || *code == StatusCode::TOO_MANY_REQUESTS,
            RemoteError::Garbled { .. } => false,
        }
    }
}

/// Reads a kubeconfig file; the paths that it names are absolute afterwards.
pub async fn kubeconfig(file: &Path) -> Result<Kubeconfig, String> {
    let file = file.to_owned();
    let read = tokio::task::spawn_blocking(move || Kubeconfig::read_from(file)).await;
    read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// One URL of another server.
#[derive(Clone)]
pub struct Remote {
    client: kube::Client,
    url: String,
    path: String,
}

impl Remote {
    /// The current context's cluster of a kubeconfig file, with its user's credentials.
    pub async fn from_kubeconfig(file: &Path) -> Result<Self, ApiError> {
        let unusable = |why: &dyn std::fmt::Display| {
            ApiError::internal(format!(
                "reading the webhook configuration {}: {why}; it must be a kubeconfig",
                file.display()
            ))
        };
        let kubeconfig = kubeconfig(file).await.map_err(|why| unusable(&why))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
        Self::new(config.map_err(|error| unusable(&error))?).map_err(|why| unusable(&why))
    }

    /// A URL; `ca`: PEM certificates to trust instead of the machine's.
    pub fn to_url(url: &str, ca: Option<&str>) -> Result<Self, String> {
        let uri: http::Uri = url.parse().map_err(|error| format!("{url:?} is no URL: {error}"))?;
        let mut config = kube::Config::new(uri);
        if let Some(pem) = ca {
            use rustls_pki_types::pem::PemObject;
            let certificates = rustls_pki_types::CertificateDer::pem_slice_iter(pem.as_bytes());
            let certificates = certificates.map(|one| one.map(|one| one.to_vec())).collect::<Result<Vec<_>, _>>();
            config.root_cert = Some(certificates.map_err(|error| format!("the CA is not PEM: {error}"))?);
        }
        Self::new(config)
    }

    fn new(mut config: kube::Config) -> Result<Self, String> {
        let url = config.cluster_url.to_string();
        let mut parts = config.cluster_url.into_parts();
        let path = parts.path_and_query.take().map_or("/".to_owned(), |path| path.to_string());
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        config.cluster_url = http::Uri::from_parts(parts).map_err(|error| format!("{url:?} is no URL: {error}"))?;
        config.read_timeout = None;
        let client = kube::Client::try_from(config).map_err(|error| error.to_string())?;
        Ok(Self { client, url, path })
    }

    /// Posts JSON; the answer's status is 2xx, its body may be empty (null).
    pub async fn post(&self, json: String, timeout: Duration) -> Result<Value, RemoteError> {
        let request = Request::post(&self.path).header(header::CONTENT_TYPE, "application/json");
        self.exchange(request.body(Body::from(json.into_bytes())), timeout).await
    }

    pub async fn get(&self, timeout: Duration) -> Result<Value, RemoteError> {
        self.exchange(Request::get(&self.path).body(Body::empty()), timeout).await
    }

    /// The answer as it came.
    pub async fn get_bytes(&self, timeout: Duration) -> Result<Bytes, RemoteError> {
        self.body(Request::get(&self.path).body(Body::empty()), timeout).await
    }

    async fn exchange(&self, request: http::Result<Request<Body>>, timeout: Duration) -> Result<Value, RemoteError> {
        let body = self.body(request, timeout).await?;
        self.parse(&body)
    }

    async fn body(&self, request: http::Result<Request<Body>>, timeout: Duration) -> Result<Bytes, RemoteError> {
        let unreachable = |why: String| RemoteError::Unreachable { url: self.url.clone(), why };
        let mut request = request.map_err(|error| unreachable(error.to_string()))?;
        request.headers_mut().insert(header::ACCEPT, header::HeaderValue::from_static("application/json"));
        let exchange = async {
            let response = self.client.send(request).await.map_err(|error| describe(&error))?;
            let code = response.status();
            let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|error| error.to_string())?;
            Ok((code, body.to_bytes()))
        };
        let (code, body) = match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer.map_err(unreachable)?,
            Err(_) => return Err(RemoteError::TimedOut { url: self.url.clone() }),
        };
        if !code.is_success() {
            let text: String = String::from_utf8_lossy(&body).trim().chars().take(500).collect();
            return Err(RemoteError::Refused { url: self.url.clone(), code, text });
        }
        Ok(body)
    }

    pub fn parse(&self, body: &Bytes) -> Result<Value, RemoteError> {
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(body)
            .map_err(|error| RemoteError::Garbled { url: self.url.clone(), why: error.to_string() })
    }
}

/// An error with its causes: the outermost alone says little.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
