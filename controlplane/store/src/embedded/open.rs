//! Opening the file: making it, checking it, finding where it left off.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, StorageBackend};

use super::commit::State;
use super::damage::Damage;
use super::record::{self, head_digest};
use super::retention::{History, Retention};
use super::view::View;
use super::writer::{Inbox, Shared, Writer};
use crate::StoreError;
use crate::hub::{Hub, QueueLimits};

const FILE: &str = "store.redb";
/// Pages kept in memory beside the kernel's own cache.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// What may be chosen when opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Pages kept in memory, in bytes.
    pub cache_bytes: usize,
    /// History younger than this is kept ...
    pub history_age: std::time::Duration,
    /// ... unless it is more than this many revisions, and more than half the live keys.
    pub history_revisions: u64,
    /// Events that may wait for one watcher before its watch is ended.
    pub watch_events: usize,
    /// The same in bytes of keys and values.
    pub watch_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        let Retention { age, revisions } = Retention::default();
        Self {
            cache_bytes: CACHE_BYTES,
            history_age: age,
            history_revisions: revisions,
            watch_events: 16_384,
            watch_bytes: 64 * 1024 * 1024,
        }
    }
}

pub fn open(dir: &Path, options: &Options) -> Result<Writer, StoreError> {
    let path = dir.join(FILE);
    let damage = Damage::of(&path);
    std::fs::create_dir_all(dir).map_err(damage.io("making the directory of"))?;
    let is_new = !path.exists();
    let db = super::guarded(&path, || builder(options).create(&path).map_err(damage.opening()))?;
    if is_new {
        // Without it a power cut could lose the file's name, and with it everything.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(damage.io("syncing the directory of"))?;
    }
    prepare(db, path, options)
}

/// Opens over another kind of storage; `name` stands in for the path in messages.
pub fn open_backend(backend: impl StorageBackend, name: &str, options: &Options) -> Result<Writer, StoreError> {
    let path = PathBuf::from(name);
    let db =
        super::guarded(&path, || builder(options).create_with_backend(backend).map_err(Damage::of(&path).opening()))?;
    prepare(db, path, options)
}

fn builder(options: &Options) -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(options.cache_bytes);
    builder
}

fn prepare(db: Database, path: PathBuf, options: &Options) -> Result<Writer, StoreError> {
    let state = super::guarded(&path, || {
        initialize(&db, Damage::of(&path))?;
        recover(&db, Damage::of(&path))
    })?;
    let view = super::guarded(&path, || View::open(&db, &path, state.revision, state.compacted))?;
    let limits = QueueLimits { events: options.watch_events, bytes: options.watch_bytes };
    let retention = Retention { age: options.history_age, revisions: options.history_revisions };
    let shared = Shared {
        path,
        inbox: Inbox::default(),
        hub: Arc::new(Hub::new(state.revision, limits)),
        view: RwLock::new(Some(Arc::new(view))),
    };
    Ok(Writer {
        db,
        shared: Arc::new(shared),
        state,
        history: History::new(retention, Instant::now(), state.revision),
        // Looked up by the first commit, which this makes happen at once.
        next_expiry: Some(0),
    })
}

/// Makes the tables of a new file.
fn initialize(db: &Database, damage: Damage<'_>) -> Result<(), StoreError> {
    let read = db.begin_read().map_err(damage.reading())?;
    if read.list_tables().map_err(damage.reading())?.next().is_some() {
        return Ok(());
    }
    drop(read);
    let mut txn = db.begin_write().map_err(damage.writing())?;
    txn.set_quick_repair(true);
    txn.open_table(record::LOG).map_err(damage.writing())?;
    txn.open_table(record::INDEX).map_err(damage.writing())?;
    txn.open_table(record::EXPIRY).map_err(damage.writing())?;
    {
        let mut meta = txn.open_table(record::META).map_err(damage.writing())?;
        for (name, value) in [
            (record::META_FORMAT, record::FORMAT),
            // etcd's first revision.
            (record::META_REVISION, 1),
            (record::META_COMPACTED, 1),
            (record::META_CLEANED, 1),
            (record::META_DIGEST, 0),
        ] {
            meta.insert(name, value).map_err(damage.writing())?;
        }
    }
    txn.commit().map_err(damage.writing())
}

/// Reads the counters, and the whole index to see that no key is missing or moved.
fn recover(db: &Database, damage: Damage<'_>) -> Result<State, StoreError> {
    let read = db.begin_read().map_err(damage.reading())?;
    let meta = read.open_table(record::META).map_err(damage.reading())?;
    let counter = |name: &str| -> Result<u64, StoreError> {
        let value = meta.get(name).map_err(damage.reading())?.map(|value| value.value());
        value.ok_or_else(|| damage.because(format!("its {name} is missing")))
    };
    let format = counter(record::META_FORMAT)?;
    if format != record::FORMAT {
        return Err(damage.because(format!("it has format {format}, this version reads {}", record::FORMAT)));
    }
    let mut state = State {
        revision: counter(record::META_REVISION)?,
        compacted: counter(record::META_COMPACTED)?,
        cleaned: counter(record::META_CLEANED)?,
        digest: counter(record::META_DIGEST)?,
        keys: 0,
    };
    if state.cleaned > state.compacted || state.compacted > state.revision {
        return Err(damage.because("its revision counters contradict each other"));
    }
    let index = read.open_table(record::INDEX).map_err(damage.reading())?;
    let mut digest = 0u64;
    for entry in index.iter().map_err(damage.reading())? {
        let (key, packed) = entry.map_err(damage.reading())?;
        digest = digest.wrapping_add(head_digest(key.value(), packed.value()));
        state.keys += 1;
    }
    if digest != state.digest {
        return Err(damage.because("its index of keys does not match its digest"));
    }
    Ok(state)
}
