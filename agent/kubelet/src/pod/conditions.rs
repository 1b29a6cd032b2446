//! A pod's conditions (`pkg/kubelet/status/generate.go`). Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::actions::is_sidecar;
use super::observed::Observed;
use super::restart;
use super::status::Resize;

/// The conditions that the kubelet owns; all others are kept as they are.
const OWNED: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

struct Verdict {
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { status: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Self {
        Self { status: false, reason: Some(reason), message }
    }
}

/// `status` holds the new container statuses and the last conditions; `phase` is the one to judge by.
pub fn generate(pod: &Pod, status: &PodStatus, phase: &str, observed: &Observed, now: Timestamp) -> Vec<PodCondition> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let last = status.conditions.as_deref().unwrap_or_default();
    let containers_ready = containers_ready(spec, status, phase);
    let sandbox = observed
        .sandboxes
        .first()
        .is_some_and(|sandbox| sandbox.ready && (sandbox.host_network || !sandbox.ips.is_empty()));
    let verdicts = [
        if sandbox { Verdict::yes() } else { Verdict { status: false, reason: None, message: None } },
        initialized(spec, status, phase),
        ready(spec, last, &containers_ready),
        containers_ready,
        Verdict::yes(),
    ];
    let mut conditions: Vec<PodCondition> =
        last.iter().filter(|condition| !is_owned(&condition.type_)).cloned().collect();
    for (name, verdict) in OWNED.into_iter().zip(verdicts) {
        let before = last.iter().find(|condition| condition.type_ == name);
        conditions.push(condition(name, verdict, before, pod.metadata.generation, now));
    }
    if restart::could_restart_all(spec) {
        let before = last.iter().find(|condition| condition.type_ == ALL_RESTARTING);
        let verdict = all_restarting(spec, observed, phase);
        conditions.push(condition(ALL_RESTARTING, verdict, before, pod.metadata.generation, now));
    }
    conditions
}

/// Whether all containers are being made anew because one of them ended so.
fn all_restarting(spec: &PodSpec, observed: &Observed, phase: &str) -> Verdict {
    let no = |reason| Verdict { status: false, reason, message: None };
    match phase {
        "Succeeded" => no(Some("PodCompleted")),
        "Failed" => no(Some("PodFailed")),
        _ if restart::source_of_restart_all(spec, observed).is_none() => no(None),
        _ => Verdict {
            status: true,
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
        },
    }
}

fn condition(
    name: &str,
    verdict: Verdict,
    before: Option<&PodCondition>,
    generation: Option<i64>,
    now: Timestamp,
) -> PodCondition {
    let text = if verdict.status { "True" } else { "False" };
    let unchanged = before.filter(|before| before.status == text);
    let transition = unchanged
        .and_then(|before| before.last_transition_time.clone())
        .unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now)));
    PodCondition {
        type_: name.to_owned(),
        status: text.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(transition),
        last_probe_time: None,
        observed_generation: generation,
    }
}

fn find<'a>(statuses: &'a Option<Vec<ContainerStatus>>, name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().flatten().find(|status| status.name == name)
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn containers_ready(spec: &PodSpec, status: &PodStatus, phase: &str) -> Verdict {
    if phase == "Succeeded" {
        return Verdict::no("PodCompleted", None);
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let mut check =
        |container: &'_ Container, statuses: &Option<Vec<ContainerStatus>>| match find(statuses, &container.name) {
            Some(found) if found.ready => {}
            Some(_) => unready.push(container.name.clone()),
            None => unknown.push(container.name.clone()),
        };
    sidecars.for_each(|container| check(container, &status.init_container_statuses));
    spec.containers.iter().for_each(|container| check(container, &status.container_statuses));
    if phase == "Failed" {
        return Verdict::no("PodFailed", None);
    }
    let as_text = |names: &[String]| list(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", as_text(&unknown)));
    }
    if !unready.is_empty() {
        parts.push(format!("containers with unready status: {}", as_text(&unready)));
    }
    if parts.is_empty() { Verdict::yes() } else { Verdict::no("ContainersNotReady", Some(parts.join(", "))) }
}

