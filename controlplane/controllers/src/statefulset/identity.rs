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

/// Whether the pod is beyond the set's replicas.
pub fn is_condemned(set: &StatefulSet, ordinal: i32) -> bool {
    let first = start_ordinal(set);
    ordinal < first || ordinal >= first + set.spec.replicas.unwrap_or(1)
}

/// The claim's owner references as the retention policy asks for, or none when they are right.
/// `whenDeleted: Delete` makes the set an owner; `whenScaled: Delete` makes a condemned pod one.
pub fn claim_owners(
    set: &StatefulSet,
    pod: &Pod,
    ordinal: i32,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let (when_deleted, when_scaled) = policy(set);
    let condemned = is_condemned(set, ordinal);
    let reference = |kind: &str, name: String, uid: Option<String>, api_version: &str| OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name,
        uid: uid.unwrap_or_default(),
        controller: None,
        block_owner_deletion: None,
    };
    let before = claim.owner_references().to_vec();
    let mut after = before.clone();
    after.retain(|owner| Some(&owner.uid) != set.meta().uid.as_ref() && Some(&owner.uid) != pod.meta().uid.as_ref());
    if when_scaled && condemned {
        after.push(reference("Pod", pod.name_any(), pod.uid(), "v1"));
    } else if when_deleted {
        after.push(reference("StatefulSet", set.name_any(), set.uid(), "apps/v1"));
    }
    let uids = |owners: &[OwnerReference]| -> std::collections::BTreeSet<String> {
        owners.iter().map(|owner| owner.uid.clone()).collect()
    };
    (uids(&before) != uids(&after)).then_some(after)
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
}
