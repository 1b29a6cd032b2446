//! What users see of a pod that could not be placed, and what victims of preemption get.

use std::collections::HashMap;

use component::{EventRecorder, EventType};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::oneshot::{Receiver, Sender, channel};

use crate::pod::{DEFAULT_SCHEDULER, PodInfo, Uid};
use crate::refusal;

/// Event reasons.
pub const SCHEDULED: &str = "Scheduled";
pub const FAILED: &str = "FailedScheduling";
pub const PREEMPTED: &str = "Preempted";

/// Reasons of the condition `PodScheduled`.
pub const UNSCHEDULABLE: &str = "Unschedulable";
pub const SCHEDULER_ERROR: &str = "SchedulerError";

/// Reports that are being written, by pod. What comes next for the pod waits for the one before: a late
/// one would say that a bound pod is not scheduled, or what an earlier try found.
#[derive(Debug, Default)]
pub struct Reports {
    written: HashMap<Uid, Receiver<()>>,
}

impl Reports {
    /// A report begins. Returns what is to be awaited first, and what is to be dropped once it is written.
    pub fn begin(&mut self, pod: &Uid) -> (Option<Receiver<()>>, Sender<()>) {
        let (writing, written) = channel();
        (self.written.insert(pod.clone(), written), writing)
    }

    /// What is still being written about the pod.
    pub fn take(&mut self, pod: &Uid) -> Option<Receiver<()>> {
        self.written.remove(pod)
    }

    /// A report was written; a later one of the same pod stays.
    pub fn end(&mut self, pod: &Uid) {
        if self.written.get_mut(pod).is_some_and(|written| written.try_recv() == Err(TryRecvError::Closed)) {
            self.written.remove(pod);
        }
    }
}

/// Returns when an earlier report is written, or given up.
pub async fn after(earlier: Option<Receiver<()>>) {
    if let Some(written) = earlier {
        // Nothing is ever sent: its writer lets go of it.
        let _ = written.await;
    }
}

/// Writes the condition `PodScheduled: False`, unless the pod says the same already.
pub async fn not_scheduled(client: &Client, pod: &PodInfo, reason: &str, message: &str, nomination: Option<&str>) {
    let mut status = serde_json::Map::new();
    if let Some(condition) = changed_condition(pod, "PodScheduled", "False", reason, message, Timestamp::now()) {
        status.insert("conditions".to_owned(), json!([condition]));
    }
    if let Some(node) = nomination {
        let node = if node.is_empty() { Value::Null } else { node.into() };
        status.insert("nominatedNodeName".to_owned(), node);
    }
    patch_status(client, pod, status.into()).await;
}

/// Says where a pod will go that cannot be bound at once: cluster autoscalers count it there.
pub async fn nominate(client: &Client, pod: &PodInfo, node: &str) {
    if pod.nominated_node() != Some(node) {
        patch_status(client, pod, json!({ "nominatedNodeName": node })).await;
    }
}

pub async fn clear_nomination(client: &Client, pod: &PodInfo) {
    patch_status(client, pod, json!({ "nominatedNodeName": null })).await;
}

/// Deletes a pod to make room for `preemptor` on `node`, saying so in its conditions and by event.
pub async fn evict(client: &Client, recorder: &EventRecorder, victim: &PodInfo, preemptor: &PodInfo, node: &str) {
    let message = format!("{DEFAULT_SCHEDULER}: preempting to accommodate a higher priority pod");
    let now = Timestamp::now();
    let reason = "PreemptionByScheduler";
    if let Some(condition) = changed_condition(victim, "DisruptionTarget", "True", reason, &message, now) {
        patch_status(client, victim, json!({ "conditions": [condition] })).await;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &victim.namespace);
    let same = Preconditions { uid: Some(victim.uid.to_string()), resource_version: None };
    match pods.delete(&victim.name, &DeleteParams::default().preconditions(same)).await {
        Ok(_) => {
            let message = format!("Preempted by pod {} on node {node}", preemptor.uid);
            recorder.object_event(victim.pod.as_ref(), EventType::Normal, PREEMPTED, message);
        }
        Err(error) if is_gone(&error) => {}
        Err(error) => {
            // The preemptor is tried again, and then finds the same or a better victim.
            tracing::warn!(victim = victim.full_name(), %error, "could not delete a victim of preemption");
        }
    }
}

async fn patch_status(client: &Client, pod: &PodInfo, status: Value) {
    if status.as_object().is_none_or(serde_json::Map::is_empty) {
        return;
    }
    let patch = json!({ "metadata": { "uid": &*pod.uid }, "status": status });
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    match pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => {}
        Err(error) if is_gone(&error) => {}
        Err(error) => tracing::warn!(pod = pod.full_name(), %error, "could not write the pod's status"),
    }
}

/// Deleted, or deleted and made anew.
fn is_gone(error: &kube::Error) -> bool {
    refusal::is_missing(error) || refusal::is_conflict(error)
}

/// The condition to write; none if the pod has it just so.
fn changed_condition(
    pod: &PodInfo,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Option<PodCondition> {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let known = conditions.into_iter().flatten().find(|condition| condition.type_ == kind);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if known
        .is_some_and(|known| known.status == status && text(&known.reason) == reason && text(&known.message) == message)
    {
        return None;
    }
    let since = known.filter(|known| known.status == status).and_then(|known| known.last_transition_time.clone());
    Some(PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        observed_generation: pod.pod.metadata.generation,
        ..PodCondition::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn what_follows_for_a_pod_waits_for_the_report_before() {
        let mut reports = Reports::default();
        let pod: Uid = "p".into();
        let (before, first) = reports.begin(&pod);
        assert!(before.is_none());
        let (before, second) = reports.begin(&pod);
        let mut before = Box::pin(after(before));
        assert!(before.as_mut().now_or_never().is_none(), "the first is being written");
        drop(first);
        reports.end(&pod);
        assert!(before.as_mut().now_or_never().is_some());
        let mut bound = Box::pin(after(reports.take(&pod)));
        assert!(bound.as_mut().now_or_never().is_none(), "the second is being written");
        drop(second);
        reports.end(&pod);
        assert!(bound.as_mut().now_or_never().is_some());
    }

    #[test]
    fn written_reports_are_forgotten() {
        let mut reports = Reports::default();
        let (_, writing) = reports.begin(&"p".into());
        drop(writing);
        reports.end(&"p".into());
        assert!(reports.written.is_empty());
    }
}
