//! Every pod of the node: which there are, where they come from, one worker each.
//!
//! The API's pods (an informer), the manifests' static pods and what the runtime still has meet here.
//! Handlers only compute and post; [`crate::pod::worker`] does the work. `news`: what the runtime says;
//! `strays`: what is left of pods that nobody knows; `grants`: who may grow; `view`: what the 10250 server
//! reads.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use component::{EventType, Informer, Supervisor};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::admission::{self, Shortage};
use crate::cgroups;
use crate::context::NodeContext;
use crate::devices::is_extended;
use crate::eviction::is_critical;
use crate::locks::Locks;
use crate::pod::ending;
use crate::pod::mailbox::{Mailbox, Snapshot, Source, Wish};
use crate::pod::observed::Fingerprint;
use crate::pod::status::Verdict;
use crate::pod::worker::Worker;
use crate::preemption;
use crate::resize;
use crate::retry::Delays;
use crate::static_pods;
use api::resources::{Amounts, QosClass};

mod grants;
mod news;
mod strays;
mod view;

pub struct Manager {
    node: Arc<NodeContext>,
    nodes: Informer<Node>,
    supervisor: Supervisor,
    state: Mutex<State>,
    /// By pod UID: held while something of a pod that nobody knows is removed, so that one that comes
    /// (a static pod has the same UID again) waits for it.
    removing: Locks,
    audit_wanted: tokio::sync::Notify,
}

#[derive(Default)]
struct State {
    /// By pod UID (a static pod's own).
    pods: HashMap<String, Arc<Mailbox>>,
    /// Mirror pods in the API by the static pod's UID.
    mirrors: HashMap<String, Arc<Pod>>,
    /// UIDs that the runtime had something of when the kubelet started.
    inherited: HashMap<String, Fingerprint>,
    /// All sources have been read once: what no source names has to go.
    complete: bool,
    /// Pods of the API that wait for room to grow, by UID.
    deferred: HashMap<String, grants::Deferred>,
    /// Static pods whose manifests were put back while they were ending, by UID: begun again after that.
    again: HashMap<String, Arc<Pod>>,
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// What the Node offers besides what every machine has.
fn extended_resources(node: Option<&Node>) -> Amounts {
    let offered = node.and_then(|node| node.status.as_ref()?.allocatable.as_ref()).into_iter().flatten();
    let extended = offered.filter(|(name, _)| is_extended(name));
    extended.filter_map(|(name, quantity)| Some((name.clone(), quantity.0.parse().ok()?))).collect()
}

/// Whether a pod has come to its end for good.
pub fn is_final(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Failed" | "Succeeded"))
}

impl Manager {
    pub fn new(node: Arc<NodeContext>, nodes: Informer<Node>, supervisor: &Supervisor) -> Arc<Self> {
        Arc::new(Self {
            node,
            nodes,
            supervisor: supervisor.child("pods"),
            state: Mutex::default(),
            removing: Locks::default(),
            audit_wanted: tokio::sync::Notify::new(),
        })
    }

    /// What the runtime has from before this process; no worker starts until it is known.
    pub async fn inherit(&self) {
        let mut delays = Delays::new(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            match self.runtime_lists().await {
                Ok(found) => {
                    self.state.lock().inherited = found;
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "the container runtime does not answer yet");
                    tokio::time::sleep(delays.take()).await;
                }
            }
        }
    }

    async fn runtime_lists(&self) -> Result<HashMap<String, Fingerprint>, crate::cri::RuntimeError> {
        let runtime = &self.node.runtime;
        let began = Instant::now();
        let (sandboxes, containers) = tokio::try_join!(runtime.list_sandboxes(None), runtime.list_containers(None))?;
        *self.node.relisted.write() = Some(began);
        Ok(Fingerprint::by_pod(&sandboxes, &containers))
    }

    // ---- sources

    /// A pod of the API appeared, changed or went (`new` none).
    pub fn api_pod(self: &Arc<Self>, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        match new {
            Some(pod) => match static_pods::mirror_of(pod) {
                Some(uid) => self.mirror_changed(&uid, Some(pod)),
                None => {
                    // A pod that was deleted and made again between two lists has another UID.
                    if let Some(old) = old.filter(|old| uid_of(old) != uid_of(pod)) {
                        self.removed(old);
                    }
                    self.node.statuses.seen(&uid_of(pod), pod.status.as_ref());
                    self.wish(pod.clone(), Source::Api, Some(uid_of(pod)));
                }
            },
            None => {
                let Some(old) = old else { return };
                match static_pods::mirror_of(old) {
                    Some(uid) => {
                        self.node.statuses.forget(&uid_of(old));
                        self.mirror_changed(&uid, None);
                        self.ensure_mirrors();
                    }
                    None => self.removed(old),
                }
            }
        }
    }

