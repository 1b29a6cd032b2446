//! `static`: the addresses that the configuration names.

use std::net::IpAddr;

use netlink::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::Plugin;
use crate::spec::{Call, Dns, Error, Ip, NetworkResult, Result, Route};

pub const PLUGIN: Plugin =
    Plugin { add, delete: crate::nothing, check, collect: crate::nothing, status: crate::nothing };

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    addresses: Vec<StaticAddress>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Deserialize)]
struct StaticAddress {
    address: String,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

fn result(call: &Call) -> Result<NetworkResult> {
    let ipam = call.config.get("ipam").ok_or_else(|| Error::config("IPAM config missing 'ipam' key"))?;
    let config = Config::deserialize(ipam).map_err(|error| Error::decode(format!("ipam cannot be read: {error}")))?;
    let mut addresses = config.addresses;
    let from_runtime: Option<Vec<String>> = call.runtime("ips")?;
    let from_args = call.args.get("IP").map(|list| list.split(',').map(str::to_owned).collect());
    if let Some(given) = from_runtime.or(from_args) {
        // What the caller asks for replaces what the configuration names.
        addresses = given.into_iter().map(|address| StaticAddress { address, gateway: None }).collect();
        let gateway = call.args.get("GATEWAY").and_then(|text| text.parse().ok());
        if let (Some(first), Some(gateway)) = (addresses.first_mut(), gateway) {
            first.gateway = Some(gateway);
        }
    }
    let ips = addresses
        .into_iter()
        .map(|each| {
            let net: IpNet = each.address.parse().map_err(|error| {
                Error::config(format!("the 'address' field is expected to be in CIDR notation: {error}"))
            })?;
            Ok(Ip { version: String::new(), interface: None, address: net, gateway: each.gateway })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(NetworkResult { ips, routes: config.routes, dns: config.dns, ..NetworkResult::default() })
}

fn add(call: &Call) -> Result<Value> {
    result(call)?.into_json(&call.version)
}

fn check(call: &Call) -> Result<()> {
    let wanted = result(call)?;
    let previous = call.required_previous()?;
    match wanted.ips.iter().find(|ip| !previous.ips.iter().any(|found| found.address == ip.address)) {
        Some(ip) => Err(Error::internal(format!("static: Failed to find address {} in prevResult", ip.address))),
        None => Ok(()),
    }
}
