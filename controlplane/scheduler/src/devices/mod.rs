//! Allocation of devices to claims (dynamic resource allocation). Pure.
//!
//! - [`stock`]: what drivers offer (ResourceSlices by pool); [`inventory`]: what of it is taken, and
//!   what of it a node can reach;
//! - [`request`]: what claims ask for; [`constraint`], [`capacity`], [`counters`]: what limits the
//!   choice;
//! - [`search`]: tries devices until all of a pod's claims are met on one node;
//! - [`result`](mod@result): the outcome, as it goes into `status.allocation`.
//!
//! The rules are those of `k8s.io/dynamic-resource-allocation/structured`.
//!
//! ```text
//! let inventory = Inventory::new(Arc::new(Stock::new(slices, rules)), &taken);
//! allocate(&Task { inventory, classes, selectors, node, deadline }, &claims)?
//!     → Some(one AllocationResult per claim), None: they cannot all be met there
//! ```

mod capacity;
mod constraint;
mod counters;
pub mod inventory;
mod request;
mod result;
mod search;
mod stock;
mod taken;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use expressions::device::Cache;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim};

pub use inventory::Inventory;
pub use request::shown;
pub use result::random_uuid;
pub use stock::Stock;
pub use taken::{Taken, results};

/// Devices that one claim can get, at most.
pub const MOST_RESULTS: usize = 32;

/// Everything an allocation depends on beside the claims.
pub struct Task<'a> {
    pub inventory: &'a Inventory,
    pub classes: &'a dyn Fn(&str) -> Option<Arc<DeviceClass>>,
    pub selectors: &'a Cache,
    pub node: &'a Node,
    /// When to give up.
    pub deadline: Option<Instant>,
}

impl Task<'_> {
    fn look_at_the_clock(&self) -> Result<(), Failure> {
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(Failure::Timeout),
            _ => Ok(()),
        }
    }
}

/// Why the claims were not even tried, or not to the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The time is up.
    Timeout,
    /// This node cannot be used, others may.
    Node(String),
    /// Something is wrong with a claim, a class or a device: no node will do.
    Broken(String),
}

/// Finds devices for `claims` on the task's node. None: there are none that would do for all.
pub fn allocate(task: &Task<'_>, claims: &[Arc<ResourceClaim>]) -> Result<Option<Vec<AllocationResult>>, Failure> {
    let pools = task.inventory.reachable(task.node);
    let asked = request::parse(task, &pools, claims)?;
    let mut search = search::Search::new(task, &pools, &asked);
    if !search.run()? {
        let invalid = pools.iter().any(|pool| matches!(pool.state, inventory::State::Invalid(_)));
        return if invalid {
            Err(Failure::Node("invalid resource pools were encountered".to_owned()))
        } else {
            Ok(None)
        };
    }
    let (given, chosen) = search.outcome();
    result::results(task, claims, &asked, &given, &chosen).map(Some).map_err(Failure::Broken)
}
