//! Pod garbage collection: pods that no kubelet will ever finish.
//!
//! Pods of nodes that no longer exist, pods being deleted that were never scheduled, pods stuck on
//! nodes declared out of service, and the oldest finished pods beyond a threshold.

use std::sync::Arc;
use std::time::Duration;

use component::{Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::context::{Context, Controller, Pods, synced};
use crate::error::{During, Result};
use crate::taints::OUT_OF_SERVICE;
use crate::{meta, podstate, taint_eviction};

/// A node may come back (or a cache be behind) before its pods are given up.
const QUARANTINE: Duration = Duration::from_secs(40);
const FINISHED_THRESHOLD: usize = 12_500;
const FINISHED_CHECK: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    Pod(String, String),
    /// Count the finished pods.
    Finished,
}

pub fn start(context: &Context) {
    let queue = WorkQueue::<Work>::new();
    let controller = context.controller("pod-garbage-collector");
    let nodes = context.informers.of::<Node>();
    let changed = queue.clone();
    context.pods.informer.on_change(move |change| {
        if let Some(pod) = change.new {
            changed.add(work(pod));
        }
    });
    let (changed, by_node) = (queue.clone(), context.pods.by_node.clone());
    nodes.on_change(move |change| {
        let out = |node: Option<&Arc<Node>>| node.is_some_and(|node| is_out_of_service(node));
        if change.new.is_none() || out(change.old) != out(change.new) {
            by_node.get(&change.object().name_any()).iter().for_each(|pod| changed.add(work(pod)));
        }
    });
    controller.every(&queue, FINISHED_CHECK, Work::Finished);
    let ready = synced!(nodes, context.pods.informer);
    let worker = Worker {
        controller: controller.clone(),
        nodes,
        pods: context.pods.clone(),
        missing: parking_lot::Mutex::default(),
    };
    let worker = Arc::new(worker);
    controller.run(&queue, 4, ready, move |work| {
        let worker = worker.clone();
        async move { worker.reconcile(work).await }
    });
}

