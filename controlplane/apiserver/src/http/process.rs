//! Metrics of the process itself, as every Prometheus client library has them, read from `/proc`.

use std::fmt::Write;
use std::fs;

use api::version;

use super::metrics::head;

/// Clock ticks a second, as `/proc` counts them on every Linux architecture there is.
const TICKS: f64 = 100.0;

/// Writes what can be read, and which Kubernetes this is.
pub fn render(out: &mut String) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64);
    let times = Times::read(&stat, &boot);
    for (name, kind, help, value) in [
        (
            "cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            times.as_ref().map(|t| t.cpu),
        ),
        ("max_fds", "gauge", "Maximum number of open file descriptors.", most_files(&limits)),
        ("open_fds", "gauge", "Number of open file descriptors.", open),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", kibibytes(&status, "VmRSS:")),
        (
            "start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            times.as_ref().and_then(|t| t.started),
        ),
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", kibibytes(&status, "VmSize:")),
    ] {
        if let Some(value) = value {
            let name = format!("process_{name}");
            head(out, &name, "STABLE", kind, help);
            let _ = writeln!(out, "{name} {value}");
        }
    }
    let name = "kubernetes_build_info";
    head(out, name, "ALPHA", "gauge", version::BUILD_INFO_HELP);
    let labels = version::Info::new().labels().map(|(label, value)| format!("{label}=\"{value}\"")).join(",");
    let _ = writeln!(out, "{name}{{{labels}}} 1");
}

/// Seconds of `/proc/self/stat`.
struct Times {
    cpu: f64,
    started: Option<f64>,
}

impl Times {
    fn read(stat: &str, boot: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything; counted from behind it, `state` is the first.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let booted = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse::<f64>().ok();
        let started = booted.and_then(|booted| Some(booted + ticks(19)? / TICKS));
        Some(Self { cpu: (ticks(11)? + ticks(12)?) / TICKS, started })
    }
}

fn kibibytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
}

fn most_files(limits: &str) -> Option<f64> {
    limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1000 123 456";
        let times = Times::read(stat, "cpu 1\nbtime 1700000000\n").unwrap();
        assert_eq!((times.cpu, times.started), (3.0, Some(1_700_000_010.0)));
        assert_eq!(kibibytes("Name: x\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12_288.0));
        assert_eq!(most_files("Limit\nMax open files            1024    4096   files\n"), Some(1024.0));
    }

    #[test]
    fn the_page_has_what_dashboards_ask_for() {
        let mut out = String::new();
        render(&mut out);
        for name in [
            "process_cpu_seconds_total",
            "process_max_fds",
            "process_open_fds",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "process_virtual_memory_bytes",
            "kubernetes_build_info{",
        ] {
            assert!(out.contains(&format!("\n{name}")), "{name} {out}");
        }
    }
}
