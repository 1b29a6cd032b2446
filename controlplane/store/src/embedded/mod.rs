//! The embedded engine: one file, one writer thread, any number of readers.
//!
//! - `record` is the layout of the file, `commit` what one group of requests does to it;
//! - `writer` is the thread: everything that waits when a commit starts shares its sync;
//! - `view` reads one committed state; `retention` decides what history goes;
//! - `snapshot` copies the live keys out and back in.
//!
//! A write is answered after its commit is durable and its event is in the watchers' queues. A
//! write copies its value once, into the page; watchers share the caller's bytes.

mod commit;
mod damage;
mod open;
mod record;
mod retention;
mod snapshot;
mod view;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

pub use open::Options;
pub use snapshot::{SnapshotInfo, read_snapshot};

use damage::Damage;
use view::View;
use writer::{Request, Shared};

use crate::hub::Queue;
use crate::watch::Registration;
use crate::{Batch, Got, Page, Range, Revision, Store, StoreError, Txn, TxnOutcome, Watch, Write};

/// Waiting writes hold at most this many KiB of keys and values.
const WAITING_KIB: usize = 64 * 1024;
/// A value may not be larger; etcd's own limit is 1.5 MiB, Kubernetes' request limit is 3 MiB.
const LARGEST_VALUE: usize = 8 * 1024 * 1024;
const LARGEST_KEY: usize = 4096;
/// Log records looked at for one batch of a watch that starts in the past.
const REPLAY_STEP: u64 = 500;

/// A store in one file. Dropping it finishes the writes that wait and closes the file.
pub struct Embedded {
    shared: Arc<Shared>,
    permits: Semaphore,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Embedded {
    /// Opens the store in `dir`, or makes an empty one there. Needs no runtime.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, &Options::default())
    }

    pub fn open_with(dir: &Path, options: &Options) -> Result<Self, StoreError> {
        Self::start(open::open(dir, options)?)
    }

    /// Opens over other storage than a file: for tests that simulate power cuts.
    #[doc(hidden)]
    pub fn open_backend(backend: impl redb::StorageBackend, options: &Options) -> Result<Self, StoreError> {
        Self::start(open::open_backend(backend, "(storage of a test)", options)?)
    }

    fn start(writer: writer::Writer) -> Result<Self, StoreError> {
        let shared = writer.shared.clone();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(Damage::of(&shared.path).io("starting the writer of"))?;
        Ok(Self { shared, permits: Semaphore::new(WAITING_KIB), thread: Mutex::new(Some(thread)) })
    }

    /// Answers what waits, refuses what comes, closes the file. Blocks for at most a commit.
    pub fn close(&self) {
        self.shared.inbox.close();
        if let Some(thread) = self.thread.lock().take() {
            // The thread catches its panics; there is nothing left to report here.
            drop(thread.join());
        }
    }

    fn view(&self) -> Result<Arc<View>, StoreError> {
        self.shared.view.read().clone().ok_or(StoreError::Closed)
    }

    /// Runs `read` where it may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let view = self.view()?;
        let shared = self.shared.clone();
        let task = tokio::task::spawn_blocking(move || guarded(&shared.path, || read(&view)));
        task.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// The file layer trusts its pages: a damaged one makes it panic, which must not go further.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| Err(Damage::of(path).panicked(panic.as_ref())))
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Got, StoreError> {
        // One or two page lookups, nearly always in memory: cheaper than a change of thread.
        let view = self.view()?;
        guarded(&self.shared.path, || view.get(key))
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.read(move |view| view.range(&range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let size = check_size(&txn)?;
        let kib = u32::try_from(1 + size / 1024).unwrap_or(u32::MAX);
        let _permit = self.permits.acquire_many(kib).await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.push(Request::Txn { txn, reply })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let compacted = self.view()?.compacted;
        if after < compacted {
            return Err(StoreError::Compacted { requested: after, compacted });
        }
        let (queue, published) = self.shared.hub.register(prefix, after);
        let live = Registration::new(self.shared.hub.clone(), queue);
        let replay = (after < published).then(|| replay(self.shared.clone(), prefix.to_owned(), after + 1, published));
        let hub = self.shared.hub.clone();
        Ok(Watch::new(replay, live, Arc::new(move |queue: &Arc<Queue>| hub.progress(queue))))
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.view()?.revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.push(Request::Compact { revision, reply })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn snapshot(&self) -> Result<std::fs::File, StoreError> {
        let dir = self.shared.path.parent().unwrap_or(Path::new(".")).to_owned();
        self.read(move |view| snapshot::unnamed(view, &dir)).await
    }
}

fn check_size(txn: &Txn) -> Result<usize, StoreError> {
    let value = match &txn.write {
        Write::Put { value, .. } => value.len(),
        Write::Delete => 0,
    };
    let too_large = |bytes, limit| Err(StoreError::TooLarge { key: txn.key.to_string(), bytes, limit });
    if txn.key.len() > LARGEST_KEY {
        return too_large(txn.key.len(), LARGEST_KEY);
    }
    if value > LARGEST_VALUE {
        return too_large(value, LARGEST_VALUE);
    }
    Ok(txn.key.len() + value)
}

/// Events of the past, a step at a time: each step reads the state of its own moment, so that a
/// slow watcher does not keep old pages alive (it may find its past compacted instead).
fn replay(
    shared: Arc<Shared>,
    prefix: String,
    from: Revision,
    to: Revision,
) -> BoxStream<'static, Result<Batch, StoreError>> {
    let steps = stream::unfold(Some(from), move |from| {
        let (shared, prefix) = (shared.clone(), prefix.clone());
        async move {
            let from = from.filter(|from| *from <= to)?;
            let Some(view) = shared.view.read().clone() else { return Some((Err(StoreError::Closed), None)) };
            let step = move || guarded(&shared.path, || view.events(&prefix, from, to, REPLAY_STEP));
            match tokio::task::spawn_blocking(step).await.unwrap_or(Err(StoreError::Closed)) {
                Ok((events, next)) => Some((Ok(Batch { events, revision: next - 1 }), Some(next))),
                Err(error) => Some((Err(error), None)),
            }
        }
    });
    steps
        .filter(move |batch| {
            let worth = batch.as_ref().map_or(true, |batch| !batch.events.is_empty() || batch.revision == to);
            std::future::ready(worth)
        })
        .boxed()
}
