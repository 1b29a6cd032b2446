//! The task that follows the stored definitions.
//!
//! One change of one definition costs what that definition costs: it alone is decoded and compiled,
//! and nothing decoded is kept. What has to be known of the others (which names they hold, and
//! whether they wait for some) is in [`Known`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::Value;
use tokio::time::MissedTickBehavior;

use super::names::{self, Taken};
use super::served::ServedDefinition;
use super::{CLEANUP, cleanup, holds, is_established, write_status};
use crate::cache::item::Item;
use crate::cache::pluck::Fields;
use crate::cache::watch::{Selection, Watcher};
use crate::error::Result;
use crate::registry::metadata;
use crate::resources::{Endpoint, Resources};
use crate::server::Api;

const RETRY: Duration = Duration::from_millis(250);

/// What is kept of one definition.
#[derive(Default)]
struct Known {
    /// The newest state that was looked at; 0: none was.
    revision: u64,
    /// Of the spec whose schemas were looked at.
    generation: Option<i64>,
    group: String,
    /// `status.acceptedNames`: others of the group may not take these.
    accepted: Value,
    /// Others have names that it wants: it is looked at again when they let go of one.
    waits: bool,
    served: Option<ServedDefinition>,
}

pub struct Follower {
    api: Arc<Api>,
    definitions: Arc<Endpoint>,
    built_in: Vec<Arc<Endpoint>>,
    known: HashMap<String, Known>,
    /// Names of definitions to look at, in the order of their changes.
    due: VecDeque<String>,
    /// Those that something went wrong with: looked at again a little later.
    failed: Vec<String>,
    /// Deleted ones whose objects are being deleted, by uid.
    cleaning: HashSet<String>,
    cleanups: FuturesUnordered<BoxFuture<'static, String>>,
}

impl Follower {
    pub fn new(api: &Arc<Api>, definitions: Arc<Endpoint>) -> Self {
        Self {
            api: api.clone(),
            definitions,
            built_in: api.resources().all().to_vec(),
            known: HashMap::new(),
            due: VecDeque::new(),
            failed: Vec::new(),
            cleaning: HashSet::new(),
            cleanups: FuturesUnordered::new(),
        }
    }

    /// Serves what is defined now.
    pub async fn begin(&mut self) {
        let items = Watcher::from_now(&self.definitions.cache, Selection::default()).1;
        self.compare(&items);
        self.look_at_due().await;
    }

