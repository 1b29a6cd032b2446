//! DaemonSets: one pod per node that suits.
//!
//! - [`nodes`]: which node should run the pod, and the pod for it;
//! - [`plan`]: pods to create and delete, rolling update and surge, status; pure;
//! - [`backoff`]: how long a node is left alone where pods fail; pure;
//! - this module: watches, history and writes. The scheduler binds the pods, which ask for their
//!   node by affinity.

mod backoff;
mod nodes;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::selector::Selector;
use component::{EventType, Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;

use crate::context::{self, Context, Controller, Key, Pods, synced};
use crate::error::{During, Error, Result, is_namespace_terminating};
use crate::expectations::Expectations;
use crate::index::Index;
use crate::podcontrol::{self, PodOwners};
use crate::revisions::{self, Settled};
use crate::{meta, ownership, podstate};
use backoff::{Backoffs, Place};

const WORKERS: usize = 2;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("daemon-set-controller");
    let sets = context.informers.of::<DaemonSet>();
    let nodes = context.informers.of::<Node>();
    let history = context.informers.of::<ControllerRevision>();
    let by_namespace = Index::new(&history, |r: &ControllerRevision| r.metadata.namespace.iter().cloned().collect());
    let expectations = Expectations::default();
    expectations.follow(&sets);
    context::enqueue_changes(&sets, &queue);
    podcontrol::watch(&context.pods, owners(&sets), &expectations, &queue);
    watch_nodes(&nodes, &sets, &queue);
    let ready = synced!(sets, nodes, history, context.pods.informer);
    let worker = Arc::new(Worker {
        controller: controller.clone(),
        sets,
        nodes,
        history: by_namespace,
        pods: context.pods.clone(),
        expectations,
        backoffs: Mutex::default(),
    });
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

fn selector(set: &DaemonSet) -> Selector {
    Selector::from_label_selector(Some(&set.spec.selector)).unwrap_or_else(|_| Selector::nothing())
}

fn owners(sets: &Informer<DaemonSet>) -> PodOwners {
    let (by_reference, by_selector) = (sets.clone(), sets.clone());
    PodOwners {
        of_reference: Box::new(move |namespace, owner| {
            let set = by_reference.get(namespace, &owner.name).filter(|_| owner.kind == "DaemonSet")?;
            (set.metadata.uid.as_deref() == Some(&owner.uid)).then(|| meta::key(&set.metadata))
        }),
        of_orphan: Box::new(move |pod: &Pod| {
            let sets = by_selector.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()).into_iter();
            let matching = sets.filter(|set| selector(set).matches(meta::labels(&pod.metadata)));
            matching.map(|set| meta::key(&set.metadata)).collect()
        }),
    }
}

/// A node that comes, goes, or changes in what decides.
fn watch_nodes(nodes: &Informer<Node>, sets: &Informer<DaemonSet>, queue: &WorkQueue<Key>) {
    let (sets, queue) = (sets.clone(), queue.clone());
    nodes.on_change(move |change| {
        let judged =
            |node: &Arc<Node>| (node.metadata.labels.clone(), node.spec.as_ref().and_then(|spec| spec.taints.clone()));
        if change.old.map(judged) != change.new.map(judged) {
            sets.list().iter().for_each(|set| queue.add(meta::key(&set.metadata)));
        }
    });
}

struct Worker {
    controller: Controller,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    history: Index<ControllerRevision>,
    pods: Pods,
    expectations: Expectations,
    backoffs: Mutex<Backoffs>,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        let selector = selector(&set);
        if selector.is_everything() {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.controller.events.object_event(&*set, EventType::Warning, "SelectingAll", text);
            return Ok(Outcome::Done);
        }
        if meta::is_deleting(&set.metadata) {
            return Ok(Outcome::Done);
        }
        let uid = meta::uid(&set.metadata);
        let claim = ownership::claim(uid, false, &selector, self.history.get(&key.0), |_| true);
        let history = ownership::settle(&self.controller, &*set, claim).await?;
        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let settled = revisions::settle(&self.controller, &*set, &set.spec.template, &history, collisions).await?;
        let Settled::Current(revision) = settled else { return self.count_collision(&set).await };
        let hash = revisions::hash_of(&revision);

