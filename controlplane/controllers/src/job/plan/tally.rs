//! Counting finished pods: each is noted, released and then counted, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::UncountedTerminatedPods;
use k8s_openapi::api::core::v1::Pod;

use super::conditions::condition;
use super::view::{View, index_of};
use super::{INDEX_FAILURES, Plan};
use crate::job::FINALIZER;
use crate::job::indexes::{self, Indexes};
use crate::job::policy::{self, Verdict};
use crate::{meta, podstate};

/// What the pods and the counters say together.
pub struct Tally {
    pub succeeded: i32,
    pub failed: i32,
    pub completed: Indexes,
    pub failed_indexes: Indexes,
    pub fail_job: Option<String>,
}

/// Moves pods through "finished, noted, released, counted".
pub fn count(view: &View<'_>, plan: &mut Plan) -> Tally {
    let status = &mut plan.status;
    let noted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let held: BTreeMap<&str, &Arc<Pod>> = view
        .pods
        .iter()
        .filter(|pod| meta::has_finalizer(&pod.metadata, FINALIZER))
        .map(|pod| (meta::uid(&pod.metadata), pod))
        .collect();
    let split = |uids: Option<Vec<String>>| -> (BTreeSet<String>, i32) {
        let (held_still, released): (BTreeSet<_>, BTreeSet<_>) =
            uids.unwrap_or_default().into_iter().partition(|uid| held.contains_key(uid.as_str()));
        (held_still, released.len() as i32)
    };
    let (mut succeeded, counted) = split(noted.succeeded);
    status.succeeded = some(status.succeeded.unwrap_or(0) + counted);
    let (mut failed, counted) = split(noted.failed);
    status.failed = some(status.failed.unwrap_or(0) + counted);
    // an Indexed Job may have been given fewer completions since
    let known = |text: Option<&str>| -> Indexes {
        text.map(indexes::parse).unwrap_or_default().into_iter().filter(|index| view.in_range(*index)).collect()
    };
    let mut tally = Tally {
        succeeded: 0,
        failed: 0,
        completed: known(status.completed_indexes.as_deref()),
        failed_indexes: known(status.failed_indexes.as_deref()),
        fail_job: None,
    };
    for (uid, pod) in &held {
        let index = index_of(pod);
        let known = succeeded.contains(*uid) || failed.contains(*uid);
        if podstate::phase(pod) == "Succeeded" {
            let fresh = index.is_none_or(|index| view.in_range(index) && !tally.completed.contains(&index));
            if !known && (!view.indexed || (index.is_some() && fresh)) {
                succeeded.insert((*uid).to_owned());
                tally.completed.extend(index.filter(|_| view.indexed));
            }
            plan.release.push((*pod).clone());
        } else if view.is_failed(pod) {
            // an index beyond the completions is nobody's failure
            let belongs = !view.indexed || index.is_some_and(|index| view.in_range(index));
            let verdict = policy::judge(view.spec.pod_failure_policy.as_ref(), pod);
            if belongs && verdict != Verdict::Ignore {
                failed.insert((*uid).to_owned());
            }
            if belongs && verdict == Verdict::FailIndex {
                tally.failed_indexes.extend(index);
            }
            if let Verdict::FailJob(why) = verdict {
                tally.fail_job.get_or_insert(why);
            }
            plan.release.push((*pod).clone());
        }
    }
    tally.succeeded = status.succeeded.unwrap_or(0) + succeeded.len() as i32;
    tally.failed = status.failed.unwrap_or(0) + failed.len() as i32;
    if view.indexed {
        fail_indexes(view, &mut tally);
        tally.succeeded = tally.completed.len() as i32;
        status.succeeded = some((tally.succeeded - succeeded.len() as i32).max(0));
        status.completed_indexes = Some(indexes::format(&tally.completed)).filter(|text| !text.is_empty());
        if view.spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(indexes::format(&tally.failed_indexes));
            if ["FailureTarget", "SuccessCriteriaMet"].iter().all(|name| condition(status, name).is_none()) {
                let kept = memories(view, &tally);
                plan.release.retain(|pod| !kept.contains(meta::uid(&pod.metadata)));
            }
        }
    }
    let list = |uids: BTreeSet<String>| (!uids.is_empty()).then(|| uids.into_iter().collect());
    status.uncounted_terminated_pods =
        Some(UncountedTerminatedPods { succeeded: list(succeeded), failed: list(failed) });
    tally
}

fn some(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Failures of an index so far, from its pods.
pub fn failures_of(view: &View<'_>, index: i32) -> i32 {
    let failed = view.pods.iter().filter(|pod| index_of(pod) == Some(index) && is_counting(view, pod));
    let counted = failed.filter(|pod| policy::judge(view.spec.pod_failure_policy.as_ref(), pod) != Verdict::Ignore);
    let before = |pod: &Arc<Pod>| meta::annotation(&pod.metadata, INDEX_FAILURES).and_then(|text| text.parse().ok());
    counted.map(|pod| before(pod).unwrap_or(0) + 1).max().unwrap_or(0)
}

/// Whether the pod's failure is still to be counted: a pod that the Job itself stopped gave up its finalizer
/// before, and of one that was counted the next pod of its index knows.
fn is_counting(view: &View<'_>, pod: &Pod) -> bool {
    meta::has_finalizer(&pod.metadata, FINALIZER) && view.is_failed(pod)
}

/// The newest failed pod of each index that is to be tried again and has no new pod yet. Only its annotation
/// says how often the index has failed, so it stays until the new pod says so, also if somebody deletes it.
fn memories<'v>(view: &'v View<'_>, tally: &Tally) -> BTreeSet<&'v str> {
    let mut newest: BTreeMap<i32, (i32, &'v str)> = BTreeMap::new();
    for pod in view.pods.iter().filter(|pod| is_counting(view, pod)) {
        let open = |index: &i32| !tally.completed.contains(index) && !tally.failed_indexes.contains(index);
        let Some(index) = index_of(pod).filter(|index| view.in_range(*index) && open(index)) else { continue };
        let failures = meta::annotation(&pod.metadata, INDEX_FAILURES).and_then(|text| text.parse().ok()).unwrap_or(0);
        let next = (failures, meta::uid(&pod.metadata));
        newest.entry(index).and_modify(|known| *known = next.max(*known)).or_insert(next);
    }
    for index in view.active().filter_map(|pod| index_of(pod)) {
        newest.remove(&index);
    }
    newest.into_values().map(|(_, uid)| uid).collect()
}

fn fail_indexes(view: &View<'_>, tally: &mut Tally) {
    let Some(limit) = view.spec.backoff_limit_per_index else {
        tally.failed_indexes.clear();
        return;
    };
    let indexes = view.pods.iter().filter_map(|pod| index_of(pod)).filter(|index| view.in_range(*index));
    for index in indexes.collect::<Indexes>() {
        if failures_of(view, index) > limit && !tally.completed.contains(&index) {
            tally.failed_indexes.insert(index);
        }
    }
}
