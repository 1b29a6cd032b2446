//! What is to be done about claims. Pure (`pkg/controller/resourceclaim/controller.go`).

use api::devices::FINALIZER;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{
    ResourceClaim, ResourceClaimConsumerReference, ResourceClaimStatus, ResourceClaimTemplate,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;

use crate::{meta, podstate};

/// Of a generated claim: the entry of the pod that it is for.
const ENTRY: &str = "resource.kubernetes.io/pod-claim-name";
/// Leaves room for a hyphen and five random characters in a name of 63.
const LONGEST_BASE: usize = 57;

/// `spec.resourceClaims`
pub fn entries(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_deref()).unwrap_or_default()
}

pub fn status_of<'a>(pod: &'a Pod, entry: &str) -> Option<&'a PodResourceClaimStatus> {
    let statuses = pod.status.as_ref()?.resource_claim_statuses.as_ref()?;
    statuses.iter().find(|status| status.name == entry)
}

fn extended(pod: &Pod) -> Option<&str> {
    Some(&pod.status.as_ref()?.extended_resource_claim_status.as_ref()?.resource_claim_name)
}

pub fn uses_claims(pod: &Pod) -> bool {
    !entries(pod).is_empty() || extended(pod).is_some()
}

/// Every claim of the pod whose name is known.
pub fn claim_names(pod: &Pod) -> Vec<String> {
    let named = |entry: &PodResourceClaim| {
        entry.resource_claim_name.clone().or_else(|| status_of(pod, &entry.name)?.resource_claim_name.clone())
    };
    entries(pod).iter().filter_map(named).chain(extended(pod).map(str::to_owned)).collect()
}

/// Whether the pod will not run (any more).
pub fn is_done(pod: &Pod) -> bool {
    podstate::is_finished(pod) || (meta::is_deleting(&pod.metadata) && podstate::node_name(pod).is_empty())
}

/// Whether a claim that the pod controls is the one for an entry.
pub fn is_for_entry(claim: &ResourceClaim, pod: &Pod, entry: &str) -> bool {
    match meta::annotation(&claim.metadata, ENTRY) {
        Some(name) => name == entry,
        None => claim.name_any() == format!("{}-{entry}", pod.name_any()),
    }
}

/// The claim for an entry of a pod.
pub fn claim(pod: &Pod, entry: &str, template: &ResourceClaimTemplate) -> ResourceClaim {
    let template = template.spec.clone().unwrap_or_default();
    let from = template.metadata.unwrap_or_default();
    let mut annotations = from.annotations.unwrap_or_default();
    annotations.insert(ENTRY.to_owned(), entry.to_owned());
    ResourceClaim {
        metadata: ObjectMeta {
            namespace: pod.namespace(),
            generate_name: Some(base(&pod.name_any(), entry)),
            labels: from.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![meta::controller_ref(pod)]),
            ..Default::default()
        },
        spec: Some(template.spec.unwrap_or_default()),
        status: None,
    }
}

/// `<pod>-<entry>-`; both are cut in proportion where that is too long. Names are ASCII.
fn base(pod: &str, entry: &str) -> String {
    let base = format!("{pod}-{entry}-");
    let length = base.len();
    if length <= LONGEST_BASE {
        return base;
    }
    let cut = |text: &str| text.chars().take(text.len() * LONGEST_BASE / length).collect::<String>();
    format!("{}-{}", cut(pod), cut(entry))
}

pub fn consumers(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

/// The name of the pod that a reservation is for; the error says that it is for something else.
pub fn pod_of(consumer: &ResourceClaimConsumerReference) -> Result<&str, String> {
    let group = consumer.api_group.as_deref().unwrap_or_default();
    if group.is_empty() && consumer.resource == "pods" {
        return Ok(&consumer.name);
    }
    let ResourceClaimConsumerReference { resource, name, uid, .. } = consumer;
    Err(format!("unsupported ReservedFor entry: {group}/{resource} {name} {uid}"))
}

/// What is to be known of the pod of a reservation.
#[derive(Debug, Clone, PartialEq)]
pub struct Consumer {
    uid: String,
    is_done: bool,
}

impl Consumer {
    pub fn of(pod: &Pod) -> Self {
        Self { uid: meta::uid(&pod.metadata).to_owned(), is_done: is_done(pod) }
    }
}

/// Whether a reservation stands.
pub fn is_valid(reservation: &ResourceClaimConsumerReference, pod: Option<Consumer>) -> bool {
    pod.is_some_and(|pod| pod.uid == reservation.uid && !pod.is_done)
}

/// The pod that a claim was generated for.
pub fn owning_pod(claim: &ResourceClaim) -> Option<&OwnerReference> {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().find(|owner| owner.api_version == "v1" && owner.kind == "Pod" && owner.controller == Some(true))
}

/// In this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Write this status.
    pub status: Option<ResourceClaimStatus>,
    /// Remove the finalizer: there is nothing to be freed any more.
    pub release: bool,
    pub delete: bool,
}

