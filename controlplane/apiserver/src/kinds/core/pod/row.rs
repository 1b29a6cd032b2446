//! What `kubectl get pods` shows of a pod: the one-word status is worked out of phase, reason,
//! deletion and the states of all containers, exactly as `printPod` does.

use jiff::Timestamp;
use serde_json::{Value, json};

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

/// What the row says of a pod that has come to its end.
pub fn conditions(pod: &Value) -> Value {
    let (reason, message) = match text(pod, "status.phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Value::Null,
    };
    json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}])
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
    let mut status = match text(pod, "status.reason") {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
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
        let (mut running, mut error) = (false, None);
        for container in list(pod, "status.containerStatuses").iter().rev() {
            restarts.add(container);
            if let Some(reason) = container_reason(container) {
                if text(container, "state.waiting.reason").is_empty()
                    && int(container, "state.terminated.exitCode") != 0
                {
                    error = Some(reason.clone());
                }
                status = reason;
            } else if flag(container, "ready") && has(container, "state.running") {
                running = true;
                ready += 1;
            }
        }
        // One container that came to its end is not yet the end of the pod.
        if status == "Completed" {
            status = match error {
                _ if running && condition_true(pod, "Ready") => "Running".to_owned(),
                Some(error) => error,
                None if running => "NotReady".to_owned(),
                None => status,
            };
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

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn shown(pod: &Value) -> Vec<String> {
        cells(pod, NOW.parse().unwrap()).iter().map(|cell| cell.as_str().unwrap().to_owned()).collect()
    }

    /// READY, STATUS and RESTARTS of a pod of two containers, after an init container `i` and a
    /// sidecar `s`.
    fn state(status: Value) -> String {
        let spec = json!({"containers": [{"name": "c"}, {"name": "d"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
        shown(&json!({"metadata": {"name": "a"}, "spec": spec, "status": status}))[1..4].join("|")
    }

    fn condition(kind: &str, status: &str) -> Value {
        json!({"type": kind, "status": status})
    }

    #[test]
    fn before_the_containers() {
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let ended = |terminated: Value| json!({ "terminated": terminated });
        let first = |state: Value| json!([{"name": "i", "restartCount": 2, "state": state}]);
        let second = |s: Value| json!([{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 0}}}, s]);
        for (init, expected) in [
            (json!([]), "0/3|Pending|0"),
            (first(json!({"running": {}})), "0/3|Init:0/2|2"),
            (first(waiting("PodInitializing")), "0/3|Init:0/2|2"),
            (first(json!({})), "0/3|Init:0/2|2"),
            (first(waiting("CrashLoopBackOff")), "0/3|Init:CrashLoopBackOff|2"),
            (first(waiting("ImagePullBackOff")), "0/3|Init:ImagePullBackOff|2"),
            (first(ended(json!({"exitCode": 1, "reason": "Error"}))), "0/3|Init:Error|2"),
            (first(ended(json!({"exitCode": 3}))), "0/3|Init:ExitCode:3|2"),
            (first(ended(json!({"exitCode": 137, "signal": 9}))), "0/3|Init:Signal:9|2"),
            (second(json!({"name": "s", "state": {"running": {}}})), "0/3|Init:1/2|2"),
            (second(json!({"name": "s", "started": false, "state": {"running": {}}})), "0/3|Init:1/2|2"),
            (
                second(json!({"name": "s", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 4})),
                "0/3|Init:CrashLoopBackOff|6",
            ),
            // A sidecar that has started lets the pod go on; only its own restarts count from then on.
            (
                second(
                    json!({"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}),
                ),
                "1/3|Pending|1",
            ),
            (second(json!({"name": "s", "started": true, "ready": false, "state": {"running": {}}})), "0/3|Pending|0"),
        ] {
            assert_eq!(state(json!({"phase": "Pending", "initContainerStatuses": init})), expected, "{init}");
        }
        // Once the pod has been initialized its containers are counted, too.
        let status = json!({"phase": "Running", "conditions": [condition("Initialized", "True")],
            "initContainerStatuses": first(json!({"running": {}})),
            "containerStatuses": [{"ready": true, "state": {"running": {}}}]});
        assert_eq!(state(status), "1/3|Init:0/2|0");
        let gated = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"});
        assert_eq!(state(json!({"phase": "Pending", "conditions": [gated]})), "0/3|SchedulingGated|0");
    }

    #[test]
    fn states_of_containers() {
        let running = json!({"ready": true, "state": {"running": {}}});
        let unready = json!({"ready": false, "state": {"running": {}}});
        let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason}}});
        let ended = |code: i64, reason: &str| json!({"state": {"terminated": {"exitCode": code, "reason": reason}}});
        let killed = json!({"state": {"terminated": {"exitCode": 137, "signal": 9}}});
        let unsaid = json!({"state": {"terminated": {"exitCode": 4}}});
        for (phase, ready, containers, expected) in [
            ("Running", "True", json!([running, running]), "2/3|Running|0"),
            ("Running", "False", json!([running, unready]), "1/3|Running|0"),
            (
                "Pending",
                "False",
                json!([waiting("ContainerCreating"), waiting("ContainerCreating")]),
                "0/3|ContainerCreating|0",
            ),
            ("Pending", "False", json!([waiting("PodInitializing")]), "0/3|PodInitializing|0"),
            ("Running", "False", json!([running, waiting("ErrImagePull")]), "1/3|ErrImagePull|0"),
            // The first container has the last word.
            ("Running", "False", json!([waiting("CrashLoopBackOff"), ended(1, "Error")]), "0/3|CrashLoopBackOff|0"),
            ("Succeeded", "False", json!([ended(0, "Completed"), ended(0, "Completed")]), "0/3|Completed|0"),
            ("Failed", "False", json!([ended(1, "Error"), ended(0, "Completed")]), "0/3|Error|0"),
            // ... but a good end does not hide a bad one.
            ("Failed", "False", json!([ended(0, "Completed"), ended(1, "Error")]), "0/3|Error|0"),
            ("Failed", "False", json!([ended(0, "Completed"), ended(137, "OOMKilled")]), "0/3|OOMKilled|0"),
            ("Running", "False", json!([ended(0, "Completed"), unsaid]), "0/3|ExitCode:4|0"),
            ("Failed", "False", json!([killed]), "0/3|Signal:9|0"),
            ("Failed", "False", json!([unsaid]), "0/3|ExitCode:4|0"),
            ("Running", "True", json!([ended(0, "Completed"), running]), "1/3|Running|0"),
            ("Running", "False", json!([ended(0, "Completed"), running]), "1/3|NotReady|0"),
            ("Running", "False", json!([ended(0, "Completed"), unready]), "0/3|Completed|0"),
        ] {
            let status =
                json!({"phase": phase, "conditions": [condition("Ready", ready)], "containerStatuses": containers});
            assert_eq!(state(status), expected, "{containers}");
        }
        for (status, expected) in [
            (json!({"phase": "Failed", "reason": "Evicted"}), "0/3|Evicted|0"),
            (json!({"phase": "Unknown"}), "0/3|Unknown|0"),
            (json!({}), "0/3||0"),
        ] {
            assert_eq!(state(status), expected);
        }
    }

    #[test]
    fn restarts_and_when() {
        let ended = |at: &str| json!({"terminated": {"finishedAt": at}});
        let container = |count: i64, last: Value| json!({"restartCount": count, "lastState": last, "ready": true, "state": {"running": {}}});
        for (containers, expected) in [
            (json!([container(3, ended("2026-01-01T00:59:30Z"))]), "3 (30s ago)"),
            (
                json!([container(1, ended("2026-01-01T00:55:00Z")), container(1, ended("2026-01-01T00:50:00Z"))]),
                "2 (5m ago)",
            ),
            (json!([container(0, ended("2026-01-01T00:55:00Z"))]), "0"),
            (json!([container(2, json!({}))]), "2"),
            (json!([container(2, json!({"terminated": {"finishedAt": null}}))]), "2"),
            (json!([container(1, ended("2026-01-01T01:00:09Z"))]), "1 (<invalid> ago)"),
        ] {
            let found = state(json!({"phase": "Running", "containerStatuses": containers}));
            assert_eq!(found.rsplit('|').next(), Some(expected), "{containers}");
        }
        // Of init containers only the sidecar counts once the containers run.
        let init = json!([{"name": "i", "restartCount": 7, "lastState": ended("2026-01-01T00:59:59Z"), "state": {"terminated": {"exitCode": 0}}},
            {"name": "s", "restartCount": 1, "lastState": ended("2026-01-01T00:00:00Z"), "started": true, "ready": true, "state": {"running": {}}}]);
        let status =
            json!({"phase": "Running", "initContainerStatuses": init, "containerStatuses": [container(1, json!({}))]});
        assert_eq!(state(status), "2/3|Running|2 (60m ago)");
    }

    #[test]
    fn on_their_way_out() {
        for (phase, reason, expected) in [
            ("Running", "", "Terminating"),
            ("Pending", "", "Terminating"),
            ("Running", "NodeLost", "Unknown"),
            ("Failed", "NodeLost", "Unknown"),
            ("Succeeded", "", "Succeeded"),
            ("Failed", "Evicted", "Evicted"),
        ] {
            let pod = json!({
                "metadata": {"name": "a", "deletionTimestamp": NOW}, "spec": {"containers": [{}]},
                "status": {"phase": phase, "reason": reason}
            });
            assert_eq!(shown(&pod)[2], expected, "{phase} {reason}");
        }
    }

    #[test]
    fn wide() {
        let pod = json!({
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:58:00Z"},
            "spec": {"containers": [{}], "nodeName": "n", "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]},
            "status": {"phase": "Running", "podIP": "10.42.0.2", "podIPs": [{"ip": "10.42.0.2"}, {"ip": "fd00::2"}],
                "nominatedNodeName": "m", "conditions": [condition("x", "True"), condition("y", "False")]}
        });
        assert_eq!(shown(&pod)[4..].join("|"), "2m|10.42.0.2|n|m|1/2");
        assert_eq!(shown(&json!({}))[4..].join("|"), "<unknown>|<none>|<none>|<none>|<none>");
    }

    #[test]
    fn finished_rows_say_so() {
        for (phase, expected) in [("Succeeded", "The pod has completed successfully."), ("Failed", "The pod failed.")] {
            let row = json!([{"type": "Completed", "status": "True", "reason": phase, "message": expected}]);
            assert_eq!(conditions(&json!({"status": {"phase": phase}})), row);
        }
        assert_eq!(conditions(&json!({"status": {"phase": "Running"}})), Value::Null);
    }
}
