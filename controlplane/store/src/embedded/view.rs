//! Reading: what a revision shows, in pieces short enough not to hold up the writer.
//!
//! Under the lock places are looked up; files are read outside of it. A [`Walk`] goes through the
//! keys at one revision and pins it, so that what it shows is not forgotten before it is done.

use std::ops::Bound;
use std::sync::Arc;

use super::core::{Core, Found};
use super::writer::Shared;
use crate::{Event, Got, Key, KeyValue, Page, Range, Revision, StoreError};

/// Keys looked at, and versions found, under one hold of the lock.
const LOOK: usize = 4096;
const FIND: usize = 512;
/// Past events read at a time: so many log records looked at, and no more once so many bytes are found.
const PAST_RECORDS: u64 = 500;
const PAST_BYTES: u64 = 1024 * 1024;

impl Shared {
    fn open(&self) -> Result<parking_lot::RwLockReadGuard<'_, Core>, StoreError> {
        let core = self.core.read();
        if core.closed { Err(StoreError::Closed) } else { Ok(core) }
    }

    pub fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.open()?.index.revision)
    }

    pub fn compacted(&self) -> Result<Revision, StoreError> {
        Ok(self.open()?.index.compacted)
    }

    pub fn get(&self, key: &str) -> Result<Got, StoreError> {
        let core = self.open()?;
        let (revision, head) = (core.index.revision, core.index.head(key));
        if head.live() == 0 {
            return Ok(Got { kv: None, revision });
        }
        let found = core.find(key, head.revision)?;
        drop(core);
        let kv = found.read(&key.into(), &mut Vec::new())?;
        Ok(Got { kv: Some(kv), revision })
    }

    pub fn range(self: &Arc<Self>, range: &Range) -> Result<Page, StoreError> {
        let mut walk = Walk::begin(self, &range.prefix, range.first(), range.revision)?;
        let mut page = Page { kvs: Vec::new(), count: 0, revision: walk.at };
        let mut scratch = Vec::new();
        loop {
            let room = if range.limit == 0 { FIND } else { (range.limit - page.kvs.len()).min(FIND) };
            let (found, seen) = walk.next(room)?;
            page.count += seen;
            for (key, found) in found {
                page.kvs.push(if range.keys_only {
                    KeyValue { key, value: bytes::Bytes::new(), mod_revision: found.revision }
                } else {
                    found.read(&key, &mut scratch)?
                });
            }
            if walk.ended {
                return Ok(page);
            }
        }
    }

    /// The first events under `prefix` with revisions from `from` to `to`: as many as are held in memory
    /// well. Returns them and the first revision not looked at.
    pub fn events(&self, prefix: &str, from: Revision, to: Revision) -> Result<(Vec<Event>, Revision), StoreError> {
        let to = to.min(from.saturating_add(PAST_RECORDS - 1));
        let core = self.open()?;
        if from <= core.index.compacted {
            return Err(StoreError::Compacted { requested: from - 1, compacted: core.index.compacted });
        }
        let (mut found, mut bytes, mut next) = (Vec::new(), 0, from);
        while next <= to && bytes < PAST_BYTES {
            let revision = next;
            next += 1;
            let past = core.index.past(revision).ok_or_else(|| core.lost(revision))?;
            if past.key.starts_with(prefix) {
                let value = if past.deleted { None } else { Some(core.found(revision, past.place)?) };
                let previous = match past.previous.live() {
                    0 => None,
                    previous => Some(core.find(&past.key, previous)?),
                };
                let lengths = value.iter().chain(&previous).map(|found| u64::from(found.place.length));
                bytes += lengths.sum::<u64>();
                found.push((revision, past.key.clone(), value, previous));
            }
        }
        drop(core);
        let mut scratch = Vec::new();
        let mut read = |key: &Key, found: Option<Found>| found.map(|found| found.read(key, &mut scratch)).transpose();
        let mut events = Vec::with_capacity(found.len());
        for (revision, key, value, previous) in found {
            let value = read(&key, value)?.map(|kv| kv.value);
            let previous = read(&key, previous)?;
            events.push(Event { key, revision, value, previous });
        }
        Ok((events, next))
    }
}

/// A way through the keys under a prefix at one revision, in order.
pub struct Walk<'a> {
    pin: Pin<'a>,
    prefix: String,
    /// Where to go on, and whether that key itself has been looked at.
    next: String,
    passed: bool,
    pub at: Revision,
    pub ended: bool,
}

impl<'a> Walk<'a> {
    /// `requested`: 0 for the newest revision.
    pub fn begin(shared: &'a Shared, prefix: &str, first: &str, requested: Revision) -> Result<Self, StoreError> {
        let core = shared.open()?;
        let (revision, compacted) = (core.index.revision, core.index.compacted);
        let at = match requested {
            0 => revision,
            requested if requested > revision => {
                return Err(StoreError::FutureRevision { requested, current: revision });
            }
            requested if requested < compacted => return Err(StoreError::Compacted { requested, compacted }),
            requested => requested,
        };
        // Under the lock, so that nothing is forgotten in between.
        let pin = Pin::new(shared, at);
        Ok(Self { pin, prefix: prefix.to_owned(), next: first.to_owned(), passed: false, at, ended: false })
    }

    /// Some more keys, at most `room`, and how many there were in all, those without room included.
    pub fn next(&mut self, room: usize) -> Result<(Vec<(Key, Found)>, u64), StoreError> {
        let core = self.pin.shared.open()?;
        let next = std::mem::take(&mut self.next);
        let from = if self.passed { Bound::Excluded(next.as_str()) } else { Bound::Included(next.as_str()) };
        let (mut found, mut seen, mut last) = (Vec::new(), 0, None);
        let mut keys = core.index.from(from).take_while(|(key, _)| key.starts_with(&self.prefix));
        for _ in 0..LOOK {
            let Some((key, entry)) = keys.next() else {
                self.ended = true;
                break;
            };
            last = Some(key);
            if let Some((revision, place)) = core.index.visible(entry, self.at) {
                seen += 1;
                if found.len() < room {
                    found.push((key.clone(), core.found(revision, place)?));
                    if found.len() == FIND {
                        break;
                    }
                }
            }
        }
        if let Some(last) = last {
            self.next = last.to_string();
            self.passed = true;
        }
        Ok((found, seen))
    }
}

/// Keeps what a revision shows.
struct Pin<'a> {
    shared: &'a Shared,
    at: Revision,
}

impl<'a> Pin<'a> {
    fn new(shared: &'a Shared, at: Revision) -> Self {
        *shared.pins.lock().entry(at).or_default() += 1;
        Self { shared, at }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut pins = self.shared.pins.lock();
        if let Some(count) = pins.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.at);
            }
        }
        drop(pins);
        // What waited for this may go now.
        if self.shared.core.read().index.compacted > self.at {
            self.shared.inbox.nudge();
        }
    }
}
