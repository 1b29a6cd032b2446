//! One task per pod: it holds the latest wish, looks at what runs, decides, and executes.
//!
//! The state machine is [`Stage`]. In each turn [`Worker::turn`] asks the pure rules
//! ([`super::actions`], [`super::ending`]) what to do and starts it; the loop then waits for whatever
//! comes first: a new wish, mail, the end of something under way, or a time. Whatever is under way
//! belongs to the worker and is dropped with it, so one stuck call to the runtime stalls only the
//! step it belongs to, and no other pod.
//!
//! `arrivals`: what reaches it; `leaving`: its way down; `telling`: what others see of it.

mod arrivals;
mod leaving;
mod probing;
mod resizing;
mod telling;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use component::{EventType, Supervisor};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::watch;

use super::actions::{self, Decision, Memory, Setup, Waiting, pod_id};
use super::mailbox::{Mailbox, Wish};
use super::make_sandbox::SandboxError;
use super::observed::{Observed, Run, RunState, Sandbox};
use super::status::{self, Cause, Verdict};
use super::{ending, isolation, make_container, make_sandbox};
use crate::context::NodeContext;
use crate::cri::RuntimeError;
use crate::resize::{self, Given};
use crate::retry::Failures;

/// How soon giving back what a pod had is tried again, doubling...
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// ... up to this, as Kubernetes' operations on volumes.
const LONGEST_RETRY: Duration = Duration::from_secs(122);

/// How far a pod is. Only ever goes down this list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Containers are started and kept.
    Running,
    /// Everything is being stopped, within `grace` seconds.
    Ending {
        grace: i64,
        verdict: Option<Verdict>,
    },
    /// Nothing runs; volumes and cgroup are being given back.
    Cleaning {
        verdict: Option<Verdict>,
    },
    /// Only the object is left; dead containers are kept for their logs.
    Ended {
        verdict: Option<Verdict>,
    },
    /// The object is gone: what is left in the runtime and on disk is being removed.
    Purging,
    Gone,
}

/// How something that was under way ended.
enum Done {
    Sandbox(Result<Sandbox, SandboxError>),
    Container {
        name: String,
        outcome: make_container::Outcome,
    },
    Stopped {
        id: String,
        result: Result<Run, RuntimeError>,
    },
    SandboxStopped {
        id: String,
        result: Result<(), RuntimeError>,
    },
    Seen {
        id: String,
        run: Result<Run, RuntimeError>,
    },
    SandboxSeen(Result<Sandbox, RuntimeError>),
    AllSeen {
        changes: u64,
        observed: Result<Observed, RuntimeError>,
    },
    /// Those that were to be removed, and those that are.
    Removed {
        asked: Vec<String>,
        gone: Vec<String>,
    },
    Resized(resizing::Step),
    Cleaned(Result<(), String>),
    Purged(Result<(), String>),
}

struct ProbeTasks {
    supervisor: Supervisor,
    started: watch::Sender<bool>,
}

pub struct Worker {
    node: Arc<NodeContext>,
    mailbox: Arc<Mailbox>,
    wishes: watch::Receiver<Wish>,
    wish: Wish,
    supervisor: Supervisor,
    stage: Stage,
    observed: Observed,
    /// Counts what was put into `observed`, so that an older look does not undo it.
    changes: u64,
    /// The runtime has not told yet what it has of this pod.
    blind: bool,
    memory: Memory,
    waiting: BTreeMap<String, Waiting>,
    status: PodStatus,
    /// The step that builds, if one is under way.
    setup: Option<BoxFuture<'static, Done>>,
    /// Everything else that is under way.
    tasks: FuturesUnordered<BoxFuture<'static, Done>>,
    probes: HashMap<String, ProbeTasks>,
    resizing: resizing::Resizing,
    /// The container that is being made, and what it was given.
    starting: Option<(String, Given)>,
    ending: Arc<AtomicBool>,
    stopped_sandboxes: HashSet<String>,
    /// The sandbox whose network policies were waited for.
    isolated: Option<String>,
    /// The useless sandbox whose end was told as an event.
    sandbox_told: Option<String>,
    /// What runs, for those that wait for its end.
    running: watch::Sender<HashSet<String>>,
    /// Changes of containers that were not known yet.
    early: HashMap<String, bool>,
    sandbox_failures: u32,
    /// Of giving back what the pod had.
    leaving: Failures,
    /// Not to be tried again before.
    pause_until: Option<Timestamp>,
    /// Runs whose back-off was told as an event.
    backoff_told: HashSet<String>,
    wake_at: Option<Timestamp>,
}

