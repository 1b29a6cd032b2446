//! `/stats/summary`: what the node and its pods use, from cgroups and file systems.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::resources::QosClass;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::disk_stats::{self, Used, Volumes};
use super::{machine, network_stats};
use crate::cgroups::{Pressure, Psi, Stall, Usage};
use crate::cri::Layer;
use crate::node::machine::processes;
use crate::server_contract::{ContainerRun, NodePods};
use crate::volume_contract::VolumeUsage;

/// CPU rates are taken over at least this long.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Computes summaries; remembers CPU counters between them, for rates.
pub struct Stats {
    node: String,
    root: PathBuf,
    started: Timestamp,
    samples: Mutex<HashMap<String, Sample>>,
    volumes: Volumes,
}

/// What containers and volumes have on disk, and where.
struct Disk {
    /// Of what containers write.
    images: Value,
    /// Of logs and volumes.
    node: Value,
    layers: BTreeMap<String, Layer>,
    /// By pod UID.
    volumes: HashMap<String, Used>,
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    cpu_nanoseconds: u64,
    /// Nanocores over the window before `at`.
    rate: Option<u64>,
}

impl Stats {
    pub fn new(node: String, root: PathBuf) -> Self {
        Self { node, root, started: Timestamp::now(), samples: Mutex::default(), volumes: Volumes::default() }
    }

    pub async fn summary(&self, pods: &dyn NodePods) -> Value {
        // Kubernetes tells of pressure where groups do.
        let psi = if pods.cgroups().hierarchy().is_v2() { machine::pressure() } else { Psi::default() };
        let node_usage = machine::usage().map(|usage| Usage { psi, ..usage });
        let node_fs = file_system(&self.root);
        let all = pods.pods();
        let volumes = futures::future::join_all(all.iter().map(|pod| pods.volume_usage(pod))).await;
        let uids = all.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        let disk = Disk {
            images: image_fs(pods).await,
            node: node_fs.clone(),
            layers: pods.runtime().layers().await.unwrap_or_default(),
            volumes: self.volumes.of(&self.root, uids).await,
        };
        let each = all.iter().zip(volumes);
        let summaries: Vec<Value> = each.map(|(pod, volumes)| self.pod(pods, pod, &volumes, &disk)).collect();
        self.forget_gone(&all);
        let mut summary = json!({
            "node": {
                "nodeName": self.node,
                "startTime": self.started,
                "cpu": self.cpu("node", node_usage),
                "memory": memory(node_usage, machine::total_memory()),
                "fs": node_fs,
                "runtime": { "imageFs": disk.images },
                "rlimit": process_limits(),
            },
            "pods": summaries,
        });
        add_io(&mut summary["node"], node_usage);
        summary
    }

    fn pod(&self, pods: &dyn NodePods, pod: &Pod, volumes: &[VolumeUsage], disk: &Disk) -> Value {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let class = qos_of(pod);
        let view = pods.runtime_view(uid);
        let mut on_disk = disk.volumes.get(uid).copied().unwrap_or_default();
        let mut containers = Vec::new();
        for run in view.containers.iter().filter(|run| run.running) {
            let usage = pods.cgroups().container_usage(class, uid, &run.id);
            containers.push(self.container(run, usage, disk, &mut on_disk));
        }
        let process = view.sandbox_id.as_deref().and_then(|id| pods.cgroups().process_of(class, uid, id));
        let usage = pods.cgroups().pod_usage(class, uid);
        let mut summary = json!({
            "podRef": { "name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": uid },
            "startTime": pod.status.as_ref().and_then(|status| status.start_time.clone()),
            "containers": containers,
            "cpu": self.cpu(uid, usage),
            "memory": memory(usage, None),
            "process_stats": { "process_count": usage.map(|usage| usage.processes) },
            "ephemeral-storage": disk_stats::told(&disk.node, on_disk),
        });
        if let Some(network) = process.and_then(|process| network_stats::of_process(process, now())) {
            summary["network"] = network;
        }
        add_io(&mut summary, usage);
        if !volumes.is_empty() {
            summary["volume"] = volumes.iter().map(|volume| volume_stats(pod, volume)).collect();
        }
        summary
    }

