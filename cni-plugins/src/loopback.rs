//! `loopback`: sets the sandbox's own loopback interface up.

use netlink::{Link, Namespace, Rtnl};
use serde_json::Value;

use crate::Plugin;
use crate::interface::is_gone;
use crate::spec::{Call, Error, Interface, Ip, NetworkResult, Result};

pub const PLUGIN: Plugin = Plugin { add, delete, check, collect: crate::nothing, status: crate::nothing };

fn open(call: &Call) -> Result<(Rtnl, Link)> {
    let namespace = Namespace::open(&call.netns)?;
    let mut rtnl = Rtnl::open_in(&namespace)?;
    // Whatever name the runtime asks for, a namespace has one loopback interface.
    let link = rtnl.link("lo")?;
    Ok((rtnl, link))
}

fn add(call: &Call) -> Result<Value> {
    let (mut rtnl, link) = open(call)?;
    if !link.up {
        rtnl.set_up(link.index)?;
    }
    if let Some(previous) = call.previous()? {
        return previous.into_json(&call.version);
    }
    let ips = rtnl.addresses_of(link.index)?.into_iter().map(|address| Ip {
        version: String::new(),
        interface: Some(0),
        address: address.net,
        gateway: None,
    });
    let result = NetworkResult {
        interfaces: vec![Interface {
            name: link.name,
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: 0,
            sandbox: call.netns.clone(),
        }],
        ips: ips.collect(),
        ..NetworkResult::default()
    };
    result.into_json(&call.version)
}

fn delete(call: &Call) -> Result<()> {
    if is_gone(&call.netns) {
        return Ok(());
    }
    let (mut rtnl, link) = open(call)?;
    Ok(rtnl.set_down(link.index)?)
}

fn check(call: &Call) -> Result<()> {
    let (_, link) = open(call)?;
    if link.up { Ok(()) } else { Err(Error::internal("loopback interface is down")) }
}
