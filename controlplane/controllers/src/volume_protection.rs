//! Claims in use by a pod, and volumes bound to a claim, stay until they are not: finalizers
//! `kubernetes.io/pvc-protection` and `kubernetes.io/pv-protection`. A bound claim's condition
//! `Unused` says since when no pod names it.

use component::{Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{ListParams, PostParams};

use crate::context::{self, Context, Controller, Key, synced};
use crate::error::{During, Result};
use crate::index::Index;
use crate::{meta, podstate};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const UNUSED: &str = "Unused";

pub fn start(context: &Context) {
    start_claims(context);
    start_volumes(context);
}

/// Claims that a pod names, its ephemeral ones included.
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    let named = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), volume.name)),
        (None, None) => None,
    });
    named.collect()
}

/// Pods by `namespace/claim`.
pub fn by_claim(context: &Context) -> Index<Pod> {
    Index::new(&context.pods.informer, |pod: &Pod| {
        let namespace = pod.namespace().unwrap_or_default();
        claims_of(pod).into_iter().map(|claim| format!("{namespace}/{claim}")).collect()
    })
}

#[derive(Debug, PartialEq)]
enum Change {
    None,
    Add,
    Remove,
}

fn change(meta: &ObjectMeta, finalizer: &str, in_use: bool) -> Change {
    match (meta::is_deleting(meta), meta::has_finalizer(meta, finalizer)) {
        (false, false) => Change::Add,
        (true, true) if !in_use => Change::Remove,
        _ => Change::None,
    }
}

fn apply(meta: &mut ObjectMeta, finalizer: &str, change: &Change) {
    let finalizers = meta.finalizers.get_or_insert_default();
    finalizers.retain(|name| name != finalizer);
    if *change == Change::Add {
        finalizers.push(finalizer.to_owned());
    }
}