/// `valid` are the reservations that stand; `owner` the pod of the name that the claim was made for.
pub fn decide(claim: &ResourceClaim, valid: Vec<ResourceClaimConsumerReference>, owner: Option<&Pod>) -> Plan {
    let mut plan = Plan::default();
    let protected = meta::has_finalizer(&claim.metadata, FINALIZER);
    let unused = valid.is_empty();
    let fewer = valid.len() < consumers(claim).len();
    let frees = protected && unused && (fewer || meta::is_deleting(&claim.metadata));
    let allocated = claim.status.as_ref().is_some_and(|status| status.allocation.is_some());
    if fewer || (frees && allocated) {
        let mut status = claim.status.clone().unwrap_or_default();
        status.reserved_for = (!unused).then_some(valid);
        if frees {
            status.allocation = None;
            status.devices = None;
        }
        plan.status = Some(status);
    }
    plan.release = frees;
    let owner_done = |pod: &Pod| {
        let same = owning_pod(claim).is_some_and(|owner| owner.uid == meta::uid(&pod.metadata));
        !same || is_done(pod)
    };
    plan.delete = unused && !meta::is_deleting(&claim.metadata) && owner.is_some_and(owner_done);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn from<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    fn reference(uid: &str) -> ResourceClaimConsumerReference {
        from(json!({"resource": "pods", "name": "p", "uid": uid}))
    }

    fn held(reserved: &[&str], meta: Value) -> ResourceClaim {
        let mut claim = json!({"metadata": {"name": "c", "finalizers": [FINALIZER]}, "spec": {},
            "status": {"allocation": {}, "reservedFor": reserved.iter().map(|uid| reference(uid)).collect::<Vec<_>>()}});
        for (key, value) in meta.as_object().unwrap() {
            claim["metadata"][key] = value.clone();
        }
        from(claim)
    }

    fn pod(uid: &str, phase: &str) -> Pod {
        from(json!({"metadata": {"name": "p", "uid": uid}, "spec": {"containers": []}, "status": {"phase": phase}}))
    }

    /// Reservations left and whether it is allocated, if its status is written; release; delete.
    fn decided(claim: &ResourceClaim, valid: &[&str], owner: Option<&Pod>) -> (Option<(usize, bool)>, bool, bool) {
        let plan = decide(claim, valid.iter().map(|uid| reference(uid)).collect(), owner);
        let status = plan
            .status
            .map(|status| (status.reserved_for.map_or(0, |reserved| reserved.len()), status.allocation.is_some()));
        (status, plan.release, plan.delete)
    }

    #[test]
    fn devices_are_taken_back_with_the_last_reservation() {
        let deleted = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        let unprotected = json!({"finalizers": []});
        for (claim, valid, want) in [
            (held(&["1", "2"], json!({})), vec!["1", "2"], (None, false, false)),
            (held(&["1", "2"], json!({})), vec!["2"], (Some((1, true)), false, false)),
            (held(&["1"], json!({})), vec![], (Some((0, false)), true, false)),
            (held(&["1"], unprotected), vec![], (Some((0, true)), false, false)),
            // Allocated but never used: kept until it is deleted.
            (held(&[], json!({})), vec![], (None, false, false)),
            (held(&[], deleted.clone()), vec![], (Some((0, false)), true, false)),
            (held(&["1"], deleted), vec!["1"], (None, false, false)),
        ] {
            assert_eq!(decided(&claim, &valid, None), want, "{claim:?}");
        }
    }

    #[test]
    fn generated_claims_go_with_their_pods() {
        let owned = json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1", "controller": true}]});
        for (owner, valid, want) in [
            (pod("1", "Running"), vec!["1"], (None, false, false)),
            (pod("1", "Pending"), vec![], (Some((0, false)), true, false)),
            (pod("1", "Succeeded"), vec![], (Some((0, false)), true, true)),
            (pod("2", "Running"), vec![], (Some((0, false)), true, true)),
        ] {
            assert_eq!(decided(&held(&["1"], owned.clone()), &valid, Some(&owner)), want, "{owner:?}");
        }
    }

    #[test]
    fn reservations_stand_as_long_as_their_pods_run() {
        let deleting = |node: &str| {
            let mut pod = pod("1", "Pending");
            pod.metadata.deletion_timestamp = meta::stamp(meta::now());
            pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
            pod
        };
        for (pod, stands) in [
            (Some(pod("1", "Running")), true),
            (Some(pod("2", "Running")), false),
            (Some(pod("1", "Failed")), false),
            (Some(deleting("")), false),
            (Some(deleting("n")), true),
            (None, false),
        ] {
            assert_eq!(is_valid(&reference("1"), pod.as_ref().map(Consumer::of)), stands, "{pod:?}");
        }
        let group = from(json!({"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "g", "uid": "1"}));
        assert!(pod_of(&group).is_err());
    }

    #[test]
    fn names_of_claims() {
        assert_eq!(base("pod", "gpu"), "pod-gpu-");
        let long = base(&"p".repeat(100), &"c".repeat(50));
        assert_eq!(long, format!("{}-{}", "p".repeat(37), "c".repeat(18)));
        let pod: Pod = from(json!({"metadata": {"name": "p", "namespace": "n", "uid": "1"},
            "spec": {"containers": [], "resourceClaims": [
                {"name": "a", "resourceClaimName": "direct"}, {"name": "b", "resourceClaimTemplateName": "t"},
                {"name": "c", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-x"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "p-extended", "requestMappings": []}}}));
        assert_eq!(claim_names(&pod), ["direct", "p-b-x", "p-extended"]);
        let template: ResourceClaimTemplate = from(json!({"metadata": {"name": "t"}, "spec": {
            "metadata": {"labels": {"a": "b"}, "annotations": {"x": "y"}}, "spec": {"devices": {}}}}));
        let made = claim(&pod, "c", &template);
        let meta = &made.metadata;
        assert_eq!(meta.generate_name.as_deref(), Some("p-c-"));
        assert_eq!(serde_json::to_value(&meta.annotations).unwrap(), json!({"x": "y", ENTRY: "c"}));
        assert!(meta::is_controlled_by(meta, "1") && is_for_entry(&made, &pod, "c") && !is_for_entry(&made, &pod, "b"));
        assert_eq!(meta.labels.as_ref().unwrap()["a"], "b");
    }
}
