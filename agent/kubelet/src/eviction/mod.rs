//! Keeping the node alive when memory, disk or processes run out (`pkg/kubelet/eviction`).
//!
//! [`rank`] and [`pressure_of`] are pure; [`run`] looks every ten seconds and sets the node's pressure
//! conditions. [`local_storage`] ends the pods that use more than they may. If there are none, images go
//! that nobody uses, and if that is not enough, one pod at a time.

mod local_storage;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::{Format, Quantity};
use api::resources::{self, Side};
use component::EventType;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::config::{EvictionThresholds, Limit};
use crate::context::NodeContext;
use crate::images::gc::{image_file_system, remove_unused};
use crate::manager::{Manager, is_final};
use crate::node::heartbeat::{Heartbeat, node_event_of};
use crate::node::machine::{FileSystem, Processes, available_memory, file_system, processes};
use crate::node::status::Pressure;
use crate::pod::labels;
use crate::pod::mailbox::Snapshot;
use crate::pod::status::{Cause, EVICTED, Verdict};
use crate::spec::sandbox::qos;
use local_storage::{Disk, Written};

const PERIOD: Duration = Duration::from_secs(10);
/// A pod that is evicted because the node is in danger is killed at once.
const HARD_GRACE: i64 = 1;
/// Pods of this priority and above are critical (`SystemCriticalPriority`).
const CRITICAL: i32 = 2_000_000_000;
/// What there is too little of.
const MEMORY: &str = "memory";
const STORAGE: &str = "ephemeral-storage";
const INODES: &str = "inodes";
const PIDS: &str = "pids";

/// What the node has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signals {
    /// Bytes.
    pub memory_available: u64,
    pub nodefs: FileSystem,
    pub imagefs: FileSystem,
    /// None if the kernel does not say.
    pub processes: Option<Processes>,
}

/// A threshold that is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// `memory`, `ephemeral-storage`, `inodes` or `pids`.
    pub resource: &'static str,
    pub threshold: Quantity,
    pub available: Quantity,
}

/// Every threshold that is met, memory first.
pub fn pressure_of(signals: &Signals, thresholds: &EvictionThresholds) -> Vec<Met> {
    let quantity = |value: u64, format| Quantity::from_units(i64::try_from(value).unwrap_or(i64::MAX), format);
    let bytes = |value: u64| quantity(value, Format::BinarySi);
    // Kubernetes writes every share as bytes, and what is counted as a number.
    let share = |total: u64, percent: u8| bytes((total as f64 * f64::from(f32::from(percent) / 100.0)) as u64);
    let number = |value: u64| quantity(value, Format::DecimalSi);
    let mut met = Vec::new();
    let mut check = |resource, available: Quantity, threshold: Quantity| {
        if available < threshold {
            met.push(Met { resource, threshold, available });
        }
    };
    check(MEMORY, bytes(signals.memory_available), bytes(thresholds.memory_available));
    let (nodefs, imagefs) = (signals.nodefs, signals.imagefs);
    check(STORAGE, bytes(nodefs.available), share(nodefs.bytes, thresholds.nodefs_available_percent));
    check(INODES, number(nodefs.inodes_free), share(nodefs.inodes, thresholds.nodefs_inodes_percent));
    check(STORAGE, bytes(imagefs.available), share(imagefs.bytes, thresholds.imagefs_available_percent));
    check(INODES, number(imagefs.inodes_free), share(imagefs.inodes, thresholds.imagefs_inodes_percent));
    if let (Some(processes), Some(limit)) = (signals.processes, thresholds.pid_available) {
        let threshold = match limit {
            Limit::Amount(amount) => amount,
            Limit::Percent(percent) => share(processes.most, percent),
        };
        check(PIDS, number(processes.most.saturating_sub(processes.running)), threshold);
    }
    met
}