impl Worker {
    /// `known` says that the runtime has something of this pod, which must be seen before anything is
    /// decided.
    pub fn new(node: Arc<NodeContext>, mailbox: Arc<Mailbox>, supervisor: Supervisor, known: bool) -> Self {
        let mut wishes = mailbox.wish.subscribe();
        let wish = wishes.borrow_and_update().clone();
        Self {
            status: wish.pod.status.clone().unwrap_or_default(),
            node,
            mailbox,
            wishes,
            wish,
            supervisor,
            stage: Stage::Running,
            observed: Observed::default(),
            changes: 0,
            blind: known,
            memory: Memory::default(),
            waiting: BTreeMap::new(),
            setup: None,
            tasks: FuturesUnordered::new(),
            probes: HashMap::new(),
            resizing: resizing::Resizing::default(),
            starting: None,
            ending: Arc::default(),
            stopped_sandboxes: HashSet::new(),
            isolated: None,
            sandbox_told: None,
            running: watch::Sender::default(),
            early: HashMap::new(),
            sandbox_failures: 0,
            leaving: Failures::new(FIRST_RETRY, LONGEST_RETRY),
            pause_until: None,
            backoff_told: HashSet::new(),
            wake_at: None,
        }
    }

    fn pod(&self) -> &Arc<Pod> {
        &self.wish.pod
    }

    fn uid(&self) -> String {
        self.pod().metadata.uid.clone().unwrap_or_default()
    }

    /// A step in the pod's life, for whoever measures it.
    fn tell(&self, step: &str) {
        component::timeline(&full_name(self.pod()), step);
    }

