//! `ptp`: a veth pair between sandbox and host, routed, without a bridge.

use std::net::IpAddr;

use netlink::{Address, IpNet, Namespace, RouteScope, Rtnl};
use serde::Deserialize;
use serde_json::Value;

use crate::interface::{self, Pair};
use crate::spec::{Call, Error, Interface, Ip, NetworkResult, Result};
use crate::{Plugin, ipam, masquerade};

pub const PLUGIN: Plugin = Plugin { add, delete, check, collect, status: ipam::status };

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    ip_masq: bool,
    mtu: u32,
}

fn add(call: &Call) -> Result<Value> {
    let config: Config = call.config()?;
    let mut result = ipam::add(call)?;
    let outcome = attach(call, &config, &mut result);
    if outcome.is_err() {
        let _ = ipam::delete(call);
    }
    outcome?;
    result.into_json(&call.version)
}

fn attach(call: &Call, config: &Config, result: &mut NetworkResult) -> Result<()> {
    let namespace = Namespace::open(&call.netns)?;
    let mut host = Rtnl::open()?;
    let mut inside = Rtnl::open_in(&namespace)?;
    let mac = interface::requested_mac(call)?;
    let pair = interface::create_pair(&mut host, &mut inside, &namespace, call, config.mtu, mac)?;
    result.interfaces = vec![
        Interface { name: pair.host_name.clone(), mac: pair.host_mac.clone(), ..Interface::default() },
        Interface {
            name: call.ifname.clone(),
            mac: pair.sandbox_mac.clone(),
            mtu: config.mtu,
            sandbox: call.netns.clone(),
        },
    ];
    for ip in &mut result.ips {
        ip.interface = Some(1);
    }
    let connected = connect(call, config, &mut host, &mut inside, &pair, result);
    if connected.is_err() {
        let _ = host.delete_link(&pair.host_name);
    }
    connected
}

fn gateway(ip: &Ip) -> Result<IpAddr> {
    ip.gateway.ok_or_else(|| Error::config("ptp needs a gateway for every address; set it in ipam"))
}

fn connect(
    call: &Call,
    config: &Config,
    host: &mut Rtnl,
    inside: &mut Rtnl,
    pair: &Pair,
    result: &NetworkResult,
) -> Result<()> {
    host.set_up(pair.host_index)?;
    interface::enable_forwarding(&result.ips)?;
    inside.set_up(pair.sandbox_index)?;
    for ip in &result.ips {
        let gateway = gateway(ip)?;
        // Nothing is on the link but the gateway: the subnet is reached through it.
        inside.add_address(&Address::new(pair.sandbox_index, IpNet::host(ip.address.address)))?;
        inside.add_route(&netlink::Route::direct(IpNet::host(gateway), pair.sandbox_index, RouteScope::Link))?;
        let subnet = netlink::Route::via(ip.address.network(), gateway, pair.sandbox_index);
        inside.add_route(&subnet)?;
        host.add_address(&Address::new(pair.host_index, IpNet::host(gateway)))?;
        host.replace_route(&netlink::Route::direct(
            IpNet::host(ip.address.address),
            pair.host_index,
            RouteScope::Link,
        ))?;
    }
    for route in &result.routes {
        let same = |ip: &&Ip| ip.address.address.is_ipv4() == route.dst.address.is_ipv4();
        let via = route.gw.or_else(|| result.ips.iter().filter(same).find_map(|ip| ip.gateway));
        let via = via.ok_or_else(|| Error::config(format!("route {} has no gateway", route.dst)))?;
        inside.add_route(&netlink::Route::via(route.dst, via, pair.sandbox_index))?;
    }
    if config.ip_masq {
        masquerade::add(call, &result.ips)?;
    }
    Ok(())
}

fn delete(call: &Call) -> Result<()> {
    let config: Config = call.config()?;
    ipam::delete(call)?;
    interface::remove(call)?;
    if config.ip_masq {
        masquerade::remove(call)?;
    }
    Ok(())
}

fn check(call: &Call) -> Result<()> {
    let previous = call.required_previous()?;
    ipam::check(call)?;
    let mut inside = previous;
    for ip in &mut inside.ips {
        ip.address = IpNet::host(ip.address.address);
    }
    interface::verify(call, &inside)
}

fn collect(call: &Call) -> Result<()> {
    ipam::collect(call)?;
    masquerade::collect(call)
}
