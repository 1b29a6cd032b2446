//! Who is woken by a change: those who watch its namespace, and those who watch all of them.
//!
//! Of thousands of clients most watch one namespace. A change wakes those whom it concerns, and what only moves
//! the revision on wakes nobody. So a watcher sleeps while the window goes on without it, and its position stays
//! behind. What that means for it is known all the same: a scope notes its newest event, so that the rest of the
//! window need not be looked through, and the newest of those that the window has forgotten.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch as signal;

/// The watchers of one namespace, or of all.
pub struct Scope {
    newest: AtomicU64,
    forgotten: AtomicU64,
    changed: signal::Sender<()>,
}

impl Scope {
    /// No event of this scope is after this revision.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// Every event of this scope after this revision is in the window.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }

    pub fn subscribe(&self) -> signal::Receiver<()> {
        self.changed.subscribe()
    }

    fn note(&self, revision: u64) {
        self.newest.fetch_max(revision, Ordering::AcqRel);
    }

    fn forget(&self, revision: u64) {
        self.forgotten.fetch_max(revision, Ordering::AcqRel);
    }
}

/// The scopes that somebody is in, by namespace; under an empty name that of all.
#[derive(Default)]
pub struct Scopes(Mutex<HashMap<Box<str>, Weak<Scope>>>);

impl Scopes {
    /// The scope of a namespace. Nobody noted what a new one has lost up to `oldest`, and had up to `newest`.
    pub fn enter(&self, namespace: &str, oldest: u64, newest: u64) -> Arc<Scope> {
        let mut scopes = self.0.lock();
        if let Some(scope) = scopes.get(namespace).and_then(Weak::upgrade) {
            return scope;
        }
        scopes.retain(|_, scope| scope.strong_count() > 0);
        let (newest, forgotten) = (AtomicU64::new(newest), AtomicU64::new(oldest));
        let scope = Arc::new(Scope { newest, forgotten, changed: signal::Sender::new(()) });
        scopes.insert(namespace.into(), Arc::downgrade(&scope));
        scope
    }

    /// An event of this namespace has come into the window.
    pub fn note(&self, namespace: &str, revision: u64) {
        self.concerned(namespace).iter().flatten().for_each(|scope| scope.note(revision));
    }

    /// An event of this namespace has left the window.
    pub fn forget(&self, namespace: &str, revision: u64) {
        self.concerned(namespace).iter().flatten().for_each(|scope| scope.forget(revision));
    }

    /// The scopes that a namespace is part of, where somebody is in them.
    fn concerned(&self, namespace: &str) -> [Option<Arc<Scope>>; 2] {
        let scopes = self.0.lock();
        ["", namespace].map(|name| scopes.get(name).and_then(Weak::upgrade))
    }

    /// The window begins anew after a revision.
    pub fn forget_all(&self, revision: u64) {
        self.0.lock().values().filter_map(Weak::upgrade).for_each(|scope| scope.forget(revision));
    }

    /// Wakes who watches one of these namespaces.
    pub fn wake<'a>(&self, namespaces: impl Iterator<Item = &'a str>) {
        let mut names: HashSet<&str> = namespaces.collect();
        if names.is_empty() {
            return;
        }
        names.insert("");
        let concerned: Vec<Arc<Scope>> = {
            let scopes = self.0.lock();
            names.into_iter().filter_map(|name| scopes.get(name)?.upgrade()).collect()
        };
        concerned.iter().for_each(|scope| scope.changed.send_replace(()));
    }

    pub fn wake_all(&self) {
        let all: Vec<Arc<Scope>> = self.0.lock().values().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|scope| scope.changed.send_replace(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of ten thousand clients in a thousand namespaces ten have to do with a change.
    #[test]
    fn a_change_wakes_those_whom_it_concerns() {
        let scopes = Scopes::default();
        let held = ["", "a", "b", "c"].map(|namespace| scopes.enter(namespace, 5, 5));
        let mut receivers: Vec<_> = held.iter().map(|scope| scope.subscribe()).collect();
        let mut woken = || -> Vec<bool> {
            let look = |receiver: &mut signal::Receiver<()>| {
                let changed = receiver.has_changed().unwrap();
                receiver.mark_unchanged();
                changed
            };
            receivers.iter_mut().map(look).collect()
        };
        scopes.wake(std::iter::empty());
        assert_eq!(woken(), [false; 4]);
        scopes.wake(["a", "c", "a", "elsewhere"].into_iter());
        assert_eq!(woken(), [true, true, false, true]);
        scopes.wake_all();
        assert_eq!(woken(), [true; 4]);
    }

    #[test]
    fn what_comes_and_goes_is_noted_where_somebody_watches() {
        let scopes = Scopes::default();
        let (all, a) = (scopes.enter("", 5, 6), scopes.enter("a", 5, 6));
        scopes.note("b", 10);
        assert_eq!((all.newest(), a.newest()), (10, 6));
        scopes.note("a", 11);
        assert_eq!((all.newest(), a.newest()), (11, 11));
        scopes.forget("b", 7);
        assert_eq!((all.forgotten(), a.forgotten()), (7, 5));
        scopes.forget("a", 8);
        assert_eq!((all.forgotten(), a.forgotten()), (8, 8));
        assert!(Arc::ptr_eq(&a, &scopes.enter("a", 9, 11)), "one for all who are in it");
        drop(a);
        assert_eq!(scopes.enter("a", 9, 11).forgotten(), 9, "nobody noted what went meanwhile");
        assert_eq!(scopes.0.lock().len(), 2);
        scopes.forget_all(20);
        assert_eq!(all.forgotten(), 20);
    }
}
