//! Pods' cgroups: `kubepods`, one group per QoS class, one per pod.
//!
//! Names and limits are pure ([`Cgroups::pod`], [`Limits`]); [`files`] writes them, [`usage`] reads
//! what they count. A container's own group is made by the runtime below its pod's.
//!
//! ```text
//! cgroupfs   /kubepods/burstable/pod<uid>/<container id>
//! systemd    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope
//! ```

mod files;
mod limits;
mod sandbox;
mod usage;

use std::path::PathBuf;

use api::resources::QosClass;

use crate::config::CgroupDriver;

pub use files::{CgroupError, Hierarchy};
pub use limits::{Host, Limits, container_resources, cpu_weight, oom_score_adj, pod_limits, qos_limits};
pub use sandbox::{SandboxResources, sandbox_resources};
pub use usage::{Pressure, Psi, Stall, Usage};

/// One node's part of the cgroup tree.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: String,
    driver: CgroupDriver,
    hierarchy: Hierarchy,
}

/// A group by its elements below the node's root, e.g. `["kubepods", "burstable", "pod1234"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group(Vec<String>);

impl Cgroups {
    /// `root` is an absolute cgroup path, `/` for the whole tree.
    pub fn new(root: &str, driver: CgroupDriver, hierarchy: Hierarchy) -> Self {
        Self { root: root.trim_matches('/').to_owned(), driver, hierarchy }
    }

    /// The host's own hierarchy.
    pub fn on_host(root: &str, driver: CgroupDriver) -> Result<Self, CgroupError> {
        Ok(Self::new(root, driver, Hierarchy::detect()?))
    }

    pub fn driver(&self) -> CgroupDriver {
        self.driver
    }

    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// What decides how containers' limits are written on a machine with so much memory, bytes.
    pub fn host(&self, memory: u64) -> Host {
        let is_v2 = self.hierarchy.is_v2();
        let file = if is_v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
        Host { memory, is_v2, limits_swap: self.directory(&self.node()).join(file).exists() }
    }

    /// The group that holds every pod.
    pub fn node(&self) -> Group {
        Group(vec!["kubepods".to_owned()])
    }

    /// The parent of a class's pods. Guaranteed pods hang directly below `kubepods`.
    pub fn qos(&self, class: QosClass) -> Group {
        let mut group = self.node();
        match class {
            QosClass::Guaranteed => {}
            QosClass::Burstable => group.0.push("burstable".to_owned()),
            QosClass::BestEffort => group.0.push("besteffort".to_owned()),
        }
        group
    }

    pub fn pod(&self, class: QosClass, uid: &str) -> Group {
        let mut group = self.qos(class);
        group.0.push(format!("pod{uid}"));
        group
    }

    /// The group's absolute path in the cgroup tree; what CRI takes as `cgroup_parent`.
    pub fn path(&self, group: &Group) -> String {
        let above = self.root.split('/').filter(|part| !part.is_empty());
        match self.driver {
            CgroupDriver::Cgroupfs => {
                let parts: Vec<&str> = above.chain(group.0.iter().map(String::as_str)).collect();
                format!("/{}", parts.join("/"))
            }
            CgroupDriver::Systemd => {
                let mut path = String::new();
                let mut name = String::new();
                for part in above.chain(group.0.iter().map(String::as_str)) {
                    // A dash separates levels in a slice's name, so none may be inside a level.
                    let part = part.trim_end_matches(".slice").replace('-', "_");
                    if !name.is_empty() {
                        name.push('-');
                    }
                    name.push_str(&part);
                    path.push('/');
                    path.push_str(&name);
                    path.push_str(".slice");
                }
                path
            }
        }
    }

