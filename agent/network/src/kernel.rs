//! Makes the kernel agree with a plan: bridge, routes, VXLAN.

use std::net::{IpAddr, Ipv4Addr};

use netlink::message::Attributes;
use netlink::{
    Address, ForwardingEntry, IpNet, Link, LinkKind, Mac, Neighbour, PROTOCOL_SKIFF, Route, RouteScope, Rtnl, sysctl,
};

use crate::plan::{Peer, Plan, Uplink, Vxlan, vtep_mac};
use crate::{BRIDGE, Error, VXLAN, masquerade};

/// IFLA_VXLAN_LOCAL: the address that a VXLAN link sends from.
const VXLAN_LOCAL: u16 = 4;

/// The link that holds the node's address.
pub fn uplink(node_ip: Ipv4Addr) -> Result<Uplink, Error> {
    let mut rtnl = Rtnl::open()?;
    let address = rtnl.addresses()?.into_iter().find(|address| address.net.address == IpAddr::V4(node_ip));
    let address = address.ok_or(Error::NoSuchNodeAddress { address: node_ip })?;
    let link = rtnl.link_at(address.link)?;
    Ok(Uplink { index: link.index, mtu: link.mtu, net: address.net })
}

pub fn apply(plan: &Plan) -> Result<(), Error> {
    let mut rtnl = Rtnl::open()?;
    sysctl::ensure("net/ipv4/ip_forward", "1")?;
    let bridge = ensure_bridge(&mut rtnl, plan)?;
    let tunnel = match &plan.vxlan {
        Some(vxlan) => Some(ensure_vxlan(&mut rtnl, plan, vxlan)?),
        None => {
            remove_link(&mut rtnl, VXLAN)?;
            None
        }
    };
    sync_routes(&mut rtnl, &routes(plan, bridge, tunnel.as_ref().map(|link| link.index)))?;
    masquerade::apply(plan)
}

/// Routes to these nodes' pods and no others, unless a node keeps its own here.
pub fn apply_routes(uplink: &Uplink, peers: &[Peer]) -> Result<(), Error> {
    let mut rtnl = Rtnl::open()?;
    if rtnl.find_link(BRIDGE)?.is_some() {
        return Ok(());
    }
    let routes: Vec<Route> = peers.iter().map(|peer| marked(route_to(peer, uplink.index))).collect();
    sync_routes(&mut rtnl, &routes)
}

fn route_to(peer: &Peer, link: u32) -> Route {
    Route::via(peer.pods.network(), peer.address.into(), link)
}

/// A route through a gateway, with the mark of who made it.
fn marked(mut route: Route) -> Route {
    route.protocol = PROTOCOL_SKIFF;
    route.onlink = true;
    route
}

