//! `/metrics` in Prometheus' text form: requests by verb, resource and code, how long they took,
//! what is held in the watch caches.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

use super::info::RequestInfo;
use crate::server::Api;

/// Upper bounds of the latency histogram, in seconds.
const BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Different label sets that are kept; the rest counts as `other`.
const MOST_SERIES: usize = 2000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    code: u16,
}

#[derive(Default)]
struct Series {
    count: u64,
    seconds: f64,
    buckets: [u64; BOUNDS.len()],
}

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
}

impl Metrics {
    pub fn record(&self, info: &RequestInfo, code: u16, took: Duration) {
        let mut labels = Labels {
            verb: info.verb.to_uppercase(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            code,
        };
        let mut requests = self.requests.lock();
        if requests.len() >= MOST_SERIES && !requests.contains_key(&labels) {
            labels.resource = "other".to_owned();
            labels.group.clear();
            labels.version.clear();
            labels.subresource.clear();
        }
        let series = requests.entry(labels).or_default();
        let seconds = took.as_secs_f64();
        series.count += 1;
        series.seconds += seconds;
        for (bucket, bound) in series.buckets.iter_mut().zip(BOUNDS) {
            if seconds <= *bound {
                *bucket += 1;
            }
        }
    }

    fn render(&self, out: &mut String) {
        let requests = self.requests.lock();
        *out += "# HELP apiserver_request_total [STABLE] Counter of apiserver requests broken out for each verb, resource, and HTTP response code.\n# TYPE apiserver_request_total counter\n";
        for (labels, series) in requests.iter() {
            let _ =
                writeln!(out, "apiserver_request_total{{{},code=\"{}\"}} {}", labels.text(), labels.code, series.count);
        }
        *out += "# HELP apiserver_request_duration_seconds [STABLE] Response latency distribution in seconds.\n# TYPE apiserver_request_duration_seconds histogram\n";
        for (labels, series) in requests.iter().filter(|(labels, _)| labels.verb != "WATCH") {
            let text = format!("{},code=\"{}\"", labels.text(), labels.code);
            for (count, bound) in series.buckets.iter().zip(BOUNDS) {
                let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{text},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{text},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(out, "apiserver_request_duration_seconds_sum{{{text}}} {}", series.seconds);
            let _ = writeln!(out, "apiserver_request_duration_seconds_count{{{text}}} {}", series.count);
        }
    }
}

impl Labels {
    fn text(&self) -> String {
        let Labels { verb, group, version, resource, subresource, .. } = self;
        let clean = |text: &str| text.replace(['\\', '"', '\n'], "_");
        format!(
            "verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\"",
            clean(verb),
            clean(group),
            clean(version),
            clean(resource),
            clean(subresource)
        )
    }
}

/// The whole page.
pub fn page(api: &Api) -> String {
    let mut out = String::with_capacity(16 * 1024);
    api.metrics.render(&mut out);
    out += "# HELP apiserver_resource_objects [STABLE] Number of stored objects at the time of last check split by kind.\n# TYPE apiserver_resource_objects gauge\n";
    for endpoint in api.resources().all() {
        let state = endpoint.cache.read();
        if state.epoch > 0 {
            let descriptor = endpoint.descriptor();
            let _ = writeln!(
                out,
                "apiserver_resource_objects{{group=\"{}\",resource=\"{}\"}} {}",
                descriptor.hub_group(),
                descriptor.plural,
                state.len()
            );
        }
    }
    if let Some(bytes) = resident_bytes() {
        let _ = writeln!(out, "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {bytes}");
    }
    out
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_were() {
        let metrics = Metrics::default();
        let info =
            RequestInfo { verb: "get".into(), version: "v1".into(), resource: "pods".into(), ..RequestInfo::default() };
        metrics.record(&info, 200, Duration::from_millis(10));
        metrics.record(&info, 200, Duration::from_millis(200));
        let mut out = String::new();
        metrics.render(&mut out);
        let labels = "verb=\"GET\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",code=\"200\"";
        assert!(out.contains(&format!("apiserver_request_total{{{labels}}} 2")), "{out}");
        assert!(out.contains(&format!("_bucket{{{labels},le=\"0.025\"}} 1")), "{out}");
    }
}
