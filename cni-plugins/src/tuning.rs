//! `tuning`: kernel parameters and interface settings inside the sandbox.

use std::collections::BTreeMap;

use netlink::{Namespace, Rtnl, sysctl};
use serde::Deserialize;
use serde_json::Value;

use crate::Plugin;
use crate::interface::requested_mac;
use crate::spec::{Call, Error, Result};

pub const PLUGIN: Plugin =
    Plugin { add, delete: crate::nothing, check, collect: crate::nothing, status: crate::nothing };

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    sysctl: BTreeMap<String, String>,
    mtu: u32,
    promisc: bool,
    allmulti: Option<bool>,
    tx_q_len: Option<u32>,
}

/// `net.core.somaxconn` and `net/core/somaxconn` mean the same; only the network's own
/// parameters belong to a network namespace.
fn parameter(name: &str, ifname: &str) -> Result<String> {
    let name = name.replace("IFNAME", ifname);
    let name = if name.contains('/') { name } else { name.replace('.', "/") };
    if !name.starts_with("net/") || name.contains("..") {
        return Err(Error::config(format!("invalid net sysctl key: {name:?}")));
    }
    Ok(name)
}

fn add(call: &Call) -> Result<Value> {
    let config: Config = call.config()?;
    let mut previous = call.required_previous()?;
    let namespace = Namespace::open(&call.netns)?;
    let parameters = parameters(&config, call)?;
    namespace.run(|| parameters.iter().try_for_each(|(name, value)| sysctl::write(name, value)))??;
    let mut inside = Rtnl::open_in(&namespace)?;
    let link = inside.link(&call.ifname)?;
    if let Some(mac) = requested_mac(call)? {
        inside.set_down(link.index)?;
        inside.set_mac(link.index, mac)?;
        inside.set_up(link.index)?;
        for interface in previous.interfaces.iter_mut().filter(|each| each.name == call.ifname) {
            interface.mac = mac.to_string();
        }
    }
    if config.mtu > 0 {
        inside.set_mtu(link.index, config.mtu)?;
    }
    if config.promisc {
        inside.set_promiscuous(link.index, true)?;
    }
    if let Some(on) = config.allmulti {
        inside.set_all_multicast(link.index, on)?;
    }
    if let Some(packets) = config.tx_q_len {
        inside.set_transmit_queue(link.index, packets)?;
    }
    previous.into_json(&call.version)
}

fn parameters(config: &Config, call: &Call) -> Result<Vec<(String, String)>> {
    config.sysctl.iter().map(|(name, value)| Ok((parameter(name, &call.ifname)?, value.clone()))).collect()
}

fn check(call: &Call) -> Result<()> {
    let config: Config = call.config()?;
    let namespace = Namespace::open(&call.netns)?;
    let parameters = parameters(&config, call)?;
    for (name, wanted) in parameters {
        let found = namespace.run(|| sysctl::read(&name))??;
        // The kernel separates several values with tabs.
        if !found.split_whitespace().eq(wanted.split_whitespace()) {
            return Err(Error::internal(format!(
                "Error: Tuning configured value of {name} is {wanted}, current value is {found}"
            )));
        }
    }
    let link = Rtnl::open_in(&namespace)?.link(&call.ifname)?;
    if config.mtu > 0 && link.mtu != config.mtu {
        return Err(Error::internal(format!(
            "Error: Tuning configured MTU of {} is {}, current value is {}",
            call.ifname, config.mtu, link.mtu
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parameter;

    #[test]
    fn only_network_parameters_are_taken() {
        assert_eq!(parameter("net.core.somaxconn", "eth0").unwrap(), "net/core/somaxconn");
        assert_eq!(parameter("net/ipv4/conf/IFNAME/arp_filter", "eth0.5").unwrap(), "net/ipv4/conf/eth0.5/arp_filter");
        for bad in ["kernel.hostname", "net/../kernel/hostname", "/net/core/somaxconn"] {
            assert!(parameter(bad, "eth0").is_err(), "{bad}");
        }
    }
}
