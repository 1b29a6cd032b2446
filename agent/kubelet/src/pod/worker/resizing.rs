//! Giving running containers the resources that their pod was granted ([`crate::resize`]).

use api::resources::qos_class;
use component::EventType;
use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ResourceRequirements;

use super::{Done, Worker};
use crate::cgroups::{self, container_resources, pod_limits, sandbox_resources};
use crate::pod::actions::pod_id;
use crate::pod::ending;
use crate::pod::make_container::container_of;
use crate::resize::{self, Given};

/// How far a resize is.
#[derive(Debug, Default)]
pub struct Resizing {
    /// A call is under way.
    busy: bool,
    /// The pod's group has room for the old and the new: it is to be made exact in the end.
    open: bool,
    /// What the pod as a whole has; none while there is no group that this kubelet knows of.
    pub group: Option<Option<ResourceRequirements>>,
    /// Why the last try failed.
    pub error: Option<String>,
    retry_at: Option<Timestamp>,
}

impl Resizing {
    pub fn in_progress(&self) -> bool {
        self.busy || self.open
    }
}

/// How a step ended.
pub struct Step {
    /// Run ids with what they now have.
    applied: Vec<(String, Given)>,
    result: Result<(), String>,
    /// What the pod as a whole has, once the last step is done.
    last: Option<Option<ResourceRequirements>>,
}

const RETRY: SignedDuration = SignedDuration::from_secs(5);

impl Worker {
    pub(super) fn keep_resources(&mut self, now: Timestamp) {
        if self.resizing.busy {
            return;
        }
        let changes = resize::changes(&self.wish.pod, &self.observed, &self.memory);
        let regroups = resize::regroups(&self.wish.pod, self.resizing.group.as_ref());
        if changes.is_empty() && !regroups && !self.resizing.open {
            return;
        }
        if let Some(at) = self.resizing.retry_at.filter(|at| *at > now) {
            return self.wake(at);
        }
        let (restarts, updates): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| change.restart);
        if !self.resizing.open {
            let message = format!("Pod resize started: {}", resize::summary(self.pod()));
            self.node.event(self.pod(), EventType::Normal, "ResizeStarted", message);
        }
        if !self.resizing.open || !updates.is_empty() {
            self.resizing.open = true;
            let group = self.resizing.group.as_ref();
            let meanwhile = resize::limits_meanwhile(self.pod(), group, &self.observed, &self.memory);
            return self.resize_step(updates, meanwhile, false);
        }
        if restarts.is_empty() {
            return self.resize_step(Vec::new(), pod_limits(self.pod()), true);
        }
        for change in restarts {
            if let Some(run) = self.observed.runs.iter().find(|run| run.id == change.run_id).cloned() {
                let message = format!("Container {} resize requires restart", run.name);
                self.memory.killed.insert(run.id.clone());
                self.stop_run(run, message, ending::grace(self.pod()));
            }
        }
    }

    fn resize_step(&mut self, updates: Vec<resize::Change>, limits: cgroups::Limits, last: bool) {
        self.resizing.busy = true;
        let (node, pod) = (self.node.clone(), self.wish.pod.clone());
        let class = qos_class(&pod);
        let group = self.node.cgroups.pod(class, &self.uid());
        let before = self.memory.applied.clone();
        let uid = self.uid();
        let group_before = self.resizing.group.clone();
        let sandbox = self.observed.ready_sandbox().map(|sandbox| sandbox.id.clone()).filter(|_| last);
        let step = async move {
            let last = last.then(|| resize::pod_level(&pod).cloned());
            let mut step = Step { applied: Vec::new(), result: Ok(()), last };
            step.result = async {
                let used = node.cgroups.pod_usage(class, &uid).map_or(0, |usage| usage.memory_usage);
                resize::group_may_shrink(&pod, group_before.as_ref(), used)?;
                for change in &updates {
                    let usage = node.cgroups.container_usage(class, &uid, &change.run_id);
                    let used = usage.map_or(0, |usage| usage.memory_usage);
                    resize::may_shrink(change, before.get(&change.run_id), used)?;
                }
                node.cgroups.apply(&group, &limits).await.map_err(|error| error.to_string())?;
                for change in updates {
                    let host = node.cgroups.host(node.machine.memory);
                    let resources = container_resources(&pod, &change.container, &host);
                    let updated = node.runtime.update_resources(&change.run_id, resources).await;
                    updated.map_err(|error| error.runtime_message())?;
                    step.applied.push((change.run_id, change.given));
                }
                if let Some(sandbox) = sandbox {
                    // For the runtime's information: it may not know the call (containerd does from 2.2 on).
                    let told = node.runtime.update_sandbox_resources(&sandbox, sandbox_resources(&pod)).await;
                    if let Err(error) = told {
                        tracing::debug!(%error, "the runtime was not told of a pod's resize");
                    }
                }
                Ok(())
            }
            .await;
            Done::Resized(step)
        };
        self.tasks.push(step.boxed());
    }

    pub(super) fn resized(&mut self, step: Step) {
        self.resizing.busy = false;
        self.memory.applied.extend(step.applied);
        match step.result {
            Ok(()) => {
                (self.resizing.error, self.resizing.retry_at) = (None, None);
                if let Some(group) = step.last {
                    self.resizing.group = Some(group);
                    self.resizing.open = false;
                    let message = format!("Pod resize completed: {}", resize::summary(self.pod()));
                    self.node.event(self.pod(), EventType::Normal, "ResizeCompleted", message);
                }
            }
            Err(message) => {
                tracing::warn!(pod = pod_id(self.pod()), message, "resizing failed; trying again");
                let event = format!("Pod resize error: {}: {message}", resize::summary(self.pod()));
                self.node.event(self.pod(), EventType::Warning, "ResizeError", event);
                self.resizing.error = Some(message);
                self.resizing.retry_at = Timestamp::now().checked_add(RETRY).ok();
            }
        }
    }

    /// Remembers what a run that was just made has.
    pub(super) fn note_resources(&mut self, run_id: &str, name: &str) {
        let given = self.starting.take().filter(|(started, _)| started == name).map(|(_, given)| given);
        let wished =
            || container_of(self.pod(), name).map(|container| Given::of(self.pod(), &container)).unwrap_or_default();
        let given = given.unwrap_or_else(wished);
        self.memory.applied.insert(run_id.to_owned(), given);
    }

    /// Runs from before this kubelet have what the status says of them.
    pub(super) fn recall_resources(&mut self) {
        let together = resize::pod_level_as_told(self.pod());
        let known = [&self.status.container_statuses, &self.status.init_container_statuses];
        for status in known.into_iter().flatten().flatten() {
            let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned());
            let Some(id) = id.filter(|_| status.state.as_ref().is_some_and(|state| state.running.is_some())) else {
                continue;
            };
            let given = || Given { own: status.resources.clone(), pod: together.clone() };
            self.memory.applied.entry(id).or_insert_with(given);
        }
        self.resizing.group.get_or_insert(together);
    }
}
