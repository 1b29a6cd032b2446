//! Pods as a whole: how they end, what they say of it, their names, what people do with them.

use std::time::Duration;

use integration::{BUSYBOX, Lab};
use serde_json::{Value, json};

use crate::websocket::{Proxy, WebSocket};
use crate::{SOON, condition, status_of};

#[test]
fn pods() {
    let lab = Lab::up("cpods", &[]);
    lab.apply(&include_str!("pods.yaml").replace("BUSYBOX", BUSYBOX));
    let pod = |name: &str| lab.get(&["pod", name]);
    let ended = |name: &str| -> Value {
        lab.eventually(&format!("{name} ends"), SOON, || {
            let pod = pod(name);
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if matches!(phase, "Succeeded" | "Failed") { Ok(pod) } else { Err(pod["status"].to_string()) }
        })
    };

    // last words
    for (name, message) in [
        ("words-file", "DONE"),
        ("words-user", "MINE"),
        ("words-log", "from the log\n"),
        ("words-none", ""),
        ("words-both", "OK"),
    ] {
        let state = status_of(&ended(name), "main")["state"]["terminated"].clone();
        assert_eq!(state["message"].as_str().unwrap_or_default(), message, "{name}: {state}");
    }
    let all: Vec<usize> = ended("words-long")["status"]["containerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|status| status["state"]["terminated"]["message"].as_str().unwrap_or_default().len())
        .collect();
    assert_eq!(all, [3072; 4], "a pod has 12 KiB for all its containers");
    let log = status_of(&ended("words-long-log"), "main")["state"]["terminated"]["message"].clone();
    assert!(log.as_str().unwrap().len() <= 2048 && log.as_str().unwrap().ends_with("line 199 of many that are long\n"));

    // ends that are not the containers' own
    let deadline = ended("deadline")["status"].clone();
    assert_eq!((&deadline["phase"], &deadline["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    not_taken(&lab);
    let refused = ended("init-fails");
    assert_eq!(refused["status"]["phase"], "Failed");
    let initialized = condition(&refused, "Initialized");
    assert_eq!(initialized["message"], "containers with incomplete status: [init]");
    assert_eq!(condition(&refused, "Ready")["reason"], "PodFailed");
    for name in ["names", "names-full", "names-override", "names-long", "host-ipc"] {
        assert_eq!(ended(name)["status"]["phase"], "Succeeded", "{}", lab.kubectl(&["logs", name]));
    }
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    assert_eq!(lab.kubectl(&["logs", "host-ipc"]), format!("{}\n{}\n", own("ipc"), own("pid")));
    // a pod that is deleted while it starts goes within its grace period
    lab.kubectl(&["delete", "pod", "stuck-init", "--timeout=30s"]);
    lab.kubectl(&["delete", "pod", "stuck-image", "--timeout=30s"]);
    lab.kubectl(&["delete", "pod", "stubborn", "--grace-period=0", "--force"]);

    observed_generations(&lab);
    ephemeral(&lab);
    logs_of_each_run(&lab);
    once(&lab);
    sockets(&lab);
}

/// What a node does not take, it says in the pod's status; what people say that it has, it gives.
fn not_taken(lab: &Lab) {
    let node = lab.get(&["nodes"])["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
    let pod = |name: &str, more: Value, count: u32| {
        let limits = json!({"example.com/dongle": count.to_string()});
        let container = json!({"name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["true"],
            "resources": if count > 0 { json!({"limits": limits}) } else { json!({}) }});
        let mut spec = json!({"restartPolicy": "Never", "containers": [container]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        lab.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string());
    };
    let in_the_end = |name: &str| -> Value {
        lab.eventually(&format!("{name} ends"), SOON, || {
            let pod = lab.get(&["pod", name]);
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if matches!(phase, "Succeeded" | "Failed") { Ok(pod) } else { Err(pod["status"].to_string()) }
        })
    };
    pod("elsewhere", json!({"nodeName": node, "nodeSelector": {"no": "such"}}), 0);
    let status = in_the_end("elsewhere")["status"].clone();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("NodeAffinity")), "{status}");
    assert!(status.get("containerStatuses").is_none() && status.get("hostIP").is_none(), "{status}");
    let row = lab.kubectl(&["get", "pod", "elsewhere", "--no-headers"]);
    assert!(row.contains("NodeAffinity"), "{row}");

    pod("with-dongle", json!({}), 3);
    let patch = r#"[{"op": "add", "path": "/status/capacity/example.com~1dongle", "value": "4"}]"#;
    lab.kubectl(&["patch", "node", &node, "--subresource=status", "--type=json", "-p", patch]);
    assert_eq!(in_the_end("with-dongle")["status"]["phase"], "Succeeded");
    pod("too-many", json!({"nodeName": node}), 5);
    assert_eq!(in_the_end("too-many")["status"]["reason"], "OutOfexample.com/dongle");
    lab.kubectl(&["delete", "pods", "elsewhere", "with-dongle", "too-many"]);
    let patch = r#"[{"op": "remove", "path": "/status/capacity/example.com~1dongle"}]"#;
    lab.kubectl(&["patch", "node", &node, "--subresource=status", "--type=json", "-p", patch]);
    lab.kubectl(&["cordon", &node]);
    lab.eventually("the node is told of, and has no dongles", SOON, || {
        let events = lab.kubectl(&["get", "events", "-A", "--field-selector=involvedObject.kind=Node"]);
        let wanted = ["NodeHasSufficientMemory", "NodeAllocatableEnforced", "NodeNotSchedulable", "NodeReady"];
        let missing: Vec<&str> = wanted.into_iter().filter(|reason| !events.contains(reason)).collect();
        let allocatable = lab.get(&["node", &node])["status"]["allocatable"].clone();
        let gone = allocatable.get("example.com/dongle").is_none();
        if missing.is_empty() && gone { Ok(()) } else { Err(format!("{missing:?} {allocatable}\n{events}")) }
    });
    lab.kubectl(&["uncordon", &node]);
}

/// Many updates in a row: the status follows to the last.
fn observed_generations(lab: &Lab) {
    lab.wait("pod/plain", "condition=Ready", 60);
    let mut proxy = Proxy::start(lab);
    const UPDATES: u64 = 500;
    for update in 0..UPDATES {
        // The only number in a pod's spec that may change again and again: it may only shrink.
        let patch = json!({"spec": {"activeDeadlineSeconds": 100_000 - update}});
        proxy.patch("/api/v1/namespaces/default/pods/plain", &patch);
    }
    let pod = lab.eventually("the status follows", SOON, || {
        let pod = lab.get(&["pod", "plain"]);
        let generation = pod["metadata"]["generation"].as_u64();
        let observed = pod["status"]["observedGeneration"].as_u64();
        if generation == Some(UPDATES + 1) && observed == generation {
            Ok(pod)
        } else {
            Err(format!("{generation:?} {observed:?}"))
        }
    });
    for name in ["Ready", "ContainersReady", "Initialized", "PodReadyToStartContainers"] {
        assert_eq!(condition(&pod, name)["observedGeneration"], UPDATES + 1, "{name}");
    }
}

fn ephemeral(lab: &Lab) {
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
        "targetContainerName": "main", "command": ["sh", "-c", "ps; exit 3"]}]}});
    lab.kubectl(&["patch", "pod", "plain", "--subresource=ephemeralcontainers", "-p", &debug.to_string()]);
    lab.eventually("the ephemeral container ends", SOON, || {
        let status = status_of(&lab.get(&["pod", "plain"]), "debug");
        if status["state"]["terminated"]["exitCode"] == 3 { Ok(()) } else { Err(status.to_string()) }
    });
    let seen = lab.kubectl(&["logs", "plain", "-c", "debug"]);
    assert!(seen.contains("the-main-process"), "it sees the processes of its target:\n{seen}");
    assert_eq!(lab.get(&["pod", "plain"])["status"]["phase"], "Running");
}

