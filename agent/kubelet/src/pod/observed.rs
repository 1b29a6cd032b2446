//! What the runtime has for one pod: sandboxes and every run of every container, newest first.
//!
//! Built from CRI's answers ([`Sandbox::from_status`], [`Run::from_status`]); all that decisions and
//! the pod's status need is here, so that they are pure.

use std::collections::HashMap;

use jiff::Timestamp;
use proto::runtime::v1 as cri;

use super::labels;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_at: Timestamp,
    /// Empty in the host's network.
    pub ips: Vec<String>,
    pub host_network: bool,
}

/// In the order in which a run goes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RunState {
    /// Made, never started.
    Created,
    /// The runtime lost it, and may find it again.
    Unknown,
    Running,
    Exited,
}

/// One run of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub restart_count: u32,
    pub state: RunState,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    /// The runtime's, e.g. `Completed`, `Error`, `OOMKilled`, `StartError`.
    pub reason: String,
    /// The runtime's, or what the container left as its termination message.
    pub message: String,
    /// The runtime's name for the image: as a rule its first tag, in full.
    pub image: String,
    /// The image as the runtime identifies it.
    pub image_id: String,
    pub hash: String,
    pub termination_path: String,
    pub termination_policy: String,
    pub log_path: String,
    /// Where the termination message lies on the host.
    pub termination_file: Option<String>,
    pub user: Option<cri::LinuxContainerUser>,
    /// Seconds, as when the container was made.
    pub termination_grace: Option<i64>,
    /// The preStop hook's JSON, for containers whose pod is no longer known.
    pub pre_stop: Option<String>,
}

impl Sandbox {
    pub fn from_status(status: &cri::PodSandboxStatus) -> Self {
        let network = status.network.as_ref();
        let mut ips: Vec<String> =
            network.map(|network| network.ip.clone()).filter(|ip| !ip.is_empty()).into_iter().collect();
        ips.extend(network.into_iter().flat_map(|network| network.additional_ips.iter().map(|more| more.ip.clone())));
        let options =
            status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()).and_then(|n| n.options.as_ref());
        Self {
            id: status.id.clone(),
            attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            ready: status.state == cri::PodSandboxState::SandboxReady as i32,
            created_at: nanos(status.created_at).unwrap_or_default(),
            ips,
            host_network: options.is_some_and(|options| options.network == cri::NamespaceMode::Node as i32),
        }
    }
}

impl Run {
    /// `sandbox_id` is what only CRI's list has.
    pub fn from_status(status: &cri::ContainerStatus, sandbox_id: &str) -> Self {
        let metadata = status.metadata.clone().unwrap_or_default();
        let annotation = |key: &str| status.annotations.get(key).cloned();
        let termination_path = annotation(labels::CONTAINER_TERMINATION_PATH).unwrap_or_default();
        let termination_file = status
            .mounts
            .iter()
            .find(|mount| !termination_path.is_empty() && mount.container_path == termination_path)
            .map(|mount| mount.host_path.clone());
        Self {
            id: status.id.clone(),
            name: status.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
            sandbox_id: sandbox_id.to_owned(),
            restart_count: annotation(labels::CONTAINER_RESTART_COUNT)
                .and_then(|text| text.parse().ok())
                .unwrap_or(metadata.attempt),
            state: match status.state() {
                cri::ContainerState::ContainerCreated => RunState::Created,
                cri::ContainerState::ContainerRunning => RunState::Running,
                cri::ContainerState::ContainerExited => RunState::Exited,
                cri::ContainerState::ContainerUnknown => RunState::Unknown,
            },
            created_at: nanos(status.created_at).unwrap_or_default(),
            started_at: nanos(status.started_at),
            finished_at: nanos(status.finished_at),
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
            image: status.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
            image_id: status.image_ref.clone(),
            hash: annotation(labels::CONTAINER_HASH).unwrap_or_default(),
            termination_policy: annotation(labels::CONTAINER_TERMINATION_POLICY).unwrap_or_default(),
            termination_path,
            log_path: status.log_path.clone(),
            termination_file,
            user: status.user.as_ref().and_then(|user| user.linux.clone()),
            termination_grace: annotation(labels::POD_TERMINATION_GRACE).and_then(|text| text.parse().ok()),
            pre_stop: annotation(labels::CONTAINER_PRE_STOP),
        }
    }

    pub fn is_running(&self) -> bool {
        self.state == RunState::Running
    }
}

