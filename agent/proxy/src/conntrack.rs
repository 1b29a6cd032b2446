//! UDP flows that still go where no rule leads any more.
//!
//! A translation is decided once per flow. A UDP client that keeps its port keeps its flow, so an
//! endpoint's end, or a Service's first endpoint, must end the flows that were decided before. Whatever
//! else changes for new flows, those of an endpoint that serves stay with it.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use netlink::conntrack::{Conntrack, Flow};

use crate::model::{Protocol, Rules};

type Target = (Ipv4Addr, u16);

/// Where UDP packets go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UdpTable {
    addresses: HashMap<Target, HashSet<Target>>,
    node_ports: HashMap<u16, HashSet<Target>>,
}

impl UdpTable {
    pub fn new(rules: &Rules) -> Self {
        let mut table = Self::default();
        for (_, port) in rules.ports.iter().filter(|(name, _)| name.protocol == Protocol::Udp) {
            let endpoints: HashSet<Target> =
                port.serving_endpoints.iter().map(|endpoint| (endpoint.address, endpoint.port)).collect();
            for address in port.outside_ips().chain([port.cluster_ip]) {
                table.addresses.insert((address, port.port), endpoints.clone());
            }
            if let Some(node_port) = port.node_port {
                table.node_ports.insert(node_port, endpoints);
            }
        }
        table
    }

    /// Whether a flow was decided by rules that are no more. `old` is the table before.
    fn is_stale(&self, old: &Self, flow: &Flow) -> bool {
        let (IpAddr::V4(destination), IpAddr::V4(answerer)) = (flow.original.destination, flow.reply.source) else {
            return false;
        };
        let service = (destination, flow.original.destination_port);
        let endpoint = (answerer, flow.reply.source_port);
        if let Some(endpoints) = self.addresses.get(&service) {
            // Untranslated flows began before the Service had an endpoint.
            return !endpoints.contains(&endpoint) && (flow.is_destination_nat() || !endpoints.is_empty());
        }
        if old.addresses.get(&service).is_some_and(|endpoints| endpoints.contains(&endpoint)) {
            return true;
        }
        let port = flow.original.destination_port;
        match self.node_ports.get(&port) {
            // Also one of an endpoint that went while no proxy ran. Any host may have the port: an untranslated
            // flow is only taken for one that began before the Service if nobody has answered it.
            Some(endpoints) => {
                let before_service = !endpoints.is_empty() && !flow.is_answered();
                !endpoints.contains(&endpoint) && (flow.is_destination_nat() || before_service)
            }
            None => {
                let was = old.node_ports.get(&port).is_some_and(|endpoints| endpoints.contains(&endpoint));
                flow.is_destination_nat() && was
            }
        }
    }

    /// Deletes stale flows; returns how many.
    pub fn reconcile(&self, old: &Self) -> netlink::Result<usize> {
        if self.addresses.is_empty() && old.addresses.is_empty() {
            return Ok(0);
        }
        Conntrack::open()?.delete_matching(Protocol::Udp.number(), |flow| self.is_stale(old, flow))
    }
}
