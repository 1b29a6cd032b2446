//! Writing the cgroup file system, versions 1 and 2.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::limits::{Limits, cpu_weight};

const MOUNT: &str = "/sys/fs/cgroup";
/// The v1 controllers in which pods' groups are made. runc makes groups in the others itself.
const V1_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
const V2_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "cpuset"];

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("{action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("no cgroup file system is mounted at {MOUNT}; mount cgroup2 there")]
    NotMounted,
    #[error("the cgroup v1 controllers {0} are not mounted below {MOUNT}; the kubelet needs cpu and memory")]
    Missing(String),
    #[error("systemctl {arguments} failed: {message}")]
    Systemd { arguments: String, message: String },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::File { action, path, source }
}

/// Which version the host has, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// One directory per controller below `root`.
    V1 { root: PathBuf },
    /// One unified tree.
    V2 { root: PathBuf },
}

impl Hierarchy {
    pub fn detect() -> Result<Self, CgroupError> {
        let root = PathBuf::from(MOUNT);
        if root.join("cgroup.controllers").exists() {
            return Ok(Hierarchy::V2 { root });
        }
        if !root.exists() {
            return Err(CgroupError::NotMounted);
        }
        let missing: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| !root.join(name).exists()).collect();
        if missing.is_empty() { Ok(Hierarchy::V1 { root }) } else { Err(CgroupError::Missing(missing.join(", "))) }
    }

    pub fn is_v2(&self) -> bool {
        matches!(self, Hierarchy::V2 { .. })
    }

    /// The group's directory in one controller (all are the same on v2).
    pub(super) fn controller(&self, controller: &str, group: &str) -> PathBuf {
        let group = group.trim_start_matches('/');
        match self {
            Hierarchy::V1 { root } => root.join(controller).join(group),
            Hierarchy::V2 { root } => root.join(group),
        }
    }

    /// The directory to show to people.
    pub(super) fn directory(&self, group: &str) -> PathBuf {
        self.controller("memory", group)
    }

    pub(super) fn children(&self, group: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.directory(group)) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    pub(super) fn apply(&self, group: &str, limits: &Limits) -> Result<(), CgroupError> {
        match self {
            Hierarchy::V1 { root } => {
                for controller in V1_CONTROLLERS.into_iter().filter(|name| root.join(name).exists()) {
                    let directory = self.controller(controller, group);
                    std::fs::create_dir_all(&directory).map_err(failed("making cgroup", &directory))?;
                }
                self.write_v1(group, limits)
            }
            Hierarchy::V2 { root } => {
                let directory = self.directory(group);
                std::fs::create_dir_all(&directory).map_err(failed("making cgroup", &directory))?;
                delegate_controllers(root, group);
                self.write_v2(&directory, limits)
            }
        }
    }

    fn write_v1(&self, group: &str, limits: &Limits) -> Result<(), CgroupError> {
        let mut values: Vec<(&str, &str, String)> = Vec::new();
        if let Some(shares) = limits.cpu_shares {
            values.push(("cpu", "cpu.shares", shares.to_string()));
        }
        if let Some(quota) = limits.cpu_quota {
            values.push(("cpu", "cpu.cfs_period_us", "100000".to_owned()));
            values.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
        }
        if let Some(memory) = limits.memory_bytes {
            values.push(("memory", "memory.limit_in_bytes", memory.to_string()));
        }
        if let Some(pids) = limits.pids {
            values.push(("pids", "pids.max", pids.to_string()));
        }
        for (controller, file, value) in values {
            write(&self.controller(controller, group).join(file), &value)?;
        }
        Ok(())
    }

    fn write_v2(&self, directory: &Path, limits: &Limits) -> Result<(), CgroupError> {
        for (file, value) in v2_values(limits) {
            write(&directory.join(file), &value)?;
        }
        Ok(())
    }

    /// Removes a group and everything below it; what still runs there is killed.
    pub(super) fn remove(&self, group: &str) -> Result<(), CgroupError> {
        let directories: Vec<PathBuf> = match self {
            Hierarchy::V2 { .. } => vec![self.directory(group)],
            // runc made groups in every mounted controller; links among them lead to the same ones.
            Hierarchy::V1 { root } => std::fs::read_dir(root)
                .map_err(failed("listing", root))?
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path().join(group.trim_start_matches('/')))
                .collect(),
        };
        let mut first = Ok(());
        for directory in directories {
            if let Err(error) = remove_tree(&directory)
                && first.is_ok()
            {
                first = Err(error);
            }
        }
        first
    }
}

