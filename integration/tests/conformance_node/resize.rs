//! In-place resize: each pod is given other resources, and says and has them; then the first ones again.

use integration::{BUSYBOX, Lab};
use serde_json::{Value, json};

use crate::{SOON, condition, status_of};

/// `[cpu request, cpu limit, memory request, memory limit]`; empty is none.
type Amounts = [&'static str; 4];

fn resources(amounts: Amounts) -> Value {
    let side = |cpu: &str, memory: &str| {
        let set = [("cpu", cpu), ("memory", memory)];
        set.into_iter()
            .filter(|(_, amount)| !amount.is_empty())
            .map(|(name, amount)| (name.to_owned(), json!(amount)))
            .collect::<serde_json::Map<_, _>>()
    };
    let mut made = json!({});
    for (name, amounts) in [("requests", side(amounts[0], amounts[2])), ("limits", side(amounts[1], amounts[3]))] {
        if !amounts.is_empty() {
            made[name] = Value::Object(amounts);
        }
    }
    made
}

struct Case {
    pod: &'static str,
    /// By container: before and after. `i`, `s` are an init container and a sidecar.
    containers: &'static [(&'static str, Amounts, Amounts)],
    /// Resources whose change restarts the container.
    restarts: &'static [&'static str],
    /// How often each resize restarts the container.
    restarted: u64,
}

const PLAIN: Amounts = ["20m", "20m", "35Mi", "35Mi"];
const CASES: &[Case] = &[
    Case { pod: "grow", containers: &[("c", PLAIN, ["25m", "25m", "40Mi", "40Mi"])], restarts: &[], restarted: 0 },
    Case {
        pod: "cpu",
        containers: &[("c", PLAIN, ["25m", "25m", "35Mi", "35Mi"])],
        restarts: &["memory"],
        restarted: 0,
    },
    Case { pod: "opposite", containers: &[("c", PLAIN, ["25m", "25m", "30Mi", "30Mi"])], restarts: &[], restarted: 0 },
    Case {
        pod: "restart",
        containers: &[("c", PLAIN, ["25m", "25m", "40Mi", "40Mi"])],
        restarts: &["memory"],
        restarted: 1,
    },
    Case {
        pod: "same",
        containers: &[("c", ["20m", "20m", "32Mi", "32Mi"], ["25m", "25m", "32768Ki", "32768Ki"])],
        restarts: &["memory"],
        restarted: 0,
    },
    Case {
        pod: "burst",
        containers: &[
            ("c", ["20m", "30m", "35Mi", "45Mi"], ["15m", "35m", "40Mi", "42Mi"]),
            ("d", ["20m", "", "", ""], ["25m", "", "", ""]),
        ],
        restarts: &[],
        restarted: 0,
    },
    Case {
        pod: "equivalents",
        containers: &[("c", ["2m", "10m", "", ""], ["1m", "5m", "", ""])],
        restarts: &[],
        restarted: 0,
    },
    Case {
        pod: "several",
        containers: &[
            ("c", PLAIN, ["25m", "25m", "40Mi", "40Mi"]),
            ("d", PLAIN, ["15m", "15m", "30Mi", "30Mi"]),
            ("e", PLAIN, ["15m", "15m", "35Mi", "35Mi"]),
        ],
        restarts: &[],
        restarted: 0,
    },
    Case {
        pod: "sidecar",
        containers: &[("s", PLAIN, ["25m", "25m", "40Mi", "40Mi"]), ("c", PLAIN, PLAIN)],
        restarts: &[],
        restarted: 0,
    },
    Case {
        pod: "init",
        containers: &[("i", PLAIN, ["25m", "25m", "40Mi", "40Mi"]), ("c", PLAIN, PLAIN)],
        restarts: &[],
        restarted: 0,
    },
];

