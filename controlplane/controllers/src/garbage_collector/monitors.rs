//! One metadata watch per resource, started and ended as resources come and go.
//!
//! Resources are discovered again when a CustomResourceDefinition or an APIService changes, and
//! while some group does not answer.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use component::{Supervisor, WorkQueue};
use futures::StreamExt;
use kube::Api;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::graph::{Graph, Location};
use super::{Task, enqueue};
use crate::context::{Controller, Removals};
use crate::discovery::{self, Served};
use crate::error::{During, Result};
use crate::meta;

const RETRY_DISCOVERY: Duration = Duration::from_secs(30);
/// Several definitions applied together are discovered together.
const SETTLE: Duration = Duration::from_millis(50);
/// Work waits this long for slow watches to show their first list, then starts without them.
const FIRST_LISTS: Duration = Duration::from_secs(30);

/// Finds what serves a kind. Cloning shares the knowledge.
#[derive(Clone)]
pub struct Mapper {
    known: Arc<Mutex<HashMap<(String, String), Served>>>,
    client: kube::Client,
}

impl Mapper {
    /// By apiVersion and kind; asks the API server for versions that nobody watches.
    pub async fn find(&self, api_version: &str, kind: &str) -> Result<Option<Served>> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.known.lock().get(&key) {
            return Ok(Some(known.clone()));
        }
        match discovery::version(&self.client, api_version).await {
            Err(error) if super::is_gone(&error) => Ok(None),
            other => {
                let served = other.during("discovering the resources of", api_version)?;
                let found = served.into_iter().find(|served| served.api.kind == kind);
                if let Some(found) = &found {
                    self.known.lock().insert(key, found.clone());
                }
                Ok(found)
            }
        }
    }

    fn learn(&self, resources: &[Served]) {
        let entries =
            resources.iter().map(|served| ((served.api.api_version.clone(), served.api.kind.clone()), served.clone()));
        *self.known.lock() = entries.collect();
    }
}

struct Monitors {
    controller: Controller,
    graph: Arc<Mutex<Graph>>,
    queue: WorkQueue<Task>,
    mapper: Mapper,
    rediscover: Arc<Notify>,
    removals: Removals,
    running: HashMap<String, (Supervisor, watch::Receiver<bool>)>,
}

/// Returns the mapper, and a future that ends when the first lists are in the graph.
pub fn start(
    controller: &Controller,
    graph: &Arc<Mutex<Graph>>,
    queue: &WorkQueue<Task>,
    removals: &Removals,
) -> (Mapper, impl Future<Output = ()> + Send + 'static) {
    let mapper = Mapper { known: Arc::default(), client: controller.client.clone() };
    let (first, mut seen) = watch::channel(false);
    let mut monitors = Monitors {
        controller: controller.clone(),
        graph: graph.clone(),
        queue: queue.clone(),
        mapper: mapper.clone(),
        rediscover: Arc::new(Notify::new()),
        removals: removals.clone(),
        running: HashMap::new(),
    };
    controller.supervisor.spawn("monitors", async move {
        loop {
            let complete = monitors.sync().await;
            if complete && !*first.borrow() {
                monitors.first_lists().await;
                first.send_replace(true);
            }
            let retry = if complete { Duration::MAX } else { RETRY_DISCOVERY };
            let retry = if *first.borrow() { retry } else { Duration::from_secs(1) };
            // an early end of the wait is what the notification is for
            let _ = tokio::time::timeout(retry, monitors.rediscover.notified()).await;
            tokio::time::sleep(SETTLE).await;
        }
    });
    let ready = async move {
        // the sender lives as long as the monitors' task, which ends with the workers
        let _ = seen.wait_for(|first| *first).await;
    };
    (mapper, ready)
}

