//! TLS clients and the load they make.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const ORIGIN: &str = "https://localhost";

/// A server, and the administrator's certificate for it.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    tls: rustls::ClientConfig,
}

/// One request of a load.
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub body: Bytes,
}

impl Ask {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: Bytes::new() }
    }

    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, path: path.into(), body: body.into() }
    }

    /// HTTP/2 names the origin in the request's URI, HTTP/1.1 in a header.
    fn request(self, origin: &str) -> anyhow::Result<Request<Full<Bytes>>> {
        let media = if self.method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let mut request = Request::builder().method(self.method).uri(format!("{origin}{}", self.path));
        if origin.is_empty() {
            request = request.header("host", "localhost");
        }
        Ok(request.header("user-agent", "bench").header("content-type", media).body(Full::new(self.body))?)
    }
}

/// What a load got.
#[derive(Default)]
pub struct Load {
    pub answers: usize,
    pub bytes: u64,
    pub seconds: f64,
}

impl Load {
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.seconds
    }

    pub fn megabytes(&self) -> f64 {
        self.bytes as f64 / self.seconds / 1e6
    }
}

impl Target {
    pub fn new(described: &Value) -> anyhow::Result<Self> {
        let text = |key: &str| described[key].as_str().with_context(|| format!("no {key}"));
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(text("ca")?)? {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_file_iter(text("certificate")?)?.collect::<Result<Vec<_>, _>>()?;
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(text("key")?)?)?;
        Ok(Self { address: text("address")?.parse()?, tls })
    }

    async fn open(&self, protocol: &[u8]) -> anyhow::Result<TlsStream<TcpStream>> {
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost")?, stream).await?)
    }

    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.open(b"http/1.1").await?)).await?;
        tokio::spawn(connection);
        Ok(Connection::Own(sender))
    }

    /// One HTTP/2 connection for `clients`, as it carries all that one client-go program asks.
    pub async fn share(&self, clients: usize) -> anyhow::Result<Vec<Connection>> {
        let stream = TokioIo::new(self.open(b"h2").await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        Ok((0..clients).map(|_| Connection::Shared(sender.clone())).collect())
    }

    /// Sends one request on a connection of its own; the whole answer.
    pub async fn once(&self, ask: Ask) -> anyhow::Result<Bytes> {
        let response = self.connect().await?.ask(ask).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Clients that each send one request after another for `window`, `shared`: on one connection.
    pub async fn load(
        &self,
        clients: usize,
        shared: bool,
        window: Duration,
        ask: impl Fn(usize, usize) -> Ask + Clone + Send + 'static,
    ) -> anyhow::Result<Load> {
        let connections = if shared {
            self.share(clients).await?
        } else {
            futures::future::try_join_all((0..clients).map(|_| self.connect())).await?
        };
        let began = Instant::now();
        let tasks = connections.into_iter().enumerate().map(|(client, mut connection)| {
            let ask = ask.clone();
            tokio::spawn(async move {
                let mut load = Load::default();
                while began.elapsed() < window {
                    load.bytes += connection.send(ask(client, load.answers)).await?;
                    load.answers += 1;
                }
                anyhow::Ok(load)
            })
        });
        let mut all = Load::default();
        for load in futures::future::try_join_all(tasks).await? {
            let load = load?;
            all.answers += load.answers;
            all.bytes += load.bytes;
        }
        all.seconds = began.elapsed().as_secs_f64();
        Ok(all)
    }
}

/// Of one client.
pub enum Connection {
    /// HTTP/1.1.
    Own(http1::SendRequest<Full<Bytes>>),
    /// Its part in an HTTP/2 connection.
    Shared(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    async fn ask(&mut self, ask: Ask) -> anyhow::Result<Response<Incoming>> {
        Ok(match self {
            Connection::Own(sender) => {
                sender.ready().await?;
                sender.send_request(ask.request("")?).await?
            }
            Connection::Shared(sender) => {
                sender.ready().await?;
                sender.send_request(ask.request(ORIGIN)?).await?
            }
        })
    }

    /// Sends, reads the answer to its end; its length.
    pub async fn send(&mut self, ask: Ask) -> anyhow::Result<u64> {
        let response = self.ask(ask).await?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let text = body.collect().await?.to_bytes();
            anyhow::bail!("{status}: {}", String::from_utf8_lossy(&text));
        }
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(bytes)
    }

    /// The answer's head; the body is the caller's to read.
    pub async fn stream(&mut self, ask: Ask) -> anyhow::Result<Incoming> {
        let response = self.ask(ask).await?;
        anyhow::ensure!(response.status() == StatusCode::OK, "{}", response.status());
        Ok(response.into_body())
    }
}

/// The middle of a few rates.
pub fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The middle of the ratios of pairs measured one after the other.
pub fn ratio(ours: &[f64], floor: &[f64]) -> f64 {
    middle(ours.iter().zip(floor).map(|(ours, floor)| ours / floor).collect())
}
