//! Liveness, readiness and startup probes: one small task for each probe of each running container.
//!
//! [`Judge`] is the pure part: it counts successes and failures against the thresholds. [`check`]
//! asks once. [`watch`] owns the timing and reports changes to the pod's worker.

mod check;
pub mod http;
mod totals;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use component::{EventType, Supervisor};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::context::NodeContext;

pub use check::{Answer, Target};
use totals::Outcome;
pub use totals::Totals;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

impl ProbeKind {
    /// As events name it.
    fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        }
    }
}

/// A probe's verdict changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub run_id: String,
    pub kind: ProbeKind,
    pub success: bool,
    /// The failed probe's own grace period, seconds.
    pub grace: Option<i64>,
}

/// Counts answers against thresholds.
#[derive(Debug)]
pub struct Judge {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    streak: i32,
    verdict: Option<bool>,
}

impl Judge {
    pub fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            streak: 0,
            verdict: None,
        }
    }

    /// Takes one answer in; returns the verdict if it changed.
    pub fn take(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.streak += 1;
        } else {
            self.last = Some(success);
            self.streak = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.streak < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        Some(success)
    }
}

/// What is probed, and where answers go.
pub struct Subject {
    pub node: Arc<NodeContext>,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub run_id: String,
    pub started_at: Timestamp,
    pub pod_ip: Option<String>,
    /// True once the startup probe succeeded, or from the start without one.
    pub started: Receiver<bool>,
    /// The pod is ending: only readiness is still asked.
    pub ending: Arc<AtomicBool>,
}

/// Starts a task for each of the container's probes below `supervisor`.
pub fn watch(subject: Arc<Subject>, supervisor: &Supervisor, report: impl Fn(Update) + Clone + Send + Sync + 'static) {
    let container = &subject.container;
    let probes = [
        (ProbeKind::Startup, container.startup_probe.clone()),
        (ProbeKind::Readiness, container.readiness_probe.clone()),
        (ProbeKind::Liveness, container.liveness_probe.clone()),
    ];
    for (kind, probe) in probes {
        let Some(probe) = probe else { continue };
        let name = format!("{}-probe/{}", kind.title().to_lowercase(), container.name);
        supervisor.spawn(name, follow(subject.clone(), kind, probe, report.clone()));
    }
}

fn seconds(value: Option<i32>, default: i32) -> Duration {
    Duration::from_secs(value.unwrap_or(default).max(0).unsigned_abs().into())
}

async fn follow(subject: Arc<Subject>, kind: ProbeKind, probe: Probe, report: impl Fn(Update)) {
    let period = seconds(Some(probe.period_seconds.unwrap_or(10).max(1)), 10);
    let timeout = seconds(Some(probe.timeout_seconds.unwrap_or(1).max(1)), 1);
    let running_for = Duration::try_from(Timestamp::now().duration_since(subject.started_at)).unwrap_or_default();
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0).saturating_sub(running_for)).await;
    if kind != ProbeKind::Startup {
        // An error means that the worker is gone, and this task with it.
        let _ = subject.started.clone().wait_for(|started| *started).await;
    }
    let mut judge = Judge::new(&probe);
    let mut next = Instant::now();
    loop {
        tokio::time::sleep_until(next).await;
        next = (next + period).max(Instant::now());
        if kind != ProbeKind::Readiness && subject.ending.load(Ordering::Relaxed) {
            return;
        }
        let Some(success) = ask(&subject, kind, &probe, timeout).await else { continue };
        if let Some(success) = judge.take(success) {
            let grace = probe.termination_grace_period_seconds;
            report(Update { run_id: subject.run_id.clone(), kind, success, grace });
            if kind == ProbeKind::Startup || (kind == ProbeKind::Liveness && !success) {
                return;
            }
        }
    }
}

/// One question, its event if it failed. None when nothing can be said.
async fn ask(subject: &Subject, kind: ProbeKind, probe: &Probe, timeout: Duration) -> Option<bool> {
    let target = Target {
        runtime: &subject.node.runtime,
        container: &subject.container,
        container_id: &subject.run_id,
        pod_ip: subject.pod_ip.as_deref(),
    };
    let began = Instant::now();
    let answer = check::check(&target, probe, timeout).await;
    let outcome = match &answer {
        Answer::Success | Answer::Warning(_) => Outcome::Successful,
        Answer::Failure(_) => Outcome::Failed,
        Answer::Error(_) => Outcome::Unknown,
    };
    let (pod, container) = (&subject.pod, &subject.container.name);
    subject.node.probe_totals.note(pod, container, kind, outcome, began.elapsed());
    let event = |event_type, reason: &str, message: String| {
        subject.node.container_event(&subject.pod, &subject.container.name, event_type, reason, message);
    };
    match answer {
        Answer::Success => Some(true),
        Answer::Warning(message) => {
            event(EventType::Warning, "ProbeWarning", format!("{} probe warning: {message}", kind.title()));
            Some(true)
        }
        Answer::Failure(message) => {
            event(EventType::Warning, "Unhealthy", format!("{} probe failed: {message}", kind.title()));
            Some(false)
        }
        Answer::Error(message) => {
            event(
                EventType::Warning,
                "Unhealthy",
                format!("{} probe errored and resulted in unknown state: {message}", kind.title()),
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Default::default() };
        let mut judge = Judge::new(&probe);
        let verdicts: Vec<Option<bool>> =
            [true, false, true, true, true, false, false, true, false, false, false, false]
                .into_iter()
                .map(|answer| judge.take(answer))
                .collect();
        let expected = [None, None, None, Some(true), None, None, None, None, None, None, Some(false), None];
        assert_eq!(verdicts, expected);
    }
}