fn work(pod: &Pod) -> Work {
    let (namespace, name) = meta::key(&pod.metadata);
    Work::Pod(namespace, name)
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().any(|taint| taint.key == OUT_OF_SERVICE)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Keep,
    /// Its node is unknown: after a quarantine the pod is an orphan.
    Quarantine,
    /// Delete now; the text becomes the pod's condition when the kubelet can no longer write one.
    Delete(Option<&'static str>),
}

fn judge(pod: &Pod, node: Option<&Node>) -> Verdict {
    let deleting = meta::is_deleting(&pod.metadata);
    match (podstate::node_name(pod), node) {
        ("", _) if deleting => Verdict::Delete(None),
        ("", _) => Verdict::Keep,
        (_, None) => Verdict::Quarantine,
        (_, Some(node)) if deleting && is_out_of_service(node) && !is_ready(node) => {
            Verdict::Delete(Some("PodGC: node is out of service"))
        }
        _ => Verdict::Keep,
    }
}

/// What a pod's status says at its end, with `why` as a condition; none: it has ended already. Whoever holds the
/// pod by a finalizer, as a Job that waits for it to fail, learns of its end by this alone.
fn last_status(pod: &Pod, why: Option<&str>) -> Option<Value> {
    if podstate::is_finished(pod) {
        return None;
    }
    let mut status = json!({"phase": "Failed"});
    if let Some(why) = why {
        status["conditions"] = json!([taint_eviction::disruption("DeletionByPodGC", why)]);
    }
    Some(status)
}

struct Worker {
    controller: Controller,
    nodes: Informer<Node>,
    pods: Pods,
    /// Since when a node has been missing.
    missing: parking_lot::Mutex<std::collections::HashMap<String, std::time::Instant>>,
}

impl Worker {
    async fn reconcile(&self, work: Work) -> Result<Outcome> {
        match work {
            Work::Pod(namespace, name) => self.check(&namespace, &name).await,
            Work::Finished => self.trim_finished().await,
        }
    }

    async fn check(&self, namespace: &str, name: &str) -> Result<Outcome> {
        let Some(pod) = self.pods.informer.get(namespace, name) else { return Ok(Outcome::Done) };
        let node = self.nodes.get("", podstate::node_name(&pod));
        if node.is_some() {
            self.missing.lock().remove(podstate::node_name(&pod));
        }
        match judge(&pod, node.as_deref()) {
            Verdict::Keep => Ok(Outcome::Done),
            Verdict::Delete(why) => self.remove(&pod, why).await.map(|()| Outcome::Done),
            Verdict::Quarantine => self.quarantine(&pod).await,
        }
    }

    async fn quarantine(&self, pod: &Pod) -> Result<Outcome> {
        let node = podstate::node_name(pod);
        let since = *self.missing.lock().entry(node.to_owned()).or_insert_with(std::time::Instant::now);
        if let Some(left) = QUARANTINE.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
            return Ok(Outcome::After(left));
        }
        let api: Api<Node> = self.controller.cluster();
        if api.get_opt(node).await.during("looking for node", node)?.is_some() {
            return Ok(Outcome::After(QUARANTINE));
        }
        self.remove(pod, Some("PodGC: node no longer exists")).await?;
        Ok(Outcome::Done)
    }

    async fn trim_finished(&self) -> Result<Outcome> {
        let mut finished: Vec<_> = self.pods.informer.list();
        finished.retain(|pod| podstate::is_finished(pod) && !meta::is_deleting(&pod.metadata));
        let surplus = finished.len().saturating_sub(FINISHED_THRESHOLD);
        finished.sort_by_key(|pod| (meta::created(&pod.metadata), pod.name_any()));
        for pod in finished.iter().take(surplus) {
            self.remove(pod, None).await?;
        }
        Ok(Outcome::Done)
    }

    /// Deletes without grace, marked as failed before; the kubelet is not there to confirm.
    async fn remove(&self, pod: &Pod, why: Option<&str>) -> Result<()> {
        let (name, shown) = (pod.name_any(), meta::display(&pod.metadata));
        let api: Api<Pod> = self.controller.namespaced(&pod.namespace().unwrap_or_default());
        if let Some(status) = last_status(pod, why) {
            let patch = Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}));
            let marked = api.patch_status(&name, &PatchParams::default(), &patch).await;
            if marked.unless_gone("marking as failed pod", &shown)?.is_none() {
                return Ok(());
            }
        }
        let now = DeleteParams::default().grace_period(0);
        api.delete(&name, &now).await.unless_gone("collecting pod", &shown)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod};
    use k8s_openapi::api::core::v1::{NodeSpec, Taint};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn a_pod_that_was_never_scheduled_has_failed_when_it_is_collected() {
        assert_eq!(last_status(&pod("a", "", "Pending"), None), Some(json!({"phase": "Failed"})));
        let lost = last_status(&pod("a", "n1", "Running"), Some("PodGC: node no longer exists")).unwrap_or_default();
        assert_eq!((&lost["phase"], &lost["conditions"][0]["reason"]), (&json!("Failed"), &json!("DeletionByPodGC")));
        assert_eq!(last_status(&pod("a", "n1", "Succeeded"), Some("gone")), None);
    }

    #[test]
    fn pods_nobody_will_finish_are_found() {
        let deleting = |mut pod: Pod| {
            pod.metadata.deletion_timestamp = Some(Time(at(1)));
            pod
        };
        let plain = Node::default();
        let taint = Taint { key: OUT_OF_SERVICE.into(), effect: "NoExecute".into(), ..Default::default() };
        let out =
            Node { spec: Some(NodeSpec { taints: Some(vec![taint]), ..Default::default() }), ..Default::default() };
        for (pod, node, expected) in [
            (pod("a", "", "Pending"), None, Verdict::Keep),
            (deleting(pod("a", "", "Pending")), None, Verdict::Delete(None)),
            (pod("a", "n1", "Running"), None, Verdict::Quarantine),
            (deleting(pod("a", "n1", "Running")), Some(&plain), Verdict::Keep),
            (pod("a", "n1", "Running"), Some(&out), Verdict::Keep),
            (deleting(pod("a", "n1", "Running")), Some(&out), Verdict::Delete(Some("PodGC: node is out of service"))),
        ] {
            assert_eq!(judge(&pod, node), expected);
        }
    }
}
