use serde_json::{Value, json};

use super::*;
use crate::pod::actions::tests_support::{exited, run, sandbox};

/// The status of a pod with these runs in the sandbox `sb`.
fn status(pod: &Value, runs: Vec<Run>) -> Value {
    status_after(pod, &json!({}), &Observed::new(vec![sandbox("sb", 0, true)], runs), None, Resize::default())
}

fn status_after(
    pod: &Value,
    last: &Value,
    observed: &Observed,
    verdict: Option<&Verdict>,
    resize: Resize<'_>,
) -> Value {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    let made = generate(&View {
        pod: &pod,
        last: &serde_json::from_value(last.clone()).unwrap(),
        observed,
        memory: &Memory::default(),
        waiting: &BTreeMap::new(),
        ending: verdict.is_some(),
        verdict,
        host_ips: &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        recursive_read_only_works: true,
        resize,
        now: Timestamp::UNIX_EPOCH,
    });
    serde_json::to_value(made).unwrap()
}

#[test]
fn whatever_there_is_of_a_container_tells_its_resources() {
    let resources = json!({"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "500m", "memory": "32Mi"}});
    let pod = json!({"metadata": {"generation": 3}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "resources": resources}]}});
    for made in [run("c", "sb", RunState::Running, 0), run("c", "sb", RunState::Created, 0), exited("c", "sb", 1, 0)] {
        let container = status(&pod, vec![made.clone()])["containerStatuses"][0].clone();
        assert_eq!(
            (&container["resources"], &container["allocatedResources"]),
            (&resources, &resources["requests"]),
            "{made:?}"
        );
    }
    let none = status(&pod, vec![]);
    assert_eq!((none["containerStatuses"][0].get("resources"), &none["observedGeneration"]), (None, &json!(3)));
    assert_eq!(none["hostIPs"], json!([{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]));
    assert_eq!((&none["podIP"], &none["podIPs"]), (&json!("10.0.0.9"), &json!([{"ip": "10.0.0.9"}])));
}

#[test]
fn the_image_of_a_container_is_the_runtimes_once_there_is_a_run() {
    let pod = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "busybox"}]}});
    let image = |runs| status(&pod, runs)["containerStatuses"][0]["image"].clone();
    assert_eq!(image(vec![]), "busybox");
    let of = |run: Run| Run { image: "docker.io/library/busybox:latest".to_owned(), ..run };
    for made in [run("c", "sb", RunState::Running, 0), exited("c", "sb", 0, 0)] {
        assert_eq!(image(vec![of(made)]), "docker.io/library/busybox:latest");
    }
}

#[test]
fn a_container_that_somebody_else_removed_ended_and_counts() {
    let pod = json!({"spec": {"restartPolicy": "Always", "containers": [{"name": "c"}]}});
    let after = |last: &Value| {
        let observed = Observed::new(vec![sandbox("sb", 0, true)], Vec::new());
        status_after(&pod, last, &observed, None, Resize::default())
    };
    let runs = |status: &Value| runs_before(&serde_json::from_value(status.clone()).unwrap(), "c");
    let before = status(&pod, vec![run("c", "sb", RunState::Running, 2)]);
    assert_eq!(runs(&before), 3);
    let lost = after(&before);
    let container = &lost["containerStatuses"][0];
    assert_eq!((&lost["phase"], &container["restartCount"]), (&json!("Running"), &json!(3)));
    assert_eq!(container["state"]["waiting"]["reason"], "ContainerCreating");
    let last = &container["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("ContainerStatusUnknown"), &json!(137)));
    // until it runs again it goes on like that
    assert_eq!((after(&lost)["containerStatuses"][0].clone(), runs(&lost)), (container.clone(), 3));
    // one that had ended, and may not run again yet, keeps its end
    let ended = status(&pod, vec![exited("c", "sb", 1, 2)]);
    assert_eq!(after(&ended)["containerStatuses"][0]["state"]["terminated"]["exitCode"], 1);
    assert_eq!(runs(&ended), 3);
}

#[test]
fn a_pod_as_a_whole_tells_what_it_was_granted_and_then_what_its_group_has() {
    let limited = json!({"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi", "example.com/x": "1"}}});
    let half = json!({"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "200m"}}});
    for (containers, phase, requests, limits) in [
        (
            json!([limited, half]),
            "Pending",
            json!({"cpu": "1200m", "memory": "1Gi", "example.com/x": "1"}),
            json!({"cpu": "2", "memory": "1Gi"}),
        ),
        (json!([limited, half]), "Running", json!({"cpu": "1200m", "memory": "1Gi"}), json!({"cpu": "2"})),
        (json!([limited]), "Running", json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "1", "memory": "1Gi"})),
        (json!([{"name": "c"}]), "Running", Value::Null, Value::Null),
    ] {
        let made = status(&json!({"spec": {"containers": containers}, "status": {"phase": phase}}), vec![]);
        assert_eq!((&made["resources"]["requests"], &made["resources"]["limits"]), (&requests, &limits), "{phase}");
        assert!(made["resources"].is_object());
    }
}

