//! What was read back of a resource's history, for all watchers that come from before the window:
//! synchronous, no I/O.
//!
//! A [`Step`] is what one read of the store found: the events after one revision, up to another. [`Past`]
//! holds the steps that watchers used last, at most [`KEEP_BYTES`] of them and none that nobody asked for
//! during [`KEEP_FOR`]. The newest stays until then whatever it weighs: who waited for it is to find it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use store::StoreError;

use super::state::Event;

/// As much as steps may weigh together.
const KEEP_BYTES: usize = 16 << 20;
/// Clients that lost one server are back within seconds; those that come later read anew.
const KEEP_FOR: Duration = Duration::from_secs(10);
/// What an event takes beside the bytes of its objects.
const EVENT_BYTES: usize = 512;

/// A part of a resource's history: every event after one revision, up to and with another.
pub struct Step {
    after: u64,
    upto: u64,
    events: Vec<Event>,
    weight: usize,
}

impl Step {
    /// `events` in their order; those that lie before are left out.
    pub fn new(after: u64, upto: u64, mut events: Vec<Event>) -> Self {
        events.retain(|event| event.revision > after);
        // A state that two events share counts for both: this is a bound.
        let weigh = |event: &Event| {
            let previous = event.previous.as_ref().map_or(0, |item| item.bytes.len());
            EVENT_BYTES + event.item.bytes.len() + previous
        };
        let weight = EVENT_BYTES + events.iter().map(weigh).sum::<usize>();
        Self { after, upto, events, weight }
    }

    pub fn upto(&self) -> u64 {
        self.upto
    }

    /// Whether who has seen all up to `revision` can go on in it.
    pub fn covers(&self, revision: u64) -> bool {
        (self.after..self.upto).contains(&revision)
    }

    /// Events after `revision`, about `limit` at most, and the revision up to which these are all. Several of
    /// one revision stay together: a watcher's position is a revision.
    pub fn events_after(&self, revision: u64, limit: usize) -> (&[Event], u64) {
        let from = self.events.partition_point(|event| event.revision <= revision);
        let rest = &self.events[from..];
        match rest.get(..limit).and_then(<[Event]>::last).map(|last| last.revision) {
            Some(last) => {
                let taken = rest.partition_point(|event| event.revision <= last);
                (&rest[..taken], if taken < rest.len() { last } else { self.upto })
            }
            None => (rest, self.upto),
        }
    }
}

/// The steps that are held.
#[derive(Default)]
pub struct Past {
    /// The newest last.
    steps: Vec<Held>,
    weight: usize,
    /// The store has forgotten what follows on revisions below this one.
    forgotten: u64,
}

struct Held {
    step: Arc<Step>,
    used: Instant,
}

impl Past {
    /// The step to go on in after `revision`, if it is held; the error says that the store has none either.
    pub fn find(&mut self, revision: u64, now: Instant) -> Result<Option<Arc<Step>>, StoreError> {
        match self.steps.iter_mut().find(|held| held.step.covers(revision)) {
            Some(held) => {
                held.used = now;
                Ok(Some(held.step.clone()))
            }
            None if revision < self.forgotten => {
                Err(StoreError::Compacted { requested: revision, compacted: self.forgotten })
            }
            None => Ok(None),
        }
    }

    pub fn add(&mut self, step: Arc<Step>, now: Instant) {
        self.weight += step.weight;
        self.steps.push(Held { step, used: now });
        while self.weight > KEEP_BYTES && self.steps.len() > 1 {
            let others = &self.steps[..self.steps.len() - 1];
            let oldest = others.iter().enumerate().min_by_key(|(_, held)| held.used).map_or(0, |(at, _)| at);
            self.weight -= self.steps.remove(oldest).step.weight;
        }
    }

    /// The store refused to go on after `requested`; what it can go on after, if that is known, is `compacted`.
    pub fn forget(&mut self, requested: u64, compacted: u64) {
        self.forgotten = self.forgotten.max(compacted).max(requested + 1);
    }

    /// When to trim next, if nobody asks until then.
    pub fn trim_due(&self) -> Option<Instant> {
        self.steps.iter().map(|held| held.used + KEEP_FOR).min()
    }

