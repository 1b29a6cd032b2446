//! One commit: what a group of waiting requests does to the tables.
//!
//! Synchronous and without threads or clocks; `writer` calls it. [`State`] is what must be known of
//! the file to write to it; [`Group`] applies requests one after another inside one transaction.
//! A failed compare sees the group's earlier writes, so it too is answered only after the commit.

use redb::{ReadableTable, Table, WriteTransaction};

use super::damage::Damage;
use super::record::{self, Head, Record, head_digest};
use crate::{Event, KeyValue, Revision, StoreError, Txn, TxnOutcome, Write};

/// The counters of the file, as of the last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub revision: Revision,
    pub compacted: Revision,
    pub cleaned: Revision,
    pub digest: u64,
    /// Keys in the index, tombstones included.
    pub keys: u64,
}

/// A transaction being filled.
pub struct Group<'txn, 'path> {
    damage: Damage<'path>,
    index: Table<'txn, &'static str, u64>,
    log: Table<'txn, u64, &'static [u8]>,
    expiry: Table<'txn, (u64, u64), ()>,
    before: State,
    state: State,
    events: Vec<Event>,
}

impl<'txn, 'path> Group<'txn, 'path> {
    pub fn begin(txn: &'txn WriteTransaction, state: State, damage: Damage<'path>) -> Result<Self, StoreError> {
        Ok(Self {
            damage,
            index: txn.open_table(record::INDEX).map_err(damage.writing())?,
            log: txn.open_table(record::LOG).map_err(damage.writing())?,
            expiry: txn.open_table(record::EXPIRY).map_err(damage.writing())?,
            before: state,
            state,
            events: Vec::new(),
        })
    }

    /// Applies one request. `now` is in seconds since 1970.
    pub fn apply(&mut self, txn: &Txn, now: u64) -> Result<TxnOutcome, StoreError> {
        let head = self.head(&txn.key)?;
        let live = head.filter(|head| !head.tombstone);
        if live.map_or(0, |head| head.revision) != txn.expected {
            let current = live.map(|head| self.version(&txn.key, head.revision)).transpose()?;
            return Ok(TxnOutcome::Conflict { current, revision: self.state.revision });
        }
        if live.is_none() && txn.write == Write::Delete {
            return Ok(TxnOutcome::Done { revision: self.state.revision });
        }
        let revision = self.write(txn, head, now)?;
        Ok(TxnOutcome::Done { revision })
    }

    fn write(&mut self, txn: &Txn, head: Option<Head>, now: u64) -> Result<Revision, StoreError> {
        let previous = match head {
            Some(head) if !head.tombstone => Some(self.version(&txn.key, head.revision)?),
            _ => None,
        };
        let revision = self.state.revision + 1;
        let (value, expires) = match &txn.write {
            Write::Put { value, ttl } => (Some(value), ttl.map_or(0, |ttl| now + ttl.as_secs().max(1))),
            Write::Delete => (None, 0),
        };
        let record = Record {
            key: &txn.key,
            value: value.map(|value| value.as_ref()),
            previous: head.map_or(0, |head| head.revision),
            expires,
        };
        let mut space = self.log.insert_reserve(revision, record.len()).map_err(self.damage.writing())?;
        record.encode(revision, space.as_mut());
        drop(space);
        if expires != 0 {
            self.expiry.insert((expires, revision), ()).map_err(self.damage.writing())?;
        }
        self.set_head(&txn.key, head, Some(Head { revision, tombstone: value.is_none() }))?;
        self.state.revision = revision;
        self.events.push(Event { key: txn.key.clone(), revision, value: value.cloned(), previous });
        Ok(revision)
    }

    /// Deletes what has expired by `now`, at most `limit` keys.
    pub fn expire(&mut self, now: u64, limit: usize) -> Result<(), StoreError> {
        for _ in 0..limit {
            let Some((due, revision)) = self.first_expiry()? else { return Ok(()) };
            if due > now {
                return Ok(());
            }
            self.expiry.remove((due, revision)).map_err(self.damage.writing())?;
            let Some(key) = self.key_of(revision)? else { continue };
            if self.head(&key)? == Some(Head { revision, tombstone: false }) {
                let txn = Txn::delete(key, revision);
                self.apply(&txn, now)?;
            }
        }
        Ok(())
    }

