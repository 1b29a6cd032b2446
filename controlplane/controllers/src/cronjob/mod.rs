//! CronJobs: a Job at each moment of a schedule.
//!
//! - [`schedule`]: cron text and moments; pure;
//! - [`plan`]: which moment is due, what the concurrency policy says, which old Jobs go; pure;
//! - this module: watches and writes.

mod plan;
mod schedule;

use std::sync::Arc;

use component::{EventType, Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource, ResourceExt};

use crate::context::{self, Context, Controller, Key, synced};
use crate::error::{During, Result, is_already_exists, is_namespace_terminating, message};
use crate::index::Index;
use crate::meta;
use plan::{Due, Problem};

const WORKERS: usize = 5;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("cronjob-controller");
    let crons = context.informers.of::<CronJob>();
    let jobs = context.informers.of::<Job>();
    let by_owner = Index::new(&jobs, |job: &Job| {
        meta::controller_of(&job.metadata).map(|owner| owner.uid.clone()).into_iter().collect()
    });
    context::enqueue_changes(&crons, &queue);
    let (changed, known) = (queue.clone(), crons.clone());
    jobs.on_change(move |change| {
        let job = change.object();
        let owner = meta::controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob");
        let cron = owner.and_then(|owner| known.get(&job.namespace().unwrap_or_default(), &owner.name));
        if let Some(cron) = cron {
            changed.add(meta::key(&cron.metadata));
        }
    });
    let ready = synced!(crons, jobs);
    let worker = Arc::new(Worker { controller: controller.clone(), crons, jobs: by_owner });
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

