//! TLS connections: HTTP/1.1 and HTTP/2 on one port, and how they end.
//!
//! A server that is to end first says so on `/readyz` and goes on for a while (load balancers look
//! there), then stops listening; watches end, connections are told to go away, and requests under
//! way are answered.

use std::sync::Arc;
use std::time::Duration;

use component::{Files, Supervisor};
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use parking_lot::RwLock;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::pipeline::{self, Caller};
use super::tls::Tls;
use crate::error::{ApiError, Result};
use crate::server::Api;

const HANDSHAKE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Begins to accept on `listener`.
pub fn start(api: &Arc<Api>, listener: TcpListener, supervisor: &Supervisor) -> Result<()> {
    let tls = Arc::new(RwLock::new(Tls::read(&api.config)?));
    let paths = api.config.tls_files();
    let files = Files::watch(paths.iter().map(AsRef::as_ref)).map_err(ApiError::internal)?;
    supervisor.spawn_try("certificates", reload(api.clone(), tls.clone(), files));
    let api = api.clone();
    supervisor.spawn_graceful("listener", move |token| {
        let ends = api.ending.listeners.clone();
        ends.track_future(accept(api, listener, tls, token))
    });
    Ok(())
}

/// Reads the certificates again when they change; connections that are open keep theirs.
async fn reload(api: Arc<Api>, held: Arc<RwLock<Tls>>, files: Files) -> std::io::Result<()> {
    let content = || api.config.tls_files().iter().map(|path| std::fs::read(path).ok()).collect::<Vec<_>>();
    let mut seen = content();
    loop {
        files.changed().await?;
        let now = content();
        if now == seen {
            continue;
        }
        seen = now;
        match Tls::read(&api.config) {
            Ok(fresh) => {
                *held.write() = fresh;
                tracing::info!("certificates were read again");
            }
            // A certificate without its new key, mostly: that one comes next.
            Err(error) => tracing::warn!(%error, "new certificates cannot be used; the old ones stay"),
        }
        if let Err(error) = crate::bootstrap::extension_authentication(&api).await {
            tracing::warn!(%error, "aggregated API servers were not told of the authorities");
        }
    }
}

/// How the server ends, step by step.
#[derive(Default)]
pub struct Ending {
    /// `/readyz` fails.
    pub begun: CancellationToken,
    /// The listeners and their connections.
    pub listeners: tokio_util::task::TaskTracker,
}

impl Ending {
    /// Begins the end and returns when all listeners and their connections have ended.
    pub async fn drain(&self) {
        self.begun.cancel();
        self.listeners.close();
        self.listeners.wait().await;
    }
}

async fn accept(api: Arc<Api>, listener: TcpListener, tls: Arc<RwLock<Tls>>, token: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut closing = std::pin::pin!(async {
        tokio::select! {
            // Everything ends at once: nobody asked to drain.
            () = token.cancelled() => return,
            () = api.ending.begun.cancelled() => {}
        }
        tokio::select! {
            () = token.cancelled() => {}
            () = tokio::time::sleep(api.config.shutdown_delay) => {}
        }
    });
    loop {
        let accepted = tokio::select! {
            () = &mut closing => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let watcher = graceful.watcher();
                let tls = tls.read().clone();
                // Ends with its client, or when the listener drains.
                tokio::spawn(connection(api.clone(), stream, tls, watcher));
            }
            Err(error) => {
                // Out of file descriptors, mostly: others must end first.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    api.ending.begun.cancel();
    api.stopping.cancel();
    let limit = api.config.options.request_timeout;
    if tokio::time::timeout(limit, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = limit.as_secs(), "connections were still busy and are dropped");
    }
}

async fn connection(api: Arc<Api>, stream: TcpStream, tls: Tls, watcher: hyper_util::server::graceful::Watcher) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().ok();
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.acceptor.accept(stream)).await else {
        api.metrics.tls_errors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return;
    };
    let shown = tls.shown(stream.get_ref().1.peer_certificates());
    let identity = Arc::new(pipeline::Connection { shown, peer });
    let service = tower::service_fn(move |request: http::Request<Incoming>| {
        let (api, identity) = (api.clone(), identity.clone());
        // Boxed: the connection keeps room for the largest of futures otherwise, also while a watch
        // only waits.
        let answer: BoxFuture<'static, _> = Box::pin(pipeline::handle(api, request, Caller::Remote(identity)));
        answer.map(Ok::<_, std::convert::Infallible>)
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
