//! What there is to be had: a [`Stock`], what of it is taken, and what of it a node can reach.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{CounterSet, Device, DeviceTaint, ResourceSlice};

use super::stock::{Entry, Key, Place, Stock};
use super::taken::{Amounts, Taken};

pub struct Inventory {
    stock: Arc<Stock>,
    /// Devices that somebody has for himself.
    taken: HashSet<Key>,
    /// What is taken of devices that several claims may have.
    shares: HashMap<Key, Amounts>,
}

/// A device as the allocator looks at it.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    pub slice: &'a ResourceSlice,
    pub device: &'a Device,
    pub entry: &'a Entry,
    pub key: Key,
    /// Position of its pool in the stock.
    pub pool: usize,
    /// Somebody has it for himself.
    pub taken: bool,
    /// What is taken of it, if several claims may have it.
    pub share: Option<&'a Amounts>,
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

impl Inventory {
    pub fn new(stock: Arc<Stock>, taken: &Taken) -> Self {
        let wholly = taken.wholly().flat_map(|id| stock.keys(id).iter().copied()).collect();
        let parts = taken.shares().flat_map(|(id, amounts)| stock.keys(id).iter().map(|key| (*key, amounts.clone())));
        let shares = parts.collect();
        Self { stock, taken: wholly, shares }
    }

    /// The counters that a pool's devices share.
    pub fn counter_sets(&self, pool: usize) -> impl Iterator<Item = &CounterSet> {
        self.stock.counter_sets(pool)
    }

    /// The pools that `node` can use something of, in the order in which they are tried: those whose
    /// devices have to be made ready first come last.
    pub fn reachable(&self, node: &Node) -> Vec<Pool<'_>> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let local = self.stock.local.get(name).into_iter().flatten();
        let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for at in local.chain(&self.stock.shared) {
            let slice = &self.stock.slices[*at];
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
        let pool = &self.stock.pools[at];
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
        let here = |offer: &Offer<'_>| match self.stock.slices[offer.key.0].place {
            Place::PerDevice => offer.entry.place.reaches(node),
            _ => true,
        };
        Pool { name, state: State::Usable, offers: reachable.into_iter().filter(here).collect() }
    }

    fn offers(&self, at: usize) -> impl Iterator<Item = Offer<'_>> {
        let slice = &self.stock.slices[at];
        let devices = slice.slice.spec.devices.iter().flatten().zip(&slice.devices).enumerate();
        devices.map(move |(nth, (device, entry))| {
            let key = (at, nth);
            Offer {
                slice: &slice.slice,
                device,
                entry,
                key,
                pool: slice.pool,
                taken: self.taken.contains(&key),
                share: self.shares.get(&key),
            }
        })
    }

    /// All devices of a pool, also those that are for other nodes.
    pub fn pool_offers(&self, pool: usize) -> impl Iterator<Item = Offer<'_>> {
        self.stock.pools[pool].members.iter().flat_map(|at| self.offers(*at))
    }
}

fn twin(offers: &[Offer<'_>]) -> Option<String> {
    let mut names = HashSet::new();
    let twin = offers.iter().find(|offer| !names.insert(&offer.device.name))?;
    Some(format!("duplicate device name {}", twin.device.name))
}
