//! What DynamicResources knows of the cluster: caches of claims, slices, classes and rules, and what
//! it gave that the caches do not show yet.
//!
//! Nothing is watched before the first pod that may need devices; until the caches are filled such
//! pods are held back.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use component::{Informer, Informers};
use expressions::device::Cache;
use k8s_openapi::api::core::v1::ContainerExtendedResourceRequest;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::devices::{Stock, Taken};
use crate::pod::Uid;

/// How long a claim that was just created may take to be seen; after that it was deleted before.
const UNSEEN: Duration = Duration::from_secs(120);

pub struct Devices {
    begin: Box<dyn Fn() -> Watched + Send + Sync>,
    watched: OnceLock<Watched>,
    /// What slices and rules amount to, until one of them changes.
    stock: Mutex<Option<Arc<Stock>>>,
    /// Compiled selectors.
    pub selectors: Cache,
    /// Some claim changed.
    pub changed: Notify,
    memory: Mutex<Memory>,
}

pub struct Watched {
    pub claims: Informer<ResourceClaim>,
    pub slices: Informer<ResourceSlice>,
    pub classes: Informer<DeviceClass>,
    pub rules: Informer<DeviceTaintRule>,
}

/// An allocation that is being written.
#[derive(Debug, Clone)]
pub struct Promise {
    /// As it was when the allocation was made; without a name if it is still to be created.
    pub claim: Arc<ResourceClaim>,
    pub allocation: AllocationResult,
    /// Of a claim for extended resources: which container asked for what.
    pub mappings: Vec<ContainerExtendedResourceRequest>,
}

#[derive(Default)]
struct Memory {
    /// By pod, until they are written.
    promised: HashMap<Uid, Vec<Promise>>,
    /// Claims as written, by UID, until the cache has them.
    written: HashMap<String, (Instant, Arc<ResourceClaim>)>,
    /// What binding reserved for a pod, until the pod is bound.
    reserved: HashMap<Uid, Vec<Arc<ResourceClaim>>>,
}

pub fn uid(claim: &ResourceClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or_default()
}

pub fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

