//! Growing delays per name: container restarts and image pulls, 10 s doubling to 5 min
//! (client-go's `flowcontrol.Backoff`). Pure over the time it is given.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    delay: SignedDuration,
    since: Timestamp,
}

#[derive(Debug, Clone, Default)]
pub struct Backoff {
    entries: HashMap<String, Entry>,
}

impl Backoff {
    /// If what failed at `failed_at` may not be tried yet: the delay in force, and when it ends.
    pub fn waiting(&self, name: &str, failed_at: Timestamp, now: Timestamp) -> Option<(SignedDuration, Timestamp)> {
        let entry = self.entries.get(name)?;
        if expired(entry, failed_at) {
            return None;
        }
        let until = failed_at.checked_add(entry.delay).ok()?;
        (now < until).then_some((entry.delay, until))
    }

    /// Another try after what failed at `failed_at`: the next failure waits longer.
    pub fn advance(&mut self, name: &str, failed_at: Timestamp, now: Timestamp) -> SignedDuration {
        let delay = match self.entries.get(name) {
            Some(entry) if !expired(entry, failed_at) => (entry.delay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.entries.insert(name.to_owned(), Entry { delay, since: now });
        delay
    }

    pub fn forget(&mut self, name: &str) {
        self.entries.remove(name);
    }
}

/// Twice the longest delay without a failure starts over.
fn expired(entry: &Entry, failed_at: Timestamp) -> bool {
    failed_at.duration_since(entry.since) > LONGEST * 2
}

/// A delay as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(delay: SignedDuration) -> String {
    let seconds = delay.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn delays_double_to_five_minutes_and_start_over() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.waiting("c", at(0), at(0)), None, "the first restart is immediate");
        let mut failed = 0;
        let mut delays = Vec::new();
        for _ in 0..7 {
            let delay = backoff.advance("c", at(failed), at(failed)).as_secs();
            delays.push(delay);
            failed += 1;
            let (in_force, until) = backoff.waiting("c", at(failed), at(failed)).unwrap();
            assert_eq!((in_force.as_secs(), until), (delay, at(failed + delay)));
            assert_eq!(backoff.waiting("c", at(failed), at(failed + delay)), None);
            failed += delay;
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.waiting("c", at(failed + 1000), at(failed + 1000)), None, "a long good run");
        assert_eq!(backoff.advance("c", at(failed + 1000), at(failed + 1000)).as_secs(), 10);
    }

    #[test]
    fn durations_as_go_prints_them() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_duration(SignedDuration::from_secs(seconds)), text);
        }
    }
}
