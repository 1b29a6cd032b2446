//! What one commit appends to a segment: a header, then the records. Pure.
//!
//! A segment is a row of groups, each written after the one before it was synced. So an invalid
//! group that no valid one follows is the torn end of the log, which nobody was told of; an invalid
//! group that a valid one follows was whole once, and is damage ([`next_after`]). A header's
//! checksum is seeded with store, segment and offset: nothing that was elsewhere, or belongs to the
//! file's former life, looks like a group.
//!
//! Before each record stand its revision and length, so that a segment without a footer can be
//! walked; groups begin at multiples of eight bytes, so that one behind damage can be found.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::record::{self, Record, read_u32, read_u64};
use crate::Revision;

pub const HEADER: usize = 56;
pub const ALIGN: usize = 8;
const FRAME: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Records,
    /// The segment's footer (`footer`), its last group.
    Footer,
}

/// What a group says of itself and of the store after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// One more with every group of records; a footer has its last group's.
    pub sequence: u64,
    pub revision: Revision,
    pub compacted: Revision,
    /// Bytes that follow the header.
    pub length: u32,
    /// Records, or entries of the footer.
    pub count: u32,
}

/// Where a group lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    pub store: u64,
    pub segment: u32,
    pub offset: u64,
}

impl Spot {
    fn seed(self) -> u64 {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.segment.to_le_bytes());
        bytes[4..].copy_from_slice(&self.offset.to_le_bytes());
        xxh3_64_with_seed(&bytes, self.store)
    }
}

/// A group in the making.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    count: u32,
}

/// A record within a group's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within {
    pub offset: u32,
    pub length: u32,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: vec![0; HEADER], count: 0 }
    }
}

impl Buffer {
    /// Empties it, and gives back the memory of an unusually large group.
    pub fn clear(&mut self) {
        self.bytes.truncate(HEADER);
        self.bytes.shrink_to(256 * 1024);
        self.count = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn push(&mut self, store: u64, revision: Revision, record: &Record<'_>) -> Within {
        self.frame(revision, record.len());
        let offset = self.bytes.len();
        record.encode(record::seed(store, revision), &mut self.bytes);
        Within { offset: offset as u32, length: record.len() as u32 }
    }

    /// The same for a record that is encoded already.
    pub fn push_encoded(&mut self, revision: Revision, record: &[u8]) -> Within {
        self.frame(revision, record.len());
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(record);
        Within { offset: offset as u32, length: record.len() as u32 }
    }

    fn frame(&mut self, revision: Revision, length: usize) {
        self.bytes.extend_from_slice(&revision.to_le_bytes());
        self.bytes.extend_from_slice(&(length as u32).to_le_bytes());
        self.count += 1;
    }

    /// The bytes to write at `spot`. `length` and `count` of `header` are filled in here.
    pub fn finish(&mut self, header: Header, spot: Spot) -> &[u8] {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let (head, payload) = self.bytes.split_at_mut(HEADER);
        let header = Header { length: payload.len() as u32, count: self.count, ..header };
        head.copy_from_slice(&header.encode(payload, spot));
        &self.bytes
    }
}

impl Header {
    pub fn encode(&self, payload: &[u8], spot: Spot) -> [u8; HEADER] {
        let kind: u32 = match self.kind {
            Kind::Records => 1,
            Kind::Footer => 2,
        };
        let mut out = [0; HEADER];
        out[8..16].copy_from_slice(&xxh3_64(payload).to_le_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&self.revision.to_le_bytes());
        out[32..40].copy_from_slice(&self.compacted.to_le_bytes());
        out[40..44].copy_from_slice(&self.length.to_le_bytes());
        out[44..48].copy_from_slice(&self.count.to_le_bytes());
        out[48..52].copy_from_slice(&kind.to_le_bytes());
        let checksum = xxh3_64_with_seed(&out[8..], spot.seed());
        out[..8].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The header at the beginning of `bytes`, if there is one.
    pub fn decode(bytes: &[u8], spot: Spot) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        let checksum = read_u64(header, 0)?;
        if checksum == 0 || checksum != xxh3_64_with_seed(&header[8..], spot.seed()) {
            return None;
        }
        let kind = match read_u32(header, 48)? {
            1 => Kind::Records,
            2 => Kind::Footer,
            _ => return None,
        };
        Some(Self {
            kind,
            sequence: read_u64(header, 16)?,
            revision: read_u64(header, 24)?,
            compacted: read_u64(header, 32)?,
            length: read_u32(header, 40)?,
            count: read_u32(header, 44)?,
        })
    }

