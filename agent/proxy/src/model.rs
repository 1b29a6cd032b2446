//! What the kernel should do with packets to Services, independent of how it is told.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use netlink::IpNet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// None for a protocol that Services cannot have.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// One port of one Service. Displayed as kube-proxy does: `namespace/name:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    pub namespace: String,
    pub service: String,
    /// Empty for a Service's only, unnamed port.
    pub port: String,
    pub protocol: Protocol,
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if self.port.is_empty() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: Ipv4Addr,
    pub port: u16,
    /// On this node.
    pub local: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

/// Everything about one port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub cluster_ip: Ipv4Addr,
    pub port: u16,
    pub node_port: Option<u16>,
    /// `externalIPs` and the load balancer's addresses.
    pub external_ips: Vec<Ipv4Addr>,
    pub load_balancer_ips: Vec<Ipv4Addr>,
    /// Who may use the load balancer's addresses; empty for everyone.
    pub source_ranges: Vec<IpNet>,
    /// Clients stick to their endpoint for this long after the last new connection.
    pub affinity: Option<Duration>,
    pub internal_local: bool,
    pub external_local: bool,
    /// For traffic under policy Cluster: after topology, and terminating ones when there is nothing
    /// better.
    pub cluster_endpoints: Vec<Endpoint>,
    /// For traffic under policy Local.
    pub local_endpoints: Vec<Endpoint>,
    /// Some endpoint somewhere can be used: a Local policy without local endpoints drops then,
    /// rather than rejecting.
    pub usable_elsewhere: bool,
    /// Of a UDP port, every endpoint that serves, whatever policies and hints make of it and whether it
    /// terminates: flows that it has go on, as TCP connections do.
    pub serving_endpoints: Vec<Endpoint>,
}

impl ServicePort {
    /// For packets from inside to the cluster IP.
    pub fn internal_endpoints(&self) -> &[Endpoint] {
        if self.internal_local { &self.local_endpoints } else { &self.cluster_endpoints }
    }

    /// For packets from outside to node ports and external addresses.
    pub fn outside_endpoints(&self) -> &[Endpoint] {
        if self.external_local { &self.local_endpoints } else { &self.cluster_endpoints }
    }

    pub fn has_outside(&self) -> bool {
        self.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    /// Every address that is not the cluster's own.
    pub fn outside_ips(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.external_ips.iter().chain(&self.load_balancer_ips).copied()
    }

    /// From where the load balancer's addresses may be used, if not from everywhere. They may be `node`'s own, as
    /// kube-vip makes them: what it sends to one of them itself then has that as its source.
    pub fn allowed_sources(&self, node: Option<Ipv4Addr>) -> Vec<IpNet> {
        let mut allowed = self.source_ranges.clone();
        if node.is_some_and(|node| self.source_ranges.iter().any(|range| range.contains(node.into()))) {
            allowed.extend(self.load_balancer_ips.iter().map(|address| IpNet::host((*address).into())));
        }
        allowed
    }

    /// All endpoints that some rule leads to, each once.
    pub fn all_endpoints(&self) -> Vec<&Endpoint> {
        let mut all: Vec<&Endpoint> = self.cluster_endpoints.iter().collect();
        if self.internal_local || self.external_local {
            all.extend(&self.local_endpoints);
        }
        all.sort();
        all.dedup();
        all
    }
}

/// What a load balancer's health check asks this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub namespace: String,
    pub service: String,
    /// Ready ones; those that terminate serve on, but a balancer is to send no more.
    pub local_endpoints: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub ports: BTreeMap<PortName, ServicePort>,
    /// By node port.
    pub health_checks: BTreeMap<u16, HealthCheck>,
}
