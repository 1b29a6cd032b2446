//! The cached objects of one resource and a window of recent events: synchronous, no I/O.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::item::Item;
use super::scope::{Scope, Scopes};

/// Events older than this are forgotten: as long as Kubernetes' own cache keeps them. Who comes from
/// further back gets them from the store, which remembers more (`cache::history`).
const WINDOW: Duration = Duration::from_secs(75);
/// Where superseded objects weigh more than those that live, and than [`LIGHT`]: older than this.
const HEAVY_WINDOW: Duration = Duration::from_secs(10);
const LIGHT: usize = 512 << 10;
/// So many stay, whatever their age, as long as they are not that heavy.
const KEEP_AT_LEAST: usize = 100;
/// More are never kept.
const KEEP_AT_MOST: usize = 16_384;
/// Nor more bytes of superseded objects than this.
const KEEP_BYTES: usize = 32 << 20;
/// Events that may be forgotten wait about a third of their time for others, to go together.
const TOGETHER: u32 = 3;

/// One change of one object.
pub struct Event {
    pub revision: u64,
    /// The object after the change; after a deletion its last state at the deletion's revision.
    pub item: Arc<Item>,
    pub previous: Option<Arc<Item>>,
    pub deleted: bool,
    at: Instant,
    left: OnceLock<Bytes>,
}

impl Event {
    pub fn new(revision: u64, item: Arc<Item>, previous: Option<Arc<Item>>, deleted: bool) -> Self {
        Self { revision, item, previous, deleted, at: Instant::now(), left: OnceLock::new() }
    }

    /// The state before, at this event's revision: what a watcher gets whose selector the object
    /// no longer matches.
    pub fn left(&self) -> Bytes {
        let previous = self.previous.as_ref().unwrap_or(&self.item);
        self.left.get_or_init(|| previous.bytes_at(self.revision)).clone()
    }
}

#[derive(Default)]
pub struct State {
    objects: BTreeMap<Arc<str>, Arc<Item>>,
    /// Of the objects.
    bytes: usize,
    window: VecDeque<Arc<Event>>,
    window_bytes: usize,
    /// Every event after this revision is in the window.
    complete_after: u64,
    pub revision: u64,
    /// Grows with every change of any object, and not with mere progress: what was derived from
    /// the objects is current while this is the same. Never 0 once there was a list.
    pub changed: u64,
    /// Grows when events may have been missed: watchers of an older one end. 0: there was no list yet.
    pub epoch: u64,
    scopes: Scopes,
    /// Nothing comes any more.
    ended: bool,
}

impl State {
    /// Starts anew from a complete list at `revision`.
    pub fn reset(&mut self, items: Vec<Arc<Item>>, revision: u64) {
        if self.ended {
            return;
        }
        self.bytes = items.iter().map(|item| item.bytes.len()).sum();
        self.objects = items.into_iter().map(|item| (item.key.clone(), item)).collect();
        self.window.clear();
        self.window_bytes = 0;
        self.complete_after = revision;
        self.scopes.forget_all(revision);
        self.revision = revision;
        self.changed = self.changed.max(revision) + 1;
        self.epoch += 1;
    }

    /// Every watch ends at its next look.
    pub fn end_watches(&mut self) {
        self.epoch += u64::from(self.epoch > 0);
    }

    /// Holds nothing any more, whatever comes; every watch ends at its next look, also one that only begins.
    pub fn end(&mut self) {
        let scopes = std::mem::take(&mut self.scopes);
        *self = Self { changed: self.changed + 1, scopes, ended: true, ..Self::default() };
    }

    /// Whether a watch that began in this epoch goes on.
    pub fn goes_on(&self, epoch: u64) -> bool {
        self.epoch == epoch && !self.ended
    }

    /// Where a watcher of this namespace, or of all, is woken.
    pub fn enter(&self, namespace: &str) -> Arc<Scope> {
        self.scopes.enter(namespace, self.complete_after, self.revision)
    }

