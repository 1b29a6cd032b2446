//! Metrics as Prometheus text: the kubelet's own, resource use (`/metrics/resource`, what
//! metrics-server reads), and containers under cAdvisor's names.

use std::collections::BTreeMap;
use std::fmt::Write;

use api::version;
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;

use super::machine;
use super::reply::{self, Reply};
use super::stats::qos_of;
use crate::cgroups::{Psi, Usage};
use crate::server_contract::NodePods;
use crate::volume_contract::{CertificateStates, VolumeUsage};

pub fn reply(text: String) -> Reply {
    reply::with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
}

/// A metric's samples, written under one heading.
struct Family {
    text: String,
    name: String,
}

impl Family {
    fn new(text: String, name: &str, kind: &str, help: &str) -> Self {
        let mut family = Self { text, name: name.to_owned() };
        family.line(format_args!("# HELP {name} {help}"));
        family.line(format_args!("# TYPE {name} {kind}"));
        family
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let set = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let name = self.name.clone();
        self.line(format_args!("{name}{set} {value}"));
    }

    fn line(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{arguments}");
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A container that runs, with what it uses.
struct Measured {
    namespace: String,
    pod: String,
    container: String,
    id: String,
    image: String,
    started: f64,
    usage: Usage,
}

impl Measured {
    fn labels(&self) -> [(&'static str, &str); 3] {
        [("container", self.container.as_str()), ("namespace", self.namespace.as_str()), ("pod", self.pod.as_str())]
    }

    /// Under cAdvisor's names. That there is an image tells a container from a group.
    fn labels_of_cadvisor(&self) -> [(&'static str, &str); 6] {
        let [container, namespace, pod] = self.labels();
        let (id, image) = (self.id.as_str(), self.image.as_str());
        [container, ("id", id), ("image", image), ("name", id), namespace, pod]
    }
}

/// The image that a container's status names.
fn image_of(pod: &Pod, container: &str) -> String {
    let Some(status) = &pod.status else { return String::new() };
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let known = lists.into_iter().flatten().flatten().find(|known| known.name == container);
    known.map(|known| known.image.clone()).unwrap_or_default()
}

fn containers(pods: &dyn NodePods) -> Vec<Measured> {
    let mut found = Vec::new();
    for pod in pods.pods() {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        for run in pods.runtime_view(uid).containers.into_iter().filter(|run| run.running) {
            let Some(usage) = pods.cgroups().container_usage(qos_of(&pod), uid, &run.id) else { continue };
            found.push(Measured {
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                pod: pod.metadata.name.clone().unwrap_or_default(),
                image: image_of(&pod, &run.name),
                container: run.name,
                id: run.id,
                started: run.started_at.map_or(0.0, |at| at.as_millisecond() as f64 / 1000.0),
                usage,
            });
        }
    }
    found
}

fn pod_usages(pods: &dyn NodePods) -> Vec<(std::sync::Arc<Pod>, Usage)> {
    let usage = |pod: &Pod| pods.cgroups().pod_usage(qos_of(pod), pod.metadata.uid.as_deref().unwrap_or_default());
    pods.pods().into_iter().filter_map(|pod| usage(&pod).map(|usage| (pod, usage))).collect()
}

fn seconds(usage: &Usage) -> f64 {
    usage.cpu_nanoseconds as f64 / 1e9
}

/// `/metrics/resource`
pub fn resource(pods: &dyn NodePods) -> String {
    let measured = containers(pods);
    let per_pod = pod_usages(pods);
    let node = machine::usage();
    let labels = |pod: &Pod| {
        [
            ("namespace", pod.metadata.namespace.clone().unwrap_or_default()),
            ("pod", pod.metadata.name.clone().unwrap_or_default()),
        ]
    };
    let mut family = Family::new(
        String::new(),
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
    );
    measured.iter().for_each(|one| family.sample(&one.labels(), seconds(&one.usage)));
    let mut family = Family::new(
        family.text,
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
    );
    measured.iter().for_each(|one| family.sample(&one.labels(), one.usage.memory_working_set));
    let mut family = Family::new(
        family.text,
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
    );
    measured.iter().for_each(|one| family.sample(&one.labels(), one.started));
    let mut family = Family::new(
        family.text,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    node.iter().for_each(|usage| family.sample(&[], seconds(usage)));
    let mut family =
        Family::new(family.text, "node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes");
    node.iter().for_each(|usage| family.sample(&[], usage.memory_working_set));
    let mut family = Family::new(
        family.text,
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
    );
    for (pod, usage) in &per_pod {
        let labels = labels(pod);
        family.sample(&labels.each_ref().map(|(key, value)| (*key, value.as_str())), seconds(usage));
    }
    let mut family =
        Family::new(family.text, "pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes");
    for (pod, usage) in &per_pod {
        let labels = labels(pod);
        family.sample(&labels.each_ref().map(|(key, value)| (*key, value.as_str())), usage.memory_working_set);
    }
    let mut family = Family::new(
        family.text,
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    family.sample(&[], u8::from(node.is_none()));
    family.text
}

/// A metric's name, kind, help text and value.
type Column = (&'static str, &'static str, &'static str, fn(&Usage) -> f64);

/// `/metrics/cadvisor`
pub fn cadvisor(pods: &dyn NodePods) -> String {
    let measured = containers(pods);
    let columns: [Column; 6] = [
        ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", seconds),
        (
            "container_memory_usage_bytes",
            "gauge",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |u| u.memory_usage as f64,
        ),
        ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |u| {
            u.memory_working_set as f64
        }),
        ("container_memory_rss", "gauge", "Size of RSS in bytes.", |u| u.memory_rss as f64),
        ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |u| {
            u.memory_limit.unwrap_or(0) as f64
        }),
        ("container_processes", "gauge", "Number of processes running inside the container.", |u| u.processes as f64),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in columns {
        let mut family = Family::new(text, name, kind, help);
        for one in &measured {
            family.sample(&one.labels_of_cadvisor(), value(&one.usage));
        }
        text = family.text;
    }
    pressure(text, &measured)
}

/// How long containers waited, where the kernel tells.
fn pressure(text: String, measured: &[Measured]) -> String {
    type Part = fn(&Psi) -> Option<u64>;
    let families: [(&str, &str, Part); 6] = [
        ("cpu_waiting", "Total time duration tasks in the container have waited due to CPU congestion.", |psi| {
            psi.cpu.map(|pressure| pressure.some.total)
        }),
        (
            "cpu_stalled",
            "Total time duration no tasks in the container could make progress due to CPU congestion.",
            |psi| psi.cpu.map(|pressure| pressure.full.total),
        ),
        ("memory_waiting", "Total time duration tasks in the container have waited due to memory congestion.", |psi| {
            psi.memory.map(|pressure| pressure.some.total)
        }),
        (
            "memory_stalled",
            "Total time duration no tasks in the container could make progress due to memory congestion.",
            |psi| psi.memory.map(|pressure| pressure.full.total),
        ),
        ("io_waiting", "Total time duration tasks in the container have waited due to IO congestion.", |psi| {
            psi.io.map(|pressure| pressure.some.total)
        }),
        (
            "io_stalled",
            "Total time duration no tasks in the container could make progress due to IO congestion.",
            |psi| psi.io.map(|pressure| pressure.full.total),
        ),
    ];
    families.into_iter().fold(text, |text, (name, help, part)| {
        let samples: Vec<_> = measured.iter().filter_map(|one| Some((one, part(&one.usage.psi)?))).collect();
        if samples.is_empty() {
            return text;
        }
        let mut family = Family::new(text, &format!("container_pressure_{name}_seconds_total"), "counter", help);
        for (one, nanoseconds) in samples {
            family.sample(&one.labels_of_cadvisor(), nanoseconds as f64 / 1e9);
        }
        family.text
    })
}

/// `/metrics`: the process and what it looks after.
pub fn own(pods: &dyn NodePods) -> String {
    let all = pods.pods();
    let running = containers(pods).len();
    let mut family =
        Family::new(String::new(), "kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    let with_sandbox = all
        .iter()
        .filter(|pod| pods.runtime_view(pod.metadata.uid.as_deref().unwrap_or_default()).sandbox_id.is_some());
    family.sample(&[], with_sandbox.count());
    let mut family =
        Family::new(family.text, "kubelet_running_containers", "gauge", "Number of containers currently running");
    family.sample(&[("container_state", "running")], running);
    let mut family = Family::new(
        family.text,
        "kubelet_desired_pods",
        "gauge",
        "The number of pods the kubelet is being instructed to run.",
    );
    family.sample(&[], all.len());
    let mut family = Family::new(family.text, "kubernetes_build_info", "gauge", version::BUILD_INFO_HELP);
    family.sample(&version::Info::new().labels(), 1);
    if let Some((cpu, resident)) = process_usage() {
        family = Family::new(
            family.text,
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
        );
        family.sample(&[], cpu);
        family = Family::new(family.text, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
        family.sample(&[], resident);
    }
    family.text
}

/// How full claims' volumes are, one sample for each claim.
pub async fn volumes(pods: &dyn NodePods, text: String) -> String {
    let mut claims = BTreeMap::new();
    let all = pods.pods();
    let usages = futures::future::join_all(all.iter().map(|pod| pods.volume_usage(pod))).await;
    for (pod, usages) in all.iter().zip(usages) {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        for usage in usages {
            if let Some(claim) = usage.claim.clone() {
                claims.insert((namespace.clone(), claim), usage);
            }
        }
    }
    type Part = fn(&VolumeUsage) -> Option<u64>;
    let families: [(&str, &str, Part); 6] = [
        ("available_bytes", "Number of available bytes in the volume", |usage| {
            usage.bytes.map(|bytes| bytes.available)
        }),
        ("capacity_bytes", "Capacity in bytes of the volume", |usage| usage.bytes.map(|bytes| bytes.total)),
        ("inodes", "Maximum number of inodes in the volume", |usage| usage.inodes.map(|inodes| inodes.total)),
        ("inodes_free", "Number of free inodes in the volume", |usage| usage.inodes.map(|inodes| inodes.available)),
        ("inodes_used", "Number of used inodes in the volume", |usage| usage.inodes.map(|inodes| inodes.used)),
        ("used_bytes", "Number of used bytes in the volume", |usage| usage.bytes.map(|bytes| bytes.used)),
    ];
    families.into_iter().fold(text, |text, (name, help, part)| {
        let samples: Vec<_> = claims.iter().filter_map(|(key, usage)| Some((key, part(usage)?))).collect();
        if samples.is_empty() {
            return text;
        }
        let mut family = Family::new(text, &format!("kubelet_volume_stats_{name}"), "gauge", help);
        for ((namespace, claim), value) in samples {
            family.sample(&[("namespace", namespace.as_str()), ("persistentvolumeclaim", claim.as_str())], value);
        }
        family.text
    })
}

/// Certificates of pods' volumes; nothing where there are none.
pub fn certificates(states: &CertificateStates, text: String) -> String {
    if states.is_empty() {
        return text;
    }
    let help = "Gauge vector reporting the number of pod certificate projected volume sources, faceted by signer_name and state.";
    let mut family = Family::new(text, "kubelet_podcertificate_states", "gauge", help);
    for ((signer, state), count) in states {
        family.sample(&[("signer_name", signer.as_str()), ("state", *state)], count);
    }
    family.text
}

/// CPU seconds and resident bytes of this process.
fn process_usage() -> Option<(f64, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let memory = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = memory.split_whitespace().nth(1)?.parse().ok()?;
    // 100 clock ticks per second and 4 KiB pages, as on every Linux this builds for
    Some((ticks as f64 / 100.0, pages * 4096))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_their_heading_and_escaped_labels() {
        let mut family = Family::new(String::new(), "m", "gauge", "Help.");
        family.sample(&[("a", "x\"y")], 1.5);
        family.sample(&[], 2);
        assert_eq!(family.text, "# HELP m Help.\n# TYPE m gauge\nm{a=\"x\\\"y\"} 1.5\nm 2\n");
    }

    #[test]
    fn containers_are_told_with_their_image() {
        let status = |name: &str, image: &str| serde_json::json!({"name": name, "image": image, "imageID": "", "ready": true, "restartCount": 0});
        let statuses = serde_json::json!({"containerStatuses": [status("c", "docker.io/library/busybox:latest")],
            "initContainerStatuses": [status("s", "r.io/sidecar:1")]});
        let pod: Pod = serde_json::from_value(serde_json::json!({"status": statuses})).unwrap();
        assert_eq!(image_of(&pod, "c"), "docker.io/library/busybox:latest");
        let measured = Measured {
            namespace: "n".into(),
            pod: "p".into(),
            container: "s".into(),
            id: "i".into(),
            image: image_of(&pod, "s"),
            started: 0.0,
            usage: Usage::default(),
        };
        let mut family = Family::new(String::new(), "m", "gauge", "Help.");
        family.sample(&measured.labels_of_cadvisor(), 1);
        let sample = "m{container=\"s\",id=\"i\",image=\"r.io/sidecar:1\",name=\"i\",namespace=\"n\",pod=\"p\"} 1\n";
        assert!(family.text.ends_with(sample), "{}", family.text);
    }

    #[test]
    fn certificates_are_counted_by_signer_and_state() {
        assert_eq!(certificates(&CertificateStates::new(), "before\n".to_owned()), "before\n");
        let states = CertificateStates::from([(("example.com/s".to_owned(), "fresh"), 2)]);
        let text = certificates(&states, String::new());
        let sample = "kubelet_podcertificate_states{signer_name=\"example.com/s\",state=\"fresh\"} 2\n";
        assert!(text.ends_with(sample), "{text}");
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(process_usage().unwrap().1 > 0);
    }
}