/// A pod that could be ended, and what it uses of the resource in question.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub pod: Arc<Pod>,
    pub usage: u64,
    pub request: u64,
    /// What its containers use of it, by name: of memory and of disk.
    pub containers: BTreeMap<String, u64>,
}

/// The pods in the order in which they go: those over their request first, then by priority, then by
/// how far over.
pub fn rank(candidates: &mut [Candidate]) {
    candidates.sort_by_key(|candidate| {
        let priority = candidate.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let over = i128::from(candidate.usage) - i128::from(candidate.request);
        (over <= 0, priority, std::cmp::Reverse(over))
    });
}

/// Why a pod goes, and what of it uses more than it requested (`helpers.go: evictionMessage`).
fn message(met: &Met, chosen: &Candidate) -> String {
    let Met { resource, threshold, available } = met;
    let mut message =
        format!("The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {available}. ");
    let Some(spec) = chosen.pod.spec.as_ref() else { return message };
    let bytes = |value: u64| Quantity::from_units(i64::try_from(value).unwrap_or(i64::MAX), Format::BinarySi);
    let mut blame = |what: &str, usage: Quantity, request: Quantity| {
        message += &format!("{what} was using {usage}, request is {request}, has larger consumption of {resource}. ");
    };
    let of_pod = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(*resource));
    if let Some(request) = of_pod.filter(|_| *resource == MEMORY) {
        let name = chosen.pod.metadata.name.as_deref().unwrap_or_default();
        blame(&format!("Pod {name}"), bytes(chosen.usage), Quantity::from(request));
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let Some(usage) = chosen.containers.get(&container.name).copied().map(bytes) else { continue };
        let request = resources::of_container(container, Side::Requests).get(*resource).copied();
        let request = request.unwrap_or(Quantity::ZERO);
        if usage > request {
            blame(&format!("Container {}", container.name), usage, request);
        }
    }
    message
}

/// Whether the node needs the pod: it stays, and is taken, whatever is short (`types.IsCriticalPod`).
pub fn is_critical(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    // Nobody would start a static pod again.
    let is_static = annotations.and_then(|all| all.get(labels::CONFIG_SOURCE)).is_some_and(|source| source == "file");
    is_static || pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= CRITICAL)
}

