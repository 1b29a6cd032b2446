//! Hands committed events to watchers, in order, with bounded memory per watcher.
//!
//! Key types: [`Hub`] (one per store) and [`Queue`] (one per watch). Whoever commits calls
//! [`Hub::publish`] with consecutive revisions; a queue that would grow beyond its bound is ended
//! with [`StoreError::WatchTooSlow`] instead. Values are shared, not copied: an event costs a queue
//! a few pointers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::{Batch, Event, Revision, StoreError};

/// What one watcher may have waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    pub events: usize,
    pub bytes: usize,
}

pub struct Hub {
    limits: QueueLimits,
    state: Mutex<State>,
}

struct State {
    published: Revision,
    queues: Vec<Arc<Queue>>,
    /// Set once: later watches end with it at once.
    closed: Option<StoreError>,
}

/// The events waiting for one watch.
pub struct Queue {
    prefix: String,
    after: Revision,
    waiting: Mutex<Waiting>,
    waker: AtomicWaker,
    /// Progress was asked for and not looked after yet.
    asked: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<Batch>,
    events: usize,
    bytes: usize,
    end: Option<StoreError>,
}

impl Hub {
    pub fn new(published: Revision, limits: QueueLimits) -> Self {
        Self { limits, state: Mutex::new(State { published, queues: Vec::new(), closed: None }) }
    }

    /// The newest revision every watcher has been handed.
    pub fn published(&self) -> Revision {
        self.state.lock().published
    }

    /// Hands `events` (ascending, all above the last published revision) to the watchers they
    /// concern; `revision` is the store's after them.
    pub fn publish(&self, events: &[Event], revision: Revision) {
        let mut state = self.state.lock();
        state.published = state.published.max(revision);
        state.queues.retain(|queue| queue.push(events, revision, &self.limits));
    }

    /// A new watcher of `prefix`: it gets every event published from now on with a revision above
    /// `after`. Returns the revision published so far: older events are the caller's to replay.
    pub fn register(&self, prefix: &str, after: Revision) -> (Arc<Queue>, Revision) {
        let queue = Arc::new(Queue {
            prefix: prefix.to_owned(),
            after,
            waiting: Mutex::default(),
            waker: AtomicWaker::new(),
            asked: AtomicBool::new(false),
        });
        let mut state = self.state.lock();
        match &state.closed {
            Some(error) => queue.end(error.clone()),
            None => state.queues.push(queue.clone()),
        }
        (queue, state.published)
    }

    pub fn unregister(&self, queue: &Arc<Queue>) {
        self.state.lock().queues.retain(|known| !Arc::ptr_eq(known, queue));
    }

    /// Tells one watcher how far it has come.
    pub fn progress(&self, queue: &Arc<Queue>) {
        // Under the lock of `publish`, so that no older event can come after it.
        let state = self.state.lock();
        queue.push_progress(state.published);
    }

    /// Ends every watch, those to come included.
    pub fn close(&self, error: StoreError) {
        let mut state = self.state.lock();
        for queue in state.queues.drain(..) {
            queue.end(error.clone());
        }
        state.closed.get_or_insert(error);
    }

    /// Ends the watches there are; new ones may begin. For a feed that has lost events.
    pub fn reset(&self, error: &StoreError, published: Revision) {
        let mut state = self.state.lock();
        for queue in state.queues.drain(..) {
            queue.end(error.clone());
        }
        state.published = state.published.max(published);
    }
}

impl Queue {
    /// Notes that progress is asked for. False: that is noted already.
    pub fn ask(&self) -> bool {
        !self.asked.swap(true, Ordering::AcqRel)
    }

    /// To be called before looking what progress there is: later questions count anew.
    pub fn take_question(&self) {
        self.asked.store(false, Ordering::Release);
    }

