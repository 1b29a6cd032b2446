//! `/metrics` in Prometheus' text form, with Kubernetes' names and labels: requests by what they
//! were, how long they took, what is under way, what is held in the watch caches.
//!
//! A request finds its [`Series`] by a hash of its labels, under a shared lock, and counts with
//! atomics: nothing is allocated for it once the series is there.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::info::RequestInfo;
use crate::resource::Descriptor;
use crate::server::Api;

/// Upper bounds of the latency histogram, in seconds.
const BOUNDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Codes that are told apart; any other counts as the last.
const CODES: [u16; 20] =
    [200, 201, 202, 101, 304, 400, 401, 403, 404, 405, 406, 409, 410, 413, 415, 422, 429, 503, 504, 500];
/// Different label sets that are kept; the rest counts together.
const MOST_SERIES: usize = 4000;

/// A histogram of durations.
#[derive(Default)]
pub struct Histogram {
    nanos: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut count = 0;
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS.map(Some).into_iter().chain([None])) {
            count += bucket.load(Ordering::Relaxed);
            let _ = match bound {
                Some(bound) => writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}"),
                None => writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}"),
            };
        }
        let seconds = self.nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(out, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}");
    }
}

/// What is counted of requests of one kind.
struct Series {
    /// As they are written, without `code` and `dry_run`.
    labels: String,
    verb: &'static str,
    dry_run: bool,
    codes: [AtomicU64; CODES.len()],
    took: Histogram,
    underway: AtomicI64,
}

#[derive(Default)]
pub struct Metrics {
    hasher: RandomState,
    series: RwLock<HashMap<u64, Arc<Series>>>,
    /// Requests under way, long-running ones aside: reading, writing.
    in_flight: Arc<[AtomicI64; 2]>,
    pub tls_errors: AtomicU64,
    pub health: super::health::Results,
}

/// A request under way; over when this is dropped.
pub struct Underway {
    series: Arc<Series>,
    in_flight: Option<(Arc<[AtomicI64; 2]>, usize)>,
    since: Instant,
    code: u16,
}

impl Underway {
    pub fn answered(&mut self, code: u16) {
        self.code = code;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let at = CODES.iter().position(|code| *code == self.code).unwrap_or(CODES.len() - 1);
        self.series.codes[at].fetch_add(1, Ordering::Relaxed);
        self.series.underway.fetch_sub(1, Ordering::Relaxed);
        match &self.in_flight {
            Some((gauges, which)) => {
                gauges[*which].fetch_sub(1, Ordering::Relaxed);
                self.series.took.observe(self.since.elapsed());
            }
            // How long a watch lasted says nothing about the server.
            None if self.series.verb == "WATCH" => {}
            None => self.series.took.observe(self.since.elapsed()),
        }
    }
}

fn verb(info: &RequestInfo, applies: bool) -> &'static str {
    if matches!(info.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy") {
        return "CONNECT";
    }
    match info.verb.as_str() {
        "get" | "head" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" if applies => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "other",
    }
}

/// Whether a resource has this subresource (empty: itself). What clients only make up becomes no label: it
/// would be kept for ever.
pub fn knows(descriptor: &Descriptor, subresource: &str) -> bool {
    match subresource {
        "" => true,
        "status" if descriptor.status => true,
        "scale" if descriptor.scale.is_some() => true,
        name => descriptor.subresources.iter().any(|held| held.name == name),
    }
}

fn scope(info: &RequestInfo) -> &'static str {
    if !info.name.is_empty() || (info.is_resource && info.verb == "create") {
        "resource"
    } else if !info.namespace.is_empty() {
        "namespace"
    } else if info.is_resource {
        "cluster"
    } else {
        ""
    }
}

impl Metrics {
    /// Counts a request as begun. `served`: whether its resource and subresource are served.
    pub fn begin(&self, info: &RequestInfo, served: bool, dry_run: bool, applies: bool) -> Underway {
        let series = self.series(info, served, dry_run, applies);
        series.underway.fetch_add(1, Ordering::Relaxed);
        let in_flight = (!info.is_long_running()).then(|| {
            let which = usize::from(!info.is_read_only());
            self.in_flight[which].fetch_add(1, Ordering::Relaxed);
            (self.in_flight.clone(), which)
        });
        Underway { series, in_flight, since: Instant::now(), code: 0 }
    }

