//! Pure: from a Job and its pods to its next status and the pods to make and remove.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use component::EventType;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::indexes::{self, Indexes};
use super::policy::{self, Verdict};
use super::{FINALIZER, Told};
use crate::meta;
use crate::podstate;

pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const FIRST_DELAY: i64 = 10;
const LONGEST_DELAY: i64 = 600;
/// Pods created or deleted in one run at most, and pods noted as uncounted at once.
const BURST: usize = 500;

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

/// A pod to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPod {
    pub index: Option<i32>,
    /// How often its index failed already, where that is counted per index.
    pub failures: Option<i32>,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// `active` and `ready` count what is there before `create` and `delete`.
    pub status: JobStatus,
    pub create: Vec<NewPod>,
    pub delete: Vec<Arc<Pod>>,
    /// Finished pods to take the finalizer off, after the status is written.
    pub release: Vec<Arc<Pod>>,
    pub events: Vec<Told>,
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, moment: Timestamp) {
        self.wake = Some(self.wake.map_or(moment, |known| known.min(moment)));
    }
}

fn index_of(pod: &Pod) -> Option<i32> {
    meta::annotation(&pod.metadata, INDEX)?.parse().ok()
}

struct View<'a> {
    spec: JobSpec,
    pods: &'a [Arc<Pod>],
    indexed: bool,
    now: Timestamp,
}

impl View<'_> {
    fn is_failed(&self, pod: &Pod) -> bool {
        let only_phase = self.spec.pod_failure_policy.is_some() || self.waits_for_failed();
        match podstate::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            _ => meta::is_deleting(&pod.metadata) && !only_phase,
        }
    }

    /// A pod being deleted is replaced only when it has ended.
    fn waits_for_failed(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    fn active(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().filter(|pod| podstate::is_active(pod))
    }

    fn terminating(&self) -> i32 {
        self.pods.iter().filter(|pod| meta::is_deleting(&pod.metadata) && !podstate::is_finished(pod)).count() as i32
    }

    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    fn in_range(&self, index: i32) -> bool {
        (0..self.completions()).contains(&index)
    }
}

impl Plan {
    /// The status after `made` pods of `create` were made and those of `delete` were deleted.
    pub fn recount(&mut self, made: usize) {
        let active = self.status.active.unwrap_or(0) + made as i32 - self.delete.len() as i32;
        self.status.active = (active > 0).then_some(active);
        let gone = self.delete.iter().filter(|pod| podstate::is_ready(pod)).count() as i32;
        self.status.ready = self.status.ready.map(|ready| ready - gone);
    }
}

pub fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let view = View { spec, pods, indexed, now };
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Plan::default() };
    suspend(&view, &mut plan);
    let tally = count(&view, &mut plan);
    decide(&view, &tally, &mut plan);
    let active = view.active().count() as i32;
    plan.status.active = (active != 0).then_some(active);
    plan.status.ready = Some(view.active().filter(|pod| podstate::is_ready(pod)).count() as i32);
    plan.status.terminating = Some(view.terminating());
    plan
}

fn is_suspended(view: &View<'_>) -> bool {
    view.spec.suspend == Some(true)
}

fn suspend(view: &View<'_>, plan: &mut Plan) {
    let before = condition(&plan.status, "Suspended").map(|condition| condition.status == "True");
    if is_suspended(view) && before != Some(true) {
        set(&mut plan.status, "Suspended", "True", "JobSuspended", "Job suspended", view.now);
        plan.events.push((EventType::Normal, "Suspended", "Job suspended".into()));
        plan.status.start_time = None;
    } else if !is_suspended(view) && before == Some(true) {
        set(&mut plan.status, "Suspended", "False", "JobResumed", "Job resumed", view.now);
        plan.events.push((EventType::Normal, "Resumed", "Job resumed".into()));
        plan.status.start_time = meta::stamp(view.now);
    }
    if plan.status.start_time.is_none() && !is_suspended(view) {
        plan.status.start_time = meta::stamp(view.now);
    }
}

/// What the pods and the counters say together.
struct Tally {
    succeeded: i32,
    failed: i32,
    completed: Indexes,
    failed_indexes: Indexes,
    fail_job: Option<String>,
}

