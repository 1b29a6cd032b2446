//! How often images were wanted and providers asked, as metrics under Kubernetes' names
//! (`pkg/kubelet/images/metrics.go`, `pullmanager/metrics.go`, `credentialprovider/plugin/metrics.go`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

/// Seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What came to light when a container wanted its image; none for what was not looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    pub present: Option<bool>,
    pub pull_required: Option<bool>,
}

/// How a pod's right to an image that is there was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    PolicyAllowed,
    RecordFound,
    MustAuthenticate,
    Failed,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::PolicyAllowed => "credentialPolicyAllowed",
            Self::RecordFound => "credentialRecordFound",
            Self::MustAuthenticate => "mustAuthenticate",
            Self::Failed => "error",
        }
    }
}

#[derive(Debug, Default)]
struct Runs {
    errors: u64,
    count: u64,
    seconds: f64,
    /// How many took no longer than each of [`BUCKETS`].
    within: [u64; BUCKETS.len()],
}

#[derive(Debug, Default)]
struct Counts {
    /// By the pull policy and what was seen.
    wanted: BTreeMap<(String, Seen), u64>,
    checks: BTreeMap<Check, u64>,
    /// By the provider's name.
    providers: BTreeMap<String, Runs>,
}

#[derive(Debug, Default)]
pub struct Totals(Mutex<Counts>);

impl Totals {
    pub fn wanted(&self, policy: &str, seen: Seen) {
        *self.0.lock().wanted.entry((policy.to_lowercase(), seen)).or_default() += 1;
    }

    pub fn checked(&self, check: Check) {
        *self.0.lock().checks.entry(check).or_default() += 1;
    }

    pub fn provider_ran(&self, name: &str, took: Duration, failed: bool) {
        let mut counts = self.0.lock();
        let runs = counts.providers.entry(name.to_owned()).or_default();
        runs.errors += u64::from(failed);
        runs.count += 1;
        runs.seconds += took.as_secs_f64();
        for (count, limit) in runs.within.iter_mut().zip(BUCKETS) {
            *count += u64::from(took.as_secs_f64() <= limit);
        }
    }

    /// `on_disk`: pulls and images that are noted there. `hash`: of the providers' configuration.
    pub fn page(&self, on_disk: (usize, usize), hash: &str) -> String {
        let counts = self.0.lock();
        let mut page = Page::default();
        page.family("kubelet_imagemanager_ondisk_pullintents", "gauge", "Number of ImagePullIntents stored on disk.");
        page.sample("", "", on_disk.0);
        page.family(
            "kubelet_imagemanager_ondisk_pulledrecords",
            "gauge",
            "Number of ImagePulledRecords stored on disk.",
        );
        page.sample("", "", on_disk.1);
        counts.write_wanted(&mut page);
        counts.write_checks(&mut page);
        counts.write_providers(&mut page);
        if !hash.is_empty() {
            let help = "Information about the last applied credential provider configuration with hash as label";
            page.family("kubelet_credential_provider_config_info", "gauge", help);
            page.sample("", &format!("hash=\"{hash}\""), 1);
        }
        page.text
    }
}

impl Counts {
    fn write_wanted(&self, page: &mut Page) {
        if self.wanted.is_empty() {
            return;
        }
        let help = "Number of ensure-image requests processed by the kubelet.";
        page.family("kubelet_image_manager_ensure_image_requests_total", "counter", help);
        let word = |value: Option<bool>| value.map_or_else(|| "unknown".to_owned(), |value| value.to_string());
        for ((policy, seen), count) in &self.wanted {
            let (present, required) = (word(seen.present), word(seen.pull_required));
            let labels = format!("present_locally=\"{present}\",pull_policy=\"{policy}\",pull_required=\"{required}\"");
            page.sample("", &labels, count);
        }
    }

    fn write_checks(&self, page: &mut Page) {
        if self.checks.is_empty() {
            return;
        }
        let help =
            "Counter for how many times kubelet checked whether credentials need to be re-verified to access an image";
        page.family("kubelet_imagemanager_image_mustpull_checks_total", "counter", help);
        for (check, count) in &self.checks {
            page.sample("", &format!("result=\"{}\"", check.name()), count);
        }
    }

    fn write_providers(&self, page: &mut Page) {
        let failed: Vec<_> = self.providers.iter().filter(|(_, runs)| runs.errors > 0).collect();
        if !failed.is_empty() {
            let help = "Number of errors from credential provider plugin";
            page.family("kubelet_credential_provider_plugin_errors_total", "counter", help);
        }
        for (name, runs) in failed {
            page.sample("", &format!("plugin_name=\"{name}\""), runs.errors);
        }
        if !self.providers.is_empty() {
            let help = "Duration of execution in seconds for credential provider plugin";
            page.family("kubelet_credential_provider_plugin_duration", "histogram", help);
        }
        for (name, runs) in &self.providers {
            let label = format!("plugin_name=\"{name}\"");
            for (limit, within) in BUCKETS.iter().zip(runs.within) {
                page.sample("_bucket", &format!("{label},le=\"{limit}\""), within);
            }
            page.sample("_bucket", &format!("{label},le=\"+Inf\""), runs.count);
            page.sample("_sum", &label, runs.seconds);
            page.sample("_count", &label, runs.count);
        }
    }
}

/// Metrics as text. Writing to text cannot fail.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = write!(self.text, "# HELP {name} [ALPHA] {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, suffix: &str, labels: &str, value: impl std::fmt::Display) {
        let name = self.name;
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.text, "{name}{suffix}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_told_under_kubernetes_names() {
        let totals = Totals::default();
        let quiet = totals.page((0, 2), "");
        assert!(
            quiet.contains("kubelet_imagemanager_ondisk_pulledrecords 2\n") && !quiet.contains("_total"),
            "{quiet}"
        );
        for _ in 0..2 {
            totals.wanted("IfNotPresent", Seen { present: Some(true), pull_required: Some(false) });
        }
        totals.wanted("Always", Seen { present: None, pull_required: Some(true) });
        totals.checked(Check::MustAuthenticate);
        totals.provider_ran("ecr", Duration::from_millis(20), true);
        let page = totals.page((1, 0), "sha256:1");
        for line in [
            "kubelet_imagemanager_ondisk_pullintents 1",
            "kubelet_image_manager_ensure_image_requests_total{present_locally=\"true\",pull_policy=\"ifnotpresent\",pull_required=\"false\"} 2",
            "kubelet_image_manager_ensure_image_requests_total{present_locally=\"unknown\",pull_policy=\"always\",pull_required=\"true\"} 1",
            "kubelet_imagemanager_image_mustpull_checks_total{result=\"mustAuthenticate\"} 1",
            "kubelet_credential_provider_plugin_errors_total{plugin_name=\"ecr\"} 1",
            "kubelet_credential_provider_plugin_duration_bucket{plugin_name=\"ecr\",le=\"0.025\"} 1",
            "kubelet_credential_provider_plugin_duration_bucket{plugin_name=\"ecr\",le=\"0.01\"} 0",
            "kubelet_credential_provider_plugin_duration_count{plugin_name=\"ecr\"} 1",
            "kubelet_credential_provider_config_info{hash=\"sha256:1\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
