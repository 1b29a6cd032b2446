//! From segments to the index.
//!
//! The log's order decides only between copies of the same record; between versions it is the
//! revision. First come the bases: of each key the newest version at or below the compacted
//! revision. Then history, which must be whole: every revision above the compacted one is there and
//! names the version before it. A base that its key's history does not know is a leftover: older
//! than a deletion that nobody needed any more when the key was made again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::damage::Damage;
use super::footer::{Builder, Entries};
use super::index::{Index, Past};
use super::keeper::Sealing;
use super::manifest::Manifest;
use super::plan::Expiry;
use super::record::Head;
use super::segment::{Contents, Place, Segment};
use crate::{Key, Revision, StoreError};

/// What is known of a store once it is read.
pub struct Loaded {
    pub index: Index,
    pub segments: BTreeMap<u32, Arc<Segment>>,
    /// Where the log goes on, with what is there already.
    pub active: Arc<Segment>,
    pub contents: Option<(Builder, Contents)>,
    /// Prepared, but not used yet.
    pub next: Option<Arc<Segment>>,
    pub unsealed: Vec<Sealing>,
    pub expiry: Expiry,
}

impl Loaded {
    /// A store without a write. Its revision is etcd's first.
    pub fn empty(first: Arc<Segment>) -> Self {
        Self {
            index: Index::new(1, 1),
            segments: BTreeMap::from([(first.number, first.clone())]),
            active: first,
            contents: None,
            next: None,
            unsealed: Vec::new(),
            expiry: Expiry::new(),
        }
    }
}

/// Reads all of `segments`, which follow one another.
pub fn load(segments: &[Arc<Segment>], manifest: &Manifest, dir: &Path) -> Result<Loaded, StoreError> {
    let mut all = Vec::new();
    for segment in segments {
        all.push((segment.clone(), segment.contents()?));
    }
    check_order(&all, manifest, dir)?;
    let used = all.iter().rposition(|(_, contents)| contents.is_some());
    let next = all.get(used.map_or(1, |used| used + 1)).map(|(segment, _)| segment.clone());
    let Some(used) = used else {
        let Some((first, _)) = all.first() else { return Err(Damage::of(dir).because("it has no segments")) };
        return Ok(Loaded { next, ..Loaded::empty(first.clone()) });
    };
    all.truncate(used + 1);
    // A group that can be read may not be durable if its writer was killed before its sync, or if that failed.
    if let (segment, Some(contents)) = &all[used] {
        segment.write_again(contents.newest, contents.end)?;
    }
    let mut reading = Reading::new(&all);
    let mut loaded = Vec::new();
    for (segment, contents) in all {
        if let Some(mut contents) = contents {
            let entries = Entries::new(std::mem::take(&mut contents.entries));
            loaded.push((segment.clone(), reading.segment(&segment, entries, contents.count)?, contents));
        }
    }
    let (index, expiry) = reading.finish(dir)?;
    let segments = loaded.iter().map(|(segment, ..)| (segment.number, segment.clone())).collect();
    let Some((active, entries, contents)) = loaded.pop() else {
        return Err(Damage::of(dir).because("it has no segments"));
    };
    let unsealed = loaded.into_iter().filter(|(.., contents)| !contents.sealed);
    let unsealed = unsealed.map(|(segment, entries, contents)| Sealing {
        segment,
        count: entries.count(),
        entries: entries.into_bytes(),
        first: contents.first,
        end: contents.end,
        state: contents.state(),
    });
    let unsealed = unsealed.collect();
    Ok(Loaded { index, segments, active, contents: Some((entries, contents)), next, unsealed, expiry })
}

/// Segments follow one another without a gap, and reach as far as the manifest knows.
fn check_order(all: &[(Arc<Segment>, Option<Contents>)], manifest: &Manifest, dir: &Path) -> Result<(), StoreError> {
    let mut before: Option<(&Segment, u64)> = None;
    let mut empty: Option<&Segment> = None;
    for (segment, contents) in all {
        let Some(contents) = contents else {
            empty = empty.or(Some(segment));
            continue;
        };
        if let Some(empty) = empty {
            return Err(empty.damage().because("it holds nothing that can be read, though later segments do"));
        }
        if let Some((before, last)) = before.filter(|(_, last)| contents.first != last + 1) {
            let detail = format!("it ends with group {last}, the next segment begins with {}", contents.first);
            return Err(before.damage().because(detail));
        }
        before = Some((segment, contents.last));
    }
    match before {
        Some((segment, last)) if last < manifest.sequence => {
            Err(segment.damage().because(format!("it ends with group {last} of {}", manifest.sequence)))
        }
        None if manifest.sequence > 0 => {
            let path = empty.map_or(dir, Segment::path);
            Err(Damage::of(path).because("it holds nothing that can be read"))
        }
        _ => Ok(()),
    }
}

/// The index in the making.
struct Reading {
    index: Index,
    /// Writes above the compacted revision, by revision.
    history: Vec<Option<Past>>,
    expiring: Vec<(u64, Revision, Key)>,
}

impl Reading {
    fn new(all: &[(Arc<Segment>, Option<Contents>)]) -> Self {
        let newest = all.last().and_then(|(_, contents)| contents.as_ref());
        let (revision, compacted) = newest.map_or((1, 1), |contents| (contents.revision, contents.compacted));
        let history = vec![None; revision.saturating_sub(compacted) as usize];
        Self { index: Index::new(compacted, compacted), history, expiring: Vec::new() }
    }

    fn segment(&mut self, segment: &Segment, mut entries: Entries, count: u32) -> Result<Builder, StoreError> {
        while let Some(entry) = entries.next().map_err(|detail| segment.damage().because(detail))? {
            let place = Place { segment: segment.number, offset: entry.offset, length: entry.length };
            self.index.usage.wrote(place.segment, u64::from(place.length));
            if entry.expires != 0 {
                self.expiring.push((entry.expires, entry.revision, entry.key.into()));
            }
            let Some(above) = entry.revision.checked_sub(self.index.compacted + 1) else {
                let head = Head { revision: entry.revision, deleted: entry.deleted };
                self.index.set_base(entry.key, head, place);
                continue;
            };
            let Some(past) = self.history.get_mut(above as usize) else {
                let detail = format!("it has revision {}, the store ends before", entry.revision);
                return Err(segment.damage().because(detail));
            };
            // What it replaced is weighed when the index takes it in.
            let (key, replaced) = (entry.key.into(), 0);
            *past = Some(Past { key, place, deleted: entry.deleted, previous: entry.previous, replaced });
        }
        Ok(Builder::after(entries, count))
    }

    fn finish(mut self, dir: &Path) -> Result<(Index, Expiry), StoreError> {
        self.index.settle_bases();
        for past in self.history {
            let revision = self.index.revision + 1;
            let missing = |revision| Damage::of(dir).because(format!("revision {revision} is in none of its segments"));
            let past = past.ok_or_else(|| missing(revision))?;
            let head = self.index.head(&past.key);
            if head != past.previous {
                if past.previous.live() != 0 || head.revision > self.index.compacted {
                    return Err(missing(past.previous.revision));
                }
                self.index.drop_base(&past.key);
            }
            self.index.push(past.key, past.place, past.deleted, past.previous);
        }
        let live = |revision, key: &Key| self.index.head(key) == Head { revision, deleted: false };
        let expiry = self.expiring.into_iter().filter(|(_, revision, key)| live(*revision, key));
        let expiry = expiry.map(|(expires, revision, key)| ((expires, revision), key)).collect();
        Ok((self.index, expiry))
    }
}
