//! One file of the log: `00000001.log` and so on.
//!
//! ```text
//! header | group | group | ... | footer group | where the footer is
//! ```
//!
//! The header is written, with zeros behind it up to the capacity, and synced before the manifest
//! counts the file: writing a group then changes neither the file's length nor its extents, and its
//! sync need not commit the file system's journal as well. The footer is written once the next
//! segment is in use, or at closing; [`Segment::contents`] does without one by walking the groups.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::damage::Damage;
use super::disk::{Disk, DiskFile};
use super::footer::{Builder, Entry};
use super::group::{self, Header, Kind, Spot};
use super::record::{self, Record, read_u32, read_u64};
use crate::{Revision, StoreError};

const MAGIC: &[u8; 16] = b"skiff store log\n";
/// The header's bytes; the first group follows.
pub const START: u64 = 48;
const TRAILER: u64 = 16;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    pub segment: u32,
    pub offset: u32,
    /// 0: nowhere.
    pub length: u32,
}

impl Place {
    pub const NOWHERE: Self = Self { segment: 0, offset: 0, length: 0 };

    pub fn exists(self) -> bool {
        self.length != 0
    }
}

pub struct Segment {
    pub number: u32,
    /// Bytes it is meant to hold; the last group may reach beyond.
    pub capacity: u32,
    store: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

/// What is known of a segment's groups at opening.
#[derive(Debug)]
pub struct Contents {
    /// The entries of all records, as in a footer.
    pub entries: Vec<u8>,
    pub count: u32,
    /// Sequence of the first and of the last group.
    pub first: u64,
    pub last: u64,
    pub revision: Revision,
    pub compacted: Revision,
    /// Where the last group begins; as `end` if a footer says what there is.
    pub newest: u64,
    /// Where the next group would go.
    pub end: u64,
    pub sealed: bool,
}

impl Contents {
    /// What the last group says of the store.
    pub fn state(&self) -> Header {
        let Self { last, revision, compacted, .. } = *self;
        Header { kind: Kind::Records, sequence: last, revision, compacted, length: 0, count: 0 }
    }
}

pub fn name(number: u32) -> String {
    format!("{number:08}.log")
}

/// The segment of that name.
pub fn number_of(name: &str) -> Option<u32> {
    name.strip_suffix(".log").filter(|digits| digits.len() >= 8)?.parse().ok()
}

impl Segment {
    /// Makes the file: its header, durable but for the name.
    pub fn create(disk: &dyn Disk, store: u64, number: u32, capacity: u32) -> Result<Self, StoreError> {
        let name = name(number);
        let path = disk.path().join(&name);
        let damage = Damage::of(&path);
        let file = disk.create(&name).map_err(damage.io("making"))?;
        let segment = Self { number, capacity, store, path: path.clone(), file };
        segment.file.write_at(&segment.header(), 0).map_err(damage.io("writing"))?;
        segment.file.sync().map_err(damage.io("syncing"))?;
        Ok(segment)
    }

