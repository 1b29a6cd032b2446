//! Pure: which moment of a CronJob is due, its Jobs' bookkeeping, and which of them are old.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;

use super::schedule::Schedule;
use crate::job::{Finished, finished};
use crate::meta;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
const MANY_MISSED: usize = 100;
pub const TOO_MANY_MISSED: &str =
    "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";

/// Why nothing can be scheduled until the CronJob changes.
#[derive(Debug, PartialEq)]
pub struct Problem {
    pub reason: &'static str,
    pub text: String,
}

#[derive(Debug, Default, PartialEq)]
pub struct Due {
    /// The newest moment that has come and was not served.
    pub moment: Option<Timestamp>,
    /// It came too long ago (`startingDeadlineSeconds`).
    pub late: bool,
    pub too_many_missed: bool,
    pub next: Option<Timestamp>,
}

fn zone(cron: &CronJob) -> Result<TimeZone, Problem> {
    let Some(name) = cron.spec.time_zone.as_deref() else { return Ok(TimeZone::UTC) };
    TimeZone::get(name)
        .map_err(|error| Problem { reason: "UnknownTimeZone", text: format!("invalid timeZone: {name:?}: {error}") })
}

pub fn due(cron: &CronJob, status: &CronJobStatus, now: Timestamp) -> Result<Due, Problem> {
    let zone = zone(cron)?;
    if cron.spec.suspend == Some(true) {
        return Ok(Due::default());
    }
    let schedule = Schedule::parse(&cron.spec.schedule).map_err(|error| Problem {
        reason: "UnparseableSchedule",
        text: format!("unparseable schedule: {:?} : {error}", cron.spec.schedule),
    })?;
    let mut earliest = status.last_schedule_time.as_ref().map_or_else(|| meta::created(&cron.metadata), |time| time.0);
    let deadline = cron.spec.starting_deadline_seconds;
    if let Some(seconds) = deadline {
        earliest = earliest.max(meta::after(now, -seconds));
    }
    if schedule.next(earliest, &zone).is_none() {
        return Err(never(&cron.spec.schedule));
    }
    let (mut moment, mut missed, mut cursor) = (None, 0, earliest);
    while let Some(next) = schedule.next(cursor, &zone).filter(|next| *next <= now) {
        (moment, cursor, missed) = (Some(next), next, missed + 1);
        if missed > MANY_MISSED {
            // far behind: only the newest matters, found from shortly before now
            cursor = schedule.leap(cursor, meta::after(now, -86_400));
            while let Some(next) = schedule.next(cursor, &zone).filter(|next| *next <= now) {
                (moment, cursor) = (Some(next), next);
            }
            break;
        }
    }
    let late = deadline.zip(moment).is_some_and(|(seconds, moment)| meta::after(moment, seconds) < now);
    Ok(Due { moment, late, too_many_missed: missed > MANY_MISSED, next: schedule.next(cursor, &zone) })
}

/// What is said of moments like 31 February: to Kubernetes the first and the second of them are the same.
fn never(schedule: &str) -> Problem {
    let text = format!("invalid schedule: {schedule} : time difference between two schedules is less than 1 second");
    Problem { reason: "InvalidSchedule", text }
}

/// As the event says it.
pub fn missed(moment: Timestamp) -> String {
    format!("Missed scheduled time to start a job: {}", moment.strftime("%a, %d %b %Y %H:%M:%S +0000"))
}

/// Active Jobs that are not among `jobs`: they are gone, or too new for a cache.
pub fn unseen<'s>(jobs: &[Arc<Job>], status: &'s CronJobStatus) -> Vec<&'s ObjectReference> {
    let active = status.active.iter().flatten();
    active.filter(|reference| !jobs.iter().any(|job| job.metadata.uid == reference.uid)).collect()
}

/// Names of Jobs that run without being on the list of active ones.
pub fn unexpected(jobs: &[Arc<Job>], status: &CronJobStatus) -> Vec<String> {
    let listed = |job: &Job| status.active.iter().flatten().any(|reference| reference.uid == job.metadata.uid);
    jobs.iter().filter(|job| finished(job).is_none() && !listed(job)).map(|job| job.name_any()).collect()
}

