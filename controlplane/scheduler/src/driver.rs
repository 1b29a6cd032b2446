//! Doing what the queue and the cycle decide: informers in, bindings, conditions and events out.
//!
//! One task takes pods from the queue, one at a time, and decides on a snapshot; each placed pod is
//! bound by a task of its own while the next is already being decided. Nothing is polled: the loop
//! sleeps until a change wakes it or a back-off is over.

use std::sync::Arc;
use std::time::Instant;

use component::{Change, EventRecorder, EventType, Informer, Informers, Kind, Supervisor};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use kube::Client;
use parking_lot::Mutex;
use rand::Rng;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;

use crate::cluster::{Cluster, Snapshot};
use crate::cycle::{Cycle, FitError, Verdict};
use crate::event::{Changed, ClusterEvent};
use crate::framework::{Framework, PostFilter};
use crate::node::NodeInfo;
use crate::nominations::Nominations;
use crate::plugins::default_framework;
use crate::plugins::default_preemption::Budget;
use crate::plugins::dynamic_resources::caches::Devices;
use crate::plugins::storage::Storage;
use crate::pod::{PodInfo, nominated_node};
use crate::queue::{Queue, Setback};
use crate::report;

/// Starts scheduling the pods of `default-scheduler`.
pub fn start(informers: Informers, recorder: EventRecorder, supervisor: &Supervisor) {
    let supervisor = supervisor.child("scheduler");
    let (devices, storage) = (Arc::new(Devices::new(&informers)), Storage::new(&informers));
    let scheduler = Arc::new(Scheduler {
        framework: default_framework(&devices, &storage, &informers, &recorder, &supervisor),
        devices,
        client: informers.client(),
        recorder,
        supervisor: supervisor.clone(),
        state: Mutex::default(),
        changed: Notify::new(),
        budgets: informers.of(),
    });
    let (pods, nodes, namespaces) = (informers.of::<Pod>(), informers.of::<Node>(), informers.of::<Namespace>());
    let services = informers.of::<Service>();
    let changing = scheduler.clone();
    services.on_change(move |change| changing.service_changed(change));
    scheduler.clone().follow(&pods, &nodes, &namespaces);
    let storage = scheduler.follow_storage(storage);
    supervisor.spawn("queue", async move {
        // Deciding on half a cluster would put pods on full nodes.
        tokio::join!(pods.synced(), nodes.synced(), namespaces.synced(), services.synced());
        tokio::join!(scheduler.budgets.synced(), storage);
        scheduler.run().await;
    });
}

struct Scheduler {
    framework: Framework,
    devices: Arc<Devices>,
    client: Client,
    recorder: EventRecorder,
    supervisor: Supervisor,
    state: Mutex<State>,
    changed: Notify,
    budgets: Informer<PodDisruptionBudget>,
}

#[derive(Default)]
struct State {
    cluster: Cluster,
    queue: Queue,
    nominations: Nominations,
    reports: report::Reports,
    /// Where the next cycle begins among the nodes.
    start: usize,
}

impl Scheduler {
    fn follow(self: Arc<Self>, pods: &Informer<Pod>, nodes: &Informer<Node>, namespaces: &Informer<Namespace>) {
        let scheduler = self.clone();
        nodes.on_change(move |change| scheduler.node_changed(change));
        let scheduler = self.clone();
        namespaces.on_change(move |change| scheduler.namespace_changed(change));
        pods.on_change(move |change| self.pod_changed(change));
    }

