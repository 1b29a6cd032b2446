//! What the whole machine uses, from /proc: the node's line in `kubectl top`. The pods' own group
//! would leave out the system and the agent.

use std::path::Path;

use crate::cgroups::{Psi, Usage};

/// Linux counts CPU time for user space in hundredths of a second.
const TICK_NANOSECONDS: u64 = 10_000_000;

/// None if /proc cannot be read.
pub fn usage() -> Option<Usage> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(Usage { processes: 0, ..read(&stat, &memory)? })
}

/// How long the machine's work waited.
pub fn pressure() -> Psi {
    Psi::read(|name| Path::new("/proc/pressure").join(name))
}

/// Bytes of memory.
pub fn total_memory() -> Option<u64> {
    kilobytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

fn read(stat: &str, memory: &str) -> Option<Usage> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(index, _)| ![3, 4].contains(index)).map(|(_, ticks)| ticks).sum();
    let used = kilobytes(memory, "MemTotal")?.saturating_sub(kilobytes(memory, "MemFree")?);
    Some(Usage {
        cpu_nanoseconds: busy * TICK_NANOSECONDS,
        memory_usage: used,
        memory_working_set: used.saturating_sub(kilobytes(memory, "Inactive(file)").unwrap_or(0)),
        memory_rss: kilobytes(memory, "AnonPages").unwrap_or(0),
        ..Usage::default()
    })
}

fn kilobytes(memory: &str, name: &str) -> Option<u64> {
    let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_used() {
        let stat = "cpu  100 10 50 100000 900 1 2 3 40 0\ncpu0 1 2 3\n";
        let memory = "MemTotal: 1000 kB\nMemFree: 400 kB\nAnonPages: 100 kB\nInactive(file): 200 kB\n";
        let usage = read(stat, memory).unwrap();
        assert_eq!(usage.cpu_nanoseconds, 166 * TICK_NANOSECONDS);
        assert_eq!((usage.memory_usage, usage.memory_working_set, usage.memory_rss), (600 << 10, 400 << 10, 100 << 10));
        assert_eq!(read("", memory), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(usage().unwrap().memory_usage > 0);
        assert!(total_memory().unwrap() > 0);
    }
}
