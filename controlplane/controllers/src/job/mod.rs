//! Jobs: pods that run to their end, counted exactly once each.
//!
//! - [`indexes`]: sets of completion indexes as text (`1,3-5`); pure;
//! - [`policy`]: pod failure and success policies; pure;
//! - [`pod`]: the pod of a Job or of one of its indexes; pure;
//! - [`plan`]: from a Job and its pods to status, pods to make and remove; pure;
//! - this module: watches and writes.
//!
//! Each pod carries the finalizer `batch.kubernetes.io/job-tracking` until it is counted. A run
//! first notes finished pods in `status.uncountedTerminatedPods`, then takes their finalizers off;
//! a later run, seeing the finalizers gone, moves them into the counters. Wherever this stops, no
//! pod is lost and none counted twice.

mod indexes;
mod plan;
mod pod;
mod policy;

use std::sync::Arc;

use api::selector::Selector;
use component::{EventType, Informer, Outcome, WorkQueue};
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::context::{self, Context, Controller, Key, Pods, synced};
use crate::error::{During, Result, is_namespace_terminating};
use crate::expectations::Expectations;
use crate::podcontrol::{self, PodOwners};
use crate::{meta, ownership};

pub use plan::{Finished, finished};

const WORKERS: usize = 5;
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let strays = WorkQueue::<Key>::new();
    let controller = context.controller("job-controller");
    let jobs = context.informers.of::<Job>();
    let expectations = Expectations::default();
    expectations.follow(&jobs);
    context::enqueue_changes(&jobs, &queue);
    podcontrol::watch(&context.pods, owners(&jobs), &expectations, &queue);
    watch_strays(context, &jobs, &strays);
    let worker =
        Worker { controller: controller.clone(), jobs: jobs.clone(), pods: context.pods.clone(), expectations };
    let worker = Arc::new(worker);
    let other = worker.clone();
    controller.run(&queue, WORKERS, synced!(jobs, context.pods.informer), move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
    controller.run(&strays, 1, synced!(jobs, context.pods.informer), move |key| {
        let worker = other.clone();
        async move { worker.free_stray(key).await }
    });
}

fn selector(job: &Job) -> Selector {
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    Selector::from_label_selector(selector).unwrap_or_else(|_| Selector::nothing())
}

fn job_of(jobs: &Informer<Job>, pod: &Pod) -> Option<Arc<Job>> {
    let owner = meta::controller_of(&pod.metadata).filter(|owner| owner.kind == "Job")?;
    let job = jobs.get(pod.metadata.namespace.as_deref().unwrap_or_default(), &owner.name)?;
    (job.metadata.uid.as_deref() == Some(&owner.uid)).then_some(job)
}

fn owners(jobs: &Informer<Job>) -> PodOwners {
    let (by_reference, by_selector) = (jobs.clone(), jobs.clone());
    PodOwners {
        of_reference: Box::new(move |namespace, owner| {
            let job = by_reference.get(namespace, &owner.name).filter(|_| owner.kind == "Job")?;
            (job.metadata.uid.as_deref() == Some(&owner.uid)).then(|| meta::key(&job.metadata))
        }),
        of_orphan: Box::new(move |pod: &Pod| {
            let jobs = by_selector.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()).into_iter();
            let matching = jobs.filter(|job| selector(job).matches(meta::labels(&pod.metadata)));
            matching.map(|job| meta::key(&job.metadata)).collect()
        }),
    }
}

fn is_over(job: &Job) -> bool {
    meta::is_deleting(&job.metadata) || finished(job).is_some()
}

fn is_managed_elsewhere(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != "kubernetes.io/job-controller")
}

/// Nobody will count this pod any more: its Job is gone, going, or finished. Pods of a Job that somebody else
/// manages are theirs to the end.
fn is_stray(jobs: &Informer<Job>, pod: &Pod) -> bool {
    meta::has_finalizer(&pod.metadata, FINALIZER)
        && job_of(jobs, pod).is_none_or(|job| is_over(&job) && !is_managed_elsewhere(&job))
}

