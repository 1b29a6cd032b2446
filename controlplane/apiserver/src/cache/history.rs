//! The one reader of a resource's history: what the window no longer holds comes from the store through
//! it.
//!
//! Layer: between [`super::watch`] and the store; what it reads is shared in [`Past`].
//!
//! After a restart every client goes on at once, each from a revision that the window does not reach back
//! to. So one read is under way at a time: whoever needs one waits for that, and looks again. Reads
//! follow one another in one watch of the store, from the lowest revision that is waited for:
//!
//! ```text
//! waiting: 120 120 130 700 …     read (120, 620]: all but 700 go on     read (620, 1100]: all go on
//! ```
//!
//! The cost of a thousand watchers is that of one: an event is read once, a state of an object is decoded
//! once, or twice where its successor lies in the next step. Beside that a watcher is a position, and
//! takes a few looks at each step. What is held meanwhile is what [`Past`] may hold, one batch of the store,
//! and what waits in the reader's watch; that goes with the last step. A client that reads slowly may find its
//! step gone: it is read anew, as one client's.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::{BoxFuture, Shared, WeakShared};
use futures::{FutureExt, StreamExt};
use store::{StoreError, Watch};

use super::item::Item;
use super::past::{Past, Step};
use super::state::Event;
use super::{Cache, FeedError, store_error, unreadable};
use crate::error::{ApiError, Result};

/// What a read finds; none where the store has forgotten what was asked for.
type Found = Result<Option<Arc<Step>>>;
/// A read that all who need it wait for.
type Reading = Shared<BoxFuture<'static, Found>>;
/// The states of objects that a batch is about, by key and revision.
type States<'a> = HashMap<(&'a str, u64), Arc<Item>>;

#[derive(Default)]
pub struct History {
    past: Past,
    /// Where reading goes on, and the store's watch for that.
    ahead: Option<(u64, Watch)>,
    /// Where the read under way began. It is held by those who wait for it, and ends with the last of them.
    underway: Option<(u64, WeakShared<BoxFuture<'static, Found>>)>,
    /// The lowest revision that is waited for and lies before the read under way.
    lowest: Option<u64>,
}

impl History {
    /// When to trim next, if nobody asks until then.
    pub fn trim_due(&self) -> Option<Instant> {
        self.past.trim_due()
    }

    pub fn trim(&mut self, now: Instant) {
        self.past.trim(now);
        if self.past.is_empty() {
            self.ahead = None;
        }
    }

    /// The read under way, for one who waits to go on after `revision`.
    fn join(&mut self, revision: u64) -> Option<Reading> {
        let (from, reading) = self.underway.as_ref()?;
        let reading = reading.upgrade()?;
        if revision < *from {
            self.lowest = Some(self.lowest.map_or(revision, |lowest| lowest.min(revision)));
        }
        Some(reading)
    }

    /// Where the next read begins so that it leads to `revision` and passes by all who wait: where the last
    /// one ended, unless somebody waits for what lies before.
    fn begin(&mut self, revision: u64) -> (u64, Option<Watch>) {
        let lowest = self.lowest.take().map_or(revision, |lowest| lowest.min(revision));
        match self.ahead.take() {
            Some((at, watch)) if at <= lowest => (at, Some(watch)),
            _ => (lowest, None),
        }
    }
}

enum Looked {
    Held(Arc<Step>),
    Coming(Reading),
}

impl Cache {
    /// The part of the store's history to go on in after `revision`, which the window does not reach back to.
    pub(super) async fn reach_back(self: &Arc<Self>, revision: u64) -> Result<Arc<Step>> {
        loop {
            let reading = match self.look_back(revision)? {
                Looked::Held(step) => return Ok(step),
                Looked::Coming(reading) => reading,
            };
            if let Some(step) = reading.await?.filter(|step| step.covers(revision)) {
                return Ok(step);
            }
        }
    }

    fn look_back(self: &Arc<Self>, revision: u64) -> Result<Looked> {
        let mut history = self.history.lock();
        if let Some(step) = history.past.find(revision, Instant::now()).map_err(store_error)? {
            return Ok(Looked::Held(step));
        }
        if let Some(reading) = history.join(revision) {
            return Ok(Looked::Coming(reading));
        }
        let (from, watch) = history.begin(revision);
        let reading: Reading = self.clone().read_back(from, watch).boxed().shared();
        history.underway = reading.downgrade().map(|reading| (from, reading));
        Ok(Looked::Coming(reading))
    }

