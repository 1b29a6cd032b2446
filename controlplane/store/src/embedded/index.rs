//! Where every readable version lies: the engine's memory. Pure.
//!
//! Two structures, and nothing is said twice:
//! - `history` has every write above the cleaned revision, in order, so a revision finds its place by
//!   arithmetic; each names the version it replaced;
//! - `heads` has every key, with its newest revision and the place of its `base`: the newest version
//!   at or below the cleaned revision, if that is a value.
//!
//! ```text
//! cleaned 5    heads: /a -> head 9, base at (version 4)     /b -> head 7 deleted, no base
//!              history: 6 /b put, 7 /b deleted (replaced 6), 8 /a put (replaced 4), 9 /a put (replaced 8)
//! ```
//!
//! Forgetting the oldest revision makes it its key's base in place of what it replaced; a deletion
//! that still stands takes its key along. `compacted` is what readers may still ask for; `cleaned`
//! follows it in small steps, and waits for readers that walk an older state.
//!
//! Of 150,000 keys without history it is about 20 MiB.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::record::Head;
use super::segment::Place;
use super::usage::Usage;
use crate::{Key, Revision};

#[derive(Debug, Default)]
pub struct Index {
    heads: BTreeMap<Key, Entry>,
    history: VecDeque<Past>,
    pub revision: Revision,
    pub compacted: Revision,
    cleaned: Revision,
    pub usage: Usage,
    /// Bytes of the versions that only history needs.
    superseded: u64,
}

/// Where one key stands.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The newest revision, and in the lowest bit whether it is a deletion.
    packed: u64,
    base: Place,
}

/// One write above the cleaned revision.
#[derive(Debug, Clone)]
pub struct Past {
    pub key: Key,
    pub place: Place,
    pub deleted: bool,
    pub previous: Head,
    /// Bytes of the version it replaced, which is kept as long as this is not forgotten.
    pub replaced: u32,
}

impl Entry {
    fn new(head: Head, base: Place) -> Self {
        Self { packed: head.revision << 1 | u64::from(head.deleted), base }
    }

    fn head(self) -> Head {
        Head { revision: self.packed >> 1, deleted: self.packed & 1 == 1 }
    }
}

impl Index {
    /// An index of nothing, at a revision.
    pub fn new(revision: Revision, compacted: Revision) -> Self {
        Self { revision, compacted, cleaned: compacted, ..Self::default() }
    }

    pub fn head(&self, key: &str) -> Head {
        self.heads.get(key).map_or(Head::NONE, |entry| entry.head())
    }

    /// Keys, those included whose deletion is not forgotten yet.
    pub fn keys(&self) -> u64 {
        self.heads.len() as u64
    }

    pub fn cleaned(&self) -> Revision {
        self.cleaned
    }

    /// The write of `revision`, if it is not cleaned.
    pub fn past(&self, revision: Revision) -> Option<&Past> {
        let above = revision.checked_sub(self.cleaned + 1)?;
        self.history.get(usize::try_from(above).ok()?)
    }

    /// Where the version of `key` that `revision` made lies, a deletion's included.
    pub fn place(&self, key: &str, revision: Revision) -> Option<Place> {
        if revision > self.cleaned {
            return self.past(revision).map(|past| past.place);
        }
        self.heads.get(key).map(|entry| entry.base).filter(|base| base.exists())
    }

    /// The keys from `from` on, each with where it stands.
    pub fn from(&self, from: Bound<&str>) -> impl Iterator<Item = (&Key, Entry)> {
        self.heads.range::<str, _>((from, Bound::Unbounded)).map(|(key, entry)| (key, *entry))
    }

    /// What a key was at revision `at`, which is not below the cleaned one; none: it was not there.
    pub fn visible(&self, entry: Entry, at: Revision) -> Option<(Revision, Place)> {
        let mut version = entry.head();
        while version.revision > at {
            version = self.past(version.revision)?.previous;
        }
        if version.live() == 0 {
            return None;
        }
        if version.revision > self.cleaned {
            return self.past(version.revision).map(|past| (version.revision, past.place));
        }
        entry.base.exists().then_some((version.revision, entry.base))
    }

