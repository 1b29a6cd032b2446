//! A webhook over TLS whose answers a closure makes.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use apiserver::testing::{authority, leaf};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

pub struct Hook {
    port: u16,
    ca_bundle: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hook {
    /// Starts it; the closure gets the review's `request`, with the `authorization` that was shown, and
    /// gives its `response`, without `uid`. Of an `ImageReview` it gets the `spec` and gives the `status`.
    pub async fn start(dir: &Path, answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Hook {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (ca, pem) = authority();
        let pair = leaf(dir, &ca, "hook", &[], true);
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&pair.certificate).unwrap()],
                PrivateKeyDer::from_pem_file(&pair.key).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(|request: Request<Incoming>| {
                        let answer = answer.clone();
                        async move {
                            let shown = request.headers().get("authorization").cloned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let mut review: Value = serde_json::from_slice(&body).unwrap();
                            if review["kind"] == "ImageReview" {
                                review["status"] = answer(&review["spec"]);
                                return Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(review.to_string())));
                            }
                            review["request"]["authorization"] = shown.map(|shown| shown.to_str().unwrap().to_owned()).into();
                            let mut response = answer(&review["request"]);
                            response["uid"] = review["request"]["uid"].clone();
                            let review = json!({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response});
                            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(review.to_string())))
                        }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Hook { port, ca_bundle: BASE64_STANDARD.encode(pem), task }
    }

    /// `clientConfig`
    pub fn config(&self) -> Value {
        json!({"url": format!("https://localhost:{}/hook", self.port), "caBundle": self.ca_bundle})
    }
}