struct Worker {
    controller: Controller,
    crons: Informer<CronJob>,
    jobs: Index<Job>,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(cron) = self.crons.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        if meta::is_deleting(&cron.metadata) {
            return Ok(Outcome::Done);
        }
        let now = Timestamp::now();
        let mut jobs = self.jobs.get(meta::uid(&cron.metadata));
        let mut status = cron.status.clone().unwrap_or_default();
        jobs.extend(self.too_new(&key.0, &jobs, &status).await?);
        self.tell_unexpected(&cron, &jobs, &status).await?;
        self.tell_finished(&cron, &jobs, &mut status);
        for name in plan::expired(&cron, &jobs) {
            // its event says why; an old Job that stays does not keep a new one from its time
            if let Err(error) = self.delete_job(&cron, &name).await {
                tracing::debug!(%error, "an old job stays");
            }
        }
        let due = plan::due(&cron, &status, now);
        let outcome = match &due {
            Err(Problem { reason, text }) => {
                self.warn(&cron, reason, text);
                Outcome::Done
            }
            Ok(due) => {
                if due.too_many_missed {
                    self.warn(&cron, "TooManyMissedTimes", plan::TOO_MANY_MISSED);
                }
                due.next.map_or(Outcome::Done, |next| context::at(next, now))
            }
        };
        let mut failure = None;
        if let Ok(Due { moment: Some(moment), late, .. }) = due {
            if late {
                self.warn(&cron, "MissSchedule", &plan::missed(moment));
            } else {
                failure = self.start_job(&cron, moment, &mut status).await.err();
            }
        }
        // also after a failure: what has ended was told, and is not to be told again
        self.write_status(&key, &cron, status).await?;
        failure.map_or(Ok(outcome), Err)
    }

    /// Active Jobs that the cache does not have yet.
    async fn too_new(&self, namespace: &str, jobs: &[Arc<Job>], status: &CronJobStatus) -> Result<Vec<Arc<Job>>> {
        let api: Api<Job> = self.controller.namespaced(namespace);
        let mut found = Vec::new();
        for reference in plan::unseen(jobs, status) {
            let name = reference.name.as_deref().unwrap_or_default();
            let live = api.get_opt(name).await.during("reading job", &format!("{namespace}/{name}"))?;
            found.extend(live.filter(|job| job.metadata.uid == reference.uid).map(Arc::new));
        }
        Ok(found)
    }

    /// Says which Jobs run for the CronJob without being on its list. The list that the cache has may be behind.
    async fn tell_unexpected(&self, cron: &CronJob, jobs: &[Arc<Job>], status: &CronJobStatus) -> Result<()> {
        if plan::unexpected(jobs, status).is_empty() {
            return Ok(());
        }
        let api: Api<CronJob> = self.controller.namespaced(&cron.namespace().unwrap_or_default());
        let live = api.get_opt(&cron.name_any()).await;
        let live = live.during("reading CronJob", &meta::display(&cron.metadata))?;
        let status = live.and_then(|live| live.status).unwrap_or_default();
        for name in plan::unexpected(jobs, &status) {
            let text = format!("Saw a job that the controller did not create or forgot: {name}");
            self.warn(cron, "UnexpectedJob", &text);
        }
        Ok(())
    }

    fn warn(&self, cron: &CronJob, reason: &str, text: &str) {
        self.controller.events.object_event(cron, EventType::Warning, reason, text);
    }

    /// Takes finished and vanished Jobs out of `status.active`.
    fn tell_finished(&self, cron: &CronJob, jobs: &[Arc<Job>], status: &mut CronJobStatus) {
        let ended = plan::settle(jobs, status);
        for (name, condition) in ended.finished {
            let text = format!("Saw completed job: {name}, condition: {condition}");
            self.controller.events.object_event(cron, EventType::Normal, "SawCompletedJob", text);
        }
        for name in ended.missing {
            let text = format!("Active job went missing: {name}");
            self.controller.events.object_event(cron, EventType::Normal, "MissingJob", text);
        }
    }

    async fn start_job(&self, cron: &CronJob, moment: Timestamp, status: &mut CronJobStatus) -> Result<()> {
        let running = status.active.clone().unwrap_or_default();
        match cron.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !running.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.controller.events.object_event(cron, EventType::Normal, "JobAlreadyActive", text);
                return Ok(());
            }
            Some("Replace") => {
                for job in running {
                    self.delete_job(cron, &job.name.unwrap_or_default()).await?;
                }
                status.active = None;
            }
            _ => {}
        }
        let job = plan::job(cron, moment);
        let (name, namespace) = (job.name_any(), cron.namespace().unwrap_or_default());
        let api: Api<Job> = self.controller.namespaced(&namespace);
        match api.create(&PostParams::default(), &job).await {
            Ok(created) => {
                let text = format!("Created job {name}");
                self.controller.events.object_event(cron, EventType::Normal, "SuccessfulCreate", text);
                status.active.get_or_insert_default().push(created.object_ref(&()));
            }
            // an earlier run made it and did not get to note it
            Err(error) if is_already_exists(&error) => {
                let found = api.get_opt(&name).await.during("reading job", &format!("{namespace}/{name}"))?;
                let ours = found.filter(|job| meta::is_controlled_by(&job.metadata, meta::uid(&cron.metadata)));
                let Some(job) = ours else { return Ok(()) };
                if crate::job::finished(&job).is_none() {
                    let known = status.active.get_or_insert_default();
                    if !known.iter().any(|active| active.uid == job.metadata.uid) {
                        known.push(job.object_ref(&()));
                    }
                }
            }
            Err(error) if is_namespace_terminating(&error) => return Ok(()),
            Err(error) => {
                self.warn(cron, "FailedCreate", &format!("Error creating job: {}", message(&error)));
                return Err(error).during("creating job", &format!("{namespace}/{name}"));
            }
        }
        status.last_schedule_time = Some(Time(moment));
        Ok(())
    }

    async fn delete_job(&self, cron: &CronJob, name: &str) -> Result<()> {
        let api: Api<Job> = self.controller.namespaced(&cron.namespace().unwrap_or_default());
        match api.delete(name, &DeleteParams::background()).await.unless_gone("deleting job", name) {
            Ok(Some(_)) => {
                let text = format!("Deleted job {name}");
                self.controller.events.object_event(cron, EventType::Normal, "SuccessfulDelete", text);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                self.warn(cron, "FailedDelete", &format!("Deleted job: {error}"));
                Err(error)
            }
        }
    }

    async fn write_status(&self, key: &Key, cron: &CronJob, mut status: CronJobStatus) -> Result<()> {
        status.active = status.active.filter(|active| !active.is_empty());
        if cron.status.clone().unwrap_or_default() == status {
            return Ok(());
        }
        let changed = CronJob { status: Some(status), ..cron.clone() };
        let api: Api<CronJob> = self.controller.namespaced(&key.0);
        let written = api.replace_status(&key.1, &PostParams::default(), &changed).await;
        written.during("updating the status of", &meta::display(cron.meta())).map(drop)
    }
}
