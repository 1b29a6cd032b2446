//! Bare servers: what hyper and rustls alone, or with the store's engine, make of the same requests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use store::{Store, Txn, TxnOutcome};
use tokio_rustls::TlsAcceptor;

use crate::disk;

/// Answers everything with the bytes in `dir/answer`.
pub async fn floor(dir: &Path) -> anyhow::Result<Value> {
    let answer = Bytes::from(std::fs::read(dir.join("answer"))?);
    listen(dir, move |_| {
        let answer = answer.clone();
        async { Ok(answer) }
    })
    .await
}

/// Keeps the body of every request durably in a store in `dir`, under a key of its own, and answers
/// with it: what an API server would do that neither knew nor checked what it is given.
pub async fn keeper(dir: &Path, delay: Duration) -> anyhow::Result<Value> {
    let store = Arc::new(disk::open(&dir.join("store"), delay)?);
    let next = Arc::new(AtomicU64::new(0));
    listen(dir, move |request: Request<Incoming>| {
        let (store, next) = (store.clone(), next.clone());
        async move {
            let body = request.into_body().collect().await?.to_bytes();
            let key = format!("/registry/configmaps/default/{}", next.fetch_add(1, Ordering::Relaxed));
            match store.txn(Txn::create(key, body.clone())).await? {
                TxnOutcome::Done { .. } => Ok(body),
                conflict => anyhow::bail!("nobody else writes this key: {conflict:?}"),
            }
        }
    })
    .await
}

/// Serves on loopback, with the certificate that `dir/server.json` names; that description with the
/// address.
async fn listen<A>(
    dir: &Path,
    answer: impl Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
) -> anyhow::Result<Value>
where
    A: Future<Output = anyhow::Result<Bytes>> + Send + 'static,
{
    let mut described: Value = serde_json::from_slice(&std::fs::read(dir.join("server.json"))?)?;
    let path = |key: &str| described[key].as_str().map(PathBuf::from).with_context(|| format!("no {key}"));
    let chain = CertificateDer::pem_file_iter(path("serverCertificate")?)?.collect::<Result<Vec<_>, _>>()?;
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(path("serverKey")?)?)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address: SocketAddr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, acceptor.clone(), answer.clone()));
        }
    });
    described["address"] = address.to_string().into();
    Ok(described)
}

async fn serve<A>(stream: tokio::net::TcpStream, acceptor: TlsAcceptor, answer: impl Fn(Request<Incoming>) -> A)
where
    A: Future<Output = anyhow::Result<Bytes>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = hyper::service::service_fn(|request| {
        let answer = answer(request);
        async {
            let mut response = Response::new(Full::new(answer.await?));
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
            anyhow::Ok(response)
        }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // The client ends the connection, or notices that it ended; there is nobody else to tell.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}
