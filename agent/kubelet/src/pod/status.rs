//! A pod's status from what runs (`kubelet_pods.go: generateAPIPodStatus`). Pure.
//!
//! [`generate`] is given the last status too: transition times and conditions that others own are
//! kept. Neighbours: [`super::conditions`] and [`super::phase`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::resources::{self, Amounts, Side};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodSpec, PodStatus, ResourceRequirements,
    ResourceStatus, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::actions::{CRASH_LOOP, ContainerKind, Memory, Waiting, is_sidecar};
use super::conditions;
use super::observed::{Observed, Run, RunState};
use super::phase;
use super::restart::should_restart;
use crate::cgroups::pod_limits;
use crate::resize::Pending;
use crate::spec::mounts::recursive_read_only;

/// Why a pod ends other than by itself; wins over what its containers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub cause: Cause,
    /// `Evicted`, `DeadlineExceeded`, `OutOfcpu`, ...
    pub reason: String,
    pub message: String,
}

/// What brought a verdict about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The node did not take the pod: nothing of it ever ran here.
    Refused,
    /// It ran for as long as it may.
    Deadline,
    /// The node ran out of something.
    Evicted,
}

impl Verdict {
    /// The node does not take the pod.
    pub fn refused(reason: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { cause: Cause::Refused, reason: reason.into(), message: format!("Pod was rejected: {why}") }
    }
}

/// The reason of a pod that the node ended because it ran out of something.
pub const EVICTED: &str = "Evicted";

pub struct View<'a> {
    pub pod: &'a Pod,
    /// The last status: what was published, with the conditions that others own.
    pub last: &'a PodStatus,
    pub observed: &'a Observed,
    pub memory: &'a Memory,
    /// Why containers wait, from the last decision.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// No container will be started any more.
    pub ending: bool,
    pub verdict: Option<&'a Verdict>,
    pub host_ips: &'a [IpAddr],
    /// The runtime can make mounts read-only with all that is mounted below them.
    pub recursive_read_only_works: bool,
    pub resize: Resize<'a>,
    pub now: Timestamp,
}

/// How far the pod is on the way to other resources.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resize<'a> {
    pub pending: Option<&'a Pending>,
    pub in_progress: bool,
    pub error: Option<&'a str>,
    /// What the pod as a whole has; none where that is what it wishes.
    pub group: Option<&'a Option<ResourceRequirements>>,
}

pub fn generate(view: &View<'_>) -> PodStatus {
    let last = view.last.clone();
    let Some(spec) = view.pod.spec.as_ref() else { return last };
    if let Some(refused) = refused(view) {
        return refused;
    }
    let init = statuses(view, spec.init_containers.iter().flatten(), &last.init_container_statuses, true);
    let main = statuses(view, spec.containers.iter(), &last.container_statuses, false);
    let ephemeral = ephemeral_statuses(view, &last.ephemeral_container_statuses);
    let finished_for_good = view.ending && !view.observed.any_running();
    let was_final = last.phase.as_deref().filter(|phase| matches!(*phase, "Failed" | "Succeeded"));
    // Until the last container is gone the pod goes on as it was, in the eyes of others.
    let runs = view.observed.any_running();
    let decided = match (view.verdict, was_final) {
        (Some(_), _) => "Failed",
        // An end is final, whatever is seen later.
        (None, Some(phase)) => phase,
        (None, None) => {
            let phase = phase::of(spec, &init, &main, finished_for_good);
            if matches!(phase, "Failed" | "Succeeded") && runs { "Running" } else { phase }
        }
    };
    let verdict = view.verdict.filter(|_| !runs || was_final.is_some());
    let phase = match (verdict, view.verdict) {
        (None, Some(_)) => last.phase.as_deref().unwrap_or("Pending"),
        _ => decided,
    }
    .to_owned();
    let mut status = PodStatus {
        phase: Some(phase),
        qos_class: Some(resources::qos_class(view.pod).as_str().to_owned()),
        start_time: last.start_time.clone().or(Some(Time(seconds(view.now)))),
        observed_generation: view.pod.metadata.generation,
        reason: verdict.map(|verdict| verdict.reason.clone()).or(last.reason.clone()),
        message: verdict.map(|verdict| verdict.message.clone()).or(last.message.clone()),
        host_ip: view.host_ips.first().map(ToString::to_string),
        host_ips: Some(view.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!main.is_empty()).then_some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        allocated_resources: wire(resources::of_pod(spec, Side::Requests)),
        resources: Some(pod_resources(view.pod, spec, view.resize.group)),
        nominated_node_name: None,
        resize: None,
        ..last.clone()
    };
    limit_messages(&mut status);
    let ips = pod_ips(view, &last);
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());
    // A pod past its deadline is not ready from then on; one that is evicted is as its probes say.
    let past_deadline = view.verdict.is_some_and(|verdict| verdict.cause == Cause::Deadline);
    let judged = if past_deadline { decided } else { status.phase.as_deref().unwrap_or_default() }.to_owned();
    let mut made = conditions::generate(view.pod, &status, &judged, view.observed, view.now);
    if let Some(verdict) = verdict.filter(|verdict| verdict.cause == Cause::Evicted) {
        let last = status.conditions.as_deref().unwrap_or_default();
        let disrupted = conditions::disrupted(&verdict.message, last, view.pod.metadata.generation, view.now);
        made.retain(|condition| condition.type_ != disrupted.type_);
        made.push(disrupted);
    }
    // Those of others come first, then what is said of a resize.
    let own = made.iter().position(|condition| conditions::is_owned(&condition.type_)).unwrap_or(made.len());
    made.splice(own..own, conditions::resizing(view.pod, &view.resize, &view.last.conditions, view.now));
    status.conditions = Some(made);
    status
}