/// Versions are numbers that grow.
fn version(claim: &ResourceClaim) -> u64 {
    claim.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

impl Devices {
    pub fn new(informers: &Informers) -> Self {
        let informers = informers.clone();
        Self::of(move || Watched {
            claims: informers.of(),
            slices: informers.of(),
            classes: informers.of(),
            rules: informers.of(),
        })
    }

    /// `begin` is called once, when there is something to watch for.
    pub fn of(begin: impl Fn() -> Watched + Send + Sync + 'static) -> Self {
        Self {
            begin: Box::new(begin),
            watched: OnceLock::new(),
            stock: Mutex::default(),
            selectors: Cache::default(),
            changed: Notify::new(),
            memory: Mutex::default(),
        }
    }

    /// Begins to watch. The caches, if this is the first call.
    pub fn watch(&self) -> Option<&Watched> {
        let mut first = false;
        let watched = self.watched.get_or_init(|| {
            first = true;
            (self.begin)()
        });
        first.then_some(watched)
    }

    /// The caches, once they are filled.
    pub fn known(&self) -> Option<&Watched> {
        let is_full = |watched: &&Watched| {
            watched.claims.is_synced()
                && watched.slices.is_synced()
                && watched.classes.is_synced()
                && watched.rules.is_synced()
        };
        self.watched.get().filter(is_full)
    }

    /// What drivers offer.
    pub fn stock(&self, watched: &Watched) -> Arc<Stock> {
        let mut stock = self.stock.lock();
        // Listed under the lock: what changes after the list throws this away again.
        stock.get_or_insert_with(|| Arc::new(Stock::new(watched.slices.list(), &watched.rules.list()))).clone()
    }

    /// A slice or a rule changed.
    pub fn stock_changed(&self) {
        *self.stock.lock() = None;
    }

    /// A claim as it is: as it was written, if the cache does not have that yet.
    pub fn claim(&self, watched: &Watched, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        let claim = watched.claims.get(namespace, name)?;
        let memory = self.memory.lock();
        let written = memory.written.get(uid(&claim)).map(|(_, written)| written);
        Some(written.filter(|written| version(written) > version(&claim)).cloned().unwrap_or(claim))
    }

    /// The same claim as it is now; none: it was deleted.
    pub fn current(&self, watched: &Watched, claim: &ResourceClaim) -> Option<Arc<ResourceClaim>> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        match self.claim(watched, namespace, name) {
            Some(known) => (uid(&known) == uid(claim)).then_some(known),
            // One that was created just now may not be seen yet.
            None => self.memory.lock().written.get(uid(claim)).map(|(_, written)| written.clone()),
        }
    }

    /// A version of a claim was seen: what was remembered of it is not needed any more.
    pub fn seen(&self, claim: &ResourceClaim, is_gone: bool) {
        let mut memory = self.memory.lock();
        let known = memory.written.get(uid(claim));
        if known.is_some_and(|(_, written)| is_gone || version(claim) >= version(written)) {
            memory.written.remove(uid(claim));
        }
        drop(memory);
        self.changed.notify_waiters();
    }

    /// Every device that is somebody's, or about to be.
    pub fn taken(&self, watched: &Watched) -> Taken {
        let claims = watched.claims.list();
        let mut memory = self.memory.lock();
        let cached: HashMap<&str, u64> = claims.iter().map(|claim| (uid(claim), version(claim))).collect();
        memory.written.retain(|uid, (since, written)| match cached.get(uid.as_str()) {
            // The cache will have it, however long that takes.
            Some(known) => *known < version(written),
            None => since.elapsed() < UNSEEN,
        });
        let newer = |claim: &ResourceClaim| {
            memory.written.get(uid(claim)).filter(|(_, written)| version(written) >= version(claim))
        };
        let mut taken = Taken::default();
        for claim in claims.iter().filter(|claim| newer(claim).is_none()) {
            taken.add_claim(claim);
        }
        for (_, claim) in memory.written.values() {
            taken.add_claim(claim);
        }
        for promise in memory.promised.values().flatten() {
            taken.add_allocation(&promise.allocation);
        }
        taken
    }

    /// Whether somebody's binding is allocating this claim.
    pub fn is_promised(&self, claim: &ResourceClaim) -> bool {
        let memory = self.memory.lock();
        memory.promised.values().flatten().any(|promise| uid(&promise.claim) == uid(claim))
    }

    pub fn promise(&self, pod: &Uid, promises: Vec<Promise>) {
        self.memory.lock().promised.insert(pod.clone(), promises);
    }

    pub fn promises(&self, pod: &Uid) -> Vec<Promise> {
        self.memory.lock().promised.get(pod).cloned().unwrap_or_default()
    }

    /// A claim was written: it counts as it is now, also before the cache has it.
    pub fn wrote(&self, claim: &Arc<ResourceClaim>) {
        let mut memory = self.memory.lock();
        if memory.written.get(uid(claim)).is_none_or(|(_, known)| version(known) <= version(claim)) {
            memory.written.insert(uid(claim).to_owned(), (Instant::now(), claim.clone()));
        }
    }

    /// A claim was written for a pod. What was promised of it is kept.
    pub fn keep(&self, pod: &Uid, promise: Option<&Promise>, claim: &Arc<ResourceClaim>) {
        self.wrote(claim);
        let mut memory = self.memory.lock();
        let reserved = memory.reserved.entry(pod.clone()).or_default();
        reserved.retain(|known| uid(known) != uid(claim));
        reserved.push(claim.clone());
        if let (Some(kept), Some(promised)) = (promise, memory.promised.get_mut(pod)) {
            promised.retain(|promise| uid(&promise.claim) != uid(&kept.claim));
        }
    }

    /// What binding reserved for a pod so far.
    pub fn reserved(&self, pod: &Uid) -> Vec<Arc<ResourceClaim>> {
        self.memory.lock().reserved.get(pod).cloned().unwrap_or_default()
    }

    /// The pod is bound, or will not be.
    pub fn forget(&self, pod: &Uid) {
        let mut memory = self.memory.lock();
        memory.promised.remove(pod);
        memory.reserved.remove(pod);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::{Value, json};

    impl Devices {
        /// Caches that are full and that nothing feeds.
        pub fn detached() -> Self {
            let devices = Self::of(|| Watched {
                claims: Informer::detached(),
                slices: Informer::detached(),
                classes: Informer::detached(),
                rules: Informer::detached(),
            });
            let watched = devices.watch().unwrap();
            watched.claims.mark_synced();
            watched.slices.mark_synced();
            watched.classes.mark_synced();
            watched.rules.mark_synced();
            devices
        }
    }

    /// A claim `default/<name>` with this UID and version; with a device of that name, or without any.
    pub fn claim(name: &str, uid: &str, version: u64, device: Option<&str>) -> ResourceClaim {
        let results = device.map(|device| json!([{"request": "r", "driver": "d", "pool": "p", "device": device}]));
        let allocation = results.map(|results| json!({"devices": {"results": results}}));
        let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": uid,
            "resourceVersion": version.to_string()}, "spec": {}, "status": {"allocation": allocation}});
        serde_json::from_value(claim).unwrap()
    }

    fn taken(devices: &Devices) -> Vec<String> {
        let taken = devices.taken(devices.known().unwrap());
        let mut taken: Vec<String> = taken.wholly().map(|id| id.device.clone()).collect();
        taken.sort();
        taken
    }

    /// As if everything was written long ago.
    fn age(devices: &Devices) {
        for (since, _) in devices.memory.lock().written.values_mut() {
            *since = since.checked_sub(UNSEEN).unwrap();
        }
    }

    #[test]
    fn what_was_written_counts_until_the_cache_has_it() {
        let devices = Devices::detached();
        let watched = devices.known().unwrap();
        watched.claims.apply(claim("c", "1", 1, None));
        devices.keep(&"p".into(), None, &Arc::new(claim("c", "1", 2, Some("x"))));
        assert_eq!(taken(&devices), ["x"]);
        age(&devices);
        assert_eq!(taken(&devices), ["x"], "the cache lags behind, and will have it");
        assert!(is_allocated(&devices.claim(watched, "default", "c").unwrap()));
        watched.claims.apply(claim("c", "1", 3, None));
        assert!(taken(&devices).is_empty(), "it was freed");
        assert!(devices.memory.lock().written.is_empty());
    }

    #[test]
    fn a_claim_that_never_shows_is_forgotten() {
        let devices = Devices::detached();
        devices.keep(&"p".into(), None, &Arc::new(claim("c", "1", 2, Some("x"))));
        assert_eq!(taken(&devices), ["x"], "it was created just now");
        age(&devices);
        assert!(taken(&devices).is_empty(), "it was deleted before the cache had it");
    }

    #[test]
    fn an_older_write_does_not_hide_a_newer_one() {
        let devices = Devices::detached();
        devices.wrote(&Arc::new(claim("c", "1", 3, None)));
        devices.wrote(&Arc::new(claim("c", "1", 2, Some("x"))));
        assert!(taken(&devices).is_empty());
    }

    #[test]
    fn promises_take_devices_until_they_are_kept_or_broken() {
        let devices = Devices::detached();
        let held = claim("c", "1", 1, Some("x"));
        let allocation = held.status.clone().unwrap().allocation.unwrap();
        let promise = Promise { claim: Arc::new(claim("c", "1", 1, None)), allocation, mappings: Vec::new() };
        let pod: Uid = "p".into();
        devices.promise(&pod, vec![promise.clone()]);
        assert!(devices.is_promised(&held) && taken(&devices) == ["x"]);
        devices.keep(&pod, Some(&promise), &Arc::new(claim("c", "1", 2, Some("x"))));
        assert!(!devices.is_promised(&held) && taken(&devices) == ["x"]);
        assert_eq!(devices.reserved(&pod).len(), 1);
        devices.promise(&pod, vec![promise]);
        devices.forget(&pod);
        assert!(!devices.is_promised(&held) && devices.reserved(&pod).is_empty());
    }

    #[test]
    fn a_claim_made_anew_is_another_one() {
        let devices = Devices::detached();
        let watched = devices.known().unwrap();
        let mine = claim("c", "1", 1, None);
        assert_eq!(devices.current(watched, &mine), None);
        devices.wrote(&Arc::new(mine.clone()));
        assert!(devices.current(watched, &mine).is_some(), "not seen yet");
        watched.claims.apply(claim("c", "2", 2, None));
        assert_eq!(devices.current(watched, &mine), None);
    }

    #[test]
    fn the_stock_is_kept_until_something_changes() {
        let devices = Devices::detached();
        let watched = devices.known().unwrap();
        let first = devices.stock(watched);
        assert!(Arc::ptr_eq(&first, &devices.stock(watched)));
        let slice: Value = json!({"metadata": {"name": "s"}, "spec": {"driver": "d", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "x"}]}});
        watched.slices.apply(serde_json::from_value(slice).unwrap());
        devices.stock_changed();
        let node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
        let inventory = crate::devices::Inventory::new(devices.stock(watched), &Taken::default());
        assert_eq!(inventory.reachable(&node)[0].offers.len(), 1);
    }
}