    /// Ready when storage is known.
    fn follow_storage(self: &Arc<Self>, storage: Storage) -> impl Future<Output = ()> + Send + 'static {
        self.tell(&storage.claims, ClusterEvent::VolumeClaim);
        self.tell(&storage.volumes, ClusterEvent::Volume);
        self.tell(&storage.classes, ClusterEvent::StorageClass);
        self.tell(&storage.drivers, ClusterEvent::Driver);
        self.tell(&storage.on_nodes, ClusterEvent::DriverNode);
        self.tell(&storage.capacities, ClusterEvent::Capacity);
        let scheduler = self.clone();
        storage.attachments.on_change(move |change| {
            if change.new.is_none() {
                scheduler.announce(scheduler.state.lock(), &ClusterEvent::Detached);
            }
        });
        async move { storage.synced().await }
    }

    /// Announces what appears or changes of a kind.
    fn tell<K: Kind>(self: &Arc<Self>, informer: &Informer<K>, event: fn(Changed<K>) -> ClusterEvent) {
        let scheduler = self.clone();
        informer.on_change(move |change| {
            if let Some(new) = change.new {
                let changed = Changed { old: change.old.cloned(), new: new.clone() };
                scheduler.announce(scheduler.state.lock(), &event(changed));
            }
        });
    }

    /// Begins to watch claims, devices and their classes: there is a pod that may need them. Such pods
    /// wait until all is known.
    fn follow_devices(self: &Arc<Self>) {
        let Some(watched) = self.devices.watch() else { return };
        let scheduler = self.clone();
        watched.claims.on_change(move |change| scheduler.claim_changed(change));
        let scheduler = self.clone();
        watched.slices.on_change(move |change| {
            scheduler.devices.stock_changed();
            scheduler.devices_changed(change.new.is_some());
        });
        let scheduler = self.clone();
        watched.classes.on_change(move |change| scheduler.class_changed(change));
        let scheduler = self.clone();
        watched.rules.on_change(move |_| {
            scheduler.devices.stock_changed();
            scheduler.devices_changed(true);
        });
        let full = (watched.claims.clone(), watched.slices.clone(), watched.classes.clone(), watched.rules.clone());
        let scheduler = self.clone();
        self.supervisor.spawn("devices", async move {
            let (claims, slices, classes, rules) = full;
            tokio::join!(claims.synced(), slices.synced(), classes.synced(), rules.synced());
            scheduler.devices_changed(true);
        });
    }

    fn claim_changed(&self, change: &Change<'_, ResourceClaim>) {
        let uid = |claim: &Arc<ResourceClaim>| claim.metadata.uid.clone();
        // A claim that was deleted and made anew between two looks is another claim.
        let (gone, old) = match change.old {
            Some(old) if change.new.map(uid) != Some(uid(old)) => (Some(old), None),
            old => (None, old),
        };
        if let Some(gone) = gone {
            self.devices.seen(gone, true);
            self.announce(self.state.lock(), &ClusterEvent::ClaimGone(gone.clone()));
        }
        if let Some(new) = change.new {
            self.devices.seen(new, false);
            let event = ClusterEvent::ClaimChanged { old: old.cloned(), new: new.clone() };
            self.announce(self.state.lock(), &event);
        }
    }

    fn class_changed(&self, change: &Change<'_, DeviceClass>) {
        if let Some(new) = change.new {
            self.announce(self.state.lock(), &ClusterEvent::ClassChanged(new.clone()));
        }
    }

    /// Only more devices help anyone.
    fn devices_changed(&self, helps: bool) {
        if helps {
            self.announce(self.state.lock(), &ClusterEvent::DevicesChanged);
        }
    }

    fn node_changed(&self, change: &Change<'_, Node>) {
        let info = |node: &Arc<Node>| Arc::new(NodeInfo::new(node.clone()));
        let mut state = self.state.lock();
        let event = match (change.old, change.new) {
            (None, Some(new)) => ClusterEvent::NodeAdded(info(new)),
            (Some(old), Some(new)) => ClusterEvent::NodeUpdated { old: info(old), new: info(new) },
            (old, None) => match old {
                Some(old) => ClusterEvent::NodeRemoved(info(old)),
                None => return,
            },
        };
        match change.new {
            Some(new) => state.cluster.set_node(new.clone()),
            None => state.cluster.remove_node(change.object().metadata.name.as_deref().unwrap_or_default()),
        }
        self.announce(state, &event);
    }

    fn namespace_changed(&self, change: &Change<'_, Namespace>) {
        let name = change.object().metadata.name.as_deref().unwrap_or_default();
        let labels = |namespace: &Arc<Namespace>| namespace.metadata.labels.clone().unwrap_or_default();
        if change.old.map(labels) == change.new.map(labels) {
            return;
        }
        let mut state = self.state.lock();
        state.cluster.set_namespace(name, change.new.map(labels));
        self.announce(state, &ClusterEvent::NamespaceChanged);
    }

    /// No pod waits for a Service: it only says which pods are to be spread.
    fn service_changed(&self, change: &Change<'_, Service>) {
        let selector = |service: &Arc<Service>| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
            selector.filter(|selector| !selector.is_empty())
        };
        let (old, new) = (change.old.and_then(selector), change.new.and_then(selector));
        if old != new {
            let meta = &change.object().metadata;
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            self.state.lock().cluster.set_service(namespace, meta.name.as_deref().unwrap_or_default(), new);
        }
    }

    fn pod_changed(self: &Arc<Self>, change: &Change<'_, Pod>) {
        let uid = |pod: &&Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
        let (old, new) = (change.old.as_ref().map(uid), change.new.as_ref().map(uid));
        // A pod that was deleted and made anew between two looks is another pod.
        if let Some(old) = old.filter(|old| new.as_ref() != Some(old)) {
            self.pod_gone(&old.into());
        }
        let Some(new) = change.new else { return };
        let pod = Arc::new(PodInfo::new(new.clone()));
        if pod.is_terminal() {
            self.pod_gone(&pod.uid);
        } else if let Some(node) = pod.node_name() {
            self.pod_placed(&pod, node);
        } else if pod.is_ours() {
            if pod.may_need_devices() {
                self.follow_devices();
            }
            let mut state = self.state.lock();
            if state.cluster.pod(&pod.uid).is_some() {
                // It is on its way already.
                return state.queue.refresh(pod);
            }
            let moved = state.nominations.update(&pod, change.old.and_then(|old| nominated_node(old)));
            state.queue.add(pod.clone(), &self.framework, Instant::now());
            if moved {
                return self.announce(state, &ClusterEvent::PodGone(pod));
            }
            drop(state);
            self.changed.notify_one();
        }
    }

    fn pod_placed(&self, pod: &Arc<PodInfo>, node: &str) {
        let mut state = self.state.lock();
        state.queue.remove(&pod.uid);
        state.nominations.remove(&pod.uid);
        let known = state.cluster.pod(&pod.uid).cloned();
        state.cluster.set_pod(pod.clone(), node);
        match known {
            Some(old) if old.node_name().is_some() => {
                if old.labels != pod.labels || old.requests != pod.requests {
                    self.announce(state, &ClusterEvent::PodUpdated { old, new: pod.clone() });
                }
            }
            _ => self.announce(state, &ClusterEvent::PodAssigned(pod.clone())),
        }
    }

    fn pod_gone(&self, uid: &crate::pod::Uid) {
        let mut state = self.state.lock();
        state.queue.remove(uid);
        // The room kept for it is free again, also if it was never placed.
        let expected = state.nominations.remove(uid).map(|(_, pod)| pod);
        if let Some(pod) = state.cluster.remove_pod(uid).or(expected) {
            self.announce(state, &ClusterEvent::PodGone(pod));
        }
    }

    /// A node expects a pod no more: those that left its room alone may have it.
    fn vacate(&self, expected: Option<(String, Arc<PodInfo>)>) {
        if let Some((_, pod)) = expected {
            self.announce(self.state.lock(), &ClusterEvent::PodGone(pod));
        }
    }

    fn announce(&self, mut state: parking_lot::MutexGuard<'_, State>, event: &ClusterEvent) {
        state.queue.event(event, &self.framework, Instant::now());
        drop(state);
        self.changed.notify_one();
    }

    async fn run(self: Arc<Self>) {
        loop {
            let (next, due) = {
                let mut state = self.state.lock();
                (state.queue.pop(&self.framework, Instant::now()), state.queue.next_due())
            };
            match (next, due) {
                (Some(pod), _) => {
                    self.schedule(pod);
                    // Bindings and informers on this thread get their turn between two pods.
                    tokio::task::yield_now().await;
                }
                (None, Some(due)) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(due.into()) => {}
                },
                (None, None) => self.changed.notified().await,
            }
        }
    }

    fn schedule(self: &Arc<Self>, pod: Arc<PodInfo>) {
        if pod.is_being_deleted() {
            self.state.lock().queue.remove(&pod.uid);
            let message = format!("skip schedule deleting pod: {}", pod.full_name());
            self.recorder.object_event(pod.pod.as_ref(), EventType::Warning, report::FAILED, message);
            return;
        }
        let decide = || match self.decide(&pod) {
            Verdict::Place { node } => self.place(pod.clone(), node),
            Verdict::Reject(error) => self.reject(pod.clone(), error),
        };
        // Choosing devices can take seconds: other tasks of this thread do not wait for that.
        let may_move =
            || Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
        if pod.may_need_devices() && may_move() { tokio::task::block_in_place(decide) } else { decide() }
    }

    /// Runs a cycle on a snapshot, without holding the lock.
    fn decide(&self, pod: &PodInfo) -> Verdict {
        let (snapshot, nominated, start) = {
            let mut state = self.state.lock();
            state.start = state.start.wrapping_add(1);
            let snapshot = Snapshot { taken: Some(Instant::now()), ..state.cluster.snapshot() };
            (snapshot, state.nominations.by_node(), state.start)
        };
        let budgets = || -> Vec<Budget> { self.budgets.list().iter().map(|budget| Budget::of(budget)).collect() };
        let cycle =
            Cycle { framework: &self.framework, snapshot: &snapshot, nominated: &nominated, budgets: &budgets, start };
        cycle.run(pod, |equal| rand::rng().random_range(0..equal))
    }

    fn place(self: &Arc<Self>, pod: Arc<PodInfo>, node: String) {
        let elsewhere = {
            let mut state = self.state.lock();
            if state.cluster.pod(&pod.uid).is_some_and(|known| known.node_name().is_some()) {
                // Somebody else bound it meanwhile: it stands where that is.
                return;
            }
            state.cluster.assume(pod.clone(), &node);
            state.queue.place(&pod.uid);
            state.nominations.remove(&pod.uid).filter(|(expected, _)| *expected != node)
        };
        self.vacate(elsewhere);
        if let Err(why) = self.framework.reserve(&pod, &node) {
            return self.undo(&pod, &why, false);
        }
        let expected = self.framework.will_act(&pod);
        let told = self.state.lock().reports.take(&pod.uid);
        let scheduler = self.clone();
        self.supervisor.spawn(format_args!("bind {}", pod.full_name()), async move {
            report::after(told).await;
            if expected {
                report::nominate(&scheduler.client, &pod, &node).await;
            }
            match scheduler.framework.bind(&pod, &node).await {
                Ok(()) => {
                    component::timeline(&pod.full_name(), "scheduled");
                    scheduler.state.lock().queue.remove(&pod.uid);
                    let message = format!("Successfully assigned {} to {node}", pod.full_name());
                    scheduler.recorder.object_event(pod.pod.as_ref(), EventType::Normal, report::SCHEDULED, message);
                }
                Err(why) => {
                    scheduler.framework.unbind(&pod, &node).await;
                    scheduler.undo(&pod, &why, expected);
                }
            }
        });
    }

    /// A placed pod could not be bound: what it took is free again, and it is tried later. `expected`:
    /// it was said where it would go.
    fn undo(self: &Arc<Self>, pod: &Arc<PodInfo>, why: &str, expected: bool) {
        self.state.lock().cluster.forget(&pod.uid);
        self.fail(pod, why, expected);
        self.announce(self.state.lock(), &ClusterEvent::PodGone(pod.clone()));
    }

    /// Something failed that says nothing about nodes: the pod is tried again later, and is expected
    /// nowhere until then.
    fn fail(self: &Arc<Self>, pod: &Arc<PodInfo>, why: &str, expected: bool) {
        let now = Instant::now();
        let (waits, vacated) = {
            let mut state = self.state.lock();
            let vacated = state.nominations.remove(&pod.uid);
            (state.queue.set_back(&pod.uid, Setback::Error, &self.framework, now), vacated)
        };
        if waits {
            let nominated = vacated.is_some() || expected || pod.nominated_node().is_some();
            self.report_failure(pod, report::SCHEDULER_ERROR, why.to_owned(), nominated.then(String::new));
        }
        self.vacate(vacated);
    }

    fn reject(self: &Arc<Self>, pod: Arc<PodInfo>, error: FitError) {
        if error.failed {
            // It was not placed: nothing is free now that was not free before.
            return self.fail(&pod, error.pre_filter.as_deref().unwrap_or_default(), false);
        }
        let message = error.message();
        let now = Instant::now();
        let mut state = self.state.lock();
        let (mut displaced, mut vacated) = (Vec::new(), None);
        let mut nomination = None;
        match &error.post_filter {
            Some(PostFilter::Nominate { node, .. }) => {
                displaced = state.nominations.displace(node, pod.priority);
                vacated = state.nominations.remove(&pod.uid).filter(|(before, _)| before != node);
                state.nominations.set(pod.clone(), node);
                nomination = Some(node.clone());
            }
            Some(PostFilter::Nothing(_)) => {
                vacated = state.nominations.remove(&pod.uid);
                nomination = vacated.is_some().then(String::new);
            }
            _ => {}
        }
        let setback = Setback::Unschedulable(error.rejected_by);
        let waits = match &error.post_filter {
            // Its try ends when all victims are told to go: one before that would look for more of them.
            Some(PostFilter::Nominate { .. }) => state.queue.is_in_flight(&pod.uid),
            _ => state.queue.set_back(&pod.uid, setback, &self.framework, now),
        };
        if !waits {
            // It was deleted while it was being decided about.
            state.nominations.remove(&pod.uid);
            return;
        }
        drop(state);
        if let Some(PostFilter::Nominate { node, victims }) = error.post_filter {
            self.preempt(&pod, node, victims, displaced, setback);
        }
        self.report_failure(&pod, report::UNSCHEDULABLE, message, nomination);
        self.vacate(vacated);
    }

    fn preempt(
        self: &Arc<Self>,
        pod: &Arc<PodInfo>,
        node: String,
        victims: Vec<Arc<PodInfo>>,
        displaced: Vec<Arc<PodInfo>>,
        setback: Setback,
    ) {
        let (scheduler, pod) = (self.clone(), pod.clone());
        self.supervisor.spawn(format_args!("preempt for {}", pod.full_name()), async move {
            for lower in displaced {
                report::clear_nomination(&scheduler.client, &lower).await;
            }
            for victim in victims {
                report::evict(&scheduler.client, &scheduler.recorder, &victim, &pod, &node).await;
            }
            scheduler.state.lock().queue.set_back(&pod.uid, setback, &scheduler.framework, Instant::now());
            scheduler.changed.notify_one();
        });
    }

    /// Tells the user, by event and condition. `nomination`: a node's name, or empty to clear it.
    fn report_failure(
        self: &Arc<Self>,
        pod: &Arc<PodInfo>,
        reason: &'static str,
        message: String,
        nomination: Option<String>,
    ) {
        self.recorder.object_event(pod.pod.as_ref(), EventType::Warning, report::FAILED, message.clone());
        let (scheduler, pod) = (self.clone(), pod.clone());
        let (before, writing) = self.state.lock().reports.begin(&pod.uid);
        self.supervisor.spawn(format_args!("report {}", pod.full_name()), async move {
            report::after(before).await;
            report::not_scheduled(&scheduler.client, &pod, reason, &message, nomination.as_deref()).await;
            drop(writing);
            scheduler.state.lock().reports.end(&pod.uid);
        });
    }
}
