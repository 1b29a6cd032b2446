//! Leases for keys that expire.
//!
//! As Kubernetes does it, one lease serves all keys that are written with the same time to live
//! within a minute, or a twentieth of that time if it is less: a lease costs etcd far more than a key.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse};
use tokio::sync::Mutex;

use super::endpoints::{Endpoints, Repeat};
use crate::StoreError;

/// The longest that a lease takes in new keys; it lives as much longer.
const LONGEST_REUSE: Duration = Duration::from_secs(60);
/// Keys per lease: their deletion is one step for etcd.
const MOST_KEYS: u32 = 1000;

/// The leases new keys may still use, by time to live in seconds.
#[derive(Default)]
pub struct Leases {
    current: Mutex<HashMap<u64, Lease>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    id: i64,
    granted: Instant,
    keys: u32,
}

impl Lease {
    fn takes_more(&self, seconds: u64, now: Instant) -> bool {
        now.duration_since(self.granted) < reuse(seconds) && self.keys < MOST_KEYS
    }
}

/// How long a lease takes in keys that are to live for so many seconds.
fn reuse(seconds: u64) -> Duration {
    LONGEST_REUSE.min(Duration::from_secs(seconds) / 20)
}

impl Leases {
    /// A lease that ends `ttl` after now, or later by at most a minute and by little more than a twentieth.
    pub async fn take(&self, endpoints: &Endpoints, ttl: Duration) -> Result<i64, StoreError> {
        let seconds = ttl.as_secs().max(1);
        // Held over the grant, so that keys written at once share the new lease.
        let mut current = self.current.lock().await;
        if let Some(lease) = current.get_mut(&seconds).filter(|lease| lease.takes_more(seconds, Instant::now())) {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let id = grant(endpoints, seconds + reuse(seconds).as_secs_f64().ceil() as u64).await?.id;
        current.retain(|seconds, lease| lease.takes_more(*seconds, Instant::now()));
        current.insert(seconds, Lease { id, granted: Instant::now(), keys: 1 });
        Ok(id)
    }
}

async fn grant(endpoints: &Endpoints, seconds: u64) -> Result<LeaseGrantResponse, StoreError> {
    let request = LeaseGrantRequest { ttl: i64::try_from(seconds).unwrap_or(i64::MAX), id: 0 };
    endpoints
        .call("granting a lease", Repeat::Freely, |channel| async move {
            LeaseClient::new(channel).lease_grant(request).await
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_shared_for_a_minute_and_a_thousand_keys() {
        let granted = Instant::now();
        for (seconds, keys, want) in [(0, 1, true), (59, 999, true), (60, 1, false), (1, 1000, false)] {
            let lease = Lease { id: 1, granted, keys };
            assert_eq!(lease.takes_more(3600, granted + Duration::from_secs(seconds)), want);
        }
    }

    /// A server that is lost stays among the addresses of the `kubernetes` Service for 15 seconds, not for 75.
    #[test]
    fn keys_that_live_for_seconds_end_in_time() {
        assert_eq!((reuse(15), reuse(3600)), (Duration::from_millis(750), LONGEST_REUSE));
    }
}
