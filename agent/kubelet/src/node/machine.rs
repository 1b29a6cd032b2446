//! What the host has: read once at start from /proc and /sys.

use std::collections::BTreeMap;
use std::path::Path;

#[derive(Debug, Clone, Default)]
pub struct Machine {
    pub cpus: u64,
    /// Bytes.
    pub memory: u64,
    pub swap: u64,
    /// Bytes by page size in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    /// As Kubernetes names it: amd64, arm64.
    pub architecture: &'static str,
    pub apparmor: bool,
    /// Whether this process is root only in a namespace of its own.
    pub in_user_namespace: bool,
}

impl Machine {
    /// This host. What cannot be read is left empty.
    pub fn detect() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let meminfo = text("/proc/meminfo");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
            memory: kilobytes(&meminfo, "MemTotal") << 10,
            swap: kilobytes(&meminfo, "SwapTotal") << 10,
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            machine_id: Some(text("/etc/machine-id"))
                .filter(|id| !id.is_empty())
                .unwrap_or_else(|| text("/var/lib/dbus/machine-id")),
            system_uuid: text("/sys/class/dmi/id/product_uuid"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel_version: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&text("/etc/os-release")),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            apparmor: text("/sys/module/apparmor/parameters/enabled") == "Y",
            in_user_namespace: is_mapped(&text("/proc/self/uid_map")),
        }
    }
}

/// Bytes available without swapping, now.
pub fn available_memory() -> u64 {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable") << 10
}

/// How many processes and threads there may be, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processes {
    pub most: u64,
    pub running: u64,
}

/// As the kernel has it now (`pkg/kubelet/stats/pidlimit`).
pub fn processes() -> Option<Processes> {
    let text = |path: &str| std::fs::read_to_string(path).ok();
    let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].into_iter().filter_map(text);
    let most = limits.filter_map(|limit| limit.trim().parse().ok()).min()?;
    Some(Processes { most, running: running(&text("/proc/loadavg")?)? })
}

/// The fourth field of `/proc/loadavg` is what is on a CPU, and all there is.
fn running(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

/// The host's own user namespace maps every id to itself.
fn is_mapped(uid_map: &str) -> bool {
    let fields: Vec<&str> = uid_map.split_whitespace().collect();
    !fields.is_empty() && fields != ["0", "0", "4294967295"]
}

fn kilobytes(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn os_image(os_release: &str) -> String {
    let line = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn huge_pages(directory: &Path) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(kilobytes) =
            name.strip_prefix("hugepages-").and_then(|size| size.strip_suffix("kB")?.parse::<u64>().ok())
        else {
            continue;
        };
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        let count: u64 = count.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        found.insert(kilobytes << 10, count * (kilobytes << 10));
    }
    found
}

/// A file system's size and what is free of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileSystem {
    pub bytes: u64,
    pub available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// Of the file system that holds `path`, or its nearest existing parent.
pub fn file_system(path: &Path) -> Option<FileSystem> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stat = nix::sys::statvfs::statvfs(existing).ok()?;
    let block = stat.fragment_size();
    Some(FileSystem {
        // What is used and what may be used: blocks that the kernel keeps back count as neither.
        bytes: (stat.blocks().saturating_sub(stat.blocks_free()) + stat.blocks_available()) * block,
        available: stat.blocks_available() * block,
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files() {
        assert_eq!(kilobytes("MemTotal:       24689420 kB\nMemFree: 1 kB\n", "MemTotal"), 24_689_420);
        assert_eq!(kilobytes("", "MemTotal"), 0);
        assert_eq!((running("0.31 0.22 0.14 2/731 4242\n"), running("")), (Some(731), None));
        assert!(processes().is_some_and(|processes| processes.running > 0 && processes.running < processes.most));
        for (uid_map, mapped) in
            [("", false), ("         0          0 4294967295", false), ("0 1000 1\n1 100000 65536", true)]
        {
            assert_eq!(is_mapped(uid_map), mapped, "{uid_map}");
        }
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        let machine = Machine::detect();
        assert!(machine.cpus > 0 && machine.memory > 0 && !machine.kernel_version.is_empty());
        assert!(file_system(Path::new("/does/not/exist")).unwrap().bytes > 0);
    }
}
