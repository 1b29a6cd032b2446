//! The servers that are measured, each a process of its own.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use apiserver::testing::Cluster;
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::client::Target;

/// A server in a process of its own; ended when dropped.
pub struct Server {
    child: Child,
    pub target: Target,
    /// Where its certificate and key are.
    described: Value,
}

impl Server {
    /// An API server, its store in `dir`.
    pub fn api(dir: &Path) -> anyhow::Result<Self> {
        Self::start("serve", dir)
    }

    /// A server that answers everything with `bytes`, with the certificate of `like`.
    pub fn floor(like: &Server, bytes: &[u8]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("answer"), bytes)?;
        std::fs::write(dir.path().join("server.json"), like.described.to_string())?;
        Self::start("floor", dir.path())
    }

    fn start(role: &str, dir: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(role)
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting bench-api {role}"))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let described: Value =
            serde_json::from_str(&line).with_context(|| format!("bench-api {role} said {line:?}"))?;
        let target = Target::new(&described)?;
        Ok(Self { child, target, described })
    }

    pub fn pid(&self) -> i64 {
        i64::from(self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's side: serves until its standard input ends.
pub async fn run(role: &str, dir: &Path) -> anyhow::Result<()> {
    let (described, _keep) = if role == "floor" { (floor(dir).await?, None) } else { api(dir).await? };
    println!("{described}");
    std::io::stdout().flush()?;
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    Ok(())
}

async fn api(dir: &Path) -> anyhow::Result<(Value, Option<Cluster>)> {
    let cluster = Cluster::start_in(dir).await;
    let address = cluster.listen().await;
    let admin = cluster.key_pair("admin", &["system:masters"]);
    let at = |name: &str| cluster.dir().join(name).display().to_string();
    let described = json!({
        "address": address.to_string(), "ca": at("ca.crt"),
        "certificate": admin.certificate, "key": admin.key,
        "serverCertificate": at("kube-apiserver.crt"), "serverKey": at("kube-apiserver.key"),
    });
    Ok((described, Some(cluster)))
}

/// The bare server: what hyper and rustls alone need for the same bytes.
async fn floor(dir: &Path) -> anyhow::Result<Value> {
    let mut described: Value = serde_json::from_slice(&std::fs::read(dir.join("server.json"))?)?;
    let answer = Bytes::from(std::fs::read(dir.join("answer"))?);
    let path = |key: &str| PathBuf::from(described[key].as_str().unwrap_or_default());
    let chain = CertificateDer::pem_file_iter(path("serverCertificate"))?.collect::<Result<Vec<_>, _>>()?;
    let mut tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(path("serverKey"))?)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
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

async fn serve(stream: tokio::net::TcpStream, acceptor: tokio_rustls::TlsAcceptor, answer: Bytes) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = hyper::service::service_fn(move |_| {
        let mut response = http::Response::new(Full::new(answer.clone()));
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    // The client ends the connection; there is nobody to tell.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}