    fn removed(&self, pod: &Pod) {
        let uid = uid_of(pod);
        self.node.statuses.forget(&uid);
        self.node.feed.remove(&uid);
        let mailbox = self.state.lock().pods.get(&uid).cloned();
        if let Some(mailbox) = mailbox {
            mailbox.wish.send_modify(|wish| wish.removed = true);
        }
    }

    /// The pods of the manifests directory, all of them.
    pub fn static_pods(self: &Arc<Self>, pods: Vec<Arc<Pod>>) {
        let gone: Vec<Arc<Mailbox>> = {
            let mut state = self.state.lock();
            let wanted: HashSet<String> = pods.iter().map(|pod| uid_of(pod)).collect();
            state.again.retain(|uid, _| wanted.contains(uid));
            let known = state.pods.iter();
            known
                .filter(|(uid, mailbox)| mailbox.wish.borrow().source == Source::File && !wanted.contains(*uid))
                .map(|(_, mailbox)| mailbox.clone())
                .collect()
        };
        for mailbox in gone {
            let uid = uid_of(&mailbox.wish.borrow().pod);
            let mirror = self.state.lock().mirrors.get(&uid).cloned();
            self.node.feed.remove(&uid);
            mailbox.wish.send_modify(|wish| wish.removed = true);
            if let Some(mirror) = mirror {
                static_pods::delete_mirror(&self.node, mirror, &self.supervisor);
            }
        }
        for pod in pods {
            self.static_pod(pod);
        }
    }

    fn static_pod(self: &Arc<Self>, pod: Arc<Pod>) {
        let uid = uid_of(&pod);
        let mirror = self.state.lock().mirrors.get(&uid).cloned();
        self.wish(pod.clone(), Source::File, mirror.as_deref().map(uid_of));
        if mirror.is_none() && !self.state.lock().again.contains_key(&uid) {
            static_pods::create_mirror(&self.node, pod, &self.supervisor);
        }
    }

    fn mirror_changed(self: &Arc<Self>, static_uid: &str, mirror: Option<&Arc<Pod>>) {
        let mailbox = {
            let mut state = self.state.lock();
            match mirror {
                Some(mirror) => state.mirrors.insert(static_uid.to_owned(), mirror.clone()),
                None => state.mirrors.remove(static_uid),
            };
            state.pods.get(static_uid).cloned()
        };
        let wanted = mailbox.filter(|mailbox| !mailbox.wish.borrow().removed);
        match (wanted, mirror) {
            (Some(mailbox), Some(mirror)) => {
                self.node.statuses.seen(&uid_of(mirror), mirror.status.as_ref());
                if mirror.metadata.deletion_timestamp.is_some() {
                    // Someone deleted the mirror: it goes, and comes back; the pod itself stays.
                    static_pods::delete_mirror(&self.node, mirror.clone(), &self.supervisor);
                }
                let uid = Some(uid_of(mirror));
                if mailbox.wish.borrow().api_uid != uid {
                    mailbox.wish.send_modify(|wish| wish.api_uid = uid);
                }
            }
            (Some(mailbox), None) => {
                mailbox.wish.send_modify(|wish| wish.api_uid = None);
            }
            // A mirror of a static pod that is no more.
            (None, Some(mirror)) if self.state.lock().complete => {
                static_pods::delete_mirror(&self.node, mirror.clone(), &self.supervisor);
            }
            (None, _) => {}
        }
    }

    /// Makes and deletes the mirrors that could not be made or deleted when it was time: the API may have been
    /// away, or have had no such namespace.
    pub fn mend_mirrors(self: &Arc<Self>) {
        self.ensure_mirrors();
        let stray: Vec<Arc<Pod>> = {
            let state = self.state.lock();
            let unwanted = |uid: &String| state.pods.get(uid).is_none_or(|mailbox| mailbox.wish.borrow().removed);
            let mirrors = state.mirrors.iter().filter(|_| state.complete);
            let stray = mirrors.filter(|(uid, pod)| unwanted(uid) || pod.metadata.deletion_timestamp.is_some());
            stray.map(|(_, pod)| pod.clone()).collect()
        };
        for mirror in stray {
            static_pods::delete_mirror(&self.node, mirror, &self.supervisor);
        }
    }