fn ready(spec: &PodSpec, last: &[PodCondition], containers: &Verdict) -> Verdict {
    if !containers.status {
        return Verdict { status: false, reason: containers.reason, message: containers.message.clone() };
    }
    let unmet: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match last.iter().find(|condition| condition.type_ == *name) {
                None => Some(format!("corresponding condition of pod readiness gate \"{name}\" does not exist.")),
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if unmet.is_empty() { Verdict::yes() } else { Verdict::no("ReadinessGatesNotReady", Some(unmet.join(", "))) }
}

fn initialized(spec: &PodSpec, status: &PodStatus, phase: &str) -> Verdict {
    let containers = spec.init_containers.as_deref().unwrap_or_default();
    if containers.is_empty() {
        return Verdict::yes();
    }
    if phase == "Succeeded" {
        return Verdict { status: true, reason: Some("PodCompleted"), message: None };
    }
    let main_began = status.container_statuses.iter().flatten().any(|status| {
        let began = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        };
        began(&status.state) || began(&status.last_state)
    });
    if main_began {
        return Verdict::yes();
    }
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in containers {
        let Some(found) = find(&status.init_container_statuses, &container.name) else {
            unknown.push(container.name.as_str());
            continue;
        };
        let complete = if is_sidecar(container) {
            found.started == Some(true)
        } else {
            found.state.as_ref().and_then(|state| state.terminated.as_ref()).is_some_and(|ended| ended.exit_code == 0)
        };
        if !complete {
            incomplete.push(container.name.as_str());
        }
    }
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", list(&unknown)));
    }
    if !incomplete.is_empty() {
        parts.push(format!("containers with incomplete status: {}", list(&incomplete)));
    }
    if parts.is_empty() { Verdict::yes() } else { Verdict::no("ContainersNotInitialized", Some(parts.join(", "))) }
}

/// Whether the kubelet owns a condition.
pub fn is_owned(name: &str) -> bool {
    OWNED.contains(&name) || [RESIZE_PENDING, RESIZE_IN_PROGRESS, ALL_RESTARTING].contains(&name)
}

pub const ALL_RESTARTING: &str = "AllContainersRestarting";
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";

/// The conditions of a pod that has not the resources that it wishes; none when it has.
pub fn resizing(pod: &Pod, resize: &Resize<'_>, last: &Option<Vec<PodCondition>>, now: Timestamp) -> Vec<PodCondition> {
    let made = |name: &str, reason: Option<&'static str>, message: Option<String>| {
        let before = last.iter().flatten().find(|condition| condition.type_ == name);
        condition(name, Verdict { status: true, reason, message }, before, pod.metadata.generation, now)
    };
    let pending =
        resize.pending.map(|pending| made(RESIZE_PENDING, Some(pending.reason), Some(pending.message.clone())));
    let in_progress = resize
        .in_progress
        .then(|| made(RESIZE_IN_PROGRESS, resize.error.map(|_| "Error"), resize.error.map(str::to_owned)));
    pending.into_iter().chain(in_progress).collect()
}

const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Says that the node itself ends the pod, so that Jobs do not count it as their own failure.
pub fn disrupted(message: &str, last: &[PodCondition], generation: Option<i64>, now: Timestamp) -> PodCondition {
    let verdict = Verdict { status: true, reason: Some("TerminationByKubelet"), message: Some(message.to_owned()) };
    let before = last.iter().find(|condition| condition.type_ == DISRUPTION_TARGET);
    condition(DISRUPTION_TARGET, verdict, before, generation, now)
}

/// Whether the kubelet wrote a condition: one that it owns, or its word on a disruption.
pub fn is_ours(name: &str, reason: Option<&str>) -> bool {
    is_owned(name) || name == DISRUPTION_TARGET && reason == Some("TerminationByKubelet")
}
