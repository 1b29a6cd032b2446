//! What to do next about a pod that should run (`kuberuntime_manager.go: computePodActions`). Pure.
//!
//! [`decide`] looks at the pod, at what the runtime has, and at what is under way, and answers with at
//! most one step that builds (a sandbox or one container: containers start in order, each after the
//! one before it has finished its postStart hook), any number of kills, and why each container that
//! does not run is waiting. The worker executes, looks again, and asks again.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::backoff::{Backoff, go_duration};
use super::observed::{Observed, Run, RunState};
use super::restart::{self, should_restart};
use crate::resize::Given;
use crate::spec::container::{from_ephemeral, hash};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContainerKind {
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    Main,
    Ephemeral,
}

/// A step that builds. At most one is under way per pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setup {
    Sandbox { attempt: u32 },
    Container { name: String, kind: ContainerKind, restart_count: u32, sandbox_id: String },
}

/// A container that must go while its pod stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    pub run_id: String,
    pub name: String,
    /// For the event `Killing`.
    pub message: String,
    /// A probe's own grace period, seconds. Without one it is the pod's, and with zero there is no
    /// preStop hook either.
    pub grace: Option<i64>,
}

/// Why a container does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

/// What failed last when a container was to be started, until it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub waiting: Waiting,
    /// Not to be tried before.
    pub retry_at: Timestamp,
}

/// What probes said of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeState {
    /// None while a startup probe has not decided. True when there is none.
    pub started: Option<bool>,
    pub ready: bool,
    pub liveness_failed: bool,
    pub startup_failed: bool,
    /// `terminationGracePeriodSeconds` of the probe that failed.
    pub grace: Option<i64>,
}

/// What the worker remembers between decisions; nothing of it must survive a restart.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// By container name.
    pub failures: HashMap<String, Failure>,
    /// A sandbox that could not be made is not tried before.
    pub sandbox_retry_at: Option<Timestamp>,
    /// Container restarts, by [`backoff_key`].
    pub restarts: Backoff,
    /// By run id.
    pub probes: HashMap<String, ProbeState>,
    /// Runs whose postStart hook has not finished.
    pub in_post_start: HashSet<String>,
    /// Runs that are being stopped.
    pub stopping: HashSet<String>,
    /// Runs that were killed to be made anew: they did not fail by themselves.
    pub killed: HashSet<String>,
    /// What runs were given last, by run id.
    pub applied: HashMap<String, Given>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub setup: Option<Setup>,
    pub kills: Vec<Kill>,
    /// The sandbox is useless: stop it, and with it whatever runs inside.
    pub stop_sandbox: Option<String>,
    /// By container name: those that wait for a reason of their own.
    pub waiting: BTreeMap<String, Waiting>,
    /// Look again then, if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// Everything ended and nothing will be restarted.
    pub finished: bool,
    /// All containers are to be made anew, and none runs any more: the runs to remove first, in order.
    pub remove: Vec<String>,
}

impl Decision {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// Everything a decision depends on.
pub struct View<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    pub memory: &'a Memory,
    /// A step that builds is under way.
    pub busy: bool,
    /// The container that it makes.
    pub starting: Option<&'a str>,
    pub now: Timestamp,
}

pub fn decide(view: &View<'_>) -> Decision {
    let mut decision = Decision::default();
    let Some(spec) = view.pod.spec.as_ref() else { return decision };
    if let Some(source) = restart::source_of_restart_all(spec, view.observed) {
        decide_restart_all(view, spec, source, &mut decision);
        return decision;
    }
    if is_finished(spec, view.observed) {
        decision.finished = true;
        return decision;
    }
    match view.observed.ready_sandbox() {
        Some(sandbox) if sandbox.host_network || !sandbox.ips.is_empty() => {
            // A pod has one. Another was made in vain when the runtime took too long to say so.
            decision.stop_sandbox = view.observed.superseded().map(|older| older.id.clone());
            decide_containers(view, spec, &sandbox.id.clone(), &mut decision);
        }
        _ => decide_sandbox(view, spec, &mut decision),
    }
    if view.busy {
        decision.setup = None;
    }
    decision
}

