//! The watch cache: per resource, the current objects as shared bytes and a window of recent
//! events, fed by one store watch.
//!
//! Layer: between [`store`] and the registry's reads. [`Cache`] is one resource's; it starts with
//! its first use. Reads are consistent: [`Cache::fresh`] waits until the cache has seen every
//! write that was answered before the call. Watchers hold no queue of their own: a
//! [`Watcher`](watch::Watcher) is a position (a revision) in the window, so that a thousand of them
//! cost a thousand positions; a change wakes those that watch its namespace (`scope`). Those that the
//! window does not reach back to, slow ones and all that come back after a restart, share what one
//! reader (`history`) brings from the store.

mod history;
pub mod item;
mod past;
pub mod pluck;
mod scope;
pub mod state;
mod text;
pub mod unreadable;
pub mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use component::Supervisor;
use futures::StreamExt;
use futures::future::OptionFuture;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use store::{Progress, Range, Store, StoreError, Unreadable};
use tokio::sync::{Notify, watch as signal};

use self::history::History;
use self::item::Item;
use self::state::State;
use crate::error::{ApiError, Result};
use crate::resource::Descriptor;

/// How long a read waits for the cache to catch up with the store, or with the version asked for.
const CATCH_UP: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(200);
/// The pause grows to this while the same cannot be read: each try reads all of the resource.
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Each page of the first list counts what lies behind it: few and large ones.
const PAGE: usize = 10_000;

/// Makes of stored objects what a resource serves, where that is not the same.
#[async_trait]
pub trait Decode: Send + Sync {
    async fn decode(&self, stored: Vec<Bytes>) -> Result<Vec<Bytes>>;
}

/// One resource's cache.
pub struct Cache {
    pub descriptor: Arc<Descriptor>,
    /// What items are found by.
    parts: pluck::Fields,
    root: String,
    store: Arc<dyn Store>,
    supervisor: Supervisor,
    state: RwLock<State>,
    /// What lies before the window.
    history: Mutex<History>,
    /// Something of it was read, which is to be forgotten in its time.
    reached_back: Notify,
    /// Epoch and revision, announced after each batch.
    changed: signal::Sender<(u64, u64)>,
    progress: Mutex<Option<Progress>>,
    /// Why nothing can be read: a stored object that cannot be decrypted, or converted.
    failure: Mutex<Option<ApiError>>,
    /// Something that could not be read was removed.
    mended: Notify,
    started: AtomicBool,
    decoder: Option<Arc<dyn Decode>>,
}

impl Cache {
    pub fn new(descriptor: Arc<Descriptor>, store: Arc<dyn Store>, supervisor: &Supervisor) -> Arc<Self> {
        Self::decoding(descriptor, store, supervisor, None)
    }

    /// A cache of what `decoder` makes of the stored objects.
    pub fn decoding(
        descriptor: Arc<Descriptor>,
        store: Arc<dyn Store>,
        supervisor: &Supervisor,
        decoder: Option<Arc<dyn Decode>>,
    ) -> Arc<Self> {
        let root = descriptor.registry_root();
        Arc::new(Self {
            supervisor: supervisor.child(format_args!("cache {}", descriptor.storage_prefix)),
            parts: item::parts(&descriptor),
            descriptor,
            root,
            store,
            state: RwLock::default(),
            history: Mutex::default(),
            reached_back: Notify::new(),
            changed: signal::Sender::new((0, 0)),
            progress: Mutex::default(),
            failure: Mutex::default(),
            mended: Notify::new(),
            started: AtomicBool::new(false),
            decoder,
        })
    }

