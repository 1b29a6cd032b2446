//! One group of requests against the index: what is to be written, and what is answered once that
//! is durable. Changes nothing itself.
//!
//! A compare sees the group's earlier writes; so a conflict too is answered only after the sync.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::core::Core;
use super::group::{Buffer, Within};
use super::record::{Head, Record};
use crate::{Event, Key, KeyValue, Revision, StoreError, Txn, TxnOutcome, Write};

/// When keys expire: (second since 1970, revision).
pub type Expiry = BTreeMap<(u64, Revision), Key>;

/// A write in the group.
pub struct Planned {
    pub key: Key,
    pub deleted: bool,
    pub previous: Head,
    pub expires: u64,
    /// When the version that it replaces would have expired; 0: never.
    pub would_expire: u64,
    pub within: Within,
}

/// Where a key of the group stands.
struct Pending {
    head: Head,
    value: Option<Bytes>,
    expires: u64,
}

pub struct Plan<'a> {
    core: &'a Core,
    store: u64,
    group: &'a mut Buffer,
    /// Keys this group writes.
    pending: HashMap<Key, Pending>,
    pub writes: Vec<Planned>,
    pub events: Vec<Event>,
    pub revision: Revision,
    pub compacted: Revision,
    scratch: Vec<u8>,
}

impl<'a> Plan<'a> {
    pub fn new(core: &'a Core, store: u64, group: &'a mut Buffer) -> Self {
        Self {
            core,
            store,
            group,
            pending: HashMap::new(),
            writes: Vec::new(),
            events: Vec::new(),
            revision: core.index.revision,
            compacted: core.index.compacted,
            scratch: Vec::new(),
        }
    }

    /// Applies one request. `now` is in seconds since 1970.
    pub fn apply(&mut self, txn: &Txn, now: u64) -> Result<TxnOutcome, StoreError> {
        let head = self.head(&txn.key);
        if head.live() != txn.expected {
            let (current, _) = self.current(&txn.key, head)?;
            return Ok(TxnOutcome::Conflict { current, revision: self.revision });
        }
        if head.live() == 0 && txn.write == Write::Delete {
            return Ok(TxnOutcome::Done { revision: self.revision });
        }
        let (value, expires) = match &txn.write {
            Write::Put { value, ttl } => (Some(value), ttl.map_or(0, |ttl| now + ttl.as_secs().max(1))),
            Write::Delete => (None, 0),
        };
        let (previous, would_expire) = self.current(&txn.key, head)?;
        self.write(&txn.key, value, head, expires, would_expire);
        self.events.push(Event { key: txn.key.clone(), revision: self.revision, value: value.cloned(), previous });
        Ok(TxnOutcome::Done { revision: self.revision })
    }

    fn write(&mut self, key: &Key, value: Option<&Bytes>, previous: Head, expires: u64, would_expire: u64) {
        self.revision += 1;
        let record = Record { key, value: value.map(AsRef::as_ref), previous, expires };
        let within = self.group.push(self.store, self.revision, &record);
        let deleted = value.is_none();
        self.writes.push(Planned { key: key.clone(), deleted, previous, expires, would_expire, within });
        let head = Head { revision: self.revision, deleted };
        self.pending.insert(key.clone(), Pending { head, value: value.cloned(), expires });
    }

    /// Deletes what has expired by `now`, at most `limit` keys.
    pub fn expire(&mut self, expiry: &mut Expiry, now: u64, limit: usize) -> Result<(), StoreError> {
        for _ in 0..limit {
            let Some(due) = expiry.first_entry().filter(|due| due.key().0 <= now) else { return Ok(()) };
            let ((_, revision), key) = due.remove_entry();
            if self.head(&key) == (Head { revision, deleted: false }) {
                self.apply(&Txn::delete(key, revision), now)?;
            }
        }
        Ok(())
    }

    /// Puts versions superseded up to `revision` out of readers' reach.
    pub fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.revision {
            return Err(StoreError::FutureRevision { requested: revision, current: self.revision });
        }
        if revision <= self.compacted {
            return Err(StoreError::Compacted { requested: revision, compacted: self.compacted });
        }
        self.compacted = revision;
        Ok(())
    }

    fn head(&self, key: &Key) -> Head {
        self.pending.get(key).map_or_else(|| self.core.index.head(key), |pending| pending.head)
    }

    /// The value a key has, at `head`, and when it expires.
    fn current(&mut self, key: &Key, head: Head) -> Result<(Option<KeyValue>, u64), StoreError> {
        if head.live() == 0 {
            return Ok((None, 0));
        }
        if let Some(Pending { value, expires, .. }) = self.pending.get(key) {
            let version =
                |value: &Bytes| KeyValue { key: key.clone(), value: value.clone(), mod_revision: head.revision };
            return Ok((value.as_ref().map(version), *expires));
        }
        let (kv, expires) = self.core.find(key, head.revision)?.read_expiring(key, &mut self.scratch)?;
        Ok((Some(kv), expires))
    }
}