    /// A new write, one revision above the last.
    pub fn push(&mut self, key: Key, place: Place, deleted: bool, previous: Head) {
        let replaced = match previous.live() {
            0 => 0,
            revision => self.place(&key, revision).map_or(0, |place| place.length),
        };
        self.superseded += u64::from(replaced);
        self.revision += 1;
        let head = Head { revision: self.revision, deleted };
        // The key's first copy is the one that is kept.
        let key = match self.heads.entry(key) {
            Slot::Occupied(mut slot) => {
                slot.get_mut().packed = Entry::new(head, Place::NOWHERE).packed;
                slot.key().clone()
            }
            Slot::Vacant(slot) => {
                let key = slot.key().clone();
                slot.insert(Entry::new(head, Place::NOWHERE));
                key
            }
        };
        self.usage.need(place);
        self.history.push_back(Past { key, place, deleted, previous, replaced });
    }

    /// The revision up to which history is to go, so that what only it needs weighs no more than `bytes`, or
    /// than half of what lives.
    pub fn heavy_until(&self, bytes: u64) -> Revision {
        let limit = bytes.max(self.usage.needed().saturating_sub(self.superseded) / 2);
        let (mut weight, mut revision) = (self.superseded, self.cleaned);
        for past in &self.history {
            if weight <= limit {
                break;
            }
            weight -= u64::from(past.replaced);
            revision += 1;
        }
        revision
    }

    /// The newest version at or below the cleaned revision, while the index is being filled.
    pub fn set_base(&mut self, key: &str, head: Head, place: Place) {
        let entry = Entry::new(head, if head.deleted { Place::NOWHERE } else { place });
        match self.heads.get_mut(key) {
            Some(known) if known.head().revision > head.revision => {}
            Some(known) => *known = entry,
            None => drop(self.heads.insert(key.into(), entry)),
        }
    }

    /// While the index is being filled, after [`Index::set_base`] of all keys: forgets deletions,
    /// which only had to be told from older versions, and counts what is needed.
    pub fn settle_bases(&mut self) {
        let usage = &mut self.usage;
        self.heads.retain(|_, entry| {
            usage.need(entry.base);
            !entry.head().deleted
        });
    }

    /// While the index is being filled: that `key`'s base is older than a deletion nobody needed any
    /// more, and so does not exist.
    pub fn drop_base(&mut self, key: &str) {
        if let Some(entry) = self.heads.remove(key) {
            self.usage.release(entry.base);
        }
    }

    /// Forgets the oldest write above the cleaned revision; false: there is none to forget up to
    /// `limit`.
    pub fn forget(&mut self, limit: Revision) -> bool {
        if self.cleaned >= self.compacted.min(limit) {
            return false;
        }
        let Some(past) = self.history.pop_front() else { return false };
        self.superseded -= u64::from(past.replaced);
        self.cleaned += 1;
        let head = Head { revision: self.cleaned, deleted: past.deleted };
        if self.history.capacity() > 4096 && self.history.len() * 4 < self.history.capacity() {
            self.history.shrink_to(self.history.len() * 2);
        }
        let Some(entry) = self.heads.get_mut(&past.key) else { return true };
        self.usage.release(entry.base);
        if !past.deleted {
            entry.base = past.place;
            return true;
        }
        self.usage.release(past.place);
        entry.base = Place::NOWHERE;
        if entry.head() == head {
            self.heads.remove(&past.key);
        }
        true
    }

    /// Whether the record at `place` is the one that is read for this version.
    pub fn needs(&self, key: &str, revision: Revision, place: Place) -> bool {
        self.place(key, revision) == Some(place)
    }

