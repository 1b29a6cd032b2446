//! A worker's probes: begun with a run, ended with it, their verdicts remembered.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::{ProbeTasks, Worker};
use crate::pod::actions::ProbeState;
use crate::pod::make_container;
use crate::pod::observed::Run;
use crate::probes::{self, ProbeKind, Update};

impl Worker {
    /// Probes begin with a run and end with it.
    pub(super) fn note(&mut self, run: &Run) {
        if !run.is_running() {
            self.forget_probes(&run.id);
            return;
        }
        if self.memory.probes.contains_key(&run.id) || self.memory.in_post_start.contains(&run.id) {
            return;
        }
        let Some(container) = make_container::container_of(self.pod(), &run.name) else { return };
        let state = self.first_probe_state(&container, run);
        let started = watch::Sender::new(state.started == Some(true));
        self.memory.probes.insert(run.id.clone(), state);
        if container.liveness_probe.is_none()
            && container.readiness_probe.is_none()
            && container.startup_probe.is_none()
        {
            return;
        }
        let supervisor = self.supervisor.child(&run.name);
        let sandbox = self.observed.sandboxes.iter().find(|sandbox| sandbox.id == run.sandbox_id);
        let host_ip = self.node.config.node_ips.first().map(ToString::to_string);
        let subject = probes::Subject {
            node: self.node.clone(),
            pod: self.wish.pod.clone(),
            container,
            run_id: run.id.clone(),
            started_at: run.started_at.unwrap_or_else(Timestamp::now),
            pod_ip: sandbox
                .and_then(|sandbox| if sandbox.host_network { host_ip } else { sandbox.ips.first().cloned() }),
            started: started.subscribe(),
            ending: self.ending.clone(),
        };
        let mailbox = self.mailbox.clone();
        probes::watch(Arc::new(subject), &supervisor, move |update| mailbox.post(|mail| mail.probes.push(update)));
        self.probes.insert(run.id.clone(), ProbeTasks { supervisor, started });
    }

    /// What is assumed before the first answer: an agent that restarted goes on with what it last said.
    pub(super) fn first_probe_state(&self, container: &k8s_openapi::api::core::v1::Container, run: &Run) -> ProbeState {
        let id = format!("containerd://{}", run.id);
        let published = [&self.status.container_statuses, &self.status.init_container_statuses]
            .into_iter()
            .flat_map(|list| list.iter().flatten())
            .find(|status| status.container_id.as_deref() == Some(id.as_str()));
        let was_started = published.and_then(|status| status.started).unwrap_or(false);
        let was_ready = published.is_some_and(|status| status.ready);
        let started = container.startup_probe.is_none() || was_started;
        ProbeState {
            started: started.then_some(true),
            ready: (container.readiness_probe.is_none() && started) || was_ready,
            ..Default::default()
        }
    }

    pub(super) fn forget_probes(&mut self, id: &str) {
        self.memory.probes.remove(id);
        if let Some(tasks) = self.probes.remove(id) {
            tasks.supervisor.cancel();
        }
    }

    pub(super) fn take_probe(&mut self, update: Update) {
        let run = self.observed.runs.iter().find(|run| run.id == update.run_id);
        let no_readiness = run
            .and_then(|run| make_container::container_of(self.pod(), &run.name))
            .is_some_and(|container| container.readiness_probe.is_none());
        let Some(state) = self.memory.probes.get_mut(&update.run_id) else { return };
        match (update.kind, update.success) {
            (ProbeKind::Startup, true) => {
                state.started = Some(true);
                state.ready |= no_readiness;
                if let Some(tasks) = self.probes.get(&update.run_id) {
                    tasks.started.send_replace(true);
                }
            }
            (ProbeKind::Startup, false) => {
                state.startup_failed = true;
                state.grace = update.grace;
            }
            (ProbeKind::Readiness, success) => state.ready = success,
            (ProbeKind::Liveness, success) => {
                state.liveness_failed = !success;
                state.grace = update.grace;
            }
        }
    }
}
