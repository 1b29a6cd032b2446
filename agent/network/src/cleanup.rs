//! Removes what this room made on a host.

use std::path::Path;

use netlink::nft::{Family, Nft, Table};
use netlink::{PROTOCOL_SKIFF, Rtnl};

use crate::{BRIDGE, VXLAN, conflist, forwarding, masquerade, policy};

/// Tables of the CNI plugins, which outlive a node whose sandboxes were not torn down.
const PLUGIN_TABLES: [(Family, &str); 4] = [
    (Family::Ipv4, "skiff_hostports"),
    (Family::Ipv4, "skiff_cni_masquerade"),
    (Family::Ipv6, "skiff_cni_masquerade"),
    (Family::Inet, "skiff_cni_firewall"),
];

/// Removes links, routes, tables and the CNI configuration of this network namespace. Goes on after
/// a failure and returns all of them; what is not there is no failure.
pub fn cleanup(cni_conf_dir: &Path) -> Vec<String> {
    let mut failures = Vec::new();
    let mut note = |outcome: Result<(), netlink::Error>| match outcome {
        Err(error) if !error.is_missing() => failures.push(error.to_string()),
        _ => {}
    };
    note(remove_links_and_routes());
    note(Nft::open().and_then(|mut nft| {
        nft.delete_table(&masquerade::table())?;
        nft.delete_table(&policy::table())?;
        for (family, name) in PLUGIN_TABLES {
            nft.delete_table(&Table::new(family, name))?;
        }
        Ok(())
    }));
    forwarding::remove();
    masquerade::remove_from_iptables();
    if let Err(error) = conflist::remove(cni_conf_dir) {
        failures.push(format!("remove the CNI configuration from {}: {error}", cni_conf_dir.display()));
    }
    failures
}

fn remove_links_and_routes() -> Result<(), netlink::Error> {
    let mut rtnl = Rtnl::open()?;
    for route in rtnl.routes()?.iter().filter(|route| route.protocol == PROTOCOL_SKIFF) {
        rtnl.delete_route(route)?;
    }
    let links = rtnl.links()?;
    let bridge = links.iter().find(|link| link.name == BRIDGE).map(|link| link.index);
    for link in &links {
        let port = bridge.is_some() && link.master == bridge && link.kind == "veth";
        let shaper = link.kind == "ifb" && link.name.starts_with("skifb");
        if port || shaper || link.name == BRIDGE || link.name == VXLAN {
            match rtnl.delete_link(&link.name) {
                Err(error) if !error.is_missing() => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}
