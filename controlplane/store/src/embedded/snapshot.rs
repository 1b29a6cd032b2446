//! Snapshots: the live keys in one file (`restore` makes a store from it).
//!
//! The file: a line naming the format, the store's revision, then one length-prefixed record per key
//! (the log's own form, checksums included), an empty length, the number of keys, and the revision
//! once more, since no checksum covers the first. It is written
//! beside its place and renamed there once it is synced, so a file with that name is complete.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Embedded;
use super::damage::Damage;
use super::disk::OWN_FILE;
use super::record::{self, Head, Record};
use super::view::Walk;
use super::writer::Shared;
use crate::{KeyValue, Revision, StoreError};

const MAGIC: &[u8] = b"skiff store snapshot 1\n";
/// Larger lengths are damage, not records.
const LARGEST_RECORD: u64 = 64 * 1024 * 1024;
/// Keys looked up at a time.
const STEP: usize = 512;

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub revision: Revision,
    pub keys: u64,
}

impl Embedded {
    /// Writes all live keys, as of one revision, to `file`, which appears when it is whole. Writers
    /// and readers go on meanwhile.
    pub async fn save_snapshot(&self, file: &Path) -> Result<SnapshotInfo, StoreError> {
        let file = file.to_owned();
        self.read(move |shared| save(shared, &file)).await
    }
}

/// Calls `f` for every key of a snapshot, in key order. Fails, naming the file, if it is damaged.
pub fn read_snapshot(file: &Path, mut f: impl FnMut(KeyValue)) -> Result<SnapshotInfo, StoreError> {
    read_records(file, |revision, record| {
        record.key_value(revision).into_iter().for_each(&mut f);
        Ok(())
    })
}

fn save(shared: &Shared, file: &Path) -> Result<SnapshotInfo, StoreError> {
    let damage = Damage::of(file);
    let partial = file.with_extension("partial");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(OWN_FILE);
    let out = options.open(&partial).map_err(damage.io("creating the snapshot"))?;
    let info = write_to(shared, &out, damage)?;
    out.sync_all().map_err(damage.io("syncing the snapshot"))?;
    std::fs::rename(&partial, file).map_err(damage.io("renaming the snapshot"))?;
    Ok(info)
}

/// Writes a snapshot to a file in `dir` that has lost its name, so that nothing stays behind
/// whatever happens to its reader.
pub fn unnamed(shared: &Shared, dir: &Path) -> Result<File, StoreError> {
    // Another one may be asked for at the same moment.
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    let number = TAKEN.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("sending-{}-{number}.snapshot", std::process::id()));
    let damage = Damage::of(&path);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true).mode(OWN_FILE);
    let mut out = options.open(&path).map_err(damage.io("creating the snapshot"))?;
    std::fs::remove_file(&path).map_err(damage.io("taking the name from the snapshot"))?;
    write_to(shared, &out, damage)?;
    out.rewind().map_err(damage.io("rewinding the snapshot"))?;
    Ok(out)
}

fn write_to(shared: &Shared, file: &File, damage: Damage<'_>) -> Result<SnapshotInfo, StoreError> {
    let mut out = BufWriter::new(file);
    let write =
        |out: &mut BufWriter<&File>, bytes: &[u8]| out.write_all(bytes).map_err(damage.io("writing the snapshot"));
    let mut walk = Walk::begin(shared, "", "", 0)?;
    let revision = walk.at;
    write(&mut out, MAGIC)?;
    write(&mut out, &revision.to_le_bytes())?;
    let (mut keys, mut buffer, mut encoded) = (0u64, Vec::new(), Vec::new());
    while !walk.ended {
        for (key, found) in walk.next(STEP)?.0 {
            // The version it replaced does not come along.
            let record = Record { previous: Head::NONE, ..found.record(&key, &mut buffer)? };
            encoded.clear();
            record.encode(record::seed(0, found.revision), &mut encoded);
            keys += 1;
            write(&mut out, &(encoded.len() as u64).to_le_bytes())?;
            write(&mut out, &found.revision.to_le_bytes())?;
            write(&mut out, &encoded)?;
        }
    }
    write(&mut out, &0u64.to_le_bytes())?;
    write(&mut out, &keys.to_le_bytes())?;
    write(&mut out, &revision.to_le_bytes())?;
    out.flush().map_err(damage.io("writing the snapshot"))?;
    Ok(SnapshotInfo { revision, keys })
}

/// Calls `f` with every record and its revision.
pub fn read_records(
    file: &Path,
    mut f: impl FnMut(Revision, &Record<'_>) -> Result<(), StoreError>,
) -> Result<SnapshotInfo, StoreError> {
    let damage = Damage::of(file);
    let mut from = BufReader::new(File::open(file).map_err(damage.io("opening the snapshot"))?);
    let mut magic = [0; MAGIC.len()];
    read_exact(&mut from, &mut magic, damage)?;
    if magic != MAGIC {
        return Err(damage.because("it is not a skiff store snapshot"));
    }
    let revision = read_number(&mut from, damage)?;
    let (mut keys, mut newest) = (0, 0);
    let mut bytes = Vec::new();
    loop {
        let length = read_number(&mut from, damage)?;
        if length == 0 {
            break;
        }
        if length > LARGEST_RECORD {
            return Err(damage.because(format!("record {keys} claims to have {length} bytes")));
        }
        let of = read_number(&mut from, damage)?;
        bytes.resize(length as usize, 0);
        read_exact(&mut from, &mut bytes, damage)?;
        let record = Record::decode(record::seed(0, of), &bytes);
        let mismatch = || damage.because(format!("the record of revision {of} does not match its checksum"));
        f(of, &record.ok_or_else(mismatch)?)?;
        newest = newest.max(of);
        keys += 1;
    }
    if read_number(&mut from, damage)? != keys {
        return Err(damage.because("its number of keys does not fit its records"));
    }
    if read_number(&mut from, damage)? != revision {
        return Err(damage.because("its revision is not the same at its beginning and its end"));
    }
    if newest > revision {
        return Err(damage.because("its records are newer than its revision"));
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