/// A pod that the node did not take has no containers to tell of (`kubelet.go: rejectPod`). The conditions
/// of others stay. After a restart of the kubelet the status alone tells of it.
fn refused(view: &View<'_>) -> Option<PodStatus> {
    let told_before = view.last.phase.as_deref() == Some("Failed")
        && view.last.reason.is_some()
        && view.last.container_statuses.is_none();
    let verdict = match view.verdict {
        Some(verdict) if verdict.cause == Cause::Refused => verdict.clone(),
        None if told_before && view.observed.runs.is_empty() => Verdict {
            cause: Cause::Refused,
            reason: view.last.reason.clone().unwrap_or_default(),
            message: view.last.message.clone().unwrap_or_default(),
        },
        _ => return None,
    };
    let theirs = view.last.conditions.iter().flatten().filter(|condition| !conditions::is_owned(&condition.type_));
    let theirs: Vec<PodCondition> = theirs.cloned().collect();
    Some(PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(verdict.reason),
        message: Some(verdict.message),
        qos_class: Some(resources::qos_class(view.pod).as_str().to_owned()),
        start_time: view.last.start_time.clone().or(Some(time(view.now))),
        observed_generation: view.pod.metadata.generation,
        conditions: (!theirs.is_empty()).then_some(theirs),
        resource_claim_statuses: view.last.resource_claim_statuses.clone(),
        extended_resource_claim_status: view.last.extended_resource_claim_status.clone(),
        ..Default::default()
    })
}

fn wire(amounts: Amounts) -> Option<BTreeMap<String, Quantity>> {
    (!amounts.is_empty()).then(|| amounts.into_iter().map(|(name, quantity)| (name, quantity.into())).collect())
}

/// The pod's resources as a whole: before it runs what it was granted, then what its group has
/// (`kubelet_pods.go: convertToAPIPodLevelResourcesStatus`).
fn pod_resources(pod: &Pod, spec: &PodSpec, group: Option<&Option<ResourceRequirements>>) -> ResourceRequirements {
    if let Some(group) = group.filter(|group| **group != spec.resources) {
        let mut before = pod.clone();
        let spec = PodSpec { resources: group.clone(), ..spec.clone() };
        before.spec = Some(spec.clone());
        return pod_resources(&before, &spec, None);
    }
    let mut requests = resources::of_pod(spec, Side::Requests);
    let mut limits = resources::of_pod(spec, Side::Limits);
    if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running") {
        let own = spec.resources.as_ref();
        let named = |amounts: Option<&BTreeMap<String, Quantity>>, name: &str| {
            amounts.is_some_and(|amounts| amounts.contains_key(name))
        };
        requests.retain(|name, _| {
            matches!(name.as_str(), "cpu" | "memory") || named(own.and_then(|own| own.requests.as_ref()), name)
        });
        // A limit that not every container has binds no group.
        let group = pod_limits(pod);
        limits.retain(|name, _| match name.as_str() {
            "cpu" => group.cpu_quota.is_some(),
            "memory" => group.memory_bytes.is_some(),
            _ => named(own.and_then(|own| own.limits.as_ref()), name),
        });
    }
    ResourceRequirements { requests: wire(requests), limits: wire(limits), claims: None }
}

