//! The embedded engine: a log in numbered files, an index of it in memory, one writer thread.
//!
//! ```text
//! writes ─> inbox ─> writer: plan ─> tail: one write, one sync ─> core (index) ─> hub, answers
//!                              └ cleaner: copies of what the oldest segment still has
//! reads ──> view: a look at the index under the lock, then the file outside of it
//! ```
//!
//! - Bytes: `record` is one write, `group` what one commit appends, `footer` what a sealed `segment`
//!   says of its records, `manifest` which segments there are, `disk` what is asked of the disk.
//! - Memory: `index` knows where each readable version lies, `usage` how much of each segment is
//!   needed; `core` is both with the open files, under the one lock.
//! - Writing: `inbox`, `writer`, `plan`, `tail`; `keeper` is a second thread that makes, seals and
//!   removes files; `cleaner` gives space back; `retention` decides what history goes.
//! - Reading: `view`. Opening: `open`, `recover`. `snapshot` and `restore` copy the live keys out
//!   and back in.
//!
//! A write is answered after its group is synced and its event is in the watchers' queues. A commit
//! costs one write of consecutive bytes and one sync, into space that was zeroed before.

mod cleaner;
mod core;
mod damage;
mod disk;
mod footer;
mod group;
mod inbox;
mod index;
mod keeper;
mod manifest;
mod open;
mod plan;
mod record;
mod recover;
mod restore;
mod retention;
mod segment;
mod snapshot;
mod tail;
mod usage;
mod view;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use futures::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

#[doc(hidden)]
pub use disk::{Directory, Disk, DiskFile};
pub use open::Options;
pub use snapshot::{SnapshotInfo, read_snapshot};

use damage::Damage;
use inbox::Request;
use writer::Shared;

use crate::hub::Queue;
use crate::watch::Registration;
use crate::{Batch, Got, Page, Range, Revision, Store, StoreError, Txn, TxnOutcome, Watch, Write};

/// Waiting writes hold at most this many KiB of keys and values.
const WAITING_KIB: usize = 64 * 1024;
/// A value may not be larger; etcd's own limit is 1.5 MiB, Kubernetes' request limit is 3 MiB.
const LARGEST_VALUE: usize = 8 * 1024 * 1024;
const LARGEST_KEY: usize = 4096;

/// A store in one directory. Dropping it finishes the writes that wait and seals the log.
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

    /// Opens over another disk: for tests that simulate power cuts, and slower disks.
    #[doc(hidden)]
    pub fn open_disk(disk: Arc<dyn Disk>, options: &Options) -> Result<Self, StoreError> {
        Self::start(open::open_disk(disk, options)?)
    }

    fn start(writer: writer::Writer) -> Result<Self, StoreError> {
        let shared = writer.shared.clone();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(Damage::of(&shared.path).io("starting the writer of"))?;
        Ok(Self { shared, permits: Semaphore::new(WAITING_KIB), thread: Mutex::new(Some(thread)) })
    }

    /// Answers what waits, refuses what comes, seals the log. Blocks for a few syncs.
    pub fn close(&self) {
        self.shared.inbox.close();
        if let Some(thread) = self.thread.lock().take() {
            // The thread catches its panics; there is nothing left to report here.
            drop(thread.join());
        }
    }

    /// Returns once writing has failed, and why. That is for good: what the files hold is then only known to
    /// who opens them anew.
    pub async fn failed(&self) -> StoreError {
        self.shared.inbox.failed().await
    }

    /// Runs `read` where it may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Arc<Shared>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = self.shared.clone();
        let task = tokio::task::spawn_blocking(move || read(&shared));
        task.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Got, StoreError> {
        // One lookup and one read, nearly always from the kernel's cache: cheaper than a change of
        // thread.
        self.shared.get(key)
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        self.read(move |shared| shared.range(&range)).await
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
        let compacted = self.shared.compacted()?;
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
        self.shared.revision()
    }

    async fn healthy(&self) -> Result<(), StoreError> {
        // Reads go on without the writer.
        self.shared.inbox.check()
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.push(Request::Compact { revision, reply })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn snapshot(&self) -> Result<std::fs::File, StoreError> {
        self.read(|shared| snapshot::unnamed(shared, &shared.path)).await
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
/// slow watcher does not keep history alive (it may find its past compacted instead).
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
            let step = move || shared.events(&prefix, from, to);
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