/// Moves pods through "finished, noted, released, counted".
fn count(view: &View<'_>, plan: &mut Plan) -> Tally {
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
    let mut tally = Tally {
        succeeded: 0,
        failed: 0,
        completed: status.completed_indexes.as_deref().map(indexes::parse).unwrap_or_default(),
        failed_indexes: status.failed_indexes.as_deref().map(indexes::parse).unwrap_or_default(),
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
            match policy::judge(view.spec.pod_failure_policy.as_ref(), pod) {
                Verdict::Ignore => {}
                verdict => {
                    if let (Verdict::FailIndex, Some(index)) = (&verdict, index) {
                        tally.failed_indexes.insert(index);
                    }
                    if let Verdict::FailJob(why) = verdict {
                        tally.fail_job.get_or_insert(why);
                    }
                    failed.insert((*uid).to_owned());
                }
            }
            plan.release.push((*pod).clone());
        }
    }
    tally.succeeded = status.succeeded.unwrap_or(0) + succeeded.len() as i32;
    tally.failed = status.failed.unwrap_or(0) + failed.len() as i32;
    if view.indexed {
        fail_indexes(view, &mut tally);
        tally.succeeded = tally.completed.len() as i32;
        status.completed_indexes = Some(indexes::format(&tally.completed)).filter(|text| !text.is_empty());
        if view.spec.backoff_limit_per_index.is_some() {
            status.failed_indexes = Some(indexes::format(&tally.failed_indexes));
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
fn failures_of(view: &View<'_>, index: i32) -> i32 {
    let failed = view.pods.iter().filter(|pod| index_of(pod) == Some(index) && view.is_failed(pod));
    let counted = failed.filter(|pod| policy::judge(view.spec.pod_failure_policy.as_ref(), pod) != Verdict::Ignore);
    let before = |pod: &Arc<Pod>| meta::annotation(&pod.metadata, INDEX_FAILURES).and_then(|text| text.parse().ok());
    counted.map(|pod| before(pod).unwrap_or(0) + 1).max().unwrap_or(0)
}

fn fail_indexes(view: &View<'_>, tally: &mut Tally) {
    let Some(limit) = view.spec.backoff_limit_per_index else {
        tally.failed_indexes.clear();
        return;
    };
    let indexes: Indexes = view.pods.iter().filter_map(|pod| index_of(pod)).collect();
    for index in indexes {
        if failures_of(view, index) > limit && !tally.completed.contains(&index) {
            tally.failed_indexes.insert(index);
        }
    }
}

/// How the Job ends, if it does.
fn ending(view: &View<'_>, tally: &Tally, plan: &mut Plan) -> Option<(Finished, String, String)> {
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

fn decide(view: &View<'_>, tally: &Tally, plan: &mut Plan) {
    if let Some((end, reason, text)) = ending(view, tally, plan) {
        plan.delete = view.active().cloned().collect();
        return finish(view, end, &reason, &text, plan);
    }
    if is_suspended(view) {
        plan.delete = view.active().cloned().collect();
        return;
    }
    let (active, terminating) = (view.active().count() as i32, view.terminating());
    let wanted = wanted(view, tally, active);
    if active > wanted {
        plan.delete = surplus(view, (active - wanted) as usize);
        return;
    }
    let occupied = if view.waits_for_failed() || view.spec.pod_failure_policy.is_some() { terminating } else { 0 };
    let missing = usize::try_from(wanted - active - occupied).unwrap_or(0).min(BURST);
    if missing > 0 {
        create(view, tally, missing, plan);
    }
}

/// Says how the Job will end at once, and that it has when its last pod is gone and counted.
fn finish(view: &View<'_>, end: Finished, reason: &str, text: &str, plan: &mut Plan) {
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

fn wanted(view: &View<'_>, tally: &Tally, active: i32) -> i32 {
    let parallelism = view.spec.parallelism.unwrap_or(1);
    match view.spec.completions {
        None if tally.succeeded > 0 => active.min(parallelism),
        None => parallelism,
        Some(completions) => {
            let settled = tally.succeeded + tally.failed_indexes.len() as i32;
            (completions - settled).clamp(0, parallelism.max(0))
        }
    }
}

/// Pods of duplicate or foreign indexes first, then the least useful.
fn surplus(view: &View<'_>, count: usize) -> Vec<Arc<Pod>> {
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

fn create(view: &View<'_>, tally: &Tally, missing: usize, plan: &mut Plan) {
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

fn condition<'a>(status: &'a JobStatus, name: &str) -> Option<&'a JobCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == name)
}

fn set(status: &mut JobStatus, name: &str, value: &str, reason: &str, text: &str, now: Timestamp) {
    if condition(status, name).is_some_and(|known| known.status == value && known.reason.as_deref() == Some(reason)) {
        return;
    }
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != name);
    conditions.push(JobCondition {
        type_: name.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(text.to_owned()),
        last_probe_time: meta::stamp(now),
        last_transition_time: meta::stamp(now),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod as bare_pod};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn job(completions: Option<i32>, parallelism: i32) -> Job {
        let mut job = Job::default();
        job.metadata.name = Some("work".into());
        job.spec =
            Some(JobSpec { completions, parallelism: Some(parallelism), backoff_limit: Some(2), ..Default::default() });
        job
    }

    fn indexed(completions: i32, parallelism: i32) -> Job {
        let mut job = job(Some(completions), parallelism);
        job.spec.get_or_insert_default().completion_mode = Some("Indexed".into());
        job
    }

    fn worker(name: &str, phase: &str, index: Option<i32>) -> Arc<Pod> {
        let mut pod = bare_pod(name, "n1", phase);
        pod.metadata.finalizers = Some(vec![FINALIZER.into()]);
        pod.metadata.annotations = index.map(|index| [(INDEX.to_owned(), index.to_string())].into());
        Arc::new(pod)
    }

    fn released(pod: &Arc<Pod>) -> Arc<Pod> {
        let mut pod = (**pod).clone();
        pod.metadata.finalizers = None;
        Arc::new(pod)
    }

    fn reasons(plan: &Plan) -> Vec<(String, String)> {
        let conditions = plan.status.conditions.clone().unwrap_or_default().into_iter();
        conditions.map(|condition| (condition.type_, condition.reason.unwrap_or_default())).collect()
    }

    #[test]
    fn pods_that_a_finished_job_stops_are_neither_active_nor_ready() {
        let mut job = job(Some(2), 2);
        job.spec.get_or_insert_default().suspend = Some(true);
        let running = Arc::new(crate::podstate::testing::ready((*worker("a", "Running", None)).clone(), 0));
        let mut plan = plan(&job, &[running, worker("b", "Running", None)], at(1000));
        assert_eq!((plan.status.active, plan.status.ready, plan.delete.len()), (Some(2), Some(1), 2));
        plan.recount(0);
        assert_eq!((plan.status.active, plan.status.ready), (None, Some(0)));
    }

    #[test]
    fn as_many_pods_as_parallelism_and_completions_allow() {
        for (completions, parallelism, running, expected) in
            [(Some(5), 2, 0, 2), (Some(5), 2, 1, 1), (Some(1), 3, 0, 1), (None, 3, 1, 2)]
        {
            let pods: Vec<_> = (0..running).map(|i| worker(&format!("p{i}"), "Running", None)).collect();
            assert_eq!(plan(&job(completions, parallelism), &pods, at(1000)).create.len(), expected);
        }
        let three: Vec<_> = (0..3).map(|i| worker(&format!("p{i}"), "Running", None)).collect();
        assert_eq!(plan(&job(Some(5), 1), &three, at(1000)).delete.len(), 2);
    }

    #[test]
    fn a_pod_is_noted_then_released_then_counted_once() {
        let mut job = job(Some(1), 1);
        let done = worker("p", "Succeeded", None);
        let first = plan(&job, std::slice::from_ref(&done), at(10));
        assert_eq!(first.release.len(), 1);
        let noted = first.status.uncounted_terminated_pods.clone().unwrap_or_default();
        assert_eq!((noted.succeeded, first.status.succeeded), (Some(vec!["uid-p".to_owned()]), None));
        assert_eq!(reasons(&first), [("SuccessCriteriaMet".to_owned(), "CompletionsReached".to_owned())]);

        job.status = Some(first.status);
        let second = plan(&job, &[released(&done)], at(11));
        assert_eq!(second.status.succeeded, Some(1));
        assert_eq!(reasons(&second)[1], ("Complete".to_owned(), "CompletionsReached".to_owned()));
        assert!(second.status.completion_time.is_some() && second.create.is_empty());
        job.status = Some(second.status);
        assert_eq!(finished(&job), Some(Finished::Complete));
    }

    #[test]
    fn failures_back_off_and_then_fail_the_job() {
        let mut job = job(Some(1), 1);
        let failed = worker("f1", "Failed", None);
        let first = plan(&job, std::slice::from_ref(&failed), at(5));
        assert!(first.create.is_empty(), "ten seconds of back-off");
        assert_eq!(first.wake, Some(at(10)));
        job.status = Some(first.status);
        assert_eq!(plan(&job, &[released(&failed)], at(11)).create.len(), 1);
        job.status.get_or_insert_default().failed = Some(2);
        let last = [worker("f3", "Failed", None), worker("other", "Running", None)];
        let plan = plan(&job, &last, at(1000));
        assert_eq!(reasons(&plan), [("FailureTarget".to_owned(), "BackoffLimitExceeded".to_owned())]);
        assert_eq!(plan.delete.len(), 1, "what still runs is stopped");
    }

    #[test]
    fn indexes_are_filled_from_the_lowest() {
        let pods = [worker("a", "Succeeded", Some(0)), worker("b", "Running", Some(2))];
        let plan = plan(&indexed(5, 3), &pods, at(1000));
        assert_eq!(plan.status.completed_indexes.as_deref(), Some("0"));
        assert_eq!(plan.create.iter().filter_map(|new| new.index).collect::<Vec<_>>(), [1, 3]);
        let made = super::super::pod::new(&indexed(5, 3), &plan.create[0]);
        assert_eq!(made.metadata.generate_name.as_deref(), Some("work-1-"));
        assert!(meta::has_finalizer(&made.metadata, FINALIZER));
    }

    #[test]
    fn an_index_has_its_own_limit() {
        let mut job = indexed(2, 2);
        job.spec.get_or_insert_default().backoff_limit_per_index = Some(0);
        job.spec.get_or_insert_default().backoff_limit = Some(i32::MAX);
        let pods = [worker("a", "Failed", Some(0)), worker("b", "Succeeded", Some(1))];
        let plan = plan(&job, &pods, at(1000));
        assert_eq!(plan.status.failed_indexes.as_deref(), Some("0"));
        assert_eq!(reasons(&plan), [("FailureTarget".to_owned(), "FailedIndexes".to_owned())]);
    }

    #[test]
    fn suspending_stops_pods_and_resuming_starts_the_clock() {
        let mut job = job(Some(1), 1);
        job.spec.get_or_insert_default().suspend = Some(true);
        let suspended = plan(&job, &[worker("a", "Running", None)], at(10));
        assert_eq!(suspended.delete.len(), 1);
        assert_eq!((reasons(&suspended)[0].1.as_str(), &suspended.status.start_time), ("JobSuspended", &None));
        job.status = Some(suspended.status);
        job.spec.get_or_insert_default().suspend = Some(false);
        let resumed = plan(&job, &[], at(20));
        assert_eq!(resumed.status.start_time, Some(Time(at(20))));
        assert_eq!(resumed.create.len(), 1);
    }

    #[test]
    fn the_deadline_ends_the_job() {
        let mut job = job(Some(1), 1);
        job.spec.get_or_insert_default().active_deadline_seconds = Some(30);
        job.status = Some(JobStatus { start_time: Some(Time(at(100))), ..Default::default() });
        assert_eq!(plan(&job, &[], at(110)).wake, Some(at(130)));
        let late = plan(&job, &[], at(130));
        assert_eq!(reasons(&late)[0].1, "DeadlineExceeded");
        assert_eq!(reasons(&late)[1].0, "Failed", "nothing runs: it ends at once");
    }
}