/// Whole seconds, as Kubernetes writes times.
fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn time(at: Timestamp) -> Time {
    Time(seconds(at))
}

fn pod_ips(view: &View<'_>, last: &PodStatus) -> Vec<String> {
    let spec = view.pod.spec.as_ref();
    if spec.and_then(|spec| spec.host_network).unwrap_or(false) {
        return view.host_ips.iter().map(ToString::to_string).collect();
    }
    match view.observed.sandboxes.first() {
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        // A stopped sandbox no longer tells; the pod keeps showing what it had.
        Some(sandbox) if !sandbox.ready => last.pod_ips.iter().flatten().map(|entry| entry.ip.clone()).collect(),
        Some(_) => Vec::new(),
        None if view.ending => last.pod_ips.iter().flatten().map(|entry| entry.ip.clone()).collect(),
        None => Vec::new(),
    }
}

fn statuses<'a>(
    view: &View<'_>,
    containers: impl Iterator<Item = &'a Container>,
    last: &Option<Vec<ContainerStatus>>,
    init: bool,
) -> Vec<ContainerStatus> {
    containers
        .map(|container| {
            let kind = match (init, is_sidecar(container)) {
                (true, true) => ContainerKind::Sidecar,
                (true, false) => ContainerKind::Init,
                (false, _) => ContainerKind::Main,
            };
            let before = last.iter().flatten().find(|status| status.name == container.name);
            one(view, container, kind, before)
        })
        .collect()
}

fn ephemeral_statuses(view: &View<'_>, last: &Option<Vec<ContainerStatus>>) -> Vec<ContainerStatus> {
    let containers = view.pod.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    containers
        .map(|ephemeral| {
            let container = crate::spec::container::from_ephemeral(ephemeral);
            let before = last.iter().flatten().find(|status| status.name == container.name);
            one(view, &container, ContainerKind::Ephemeral, before)
        })
        .collect()
}