/// Every container goes at once, and is made anew as if the pod had just begun. The run that asked for
/// it is removed last: whoever looks in between still sees that it did.
fn decide_restart_all(view: &View<'_>, spec: &PodSpec, source: &Run, decision: &mut Decision) {
    let ours = |run: &&Run| restart::containers(spec).any(|(container, _)| container.name == run.name);
    let runs: Vec<&Run> = view.observed.runs.iter().filter(ours).collect();
    decision.kills = runs
        .iter()
        .filter(|run| run.is_running())
        .map(|run| Kill {
            run_id: run.id.clone(),
            name: run.name.clone(),
            message: format!("Stopping container {}: all containers of the pod are restarted", run.name),
            grace: Some(0),
        })
        .collect();
    if decision.kills.is_empty() && !view.busy {
        let others = runs.iter().filter(|run| run.id != source.id).map(|run| run.id.clone());
        decision.remove = others.chain([source.id.clone()]).collect();
    }
}

/// There is no sandbox to use: clear away the newest one if it still holds anything, then make one.
fn decide_sandbox(view: &View<'_>, spec: &PodSpec, decision: &mut Decision) {
    let newest = view.observed.sandboxes.first();
    // Backed-off and failed containers keep saying so while there is no sandbox.
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        if let Some(failure) = view.memory.failures.get(&container.name) {
            decision.waiting.insert(container.name.clone(), failure.waiting.clone());
        }
    }
    if let Some(sandbox) = newest {
        let holds = view.observed.runs.iter().any(|run| run.sandbox_id == sandbox.id && run.is_running());
        if sandbox.ready || holds {
            decision.stop_sandbox = Some(sandbox.id.clone());
            return;
        }
    }
    if let Some(at) = view.memory.sandbox_retry_at.filter(|at| *at > view.now) {
        decision.wake(at);
        return;
    }
    let attempt = newest.map_or(0, |sandbox| sandbox.attempt + 1);
    decision.setup = Some(Setup::Sandbox { attempt });
}

fn decide_containers(view: &View<'_>, spec: &PodSpec, sandbox_id: &str, decision: &mut Decision) {
    let initialized = decide_init(view, spec, sandbox_id, decision);
    for ephemeral in spec.ephemeral_containers.iter().flatten() {
        // Ephemeral containers run once, and never again.
        if view.observed.newest(&ephemeral.name).is_none() {
            try_start(view, &from_ephemeral(ephemeral), ContainerKind::Ephemeral, None, sandbox_id, decision);
        }
    }
    if !initialized {
        return;
    }
    for container in &spec.containers {
        decide_one(view, spec, container, ContainerKind::Main, sandbox_id, decision);
    }
}

/// Returns whether the main containers may start.
fn decide_init(view: &View<'_>, spec: &PodSpec, sandbox_id: &str, decision: &mut Decision) -> bool {
    // Once a main container exists, the plain init containers are history, even if removed.
    let past = spec.containers.iter().any(|container| view.observed.newest_in(&container.name, sandbox_id).is_some());
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            let started = decide_one(view, spec, container, ContainerKind::Sidecar, sandbox_id, decision);
            if !started && !past {
                return false;
            }
            continue;
        }
        if past {
            continue;
        }
        match view.observed.newest_in(&container.name, sandbox_id) {
            Some(run) if run.state == RunState::Exited && run.exit_code == 0 => {}
            Some(run) if run.is_running() => return false,
            Some(run)
                if run.state == RunState::Exited && !should_restart(spec, container, ContainerKind::Init, run) =>
            {
                return false;
            }
            _ => {
                decide_one(view, spec, container, ContainerKind::Init, sandbox_id, decision);
                return false;
            }
        }
    }
    true
}