fn v2_values(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut values = Vec::new();
    if let Some(shares) = limits.cpu_shares {
        values.push(("cpu.weight", cpu_weight(shares).to_string()));
    }
    if let Some(quota) = limits.cpu_quota {
        values.push(("cpu.max", format!("{quota} 100000")));
    }
    if let Some(memory) = limits.memory_bytes {
        values.push(("memory.max", memory.to_string()));
    }
    if let Some(pids) = limits.pids {
        values.push(("pids.max", pids.to_string()));
    }
    values
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    std::fs::write(path, value).map_err(failed("writing", path))
}

/// Every ancestor hands its controllers down. One that it does not have is not an error: limits
/// that need it fail when written.
fn delegate_controllers(root: &Path, group: &str) {
    let mut directory = root.to_owned();
    let mut levels = vec![directory.clone()];
    for part in group.split('/').filter(|part| !part.is_empty()) {
        directory = directory.join(part);
        levels.push(directory.clone());
    }
    for level in levels {
        for controller in V2_CONTROLLERS {
            let _ = std::fs::write(level.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("listing", directory)(error)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let deadline = Instant::now() + Duration::from_millis(200);
    loop {
        match std::fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(failed("removing cgroup", directory)(error)),
            Err(_) => {
                // Still busy: kill what runs in it and let the kernel reap it.
                kill_all(directory);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn kill_all(directory: &Path) {
    let Ok(processes) = std::fs::read_to_string(directory.join("cgroup.procs")) else { return };
    for pid in processes.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Sets a slice's properties through systemd, which makes the slice when something starts in it.
pub(super) async fn apply_slice(path: &str, limits: &Limits) -> Result<(), CgroupError> {
    let slice = slice_name(path);
    systemctl(&["start", slice]).await?;
    let mut properties = vec!["CPUAccounting=yes".to_owned(), "MemoryAccounting=yes".to_owned()];
    if let Some(shares) = limits.cpu_shares {
        properties.push(format!("CPUWeight={}", cpu_weight(shares)));
    }
    if let Some(quota) = limits.cpu_quota {
        properties.push(format!("CPUQuota={}%", (quota as f64) / 1000.0));
    }
    if let Some(memory) = limits.memory_bytes {
        properties.push(format!("MemoryMax={memory}"));
    }
    if let Some(pids) = limits.pids {
        properties.push(format!("TasksMax={pids}"));
    }
    let mut arguments = vec!["set-property", "--runtime", slice];
    arguments.extend(properties.iter().map(String::as_str));
    systemctl(&arguments).await
}

pub(super) async fn stop_slice(path: &str) -> Result<(), CgroupError> {
    systemctl(&["stop", slice_name(path)]).await
}

fn slice_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

async fn systemctl(arguments: &[&str]) -> Result<(), CgroupError> {
    let failed = |message: String| CgroupError::Systemd { arguments: arguments.join(" "), message };
    let output = tokio::process::Command::new("systemctl")
        .args(arguments)
        .output()
        .await
        .map_err(|error| failed(format!("{error}; is systemd running here? The cgroupfs driver needs none")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchys_values() {
        let limits =
            Limits { cpu_shares: Some(1024), cpu_quota: Some(50_000), memory_bytes: Some(1 << 20), pids: Some(9) };
        let expected =
            [("cpu.weight", "39"), ("cpu.max", "50000 100000"), ("memory.max", "1048576"), ("pids.max", "9")];
        let values = v2_values(&limits);
        assert_eq!(values.iter().map(|(file, value)| (*file, value.as_str())).collect::<Vec<_>>(), expected);
        assert!(v2_values(&Limits::default()).is_empty());
    }

    #[test]
    fn files_are_written_per_controller() {
        let root = std::env::temp_dir().join(format!("skiff-cgroup-test-{}", std::process::id()));
        for controller in ["cpu", "memory"] {
            std::fs::create_dir_all(root.join(controller)).unwrap();
        }
        let hierarchy = Hierarchy::V1 { root: root.clone() };
        let limits = Limits { cpu_shares: Some(2), memory_bytes: Some(4096), ..Default::default() };
        hierarchy.apply("/kubepods/pod1", &limits).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("cpu/kubepods/pod1/cpu.shares")).unwrap(), "2");
        assert_eq!(std::fs::read_to_string(root.join("memory/kubepods/pod1/memory.limit_in_bytes")).unwrap(), "4096");
        assert_eq!(hierarchy.children("/kubepods"), ["pod1"]);
        std::fs::remove_dir_all(&root).unwrap();
        hierarchy.remove("/kubepods/pod1").unwrap_err();
    }
}
