//! What reaches a worker: wishes, mail, and the ends of what it started.

use std::collections::HashSet;

use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};

use super::telling::keep_own;
use super::{Done, Stage, Worker};
use crate::cri::RuntimeError;
use crate::pod::actions::pod_id;
use crate::pod::mailbox::{Mail, Wish};
use crate::pod::make_sandbox::SandboxError;
use crate::pod::observed::{Observed, Run, RunState, Sandbox};
use crate::pod::{cleanup, ending, make_container, observe};

impl Worker {
    pub(super) fn adopt(&mut self, wish: Wish) {
        // Conditions that others own are theirs to change.
        self.status = keep_own(&self.status, wish.pod.status.as_ref());
        self.wish = wish;
        if matches!(self.stage, Stage::Ending { .. }) && self.pod().metadata.deletion_timestamp.is_some() {
            self.shorten(ending::grace(self.pod()));
        }
        if self.stage == Stage::Running {
            self.node.volumes.refresh(self.pod());
        }
    }

    pub(super) fn read(&mut self, mail: Mail) {
        for (id, ended) in mail.changed {
            self.look_at(id, ended);
        }
        if mail.resync {
            self.look_at_everything();
        }
        mail.announced.into_iter().for_each(|run| self.hook_began(run));
        for update in mail.probes {
            self.take_probe(update);
        }
    }

    fn hook_began(&mut self, run: Run) {
        self.memory.in_post_start.insert(run.id.clone());
        self.saw_run(run);
    }

    pub(super) fn look_at(&mut self, id: String, ended: bool) {
        let node = self.node.clone();
        if let Some(run) = self.observed.runs.iter().find(|run| run.id == id) {
            let sandbox = run.sandbox_id.clone();
            let look = async move {
                let run = match ended {
                    true => observe::ended_run(&node.runtime, &id, &sandbox).await,
                    false => observe::run(&node.runtime, &id, &sandbox).await,
                };
                Done::Seen { id, run }
            };
            self.tasks.push(look.boxed());
        } else if self.observed.sandboxes.iter().any(|sandbox| sandbox.id == id) {
            let look = async move {
                Done::SandboxSeen(match ended {
                    true => observe::ended_sandbox(&node.runtime, &id).await,
                    false => observe::sandbox(&node.runtime, &id).await,
                })
            };
            self.tasks.push(look.boxed());
        } else if self.setup.is_some() {
            *self.early.entry(id).or_default() |= ended;
        }
    }

    pub(super) fn look_at_everything(&mut self) {
        let (node, uid, changes) = (self.node.clone(), self.uid(), self.changes);
        let look = async move { Done::AllSeen { changes, observed: observe::pod(&node.runtime, &uid).await } };
        self.tasks.push(look.boxed());
    }

    pub(super) fn finish(&mut self, done: Done) {
        match done {
            Done::Sandbox(Ok(sandbox)) => {
                self.sandbox_failures = 0;
                self.memory.sandbox_retry_at = None;
                self.tell("sandbox and network ready");
                self.saw_sandbox(sandbox);
            }
            Done::Sandbox(Err(SandboxError::Refused(verdict))) => self.begin_ending(1, Some(verdict)),
            Done::Sandbox(Err(error)) => self.sandbox_failed(&error),
            Done::Container { name, outcome } => {
                // That the hook began must be read before that it ended.
                self.mailbox.take_announced().into_iter().for_each(|run| self.hook_began(run));
                self.container_done(name, outcome);
            }
            Done::Stopped { id, result } => {
                self.memory.stopping.remove(&id);
                match result {
                    Ok(run) => self.saw_run(run),
                    Err(error) if error.is_not_found() => self.forget_run(&id),
                    Err(error) => self.stop_failed(&id, &error),
                }
            }
            Done::SandboxStopped { id, result } => {
                self.memory.stopping.remove(&id);
                match result {
                    Ok(()) => {
                        self.stopped_sandboxes.insert(id);
                        self.look_at_everything();
                    }
                    Err(error) => self.stop_failed(&id, &error),
                }
            }
            Done::Seen { run: Ok(run), .. } => self.saw_run(run),
            Done::Seen { id, run: Err(error) } if error.is_not_found() => self.forget_run(&id),
            Done::Seen { run: Err(error), .. } | Done::SandboxSeen(Err(error)) => {
                tracing::debug!(pod = pod_id(self.pod()), %error, "looking again later");
            }
            Done::SandboxSeen(Ok(sandbox)) => self.saw_sandbox(sandbox),
            Done::AllSeen { changes, observed } => self.all_seen(changes, observed),
            Done::Removed { asked, gone } => {
                if gone.len() < asked.len() {
                    self.pause(SignedDuration::from_secs(1));
                }
                for id in asked {
                    self.memory.stopping.remove(&id);
                }
                gone.iter().for_each(|id| self.forget_run(id));
            }
            Done::Resized(step) => self.resized(step),
            Done::Cleaned(result) => self.cleaned(result),
            Done::Purged(Ok(())) => self.stage = Stage::Gone,
            Done::Purged(Err(message)) => {
                self.stage = Stage::Ended { verdict: None };
                self.left_behind(message, "what is left of the pod could not be removed; trying again");
            }
        }
    }

