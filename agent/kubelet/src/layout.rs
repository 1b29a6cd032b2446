//! Where things lie on the host: Kubernetes' own layout under a root of our choosing.
//!
//! ```text
//! <root>/pods/<uid>/etc-hosts
//! <root>/pods/<uid>/userns                                  the pod's own users
//! <root>/pods/<uid>/containers/<container>/<random>         termination log of one run
//! <root>/pods/<uid>/volumes/<plugin with ~ for />/<volume>
//! <root>/pods/<uid>/volumeDevices/<plugin with ~ for />/<volume>   a block volume's device
//! <root>/pods/<uid>/volume-subpaths/<volume>/<container>/<index>
//! <root>/plugins/kubernetes.io/csi/...                      what CSI drivers mount once for the node
//! <root>/plugins_registry/*.sock                            plugins that want to be registered
//! <root>/device-plugins/kubelet.sock                        where device plugins register
//! <root>/pod-resources/kubelet.sock                         where it is asked which pod has which devices
//! <root>/pods-api/pods-api.sock                             where it is asked for the pods themselves
//! <root>/image_manager/{pulling,pulled}/sha256-<hash>       whose pulls brought which image
//! <root>/checkpoints/checkpoint-<pod>_<namespace>-<container>-<time>.tar
//! <logs>/<namespace>_<name>_<uid>/<container>/<attempt>.log
//! ```
//!
//! Drivers written for Kubernetes know the root as `/var/lib/kubelet`, which need not be ours:
//! [`Layout::own`] and [`Layout::shown_to`] translate between the two names of one directory.

use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `/var/lib/skiff/agent/kubelet`
    pub root: PathBuf,
    /// `/var/log/pods`
    pub logs: PathBuf,
    /// What pods call the root: a hostPath volume there is one of ours.
    pub shown_root: PathBuf,
}

/// Which resource claims are prepared, in the root.
pub const CLAIMS: &str = "dra_manager_state";

/// Where archives of containers are, in the root.
pub const CHECKPOINTS: &str = "checkpoints";

/// Where Kubernetes' kubelet keeps its files, and where drivers look for them.
pub const KUBELET_ROOT: &str = "/var/lib/kubelet";

impl Layout {
    pub fn new(root: impl Into<PathBuf>, logs: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), logs: logs.into(), shown_root: KUBELET_ROOT.into() }
    }

    /// Makes the root, and calls it as the kernel does: a link on the way to it would make the names of
    /// what is mounted below other ones than those in the kernel's list.
    pub fn settle(self) -> std::io::Result<Self> {
        std::fs::create_dir_all(&self.root)?;
        Ok(Self { root: self.root.canonicalize()?, ..self })
    }

    /// Everything that the kubelet has in its root.
    pub fn entries(&self) -> Vec<PathBuf> {
        let claims = self.root.join(CLAIMS);
        let draft = crate::files::draft(&claims);
        let directories = [
            self.pods(),
            self.plugins(),
            self.plugins_registry(),
            self.device_plugins(),
            self.pod_resources(),
            self.pods_api(),
            self.image_manager(),
            self.root.join(CHECKPOINTS),
        ];
        directories.into_iter().chain([claims, draft]).collect()
    }

    /// The path on this host of what a pod or a driver names.
    pub fn own(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.shown_root).map_or_else(|_| path.to_owned(), |rest| join(&self.root, rest))
    }

    /// A path under the root as a driver knows it that calls its own socket `endpoint`: one that lives
    /// in a pod sees the root under the name it was mounted at.
    pub fn shown_to(&self, endpoint: &Path, path: &Path) -> PathBuf {
        if !endpoint.starts_with(&self.shown_root) {
            return path.to_owned();
        }
        path.strip_prefix(&self.root).map_or_else(|_| path.to_owned(), |rest| join(&self.shown_root, rest))
    }

    pub fn plugins_registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    pub fn device_plugins(&self) -> PathBuf {
        self.root.join("device-plugins")
    }

    pub fn pod_resources(&self) -> PathBuf {
        self.root.join("pod-resources")
    }

    pub fn pods_api(&self) -> PathBuf {
        self.root.join("pods-api")
    }

    pub fn image_manager(&self) -> PathBuf {
        self.root.join("image_manager")
    }

    /// Drivers' sockets and files, a directory for each.
    pub fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    /// A plugin's files for the whole node, e.g. `kubernetes.io/csi`.
    pub fn plugin(&self, plugin: &str) -> PathBuf {
        self.plugins().join(plugin)
    }

    /// A block volume of a pod.
    pub fn volume_device(&self, uid: &str, plugin: &str, volume: &str) -> PathBuf {
        self.volume_devices(uid).join(plugin.replace('/', "~")).join(volume)
    }

    pub fn volume_devices(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumeDevices")
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

/// Without a slash at the end where there is nothing to add.
fn join(root: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { root.to_owned() } else { root.join(rest) }
}

/// What a directory holds; nothing if it is not there.
pub fn names(directory: &Path) -> std::io::Result<Vec<String>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_has_two_names() {
        let layout = Layout::new("/lab/kubelet", "/logs");
        for (shown, own) in [
            ("/var/lib/kubelet", "/lab/kubelet"),
            ("/var/lib/kubelet/plugins/d/csi.sock", "/lab/kubelet/plugins/d/csi.sock"),
            ("/var/lib/kubelets", "/var/lib/kubelets"),
            ("/etc", "/etc"),
        ] {
            assert_eq!(layout.own(Path::new(shown)), Path::new(own));
        }
        let path = Path::new("/lab/kubelet/pods/1");
        let inside = Path::new("/var/lib/kubelet/plugins/d/csi.sock");
        assert_eq!(layout.shown_to(inside, path), Path::new("/var/lib/kubelet/pods/1"));
        assert_eq!(layout.shown_to(Path::new("/lab/kubelet/plugins/d/csi.sock"), path), path);
    }

    #[test]
    fn the_root_is_called_as_the_kernel_calls_it() {
        let directory = tempfile::tempdir().unwrap();
        let (link, real) = (directory.path().join("link"), directory.path().join("real"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let layout = Layout::new(link.join("kubelet"), "/logs").settle().unwrap();
        assert_eq!(layout.root, real.canonicalize().unwrap().join("kubelet"));
        assert!(layout.root.is_dir());
    }
}