pub async fn run(node: Arc<NodeContext>, manager: Arc<Manager>, heartbeat: Arc<Heartbeat>) {
    // When each kind of pressure was last seen, so that it does not flap.
    let mut seen: BTreeMap<&'static str, Instant> = BTreeMap::new();
    loop {
        let met = pressure_of(&signals(&node).await, &node.config.eviction);
        for threshold in &met {
            let kind = if [MEMORY, PIDS].contains(&threshold.resource) { threshold.resource } else { "disk" };
            seen.insert(kind, Instant::now());
        }
        let recently =
            |kind| seen.get(kind).is_some_and(|at: &Instant| at.elapsed() < node.config.eviction.transition_period);
        let pressure = Pressure { memory: recently(MEMORY), disk: recently("disk"), pid: recently(PIDS) };
        *node.pressure.write() = pressure;
        heartbeat.set_pressure(pressure);
        if !local_storage::enforce(&node, &manager).await
            && let Some(first) = met.first()
        {
            relieve(&node, &manager, first).await;
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn signals(node: &NodeContext) -> Signals {
    Signals {
        memory_available: available_memory(),
        nodefs: file_system(&node.config.layout.root).unwrap_or_default(),
        imagefs: image_file_system(node).await,
        processes: processes(),
    }
}

async fn relieve(node: &Arc<NodeContext>, manager: &Manager, met: &Met) {
    node_event_of(node, EventType::Warning, "EvictionThresholdMet", &format!("Attempting to reclaim {}", met.resource));
    if [STORAGE, INODES].contains(&met.resource) {
        remove_unused(node).await;
        if pressure_of(&signals(node).await, &node.config.eviction).is_empty() {
            return;
        }
    }
    let mut candidates = candidates(node, manager, met.resource).await;
    rank(&mut candidates);
    let Some(chosen) = candidates.into_iter().next() else { return };
    evict(node, manager, &chosen.pod, message(met, &chosen));
}

/// The pods that may be ended. One that has ended, and whose volumes a driver does not take back yet, cannot be
/// ended again.
fn viable(manager: &Manager) -> impl Iterator<Item = Snapshot> {
    manager.snapshots().into_iter().filter(|one| !one.ended && !is_final(&one.pod) && !is_critical(&one.pod))
}

async fn candidates(node: &Arc<NodeContext>, manager: &Manager, resource: &'static str) -> Vec<Candidate> {
    let alive: Vec<Snapshot> = viable(manager).collect();
    let on_disk = [STORAGE, INODES].contains(&resource);
    let written = if on_disk { local_storage::written(node).await } else { Written::new() };
    let node = node.clone();
    // What is on disk is found by a walk through all files.
    let look = move || alive.iter().map(|one| candidate(&node, one, resource, &written)).collect::<Vec<_>>();
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

fn candidate(node: &NodeContext, snapshot: &Snapshot, resource: &str, written: &Written) -> Candidate {
    let pod = snapshot.pod.clone();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let of_pod = || node.cgroups.pod_usage(qos(&pod), uid);
    let (usage, containers) = match resource {
        MEMORY => {
            let running = snapshot.observed.runs.iter().filter(|run| run.is_running());
            let containers = running.filter_map(|run| {
                let usage = node.cgroups.container_usage(qos(&pod), uid, &run.id)?;
                Some((run.name.clone(), usage.memory_working_set))
            });
            (of_pod().map_or(0, |usage| usage.memory_working_set), containers.collect())
        }
        PIDS => (of_pod().map_or(0, |usage| usage.processes), BTreeMap::new()),
        _ => {
            let used = local_storage::measure(node, snapshot, written);
            let disk = local_storage::on_disk(&pod, &used);
            match resource {
                INODES => (disk.inodes, BTreeMap::new()),
                _ => (disk.bytes, used.containers.into_iter().map(|(name, disk)| (name, disk.bytes)).collect()),
            }
        }
    };
    // Nobody requests inodes or processes.
    let request = pod.spec.as_ref().and_then(|spec| resources::of_pod(spec, Side::Requests).get(resource).copied());
    let request = request.map_or(0, |request| request.units().max(0).unsigned_abs());
    Candidate { pod, usage, request, containers }
}

fn evict(node: &NodeContext, manager: &Manager, pod: &Pod, message: String) {
    node.event(pod, EventType::Warning, EVICTED, message.clone());
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    manager.evict(&uid, Verdict { cause: Cause::Evicted, reason: EVICTED.to_owned(), message }, HARD_GRACE);
}

/// What is on disk below a directory, not following links.
fn disk_usage(directory: &Path) -> Disk {
    use std::os::unix::fs::MetadataExt;
    let mut total = Disk::default();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        total += Disk { bytes: meta.blocks() * 512, inodes: 1 };
        if meta.is_dir() {
            total += disk_usage(&entry.path());
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn thresholds_that_are_met() {
        let fs = |available: u64, inodes_free: u64| FileSystem { bytes: 1000, available, inodes: 1000, inodes_free };
        let thresholds = EvictionThresholds { pid_available: Some(Limit::Percent(10)), ..Default::default() };
        let few = |running: u64| Some(Processes { most: 1000, running });
        let good =
            Signals { memory_available: 1 << 30, nodefs: fs(500, 500), imagefs: fs(500, 500), processes: few(900) };
        let names = |signals: Signals| -> Vec<&'static str> {
            pressure_of(&signals, &thresholds).into_iter().map(|met| met.resource).collect()
        };
        assert!(names(good).is_empty());
        assert_eq!(names(Signals { memory_available: 1 << 20, ..good }), ["memory"]);
        assert_eq!(names(Signals { nodefs: fs(50, 500), ..good }), ["ephemeral-storage"]);
        assert_eq!(names(Signals { nodefs: fs(500, 10), ..good }), ["inodes"]);
        assert_eq!(names(Signals { imagefs: fs(140, 500), ..good }), ["ephemeral-storage"]);
        assert_eq!(names(Signals { imagefs: fs(500, 10), ..good }), ["inodes"]);
        assert_eq!(names(Signals { processes: few(901), memory_available: 0, ..good }), ["memory", "pids"]);
        let none = pressure_of(&Signals { processes: few(1000), ..good }, &EvictionThresholds::default());
        assert!(none.is_empty(), "Kubernetes has no default for processes");
        let amount = EvictionThresholds { pid_available: Some(Limit::Amount("200".parse().unwrap())), ..thresholds };
        let met = pressure_of(&Signals { processes: few(850), ..good }, &amount);
        assert_eq!((met[0].threshold.to_string(), met[0].available.to_string()), ("200".to_owned(), "150".to_owned()));
    }

    #[test]
    fn a_message_names_the_containers_over_their_requests() {
        let requests = |text: &str| json!({"requests": {"memory": text}});
        let containers = json!([{"name": "a", "resources": requests("1Mi")}, {"name": "b", "resources": requests("4Mi")}, {"name": "c"}]);
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": containers, "resources": requests("8Mi")}});
        let of = |name: &str, usage: u64| (name.to_owned(), usage << 20);
        let mut chosen = Candidate {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            usage: 9 << 20,
            request: 8 << 20,
            containers: BTreeMap::from([of("a", 2), of("b", 4), of("c", 3), of("debug", 9)]),
        };
        let quantity = |text: &str| text.parse::<Quantity>().unwrap();
        let low = |resource| Met { resource, threshold: quantity("100Mi"), available: quantity("51200Ki") };
        let began = "Threshold quantity: 100Mi, available: 50Mi. ";
        let memory = format!(
            "The node was low on resource: memory. {began}Pod p was using 9Mi, request is 8Mi, has larger consumption of memory. Container a was using 2Mi, request is 1Mi, has larger consumption of memory. Container c was using 3Mi, request is 0, has larger consumption of memory. "
        );
        assert_eq!(message(&low(MEMORY), &chosen), memory);
        chosen.containers.clear();
        assert_eq!(message(&low(INODES), &chosen), format!("The node was low on resource: inodes. {began}"));
    }

    #[test]
    fn those_over_their_request_go_first_then_the_least_important() {
        let candidate = |name: &str, priority: i32, usage: u64, request: u64| Candidate {
            pod: Arc::new(
                serde_json::from_value(
                    json!({"metadata": {"name": name}, "spec": {"containers": [], "priority": priority}}),
                )
                .unwrap(),
            ),
            usage,
            request,
            containers: BTreeMap::new(),
        };
        let mut all = vec![
            candidate("within", 0, 10, 20),
            candidate("important", 9, 90, 10),
            candidate("little-over", 0, 30, 20),
            candidate("far-over", 0, 90, 20),
        ];
        rank(&mut all);
        let names: Vec<&str> = all.iter().filter_map(|candidate| candidate.pod.metadata.name.as_deref()).collect();
        assert_eq!(names, ["far-over", "little-over", "important", "within"]);
    }

    #[test]
    fn critical_pods_and_static_ones_stay() {
        for (annotations, priority, critical) in [
            (json!({}), json!(null), false),
            (json!({}), json!(1_000_000_000), false),
            (json!({}), json!(CRITICAL), true),
            (json!({"kubernetes.io/config.source": "file"}), json!(null), true),
            (json!({"kubernetes.io/config.source": "api"}), json!(0), false),
        ] {
            let pod =
                json!({"metadata": {"annotations": annotations}, "spec": {"containers": [], "priority": priority}});
            assert_eq!(is_critical(&serde_json::from_value(pod.clone()).unwrap()), critical, "{pod}");
        }
    }
}
