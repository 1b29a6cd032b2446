//! The revisioned key-value store under the API server: etcd's semantics, nothing more.
//!
//! Layer: lowest of the control plane; only `apiserver` uses it. [`Store`] is the contract;
//! [`Embedded`] keeps it in a log of this process, [`Etcd`] in an etcd cluster. One conformance
//! suite (`tests/`) runs against both.
//!
//! Every write makes one new [`Revision`] of the whole store. A key's `mod_revision` is the
//! revision of its newest write and serves as the object's `resourceVersion`:
//!
//! ```text
//! txn(Txn::create(key, value))            -> Done { revision: 7 }
//! txn(Txn::update(key, 7, value))         -> Done { revision: 9 }
//! txn(Txn::update(key, 7, value))         -> Conflict { current: Some(kv at 9) }
//! watch("/registry/pods/", 7).next()      -> [ put at 9, previous: value at 7 ]
//! ```
//!
//! Old versions stay readable until they are compacted, so a list can be paged at one revision and
//! a watch can start in the past.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod embedded;
mod error;
mod etcd;
mod hub;
mod model;
mod watch;

#[doc(hidden)]
pub use embedded::{Directory, Disk, DiskFile};
pub use embedded::{Embedded, Options, SnapshotInfo, read_snapshot};
pub use error::{StoreError, Unreadable};
pub use etcd::{Etcd, EtcdOptions, EtcdTls};
pub use model::{Batch, Event, Got, Key, KeyValue, Page, Range, Revision, Txn, TxnOutcome, Write, prefix_end};
pub use watch::{Open, Progress, Watch};

/// The contract. Object-safe: users hold an `Arc<dyn Store>`.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest version of one key. Linearizable: it sees every write answered before the call.
    async fn get(&self, key: &str) -> Result<Got, StoreError>;

    /// The keys under a prefix in byte order, at the newest or at one given revision.
    async fn range(&self, range: Range) -> Result<Page, StoreError>;

    /// Writes one key if its `mod_revision` is the expected one, else returns what is there.
    /// Answered when it is durable; its event reaches the watches at about the same time.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Every event under `prefix` with a revision above `after`, each once, in order.
    /// Fails with [`StoreError::Compacted`] when `after` lies below the compacted revision.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// The store's revision now (linearizable).
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Whether it is of use, as far as that is known without a write; `Err` says why it is not.
    async fn healthy(&self) -> Result<(), StoreError>;

    /// Forgets the versions that were superseded at or before `revision`. Both implementations
    /// compact by themselves; this is for those who want it sooner.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// All live keys as of one revision, in a file without a name, to be read from its beginning.
    /// Writers and readers go on meanwhile.
    async fn snapshot(&self) -> Result<std::fs::File, StoreError>;
}