    /// Bytes of the whole group.
    pub fn size(&self) -> u64 {
        HEADER as u64 + u64::from(self.length)
    }
}

/// The payload of the group at the beginning of `bytes`, whose header is `header`; none if it is
/// not whole.
pub fn payload<'a>(header: &Header, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let payload = bytes.get(HEADER..)?.get(..header.length as usize)?;
    (read_u64(bytes, 8)? == xxh3_64(payload)).then_some(payload)
}

/// Walks the records of a payload that begins at `offset` of its segment.
pub fn records(payload: &[u8], count: u32, offset: u64) -> impl Iterator<Item = Option<(Revision, u32, &[u8])>> {
    let mut at = 0;
    (0..count).map(move |_| {
        let (revision, length) = (read_u64(payload, at)?, read_u32(payload, at + 8)? as usize);
        let start = at + FRAME;
        let bytes = payload.get(start..start + length)?;
        at = start + length;
        Some((revision, (offset + start as u64) as u32, bytes))
    })
}

/// The first group of `bytes` (a whole segment) at or behind `from` that comes after `sequence`.
pub fn next_after(bytes: &[u8], store: u64, segment: u32, from: usize, sequence: u64) -> Option<(usize, Header)> {
    (from.next_multiple_of(ALIGN)..bytes.len()).step_by(ALIGN).find_map(|offset| {
        let spot = Spot { store, segment, offset: offset as u64 };
        let header = Header::decode(&bytes[offset..], spot)?;
        (header.sequence > sequence).then_some((offset, header))
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::Head;
    use super::*;

    const SPOT: Spot = Spot { store: 7, segment: 2, offset: 64 };
    const STATE: Header = Header { kind: Kind::Records, sequence: 5, revision: 9, compacted: 3, length: 0, count: 0 };

    fn group() -> (Vec<u8>, Vec<Within>) {
        let mut buffer = Buffer::default();
        let record = |key| Record { key, value: Some(b"value".as_slice()), previous: Head::NONE, expires: 0 };
        let first = buffer.push(7, 8, &record("a"));
        let second = buffer.push(7, 9, &record("bcd"));
        (buffer.finish(STATE, SPOT).to_vec(), vec![first, second])
    }

    #[test]
    fn a_group_comes_back_as_written() {
        let (bytes, within) = group();
        let header = Header::decode(&bytes, SPOT).unwrap();
        assert_eq!((header.sequence, header.revision, header.compacted, header.count), (5, 9, 3, 2));
        assert_eq!(header.size(), bytes.len() as u64);
        let found: Vec<_> = records(payload(&header, &bytes).unwrap(), 2, HEADER as u64).map(Option::unwrap).collect();
        for ((revision, offset, bytes), (want, key)) in found.iter().zip([(8, "a"), (9, "bcd")]) {
            assert_eq!(*revision, want);
            assert_eq!(Record::decode(record::seed(7, want), bytes).unwrap().key, key);
            assert!(within.iter().any(|within| within.offset == *offset && within.length == bytes.len() as u32));
        }
    }

    #[test]
    fn a_group_is_one_only_in_its_place() {
        let (bytes, _) = group();
        for other in [Spot { store: 8, ..SPOT }, Spot { segment: 3, ..SPOT }, Spot { offset: 72, ..SPOT }] {
            assert_eq!(Header::decode(&bytes, other), None);
        }
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let (bytes, _) = group();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let header = Header::decode(&changed, SPOT);
            assert!(header.and_then(|header| payload(&header, &changed).map(|_| ())).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_later_group_is_found_behind_damage() {
        let (bytes, _) = group();
        let mut segment = vec![0; 64];
        segment.extend_from_slice(&bytes);
        segment.resize(4096, 0);
        assert_eq!(next_after(&segment, 7, 2, 8, 4).unwrap().0, 64);
        assert_eq!(next_after(&segment, 7, 2, 8, 5), None, "not later");
        assert_eq!(next_after(&segment, 7, 2, 72, 4), None);
    }
}
