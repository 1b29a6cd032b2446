//! What `kubectl get pods` shows of a pod: the one-word status is worked out of phase, reason,
//! deletion and the states of all containers, exactly as `printPod` does.

use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::table::{named_wide, or_none, row_wide, words};
use crate::kinds::value::{at, flag, get, has, int, list, opt_flag, text};
use crate::resource::{Column, since};

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Ready", "The aggregate readiness state of this pod for accepting traffic."),
            words("Status", "The aggregate status of the containers in this pod."),
            words(
                "Restarts",
                "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
            ),
        ],
        vec![
            words(
                "IP",
                "podIP address allocated to the pod. Routable at least within the cluster. Empty if not yet allocated.",
            ),
            words("Node", "NodeName indicates in which node this pod is scheduled."),
            words(
                "Nominated Node",
                "nominatedNodeName is set only when this pod preempts other pods on the node, but it cannot be scheduled right away as preemption victims receive their graceful termination periods.",
            ),
            words("Readiness Gates", "If specified, all readiness gates will be evaluated for pod readiness."),
        ],
    )
}

pub fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, since(at, now).as_str().unwrap_or(""))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = list(pod, "status.podIPs").first().map_or_else(|| text(pod, "status.podIP"), |first| text(first, "ip"));
    row_wide(
        pod,
        now,
        vec![format!("{}/{}", summary.ready, summary.total).into(), summary.status.into(), restarts.into()],
        vec![
            or_none(ip),
            or_none(text(pod, "spec.nodeName")),
            or_none(text(pod, "status.nominatedNodeName")),
            readiness_gates(pod).into(),
        ],
    )
}

struct Summary<'a> {
    ready: usize,
    total: usize,
    status: String,
    restarts: i64,
    last_restart: Option<&'a Value>,
}

/// Restarts of some containers and the latest of them.
#[derive(Default, Clone, Copy)]
struct Restarts<'a> {
    count: i64,
    last: Option<&'a Value>,
}

impl<'a> Restarts<'a> {
    fn add(&mut self, status: &'a Value) {
        self.count += int(status, "restartCount");
        if let Some(finished) = get(status, "lastState.terminated.finishedAt") {
            // RFC 3339 in UTC sorts as text.
            if self.last.is_none_or(|last| last.as_str() < finished.as_str()) {
                self.last = Some(finished);
            }
        }
    }
}

fn summarize(pod: &Value) -> Summary<'_> {
    let phase = text(pod, "status.phase");
    let mut status = if has(pod, "status.reason") { text(pod, "status.reason") } else { phase }.to_owned();
    let gated = |condition: &&Value| {
        text(condition, "type") == "PodScheduled" && text(condition, "reason") == "SchedulingGated"
    };
    if list(pod, "status.conditions").iter().find(gated).is_some() {
        status = "SchedulingGated".to_owned();
    }
    let init_specs = list(pod, "spec.initContainers");
    let sidecars: Vec<&str> =
        init_specs.iter().filter(|c| text(c, "restartPolicy") == "Always").map(|c| text(c, "name")).collect();
    let total = list(pod, "spec.containers").len() + sidecars.len();

    let (mut ready, mut restarts, mut sidecar_restarts) = (0, Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (index, container) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        restarts.add(container);
        let sidecar = sidecars.contains(&text(container, "name"));
        if sidecar {
            sidecar_restarts.add(container);
        }
        let done = has(container, "state.terminated") && int(container, "state.terminated.exitCode") == 0;
        if done {
            continue;
        }
        if sidecar && opt_flag(container, "started") == Some(true) {
            ready += usize::from(flag(container, "ready"));
            continue;
        }
        status = init_status(container, index, init_specs.len());
        initializing = true;
        break;
    }
    if !initializing || condition_true(pod, "Initialized") {
        restarts = sidecar_restarts;
        let mut running = false;
        for container in list(pod, "status.containerStatuses").iter().rev() {
            restarts.add(container);
            if let Some(reason) = container_reason(container) {
                status = reason;
            } else if flag(container, "ready") && has(container, "state.running") {
                running = true;
                ready += 1;
            }
        }
        if status == "Completed" && running {
            status = if condition_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if has(pod, "metadata.deletionTimestamp") {
        if text(pod, "status.reason") == "NodeLost" {
            status = "Unknown".to_owned();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            status = "Terminating".to_owned();
        }
    }
    Summary { ready, total, status, restarts: restarts.count, last_restart: restarts.last }
}

fn init_status(container: &Value, index: usize, count: usize) -> String {
    if let Some(terminated) = get(container, "state.terminated") {
        return match (text(terminated, "reason"), int(terminated, "signal")) {
            ("", 0) => format!("Init:ExitCode:{}", int(terminated, "exitCode")),
            ("", signal) => format!("Init:Signal:{signal}"),
            (reason, _) => format!("Init:{reason}"),
        };
    }
    match text(container, "state.waiting.reason") {
        "" | "PodInitializing" => format!("Init:{index}/{count}"),
        reason => format!("Init:{reason}"),
    }
}

/// Why the container does not run.
fn container_reason(container: &Value) -> Option<String> {
    let waiting = text(container, "state.waiting.reason");
    if !waiting.is_empty() {
        return Some(waiting.to_owned());
    }
    let terminated = get(container, "state.terminated")?;
    Some(match (text(terminated, "reason"), int(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", int(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    })
}

fn condition_true(pod: &Value, kind: &str) -> bool {
    list(pod, "status.conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return crate::kinds::table::NONE.to_owned();
    }
    let met = gates.iter().filter(|gate| condition_true(pod, at(gate, "conditionType").as_str().unwrap_or(""))).count();
    format!("{met}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(pod: &Value) -> String {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        cells(pod, now).iter().map(|cell| cell.as_str().unwrap().to_owned()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn status_words() {
        let meta = json!({"name": "a", "creationTimestamp": "2026-01-01T00:58:00Z"});
        let spec = json!({"containers": [{"name": "c"}, {"name": "d"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
        let running = json!({"ready": true, "state": {"running": {}}});
        for (status, expected) in [
            (json!({"phase": "Pending"}), "a|0/3|Pending|0|2m"),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
                "a|0/3|SchedulingGated|0|2m",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                "a|0/3|Init:0/2|0|2m",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "a|0/3|Init:CrashLoopBackOff|2|2m",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
                "a|0/3|Init:ExitCode:3|0|2m",
            ),
            (
                json!({"phase": "Running", "initContainerStatuses": [
                {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [running, running]}),
                "a|3/3|Running|0|2m",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [running, {"restartCount": 3, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:30Z"}}, "state": {"waiting": {"reason": "ErrImagePull"}}}]}),
                "a|1/3|ErrImagePull|3 (30s ago)|2m",
            ),
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}, running]}),
                "a|1/3|Running|0|2m",
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), "a|0/3|Evicted|0|2m"),
        ] {
            let pod = json!({"metadata": meta, "spec": spec, "status": status});
            let line = shown(&pod);
            assert_eq!(line.strip_suffix("|<none>|<none>|<none>|<none>").unwrap_or(&line), expected, "{status}");
        }
    }

    #[test]
    fn deleted_and_wide() {
        let pod = json!({
            "metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{}], "nodeName": "n", "readinessGates": [{"conditionType": "x"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.42.0.2"}], "conditions": [{"type": "x", "status": "True"}]}
        });
        assert_eq!(shown(&pod), "a|0/1|Terminating|0|<unknown>|10.42.0.2|n|<none>|1/1");
    }
}