/// The conditions of a claim with `Unused` as it should be; none when it is so.
fn usage(claim: &PersistentVolumeClaim, used: bool, now: Timestamp) -> Option<Vec<PersistentVolumeClaimCondition>> {
    let status = claim.status.as_ref()?;
    if status.phase.as_deref() != Some("Bound") || meta::is_deleting(&claim.metadata) {
        return None;
    }
    let (value, reason, text) = match used {
        true => ("False", "PodUsingPVC", "A pod is currently referencing this PVC"),
        false => ("True", "NoPodsUsingPVC", "No pods are currently referencing this PVC"),
    };
    let mut conditions = status.conditions.clone().unwrap_or_default();
    let known = conditions.iter().position(|condition| condition.type_ == UNUSED);
    if known.is_some_and(|index| conditions[index].status == value) {
        return None;
    }
    let condition = PersistentVolumeClaimCondition {
        type_: UNUSED.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(text.to_owned()),
        last_transition_time: meta::stamp(now),
        ..Default::default()
    };
    match known {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
    Some(conditions)
}

fn start_claims(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("pvc-protection-controller");
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let users = by_claim(context);
    context::enqueue_changes(&claims, &queue);
    let changed = queue.clone();
    context.pods.informer.on_change(move |change| {
        let (before, pod) = (change.old, change.object());
        let ended = before.is_some_and(|old| !podstate::is_finished(old)) && podstate::is_finished(pod);
        if before.is_some() && change.new.is_some() && !ended {
            return;
        }
        let namespace = pod.namespace().unwrap_or_default();
        claims_of(pod).into_iter().for_each(|claim| changed.add((namespace.clone(), claim)));
    });
    let (cached, writer) = (claims.clone(), controller.clone());
    controller.run(&queue, 1, synced!(claims, context.pods.informer), move |key: Key| {
        let (cached, writer, users) = (cached.clone(), writer.clone(), users.clone());
        async move {
            let Some(claim) = cached.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
            let users = users.get(&format!("{}/{}", key.0, key.1));
            let in_use = users.iter().any(|pod| is_user(pod, &key.1));
            let change = change(&claim.metadata, CLAIM, in_use);
            if change == Change::Remove && has_user(&writer, &key).await? {
                // it is looked at again when that pod comes here, and when it goes
                return Ok(Outcome::Done);
            }
            if change != Change::None {
                let mut changed = (*claim).clone();
                apply(&mut changed.metadata, CLAIM, &change);
                let api = writer.namespaced::<PersistentVolumeClaim>(&key.0);
                let written = api.replace(&key.1, &PostParams::default(), &changed).await;
                written.unless_gone("protecting claim", &meta::display(&claim.metadata))?;
                // what was written comes back, with the resourceVersion that the status needs
                return Ok(Outcome::Done);
            }
            let used = users.iter().any(|pod| !podstate::is_finished(pod));
            if let Some(conditions) = usage(&claim, used, meta::now()) {
                let mut changed = (*claim).clone();
                changed.status.get_or_insert_default().conditions = Some(conditions);
                let api = writer.namespaced::<PersistentVolumeClaim>(&key.0);
                let written = api.replace_status(&key.1, &PostParams::default(), &changed).await;
                written.unless_gone("telling the use of claim", &meta::display(&claim.metadata))?;
            }
            Ok(Outcome::Done)
        }
    });
}

/// Whether the pod's node may use the claim: kubelets see pods only when they are scheduled.
fn is_user(pod: &Pod, claim: &str) -> bool {
    !podstate::node_name(pod).is_empty() && claims_of(pod).iter().any(|name| name == claim)
}

/// Whether the API server has a pod that uses the claim: what is held here may be behind, and data goes on its word.
async fn has_user(controller: &Controller, (namespace, claim): &Key) -> Result<bool> {
    let pods = controller.namespaced::<Pod>(namespace).list(&ListParams::default()).await;
    let pods = pods.during("looking for the pods of a claim in", namespace)?;
    Ok(pods.items.iter().any(|pod| is_user(pod, claim)))
}

fn start_volumes(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("pv-protection-controller");
    let volumes = context.informers.of::<PersistentVolume>();
    context::enqueue_changes(&volumes, &queue);
    let (cached, writer) = (volumes.clone(), controller.clone());
    controller.run(&queue, 1, synced!(volumes), move |key: Key| {
        let (cached, writer) = (cached.clone(), writer.clone());
        async move {
            let Some(volume) = cached.get("", &key.1) else { return Ok(Outcome::Done) };
            let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
            let change = change(&volume.metadata, VOLUME, bound);
            if change != Change::None {
                let mut changed = (*volume).clone();
                apply(&mut changed.metadata, VOLUME, &change);
                let written =
                    writer.cluster::<PersistentVolume>().replace(&key.1, &PostParams::default(), &changed).await;
                written.unless_gone("protecting volume", &key.1)?;
            }
            Ok(Outcome::Done)
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn a_bound_claim_says_since_when_it_is_unused() {
        let mut claim = PersistentVolumeClaim::default();
        claim.status.get_or_insert_default().phase = Some("Pending".into());
        assert_eq!(usage(&claim, false, at(1)), None);
        claim.status.get_or_insert_default().phase = Some("Bound".into());
        let mut told = Vec::new();
        for (second, used) in [(1, false), (2, false), (3, true), (4, true), (5, false)] {
            if let Some(conditions) = usage(&claim, used, at(second)) {
                let Some(unused) = conditions.first() else { panic!("no condition") };
                told.push((second, unused.status.clone(), unused.reason.clone().unwrap_or_default()));
                assert_eq!((conditions.len(), &unused.last_transition_time), (1, &Some(Time(at(second)))));
                claim.status.get_or_insert_default().conditions = Some(conditions);
            }
        }
        let expected = [(1, "True", "NoPodsUsingPVC"), (3, "False", "PodUsingPVC"), (5, "True", "NoPodsUsingPVC")];
        assert_eq!(told, expected.map(|(second, status, reason)| (second, status.to_owned(), reason.to_owned())));
    }

    #[test]
    fn a_pod_uses_a_claim_from_when_it_is_scheduled() {
        use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Volume};
        let mut pod = crate::podstate::testing::pod("web", "", "Pending");
        let source = PersistentVolumeClaimVolumeSource { claim_name: "data".into(), ..Default::default() };
        let spec = pod.spec.get_or_insert_default();
        spec.volumes = Some(vec![Volume { persistent_volume_claim: Some(source), ..Default::default() }]);
        assert!(!is_user(&pod, "data"));
        pod.spec.get_or_insert_default().node_name = Some("n1".into());
        assert!(is_user(&pod, "data") && !is_user(&pod, "other"));
    }

    #[test]
    fn protection_comes_at_once_and_goes_when_unused() {
        let mut meta = ObjectMeta::default();
        assert_eq!(change(&meta, CLAIM, false), Change::Add);
        apply(&mut meta, CLAIM, &Change::Add);
        assert_eq!(change(&meta, CLAIM, false), Change::None);
        meta.deletion_timestamp = Some(Time(at(1)));
        assert_eq!(change(&meta, CLAIM, true), Change::None);
        assert_eq!(change(&meta, CLAIM, false), Change::Remove);
        apply(&mut meta, CLAIM, &Change::Remove);
        assert_eq!(change(&meta, CLAIM, false), Change::None);
    }
}
