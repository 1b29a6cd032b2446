//! When what others may have changed is looked at next.

use std::time::{Duration, Instant};

/// Looks by the clock, however often something is written between them: where something always changes, what
/// others removed would never come back.
pub struct Audits {
    period: Duration,
    next: Instant,
}

impl Audits {
    pub fn new(period: Duration, now: Instant) -> Self {
        Self { period, next: now + period }
    }

    /// How long it is until the next.
    pub fn pause(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// Whether it is time; once for each.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.period;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_do_not_put_an_audit_off() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut audits = Audits::new(second * 30, start);
        // A change every second.
        let due: Vec<u32> = (0..70).filter(|passed| audits.is_due(start + second * *passed)).collect();
        assert_eq!(due, [30, 60]);
        assert_eq!(audits.pause(start + second * 70), second * 20);
        assert_eq!(audits.pause(start + second * 100), Duration::ZERO);
    }
}
