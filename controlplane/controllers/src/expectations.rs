//! Expectations: what a controller has done and its cache has not shown yet.
//!
//! After a reconcile creates three pods the cache may still show none; a second run must not
//! create three more. The run says what it expects, the pod handlers tick it off, and until all of
//! it is seen (or five minutes have passed, should an event have been lost) the key only reports
//! status. Creations are counted; deletions are remembered by UID, as an update with a deletion
//! timestamp and the final delete both announce the same one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::{Informer, Kind};
use parking_lot::Mutex;

use crate::context::Key;
use crate::meta;

const LOST_AFTER: Duration = Duration::from_secs(5 * 60);

#[derive(Clone, Default)]
pub struct Expectations {
    pending: Arc<Mutex<HashMap<Key, Pending>>>,
}

struct Pending {
    creations: usize,
    deletions: HashSet<String>,
    since: Instant,
}

impl Pending {
    fn is_fulfilled(&self) -> bool {
        self.creations == 0 && self.deletions.is_empty()
    }
}

impl Expectations {
    /// Forgets what was expected of objects that go: one made anew under the name owes nothing, and sees
    /// nothing of what the one before it did. To be called before the changes are enqueued.
    pub fn follow<K: Kind>(&self, informer: &Informer<K>) {
        let expectations = self.clone();
        informer.on_change(move |change| {
            let uid = |object: &Arc<K>| object.meta().uid.clone();
            if change.old.is_some() && change.old.map(uid) != change.new.map(uid) {
                expectations.forget(&meta::key(change.object().meta()));
            }
        });
    }

    /// Whether the cache shows everything the last run did.
    pub fn satisfied(&self, key: &Key) -> bool {
        let mut pending = self.pending.lock();
        match pending.get(key) {
            None => true,
            Some(waiting) if waiting.is_fulfilled() || waiting.since.elapsed() > LOST_AFTER => {
                pending.remove(key);
                true
            }
            Some(_) => false,
        }
    }

    pub fn expect(&self, key: &Key, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let mut pending = self.pending.lock();
        let waiting = pending.entry(key.clone()).or_insert_with(|| Pending {
            creations: 0,
            deletions: HashSet::new(),
            since: Instant::now(),
        });
        waiting.creations += creations;
        waiting.deletions.extend(deletions);
        waiting.since = Instant::now();
    }

    /// A creation was seen, or failed.
    pub fn created(&self, key: &Key) {
        self.creations_off(key, 1);
    }

    pub fn creations_off(&self, key: &Key, count: usize) {
        if let Some(waiting) = self.pending.lock().get_mut(key) {
            waiting.creations = waiting.creations.saturating_sub(count);
        }
    }

    /// A deletion was seen, or failed.
    pub fn deleted(&self, key: &Key, uid: &str) {
        if let Some(waiting) = self.pending.lock().get_mut(key) {
            waiting.deletions.remove(uid);
        }
    }

    pub fn forget(&self, key: &Key) {
        self.pending.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;

    #[test]
    fn an_object_made_anew_expects_nothing() {
        let (informer, expectations) = (Informer::<ReplicaSet>::detached(), Expectations::default());
        expectations.follow(&informer);
        let set = |uid: &str, version: &str| {
            let mut set = ReplicaSet::default();
            set.metadata.namespace = Some("default".into());
            set.metadata.name = Some("web".into());
            set.metadata.uid = Some(uid.into());
            set.metadata.resource_version = Some(version.into());
            set
        };
        let key = ("default".to_owned(), "web".to_owned());
        informer.apply(set("first", "1"));
        for next in ["", "second"] {
            expectations.expect(&key, 1, []);
            informer.apply(set("first", "2"));
            assert!(!expectations.satisfied(&key), "it is still the same");
            match next {
                "" => informer.remove(&key),
                uid => informer.apply(set(uid, "3")),
            }
            assert!(expectations.satisfied(&key));
            informer.apply(set("first", "4"));
        }
    }

    #[test]
    fn satisfied_only_when_all_was_seen() {
        let expectations = Expectations::default();
        let key = ("default".to_owned(), "web".to_owned());
        assert!(expectations.satisfied(&key));
        expectations.expect(&key, 2, ["uid-1".to_owned()]);
        expectations.created(&key);
        assert!(!expectations.satisfied(&key));
        expectations.created(&key);
        expectations.deleted(&key, "another");
        assert!(!expectations.satisfied(&key));
        expectations.deleted(&key, "uid-1");
        expectations.deleted(&key, "uid-1");
        assert!(expectations.satisfied(&key));
        expectations.created(&key);
        assert!(expectations.satisfied(&key), "an unexpected creation is nobody's debt");
    }
}
