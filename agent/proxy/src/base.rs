//! The loop: wait for a change, build the rules, write them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use component::{Audits, Change, EventRecorder, EventType, Informer, Informers, Supervisor};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::health::{Health, HealthChecks};
use crate::kernel::Kernel;
use crate::rules::{NodeView, build};
use crate::{Config, Error, Mode, Settings, conntrack_limits, iptables, nftables};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// What others may have changed is looked at again this often.
const AUDIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
/// The longest that changes are gathered while the kernel is busy with the last ones.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The running proxy. Cloning shares it.
#[derive(Clone)]
pub struct Proxy {
    synced: watch::Receiver<u64>,
    mode: Mode,
}

impl Proxy {
    /// Which writer is in use.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns once the first rules are written.
    pub async fn ready(&self) {
        let mut synced = self.synced.clone();
        if synced.wait_for(|count| *count > 0).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// nf_tables where the kernel answers.
fn choose(mode: Mode) -> Mode {
    if mode != Mode::Auto {
        return mode;
    }
    let tables = netlink::nft::Nft::open().and_then(|mut nft| nft.tables(netlink::nft::Family::Ipv4));
    match tables {
        Ok(_) => Mode::Nftables,
        Err(error) => {
            tracing::info!(%error, "no nf_tables in this kernel; writing Services with iptables");
            Mode::Iptables
        }
    }
}

/// What the other writer left when the mode was another one.
fn remove_other(mode: Mode) {
    let outcome = match mode {
        Mode::Iptables => {
            netlink::nft::Nft::open().and_then(|mut nft| nft.delete_table(&nftables::table())).map_err(Error::from)
        }
        Mode::Auto | Mode::Nftables => iptables::remove(),
    };
    if let Err(error) = outcome {
        tracing::warn!(%error, "rules of the other proxy mode could not be removed");
    }
}

/// The rules have brought conntrack into the kernel, and its limits with it.
fn set_limits() {
    for failure in conntrack_limits::apply() {
        tracing::warn!(failure, "the kernel may forget connections to Services early");
    }
}

struct Watched {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    /// Pods that became endpoints since the last pass.
    unrouted: Arc<Mutex<Vec<String>>>,
}

pub fn start(config: Config, informers: &Informers, supervisor: &Supervisor) -> Proxy {
    let supervisor = supervisor.child("proxy");
    let mode = choose(config.mode);
    let watched = Watched {
        services: informers.of::<Service>(),
        slices: informers.of::<EndpointSlice>(),
        nodes: informers.of::<Node>(),
        unrouted: Arc::default(),
    };
    let changed = Arc::new(Notify::new());
    let health = Health::new(&config.node_name);
    wake_on_change(&watched, &config.node_name, &changed, &health);
    if let Some(address) = config.health_bind {
        supervisor.spawn("healthz", health.clone().serve(address, watched.nodes.clone()));
    }
    if let Some(address) = config.metrics_bind {
        supervisor.spawn("metrics", health.clone().serve_metrics(address, mode));
    }
    let recorder = EventRecorder::new(informers.client(), &supervisor, "kube-proxy", &config.node_name);
    recorder.event(&node_reference(&config.node_name), EventType::Normal, "Starting", "");
    let checks = HealthChecks::new(&supervisor, health.clone());
    let (synced, seen) = watch::channel(0);
    supervisor.spawn("sync", sync_forever(config, mode, watched, changed, health, checks, synced));
    Proxy { synced: seen, mode }
}

/// As Kubernetes' proxy says it: the node's name stands for its UID.
fn node_reference(name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..Default::default()
    }
}

fn wake_on_change(watched: &Watched, node_name: &str, changed: &Arc<Notify>, health: &Health) {
    let wake = || {
        let (changed, health) = (changed.clone(), health.clone());
        move || {
            health.queued();
            changed.notify_one();
        }
    };
    let on_service = wake();
    watched.services.on_change(move |_| on_service());
    let (on_slice, routed) = (wake(), watched.unrouted.clone());
    watched.slices.on_change(move |change| {
        routed.lock().extend(became_ready(change));
        on_slice();
    });
    let (on_node, name) = (wake(), node_name.to_owned());
    watched.nodes.on_change(move |change| {
        let zone = |node: Option<&Arc<Node>>| node.and_then(|node| zone_of(node));
        if change.object().metadata.name.as_deref() == Some(&name) && zone(change.old) != zone(change.new) {
            on_node();
        }
    });
}

/// The pods, `namespace/name`, that a change makes ready endpoints.
fn became_ready(change: &Change<'_, EndpointSlice>) -> Vec<String> {
    let pods = |slice: Option<&Arc<EndpointSlice>>| -> Vec<String> {
        let endpoints = slice.map(|slice| slice.endpoints.as_deref().unwrap_or_default()).unwrap_or_default();
        let ready = endpoints
            .iter()
            .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
        ready
            .filter_map(|endpoint| endpoint.target_ref.as_ref())
            .filter_map(|pod| Some(format!("{}/{}", pod.namespace.as_deref()?, pod.name.as_deref()?)))
            .collect()
    };
    let before = pods(change.old);
    pods(change.new).into_iter().filter(|pod| !before.contains(pod)).collect()
}

fn zone_of(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned()
}

async fn sync_forever(
    config: Config,
    mode: Mode,
    watched: Watched,
    changed: Arc<Notify>,
    health: Health,
    mut checks: HealthChecks,
    synced: watch::Sender<u64>,
) {
    // Half a list would tear down the rules of the other half.
    watched.services.synced().await;
    watched.slices.synced().await;
    let settings = Settings {
        cluster_cidr: config.cluster_cidr,
        node_port_nets: config.node_port_nets.clone(),
        served_here: config.dns_address,
        node_ip: config.node_ip,
    };
    let mut kernel = Kernel::new(mode);
    let mut first = true;
    let mut audits = Audits::new(AUDIT, Instant::now());
    let mut said: Option<String> = None;
    loop {
        let began = Instant::now();
        health.begun();
        let unrouted = std::mem::take(&mut *watched.unrouted.lock());
        let node = NodeView {
            name: config.node_name.clone(),
            zone: watched.nodes.get("", &config.node_name).and_then(|node| zone_of(&node)),
            served_here: config.dns_address,
        };
        let (services, slices) = (watched.services.list(), watched.slices.list());
        let pass_settings = settings.clone();
        let pass = tokio::task::spawn_blocking(move || {
            let rules = build(&services, &slices, &node);
            let outcome = kernel.write(&rules, &pass_settings);
            (kernel, rules, outcome)
        });
        let retry = match pass.await {
            Ok((returned, rules, outcome)) => {
                kernel = returned;
                checks.update(&rules.health_checks);
                match outcome {
                    Ok(()) => {
                        said = None;
                        health.succeeded();
                        for pod in &unrouted {
                            component::timeline(pod, "routed");
                        }
                        synced.send_modify(|count| *count += 1);
                        if std::mem::take(&mut first) {
                            // Only now: at no time is there neither. Nothing waits for it.
                            drop(tokio::task::spawn_blocking(move || {
                                remove_other(mode);
                                set_limits();
                            }));
                        }
                        None
                    }
                    Err(error) => {
                        let message = error.to_string();
                        if said.as_ref() != Some(&message) {
                            tracing::error!(%error, "Service rules could not be written; retrying");
                        }
                        said = Some(message);
                        Some(RETRY)
                    }
                }
            }
            Err(panic) => {
                tracing::error!(%panic, "building or writing Service rules panicked; retrying");
                kernel = Kernel::new(mode);
                Some(RETRY)
            }
        };
        // As long a rest as the work took, so that a burst is gathered and a single change is not.
        tokio::time::sleep(began.elapsed().min(LONGEST_PAUSE)).await;
        let pause = retry.unwrap_or_else(|| audits.pause(Instant::now()));
        // Either way there is another pass.
        let _ = tokio::time::timeout(pause, changed.notified()).await;
        if audits.is_due(Instant::now()) {
            let audited = tokio::task::spawn_blocking(move || {
                let outcome = kernel.audit();
                (kernel, outcome)
            });
            match audited.await {
                Ok((returned, outcome)) => {
                    kernel = returned;
                    if let Err(error) = outcome {
                        tracing::warn!(%error, "Service rules could not be audited");
                    }
                }
                Err(_) => kernel = Kernel::new(mode),
            }
        }
    }
}