    /// The cached state as it is; [`Cache::fresh`] first for a consistent read.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    pub fn subscribe(&self) -> signal::Receiver<(u64, u64)> {
        self.changed.subscribe()
    }

    /// Waits until the cache holds every write answered before this call.
    pub async fn fresh(self: &Arc<Self>) -> Result<()> {
        self.ensure_started();
        let target = self.store.revision().await.map_err(store_error)?;
        if self.ready_at(target) {
            return Ok(());
        }
        Box::pin(self.catch_up(target)).await
    }

    async fn catch_up(&self, target: u64) -> Result<()> {
        // First: a feed that begins between a question that nobody heard and this would not be noticed.
        let mut changed = self.subscribe();
        self.ask_for_progress();
        let reached = async {
            loop {
                if self.ready_at(target) || self.failure.lock().is_some() {
                    return self.failed();
                }
                // The sender lives in `self`.
                let _ = changed.changed().await;
                // A feed that was only starting when progress was asked for.
                if !self.ready_at(target) {
                    self.ask_for_progress();
                }
            }
        };
        if let Ok(outcome) = tokio::time::timeout(CATCH_UP * 3, reached).await {
            return outcome;
        }
        self.check_initialized()?;
        Err(ApiError::timeout(format!(
            "the watch cache of {} did not reach revision {target} in time",
            self.descriptor.plural
        )))
    }

    /// Waits until the cache holds its first complete list.
    pub async fn ready(self: &Arc<Self>) -> Result<()> {
        self.not_older_than(0).await
    }

    /// Waits until the cache has reached `revision`.
    pub async fn not_older_than(self: &Arc<Self>, revision: u64) -> Result<()> {
        self.ensure_started();
        if self.ready_at(revision) {
            return Ok(());
        }
        Box::pin(self.reach(revision)).await
    }

    /// Has the feed say soon how far it has come, also where nothing happens.
    pub fn ask_for_progress(&self) {
        if let Some(progress) = &*self.progress.lock() {
            progress.request();
        }
    }

    async fn reach(&self, revision: u64) -> Result<()> {
        let mut changed = self.subscribe();
        self.ask_for_progress();
        let reached =
            changed.wait_for(|(epoch, reached)| (*epoch > 0 && *reached >= revision) || self.failure.lock().is_some());
        if tokio::time::timeout(CATCH_UP, reached).await.is_ok() {
            return self.failed();
        }
        self.check_initialized()?;
        let current = self.read().revision;
        Err(too_large(revision, current))
    }

    fn is_unreadable(&self) -> bool {
        self.failure.lock().as_ref().is_some_and(|error| error.reason() == unreadable::STORE_READ_ERROR)
    }

    fn failed(&self) -> Result<()> {
        self.failure.lock().clone().map_or(Ok(()), Err)
    }

    /// Stored objects as this resource serves them.
    pub async fn decoded(&self, stored: Vec<Bytes>) -> Result<Vec<Bytes>> {
        match &self.decoder {
            Some(decoder) if !stored.is_empty() => decoder.decode(stored).await,
            _ => Ok(stored),
        }
    }

    /// Whether what is held is what there is. A resource of very many objects takes a while to be read for the
    /// first time, and one that was stopped holds nothing: clients come again by themselves.
    pub fn check_initialized(&self) -> Result<()> {
        if self.read().epoch > 0 { Ok(()) } else { Err(reinitializing()) }
    }

    fn ready_at(&self, revision: u64) -> bool {
        // What is held stands still while something stored cannot be read.
        if self.is_unreadable() {
            return false;
        }
        let state = self.read();
        state.epoch > 0 && state.revision >= revision
    }

    fn ensure_started(self: &Arc<Self>) {
        if !self.started.swap(true, Ordering::AcqRel) {
            let cache = self.clone();
            self.supervisor.spawn("feed", async move { cache.feed().await });
        }
    }

    /// Ends the feed and every watcher: the resource is no longer served. Who found this before and comes late is
    /// to come again, and finds what has taken its place.
    pub fn stop(&self) {
        self.supervisor.cancel();
        self.state.write().end();
        *self.failure.lock() = Some(reinitializing());
        *self.history.lock() = History::default();
        self.announce();
        self.read().wake_all();
    }

    async fn feed(self: Arc<Self>) {
        let mut pause = RETRY;
        loop {
            let lasts = match self.follow().await {
                Ok(()) => {
                    tracing::warn!(prefix = self.root, "store watch ended; listing again");
                    false
                }
                Err(FeedError::Store(StoreError::Closed)) => return,
                Err(error) => self.fail(error),
            };
            pause = if lasts { (pause * 2).min(LONGEST_RETRY) } else { RETRY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.mended.notified() => {}
            }
        }
    }

    /// Returns whether the same cannot be read as when this failed last, or nothing will be written any more.
    fn fail(&self, error: FeedError) -> bool {
        // After that a store ends every watch as it begins, until the server is started again.
        let broken = matches!(error, FeedError::Store(StoreError::Io { .. } | StoreError::Damaged { .. }));
        let why = match error {
            FeedError::Store(StoreError::Unreadable(all)) => Some(self.untransformable(all)),
            FeedError::Undecodable(all) => Some(unreadable::listed(&self.descriptor, &all)),
            FeedError::Store(error) => {
                tracing::warn!(prefix = self.root, %error, "store watch failed; listing again");
                None
            }
            FeedError::Decode(error) => Some(error),
        };
        let known = std::mem::replace(&mut *self.failure.lock(), why.clone());
        let lasts = why.is_some() && known == why;
        if let Some(error) = why.as_ref().filter(|_| !lasts) {
            tracing::warn!(prefix = self.root, %error, "what is stored cannot be served; trying again");
        }
        // Who watches is to list again, and is told then.
        if self.is_unreadable() && !lasts {
            self.state.write().end_watches();
        }
        self.announce();
        self.read().wake_all();
        lasts || broken
    }

    /// Lists, then applies the watch until it ends.
    async fn follow(&self) -> Result<(), FeedError> {
        let (items, revision) = self.list_all().await?;
        let mut watch = self.store.watch(&self.root, revision).await?;
        *self.failure.lock() = None;
        self.state.write().reset(items, revision);
        *self.progress.lock() = Some(watch.progress());
        self.announce();
        self.read().wake_all();
        loop {
            let due = self.trim_due().map(tokio::time::Instant::from_std);
            tokio::select! {
                biased;
                batch = watch.next() => match batch {
                    Some(batch) => self.apply(batch?).await?,
                    None => return Ok(()),
                },
                () = self.reached_back.notified() => {}
                Some(()) = OptionFuture::from(due.map(tokio::time::sleep_until)) => self.trim(Instant::now()),
            }
        }
    }

    /// When what is remembered is to be looked through: what a burst of writes left in the window is not to
    /// stay until the next write, nor what was read back until the next restart.
    fn trim_due(&self) -> Option<Instant> {
        let (window, history) = (self.read().trim_due(), self.history.lock().trim_due());
        window.into_iter().chain(history).min()
    }

    fn trim(&self, now: Instant) {
        self.state.write().trim(now);
        self.history.lock().trim(now);
    }

    async fn list_all(&self) -> Result<(Vec<Arc<Item>>, u64), FeedError> {
        let mut items = Vec::new();
        let mut range = Range::prefix(self.root.clone()).limit(PAGE);
        loop {
            let page = self.store.range(range.clone()).await?;
            let more = page.more();
            range = range.at(page.revision);
            if let Some(last) = page.kvs.last() {
                range = range.starting_at(format!("{}\0", last.key));
            }
            let values = page.kvs.iter().map(|kv| kv.value.clone()).collect();
            let values = self.decoded(values).await.map_err(FeedError::Decode)?;
            let mut failed = Vec::new();
            for (kv, value) in page.kvs.iter().zip(values) {
                match self.item(&kv.key, &value, kv.mod_revision) {
                    Ok(item) => items.extend(item.map(Arc::new)),
                    Err(one) => failed.push(one),
                }
            }
            if !failed.is_empty() {
                return Err(FeedError::Undecodable(failed));
            }
            if !more || page.kvs.is_empty() {
                return Ok((items, page.revision));
            }
        }
    }

    /// None for what is no key of this resource.
    fn item(&self, key: &str, value: &[u8], revision: u64) -> Result<Option<Item>, Unreadable> {
        let Some(suffix) = key.strip_prefix(&self.root) else { return Ok(None) };
        let item = Item::new(&self.descriptor, &self.parts, suffix.into(), value, revision);
        item.map(Some).map_err(|error| unreadable::undecodable(key, revision, error))
    }

    /// A stored object of this resource, as a read at an old revision finds it; `value` is what
    /// [`Cache::decoded`] made of it.
    pub fn decode(&self, kv: &store::KeyValue, value: &[u8]) -> Result<Option<Item>, Unreadable> {
        self.item(&kv.key, value, kv.mod_revision)
    }

    /// What lies under `key`, from the store itself: also where others of the resource keep the cache from
    /// being filled.
    pub async fn stored(&self, key: &str) -> Result<Option<Item>> {
        let Some(kv) = self.store.get(key).await.map_err(store_error)?.kv else { return Ok(None) };
        let values = self.decoded(vec![kv.value.clone()]).await?;
        let item = values.first().map(|value| self.decode(&kv, value)).transpose();
        Ok(item.map_err(|one| unreadable::single(&one))?.flatten())
    }

    /// Takes something that could not be read for removed: who asks from now on waits for the next try.
    pub fn try_again(&self) {
        *self.failure.lock() = None;
        self.mended.notify_one();
    }

    /// What is said of values that no key opens.
    pub fn untransformable(&self, all: Vec<Unreadable>) -> ApiError {
        let all: Vec<Unreadable> = all.into_iter().map(unreadable::untransformable).collect();
        unreadable::listed(&self.descriptor, &all)
    }

    async fn apply(&self, batch: store::Batch) -> Result<(), FeedError> {
        let values = batch.events.iter().filter_map(|event| event.value.clone()).collect();
        let mut values = self.decoded(values).await.map_err(FeedError::Decode)?.into_iter();
        // Decoding happens before the lock is taken: readers wait only for map updates.
        let (mut changes, mut failed) = (Vec::with_capacity(batch.events.len()), Vec::new());
        for event in &batch.events {
            let value = event.value.as_ref().and_then(|_| values.next());
            match value.map(|value| self.item(&event.key, &value, event.revision)).transpose() {
                Ok(item) => changes.push((event, item)),
                Err(one) => failed.push(one),
            }
        }
        if !failed.is_empty() {
            return Err(FeedError::Undecodable(failed));
        }
        {
            let mut state = self.state.write();
            for (event, item) in changes {
                match item {
                    Some(Some(item)) => state.put(item),
                    Some(None) => {}
                    None => {
                        if let Some(suffix) = event.key.strip_prefix(&self.root) {
                            state.delete(suffix, event.revision);
                        }
                    }
                }
            }
            state.progress(batch.revision);
        }
        self.announce();
        self.read().wake(batch.events.iter().filter_map(|event| event.key.strip_prefix(&self.root)));
        Ok(())
    }

    fn announce(&self) {
        let state = self.read();
        let now = (state.epoch, state.revision);
        drop(state);
        self.changed.send_replace(now);
    }
}

