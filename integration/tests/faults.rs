//! What is killed comes back, and the rest goes on.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use integration::{BUSYBOX, Lab, NGINX, command};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

fn kill(pid: &Value) {
    let pid = pid.as_i64().unwrap().to_string();
    command("kill", &["-9", &pid], &[], "").expect_ok();
    // The signal was sent; until the process has ended, it still runs for who would start it again.
    let deadline = Instant::now() + SOON;
    while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "process {pid} outlives SIGKILL");
        // The pace of looking.
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn deploy(lab: &Lab, replicas: u32) {
    lab.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      tolerations:\n      - {{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}\n      - {{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}}\n      containers: [{{name: nginx, image: {NGINX}, imagePullPolicy: IfNotPresent}}]\n"
    ));
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}

/// Container ids and restart counts, by pod.
fn containers(lab: &Lab) -> Vec<(String, String, u64)> {
    let pods = lab.get(&["pods", "-l", "app=web"]);
    let mut all: Vec<_> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            (
                pod["metadata"]["name"].to_string(),
                status["containerID"].to_string(),
                status["restartCount"].as_u64().unwrap_or(99),
            )
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_killed_agent_or_containerd_restarts_no_container() {
    let lab = Lab::up("agent", &[]);
    deploy(&lab, 2);
    let before = containers(&lab);

    kill(&lab.member("node-1")["pid"]);
    lab.node("start", "node-1").expect_ok();
    lab.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let after = containers(&lab);
    assert!(before.iter().all(|container| after.contains(container)), "before {before:?}\nafter {after:?}");

    let containerd = pid_of_containerd(&lab);
    command("kill", &["-9", &containerd], &[], "").expect_ok();
    lab.eventually("another containerd", SOON, || {
        let now = find_containerd(&lab).ok_or("none")?;
        if now == containerd { Err(now) } else { Ok(()) }
    });
    lab.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let last = containers(&lab);
    assert!(after.iter().all(|container| last.contains(container)), "before {after:?}\nafter {last:?}");
}

fn find_containerd(lab: &Lab) -> Option<String> {
    let member = lab.member("node-1");
    let places: Vec<String> =
        ["runDir", "dataDir"].iter().filter_map(|key| Some(format!("{}/", member[*key].as_str()?))).collect();
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.to_owned();
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let is_containerd = words.first()?.ends_with("/containerd") || *words.first()? == "containerd";
        (is_containerd && words.iter().any(|word| places.iter().any(|place| word.contains(place.as_str()))))
            .then_some(pid)
    })
}

#[track_caller]
fn pid_of_containerd(lab: &Lab) -> String {
    find_containerd(lab).expect("containerd of node-1")
}

#[test]
fn a_server_killed_while_it_writes_loses_nothing_it_acknowledged() {
    let lab = Lab::up("server", &[]);
    deploy(&lab, 1);
    let before = containers(&lab);
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..3 {
        let name = lab.name.clone();
        let kubeconfig = lab.kubeconfig.clone();
        let writer = std::thread::spawn(move || {
            let mut written = Vec::new();
            for index in 0..200 {
                let object = format!("w-{round}-{index}");
                let output = command(
                    integration::kubectl(),
                    &["create", "configmap", &object],
                    &[("KUBECONFIG", &kubeconfig)],
                    "",
                );
                if !output.ok {
                    break;
                }
                written.push(object);
            }
            let _ = name;
            written
        });
        lab.eventually("some writes", SOON, || {
            let seen = lab.try_kubectl(&["get", "configmaps", "-o", "name"]).stdout;
            if seen.contains(&format!("w-{round}-5")) { Ok(()) } else { Err(seen) }
        });
        kill(&lab.member("server")["pid"]);
        acknowledged.extend(writer.join().unwrap());
        lab.node("start", "server").expect_ok();
        lab.eventually("the server answers", SOON, || {
            let answer = lab.try_kubectl(&["get", "--raw", "/readyz"]);
            if answer.ok { Ok(()) } else { Err(answer.stderr) }
        });
    }
    let there = lab.kubectl(&["get", "configmaps", "-o", "name"]);
    let lost: Vec<_> =
        acknowledged.iter().filter(|name| !there.lines().any(|line| line.ends_with(&format!("/{name}")))).collect();
    assert!(lost.is_empty(), "lost {lost:?} of {}", acknowledged.len());
    assert_eq!(containers(&lab), before, "the pods did not notice");
    lab.kubectl(&["scale", "deployment/web", "--replicas=2"]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}

#[test]
fn a_dead_node_is_noticed_and_its_pods_move() {
    let lab = Lab::up("dead", &["--nodes", "2"]);
    deploy(&lab, 4);
    lab.node("kill", "node-2").expect_ok();
    lab.wait("node/node-2", "condition=Ready=Unknown", 90);
    lab.eventually("four pods run on node-1", Duration::from_secs(90), || {
        let pods = lab.get(&["pods", "-l", "app=web", "--field-selector=spec.nodeName=node-1,status.phase=Running"]);
        let count = pods["items"].as_array().unwrap().len();
        if count == 4 { Ok(()) } else { Err(format!("{count} pods")) }
    });
    lab.node("start", "node-2").expect_ok();
    lab.wait("node/node-2", "condition=Ready", 60);
    lab.eventually("the pods that were on it are gone", SOON, || {
        let pods = lab.get(&["pods", "-l", "app=web"]);
        let count = pods["items"].as_array().unwrap().len();
        if count == 4 { Ok(()) } else { Err(format!("{count} pods")) }
    });
}

#[test]
fn a_full_pod_network_is_told_and_mends_itself() {
    let lab = Lab::up("full", &["--node-cidr-mask", "29"]);
    // A /29 has five addresses for pods beside network, broadcast and bridge.
    lab.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many}}\nspec:\n  replicas: 7\n  selector: {{matchLabels: {{app: many}}}}\n  template:\n    metadata: {{labels: {{app: many}}}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      containers: [{{name: c, image: {BUSYBOX}, imagePullPolicy: IfNotPresent, command: [sleep, \"3600\"]}}]\n"
    ));
    lab.eventually("the event says why", SOON, || {
        let events = lab.kubectl(&["get", "events", "--field-selector=reason=FailedCreatePodSandBox"]);
        if events.contains("no IP addresses available") { Ok(()) } else { Err(events) }
    });
    lab.kubectl(&["scale", "deployment/many", "--replicas=4"]);
    lab.kubectl(&["rollout", "status", "deployment/many", "--timeout=90s"]);
}

#[test]
fn a_partitioned_node_comes_back_with_its_pods() {
    let lab = Lab::up("split", &["--nodes", "2"]);
    deploy(&lab, 2);
    lab.node("partition", "node-2").expect_ok();
    lab.wait("node/node-2", "condition=Ready=Unknown", 90);
    lab.node("heal", "node-2").expect_ok();
    lab.wait("node/node-2", "condition=Ready", 60);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}