fn pod(case: &Case) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": case.pod},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [], "initContainers": []}});
    for (name, before, _) in case.containers {
        let policies: Vec<Value> = case
            .restarts
            .iter()
            .map(|name| json!({"resourceName": name, "restartPolicy": "RestartContainer"}))
            .collect();
        let mut container = json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "resizePolicy": policies,
            "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"], "resources": resources(*before)});
        if *name == "s" {
            container["restartPolicy"] = json!("Always");
        }
        let list = if matches!(*name, "s" | "i") { "initContainers" } else { "containers" };
        pod["spec"][list].as_array_mut().unwrap().push(container);
    }
    pod
}

fn resize(lab: &Lab, pod: &str, containers: &[(&str, Amounts)]) {
    let mut patch = json!({"spec": {"containers": [], "initContainers": []}});
    for (name, amounts) in containers {
        let list = if matches!(*name, "s" | "i") { "initContainers" } else { "containers" };
        patch["spec"][list].as_array_mut().unwrap().push(json!({"name": name, "resources": resources(*amounts)}));
    }
    lab.kubectl(&["patch", "pod", pod, "--subresource=resize", "-p", &patch.to_string()]);
}

/// What a container's group has, in the terms of its resources: shares, quota, memory limit.
fn group(lab: &Lab, pod: &str, container: &str) -> String {
    let script = "cd /sys/fs/cgroup; if test -e cgroup.controllers; then cat cpu.weight cpu.max memory.max; \
                  else cat cpu/cpu.shares cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes; fi";
    lab.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script])
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn amount(text: &str) -> u64 {
    let digits: u64 = text.trim_end_matches(char::is_alphabetic).parse().unwrap_or(0);
    match text.trim_start_matches(char::is_numeric) {
        "Mi" => digits << 20,
        "Ki" => digits << 10,
        _ => digits,
    }
}

/// The same, as it should be. Only for cgroup v1 are all three plain to see.
fn expected_group(amounts: Amounts) -> String {
    let request = if amounts[0].is_empty() { amounts[1] } else { amounts[0] };
    let shares = (amount(request) * 1024 / 1000).max(2);
    let quota = if amounts[1].is_empty() { "-1".to_owned() } else { (amount(amounts[1]) * 100).max(1000).to_string() };
    let memory = if amounts[3].is_empty() { 9_223_372_036_854_771_712 } else { amount(amounts[3]) };
    format!("{shares} {quota} {memory}")
}

