//! Cluster DNS, answered on the node itself.
//!
//! Layer: node, beside `network` and `proxy`; below `agent`. Names of the cluster's domain come from
//! the node's own informers, everything else is forwarded to the host's resolvers.
//!
//! - [`index`]: Services, their endpoints and namespaces as names need them, kept current by the informers.
//! - [`zone`]: (index, question) → answer, pure; the names are those of the Kubernetes DNS
//!   specification 1.1.0.
//! - [`forward`]: the rest of the world: upstream servers, a cache, one query for many askers.
//! - [`server`]: UDP and TCP, message sizes, truncation.
//! - [`address`]: the cluster DNS address on this node's loopback interface.
//!
//! The address is one of the node's own, so a query from a pod is delivered, not translated, and the
//! rules of [`address`] keep conntrack out of it.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

mod address;
pub mod forward;
pub mod index;
mod server;
pub mod zone;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use component::{Informers, Supervisor};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use netlink::IpNet;
use parking_lot::RwLock;
use tokio::sync::watch;

pub use address::cleanup;

#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster DNS address; it is put on this node's loopback interface.
    pub address: Ipv4Addr,
    pub port: u16,
    /// The cluster's domain, without a dot at its end.
    pub domain: String,
    /// Where the host's resolvers are named.
    pub resolv_conf: PathBuf,
    /// Prefixes whose reverse names are the cluster's alone: pods and Services.
    pub reverse_nets: Vec<IpNet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::new(10, 43, 0, 10),
            port: 53,
            domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            reverse_nets: vec![
                IpNet::new(Ipv4Addr::new(10, 42, 0, 0).into(), 16),
                IpNet::new(Ipv4Addr::new(10, 43, 0, 0).into(), 16),
            ],
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Netlink(#[from] netlink::Error),
    #[error("listen on {address} for DNS: {source}; another DNS server may have that address and port")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("cluster domain {domain:?} is not a DNS name: {message}")]
    Domain { domain: String, message: String },
}

/// The running DNS server. Cloning shares it.
#[derive(Clone)]
pub struct Dns {
    listening: watch::Receiver<bool>,
}

impl Dns {
    /// Returns once queries are taken and the cluster's names are known.
    pub async fn ready(&self) {
        let mut listening = self.listening.clone();
        if listening.wait_for(|ready| *ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A failed start is tried again this often.
const RETRY: Duration = Duration::from_secs(1);
/// Whether the address is still there is looked at this often.
const AUDIT: Duration = Duration::from_secs(30);

/// Starts answering. Returns at once; see [`Dns::ready`].
pub fn start(config: Config, informers: Informers, supervisor: &Supervisor) -> Dns {
    let supervisor = supervisor.child("dns");
    let index = Arc::new(RwLock::new(index::Index::default()));
    let services = informers.of::<Service>();
    let slices = informers.of::<EndpointSlice>();
    let namespaces = informers.of::<Namespace>();
    let shared = index.clone();
    services.on_change(move |change| match change.new {
        Some(service) => shared.write().apply_service(service),
        None => shared.write().remove_service(change.object()),
    });
    let shared = index.clone();
    slices.on_change(move |change| {
        shared.write().change_slice(change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref));
    });
    let shared = index.clone();
    namespaces.on_change(move |change| match change.new {
        Some(namespace) => shared.write().apply_namespace(namespace),
        None => shared.write().remove_namespace(change.object()),
    });
    let (listening, seen) = watch::channel(false);
    let tasks = supervisor.clone();
    supervisor.spawn("start", async move {
        while let Err(error) = listen(&config, index.clone(), &tasks).await {
            tracing::warn!(%error, "cluster DNS cannot start yet; retrying");
            tokio::time::sleep(RETRY).await;
        }
        services.synced().await;
        slices.synced().await;
        namespaces.synced().await;
        index.write().complete = true;
        listening.send_replace(true);
        // Whoever waits sees the value as long as this task lives.
        loop {
            tokio::time::sleep(AUDIT).await;
            // Who configures the loopback interface anew may take it away. What listens on it stays.
            if let Err(error) = address::put(config.address) {
                tracing::warn!(%error, "the cluster DNS address cannot be put on this node");
            }
        }
    });
    Dns { listening: seen }
}

async fn listen(config: &Config, index: Arc<RwLock<index::Index>>, supervisor: &Supervisor) -> Result<(), Error> {
    let zone = zone::Zone::new(config)?;
    let address = config.address;
    // Netlink takes microseconds; nothing else is waiting on this thread at start.
    address::ensure(address)?;
    let socket = SocketAddr::new(IpAddr::V4(address), config.port);
    let forwarder = forward::Forwarder::new(config.resolv_conf.clone(), address.into());
    server::Server::new(zone, index, forwarder).listen(socket, supervisor).await
}
