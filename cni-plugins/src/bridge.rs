//! `bridge`: a veth pair from the sandbox to a bridge of the host.
//!
//! Beside the reference plugin's options there is `routed`: the sandbox gets its address as a single
//! one and reaches everything, its neighbours on the bridge included, through the gateway. Then every
//! packet passes the host's IP hooks, with or without `br_netfilter`. A plugin that does not know the
//! option switches between neighbours, as is usual.

use std::net::IpAddr;

use netlink::{Address, BridgePort, IpNet, Link, LinkKind, Mac, Namespace, Rtnl, sysctl};
use serde::Deserialize;
use serde_json::Value;

use crate::Plugin;
use crate::interface::{self, Pair};
use crate::spec::{Call, Error, Interface, NetworkResult, Result, Route};
use crate::{ipam, masquerade};

pub const PLUGIN: Plugin = Plugin { add, delete, check, collect, status };

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    vlan: u16,
    routed: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bridge: "cni0".to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            port_isolation: false,
            vlan: 0,
            routed: false,
        }
    }
}

fn config(call: &Call) -> Result<Config> {
    let mut config: Config = call.config()?;
    if config.hairpin_mode && config.promisc_mode {
        return Err(Error::config("cannot set hairpin mode and promiscuous mode at the same time"));
    }
    if config.vlan != 0 {
        return Err(Error::unsupported_field("vlan is not supported by this bridge plugin; leave it out"));
    }
    config.is_gateway |= config.is_default_gateway;
    Ok(config)
}

fn add(call: &Call) -> Result<Value> {
    let config = config(call)?;
    let namespace = Namespace::open(&call.netns)?;
    let mut host = Rtnl::open()?;
    let mut inside = Rtnl::open_in(&namespace)?;
    let bridge = ensure_bridge(&mut host, &config)?;
    let mac = interface::requested_mac(call)?;
    let pair = interface::create_pair(&mut host, &mut inside, &namespace, call, config.mtu, mac)?;
    let made = finish(call, &config, &mut host, &mut inside, &namespace, &bridge, &pair);
    if made.is_err() {
        // The runtime will DEL too, but what this call made should not depend on it.
        let _ = host.delete_link(&pair.host_name);
    }
    made?.into_json(&call.version)
}

/// Everything after the pair exists; the caller removes the pair when this fails.
fn finish(
    call: &Call,
    config: &Config,
    host: &mut Rtnl,
    inside: &mut Rtnl,
    namespace: &Namespace,
    bridge: &Link,
    pair: &Pair,
) -> Result<NetworkResult> {
    let port = BridgePort { hairpin: config.hairpin_mode, isolated: config.port_isolation };
    host.attach_to_bridge(pair.host_index, bridge.index, port)?;
    let mut result =
        NetworkResult { interfaces: interfaces(call, bridge, pair, config.mtu), ..NetworkResult::default() };
    if ipam::kind(call).is_empty() {
        inside.set_up(pair.sandbox_index)?;
        return Ok(result);
    }
    let allocated = ipam::add(call)?;
    result.ips = allocated.ips;
    result.routes = allocated.routes;
    result.dns = allocated.dns;
    let outcome = connect(call, config, host, inside, namespace, bridge, pair, &mut result);
    if outcome.is_err() {
        let _ = ipam::delete(call);
    }
    outcome.map(|()| result)
}

#[allow(clippy::too_many_arguments, reason = "the parts of one attachment; a structure would only rename them")]
fn connect(
    call: &Call,
    config: &Config,
    host: &mut Rtnl,
    inside: &mut Rtnl,
    namespace: &Namespace,
    bridge: &Link,
    pair: &Pair,
    result: &mut NetworkResult,
) -> Result<()> {
    for ip in &mut result.ips {
        // the sandbox's end is the third interface of the result
        ip.interface = Some(2);
        if config.is_gateway && ip.gateway.is_none() {
            ip.gateway = first_address(ip.address);
        }
    }
    if config.is_default_gateway {
        add_default_routes(result);
    }
    if config.is_gateway {
        for ip in &result.ips {
            if let Some(gateway) = ip.gateway {
                ensure_gateway(host, bridge, IpNet::new(gateway, ip.address.prefix), config.force_address)?;
            }
        }
        interface::enable_forwarding(&result.ips)?;
    }
    if config.routed {
        for ip in &mut result.ips {
            ip.address = IpNet::host(ip.address.address);
        }
    }
    interface::configure(inside, namespace, pair.sandbox_index, &call.ifname, result)?;
    if config.ip_masq {
        masquerade::add(call, &result.ips)?;
    }
    Ok(())
}

