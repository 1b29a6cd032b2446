//! Services on this node.
//!
//! Layer: node, beside `network` and `dns`; below `agent`. It knows the cluster only through the
//! informers and the kernel through `netlink` (or `iptables-restore`).
//!
//! - [`rules`]: (Services, EndpointSlices, this node) → [`model::Rules`], pure.
//! - [`nftables`] and [`iptables`]: two writers of the same rules.
//! - [`conntrack`]: ends UDP flows that the new rules would not have made; [`conntrack_limits`]: how long
//!   the kernel remembers connections.
//! - [`health`]: what load balancers and people ask over HTTP.
//!
//! A change of an endpoint becomes a rule as soon as it is seen; only when changes come faster than
//! the kernel takes them are they gathered.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

mod base;
mod conntrack;
mod conntrack_limits;
mod health;
pub mod iptables;
mod kernel;
pub mod model;
mod names;
pub mod nftables;
pub mod rules;
#[cfg(test)]
mod trace;

use std::net::{Ipv4Addr, SocketAddr};

use component::{Informers, Supervisor};
use netlink::IpNet;

pub use base::Proxy;
pub use kernel::Kernel;

/// Where Kubernetes' own proxy answers health checks.
pub const HEALTH_PORT: u16 = 10256;
/// Where it tells people of the node about itself.
pub const METRICS_PORT: u16 = 10249;

/// Which writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// nf_tables where the kernel has it, else iptables.
    #[default]
    Auto,
    Nftables,
    Iptables,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "auto" => Ok(Self::Auto),
            "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            other => Err(format!("unknown proxy mode {other:?}; choose auto, nftables or iptables")),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Config {
    pub mode: Mode,
    pub node_name: String,
    /// The node's own address, where it is known.
    pub node_ip: Option<Ipv4Addr>,
    /// The pods of all nodes: packets from elsewhere to a cluster IP are masqueraded.
    pub cluster_cidr: IpNet,
    /// Prefixes of this node's addresses on which node ports are served; empty for all but loopback.
    pub node_port_nets: Vec<IpNet>,
    /// For `/healthz` and `/livez`; none to serve neither.
    pub health_bind: Option<SocketAddr>,
    /// For `/proxyMode`, `/metrics` and another `/healthz`; none to serve none of them.
    pub metrics_bind: Option<SocketAddr>,
    /// The cluster DNS address, where the node itself answers it.
    pub dns_address: Option<Ipv4Addr>,
}

impl Config {
    /// The defaults of DESIGN.md for everything that is not this node's own.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            mode: Mode::Auto,
            node_name: node_name.into(),
            node_ip: None,
            cluster_cidr: IpNet::new(Ipv4Addr::new(10, 42, 0, 0).into(), 16),
            node_port_nets: Vec::new(),
            health_bind: Some(SocketAddr::from(([0, 0, 0, 0], HEALTH_PORT))),
            metrics_bind: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT))),
            dns_address: Some(Ipv4Addr::new(10, 43, 0, 10)),
        }
    }
}

/// What the writers need to know besides the rules.
#[derive(Debug, Clone)]
pub struct Settings {
    pub cluster_cidr: IpNet,
    pub node_port_nets: Vec<IpNet>,
    pub served_here: Option<Ipv4Addr>,
    pub node_ip: Option<Ipv4Addr>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Netlink(#[from] netlink::Error),
    #[error("run {program}: {source}; install iptables or use proxy mode nftables")]
    Spawn { program: &'static str, source: std::io::Error },
    #[error("{program} refused the Service rules ({status}): {message}")]
    Refused { program: &'static str, status: std::process::ExitStatus, message: String },
}

/// Starts keeping the kernel's rules in step with the cluster's Services.
pub fn start(config: Config, informers: Informers, supervisor: &Supervisor) -> Proxy {
    base::start(config, &informers, supervisor)
}

/// Removes every rule of either writer from this network namespace. Goes on after a failure and
/// returns all of them.
pub fn cleanup() -> Vec<String> {
    let tables = netlink::nft::Nft::open().and_then(|mut nft| nft.delete_table(&nftables::table()));
    let mut failures: Vec<String> =
        tables.err().into_iter().filter(|error| !error.is_missing()).map(|error| error.to_string()).collect();
    if let Err(error) = iptables::remove() {
        failures.push(error.to_string());
    }
    failures
}
