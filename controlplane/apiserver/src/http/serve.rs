//! TLS connections: HTTP/1.1 and HTTP/2 on one port, client certificates asked for, certificates
//! read again when their files change.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use component::Supervisor;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::pipeline::{self, Caller};
use crate::error::{ApiError, Result};
use crate::server::{Api, Config};

const HANDSHAKE: Duration = Duration::from_secs(10);
const LOOK_AT_FILES: Duration = Duration::from_secs(20);
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Begins to accept on `listener`.
pub fn start(api: &Arc<Api>, listener: TcpListener, supervisor: &Supervisor, drain: Duration) -> Result<()> {
    let acceptor = Arc::new(RwLock::new(acceptor(&api.config)?));
    supervisor.spawn("certificates", reload(api.config.clone(), acceptor.clone()));
    let api = api.clone();
    supervisor.spawn_graceful("listener", move |token| accept(api, listener, acceptor, token, drain));
    Ok(())
}

fn unusable(path: &std::path::Path, error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(format!("reading {}: {error}; it must hold PEM that this server can read", path.display()))
}

/// All certificates of a PEM file.
pub fn read_certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, error))?;
    certificates.collect::<std::result::Result<_, _>>().map_err(|error| unusable(path, error))
}

fn acceptor(config: &Config) -> Result<TlsAcceptor> {
    let chain = read_certificates(&config.serving.certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&config.serving.key).map_err(|error| unusable(&config.serving.key, error))?;
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(&config.client_ca)? {
        roots.add(certificate).map_err(|error| unusable(&config.client_ca, error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(&config.client_ca, error))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ApiError::internal)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| unusable(&config.serving.certificate, error))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// Newest modification of the files that a connection's TLS depends on.
fn modified(config: &Config) -> Option<SystemTime> {
    let paths = [&config.serving.certificate, &config.serving.key, &config.client_ca];
    paths.iter().filter_map(|path| std::fs::metadata(path).ok()?.modified().ok()).max()
}

async fn reload(config: Config, held: Arc<RwLock<TlsAcceptor>>) {
    let mut seen = modified(&config);
    loop {
        tokio::time::sleep(LOOK_AT_FILES).await;
        let now = modified(&config);
        if now == seen {
            continue;
        }
        match acceptor(&config) {
            Ok(fresh) => {
                *held.write() = fresh;
                seen = now;
                tracing::info!("serving certificates were read again");
            }
            Err(error) => tracing::warn!(%error, "new certificates cannot be used; the old ones stay"),
        }
    }
}

async fn accept(
    api: Arc<Api>,
    listener: TcpListener,
    acceptor: Arc<RwLock<TlsAcceptor>>,
    token: CancellationToken,
    drain: Duration,
) {
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = token.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let watcher = graceful.watcher();
                let acceptor = acceptor.read().clone();
                // Ends with its client, or when the listener drains.
                tokio::spawn(connection(api.clone(), stream, acceptor, watcher));
            }
            Err(error) => {
                // Out of file descriptors, mostly: others must end first.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    api.stopping.cancel();
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = drain.as_secs(), "connections were still busy and are dropped");
    }
}

async fn connection(
    api: Arc<Api>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok();
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let identity = Arc::new(pipeline::Connection::new(certificate, peer));
    let service = tower::service_fn(move |request: http::Request<Incoming>| {
        let (api, identity) = (api.clone(), identity.clone());
        async move { Ok::<_, std::convert::Infallible>(pipeline::handle(api, request, Caller::Remote(identity)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(250)
        .adaptive_window(false);
    let service = TowerToHyperService::new(service);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, ?peer, "connection ended");
    }
}