    pub async fn follow(mut self) {
        // Other changes that come in between do not put it off.
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (mut watcher, items) = Watcher::from_now(&self.definitions.cache, Selection::default());
            self.compare(&items);
            drop(items);
            loop {
                self.look_at_due().await;
                tokio::select! {
                    seen = watcher.next() => match seen {
                        Some(seen) => seen.iter().for_each(|seen| self.push(&seen.item.key)),
                        // The cache lists anew: events may be missing.
                        None => break,
                    },
                    Some(uid) = self.cleanups.next(), if !self.cleanups.is_empty() => drop(self.cleaning.remove(&uid)),
                    _ = retry.tick(), if !self.failed.is_empty() => self.due.extend(self.failed.drain(..)),
                }
            }
        }
    }

    fn push(&mut self, name: &str) {
        if !self.due.iter().any(|due| due == name) {
            self.due.push_back(name.to_owned());
        }
    }

    /// Finds what changed while nobody followed. The names that are held already are known before
    /// the first definition is looked at.
    fn compare(&mut self, items: &[Arc<Item>]) {
        let parts = Fields::new(["spec.group", "status.acceptedNames"]);
        let mut gone: HashSet<String> = self.known.keys().cloned().collect();
        for item in items {
            gone.remove(&*item.key);
            if self.known.get(&*item.key).is_some_and(|known| known.revision == item.revision) {
                continue;
            }
            if let Ok(parts) = parts.pluck(&item.bytes) {
                let known = self.known.entry(item.key.to_string()).or_default();
                known.group = parts["spec"]["group"].as_str().unwrap_or_default().to_owned();
                known.accepted = parts["status"]["acceptedNames"].clone();
            }
            self.push(&item.key);
        }
        gone.iter().for_each(|name| self.push(name));
    }

    async fn look_at_due(&mut self) {
        while let Some(name) = self.due.pop_front() {
            if let Err(error) = self.look_at(&name).await {
                tracing::debug!(name, %error, "serving custom resources; trying again");
                self.failed.push(name);
            }
        }
    }

    /// Brings what is served of a definition, and what it says of itself, in line with it.
    async fn look_at(&mut self, name: &str) -> Result<()> {
        let Some(item) = self.definitions.cache.read().get(name).cloned() else {
            self.forget(name);
            return Ok(());
        };
        let known = self.known.entry(name.to_owned()).or_default();
        // Of what was written here the event is still to come, or there is nothing new in it.
        if item.revision < known.revision || (item.revision == known.revision && !known.waits) {
            return Ok(());
        }
        self.api.definitions.decoded.fetch_add(1, Ordering::Relaxed);
        let mut definition = item.decode();
        let mut revision = item.revision;
        drop(item);
        let group = definition["spec"]["group"].as_str().unwrap_or_default().to_owned();
        let generation = definition["metadata"]["generation"].as_i64();
        let new = known.generation != generation;
        let settled = names::settled(&definition, &self.taken(name, &group), new);
        // Whoever reads that it is established finds it served.
        self.serve(name, &definition, settled.as_ref());
        if let Some(status) = settled {
            // Changed in between: that comes as an event.
            let Some(written) = write_status(&self.api, &definition, status).await? else { return Ok(()) };
            revision = metadata::text(&written, "resourceVersion").parse().unwrap_or(revision);
            definition = written;
        }
        let (known, status) = (self.known.entry(name.to_owned()).or_default(), &definition["status"]);
        let before = std::mem::replace(&mut known.accepted, status["acceptedNames"].clone());
        (known.revision, known.waits) = (revision, !holds(status, "NamesAccepted"));
        known.group.clone_from(&group);
        known.generation = generation;
        if names::lets_go(&before, &status["acceptedNames"]) {
            self.wake(&group);
        }
        self.clean(name, &definition);
        Ok(())
    }

    /// What the others of its group have.
    fn taken(&self, name: &str, group: &str) -> Taken<'_> {
        let others = self.known.iter().filter(|(other, known)| *other != name && known.group == group);
        Taken::of(others.map(|(_, known)| &known.accepted))
    }

    /// Looks again at those that wait for names in the group.
    fn wake(&mut self, group: &str) {
        let waiting = self.known.iter().filter(|(_, known)| known.waits && known.group == group);
        let waiting: Vec<String> = waiting.map(|(name, _)| name.clone()).collect();
        waiting.iter().for_each(|name| self.push(name));
    }

    fn forget(&mut self, name: &str) {
        let Some(known) = self.known.remove(name) else { return };
        if let Some(served) = known.served {
            self.publish();
            served.stop();
        }
        if names::lets_go(&known.accepted, &Value::Null) {
            self.wake(&known.group);
        }
    }

    /// Makes endpoints of a definition if there are none, or others; `settled` is the status that it
    /// is about to have.
    fn serve(&mut self, name: &str, definition: &Value, settled: Option<&Value>) {
        let status = settled.unwrap_or(&definition["status"]);
        let (names, established) = (&status["acceptedNames"], is_established(status));
        let known = self.known.entry(name.to_owned()).or_default();
        let kept = known.served.as_mut().is_some_and(|served| established && served.is_of(definition, names));
        let mut before = None;
        if !kept {
            let made = established.then(|| ServedDefinition::of(definition, names, &self.api)).flatten();
            self.api.definitions.compiled.fetch_add(u64::from(made.is_some()), Ordering::Relaxed);
            before = std::mem::replace(&mut known.served, made);
        }
        if let Some(served) = &known.served {
            served.set_terminating(metadata::is_deleting(definition));
        }
        if !kept && (before.is_some() || known.served.is_some()) {
            self.publish();
        }
        // Requests find the new ones by now.
        if let Some(before) = before {
            before.stop();
        }
    }

    /// Swaps the set of served resources.
    fn publish(&self) {
        let mut served: Vec<&ServedDefinition> =
            self.known.values().filter_map(|known| known.served.as_ref()).collect();
        served.sort_by(|a, b| a.prefix().cmp(b.prefix()));
        let custom = served.into_iter().flat_map(|served| served.endpoints.iter().cloned());
        self.api.set_resources(Resources::new(self.built_in.iter().cloned().chain(custom).collect()));
    }

    /// Begins to empty a deleted definition.
    fn clean(&mut self, name: &str, definition: &Value) {
        let uid = metadata::text(definition, "uid").to_owned();
        let held = metadata::is_deleting(definition) && metadata::finalizers(definition).contains(&CLEANUP);
        if held && self.cleaning.insert(uid.clone()) {
            let (api, name) = (self.api.clone(), name.to_owned());
            self.cleanups.push(Box::pin(async move {
                cleanup::run(&api, &name, &uid).await;
                uid
            }));
        }
    }
}
