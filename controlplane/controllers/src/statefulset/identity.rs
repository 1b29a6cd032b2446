//! Pure: what a StatefulSet's pod is by its number: name, labels, host name, claims, owners of claims.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::meta::{self, Labels};
use crate::podcontrol;
use crate::revisions::HASH_LABEL;

const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

pub fn start_ordinal(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name_any())
}

/// The number in a member's name.
pub fn ordinal(set: &StatefulSet, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(&set.name_any())?.strip_prefix('-')?;
    let number: i32 = digits.parse().ok()?;
    (number >= 0 && number.to_string() == digits).then_some(number)
}

pub fn labels(set: &StatefulSet, ordinal: i32) -> Labels {
    [(NAME_LABEL.to_owned(), pod_name(set, ordinal)), (INDEX_LABEL.to_owned(), ordinal.to_string())].into()
}

pub fn has_identity(set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
    let own = meta::labels(&pod.metadata);
    labels(set, ordinal).iter().all(|(key, value)| own.get(key) == Some(value))
}

pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = podcontrol::from_template(template, meta::controller_ref(set));
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(pod_name(set, ordinal));
    pod.metadata.namespace = set.namespace();
    let all = pod.metadata.labels.get_or_insert_default();
    all.extend(labels(set, ordinal));
    all.insert(HASH_LABEL.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name(set, ordinal));
    spec.subdomain = set.spec.service_name.clone().filter(|name| !name.is_empty());
    let volumes = spec.volumes.get_or_insert_default();
    for (template, claim) in set.spec.volume_claim_templates.iter().flatten().zip(claims(set, ordinal)) {
        volumes.retain(|volume| volume.name != template.name_any());
        volumes.push(Volume {
            name: template.name_any(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.name_any(),
                read_only: None,
            }),
            ..Default::default()
        });
    }
    spec.volumes = spec.volumes.take().filter(|volumes| !volumes.is_empty());
    pod
}

/// The claims of one pod, as they are created.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let templates = set.spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(format!("{}-{}", template.name_any(), pod_name(set, ordinal)));
            claim.metadata.namespace = set.namespace();
            let labels = claim.metadata.labels.get_or_insert_default();
            labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
            claim.status = None;
            claim
        })
        .collect()
}

fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let delete = |value: Option<String>| value.as_deref() == Some("Delete");
    (delete(policy.when_deleted), delete(policy.when_scaled))
}

/// Whether a claim of this name is one of the set's pods'.
pub fn is_claim_of(set: &StatefulSet, claim: &str) -> bool {
    set.spec.volume_claim_templates.iter().flatten().any(|template| {
        let pod = claim.strip_prefix(&template.name_any()).and_then(|rest| rest.strip_prefix('-'));
        pod.is_some_and(|pod| ordinal(set, pod).is_some())
    })
}

/// Whether the claim goes with an earlier pod of a number that has none now: a new one must not take it.
pub fn is_stale(set: &StatefulSet, ordinal: i32, claim: &PersistentVolumeClaim) -> bool {
    let (_, when_scaled) = policy(set);
    let name = pod_name(set, ordinal);
    when_scaled && claim.owner_references().iter().any(|owner| is_named(owner, "v1", "Pod", &name))
}

fn is_named(owner: &OwnerReference, api_version: &str, kind: &str, name: &str) -> bool {
    owner.api_version == api_version && owner.kind == kind && owner.name == name
}

/// Whether the pod is beyond the set's replicas.
pub fn is_condemned(set: &StatefulSet, ordinal: i32) -> bool {
    let first = start_ordinal(set);
    ordinal < first || ordinal >= first + set.spec.replicas.unwrap_or(1)
}