/// Returns whether the container is up and has started (so that what comes after it may go on).
fn decide_one(
    view: &View<'_>,
    spec: &PodSpec,
    container: &Container,
    kind: ContainerKind,
    sandbox_id: &str,
    decision: &mut Decision,
) -> bool {
    let current = view.observed.newest_in(&container.name, sandbox_id);
    match current {
        Some(run) if run.is_running() => {
            if view.memory.stopping.contains(&run.id) {
                return false;
            }
            if let Some(kill) = reason_to_kill(view, spec, container, kind, run) {
                decision.kills.push(kill);
                return false;
            }
            let started = view.memory.probes.get(&run.id).is_none_or(|probe| probe.started == Some(true));
            started && !view.memory.in_post_start.contains(&run.id)
        }
        Some(run) if run.state == RunState::Exited => {
            if should_restart(spec, container, kind, run) {
                try_start(view, container, kind, Some(run), sandbox_id, decision);
            }
            false
        }
        // Made but never started, or lost: begin again.
        Some(run) => {
            try_start(view, container, kind, Some(run), sandbox_id, decision);
            false
        }
        None => {
            // A container that succeeded in an earlier sandbox stays so.
            let earlier = view.observed.newest(&container.name);
            let done = earlier.is_some_and(|run| {
                run.state == RunState::Exited
                    && kind == ContainerKind::Main
                    && !should_restart(spec, container, kind, run)
            });
            if !done {
                try_start(view, container, kind, earlier, sandbox_id, decision);
            }
            false
        }
    }
}

fn reason_to_kill(
    view: &View<'_>,
    spec: &PodSpec,
    container: &Container,
    kind: ContainerKind,
    run: &Run,
) -> Option<Kill> {
    let kill =
        |message: String, grace| Some(Kill { run_id: run.id.clone(), name: container.name.clone(), message, grace });
    let name = &container.name;
    let kind_name = if kind == ContainerKind::Main { "Container" } else { "Init container" };
    if !run.hash.is_empty() && run.hash != hash(container) {
        return kill(format!("{kind_name} {name} definition changed, will be restarted"), None);
    }
    let probe = view.memory.probes.get(&run.id)?;
    // Whatever it ends with, a killed container failed.
    let again = if restart::restarts_after(spec, container, kind, KILLED) { ", will be restarted" } else { "" };
    if probe.liveness_failed {
        return kill(format!("{kind_name} {name} failed liveness probe{again}"), probe.grace);
    }
    if probe.startup_failed {
        return kill(format!("{kind_name} {name} failed startup probe{again}"), probe.grace);
    }
    None
}

/// What a container's back-off goes by: another image or other resources may mend it, and begin anew
/// (`kuberuntime/helpers.go: GetBackoffKey`).
pub fn backoff_key(container: &Container) -> String {
    let resources = container.resources.as_ref().and_then(|resources| serde_json::to_string(resources).ok());
    let image = container.image.as_deref().unwrap_or_default();
    format!("{} {image} {}", container.name, resources.unwrap_or_default())
}

/// Since when the back-off of a container that ended counts. A run that was killed to be made anew is
/// followed by the next at once: it counts from the end of the run before it, unless that one's
/// back-off was still in force (`kuberuntime_manager.go: doBackOff` sees the runs from before the kill).
pub fn failed_at(observed: &Observed, memory: &Memory, key: &str, exited: &Run) -> Option<Timestamp> {
    let finished_at = exited.finished_at?;
    if !memory.killed.contains(&exited.id) {
        return Some(finished_at);
    }
    let mut older = observed.runs_of(&exited.name).skip_while(|run| run.id != exited.id).skip(1);
    let before = older.find(|run| run.state == RunState::Exited)?.finished_at?;
    let in_force = memory.restarts.waiting(key, before, finished_at).is_some();
    Some(if in_force { finished_at } else { before })
}