    /// Reads a step on from `from`, and leaves it to whoever needs it.
    async fn read_back(self: Arc<Self>, from: u64, watch: Option<Watch>) -> Found {
        let read = self.read_step(from, watch).await;
        let mut history = self.history.lock();
        history.underway = None;
        match read {
            Ok((step, watch)) => {
                let step = Arc::new(step);
                history.past.add(step.clone(), Instant::now());
                history.ahead = watch.map(|watch| (step.upto(), watch));
                self.reached_back.notify_one();
                Ok(Some(step))
            }
            Err(FeedError::Store(StoreError::Compacted { requested, compacted })) => {
                history.past.forget(requested.max(from), compacted);
                Ok(None)
            }
            Err(FeedError::Store(error)) => Err(store_error(error)),
            Err(FeedError::Decode(error)) => Err(error),
            Err(FeedError::Undecodable(all)) => Err(unreadable::listed(&self.descriptor, &all)),
        }
    }

    /// The next step after `from`, and the watch that goes on from there, if anybody may need that.
    async fn read_step(&self, from: u64, watch: Option<Watch>) -> Result<(Step, Option<Watch>), FeedError> {
        let mut watch = match watch {
            Some(watch) => watch,
            None => self.watch_from(from).await?,
        };
        loop {
            let batch = match watch.next().await {
                Some(Ok(batch)) => batch,
                // It waited for readers too long, and what came meanwhile was dropped.
                Some(Err(StoreError::WatchTooSlow { .. })) => {
                    watch = self.watch_from(from).await?;
                    continue;
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Err(FeedError::Decode(ApiError::unavailable("the store ended the watch"))),
            };
            if batch.revision > from {
                let events = self.events_of(&batch).await?;
                let goes_on = batch.revision < self.read().oldest();
                return Ok((Step::new(from, batch.revision, events), goes_on.then_some(watch)));
            }
            // What the window begins with is being published this moment; others' events would not wake this.
            watch.progress().request();
            tokio::task::yield_now().await;
        }
    }

    async fn watch_from(&self, revision: u64) -> Result<Watch, StoreError> {
        let watch = self.store.watch(&self.root, revision).await?;
        // Where nothing happened that is said too.
        watch.progress().request();
        Ok(watch)
    }

    /// Events of the store as the window would hold them.
    async fn events_of(&self, batch: &store::Batch) -> Result<Vec<Event>, FeedError> {
        let states = self.states_of(batch).await?;
        let mut events = Vec::with_capacity(batch.events.len());
        for store::Event { key, revision, value, previous } in &batch.events {
            let state = |revision: u64| states.get(&(&**key, revision)).cloned();
            let before = previous.as_ref().and_then(|kv| state(kv.mod_revision));
            let now = value.as_ref().and_then(|_| state(*revision));
            events.push(match (now, before) {
                (Some(item), before) => Event::new(*revision, item, before, false),
                (None, Some(last)) => Event::new(*revision, Arc::new(last.deleted_at(*revision)), Some(last), true),
                (None, None) => {
                    let why = format!("what {key} was before revision {revision} is not known");
                    return Err(FeedError::Decode(ApiError::internal(why)));
                }
            });
        }
        Ok(events)
    }

    /// Each state is decoded once: what a change replaced is mostly what one before it left.
    async fn states_of<'a>(&self, batch: &'a store::Batch) -> Result<States<'a>, FeedError> {
        let mut stored: BTreeMap<(&'a str, u64), Bytes> = BTreeMap::new();
        for event in &batch.events {
            let now = event.value.as_ref().map(|value| (event.revision, value));
            let before = event.previous.as_ref().map(|kv| (kv.mod_revision, &kv.value));
            let both = now.into_iter().chain(before);
            stored.extend(both.map(|(revision, value)| ((&*event.key, revision), value.clone())));
        }
        let (states, values): (Vec<_>, Vec<_>) = stored.into_iter().unzip();
        let values = self.decoded(values).await.map_err(FeedError::Decode)?;
        let (mut found, mut failed) = (HashMap::with_capacity(states.len()), Vec::new());
        for ((key, revision), value) in states.into_iter().zip(values) {
            match self.item(key, &value, revision) {
                Ok(item) => found.extend(item.map(|item| ((key, revision), Arc::new(item)))),
                Err(one) => failed.push(one),
            }
        }
        if failed.is_empty() { Ok(found) } else { Err(FeedError::Undecodable(failed)) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use component::Supervisor;
    use futures::future::join_all;
    use serde_json::json;
    use store::{Embedded, Got, Page, Range, Revision, Store, Txn, TxnOutcome};
    use tempfile::TempDir;

    use super::*;
    use crate::cache::Decode;
    use crate::cache::item::encode;
    use crate::cache::watch::{Selection, Watcher};
    use crate::resource::Descriptor;

    const NAMESPACES: usize = 4;
    const WATCHERS: usize = 300;
    /// Of an empty store.
    const BEGINNING: Revision = 1;

    /// Counts how often its history is asked for.
    struct Counting {
        inner: Embedded,
        watches: AtomicUsize,
        /// Held to keep readers waiting.
        gate: tokio::sync::Mutex<()>,
    }

    #[async_trait]
    impl Store for Counting {
        async fn get(&self, key: &str) -> Result<Got, StoreError> {
            self.inner.get(key).await
        }

        async fn range(&self, range: Range) -> Result<Page, StoreError> {
            self.inner.range(range).await
        }

        async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
            self.inner.txn(txn).await
        }

        async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
            self.watches.fetch_add(1, Ordering::Relaxed);
            let _open = self.gate.lock().await;
            self.inner.watch(prefix, after).await
        }

        async fn revision(&self) -> Result<Revision, StoreError> {
            self.inner.revision().await
        }

        async fn healthy(&self) -> Result<(), StoreError> {
            self.inner.healthy().await
        }

        async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
            self.inner.compact(revision).await
        }

