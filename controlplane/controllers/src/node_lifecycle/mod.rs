//! Node lifecycle: a node whose lease stops being renewed is marked unknown, tainted, and its pods
//! are no longer ready.
//!
//! [`health`] decides from the node, the age of its last sign of life, and how its zone fares;
//! `crate::taint_eviction` deletes pods because of the taints. Ages are counted on this machine's
//! clock from when a renewal was seen, so clocks of nodes need not agree.

mod health;

pub use health::is_ready;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::{EventType, Informer, Outcome, WorkQueue};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, Controller, Pods, synced};
use crate::error::{During, Result};
use crate::{meta, podstate};

const LEASES: &str = "kube-node-lease";
const WORKERS: usize = 4;
/// A node silent for this long is marked unknown: its lease is over (40 s) and a connection that
/// hangs has had the time to be noticed and made anew.
const GRACE: Duration = Duration::from_secs(50);

pub fn start(context: &Context) {
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("node-controller");
    let nodes = context.informers.of::<Node>();
    let leases = context.informers.of::<Lease>();
    let signs = Arc::new(Signs::default());
    watch_nodes(&controller, &nodes, &signs, &queue);
    let (renewed, changes) = (signs.clone(), queue.clone());
    leases.on_change(move |change| {
        let renewals = |lease: &Arc<Lease>| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let Some(lease) = change.new.filter(|lease| lease.namespace().as_deref() == Some(LEASES)) else { return };
        if change.old.and_then(renewals) != renewals(lease) && renewed.alive(&lease.name_any()) {
            changes.add(lease.name_any());
        }
    });
    watch_pods(context, &nodes, &queue);
    let worker = Arc::new(Worker {
        controller: controller.clone(),
        nodes: nodes.clone(),
        pods: context.pods.clone(),
        signs,
        queue: queue.clone(),
        grace: GRACE,
        zones: Mutex::default(),
    });
    controller.run(&queue, WORKERS, synced!(nodes, leases, context.pods.informer), move |name: String| {
        let worker = worker.clone();
        async move { worker.reconcile(&name).await }
    });
}

/// When each node last gave a sign of life, and whether it was thought lost.
#[derive(Default)]
struct Signs {
    seen: Mutex<HashMap<String, (Instant, bool)>>,
}

impl Signs {
    /// Returns whether this is news: the node was thought lost, or was not known.
    fn alive(&self, node: &str) -> bool {
        let before = self.seen.lock().insert(node.to_owned(), (Instant::now(), false));
        before.is_none_or(|(_, lost)| lost)
    }

    fn age(&self, node: &str) -> Duration {
        self.seen.lock().entry(node.to_owned()).or_insert_with(|| (Instant::now(), false)).0.elapsed()
    }

    fn lost(&self, node: &str) {
        if let Some(sign) = self.seen.lock().get_mut(node) {
            sign.1 = true;
        }
    }

    fn forget(&self, node: &str) {
        self.seen.lock().remove(node);
    }
}

fn heartbeat(node: &Node) -> Option<jiff::Timestamp> {
    health::condition(node, "Ready")?.last_heartbeat_time.as_ref().map(|time| time.0)
}

fn watch_nodes(controller: &Controller, nodes: &Informer<Node>, signs: &Arc<Signs>, queue: &WorkQueue<String>) {
    let (signs, queue, events) = (signs.clone(), queue.clone(), controller.events.clone());
    nodes.on_change(move |change| {
        let name = change.object().name_any();
        let about = reference(change.object());
        match (change.old, change.new) {
            (None, Some(_)) => {
                signs.alive(&name);
                let text = format!("Node {name} event: Registered Node {name} in Controller");
                events.event(&about, EventType::Normal, "RegisteredNode", text);
            }
            (Some(old), Some(new)) if heartbeat(old) < heartbeat(new) && !health::is_our_verdict(new) => {
                signs.alive(&name);
            }
            (Some(_), None) => {
                signs.forget(&name);
                let text = format!("Node {name} event: Removing Node {name} from Controller");
                events.event(&about, EventType::Normal, "RemovingNode", text);
            }
            _ => {}
        }
        queue.add(name);
    });
}

/// A pod that becomes ready on a node which is not must be marked again.
fn watch_pods(context: &Context, nodes: &Informer<Node>, queue: &WorkQueue<String>) {
    let (nodes, queue) = (nodes.clone(), queue.clone());
    context.pods.informer.on_change(move |change| {
        let Some(pod) = change.new.filter(|pod| podstate::is_ready(pod)) else { return };
        let node = podstate::node_name(pod);
        if nodes.get("", node).is_some_and(|node| !health::is_ready(&node)) {
            queue.add(node.to_owned());
        }
    });
}

