//! A worker's way down: everything is stopped, what the pod had is given back, what is left is removed.

use std::sync::atomic::Ordering;
use std::time::Instant;

use component::EventType;
use futures::FutureExt;
use jiff::SignedDuration;

use super::{Done, Stage, Worker};
use crate::cri::RuntimeError;
use crate::pod::actions::pod_id;
use crate::pod::observed::Run;
use crate::pod::status::Verdict;
use crate::pod::{cleanup, ending, make_container, stop};

impl Worker {
    pub(super) fn begin_ending(&mut self, grace: i64, verdict: Option<Verdict>) {
        self.ending.store(true, Ordering::Relaxed);
        // Pulls, creations and hooks under way are given up; what they half made is seen by looking again.
        if self.setup.take().is_some() {
            self.blind = true;
            self.look_at_everything();
        }
        self.waiting.clear();
        self.memory.failures.clear();
        self.node.volumes.freeze(&self.uid());
        self.stage = Stage::Ending { grace, verdict };
    }

    pub(super) fn keep_ending(&mut self, grace: i64, verdict: Option<Verdict>) {
        if self.blind || self.pause_until.is_some() {
            return;
        }
        let next = ending::decide(&self.observed, &self.memory.stopping, &self.stopped_sandboxes);
        for id in next.stop {
            if let Some(run) = self.observed.runs.iter().find(|run| run.id == id).cloned() {
                let message = format!("Stopping container {}", run.name);
                self.stop_run(run, message, grace);
            }
        }
        for id in next.stop_sandboxes {
            self.stop_sandbox(id);
        }
        if next.done {
            self.stage = Stage::Cleaning { verdict };
        }
    }

    /// A second deletion may leave less time: what still runs is stopped with the new grace too, in the same order.
    pub(super) fn shorten(&mut self, seconds: i64) {
        let Stage::Ending { grace, .. } = &mut self.stage else { return };
        if seconds >= *grace {
            return;
        }
        *grace = seconds;
        for run in self.observed.runs.iter().filter(|run| run.is_running()) {
            let first = ending::before(self.pod(), &self.observed, run);
            let turn = stop::Turn { first, running: self.running.subscribe() };
            let (node, run) = (self.node.clone(), run.clone());
            let stop = async move {
                let result = stop::end(&node, &run, turn, seconds, Instant::now()).await;
                Done::Stopped { id: run.id, result }
            };
            self.tasks.push(stop.boxed());
        }
    }

    pub(super) fn stop_run(&mut self, run: Run, message: String, grace: i64) {
        if !self.memory.stopping.insert(run.id.clone()) {
            return;
        }
        let id = run.id.clone();
        let sandbox = self.observed.sandboxes.iter().find(|sandbox| sandbox.id == run.sandbox_id);
        let first = match self.stage {
            Stage::Ending { .. } => ending::before(self.pod(), &self.observed, &run),
            _ => Vec::new(),
        };
        let turn = stop::Turn { first, running: self.running.subscribe() };
        let order = stop::Order {
            pod: self.wish.pod.clone(),
            container: make_container::container_of(self.pod(), &run.name),
            pod_ip: sandbox.and_then(|sandbox| sandbox.ips.first().cloned()),
            run,
            message,
            grace,
            turn,
        };
        let node = self.node.clone();
        self.tasks.push(async move { Done::Stopped { id, result: stop::stop(&node, order).await } }.boxed());
    }

    pub(super) fn stop_sandbox(&mut self, id: String) {
        self.memory.stopping.insert(id.clone());
        let node = self.node.clone();
        self.tasks.push(
            async move {
                let result = node.runtime.stop_sandbox(&id).await;
                Done::SandboxStopped { id, result }
            }
            .boxed(),
        );
    }

    pub(super) fn keep_cleaning(&mut self) {
        if self.setup.is_some() || self.pause_until.is_some() {
            return;
        }
        for (_, tasks) in self.probes.drain() {
            tasks.supervisor.cancel();
        }
        let (node, pod) = (self.node.clone(), self.wish.pod.clone());
        self.setup = Some(async move { Done::Cleaned(cleanup::give_back(&node, &pod).await) }.boxed());
    }

    pub(super) fn stay_ended(&mut self) {
        if self.setup.is_some() || self.pause_until.is_some() {
            return;
        }
        if self.wish.removed {
            let (node, pod, observed) = (self.node.clone(), self.wish.pod.clone(), self.observed.clone());
            self.setup = Some(async move { Done::Purged(cleanup::purge(&node, &pod, &observed).await) }.boxed());
            self.stage = Stage::Purging;
        }
    }

    pub(super) fn stop_failed(&mut self, id: &str, error: &RuntimeError) {
        tracing::warn!(pod = pod_id(self.pod()), id, %error, "stopping failed; trying again");
        let message = format!("error killing pod: {}", error.runtime_message());
        self.node.event(self.pod(), EventType::Warning, "FailedKillPod", message);
        self.pause(SignedDuration::from_secs(1));
        self.look_at_everything();
    }

    pub(super) fn cleaned(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                let verdict = if let Stage::Cleaning { verdict } = &self.stage { verdict.clone() } else { None };
                self.stage = Stage::Ended { verdict };
                self.leaving.clear();
            }
            Err(message) => {
                self.left_behind(message, "the pod's resources could not be given back; trying again");
            }
        }
    }

    /// Something of the pod is still there. A driver that has to take it back may be away for long.
    pub(super) fn left_behind(&mut self, message: String, what: &'static str) {
        let (new, delay) = self.leaving.take([message]);
        for message in new {
            tracing::warn!(pod = pod_id(self.pod()), message, "{what}");
        }
        // No delay is longer than what a duration with a sign holds.
        self.pause(SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX));
    }
}
