//! Addresses for hollow pods, out of their node's pod network. Kept in memory only: what pods'
//! statuses say is taken when a node is first seen.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::Pod;

#[derive(Default)]
pub struct Addresses {
    /// By node: who has which address.
    nodes: HashMap<String, Node>,
}

#[derive(Default)]
struct Node {
    /// By address; the holder's UID.
    taken: BTreeMap<u32, String>,
    /// Where the search goes on, so that an address is not given again at once.
    next: u32,
}

impl Addresses {
    /// The address of `pod`, which may get one now. `neighbours` are the node's pods as the API has
    /// them. None: `network` is no IPv4 network, or it is full.
    pub fn of<'a>(&mut self, pod: &Pod, network: &str, neighbours: impl Iterator<Item = &'a Pod>) -> Option<IpAddr> {
        let name = super::node_of(pod)?;
        let uid = pod.metadata.uid.as_deref()?;
        let (first, last) = bounds(network)?;
        if !self.nodes.contains_key(name) {
            let taken = neighbours.filter_map(|other| Some((published(other)?, other.metadata.uid.clone()?))).collect();
            self.nodes.insert(name.to_owned(), Node { taken, next: first });
        }
        let node = self.nodes.get_mut(name)?;
        if let Some((address, _)) = node.taken.iter().find(|(_, holder)| *holder == uid) {
            return Some(Ipv4Addr::from_bits(*address).into());
        }
        let from = node.next.clamp(first, last);
        let free = (from..=last).chain(first..from).find(|address| !node.taken.contains_key(address))?;
        node.taken.insert(free, uid.to_owned());
        node.next = free.saturating_add(1);
        Some(Ipv4Addr::from_bits(free).into())
    }

    pub fn give_back(&mut self, pod: &Pod) {
        if let Some(node) = super::node_of(pod).and_then(|name| self.nodes.get_mut(name)) {
            node.taken.retain(|_, holder| Some(holder.as_str()) != pod.metadata.uid.as_deref());
        }
    }
}

fn published(pod: &Pod) -> Option<u32> {
    let address: Ipv4Addr = pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()?;
    Some(address.to_bits())
}

/// The first and the last address for pods: the network's own, its gateway and its broadcast are not.
fn bounds(network: &str) -> Option<(u32, u32)> {
    let (base, prefix) = network.split_once('/')?;
    let (base, prefix): (Ipv4Addr, u32) = (base.parse().ok()?, prefix.parse().ok()?);
    let size = 1u32.checked_shl(32u32.checked_sub(prefix)?)?;
    let base = base.to_bits();
    let (first, last) = (base.checked_add(2)?, base.checked_add(size.checked_sub(2)?)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, ip: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": uid, "uid": uid}, "spec": {"nodeName": "n", "containers": []}, "status": {"podIP": ip}
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_keeps_its_address_and_no_two_share_one() {
        let mut addresses = Addresses::default();
        let known = [pod("old", Some("10.0.0.2"))];
        let mut of = |uid| addresses.of(&pod(uid, None), "10.0.0.0/29", known.iter()).map(|ip| ip.to_string());
        assert_eq!(of("old").as_deref(), Some("10.0.0.2"));
        assert_eq!(of("a").as_deref(), Some("10.0.0.3"));
        assert_eq!(of("a").as_deref(), Some("10.0.0.3"));
        let rest: Vec<_> = ["b", "c", "d"].into_iter().filter_map(&mut of).collect();
        assert_eq!(rest, ["10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(of("e"), None, "the network is full");
        addresses.give_back(&pod("b", None));
        assert_eq!(addresses.of(&pod("e", None), "10.0.0.0/29", known.iter()), Some("10.0.0.4".parse().unwrap()));
    }

    #[test]
    fn networks_without_room_and_nonsense() {
        for network in ["10.0.0.0/31", "10.0.0.0/32", "10.0.0.0", "fd00::/64", "10.0.0.0/40", "255.255.255.255/1"] {
            assert_eq!(bounds(network), None, "{network}");
        }
    }
}