    /// A running container's own group below its pod's.
    pub fn container_path(&self, pod: &Group, container_id: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("{}/{container_id}", self.path(pod)),
            CgroupDriver::Systemd => format!("{}/cri-containerd-{container_id}.scope", self.path(pod)),
        }
    }

    /// What a container has used, if it still has a group.
    pub fn container_usage(&self, class: QosClass, uid: &str, container_id: &str) -> Option<Usage> {
        self.hierarchy.usage(&self.container_path(&self.pod(class, uid), container_id))
    }

    /// A process of a running container, or of a sandbox.
    pub fn process_of(&self, class: QosClass, uid: &str, container_id: &str) -> Option<u32> {
        let directory = self.hierarchy.directory(&self.container_path(&self.pod(class, uid), container_id));
        std::fs::read_to_string(directory.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
    }

    /// What a pod has used, all containers and its sandbox together.
    pub fn pod_usage(&self, class: QosClass, uid: &str) -> Option<Usage> {
        self.hierarchy.usage(&self.path(&self.pod(class, uid)))
    }

    /// What all pods have used.
    pub fn node_usage(&self) -> Option<Usage> {
        self.hierarchy.usage(&self.path(&self.node()))
    }

    /// Makes the group if needed and sets its limits.
    pub async fn apply(&self, group: &Group, limits: &Limits) -> Result<(), CgroupError> {
        let path = self.path(group);
        match self.driver {
            CgroupDriver::Cgroupfs => self.hierarchy.apply(&path, limits),
            CgroupDriver::Systemd => files::apply_slice(&path, limits).await,
        }
    }

    /// Kills what is left in the group and removes it. Succeeds when it is not there.
    pub async fn remove(&self, group: &Group) -> Result<(), CgroupError> {
        let path = self.path(group);
        if self.driver == CgroupDriver::Systemd {
            files::stop_slice(&path).await?;
        }
        self.hierarchy.remove(&path)
    }

    /// The UIDs of pods that have a group, with their class.
    pub fn pods(&self) -> Vec<(QosClass, String)> {
        let mut found = Vec::new();
        for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            for directory in self.hierarchy.children(&self.path(&self.qos(class))) {
                if let Some(uid) = pod_uid(&directory) {
                    found.push((class, uid));
                }
            }
        }
        found
    }

    /// A directory that shows the group's usage, for messages.
    pub fn directory(&self, group: &Group) -> PathBuf {
        self.hierarchy.directory(&self.path(group))
    }
}

/// `pod<uid>` or `kubepods-burstable-pod<uid with _>.slice`.
fn pod_uid(directory: &str) -> Option<String> {
    let name = directory.strip_suffix(".slice").map_or(directory, |slice| slice.rsplit('-').next().unwrap_or(slice));
    name.strip_prefix("pod").filter(|uid| !uid.is_empty()).map(|uid| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_driver_and_class() {
        let files = Cgroups::new("/skiff/a", CgroupDriver::Cgroupfs, Hierarchy::V1 { root: "/nowhere".into() });
        let pod = files.pod(QosClass::Burstable, "12-34");
        assert_eq!(files.path(&pod), "/skiff/a/kubepods/burstable/pod12-34");
        assert_eq!(files.path(&files.pod(QosClass::Guaranteed, "1")), "/skiff/a/kubepods/pod1");
        assert_eq!(files.container_path(&pod, "abc"), "/skiff/a/kubepods/burstable/pod12-34/abc");

        let systemd = Cgroups::new("/", CgroupDriver::Systemd, Hierarchy::V2 { root: "/nowhere".into() });
        let pod = systemd.pod(QosClass::BestEffort, "12-34");
        let expected = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod12_34.slice";
        assert_eq!(systemd.path(&pod), expected);
        assert_eq!(systemd.container_path(&pod, "abc"), format!("{expected}/cri-containerd-abc.scope"));
    }

    #[test]
    fn uids_are_read_back() {
        for (directory, uid) in [
            ("pod12-34", Some("12-34")),
            ("kubepods-burstable-pod12_34.slice", Some("12-34")),
            ("kubepods-pod12_34.slice", Some("12-34")),
            ("burstable", None),
            ("pod", None),
        ] {
            assert_eq!(pod_uid(directory).as_deref(), uid, "{directory}");
        }
    }
}
