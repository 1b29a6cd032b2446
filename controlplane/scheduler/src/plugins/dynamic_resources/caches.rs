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

use crate::devices::Taken;
use crate::pod::Uid;

/// How long a claim that was just created may take to be seen.
const UNSEEN: Duration = Duration::from_secs(120);

pub struct Devices {
    informers: Informers,
    watched: OnceLock<Watched>,
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
        Self {
            informers: informers.clone(),
            watched: OnceLock::new(),
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
            Watched {
                claims: self.informers.of(),
                slices: self.informers.of(),
                classes: self.informers.of(),
                rules: self.informers.of(),
            }
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

    /// A claim as it is: as it was written, if the cache does not have that yet.
    pub fn claim(&self, watched: &Watched, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        let claim = watched.claims.get(namespace, name)?;
        let memory = self.memory.lock();
        let written = memory.written.get(uid(&claim)).map(|(_, written)| written);
        Some(written.filter(|written| version(written) > version(&claim)).cloned().unwrap_or(claim))
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
        memory.written.retain(|_, (since, _)| since.elapsed() < UNSEEN);
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

    /// A claim was written for a pod. What was promised of it is kept.
    pub fn keep(&self, pod: &Uid, promise: Option<&Promise>, claim: &Arc<ResourceClaim>) {
        let mut memory = self.memory.lock();
        memory.written.insert(uid(claim).to_owned(), (Instant::now(), claim.clone()));
        let reserved = memory.reserved.entry(pod.clone()).or_default();
        reserved.retain(|known| uid(known) != uid(claim));
        reserved.push(claim.clone());
        if let (Some(kept), Some(promised)) = (promise, memory.promised.get_mut(pod)) {
            promised.retain(|promise| uid(&promise.claim) != uid(&kept.claim));
        }
    }

    /// The pod is bound, or will not be. What was reserved for it so far.
    pub fn forget(&self, pod: &Uid) -> Vec<Arc<ResourceClaim>> {
        let mut memory = self.memory.lock();
        memory.promised.remove(pod);
        memory.reserved.remove(pod).unwrap_or_default()
    }
}