fn watch_strays(context: &Context, jobs: &Informer<Job>, strays: &WorkQueue<Key>) {
    let (queue, known) = (strays.clone(), jobs.clone());
    context.pods.informer.on_change(move |change| {
        if let Some(pod) = change.new.filter(|pod| is_stray(&known, pod)) {
            queue.add(meta::key(&pod.metadata));
        }
    });
    let (queue, by_owner) = (strays.clone(), context.pods.by_owner.clone());
    jobs.on_change(move |change| {
        if change.new.is_none_or(|job| is_over(job)) {
            for pod in by_owner.get(meta::uid(&change.object().metadata)) {
                queue.add(meta::key(&pod.metadata));
            }
        }
    });
}

struct Worker {
    controller: Controller,
    jobs: Informer<Job>,
    pods: Pods,
    expectations: Expectations,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(job) = self.jobs.get(&key.0, &key.1) else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        if is_over(&job) || is_managed_elsewhere(&job) {
            return Ok(Outcome::Done);
        }
        let uid = meta::uid(&job.metadata);
        let candidates = self.pods.candidates(&key.0, uid);
        let claim = ownership::claim(uid, false, &selector(&job), candidates, |_| true);
        let pods = ownership::settle_with(&self.controller, &*job, claim, Some(FINALIZER)).await?;
        let now = meta::now();
        let mut plan = plan::plan(&job, &pods, now);
        let mut failure = None;
        if self.expectations.satisfied(&key) {
            if plan.uncounted {
                // what goes with its finalizer is counted, as failed
                let held = plan.delete.iter().filter(|pod| meta::has_finalizer(&pod.metadata, FINALIZER));
                try_join_all(held.map(|pod| self.drop_finalizer(pod))).await?;
            }
            failure = self.change_pods(&key, &job, &mut plan).await.filter(|error| !is_namespace_terminating(error));
        }
        // also after a failure: a quota that refuses new pods must not keep finished ones from being counted
        if job.status.as_ref() != Some(&plan.status) {
            let changed = Job { status: Some(plan.status.clone()), ..(*job).clone() };
            let api: Api<Job> = self.controller.namespaced(&key.0);
            let written = api.replace_status(&key.1, &PostParams::default(), &changed).await;
            written.during("updating the status of", &meta::display(&job.metadata))?;
            for (kind, reason, text) in &plan.events {
                self.controller.events.object_event(&*job, *kind, reason, text.clone());
            }
        }
        // only now: the status written above remembers them
        try_join_all(plan.release.iter().map(|pod| self.drop_finalizer(pod))).await?;
        if let Some(error) = failure {
            Err::<(), _>(error).during("syncing the pods of", &meta::display(&job.metadata))?;
        }
        Ok(plan.wake.map_or(Outcome::Done, |moment| context::at(moment, Timestamp::now())))
    }

    async fn change_pods(&self, key: &Key, job: &Arc<Job>, plan: &mut plan::Plan) -> Option<kube::Error> {
        let owner = job.object_ref(&());
        let failed = podcontrol::delete_all(&self.controller, key, &self.expectations, &plan.delete, &owner).await;
        let count = plan.create.len();
        self.expectations.expect(key, count, []);
        let (made, untried, error) = podcontrol::slow_start(count, |index| {
            let (pod, owner) = (pod::new(job, &plan.create[index]), &owner);
            async move {
                let result = podcontrol::create(&self.controller, &key.0, &pod, owner).await;
                if result.is_err() {
                    self.expectations.created(key);
                }
                result.map(drop)
            }
        })
        .await;
        self.expectations.creations_off(key, untried);
        plan.recount(made);
        failed.or(error)
    }

    async fn drop_finalizer(&self, pod: &Pod) -> Result<()> {
        let kept: Vec<_> = pod.metadata.finalizers.iter().flatten().filter(|name| *name != FINALIZER).collect();
        let patch = json!({"metadata": {
            "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": kept,
        }});
        let api: Api<Pod> = self.controller.namespaced(&pod.namespace().unwrap_or_default());
        let patched = api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone("releasing counted pod", &meta::display(&pod.metadata)).map(drop)
    }

    async fn free_stray(&self, key: Key) -> Result<Outcome> {
        if let Some(pod) = self.pods.informer.get(&key.0, &key.1).filter(|pod| is_stray(&self.jobs, pod)) {
            self.drop_finalizer(&pod).await?;
        }
        Ok(Outcome::Done)
    }
}

/// The event types of a plan, so that it needs no other module.
type Told = (EventType, &'static str, String);
