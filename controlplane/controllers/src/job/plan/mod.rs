//! Pure: from a Job and its pods to its next status and the pods to make and remove.
//!
//! [`view`] is what there is, [`tally`] counts what has finished, [`ending`] says whether that is the
//! end, and [`pods`] which pods are to be made or removed if it is not.

mod conditions;
mod ending;
mod pods;
mod tally;
mod view;

use std::sync::Arc;

use component::EventType;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::Told;
use crate::{meta, podstate};
use conditions::{condition, set};
use tally::Tally;
use view::{View, is_suspended};

pub use ending::{Finished, finished};

pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Pods created or deleted in one run at most, and pods noted as uncounted at once.
const BURST: usize = 500;

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
    /// The Job itself has no use for those of `delete`: they are not to count as failed.
    pub uncounted: bool,
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
    let tally = tally::count(&view, &mut plan);
    decide(&view, &tally, &mut plan);
    let active = view.active().count() as i32;
    plan.status.active = (active != 0).then_some(active);
    plan.status.ready = Some(view.active().filter(|pod| podstate::is_ready(pod)).count() as i32);
    plan.status.terminating = Some(view.terminating());
    plan
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

fn decide(view: &View<'_>, tally: &Tally, plan: &mut Plan) {
    if let Some((end, reason, text)) = ending::ending(view, tally, plan) {
        plan.delete = view.active().cloned().collect();
        // what a Job that has succeeded has no use for has not failed
        plan.uncounted = end == Finished::Complete;
        return ending::finish(view, end, &reason, &text, plan);
    }
    if is_suspended(view) {
        plan.delete = view.active().cloned().collect();
        plan.uncounted = true;
        return;
    }
    let (active, terminating) = (view.active().count() as i32, view.terminating());
    let wanted = pods::wanted(view, tally, active);
    let surplus = usize::try_from(active - wanted).unwrap_or(0).max(pods::strays(view));
    if surplus > 0 {
        plan.delete = pods::surplus(view, surplus);
        plan.uncounted = true;
        return;
    }
    let occupied = if view.waits_for_failed() || view.spec.pod_failure_policy.is_some() { terminating } else { 0 };
    let missing = usize::try_from(wanted - active - occupied).unwrap_or(0).min(BURST);
    if missing > 0 {
        pods::create(view, tally, missing, plan);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::FINALIZER;
    use crate::podstate::testing::{at, pod as bare_pod};
    use k8s_openapi::api::batch::v1::JobSpec;
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
    fn a_failed_pod_stays_until_its_index_has_another_that_remembers() {
        let mut job = indexed(2, 2);
        job.spec.get_or_insert_default().backoff_limit_per_index = Some(1);
        job.spec.get_or_insert_default().backoff_limit = Some(i32::MAX);
        let failed = worker("a", "Failed", Some(0));
        let first = plan(&job, std::slice::from_ref(&failed), at(1000));
        assert!(first.release.is_empty(), "deleted now, it would be as if it had never failed");
        assert_eq!(first.create[0], NewPod { index: Some(0), failures: Some(1) });
        job.status = Some(first.status);
        let all = [failed, worker("b", "Running", Some(0)), worker("c", "Running", Some(1))];
        let second = plan(&job, &all, at(1001));
        assert_eq!(second.release, [all[0].clone()]);
        job.status = Some(second.status);
        let after = [released(&all[0]), all[1].clone(), all[2].clone()];
        assert_eq!(plan(&job, &after, at(1002)).status.failed, Some(1));
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
    fn pods_that_the_job_itself_stops_are_no_failures() {
        let running = |count: usize| -> Vec<_> {
            (0..count).map(|index| worker(&format!("p{index}"), "Running", None)).collect()
        };
        let fewer = plan(&job(Some(5), 1), &running(3), at(1000));
        assert_eq!((fewer.delete.len(), fewer.uncounted), (2, true), "parallelism was lowered");
        let mut suspended = job(Some(5), 3);
        suspended.spec.get_or_insert_default().suspend = Some(true);
        let paused = plan(&suspended, &running(3), at(1000));
        assert_eq!((paused.delete.len(), paused.uncounted), (3, true));
        // as they go, without the finalizer that would have them counted
        let leave = |pod: &Arc<Pod>| {
            let mut pod = (*released(pod)).clone();
            pod.metadata.deletion_timestamp = Some(Time(at(1001)));
            Arc::new(pod)
        };
        let going: Vec<_> = running(3).iter().map(leave).collect();
        let after = plan(&suspended, &going, at(1001));
        assert_eq!((after.status.failed, after.status.terminating), (None, Some(3)));
        let mut each = indexed(2, 2);
        each.spec.get_or_insert_default().backoff_limit_per_index = Some(0);
        each.spec.get_or_insert_default().suspend = Some(true);
        let going = [0, 1].map(|index| leave(&worker(&format!("i{index}"), "Running", Some(index))));
        let after = plan(&each, &going, at(1001));
        assert_eq!(after.status.failed_indexes.as_deref(), Some(""), "nor are they of their indexes");

        let mut late = job(Some(5), 3);
        late.spec.get_or_insert_default().active_deadline_seconds = Some(1);
        late.status = Some(JobStatus { start_time: Some(Time(at(1))), ..Default::default() });
        let ended = plan(&late, &running(3), at(1000));
        assert_eq!((ended.delete.len(), ended.uncounted), (3, false), "what a failed Job stops has failed");
    }

    #[test]
    fn indexes_beyond_lowered_completions_count_no_more() {
        let mut job = indexed(3, 3);
        job.status = Some(JobStatus {
            completed_indexes: Some("0,3,4".into()),
            succeeded: Some(3),
            start_time: Some(Time(at(1))),
            ..Default::default()
        });
        let plan = plan(&job, &[], at(1000));
        assert_eq!((plan.status.completed_indexes.as_deref(), plan.status.succeeded), (Some("0"), Some(1)));
        assert_eq!(plan.create.iter().filter_map(|new| new.index).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_failed_pod_beyond_lowered_completions_is_no_failure() {
        let mut job = indexed(2, 2);
        job.spec.get_or_insert_default().backoff_limit_per_index = Some(0);
        let pods = [worker("a", "Failed", Some(3)), worker("b", "Running", Some(0)), worker("c", "Running", Some(1))];
        let plan = plan(&job, &pods, at(1000));
        let noted = plan.status.uncounted_terminated_pods.clone().unwrap_or_default();
        assert_eq!((noted.failed, plan.status.failed_indexes.as_deref()), (None, Some("")));
        assert_eq!(plan.release, [pods[0].clone()]);
    }

    #[test]
    fn a_pod_of_an_index_that_is_no_more_makes_room_for_one_that_is_missing() {
        let mut job = indexed(3, 3);
        job.status = Some(JobStatus { completed_indexes: Some("0".into()), ..Default::default() });
        let pods = [worker("own", "Running", Some(1)), worker("beyond", "Running", Some(4))];
        let first = plan(&job, &pods, at(1000));
        assert_eq!((first.delete.as_slice(), first.uncounted), (&pods[1..], true));
        assert_eq!(plan(&job, &pods[..1], at(1000)).create.iter().filter_map(|new| new.index).collect::<Vec<_>>(), [2]);
        let twice = [worker("a", "Running", Some(1)), worker("b", "Running", Some(1))];
        assert_eq!(plan(&job, &twice, at(1000)).delete.len(), 1, "one of each index is enough");
    }

    #[test]
    fn what_a_job_stops_when_it_has_succeeded_has_not_failed() {
        let mut job = indexed(2, 2);
        let rule = k8s_openapi::api::batch::v1::SuccessPolicyRule {
            succeeded_indexes: Some("0".into()),
            ..Default::default()
        };
        job.spec.get_or_insert_default().success_policy =
            Some(k8s_openapi::api::batch::v1::SuccessPolicy { rules: vec![rule] });
        let pods = [worker("leader", "Succeeded", Some(0)), worker("other", "Running", Some(1))];
        let plan = plan(&job, &pods, at(1000));
        assert_eq!(reasons(&plan), [("SuccessCriteriaMet".to_owned(), "SuccessPolicy".to_owned())]);
        assert_eq!((plan.delete.as_slice(), plan.uncounted), (&pods[1..], true));
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
