//! What every long-lived part of skiff shares, on either side of the API.
//!
//! - [`Supervisor`]: the only way to start a long-lived task (ARCHITECTURE.md, invariant 4);
//! - [`Informers`]: one watch-fed cache per kind and process;
//! - [`WorkQueue`]: keys waiting for their reconcile, one run per key at a time;
//! - [`Candidate`]: leader election through a Lease;
//! - [`EventRecorder`]: `Event` objects with Kubernetes' aggregation;
//! - [`Audits`]: when what others may have changed is looked at again;
//! - [`keep_alive`]: clients that vanish are noticed;
//! - [`local_http`]: health checks and the like for those on the same machine;
//! - [`memory`]: a resting process gives back what only work needs;
//! - [`zpages`]: `/statusz` and `/flagz`;
//! - [`Files`]: wakes when certificates or configuration files change.
//!
//! Decisions do not live here: a part's decisions are pure functions in its own crate.

mod audits;
mod election;
mod events;
mod files;
mod informer;
mod keepalive;
pub mod local_http;
pub mod memory;
mod queue;
mod supervisor;
pub mod zpages;

pub use audits::Audits;
pub use election::Candidate;
pub use events::{EventRecorder, EventType};
pub use files::Files;
pub use informer::{Change, Informer, Informers, Kind};
pub use keepalive::keep_alive;
pub use queue::{Outcome, WorkQueue};
pub use supervisor::Supervisor;

/// What an API call failed with, in one line: the server's own message where there is one.
pub fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Logs one step in a pod's life, for `skiff lab timeline`. `pod` is `namespace/name`.
///
/// Steps, in their usual order: `accepted`, `stored`, `scheduled`, `seen by node`, `volumes ready`,
/// `sandbox and network ready`, `container created`, `container started`, `ready`, `routed`.
pub fn timeline(pod: &str, step: &str) {
    timeline_at(pod, step, jiff::Timestamp::now());
}

/// The same for a step that is told later than it was.
pub fn timeline_at(pod: &str, step: &str, at: jiff::Timestamp) {
    let line = serde_json::json!({"at": at.as_microsecond(), "step": step, "pod": pod});
    tracing::info!(target: "timeline", "timeline {line}");
}
