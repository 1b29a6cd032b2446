//! Where things lie on the host: Kubernetes' own layout under a root of our choosing.
//!
//! ```text
//! <root>/pods/<uid>/etc-hosts
//! <root>/pods/<uid>/containers/<container>/<random>         termination log of one run
//! <root>/pods/<uid>/volumes/<plugin with ~ for />/<volume>
//! <root>/pods/<uid>/volume-subpaths/<volume>/<container>/<index>
//! <logs>/<namespace>_<name>_<uid>/<container>/<attempt>.log
//! ```

use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `/var/lib/skiff/agent/kubelet`
    pub root: PathBuf,
    /// `/var/log/pods`
    pub logs: PathBuf,
}

impl Layout {
    pub fn new(root: impl Into<PathBuf>, logs: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), logs: logs.into() }
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    pub fn etc_hosts(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("etc-hosts")
    }

    pub fn container(&self, uid: &str, container: &str) -> PathBuf {
        self.pod(uid).join("containers").join(container)
    }

    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// A volume's directory, e.g. plugin `kubernetes.io/empty-dir`.
    pub fn volume(&self, uid: &str, plugin: &str, volume: &str) -> PathBuf {
        self.volumes(uid).join(plugin.replace('/', "~")).join(volume)
    }

    pub fn sub_path(&self, uid: &str, volume: &str, container: &str, index: usize) -> PathBuf {
        self.pod(uid).join("volume-subpaths").join(volume).join(container).join(index.to_string())
    }

    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs.join(format!("{namespace}_{name}_{uid}"))
    }

    /// The log of one run of a container, relative to [`Layout::pod_logs`].
    pub fn container_log(container: &str, attempt: u32) -> String {
        format!("{container}/{attempt}.log")
    }

    /// The UIDs of pods that have a directory.
    pub fn pod_uids(&self) -> std::io::Result<Vec<String>> {
        names(&self.pods())
    }
}

fn names(directory: &Path) -> std::io::Result<Vec<String>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
