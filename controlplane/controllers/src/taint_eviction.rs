//! Taint eviction: deletes pods from nodes with `NoExecute` taints, when they do not tolerate them
//! or no longer do.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use component::{EventType, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use parking_lot::{Mutex, RwLock};
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
    let tainted = Arc::new(Tainted::default());
    let (changed, by_node, seen) = (queue.clone(), context.pods.by_node.clone(), tainted.clone());
    nodes.on_change(move |change| {
        let node = change.object().name_any();
        if seen.see(&node, change.new.map(|node| no_execute(node)).unwrap_or_default(), Timestamp::now()) {
            for pod in by_node.get(&node) {
                changed.add(meta::key(&pod.metadata));
            }
        }
    });
    let (changed, seen) = (queue.clone(), tainted.clone());
    context.pods.informer.on_change(move |change| {
        let Some(pod) = change.new else { return };
        if !seen.of(podstate::node_name(pod)).is_empty() {
            changed.add(meta::key(&pod.metadata));
        }
    });
    let ready = synced!(nodes, context.pods.informer);
    let (writer, pods) = (controller.clone(), context.pods.clone());
    let worker = Arc::new(Worker { controller: writer, tainted, pods, planned: Planned::default() });
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == NO_EXECUTE).cloned().collect()
}

/// The `NoExecute` taints of each node, each with the time when it was added; when nobody wrote that down
/// (`kubectl taint` does not), when it was first seen here.
#[derive(Default)]
struct Tainted(RwLock<HashMap<String, Arc<[Taint]>>>);

impl Tainted {
    fn of(&self, node: &str) -> Arc<[Taint]> {
        self.0.read().get(node).cloned().unwrap_or_default()
    }

    /// Whether the taints differ from those seen before.
    fn see(&self, node: &str, mut taints: Vec<Taint>, now: Timestamp) -> bool {
        let before = self.of(node);
        for taint in taints.iter_mut().filter(|taint| taint.time_added.is_none()) {
            let known = before.iter().find(|old| old.key == taint.key && old.value == taint.value);
            taint.time_added = known.map_or(Some(now.into()), |old| old.time_added.clone());
        }
        if *before == taints[..] {
            return false;
        }
        let mut all = self.0.write();
        if taints.is_empty() {
            all.remove(node)
        } else {
            all.insert(node.to_owned(), taints.into())
        };
        true
    }
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

/// Pods that are to go at a later moment.
#[derive(Default)]
struct Planned(Mutex<HashSet<Key>>);

impl Planned {
    /// Returns whether a pod that was to go stays.
    fn cancels(&self, key: &Key, eviction: &Eviction, now: Timestamp) -> bool {
        let mut planned = self.0.lock();
        match eviction {
            Eviction::At(moment) if *moment > now => {
                planned.insert(key.clone());
                false
            }
            Eviction::At(_) => {
                planned.remove(key);
                false
            }
            Eviction::Never => planned.remove(key),
        }
    }

    fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}

struct Worker {
    controller: Controller,
    tainted: Arc<Tainted>,
    pods: Pods,
    planned: Planned,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(pod) = self.pods.informer.get(&key.0, &key.1).filter(|pod| podstate::is_active(pod)) else {
            self.planned.forget(&key);
            return Ok(Outcome::Done);
        };
        let now = Timestamp::now();
        let eviction = eviction(&pod, &self.tainted.of(podstate::node_name(&pod)), now);
        if self.planned.cancels(&key, &eviction, now) {
            let text = format!("Cancelling deletion of Pod {}", meta::display(&pod.metadata));
            self.controller.events.object_event(&*pod, EventType::Normal, "TaintManagerEviction", text);
        }
        match eviction {
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
    fn a_taint_without_a_time_counts_from_when_it_was_first_seen() {
        let tainted = Tainted::default();
        let bare = || vec![Taint { time_added: None, ..taint("a", 0) }];
        assert!(tainted.see("n1", bare(), at(1000)));
        assert!(!tainted.see("n1", bare(), at(1005)), "nothing new");
        let pod = tolerating(&[("a", Some(10))]);
        assert_eq!(eviction(&pod, &tainted.of("n1"), at(1005)), Eviction::At(at(1010)));
        assert!(tainted.see("n1", vec![], at(1006)));
        assert!(tainted.see("n1", bare(), at(1020)), "added again, it counts again");
        assert_eq!(eviction(&pod, &tainted.of("n1"), at(1020)), Eviction::At(at(1030)));
    }

    #[test]
    fn a_pod_that_was_to_go_and_stays_is_told_so_once() {
        let (planned, key) = (Planned::default(), ("default".to_owned(), "a".to_owned()));
        assert!(!planned.cancels(&key, &Eviction::Never, at(1)), "it was never to go");
        assert!(!planned.cancels(&key, &Eviction::At(at(10)), at(1)));
        assert!(planned.cancels(&key, &Eviction::Never, at(2)), "the taint was taken away");
        assert!(!planned.cancels(&key, &Eviction::Never, at(3)));
        assert!(!planned.cancels(&key, &Eviction::At(at(10)), at(4)));
        assert!(!planned.cancels(&key, &Eviction::At(at(10)), at(10)), "now it goes");
        assert!(!planned.cancels(&key, &Eviction::Never, at(11)));
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
