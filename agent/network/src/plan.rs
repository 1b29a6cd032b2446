//! What the pod network of this node should be. Pure.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::Node;
use netlink::{IpNet, Mac};

use crate::Config;

/// Bytes that VXLAN adds in front of a packet.
const VXLAN_OVERHEAD: u32 = 50;

/// How packets reach the pods of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Plain routes to nodes on this node's link, VXLAN to the others.
    #[default]
    Auto,
    /// Plain routes only; the network between the nodes must know the pods' prefixes where nodes
    /// share no link.
    Route,
    /// VXLAN to every node.
    Vxlan,
    /// Somebody else's CNI configuration: nothing is written and no link is made.
    None,
}

/// What matters of a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub address: Ipv4Addr,
    pub pods: IpNet,
}

/// The link that carries the node's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub index: u32,
    pub mtu: u32,
    /// The node's address with its prefix.
    pub net: IpNet,
}

/// What should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub uplink: u32,
    pub pods: IpNet,
    pub gateway: Ipv4Addr,
    pub mtu: u32,
    pub cluster: IpNet,
    pub services: IpNet,
    pub node_ip: Ipv4Addr,
    /// By plain route: prefix and the node's address.
    pub routed: Vec<Peer>,
    pub vxlan: Option<Vxlan>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    pub id: u32,
    pub port: u16,
    pub local: Ipv4Addr,
    pub mac: Mac,
    pub mtu: u32,
    pub peers: Vec<Peer>,
}

/// The hardware address of the VXLAN end of the node that owns a pod prefix. Derived, so that
/// nodes need not tell each other.
pub fn vtep_mac(pods: IpNet) -> Mac {
    match pods.network().address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            Mac([0x0e, 0x58, a, b, c, d])
        }
        // Pod prefixes are IPv4 here; see `peer`.
        IpAddr::V6(_) => Mac([0x0e, 0x58, 0, 0, 0, 0]),
    }
}

/// The gateway's address on the bridge: the first of the prefix.
pub fn gateway(pods: IpNet) -> Option<Ipv4Addr> {
    match pods.network().address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(Ipv4Addr::from),
        IpAddr::V6(_) => None,
    }
}

/// None for a node without an IPv4 pod prefix or an internal address.
pub fn peer(node: &Node) -> Option<Peer> {
    let spec = node.spec.as_ref()?;
    let prefixes = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let pods = prefixes.filter_map(|text| text.parse::<IpNet>().ok()).find(|net| net.address.is_ipv4())?;
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let address = addresses
        .into_iter()
        .flatten()
        .filter(|address| address.type_ == "InternalIP")
        .find_map(|address| address.address.parse().ok());
    let name = node.metadata.name.clone()?;
    // This node's own address comes from its configuration, and may not be in its status yet.
    Some(Peer { name, address: address.unwrap_or(Ipv4Addr::UNSPECIFIED), pods })
}

/// Whether a change of a Node can change a plan. Heartbeats do not.
pub fn matters(old: Option<&Node>, new: Option<&Node>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => peer(old) != peer(new),
        _ => true,
    }
}

/// The nodes on the link of a machine that is none itself: those it can route to.
pub fn neighbours(own: Ipv4Addr, uplink: &Uplink, peers: impl IntoIterator<Item = Peer>) -> Vec<Peer> {
    let reached = |peer: &Peer| peer.address != own && uplink.net.contains(peer.address.into());
    peers.into_iter().filter(reached).collect()
}