/// Starts the container, or says what it waits for.
fn try_start(
    view: &View<'_>,
    container: &Container,
    kind: ContainerKind,
    earlier: Option<&Run>,
    sandbox_id: &str,
    decision: &mut Decision,
) {
    let name = container.name.as_str();
    if let Some(failure) = view.memory.failures.get(name) {
        decision.waiting.insert(name.to_owned(), failure.waiting.clone());
        if failure.retry_at > view.now {
            decision.wake(failure.retry_at);
            return;
        }
    }
    if view.starting == Some(name) {
        return;
    }
    let exited = earlier.filter(|run| run.state == RunState::Exited);
    let key = backoff_key(container);
    if let Some(failed_at) = exited.and_then(|run| failed_at(view.observed, view.memory, &key, run))
        && let Some((delay, until)) = view.memory.restarts.waiting(&key, failed_at, view.now)
    {
        decision.waiting.insert(name.to_owned(), crash_loop(view.pod, name, &go_duration(delay)));
        decision.wake(until);
        return;
    }
    if decision.setup.is_none() {
        let restart_count = earlier.map_or(0, |run| run.restart_count + 1);
        decision.setup =
            Some(Setup::Container { name: name.to_owned(), kind, restart_count, sandbox_id: sandbox_id.to_owned() });
    }
}

/// The exit code of a process that SIGKILL ended.
const KILLED: i32 = 137;

pub const CRASH_LOOP: &str = "CrashLoopBackOff";

fn crash_loop(pod: &Pod, name: &str, delay: &str) -> Waiting {
    Waiting {
        reason: CRASH_LOOP.to_owned(),
        message: format!("back-off {delay} restarting failed container={name} pod={}", pod_id(pod)),
    }
}

/// `name_namespace(uid)`, as Kubernetes' messages name a pod.
pub fn pod_id(pod: &Pod) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether the pod has come to its end: every main container ended for good, or an init container
/// failed for good.
pub fn is_finished(spec: &PodSpec, observed: &Observed) -> bool {
    let init_failed =
        spec.init_containers.iter().flatten().filter(|container| !is_sidecar(container)).any(|container| {
            observed.newest(&container.name).is_some_and(|run| {
                run.state == RunState::Exited
                    && run.exit_code != 0
                    && !should_restart(spec, container, ContainerKind::Init, run)
            })
        });
    let any_main = spec.containers.iter().any(|container| observed.newest(&container.name).is_some());
    if init_failed && !any_main {
        return true;
    }
    !spec.containers.is_empty()
        && spec.containers.iter().all(|container| {
            observed.newest(&container.name).is_some_and(|run| {
                run.state == RunState::Exited && !should_restart(spec, container, ContainerKind::Main, run)
            })
        })
}

#[cfg(test)]
#[path = "actions_tests.rs"]
mod tests;

/// Made-up runs and sandboxes for the tests of this directory.
#[cfg(test)]
pub mod tests_support {
    use super::*;
    use crate::pod::observed::Sandbox;

    /// A run `<name>-<restart count>`, made `restart_count` minutes after the epoch and a second long.
    pub fn run(name: &str, sandbox: &str, state: RunState, restart_count: u32) -> Run {
        let at = |second: i64| Timestamp::from_second(1000 + i64::from(restart_count) * 60 + second).unwrap();
        let started = !matches!(state, RunState::Created);
        Run {
            id: format!("{name}-{restart_count}"),
            name: name.to_owned(),
            sandbox_id: sandbox.to_owned(),
            restart_count,
            state,
            created_at: at(0),
            started_at: started.then(|| at(1)),
            finished_at: (state == RunState::Exited).then(|| at(2)),
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: "image".to_owned(),
            image_id: "sha256:1".to_owned(),
            hash: String::new(),
            termination_path: String::new(),
            termination_policy: String::new(),
            log_path: String::new(),
            termination_file: None,
            user: None,
            termination_grace: None,
            pre_stop: None,
        }
    }

    pub fn exited(name: &str, sandbox: &str, code: i32, restart_count: u32) -> Run {
        Run { exit_code: code, ..run(name, sandbox, RunState::Exited, restart_count) }
    }

    pub fn sandbox(id: &str, attempt: u32, ready: bool) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            attempt,
            ready,
            created_at: Timestamp::from_second(900 + i64::from(attempt)).unwrap(),
            ips: vec!["10.0.0.9".to_owned()],
            host_network: false,
        }
    }
}