fn interfaces(call: &Call, bridge: &Link, pair: &Pair, mtu: u32) -> Vec<Interface> {
    let mac = bridge.mac.map(|mac| mac.to_string()).unwrap_or_default();
    vec![
        Interface { name: bridge.name.clone(), mac, ..Interface::default() },
        Interface { name: pair.host_name.clone(), mac: pair.host_mac.clone(), mtu, sandbox: String::new() },
        Interface { name: call.ifname.clone(), mac: pair.sandbox_mac.clone(), mtu, sandbox: call.netns.clone() },
    ]
}

fn first_address(net: IpNet) -> Option<IpAddr> {
    match net.network().address {
        IpAddr::V4(address) => Some(IpAddr::V4(u32::from(address).checked_add(1)?.into())),
        IpAddr::V6(address) => Some(IpAddr::V6(u128::from(address).checked_add(1)?.into())),
    }
}

fn add_default_routes(result: &mut NetworkResult) {
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let text = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let Ok(dst) = text.parse::<IpNet>() else { continue };
        if !result.routes.iter().any(|route| route.dst == dst) {
            result.routes.push(Route { dst, gw: Some(gateway), mtu: 0, advmss: 0, priority: 0 });
        }
    }
}

/// Finds or makes the bridge, up and with its settings.
fn ensure_bridge(host: &mut Rtnl, config: &Config) -> Result<Link> {
    let link = match host.find_link(&config.bridge)? {
        Some(link) => link,
        None => create_bridge(host, config)?,
    };
    if link.kind != "bridge" {
        return Err(Error::config(format!("{} already exists but is not a bridge", config.bridge)));
    }
    if config.promisc_mode && !link.promiscuous {
        host.set_promiscuous(link.index, true)?;
    }
    if !link.up {
        host.set_up(link.index)?;
    }
    Ok(link)
}

fn create_bridge(host: &mut Rtnl, config: &Config) -> Result<Link> {
    // With an address of its own, a bridge does not take over its lowest port's: the gateway's
    // address in every sandbox's neighbour table stays right when ports come and go.
    let mac: Mac = interface::random_mac()?;
    match host.create_link(&config.bridge, &LinkKind::Bridge, config.mtu, Some(mac)) {
        Ok(()) => {}
        // Another call of the plugin was quicker.
        Err(error) if error.is_exists() => {}
        Err(error) => return Err(error.into()),
    }
    // Router advertisements on the bridge would give the host addresses of the pods' network.
    let _ = sysctl::write(&format!("net/ipv6/conf/{}/accept_ra", config.bridge), "0");
    Ok(host.link(&config.bridge)?)
}

fn ensure_gateway(host: &mut Rtnl, bridge: &Link, wanted: IpNet, force: bool) -> Result<()> {
    let address = Address::new(bridge.index, wanted);
    match host.add_address(&address) {
        Ok(()) => {}
        Err(error) if error.is_exists() => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let same_family = |found: &Address| found.net.address.is_ipv4() == wanted.address.is_ipv4();
    for found in host.addresses_of(bridge.index)?.iter().filter(|found| same_family(found) && found.net != wanted) {
        let overlapping = found.net.contains(wanted.address) || wanted.contains(found.net.address);
        if !overlapping || found.net.network().to_string().starts_with("fe80") {
            continue;
        }
        if !force {
            host.delete_address(&address)?;
            return Err(Error::internal(format!(
                "{:?} already has an IP address different from {wanted}: {}; set forceAddress to replace it",
                bridge.name, found.net
            )));
        }
        host.delete_address(found)?;
    }
    Ok(())
}

fn delete(call: &Call) -> Result<()> {
    let config = config(call)?;
    ipam::delete(call)?;
    interface::remove(call)?;
    if config.ip_masq {
        masquerade::remove(call)?;
    }
    Ok(())
}

fn check(call: &Call) -> Result<()> {
    let config = config(call)?;
    let previous = call.required_previous()?;
    ipam::check(call)?;
    interface::verify(call, &previous)?;
    let mut host = Rtnl::open()?;
    let bridge = host.link(&config.bridge)?;
    let ports: Vec<Link> = host.links()?.into_iter().filter(|link| link.master == Some(bridge.index)).collect();
    let on_bridge = |each: &&Interface| ports.iter().any(|port| port.name == each.name);
    if previous.interfaces.iter().filter(|each| each.sandbox.is_empty()).find(on_bridge).is_none() {
        return Err(Error::internal(format!("no interface of prevResult is a port of {}", config.bridge)));
    }
    Ok(())
}

fn collect(call: &Call) -> Result<()> {
    let config = config(call)?;
    ipam::collect(call)?;
    if config.ip_masq {
        masquerade::collect(call)?;
    }
    Ok(())
}

fn status(call: &Call) -> Result<()> {
    config(call).map_err(|error| Error::unavailable(error.message))?;
    ipam::status(call)
}
