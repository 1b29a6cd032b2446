//! One write as bytes, in the log and in snapshots. Pure.
//!
//! A put carries its value, a delete is a tombstone; each names the version it replaced, so that a
//! key's versions form a chain backwards. The checksum comes first, covers all the rest and is
//! seeded ([`seed`]) with revision and store: another version's bytes, or another store's, never
//! pass for these. Copies of a record elsewhere in the log are the same bytes.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{Key, Revision};

pub const HEADER: usize = 8 + 8 + 8 + 1 + 4;
const TOMBSTONE: u8 = 1;
const AFTER_TOMBSTONE: u8 = 2;

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub key: &'a str,
    /// None: a tombstone.
    pub value: Option<&'a [u8]>,
    /// The version it replaced, tombstones included.
    pub previous: Head,
    /// Second since 1970 at which it expires; 0: never.
    pub expires: u64,
}

/// Where a key stands: its newest write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// 0: the key was never written, or that is forgotten.
    pub revision: Revision,
    pub deleted: bool,
}

impl Head {
    pub const NONE: Self = Self { revision: 0, deleted: false };

    /// The `mod_revision` a client sees; 0: no such key.
    pub fn live(self) -> Revision {
        if self.deleted { 0 } else { self.revision }
    }
}

/// The seed of the checksum of a record of `revision` in `store`'s log; snapshots belong to store 0.
pub fn seed(store: u64, revision: Revision) -> u64 {
    store ^ revision
}

impl<'a> Record<'a> {
    pub fn len(&self) -> usize {
        HEADER + self.key.len() + self.value.map_or(0, <[u8]>::len)
    }

    /// Appends its [`Record::len`] bytes to `out`.
    pub fn encode(&self, seed: u64, out: &mut Vec<u8>) {
        let start = out.len();
        let tombstone = if self.value.is_none() { TOMBSTONE } else { 0 };
        let after = if self.previous.deleted { AFTER_TOMBSTONE } else { 0 };
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.previous.revision.to_le_bytes());
        out.extend_from_slice(&self.expires.to_le_bytes());
        out.push(tombstone | after);
        // Keys are limited far below 4 GiB by the writer.
        out.extend_from_slice(&(self.key.len() as u32).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(self.value.unwrap_or_default());
        let checksum = xxh3_64_with_seed(&out[start + 8..], seed);
        out[start..start + 8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads what [`Record::encode`] wrote. None: it does not match its checksum.
    pub fn decode(seed: u64, bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < HEADER || read_u64(bytes, 0)? != xxh3_64_with_seed(&bytes[8..], seed) {
            return None;
        }
        let flags = bytes[24];
        let previous = Head { revision: read_u64(bytes, 8)?, deleted: flags & AFTER_TOMBSTONE != 0 };
        let (key, value) = bytes[HEADER..].split_at_checked(read_u32(bytes, 25)? as usize)?;
        let value = (flags & TOMBSTONE == 0).then_some(value);
        Some(Self { key: std::str::from_utf8(key).ok()?, value, previous, expires: read_u64(bytes, 16)? })
    }

    /// The version it describes; none for a tombstone.
    pub fn key_value(&self, revision: Revision) -> Option<crate::KeyValue> {
        let value = Bytes::copy_from_slice(self.value?);
        Some(crate::KeyValue { key: Key::from(self.key), value, mod_revision: revision })
    }
}

pub fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

pub fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(record: &Record<'_>, seed: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode(seed, &mut bytes);
        assert_eq!(bytes.len(), record.len());
        bytes
    }

    #[test]
    fn records_come_back_as_written() {
        let after = |revision, deleted| Head { revision, deleted };
        let cases = [
            Record { key: "/registry/a", value: Some(b"value"), previous: after(7, false), expires: 9 },
            Record { key: "k", value: Some(b""), previous: Head::NONE, expires: 0 },
            Record { key: "k", value: None, previous: after(u64::MAX >> 1, true), expires: 0 },
        ];
        for record in cases {
            assert_eq!(Record::decode(3, &encoded(&record, 3)), Some(record));
        }
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let bytes = encoded(&Record { key: "key", value: Some(b"value"), previous: Head::NONE, expires: 2 }, 3);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(3, &changed).is_none(), "bit {bit}");
        }
        assert!(Record::decode(4, &bytes).is_none(), "another revision's record");
        assert!(Record::decode(3, &bytes[..20]).is_none(), "cut short");
    }
}
