//! What can be seen of priority and fairness: metrics, and the dumps under
//! `/debug/api_priority_and_fairness`.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::level::{Kind, Level, Refused};
use super::schema::Schema;
use super::{Configuration, FlowControl};
use crate::http::metrics::head;

impl Configuration {
    /// Waiting, executing, dispatched, refused, timed out.
    fn totals(&self, level: &str) -> [u64; 5] {
        let mut totals = [0; 5];
        for counters in self.schemas.iter().filter(|schema| schema.level == level).map(|schema| &schema.counters) {
            let refused: Vec<u64> = counters.refused.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            let these = [
                u64::from(counters.waiting.load(Ordering::Relaxed)),
                u64::from(counters.executing.load(Ordering::Relaxed)),
                counters.dispatched.load(Ordering::Relaxed),
                refused.iter().sum(),
                refused[Refused::TimeOut as usize],
            ];
            totals.iter_mut().zip(these).for_each(|(total, this)| *total += this);
        }
        totals
    }
}

impl FlowControl {
    /// One of the dumps, as comma separated columns; none if there is no such dump. `details`: what
    /// the requests of a dump of them ask for.
    pub fn dump(&self, which: &str, details: bool) -> Option<String> {
        let configuration = self.configuration.read();
        let mut rows: Vec<Vec<String>> = Vec::new();
        let own = |titles: &[&str]| -> Vec<String> { titles.iter().map(|title| (*title).to_owned()).collect() };
        match which {
            "dump_priority_levels" => {
                rows.push(own(&[
                    "PriorityLevelName",
                    "ActiveQueues",
                    "IsIdle",
                    "IsQuiescing",
                    "WaitingRequests",
                    "ExecutingRequests",
                    "DispatchedRequests",
                    "RejectedRequests",
                    "TimedoutRequests",
                    "CancelledRequests",
                ]));
                rows.extend(configuration.levels.values().map(|level| {
                    let totals = configuration.totals(&level.name);
                    let active = level.queues().iter().filter(|queue| queue.waiting > 0).count();
                    let idle = totals[0] + totals[1] == 0;
                    let mut row = vec![level.name.clone(), active.to_string(), idle.to_string(), "false".to_owned()];
                    row.extend(totals.iter().map(u64::to_string));
                    row.push("0".to_owned());
                    row
                }));
            }
            "dump_queues" => {
                rows.push(own(&[
                    "PriorityLevelName",
                    "Index",
                    "PendingRequests",
                    "ExecutingRequests",
                    "SeatsInUse",
                    "NextDispatchR",
                    "InitialSeatsSum",
                    "MaxSeatsSum",
                    "TotalWorkSum",
                ]));
                for level in configuration.levels.values() {
                    for (at, queue) in level.queues().into_iter().enumerate() {
                        let work = f64::from(queue.waiting_seats) * 0.003;
                        rows.push(vec![
                            level.name.clone(),
                            at.to_string(),
                            queue.waiting.to_string(),
                            queue.running.to_string(),
                            queue.seats.to_string(),
                            format!("{:.8}ss", queue.next),
                            queue.waiting_seats.to_string(),
                            queue.waiting_seats.to_string(),
                            format!("{work:.8}ss"),
                        ]);
                    }
                }
            }
            "dump_requests" => {
                let mut titles = own(&[
                    "PriorityLevelName",
                    "FlowSchemaName",
                    "QueueIndex",
                    "RequestIndexInQueue",
                    "FlowDistingsher",
                    "ArriveTime",
                    "InitialSeats",
                    "FinalSeats",
                    "AdditionalLatency",
                    "StartTime",
                ]);
                if details {
                    titles.extend(own(&[
                        "UserName",
                        "Verb",
                        "APIPath",
                        "Namespace",
                        "Name",
                        "APIVersion",
                        "Resource",
                        "SubResource",
                    ]));
                }
                rows.push(titles);
                rows.extend(self.seen.rows(details));
            }
            _ => return None,
        }
        Some(aligned(&rows))
    }

    /// Appends `apiserver_flowcontrol_*` to a page of metrics.
    pub fn metrics(&self, out: &mut String) {
        let configuration = self.configuration.read();
        per_level(out, &configuration);
        per_schema(out, &configuration);
        let name = "apiserver_flowcontrol_rejected_requests_total";
        head(out, name, "BETA", "counter", "Number of requests rejected by API Priority and Fairness subsystem");
        for schema in &configuration.schemas {
            for why in Refused::ALL {
                let count = schema.counters.refused[why as usize].load(Ordering::Relaxed);
                if count > 0 {
                    let _ = writeln!(out, "{name}{{{},reason=\"{}\"}} {count}", labels(schema), why.name());
                }
            }
        }
    }
}

