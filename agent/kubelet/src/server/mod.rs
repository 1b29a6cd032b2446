//! The kubelet's HTTPS server on port 10250.
//!
//! Layer: above the pod workers, which it knows only as [`NodePods`]; the API server proxies
//! `kubectl logs`, `exec`, `attach`, `port-forward` and `top` to it.
//!
//! A request goes: TLS (`tls`, client certificate optional) → who is it, may they (`auth`) → which
//! endpoint (`route`) → its module: `logs`, `streams`, `checkpoint`, `stats`, `metrics`, `pages`, `files`.

mod auth;
mod checkpoint;
mod disk_stats;
mod files;
mod logs;
mod machine;
mod metrics;
mod network_stats;
mod pages;
mod reply;
mod route;
mod stats;
mod streams;
mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use component::Supervisor;
use component::zpages::Page;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::config::ServerConfig;
use crate::layout::CHECKPOINTS;
use crate::server_contract::NodePods;
use auth::{Gate, Refusal, User};
use reply::Reply;
use route::Route;
use tls::TlsFiles;

pub use pages::serve_healthz;

/// Before a client that says nothing is asked whether it is still there: Go's own default, which the kubelet has.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What the server needs beside the pods.
pub struct Options {
    pub config: ServerConfig,
    pub node_name: String,
    /// For token and access reviews.
    pub client: kube::Client,
    /// The node's data directory, whose file system is reported as `nodefs`.
    pub root: PathBuf,
    /// What `/configz` shows: the kubelet's configuration in Kubernetes' field names.
    pub configz: serde_json::Value,
}

#[derive(Debug, thiserror::Error)]
#[error("listening on {address}: {error}; is another kubelet running on this machine?")]
pub struct ListenError {
    address: SocketAddr,
    error: std::io::Error,
}

/// Listens and serves until the supervisor ends. Returns the address, which has the port that was
/// chosen if the configured one is 0.
pub async fn start(
    options: Options,
    pods: Arc<dyn NodePods>,
    supervisor: &Supervisor,
) -> Result<SocketAddr, ListenError> {
    let address = options.config.address;
    let failed = |error| ListenError { address, error };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    component::keep_alive(&listener, KEEP_ALIVE).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let supervisor = supervisor.child("server");
    let server = Arc::new(Server {
        tls: TlsFiles::new(&options.config),
        gate: Gate::new(options.client, options.node_name.clone()),
        checkpoints: options.root.join(CHECKPOINTS),
        stats: stats::Stats::new(options.node_name, options.root),
        configz: options.configz,
        started: Timestamp::now(),
        checks: pages::Checks::default(),
        pods,
        supervisor: supervisor.clone(),
    });
    supervisor.spawn("listener", accept(listener, server));
    Ok(bound)
}

struct Server {
    tls: TlsFiles,
    gate: Gate,
    checkpoints: PathBuf,
    stats: stats::Stats,
    configz: serde_json::Value,
    started: Timestamp,
    checks: pages::Checks,
    pods: Arc<dyn NodePods>,
    supervisor: Supervisor,
}

