//! What could let a pod be placed that found no devices.

use k8s_openapi::api::resource::v1::ResourceClaim;

use super::caches::{Devices, is_allocated};
use super::{claims, extended};
use crate::event::ClusterEvent;
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub fn helps(devices: &Devices, pod: &PodInfo, event: &ClusterEvent) -> bool {
    if !pod.may_need_devices() {
        return false;
    }
    match event {
        ClusterEvent::DevicesChanged | ClusterEvent::ClassChanged(_) | ClusterEvent::NodeAdded(_) => true,
        ClusterEvent::ClaimChanged { old, new } => claim_helps(devices, pod, old.as_deref(), new),
        // Its devices are free, or the next try can make its own.
        ClusterEvent::ClaimGone(claim) => is_allocated(claim) || extended::is_claim_of(claim, pod),
        ClusterEvent::NodeUpdated { old, new } => {
            old.node.metadata.labels != new.node.metadata.labels || gives_otherwise(pod, old, new)
        }
        // What was promised to it may be free again.
        ClusterEvent::PodGone(other) => other.may_need_devices(),
        _ => false,
    }
}

/// Whether a node changed what it has of the pod's resources by itself: what device plugins give is
/// not looked for among devices.
fn gives_otherwise(pod: &PodInfo, old: &NodeInfo, new: &NodeInfo) -> bool {
    let has = |node: &NodeInfo, name: &str| node.allocatable.others.get(name).copied();
    pod.extended_resources().any(|(name, _)| has(old, name) != has(new, name))
}

fn claim_helps(devices: &Devices, pod: &PodInfo, old: Option<&ResourceClaim>, new: &ResourceClaim) -> bool {
    let Some(watched) = devices.known() else { return false };
    let Ok(claims) = claims::of_pod(devices, watched, pod) else { return false };
    if old.is_some_and(is_allocated) && !is_allocated(new) {
        return true;
    }
    let uses = claims.iter().any(|claim| claim.metadata.uid == new.metadata.uid);
    uses && old.is_none_or(|old| old.status != new.status)
}

#[cfg(test)]
mod tests {
    use super::super::caches::tests::claim;
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn with_claim() -> PodInfo {
        pod(json!({"containers": [], "resourceClaims": [{"name": "device", "resourceClaimName": "mine"}]}))
    }

    fn with_resource() -> PodInfo {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"x.io/gpu": "1"}}}]}))
    }

    fn changed(old: Option<ResourceClaim>, new: ResourceClaim) -> ClusterEvent {
        ClusterEvent::ClaimChanged { old: old.map(Arc::new), new: Arc::new(new) }
    }

    #[test]
    fn claims_help_whoever_waits_for_them_or_their_devices() {
        let devices = Devices::detached();
        devices.known().unwrap().claims.apply(claim("mine", "1", 1, None));
        let gone = |claim| ClusterEvent::ClaimGone(Arc::new(claim));
        let mut left = claim("p-extended", "3", 1, None);
        left.metadata.annotations =
            Some([("resource.kubernetes.io/extended-resource-claim".to_owned(), "true".to_owned())].into());
        left.metadata.owner_references = serde_json::from_value(json!([
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true}]))
        .unwrap();
        for (what, event, helps_it) in [
            ("mine appeared", changed(None, claim("mine", "1", 1, None)), true),
            ("mine as before", changed(Some(claim("mine", "1", 1, None)), claim("mine", "1", 2, None)), false),
            ("mine allocated", changed(Some(claim("mine", "1", 1, None)), claim("mine", "1", 2, Some("x"))), true),
            ("other appeared", changed(None, claim("other", "2", 1, None)), false),
            ("other freed", changed(Some(claim("other", "2", 1, Some("x"))), claim("other", "2", 2, None)), true),
            ("other deleted, with a device", gone(claim("other", "2", 1, Some("x"))), true),
            ("other deleted, without", gone(claim("other", "2", 1, None)), false),
            ("what an earlier try left deleted", gone(left), true),
        ] {
            assert_eq!(helps(&devices, &with_claim(), &event), helps_it, "{what}");
            assert!(!helps(&devices, &pod(json!({"containers": []})), &event), "{what}: needs no devices");
        }
    }

    #[test]
    fn nodes_help_whose_devices_or_resources_may_be_others_now() {
        let devices = Devices::detached();
        let updated = |patch: Value| ClusterEvent::NodeUpdated {
            old: Arc::new(node("n", json!({}))),
            new: Arc::new(node("n", patch)),
        };
        let gpu = updated(json!({"status": {"allocatable": {"x.io/gpu": "1"}}}));
        let other = updated(json!({"status": {"allocatable": {"x.io/nic": "1", "cpu": "8"}}}));
        let label = updated(json!({"metadata": {"labels": {"zone": "a"}}}));
        for (pod, helpful) in [(with_claim(), [false, false, true]), (with_resource(), [true, false, true])] {
            assert_eq!([&gpu, &other, &label].map(|event| helps(&devices, &pod, event)), helpful);
        }
    }
}