fn remove_link(rtnl: &mut Rtnl, name: &str) -> Result<(), Error> {
    match rtnl.delete_link(name) {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

fn ensure_bridge(rtnl: &mut Rtnl, plan: &Plan) -> Result<u32, Error> {
    let [a, b, c, d] = plan.gateway.octets();
    let mac = Mac([0x0a, 0x58, a, b, c, d]);
    let bridge = match rtnl.find_link(BRIDGE)? {
        Some(link) => link,
        None => {
            rtnl.create_link(BRIDGE, &LinkKind::Bridge, plan.mtu, Some(mac))?;
            rtnl.link(BRIDGE)?
        }
    };
    let gateway = IpNet::new(plan.gateway.into(), plan.pods.prefix);
    let addresses = rtnl.addresses_of(bridge.index)?;
    for old in addresses.iter().filter(|old| old.net.address.is_ipv4() && old.net != gateway) {
        rtnl.delete_address(old)?;
    }
    if !addresses.iter().any(|address| address.net == gateway) {
        rtnl.add_address(&Address::new(bridge.index, gateway))?;
    }
    if bridge.mtu != plan.mtu {
        rtnl.set_mtu(bridge.index, plan.mtu)?;
    }
    if !bridge.up {
        rtnl.set_up(bridge.index)?;
    }
    keep_neighbours_routed()?;
    Ok(bridge.index)
}

/// Pods send everything to the gateway, also what is for their neighbours. It must not tell them of
/// a shorter way.
fn keep_neighbours_routed() -> Result<(), Error> {
    // Redirects are sent when either this or the interface's own switch is on.
    sysctl::ensure("net/ipv4/conf/all/send_redirects", "0")?;
    Ok(sysctl::ensure(&format!("net/ipv4/conf/{BRIDGE}/send_redirects"), "0")?)
}

fn ensure_vxlan(rtnl: &mut Rtnl, plan: &Plan, vxlan: &Vxlan) -> Result<Link, Error> {
    let fits = |link: &Link| {
        link.vxlan_id() == Some(vxlan.id)
            && link.vxlan_port() == Some(vxlan.port)
            && Attributes(&link.data).get(VXLAN_LOCAL) == Some(&vxlan.local.octets()[..])
            && link.mac == Some(vxlan.mac)
            && link.parent.is_none_or(|parent| parent == plan.uplink)
    };
    let link = match rtnl.find_link(VXLAN)? {
        Some(link) if fits(&link) => link,
        found => {
            if found.is_some() {
                remove_link(rtnl, VXLAN)?;
            }
            let kind = LinkKind::Vxlan { id: vxlan.id, port: vxlan.port, local: vxlan.local, device: plan.uplink };
            rtnl.create_link(VXLAN, &kind, vxlan.mtu, Some(vxlan.mac))?;
            rtnl.link(VXLAN)?
        }
    };
    let own = IpNet::host(plan.pods.network().address);
    if !rtnl.addresses_of(link.index)?.iter().any(|address| address.net == own) {
        rtnl.add_address(&Address::new(link.index, own))?;
    }
    if link.mtu != vxlan.mtu {
        rtnl.set_mtu(link.index, vxlan.mtu)?;
    }
    if !link.up {
        rtnl.set_up(link.index)?;
    }
    sync_peers(rtnl, link.index, &vxlan.peers)?;
    Ok(link)
}

/// The neighbour and forwarding entries of a VXLAN link: exactly the peers'.
fn sync_peers(rtnl: &mut Rtnl, link: u32, peers: &[Peer]) -> Result<(), Error> {
    let neighbours: Vec<Neighbour> = peers
        .iter()
        .map(|peer| Neighbour { link, address: peer.pods.network().address, mac: vtep_mac(peer.pods) })
        .collect();
    let entries: Vec<ForwardingEntry> = peers
        .iter()
        .map(|peer| ForwardingEntry { link, mac: vtep_mac(peer.pods), remote: peer.address.into() })
        .collect();
    for old in rtnl.forwarding(link)?.iter().filter(|old| !entries.contains(old)) {
        rtnl.delete_forwarding(old)?;
    }
    for old in rtnl.neighbours(link)?.iter().filter(|old| old.address.is_ipv4() && !neighbours.contains(old)) {
        rtnl.delete_neighbour(old)?;
    }
    for entry in &entries {
        rtnl.replace_forwarding(entry)?;
    }
    for neighbour in &neighbours {
        rtnl.replace_neighbour(neighbour)?;
    }
    Ok(())
}

/// Routes to the other nodes' pods and to the cluster IPs, marked as ours by their protocol.
fn routes(plan: &Plan, bridge: u32, tunnel: Option<u32>) -> Vec<Route> {
    let direct = plan.routed.iter().map(|peer| marked(route_to(peer, plan.uplink)));
    let tunnelled =
        plan.vxlan.iter().flat_map(|vxlan| &vxlan.peers).zip(std::iter::repeat(tunnel)).filter_map(|(peer, link)| {
            Some(marked(Route::via(peer.pods.network(), peer.pods.network().address, link?)))
        });
    let mut services = Route::direct(plan.services.network(), bridge, RouteScope::Link);
    services.source = Some(plan.node_ip.into());
    services.protocol = PROTOCOL_SKIFF;
    direct.chain(tunnelled).chain([services]).collect()
}

fn sync_routes(rtnl: &mut Rtnl, wanted: &[Route]) -> Result<(), Error> {
    let found: Vec<Route> = rtnl.routes()?.into_iter().filter(|route| route.protocol == PROTOCOL_SKIFF).collect();
    for route in wanted.iter().filter(|route| !found.contains(route)) {
        rtnl.replace_route(route)?;
    }
    for old in found.iter().filter(|old| !wanted.iter().any(|route| route.destination == old.destination)) {
        match rtnl.delete_route(old) {
            Err(error) if !error.is_missing() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