    fn series(&self, info: &RequestInfo, served: bool, dry_run: bool, applies: bool) -> Arc<Series> {
        let (verb, scope) = (verb(info, applies), scope(info));
        let path = if info.is_resource { "" } else { first_segment(&info.path) };
        let mut hasher = self.hasher.build_hasher();
        if served {
            (&info.group, &info.version, &info.resource, &info.subresource).hash(&mut hasher);
        }
        (verb, scope, dry_run, path).hash(&mut hasher);
        let key = hasher.finish();
        if let Some(series) = self.series.read().get(&key) {
            return series.clone();
        }
        let mut all = self.series.write();
        let key = if all.len() >= MOST_SERIES { 0 } else { key };
        let of = |text: &str| if served && key != 0 { text.to_owned() } else { String::new() };
        let (group, version, resource) = (of(&info.group), of(&info.version), of(&info.resource));
        let subresource = if path.is_empty() { of(&info.subresource) } else { path.to_owned() };
        let labels = format!(
            "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"{scope}\",subresource=\"{}\",verb=\"{verb}\",version=\"{}\"",
            clean(&group),
            clean(&resource),
            clean(&subresource),
            clean(&version)
        );
        let fresh = || {
            Arc::new(Series {
                labels,
                verb,
                dry_run,
                codes: Default::default(),
                took: Histogram::default(),
                underway: AtomicI64::new(0),
            })
        };
        all.entry(key).or_insert_with(fresh).clone()
    }

    fn render(&self, out: &mut String) {
        let mut all: Vec<Arc<Series>> = self.series.read().values().cloned().collect();
        all.sort_by(|a, b| (&a.labels, a.dry_run).cmp(&(&b.labels, b.dry_run)));
        let dry = |series: &Series| if series.dry_run { "All" } else { "" };
        let name = "apiserver_request_total";
        head(
            out,
            name,
            "STABLE",
            "counter",
            "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.",
        );
        for series in &all {
            for (code, count) in CODES.iter().zip(&series.codes) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let _ = writeln!(
                        out,
                        "{name}{{code=\"{code}\",dry_run=\"{}\",{}}} {count}",
                        dry(series),
                        series.labels
                    );
                }
            }
        }
        let name = "apiserver_request_duration_seconds";
        head(
            out,
            name,
            "STABLE",
            "histogram",
            "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.",
        );
        for series in all.iter().filter(|series| series.verb != "WATCH") {
            series.took.render(out, name, &format!("dry_run=\"{}\",{}", dry(series), series.labels));
        }
        let name = "apiserver_request_sli_duration_seconds";
        head(
            out,
            name,
            "STABLE",
            "histogram",
            "Response latency distribution (not counting webhook duration and priority & fairness queue wait times) in seconds for each verb, group, version, resource, subresource, scope and component.",
        );
        for series in all.iter().filter(|series| !series.dry_run && !matches!(series.verb, "WATCH" | "CONNECT")) {
            series.took.render(out, name, &series.labels);
        }
        let name = "apiserver_longrunning_requests";
        head(
            out,
            name,
            "STABLE",
            "gauge",
            "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.",
        );
        for series in all.iter().filter(|series| matches!(series.verb, "WATCH" | "CONNECT")) {
            let _ = writeln!(out, "{name}{{{}}} {}", series.labels, series.underway.load(Ordering::Relaxed));
        }
        let name = "apiserver_current_inflight_requests";
        head(
            out,
            name,
            "STABLE",
            "gauge",
            "Maximal number of currently used inflight request limit of this apiserver per request kind in last second.",
        );
        for (which, kind) in ["readOnly", "mutating"].iter().enumerate() {
            let _ =
                writeln!(out, "{name}{{request_kind=\"{kind}\"}} {}", self.in_flight[which].load(Ordering::Relaxed));
        }
        counter(
            out,
            "apiserver_tls_handshake_errors_total",
            "Number of requests dropped with 'TLS handshake error from' error",
            self.tls_errors.load(Ordering::Relaxed),
        );
    }
}

