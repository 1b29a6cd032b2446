//! What drivers offer: the devices of all ResourceSlices, by pool, and what of them is taken.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use api::devices::is_tainted_by;
use k8s_openapi::api::core::v1::{Node, NodeSelector};
use k8s_openapi::api::resource::v1::{CounterSet, Device, DeviceTaint, DeviceTaintRule, ResourceSlice};

use super::taken::{Amounts, DeviceId, Taken};
use crate::node_selector::NodeTerm;

/// Every slice that counts, with what is known of its devices.
pub struct Inventory {
    slices: Vec<Slice>,
    pools: Vec<PoolSlices>,
    /// Slices of one node, by its name.
    local: HashMap<String, Vec<usize>>,
    /// Slices that several nodes may reach.
    shared: Vec<usize>,
}

/// A slice of the newest generation of its pool.
pub struct Slice {
    pub slice: Arc<ResourceSlice>,
    pool: usize,
    place: Place,
    pub devices: Vec<Entry>,
}

/// What is known of one device beside what its driver says.
pub struct Entry {
    pub id: DeviceId,
    place: Place,
    /// Somebody has it for himself.
    pub taken: bool,
    /// What is taken of it, if several claims may have it.
    pub share: Option<Amounts>,
    /// Taints that rules add to its own.
    rule_taints: Vec<DeviceTaint>,
}

struct PoolSlices {
    driver: String,
    name: String,
    generation: i64,
    count: i64,
    members: Vec<usize>,
    /// Why its counters cannot be used.
    fault: Option<String>,
    has_twins: bool,
}

/// The nodes that something is for.
enum Place {
    Node(String),
    Everywhere,
    Selected(Vec<NodeTerm>),
    /// Each device says.
    PerDevice,
    Unknown,
}

impl Place {
    fn new(node: Option<&str>, everywhere: Option<bool>, selector: Option<&NodeSelector>) -> Self {
        match (node, everywhere, selector) {
            (Some(name), _, _) if !name.is_empty() => Self::Node(name.to_owned()),
            (_, Some(true), _) => Self::Everywhere,
            (_, _, Some(selector)) => Self::Selected(selector.node_selector_terms.iter().map(NodeTerm::of).collect()),
            _ => Self::Unknown,
        }
    }

    fn reaches(&self, node: &Node) -> bool {
        match self {
            Self::Node(name) => node.metadata.name.as_deref() == Some(name),
            Self::Everywhere => true,
            Self::Selected(terms) => terms.iter().any(|term| term.matches(node)),
            Self::PerDevice | Self::Unknown => false,
        }
    }
}

/// A device as the allocator looks at it.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    pub slice: &'a ResourceSlice,
    pub device: &'a Device,
    pub entry: &'a Entry,
    /// Its place in the inventory.
    pub key: (usize, usize),
    /// Position of its pool in the inventory.
    pub pool: usize,
}

impl<'a> Offer<'a> {
    pub fn taints(&self) -> impl Iterator<Item = &'a DeviceTaint> {
        self.device.taints.iter().flatten().chain(&self.entry.rule_taints)
    }

    pub fn may_be_shared(&self) -> bool {
        self.device.allow_multiple_allocations == Some(true)
    }
}

/// What a node can reach of a pool.
pub struct Pool<'a> {
    /// `driver/pool`.
    pub name: String,
    pub state: State,
    /// Slices by name, devices as their driver ordered them.
    pub offers: Vec<Offer<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum State {
    Usable,
    /// Its driver is still writing it.
    Incomplete,
    Invalid(String),
}

fn pool_id(slice: &ResourceSlice) -> (&str, &str) {
    (&slice.spec.driver, &slice.spec.pool.name)
}

impl Inventory {
    pub fn new(mut slices: Vec<Arc<ResourceSlice>>, rules: &[Arc<DeviceTaintRule>], taken: &Taken) -> Self {
        // Drivers influence the order by the names they give.
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut newest: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for slice in &slices {
            let generation = newest.entry(pool_id(slice)).or_insert(i64::MIN);
            *generation = slice.spec.pool.generation.max(*generation);
        }
        let mut inventory = Self { slices: Vec::new(), pools: Vec::new(), local: HashMap::new(), shared: Vec::new() };
        let mut positions: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for ((driver, name), generation) in &newest {
            positions.insert((driver, name), inventory.pools.len());
            inventory.pools.push(PoolSlices {
                driver: (*driver).to_owned(),
                name: (*name).to_owned(),
                generation: *generation,
                count: 0,
                members: Vec::new(),
                fault: None,
                has_twins: false,
            });
        }
        for slice in &slices {
            let pool = positions[&pool_id(slice)];
            if slice.spec.pool.generation == inventory.pools[pool].generation {
                inventory.add(slice.clone(), pool, rules, taken);
            }
        }
        inventory.check_pools();
        inventory
    }

