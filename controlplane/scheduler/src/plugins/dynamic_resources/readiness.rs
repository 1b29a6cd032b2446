//! Devices that have to be made ready for a node first: a pod is not bound before their binding
//! conditions hold.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaim};

use crate::devices::results;

/// As long as Kubernetes waits.
pub const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(600);

fn given(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    claim.status.as_ref().and_then(|status| status.allocation.as_ref()).map(results).unwrap_or_default()
}

fn waits_for(result: &DeviceRequestAllocationResult) -> &[String] {
    result.binding_conditions.as_deref().unwrap_or_default()
}

/// Whether some device of the claim has to be made ready.
pub fn has_conditions(claim: &ResourceClaim) -> bool {
    given(claim).iter().any(|result| !waits_for(result).is_empty())
}

/// Whether all devices are ready; the error says that one will not be.
pub fn is_ready(claim: &ResourceClaim) -> Result<bool, String> {
    for result in given(claim).iter().filter(|result| !waits_for(result).is_empty()) {
        let Some(status) = status(claim, result) else { return Ok(false) };
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let holds =
            |name: &String| conditions.iter().find(|condition| condition.type_ == *name && condition.status == "True");
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(holds) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let (reason, message) = (&failed.reason, &failed.message);
            return Err(format!("claim {name} binding failed: reason={reason}, message={message:?}"));
        }
        if !waits_for(result).iter().all(|name| holds(name).is_some()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn status<'a>(claim: &'a ResourceClaim, result: &DeviceRequestAllocationResult) -> Option<&'a AllocatedDeviceStatus> {
    let devices = claim.status.as_ref()?.devices.as_ref()?;
    devices
        .iter()
        .find(|device| device.device == result.device && device.driver == result.driver && device.pool == result.pool)
}

/// Whether the devices had their time to become ready.
pub fn is_late(claim: &ResourceClaim, now: Timestamp) -> bool {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let since = allocation.and_then(|allocation| allocation.allocation_timestamp.as_ref());
    has_conditions(claim) && since.is_some_and(|since| now.duration_since(since.0) > LONGEST_WAIT)
}

/// False: its devices were not made ready, so that others should be tried.
pub fn may_become_ready(claim: &ResourceClaim, now: Timestamp) -> bool {
    match is_ready(claim) {
        Ok(ready) => ready || !is_late(claim, now),
        Err(_) => false,
    }
}
