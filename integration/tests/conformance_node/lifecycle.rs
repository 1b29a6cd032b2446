//! Containers from their start to their end: hooks, probes, restarts, back-off, sidecars.

use integration::{BUSYBOX, Lab};
use serde_json::Value;

use crate::{SOON, condition, status_of};

#[test]
fn lifecycle() {
    let lab = Lab::up("clife", &[]);
    let host = tempfile::tempdir().unwrap();
    let yaml = include_str!("lifecycle.yaml").replace("BUSYBOX", BUSYBOX);
    lab.apply(&yaml.replace("/HOSTDIR", &host.path().display().to_string()));
    let pod = |name: &str| lab.get(&["pod", name]);
    let main = |name: &str, what: &str, wanted: &dyn Fn(&Value) -> bool| {
        lab.eventually(&format!("{name}: {what}"), SOON, || {
            let pod = pod(name);
            let main = status_of(&pod, "main");
            if wanted(&main) { Ok((main, pod)) } else { Err(pod["status"].to_string()) }
        })
    };

    // hooks
    lab.wait("pod/hook-instant", "condition=Ready", 60);
    main("hook-slow", "waits for its hook", &|main| main["state"]["waiting"]["reason"] == "ContainerCreating");
    lab.eventually("the hook is let go", SOON, || {
        let answer = lab.try_kubectl(&["exec", "hook-slow", "--", "touch", "/tmp/go"]);
        if answer.ok { Ok(()) } else { Err(answer.stderr) }
    });
    lab.wait("pod/hook-slow", "condition=Ready", 60);
    let failed = |main: &Value| main["state"]["terminated"].is_object();
    let (_, ended) = main("hook-fails", "is killed", &failed);
    assert_eq!(ended["status"]["phase"], "Failed");
    let (outlived, _) = main("hook-outlives", "ends by itself", &failed);
    assert_eq!(outlived["state"]["terminated"]["exitCode"], 4);

    // restart rules and policies
    for name in ["rule-matches", "own-always"] {
        let (status, pod) =
            main(name, "is in back-off", &|main| main["state"]["waiting"]["reason"] == "CrashLoopBackOff");
        assert_eq!(
            (&pod["status"]["phase"], status["restartCount"].as_u64()),
            (&"Running".into(), Some(1)),
            "{status}"
        );
    }
    for name in ["rule-misses", "own-never"] {
        let (status, pod) = main(name, "is not restarted", &failed);
        assert_eq!((&pod["status"]["phase"], status["restartCount"].as_u64()), (&"Failed".into(), Some(0)), "{status}");
    }
    lab.wait("pod/init-rule", "condition=Ready", 60);
    assert_eq!(status_of(&pod("init-rule"), "init")["restartCount"], 1);
    lab.eventually("all containers were restarted once", SOON, || {
        let pod = pod("restart-all");
        let names = ["init", "sidecar", "source", "regular"];
        let counts: Vec<Option<u64>> =
            names.iter().map(|name| status_of(&pod, name)["restartCount"].as_u64()).collect();
        let ready = condition(&pod, "Ready")["status"] == "True";
        if ready && counts == [Some(1); 4] { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    assert_eq!(condition(&pod("restart-all"), "AllContainersRestarting")["status"], "False");

    // probes
    let (killed, _) = main("probe-grace", "is restarted", &|main| main["restartCount"].as_u64() > Some(0));
    assert_eq!(killed["lastState"]["terminated"]["exitCode"], 137, "{killed}");
    let events = lab.kubectl(&["get", "events", "--field-selector=involvedObject.name=probe-grace"]);
    assert!(events.contains("Container main failed liveness probe, will be restarted"), "{events}");
    lab.wait("pod/probe-startup", "condition=Ready", 60);
    assert_eq!(status_of(&pod("probe-startup"), "main")["restartCount"], 0);
    lab.wait("pod/gated", "condition=ContainersReady", 60);
    let ready = condition(&pod("gated"), "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&"False".into(), &"ReadinessGatesNotReady".into()));
    let gate = r#"{"status":{"conditions":[{"type":"example.com/ready","status":"True"}]}}"#;
    lab.kubectl(&["patch", "pod", "gated", "--subresource=status", "-p", gate]);
    lab.wait("pod/gated", "condition=Ready", 30);

    // sidecars
    lab.wait("job/with-sidecar", "condition=Complete", 60);
    let pods = lab.get(&["pods", "-l", "job-name=with-sidecar"]);
    assert_eq!(status_of(&pods["items"][0], "sidecar")["state"]["terminated"]["exitCode"], 3);
    lab.wait("pod/ordered-end", "condition=Ready", 60);
    lab.kubectl(&["delete", "pod", "ordered-end", "--timeout=60s"]);
    let log = std::fs::read_to_string(host.path().join("log")).unwrap();
    assert_eq!(log, "hook\nhook\nhook\nmain\ntwo\none\n");
}
