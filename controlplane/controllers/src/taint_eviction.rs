//! Taint eviction: deletes pods from nodes with `NoExecute` taints, when they do not tolerate them
//! or no longer do.

use std::sync::Arc;

use component::{EventType, Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::{self, Context, Controller, Key, Pods, synced};
use crate::error::{During, Result};
use crate::taints::{NO_EXECUTE, tolerates};
use crate::{meta, podstate};

const WORKERS: usize = 8;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("taint-eviction-controller");
    let nodes = context.informers.of::<Node>();
    let (changed, by_node) = (queue.clone(), context.pods.by_node.clone());
    nodes.on_change(move |change| {
        let taints = |node: Option<&Arc<Node>>| node.map(|node| no_execute(node)).unwrap_or_default();
        if taints(change.old) != taints(change.new) {
            for pod in by_node.get(&change.object().name_any()) {
                changed.add(meta::key(&pod.metadata));
            }
        }
    });
    let (changed, tainted) = (queue.clone(), nodes.clone());
    context.pods.informer.on_change(move |change| {
        let Some(pod) = change.new else { return };
        let node = podstate::node_name(pod);
        if !node.is_empty() && tainted.get("", node).is_some_and(|node| !no_execute(&node).is_empty()) {
            changed.add(meta::key(&pod.metadata));
        }
    });
    let ready = synced!(nodes, context.pods.informer);
    let worker = Arc::new(Worker { controller: controller.clone(), nodes, pods: context.pods.clone() });
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == NO_EXECUTE).cloned().collect()
}

/// When the pod has to go: at once, at some moment, or never.
#[derive(Debug, PartialEq)]
enum Eviction {
    Never,
    At(Timestamp),
}

/// Each taint counts from when it was added; the pod goes when the first toleration of one ends.
fn eviction(pod: &Pod, taints: &[Taint], now: Timestamp) -> Eviction {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_ref());
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let covering = || tolerations.into_iter().flatten().filter(|toleration| tolerates(toleration, taint));
        if covering().next().is_none() {
            return Eviction::At(now);
        }
        let limits = covering().filter_map(|toleration| toleration.toleration_seconds);
        if let Some(seconds) = limits.min() {
            let added = taint.time_added.as_ref().map_or(now, |time| time.0);
            let end = meta::after(added, seconds.max(0));
            earliest = Some(earliest.map_or(end, |known| known.min(end)));
        }
    }
    earliest.map_or(Eviction::Never, Eviction::At)
}

struct Worker {
    controller: Controller,
    nodes: Informer<Node>,
    pods: Pods,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(pod) = self.pods.informer.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        if meta::is_deleting(&pod.metadata) || podstate::is_finished(&pod) {
            return Ok(Outcome::Done);
        }
        let Some(node) = self.nodes.get("", podstate::node_name(&pod)) else { return Ok(Outcome::Done) };
        let now = Timestamp::now();
        match eviction(&pod, &no_execute(&node), now) {
            Eviction::Never => Ok(Outcome::Done),
            Eviction::At(moment) if moment > now => Ok(context::at(moment, now)),
            Eviction::At(_) => {
                self.evict(&pod).await?;
                Ok(Outcome::Done)
            }
        }
    }

    async fn evict(&self, pod: &Pod) -> Result<()> {
        let (name, shown) = (pod.name_any(), meta::display(&pod.metadata));
        let text = format!("Marking for deletion Pod {shown}");
        self.controller.events.object_event(pod, EventType::Normal, "TaintManagerEviction", text);
        let api: Api<Pod> = self.controller.namespaced(&pod.namespace().unwrap_or_default());
        let condition = disruption("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");
        let patch =
            Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}}));
        if api.patch_status(&name, &PatchParams::default(), &patch).await.unless_gone("marking pod", &shown)?.is_some()
        {
            api.delete(&name, &DeleteParams::default()).await.unless_gone("evicting pod", &shown)?;
        }
        Ok(())
    }
}

/// The condition that tells Jobs and budgets apart why a pod went.
pub fn disruption(reason: &str, message: &str) -> PodCondition {
    PodCondition {
        type_: "DisruptionTarget".to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: meta::stamp(meta::now()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod};
    use k8s_openapi::api::core::v1::Toleration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn taint(key: &str, added: i64) -> Taint {
        Taint { key: key.into(), effect: NO_EXECUTE.into(), value: None, time_added: Some(Time(at(added))) }
    }

    fn tolerating(list: &[(&str, Option<i64>)]) -> Pod {
        let mut pod = pod("a", "n1", "Running");
        let tolerations = list.iter().map(|(key, seconds)| Toleration {
            key: Some((*key).to_owned()),
            operator: Some("Exists".into()),
            toleration_seconds: *seconds,
            ..Default::default()
        });
        pod.spec.get_or_insert_default().tolerations = Some(tolerations.collect());
        pod
    }

    #[test]
    fn a_pod_goes_when_its_tolerations_end() {
        let now = at(1000);
        for (tolerations, taints, expected) in [
            (vec![], vec![taint("a", 900)], Eviction::At(now)),
            (vec![("a", None)], vec![taint("a", 900)], Eviction::Never),
            (vec![("a", Some(300))], vec![taint("a", 900)], Eviction::At(at(1200))),
            (vec![("a", Some(300)), ("b", Some(10))], vec![taint("a", 900), taint("b", 950)], Eviction::At(at(960))),
            (vec![("a", None)], vec![taint("a", 900), taint("b", 900)], Eviction::At(now)),
            (vec![], vec![], Eviction::Never),
        ] {
            assert_eq!(eviction(&tolerating(&tolerations), &taints, now), expected, "{tolerations:?} {taints:?}");
        }
    }
}
