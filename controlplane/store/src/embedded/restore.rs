//! A store made from a snapshot.

use std::path::Path;
use std::sync::Arc;

use super::damage::Damage;
use super::disk::{Directory, Disk};
use super::footer::Entry;
use super::record::Record;
use super::snapshot::{SnapshotInfo, read_records};
use super::writer::Writer;
use super::{Embedded, Options, open};
use crate::{Revision, StoreError};

/// Added to a snapshot's revision in the store made from it: clients have seen later revisions than
/// the snapshot's, and must not meet them again with other content.
const RESTORE_BUMP: Revision = 1_000_000;
/// Bytes written at a time.
const GROUP: usize = 1024 * 1024;

impl Embedded {
    /// Makes a store in `dir`, which must not hold one, from the snapshot in `file`. Keys keep their
    /// revisions and their expiry; history and watches begin a million revisions later.
    ///
    /// A restore that was cut short leaves an unfinished store, which counts as none.
    pub fn restore(file: &Path, dir: &Path) -> Result<SnapshotInfo, StoreError> {
        let disk = Arc::new(Directory::open(dir)?);
        if let Some(manifest) = open::find(disk.as_ref())?
            && (manifest.sequence > 0 || open::open_disk(disk.clone(), &Options::default())?.tail.state.sequence > 0)
        {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(Damage::of(disk.path()).io("restoring a snapshot into the existing store")(exists));
        }
        let mut restore = Restore { writer: open::make(disk, &Options::default())?, pending: Vec::new(), written: 0 };
        let info = read_records(file, |revision, record| restore.add(revision, record))?;
        restore.finish(info)
    }
}

/// A store being filled from a snapshot.
struct Restore {
    writer: Writer,
    /// What the footer is to say of the group's records, with places within the group.
    pending: Vec<(String, Revision, u64, super::group::Within)>,
    written: u64,
}

impl Restore {
    fn add(&mut self, revision: Revision, record: &Record<'_>) -> Result<(), StoreError> {
        let within = self.writer.group.push(self.writer.store, revision, record);
        self.pending.push((record.key.to_owned(), revision, record.expires, within));
        if self.writer.group.len() >= GROUP { self.flush(1) } else { Ok(()) }
    }

    fn flush(&mut self, revision: Revision) -> Result<(), StoreError> {
        let Writer { tail, keeper, group, .. } = &mut self.writer;
        self.written += group.len() as u64;
        tail.turn(keeper, self.written)?;
        let start = tail.write(group, revision, revision)?;
        for (key, revision, expires, within) in self.pending.drain(..) {
            let (offset, length) = (start + within.offset, within.length);
            let (deleted, previous) = (false, super::record::Head::NONE);
            tail.note(&Entry { key: &key, revision, deleted, previous, expires, offset, length });
        }
        group.clear();
        Ok(())
    }

    fn finish(mut self, info: SnapshotInfo) -> Result<SnapshotInfo, StoreError> {
        // The last group's counters are the store's.
        self.flush(info.revision + RESTORE_BUMP)?;
        self.writer.finish()?;
        Ok(info)
    }
}