#[test]
fn started_and_ready_are_not_for_ephemeral_containers_and_ready_for_init_containers_is_their_success() {
    let pod = json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e"}]}});
    let all = |runs| {
        let made = status(&pod, runs);
        ["initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"]
            .map(|list| (made[list][0]["started"].as_bool(), made[list][0]["ready"].as_bool()))
    };
    let running = |name| run(name, "sb", RunState::Running, 0);
    assert_eq!(all(vec![running("i")]), [(Some(true), Some(false)), (Some(false), Some(false)), (None, Some(false))]);
    assert_eq!(
        all(vec![exited("i", "sb", 0, 0), running("c"), running("e")]),
        [(Some(false), Some(true)), (Some(true), Some(true)), (None, Some(false))]
    );
}

#[test]
fn read_only_mounts_tell_whether_all_below_them_is() {
    let mounts = json!([
        {"name": "v", "mountPath": "/a"},
        {"name": "v", "mountPath": "/b", "readOnly": true},
        {"name": "v", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "IfPossible"}
    ]);
    let pod = json!({"spec": {"containers": [{"name": "c", "volumeMounts": mounts}]}});
    let expected = json!([
        {"name": "v", "mountPath": "/a"},
        {"name": "v", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "Disabled"},
        {"name": "v", "mountPath": "/c", "readOnly": true, "recursiveReadOnly": "Enabled"}
    ]);
    assert_eq!(status(&pod, vec![])["containerStatuses"][0]["volumeMounts"], expected);
}

#[test]
fn a_pod_that_the_node_did_not_take_has_only_a_reason() {
    let pod = json!({"metadata": {"generation": 2}, "spec": {"containers": [{"name": "c"}]}});
    let others = json!({"type": "example.com/gate", "status": "True"});
    let last = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}, others]});
    let verdict = Verdict::refused("OutOfcpu", "no room");
    let refused = status_after(&pod, &last, &Observed::default(), Some(&verdict), Resize::default());
    let expected = json!({"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected: no room",
        "qosClass": "BestEffort", "startTime": "1970-01-01T00:00:00Z", "observedGeneration": 2, "conditions": [others]});
    assert_eq!(refused, expected);
    // another kubelet, which knows of no verdict
    assert_eq!(status_after(&pod, &refused, &Observed::default(), None, Resize::default()), expected);
}

#[test]
fn a_pod_that_has_to_end_goes_on_as_it_was_until_nothing_runs() {
    let pod = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}});
    let with = |run: Run| Observed::new(vec![sandbox("sb", 0, true)], vec![run]);
    let before = status(&pod, vec![run("c", "sb", RunState::Running, 0)]);
    for (cause, reason, ready, ready_reason) in [
        (Cause::Deadline, "DeadlineExceeded", "False", json!("PodFailed")),
        (Cause::Evicted, EVICTED, "True", Value::Null),
    ] {
        let verdict = Verdict { cause, reason: reason.to_owned(), message: "m".to_owned() };
        let observed = with(run("c", "sb", RunState::Running, 0));
        let meanwhile = status_after(&pod, &before, &observed, Some(&verdict), Resize::default());
        let named = |status: &Value, name: &str| {
            status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == name).cloned().unwrap_or_default()
        };
        assert_eq!((&meanwhile["phase"], &meanwhile["reason"]), (&json!("Running"), &Value::Null), "{reason}");
        let told = named(&meanwhile, "Ready");
        assert_eq!((&told["status"], &told["reason"]), (&json!(ready), &ready_reason), "{reason}");
        assert_eq!(named(&meanwhile, "DisruptionTarget"), Value::Null);
        let after = status_after(&pod, &meanwhile, &with(exited("c", "sb", 137, 0)), Some(&verdict), Resize::default());
        assert_eq!(
            (&after["phase"], &after["reason"], &after["message"]),
            (&json!("Failed"), &json!(reason), &json!("m"))
        );
        assert_eq!(named(&after, "DisruptionTarget").is_object(), cause == Cause::Evicted);
    }
}

#[test]
fn what_is_said_of_a_resize_comes_before_the_other_conditions() {
    let pod = json!({"spec": {"containers": [{"name": "c"}]}});
    let last = json!({"conditions": [{"type": "example.com/gate", "status": "True"}]});
    let resize = Resize { in_progress: true, ..Resize::default() };
    let made = status_after(&pod, &last, &Observed::default(), None, resize);
    let types: Vec<&str> =
        made["conditions"].as_array().unwrap().iter().filter_map(|one| one["type"].as_str()).collect();
    assert_eq!(types[..3], ["example.com/gate", "PodResizeInProgress", "PodReadyToStartContainers"]);
}

#[test]
fn what_was_last_said_of_devices_stays() {
    let told = |health: &str| {
        let devices = json!([{"name": "example.com/gpu", "resources": [{"resourceID": "a", "health": health}]}]);
        serde_json::from_value::<Vec<ResourceStatus>>(devices).unwrap()
    };
    let status = |names: &[&str]| -> PodStatus {
        let one = |name: &&str| json!({"name": name, "image": "i", "imageID": "", "ready": true, "restartCount": 0});
        serde_json::from_value(json!({"containerStatuses": names.iter().map(one).collect::<Vec<_>>()})).unwrap()
    };
    let mut last = status(&["a", "b"]);
    tell_devices(&mut last, [("a".to_owned(), told("Unhealthy"))].into(), &PodStatus::default());
    let mut now = status(&["a", "b"]);
    tell_devices(&mut now, [("b".to_owned(), told("Healthy"))].into(), &last);
    let containers = now.container_statuses.unwrap();
    let shown = |index: usize| containers[index].allocated_resources_status.clone();
    assert_eq!((shown(0), shown(1)), (Some(told("Unhealthy")), Some(told("Healthy"))));
}