    /// A manifest that changed is another static pod with the same name: its mirror can be made only
    /// when the one before it is gone.
    fn ensure_mirrors(self: &Arc<Self>) {
        let missing: Vec<Arc<Pod>> = {
            let state = self.state.lock();
            let wishes = state.pods.iter().filter(|(uid, _)| !state.mirrors.contains_key(*uid));
            let wishes = wishes.map(|(_, mailbox)| mailbox.wish.borrow().clone());
            wishes.filter(|wish| wish.source == Source::File && !wish.removed).map(|wish| wish.pod).collect()
        };
        for pod in missing {
            static_pods::create_mirror(&self.node, pod, &self.supervisor);
        }
    }

    /// Every source has been read once: what only the runtime knows is ended, and mirrors without a
    /// static pod are deleted.
    pub fn sources_complete(self: &Arc<Self>) {
        let (orphans, mirrors) = {
            let mut state = self.state.lock();
            state.complete = true;
            let orphans: Vec<String> =
                state.inherited.keys().filter(|uid| !state.pods.contains_key(*uid)).cloned().collect();
            let mirrors: Vec<Arc<Pod>> = state
                .mirrors
                .iter()
                .filter(|(uid, _)| !state.pods.contains_key(*uid))
                .map(|(_, pod)| pod.clone())
                .collect();
            (orphans, mirrors)
        };
        self.node.feed.complete();
        for mirror in mirrors {
            static_pods::delete_mirror(&self.node, mirror, &self.supervisor);
        }
        for uid in orphans {
            let manager = self.clone();
            self.supervisor.spawn(format!("orphan/{uid}"), async move { manager.end_orphan(&uid).await });
        }
        self.remove_strays();
    }

    // ---- workers

    fn wish(self: &Arc<Self>, pod: Arc<Pod>, source: Source, api_uid: Option<String>) {
        let uid = uid_of(&pod);
        let known = {
            let mut state = self.state.lock();
            let known = state.pods.get(&uid).cloned();
            // One that is on its way out does not turn back.
            if source == Source::File && known.as_ref().is_some_and(|mailbox| mailbox.wish.borrow().removed) {
                state.again.insert(uid, pod);
                return;
            }
            known
        };
        if let Some(mailbox) = known {
            let earlier = mailbox.wish.borrow().pod.clone();
            let (granted, pending) = self.grant(pod, &earlier, source);
            let resized = resize::is_wished(&granted, &earlier);
            mailbox.wish.send_modify(|wish| {
                wish.pod = granted;
                wish.api_uid = api_uid;
                wish.source = source;
                wish.resize_pending = pending;
            });
            if resized {
                self.refresh_qos();
                self.retry_deferred();
            }
            return;
        }
        let inherited = self.state.lock().inherited.remove(&uid).is_some();
        let verdict = if inherited || is_final(&pod) || pod.metadata.deletion_timestamp.is_some() {
            None
        } else {
            self.refusal(&pod)
        };
        if let Some(verdict) = &verdict {
            let message = verdict.message.trim_start_matches("Pod was rejected: ").to_owned();
            self.node.event(&pod, EventType::Warning, &verdict.reason, message);
        }
        let (pod, resize_pending) = match inherited {
            true => {
                let running = resize::as_running(&pod);
                self.grant(pod, &running, source)
            }
            false => (pod, None),
        };
        let verdict = verdict.map(|verdict| (verdict, 1));
        self.node.feed.add(&pod);
        let wish = Wish { pod, source, api_uid, removed: false, verdict, resize_pending };
        self.add_worker(uid, wish, inherited);
        self.refresh_qos();
    }

    fn refusal(&self, pod: &Pod) -> Option<Verdict> {
        let others = self.others(&uid_of(pod));
        let others: Vec<&Pod> = others.iter().map(AsRef::as_ref).collect();
        let mut allocatable = self.node.allocatable.read().clone();
        let own = self.nodes.get("", &self.node.config.node_name);
        // What plugins have is theirs to refuse.
        let plugins = self.node.devices.counts();
        let of_plugin = |name: &String| plugins.iter().any(|device| device.resource == *name);
        allocatable.extend(extended_resources(own.as_deref()).into_iter().filter(|(name, _)| !of_plugin(name)));
        let view = admission::View {
            allocatable: &allocatable,
            node: own.as_deref(),
            others: &others,
            unsafe_sysctls: &self.node.config.allowed_unsafe_sysctls,
            apparmor: self.node.machine.apparmor,
            strict_groups: self.node.runtime_features.read().strict_groups,
            pressure: *self.node.pressure.read(),
        };
        let missing = match &pod.spec {
            Some(spec) if is_critical(pod) => admission::shortages(spec, &view),
            _ => Vec::new(),
        };
        if missing.is_empty() {
            return admission::refuse(pod, &view);
        }
        admission::refuse_given_room(pod, &view).or_else(|| self.make_room(pod, &others, &missing))
    }

