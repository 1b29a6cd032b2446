//! A queue of keys with Kubernetes' work queue semantics.
//!
//! A key waits at most once; while one run of a key is under way a new request for it is held
//! back until that run ends. Failures come back after an exponential delay per key
//! (5 ms doubling to 1000 s, as client-go's default controller rate limiter).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Supervisor;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_secs(1000);

/// What one reconcile run asks of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more until the key is added again.
    Done,
    /// Run again after this long, whatever else happens.
    After(Duration),
    /// Run again after the key's back-off delay.
    Retry,
}

/// Keys waiting for a worker. Cloning shares the queue.
pub struct WorkQueue<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, or added while running.
    dirty: HashSet<K>,
    running: HashSet<K>,
    /// The earliest time a delayed key becomes ready; later requests only move it earlier.
    delayed: HashMap<K, Due>,
    /// The same by time: looking for what is due costs nothing for what is not.
    by_time: BTreeMap<Due, K>,
    /// Delays asked for so far.
    delays: u64,
    failures: HashMap<K, u32>,
}

/// A moment, and which delay it is of: two keys may be due at the same moment.
type Due = (Instant, u64);

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: Eq + Hash + Clone + Debug + Send + Sync + 'static> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq + Hash + Clone + Debug + Send + Sync + 'static> WorkQueue<K> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            running: HashSet::new(),
            delayed: HashMap::new(),
            by_time: BTreeMap::new(),
            delays: 0,
            failures: HashMap::new(),
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Makes `key` ready now, unless it is waiting already.
    pub fn add(&self, key: K) {
        {
            let mut state = self.inner.state.lock();
            state.undelay(&key);
            state.make_ready(key);
        }
        self.inner.changed.notify_one();
    }

    /// Makes `key` ready after `delay`, or earlier if it was already due earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.inner.state.lock().delay(key, Instant::now() + delay);
        self.inner.changed.notify_one();
    }

    /// The next key to work on. The caller owns it until [`WorkQueue::finish`].
    /// Workers started by [`WorkQueue::run`] do both.
    pub async fn next(&self) -> K {
        loop {
            let changed = self.inner.changed.notified();
            let due = {
                let mut state = self.inner.state.lock();
                let due = state.promote_due(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.running.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.inner.changed.notify_one();
                    }
                    return key;
                }
                due
            };
            match due {
                Some(due) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Ends the run of `key` that [`WorkQueue::next`] began.
    pub fn finish(&self, key: &K, outcome: Outcome) {
        let delay = {
            let mut state = self.inner.state.lock();
            state.running.remove(key);
            if state.dirty.remove(key) {
                state.make_ready(key.clone());
            }
            match outcome {
                Outcome::Done => {
                    state.failures.remove(key);
                    None
                }
                Outcome::After(delay) => {
                    state.failures.remove(key);
                    Some(delay)
                }
                Outcome::Retry => {
                    let failures = state.failures.entry(key.clone()).or_insert(0);
                    let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(20)).min(LONGEST_RETRY);
                    *failures += 1;
                    Some(delay)
                }
            }
        };
        match delay {
            Some(delay) => self.add_after(key.clone(), delay),
            None => self.inner.changed.notify_one(),
        }
    }

    /// Starts `workers` tasks that run `reconcile` for each key, one run per key at a time.
    pub fn run<F, Fut>(&self, supervisor: &Supervisor, workers: usize, reconcile: F)
    where
        F: Fn(K) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        for worker in 0..workers {
            let queue = self.clone();
            let reconcile = reconcile.clone();
            supervisor.spawn(format_args!("worker-{worker}"), async move {
                loop {
                    let key = queue.next().await;
                    // A reconcile that panics ends this run, not the worker, and is tried again.
                    let run = futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(reconcile(key.clone())));
                    let outcome = run.await.unwrap_or_else(|_| {
                        tracing::error!(?key, "reconcile panicked; it will be retried");
                        Outcome::Retry
                    });
                    queue.finish(&key, outcome);
                }
            });
        }
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    fn make_ready(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.running.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn delay(&mut self, key: K, until: Instant) {
        if self.delayed.get(&key).is_some_and(|(at, _)| *at <= until) {
            return;
        }
        self.undelay(&key);
        self.delays += 1;
        let due = (until, self.delays);
        self.delayed.insert(key.clone(), due);
        self.by_time.insert(due, key);
    }

    fn undelay(&mut self, key: &K) {
        if let Some(due) = self.delayed.remove(key) {
            self.by_time.remove(&due);
        }
    }

    /// Moves due keys to `ready`; returns when the next delayed key is due.
    fn promote_due(&mut self, now: Instant) -> Option<Instant> {
        while let Some(first) = self.by_time.first_entry() {
            let (at, _) = *first.key();
            if at > now {
                return Some(at);
            }
            let key = first.remove();
            self.delayed.remove(&key);
            self.make_ready(key);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_runs_once_and_again_after_its_run() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        let key = queue.next().await;
        queue.add("a");
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err(), "one run per key");
        queue.finish(&key, Outcome::Done);
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_later_each_time() {
        let queue = WorkQueue::new();
        queue.add(1);
        let mut waits = Vec::new();
        for _ in 0..4 {
            let before = Instant::now();
            let key = queue.next().await;
            waits.push(before.elapsed());
            queue.finish(&key, Outcome::Retry);
        }
        assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_only_moves_earlier() {
        let queue = WorkQueue::new();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(1));
        queue.add_after("a", Duration::from_secs(20));
        let before = Instant::now();
        queue.next().await;
        assert!(before.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_keys_are_noted_once_however_often_they_are_moved() {
        let queue = WorkQueue::new();
        for seconds in [30, 20, 10, 40] {
            queue.add_after("a", Duration::from_secs(seconds));
            queue.add_after("b", Duration::from_secs(seconds + 1));
        }
        let noted = |queue: &WorkQueue<&str>| {
            let state = queue.inner.state.lock();
            (state.delayed.len(), state.by_time.len())
        };
        assert_eq!(noted(&queue), (2, 2));
        let before = Instant::now();
        assert_eq!((queue.next().await, before.elapsed().as_secs()), ("a", 10));
        queue.add("b");
        assert_eq!((queue.next().await, before.elapsed().as_secs()), ("b", 10));
        assert_eq!(noted(&queue), (0, 0));
    }
}