#[derive(Debug, Default, PartialEq)]
pub struct Ended {
    /// Name and condition.
    pub finished: Vec<(String, &'static str)>,
    pub missing: Vec<String>,
}

/// Brings `status.active` and `lastSuccessfulTime` up to date with the Jobs.
pub fn settle(jobs: &[Arc<Job>], status: &mut CronJobStatus) -> Ended {
    let mut ended = Ended::default();
    let active = status.active.take().unwrap_or_default();
    let mut kept = Vec::new();
    for reference in active {
        let name = reference.name.clone().unwrap_or_default();
        let job = jobs.iter().find(|job| job.metadata.uid == reference.uid);
        match job.map(|job| finished(job)) {
            None => ended.missing.push(name),
            Some(None) => kept.push(reference),
            Some(Some(Finished::Complete)) => ended.finished.push((name, "Complete")),
            Some(Some(Finished::Failed)) => ended.finished.push((name, "Failed")),
        }
    }
    status.active = (!kept.is_empty()).then_some(kept);
    let completed = jobs.iter().filter(|job| finished(job) == Some(Finished::Complete));
    let newest = completed.filter_map(|job| job.status.as_ref()?.completion_time.as_ref().map(|time| time.0)).max();
    let known = status.last_successful_time.as_ref().map(|time| time.0);
    if newest > known {
        status.last_successful_time = newest.map(Time);
    }
    ended
}

/// Names of finished Jobs beyond the history limits, oldest first.
pub fn expired(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<String> {
    let mut names = Vec::new();
    for (end, limit) in [
        (Finished::Complete, cron.spec.successful_jobs_history_limit.unwrap_or(3)),
        (Finished::Failed, cron.spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let mut ended: Vec<_> =
            jobs.iter().filter(|job| finished(job) == Some(end) && !meta::is_deleting(&job.metadata)).collect();
        let start = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.as_ref().map(|time| time.0));
        ended.sort_by_key(|job| (start(job), job.name_any()));
        let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        names.extend(ended.into_iter().take(surplus).map(|job| job.name_any()));
    }
    names
}

/// The Job of one moment. Its name is the moment's, so that two runs cannot make it twice.
pub fn job(cron: &CronJob, moment: Timestamp) -> Job {
    let template = cron.spec.job_template.clone();
    let from = template.metadata.unwrap_or_default();
    let mut annotations = from.annotations.unwrap_or_default();
    let local = moment.to_zoned(zone(cron).unwrap_or(TimeZone::UTC));
    let text = local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z");
    annotations.insert(SCHEDULED_AT.to_owned(), text);
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name_any(), moment.as_second() / 60)),
            namespace: cron.namespace(),
            labels: from.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![meta::controller_ref(cron)]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

    fn cron(schedule: &str) -> CronJob {
        let mut cron = CronJob::default();
        cron.metadata.name = Some("tick".into());
        cron.metadata.creation_timestamp = Some(Time(at(0)));
        cron.spec.schedule = schedule.into();
        cron
    }

    fn ended(name: &str, condition: &str, start: i64) -> Arc<Job> {
        let condition = JobCondition { type_: condition.into(), status: "True".into(), ..Default::default() };
        let mut job = Job::default();
        job.metadata.name = Some(name.into());
        job.metadata.uid = Some(format!("uid-{name}"));
        job.status = Some(JobStatus {
            conditions: Some(vec![condition]),
            start_time: Some(Time(at(start))),
            completion_time: Some(Time(at(start + 1))),
            ..Default::default()
        });
        Arc::new(job)
    }

    #[test]
    fn the_newest_missed_moment_is_due() {
        let mut cron = cron("*/5 * * * *");
        let found =
            |cron: &CronJob, now| due(cron, &cron.status.clone().unwrap_or_default(), at(now)).expect("a schedule");
        assert_eq!(found(&cron, 299).moment, None);
        assert_eq!(found(&cron, 299).next, Some(at(300)));
        assert_eq!(found(&cron, 1000).moment, Some(at(900)));
        cron.status = Some(CronJobStatus { last_schedule_time: Some(Time(at(900))), ..Default::default() });
        assert_eq!(found(&cron, 1000).moment, None);
        cron.status = None;
        assert!(found(&cron, 200_000).too_many_missed);
        assert_eq!(found(&cron, 200_000).moment, Some(at(199_800)));
        cron.spec.starting_deadline_seconds = Some(60);
        assert_eq!(found(&cron, 1000).moment, None, "missed by more than the deadline");
        cron.spec.suspend = Some(true);
        assert_eq!(found(&cron, 1000), Due::default());
    }