    fn add(&mut self, slice: Arc<ResourceSlice>, pool: usize, rules: &[Arc<DeviceTaintRule>], taken: &Taken) {
        let spec = &slice.spec;
        let place = if spec.per_device_node_selection == Some(true) {
            Place::PerDevice
        } else {
            Place::new(spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref())
        };
        let entry = |device: &Device| {
            let id =
                DeviceId { driver: spec.driver.clone(), pool: spec.pool.name.clone(), device: device.name.clone() };
            Entry {
                place: Place::new(device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref()),
                taken: taken.is_wholly(&id),
                share: taken.share(&id).cloned(),
                rule_taints: rules
                    .iter()
                    .filter(|rule| is_tainted_by(rule, &id.driver, &id.pool, &id.device))
                    .map(|rule| rule.spec.taint.clone())
                    .collect(),
                id,
            }
        };
        let devices = spec.devices.iter().flatten().map(entry).collect();
        let at = self.slices.len();
        match &place {
            Place::Node(name) => self.local.entry(name.clone()).or_default().push(at),
            _ => self.shared.push(at),
        }
        self.pools[pool].members.push(at);
        self.pools[pool].count = spec.pool.resource_slice_count;
        self.slices.push(Slice { slice, pool, place, devices });
    }

    fn check_pools(&mut self) {
        for pool in &mut self.pools {
            let members = || pool.members.iter().map(|at| &self.slices[*at]);
            let mut names = HashSet::new();
            pool.has_twins = !members().flat_map(|slice| &slice.devices).all(|entry| names.insert(&entry.id.device));
            pool.fault = counter_fault(members().map(|slice| slice.slice.as_ref())).err();
        }
    }

    /// The pools that `node` can use something of, in the order in which they are tried: those whose
    /// devices have to be made ready first come last.
    pub fn reachable(&self, node: &Node) -> Vec<Pool<'_>> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let local = self.local.get(name).into_iter().flatten();
        let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for at in local.chain(&self.shared) {
            let slice = &self.slices[*at];
            let reached = match slice.place {
                Place::PerDevice => slice.devices.iter().any(|entry| entry.place.reaches(node)),
                _ => slice.place.reaches(node),
            };
            if reached {
                found.entry(slice.pool).or_default().push(*at);
            }
        }
        let mut pools: Vec<_> = found.into_iter().map(|(pool, slices)| self.pool(pool, slices, node)).collect();
        pools.sort_by_key(|pool| pool.offers.iter().any(|offer| offer.device.binding_conditions.is_some()));
        pools
    }

    fn pool(&self, at: usize, mut slices: Vec<usize>, node: &Node) -> Pool<'_> {
        let pool = &self.pools[at];
        let name = format!("{}/{}", pool.driver, pool.name);
        let is = |members: &[usize]| i64::try_from(members.len()) == Ok(pool.count);
        if !is(&slices) && !is(&pool.members) {
            return Pool { name, state: State::Incomplete, offers: Vec::new() };
        }
        slices.sort_unstable();
        let reachable: Vec<Offer<'_>> = slices.iter().flat_map(|slice| self.offers(*slice)).collect();
        let twin = pool.has_twins.then(|| twin(&reachable)).flatten();
        if let Some(fault) = twin.or_else(|| pool.fault.clone()) {
            return Pool { name, state: State::Invalid(fault), offers: Vec::new() };
        }
        let here = |offer: &Offer<'_>| match self.slices[offer.key.0].place {
            Place::PerDevice => offer.entry.place.reaches(node),
            _ => true,
        };
        Pool { name, state: State::Usable, offers: reachable.into_iter().filter(here).collect() }
    }

    fn offers(&self, at: usize) -> impl Iterator<Item = Offer<'_>> {
        let slice = &self.slices[at];
        let devices = slice.slice.spec.devices.iter().flatten().zip(&slice.devices).enumerate();
        devices.map(move |(nth, (device, entry))| Offer {
            slice: &slice.slice,
            device,
            entry,
            key: (at, nth),
            pool: slice.pool,
        })
    }

    /// All devices of a pool, also those that are for other nodes.
    pub fn pool_offers(&self, pool: usize) -> impl Iterator<Item = Offer<'_>> {
        self.pools[pool].members.iter().flat_map(|at| self.offers(*at))
    }

    /// The counters that a pool's devices share.
    pub fn counter_sets(&self, pool: usize) -> impl Iterator<Item = &CounterSet> {
        self.pools[pool].members.iter().flat_map(|at| self.slices[*at].slice.spec.shared_counters.iter().flatten())
    }
}

fn twin(offers: &[Offer<'_>]) -> Option<String> {
    let mut names = HashSet::new();
    let twin = offers.iter().find(|offer| !names.insert(&offer.device.name))?;
    Some(format!("duplicate device name {}", twin.device.name))
}

/// What is wrong with the counters of a pool.
fn counter_fault<'a>(slices: impl Iterator<Item = &'a ResourceSlice> + Clone) -> Result<(), String> {
    let mut sets: HashMap<&str, &CounterSet> = HashMap::new();
    for set in slices.clone().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
        if sets.insert(&set.name, set).is_some() {
            return Err(format!("duplicate counter set name {}", set.name));
        }
    }
    let devices = slices.flat_map(|slice| slice.spec.devices.iter().flatten());
    for used in devices.flat_map(|device| device.consumes_counters.iter().flatten()) {
        let set = sets.get(used.counter_set.as_str());
        let set = set.ok_or_else(|| format!("counter set {} not found", used.counter_set))?;
        if let Some(name) = used.counters.keys().find(|name| !set.counters.contains_key(*name)) {
            return Err(format!("counter {name} not found in counter set {}", set.name));
        }
    }
    Ok(())
}
