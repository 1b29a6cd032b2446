//! Pods that use more of the node's disk than they may: an emptyDir over its `sizeLimit`, a container or
//! a pod over its `ephemeral-storage` limit (`eviction_manager.go: localStorageEviction`).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use api::resources::{self, Side};
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::{disk_usage, evict, viable};
use crate::context::NodeContext;
use crate::cri::Layer;
use crate::manager::Manager;
use crate::pod::mailbox::Snapshot;

const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// What each run wrote into its image, by run id.
pub type Written = BTreeMap<String, Layer>;

/// Something on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::AddAssign for Disk {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

impl std::iter::Sum for Disk {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// What a pod has on disk.
#[derive(Debug, Default)]
pub struct Used {
    /// Of emptyDir volumes, by name.
    empty_dirs: BTreeMap<String, Disk>,
    /// Of containers, by name: what they wrote into their image, and their logs.
    pub(super) containers: BTreeMap<String, Disk>,
}

/// The limit of an emptyDir, if it has one.
fn size_limit(volume: &Volume) -> Option<Quantity> {
    let limit = volume.empty_dir.as_ref()?.size_limit.as_ref().map(Quantity::from)?;
    (!limit.is_zero()).then_some(limit)
}

fn bytes(limit: Quantity) -> u64 {
    limit.units().max(0).unsigned_abs()
}

/// Why the pod has to go, if it uses too much.
fn exceeded(pod: &Pod, used: &Used) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    for volume in spec.volumes.iter().flatten() {
        let Some(limit) = size_limit(volume) else { continue };
        if used.empty_dirs.get(&volume.name).is_some_and(|used| used.bytes > bytes(limit)) {
            return Some(format!("Usage of EmptyDir volume \"{}\" exceeds the limit \"{limit}\". ", volume.name));
        }
    }
    if let Some(limit) = resources::of_pod(spec, Side::Limits).get(EPHEMERAL_STORAGE).copied()
        && !limit.is_zero()
        && on_disk(pod, used).bytes > bytes(limit)
    {
        return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
    }
    spec.containers.iter().find_map(|container| {
        let limit = resources::of_container(container, Side::Limits).get(EPHEMERAL_STORAGE).copied()?;
        let used = used.containers.get(&container.name)?.bytes;
        (!limit.is_zero() && used > bytes(limit))
            .then(|| format!("Container {} exceeded its local ephemeral storage limit \"{limit}\". ", container.name))
    })
}

/// Everything that the pod has on disk. Volumes that lie elsewhere are not among that.
pub fn on_disk(pod: &Pod, used: &Used) -> Disk {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter(|volume| !in_memory(volume));
    let volumes = volumes.filter_map(|volume| used.empty_dirs.get(&volume.name));
    volumes.chain(used.containers.values()).copied().sum()
}

fn in_memory(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref() == Some("Memory"))
}

fn is_limited(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return false };
    spec.volumes.iter().flatten().any(|volume| size_limit(volume).is_some())
        || spec.containers.iter().any(|one| resources::of_container(one, Side::Limits).contains_key(EPHEMERAL_STORAGE))
}

/// Ends the pods that use more than they may. Returns whether there were any.
pub async fn enforce(node: &Arc<NodeContext>, manager: &Manager) -> bool {
    let limited: Vec<Snapshot> = viable(manager).filter(|one| is_limited(&one.pod)).collect();
    if limited.is_empty() {
        return false;
    }
    let written = Arc::new(written(node).await);
    let mut evicted = false;
    for snapshot in limited {
        let pod = snapshot.pod.clone();
        let reading = (node.clone(), written.clone());
        let used = tokio::task::spawn_blocking(move || measure(&reading.0, &snapshot, &reading.1)).await;
        if let Some(message) = used.ok().and_then(|used| exceeded(&pod, &used)) {
            evict(node, manager, &pod, message);
            evicted = true;
        }
    }
    evicted
}

pub async fn written(node: &NodeContext) -> Written {
    node.runtime.layers().await.unwrap_or_else(|error| {
        tracing::debug!(%error, "the container runtime did not say what containers have written");
        Written::new()
    })
}

/// May take long: every file is looked at.
pub fn measure(node: &NodeContext, snapshot: &Snapshot, written: &Written) -> Used {
    let pod = &snapshot.pod;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let empty_dirs = volumes.filter(|volume| volume.empty_dir.is_some()).map(|volume| {
        let directory = node.config.layout.volume(&uid, "kubernetes.io/empty-dir", &volume.name);
        (volume.name.clone(), disk_usage(&directory))
    });
    let mut used = Used { empty_dirs: empty_dirs.collect(), containers: BTreeMap::new() };
    for run in snapshot.observed.runs.iter().filter(|run| run.is_running()) {
        let mut disk = std::path::Path::new(&run.log_path).parent().map(disk_usage).unwrap_or_default();
        let layer = written.get(&run.id).copied().unwrap_or_default();
        disk += Disk { bytes: layer.bytes, inodes: layer.inodes };
        used.containers.insert(run.name.clone(), disk);
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_is_over_its_limit_is_named() {
        let limit = |text: &str| json!({"limits": {"ephemeral-storage": text}});
        let pod = |resources: Value| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}, {"name": "d", "resources": limit("8Mi")}],
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "4Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]}}))
            .unwrap()
        };
        const MI: u64 = 1 << 20;
        for (resources, v, c, d, expected) in [
            (limit("4Mi"), 4 * MI, 0, 0, None),
            (limit("4Mi"), 4 * MI + 1, 0, 0, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"4Mi\". ")),
            (limit("4Mi"), 0, 5 * MI, 0, Some("Container c exceeded its local ephemeral storage limit \"4Mi\". ")),
            (
                limit("4Mi"),
                4 * MI,
                4 * MI,
                5 * MI,
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 12Mi. "),
            ),
        ] {
            let disk = |name: &str, bytes: u64| (name.to_owned(), Disk { bytes, inodes: 1 });
            let used = Used {
                empty_dirs: BTreeMap::from([disk("v", v), disk("m", 0)]),
                containers: BTreeMap::from([disk("c", c), disk("d", d)]),
            };
            assert_eq!(exceeded(&pod(resources), &used).as_deref(), expected, "{v} {c} {d}");
        }
    }

    #[test]
    fn only_what_is_on_the_nodes_disk_counts_when_it_is_full() {
        let volumes = json!([{"name": "v", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}},
            {"name": "far", "nfs": {"server": "s", "path": "/"}}]);
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": volumes}})).unwrap();
        let disk = |name: &str, bytes: u64, inodes: u64| (name.to_owned(), Disk { bytes, inodes });
        let used = Used {
            empty_dirs: BTreeMap::from([disk("v", 1, 2), disk("m", 10, 20)]),
            containers: BTreeMap::from([disk("c", 100, 200)]),
        };
        assert_eq!(on_disk(&pod, &used), Disk { bytes: 101, inodes: 202 });
    }
}
