//! Finished Jobs with `ttlSecondsAfterFinished` are deleted when that time has passed.

use component::{Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};

use crate::context::{self, Context, Key, synced};
use crate::error::During;
use crate::meta;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("ttl-after-finished-controller");
    let jobs = context.informers.of::<Job>();
    let changed = queue.clone();
    jobs.on_change(move |change| {
        if let Some(job) = change.new.filter(|job| expiry(job).is_some()) {
            changed.add(meta::key(&job.metadata));
        }
    });
    let (cached, writer) = (jobs.clone(), controller.clone());
    controller.run(&queue, 5, synced!(jobs), move |key: Key| {
        let (cached, writer) = (cached.clone(), writer.clone());
        async move {
            let Some(job) = cached.get(&key.0, &key.1).filter(|job| !meta::is_deleting(&job.metadata)) else {
                return Ok(Outcome::Done);
            };
            let now = Timestamp::now();
            match expiry(&job) {
                None => Ok(Outcome::Done),
                Some(moment) if moment > now => Ok(context::at(moment, now)),
                Some(_) => {
                    let mut params = DeleteParams::foreground();
                    // of this very version: somebody may have given it more time just now
                    params.preconditions =
                        Some(Preconditions { uid: job.uid(), resource_version: job.resource_version() });
                    let deleted = writer.namespaced::<Job>(&key.0).delete(&key.1, &params).await;
                    deleted.unless_gone("deleting finished job", &meta::display(&job.metadata))?;
                    Ok(Outcome::Done)
                }
            }
        }
    });
}

/// When the Job's time is up, once it has finished.
fn expiry(job: &Job) -> Option<Timestamp> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ended = |name: &str| name == "Complete" || name == "Failed";
    let end = conditions.iter().find(|condition| condition.status == "True" && ended(&condition.type_))?;
    Some(meta::after(end.last_transition_time.as_ref()?.0, i64::from(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};

    #[test]
    fn only_finished_jobs_with_a_limit_expire() {
        let spec = JobSpec { ttl_seconds_after_finished: Some(60), ..Default::default() };
        let mut job = Job { spec: Some(spec), ..Default::default() };
        assert_eq!(expiry(&job), None);
        let condition = JobCondition {
            type_: "Failed".into(),
            status: "True".into(),
            last_transition_time: Some(at(100).into()),
            ..Default::default()
        };
        job.status = Some(JobStatus { conditions: Some(vec![condition]), ..Default::default() });
        assert_eq!(expiry(&job), Some(at(160)));
        job.spec = None;
        assert_eq!(expiry(&job), None);
    }
}
