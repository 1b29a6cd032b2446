//! What others see of a worker's pod: its status, and what the manager reads.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};

use super::{Stage, Worker};
use crate::pod::mailbox::{Snapshot, Source};
use crate::pod::observed::{Run, RunState};
use crate::pod::{conditions, status};

impl Worker {
    /// Whether a container that was killed to be made anew has ended and its next run is on its way. Nobody
    /// is told of the moment in between, as the status of Kubernetes' kubelet waits for the end of a sync: a
    /// container that is changed stays ready if its next run is at once.
    fn is_replacing(&self) -> bool {
        let starting = self.setup.as_ref().and(self.starting.as_ref());
        let between =
            |run: &Run| self.memory.stopping.contains(&run.id) || starting.is_some_and(|(name, _)| *name == run.name);
        self.stage == Stage::Running
            && self.memory.killed.iter().filter_map(|id| self.observed.runs.iter().find(|run| run.id == *id)).any(
                |run| {
                    let newest = self.observed.newest(&run.name).is_some_and(|newest| newest.id == run.id);
                    newest && run.state == RunState::Exited && between(run)
                },
            )
    }

    pub(super) fn publish(&mut self, now: Timestamp) {
        let mut kept_quiet = self.wish.removed;
        if !self.blind && self.wish.source != Source::Runtime {
            let verdict = match &self.stage {
                Stage::Ending { verdict, .. } | Stage::Cleaning { verdict } | Stage::Ended { verdict } => {
                    verdict.as_ref()
                }
                _ => None,
            };
            let mut generated = status::generate(&status::View {
                pod: &self.wish.pod,
                last: &self.status,
                observed: &self.observed,
                memory: &self.memory,
                waiting: &self.waiting,
                ending: self.stage != Stage::Running,
                verdict,
                host_ips: &self.node.config.node_ips,
                recursive_read_only_works: self.node.runtime_features.read().recursive_read_only_mounts,
                resize: status::Resize {
                    pending: self.wish.resize_pending.as_ref(),
                    in_progress: self.resizing.in_progress(),
                    error: self.resizing.error.as_deref(),
                    group: self.resizing.group.as_ref(),
                },
                now,
            });
            let mut devices = self.node.devices.health(&self.uid());
            for (container, claimed) in self.node.dra.health(&self.wish.pod) {
                devices.entry(container).or_default().extend(claimed);
            }
            status::tell_devices(&mut generated, devices, &self.status);
            let may_delete =
                matches!(self.stage, Stage::Ended { .. }) && self.pod().metadata.deletion_timestamp.is_some();
            kept_quiet |= self.is_replacing() && !restarts_all(&generated);
            if !kept_quiet && let Some(uid) = self.wish.api_uid.clone() {
                self.node.statuses.set(&self.wish.pod, uid, &generated, may_delete);
            }
            if !is_ready(&self.status) && is_ready(&generated) {
                self.tell("ready");
            }
            self.status = generated;
        }
        let mut pod = Pod::clone(&self.wish.pod);
        pod.status = Some(self.status.clone());
        let pod = Arc::new(pod);
        if !kept_quiet {
            self.node.feed.show(&pod, !self.blind);
        }
        self.mailbox.publish(Snapshot {
            pod,
            observed: Arc::new(self.observed.clone()),
            busy: self.setup.is_some(),
            ended: matches!(self.stage, Stage::Ended { .. } | Stage::Purging | Stage::Gone),
        });
    }
}

fn is_ready(status: &PodStatus) -> bool {
    is_true(status, "Ready")
}

/// Whether everything in the pod is being made anew, which is told.
fn restarts_all(status: &PodStatus) -> bool {
    is_true(status, conditions::ALL_RESTARTING)
}

fn is_true(status: &PodStatus, name: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == name && condition.status == "True")
}

/// The kubelet's own status with the conditions of others as the API has them now.
pub(super) fn keep_own(own: &PodStatus, theirs: Option<&PodStatus>) -> PodStatus {
    let Some(theirs) = theirs else { return own.clone() };
    let mine = |condition: &PodCondition| conditions::is_ours(&condition.type_, condition.reason.as_deref());
    let mut status = own.clone();
    let mut conditions: Vec<_> =
        theirs.conditions.iter().flatten().filter(|condition| !mine(condition)).cloned().collect();
    conditions.extend(own.conditions.iter().flatten().filter(|condition| mine(condition)).cloned());
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    status.resource_claim_statuses = theirs.resource_claim_statuses.clone();
    status.extended_resource_claim_status = theirs.extended_resource_claim_status.clone();
    status
}