impl Monitors {
    /// Starts and ends watches to match what is served; returns whether everything answered.
    async fn sync(&mut self) -> bool {
        let found = match discovery::discover(&self.controller.client).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "garbage collection keeps to the resources it knows");
                return false;
            }
        };
        self.mapper.learn(&found.resources);
        let wanted: Vec<Served> = found.resources.into_iter().filter(is_watched).collect();
        let names: HashSet<String> = wanted.iter().map(identity).collect();
        if found.failures.is_empty() {
            self.running.retain(|name, (supervisor, _)| {
                let keep = names.contains(name);
                if !keep {
                    supervisor.cancel();
                }
                keep
            });
        }
        for served in wanted {
            let name = identity(&served);
            if !self.running.contains_key(&name) {
                let started = self.start_monitor(served);
                self.running.insert(name, started);
            }
        }
        if !found.failures.is_empty() {
            tracing::debug!(failures = ?found.failures, "some API groups did not answer discovery");
        }
        found.failures.is_empty()
    }

    async fn first_lists(&self) {
        let waits = self.running.values().map(|(_, listed)| {
            let mut listed = listed.clone();
            async move {
                let _ = listed.wait_for(|listed| *listed).await;
            }
        });
        if tokio::time::timeout(FIRST_LISTS, futures::future::join_all(waits)).await.is_err() {
            tracing::warn!("garbage collection starts before every resource was listed");
        }
    }

    fn start_monitor(&self, served: Served) -> (Supervisor, watch::Receiver<bool>) {
        let supervisor = self.controller.supervisor.child(served.name());
        let (listed, seen) = watch::channel(false);
        let monitor = Monitor {
            defines_kinds: matches!(served.api.kind.as_str(), "CustomResourceDefinition" | "APIService"),
            served,
            graph: self.graph.clone(),
            queue: self.queue.clone(),
            rediscover: self.rediscover.clone(),
            removals: self.removals.clone(),
            known: HashSet::new(),
        };
        supervisor.spawn("watch", monitor.follow(self.controller.client.clone(), listed));
        (supervisor, seen)
    }
}

/// Events own nothing and outnumber everything.
fn is_watched(served: &Served) -> bool {
    served.can(&["list", "watch", "delete"]) && served.api.plural != "events"
}

fn identity(served: &Served) -> String {
    format!("{}/{}", served.api.api_version, served.api.plural)
}

struct Monitor {
    served: Served,
    graph: Arc<Mutex<Graph>>,
    queue: WorkQueue<Task>,
    rediscover: Arc<Notify>,
    removals: Removals,
    /// Its objects define what is served.
    defines_kinds: bool,
    known: HashSet<String>,
}

impl Monitor {
    async fn follow(mut self, client: kube::Client, listed: watch::Sender<bool>) {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &self.served.api);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default().any_semantic()).default_backoff());
        let mut relisted = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => relisted.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    relisted.insert(meta::uid(&object.metadata).to_owned());
                    self.apply(&object);
                }
                Ok(watcher::Event::InitDone) => {
                    let gone: Vec<String> = self.known.difference(&relisted).cloned().collect();
                    gone.iter().for_each(|uid| self.remove(uid));
                    listed.send_replace(true);
                }
                Ok(watcher::Event::Apply(object)) => {
                    self.apply(&object);
                    self.announce();
                }
                Ok(watcher::Event::Delete(object)) => {
                    self.remove(meta::uid(&object.metadata));
                    if let Some(namespace) = &object.metadata.namespace {
                        self.removals.announce(namespace);
                    }
                    self.announce();
                }
                Err(error) => tracing::debug!(resource = self.served.name(), %error, "metadata watch failed"),
            }
        }
    }

    fn announce(&self) {
        if self.defines_kinds {
            self.rediscover.notify_one();
        }
    }

    fn apply(&mut self, object: &PartialObjectMeta<DynamicObject>) {
        let (namespace, name) = meta::key(&object.metadata);
        let location = Location {
            api_version: self.served.api.api_version.clone(),
            kind: self.served.api.kind.clone(),
            namespace,
            name,
        };
        self.known.insert(meta::uid(&object.metadata).to_owned());
        let work = self.graph.lock().apply(location, &object.metadata);
        enqueue(&self.queue, work);
    }

    fn remove(&mut self, uid: &str) {
        self.known.remove(uid);
        let work = self.graph.lock().remove(uid);
        enqueue(&self.queue, work);
    }
}
