//! Pure: which ReplicaSet belongs to the template, revision numbers, annotations, history.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::scale;
use crate::{hash, meta};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
pub const HASH_LABEL: &str = "pod-template-hash";
/// Annotations of the Deployment that its ReplicaSets do not inherit.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
];
/// The history annotation is cut to this many characters, oldest revisions first.
const HISTORY_LENGTH: usize = 2000;

/// Equal but for the hash label.
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let without = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let meta = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
        meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
        meta.creation_timestamp = None;
        template
    };
    without(a) == without(b)
}

/// The template's ReplicaSet (the oldest, should there be several), and all others by age.
pub fn split(template: &PodTemplateSpec, mut sets: Vec<ReplicaSet>) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    sets.sort_by(by_age);
    let found = sets.iter().position(|set| set.spec.template.as_ref().is_some_and(|t| same_template(t, template)));
    let new = found.map(|index| sets.remove(index));
    (new, sets)
}

pub fn by_age(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    meta::created(&a.metadata).cmp(&meta::created(&b.metadata)).then_with(|| a.metadata.name.cmp(&b.metadata.name))
}

fn number(set: &ReplicaSet, annotation: &str) -> Option<i64> {
    meta::annotation(&set.metadata, annotation)?.parse().ok()
}

pub fn of(set: &ReplicaSet) -> i64 {
    number(set, REVISION).unwrap_or(0)
}

pub fn newest(sets: &[ReplicaSet]) -> i64 {
    sets.iter().map(of).max().unwrap_or(0)
}

/// The Deployment's replicas when this set was last sized.
pub fn desired_replicas(set: &ReplicaSet) -> Option<i32> {
    number(set, DESIRED).and_then(|value| i32::try_from(value).ok())
}

pub fn max_replicas(set: &ReplicaSet) -> Option<i32> {
    number(set, MAXIMUM).and_then(|value| i32::try_from(value).ok())
}

fn put(set: &mut ReplicaSet, annotation: &str, value: String) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    if annotations.get(annotation) == Some(&value) {
        return false;
    }
    annotations.insert(annotation.to_owned(), value);
    true
}

pub fn annotate_sizes(set: &mut ReplicaSet, deployment: &Deployment) -> bool {
    let wanted = scale::replicas(deployment);
    let desired = put(set, DESIRED, wanted.to_string());
    put(set, MAXIMUM, (wanted + scale::max_surge(deployment)).to_string()) || desired
}

/// Brings the new set's annotations up to date; returns whether any changed. `exists` is false
/// for a set about to be created.
pub fn annotate(set: &mut ReplicaSet, deployment: &Deployment, revision: i64, exists: bool) -> bool {
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            changed |= put(set, key, value.clone());
        }
    }
    let before = meta::annotation(&set.metadata, REVISION).map(str::to_owned);
    if before.as_ref().and_then(|text| text.parse().ok()).unwrap_or(0) < revision {
        changed |= put(set, REVISION, revision.to_string());
        if let Some(before) = before {
            let history = meta::annotation(&set.metadata, HISTORY).unwrap_or_default();
            let history = extended(history, &before);
            changed |= put(set, HISTORY, history);
        }
    }
    if !exists {
        changed |= annotate_sizes(set, deployment);
    }
    changed
}

fn extended(history: &str, revision: &str) -> String {
    let mut revisions: Vec<&str> = history.split(',').filter(|part| !part.is_empty()).collect();
    revisions.push(revision);
    while revisions.len() > 1 && revisions.join(",").len() > HISTORY_LENGTH {
        revisions.remove(0);
    }
    revisions.join(",")
}

pub fn set_on_deployment(deployment: &mut Deployment, revision: &str) {
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.insert(REVISION.to_owned(), revision.to_owned());
}

/// The ReplicaSet to create for the template.
pub fn new_set(deployment: &Deployment, size: i32, revision: i64) -> ReplicaSet {
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash::of(&deployment.spec.template, collisions);
    let mut template = deployment.spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels: BTreeMap<String, String> = labels.clone();
    let mut selector = deployment.spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(set_name(&deployment.name_any(), &hash)),
            namespace: deployment.namespace(),
            owner_references: Some(vec![meta::controller_ref(deployment)]),
            labels: Some(labels),
            ..Default::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(size),
            min_ready_seconds: deployment.spec.min_ready_seconds.filter(|seconds| *seconds != 0),
            selector,
            template: Some(template),
        },
        status: None,
    };
    annotate(&mut set, deployment, revision, false);
    set
}

/// Cut so that the name with its hash stays a valid subdomain.
fn set_name(deployment: &str, hash: &str) -> String {
    let room = 253 - 1 - hash.len();
    let base = deployment.get(..room).unwrap_or(deployment);
    format!("{base}-{hash}")
}

