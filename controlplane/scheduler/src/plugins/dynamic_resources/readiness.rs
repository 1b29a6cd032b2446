//! Devices that have to be made ready for a node first: a pod is not bound before their binding
//! conditions hold.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaim};

use super::claims;
use crate::devices::{results, shown};
use crate::pod::PodInfo;

/// As long as Kubernetes waits.
pub const LONGEST_WAIT: SignedDuration = SignedDuration::from_secs(600);

fn given(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    claims::allocation(claim).map(results).unwrap_or_default()
}

fn waits_for(result: &DeviceRequestAllocationResult) -> &[String] {
    result.binding_conditions.as_deref().unwrap_or_default()
}

/// Whether some device of the claim has to be made ready.
pub fn has_conditions(claim: &ResourceClaim) -> bool {
    given(claim).iter().any(|result| !waits_for(result).is_empty())
}

/// What a pod waits for is still its own: the claim as it was bound, and as it is now.
pub fn is_held(bound: &ResourceClaim, now: &ResourceClaim, pod: &PodInfo) -> Result<(), String> {
    let lost = |what: &str| Err(format!("claim {} {what} in the meantime", shown(bound)));
    if bound.metadata.uid != now.metadata.uid {
        return lost("got deleted and made anew");
    }
    match claims::allocation(now) {
        None => lost("got deallocated"),
        other if other != claims::allocation(bound) => lost("got allocated elsewhere"),
        Some(_) if !claims::is_reserved_for(now, pod) => lost("lost its reservation for the pod"),
        Some(_) => Ok(()),
    }
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
    let since = claims::allocation(claim).and_then(|allocation| allocation.allocation_timestamp.as_ref());
    has_conditions(claim) && since.is_some_and(|since| now.duration_since(since.0) > LONGEST_WAIT)
}

/// False: its devices were not made ready, so that others should be tried.
pub fn may_become_ready(claim: &ResourceClaim, now: Timestamp) -> bool {
    match is_ready(claim) {
        Ok(ready) => ready || !is_late(claim, now),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;
    use serde_json::{Value, json};

    /// A claim with one device that has to be attached, reserved for the pod `p`; changed by merging `status`.
    fn claim(status: Value) -> ResourceClaim {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "default", "uid": "u"}, "spec": {}, "status": {
            "allocation": {"allocationTimestamp": "2026-01-01T00:00:00Z", "devices": {"results": [
                {"request": "r", "driver": "d", "pool": "p", "device": "x",
                    "bindingConditions": ["Attached", "Powered"], "bindingFailureConditions": ["Broken"]}]}},
            "reservedFor": [{"resource": "pods", "name": "p", "uid": "p"}]}});
        for (key, value) in status.as_object().unwrap() {
            claim["status"][key] = value.clone();
        }
        serde_json::from_value(claim).unwrap()
    }

    fn devices(device: &str, conditions: &[(&str, &str)]) -> Value {
        let conditions = conditions.iter().map(|(kind, status)| {
            json!({"type": kind, "status": status, "reason": "Because", "message": "no link",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        });
        let conditions: Vec<Value> = conditions.collect();
        json!({"devices": [{"driver": "d", "pool": "p", "device": device, "conditions": conditions}]})
    }

    #[test]
    fn devices_are_ready_when_all_conditions_hold() {
        let both = [("Attached", "True"), ("Powered", "True")];
        let failed = "claim c binding failed: reason=Because, message=\"no link\"";
        for (status, want) in [
            (json!({}), Ok(false)),
            (devices("other", &both), Ok(false)),
            (devices("x", &both[..1]), Ok(false)),
            (devices("x", &[("Attached", "True"), ("Powered", "False")]), Ok(false)),
            (devices("x", &both), Ok(true)),
            (devices("x", &[both[0], both[1], ("Broken", "False")]), Ok(true)),
            (devices("x", &[both[0], both[1], ("Broken", "True")]), Err(failed.to_owned())),
        ] {
            assert_eq!(is_ready(&claim(status.clone())), want, "{status}");
        }
        let plain = claim(json!({"allocation": {"devices": {"results": [
            {"request": "r", "driver": "d", "pool": "p", "device": "x"}]}}}));
        assert!(!has_conditions(&plain) && is_ready(&plain) == Ok(true));
    }

    #[test]
    fn devices_have_their_time_to_become_ready() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (early, late) = (at("2026-01-01T00:09:59Z"), at("2026-01-01T00:10:01Z"));
        let waiting = claim(json!({}));
        assert!(may_become_ready(&waiting, early) && !may_become_ready(&waiting, late));
        let ready = claim(devices("x", &[("Attached", "True"), ("Powered", "True")]));
        assert!(may_become_ready(&ready, late));
        assert!(!may_become_ready(&claim(devices("x", &[("Broken", "True")])), early));
    }

    #[test]
    fn a_claim_that_is_lost_while_its_devices_are_made_ready_is_not_waited_for() {
        let bound = claim(json!({}));
        let mut anew = bound.clone();
        anew.metadata.uid = Some("v".to_owned());
        let elsewhere = json!({"allocation": {"devices": {"results": []}}});
        for (now, lost) in [
            (bound.clone(), None),
            (claim(devices("x", &[])), None),
            (claim(json!({"allocation": null})), Some("got deallocated")),
            (claim(elsewhere), Some("got allocated elsewhere")),
            (claim(json!({"reservedFor": []})), Some("lost its reservation for the pod")),
            (anew, Some("got deleted and made anew")),
        ] {
            let want = lost.map_or(Ok(()), |what| Err(format!("claim default/c {what} in the meantime")));
            assert_eq!(is_held(&bound, &now, &pod(json!({"containers": []}))), want);
        }
    }
}
