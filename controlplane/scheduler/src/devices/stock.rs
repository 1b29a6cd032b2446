//! What drivers offer, whoever has it: the devices of all ResourceSlices, by pool. Made anew only when
//! slices or the rules of taints change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use api::devices::is_tainted_by;
use k8s_openapi::api::core::v1::{Node, NodeSelector};
use k8s_openapi::api::resource::v1::{CounterSet, Device, DeviceTaint, DeviceTaintRule, ResourceSlice};

use super::taken::DeviceId;
use crate::node_selector::NodeTerm;

/// A device's place in the stock: its slice, and which it is in that.
pub type Key = (usize, usize);

/// Every slice that counts, with what is known of its devices.
#[derive(Default)]
pub struct Stock {
    pub slices: Vec<Slice>,
    pub pools: Vec<PoolSlices>,
    /// Slices of one node, by its name.
    pub local: HashMap<String, Vec<usize>>,
    /// Slices that several nodes may reach.
    pub shared: Vec<usize>,
    /// More than one of a device that several slices name.
    keys: HashMap<DeviceId, Vec<Key>>,
}

/// A slice of the newest generation of its pool.
pub struct Slice {
    pub slice: Arc<ResourceSlice>,
    pub pool: usize,
    pub place: Place,
    pub devices: Vec<Entry>,
}

/// What is known of one device beside what its driver says.
pub struct Entry {
    pub id: DeviceId,
    pub place: Place,
    /// Taints that rules add to its own.
    pub rule_taints: Vec<DeviceTaint>,
}

pub struct PoolSlices {
    pub driver: String,
    pub name: String,
    generation: i64,
    pub count: i64,
    pub members: Vec<usize>,
    /// Why its counters cannot be used.
    pub fault: Option<String>,
    pub has_twins: bool,
}

/// The nodes that something is for.
pub enum Place {
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

    pub fn reaches(&self, node: &Node) -> bool {
        match self {
            Self::Node(name) => node.metadata.name.as_deref() == Some(name),
            Self::Everywhere => true,
            Self::Selected(terms) => terms.iter().any(|term| term.matches(node)),
            Self::PerDevice | Self::Unknown => false,
        }
    }
}

fn pool_id(slice: &ResourceSlice) -> (&str, &str) {
    (&slice.spec.driver, &slice.spec.pool.name)
}

impl Stock {
    pub fn new(mut slices: Vec<Arc<ResourceSlice>>, rules: &[Arc<DeviceTaintRule>]) -> Self {
        // Drivers influence the order by the names they give.
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut newest: BTreeMap<(&str, &str), i64> = BTreeMap::new();
        for slice in &slices {
            let generation = newest.entry(pool_id(slice)).or_insert(i64::MIN);
            *generation = slice.spec.pool.generation.max(*generation);
        }
        let mut stock = Self::default();
        let mut positions: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for ((driver, name), generation) in &newest {
            positions.insert((driver, name), stock.pools.len());
            stock.pools.push(PoolSlices {
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
            if slice.spec.pool.generation == stock.pools[pool].generation {
                stock.add(slice.clone(), pool, rules);
            }
        }
        stock.check_pools();
        stock
    }

    fn add(&mut self, slice: Arc<ResourceSlice>, pool: usize, rules: &[Arc<DeviceTaintRule>]) {
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
                rule_taints: rules
                    .iter()
                    .filter(|rule| is_tainted_by(rule, &id.driver, &id.pool, &id.device))
                    .map(|rule| rule.spec.taint.clone())
                    .collect(),
                id,
            }
        };
        let devices: Vec<Entry> = spec.devices.iter().flatten().map(entry).collect();
        let at = self.slices.len();
        for (nth, entry) in devices.iter().enumerate() {
            self.keys.entry(entry.id.clone()).or_default().push((at, nth));
        }
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

    /// Where a device is.
    pub fn keys(&self, id: &DeviceId) -> &[Key] {
        self.keys.get(id).map(Vec::as_slice).unwrap_or_default()
    }

    /// The counters that a pool's devices share.
    pub fn counter_sets(&self, pool: usize) -> impl Iterator<Item = &CounterSet> {
        self.pools[pool].members.iter().flat_map(|at| self.slices[*at].slice.spec.shared_counters.iter().flatten())
    }
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