        let in_step = self.expectations.satisfied(&key);
        let claim = ownership::claim(uid, false, &selector, self.pods.candidates(&key.0, uid), podstate::is_active);
        let pods = ownership::settle(&self.controller, &*set, claim).await?;
        let now = Timestamp::now();
        let resting = self.resting(&set, &pods, now);
        let rested = resting.values().min().copied();
        let view = plan::View::new(&set, &self.nodes.list(), &pods, &hash, now).leaving(resting.into_keys().collect());
        let failure = if in_step { self.manage(&key, &set, &view, &hash).await } else { None };
        if in_step && failure.is_none() {
            let used = |old: &ControllerRevision| {
                old.metadata.uid == revision.metadata.uid || view.uses(&revisions::hash_of(old))
            };
            let names = revisions::expired(&history, set.spec.revision_history_limit, used);
            revisions::expire(&self.controller, &key.0, &names).await?;
        }
        self.write_status(&key, &set, &view).await?;
        match failure {
            Some(error) if !is_namespace_terminating(&error) => {
                Err::<(), _>(error).during("syncing the pods of", &meta::display(&set.metadata))?;
                Ok(Outcome::Retry)
            }
            _ => {
                let next = [view.next_look(&pods), rested].into_iter().flatten().min();
                Ok(next.map_or(Outcome::Done, |moment| context::at(moment, Timestamp::now())))
            }
        }
    }

    /// Nodes whose failed pods are not deleted yet, and until when.
    fn resting(&self, set: &DaemonSet, pods: &[Arc<Pod>], now: Timestamp) -> BTreeMap<String, Timestamp> {
        let backoffs = self.backoffs.lock();
        let failed = pods.iter().filter(|pod| podstate::phase(pod) == "Failed").filter_map(|pod| nodes::target(pod));
        failed.filter_map(|node| Some((node.clone(), backoffs.until(&place(set, node), now)?))).collect()
    }

    async fn manage(&self, key: &Key, set: &Arc<DaemonSet>, view: &plan::View<'_>, hash: &str) -> Option<kube::Error> {
        let changes = plan::changes(view);
        let owner = set.object_ref(&());
        for (pod, reason) in &changes.failed {
            let verb = if *reason == "FailedDaemonPod" { "failed" } else { "succeeded" };
            let (name, node) = (meta::display(&pod.metadata), nodes::target(pod).unwrap_or_default());
            let text = format!(
                "Found {verb} daemon pod {name} on node {node}, will try to {} it",
                if verb == "failed" { "kill" } else { "delete" }
            );
            let kind = if verb == "failed" { EventType::Warning } else { EventType::Normal };
            self.controller.events.event(&owner, kind, reason, text);
            if let Some(node) = nodes::target(pod).filter(|_| verb == "failed") {
                self.backoffs.lock().deleted(place(set, node), Timestamp::now());
            }
        }
        let template = nodes::template(set, hash);
        self.expectations.expect(key, changes.create.len(), []);
        let (_, untried, created) = podcontrol::slow_start(changes.create.len(), |index| {
            let mut pod = podcontrol::from_template(&template, meta::controller_ref(&**set));
            nodes::aim(&mut pod, &changes.create[index]);
            let owner = &owner;
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
        let deleted = podcontrol::delete_all(&self.controller, key, &self.expectations, &changes.delete, &owner).await;
        created.or(deleted)
    }

    async fn count_collision(&self, set: &DaemonSet) -> Result<Outcome> {
        let mut changed = set.clone();
        let status = changed.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        let (name, api) =
            (set.name_any(), self.controller.namespaced::<DaemonSet>(&set.namespace().unwrap_or_default()));
        let written = api.replace_status(&name, &PostParams::default(), &changed).await;
        written.during("counting a hash collision of", &meta::display(&set.metadata))?;
        let problem = "its revision's name is taken; the next one will differ".to_owned();
        Err(Error::Object { object: meta::display(&set.metadata), problem })
    }

    async fn write_status(&self, key: &Key, set: &DaemonSet, view: &plan::View<'_>) -> Result<()> {
        let status = plan::status(view);
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = DaemonSet { status: Some(status), ..set.clone() };
        let api: Api<DaemonSet> = self.controller.namespaced(&key.0);
        let written = api.replace_status(&key.1, &PostParams::default(), &changed).await;
        written.during("updating the status of", &meta::display(set.meta())).map(drop)
    }
}

fn place(set: &DaemonSet, node: String) -> Place {
    let generation = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    (meta::uid(&set.metadata).to_owned(), generation, node)
}

/// Pods by the node they are on, or are meant for. One that has ended and is being deleted counts no more: a
/// finalizer may hold it for long.
fn by_node(pods: &[Arc<Pod>]) -> HashMap<String, Vec<Arc<Pod>>> {
    let mut map: HashMap<String, Vec<Arc<Pod>>> = HashMap::new();
    for pod in pods.iter().filter(|pod| !(podstate::is_finished(pod) && meta::is_deleting(&pod.metadata))) {
        if let Some(node) = nodes::target(pod) {
            map.entry(node).or_default().push(pod.clone());
        }
    }
    map
}