    /// The runtime has it no longer: nobody probes it any more either.
    fn forget_run(&mut self, id: &str) {
        // A look that began before would bring it back.
        self.changes += 1;
        self.observed.forget_run(id);
        self.forget_probes(id);
        self.memory.applied.remove(id);
        self.memory.killed.remove(id);
        self.memory.in_post_start.remove(id);
        self.backoff_told.remove(id);
    }

    pub(super) fn pause(&mut self, delay: SignedDuration) {
        self.pause_until = Timestamp::now().checked_add(delay).ok();
    }

    pub(super) fn sandbox_failed(&mut self, error: &SandboxError) {
        tracing::warn!(pod = pod_id(self.pod()), %error, "the pod's sandbox could not be made");
        // 0.5 s doubling to about two minutes for volumes, to 32 s for the rest.
        let most = if matches!(error, SandboxError::Volumes(_) | SandboxError::Claims(_)) { 8 } else { 6 };
        let delay = SignedDuration::from_millis(500 << self.sandbox_failures.min(most));
        self.sandbox_failures += 1;
        self.memory.sandbox_retry_at = Timestamp::now().checked_add(delay).ok();
    }

    pub(super) fn container_done(&mut self, name: String, outcome: make_container::Outcome) {
        match outcome.failure {
            Some(failure) => self.memory.failures.insert(name.clone(), failure),
            None => self.memory.failures.remove(&name),
        };
        if let Some(run) = outcome.run {
            // One whose hook failed never was up.
            if outcome.hook_failed.is_none() {
                self.memory.in_post_start.remove(&run.id);
            }
            let id = run.id.clone();
            self.note_resources(&id, &name);
            self.tell("container started");
            // With a hook it was announced before, and may have ended since.
            let known = self.observed.runs.iter().find(|known| known.id == id && known.state == RunState::Exited);
            let run = known.cloned().unwrap_or(run);
            self.saw_run(run.clone());
            if let Some(ended) = self.early.remove(&id) {
                self.look_at(id, ended);
            }
            if let Some(message) = outcome.hook_failed.filter(|_| run.is_running()) {
                let grace = ending::grace(self.pod());
                self.stop_run(run, message, grace);
            }
        }
        self.early.clear();
        self.remove_old_runs(&name);
    }

    /// The newest run and the one before it are kept, for `kubectl logs --previous`.
    pub(super) fn remove_old_runs(&mut self, name: &str) {
        let old: Vec<Run> = self.observed.runs_of(name).skip(2).filter(|run| !run.is_running()).cloned().collect();
        self.remove_runs(old);
    }

    pub(super) fn remove_runs(&mut self, runs: Vec<Run>) {
        if runs.is_empty() {
            return;
        }
        let asked: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
        self.memory.stopping.extend(asked.iter().cloned());
        let node = self.node.clone();
        self.tasks.push(
            async move {
                let gone = cleanup::remove_runs(&node, &runs).await;
                Done::Removed { asked, gone }
            }
            .boxed(),
        );
    }

    pub(super) fn saw_run(&mut self, run: Run) {
        self.changes += 1;
        let id = run.id.clone();
        self.observed.put_run(run);
        if let Some(run) = self.observed.runs.iter().find(|run| run.id == id).cloned() {
            self.note(&run);
        }
    }

    pub(super) fn saw_sandbox(&mut self, sandbox: Sandbox) {
        self.changes += 1;
        self.observed.put_sandbox(sandbox);
    }

    pub(super) fn all_seen(&mut self, changes: u64, observed: Result<Observed, RuntimeError>) {
        match observed {
            Ok(observed) if changes == self.changes => {
                if self.blind {
                    self.recall_resources();
                    if self.stage == Stage::Running && observed.any_running() {
                        self.node.volumes.resume(self.pod());
                        self.node.devices.resume(&self.uid());
                    }
                }
                self.blind = false;
                observed.runs.iter().for_each(|run| self.note(run));
                let present: HashSet<&String> = observed.runs.iter().map(|run| &run.id).collect();
                let gone: Vec<String> = self.probes.keys().filter(|id| !present.contains(id)).cloned().collect();
                gone.iter().for_each(|id| self.forget_probes(id));
                self.observed = observed;
            }
            // Something changed meanwhile: this look is older than what is known.
            Ok(_) => self.look_at_everything(),
            Err(error) => {
                tracing::warn!(pod = pod_id(self.pod()), %error, "the container runtime did not say what the pod has; asking again");
                if self.blind {
                    let (node, uid, changes) = (self.node.clone(), self.uid(), self.changes);
                    let look = async move {
                        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                        Done::AllSeen { changes, observed: observe::pod(&node.runtime, &uid).await }
                    };
                    self.tasks.push(look.boxed());
                }
            }
        }
    }
}