    pub fn open(disk: &dyn Disk, store: u64, number: u32) -> Result<Self, StoreError> {
        let name = name(number);
        let path = disk.path().join(&name);
        let damage = Damage::of(&path);
        let file = disk.open(&name).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => damage.because("it is missing"),
            _ => damage.io("opening")(error),
        })?;
        let mut header = [0; START as usize];
        file.read_at(&mut header, 0).map_err(damage.reading())?;
        let capacity = read_u32(&header, 28).unwrap_or(0);
        let segment = Self { number, capacity, store, path: path.clone(), file };
        if segment.header() != header {
            return Err(damage.because("its header is not the one this store gave it"));
        }
        Ok(segment)
    }

    fn header(&self) -> [u8; START as usize] {
        let mut out = [0; START as usize];
        out[..16].copy_from_slice(MAGIC);
        out[16..24].copy_from_slice(&self.store.to_le_bytes());
        out[24..28].copy_from_slice(&self.number.to_le_bytes());
        out[28..32].copy_from_slice(&self.capacity.to_le_bytes());
        let checksum = xxh3_64_with_seed(&out[..32], self.store);
        out[40..48].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn damage(&self) -> Damage<'_> {
        Damage::of(&self.path)
    }

    pub fn spot(&self, offset: u64) -> Spot {
        Spot { store: self.store, segment: self.number, offset }
    }

    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        self.file.write_at(bytes, offset).map_err(self.damage().io("writing"))
    }

    pub fn sync(&self) -> Result<(), StoreError> {
        self.file.sync().map_err(self.damage().io("syncing"))
    }

    /// Writes what lies between two offsets once more, and syncs it. A kernel whose sync failed shows bytes
    /// that the disk does not have, and takes them for written: syncing alone would not mend that.
    pub fn write_again(&self, from: u64, to: u64) -> Result<(), StoreError> {
        let mut bytes = vec![0; (to - from) as usize];
        self.file.read_at(&mut bytes, from).map_err(self.damage().reading())?;
        self.write(&bytes, from)?;
        self.sync()
    }

    pub fn len(&self) -> Result<u64, StoreError> {
        self.file.length().map_err(self.damage().io("measuring"))
    }

    /// Reads the record of `key` at `revision` into `buffer` and checks that it is that.
    pub fn read<'a>(
        &self,
        place: Place,
        key: &str,
        revision: Revision,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Record<'a>, StoreError> {
        buffer.resize(place.length as usize, 0);
        self.file.read_at(buffer, u64::from(place.offset)).map_err(self.damage().reading())?;
        let record = Record::decode(record::seed(self.store, revision), buffer).filter(|record| record.key == key);
        record.ok_or_else(|| self.damaged_record(revision, place.offset))
    }

    fn damaged_record(&self, revision: Revision, offset: u32) -> StoreError {
        self.damage().because(format!("the record of revision {revision} at byte {offset} does not match its checksum"))
    }

    /// Writes the footer behind the last group, at `end`, and cuts the file there. `state` is that
    /// group's header.
    pub fn seal(&self, entries: &[u8], count: u32, first: u64, end: u64, state: &Header) -> Result<(), StoreError> {
        let mut payload = first.to_le_bytes().to_vec();
        payload.extend_from_slice(entries);
        let header = Header { kind: Kind::Footer, length: payload.len() as u32, count, ..*state };
        let mut bytes = header.encode(&payload, self.spot(end)).to_vec();
        bytes.append(&mut payload);
        bytes.extend_from_slice(&self.trailer(end));
        self.write(&bytes, end)?;
        self.file.set_len(end + bytes.len() as u64).map_err(self.damage().io("cutting"))?;
        self.sync()
    }

    fn trailer(&self, footer: u64) -> [u8; TRAILER as usize] {
        let mut out = [0; TRAILER as usize];
        out[..8].copy_from_slice(&footer.to_le_bytes());
        let checksum = xxh3_64_with_seed(&out[..8], self.store ^ u64::from(self.number));
        out[8..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// What the segment holds; none: no group was ever finished in it.
    pub fn contents(&self) -> Result<Option<Contents>, StoreError> {
        // The keeper may have cut it to its footer after it was measured: then that is there now.
        self.try_contents().or_else(|_| self.try_contents())
    }

    fn try_contents(&self) -> Result<Option<Contents>, StoreError> {
        if let Some(contents) = self.read_footer()? {
            return Ok(Some(contents));
        }
        self.walk()
    }

    /// None: there is no footer, or not a whole one.
    pub fn read_footer(&self) -> Result<Option<Contents>, StoreError> {
        let length = self.len()?;
        if length < START + TRAILER + group::HEADER as u64 {
            return Ok(None);
        }
        let mut trailer = [0; TRAILER as usize];
        self.file.read_at(&mut trailer, length - TRAILER).map_err(self.damage().reading())?;
        let end = read_u64(&trailer, 0).unwrap_or(0);
        if trailer != self.trailer(end) || end < START || end > length - TRAILER {
            return Ok(None);
        }
        let mut bytes = vec![0; (length - TRAILER - end) as usize];
        self.file.read_at(&mut bytes, end).map_err(self.damage().reading())?;
        let header = Header::decode(&bytes, self.spot(end)).filter(|header| header.kind == Kind::Footer);
        let whole = header.and_then(|header| Some((header, group::payload(&header, &bytes)?)));
        let Some((header, payload)) = whole else { return Ok(None) };
        Ok(Some(Contents {
            entries: payload.get(8..).unwrap_or_default().to_vec(),
            count: header.count,
            first: read_u64(payload, 0).unwrap_or(0),
            last: header.sequence,
            revision: header.revision,
            compacted: header.compacted,
            newest: end,
            end,
            sealed: true,
        }))
    }

    /// Reads the groups themselves, up to the torn end of the log.
    fn walk(&self) -> Result<Option<Contents>, StoreError> {
        let mut bytes = vec![0; self.len()? as usize];
        self.file.read_at(&mut bytes, 0).map_err(self.damage().reading())?;
        let (mut builder, mut found, mut at) = (Builder::default(), None::<Contents>, START as usize);
        while let Some(header) = self.group_at(&bytes, at, found.as_ref().map(|contents| contents.last)) {
            let payload = &bytes[at + group::HEADER..at + header.size() as usize];
            self.walk_records(payload, header.count, (at + group::HEADER) as u64, &mut builder)?;
            let newest = at as u64;
            at += header.size() as usize;
            found = Some(Contents {
                entries: Vec::new(),
                count: builder.count(),
                first: found.map_or(header.sequence, |contents| contents.first),
                last: header.sequence,
                revision: header.revision,
                compacted: header.compacted,
                newest,
                end: at as u64,
                sealed: false,
            });
        }
        let last = found.as_ref().map_or(0, |contents| contents.last);
        // The group at `at` itself may have its header while the rest of it is torn.
        let behind = at + group::ALIGN;
        if let Some((later, _)) = group::next_after(&bytes, self.store, self.number, behind, last) {
            let detail = format!("what was written at byte {at} is not readable, and at byte {later} there is more");
            return Err(self.damage().because(detail));
        }
        Ok(found.map(|contents| Contents { entries: builder.into_bytes(), ..contents }))
    }

    /// The group of records at `at`, if it is whole and the next one after `last`.
    fn group_at(&self, bytes: &[u8], at: usize, last: Option<u64>) -> Option<Header> {
        let bytes = bytes.get(at..)?;
        let header = Header::decode(bytes, self.spot(at as u64))?;
        let follows = last.is_none_or(|last| header.sequence == last + 1);
        (follows && header.kind == Kind::Records && group::payload(&header, bytes).is_some()).then_some(header)
    }

    fn walk_records(&self, payload: &[u8], count: u32, offset: u64, builder: &mut Builder) -> Result<(), StoreError> {
        for found in group::records(payload, count, offset) {
            let (revision, offset, bytes) = found
                .ok_or_else(|| self.damage().because(format!("the group at byte {offset} is not one of records")))?;
            let record = Record::decode(record::seed(self.store, revision), bytes);
            let record = record.ok_or_else(|| self.damaged_record(revision, offset))?;
            builder.push(&Entry {
                key: record.key,
                revision,
                deleted: record.value.is_none(),
                previous: record.previous,
                expires: record.expires,
                offset,
                length: bytes.len() as u32,
            });
        }
        Ok(())
    }

    /// Writes zeros up to the capacity, a little at a time, so that the syncs of others do not have
    /// to wait for long. `go_on` is asked before each step.
    pub fn fill(&self, mut go_on: impl FnMut() -> bool) -> Result<(), StoreError> {
        const STEP: u64 = 1024 * 1024;
        let zeros = vec![0; STEP.min(u64::from(self.capacity)) as usize];
        let mut at = START;
        while at < u64::from(self.capacity) && go_on() {
            let length = (zeros.len() as u64).min(u64::from(self.capacity) - at);
            self.write(&zeros[..length as usize], at)?;
            self.sync()?;
            at += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::disk::Directory;
    use super::super::record::Head;
    use super::*;

    /// A file that is sealed as soon as somebody has measured it.
    struct Sealed {
        before: Vec<u8>,
        after: Vec<u8>,
        done: AtomicBool,
    }

    impl Sealed {
        fn now(&self) -> &[u8] {
            if self.done.load(Ordering::SeqCst) { &self.after } else { &self.before }
        }
    }

    impl DiskFile for Sealed {
        fn length(&self) -> io::Result<u64> {
            let length = self.now().len() as u64;
            self.done.store(true, Ordering::SeqCst);
            Ok(length)
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
            let from = offset as usize;
            let found = self.now().get(from..from + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            bytes.copy_from_slice(found);
            Ok(())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn sync(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// The cleaner reads a segment that the keeper is at.
    #[test]
    fn a_segment_that_is_cut_to_its_footer_meanwhile_is_not_taken_for_damaged() {
        const STORE: u64 = 7;
        let dir = tempfile::tempdir().unwrap();
        let disk = Directory::open(dir.path()).unwrap();
        let segment = Segment::create(&disk, STORE, 1, 4096).unwrap();
        segment.fill(|| true).unwrap();
        let mut group = group::Buffer::default();
        let record = Record { key: "a", value: Some(b"1".as_slice()), previous: Head::NONE, expires: 0 };
        let within = group.push(STORE, 2, &record);
        let state = Header { kind: Kind::Records, sequence: 1, revision: 2, compacted: 1, length: 0, count: 0 };
        let bytes = group.finish(state, segment.spot(START)).to_vec();
        segment.write(&bytes, START).unwrap();
        let before = std::fs::read(segment.path()).unwrap();
        let mut entries = Builder::default();
        let (offset, length) = (START as u32 + within.offset, within.length);
        let entry = Entry { key: "a", revision: 2, deleted: false, previous: Head::NONE, expires: 0, offset, length };
        entries.push(&entry);
        segment.seal(&entries.into_bytes(), 1, 1, START + bytes.len() as u64, &state).unwrap();
        let after = std::fs::read(segment.path()).unwrap();
        assert!(after.len() < before.len());

        let file: Arc<dyn DiskFile> = Arc::new(Sealed { before, after, done: AtomicBool::new(false) });
        let contents = Segment { file, ..segment }.contents().unwrap().unwrap();
        assert_eq!((contents.sealed, contents.count, contents.last), (true, 1, 1));
    }
}
