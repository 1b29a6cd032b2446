//! Snapshots: the live keys in one file, and a store made from it.
//!
//! The file: a line naming the format, the store's revision, then one length-prefixed record per key
//! (the log's own form, checksums included), an empty length, the number of keys, and the revision
//! once more, since no checksum covers the first. It is written
//! beside its place and renamed there once it is synced, so a file with that name is complete.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use redb::Durability;

use super::damage::Damage;
use super::record::{self, Head, Record, head_digest};
use super::{Embedded, Options, open};
use crate::{KeyValue, Revision, StoreError};

const MAGIC: &[u8] = b"skiff store snapshot 1\n";
/// Larger lengths are damage, not records.
const LARGEST_RECORD: u64 = 64 * 1024 * 1024;
/// Keys restored in one transaction.
const RESTORE_STEP: usize = 10_000;

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub revision: Revision,
    pub keys: u64,
}

/// Added to a snapshot's revision in the store made from it: clients have seen later revisions than
/// the snapshot's, and must not meet them again with other content.
const RESTORE_BUMP: Revision = 1_000_000;

impl Embedded {
    /// Writes all live keys, as of one revision, to `file`, which appears when it is whole. Writers
    /// and readers go on meanwhile.
    pub async fn save_snapshot(&self, file: &Path) -> Result<SnapshotInfo, StoreError> {
        let file = file.to_owned();
        self.read(move |view| save(view, &file)).await
    }

    /// Makes a store in `dir`, which must not hold one, from the snapshot in `file`. Keys keep their
    /// revisions and their expiry; history and watches begin a million revisions later.
    pub fn restore(file: &Path, dir: &Path) -> Result<SnapshotInfo, StoreError> {
        let writer = open::open(dir, &Options::default())?;
        let damage = Damage::of(&writer.shared.path);
        if writer.state.revision > 1 {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(damage.io("restoring a snapshot into the existing store")(exists));
        }
        let mut restore = Restore { writer: &writer, pending: Vec::new(), digest: 0, newest: 1 };
        let info = read_records(file, |revision, bytes| restore.add(revision, bytes))?;
        restore.finish(info)
    }
}

/// Calls `f` for every key of a snapshot, in key order. Fails, naming the file, if it is damaged.
pub fn read_snapshot(file: &Path, mut f: impl FnMut(KeyValue)) -> Result<SnapshotInfo, StoreError> {
    read_records(file, |revision, bytes| {
        let record = Record::decode(revision, bytes).map_err(|detail| Damage::of(file).because(detail))?;
        record.key_value(revision, false).into_iter().for_each(&mut f);
        Ok(())
    })
}

fn save(view: &super::view::View, file: &Path) -> Result<SnapshotInfo, StoreError> {
    let damage = Damage::of(file);
    let partial = file.with_extension("partial");
    let out = File::create(&partial).map_err(damage.io("creating the snapshot"))?;
    let info = write_to(view, &out, damage)?;
    out.sync_all().map_err(damage.io("syncing the snapshot"))?;
    std::fs::rename(&partial, file).map_err(damage.io("renaming the snapshot"))?;
    Ok(info)
}

/// Writes a snapshot to a file in `dir` that has lost its name, so that nothing stays behind
/// whatever happens to its reader.
pub fn unnamed(view: &super::view::View, dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(format!("sending-{}.snapshot", std::process::id()));
    let damage = Damage::of(&path);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    let mut out = options.open(&path).map_err(damage.io("creating the snapshot"))?;
    std::fs::remove_file(&path).map_err(damage.io("taking the name from the snapshot"))?;
    write_to(view, &out, damage)?;
    out.rewind().map_err(damage.io("rewinding the snapshot"))?;
    Ok(out)
}

fn write_to(view: &super::view::View, file: &File, damage: Damage<'_>) -> Result<SnapshotInfo, StoreError> {
    let mut out = BufWriter::new(file);
    let write =
        |out: &mut BufWriter<&File>, bytes: &[u8]| out.write_all(bytes).map_err(damage.io("writing the snapshot"));
    write(&mut out, MAGIC)?;
    write(&mut out, &view.revision.to_le_bytes())?;
    let mut keys = 0u64;
    let mut buffer = Vec::new();
    view.for_each(|revision, record| {
        // The version it replaced does not come along.
        let record = Record { previous: 0, ..*record };
        buffer.resize(record.len(), 0);
        record.encode(revision, &mut buffer);
        keys += 1;
        write(&mut out, &(buffer.len() as u64).to_le_bytes())?;
        write(&mut out, &revision.to_le_bytes())?;
        write(&mut out, &buffer)
    })?;
    write(&mut out, &0u64.to_le_bytes())?;
    write(&mut out, &keys.to_le_bytes())?;
    write(&mut out, &view.revision.to_le_bytes())?;
    out.flush().map_err(damage.io("writing the snapshot"))?;
    Ok(SnapshotInfo { revision: view.revision, keys })
}