/// Names of old sets beyond `revisionHistoryLimit`, oldest revision first.
pub fn expired(deployment: &Deployment, old: &[ReplicaSet]) -> Vec<String> {
    let Some(limit) = deployment.spec.revision_history_limit.filter(|limit| *limit != i32::MAX) else {
        return Vec::new();
    };
    let mut kept: Vec<_> = old.iter().filter(|set| !meta::is_deleting(&set.metadata)).collect();
    let surplus = kept.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    kept.sort_by(|a, b| of(a).cmp(&of(b)).then_with(|| by_age(a, b)));
    kept.truncate(surplus);
    let idle = |set: &&ReplicaSet| {
        let status = set.status.clone().unwrap_or_default();
        let settled = set.metadata.generation <= status.observed_generation;
        scale::size(set) == 0 && status.replicas == 0 && settled
    };
    kept.into_iter().filter(idle).map(|set| set.name_any()).collect()
}

#[cfg(test)]
pub mod testing {
    use super::*;
    use crate::podstate::testing::at;
    use k8s_openapi::api::apps::v1::{DeploymentStrategy, ReplicaSetStatus, RollingUpdateDeployment};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    pub fn deployment(replicas: i32, surge: i32, unavailable: i32) -> Deployment {
        let mut deployment = Deployment::default();
        deployment.metadata.name = Some("web".into());
        deployment.metadata.uid = Some("uid-web".into());
        deployment.metadata.generation = Some(1);
        deployment.spec.replicas = Some(replicas);
        deployment.spec.strategy = Some(DeploymentStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(surge)),
                max_unavailable: Some(IntOrString::Int(unavailable)),
            }),
        });
        deployment
    }

    /// A set of `size` of which `available` are; its template is labelled with its name.
    pub fn set(name: &str, age: i64, size: i32, available: i32) -> ReplicaSet {
        let mut set = ReplicaSet::default();
        set.metadata.name = Some(name.into());
        set.metadata.uid = Some(format!("uid-{name}"));
        set.metadata.creation_timestamp = Some(Time(at(age)));
        set.spec.replicas = Some(size);
        set.spec.template = Some(template(name));
        let some = (available > 0).then_some(available);
        set.status = Some(ReplicaSetStatus {
            replicas: size,
            ready_replicas: some,
            available_replicas: some,
            ..Default::default()
        });
        set
    }

    pub fn template(version: &str) -> PodTemplateSpec {
        let labels = BTreeMap::from([("version".to_owned(), version.to_owned())]);
        PodTemplateSpec { metadata: Some(ObjectMeta { labels: Some(labels), ..Default::default() }), spec: None }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn the_new_set_is_found_by_template_without_its_hash() {
        let mut labelled = set("b", 2, 1, 1);
        let template_b = labelled.spec.template.as_mut().expect("set() has one");
        let labels = template_b.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(HASH_LABEL.into(), "xyz".into());
        let (new, old) = split(&template("b"), vec![set("c", 3, 1, 1), labelled, set("a", 1, 1, 1)]);
        assert_eq!(new.map(|set| set.name_any()), Some("b".into()));
        assert_eq!(old.iter().map(|set| set.name_any()).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn a_rollback_raises_the_revision_and_remembers_the_old_one() {
        let mut reused = set("a", 1, 0, 0);
        let deployment = deployment(3, 1, 1);
        assert!(annotate(&mut reused, &deployment, 1, true));
        assert!(!annotate(&mut reused, &deployment, 1, true));
        assert!(annotate(&mut reused, &deployment, 3, true));
        assert_eq!(meta::annotation(&reused.metadata, REVISION), Some("3"));
        assert_eq!(meta::annotation(&reused.metadata, HISTORY), Some("1"));
    }

    #[test]
    fn a_new_set_carries_hash_owner_and_sizes() {
        let mut deployment = deployment(4, 1, 0);
        deployment.spec.template = template("v1");
        deployment.spec.selector.match_labels = Some([("version".to_owned(), "v1".to_owned())].into());
        let set = new_set(&deployment, 4, 7);
        let hash = set.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).cloned().unwrap_or_default();
        assert_eq!(set.name_any(), format!("web-{hash}"));
        assert_eq!(set.spec.selector.match_labels.as_ref().and_then(|l| l.get(HASH_LABEL)), Some(&hash));
        assert_eq!(meta::annotation(&set.metadata, REVISION), Some("7"));
        assert_eq!((desired_replicas(&set), max_replicas(&set)), (Some(4), Some(5)));
        assert!(meta::is_controlled_by(&set.metadata, "uid-web"));
    }

    #[test]
    fn history_beyond_the_limit_expires_when_idle() {
        let mut deployment = deployment(1, 1, 1);
        deployment.spec.revision_history_limit = Some(1);
        let with_revision = |name: &str, revision: i64, size| {
            let mut set = set(name, revision, size, size);
            put(&mut set, REVISION, revision.to_string());
            set
        };
        let old = [with_revision("c", 3, 0), with_revision("a", 1, 0), with_revision("b", 2, 1)];
        assert_eq!(expired(&deployment, &old), ["a"], "b still has pods");
        deployment.spec.revision_history_limit = None;
        assert!(expired(&deployment, &old).is_empty());
    }
}
