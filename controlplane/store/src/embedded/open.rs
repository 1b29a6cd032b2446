//! Opening: making a store, or finding where one left off.
//!
//! The manifest says which segments there are. The footers of the sealed ones are read, the groups
//! of the last one if it has none (`segment`); from their entries, in the order of the log, the
//! index is built (`recover`). What a crash left unsynced but readable is synced before anything is
//! answered from it, names included.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::cleaner::Cleaner;
use super::core::Core;
use super::damage::Damage;
use super::disk::{Directory, Disk};
use super::footer::Builder;
use super::group::{Buffer, Header, Kind};
use super::inbox::Inbox;
use super::keeper::Keeper;
use super::manifest::{self, Manifest};
use super::recover::{self, Loaded};
use super::retention::{History, Retention};
use super::segment::{self, START, Segment};
use super::tail::{self, Tail};
use super::writer::{Shared, Writer};
use crate::StoreError;
use crate::hub::{Hub, QueueLimits};

/// What versions before this one kept the store in.
const FORMER_FILE: &str = "store.redb";

/// What may be chosen when opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of one file of the log; 0: what fits the store's size, 0.5 to 16 MiB.
    pub segment_bytes: u32,
    /// History younger than this is kept ...
    pub history_age: Duration,
    /// ... unless it is more than this many revisions, and more than half the live keys ...
    pub history_revisions: u64,
    /// ... or what only history needs is more than so many bytes, and more than half of what lives.
    pub history_bytes: u64,
    /// Events that may wait for one watcher before its watch is ended.
    pub watch_events: usize,
    /// The same in bytes of keys and values.
    pub watch_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        let Retention { age, revisions, bytes } = Retention::default();
        Self {
            segment_bytes: 0,
            history_age: age,
            history_revisions: revisions,
            history_bytes: bytes,
            watch_events: 16_384,
            watch_bytes: 64 * 1024 * 1024,
        }
    }
}

/// Opens the store in `dir`, or makes an empty one there.
pub fn open(dir: &Path, options: &Options) -> Result<Writer, StoreError> {
    open_disk(Arc::new(Directory::open(dir)?), options)
}

pub fn open_disk(disk: Arc<dyn Disk>, options: &Options) -> Result<Writer, StoreError> {
    match find(disk.as_ref())? {
        Some(manifest) => resume(disk, manifest, options),
        None => {
            let writer = make(disk, options)?;
            writer.keeper.finish(0);
            writer.keeper.settle()?;
            Ok(writer)
        }
    }
}

/// The manifest of the store that is there; none: there is none, or one that was never finished.
pub fn find(disk: &dyn Disk) -> Result<Option<Manifest>, StoreError> {
    let damage = Damage::of(disk.path());
    let names = disk.names().map_err(damage.io("listing"))?;
    if names.iter().any(|name| name == FORMER_FILE) {
        return Err(StoreError::OtherFormat { path: disk.path().join(FORMER_FILE) });
    }
    if names.iter().any(|name| name == manifest::NAME) {
        return Ok(Some(Manifest::read(disk)?).filter(|manifest| !manifest.unfinished));
    }
    if names.iter().any(|name| segment::number_of(name).is_some()) {
        return Err(
            Damage::of(&disk.path().join(manifest::NAME)).because("it is missing, though its segments are there")
        );
    }
    Ok(None)
}

/// Makes an empty store in place of what was not finished. Its manifest says that it is unfinished
/// itself until [`Keeper::finish`].
pub fn make(disk: Arc<dyn Disk>, options: &Options) -> Result<Writer, StoreError> {
    let store = RandomState::new().build_hasher().finish();
    let unfinished = Manifest { store, oldest: 1, newest: 0, sequence: 0, unfinished: true };
    unfinished.write(disk.as_ref())?;
    remove_others(disk.as_ref(), &unfinished)?;
    let capacity = if options.segment_bytes == 0 { tail::capacity(0) } else { options.segment_bytes };
    let first = Segment::create(disk.as_ref(), store, 1, capacity)?;
    first.fill(|| true)?;
    let manifest = Manifest { newest: 1, ..unfinished };
    manifest.write(disk.as_ref())?;
    start(disk, manifest, Loaded::empty(Arc::new(first)), options)
}

fn resume(disk: Arc<dyn Disk>, manifest: Manifest, options: &Options) -> Result<Writer, StoreError> {
    // Names that a crashed process left visible, and the manifest's own, may not be durable yet.
    disk.sync_names().map_err(Damage::of(disk.path()).io("syncing"))?;
    remove_others(disk.as_ref(), &manifest)?;
    let mut segments = Vec::new();
    for number in manifest.oldest..=manifest.newest {
        segments.push(Arc::new(Segment::open(disk.as_ref(), manifest.store, number)?));
    }
    let loaded = recover::load(&segments, &manifest, disk.path())?;
    start(disk, manifest, loaded, options)
}

/// Removes what an interrupted step left.
fn remove_others(disk: &dyn Disk, manifest: &Manifest) -> Result<(), StoreError> {
    for name in disk.names().map_err(Damage::of(disk.path()).io("listing"))? {
        let known = manifest.oldest..=manifest.newest;
        if segment::number_of(&name).is_some_and(|number| !known.contains(&number)) {
            disk.remove(&name).map_err(Damage::of(&disk.path().join(&name)).io("removing"))?;
        }
    }
    Ok(())
}

fn start(disk: Arc<dyn Disk>, manifest: Manifest, loaded: Loaded, options: &Options) -> Result<Writer, StoreError> {
    let path = disk.path().to_owned();
    let keeper = Keeper::start(disk, manifest)?;
    let Loaded { index, segments, active, contents, next, unsealed, expiry } = loaded;
    unsealed.into_iter().for_each(|sealing| keeper.seal(sealing));
    let (revision, compacted) = (index.revision, index.compacted);
    let asked = next.is_some();
    keeper.offer(next);
    let tail = match contents {
        Some((entries, contents)) => Tail {
            end: contents.end,
            entries,
            first: contents.first,
            state: contents.state(),
            active,
            asked,
            capacity: options.segment_bytes,
        },
        None => Tail {
            end: START,
            entries: Builder::default(),
            first: 0,
            state: Header { kind: Kind::Records, sequence: 0, revision, compacted, length: 0, count: 0 },
            active,
            asked,
            capacity: options.segment_bytes,
        },
    };
    let limits = QueueLimits { events: options.watch_events, bytes: options.watch_bytes };
    let (age, revisions, bytes) = (options.history_age, options.history_revisions, options.history_bytes);
    let retention = Retention { age, revisions, bytes };
    let shared = Shared {
        path: path.clone(),
        inbox: Inbox::default(),
        hub: Arc::new(Hub::new(revision, limits)),
        core: RwLock::new(Core { path, index, segments, closed: false }),
        pins: Mutex::default(),
    };
    Ok(Writer {
        shared: Arc::new(shared),
        store: manifest.store,
        tail,
        keeper,
        cleaner: Cleaner::default(),
        history: History::new(retention, Instant::now(), revision),
        expiry,
        compacted,
        group: Buffer::default(),
    })
}
