//! When to try again what failed, and what to say of it. Pure.

use std::time::Duration;

/// Delays that double.
#[derive(Debug, Clone)]
pub struct Delays {
    next: Duration,
    longest: Duration,
}

impl Delays {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// How long to wait after another failure.
    pub fn take(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(self.longest);
        delay
    }
}

/// Failures of one thing in a row.
#[derive(Debug, Clone)]
pub struct Failures {
    fresh: Delays,
    delays: Delays,
    /// What was said of them; the same is not said again.
    said: Vec<String>,
}

impl Failures {
    pub const fn new(first: Duration, longest: Duration) -> Self {
        let fresh = Delays::new(first, longest);
        Self { delays: Delays::new(first, longest), fresh, said: Vec::new() }
    }

    /// It failed again for these reasons: those that are new, and when to try again.
    pub fn take(&mut self, messages: impl IntoIterator<Item = String>) -> (Vec<String>, Duration) {
        let messages: Vec<String> = messages.into_iter().collect();
        let new = messages.iter().filter(|message| !self.said.contains(message)).cloned().collect();
        self.said = messages;
        (new, self.delays.take())
    }

    /// It succeeded: the next failure is the first.
    pub fn clear(&mut self) {
        self.delays = self.fresh.clone();
        self.said.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_and_tried_again_ever_later() {
        let mut failures = Failures::new(Duration::from_millis(500), Duration::from_secs(122));
        let take = |failures: &mut Failures, messages: &[&str]| {
            let (new, delay) = failures.take(messages.iter().map(|message| (*message).to_owned()));
            (new.join(","), delay.as_millis())
        };
        assert_eq!(take(&mut failures, &["a"]), ("a".to_owned(), 500));
        assert_eq!(take(&mut failures, &["a"]), (String::new(), 1000));
        assert_eq!(take(&mut failures, &["a", "b"]), ("b".to_owned(), 2000));
        assert_eq!(take(&mut failures, &["b"]), (String::new(), 4000));
        let delays: Vec<u128> = (0..5).map(|_| take(&mut failures, &["b"]).1).collect();
        assert_eq!(delays, [8000, 16_000, 32_000, 64_000, 122_000]);
        assert_eq!(take(&mut failures, &["a"]), ("a".to_owned(), 122_000), "it had gone");
        failures.clear();
        assert_eq!(take(&mut failures, &["a"]), ("a".to_owned(), 500));
    }
}