    /// A record was copied; its old place is needed no more. Ignored if it was not needed any longer.
    pub fn moved(&mut self, key: &str, revision: Revision, from: Place, to: Place) {
        let known = if revision > self.cleaned {
            let above = (revision - self.cleaned - 1) as usize;
            self.history.get_mut(above).map(|past| &mut past.place)
        } else {
            self.heads.get_mut(key).map(|entry| &mut entry.base)
        };
        if let Some(place) = known.filter(|place| **place == from) {
            *place = to;
            self.usage.release(from);
            self.usage.need(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: u32) -> Place {
        Place { segment: 1, offset, length: 10 }
    }

    /// The example of the module's documentation, from revision 3 on.
    fn index() -> Index {
        let mut index = Index::new(3, 3);
        let mut push = |key: &str, deleted: bool, previous: Head| {
            let at = place(index.revision as u32 + 1);
            index.push(key.into(), at, deleted, previous);
        };
        let put = |revision| Head { revision, deleted: false };
        push("/a", false, Head::NONE);
        push("/c", false, Head::NONE);
        push("/b", false, Head::NONE);
        push("/b", true, put(6));
        push("/a", false, put(4));
        push("/a", false, put(8));
        index
    }

    fn seen(index: &Index, at: Revision) -> Vec<(&str, Revision)> {
        let all = index.from(Bound::Unbounded);
        all.filter_map(|(key, entry)| Some((key.as_ref(), index.visible(entry, at)?.0))).collect()
    }

    #[test]
    fn each_revision_sees_its_versions() {
        let mut index = index();
        let want: [(u64, &[(&str, u64)]); 5] = [
            (4, &[("/a", 4)]),
            (6, &[("/a", 4), ("/b", 6), ("/c", 5)]),
            (7, &[("/a", 4), ("/c", 5)]),
            (8, &[("/a", 8), ("/c", 5)]),
            (9, &[("/a", 9), ("/c", 5)]),
        ];
        for cleaned in 3..=9 {
            for (at, want) in want.iter().filter(|(at, _)| *at >= cleaned) {
                assert_eq!(seen(&index, *at), *want, "at {at}, cleaned {cleaned}");
            }
            index.compacted = (cleaned + 1).min(9);
            assert_eq!(index.forget(u64::MAX), cleaned < 9);
        }
        assert_eq!(index.head("/b"), Head::NONE, "a forgotten deletion takes its key along");
        assert_eq!(index.keys(), 2);
    }

    #[test]
    fn forgetting_waits_for_readers() {
        let mut index = index();
        index.compacted = 9;
        assert!(index.forget(4));
        assert!(!index.forget(4));
        assert_eq!(index.cleaned(), 4);
    }

    #[test]
    fn bytes_are_needed_until_they_are_forgotten() {
        let mut index = index();
        assert_eq!(index.usage.needed(), 60);
        index.compacted = 9;
        while index.forget(u64::MAX) {}
        assert_eq!(index.usage.needed(), 20, "/a at 9, /c at 5");
        assert!(index.needs("/a", 9, place(9)) && !index.needs("/a", 8, place(8)));
        assert!(!index.needs("/b", 7, place(7)));
    }

    /// One large object that is written again and again would else fill the disk within minutes.
    #[test]
    fn history_goes_by_weight() {
        let mut index = index();
        assert_eq!(index.superseded, 30, "/a at 4 and at 8, /b at 6");
        // 30 live: half of that may stay.
        for (bytes, until) in [(30, 3), (29, 7), (20, 7), (19, 8), (0, 8)] {
            assert_eq!(index.heavy_until(bytes), until, "{bytes}");
        }
        index.compacted = 8;
        while index.forget(u64::MAX) {}
        assert_eq!((index.superseded, index.heavy_until(0)), (10, 8));
        index.compacted = 9;
        while index.forget(u64::MAX) {}
        assert_eq!(index.superseded, 0);
    }

    #[test]
    fn copies_take_over() {
        let mut index = index();
        index.moved("/a", 8, place(8), place(108));
        assert_eq!(index.place("/a", 8), Some(place(108)));
        index.compacted = 5;
        while index.forget(u64::MAX) {}
        index.moved("/a", 4, place(4), place(104));
        index.moved("/c", 5, place(99), place(105));
        assert_eq!((index.place("/a", 4), index.place("/c", 5)), (Some(place(104)), Some(place(5))));
        assert_eq!(index.usage.needed(), 60);
    }
}
