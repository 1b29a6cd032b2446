//! The end of the log: the segment that gets the groups, and the step to the next one.
//!
//! The next segment is asked for when the active one is a quarter full, so it is ready when it is
//! needed; if it is not, on a disk that is busy, the active one grows to [`OVERGROWN`] times its size
//! before a write waits.

use std::sync::Arc;

use super::footer::{Builder, Entry};
use super::group::{Buffer, Header, Kind};
use super::keeper::{Keeper, Sealing};
use super::segment::{START, Segment};
use crate::{Revision, StoreError};

const SMALLEST: u64 = 512 * 1024;
const LARGEST: u64 = 16 * 1024 * 1024;
const OVERGROWN: u64 = 4;

pub struct Tail {
    pub active: Arc<Segment>,
    /// Where the next group goes.
    pub end: u64,
    /// Of the records so far.
    pub entries: Builder,
    /// Sequence of the first group in it; 0: there is none.
    pub first: u64,
    /// The newest group.
    pub state: Header,
    /// The next segment has been asked for, or is there.
    pub asked: bool,
    /// What every segment is to hold, in bytes; 0: what fits the store's size.
    pub capacity: u32,
}

/// Bytes a new segment should hold in a store that needs so many.
pub fn capacity(needed: u64) -> u32 {
    // A small part of the store is in the segment that cannot be cleaned and in the one prepared.
    (needed / 32).next_power_of_two().clamp(SMALLEST, LARGEST) as u32
}

impl Tail {
    /// Goes on to the next segment if this one is full. Returns the new one.
    pub fn turn(&mut self, keeper: &Keeper, needed: u64) -> Result<Option<Arc<Segment>>, StoreError> {
        let full = u64::from(self.active.capacity);
        if !self.asked && self.end >= full / 4 {
            let size = if self.capacity == 0 { capacity(needed) } else { self.capacity };
            keeper.prepare(self.active.number + 1, size, self.state.sequence);
            self.asked = true;
        }
        if self.end < full - full / 32 {
            return Ok(None);
        }
        let next = match keeper.take_ready() {
            None if self.end >= OVERGROWN * full => Some(keeper.wait_ready()?),
            ready => ready,
        };
        let Some(next) = next else { return Ok(None) };
        self.seal(keeper);
        *self = Self {
            active: next.clone(),
            end: START,
            entries: Builder::default(),
            first: 0,
            asked: false,
            state: self.state,
            capacity: self.capacity,
        };
        Ok(Some(next))
    }

    /// Has the footer written.
    pub fn seal(&mut self, keeper: &Keeper) {
        if self.first == 0 {
            return;
        }
        let count = self.entries.count();
        keeper.seal(Sealing {
            segment: self.active.clone(),
            entries: std::mem::take(&mut self.entries).into_bytes(),
            count,
            first: self.first,
            end: self.end,
            state: self.state,
        });
    }

    /// Writes a group and syncs it. Returns where it lies.
    pub fn write(&mut self, group: &mut Buffer, revision: Revision, compacted: Revision) -> Result<u32, StoreError> {
        let sequence = self.state.sequence + 1;
        let state = Header { kind: Kind::Records, sequence, revision, compacted, length: 0, count: 0 };
        let bytes = group.finish(state, self.active.spot(self.end));
        self.active.write(bytes, self.end)?;
        self.active.sync()?;
        // Segments are far below 4 GiB.
        let start = self.end as u32;
        self.end += bytes.len() as u64;
        self.state = state;
        self.first = if self.first == 0 { sequence } else { self.first };
        Ok(start)
    }

    /// Notes a record of the last group for the footer.
    pub fn note(&mut self, entry: &Entry<'_>) {
        self.entries.push(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_grow_with_the_store() {
        for (needed, want) in [(0, 512 << 10), (16 << 20, 512 << 10), (100 << 20, 4 << 20), (1 << 40, 16 << 20)] {
            assert_eq!(capacity(needed), want, "{needed}");
        }
    }
}