/// CRI's nanoseconds; zero and below are unset.
fn nanos(value: i64) -> Option<Timestamp> {
    (value > 0).then(|| Timestamp::from_nanosecond(i128::from(value)).ok()).flatten()
}

/// Everything there is of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Newest first.
    pub runs: Vec<Run>,
}

impl Observed {
    pub fn new(mut sandboxes: Vec<Sandbox>, mut runs: Vec<Run>) -> Self {
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.created_at, sandbox.attempt)));
        runs.sort_by_key(|run| std::cmp::Reverse((run.created_at, run.restart_count)));
        Self { sandboxes, runs }
    }

    /// The newest sandbox, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// An older sandbox that is still ready.
    pub fn superseded(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().skip(1).find(|sandbox| sandbox.ready)
    }

    /// The newest run of a container.
    pub fn newest(&self, name: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.name == name)
    }

    /// The newest run of a container within one sandbox.
    pub fn newest_in(&self, name: &str, sandbox_id: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.name == name && run.sandbox_id == sandbox_id)
    }

    /// All runs of a container, newest first.
    pub fn runs_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.name == name)
    }

    pub fn any_running(&self) -> bool {
        self.runs.iter().any(Run::is_running)
    }

    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.runs.is_empty()
    }

    pub fn put_sandbox(&mut self, sandbox: Sandbox) {
        let mut sandboxes = std::mem::take(&mut self.sandboxes);
        sandboxes.retain(|known| known.id != sandbox.id);
        sandboxes.push(sandbox);
        *self = Self::new(sandboxes, std::mem::take(&mut self.runs));
    }

    /// A run never goes back to an earlier state: a look that says so is older than what is known.
    pub fn put_run(&mut self, run: Run) {
        if self.runs.iter().any(|known| known.id == run.id && known.state > run.state && run.state != RunState::Unknown)
        {
            return;
        }
        let mut runs = std::mem::take(&mut self.runs);
        runs.retain(|known| known.id != run.id);
        runs.push(run);
        *self = Self::new(std::mem::take(&mut self.sandboxes), runs);
    }

    pub fn forget_run(&mut self, id: &str) {
        self.runs.retain(|run| run.id != id);
    }

    /// What the audit compares: ids and states only.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            sandboxes: self.sandboxes.iter().map(|sandbox| (sandbox.id.clone(), sandbox.ready)).collect(),
            runs: self.runs.iter().map(|run| (run.id.clone(), run.state)).collect(),
        }
    }
}

/// Ids and states of a pod's sandboxes and runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint {
    pub sandboxes: HashMap<String, bool>,
    pub runs: HashMap<String, RunState>,
}

impl Fingerprint {
    /// Groups CRI's lists by pod UID.
    pub fn by_pod(sandboxes: &[cri::PodSandbox], containers: &[cri::Container]) -> HashMap<String, Fingerprint> {
        let mut pods: HashMap<String, Fingerprint> = HashMap::new();
        for sandbox in sandboxes {
            if let Some(uid) = sandbox.labels.get(labels::POD_UID) {
                let ready = sandbox.state == cri::PodSandboxState::SandboxReady as i32;
                pods.entry(uid.clone()).or_default().sandboxes.insert(sandbox.id.clone(), ready);
            }
        }
        for container in containers {
            if let Some(uid) = container.labels.get(labels::POD_UID) {
                let state = match container.state() {
                    cri::ContainerState::ContainerCreated => RunState::Created,
                    cri::ContainerState::ContainerRunning => RunState::Running,
                    cri::ContainerState::ContainerExited => RunState::Exited,
                    cri::ContainerState::ContainerUnknown => RunState::Unknown,
                };
                pods.entry(uid.clone()).or_default().runs.insert(container.id.clone(), state);
            }
        }
        pods
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::actions::tests_support::run;

    #[test]
    fn a_look_that_comes_late_does_not_undo_a_start() {
        let mut observed = Observed::default();
        for (seen, state) in [
            (RunState::Created, RunState::Created),
            (RunState::Running, RunState::Running),
            (RunState::Created, RunState::Running),
            (RunState::Exited, RunState::Exited),
            (RunState::Running, RunState::Exited),
        ] {
            observed.put_run(run("a", "sb", seen, 0));
            assert_eq!(observed.newest("a").unwrap().state, state, "{seen:?}");
        }
    }
}
