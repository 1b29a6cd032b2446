//! A pod's phase from its containers' statuses (`kubelet_pods.go: getPhase`). Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, PodSpec};

use super::actions::{ContainerKind, is_sidecar};
use super::restart::restarts_after;

#[derive(Default)]
struct Count {
    waiting: usize,
    running: usize,
    stopped: usize,
    succeeded: usize,
    /// Of those that stopped, the ones that will run again.
    restarting: usize,
    unknown: usize,
}

/// `ended`: nothing runs and nothing will be started.
pub fn of(spec: &PodSpec, init: &[ContainerStatus], main: &[ContainerStatus], ended: bool) -> &'static str {
    let (pending_init, failed_init) = initialization(spec, init, ended);
    if failed_init {
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
        return match all_succeeded {
            _ if count.restarting > 0 && !ended => "Running",
            true => "Succeeded",
            false => "Failed",
        };
    }
    if ended { "Failed" } else { "Pending" }
}

/// Whether init containers are still to do, and whether one failed for good.
fn initialization(spec: &PodSpec, statuses: &[ContainerStatus], ended: bool) -> (bool, bool) {
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
        let for_good = |code: i32| code != 0 && (ended || !restarts_after(spec, container, ContainerKind::Init, code));
        match state.and_then(|state| state.terminated.as_ref()) {
            Some(done) if done.exit_code == 0 => {}
            Some(done) => {
                let failed_for_good = for_good(done.exit_code);
                failed |= failed_for_good;
                pending |= !failed_for_good;
            }
            None => {
                pending = true;
                let waits = state.is_some_and(|state| state.waiting.is_some());
                failed |= waits && last.is_some_and(|last| for_good(last.exit_code));
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
        let restarts = |code: i32| usize::from(restarts_after(spec, container, ContainerKind::Main, code));
        if state.running.is_some() {
            count.running += 1;
        } else if let Some(ended) = state.terminated {
            count.stopped += 1;
            count.succeeded += usize::from(ended.exit_code == 0);
            count.restarting += restarts(ended.exit_code);
        } else if let Some(last) = status.last_state.as_ref().and_then(|last| last.terminated.as_ref()) {
            count.stopped += 1;
            count.restarting += restarts(last.exit_code);
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
    fn a_containers_own_restart_policy_decides() {
        let status = |code: i32| json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code}}});
        let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        for (pod, own, rules, code, expected) in [
            ("Never", json!("Always"), json!([]), 1, "Running"),
            ("Always", json!("Never"), json!([]), 1, "Failed"),
            ("Always", json!("Never"), json!([]), 0, "Succeeded"),
            ("Never", json!("Never"), rules.clone(), 42, "Running"),
            ("Never", json!("Never"), rules.clone(), 1, "Failed"),
        ] {
            let container = json!({"name": "a", "restartPolicy": own, "restartPolicyRules": rules});
            let main: PodSpec =
                serde_json::from_value(json!({"restartPolicy": pod, "containers": [container]})).unwrap();
            let read = |status: Value| vec![serde_json::from_value::<ContainerStatus>(status).unwrap()];
            assert_eq!(of(&main, &[], &read(status(code)), false), expected, "{pod} {own} {code}");
            if own == "Always" {
                continue;
            }
            let init: PodSpec = serde_json::from_value(
                json!({"restartPolicy": pod, "containers": [{"name": "m"}], "initContainers": [container]}),
            )
            .unwrap();
            let waiting = json!({"name": "m", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {}}});
            let expected = if expected == "Failed" { "Failed" } else { "Pending" };
            assert_eq!(of(&init, &read(status(code)), &read(waiting), false), expected, "init {pod} {own} {code}");
        }
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
            ("Never", json!([]), json!([looping]), false, "Failed"),
            ("Always", json!([done("i", 0)]), json!([running]), false, "Running"),
        ] {
            assert_eq!(phase(policy, init.clone(), main.clone(), ended), expected, "{policy} {init} {main} {ended}");
        }
    }
}
