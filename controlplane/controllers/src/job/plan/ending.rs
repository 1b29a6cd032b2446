//! Whether and how a Job ends.

use std::sync::Arc;

use component::EventType;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

use super::Plan;
use super::conditions::{condition, set};
use super::tally::Tally;
use super::view::{View, is_suspended};
use crate::job::policy;
use crate::meta;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    Complete,
    Failed,
}

pub fn finished(job: &Job) -> Option<Finished> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().filter(|condition| condition.status == "True").find_map(|condition| {
        match condition.type_.as_str() {
            "Complete" => Some(Finished::Complete),
            "Failed" => Some(Finished::Failed),
            _ => None,
        }
    })
}

/// How the Job ends, if it does.
pub fn ending(view: &View<'_>, tally: &Tally, plan: &mut Plan) -> Option<(Finished, String, String)> {
    for (target, end) in [("FailureTarget", Finished::Failed), ("SuccessCriteriaMet", Finished::Complete)] {
        if let Some(known) = condition(&plan.status, target).filter(|condition| condition.status == "True") {
            return Some((end, known.reason.clone().unwrap_or_default(), known.message.clone().unwrap_or_default()));
        }
    }
    let failed = |reason: &str, text: &str| Some((Finished::Failed, reason.to_owned(), text.to_owned()));
    if let Some(why) = &tally.fail_job {
        return failed("PodFailurePolicy", why);
    }
    let per_index = view.spec.backoff_limit_per_index.is_some();
    let limit = view.spec.backoff_limit.unwrap_or(if per_index { i32::MAX } else { 6 });
    if tally.failed > limit || restarts_exceed(view, limit) {
        return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if let (Some(seconds), Some(start)) = (view.spec.active_deadline_seconds, &plan.status.start_time) {
        let deadline = meta::after(start.0, seconds);
        if !is_suspended(view) && deadline <= view.now {
            return failed("DeadlineExceeded", "Job was active longer than specified deadline");
        }
        if !is_suspended(view) {
            plan.wake_at(deadline);
        }
    }
    if per_index {
        if view.spec.max_failed_indexes.is_some_and(|most| tally.failed_indexes.len() as i32 > most) {
            let text = "Job has exceeded the specified maximal number of failed indexes";
            return failed("MaxFailedIndexesExceeded", text);
        }
        let settled = tally.failed_indexes.len() + tally.completed.len();
        if !tally.failed_indexes.is_empty() && settled as i32 >= view.completions() {
            return failed("FailedIndexes", "Job has failed indexes");
        }
    }
    if let Some(rule) = policy::succeeded(view.spec.success_policy.as_ref(), &tally.completed) {
        let text = format!("Matched rules at index {rule}");
        return Some((Finished::Complete, "SuccessPolicy".to_owned(), text));
    }
    let complete = match view.spec.completions {
        // any success means the work is done; the others finish by themselves
        None => tally.succeeded > 0 && view.active().count() == 0,
        Some(completions) => tally.succeeded >= completions,
    };
    let text = "Reached expected number of succeeded pods";
    complete.then(|| (Finished::Complete, "CompletionsReached".to_owned(), text.to_owned()))
}

/// With `restartPolicy: OnFailure` the kubelet's restarts count.
fn restarts_exceed(view: &View<'_>, limit: i32) -> bool {
    let policy = view.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let restarts = |pod: &Arc<Pod>| -> i32 {
        let status = pod.status.clone().unwrap_or_default();
        let all =
            status.container_statuses.into_iter().flatten().chain(status.init_container_statuses.into_iter().flatten());
        all.map(|status| status.restart_count).sum()
    };
    let sum: i32 = view.active().map(restarts).sum();
    if limit == 0 { sum > 0 } else { sum >= limit }
}

/// Says how the Job will end at once, and that it has when its last pod is gone and counted.
pub fn finish(view: &View<'_>, end: Finished, reason: &str, text: &str, plan: &mut Plan) {
    let (target, name) = match end {
        Finished::Failed => ("FailureTarget", "Failed"),
        Finished::Complete => ("SuccessCriteriaMet", "Complete"),
    };
    set(&mut plan.status, target, "True", reason, text, view.now);
    let uncounted = plan.status.uncounted_terminated_pods.clone().unwrap_or_default();
    let waiting = uncounted.succeeded.is_some() || uncounted.failed.is_some() || !plan.release.is_empty();
    if waiting || !plan.delete.is_empty() || view.terminating() > 0 {
        return;
    }
    set(&mut plan.status, name, "True", reason, text, view.now);
    match end {
        Finished::Complete => {
            plan.status.completion_time = meta::stamp(view.now);
            plan.events.push((EventType::Normal, "Completed", "Job completed".into()));
        }
        Finished::Failed => {
            let reason = KNOWN_REASONS.into_iter().find(|known| *known == reason).unwrap_or("Failed");
            plan.events.push((EventType::Warning, reason, text.to_owned()));
        }
    }
}

const KNOWN_REASONS: [&str; 5] =
    ["PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded", "MaxFailedIndexesExceeded", "FailedIndexes"];
