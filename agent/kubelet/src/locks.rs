//! Locks by name, for calls that must not meet: of one volume, of one claim, of one pod.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Lock = tokio::sync::Mutex<()>;

/// A lock for each name, there for as long as somebody holds it or waits for it.
#[derive(Default)]
pub struct Locks {
    known: Mutex<HashMap<String, Weak<Lock>>>,
}

impl Locks {
    pub async fn hold(&self, name: &str) -> OwnedMutexGuard<()> {
        self.of(name).lock_owned().await
    }

    /// In one order for everybody, so that two who want the same do not wait for each other.
    pub async fn hold_all(&self, mut names: Vec<String>) -> Vec<OwnedMutexGuard<()>> {
        names.sort();
        names.dedup();
        let mut held = Vec::with_capacity(names.len());
        for name in names {
            held.push(self.hold(&name).await);
        }
        held
    }

    fn of(&self, name: &str) -> Arc<Lock> {
        let mut known = self.known.lock();
        known.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = known.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::<Lock>::default();
        known.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_holder_of_a_name_at_a_time() {
        let locks = Locks::default();
        let first = locks.hold("a").await;
        let all = locks.hold_all(vec!["b".to_owned(), "b".to_owned()]).await;
        assert!(locks.hold("a").now_or_never().is_none() && locks.hold("b").now_or_never().is_none());
        drop((first, all));
        assert!(locks.hold_all(vec!["b".to_owned(), "a".to_owned()]).now_or_never().is_some());
        drop(locks.hold("c").await);
        assert_eq!(locks.known.lock().len(), 1, "what nobody holds is forgotten with the next");
    }
}
