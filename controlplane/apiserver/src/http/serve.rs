//! TLS connections: HTTP/1.1 and HTTP/2 on one port, and how they end.
//!
//! A server that is to end first says so on `/readyz` and goes on for a while (load balancers look
//! there), then stops listening; watches end, connections are told to go away, and requests under
//! way are answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use component::{Files, Supervisor};
use futures::future::{self, BoxFuture, Either, Ready};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

use super::body::Body;
use super::pipeline::{self, Caller};
use super::tls::{Client, Current, Tls};
use crate::authn::certificate;
use crate::error::{ApiError, Result};
use crate::server::Api;

const HANDSHAKE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Before a client that says nothing is asked whether it is still there, whatever it speaks; upstream's.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(180);
/// Of a request's line and headers, in bytes, as Go takes them: selectors may be long.
const MAX_HEAD: u32 = 1 << 20;

/// Begins to accept on `listener`.
pub fn start(api: &Arc<Api>, listener: TcpListener, supervisor: &Supervisor) -> Result<()> {
    component::keep_alive(&listener, TCP_KEEP_ALIVE).map_err(ApiError::internal)?;
    let tls = Arc::new(Current::new(Tls::read(&api.config)?));
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

/// Reads the certificates again when they change. Connections that are open keep what they were shown; what
/// their clients showed is judged again.
async fn reload(api: Arc<Api>, held: Arc<Current>, files: Files) -> std::io::Result<()> {
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
                held.replace(fresh);
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
    pub listeners: TaskTracker,
}

impl Ending {
    /// Begins the end and returns when all listeners and their connections have ended.
    pub async fn drain(&self) {
        self.begun.cancel();
        self.listeners.close();
        self.listeners.wait().await;
    }
}

async fn accept(api: Arc<Api>, listener: TcpListener, tls: Arc<Current>, token: CancellationToken) {
    let (connections, leaving) = (TaskTracker::new(), CancellationToken::new());
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
                // Ends with its client, or when the listener drains.
                connections.spawn(connection(api.clone(), stream, tls.clone(), leaving.clone()));
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
    leaving.cancel();
    connections.close();
    let limit = api.config.options.request_timeout;
    if tokio::time::timeout(limit, connections.wait()).await.is_err() {
        tracing::warn!(seconds = limit.as_secs(), "connections were still busy and are dropped");
    }
}

/// One connection. What it needs is boxed step by step: it lives long and mostly waits, and would
/// keep room for the largest step all the time.
async fn connection(api: Arc<Api>, stream: TcpStream, tls: Arc<Current>, leaving: CancellationToken) {
    let peer = stream.peer_addr().ok();
    let Some(stream) = Box::pin(handshake(stream, &tls)).await else {
        api.metrics.tls_errors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return;
    };
    let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let chain = stream.get_ref().1.peer_certificates();
    let ends = chain.and_then(<[_]>::first).and_then(|own| certificate::end_of(own));
    let client = chain.map(|chain| Client::new(chain, tls));
    let known = Arc::new(pipeline::Connection { client, ends, peer, ending: CancellationToken::new() });
    let leaving = [leaving, known.ending.clone()];
    let service = Answers { api, connection: known, one_by_one: !two };
    let stream = TokioIo::new(stream);
    let served = if two {
        Box::pin(http2(stream, service, leaving)).await
    } else {
        Box::pin(http1(stream, service, leaving)).await
    };
    if let Err(error) = served {
        tracing::debug!(%error, ?peer, "connection ended");
    }
}

async fn handshake(stream: TcpStream, tls: &Current) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    let acceptor = tls.get().acceptor;
    tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await.ok()?.ok()
}

async fn http1(
    stream: TokioIo<TlsStream<TcpStream>>,
    service: Answers,
    leaving: [CancellationToken; 2],
) -> hyper::Result<()> {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).max_buf_size(MAX_HEAD as usize);
    let connection = builder.serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection.with_upgrades());
    let mut left = seldom(&leaving);
    tokio::select! {
        biased;
        served = connection.as_mut() => return served,
        _ = left.next() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

async fn http2(
    stream: TokioIo<TlsStream<TcpStream>>,
    service: Answers,
    leaving: [CancellationToken; 2],
) -> hyper::Result<()> {
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(250)
        .max_header_list_size(MAX_HEAD)
        .adaptive_window(false)
        .serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    let mut left = seldom(&leaving);
    tokio::select! {
        biased;
        served = connection.as_mut() => return served,
        _ = left.next() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// That one of `leaving` is cancelled, looked at only when it has woken its connection: each look takes a
/// lock that all connections share, and a connection wakes for every request.
fn seldom(leaving: &[CancellationToken]) -> FuturesUnordered<WaitForCancellationFuture<'_>> {
    leaving.iter().map(CancellationToken::cancelled).collect()
}

type Answer = std::result::Result<Response<Body>, Infallible>;

/// Answers the requests of one connection.
struct Answers {
    api: Arc<Api>,
    connection: Arc<pipeline::Connection>,
    /// HTTP/1.1: nothing else of this connection could be done meanwhile.
    one_by_one: bool,
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Answer>, BoxFuture<'static, Answer>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (api, caller) = (self.api.clone(), Caller::Remote(self.connection.clone()));
        let reads = self.one_by_one && *request.method() == Method::GET;
        let mut answer: BoxFuture<_> = Box::pin(async move { Ok(pipeline::handle(api, request, caller).await) });
        // Mostly a read is answered from memory. Its request is then gone before the connection looks
        // for the next one, which fits into the same buffer. One that has to wait is polled again at once.
        match if reads { answer.as_mut().now_or_never() } else { None } {
            Some(answer) => Either::Left(future::ready(answer)),
            None => Either::Right(answer),
        }
    }
}