    pub fn trim(&mut self, now: Instant) {
        self.steps.retain(|held| held.used + KEEP_FOR > now);
        self.weight = self.steps.iter().map(|held| held.step.weight).sum();
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::item::{Item, encode, parts};
    use crate::resource::Descriptor;
    use serde_json::json;

    /// An event of an object of about so many bytes.
    fn event(revision: u64, bytes: usize) -> Event {
        let descriptor = Descriptor::new("", "v1", "ConfigMap", "configmaps");
        let data = json!({"a": "x".repeat(bytes)});
        let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}, "data": data});
        let item = Item::new(&descriptor, &parts(&descriptor), "a/x".into(), &encode(&object), revision).unwrap();
        Event::new(revision, Arc::new(item), None, false)
    }

    fn step(after: u64, upto: u64, bytes: usize) -> Arc<Step> {
        Arc::new(Step::new(after, upto, vec![event(upto, bytes)]))
    }

    #[test]
    fn a_step_is_taken_in_parts() {
        let revisions = [3, 4, 4, 4, 7];
        let step = Step::new(3, 9, revisions.into_iter().map(|revision| event(revision, 1)).collect());
        for (after, limit, expected, reached) in [
            (3, 10, vec![4, 4, 4, 7], 9),
            (3, 4, vec![4, 4, 4, 7], 9),
            (3, 1, vec![4, 4, 4], 4),
            (3, 3, vec![4, 4, 4], 4),
            (4, 1, vec![7], 9),
            (5, 10, vec![7], 9),
            (7, 10, vec![], 9),
        ] {
            let (events, upto) = step.events_after(after, limit);
            let seen: Vec<u64> = events.iter().map(|event| event.revision).collect();
            assert_eq!((seen, upto), (expected, reached), "{limit} after {after}");
        }
        let covered: Vec<u64> = (0..12).filter(|revision| step.covers(*revision)).collect();
        assert_eq!(covered, [3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn the_weight_is_bounded_and_what_was_used_last_stays() {
        let (mut past, now) = (Past::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        let held = |past: &Past| past.steps.iter().map(|held| held.step.after).collect::<Vec<u64>>();
        for (at, after) in [(0, 10), (1, 20), (2, 30)] {
            past.add(step(after, after + 10, KEEP_BYTES / 4), later(at));
        }
        assert!(past.find(15, later(3)).unwrap().is_some());
        past.add(step(40, 50, KEEP_BYTES / 4), later(4));
        assert_eq!(held(&past), [10, 30, 40]);
        assert!(past.weight <= KEEP_BYTES);
        assert!(past.find(25, later(4)).unwrap().is_none());
        past.add(step(50, 60, KEEP_BYTES * 2), later(5));
        assert_eq!(held(&past), [50], "the newest stays whatever it weighs");
        past.add(step(60, 70, 1), later(6));
        assert_eq!(held(&past), [60]);
    }

    #[test]
    fn steps_go_when_nobody_asks_for_them() {
        let (mut past, now) = (Past::default(), Instant::now());
        assert_eq!(past.trim_due(), None);
        past.add(step(10, 20, 1), now);
        past.add(step(20, 30, 1), now);
        let half = now + KEEP_FOR / 2;
        assert!(past.find(12, half).unwrap().is_some());
        assert_eq!(past.trim_due(), Some(now + KEEP_FOR));
        past.trim(now + KEEP_FOR);
        assert!(past.find(20, half).unwrap().is_none());
        assert_eq!(past.trim_due(), Some(half + KEEP_FOR));
        past.trim(half + KEEP_FOR);
        assert!(past.is_empty());
        assert_eq!(past.weight, 0);
    }

    #[test]
    fn what_the_store_has_forgotten_is_known() {
        for (requested, compacted, gone) in [(5, 9, 8), (5, 0, 5)] {
            let (mut past, now) = (Past::default(), Instant::now());
            past.add(step(2, 4, 1), now);
            past.forget(requested, compacted);
            assert!(matches!(past.find(gone, now), Err(StoreError::Compacted { requested, .. }) if requested == gone));
            assert!(past.find(gone + 1, now).unwrap().is_none());
            assert!(past.find(3, now).unwrap().is_some(), "held already");
            past.forget(1, 1);
            assert!(past.find(gone, now).is_err(), "it does not come back");
        }
    }
}