        async fn snapshot(&self) -> Result<std::fs::File, StoreError> {
            self.inner.snapshot().await
        }
    }

    /// Counts what is decoded.
    #[derive(Default)]
    struct Decoded(AtomicUsize);

    #[async_trait]
    impl Decode for Decoded {
        async fn decode(&self, stored: Vec<Bytes>) -> Result<Vec<Bytes>> {
            self.0.fetch_add(stored.len(), Ordering::Relaxed);
            Ok(stored)
        }
    }

    /// A cache that was started after all writes: its window reaches back to none of them.
    struct Restarted {
        cache: Arc<Cache>,
        store: Arc<Counting>,
        decoded: Arc<Decoded>,
        /// Namespace and revision of each write.
        written: Vec<(String, Revision)>,
        _dir: TempDir,
    }

    /// Writes all objects once; `known` are their revisions, 0 for new ones.
    async fn write_all(store: &Counting, known: &[Revision]) -> Vec<Revision> {
        let write = |(number, known): (usize, &Revision)| {
            let name = format!("p-{number}");
            let key = format!("/registry/pods/{}/{name}", namespace(number));
            let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name}, "was": known});
            store.txn(Txn::update(key, *known, encode(&object)))
        };
        let written = join_all(known.iter().enumerate().map(write)).await.into_iter();
        let revision = |outcome: Result<TxnOutcome, StoreError>| match outcome.unwrap() {
            TxnOutcome::Done { revision } => revision,
            TxnOutcome::Conflict { revision, .. } => panic!("somebody else wrote at {revision}"),
        };
        written.map(revision).collect()
    }

    fn namespace(number: usize) -> String {
        format!("ns-{}", number % NAMESPACES)
    }

    impl Restarted {
        /// After so many objects were made and changed.
        async fn after(objects: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let inner = Embedded::open(&dir.path().join("db")).unwrap();
            let store = Arc::new(Counting { inner, watches: AtomicUsize::new(0), gate: tokio::sync::Mutex::default() });
            let made = write_all(&store, &vec![0; objects]).await;
            let changed = write_all(&store, &made).await;
            let named = |(number, revision): (usize, Revision)| (namespace(number), revision);
            let of_each = |revisions: Vec<Revision>| revisions.into_iter().enumerate().map(named);
            let mut written: Vec<_> = of_each(made).chain(of_each(changed)).collect();
            written.sort_by_key(|(_, revision)| *revision);

            let decoded = Arc::new(Decoded::default());
            let descriptor = Arc::new(Descriptor::new("", "v1", "Pod", "pods"));
            let cache = Cache::decoding(descriptor, store.clone(), &Supervisor::new("test"), Some(decoded.clone()));
            cache.ready().await.unwrap();
            store.watches.store(0, Ordering::Relaxed);
            decoded.0.store(0, Ordering::Relaxed);
            Self { cache, store, decoded, written, _dir: dir }
        }

        /// Watches from `revision` on until all that was written has come.
        async fn watch(&self, namespace: &str, revision: Revision) {
            let wanted = |(of, at): &&(String, Revision)| *at > revision && (namespace.is_empty() || of == namespace);
            let expected: Vec<Revision> = self.written.iter().filter(wanted).map(|(_, at)| *at).collect();
            let selection = Selection { namespace: namespace.to_owned(), ..Selection::default() };
            let mut watcher = Watcher::after(&self.cache, selection, revision).await.unwrap();
            let mut seen = Vec::new();
            while seen.len() < expected.len() {
                seen.extend(watcher.next().await.expect("it goes on").iter().map(|seen| seen.revision));
            }
            assert_eq!(seen, expected, "{namespace} after {revision}");
        }

        fn watches(&self) -> usize {
            self.store.watches.load(Ordering::Relaxed)
        }

        fn decoded(&self) -> usize {
            self.decoded.0.load(Ordering::Relaxed)
        }
    }

    /// More than one step of the store.
    #[tokio::test]
    async fn watchers_of_one_old_revision_read_the_store_once() {
        let restarted = Restarted::after(400).await;
        let namespaces: Vec<String> =
            (0..WATCHERS).map(|number| if number % 3 == 0 { String::new() } else { namespace(number) }).collect();
        join_all(namespaces.iter().map(|namespace| restarted.watch(namespace, BEGINNING))).await;
        assert_eq!(restarted.watches(), 1);
        let states = restarted.written.len();
        assert!((states..=2 * states).contains(&restarted.decoded()), "{} of {states}", restarted.decoded());

        let mut history = restarted.cache.history.lock();
        assert!(!history.past.is_empty());
        history.trim(Instant::now() + Duration::from_secs(60));
        assert!(history.past.is_empty() && history.ahead.is_none() && history.trim_due().is_none());
    }

    /// Who waits for the newest comes first.
    #[tokio::test]
    async fn watchers_of_many_revisions_share_the_way() {
        let restarted = Restarted::after(400).await;
        let revisions = (0..WATCHERS as u64).rev().map(|number| BEGINNING + 2 * number);
        let mut watchers = join_all(revisions.map(|revision| restarted.watch("", revision)));
        let closed = restarted.store.gate.lock().await;
        assert!(futures::poll!(&mut watchers).is_pending());
        drop(closed);
        watchers.await;
        assert!(restarted.watches() <= 3, "{}", restarted.watches());
        let states = restarted.written.len();
        assert!(restarted.decoded() <= 3 * states, "{} of {states}", restarted.decoded());
    }

    #[tokio::test]
    async fn what_the_store_has_forgotten_is_asked_for_once() {
        let restarted = Restarted::after(20).await;
        restarted.store.compact(restarted.store.revision().await.unwrap()).await.unwrap();
        let revisions = (0..WATCHERS as u64).map(|number| BEGINNING + number % 10);
        let watchers = revisions.map(|revision| Watcher::after(&restarted.cache, Selection::default(), revision));
        for outcome in join_all(watchers).await {
            assert_eq!(outcome.err().map(|error| error.code()), Some(http::StatusCode::GONE));
        }
        assert_eq!(restarted.watches(), 1);
    }

    /// Keeps the one thread that reads the store's files busy until it is dropped.
    fn no_reading() -> std::sync::mpsc::Sender<()> {
        let (held, wait) = std::sync::mpsc::channel();
        tokio::task::spawn_blocking(move || wait.recv());
        held
    }

    #[test]
    fn who_leaves_does_not_keep_the_others_waiting() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        runtime.unwrap().block_on(async {
            let restarted = Restarted::after(400).await;
            let held = no_reading();
            let mut first = Box::pin(restarted.watch("", BEGINNING));
            // It has begun to read, and is not there to go on.
            assert!(futures::poll!(&mut first).is_pending());
            let mut second = Box::pin(restarted.watch("", BEGINNING));
            assert!(futures::poll!(&mut second).is_pending());
            drop((first, held));
            second.await;
            assert_eq!(restarted.watches(), 1);
            // And where nobody was left to go on, the next one begins anew.
            restarted.cache.history.lock().trim(Instant::now() + Duration::from_secs(60));
            let held = no_reading();
            let mut third = Box::pin(restarted.watch("", BEGINNING));
            assert!(futures::poll!(&mut third).is_pending());
            drop((third, held));
            restarted.watch("", BEGINNING).await;
            assert_eq!(restarted.watches(), 3);
        });
    }
}
