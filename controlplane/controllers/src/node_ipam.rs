//! Node IPAM: each node gets its own network for pods out of the cluster's (`spec.podCIDR`).
//!
//! [`Ranges`] is the pure part: numbered slots of a network, taken and given back. What is taken
//! is rebuilt from the nodes at start; one worker hands slots out, so none is given twice.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;

use component::{EventType, Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, Controller, synced};
use crate::error::{During, Result};

pub fn start(context: &Context) {
    let ranges = match Ranges::new(&context.config.cluster_cidr, context.config.node_mask, &context.config.service_cidr)
    {
        Ok(ranges) => ranges,
        Err(problem) => {
            tracing::error!(problem, "nodes get no pod networks");
            return;
        }
    };
    let queue = WorkQueue::<String>::new();
    let controller = context.controller_as("node-controller", "cidrAllocator");
    let nodes = context.informers.of::<Node>();
    let state = Arc::new(Mutex::new(State { ranges, held: HashMap::new() }));
    let (watched, changes) = (state.clone(), queue.clone());
    nodes.on_change(move |change| {
        let name = change.object().metadata.name.clone().unwrap_or_default();
        let mut state = watched.lock();
        match change.new {
            Some(node) => state.hold(&name, &pod_networks(node)),
            None => state.release(&name),
        }
        drop(state);
        changes.add(name);
    });
    let worker = Arc::new(Worker { controller: controller.clone(), nodes: nodes.clone(), state, queue: queue.clone() });
    controller.run(&queue, 1, synced!(nodes), move |name: String| {
        let worker = worker.clone();
        async move { worker.reconcile(&name).await }
    });
}

fn pod_networks(node: &Node) -> Vec<String> {
    let spec = node.spec.clone().unwrap_or_default();
    let mut networks = spec.pod_cidrs.unwrap_or_default();
    if networks.is_empty() {
        networks.extend(spec.pod_cidr.filter(|cidr| !cidr.is_empty()));
    }
    networks
}

struct Worker {
    controller: Controller,
    nodes: Informer<Node>,
    state: Arc<Mutex<State>>,
    queue: WorkQueue<String>,
}

struct State {
    ranges: Ranges,
    /// Slots by the node that holds them.
    held: HashMap<String, BTreeSet<u32>>,
}

impl State {
    fn hold(&mut self, node: &str, networks: &[String]) {
        let slots: Vec<u32> = networks.iter().filter_map(|network| self.ranges.slot_of(network)).collect();
        for slot in slots {
            self.ranges.taken.insert(slot);
            self.held.entry(node.to_owned()).or_default().insert(slot);
        }
    }

    fn release(&mut self, node: &str) {
        for slot in self.held.remove(node).unwrap_or_default() {
            self.ranges.taken.remove(&slot);
        }
    }

    /// The node's network: the one it was promised already, or the next free one.
    fn allocate(&mut self, node: &str) -> Option<String> {
        let promised = self.held.get(node).and_then(|slots| slots.first().copied());
        let slot = promised.or_else(|| self.ranges.take())?;
        self.held.entry(node.to_owned()).or_default().insert(slot);
        Some(self.ranges.text(slot))
    }
}

impl Worker {
    async fn reconcile(&self, name: &str) -> Result<Outcome> {
        let Some(node) = self.nodes.get("", name) else {
            self.wake_waiting();
            return Ok(Outcome::Done);
        };
        if !pod_networks(&node).is_empty() || crate::meta::is_deleting(&node.metadata) {
            return Ok(Outcome::Done);
        }
        let Some(network) = self.state.lock().allocate(name) else {
            let text = format!("Node {name} status is now: CIDRNotAvailable");
            self.controller.events.event(&node.object_ref(&()), EventType::Normal, "CIDRNotAvailable", text);
            return Ok(Outcome::Done);
        };
        let api: Api<Node> = self.controller.cluster();
        let patch = Patch::Strategic(json!({"spec": {"podCIDR": network, "podCIDRs": [network]}}));
        api.patch(name, &PatchParams::default(), &patch).await.unless_gone("giving a pod network to node", name)?;
        Ok(Outcome::Done)
    }

    /// A node went: its network may be what another waits for.
    fn wake_waiting(&self) {
        for node in self.nodes.list().iter().filter(|node| pod_networks(node).is_empty()) {
            self.queue.add(node.metadata.name.clone().unwrap_or_default());
        }
    }
}

