//! How often the pods were asked for: `kubelet_pod_requests_*` (`pkg/kubelet/metrics`).

use std::collections::BTreeMap;
use std::fmt::Write;

use parking_lot::Mutex;
use tonic::Code;

use crate::cri::code_name;

/// The version of the API, as metrics label it.
const VERSION: &str = "v1alpha1";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    List,
    Get,
    Watch,
}

impl Call {
    const ALL: [(Self, &'static str, &'static str); 3] =
        [(Self::List, "list", "ListPods"), (Self::Get, "get", "GetPod"), (Self::Watch, "watch", "WatchPods")];
}

#[derive(Default)]
pub struct Totals(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// By the name of the code.
    answers: BTreeMap<(Call, &'static str), u64>,
    dropped: u64,
}

impl Totals {
    pub fn note(&self, call: Call, code: Code) {
        *self.0.lock().answers.entry((call, code_name(code))).or_default() += 1;
    }

    /// A watcher fell behind.
    pub fn dropped(&self) {
        self.0.lock().dropped += 1;
    }

    /// As Prometheus reads it.
    pub fn page(&self) -> String {
        let counts = self.0.lock();
        let mut all: BTreeMap<&str, u64> = BTreeMap::new();
        for ((_, code), count) in &counts.answers {
            *all.entry(code).or_default() += count;
        }
        let mut text = String::new();
        family(&mut text, "kubelet_pod_requests_total", "Cumulative number of requests to the Pods API.", all);
        for (call, name, method) in Call::ALL {
            let own = counts.answers.iter().filter(|((of, _), _)| *of == call);
            let own = own.map(|((_, code), count)| (*code, *count)).collect();
            let help = format!("Number of requests to the {method} endpoint of the Pods API.");
            family(&mut text, &format!("kubelet_pod_requests_{name}_total"), &help, own);
        }
        let name = "kubelet_pod_watch_events_dropped_total";
        let help = "Cumulative number of pod watch events dropped.";
        // Writing to text cannot fail.
        let _ = writeln!(text, "# HELP {name} [ALPHA] {help}\n# TYPE {name} counter\n{name} {}", counts.dropped);
        text
    }
}

fn family(text: &mut String, name: &str, help: &str, counts: BTreeMap<&str, u64>) {
    // Writing to text cannot fail.
    let _ = writeln!(text, "# HELP {name} [ALPHA] {help}\n# TYPE {name} counter");
    for (code, count) in counts {
        let _ = writeln!(text, "{name}{{server_api_version=\"{VERSION}\",status_code=\"{code}\"}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_call_and_code() {
        let totals = Totals::default();
        totals.note(Call::Get, Code::NotFound);
        totals.note(Call::Get, Code::Ok);
        totals.note(Call::List, Code::Ok);
        totals.dropped();
        let page = totals.page();
        for line in [
            "kubelet_pod_requests_total{server_api_version=\"v1alpha1\",status_code=\"OK\"} 2",
            "kubelet_pod_requests_get_total{server_api_version=\"v1alpha1\",status_code=\"NotFound\"} 1",
            "kubelet_pod_requests_list_total{server_api_version=\"v1alpha1\",status_code=\"OK\"} 1",
            "kubelet_pod_watch_events_dropped_total 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        assert!(!page.contains("watch_total{"));
    }
}