fn read_records(
    file: &Path,
    mut f: impl FnMut(Revision, &[u8]) -> Result<(), StoreError>,
) -> Result<SnapshotInfo, StoreError> {
    let damage = Damage::of(file);
    let mut from = BufReader::new(File::open(file).map_err(damage.io("opening the snapshot"))?);
    let mut magic = [0; MAGIC.len()];
    read_exact(&mut from, &mut magic, damage)?;
    if magic != MAGIC {
        return Err(damage.because("it is not a skiff store snapshot"));
    }
    let revision = read_number(&mut from, damage)?;
    let mut keys = 0;
    let mut record = Vec::new();
    loop {
        let length = read_number(&mut from, damage)?;
        if length == 0 {
            break;
        }
        if length > LARGEST_RECORD {
            return Err(damage.because(format!("record {keys} claims to have {length} bytes")));
        }
        let of = read_number(&mut from, damage)?;
        record.resize(length as usize, 0);
        read_exact(&mut from, &mut record, damage)?;
        f(of, &record)?;
        keys += 1;
    }
    if read_number(&mut from, damage)? != keys {
        return Err(damage.because("its number of keys does not fit its records"));
    }
    if read_number(&mut from, damage)? != revision {
        return Err(damage.because("its revision is not the same at its beginning and its end"));
    }
    Ok(SnapshotInfo { revision, keys })
}

fn read_number(from: &mut impl Read, damage: Damage<'_>) -> Result<u64, StoreError> {
    let mut bytes = [0; 8];
    read_exact(from, &mut bytes, damage)?;
    Ok(u64::from_le_bytes(bytes))
}

fn read_exact(from: &mut impl Read, bytes: &mut [u8], damage: Damage<'_>) -> Result<(), StoreError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => damage.because("it is cut short"),
        _ => damage.io("reading the snapshot")(error),
    })
}

/// A store being filled from a snapshot.
struct Restore<'a> {
    writer: &'a super::writer::Writer,
    pending: Vec<(Revision, Vec<u8>)>,
    digest: u64,
    newest: Revision,
}

impl Restore<'_> {
    fn damage(&self) -> Damage<'_> {
        Damage::of(&self.writer.shared.path)
    }

    fn add(&mut self, revision: Revision, bytes: &[u8]) -> Result<(), StoreError> {
        self.newest = self.newest.max(revision);
        self.pending.push((revision, bytes.to_vec()));
        if self.pending.len() >= RESTORE_STEP { self.flush(None) } else { Ok(()) }
    }

    /// Nothing is durable before the last step, which carries the counters: a restore that was cut
    /// short leaves a store at revision 1, into which it can be tried again.
    fn flush(&mut self, last: Option<Revision>) -> Result<(), StoreError> {
        let pending = std::mem::take(&mut self.pending);
        let mut digest = self.digest;
        let damage = self.damage();
        let mut txn = self.writer.db.begin_write().map_err(damage.writing())?;
        if last.is_none() {
            txn.set_durability(Durability::None).map_err(damage.writing())?;
        } else {
            txn.set_quick_repair(true);
        }
        {
            let mut log = txn.open_table(record::LOG).map_err(damage.writing())?;
            let mut index = txn.open_table(record::INDEX).map_err(damage.writing())?;
            let mut expiry = txn.open_table(record::EXPIRY).map_err(damage.writing())?;
            let mut meta = txn.open_table(record::META).map_err(damage.writing())?;
            for (revision, bytes) in &pending {
                let record = Record::decode(*revision, bytes).map_err(|detail| damage.because(detail))?;
                let packed = Head { revision: *revision, tombstone: false }.pack();
                digest = digest.wrapping_add(head_digest(record.key, packed));
                log.insert(*revision, bytes.as_slice()).map_err(damage.writing())?;
                index.insert(record.key, packed).map_err(damage.writing())?;
                if record.expires != 0 {
                    expiry.insert((record.expires, *revision), ()).map_err(damage.writing())?;
                }
            }
            if let Some(revision) = last {
                for name in [record::META_REVISION, record::META_COMPACTED, record::META_CLEANED] {
                    meta.insert(name, revision).map_err(damage.writing())?;
                }
                meta.insert(record::META_DIGEST, digest).map_err(damage.writing())?;
            }
        }
        txn.commit().map_err(damage.writing())?;
        self.digest = digest;
        Ok(())
    }

    fn finish(mut self, info: SnapshotInfo) -> Result<SnapshotInfo, StoreError> {
        if self.newest > info.revision {
            return Err(self.damage().because("the snapshot's records are newer than its revision"));
        }
        self.flush(Some(info.revision + RESTORE_BUMP))?;
        Ok(info)
    }
}