fn one(
    view: &View<'_>,
    container: &Container,
    kind: ContainerKind,
    before: Option<&ContainerStatus>,
) -> ContainerStatus {
    // A run counts when its postStart hook has ended: until then the container waits, as before it.
    let mut runs = view.observed.runs_of(&container.name).filter(|run| !in_post_start(view, run));
    let newest = runs.next();
    let previous = runs.next();
    let waiting = view.waiting.get(&container.name);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: String::new(),
        restart_count: before.map_or(0, |before| before.restart_count),
        ready: false,
        // Probes, and with them these two, are not for ephemeral containers.
        started: (kind != ContainerKind::Ephemeral).then_some(false),
        volume_mounts: mounts(view, container),
        ..Default::default()
    };
    let Some(run) = newest else {
        match before {
            Some(before) if view.ending || ended(before) && waiting.is_none() => {
                keep_without_run(view, &mut status, before);
            }
            _ => wait_without_run(view, &mut status, kind, before),
        }
        return status;
    };
    // The runtime's name for it, which is longer than the pod's.
    if !run.image.is_empty() {
        status.image.clone_from(&run.image);
    }
    status.image_id = run.image_id.clone();
    status.container_id = Some(format!("containerd://{}", run.id));
    status.restart_count = i32::try_from(run.restart_count).unwrap_or(i32::MAX);
    status.last_state = previous.filter(|run| run.state == RunState::Exited).map(terminated_state);
    if status.last_state.is_none() && run.restart_count > 0 {
        // The run before was removed from the runtime: what was last said of it stays.
        status.last_state = before
            .filter(|before| before.container_id == status.container_id)
            .and_then(|before| before.last_state.clone())
            .or_else(|| before.and_then(|before| before.state.clone()).filter(|state| state.terminated.is_some()));
    }
    let spec = view.pod.spec.as_ref();
    status.resources = container.resources.clone();
    status.allocated_resources = container.resources.as_ref().and_then(|resources| resources.requests.clone());
    status.user = run.user.as_ref().map(user);
    match run.state {
        RunState::Running => {
            let probe = view.memory.probes.get(&run.id);
            let started = probe.is_none_or(|probe| probe.started.unwrap_or(false));
            // A container that is being stopped serves until it ends, or its probe says otherwise.
            if kind != ContainerKind::Ephemeral {
                status.started = Some(started);
                // A plain init container that succeeded is ready, and no earlier.
                status.ready = kind != ContainerKind::Init && started && probe.is_none_or(|probe| probe.ready);
            }
            if let Some(applied) = view.memory.applied.get(&run.id) {
                status.resources = applied.own.clone();
            }
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: run.started_at.map(time) }),
                ..Default::default()
            });
        }
        RunState::Exited => {
            let again = !view.ending && spec.is_some_and(|spec| should_restart(spec, container, kind, run));
            match waiting.filter(|_| again) {
                Some(waiting) => {
                    status.last_state = Some(terminated_state(run));
                    status.state = Some(waiting_state(waiting.clone()));
                }
                None => status.state = Some(terminated_state(run)),
            }
            status.ready = kind == ContainerKind::Init && run.exit_code == 0;
        }
        RunState::Created => match waiting {
            Some(waiting) => status.state = Some(waiting_state(waiting.clone())),
            None if view.ending => status.state = Some(never_started()),
            None => status.state = Some(waiting_state(default_waiting(view, kind))),
        },
        RunState::Unknown => {
            status.state = Some(terminated(
                137,
                "ContainerStatusUnknown",
                "The container could not be located when the pod was terminated",
            ));
        }
    }
    status
}

fn in_post_start(view: &View<'_>, run: &Run) -> bool {
    run.is_running() && view.memory.in_post_start.contains(&run.id) && !view.ending
}

/// The API server remembers the end of a container that the runtime no longer has.
fn ended(before: &ContainerStatus) -> bool {
    before.state.as_ref().is_some_and(|state| state.terminated.is_some())
}

/// The container is to be started. One that was last seen running was removed by somebody else: how it ended
/// nobody knows, and that it did counts as an end (`kubelet_pods.go: convertToAPIContainerStatuses`).
fn wait_without_run(
    view: &View<'_>,
    status: &mut ContainerStatus,
    kind: ContainerKind,
    before: Option<&ContainerStatus>,
) {
    let waiting = view.waiting.get(&status.name).cloned().unwrap_or_else(|| default_waiting(view, kind));
    status.state = Some(waiting_state(waiting));
    let Some(before) = before else { return };
    let state = before.state.clone().unwrap_or_default();
    status.last_state = if state.terminated.is_some() { before.state.clone() } else { before.last_state.clone() };
    // One whose postStart hook is under way is there.
    if state.running.is_none() || view.observed.newest(&status.name).is_some() {
        status.container_id = before.container_id.clone();
        return;
    }
    status.restart_count += 1;
    if status.last_state.as_ref().is_none_or(|last| last.terminated.is_none()) {
        let message = "The container could not be located when the pod was deleted.  The container used to be Running";
        status.last_state = Some(terminated(137, "ContainerStatusUnknown", message));
    }
}

fn keep_without_run(view: &View<'_>, status: &mut ContainerStatus, before: &ContainerStatus) {
    status.image = before.image.clone();
    status.image_id = before.image_id.clone();
    status.container_id = before.container_id.clone();
    status.last_state = before.last_state.clone();
    let state = before.state.clone().unwrap_or_default();
    status.ready = false;
    status.state = Some(if state.terminated.is_some() {
        status.ready = before.ready;
        state
    } else if state.running.is_some() && view.ending {
        terminated(137, "ContainerStatusUnknown", "The container could not be located when the pod was terminated")
    } else {
        state
    });
}