    /// Adds what the container has on disk to what its pod has there.
    fn container(&self, run: &ContainerRun, usage: Option<Usage>, disk: &Disk, on_disk: &mut Used) -> Value {
        let logs = run.log_path.parent().map(directory_use).unwrap_or_default();
        let layer = disk.layers.get(&run.id).map(|layer| Used { bytes: layer.bytes, inodes: layer.inodes });
        *on_disk += logs;
        *on_disk += layer.unwrap_or_default();
        let mut summary = json!({
            "name": run.name,
            "startTime": run.started_at,
            "cpu": self.cpu(&run.id, usage),
            "memory": memory(usage, usage.and_then(|usage| usage.memory_limit)),
            "logs": disk_stats::told(&disk.node, logs),
        });
        if let Some(layer) = layer {
            summary["rootfs"] = disk_stats::told(&disk.images, layer);
        }
        add_io(&mut summary, usage);
        summary
    }

    fn cpu(&self, key: &str, usage: Option<Usage>) -> Value {
        let Some(usage) = usage else { return Value::Null };
        let rate = self.rate(key, usage.cpu_nanoseconds, Instant::now());
        let mut cpu = json!({
            "time": now(), "usageCoreNanoSeconds": usage.cpu_nanoseconds, "usageNanoCores": rate.unwrap_or(0),
        });
        if let Some(pressure) = usage.psi.cpu {
            cpu["psi"] = psi_stats(pressure);
        }
        cpu
    }

    fn rate(&self, key: &str, cpu_nanoseconds: u64, at: Instant) -> Option<u64> {
        let mut samples = self.samples.lock();
        let last = samples.get(key).copied();
        let rate = match last {
            Some(last) if at.duration_since(last.at) < RATE_WINDOW => return last.rate,
            Some(last) => {
                let used = cpu_nanoseconds.saturating_sub(last.cpu_nanoseconds);
                Some((used as f64 / at.duration_since(last.at).as_secs_f64()) as u64)
            }
            None => None,
        };
        samples.insert(key.to_owned(), Sample { at, cpu_nanoseconds, rate });
        rate
    }

    /// Counters of pods that are gone; their containers' go after a while unused.
    fn forget_gone(&self, pods: &[std::sync::Arc<Pod>]) {
        const UNUSED: Duration = Duration::from_secs(600);
        let now = Instant::now();
        self.samples.lock().retain(|key, sample| {
            now.duration_since(sample.at) < UNUSED || pods.iter().any(|pod| pod.metadata.uid.as_deref() == Some(key))
        });
    }
}

pub(super) fn qos_of(pod: &Pod) -> QosClass {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        Some("BestEffort") => QosClass::BestEffort,
        _ => api::resources::qos_class(pod),
    }
}

fn memory(usage: Option<Usage>, limit: Option<u64>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    let mut value = json!({
        "time": now(),
        "usageBytes": usage.memory_usage,
        "workingSetBytes": usage.memory_working_set,
        "rssBytes": usage.memory_rss,
        "pageFaults": usage.page_faults,
        "majorPageFaults": usage.major_page_faults,
    });
    if let Some(pressure) = usage.psi.memory {
        value["psi"] = psi_stats(pressure);
    }
    if let Some(limit) = limit {
        value["availableBytes"] = json!(limit.saturating_sub(usage.memory_working_set));
    }
    value
}

/// `IOStats`, where the kernel tells of it.
fn add_io(summary: &mut Value, usage: Option<Usage>) {
    if let Some(pressure) = usage.and_then(|usage| usage.psi.io) {
        summary["io"] = json!({ "time": now(), "psi": psi_stats(pressure) });
    }
}

/// `PSIStats`.
fn psi_stats(pressure: Pressure) -> Value {
    let stall = |stall: Stall| {
        let [ten, minute, long] = stall.averages.map(|hundredths| f64::from(hundredths) / 100.0);
        json!({ "total": stall.total, "avg10": ten, "avg60": minute, "avg300": long })
    };
    json!({ "full": stall(pressure.full), "some": stall(pressure.some) })
}

