//! Pods on a real containerd.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{condition, main_status, on_a_node, phase, ready, shell};

#[test]
fn a_pod_runs_and_goes() {
    on_a_node("runs", |node| async move {
        let mut node = node.lock().await;
        let began = Instant::now();
        node.create("web", json!({"containers": [shell("main", "trap exit TERM; echo hello; while :; do sleep 0.1; done")]})).await;
        let pod = node.wait("web", "Ready", ready).await;
        eprintln!("running after {:?}", began.elapsed());
        let status = &pod["status"];
        assert_eq!(phase(&pod), "Running");
        assert!(status["podIP"].as_str().unwrap().starts_with("10.99.0."), "{status}");
        assert_eq!((status["hostIP"].as_str(), status["qosClass"].as_str()), (Some("127.0.0.1"), Some("BestEffort")));
        for name in ["PodScheduled", "Initialized", "PodReadyToStartContainers", "ContainersReady", "Ready"] {
            assert_eq!(condition(&pod, name), "True", "{name}");
        }
        let main = main_status(&pod);
        assert!(main["containerID"].as_str().unwrap().starts_with("containerd://"));
        assert_eq!((main["restartCount"].as_i64(), main["started"].as_bool()), (Some(0), Some(true)));
        for event in ["Normal Pulled Container image", "Normal Created Container created", "Normal Started Container started"] {
            node.wait_event("web", event).await;
        }
        assert_eq!(node.log(&pod, "main", 0), "hello\n");

        // Another kubelet adopts it as it is.
        node.stop_kubelet().await;
        node.start_kubelet();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = node.wait("web", "Ready again", ready).await;
        assert_eq!(main_status(&after), main, "the container went on");

        node.pods().delete("web", &Default::default()).await.unwrap();
        node.wait("web", "gone", Value::is_null).await;
        node.wait_event("web", "Normal Killing Stopping container main").await;
    });
}

#[test]
fn containers_end_and_restart_as_their_policy_says() {
    on_a_node("ends", |node| async move {
        let node = node.lock().await;
        let never = |script: &str| json!({"restartPolicy": "Never", "containers": [shell("main", script)]});
        node.create("good", never("exit 0")).await;
        node.create("bad", never("echo last words > /dev/termination-log; exit 3")).await;
        node.create("none", json!({"restartPolicy": "Never", "containers": [
            {"name": "main", "image": support::BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["/does/not/exist"]}]})).await;
        node.create("logs", json!({"restartPolicy": "Never", "containers": [
            {"name": "main", "image": support::BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", "echo it broke; exit 1"],
             "terminationMessagePolicy": "FallbackToLogsOnError"}]})).await;
        node.create("again", json!({"containers": [shell("main", "exit 1")]})).await;

        let good = node.wait("good", "Succeeded", |pod| phase(pod) == "Succeeded").await;
        assert_eq!(main_status(&good)["state"]["terminated"]["reason"], "Completed");
        let bad = node.wait("bad", "Failed", |pod| phase(pod) == "Failed").await;
        let ended = &main_status(&bad)["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["reason"], &ended["message"]), (&json!(3), &json!("Error"), &json!("last words\n")));
        let none = node.wait("none", "Failed", |pod| phase(pod) == "Failed").await;
        let ended = &main_status(&none)["state"]["terminated"];
        assert_eq!(ended["reason"], "StartError", "{ended}");
        assert!(ended["message"].as_str().unwrap().contains("no such file or directory"), "{ended}");
        let logs = node.wait("logs", "Failed", |pod| phase(pod) == "Failed").await;
        assert_eq!(main_status(&logs)["state"]["terminated"]["message"], "it broke\n");

        let again = node.wait("again", "a restart and then back-off", |pod| {
            main_status(pod)["restartCount"] == 1 && main_status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        }).await;
        let uid = again["metadata"]["uid"].as_str().unwrap();
        let message = format!("back-off 10s restarting failed container=main pod=again_default({uid})");
        assert_eq!(main_status(&again)["state"]["waiting"]["message"], message);
        assert_eq!(main_status(&again)["lastState"]["terminated"]["exitCode"], 1);
        node.wait_event("again", "Warning BackOff Back-off restarting failed container main in pod again_default").await;
    });
}

#[test]
fn images_that_cannot_be_had() {
    on_a_node("images", |node| async move {
        let node = node.lock().await;
        let with = |image: &str, policy: &str| json!({"containers": [{"name": "main", "image": image, "imagePullPolicy": policy}]});
        let waiting = |pod: &Value| main_status(pod)["state"]["waiting"].clone();
        node.create("never", with("example.invalid/none:1", "Never")).await;
        node.create("bad", with("Bad Name", "IfNotPresent")).await;
        node.create("absent", with("127.0.0.1:1/absent:1", "IfNotPresent")).await;
        node.wait("never", "ErrImageNeverPull", |pod| waiting(pod)["reason"] == "ErrImageNeverPull").await;
        node.wait("bad", "InvalidImageName", |pod| waiting(pod)["reason"] == "InvalidImageName").await;
        let absent = node.wait("absent", "ErrImagePull", |pod| waiting(pod)["reason"] == "ErrImagePull").await;
        assert!(waiting(&absent)["message"].as_str().unwrap().contains("connection refused"), "{absent}");
        node.wait("absent", "ImagePullBackOff", |pod| waiting(pod)["reason"] == "ImagePullBackOff").await;
        node.wait_event("absent", "Warning Failed Failed to pull image \"127.0.0.1:1/absent:1\": rpc error").await;
        node.wait_event("absent", "Normal BackOff Back-off pulling image \"127.0.0.1:1/absent:1\"").await;
    });
}