    /// Runs until the pod is gone.
    pub async fn run(mut self) {
        self.tell("seen by node");
        if self.blind {
            self.look_at_everything();
        }
        loop {
            self.turn();
            if self.stage == Stage::Gone {
                return;
            }
            let wake = sleep_until(self.wake_at);
            tokio::select! {
                changed = self.wishes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let wish = self.wishes.borrow_and_update().clone();
                    self.adopt(wish);
                }
                () = self.mailbox.arrived() => {
                    let mail = self.mailbox.take();
                    self.read(mail);
                }
                done = under_way(&mut self.setup) => {
                    self.setup = None;
                    self.finish(done);
                }
                Some(done) = self.tasks.next() => self.finish(done),
                () = wake => {}
            }
        }
    }

    /// Decides and starts what is decided, until nothing changes at once; then publishes.
    fn turn(&mut self) {
        self.wake_at = None;
        let now = Timestamp::now();
        let running = self.observed.runs.iter().filter(|run| run.is_running()).map(|run| run.id.clone()).collect();
        self.running.send_if_modified(|known| {
            let changed = *known != running;
            *known = running;
            changed
        });
        if self.pause_until.is_some_and(|until| until <= now) {
            self.pause_until = None;
        }
        if !self.blind {
            loop {
                let before = self.stage.clone();
                match self.stage.clone() {
                    Stage::Running => self.keep_running(now),
                    Stage::Ending { grace, verdict } => self.keep_ending(grace, verdict),
                    Stage::Cleaning { .. } => self.keep_cleaning(),
                    Stage::Ended { .. } => self.stay_ended(),
                    Stage::Purging | Stage::Gone => {}
                }
                if self.stage == before {
                    break;
                }
            }
        }
        if let Some(until) = self.pause_until {
            self.wake(until);
        }
        self.publish(now);
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    // ---- Running

    fn keep_running(&mut self, now: Timestamp) {
        if let Some((grace, verdict)) = self.reason_to_end(now) {
            return self.begin_ending(grace, verdict);
        }
        let decision = actions::decide(&actions::View {
            pod: &self.wish.pod,
            observed: &self.observed,
            memory: &self.memory,
            busy: self.setup.is_some(),
            starting: self.setup.as_ref().and(self.starting.as_ref()).map(|(name, _)| name.as_str()),
            now,
        });
        if decision.finished && self.setup.is_none() {
            return self.begin_ending(ending::grace(self.pod()), None);
        }
        self.carry_out(decision);
        self.keep_resources(now);
    }

    /// Why the pod has to end although its containers may still run.
    fn reason_to_end(&mut self, now: Timestamp) -> Option<(i64, Option<Verdict>)> {
        let grace = ending::grace(self.pod());
        if self.wish.removed || self.pod().metadata.deletion_timestamp.is_some() {
            return Some((grace, None));
        }
        if let Some((verdict, grace)) = self.wish.verdict.clone() {
            return Some((grace, Some(verdict)));
        }
        if matches!(self.status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            return Some((grace, None));
        }
        let limit = self.pod().spec.as_ref().and_then(|spec| spec.active_deadline_seconds)?;
        let start = self.status.start_time.as_ref().map(|time| time.0)?;
        let deadline = start.checked_add(SignedDuration::from_secs(limit)).ok()?;
        if now < deadline {
            self.wake(deadline);
            return None;
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.node.event(self.pod(), EventType::Normal, "DeadlineExceeded", message.clone());
        Some((grace, Some(Verdict { cause: Cause::Deadline, reason: "DeadlineExceeded".to_owned(), message })))
    }

    fn carry_out(&mut self, decision: Decision) {
        self.tell_backoff(&decision);
        self.waiting = decision.waiting;
        if let Some(at) = decision.wake_at {
            self.wake(at);
        }
        // What could not be stopped is tried again when the pause is over, not as fast as it fails.
        if self.pause_until.is_none() {
            for kill in decision.kills {
                if let Some(run) = self.observed.runs.iter().find(|run| run.id == kill.run_id).cloned() {
                    let grace = kill.grace.unwrap_or_else(|| ending::grace(self.pod()));
                    self.memory.killed.insert(run.id.clone());
                    self.stop_run(run, kill.message, grace);
                }
            }
            let removed = |run: &&Run| decision.remove.contains(&run.id) && !self.memory.stopping.contains(&run.id);
            let mut runs: Vec<Run> = self.observed.runs.iter().filter(removed).cloned().collect();
            runs.sort_by_key(|run| decision.remove.iter().position(|id| *id == run.id));
            self.remove_runs(runs);
        }
        if let Some(id) = decision.stop_sandbox.filter(|_| self.pause_until.is_none()) {
            self.end_sandbox(id);
        }
        match decision.setup {
            Some(Setup::Sandbox { attempt }) => self.start_sandbox(attempt),
            Some(Setup::Container { name, kind, restart_count, sandbox_id }) => {
                self.start_container(name, kind, restart_count, &sandbox_id);
            }
            None => {}
        }
    }

    /// Ends a sandbox that is useless. What still runs in it is told first, and has its time, as with the pod's
    /// own end.
    fn end_sandbox(&mut self, id: String) {
        let within = |run: &&Run| run.sandbox_id == id && run.is_running();
        let running: Vec<Run> = self.observed.runs.iter().filter(within).cloned().collect();
        if self.memory.stopping.contains(&id) || running.iter().any(|run| self.memory.stopping.contains(&run.id)) {
            return;
        }
        if self.sandbox_told.as_ref() != Some(&id) {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.node.event(self.pod(), EventType::Normal, "SandboxChanged", message);
            self.sandbox_told = Some(id.clone());
        }
        if running.is_empty() {
            return self.stop_sandbox(id);
        }
        let grace = ending::grace(self.pod());
        for run in running {
            self.memory.killed.insert(run.id.clone());
            let message = format!("Stopping container {}", run.name);
            self.stop_run(run, message, grace);
        }
    }

    /// The event `BackOff`, once for each failed run.
    fn tell_backoff(&mut self, decision: &Decision) {
        for (name, _) in decision.waiting.iter().filter(|(_, waiting)| status::crash_looping(waiting)) {
            let Some(run) = self.observed.newest(name) else { continue };
            if self.backoff_told.insert(run.id.clone()) {
                let message = format!("Back-off restarting failed container {name} in pod {}", pod_id(self.pod()));
                self.node.container_event(self.pod(), name, EventType::Warning, "BackOff", message);
            }
        }
    }

    fn start_sandbox(&mut self, attempt: u32) {
        self.starting = None;
        self.resizing.group = Some(resize::pod_level(self.pod()).cloned());
        let (node, pod) = (self.node.clone(), self.wish.pod.clone());
        let before = make_sandbox::outlived(&self.observed);
        let make = async move { Done::Sandbox(make_sandbox::make(&node, &pod, attempt, &before).await) };
        self.setup = Some(make.boxed());
    }

    fn start_container(&mut self, name: String, kind: actions::ContainerKind, restart_count: u32, sandbox_id: &str) {
        let Some(sandbox) = self.observed.sandboxes.iter().find(|sandbox| sandbox.id == sandbox_id).cloned() else {
            return;
        };
        let Some(container) = make_container::container_of(self.pod(), &name) else { return };
        // A container whose runs are gone counts on from what was last said of it.
        let restart_count = restart_count.max(match self.observed.newest(&name) {
            Some(_) => 0,
            None => status::runs_before(&self.status, &name),
        });
        let exited = self.observed.newest(&name).filter(|run| run.state == RunState::Exited);
        let key = actions::backoff_key(&container);
        if let Some(failed_at) = exited.and_then(|run| actions::failed_at(&self.observed, &self.memory, &key, run)) {
            self.memory.restarts.advance(&key, failed_at, Timestamp::now());
        }
        let target = self.ephemeral_target(&name);
        self.starting = Some((name.clone(), Given::of(self.pod(), &container)));
        let first = self.isolated.replace(sandbox.id.clone()).as_ref() != Some(&sandbox.id);
        let (node, mailbox) = (self.node.clone(), self.mailbox.clone());
        let order =
            make_container::Order { pod: self.wish.pod.clone(), container, kind, restart_count, sandbox, target };
        let start = async move {
            if first {
                isolation::isolate(&node, &order.pod, &order.sandbox).await;
            }
            let announce = |run: Run| mailbox.post(|mail| mail.announced.push(run));
            let outcome = make_container::start(&node, &order, announce).await;
            Done::Container { name, outcome }
        };
        self.setup = Some(start.boxed());
    }

    /// The run whose processes an ephemeral container is to see.
    fn ephemeral_target(&self, name: &str) -> Option<String> {
        let spec = self.pod().spec.as_ref()?;
        let ephemeral = spec.ephemeral_containers.iter().flatten().find(|container| container.name == name)?;
        let target = ephemeral.target_container_name.as_deref().filter(|target| !target.is_empty())?;
        self.observed.newest(target).map(|run| run.id.clone())
    }
}

fn full_name(pod: &Pod) -> String {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name))
}

async fn under_way(setup: &mut Option<BoxFuture<'static, Done>>) -> Done {
    match setup {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => {
            let left = std::time::Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
            tokio::time::sleep(left).await;
        }
        None => std::future::pending().await,
    }
}