async fn accept(listener: TcpListener, server: Arc<Server>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                server.supervisor.spawn("connection", serve(server.clone(), stream, peer));
            }
            Err(error) => {
                // out of descriptors, most likely: without a pause this would be a busy loop
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(server: Arc<Server>, stream: TcpStream, peer: SocketAddr) {
    let config = match server.tls.current() {
        Ok(config) => config,
        Err(error) => {
            tracing::debug!(%peer, error, "a connection was refused: there is no serving certificate yet");
            return;
        }
    };
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = match tokio::time::timeout(Duration::from_secs(10), handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "a TLS handshake took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(auth::user_of_certificate);
    let service = service_fn(|request| {
        let (server, user) = (server.clone(), user.clone());
        async move { Ok::<_, Infallible>(server.answer(user.as_ref(), request).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%peer, error, "a connection ended early");
    }
}

impl Server {
    async fn answer(&self, certificate: Option<&User>, request: Request<Incoming>) -> Reply {
        let allowed = async {
            let user = self.gate.authenticate(certificate, request.headers()).await?;
            self.gate.authorize(&user, &route::attributes(request.method(), request.uri().path())).await
        };
        match allowed.await {
            Ok(()) => self.dispatch(request).await,
            Err(Refusal::Unauthorized) => reply::error(StatusCode::UNAUTHORIZED, "Unauthorized"),
            Err(Refusal::Forbidden(message)) => reply::error(StatusCode::FORBIDDEN, message),
            Err(Refusal::Unavailable(message)) => {
                reply::error(StatusCode::INTERNAL_SERVER_ERROR, format!("Authorization error: {message}"))
            }
        }
    }

    async fn dispatch(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().map(str::to_owned);
        let Some(route) = route::route(&path) else {
            return reply::error(StatusCode::NOT_FOUND, "404 page not found\n");
        };
        if !method_fits(&route, request.method()) {
            return reply::error(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
        }
        match route {
            Route::Healthz => {
                let health = self.pods.healthy().await;
                self.checks.note(health.is_ok());
                match health {
                    Ok(()) => reply::text(StatusCode::OK, "ok"),
                    Err(why) => {
                        reply::error(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}"))
                    }
                }
            }
            Route::Statusz => self.zpage(Page::Statusz, &request),
            Route::Flagz => self.zpage(Page::Flagz, &request),
            Route::Pods => reply::json(&pod_list(self.pods.pods())),
            Route::RunningPods => reply::json(&pod_list(self.running_pods())),
            Route::ContainerLogs { namespace, pod, container } => {
                logs::serve(&self.pods, (&namespace, &pod, &container), query.as_deref(), &self.supervisor)
            }
            Route::Exec(target) => streams::exec(&self.pods, &target, request, &self.supervisor).await,
            Route::Attach(target) => streams::attach(&self.pods, &target, request, &self.supervisor).await,
            Route::Run(target) => streams::run(&self.pods, &target, query.as_deref()).await,
            Route::Checkpoint { namespace, pod, container } => {
                let of = checkpoint::Of { namespace: &namespace, pod: &pod, container: &container };
                checkpoint::serve(&*self.pods, &self.checkpoints, of, query.as_deref()).await
            }
            Route::PortForward { namespace, pod, uid } => {
                let pod = (namespace.as_str(), pod.as_str(), uid.as_deref());
                streams::port_forward(&self.pods, pod, request, &self.supervisor).await
            }
            Route::StatsSummary => reply::json(&self.stats.summary(&*self.pods).await),
            Route::Metrics => {
                let text = metrics::volumes(&*self.pods, metrics::own(&*self.pods)).await;
                let text = metrics::certificates(&self.pods.certificates(), text);
                let own = self.pods.pods_api_metrics() + &self.pods.user_namespace_metrics();
                metrics::reply(text + &own + &self.pods.image_metrics())
            }
            Route::MetricsCadvisor => metrics::reply(metrics::cadvisor(&*self.pods)),
            Route::MetricsResource => metrics::reply(metrics::resource(&*self.pods)),
            Route::MetricsProbes => metrics::reply(self.pods.probe_metrics()),
            Route::MetricsSlis => metrics::reply(self.checks.page()),
            Route::NodeLogs { path } => files::serve(std::path::Path::new("/var/log"), &path).await,
            Route::Configz => reply::json(&serde_json::json!({ "kubeletconfig": self.configz })),
        }
    }

    fn zpage(&self, page: Page, request: &Request<Incoming>) -> Reply {
        let accept = request.headers().get(http::header::ACCEPT).and_then(|accept| accept.to_str().ok());
        pages::zpage(page, accept.unwrap_or_default(), self.started, &self.configz)
    }

    fn running_pods(&self) -> Vec<Arc<Pod>> {
        let runs = |pod: &Arc<Pod>| {
            let view = self.pods.runtime_view(pod.metadata.uid.as_deref().unwrap_or_default());
            view.containers.iter().any(|run| run.running)
        };
        self.pods.pods().into_iter().filter(runs).collect()
    }
}

fn method_fits(route: &Route, method: &Method) -> bool {
    match route {
        Route::Exec(_) | Route::Attach(_) | Route::PortForward { .. } => [Method::GET, Method::POST].contains(method),
        Route::Run(_) | Route::Checkpoint { .. } => method == Method::POST,
        _ => [Method::GET, Method::HEAD].contains(method),
    }
}

fn pod_list(pods: Vec<Arc<Pod>>) -> serde_json::Value {
    let items: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
    serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}
