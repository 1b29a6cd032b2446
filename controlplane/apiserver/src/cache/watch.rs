//! A watcher: a position in a resource's event window, and what of it to see.

use std::sync::Arc;

use api::selector::Selector;
use bytes::Bytes;
use tokio::sync::watch as signal;

use super::Cache;
use super::item::Item;
use super::state::Event;
use crate::error::{ApiError, Result};

/// Events taken from the window at once.
const BATCH: usize = 128;
/// How often a watcher that was left behind tries to get back into the window, which may move on meanwhile.
const REACHES: usize = 4;

/// Which objects a list or watch is about.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Empty: all namespaces.
    pub namespace: String,
    /// Empty: any name.
    pub name: String,
    pub labels: Selector,
    pub fields: Selector,
}

impl Selection {
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_empty()
    }

    pub fn matches(&self, cache: &Cache, item: &Item) -> bool {
        (self.namespace.is_empty() || item.namespace() == self.namespace)
            && (self.name.is_empty() || item.name() == self.name)
            && item.matches(&cache.descriptor, &self.labels, &self.fields)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

impl Change {
    pub fn name(self) -> &'static str {
        match self {
            Change::Added => "ADDED",
            Change::Modified => "MODIFIED",
            Change::Deleted => "DELETED",
        }
    }
}

/// What a watcher sees of one event.
pub struct Seen {
    pub change: Change,
    pub revision: u64,
    /// The object's state; its bytes at `revision` are in `bytes`.
    pub item: Arc<Item>,
    pub bytes: Bytes,
}

pub struct Watcher {
    cache: Arc<Cache>,
    changed: signal::Receiver<(u64, u64)>,
    pub selection: Selection,
    position: u64,
    epoch: u64,
}

impl Watcher {
    /// Watches everything after `revision`.
    pub fn after(cache: &Arc<Cache>, selection: Selection, revision: u64) -> Result<Self> {
        let changed = cache.subscribe();
        let state = cache.read();
        if revision < state.oldest() {
            return Err(ApiError::expired(format!("too old resource version: {revision} ({})", state.oldest())));
        }
        let epoch = state.epoch;
        drop(state);
        Ok(Self { cache: cache.clone(), changed, selection, position: revision, epoch })
    }

    /// Watches everything after what is held now, and gives that.
    pub fn from_now(cache: &Arc<Cache>, selection: Selection) -> (Self, Vec<Arc<Item>>) {
        let changed = cache.subscribe();
        let state = cache.read();
        let items =
            state.scan(&selection.namespace).filter(|item| selection.matches(cache, item)).cloned().collect::<Vec<_>>();
        let (position, epoch) = (state.revision, state.epoch);
        drop(state);
        (Self { cache: cache.clone(), changed, selection, position, epoch }, items)
    }

    /// Every event up to here has been seen: what a bookmark says.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The next events, at least one; none when the watch cannot go on (the client was far too slow,
    /// or the cache was rebuilt) and the client has to list or watch anew.
    pub async fn next(&mut self) -> Option<Vec<Seen>> {
        loop {
            self.changed.borrow_and_update();
            let seen = self.take_or_reach_back().await?;
            if !seen.is_empty() {
                return Some(seen);
            }
            self.changed.changed().await.ok()?;
        }
    }

    /// What comes next, from the store where the window has left this watcher behind.
    async fn take_or_reach_back(&mut self) -> Option<Vec<Seen>> {
        for _ in 0..REACHES {
            let seen = self.take();
            if seen.is_some() || self.cache.read().epoch != self.epoch {
                return seen;
            }
            self.cache.reach_back(self.position).await;
        }
        self.take()
    }

    fn take(&mut self) -> Option<Vec<Seen>> {
        loop {
            let (events, revision) = {
                let state = self.cache.read();
                if state.epoch != self.epoch {
                    return None;
                }
                (state.events_after(self.position, BATCH)?, state.revision)
            };
            let Some(last) = events.last() else {
                self.position = self.position.max(revision);
                return Some(Vec::new());
            };
            self.position = self.position.max(last.revision);
            let seen: Vec<Seen> = events.iter().filter_map(|event| self.seen(event)).collect();
            if !seen.is_empty() {
                return Some(seen);
            }
        }
    }

    fn seen(&self, event: &Event) -> Option<Seen> {
        if !self.selection.namespace.is_empty() && event.item.namespace() != self.selection.namespace {
            return None;
        }
        let matched = |item: &Item| self.selection.matches(&self.cache, item);
        let before = event.previous.as_ref().is_some_and(|item| matched(item));
        let now = !event.deleted && matched(&event.item);
        let revision = event.revision;
        let (change, item, bytes) = match (before, now) {
            (false, false) => return None,
            (false, true) => (Change::Added, event.item.clone(), event.item.bytes.clone()),
            (true, true) => (Change::Modified, event.item.clone(), event.item.bytes.clone()),
            (true, false) if event.deleted => (Change::Deleted, event.item.clone(), event.item.bytes.clone()),
            (true, false) => {
                let previous = event.previous.clone().unwrap_or_else(|| event.item.clone());
                (Change::Deleted, previous, event.left())
            }
        };
        Some(Seen { change, revision, item, bytes })
    }
}
