//! Reading what a group has used, in the terms of Kubernetes' stats: a working set is usage without
//! the inactive file cache.

use std::path::{Path, PathBuf};

use super::files::Hierarchy;

/// Counters of one group. CPU grows; memory is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds on all CPUs since the group was made.
    pub cpu_nanoseconds: u64,
    /// Bytes, caches included.
    pub memory_usage: u64,
    /// Bytes that cannot be reclaimed easily.
    pub memory_working_set: u64,
    /// Bytes of anonymous memory.
    pub memory_rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Bytes; none when unlimited.
    pub memory_limit: Option<u64>,
    pub processes: u64,
    pub psi: Psi,
}

/// How long work waited for what it needs (`/proc/pressure`); none where the kernel does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Psi {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some of the work waited.
    pub some: Stall,
    /// All of it did.
    pub full: Stall,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stall {
    /// Nanoseconds since the group was made.
    pub total: u64,
    /// Of the last 10, 60 and 300 seconds, hundredths of a percent.
    pub averages: [u32; 3],
}

impl Psi {
    /// `file` gives the place of the file for one of `cpu`, `memory`, `io`.
    pub fn read(file: impl Fn(&str) -> PathBuf) -> Self {
        let of = |name: &str| std::fs::read_to_string(file(name)).ok().and_then(|text| Pressure::parse(&text));
        Self { cpu: of("cpu"), memory: of("memory"), io: of("io") }
    }
}

impl Pressure {
    fn parse(text: &str) -> Option<Self> {
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        // Older kernels have no `full` for CPU.
        Some(Self { some: Stall::parse(line("some")?)?, full: line("full").and_then(Stall::parse).unwrap_or_default() })
    }
}

impl Stall {
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &str| line.split_whitespace().find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        // Written with two digits after the point.
        let average = |name: &str| field(name)?.replace('.', "").parse().ok();
        let microseconds: u64 = field("total")?.parse().ok()?;
        Some(Self { total: microseconds * 1000, averages: [average("avg10")?, average("avg60")?, average("avg300")?] })
    }
}

/// Larger limits mean none on v1.
const UNLIMITED: u64 = 1 << 62;

impl Hierarchy {
    pub(super) fn usage(&self, group: &str) -> Option<Usage> {
        let memory = self.controller("memory", group);
        if !memory.is_dir() {
            return None;
        }
        Some(match self {
            Hierarchy::V1 { root } => {
                let cpu_controller = if root.join("cpuacct").is_dir() { "cpuacct" } else { "cpu,cpuacct" };
                let cpu = self.controller(cpu_controller, group);
                let stat = stat(&memory.join("memory.stat"));
                let usage = number(&memory.join("memory.usage_in_bytes"));
                Usage {
                    cpu_nanoseconds: number(&cpu.join("cpuacct.usage")),
                    memory_usage: usage,
                    memory_working_set: usage.saturating_sub(find(&stat, "total_inactive_file")),
                    memory_rss: find(&stat, "total_rss"),
                    page_faults: find(&stat, "total_pgfault"),
                    major_page_faults: find(&stat, "total_pgmajfault"),
                    memory_limit: limit(&memory.join("memory.limit_in_bytes")),
                    processes: number(&self.controller("pids", group).join("pids.current")),
                    psi: Psi::default(),
                }
            }
            Hierarchy::V2 { .. } => {
                let stat_lines = stat(&memory.join("memory.stat"));
                let usage = number(&memory.join("memory.current"));
                Usage {
                    cpu_nanoseconds: find(&stat(&memory.join("cpu.stat")), "usage_usec") * 1000,
                    memory_usage: usage,
                    memory_working_set: usage.saturating_sub(find(&stat_lines, "inactive_file")),
                    memory_rss: find(&stat_lines, "anon"),
                    page_faults: find(&stat_lines, "pgfault"),
                    major_page_faults: find(&stat_lines, "pgmajfault"),
                    memory_limit: limit(&memory.join("memory.max")),
                    processes: number(&memory.join("pids.current")),
                    psi: Psi::read(|name| memory.join(format!("{name}.pressure"))),
                }
            }
        })
    }
}

fn number(file: &Path) -> u64 {
    std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn limit(file: &Path) -> Option<u64> {
    let value: u64 = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (value < UNLIMITED).then_some(value)
}

fn stat(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

fn find(stat: &str, key: &str) -> u64 {
    stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v2_group() {
        let root = std::env::temp_dir().join(format!("skiff-usage-test-{}", std::process::id()));
        let group = root.join("kubepods/podx");
        std::fs::create_dir_all(&group).unwrap();
        for (file, text) in [
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 300\nfile 700\ninactive_file 400\npgfault 5\npgmajfault 1\n"),
            ("cpu.stat", "usage_usec 42\nuser_usec 40\n"),
            ("memory.max", "max\n"),
            ("pids.current", "3\n"),
            (
                "memory.pressure",
                "some avg10=1.25 avg60=0.00 avg300=0.05 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n",
            ),
            ("cpu.pressure", "some avg10=0.00 avg60=12.00 avg300=0.00 total=1\n"),
        ] {
            std::fs::write(group.join(file), text).unwrap();
        }
        let usage = Hierarchy::V2 { root: root.clone() }.usage("/kubepods/podx").unwrap();
        let expected = Usage {
            cpu_nanoseconds: 42_000,
            memory_usage: 1000,
            memory_working_set: 600,
            memory_rss: 300,
            page_faults: 5,
            major_page_faults: 1,
            memory_limit: None,
            processes: 3,
            psi: Psi {
                cpu: Some(Pressure { some: Stall { total: 1000, averages: [0, 1200, 0] }, full: Stall::default() }),
                memory: Some(Pressure {
                    some: Stall { total: 7000, averages: [125, 0, 5] },
                    full: Stall { total: 2000, averages: [0, 0, 0] },
                }),
                io: None,
            },
        };
        assert_eq!(usage, expected);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