/// The claim's owner references as the retention policy asks for, or none when they are right.
/// `whenDeleted: Delete` makes the set its controller; `whenScaled: Delete` makes a condemned pod that. What
/// an earlier set or pod of the name owns goes with that, and what somebody else controls is theirs.
pub fn claim_owners(
    set: &StatefulSet,
    pod: &Pod,
    ordinal: i32,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let (when_deleted, when_scaled) = policy(set);
    let condemned = is_condemned(set, ordinal);
    let (set_name, pod_name) = (set.name_any(), pod.name_any());
    let of_name = |owner: &OwnerReference| {
        is_named(owner, "apps/v1", "StatefulSet", &set_name) || is_named(owner, "v1", "Pod", &pod_name)
    };
    let is_ours = |owner: &OwnerReference| {
        Some(&owner.uid) == set.meta().uid.as_ref() || Some(&owner.uid) == pod.meta().uid.as_ref()
    };
    let before = claim.owner_references();
    if before.iter().any(|owner| of_name(owner) && !is_ours(owner)) {
        return None;
    }
    let mut after: Vec<_> = before.iter().filter(|owner| !is_ours(owner)).cloned().collect();
    if after.iter().any(|owner| owner.controller == Some(true)) {
        // there can be one controller only
    } else if when_scaled && condemned {
        after.push(meta::controller_ref(pod));
    } else if when_deleted {
        after.push(meta::controller_ref(set));
    }
    let owned = |owners: &[OwnerReference]| -> std::collections::BTreeSet<(String, bool)> {
        owners.iter().map(|owner| (owner.uid.clone(), owner.controller == Some(true))).collect()
    };
    (owned(before) != owned(&after)).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::StatefulSetPersistentVolumeClaimRetentionPolicy;

    fn set() -> StatefulSet {
        let mut set = StatefulSet::default();
        set.metadata.name = Some("web".into());
        set.metadata.uid = Some("uid-web".into());
        set.spec.replicas = Some(2);
        set.spec.service_name = Some("nginx".into());
        set.spec.selector.match_labels = Some([("app".to_owned(), "web".to_owned())].into());
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.name = Some("data".into());
        set.spec.volume_claim_templates = Some(vec![claim]);
        set
    }

    #[test]
    fn a_pod_has_its_number_everywhere() {
        let pod = pod(&set(), &PodTemplateSpec::default(), "web-abc", 1);
        let spec = pod.spec.clone().unwrap_or_default();
        assert_eq!((pod.name_any().as_str(), spec.hostname.as_deref()), ("web-1", Some("web-1")));
        assert_eq!(spec.subdomain.as_deref(), Some("nginx"));
        let claim = spec.volumes.unwrap_or_default()[0].persistent_volume_claim.clone();
        assert_eq!(claim.map(|claim| claim.claim_name).as_deref(), Some("data-web-1"));
        assert!(has_identity(&set(), &pod, 1) && !has_identity(&set(), &pod, 2));
    }

    #[test]
    fn members_are_told_by_their_names() {
        for (name, expected) in [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-01", None),
            ("web-a", None),
            ("webb-1", None),
            ("web--1", None),
        ] {
            assert_eq!(ordinal(&set(), name), expected, "{name}");
        }
    }

    #[test]
    fn claims_are_owned_as_the_policy_says() {
        let mut set = set();
        let claim = claims(&set, 5).remove(0);
        let mut condemned = Pod::default();
        condemned.metadata.name = Some("web-5".into());
        condemned.metadata.uid = Some("uid-5".into());
        assert_eq!(claim_owners(&set, &condemned, 5, &claim), None);
        set.spec.persistent_volume_claim_retention_policy = Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some("Delete".into()),
            when_scaled: Some("Delete".into()),
        });
        let owner = |ordinal| claim_owners(&set, &condemned, ordinal, &claim).map(|owners| owners[0].uid.clone());
        assert_eq!((owner(5).as_deref(), owner(1).as_deref()), (Some("uid-5"), Some("uid-web")));
    }

    #[test]
    fn a_claim_that_goes_with_an_earlier_pod_is_left_to_go() {
        let mut set = set();
        set.spec.persistent_volume_claim_retention_policy = Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some("Delete".into()),
            when_scaled: Some("Delete".into()),
        });
        let named = |uid: &str| {
            let mut pod = pod(&set, &PodTemplateSpec::default(), "web-abc", 1);
            pod.metadata.uid = Some(uid.to_owned());
            pod
        };
        let mut claim = claims(&set, 1).remove(0);
        assert!(!is_stale(&set, 1, &claim));
        claim.metadata.owner_references = Some(vec![meta::controller_ref(&named("gone"))]);
        assert!(is_stale(&set, 1, &claim) && !is_stale(&set, 0, &claim));
        assert_eq!(claim_owners(&set, &named("new"), 1, &claim), None, "the collector takes it");
        let back = claim_owners(&set, &named("gone"), 1, &claim).expect("it is wanted again");
        assert_eq!(back, [meta::controller_ref(&set)]);
        let mut foreign = claims(&set, 1).remove(0);
        let operator = OwnerReference { uid: "operator".into(), controller: Some(true), ..Default::default() };
        foreign.metadata.owner_references = Some(vec![operator]);
        assert_eq!(claim_owners(&set, &named("new"), 1, &foreign), None, "somebody else controls it");

        assert!(is_claim_of(&set, "data-web-0") && is_claim_of(&set, "data-web-12"));
        assert!(!is_claim_of(&set, "data-web-x") && !is_claim_of(&set, "logs-web-0"));
        set.spec.persistent_volume_claim_retention_policy = None;
        assert!(!is_stale(&set, 1, &claim), "claims are for whoever comes next");
    }
}