fn never_started() -> ContainerState {
    terminated(
        137,
        "ContainerStatusUnknown",
        "The container was created but never started before the pod was terminated",
    )
}

fn terminated(code: i32, reason: &str, message: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: code,
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What a pod's status holds of termination messages in all, bytes.
const MESSAGES_LIMIT: usize = 12 << 10;

/// Cuts the containers' messages so that all together are not too large for the API.
fn limit_messages(status: &mut PodStatus) {
    let lists = [&mut status.init_container_statuses, &mut status.container_statuses];
    let count: usize = lists.iter().map(|list| list.as_ref().map_or(0, Vec::len)).sum();
    let each = MESSAGES_LIMIT / count.max(1);
    for container in lists.into_iter().flatten().flatten() {
        for state in [&mut container.state, &mut container.last_state].into_iter().flatten() {
            let message = state.terminated.as_mut().and_then(|terminated| terminated.message.as_mut());
            if let Some(message) = message.filter(|message| message.len() > each) {
                let end = (0..=each).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
                message.truncate(end);
            }
        }
    }
}

fn terminated_state(run: &Run) -> ContainerState {
    let reason = match run.reason.as_str() {
        "" if run.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("containerd://{}", run.id)),
            exit_code: run.exit_code,
            reason: Some(reason.to_owned()),
            message: (!run.message.is_empty()).then(|| run.message.clone()),
            signal: None,
            // A process that never started has no start: Kubernetes writes the epoch.
            started_at: Some(time(run.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
            finished_at: run.finished_at.map(time),
        }),
        ..Default::default()
    }
}

fn waiting_state(waiting: Waiting) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(waiting.reason),
            message: (!waiting.message.is_empty()).then_some(waiting.message),
        }),
        ..Default::default()
    }
}

fn default_waiting(view: &View<'_>, kind: ContainerKind) -> Waiting {
    let has_init =
        view.pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).is_some_and(|init| !init.is_empty());
    let reason = if has_init && kind != ContainerKind::Ephemeral { "PodInitializing" } else { "ContainerCreating" };
    Waiting { reason: reason.to_owned(), message: String::new() }
}

fn mounts(view: &View<'_>, container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let recursive = |mount: &VolumeMount| {
        let recursive = recursive_read_only(mount, view.recursive_read_only_works).unwrap_or(false);
        if recursive { "Enabled" } else { "Disabled" }.to_owned()
    };
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|read_only| *read_only),
            recursive_read_only: mount.read_only.filter(|read_only| *read_only).map(|_| recursive(mount)),
            ..Default::default()
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}

fn user(user: &proto::runtime::v1::LinuxContainerUser) -> ContainerUser {
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: Some(user.supplemental_groups.clone()),
        }),
    }
}

/// How the devices are that containers have (`allocatedResourcesStatus`). Of those that were given back is
/// told what was last said: it may be why the pod ended.
pub fn tell_devices(status: &mut PodStatus, mut devices: BTreeMap<String, Vec<ResourceStatus>>, last: &PodStatus) {
    let lasts = [&last.init_container_statuses, &last.container_statuses];
    let before = |name: &str| {
        let known = lasts.into_iter().flatten().flatten().find(|container| container.name == name);
        known.and_then(|container| container.allocated_resources_status.clone())
    };
    let lists = [&mut status.init_container_statuses, &mut status.container_statuses];
    for container in lists.into_iter().flatten().flatten() {
        container.allocated_resources_status = devices.remove(&container.name).or_else(|| before(&container.name));
    }
}

/// How often a container ran, as far as the status says.
pub fn runs_before(status: &PodStatus, name: &str) -> u32 {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let known = lists.into_iter().flat_map(|list| list.iter().flatten()).find(|status| status.name == name);
    known.map_or(0, |known| {
        let count = u32::try_from(known.restart_count).unwrap_or_default();
        // One that was lost has no id any more, and its end is counted already.
        count + u32::from(known.container_id.is_some())
    })
}

/// Whether the status says that a container is crash-looping (for the event `BackOff`).
pub fn crash_looping(waiting: &Waiting) -> bool {
    waiting.reason == CRASH_LOOP
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