/// Waits until the status says that the containers have these resources, and checks their groups.
#[track_caller]
fn has(lab: &Lab, case: &Case, containers: &[(&str, Amounts)], resizes: u64) {
    lab.eventually(&format!("{} was resized", case.pod), SOON, || {
        let pod = lab.get(&["pod", case.pod]);
        let pending = ["PodResizePending", "PodResizeInProgress"].iter().any(|name| condition(&pod, name).is_object());
        let generation = &pod["metadata"]["generation"];
        let done = containers.iter().all(|(name, amounts)| {
            let status = status_of(&pod, name);
            let given = |side: &str| {
                let amounts = status["resources"][side].as_object().into_iter().flatten();
                amounts.map(|(name, text)| (name.clone(), amount(text.as_str().unwrap()))).collect::<Vec<_>>()
            };
            let wanted = |side: &str| {
                let wanted = resources(*amounts)[side].clone();
                let amounts = wanted.as_object().into_iter().flatten();
                amounts.map(|(name, text)| (name.clone(), amount(text.as_str().unwrap()))).collect::<Vec<_>>()
            };
            given("requests") == wanted("requests")
                && given("limits") == wanted("limits")
                && status["restartCount"].as_u64() == Some(case.restarted * resizes)
                && status["state"]["running"].is_object()
        });
        let observed = pod["status"]["observedGeneration"] == *generation && generation.as_u64() == Some(1 + resizes);
        if done && observed && !pending { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return;
    }
    for (name, amounts) in containers {
        assert_eq!(group(lab, case.pod, name), expected_group(*amounts), "{} {name}", case.pod);
    }
}

#[test]
fn resizes() {
    // What the node says to too much: the API server would say it first.
    let lab = Lab::up("cresize", &["--server-arg=--disable-admission-plugins=PodResizeValidator"]);
    let pods: Vec<Value> = CASES.iter().map(pod).collect();
    lab.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string());
    for case in CASES {
        let running = |pod: &Value| {
            case.containers
                .iter()
                .filter(|(name, ..)| *name != "c" || case.pod != "init")
                .all(|(name, ..)| status_of(pod, name)["state"]["running"].is_object())
        };
        lab.eventually(&format!("{} runs", case.pod), SOON, || {
            let pod = lab.get(&["pod", case.pod]);
            if running(&pod) { Ok(()) } else { Err(pod["status"].to_string()) }
        });
    }
    // A pod whose init container is still at work has no other container yet.
    let of = |case: &Case, after: bool| -> Vec<(&'static str, Amounts)> {
        let all = case.containers.iter().filter(|(name, ..)| case.pod != "init" || *name == "i");
        all.map(|(name, first, second)| (*name, if after { *second } else { *first })).collect()
    };
    for after in [true, false] {
        CASES.iter().for_each(|case| resize(&lab, case.pod, &of(case, after)));
        for case in CASES {
            has(&lab, case, &of(case, after), if after { 1 } else { 2 });
        }
    }
    let events = lab.kubectl(&["get", "events", "--field-selector=involvedObject.name=restart"]);
    for text in ["ResizeStarted", "ResizeCompleted", "Container c resize requires restart"] {
        assert!(events.contains(text), "{text} is missing in:\n{events}");
    }
    assert!(!events.contains("BackOff"), "a container made anew for a resize did not fail:\n{events}");

    // what cannot be
    let told = |name: &str, reason: &str, message: &str| {
        lab.eventually(&format!("{name} {reason}"), SOON, || {
            let pod = lab.get(&["pod", "grow"]);
            let condition = condition(&pod, name);
            let said = condition["message"].as_str().unwrap_or_default().to_owned();
            if condition["reason"] == reason && said.contains(message) {
                Ok(())
            } else {
                Err(pod["status"].to_string())
            }
        });
        let kept = status_of(&lab.get(&["pod", "grow"]), "c")["resources"].clone();
        assert_eq!(kept, resources(PLAIN), "it keeps what it has");
    };
    resize(&lab, "grow", &[("c", ["20m", "20m", "10Ki", "10Ki"])]);
    told("PodResizeInProgress", "Error", "memory limit (10240) below current usage (");
    resize(&lab, "grow", &[("c", ["1000", "1000", "35Mi", "35Mi"])]);
    told("PodResizePending", "Infeasible", "Node didn't have enough capacity: cpu, requested: 1000000, capacity: ");
    let cpus = std::thread::available_parallelism().unwrap().to_string();
    let patch = json!({"spec": {"containers": [{"name": "c", "resources": resources(PLAIN)}]}});
    let mut patch = patch;
    for side in ["requests", "limits"] {
        patch["spec"]["containers"][0]["resources"][side]["cpu"] = json!(cpus);
    }
    lab.kubectl(&["patch", "pod", "grow", "--subresource=resize", "-p", &patch.to_string()]);
    told("PodResizePending", "Deferred", "Node didn't have enough resource: cpu, requested: ");
    // and is granted when the others are gone
    let others: Vec<&str> = CASES.iter().map(|case| case.pod).filter(|name| *name != "grow").collect();
    lab.kubectl(&[&["delete", "pods", "--now"], others.as_slice()].concat());
    lab.eventually("the deferred resize is granted", SOON, || {
        let pod = lab.get(&["pod", "grow"]);
        let given = status_of(&pod, "c")["resources"]["requests"]["cpu"] == *cpus;
        if given { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    lab.kubectl(&["delete", "pod", "grow", "--now"]);
    as_a_whole(&lab);
    by_priority(&lab);
}

/// A pod's own resources: its containers have its limits, and get others with it.
fn as_a_whole(lab: &Lab) {
    let amounts = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
    let given = |cpu: &str, memory: &str| json!({"requests": amounts(cpu, memory), "limits": amounts(cpu, memory)});
    let container = |name: &str, policy: &str| {
        json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"],
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": policy}]})
    };
    let containers = [container("kept", "NotRequired"), container("anew", "RestartContainer")];
    let spec =
        json!({"terminationGracePeriodSeconds": 1, "resources": given("200m", "200Mi"), "containers": containers});
    lab.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "whole"}, "spec": spec}).to_string());
    lab.wait("pod/whole", "condition=Ready", 60);
    let groups = |quota: u64| {
        if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            for name in ["kept", "anew"] {
                let has = group(lab, "whole", name);
                assert!(has.ends_with(&format!(" {quota} {}", 200 << 20)), "{name}: {has}");
            }
        }
    };
    groups(20_000);
    let patch = json!({"spec": {"resources": {"requests": {"cpu": "300m"}, "limits": {"cpu": "300m"}}}}).to_string();
    lab.kubectl(&["patch", "pod", "whole", "--subresource=resize", "-p", &patch]);
    lab.eventually("the pod has what it wishes", SOON, || {
        let pod = lab.get(&["pod", "whole"]);
        let status = &pod["status"];
        let restarts = ["kept", "anew"].map(|name| status_of(&pod, name)["restartCount"].as_u64());
        let runs = status_of(&pod, "anew")["state"]["running"].is_object();
        let has = status["resources"]["limits"]["cpu"] == "300m" && restarts == [Some(0), Some(1)] && runs;
        let done = !condition(&pod, "PodResizeInProgress").is_object();
        if has && done { Ok(()) } else { Err(status.to_string()) }
    });
    groups(30_000);
    let events = lab.kubectl(&["get", "events", "--field-selector=involvedObject.name=whole"]);
    assert!(events.contains("ResizeStarted") && events.contains("ResizeCompleted"), "{events}");
    lab.kubectl(&["delete", "pod", "whole", "--now"]);
}