fn labels(schema: &Arc<Schema>) -> String {
    format!("flow_schema=\"{}\",priority_level=\"{}\"", schema.name, schema.level)
}

type OfLevel = fn(&Level) -> f64;
type OfSchema = fn(&Schema) -> f64;

fn per_level(out: &mut String, configuration: &Configuration) {
    let gauges: &[(&str, &str, OfLevel)] = &[
        ("nominal_limit_seats", "Nominal number of execution seats configured for each priority level", |level| {
            f64::from(level.bounds().nominal)
        }),
        (
            "lower_limit_seats",
            "Configured lower bound on number of execution seats available to each priority level",
            |level| f64::from(level.bounds().least),
        ),
        (
            "upper_limit_seats",
            "Configured upper bound on number of execution seats available to each priority level",
            |level| f64::from(level.bounds().most),
        ),
        (
            "current_limit_seats",
            "current derived number of execution seats available to each priority level",
            |level| f64::from(level.limit.load(Ordering::Relaxed)),
        ),
        ("demand_seats_high_watermark", "High watermark, over last adjustment period, of demand_seats", |level| {
            f64::from(level.demand.lock().peak)
        }),
        ("demand_seats_average", "Time-weighted average, over last adjustment period, of demand_seats", |level| {
            level.demand.lock().average
        }),
        ("demand_seats_smoothed", "Smoothed seat demands", |level| level.demand.lock().smoothed),
    ];
    for (name, help, value) in gauges {
        let name = format!("apiserver_flowcontrol_{name}");
        head(out, &name, "BETA", "gauge", help);
        for level in configuration.levels.values().filter(|level| level.kind != Kind::Exempt || name.contains("seats"))
        {
            let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {}", level.name, value(level));
        }
    }
}

fn per_schema(out: &mut String, configuration: &Configuration) {
    let series: &[(&str, &str, &str, OfSchema)] = &[
        (
            "dispatched_requests_total",
            "counter",
            "Number of requests executed by API Priority and Fairness subsystem",
            |s| s.counters.dispatched.load(Ordering::Relaxed) as f64,
        ),
        (
            "current_executing_requests",
            "gauge",
            "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
            |s| f64::from(s.counters.executing.load(Ordering::Relaxed)),
        ),
        (
            "current_executing_seats",
            "gauge",
            "Concurrency (number of seats) occupied by the currently executing requests in the API Priority and Fairness subsystem",
            |s| f64::from(s.counters.executing_seats.load(Ordering::Relaxed)),
        ),
        (
            "current_inqueue_requests",
            "gauge",
            "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
            |s| f64::from(s.counters.waiting.load(Ordering::Relaxed)),
        ),
        ("request_wait_duration_seconds_sum", "", "", |s| s.counters.waited_nanos.load(Ordering::Relaxed) as f64 / 1e9),
        ("request_wait_duration_seconds_count", "", "", |s| s.counters.waited.load(Ordering::Relaxed) as f64),
        ("request_execution_seconds_sum", "", "", |s| s.counters.executed_nanos.load(Ordering::Relaxed) as f64 / 1e9),
        ("request_execution_seconds_count", "", "", |s| s.counters.dispatched.load(Ordering::Relaxed) as f64),
    ];
    for (name, kind, help, value) in series {
        let name = format!("apiserver_flowcontrol_{name}");
        if !kind.is_empty() {
            head(out, &name, "BETA", kind, help);
        }
        for schema in &configuration.schemas {
            let _ = writeln!(out, "{name}{{{}}} {}", labels(schema), value(schema));
        }
    }
}

/// Columns ended by `,` and padded to the same width, as Go's tabwriter writes them.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|column| (width(column) + 2).max(8)).collect();
    let mut out = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if at + 1 == row.len() {
                let _ = writeln!(out, "{cell}");
            } else {
                let _ = write!(out, "{:width$}", format!("{cell},"), width = widths[at]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn levels_are_listed_with_their_requests() {
        let flow = FlowControl::new((4, 2), Duration::from_secs(60));
        let level = json!({"metadata": {"name": "low", "uid": "1"}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}}}});
        let schema =
            json!({"metadata": {"name": "all", "uid": "2"}, "spec": {"priorityLevelConfiguration": {"name": "low"}}});
        flow.configure(&[Arc::new(schema)], &[Arc::new(level)]);
        let dump = flow.dump("dump_priority_levels", false).unwrap();
        assert!(dump.contains("\nlow,"), "{dump}");
        assert!(flow.dump("x", false).is_none() && flow.dump("dump_queues", false).is_some());
        let mut page = String::new();
        flow.metrics(&mut page);
        assert!(page.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"low\"} 6"), "{page}");
        assert!(
            page.contains(
                "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"all\",priority_level=\"low\"} 0"
            )
        );
    }
}