/// None until this node has its pod prefix.
pub fn plan(config: &Config, uplink: &Uplink, peers: impl IntoIterator<Item = Peer>) -> Option<Plan> {
    let (own, mut others): (Vec<Peer>, Vec<Peer>) = peers.into_iter().partition(|peer| peer.name == config.node_name);
    let pods = own.first()?.pods.network();
    others
        .retain(|peer| !peer.address.is_unspecified() && peer.address != config.node_ip && peer.pods.network() != pods);
    others.sort_by(|a, b| a.name.cmp(&b.name));
    let on_link = |peer: &Peer| match config.backend {
        Backend::Vxlan => false,
        Backend::Route | Backend::None => true,
        Backend::Auto => uplink.net.contains(peer.address.into()),
    };
    let (routed, tunnelled): (Vec<Peer>, Vec<Peer>) = others.into_iter().partition(on_link);
    let tunnel_mtu = uplink.mtu.saturating_sub(VXLAN_OVERHEAD);
    let needs_tunnel = config.backend == Backend::Vxlan || !tunnelled.is_empty();
    let vxlan = needs_tunnel.then(|| Vxlan {
        id: config.vxlan_id,
        port: config.vxlan_port,
        local: config.node_ip,
        mac: vtep_mac(pods),
        mtu: tunnel_mtu,
        peers: tunnelled,
    });
    let mtu = match config.mtu {
        0 if vxlan.is_some() => tunnel_mtu,
        0 => uplink.mtu,
        mtu => mtu,
    };
    Some(Plan {
        uplink: uplink.index,
        pods,
        gateway: gateway(pods)?,
        mtu,
        cluster: config.cluster_cidr,
        services: config.service_cidr,
        node_ip: config.node_ip,
        routed,
        vxlan,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, address: &str, pods: &str) -> Peer {
        Peer { name: name.into(), address: address.parse().unwrap(), pods: pods.parse().unwrap() }
    }

    fn uplink() -> Uplink {
        Uplink { index: 2, mtu: 1500, net: "192.0.2.1/24".parse().unwrap() }
    }

    #[test]
    fn a_machine_that_is_no_node_routes_to_the_nodes_on_its_link() {
        let peers = [
            peer("a", "192.0.2.1", "10.42.0.0/24"),
            peer("b", "192.0.2.2", "10.42.1.0/24"),
            peer("far", "198.51.100.2", "10.42.2.0/24"),
            peer("new", "0.0.0.0", "10.42.3.0/24"),
        ];
        let found = neighbours("192.0.2.1".parse().unwrap(), &uplink(), peers);
        assert_eq!(found.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn nodes_on_the_link_are_routed_and_others_tunnelled() {
        let own = peer("a", "192.0.2.1", "10.42.0.0/24");
        let near = peer("b", "192.0.2.2", "10.42.1.0/24");
        let far = peer("c", "198.51.100.3", "10.42.2.0/24");
        let all = || [own.clone(), far.clone(), near.clone()];
        // backend, routed, tunnelled, mtu of pods
        type Case<'a> = (Backend, &'a [&'a Peer], Option<&'a [&'a Peer]>, u32);
        let cases: &[Case<'_>] = &[
            (Backend::Auto, &[&near], Some(&[&far]), 1450),
            (Backend::Route, &[&near, &far], None, 1500),
            (Backend::Vxlan, &[], Some(&[&near, &far]), 1450),
        ];
        for (backend, routed, tunnelled, mtu) in cases {
            let config = Config { backend: *backend, ..Config::new("a", "192.0.2.1".parse().unwrap()) };
            let plan = plan(&config, &uplink(), all()).unwrap();
            assert_eq!(plan.routed.iter().collect::<Vec<_>>(), *routed, "{backend:?}");
            let peers = plan.vxlan.as_ref().map(|vxlan| vxlan.peers.iter().collect::<Vec<_>>());
            assert_eq!(peers.as_deref(), *tunnelled, "{backend:?}");
            assert_eq!((plan.mtu, plan.gateway), (*mtu, "10.42.0.1".parse().unwrap()));
        }
    }

    #[test]
    fn nothing_is_planned_without_a_pod_prefix_or_for_nodes_without_an_address() {
        let config = Config::new("a", "192.0.2.1".parse().unwrap());
        assert_eq!(plan(&config, &uplink(), [peer("b", "192.0.2.2", "10.42.1.0/24")]), None);
        let own = peer("a", "0.0.0.0", "10.42.0.0/24");
        let unknown = peer("b", "0.0.0.0", "10.42.1.0/24");
        let plan = plan(&config, &uplink(), [own, unknown]).unwrap();
        assert!(plan.routed.is_empty() && plan.vxlan.is_none());
    }
}