    /// Returns false when the watch has ended and the hub can forget it.
    fn push(&self, events: &[Event], revision: Revision, limits: &QueueLimits) -> bool {
        let mut waiting = self.waiting.lock();
        let mut mine = events
            .iter()
            .filter(|event| event.revision > self.after && event.key.starts_with(self.prefix.as_str()))
            .peekable();
        if mine.peek().is_none() {
            return waiting.end.is_none();
        }
        let mut added: Vec<Event> = Vec::new();
        for event in mine {
            waiting.events += 1;
            waiting.bytes += event.size();
            added.push(event.clone());
        }
        if waiting.events > limits.events || waiting.bytes > limits.bytes {
            let queued = waiting.events;
            drop(waiting);
            self.end(StoreError::WatchTooSlow { prefix: self.prefix.clone(), queued });
            return false;
        }
        match waiting.batches.back_mut() {
            Some(last) => {
                last.events.append(&mut added);
                last.revision = revision;
            }
            None => waiting.batches.push_back(Batch { events: added, revision }),
        }
        drop(waiting);
        self.waker.wake();
        true
    }

    fn push_progress(&self, revision: Revision) {
        let mut waiting = self.waiting.lock();
        match waiting.batches.back_mut() {
            Some(last) => last.revision = last.revision.max(revision),
            None => waiting.batches.push_back(Batch { events: Vec::new(), revision }),
        }
        drop(waiting);
        self.waker.wake();
    }

    /// What waits is dropped: a watcher that ends re-lists anyway.
    fn end(&self, error: StoreError) {
        let mut waiting = self.waiting.lock();
        *waiting = Waiting { end: Some(error), ..Waiting::default() };
        drop(waiting);
        self.waker.wake();
    }

    /// The next batch, or the error the watch ended with.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Result<Batch, StoreError>> {
        if let Some(next) = self.take() {
            return Poll::Ready(next);
        }
        self.waker.register(context.waker());
        // An event may have come between the look and the registration.
        self.take().map_or(Poll::Pending, Poll::Ready)
    }

    fn take(&self) -> Option<Result<Batch, StoreError>> {
        let mut waiting = self.waiting.lock();
        if let Some(batch) = waiting.batches.pop_front() {
            waiting.events -= batch.events.len();
            waiting.bytes -= batch.events.iter().map(Event::size).sum::<usize>();
            return Some(Ok(batch));
        }
        waiting.end.clone().map(Err)
    }
}

impl Event {
    /// Bytes it keeps alive.
    pub(crate) fn size(&self) -> usize {
        let previous = self.previous.as_ref().map_or(0, |kv| kv.value.len());
        self.key.len() + self.value.as_ref().map_or(0, |value| value.len()) + previous
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { events: 3, bytes: 1000 };

    fn put(key: &str, revision: Revision) -> Event {
        Event { key: key.into(), revision, value: Some("v".into()), previous: None }
    }

    #[test]
    fn a_watcher_sees_its_prefix_above_its_start() {
        let hub = Hub::new(4, LIMITS);
        let (queue, published) = hub.register("/a/", 5);
        assert_eq!(published, 4);
        hub.publish(&[put("/a/x", 5), put("/b/x", 6), put("/a/y", 7)], 7);
        assert_eq!(queue.take(), Some(Ok(Batch { events: vec![put("/a/y", 7)], revision: 7 })));
        assert_eq!(queue.take(), None);
        hub.publish(&[put("/b/x", 8)], 8);
        assert_eq!(queue.take(), None, "no wake-up for what others watch");
        hub.progress(&queue);
        assert_eq!(queue.take(), Some(Ok(Batch { events: vec![], revision: 8 })));
    }

    #[test]
    fn a_slow_watcher_ends_and_the_others_go_on() {
        let hub = Hub::new(1, LIMITS);
        let (slow, _) = hub.register("/", 1);
        let (quick, _) = hub.register("/", 1);
        for revision in 2..=5 {
            hub.publish(&[put("/a", revision)], revision);
            assert!(matches!(quick.take(), Some(Ok(_))));
        }
        assert!(matches!(slow.take(), Some(Err(StoreError::WatchTooSlow { queued: 4, .. }))));
        assert_eq!(hub.state.lock().queues.len(), 1);
    }

    #[test]
    fn closing_ends_watches_now_and_later() {
        let hub = Hub::new(1, LIMITS);
        let (before, _) = hub.register("/", 1);
        hub.close(StoreError::Closed);
        let (after, _) = hub.register("/", 1);
        assert_eq!(before.take(), Some(Err(StoreError::Closed)));
        assert_eq!(after.take(), Some(Err(StoreError::Closed)));
    }
}