/// Room for one of two that wait: the more important gets it, though the other waits longer.
fn by_priority(lab: &Lab) {
    let all = 1000 * std::thread::available_parallelism().unwrap().get();
    let cpu = |cpu: usize| json!({"requests": {"cpu": format!("{cpu}m")}});
    let pod = |name: &str, class: &str, request: usize| {
        let container = json!({"name": "c", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "3600"], "resources": cpu(request)});
        let spec = json!({"terminationGracePeriodSeconds": 1, "priorityClassName": class, "containers": [container]});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
    };
    let class = |name: &str, value: i32| {
        json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "preemptionPolicy": "Never"})
        .to_string()
    };
    for object in [class("more", 10), class("less", 5)] {
        lab.apply(&object);
    }
    for object in [pod("big", "less", all - 400), pod("first", "less", 100), pod("second", "more", 100)] {
        lab.apply(&object);
    }
    let patch = |name: &str, request: usize| {
        let patch = json!({"spec": {"containers": [{"name": "c", "resources": cpu(request)}]}}).to_string();
        lab.kubectl(&["patch", "pod", name, "--subresource=resize", "-p", &patch]);
    };
    for name in ["big", "first", "second"] {
        lab.wait(&format!("pod/{name}"), "condition=Ready", 60);
    }
    for name in ["first", "second"] {
        patch(name, 500);
        lab.wait(&format!("pod/{name}"), "condition=PodResizePending", 60);
    }
    patch("big", all - 650);
    let has = |name: &str| status_of(&lab.get(&["pod", name]), "c")["resources"]["requests"]["cpu"].clone();
    lab.eventually("the second is granted", SOON, || {
        if has("second") == "500m" { Ok(()) } else { Err(has("second").to_string()) }
    });
    assert_eq!(has("first"), "100m");
    assert_eq!(condition(&lab.get(&["pod", "first"]), "PodResizePending")["reason"], "Deferred");
    lab.kubectl(&["delete", "pod", "big", "--now"]);
    lab.eventually("so is the first, in the end", SOON, || {
        if has("first") == "500m" { Ok(()) } else { Err(has("first").to_string()) }
    });
}
