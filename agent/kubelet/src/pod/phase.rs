//! A pod's phase from its containers' statuses (`kubelet_pods.go: getPhase`). Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, PodSpec};

use super::actions::is_sidecar;

#[derive(Default)]
struct Count {
    waiting: usize,
    running: usize,
    stopped: usize,
    succeeded: usize,
    unknown: usize,
}

/// `ended`: nothing runs and nothing will be started.
pub fn of(spec: &PodSpec, init: &[ContainerStatus], main: &[ContainerStatus], ended: bool) -> &'static str {
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let (pending_init, failed_init) = initialization(spec, init);
    if failed_init && (policy == "Never" || ended) {
        return "Failed";
    }
    let count = count(spec, main);
    if pending_init && !ended && count.running == 0 && count.stopped == 0 {
        return "Pending";
    }
    if count.waiting > 0 && !ended {
        return "Pending";
    }
    if count.running > 0 && count.unknown == 0 {
        return "Running";
    }
    if count.running == 0 && count.stopped > 0 && (count.unknown == 0 || ended) {
        let all_succeeded = count.stopped == count.succeeded && count.unknown == 0 && count.waiting == 0;
        return match policy {
            _ if ended => {
                if all_succeeded {
                    "Succeeded"
                } else {
                    "Failed"
                }
            }
            "Always" => "Running",
            _ if all_succeeded => "Succeeded",
            "Never" => "Failed",
            _ => "Running",
        };
    }
    if ended { "Failed" } else { "Pending" }
}

/// Whether init containers are still to do, and whether one failed.
fn initialization(spec: &PodSpec, statuses: &[ContainerStatus]) -> (bool, bool) {
    let (mut pending, mut failed) = (false, false);
    for container in spec.init_containers.iter().flatten() {
        let status = statuses.iter().find(|status| status.name == container.name);
        let state = status.and_then(|status| status.state.as_ref());
        let last = status.and_then(|status| status.last_state.as_ref()).and_then(|last| last.terminated.as_ref());
        if is_sidecar(container) {
            let up = state.is_some_and(|state| state.running.is_some())
                && status.and_then(|status| status.started).unwrap_or(false);
            pending |= !up && state.is_none_or(|state| state.terminated.is_none());
            continue;
        }
        match state.and_then(|state| state.terminated.as_ref()) {
            Some(ended) if ended.exit_code == 0 => {}
            Some(_) => failed = true,
            None => {
                pending = true;
                failed |=
                    last.is_some_and(|last| last.exit_code != 0) && state.is_some_and(|state| state.waiting.is_some());
            }
        }
    }
    (pending, failed)
}

fn count(spec: &PodSpec, statuses: &[ContainerStatus]) -> Count {
    let mut count = Count::default();
    for container in &spec.containers {
        let Some(status) = statuses.iter().find(|status| status.name == container.name) else {
            count.unknown += 1;
            continue;
        };
        let state = status.state.clone().unwrap_or_default();
        if state.running.is_some() {
            count.running += 1;
        } else if let Some(ended) = state.terminated {
            count.stopped += 1;
            count.succeeded += usize::from(ended.exit_code == 0);
        } else if status.last_state.as_ref().is_some_and(|last| last.terminated.is_some()) {
            count.stopped += 1;
        } else {
            count.waiting += 1;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn phase(policy: &str, init: Value, main: Value, ended: bool) -> &'static str {
        let named = |list: &Value| -> Vec<Value> {
            list.as_array().unwrap().iter().map(|status| json!({"name": status["name"]})).collect()
        };
        let spec: PodSpec = serde_json::from_value(
            json!({"restartPolicy": policy, "initContainers": named(&init), "containers": named(&main)}),
        )
        .unwrap();
        let read = |list: Value| -> Vec<ContainerStatus> {
            list.as_array()
                .unwrap()
                .iter()
                .map(|status| {
                    let mut status = status.clone();
                    for (key, value) in [
                        ("image", json!("")),
                        ("imageID", json!("")),
                        ("ready", json!(false)),
                        ("restartCount", json!(0)),
                    ] {
                        status[key] = value;
                    }
                    serde_json::from_value(status).unwrap()
                })
                .collect()
        };
        of(&spec, &read(init), &read(main), ended)
    }

    #[test]
    fn phases() {
        let running = json!({"name": "a", "state": {"running": {}}});
        let waiting = json!({"name": "b", "state": {"waiting": {}}});
        let done = |name: &str, code: i32| json!({"name": name, "state": {"terminated": {"exitCode": code}}});
        let looping = json!({"name": "a", "state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 1}}});
        for (policy, init, main, ended, expected) in [
            ("Always", json!([]), json!([waiting]), false, "Pending"),
            ("Always", json!([]), json!([running]), false, "Running"),
            ("Always", json!([]), json!([running, waiting]), false, "Pending"),
            ("Always", json!([]), json!([looping]), false, "Running"),
            ("Always", json!([]), json!([done("a", 0)]), false, "Running"),
            ("OnFailure", json!([]), json!([done("a", 0), done("b", 0)]), false, "Succeeded"),
            ("OnFailure", json!([]), json!([done("a", 1)]), false, "Running"),
            ("Never", json!([]), json!([done("a", 1), done("b", 0)]), false, "Failed"),
            ("Never", json!([]), json!([done("c", 1), running]), false, "Running"),
            ("Always", json!([]), json!([done("a", 137)]), true, "Failed"),
            ("Always", json!([]), json!([done("a", 0)]), true, "Succeeded"),
            ("Always", json!([]), json!([waiting]), true, "Failed"),
            ("Never", json!([done("i", 1)]), json!([waiting]), false, "Failed"),
            ("Always", json!([done("i", 1)]), json!([waiting]), false, "Pending"),
            ("Always", json!([{"name": "i", "state": {"running": {}}}]), json!([waiting]), false, "Pending"),
            ("Always", json!([done("i", 0)]), json!([running]), false, "Running"),
        ] {
            assert_eq!(phase(policy, init.clone(), main.clone(), ended), expected, "{policy} {init} {main} {ended}");
        }
    }
}
