//! A watcher: a position in a resource's event window, and what of it to see.

use std::sync::Arc;

use api::selector::Selector;
use bytes::Bytes;
use tokio::sync::watch as signal;

use super::Cache;
use super::item::Item;
use super::scope::Scope;
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
    scope: Arc<Scope>,
    changed: signal::Receiver<()>,
    pub selection: Selection,
    position: u64,
    epoch: u64,
    /// Of what the store remembers: seen, and not given yet.
    held: Vec<Seen>,
}

/// What a look into the window shows.
enum Look {
    Seen(Vec<Seen>),
    /// The window does not reach back to the position.
    Behind,
    Ended,
}

impl Watcher {
    /// Watches everything after `revision`: from the store as long as the window does not reach back so far,
    /// as when the client goes on here where another server, or this one before a restart, left off.
    pub async fn after(cache: &Arc<Cache>, selection: Selection, revision: u64) -> Result<Self> {
        let (scope, oldest, epoch) = {
            let state = cache.read();
            (state.enter(&selection.namespace), state.oldest(), state.epoch)
        };
        let changed = scope.subscribe();
        let held = Vec::new();
        let mut watcher = Self { cache: cache.clone(), scope, changed, selection, position: revision, epoch, held };
        if revision < watcher.scope.forgotten() {
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
        let state = cache.read();
        let items =
            state.scan(&selection.namespace).filter(|item| selection.matches(cache, item)).cloned().collect::<Vec<_>>();
        let (scope, position, epoch) = (state.enter(&selection.namespace), state.revision, state.epoch);
        drop(state);
        let changed = scope.subscribe();
        (Self { cache: cache.clone(), scope, changed, selection, position, epoch, held: Vec::new() }, items)
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
            match self.look() {
                Look::Ended => return None,
                Look::Seen(seen) if seen.is_empty() => self.changed.changed().await.ok()?,
                Look::Seen(seen) => return Some(seen),
                Look::Behind => match self.catch_up().await {
                    Ok(seen) => self.held = seen,
                    Err(error) => {
                        tracing::debug!(root = self.cache.root, %error, "a watcher was left behind");
                        return None;
                    }
                },
            }
        }
    }

    /// Moves on to where the cache is now: what concerns others does not wake a watcher. Returns what it finds on
    /// the way; where that is something, or there is more to come, the position is behind still.
    pub fn move_on(&mut self) -> Vec<Seen> {
        if !self.held.is_empty() {
            return std::mem::take(&mut self.held);
        }
        match self.look() {
            Look::Seen(seen) => seen,
            Look::Behind | Look::Ended => Vec::new(),
        }
    }

    /// Some of what the store remembers; it moves the position.
    async fn catch_up(&mut self) -> Result<Vec<Seen>> {
        let step = self.cache.reach_back(self.position).await?;
        let (events, reached) = step.events_after(self.position, BATCH);
        let seen = events.iter().filter_map(|event| self.seen(event)).collect();
        self.position = self.position.max(reached);
        Ok(seen)
    }

    fn look(&mut self) -> Look {
        loop {
            let (events, revision) = {
                let state = self.cache.read();
                if !state.goes_on(self.epoch) {
                    return Look::Ended;
                }
                (state.events_after(self.position, &self.scope, BATCH), state.revision)
            };
            let Some(events) = events else { return Look::Behind };
            let Some(last) = events.last() else {
                self.position = self.position.max(revision);
                return Look::Seen(Vec::new());
            };
            self.position = self.position.max(last.revision);
            let seen: Vec<Seen> = events.iter().filter_map(|event| self.seen(event)).collect();
            if !seen.is_empty() {
                return Look::Seen(seen);
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

#[cfg(test)]
mod tests {
    use component::Supervisor;
    use futures::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::cache::item::{encode, parts};
    use crate::resource::Descriptor;

    fn put(cache: &Cache, key: &str, revision: u64) {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}});
        let parts = parts(&cache.descriptor);
        let item = Item::new(&cache.descriptor, &parts, key.into(), &encode(&object), revision).unwrap();
        cache.state.write().put(item);
        cache.read().wake(std::iter::once(key));
    }

    async fn started(dir: &tempfile::TempDir) -> Arc<Cache> {
        let store = Arc::new(store::Embedded::open(&dir.path().join("db")).unwrap());
        let descriptor = Arc::new(Descriptor::new("", "v1", "Pod", "pods"));
        let cache = Cache::new(descriptor, store, &Supervisor::new("test"));
        cache.ready().await.unwrap();
        cache
    }

    fn of(namespace: &str) -> Selection {
        Selection { namespace: namespace.to_owned(), ..Selection::default() }
    }

    /// It is not woken meanwhile, and the store may have forgotten where it was.
    #[tokio::test]
    async fn a_watcher_sleeps_while_other_namespaces_fill_the_window() {
        const OTHERS: u64 = 20_000;
        let dir = tempfile::tempdir().unwrap();
        let cache = started(&dir).await;
        let (mut watcher, _) = Watcher::from_now(&cache, of("a"));
        assert!(watcher.next().now_or_never().is_none());
        let begun = watcher.position();
        (1..=OTHERS).for_each(|more| put(&cache, "b/x", begun + more));
        assert!(cache.read().oldest() > begun);
        assert!(!watcher.changed.has_changed().unwrap());
        put(&cache, "a/x", begun + OTHERS + 1);
        let seen = watcher.next().now_or_never().expect("from the window").expect("it goes on");
        assert_eq!(seen.iter().map(|seen| seen.revision).collect::<Vec<_>>(), [begun + OTHERS + 1]);
        // What it says in a bookmark is where the cache is all the same.
        put(&cache, "b/x", begun + OTHERS + 2);
        assert!(watcher.move_on().is_empty());
        assert_eq!(watcher.position(), begun + OTHERS + 2);
    }

    /// Who knows a version of long ago only has to list anew after a restart.
    #[tokio::test]
    async fn a_bookmark_leads_past_what_happens_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let cache = started(&dir).await;
        let (mut watcher, _) = Watcher::from_now(&cache, of("a"));
        let elsewhere = store::Txn::create("/registry/secrets/a/b", "{}");
        let store::TxnOutcome::Done { revision } = cache.store.txn(elsewhere).await.unwrap() else {
            panic!("nobody else writes");
        };
        let mut told = cache.subscribe();
        cache.ask_for_progress();
        told.wait_for(|(_, reached)| *reached >= revision).await.unwrap();
        assert!(!watcher.changed.has_changed().unwrap(), "it was woken");
        assert!(watcher.move_on().is_empty());
        assert_eq!(watcher.position(), revision);
    }

    /// A request may have found the cache before its definition was changed, and come to it after.
    #[tokio::test]
    async fn who_comes_to_a_cache_that_was_stopped_is_sent_away() {
        let dir = tempfile::tempdir().unwrap();
        let cache = started(&dir).await;
        let (mut before, _) = Watcher::from_now(&cache, of("a"));
        assert!(before.next().now_or_never().is_none());
        cache.stop();
        let (mut late, items) = Watcher::from_now(&cache, of("a"));
        assert!(items.is_empty());
        for watcher in [&mut before, &mut late] {
            assert!(watcher.next().now_or_never().expect("at once").is_none());
        }
        let outcomes = [cache.ready().await, cache.fresh().await, cache.check_initialized()];
        let codes = outcomes.map(|outcome| outcome.err().as_ref().map(ApiError::code));
        assert_eq!(codes, [Some(http::StatusCode::TOO_MANY_REQUESTS); 3]);
    }
}