/// `VolumeStats`.
fn volume_stats(pod: &Pod, volume: &VolumeUsage) -> Value {
    let mut stats = json!({ "time": now(), "name": volume.name });
    if let Some(bytes) = volume.bytes {
        stats["availableBytes"] = json!(bytes.available);
        stats["capacityBytes"] = json!(bytes.total);
        stats["usedBytes"] = json!(bytes.used);
    }
    if let Some(inodes) = volume.inodes {
        stats["inodesFree"] = json!(inodes.available);
        stats["inodes"] = json!(inodes.total);
        stats["inodesUsed"] = json!(inodes.used);
    }
    if let Some(claim) = &volume.claim {
        stats["pvcRef"] = json!({ "name": claim, "namespace": pod.metadata.namespace });
    }
    if let Some(abnormal) = volume.abnormal {
        stats["volumeHealthStats"] = json!({ "abnormal": abnormal });
    }
    stats
}

async fn image_fs(pods: &dyn NodePods) -> Value {
    let Ok(info) = pods.runtime().image_fs_info().await else { return Value::Null };
    let Some(images) = info.image_filesystems.first() else { return Value::Null };
    let place = images.fs_id.as_ref().map(|id| id.mountpoint.clone()).unwrap_or_default();
    let mut value = file_system(Path::new(&place));
    if value.is_object() {
        value["usedBytes"] = json!(images.used_bytes.as_ref().map(|used| used.value));
        value["inodesUsed"] = json!(images.inodes_used.as_ref().map(|used| used.value));
    }
    value
}

/// Size and use of the file system that holds `path`.
fn file_system(path: &Path) -> Value {
    let Ok(stat) = nix::sys::statvfs::statvfs(path) else { return Value::Null };
    let block = stat.fragment_size();
    json!({
        "time": now(),
        "availableBytes": stat.blocks_available() * block,
        "capacityBytes": stat.blocks() * block,
        "usedBytes": (stat.blocks() - stat.blocks_free()) * block,
        "inodesFree": stat.files_free(),
        "inodes": stat.files(),
        "inodesUsed": stat.files() - stat.files_free(),
    })
}

/// What lies in a directory of files.
fn directory_use(path: &Path) -> Used {
    let mut used = Used::default();
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let bytes = entry.metadata().map_or(0, |meta| meta.len());
        used += Used { bytes, inodes: 1 };
    }
    used
}

fn process_limits() -> Value {
    let processes = processes();
    json!({
        "time": now(),
        "maxpid": processes.map(|processes| processes.most),
        "curproc": processes.map(|processes| processes.running),
    })
}

fn now() -> String {
    api::scalar::time(Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn cpu_rates_are_taken_over_a_window() {
        let stats = Stats::new("n".into(), "/".into());
        let begin = Instant::now();
        assert_eq!(stats.rate("a", 1_000_000_000, begin), None);
        assert_eq!(stats.rate("a", 2_000_000_000, begin + Duration::from_secs(1)), None, "too early");
        assert_eq!(stats.rate("a", 6_000_000_000, begin + Duration::from_secs(10)), Some(500_000_000));
        assert_eq!(stats.rate("a", 9_000_000_000, begin + Duration::from_secs(11)), Some(500_000_000));
    }

    #[test]
    fn the_root_file_system_has_a_size() {
        assert!(file_system(Path::new("/"))["capacityBytes"].as_u64().unwrap() > 0);
    }

    #[test]
    fn pressure_is_told_where_there_is_any() {
        let pressure = Pressure { some: Stall { total: 5000, averages: [125, 0, 5] }, full: Stall::default() };
        let usage = Usage { psi: Psi { io: Some(pressure), ..Psi::default() }, ..Usage::default() };
        let mut summary = json!({});
        add_io(&mut summary, Some(usage));
        assert_eq!(
            summary["io"]["psi"],
            json!({
                "some": { "total": 5000, "avg10": 1.25, "avg60": 0.0, "avg300": 0.05 },
                "full": { "total": 0, "avg10": 0.0, "avg60": 0.0, "avg300": 0.0 },
            })
        );
        let none = memory(Some(Usage::default()), None);
        assert!(none.get("psi").is_none());
    }
}
