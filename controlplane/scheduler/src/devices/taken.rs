//! What claims hold already.

use std::collections::{BTreeMap, HashMap, HashSet};

use api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequestAllocationResult, ResourceClaim};

/// A device by its driver, pool and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    pub driver: String,
    pub pool: String,
    pub device: String,
}

impl DeviceId {
    pub fn of(result: &DeviceRequestAllocationResult) -> Self {
        Self { driver: result.driver.clone(), pool: result.pool.clone(), device: result.device.clone() }
    }
}

/// Amounts of a device's capacities by name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Devices that are somebody's, wholly or in part.
#[derive(Debug, Default)]
pub struct Taken {
    wholly: HashSet<DeviceId>,
    shared: HashMap<DeviceId, Amounts>,
}

impl Taken {
    /// What a claim was given.
    pub fn add_claim(&mut self, claim: &ResourceClaim) {
        if let Some(allocation) = claim.status.as_ref().and_then(|status| status.allocation.as_ref()) {
            self.add_allocation(allocation);
        }
    }

    /// Access as administrator takes nothing.
    pub fn add_allocation(&mut self, allocation: &AllocationResult) {
        for result in results(allocation).iter().filter(|result| result.admin_access != Some(true)) {
            self.add(result);
        }
    }

    fn add(&mut self, result: &DeviceRequestAllocationResult) {
        let id = DeviceId::of(result);
        if result.share_id.is_none() {
            self.wholly.insert(id);
            return;
        }
        let sum = self.shared.entry(id).or_default();
        for (name, amount) in result.consumed_capacity.iter().flatten() {
            let known = sum.entry(name.clone()).or_insert(Quantity::ZERO);
            *known = *known + Quantity::from(amount);
        }
    }

    /// Devices that somebody has for himself.
    pub fn wholly(&self) -> impl Iterator<Item = &DeviceId> {
        self.wholly.iter()
    }

    /// What is taken of devices that several claims may have.
    pub fn shares(&self) -> impl Iterator<Item = (&DeviceId, &Amounts)> {
        self.shared.iter()
    }
}

/// The devices of an allocation.
pub fn results(allocation: &AllocationResult) -> &[DeviceRequestAllocationResult] {
    allocation.devices.as_ref().and_then(|devices| devices.results.as_deref()).unwrap_or_default()
}
