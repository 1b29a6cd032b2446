//! A watcher: a position in a resource's event window, and what of it to see.

use std::sync::Arc;

use api::selector::Selector;
use bytes::Bytes;
use tokio::sync::watch as signal;

use super::Cache;
use super::item::Item;
use super::state::Event;
use crate::error::{ApiError, Result};

/// Events taken at once.
const BATCH: usize = 128;

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
    /// Of what the store remembers: seen, and not given yet.
    held: Vec<Seen>,
}

impl Watcher {
    /// Watches everything after `revision`: from the store as long as the window does not reach back so far,
    /// as when the client goes on here where another server, or this one before a restart, left off.
    pub async fn after(cache: &Arc<Cache>, selection: Selection, revision: u64) -> Result<Self> {
        let changed = cache.subscribe();
        let (oldest, epoch) = {
            let state = cache.read();
            (state.oldest(), state.epoch)
        };
        let held = Vec::new();
        let mut watcher = Self { cache: cache.clone(), changed, selection, position: revision, epoch, held };
        if revision < oldest {
            // Whether the store remembers has to be known before the watch is answered.
            watcher.held = watcher.catch_up().await.map_err(|error| {
                tracing::debug!(root = cache.root, revision, %error, "the store does not reach back");
                ApiError::expired(format!("too old resource version: {revision} ({oldest})"))
            })?;
        }
        Ok(watcher)
    }

    /// Watches everything after what is held now, and gives that.
    pub fn from_now(cache: &Arc<Cache>, selection: Selection) -> (Self, Vec<Arc<Item>>) {
        let changed = cache.subscribe();
        let state = cache.read();
        let items =
            state.scan(&selection.namespace).filter(|item| selection.matches(cache, item)).cloned().collect::<Vec<_>>();
        let (position, epoch) = (state.revision, state.epoch);
        drop(state);
        (Self { cache: cache.clone(), changed, selection, position, epoch, held: Vec::new() }, items)
    }

    /// Every event up to here has been seen: what a bookmark says.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The next events, at least one; none when the watch cannot go on (the client was slower than the
    /// store remembers, or the cache was rebuilt) and the client has to list or watch anew. May be dropped
    /// and called again.
    pub async fn next(&mut self) -> Option<Vec<Seen>> {
        loop {
            if !self.held.is_empty() {
                return Some(std::mem::take(&mut self.held));
            }
            self.changed.borrow_and_update();
            if self.is_behind() {
                match self.catch_up().await {
                    Ok(seen) => self.held = seen,
                    Err(error) => {
                        tracing::debug!(root = self.cache.root, %error, "a watcher was left behind");
                        return None;
                    }
                }
                continue;
            }
            let seen = self.take()?;
            if !seen.is_empty() {
                return Some(seen);
            }
            self.changed.changed().await.ok()?;
        }
    }

    fn is_behind(&self) -> bool {
        let state = self.cache.read();
        state.epoch == self.epoch && self.position < state.oldest()
    }

    /// Some of what the store remembers; it moves the position.
    async fn catch_up(&mut self) -> Result<Vec<Seen>> {
        let step = self.cache.reach_back(self.position).await?;
        let (events, reached) = step.events_after(self.position, BATCH);
        let seen = events.iter().filter_map(|event| self.seen(event)).collect();
        self.position = self.position.max(reached);
        Ok(seen)
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
