//! What readers and the writer share under one lock: the index, and the files it points into.
//!
//! The lock is held to look things up, never while a file is read or written by readers; a
//! [`Found`] keeps its file open even if the segment is dropped meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::damage::Damage;
use super::index::Index;
use super::record::Record;
use super::segment::{Place, Segment};
use crate::{Key, KeyValue, Revision, StoreError};

pub struct Core {
    pub path: PathBuf,
    pub index: Index,
    pub segments: BTreeMap<u32, Arc<Segment>>,
    /// Nothing is read any more.
    pub closed: bool,
}

/// A version that was looked up and can be read without the lock.
#[derive(Clone)]
pub struct Found {
    pub revision: Revision,
    pub place: Place,
    segment: Arc<Segment>,
}

impl Found {
    /// Reads the whole record into `scratch`.
    pub fn record<'a>(&self, key: &str, scratch: &'a mut Vec<u8>) -> Result<Record<'a>, StoreError> {
        self.segment.read(self.place, key, self.revision, scratch)
    }

    /// Reads the value; `scratch` is space to do so.
    pub fn read(&self, key: &Key, scratch: &mut Vec<u8>) -> Result<KeyValue, StoreError> {
        self.read_expiring(key, scratch).map(|(kv, _)| kv)
    }

    /// The same, and the second since 1970 at which it expires; 0: never.
    pub fn read_expiring(&self, key: &Key, scratch: &mut Vec<u8>) -> Result<(KeyValue, u64), StoreError> {
        let record = self.record(key, scratch)?;
        let value = record.value.ok_or_else(|| {
            self.segment.damage().because(format!("revision {} of {key:?} has no value", self.revision))
        })?;
        let value = bytes::Bytes::copy_from_slice(value);
        Ok((KeyValue { key: key.clone(), value, mod_revision: self.revision }, record.expires))
    }
}

impl Core {
    /// The version at a place of the index.
    pub fn found(&self, revision: Revision, place: Place) -> Result<Found, StoreError> {
        let segment = self.segments.get(&place.segment).cloned();
        let segment = segment.ok_or_else(|| self.lost(revision))?;
        Ok(Found { revision, place, segment })
    }

    /// The version of `key` that `revision` made, which is known to be there.
    pub fn find(&self, key: &str, revision: Revision) -> Result<Found, StoreError> {
        self.found(revision, self.index.place(key, revision).ok_or_else(|| self.lost(revision))?)
    }

    /// Index and segments change together: this does not happen, and must not pass for "no such key".
    pub fn lost(&self, revision: Revision) -> StoreError {
        Damage::of(&self.path).because(format!("revision {revision} is not where it was"))
    }

    /// Reads a record whose place is known.
    pub fn read<'a>(
        &self,
        key: &str,
        revision: Revision,
        place: Place,
        scratch: &'a mut Vec<u8>,
    ) -> Result<Record<'a>, StoreError> {
        let segment = self.segments.get(&place.segment).ok_or_else(|| self.lost(revision))?;
        segment.read(place, key, revision, scratch)
    }
}
