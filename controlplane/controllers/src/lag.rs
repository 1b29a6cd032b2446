//! What was written and has not come back through the watch yet.
//!
//! For owners of objects other than pods: a run records the resource version it wrote of each
//! object (or that it deleted it); until the cache shows all of it, the key is not reconciled
//! again. The watch's own event starts the next run. What was written and deleted again while a watch
//! was broken is never shown: after five minutes it is waited for no longer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;

use crate::context::Key;

/// For so long a key waits at most for what it wrote.
pub const LOST_AFTER: Duration = Duration::from_secs(5 * 60);

/// Written name → its version; none when it was deleted.
type Awaited = HashMap<String, Option<u64>>;

#[derive(Clone, Default)]
pub struct Lag {
    /// With the time of the last write.
    awaited: Arc<Mutex<HashMap<Key, (Awaited, Instant)>>>,
}

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Lag {
    /// `owned` was written for `key`. `seen` is what the cache shows of it now.
    pub fn wrote(&self, key: &Key, owned: &ObjectMeta, seen: Option<&ObjectMeta>) {
        let written = version(owned);
        if seen.is_some_and(|seen| version(seen) >= written) {
            return;
        }
        let name = owned.name.clone().unwrap_or_default();
        self.wait_for(key, name, Some(written));
    }

    pub fn deleted(&self, key: &Key, name: &str, still_seen: bool) {
        if still_seen {
            self.wait_for(key, name.to_owned(), None);
        }
    }

    fn wait_for(&self, key: &Key, name: String, version: Option<u64>) {
        let mut all = self.awaited.lock();
        let (awaited, since) = all.entry(key.clone()).or_insert_with(|| (Awaited::new(), Instant::now()));
        awaited.insert(name, version);
        *since = Instant::now();
    }

    /// The cache shows this version of an object of `key`.
    pub fn seen(&self, key: &Key, owned: &ObjectMeta) {
        self.settle(key, owned.name.as_deref().unwrap_or_default(), |awaited| {
            awaited.is_some_and(|awaited| awaited <= version(owned))
        });
    }

    /// The cache shows that an object of `key` is gone.
    pub fn gone(&self, key: &Key, name: &str) {
        self.settle(key, name, |_| true);
    }

    fn settle(&self, key: &Key, name: &str, done: impl Fn(Option<u64>) -> bool) {
        let mut all = self.awaited.lock();
        let Some((awaited, _)) = all.get_mut(key) else { return };
        if awaited.get(name).is_some_and(|awaited| done(*awaited)) {
            awaited.remove(name);
        }
        if awaited.is_empty() {
            all.remove(key);
        }
    }

    pub fn caught_up(&self, key: &Key) -> bool {
        self.caught_up_at(key, Instant::now())
    }

    fn caught_up_at(&self, key: &Key, now: Instant) -> bool {
        let mut all = self.awaited.lock();
        if all.get(key).is_some_and(|(_, since)| now.saturating_duration_since(*since) >= LOST_AFTER) {
            all.remove(key);
        }
        !all.contains_key(key)
    }

    pub fn forget(&self, key: &Key) {
        self.awaited.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, version: u64) -> ObjectMeta {
        ObjectMeta { name: Some(name.into()), resource_version: Some(version.to_string()), ..Default::default() }
    }

    #[test]
    fn caught_up_when_the_cache_shows_every_write() {
        let (lag, key) = (Lag::default(), ("ns".to_owned(), "svc".to_owned()));
        lag.wrote(&key, &object("a", 7), Some(&object("a", 6)));
        lag.wrote(&key, &object("b", 8), Some(&object("b", 8)));
        lag.deleted(&key, "c", true);
        assert!(!lag.caught_up(&key));
        lag.seen(&key, &object("a", 6));
        lag.gone(&key, "c");
        assert!(!lag.caught_up(&key), "only an older version was seen");
        lag.seen(&key, &object("a", 9));
        assert!(lag.caught_up(&key));
    }

    #[test]
    fn what_no_watch_will_ever_show_is_not_waited_for_for_ever() {
        let (lag, key) = (Lag::default(), ("ns".to_owned(), "svc".to_owned()));
        lag.wrote(&key, &object("a", 7), None);
        assert!(!lag.caught_up_at(&key, Instant::now()));
        assert!(lag.caught_up_at(&key, Instant::now() + LOST_AFTER));
    }
}
