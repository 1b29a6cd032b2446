//! Giving space back: what is still needed of the oldest segment is copied to the log's end, a
//! little beside each commit; then the segment is dropped.
//!
//! Always the oldest: then a deletion never has to be kept for the sake of the versions before it.
//! Those lie before it in the log and are dropped before it or with it; only where an older version
//! of a deleted key is copied behind its deletion, because history needs it, is the deletion copied
//! behind it ([`Cleaner::step`]). So the newest record of a deleted key is never dropped before an
//! older one, and opening cannot take that one for the key's value.
//!
//! How much is copied depends on how much garbage there is ([`effort`]): nothing below a quarter of
//! what is needed, and the more the further beyond.

use std::sync::Arc;

use super::core::Core;
use super::footer::{Entries, Entry};
use super::group::{Buffer, Within};
use super::record::{Head, Record};
use super::segment::{Place, Segment};
use super::usage::Usage;
use crate::{Key, Revision, StoreError};

/// Bytes copied beside one commit, and while nothing is written.
const LARGEST_STEP: u64 = 256 * 1024;
const SMALLEST_STEP: u64 = 16 * 1024;
/// Entries looked at, beside a few for each byte written.
const ENTRIES: usize = 512;

/// A copy made by a step, in the group being written.
pub struct Move {
    pub key: Key,
    pub revision: Revision,
    pub deleted: bool,
    pub previous: Head,
    pub expires: u64,
    pub from: Place,
    pub within: Within,
}

#[derive(Default)]
pub struct Cleaner {
    victim: Option<Victim>,
    scratch: Vec<u8>,
}

/// The segment being cleaned.
struct Victim {
    segment: Arc<Segment>,
    entries: Entries,
    /// All of it has been looked at.
    done: bool,
    /// The cleaned revision by which it was last decided what is needed.
    cleaned: Revision,
}

/// Bytes to copy beside a group of `written` bytes. `active` is the segment that is written.
pub fn effort(usage: &Usage, active: &Segment, written: u64) -> u64 {
    effort_for(usage.garbage(active.number), usage.needed(), u64::from(active.capacity), written)
}

/// `segment`: bytes of one; as much garbage may always be.
fn effort_for(garbage: u64, needed: u64, segment: u64, written: u64) -> u64 {
    let limit = needed / 4 + segment;
    if garbage <= limit {
        return 0;
    }
    // From as much as is written to eight times that, at twice the limit.
    let factor = 1 + 7 * (garbage - limit).min(limit) / limit;
    (written * factor).clamp(SMALLEST_STEP, LARGEST_STEP)
}

impl Cleaner {
    /// Copies up to about `bytes` of the oldest segment into `group`, which will be written to the
    /// segment `active`. Returns the copies.
    pub fn step(&mut self, core: &Core, active: u32, bytes: u64, group: &mut Buffer) -> Result<Vec<Move>, StoreError> {
        let mut moves = Vec::new();
        if bytes == 0 || !self.choose(core, active)? {
            return Ok(moves);
        }
        let Some(victim) = &mut self.victim else { return Ok(moves) };
        victim.cleaned = core.index.cleaned();
        let (mut copied, mut looked) = (0, 0);
        while !victim.done && copied < bytes && looked < ENTRIES + bytes as usize / 256 {
            looked += 1;
            let number = victim.segment.number;
            let entry = victim.entries.next().map_err(|detail| victim.segment.damage().because(detail))?;
            let Some(entry) = entry else {
                victim.done = true;
                break;
            };
            let place = Place { segment: number, offset: entry.offset, length: entry.length };
            if !core.index.needs(entry.key, entry.revision, place) {
                continue;
            }
            let head = core.index.head(entry.key);
            let copy = copy(core, &entry_key(&entry), entry.revision, place, group, &mut self.scratch)?;
            copied += u64::from(place.length);
            // An older version of a deleted key: its deletion must not lie before it.
            let grave = (head.deleted && head.revision != copy.revision)
                .then(|| core.index.place(&copy.key, head.revision))
                .flatten()
                .filter(|grave| grave.segment != active);
            let key = copy.key.clone();
            moves.push(copy);
            if let Some(grave) = grave {
                moves.push(self::copy(core, &key, head.revision, grave, group, &mut self.scratch)?);
            }
        }
        Ok(moves)
    }

    /// Makes sure that there is a segment being cleaned; false: there is none that could be.
    fn choose(&mut self, core: &Core, active: u32) -> Result<bool, StoreError> {
        if self.victim.is_some() {
            return Ok(true);
        }
        let Some((_, oldest)) = core.segments.first_key_value().filter(|(number, _)| **number < active) else {
            return Ok(false);
        };
        let dead = core.index.usage.is_dead(oldest.number);
        let contents = if dead { None } else { oldest.contents()? };
        let entries = Entries::new(contents.map_or(Vec::new(), |contents| contents.entries));
        self.victim = Some(Victim { segment: oldest.clone(), entries, done: dead, cleaned: core.index.cleaned() });
        Ok(true)
    }

    /// The revision that must be compacted durably before the segment that was cleaned can go.
    pub fn awaits(&self) -> Option<Revision> {
        self.victim.as_ref().filter(|victim| victim.done).map(|victim| victim.cleaned)
    }

    /// The segment that can be dropped, now that all copies are durable and known to `usage`.
    pub fn finished(&mut self, usage: &Usage, compacted: Revision) -> Result<Option<u32>, StoreError> {
        let Some(victim) = self.victim.take_if(|victim| victim.done && victim.cleaned <= compacted) else {
            return Ok(None);
        };
        if !usage.is_dead(victim.segment.number) {
            return Err(victim.segment.damage().because("its footer does not list all of its records"));
        }
        Ok(Some(victim.segment.number))
    }
}

fn entry_key(entry: &Entry<'_>) -> Key {
    entry.key.into()
}

fn copy(
    core: &Core,
    key: &Key,
    revision: Revision,
    from: Place,
    group: &mut Buffer,
    scratch: &mut Vec<u8>,
) -> Result<Move, StoreError> {
    let Record { value, previous, expires, .. } = core.read(key, revision, from, scratch)?;
    let deleted = value.is_none();
    let within = group.push_encoded(revision, scratch);
    Ok(Move { key: key.clone(), revision, deleted, previous, expires, from, within })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effort_grows_with_garbage() {
        const MIB: u64 = 1024 * 1024;
        // (garbage, needed) in MiB, group in KiB -> KiB
        for (garbage, needed, group, want) in [
            (1, 0, 32, 0),
            (0, 100, 32, 0),
            (26, 100, 32, 0),
            (27, 100, 32, 32),
            (40, 100, 16, 16 * 4),
            (52, 100, 16, 16 * 8),
            (800, 100, 64, 256),
            (27, 100, 1, 16),
        ] {
            let effort = effort_for(garbage * MIB, needed * MIB, MIB, group * 1024);
            assert_eq!(effort / 1024, want, "{garbage} beside {needed}");
        }
    }
}
