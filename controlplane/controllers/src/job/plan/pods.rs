//! How many pods there should be, which of them, and when the next may be made after failures.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::tally::{Tally, failures_of};
use super::view::{View, index_of};
use super::{BURST, NewPod, Plan};
use crate::job::indexes::Indexes;
use crate::{meta, podstate};

const FIRST_DELAY: i64 = 10;
const LONGEST_DELAY: i64 = 600;

pub fn wanted(view: &View<'_>, tally: &Tally, active: i32) -> i32 {
    let parallelism = view.spec.parallelism.unwrap_or(1);
    match view.spec.completions {
        // those that run are left to finish, however many may be started
        None if tally.succeeded > 0 => active,
        None => parallelism,
        Some(completions) => {
            let settled = tally.succeeded + tally.failed_indexes.len() as i32;
            (completions - settled).clamp(0, parallelism.max(0))
        }
    }
}

/// How many pods have a duplicate or foreign index: they keep their place from an index that is to come.
pub fn strays(view: &View<'_>) -> usize {
    if !view.indexed {
        return 0;
    }
    let own: Indexes = view.active().filter_map(|pod| index_of(pod)).filter(|index| view.in_range(*index)).collect();
    view.active().count() - own.len()
}

/// Pods of duplicate or foreign indexes first, then the least useful.
pub fn surplus(view: &View<'_>, count: usize) -> Vec<Arc<Pod>> {
    let mut active: Vec<_> = view.active().cloned().collect();
    active.sort_by(|a, b| podstate::deletion_order(a, b, &Default::default(), view.now));
    if view.indexed {
        let mut seen = Indexes::new();
        // the most useful pod of each index, from the other end, keeps its place
        let wanted: BTreeSet<String> = active
            .iter()
            .rev()
            .filter(|pod| index_of(pod).is_some_and(|index| view.in_range(index) && seen.insert(index)))
            .map(|pod| meta::uid(&pod.metadata).to_owned())
            .collect();
        active.sort_by_key(|pod| wanted.contains(meta::uid(&pod.metadata)));
    }
    active.truncate(count.min(BURST));
    active
}

pub fn create(view: &View<'_>, tally: &Tally, missing: usize, plan: &mut Plan) {
    if view.spec.backoff_limit_per_index.is_none()
        && let Some(moment) = backoff(view, None).filter(|moment| *moment > view.now)
    {
        return plan.wake_at(moment);
    }
    if !view.indexed {
        plan.create = vec![NewPod { index: None, failures: None }; missing];
        return;
    }
    let busy: Indexes = view
        .pods
        .iter()
        .filter(|pod| podstate::is_active(pod) || (!podstate::is_finished(pod) && view.waits_for_failed()))
        .filter_map(|pod| index_of(pod))
        .collect();
    let free = (0..view.completions()).filter(|index| {
        !busy.contains(index) && !tally.completed.contains(index) && !tally.failed_indexes.contains(index)
    });
    for index in free {
        if plan.create.len() == missing {
            break;
        }
        let mut failures = None;
        if view.spec.backoff_limit_per_index.is_some() {
            failures = Some(failures_of(view, index));
            if let Some(moment) = backoff(view, Some(index)).filter(|moment| *moment > view.now) {
                plan.wake_at(moment);
                continue;
            }
        }
        plan.create.push(NewPod { index: Some(index), failures });
    }
}

fn ended_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let ends = statuses
        .into_iter()
        .flatten()
        .filter_map(|status| status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|time| time.0));
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    ends.max().or(deleted).unwrap_or_else(|| meta::created(&pod.metadata))
}

/// When the next pod may be made, after failures since the last success.
fn backoff(view: &View<'_>, index: Option<i32>) -> Option<Timestamp> {
    let of_index = |pod: &&Arc<Pod>| index.is_none() || index_of(pod) == index;
    let succeeded = view.pods.iter().filter(of_index).filter(|pod| podstate::phase(pod) == "Succeeded");
    let last_success = succeeded.map(|pod| ended_at(pod)).max().unwrap_or(Timestamp::UNIX_EPOCH);
    let failures = view.pods.iter().filter(of_index).filter(|pod| podstate::phase(pod) == "Failed");
    let failures: Vec<_> = failures.map(|pod| ended_at(pod)).filter(|end| *end >= last_success).collect();
    let last = failures.iter().max()?;
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(0).min(10);
    let delay = (FIRST_DELAY << doublings).min(LONGEST_DELAY);
    Some(meta::after(*last, delay))
}