    /// When the next key expires, in seconds since 1970.
    pub fn next_expiry(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.first_expiry()?.map(|(due, _)| due))
    }

    fn first_expiry(&self) -> Result<Option<(u64, u64)>, StoreError> {
        let first = self.expiry.first().map_err(self.damage.reading())?;
        Ok(first.map(|(key, _)| key.value()))
    }

    /// Puts versions superseded up to `revision` out of readers' reach; [`Group::clean`] removes them.
    pub fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.state.revision {
            return Err(StoreError::FutureRevision { requested: revision, current: self.state.revision });
        }
        if revision <= self.state.compacted {
            return Err(StoreError::Compacted { requested: revision, compacted: self.state.compacted });
        }
        self.state.compacted = revision;
        Ok(())
    }

    /// The same for the engine's own compaction: never backwards, never beyond what was committed.
    pub fn compact_at_least(&mut self, revision: Revision) {
        self.state.compacted = self.state.compacted.max(revision.min(self.before.revision));
    }

    /// Removes superseded versions, looking at no more than `limit` revisions.
    pub fn clean(&mut self, limit: u64) -> Result<(), StoreError> {
        let to = self.state.compacted.min(self.state.cleaned + limit);
        while self.state.cleaned < to {
            let revision = self.state.cleaned + 1;
            self.clean_one(revision)?;
            self.state.cleaned = revision;
        }
        Ok(())
    }

    /// Removes what `revision` replaced, and `revision` itself if it is a deletion that stands.
    fn clean_one(&mut self, revision: Revision) -> Result<(), StoreError> {
        let (previous, deleted) = {
            let found = self.log.get(revision).map_err(self.damage.reading())?;
            let Some(bytes) = found else {
                return Err(self.damage.because(format!("revision {revision} is missing")));
            };
            let record = Record::decode(revision, bytes.value()).map_err(|detail| self.damage.because(detail))?;
            (record.previous, record.value.is_none().then(|| record.key.to_owned()))
        };
        if previous != 0 {
            self.log.remove(previous).map_err(self.damage.writing())?;
        }
        if let Some(key) = deleted {
            let head = self.head(&key)?;
            if head == Some(Head { revision, tombstone: true }) {
                self.log.remove(revision).map_err(self.damage.writing())?;
                self.set_head(&key, head, None)?;
            }
        }
        Ok(())
    }

    /// Ends the group: its new state and events; none when nothing changed.
    pub fn finish(self, txn: &WriteTransaction) -> Result<Option<(State, Vec<Event>)>, StoreError> {
        if self.state == self.before {
            return Ok(None);
        }
        let Self { damage, state, events, .. } = self;
        let mut meta = txn.open_table(record::META).map_err(damage.writing())?;
        for (name, value) in [
            (record::META_REVISION, state.revision),
            (record::META_COMPACTED, state.compacted),
            (record::META_CLEANED, state.cleaned),
            (record::META_DIGEST, state.digest),
        ] {
            meta.insert(name, value).map_err(damage.writing())?;
        }
        Ok(Some((state, events)))
    }

    fn head(&self, key: &str) -> Result<Option<Head>, StoreError> {
        let packed = self.index.get(key).map_err(self.damage.reading())?;
        Ok(packed.map(|packed| Head::unpack(packed.value())))
    }

    fn set_head(&mut self, key: &str, old: Option<Head>, new: Option<Head>) -> Result<(), StoreError> {
        if let Some(old) = old {
            self.state.digest = self.state.digest.wrapping_sub(head_digest(key, old.pack()));
            self.state.keys -= 1;
        }
        match new {
            Some(new) => {
                self.state.digest = self.state.digest.wrapping_add(head_digest(key, new.pack()));
                self.state.keys += 1;
                self.index.insert(key, new.pack()).map_err(self.damage.writing())?;
            }
            None => {
                self.index.remove(key).map_err(self.damage.writing())?;
            }
        }
        Ok(())
    }

    fn version(&self, key: &str, revision: Revision) -> Result<KeyValue, StoreError> {
        let found = self.log.get(revision).map_err(self.damage.reading())?;
        let Some(bytes) = found else {
            return Err(self.damage.because(format!("revision {revision} of {key:?} is missing")));
        };
        let record = Record::decode(revision, bytes.value()).map_err(|detail| self.damage.because(detail))?;
        let version = record.key_value(revision, false).filter(|kv| *kv.key == *key);
        version.ok_or_else(|| self.damage.because(format!("revision {revision} is not a value of {key:?}")))
    }

    /// The key that `revision` wrote; none if that version is gone.
    fn key_of(&self, revision: Revision) -> Result<Option<String>, StoreError> {
        let found = self.log.get(revision).map_err(self.damage.reading())?;
        let Some(bytes) = found else { return Ok(None) };
        let record = Record::decode(revision, bytes.value()).map_err(|detail| self.damage.because(detail))?;
        Ok(Some(record.key.to_owned()))
    }
}
