//! How probes went, by container: `/metrics/probes` (`pkg/kubelet/prober`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use super::ProbeKind;

/// Seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Failed,
    Successful,
    Unknown,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Successful => "successful",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    container: String,
    namespace: String,
    pod: String,
    uid: String,
    kind: &'static str,
}

impl Key {
    fn labels(&self) -> String {
        let Self { container, namespace, pod, kind, .. } = self;
        format!("container=\"{container}\",namespace=\"{namespace}\",pod=\"{pod}\",probe_type=\"{kind}\"")
    }
}

#[derive(Debug, Default)]
struct Counted {
    by_outcome: BTreeMap<Outcome, u64>,
    /// How many took no longer than each of [`BUCKETS`].
    within: [u64; BUCKETS.len()],
    seconds: f64,
}

impl Counted {
    fn add(&mut self, other: &Self) {
        for (outcome, count) in &other.by_outcome {
            *self.by_outcome.entry(*outcome).or_default() += count;
        }
        for (count, more) in self.within.iter_mut().zip(other.within) {
            *count += more;
        }
        self.seconds += other.seconds;
    }
}

#[derive(Debug, Default)]
pub struct Totals(Mutex<BTreeMap<Key, Counted>>);

impl Totals {
    pub fn note(&self, pod: &Pod, container: &str, kind: ProbeKind, outcome: Outcome, took: Duration) {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let (namespace, pod, uid) = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
        let key = Key { container: container.to_owned(), namespace, pod, uid, kind: kind.title() };
        let mut all = self.0.lock();
        let counted = all.entry(key).or_default();
        *counted.by_outcome.entry(outcome).or_default() += 1;
        counted.seconds += took.as_secs_f64();
        for (count, limit) in counted.within.iter_mut().zip(BUCKETS) {
            *count += u64::from(took.as_secs_f64() <= limit);
        }
    }

    /// A pod that is gone is told of no longer.
    pub fn forget(&self, uid: &str) {
        self.0.lock().retain(|key, _| key.uid != uid);
    }

    pub fn page(&self) -> String {
        let all = self.0.lock();
        let (total, duration) = ("prober_probe_total", "prober_probe_duration_seconds");
        let mut text = format!(
            "# HELP {duration} [ALPHA] Duration in seconds for a probe response.\n# TYPE {duration} histogram\n"
        );
        // Without UIDs a pod's labels are those of one before it with its name, which may not be gone yet.
        let mut durations: BTreeMap<String, Counted> = BTreeMap::new();
        for (key, counted) in &*all {
            durations.entry(key.labels()).or_default().add(counted);
        }
        // Writing to text cannot fail.
        for (labels, counted) in &durations {
            let count: u64 = counted.by_outcome.values().sum();
            for (limit, within) in BUCKETS.iter().zip(counted.within) {
                let _ = writeln!(text, "{duration}_bucket{{{labels},le=\"{limit}\"}} {within}");
            }
            let _ = writeln!(text, "{duration}_bucket{{{labels},le=\"+Inf\"}} {count}");
            let _ = writeln!(text, "{duration}_sum{{{labels}}} {}", counted.seconds);
            let _ = writeln!(text, "{duration}_count{{{labels}}} {count}");
        }
        let help = "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
        let _ = write!(text, "# HELP {total} {help}\n# TYPE {total} counter\n");
        for (key, counted) in &*all {
            for (outcome, count) in &counted.by_outcome {
                let (labels, uid, result) = (key.labels(), &key.uid, outcome.name());
                let _ = writeln!(text, "{total}{{{labels},pod_uid=\"{uid}\",result=\"{result}\"}} {count}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_counted_until_their_pod_goes() {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}))
                .unwrap();
        let totals = Totals::default();
        for (outcome, millis) in [(Outcome::Successful, 20), (Outcome::Successful, 600), (Outcome::Failed, 1)] {
            totals.note(&pod, "c", ProbeKind::Liveness, outcome, Duration::from_millis(millis));
        }
        let page = totals.page();
        let labels = "container=\"c\",namespace=\"n\",pod=\"p\",probe_type=\"Liveness\"";
        for line in [
            format!("prober_probe_total{{{labels},pod_uid=\"u\",result=\"successful\"}} 2"),
            format!("prober_probe_total{{{labels},pod_uid=\"u\",result=\"failed\"}} 1"),
            format!("prober_probe_duration_seconds_bucket{{{labels},le=\"0.025\"}} 2"),
            format!("prober_probe_duration_seconds_count{{{labels}}} 3"),
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        let mut successor = pod;
        successor.metadata.uid = Some("v".to_owned());
        totals.note(&successor, "c", ProbeKind::Liveness, Outcome::Failed, Duration::from_secs(1));
        let page = totals.page();
        let lines = |start: String| page.lines().filter(|line| line.starts_with(&start)).collect::<Vec<_>>();
        let line = format!("prober_probe_duration_seconds_count{{{labels}}}");
        assert_eq!(lines(line.clone()), [format!("{line} 4")], "one series for both");
        assert_eq!(lines(format!("prober_probe_total{{{labels},")).len(), 3);
        totals.forget("v");
        totals.forget("u");
        assert!(!totals.page().contains("container="));
    }
}
