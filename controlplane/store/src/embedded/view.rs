//! Reading: one consistent state of the file.
//!
//! The writer makes a [`View`] after each commit and swaps it in; readers share it, so a read takes
//! no lock beyond cloning an `Arc` and always sees one revision.

use std::path::{Path, PathBuf};

use redb::{Database, ReadOnlyTable, ReadableDatabase};

use super::damage::Damage;
use super::record::{self, Head, Record};
use crate::{Event, Got, KeyValue, Page, Range, Revision, StoreError};

/// One committed state.
pub struct View {
    path: PathBuf,
    pub revision: Revision,
    pub compacted: Revision,
    index: ReadOnlyTable<&'static str, u64>,
    log: ReadOnlyTable<u64, &'static [u8]>,
}

impl View {
    pub fn open(db: &Database, path: &Path, revision: Revision, compacted: Revision) -> Result<Self, StoreError> {
        let damage = Damage::of(path);
        let read = db.begin_read().map_err(damage.reading())?;
        let index = read.open_table(record::INDEX).map_err(damage.reading())?;
        let log = read.open_table(record::LOG).map_err(damage.reading())?;
        Ok(Self { path: path.to_owned(), revision, compacted, index, log })
    }

    fn damage(&self) -> Damage<'_> {
        Damage::of(&self.path)
    }

    pub fn get(&self, key: &str) -> Result<Got, StoreError> {
        let head = self.index.get(key).map_err(self.damage().reading())?.map(|packed| Head::unpack(packed.value()));
        let kv = match head {
            Some(head) if !head.tombstone => self.version(key, head.revision, false)?,
            _ => None,
        };
        Ok(Got { kv, revision: self.revision })
    }

    pub fn range(&self, range: &Range) -> Result<Page, StoreError> {
        let at = self.readable(range.revision)?;
        let mut page = Page { kvs: Vec::new(), count: 0, revision: at };
        for entry in self.index.range(range.first()..).map_err(self.damage().reading())? {
            let (key, packed) = entry.map_err(self.damage().reading())?;
            let key = key.value();
            if !key.starts_with(&range.prefix) {
                break;
            }
            let wanted = range.limit == 0 || page.kvs.len() < range.limit;
            let head = Head::unpack(packed.value());
            if head.revision <= at {
                if head.tombstone {
                    continue;
                }
                page.count += 1;
                if wanted && range.keys_only {
                    page.kvs.push(KeyValue {
                        key: key.into(),
                        value: bytes::Bytes::new(),
                        mod_revision: head.revision,
                    });
                } else if wanted {
                    page.kvs.extend(self.version(key, head.revision, false)?);
                }
            } else if let Some(kv) = self.version_at(key, head.revision, at, range.keys_only || !wanted)? {
                page.count += 1;
                if wanted {
                    page.kvs.push(kv);
                }
            }
        }
        Ok(page)
    }

    /// The revision to read at, if it can be read.
    fn readable(&self, requested: Revision) -> Result<Revision, StoreError> {
        match requested {
            0 => Ok(self.revision),
            requested if requested > self.revision => {
                Err(StoreError::FutureRevision { requested, current: self.revision })
            }
            requested if requested < self.compacted => {
                Err(StoreError::Compacted { requested, compacted: self.compacted })
            }
            requested => Ok(requested),
        }
    }

    /// The version of `key` that `revision` wrote; none if it was a deletion.
    fn version(&self, key: &str, revision: Revision, keys_only: bool) -> Result<Option<KeyValue>, StoreError> {
        self.with_record(key, revision, |record| record.key_value(revision, keys_only))
    }

    /// Follows the chain back from `newest` to what `key` was at revision `at`.
    fn version_at(
        &self,
        key: &str,
        newest: Revision,
        at: Revision,
        keys_only: bool,
    ) -> Result<Option<KeyValue>, StoreError> {
        let mut revision = newest;
        while revision > at {
            revision = self.with_record(key, revision, |record| record.previous)?;
        }
        if revision == 0 { Ok(None) } else { self.version(key, revision, keys_only) }
    }

    fn with_record<T>(&self, key: &str, revision: Revision, f: impl FnOnce(&Record<'_>) -> T) -> Result<T, StoreError> {
        let found = self.log.get(revision).map_err(self.damage().reading())?;
        let Some(bytes) = found else {
            return Err(self.damage().because(format!("revision {revision} of {key:?} is missing")));
        };
        let record = Record::decode(revision, bytes.value()).map_err(|detail| self.damage().because(detail))?;
        if record.key != key {
            return Err(self.damage().because(format!("revision {revision} belongs to {:?}, not {key:?}", record.key)));
        }
        Ok(f(&record))
    }

    /// Events under `prefix` with revisions from `from` to `to`: at most about `limit` records are
    /// looked at. Returns them and the first revision not looked at.
    pub fn events(
        &self,
        prefix: &str,
        from: Revision,
        to: Revision,
        limit: u64,
    ) -> Result<(Vec<Event>, Revision), StoreError> {
        if from <= self.compacted {
            return Err(StoreError::Compacted { requested: from - 1, compacted: self.compacted });
        }
        let to = to.min(from.saturating_add(limit - 1));
        let mut events = Vec::new();
        let mut expected = from;
        for entry in self.log.range(from..=to).map_err(self.damage().reading())? {
            let (revision, bytes) = entry.map_err(self.damage().reading())?;
            let revision = revision.value();
            if revision != expected {
                break;
            }
            expected += 1;
            let record = Record::decode(revision, bytes.value()).map_err(|detail| self.damage().because(detail))?;
            if record.key.starts_with(prefix) {
                events.push(self.event(revision, &record)?);
            }
        }
        if expected != to + 1 {
            return Err(self.damage().because(format!("revision {expected} is missing")));
        }
        Ok((events, expected))
    }

    fn event(&self, revision: Revision, record: &Record<'_>) -> Result<Event, StoreError> {
        let previous = if record.previous == 0 { None } else { self.version(record.key, record.previous, false)? };
        let (key, value) = match record.key_value(revision, false) {
            Some(kv) => (kv.key, Some(kv.value)),
            None => (record.key.into(), None),
        };
        Ok(Event { key, revision, value, previous })
    }

    /// Calls `f` with every live version, in key order, with its expiry (second since 1970; 0: never).
    pub fn for_each(
        &self,
        mut f: impl FnMut(Revision, &Record<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for entry in self.index.range::<&str>(..).map_err(self.damage().reading())? {
            let (key, packed) = entry.map_err(self.damage().reading())?;
            let head = Head::unpack(packed.value());
            if !head.tombstone {
                self.with_record(key.value(), head.revision, |record| f(head.revision, record))??;
            }
        }
        Ok(())
    }
}
