//! How versions and keys lie in the file. Pure; used by every other module of the engine.
//!
//! Four tables:
//! - [`LOG`]: revision → [`Record`]. Every write appends one, a put with its value, a delete as a
//!   tombstone; each names the version it replaced, so a key's versions form a chain backwards.
//! - [`INDEX`]: key → its newest revision and whether that is a tombstone ([`Head`]).
//! - [`EXPIRY`]: (second since 1970, revision) of puts that expire. Entries of superseded
//!   revisions are left behind and dropped when due.
//! - [`META`]: revision counter, compaction state, digest of the index, format.
//!
//! A value lies in the file once, in the log. Compacting revision `r` removes the version that `r`
//! replaced: no scan, and never more work than there were writes.

use std::hash::Hasher;

use bytes::Bytes;
use redb::TableDefinition;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::{Key, Revision};

pub const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub const INDEX: TableDefinition<'_, &str, u64> = TableDefinition::new("index");
pub const EXPIRY: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("expiry");
pub const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

pub const META_FORMAT: &str = "format";
pub const META_REVISION: &str = "revision";
/// Readers may not look below it.
pub const META_COMPACTED: &str = "compacted";
/// Up to here superseded versions are gone; at most META_COMPACTED.
pub const META_CLEANED: &str = "cleaned";
/// Sum of [`head_digest`] over the index: a key that vanished or moved unnoticed shows at opening.
pub const META_DIGEST: &str = "digest";

/// The layout described above.
pub const FORMAT: u64 = 1;

const HEADER: usize = 8 + 8 + 8 + 1 + 4;
const TOMBSTONE: u8 = 1;

/// Where a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub revision: Revision,
    pub tombstone: bool,
}

impl Head {
    pub fn pack(self) -> u64 {
        self.revision << 1 | u64::from(self.tombstone)
    }

    pub fn unpack(packed: u64) -> Self {
        Self { revision: packed >> 1, tombstone: packed & 1 == 1 }
    }
}

/// What one index entry adds to the digest.
pub fn head_digest(key: &str, packed: u64) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), packed)
}

/// One write, as in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub key: &'a str,
    /// None: a tombstone.
    pub value: Option<&'a [u8]>,
    /// The version it replaced, tombstones included; 0: none.
    pub previous: Revision,
    /// Second since 1970 at which it expires; 0: never.
    pub expires: u64,
}

impl<'a> Record<'a> {
    pub fn len(&self) -> usize {
        HEADER + self.key.len() + self.value.map_or(0, <[u8]>::len)
    }

    /// Writes it into `out`, which is [`Record::len`] long.
    pub fn encode(&self, revision: Revision, out: &mut [u8]) {
        let value = self.value.unwrap_or_default();
        out[8..16].copy_from_slice(&self.previous.to_le_bytes());
        out[16..24].copy_from_slice(&self.expires.to_le_bytes());
        out[24] = if self.value.is_none() { TOMBSTONE } else { 0 };
        // Keys are limited far below 4 GiB by the writer.
        out[25..29].copy_from_slice(&(self.key.len() as u32).to_le_bytes());
        out[HEADER..HEADER + self.key.len()].copy_from_slice(self.key.as_bytes());
        out[HEADER + self.key.len()..].copy_from_slice(value);
        let checksum = checksum(revision, &out[8..]);
        out[..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads what [`Record::encode`] wrote. An error says what is wrong with the bytes.
    pub fn decode(revision: Revision, bytes: &'a [u8]) -> Result<Self, String> {
        let damaged = || format!("the record of revision {revision} does not match its checksum");
        let stored = read_u64(bytes, 0).ok_or_else(damaged)?;
        if bytes.len() < HEADER || stored != checksum(revision, &bytes[8..]) {
            return Err(damaged());
        }
        let previous = read_u64(bytes, 8).ok_or_else(damaged)?;
        let expires = read_u64(bytes, 16).ok_or_else(damaged)?;
        let tombstone = bytes[24] & TOMBSTONE != 0;
        let length: [u8; 4] = bytes[25..29].try_into().map_err(|_| damaged())?;
        let (key, value) = bytes[HEADER..].split_at_checked(u32::from_le_bytes(length) as usize).ok_or_else(damaged)?;
        let key = std::str::from_utf8(key).map_err(|_| damaged())?;
        Ok(Self { key, value: (!tombstone).then_some(value), previous, expires })
    }

    /// The version it describes; none for a tombstone.
    pub fn key_value(&self, revision: Revision, keys_only: bool) -> Option<crate::KeyValue> {
        let value = self.value?;
        let value = if keys_only { Bytes::new() } else { Bytes::copy_from_slice(value) };
        Some(crate::KeyValue { key: Key::from(self.key), value, mod_revision: revision })
    }
}

fn checksum(revision: Revision, rest: &[u8]) -> u64 {
    let mut hash = Xxh3::with_seed(revision);
    hash.write(rest);
    hash.finish()
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(record: &Record<'_>, revision: Revision) -> Vec<u8> {
        let mut bytes = vec![0; record.len()];
        record.encode(revision, &mut bytes);
        bytes
    }

    #[test]
    fn records_come_back_as_written() {
        let cases = [
            Record { key: "/registry/a", value: Some(b"value"), previous: 7, expires: 9 },
            Record { key: "k", value: Some(b""), previous: 0, expires: 0 },
            Record { key: "k", value: None, previous: u64::MAX >> 1, expires: 0 },
        ];
        for record in cases {
            assert_eq!(Record::decode(3, &encoded(&record, 3)), Ok(record));
        }
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let bytes = encoded(&Record { key: "key", value: Some(b"value"), previous: 1, expires: 2 }, 3);
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(3, &changed).is_err(), "bit {bit}");
        }
        assert!(Record::decode(4, &bytes).is_err(), "another revision's record");
        assert!(Record::decode(3, &bytes[..20]).is_err(), "cut short");
    }

    #[test]
    fn heads_pack_into_one_number() {
        for head in [Head { revision: 1, tombstone: false }, Head { revision: 1 << 62, tombstone: true }] {
            assert_eq!(Head::unpack(head.pack()), head);
        }
    }
}