fn logs_of_each_run(lab: &Lab) {
    lab.eventually("it restarts", SOON, || {
        let status = status_of(&lab.get(&["pod", "restarts"]), "main");
        if status["restartCount"] == 1 && status["state"]["running"].is_object() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    assert_eq!(lab.kubectl(&["logs", "restarts", "-c", "init"]), "from init\n");
    let said = |arguments: &[&str], words: &str| {
        lab.eventually(&format!("logs {arguments:?}"), SOON, || {
            let log = lab.kubectl(&[&["logs", "restarts"], arguments].concat());
            if log == words { Ok(()) } else { Err(log) }
        });
    };
    said(&["-c", "main"], "run 2\n");
    said(&["-c", "main", "--previous"], "run 1\n");
    said(&["-c", "ended"], "the end\n");
    said(&["-c", "ended", "--timestamps", "--since-time=2199-01-01T00:00:00Z"], "");
}

/// A container that reads its input once, with the client going away; large input and output.
fn once(lab: &Lab) {
    let image = format!("--image={BUSYBOX}");
    let run = [
        "run",
        "once",
        "-i",
        "--quiet",
        &image,
        "--image-pull-policy=IfNotPresent",
        "--restart=Never",
        "--command",
        "--",
        "sh",
        "-c",
        "cat; echo end",
    ];
    let answer = lab.kubectl_with(&integration::kubectl(), &run, "typed\n");
    assert!(answer.ok && answer.stdout.contains("typed\nend\n"), "{answer:?}");
    lab.wait("pod/once", "jsonpath={.status.phase}=Succeeded", 30);
    let text = "0123456789abcdef".repeat(1 << 18);
    let count = lab.kubectl_with(
        &integration::kubectl(),
        &["exec", "-i", "plain", "-c", "main", "--", "sh", "-c", "cat > /tmp/big; wc -c < /tmp/big"],
        &text,
    );
    assert_eq!(count.expect_ok().trim(), text.len().to_string());
    assert!(
        lab.kubectl(&["exec", "plain", "-c", "main", "--", "cat", "/tmp/big"]) == text,
        "what came back is what was sent"
    );
}

/// exec and logs for clients that speak WebSocket themselves.
fn sockets(lab: &Lab) {
    let proxy = Proxy::start(lab);
    let exec = "/api/v1/namespaces/default/pods/plain/exec?container=main&stdout=1&stderr=1&command=sh&command=-c&command=echo%20out%3B%20echo%20err%20%3E%262%3B%20exit%207";
    for (protocol, base64) in
        [("v5.channel.k8s.io", false), ("v4.channel.k8s.io", false), ("base64.channel.k8s.io", true)]
    {
        let mut socket = WebSocket::open(proxy.port, exec, protocol);
        let channels = socket.channels(base64);
        let text = |channel: u8| {
            channels.get(&channel).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
        };
        assert_eq!((text(1).as_str(), text(2).as_str()), ("out\n", "err\n"), "{protocol}");
        if protocol.starts_with('v') {
            let status: Value = serde_json::from_str(&text(3)).unwrap_or_default();
            assert_eq!(
                (&status["reason"], &status["details"]["causes"][0]["message"]),
                (&json!("NonZeroExitCode"), &json!("7")),
                "{protocol}"
            );
        }
    }
    let mut logs =
        WebSocket::open(proxy.port, "/api/v1/namespaces/default/pods/restarts/log?container=ended", "binary.k8s.io");
    assert_eq!(logs.all(Duration::from_secs(10)), b"the end\n");
    let mut logs = WebSocket::open(
        proxy.port,
        "/api/v1/namespaces/default/pods/restarts/log?container=ended",
        "base64.binary.k8s.io",
    );
    assert_eq!(logs.all(Duration::from_secs(10)), b"dGhlIGVuZAo=");
}