    #[test]
    fn a_job_that_the_cache_does_not_have_yet_is_looked_for_before_it_is_missed() {
        let reference = |name: &str| ObjectReference {
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            ..Default::default()
        };
        let status = CronJobStatus { active: Some(vec![reference("seen"), reference("new")]), ..Default::default() };
        let mut running = (*ended("seen", "Complete", 1)).clone();
        running.status = None;
        let mut other = running.clone();
        (other.metadata.name, other.metadata.uid) = (Some("by-hand".into()), Some("uid-by-hand".into()));
        let jobs = [Arc::new(running), Arc::new(other), ended("done", "Complete", 1)];
        let unseen: Vec<_> = unseen(&jobs, &status).into_iter().filter_map(|one| one.name.clone()).collect();
        assert_eq!((unseen, unexpected(&jobs, &status)), (vec!["new".to_owned()], vec!["by-hand".to_owned()]));
    }

    #[test]
    fn a_missed_moment_is_told_with_its_offset() {
        assert_eq!(missed(at(0)), "Missed scheduled time to start a job: Thu, 01 Jan 1970 00:00:00 +0000");
    }

    #[test]
    fn a_schedule_of_every_so_often_comes_due() {
        let mut cron = cron("@every 1h30m");
        let found = |cron: &CronJob, now| due(cron, &cron.status.clone().unwrap_or_default(), at(now));
        let first = found(&cron, 5_399).expect("a schedule");
        assert_eq!((first.moment, first.next), (None, Some(at(5_400))));
        assert_eq!(found(&cron, 5_400).map(|due| due.moment), Ok(Some(at(5_400))));
        cron.status = Some(CronJobStatus { last_schedule_time: Some(Time(at(5_400))), ..Default::default() });
        assert_eq!(found(&cron, 10_000).map(|due| due.moment), Ok(None));
        assert_eq!(found(&cron, 10_900).map(|due| due.moment), Ok(Some(at(10_800))));
    }

    #[test]
    fn bad_schedules_and_zones_are_problems() {
        let reason = |cron: &CronJob| due(cron, &CronJobStatus::default(), at(1)).map_err(|problem| problem.reason);
        assert_eq!(reason(&cron("nonsense")), Err("UnparseableSchedule"));
        assert_eq!(reason(&cron("59 23 31 2 *")), Err("InvalidSchedule"));
        let mut elsewhere = cron("* * * * *");
        elsewhere.spec.time_zone = Some("Nowhere/Town".into());
        assert_eq!(reason(&elsewhere), Err("UnknownTimeZone"));
        elsewhere.spec.suspend = Some(true);
        assert_eq!(reason(&elsewhere), Err("UnknownTimeZone"));
    }

    #[test]
    fn history_keeps_the_newest_of_each_sort() {
        let mut cron = cron("* * * * *");
        cron.spec.successful_jobs_history_limit = Some(1);
        cron.spec.failed_jobs_history_limit = Some(0);
        let jobs = [ended("b", "Complete", 20), ended("a", "Complete", 10), ended("f", "Failed", 5)];
        assert_eq!(expired(&cron, &jobs), ["a", "f"]);
    }

    #[test]
    fn finished_and_missing_jobs_leave_the_active_list() {
        let reference = |name: &str| ObjectReference {
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            ..Default::default()
        };
        let mut status = CronJobStatus { active: Some(vec![reference("a"), reference("gone")]), ..Default::default() };
        let told = settle(&[ended("a", "Complete", 10)], &mut status);
        assert_eq!(told, Ended { finished: vec![("a".into(), "Complete")], missing: vec!["gone".into()] });
        assert_eq!((status.active, status.last_successful_time), (None, Some(Time(at(11)))));
    }

    #[test]
    fn a_job_is_named_after_its_minute() {
        let job = job(&cron("* * * * *"), at(1200));
        assert_eq!(job.name_any(), "tick-20");
        assert_eq!(meta::annotation(&job.metadata, SCHEDULED_AT), Some("1970-01-01T00:20:00Z"));
    }
}