/// Why the feed ended.
enum FeedError {
    Store(StoreError),
    Decode(ApiError),
    Undecodable(Vec<Unreadable>),
}

impl From<StoreError> for FeedError {
    fn from(error: StoreError) -> Self {
        FeedError::Store(error)
    }
}

/// The client comes again by itself.
fn reinitializing() -> ApiError {
    ApiError::too_many_requests("storage is (re)initializing", 1)
}

/// A version that is yet to come; the client may ask again.
fn too_large(requested: u64, current: u64) -> ApiError {
    ApiError::timeout(format!("Too large resource version: {requested}, current: {current}")).with_details(
        serde_json::json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }),
    )
}

/// A store failure as the client sees it.
pub fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { requested, compacted } => {
            ApiError::expired(format!("too old resource version: {requested} ({compacted})"))
        }
        StoreError::FutureRevision { requested, current } => too_large(requested, current),
        StoreError::TooLarge { .. } => ApiError::too_large(error.to_string()),
        StoreError::Closed => ApiError::unavailable("the server is shutting down"),
        StoreError::Unreadable(mut all) if !all.is_empty() => {
            unreadable::single(&unreadable::untransformable(all.swap_remove(0)))
        }
        other => ApiError::internal(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each try reads all of the resource, and sends every client away.
    #[tokio::test]
    async fn a_store_whose_disk_failed_is_asked_less_and_less_often() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(store::Embedded::open(&dir.path().join("db")).unwrap());
        let descriptor = Arc::new(Descriptor::new("", "v1", "Pod", "pods"));
        let cache = Cache::new(descriptor, store, &Supervisor::new("test"));
        let path = dir.path().join("db/00000001.log");
        let (full, short) = ("No space left on device".to_owned(), "it is cut short".to_owned());
        for (error, lasts) in [
            (StoreError::Io { doing: "writing", path: path.clone(), detail: full }, true),
            (StoreError::Damaged { path, detail: short }, true),
            (StoreError::WatchTooSlow { prefix: cache.root.clone(), queued: 20_000 }, false),
            (StoreError::Compacted { requested: 3, compacted: 7 }, false),
        ] {
            assert_eq!(cache.fail(FeedError::Store(error.clone())), lasts, "{error}");
        }
    }
}
