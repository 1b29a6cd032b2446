//! gRPC probes, asked of a real server; and the back-off of a container that keeps failing.

use integration::{BUSYBOX, HEALTH, Lab, NGINX};
use serde_json::{Value, json};

use crate::{SOON, status_of};

#[test]
fn probes() {
    let images = tempfile::tempdir().unwrap();
    let health = integration::health_archive(images.path()).display().to_string();
    let lab = Lab::up("cprobe", &["--image", &health]);
    let yaml = include_str!("probes.yaml").replace("HEALTH", HEALTH).replace("NGINX", NGINX);
    lab.apply(&yaml.replace("BUSYBOX", BUSYBOX));
    let main = |pod: &str, what: &str, wanted: &dyn Fn(&Value) -> bool| {
        lab.eventually(&format!("{pod} {what}"), SOON, || {
            let main = status_of(&lab.get(&["pod", pod]), "main");
            if wanted(&main) { Ok(main) } else { Err(main.to_string()) }
        })
    };
    let says = |service: &str, status: &str| {
        lab.kubectl(&["exec", "grpc", "--", "sh", "-c", &format!("echo {status} > /tmp/{service}")]);
    };
    let event = |pod: &str, message: &str| {
        lab.eventually(&format!("the event {message:?}"), SOON, || {
            let events = lab.kubectl(&["get", "events", &format!("--field-selector=involvedObject.name={pod}")]);
            if events.contains(message) { Ok(()) } else { Err(events) }
        });
    };

    event(
        "grpc",
        "Startup probe failed: error: health rpc probe failed: rpc error: code = NotFound desc = unknown service",
    );
    main("grpc", "has not started", &|main| main["started"] == false && main["state"]["running"].is_object());
    // Liveness is not asked before the start; once it is, it must be good.
    says("live", "SERVING");
    says("start", "SERVING");
    main("grpc", "has started", &|main| main["started"] == true && main["ready"] == false);
    event("grpc", "Readiness probe failed: error: health rpc probe failed: rpc error: code = NotFound");
    says("ready", "SERVING");
    lab.wait("pod/grpc", "condition=Ready", 60);
    says("ready", "NOT_SERVING");
    event("grpc", r#"Readiness probe failed: service unhealthy (responded with "NOT_SERVING")"#);
    lab.wait("pod/grpc", "condition=Ready=False", 60);
    says("ready", "SLOW");
    event("grpc", "Readiness probe failed: timeout: health rpc did not complete within 1s");
    assert_eq!(main("grpc", "runs", &|_| true)["restartCount"], 0);
    says("live", "NOT_SERVING");
    event("grpc", "Container main failed liveness probe, will be restarted");
    // Its files went with it.
    main("grpc", "is anew", &|main| main["restartCount"] == 1 && main["started"] == false);

    let address = lab.get(&["pod", "grpc-none"])["status"]["podIP"].clone();
    let address = address.as_str().unwrap_or_default();
    event(
        "grpc-none",
        &format!(
            "Readiness probe failed: timeout: failed to connect service \"{address}:80\" within 1s: context deadline exceeded"
        ),
    );

    crashes(&lab);
}

/// 10 s before the second restart, 20 s before the third: the message says so.
fn crashes(lab: &Lab) {
    let container =
        json!({"name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", "exit 3"]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "crashes"}, "spec": {"containers": [container]}});
    lab.apply(&pod.to_string());
    let uid = lab.get(&["pod", "crashes"])["metadata"]["uid"].clone();
    for (delay, restarts) in [("10s", 1), ("20s", 2)] {
        let message = format!(
            "back-off {delay} restarting failed container=main pod=crashes_default({})",
            uid.as_str().unwrap_or_default()
        );
        let status = lab.eventually(&message, SOON, || {
            let status = status_of(&lab.get(&["pod", "crashes"]), "main");
            if status["state"]["waiting"]["message"] == *message { Ok(status) } else { Err(status.to_string()) }
        });
        assert_eq!(status["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(
            (&status["restartCount"], &status["started"], &status["ready"]),
            (&json!(restarts), &json!(false), &json!(false))
        );
        assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    }
    let events = lab.kubectl(&["get", "events", "--field-selector=involvedObject.name=crashes,reason=BackOff"]);
    assert!(events.contains("Back-off restarting failed container main in pod crashes_default("), "{events}");
}
