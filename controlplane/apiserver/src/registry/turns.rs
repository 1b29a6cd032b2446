//! Writers that meet at one object take turns.
//!
//! Without turns each of N writers that change the same object computes its change N times, and the
//! unlucky one never gets through. The first attempt of a write takes no turn unless others do already:
//! it would only conflict; else only a conflict leads here. Who has finished leaves what it wrote to
//! the next, who so needs not wait for the cache.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use super::Current;

type Place = Arc<tokio::sync::Mutex<Option<Current>>>;

/// The objects that are being fought over, by storage key.
#[derive(Default, Clone)]
pub struct Turns {
    places: Arc<Mutex<HashMap<String, Place>>>,
}

/// The right to write next; ends when dropped.
pub struct Turn {
    turns: Turns,
    key: String,
    held: Option<OwnedMutexGuard<Option<Current>>>,
}

impl Turns {
    /// Whether writers of this object take turns now.
    pub fn contested(&self, key: &str) -> bool {
        let places = self.places.lock();
        !places.is_empty() && places.contains_key(key)
    }

    /// Waits for this writer's turn, in order of arrival.
    pub async fn take(&self, key: &str) -> Turn {
        let place = self.places.lock().entry(key.to_owned()).or_default().clone();
        // Made first: whoever gives up waiting tidies up as well.
        let mut turn = Turn { turns: self.clone(), key: key.to_owned(), held: None };
        turn.held = Some(place.lock_owned().await);
        turn
    }
}

impl Turn {
    /// What the writer before left.
    pub fn left(&mut self) -> Option<Current> {
        self.held.as_mut().and_then(|held| held.take())
    }

    /// The same, if it is newer than `seen`.
    pub fn newer_than(&mut self, seen: Option<Current>) -> Option<Current> {
        match (seen, self.left()) {
            (Some(seen), Some(left)) if left.revision > seen.revision => Some(left),
            (seen, _) => seen,
        }
    }

    pub fn leave(&mut self, current: Current) {
        if let Some(held) = &mut self.held {
            **held = Some(current);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut places = self.turns.places.lock();
        self.held = None;
        // One reference is the map's own: nobody waits any more.
        if places.get(&self.key).is_some_and(|place| Arc::strong_count(place) == 1) {
            places.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn writers_take_turns_and_leave_nothing_behind() {
        let turns = Turns::default();
        let current = |revision| Current { value: json!({}), revision };
        let mut first = turns.take("/a").await;
        assert_eq!(first.newer_than(Some(current(3))).map(|c| c.revision), Some(3));
        let (waiting, turns_of) = (Arc::new(Mutex::new(Vec::new())), turns.clone());
        let seen = waiting.clone();
        let second = tokio::spawn(async move {
            let mut turn = turns_of.take("/a").await;
            seen.lock().push(turn.newer_than(Some(current(3))).map(|c| c.revision));
        });
        // The second one runs until it has to wait.
        tokio::task::yield_now().await;
        drop(turns.take("/b").await);
        assert!(turns.contested("/a") && !turns.contested("/b"));
        first.leave(current(5));
        assert!(waiting.lock().is_empty());
        drop(first);
        second.await.unwrap();
        assert_eq!(*waiting.lock(), [Some(5)]);
        assert!(turns.places.lock().is_empty());
    }
}