    /// Ends others for a pod that the node needs; the reason to refuse it if they are too few. What they had is
    /// the pod's from now on, before the last of them has ended.
    fn make_room(&self, pod: &Pod, others: &[&Pod], missing: &[Shortage]) -> Option<Verdict> {
        let chosen = match preemption::choose(pod, others, missing) {
            Ok(chosen) => chosen,
            Err(unmet) => return Some(preemption::refusal(&unmet)),
        };
        for other in chosen {
            let verdict = preemption::verdict();
            self.node.event(other, EventType::Warning, &verdict.reason, verdict.message.clone());
            self.evict(&uid_of(other), verdict, ending::grace(other));
        }
        None
    }

    fn add_worker(self: &Arc<Self>, uid: String, wish: Wish, known: bool) {
        let mailbox = Arc::new(Mailbox::new(wish));
        {
            let mut state = self.state.lock();
            if state.pods.contains_key(&uid) {
                return;
            }
            state.pods.insert(uid.clone(), mailbox.clone());
        }
        let manager = self.clone();
        self.supervisor.spawn(uid.clone(), async move {
            drop(manager.removing.hold(&uid).await);
            manager.clone().drive(mailbox, known).await;
            let mut state = manager.state.lock();
            state.pods.remove(&uid);
            state.inherited.remove(&uid);
            state.deferred.remove(&uid);
            let again = state.again.remove(&uid);
            drop(state);
            manager.node.probe_totals.forget(&uid);
            manager.refresh_qos();
            manager.retry_deferred();
            manager.forget_references();
            if let Some(pod) = again {
                manager.static_pod(pod);
            }
        });
    }

    /// Runs a pod's worker to its end. A panic ends the turn: the worker begins again from what the
    /// runtime has.
    async fn drive(self: Arc<Self>, mailbox: Arc<Mailbox>, known: bool) {
        let mut known = known;
        loop {
            let uid = uid_of(&mailbox.wish.borrow().pod);
            let supervisor = self.supervisor.child(&uid);
            let worker = Worker::new(self.node.clone(), mailbox.clone(), supervisor.clone(), known);
            let outcome = AssertUnwindSafe(worker.run()).catch_unwind().await;
            supervisor.cancel();
            if outcome.is_ok() {
                return;
            }
            tracing::error!(uid, "a pod's worker panicked; it begins again");
            known = true;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// What environments referred to is remembered only for namespaces that have pods here.
    fn forget_references(&self) {
        let snapshots = self.snapshots();
        let used =
            |namespace: &str| snapshots.iter().any(|one| one.pod.metadata.namespace.as_deref() == Some(namespace));
        self.node.references.retain(used);
    }

    /// The burstable class weighs what its pods request together.
    fn refresh_qos(self: &Arc<Self>) {
        let snapshots = self.snapshots();
        let pods = snapshots.iter().filter(|snapshot| !snapshot.ended).map(|snapshot| &*snapshot.pod);
        let limits = cgroups::qos_limits(QosClass::Burstable, pods);
        let node = self.node.clone();
        self.supervisor.spawn("qos", async move {
            let group = node.cgroups.qos(QosClass::Burstable);
            if let Err(error) = node.cgroups.apply(&group, &limits).await {
                tracing::debug!(%error, "the burstable class's weight could not be set");
            }
        });
    }

    /// Statuses show how devices are: pods that have any tell it when that changes, until cancelled.
    pub async fn follow_devices(self: Arc<Self>) {
        let (mut of_plugins, mut of_drivers) = (self.node.devices.changes(), self.node.dra.changes());
        loop {
            let (changed, users) = tokio::select! {
                changed = of_plugins.changed() => (changed, self.node.devices.users()),
                changed = of_drivers.changed() => (changed, self.node.dra.users()),
            };
            if changed.is_err() {
                return;
            }
            let mailboxes = self.state.lock().pods.clone();
            for (_, mailbox) in mailboxes.into_iter().filter(|(uid, _)| users.contains(uid)) {
                mailbox.post(|_| {});
            }
        }
    }

    fn mailboxes(&self) -> Vec<Arc<Mailbox>> {
        self.state.lock().pods.values().cloned().collect()
    }

    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.mailboxes().iter().map(|mailbox| mailbox.snapshot()).collect()
    }

    /// Ends a pod for the node's own reasons, within `grace` seconds.
    pub fn evict(&self, uid: &str, verdict: Verdict, grace: i64) {
        let mailbox = self.state.lock().pods.get(uid).cloned();
        if let Some(mailbox) = mailbox {
            mailbox.wish.send_modify(|wish| wish.verdict = Some((verdict, grace)));
        }
    }
}
