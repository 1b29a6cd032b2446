//! How far back history is kept. Pure: the writer asks it once a second.
//!
//! History younger than [`Retention::age`] is kept, unless there is more of it than
//! [`Retention::revisions`] or half the live keys, whichever is more, or what only it needs weighs more
//! than [`Retention::bytes`] and than half of what lives: so the disk is not filled however fast is
//! written, nor by how large values.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::Revision;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub age: Duration,
    pub revisions: u64,
    pub bytes: u64,
}

impl Default for Retention {
    fn default() -> Self {
        // Kubernetes compacts etcd every five minutes.
        Self { age: Duration::from_secs(300), revisions: 20_000, bytes: 512 << 20 }
    }
}

/// Which revision the store was at when.
#[derive(Debug)]
pub struct History {
    retention: Retention,
    /// Ascending in both.
    samples: VecDeque<(Instant, Revision)>,
}

impl History {
    /// What was written before `now` counts as written at `now`: nobody noted when it was.
    pub fn new(retention: Retention, now: Instant, revision: Revision) -> Self {
        Self { retention, samples: VecDeque::from([(now, revision)]) }
    }

    /// What superseded versions may weigh.
    pub fn bytes(&self) -> u64 {
        self.retention.bytes
    }

    /// Notes the revision, at most once a second, and says up to which one history may go.
    pub fn compact_to(&mut self, now: Instant, revision: Revision, live: u64) -> Revision {
        if self.samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= Duration::from_secs(1)) {
            self.samples.push_back((now, revision));
        }
        let is_old = |at: Instant| now.duration_since(at) >= self.retention.age;
        // The newest sample that is old enough stays: it is the answer until the next one is.
        while self.samples.get(1).is_some_and(|(at, _)| is_old(*at)) {
            self.samples.pop_front();
        }
        let by_age = self.samples.front().filter(|(at, _)| is_old(*at)).map_or(0, |(_, revision)| *revision);
        let by_count = revision.saturating_sub(self.retention.revisions.max(live / 2));
        by_age.max(by_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_goes_by_age_and_by_amount() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let retention = Retention { age: Duration::from_secs(300), revisions: 1000, ..Retention::default() };
        let mut history = History::new(retention, start, 10);
        // (seconds, revision, live keys) -> compact to
        let table = [
            (1, 20, 0, 0),
            (2, 1500, 0, 500),     // more than 1000 revisions
            (3, 1500, 2000, 500),  // half the live keys is no more than that
            (4, 1500, 2800, 100),  // half of 2800 may stay
            (299, 1500, 4000, 0),  // nothing is 300 s old yet
            (300, 1500, 4000, 10), // what was there at the start is
            (301, 1500, 4000, 20),
            (302, 1500, 4000, 1500),
        ];
        for (seconds, revision, live, want) in table {
            assert_eq!(history.compact_to(at(seconds), revision, live), want, "at {seconds} s");
        }
        assert!(history.samples.len() < 10);
    }
}
