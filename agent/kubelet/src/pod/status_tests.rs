use serde_json::{Value, json};

use super::*;
use crate::pod::actions::tests_support::{exited, run, sandbox};

/// The status of a pod with these runs in the sandbox `sb`.
fn status(pod: &Value, runs: Vec<Run>) -> Value {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    let made = generate(&View {
        pod: &pod,
        last: &PodStatus::default(),
        observed: &Observed::new(vec![sandbox("sb", 0, true)], runs),
        memory: &Memory::default(),
        waiting: &BTreeMap::new(),
        ending: false,
        verdict: None,
        host_ips: &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        recursive_read_only_works: true,
        resize: Resize::default(),
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
