//! The audit log: who did what, as `audit.k8s.io/v1` events, by a policy, into a file and to a
//! webhook.
//!
//! The pipeline asks [`Audit::begin`] for a [`Record`] of each request; what happens to the request
//! is noted in it, and each stage that the policy wants becomes one event. Events go through a
//! bounded queue to one task, which encodes and writes them: nothing is written on a request's own
//! path, and without a policy there is no [`Audit`] at all.

mod log;
mod policy;
mod record;
mod webhook;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use component::Supervisor;
use http::request::Parts;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::log::LogConfig;
pub use self::policy::{Level, Policy, Stage};
pub use self::record::Record;
use crate::authn::UserInfo;
use crate::error::{ApiError, Result};
use crate::http::info::RequestInfo;
use crate::remote::Remote;

/// Events that wait to be written.
const QUEUE: usize = 10_000;
/// Events that are written together.
const TOGETHER: usize = 500;

#[derive(Debug, Clone, Default)]
pub struct AuditConfig {
    /// A `Policy`; without one nothing is recorded.
    pub policy_file: Option<PathBuf>,
    pub log: Option<LogConfig>,
    /// A kubeconfig that names where events are posted to.
    pub webhook_file: Option<PathBuf>,
    /// Most events posted at once, and how long they are collected.
    pub webhook_batch: Option<(usize, Duration)>,
}

/// Records requests.
pub struct Audit {
    policy: Policy,
    queue: mpsc::Sender<Value>,
    /// Events taken on, and lost because the queue was full or could not be written.
    pub events: AtomicU64,
    pub lost: AtomicU64,
}

impl Audit {
    /// Reads the policy and opens the log; none when nothing is to be recorded.
    pub async fn start(config: &AuditConfig, supervisor: &Supervisor) -> Result<Option<Arc<Self>>> {
        let Some(path) = &config.policy_file else { return Ok(None) };
        let unusable = |path: &std::path::Path, why: String| {
            ApiError::internal(format!("reading the audit policy {}: {why}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| unusable(path, error.to_string()))?;
        let policy = Policy::parse(&text).map_err(|why| unusable(path, why))?;
        // After the policy was read: one that is wrong is told of before somebody relies on it.
        if config.log.is_none() && config.webhook_file.is_none() {
            return Ok(None);
        }
        let log = config.log.clone().map(|log| {
            let path = log.path.display().to_string();
            log::Log::open(log).map_err(|error| {
                ApiError::internal(format!("opening the audit log {path}: {error}; see --audit-log-path"))
            })
        });
        let log = log.transpose()?;
        let (queue, events) = mpsc::channel(QUEUE);
        let audit = Arc::new(Self { policy, queue, events: AtomicU64::new(0), lost: AtomicU64::new(0) });
        let posting = match &config.webhook_file {
            Some(file) => {
                let remote = Remote::from_kubeconfig(file).await?;
                Some(webhook::start(remote, config.webhook_batch, audit.clone(), supervisor))
            }
            None => None,
        };
        let writer = audit.clone();
        supervisor.spawn_graceful("audit", move |token| write(writer, events, log, posting, token));
        Ok(Some(audit))
    }

    /// Begins to record a request, if the policy wants it.
    pub fn begin(
        self: &Arc<Self>,
        id: &str,
        user: &UserInfo,
        request: (&Parts, &RequestInfo),
        peer: Option<std::net::IpAddr>,
    ) -> Option<Arc<Record>> {
        let decision = self.policy.decide(user, request.1);
        if decision.level == Level::None {
            return None;
        }
        Some(Arc::new(Record::new(self.clone(), decision, id, user, request, peer)))
    }

    /// Takes an event on if there is room.
    fn offer(&self, event: Value) {
        self.events.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(event).is_err() {
            self.lose(1);
        }
    }

    /// Takes an event on as soon as there is room.
    async fn hand_over(&self, event: Value) {
        self.events.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(event).await.is_err() {
            self.lose(1);
        }
    }

    fn lose(&self, count: usize) {
        self.lost.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Encodes and writes what is queued, until the server has stopped and the queue is empty.
async fn write(
    audit: Arc<Audit>,
    mut events: mpsc::Receiver<Value>,
    mut log: Option<log::Log>,
    posting: Option<mpsc::Sender<String>>,
    token: CancellationToken,
) {
    let mut batch = Vec::with_capacity(TOGETHER);
    loop {
        let stopped = tokio::select! {
            biased;
            _ = events.recv_many(&mut batch, TOGETHER) => false,
            () = token.cancelled() => true,
        };
        let lines: Vec<String> = batch.drain(..).map(|event| event.to_string()).collect();
        if let Some(log) = &mut log
            && !lines.is_empty()
        {
            let text = lines.iter().fold(String::new(), |text, line| text + line + "\n");
            if let Err(error) = log.write(text.as_bytes()) {
                tracing::error!(%error, events = lines.len(), "writing the audit log");
                audit.lose(lines.len());
            }
        }
        if let Some(posting) = &posting {
            audit.lose(lines.into_iter().filter_map(|line| posting.try_send(line).err()).count());
        }
        if stopped {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_policy_that_cannot_be_read_is_told_of_where_nothing_is_recorded_too() {
        let config = AuditConfig { policy_file: Some("/nonexistent/policy.yaml".into()), ..AuditConfig::default() };
        let refused = Audit::start(&config, &Supervisor::new("test")).await.err().unwrap();
        assert!(refused.message().contains("reading the audit policy /nonexistent/policy.yaml: "), "{refused}");
    }
}
