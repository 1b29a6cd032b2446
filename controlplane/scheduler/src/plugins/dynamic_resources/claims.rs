//! The claims of a pod: which they are, and whether they can be used.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PodResourceClaim;
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use super::caches::{Devices, Watched};
use crate::pod::PodInfo;

/// Pods that can share a claim.
const MOST_CONSUMERS: usize = 256;

/// The claims that the pod names, as they are. The error says what the pod waits for.
pub fn of_pod(devices: &Devices, watched: &Watched, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
    let mut claims = Vec::new();
    let named = pod.spec().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default();
    for entry in named {
        let Some(Name { name, generated }) = name(pod, entry)? else { continue };
        let claim = devices.claim(watched, &pod.namespace, &name);
        let claim = claim.ok_or_else(|| format!("resourceclaim.resource.k8s.io \"{name}\" not found"))?;
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim \"{name}\" is being deleted"));
        }
        if generated && !is_for(&claim, pod) {
            let (pod, namespace) = (pod.full_name(), &pod.namespace);
            return Err(format!("ResourceClaim {namespace}/{name} was not created for Pod {pod} (Pod is not owner)"));
        }
        claims.push(claim);
    }
    Ok(claims)
}

/// A claim's name, and whether it was made from a template.
struct Name {
    name: String,
    generated: bool,
}

/// None: there is none to be made.
fn name(pod: &PodInfo, entry: &PodResourceClaim) -> Result<Option<Name>, String> {
    if let Some(name) = &entry.resource_claim_name {
        return Ok(Some(Name { name: name.clone(), generated: false }));
    }
    if entry.resource_claim_template_name.is_none() {
        let (pod, claim) = (pod.full_name(), &entry.name);
        return Err(format!("pod \"{pod}\", spec.resourceClaim \"{claim}\": none of the supported fields are set"));
    }
    let statuses = pod.pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
    let status = statuses.into_iter().flatten().find(|status| status.name == entry.name);
    let status = status.ok_or_else(|| format!("pod \"{}\": ResourceClaim not created yet", pod.full_name()))?;
    Ok(status.resource_claim_name.clone().map(|name| Name { name, generated: true }))
}

/// Whether the pod controls the claim.
fn is_for(claim: &ResourceClaim, pod: &PodInfo) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.filter(|owner| owner.controller == Some(true)).any(|owner| owner.uid == *pod.uid)
}

/// The devices that it was given.
pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref().and_then(|status| status.allocation.as_ref())
}

/// Whether it can be had by no more pods.
pub fn is_full(claim: &ResourceClaim) -> bool {
    let reserved = claim.status.as_ref().and_then(|status| status.reserved_for.as_ref());
    reserved.is_some_and(|reserved| reserved.len() >= MOST_CONSUMERS)
}

pub fn is_reserved_for(claim: &ResourceClaim, pod: &PodInfo) -> bool {
    let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    reserved.into_iter().any(|consumer| consumer.uid == *pod.uid)
}

/// The classes that a claim's requests are for, each with the name of its request.
pub fn classes(claim: &ResourceClaim) -> Vec<(String, &str)> {
    let requests =
        claim.spec.as_ref().and_then(|spec| spec.devices.as_ref()).and_then(|devices| devices.requests.as_ref());
    let mut classes = Vec::new();
    for request in requests.into_iter().flatten() {
        if let Some(exactly) = &request.exactly {
            classes.push((request.name.clone(), exactly.device_class_name.as_str()));
        }
        for option in request.first_available.iter().flatten() {
            classes.push((format!("{}/{}", request.name, option.name), option.device_class_name.as_str()));
        }
    }
    classes
}

/// Whether nobody but the pod has the claim reserved.
pub fn is_only_for(claim: &ResourceClaim, pod: &str) -> bool {
    let reserved = claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default();
    match reserved {
        [] => true,
        [one] => one.uid == pod,
        _ => false,
    }
}
