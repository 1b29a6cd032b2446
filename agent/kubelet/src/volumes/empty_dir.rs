//! Directories that are made for volumes, and how large an emptyDir in memory may be.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use api::quantity::Quantity;
use api::resources::{self, Side};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use super::mounts;

/// Makes a volume's directory. `in_memory` puts a tmpfs there, limited to so many bytes if given; its root
/// has the mode that the kernel gives it, 1777, as Kubernetes leaves it. Returns whether it is new.
pub fn make_directory(path: &Path, mode: u32, in_memory: Option<Option<u64>>) -> std::io::Result<bool> {
    let existed = path.is_dir();
    if !existed {
        std::fs::create_dir_all(path)?;
    }
    let mounting = in_memory.filter(|_| !mounts::is_mount_point(path));
    if let Some(size) = mounting {
        mounts::mount_tmpfs(path, size)?;
    }
    let fresh = !existed || mounting.is_some();
    if fresh && in_memory.is_none() {
        // Set afterwards: the umask reduces what is given at creation.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(fresh)
}

/// The size of an emptyDir in memory: its own limit, and no more than the pod's memory limit.
pub fn memory_size(pod: &Pod, source: &EmptyDirVolumeSource) -> Option<u64> {
    let own = source.size_limit.as_ref().map(Quantity::from).filter(|limit| !limit.is_zero());
    let spec = pod.spec.as_ref()?;
    let every_container_limited =
        spec.containers.iter().all(|container| resources::of_container(container, Side::Limits).contains_key("memory"));
    let pod_limit = resources::of_pod(spec, Side::Limits).get("memory").copied().filter(|_| every_container_limited);
    own.into_iter().chain(pod_limit).map(|quantity| quantity.units()).min().and_then(|bytes| u64::try_from(bytes).ok())
}