/// Of paths that are not resources only the first part tells them apart: there are few of those.
fn first_segment(path: &str) -> &str {
    const KNOWN: &[&str] = &[
        "/api", "/apis", "/debug", "/flagz", "/healthz", "/livez", "/metrics", "/openapi", "/openid", "/readyz",
        "/statusz", "/version",
    ];
    KNOWN
        .iter()
        .find(|known| path.strip_prefix(**known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        .map_or("", |known| known)
}

fn clean(text: &str) -> String {
    text.replace(['\\', '"', '\n'], "_")
}

/// The lines that go before a metric's values.
pub fn head(out: &mut String, name: &str, stability: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} [{stability}] {help}\n# TYPE {name} {kind}");
}

fn counter(out: &mut String, name: &str, help: &str, count: u64) {
    head(out, name, "ALPHA", "counter", help);
    let _ = writeln!(out, "{name} {count}");
}

/// The whole page.
pub fn page(api: &Api) -> String {
    let mut out = String::with_capacity(64 * 1024);
    api.metrics.render(&mut out);
    api.flow.metrics(&mut out);
    api.timed.metrics(&mut out);
    api.authn.metrics(&mut out);
    crate::admission::pod_security::metrics(&mut out);
    if let Some(audit) = &api.audit {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        counter(
            &mut out,
            "apiserver_audit_event_total",
            "Counter of audit events generated and sent to the audit backend.",
            count(&audit.events),
        );
        let name = "apiserver_audit_error_total";
        head(
            &mut out,
            name,
            "ALPHA",
            "counter",
            "Counter of audit events that failed to be audited properly. Plugin identifies the plugin affected by the error.",
        );
        let _ = writeln!(out, "{name}{{plugin=\"buffered\"}} {}", count(&audit.lost));
    }
    held_objects(api, &mut out);
    super::features::render(&mut out);
    super::process::render(&mut out);
    out
}

fn held_objects(api: &Api, out: &mut String) {
    let resources = api.resources();
    let held: Vec<(String, String, usize)> = resources
        .all()
        .iter()
        .filter_map(|endpoint| {
            let state = endpoint.cache.read();
            let descriptor = endpoint.descriptor();
            (state.epoch > 0).then(|| (descriptor.hub_group().to_owned(), descriptor.plural.to_string(), state.len()))
        })
        .collect();
    let name = "apiserver_resource_objects";
    head(
        out,
        name,
        "ALPHA",
        "gauge",
        "Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.",
    );
    for (group, plural, count) in &held {
        let _ = writeln!(out, "{name}{{group=\"{group}\",resource=\"{plural}\"}} {count}");
    }
    let name = "apiserver_watch_events_total";
    head(out, name, "ALPHA", "counter", "Number of events sent in watch clients");
    for endpoint in resources.all() {
        let count = endpoint.watched.load(Ordering::Relaxed);
        if count > 0 {
            let descriptor = endpoint.descriptor();
            let (group, version) = (descriptor.hub_group(), descriptor.hub_version());
            let resource = &descriptor.plural;
            let _ = writeln!(out, "{name}{{group=\"{group}\",resource=\"{resource}\",version=\"{version}\"}} {count}");
        }
    }
    let name = "apiserver_storage_objects";
    head(
        out,
        name,
        "STABLE",
        "gauge",
        "[DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.",
    );
    for (group, plural, count) in &held {
        let _ = writeln!(out, "{name}{{resource=\"{}\"}} {count}", crate::error::qualified(group, plural));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_were() {
        let metrics = Metrics::default();
        let info = RequestInfo {
            is_resource: true,
            verb: "get".into(),
            version: "v1".into(),
            resource: "pods".into(),
            name: "web".into(),
            ..RequestInfo::default()
        };
        let page = || {
            let mut out = String::new();
            metrics.render(&mut out);
            out
        };
        let mut first = metrics.begin(&info, true, false, false);
        assert!(page().contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1"));
        first.answered(200);
        drop(first);
        metrics.begin(&info, true, false, false).answered(404);
        let labels = "component=\"apiserver\",group=\"\",resource=\"pods\",scope=\"resource\",subresource=\"\",verb=\"GET\",version=\"v1\"";
        let page = page();
        assert!(page.contains(&format!("apiserver_request_total{{code=\"200\",dry_run=\"\",{labels}}} 1")), "{page}");
        assert!(page.contains(&format!("apiserver_request_total{{code=\"404\",dry_run=\"\",{labels}}} 1")), "{page}");
        assert!(
            page.contains(&format!("apiserver_request_duration_seconds_count{{dry_run=\"\",{labels}}} 2")),
            "{page}"
        );
        assert!(page.contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0"));
    }

    #[test]
    fn unknown_resources_do_not_become_labels() {
        let metrics = Metrics::default();
        for at in 0..100 {
            let info = RequestInfo {
                is_resource: true,
                verb: "get".into(),
                resource: format!("x{at}"),
                ..RequestInfo::default()
            };
            metrics.begin(&info, false, false, false).answered(404);
        }
        assert_eq!(metrics.series.read().len(), 1);
    }

    #[test]
    fn subresources_that_clients_make_up_are_not_known() {
        let resources = crate::kinds::all();
        for (kind, subresource, known) in [
            ("Pod", "", true),
            ("Pod", "status", true),
            ("Pod", "exec", true),
            ("Pod", "scale", false),
            ("Pod", "0123456789", false),
            ("Deployment", "scale", true),
            ("ConfigMap", "status", false),
        ] {
            let resource = resources.iter().find(|resource| resource.descriptor.kind == kind).unwrap();
            assert_eq!(knows(&resource.descriptor, subresource), known, "{kind}/{subresource}");
        }
    }
}
