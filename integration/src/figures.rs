//! Figures of a benchmark, and what more than one of them measures with.

use std::time::Duration;

/// One line of the report.
pub struct Figure {
    pub what: String,
    pub value: String,
    pub floor: String,
}

impl Figure {
    pub fn new(what: impl Into<String>, value: impl Into<String>, floor: impl Into<String>) -> Self {
        Self { what: what.into(), value: value.into(), floor: floor.into() }
    }
}

pub fn milliseconds(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1000.0)
}

/// The middle of a series.
pub fn median(series: &mut [Duration]) -> Duration {
    series.sort();
    series.get(series.len() / 2).copied().unwrap_or_default()
}

/// The report, as README shows it.
pub fn print(figures: &[Figure]) {
    println!("| figure | value | floor in the same run |\n|---|---|---|");
    for figure in figures {
        println!("| {} | {} | {} |", figure.what, figure.value, figure.floor);
    }
}

pub fn resident_mib(pid: i64) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// The same, of pages that processes share only this one's part.
pub fn proportional_mib(pid: i64) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// User and system time so far. The kernel counts in hundredths of a second.
pub fn processor_seconds(pid: i64) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0.0 };
    let fields: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|text| text.parse().ok()).collect();
    fields.iter().sum::<f64>() / 100.0
}
