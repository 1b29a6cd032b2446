//! Leader election through a `Lease`, with client-go's timing: several servers run the same
//! scheduler and controllers, and one of them at a time acts.
//!
//! The decision is [`step`], pure: what this candidate does next, given the Lease it read. A
//! leader that could not renew for [`RENEW_DEADLINE`] stops before others may take over ([`until`]),
//! since a Lease is only theirs after [`LEASE_DURATION`] of their own clock without a change.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::Supervisor;

pub const LEASE_DURATION: Duration = Duration::from_secs(15);
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// Who wants to lead what.
#[derive(Clone)]
pub struct Candidate {
    pub client: Client,
    /// The Lease's name in `kube-system`, e.g. `kube-scheduler`.
    pub lease: String,
    /// Unique per process, e.g. `<host>_<random>`.
    pub identity: String,
}

/// What a candidate does with a Lease it has read.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// It is ours: move its time on.
    Renew,
    /// Its holder is gone, or never was.
    TakeOver,
    Wait,
}

/// `unchanged_for` is how long this candidate has seen the Lease as it is.
fn step(lease: Option<&Lease>, identity: &str, unchanged_for: Duration) -> Step {
    let Some(spec) = lease.and_then(|lease| lease.spec.as_ref()) else {
        return if lease.is_some() { Step::TakeOver } else { Step::Create };
    };
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    match spec.holder_identity.as_deref() {
        Some(holder) if holder == identity => Step::Renew,
        Some("") | None => Step::TakeOver,
        Some(_) if unchanged_for >= duration.map_or(LEASE_DURATION, Duration::from_secs) => Step::TakeOver,
        Some(_) => Step::Wait,
    }
}

/// How long a renewal lets its holder act. Others may have seen it as soon as it was asked for, however late
/// the answer came.
fn until(asked: Instant, answered: Instant) -> Instant {
    (answered + RENEW_DEADLINE).min(asked + LEASE_DURATION - RETRY_PERIOD)
}

impl Candidate {
    /// Runs `lead` with a supervisor of its own whenever this candidate leads; cancels that
    /// supervisor when the lead is lost, and stands for election again.
    pub fn start(self, supervisor: &Supervisor, lead: impl Fn(&Supervisor) + Send + Sync + 'static) {
        let parent = supervisor.clone();
        let name = format!("election-{}", self.lease);
        supervisor.spawn(name, async move {
            loop {
                let until = self.acquire().await;
                tracing::info!(lease = self.lease, identity = self.identity, "leading");
                let term = parent.child(&self.lease);
                lead(&term);
                self.hold(until).await;
                tracing::warn!(lease = self.lease, identity = self.identity, "no longer leading");
                term.cancel();
            }
        });
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), "kube-system")
    }

    /// Returns when this candidate holds the Lease, and until when it does without renewing it.
    async fn acquire(&self) -> Instant {
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            let lease = self.api().get_opt(&self.lease).await;
            if let Ok(lease) = lease {
                let version = lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
                if version != seen {
                    (seen, since) = (version, Instant::now());
                }
                let next = step(lease.as_ref(), &self.identity, since.elapsed());
                let asked = Instant::now();
                if next != Step::Wait && self.write(lease, next).await.is_ok() {
                    let until = until(asked, Instant::now());
                    // Otherwise the answer took so long that it is to be renewed before anything else.
                    if Instant::now() < until {
                        return until;
                    }
                }
            }
            tokio::time::sleep(RETRY_PERIOD).await;
        }
    }

    /// Renews until that failed for too long, or someone else holds the Lease.
    async fn hold(&self, mut held: Instant) {
        loop {
            let asked = held.min(Instant::now() + RETRY_PERIOD);
            tokio::time::sleep_until(asked).await;
            match tokio::time::timeout_at(held, self.renew()).await {
                Ok(Ok(true)) => held = until(asked, Instant::now()),
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => tracing::warn!(lease = self.lease, %error, "the lease could not be renewed"),
            }
            if Instant::now() >= held {
                return;
            }
        }
    }

    /// Whether the Lease is still ours.
    async fn renew(&self) -> kube::Result<bool> {
        let lease = self.api().get_opt(&self.lease).await?;
        match step(lease.as_ref(), &self.identity, Duration::ZERO) {
            Step::Renew => self.write(lease, Step::Renew).await.map(|()| true),
            _ => Ok(false),
        }
    }

    async fn write(&self, lease: Option<Lease>, next: Step) -> kube::Result<()> {
        let now = MicroTime(Timestamp::now());
        let mut lease = lease.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.lease.clone()), ..Default::default() },
            ..Default::default()
        });
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if next != Step::Renew {
            spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count + 1));
            spec.acquire_time = Some(now.clone());
            spec.holder_identity = Some(self.identity.clone());
        }
        spec.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
        spec.renew_time = Some(now);
        // A conflict means that another candidate was quicker.
        if next == Step::Create {
            self.api().create(&PostParams::default(), &lease).await?;
        } else {
            self.api().replace(&self.lease, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(15),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_its_holder_was_silent_long_enough() {
        let seconds = Duration::from_secs;
        for (lease, silent, expected) in [
            (None, seconds(0), Step::Create),
            (Some(held_by("me")), seconds(0), Step::Renew),
            (Some(held_by("other")), seconds(14), Step::Wait),
            (Some(held_by("other")), seconds(15), Step::TakeOver),
            (Some(held_by("")), seconds(0), Step::TakeOver),
        ] {
            assert_eq!(step(lease.as_ref(), "me", silent), expected, "{lease:?} {silent:?}");
        }
    }

    #[test]
    fn a_leader_stops_before_others_may_lead_however_late_its_renewals_were_answered() {
        let asked = Instant::now();
        for (seconds, lasts) in [(0, 10), (2, 12), (9, 13), (60, 13)] {
            let until = until(asked, asked + Duration::from_secs(seconds));
            assert_eq!(until - asked, Duration::from_secs(lasts), "answered after {seconds} s");
        }
    }
}
