//! What claims hold already.

use std::collections::{BTreeMap, HashMap, HashSet};

use api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};

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
    /// What these claims were given. Access as administrator takes nothing.
    pub fn by<'a>(claims: impl IntoIterator<Item = &'a ResourceClaim>) -> Self {
        let mut taken = Self::default();
        for claim in claims {
            for result in results(claim).iter().filter(|result| result.admin_access != Some(true)) {
                taken.add(result);
            }
        }
        taken
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

    pub fn is_wholly(&self, id: &DeviceId) -> bool {
        self.wholly.contains(id)
    }

    /// What is taken of a device that several claims may have; none if nobody has a part of it.
    pub fn share(&self, id: &DeviceId) -> Option<&Amounts> {
        self.shared.get(id)
    }
}

/// The devices of an allocated claim.
pub fn results(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.and_then(|devices| devices.results.as_deref()).unwrap_or_default()
}