/// Events about nodes carry the name as UID, as the kubelet's own do.
fn reference(node: &Node) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".to_owned()),
        name: node.metadata.name.clone(),
        uid: node.metadata.uid.clone(),
        ..Default::default()
    }
}

struct Worker {
    controller: Controller,
    nodes: Informer<Node>,
    pods: Pods,
    signs: Arc<Signs>,
    queue: WorkQueue<String>,
    grace: Duration,
    zones: Mutex<Zones>,
}

#[derive(Default)]
struct Zones {
    states: HashMap<String, health::ZoneState>,
    /// When the next node of a zone may be tainted `NoExecute`.
    next: HashMap<String, Instant>,
}

impl Worker {
    async fn reconcile(&self, name: &str) -> Result<Outcome> {
        let Some(node) = self.nodes.get("", name) else {
            self.update_zones();
            return Ok(Outcome::Done);
        };
        let now = meta::now();
        let age = self.signs.age(name);
        let never_posted = health::condition(&node, "Ready").is_none();
        let grace = if never_posted { health::STARTUP_GRACE } else { self.grace };
        let mut current = (*node).clone();
        if age >= grace {
            self.signs.lost(name);
            if let Some(conditions) = health::unknown(&node, now) {
                current.status.get_or_insert_default().conditions = Some(conditions);
                let api: Api<Node> = self.controller.cluster();
                let written = api.replace_status(name, &PostParams::default(), &current).await;
                current = written.during("marking as unknown node", name)?;
            }
        }
        if let Some(was) = health::condition(&node, "Ready")
            && was.status == "True"
            && !health::is_ready(&current)
        {
            let text = format!("Node {name} status is now: NodeNotReady");
            self.controller.events.event(&reference(&node), EventType::Normal, "NodeNotReady", text);
        }
        if !health::is_ready(&current) && !never_posted {
            self.mark_pods(name).await?;
        }
        self.update_zones();
        let waiting = self.taint(&current, now).await?;
        self.label(&current).await?;
        let alive = (age < grace).then(|| grace - age + Duration::from_millis(10));
        Ok([alive, waiting].into_iter().flatten().min().map_or(Outcome::Done, Outcome::After))
    }

    /// Pods of a node that is not ready are not ready either: Services stop sending to them.
    async fn mark_pods(&self, node: &str) -> Result<()> {
        for pod in self.pods.by_node.get(node) {
            if !podstate::is_ready(&pod) {
                continue;
            }
            let mut changed: Pod = (*pod).clone();
            let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
            for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
                condition.status = "False".to_owned();
                condition.last_transition_time = meta::stamp(meta::now());
            }
            let api: Api<Pod> = self.controller.namespaced(&pod.namespace().unwrap_or_default());
            let written = api.replace_status(&pod.name_any(), &PostParams::default(), &changed).await;
            if written.unless_gone("marking as not ready pod", &meta::display(&pod.metadata))?.is_some() {
                let events = &self.controller.events;
                events.object_event(&*pod, EventType::Warning, "NodeNotReady", "Node is not ready");
            }
        }
        Ok(())
    }

    /// Recomputes the zones; when one changes its state all its nodes are looked at again.
    fn update_zones(&self) {
        let states = health::zones(&self.nodes.list());
        let mut zones = self.zones.lock();
        if zones.states == states {
            return;
        }
        zones.states = states;
        drop(zones);
        for node in self.nodes.list() {
            self.queue.add(node.name_any());
        }
    }

    /// Keeps the node's taints; returns how long a `NoExecute` taint has to wait for its turn.
    async fn taint(&self, node: &Node, now: jiff::Timestamp) -> Result<Option<Duration>> {
        let zone = health::zone(node);
        let mut wait = None;
        let permit = |wait: &mut Option<Duration>| {
            let mut zones = self.zones.lock();
            let Some(period) = health::eviction_period(&zones.states, &zone) else { return false };
            let next = zones.next.get(&zone).copied().unwrap_or_else(Instant::now);
            *wait = next.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero());
            if wait.is_none() {
                zones.next.insert(zone.clone(), Instant::now() + period);
            }
            wait.is_none()
        };
        let master_cut_off = health::all_lost(&self.zones.lock().states);
        let taints = health::taints(node, master_cut_off, || permit(&mut wait), now);
        if let Some(taints) = taints {
            let name = node.name_any();
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            });
            let api: Api<Node> = self.controller.cluster();
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.during("tainting node", &name)?;
        }
        Ok(wait)
    }

    /// The beta labels follow the stable ones.
    async fn label(&self, node: &Node) -> Result<()> {
        let labels = health::secondary_labels(meta::labels(&node.metadata));
        if labels.is_empty() {
            return Ok(());
        }
        let (name, api) = (node.name_any(), self.controller.cluster::<Node>());
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        api.patch(&name, &PatchParams::default(), &patch).await.unless_gone("labelling node", &name)?;
        Ok(())
    }
}