    /// Wakes the watchers of objects with these keys.
    pub fn wake<'a>(&self, keys: impl Iterator<Item = &'a str>) {
        self.scopes.wake(keys.map(|key| key.split_once('/').map_or("", |(namespace, _)| namespace)));
    }

    pub fn wake_all(&self) {
        self.scopes.wake_all();
    }

    pub fn put(&mut self, item: Item) {
        let item = Arc::new(item);
        let previous = self.objects.insert(item.key.clone(), item.clone());
        self.bytes += item.bytes.len();
        self.push(item, previous, false);
    }

    pub fn delete(&mut self, key: &str, revision: u64) {
        let Some(previous) = self.objects.remove(key) else { return };
        let item = Arc::new(previous.deleted_at(revision));
        self.push(item, Some(previous), true);
    }

    pub fn progress(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    fn push(&mut self, item: Arc<Item>, previous: Option<Arc<Item>>, deleted: bool) {
        if let Some(previous) = &previous {
            previous.superseded();
            self.bytes -= previous.bytes.len();
        }
        self.revision = self.revision.max(item.revision);
        self.changed += 1;
        self.window_bytes += item.bytes.len();
        self.scopes.note(item.namespace(), item.revision);
        self.window.push_back(Arc::new(Event::new(item.revision, item, previous, deleted)));
        self.trim(Instant::now());
    }

    /// Whether what was superseded weighs more than it may for long.
    fn is_heavy(&self) -> bool {
        self.window_bytes > self.bytes.clamp(LIGHT, KEEP_BYTES)
    }

    /// Whether the oldest event stays whatever its age.
    fn keeps_all(&self) -> bool {
        self.window.len() <= KEEP_AT_LEAST && !self.is_heavy()
    }

    /// How old an event gets.
    fn window(&self) -> Duration {
        if self.is_heavy() { HEAVY_WINDOW } else { WINDOW }
    }

    /// When to trim next, if nothing is written until then.
    pub fn trim_due(&self) -> Option<Instant> {
        let oldest = self.window.front().filter(|_| !self.keeps_all())?;
        Some(oldest.at + self.window() + self.window() / TOGETHER)
    }

    pub fn trim(&mut self, now: Instant) {
        while let Some(oldest) = self.window.front() {
            let old = now.duration_since(oldest.at) > self.window() || self.window_bytes > KEEP_BYTES;
            if self.keeps_all() || !(old || self.window.len() > KEEP_AT_MOST) {
                return;
            }
            self.window_bytes -= oldest.item.bytes.len();
            self.complete_after = oldest.revision;
            self.scopes.forget(oldest.item.namespace(), oldest.revision);
            self.window.pop_front();
        }
    }

    pub fn get(&self, key: &str) -> Option<&Arc<Item>> {
        self.objects.get(key)
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The oldest revision a watch may start after.
    pub fn oldest(&self) -> u64 {
        self.complete_after
    }

    /// Objects in key order, from `namespace` only unless it is empty.
    pub fn scan<'a>(&'a self, namespace: &str) -> Box<dyn Iterator<Item = &'a Arc<Item>> + 'a> {
        if namespace.is_empty() || self.objects.is_empty() {
            return Box::new(self.objects.values());
        }
        // '0' follows '/' in ASCII: the end of all keys that start with "namespace/".
        let (from, to) = (format!("{namespace}/"), format!("{namespace}0"));
        let range = (Bound::Included(from.as_str()), Bound::Excluded(to.as_str()));
        Box::new(self.objects.range::<str, _>(range).map(|(_, item)| item))
    }

    /// Events after `revision`, about `limit` at most, some of other scopes among them; none if some of `scope`
    /// are no longer held.
    pub fn events_after(&self, revision: u64, scope: &Scope, limit: usize) -> Option<Vec<Arc<Event>>> {
        if revision < scope.forgotten() {
            return None;
        }
        if revision >= scope.newest() {
            return Some(Vec::new());
        }
        let from = self.window.partition_point(|event| event.revision <= revision);
        let mut events: Vec<Arc<Event>> = self.window.range(from..).take(limit).cloned().collect();
        // Several events of one revision stay together: a watcher's position is a revision.
        let mut next = from + events.len();
        while let (Some(last), Some(event)) = (events.last(), self.window.get(next)) {
            if last.revision != event.revision {
                break;
            }
            events.push(event.clone());
            next += 1;
        }
        Some(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::item::encode;
    use crate::resource::Descriptor;
    use serde_json::json;

    fn item(key: &str, revision: u64) -> Item {
        let descriptor = Descriptor::new("", "v1", "Pod", "pods");
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": key}});
        Item::new(&descriptor, &crate::cache::item::parts(&descriptor), key.into(), &encode(&object), revision).unwrap()
    }

    #[test]
    fn events_follow_a_revision_in_order() {
        let mut state = State::default();
        state.reset(vec![Arc::new(item("a/x", 3))], 5);
        state.put(item("a/x", 6));
        state.put(item("b/y", 7));
        state.delete("a/x", 9);
        let all = state.enter("");
        assert!(state.events_after(4, &all, 10).is_none(), "before the list");
        let events = state.events_after(5, &all, 10).unwrap();
        let seen: Vec<_> = events.iter().map(|e| (e.revision, e.deleted, e.previous.is_some())).collect();
        assert_eq!(seen, [(6, false, true), (7, false, false), (9, true, true)]);
        assert_eq!(events[2].item.decode()["metadata"]["resourceVersion"], "9");
        assert_eq!(state.events_after(9, &all, 10).unwrap().len(), 0);
        assert_eq!(state.revision, 9);
    }

    /// A lease that ends takes many keys along at one revision.
    #[test]
    fn what_is_forgotten_of_one_namespace_is_not_missed_in_another() {
        let mut state = State::default();
        state.reset(Vec::new(), 0);
        let [all, a, b, quiet] = ["", "a", "b", "quiet"].map(|namespace| state.enter(namespace));
        state.put(item("a/x", 1));
        state.put(item("b/x", 1));
        (2..=KEEP_AT_MOST as u64).for_each(|revision| state.put(item("c/x", revision)));
        assert_eq!(state.oldest(), 1, "one went");
        assert!(state.events_after(0, &all, 1).is_none() && state.events_after(0, &a, 1).is_none());
        assert_eq!(&*state.events_after(0, &b, 1).unwrap()[0].item.key, "b/x");
        (1..KEEP_AT_MOST as u64).for_each(|more| state.put(item("c/x", KEEP_AT_MOST as u64 + more)));
        assert!(state.events_after(0, &b, 1).is_none());
        assert!(state.events_after(0, &quiet, 1).is_some(), "however far it is behind");
        state.reset(Vec::new(), 100_000);
        assert!(state.events_after(99_999, &quiet, 1).is_none());
    }

    #[test]
    fn nothing_comes_to_a_state_that_has_ended() {
        let mut state = State::default();
        state.reset(vec![Arc::new(item("a/x", 3))], 5);
        assert!(state.goes_on(1));
        state.end();
        assert!(!state.goes_on(1) && !state.goes_on(0) && state.is_empty());
        state.reset(vec![Arc::new(item("a/x", 3))], 7);
        assert!(state.is_empty() && state.epoch == 0);
    }

    #[test]
    fn scans_stay_in_their_namespace() {
        let mut state = State::default();
        let keys = ["a-b/x", "a/x", "a/y", "b/x"];
        state.reset(keys.iter().map(|key| Arc::new(item(key, 1))).collect(), 1);
        let seen: Vec<_> = state.scan("a").map(|item| item.key.to_string()).collect();
        assert_eq!(seen, ["a/x", "a/y"]);
        assert_eq!(state.scan("").count(), 4);
    }

    #[test]
    fn the_window_is_bounded() {
        let mut state = State::default();
        state.reset(Vec::new(), 0);
        for revision in 1..=(KEEP_AT_MOST as u64 + 10) {
            state.put(item("a/x", revision));
        }
        assert_eq!(state.oldest(), 10);
        let all = state.enter("");
        assert!(state.events_after(9, &all, 1).is_none());
        assert_eq!(state.events_after(10, &all, 1).unwrap()[0].revision, 11);
    }

    #[test]
    fn old_events_go_without_a_write() {
        let mut state = State::default();
        state.reset(Vec::new(), 0);
        let begun = Instant::now();
        assert_eq!(state.trim_due(), None);
        (1..=KEEP_AT_LEAST as u64 + 10).for_each(|revision| state.put(item("a/x", revision)));
        let due = state.trim_due().unwrap();
        assert!(due >= begun + WINDOW);
        state.trim(begun + WINDOW);
        assert_eq!(state.oldest(), 0, "not before their time");
        state.trim(due);
        assert_eq!((state.oldest(), state.trim_due()), (10, None));
    }

    #[test]
    fn what_outweighs_the_living_goes_sooner() {
        let mut state = State::default();
        state.reset(Vec::new(), 0);
        let begun = Instant::now();
        let mut revision = 0;
        while state.window_bytes <= LIGHT {
            revision += 1;
            state.put(item("a/x", revision));
        }
        state.trim(begun + HEAVY_WINDOW);
        assert_eq!(state.oldest(), 0, "who is a little late still finds them");
        let due = state.trim_due().unwrap();
        assert!(due < begun + WINDOW);
        state.trim(due);
        assert!(state.window_bytes <= LIGHT && state.window_bytes > LIGHT - 1024, "{}", state.window_bytes);

        let living = (0..10_000).map(|number| Arc::new(item(&format!("a/{number}"), revision)));
        state.reset(living.collect(), revision);
        assert!(state.bytes > LIGHT + 1024, "{}", state.bytes);
        let (mut bytes, begun) = (0, Instant::now());
        while bytes <= LIGHT {
            revision += 1;
            state.put(item("a/1", revision));
            bytes = state.window_bytes;
        }
        state.trim(begun + HEAVY_WINDOW * 2);
        assert_eq!(state.window_bytes, bytes, "lighter than what lives");
    }

    /// A hundred states of one large object would outweigh all else, for as long as nobody writes.
    #[test]
    fn a_few_large_states_go_too() {
        let mut state = State::default();
        state.reset(Vec::new(), 0);
        let descriptor = Descriptor::new("", "v1", "Secret", "secrets");
        let parts = crate::cache::item::parts(&descriptor);
        for revision in 1..=20 {
            let data = json!({"a": "x".repeat(LIGHT / 4)});
            let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "data": data});
            state.put(Item::new(&descriptor, &parts, "a/x".into(), &encode(&object), revision).unwrap());
        }
        assert_eq!(state.oldest(), 0, "not before their time");
        let due = state.trim_due().unwrap();
        state.trim(due);
        assert!(state.window_bytes <= LIGHT, "{}", state.window_bytes);
        assert_eq!(state.trim_due(), None, "what is left may stay");
    }

    #[test]
    fn only_the_latest_state_is_kept_decoded() {
        let mut state = State::default();
        state.reset(vec![Arc::new(item("a/x", 1))], 1);
        let decoded = Arc::downgrade(&state.get("a/x").unwrap().shared());
        assert!(decoded.upgrade().is_some());
        state.put(item("a/x", 2));
        assert!(decoded.upgrade().is_none());
    }
}