/// Networks of `mask` bits in a larger one, numbered from its start.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranges {
    base: u32,
    mask: u8,
    count: u32,
    taken: BTreeSet<u32>,
    /// Where the search for a free one goes on: a network just given back is reused last.
    next: u32,
}

fn parse(cidr: &str) -> Option<(u32, u8)> {
    let (address, bits) = cidr.split_once('/')?;
    let (address, bits) = (address.parse::<Ipv4Addr>().ok()?, bits.parse::<u8>().ok()?);
    (bits <= 32).then(|| (u32::from(address) & mask_of(bits), bits))
}

fn mask_of(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

impl Ranges {
    /// Slots that `excluded` (the Service network) overlaps are never given out.
    pub fn new(cluster: &str, mask: u8, excluded: &str) -> std::result::Result<Self, String> {
        let (base, bits) = parse(cluster).ok_or_else(|| format!("cluster CIDR {cluster:?} is not an IPv4 network"))?;
        if mask < bits || mask > 30 || mask - bits > 16 {
            return Err(format!("node mask /{mask} does not fit into cluster CIDR {cluster}"));
        }
        let count = 1_u32 << (mask - bits);
        let mut ranges = Self { base, mask, count, taken: BTreeSet::new(), next: 0 };
        if let Some((address, bits)) = parse(excluded) {
            let wider = mask.min(bits);
            let overlaps = |slot: &u32| (ranges.start(*slot) ^ address) & mask_of(wider) == 0;
            ranges.taken = (0..count).filter(overlaps).collect();
        }
        Ok(ranges)
    }

    fn start(&self, slot: u32) -> u32 {
        self.base + (slot << (32 - self.mask))
    }

    pub fn text(&self, slot: u32) -> String {
        format!("{}/{}", Ipv4Addr::from(self.start(slot)), self.mask)
    }

    pub fn slot_of(&self, network: &str) -> Option<u32> {
        let (address, bits) = parse(network)?;
        let slot = address.checked_sub(self.base)? >> (32 - self.mask);
        (bits == self.mask && slot < self.count).then_some(slot)
    }

    pub fn take(&mut self) -> Option<u32> {
        let candidates = (self.next..self.count).chain(0..self.next);
        let slot = candidates.into_iter().find(|slot| !self.taken.contains(slot))?;
        self.taken.insert(slot);
        self.next = (slot + 1) % self.count;
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(cluster: &str, mask: u8) -> Ranges {
        Ranges::new(cluster, mask, "10.43.0.0/16").expect("the test's networks are valid")
    }

    #[test]
    fn networks_are_given_in_order_and_survive_a_restart() {
        let mut state = State { ranges: ranges("10.42.0.0/16", 24), held: HashMap::new() };
        state.hold("a", &["10.42.0.0/24".to_owned()]);
        assert_eq!(state.allocate("b").as_deref(), Some("10.42.1.0/24"));
        assert_eq!(state.allocate("b").as_deref(), Some("10.42.1.0/24"), "a retry keeps the promise");
        assert_eq!(state.allocate("c").as_deref(), Some("10.42.2.0/24"));
    }

    #[test]
    fn a_full_cluster_waits_for_a_node_to_go() {
        let mut state = State { ranges: ranges("10.42.0.0/23", 24), held: HashMap::new() };
        assert!(state.allocate("a").is_some() && state.allocate("b").is_some());
        assert_eq!(state.allocate("c"), None);
        state.release("a");
        assert_eq!(state.allocate("c").as_deref(), Some("10.42.0.0/24"));
    }

    #[test]
    fn the_service_network_is_left_out() {
        let mut inside = Ranges::new("10.42.0.0/22", 24, "10.42.1.0/25").expect("valid");
        let slots: Vec<_> = std::iter::from_fn(|| inside.take()).collect();
        let given: Vec<_> = slots.into_iter().map(|slot| inside.text(slot)).collect();
        assert_eq!(given, ["10.42.0.0/24", "10.42.2.0/24", "10.42.3.0/24"]);
        assert!(Ranges::new("10.42.0.0/16", 12, "").is_err());
        assert!(Ranges::new("nonsense", 24, "").is_err());
    }
}
