//! HTTP answers about this node's Services: `/healthz` and `/livez`, one port per load balanced
//! Service with `externalTrafficPolicy: Local`, which tells balancers whether to send packets here, and,
//! for those on the node itself, `/proxyMode` and `/metrics`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::local_http::{self, Answer, not_found};
use component::{Informer, Supervisor};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::Mode;
use crate::model::HealthCheck;

/// Rules older than a change by this much are unhealthy: twice kube-proxy's sync period.
const STALE: Duration = Duration::from_secs(60);
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Shared between the loop and its servers.
#[derive(Clone)]
pub struct Health {
    node_name: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The oldest change that no pass has taken up.
    queued: Option<Instant>,
    /// The oldest change of the pass under way.
    under_way: Option<Instant>,
    last_success: Option<jiff::Timestamp>,
}

impl Health {
    pub fn new(node_name: &str) -> Self {
        Self { node_name: node_name.to_owned(), state: Arc::default() }
    }

    pub fn queued(&self) {
        self.state.lock().queued.get_or_insert_with(Instant::now);
    }

    pub fn begun(&self) {
        let mut state = self.state.lock();
        let queued = state.queued.take();
        state.under_way = state.under_way.or(queued);
    }

    pub fn succeeded(&self) {
        let mut state = self.state.lock();
        state.under_way = None;
        state.last_success = Some(jiff::Timestamp::now());
    }

    fn is_current(&self) -> bool {
        let state = self.state.lock();
        let waiting = state.under_way.or(state.queued);
        state.last_success.is_some() && waiting.is_none_or(|since| since.elapsed() < STALE)
    }

    fn answer(&self, eligible: bool) -> serde_json::Value {
        let now = jiff::Timestamp::now();
        let updated = self.state.lock().last_success.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        serde_json::json!({
            "lastUpdated": if self.is_current() { now } else { updated }.to_string(),
            "currentTime": now.to_string(),
            "nodeEligible": eligible,
        })
    }

    /// Serves until cancelled.
    pub async fn serve(self, address: SocketAddr, nodes: Informer<Node>) {
        local_http::serve("the proxy's health", address, move |path| {
            let node = nodes.get("", &self.node_name);
            let eligible = node.is_none_or(|node| is_eligible(&node));
            match path {
                "/healthz" => json_answer(self.is_current() && eligible, &self.answer(eligible)),
                "/livez" => json_answer(self.is_current(), &self.answer(eligible)),
                _ => not_found(),
            }
        })
        .await;
    }
}

impl Health {
    /// Serves what is for people on the node until cancelled (`cmd/kube-proxy: serveMetrics`).
    pub async fn serve_metrics(self, address: SocketAddr, mode: Mode) {
        local_http::serve("the proxy's mode and metrics", address, move |path| match path {
            "/healthz" | "/healthz/ping" => plain("ok".to_owned()),
            "/proxyMode" => plain(mode.to_string()),
            "/metrics" => plain(self.metrics()),
            _ => not_found(),
        })
        .await;
    }

    fn metrics(&self) -> String {
        let state = self.state.lock();
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        let last = state.last_success.map_or(0.0, |at| at.as_millisecond() as f64 / 1000.0);
        format!(
            "# HELP {name} [ALPHA] The last time proxy rules were successfully synced\n# TYPE {name} gauge\n{name}{{ip_family=\"IPv4\"}} {last}\n"
        )
    }
}

fn plain(text: String) -> Answer {
    local_http::text(StatusCode::OK, text)
}

/// A node that is about to go should get no new connections.
fn is_eligible(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| &spec.taints).flatten();
    node.metadata.deletion_timestamp.is_none() && !taints.into_iter().any(|taint| taint.key == DELETION_TAINT)
}

/// The servers of `healthCheckNodePort`s.
pub struct HealthChecks {
    supervisor: Supervisor,
    health: Health,
    running: BTreeMap<u16, (Supervisor, watch::Sender<HealthCheck>)>,
}

impl HealthChecks {
    pub fn new(supervisor: &Supervisor, health: Health) -> Self {
        Self { supervisor: supervisor.child("health-checks"), health, running: BTreeMap::new() }
    }

    pub fn update(&mut self, wanted: &BTreeMap<u16, HealthCheck>) {
        self.running.retain(|port, (server, _)| {
            let keep = wanted.contains_key(port);
            if !keep {
                server.cancel();
            }
            keep
        });
        for (port, check) in wanted {
            if let Some((_, current)) = self.running.get(port) {
                current.send_if_modified(|now| {
                    let differs = now != check;
                    now.clone_from(check);
                    differs
                });
                continue;
            }
            let (current, seen) = watch::channel(check.clone());
            let server = self.supervisor.child(port);
            let health = self.health.clone();
            let address = SocketAddr::from(([0, 0, 0, 0], *port));
            let respond = move |_: &str| check_answer(&seen.borrow(), health.is_current());
            server.spawn("serve", local_http::serve("a Service's health", address, respond));
            self.running.insert(*port, (server, current));
        }
    }
}

fn check_answer(check: &HealthCheck, proxy_healthy: bool) -> Answer {
    let body = serde_json::json!({
        "service": { "namespace": check.namespace, "name": check.service },
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    });
    let mut response = json_answer(check.local_endpoints > 0 && proxy_healthy, &body);
    let weight = HeaderValue::from(check.local_endpoints);
    response.headers_mut().insert("X-Load-Balancing-Endpoint-Weight", weight);
    response
}

fn json_answer(ok: bool, body: &serde_json::Value) -> Answer {
    local_http::json(if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}
