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
        node.create(
            "web",
            json!({"containers": [shell("main", "trap exit TERM; echo hello; while :; do sleep 0.1; done")]}),
        )
        .await;
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
        for event in
            ["Normal Pulled Container image", "Normal Created Container created", "Normal Started Container started"]
        {
            node.wait_event("web", event).await;
        }
        // The runtime copies a container's output to its log in its own time.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while node.log(&pod, "main", 0) != "hello\n" {
            assert!(std::time::Instant::now() < deadline, "the log holds {:?}", node.log(&pod, "main", 0));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        // Another kubelet adopts it as it is.
        node.stop_kubelet().await;
        node.start_kubelet();
        let other = shell("main", "trap exit TERM; while :; do sleep 0.1; done");
        node.create("other", json!({"containers": [other]})).await;
        node.wait("other", "Ready: the new kubelet works", ready).await;
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
        assert_eq!(
            (&ended["exitCode"], &ended["reason"], &ended["message"]),
            (&json!(3), &json!("Error"), &json!("last words\n"))
        );
        let none = node.wait("none", "Failed", |pod| phase(pod) == "Failed").await;
        let ended = &main_status(&none)["state"]["terminated"];
        assert_eq!(ended["reason"], "StartError", "{ended}");
        assert!(ended["message"].as_str().unwrap().contains("no such file or directory"), "{ended}");
        let logs = node.wait("logs", "Failed", |pod| phase(pod) == "Failed").await;
        assert_eq!(main_status(&logs)["state"]["terminated"]["message"], "it broke\n");

        let again = node
            .wait("again", "a restart and then back-off", |pod| {
                main_status(pod)["restartCount"] == 1
                    && main_status(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            })
            .await;
        let uid = again["metadata"]["uid"].as_str().unwrap();
        let message = format!("back-off 10s restarting failed container=main pod=again_default({uid})");
        assert_eq!(main_status(&again)["state"]["waiting"]["message"], message);
        assert_eq!(main_status(&again)["lastState"]["terminated"]["exitCode"], 1);
        node.wait_event("again", "Warning BackOff Back-off restarting failed container main in pod again_default")
            .await;
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
        node.wait_event("absent", "Warning Failed Failed to pull image \"127.0.0.1:1/absent:1\": failed to pull").await;
        node.wait_event("absent", "Normal BackOff Back-off pulling image \"127.0.0.1:1/absent:1\"").await;
    });
}

#[test]
fn probes_hooks_and_sidecars() {
    on_a_node("probes", |node| async move {
        let node = node.lock().await;
        let probed = |mut container: Value, more: Value| {
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            container
        };
        let exec = |script: &str, more: Value| {
            let mut probe = json!({"exec": {"command": ["sh", "-c", script]}, "periodSeconds": 1});
            probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            probe
        };
        let sleep = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let readiness = json!({"readinessProbe": exec("test -e /tmp/ready", json!({}))});
        node.create(
            "gate",
            json!({"containers": [probed(shell("main", &format!("sleep 1.5; touch /tmp/ready; {sleep}")), readiness)]}),
        )
        .await;
        let liveness = json!({"livenessProbe": exec("test ! -e /tmp/dead", json!({"failureThreshold": 1}))});
        node.create("dies", json!({"containers": [probed(shell("main", &format!("(sleep 1.5; touch /tmp/dead) & {sleep}")), liveness)]})).await;
        let http = json!({"readinessProbe": {"httpGet": {"port": 8080, "path": "/index.html"}, "periodSeconds": 1}});
        let server = "mkdir /tmp/www; echo ok > /tmp/www/index.html; httpd -f -p 8080 -h /tmp/www";
        node.create("http", json!({"containers": [probed(shell("main", server), http)]})).await;
        let hooks = json!({"lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo started > /tmp/post"]}},
            "preStop": {"exec": {"command": ["sh", "-c", "echo stopping > /proc/1/fd/1"]}}}});
        node.create("hooks", json!({"containers": [probed(shell("main", &format!("while ! test -e /tmp/post; do sleep 0.05; done; cat /tmp/post; {sleep}")), hooks)]})).await;
        let bad_hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["false"]}}}});
        node.create("badhook", json!({"containers": [probed(shell("main", sleep), bad_hook)]})).await;
        let sidecar = probed(shell("side", sleep), json!({"restartPolicy": "Always"}));
        node.create("job", json!({"restartPolicy": "Never", "initContainers": [sidecar, shell("init", "exit 0")], "containers": [shell("main", "sleep 0.5")]})).await;

        let early = node.wait("gate", "running", |pod| phase(pod) == "Running").await;
        assert!(!ready(&early));
        let conditions = early["status"]["conditions"].to_string();
        assert!(conditions.contains("containers with unready status: [main]"), "{conditions}");
        node.wait("gate", "Ready", ready).await;
        node.wait_event("gate", "Warning Unhealthy Readiness probe failed: ").await;
        node.wait("dies", "restarted", |pod| main_status(pod)["restartCount"] == 1).await;
        node.wait_event("dies", "Normal Killing Container main failed liveness probe, will be restarted").await;
        node.wait("http", "Ready", ready).await;
        node.wait("badhook", "restarted", |pod| main_status(pod)["restartCount"].as_i64() >= Some(1)).await;
        node.wait_event("badhook", "Warning FailedPostStartHook").await;
        let job = node.wait("job", "Succeeded", |pod| phase(pod) == "Succeeded").await;
        let states: Vec<String> = job["status"]["initContainerStatuses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|status| status["state"].to_string())
            .collect();
        assert!(states.iter().all(|state| state.contains("terminated")), "{states:?}");

        let hooks = node.wait("hooks", "Ready", ready).await;
        node.pods().delete("hooks", &Default::default()).await.unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while node.log(&hooks, "main", 0) != "started\nstopping\n" {
            assert!(Instant::now() < until, "{:?}", node.log(&hooks, "main", 0));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.wait("hooks", "gone", Value::is_null).await;
    });
}

#[test]
fn what_a_container_is_given() {
    on_a_node("given", |node| async move {
        let node = node.lock().await;
        let container = json!({"name": "main", "image": support::BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "echo $0 $A $IP; hostname; cat /etc/hosts | tail -1; id -u; cat /sub/file; cat /proc/1/oom_score_adj > /dev/null; exit 0"],
            "args": ["$(A)-arg"],
            "env": [{"name": "A", "value": "a"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"memory": "32Mi"}},
            "securityContext": {"runAsUser": 1234},
            "volumeMounts": [{"name": "data", "mountPath": "/sub", "subPath": "deep/er"}]});
        let init = shell("init", "mkdir -p /data/deep/er; echo from-init > /data/deep/er/file");
        let mut init = init;
        init["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        node.create(
            "given",
            json!({"restartPolicy": "Never", "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["alias"]}],
            "initContainers": [init], "containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]}),
        )
        .await;
        let missing = json!({"containers": [{"name": "main", "image": support::BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "env": [{"name": "V", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k"}}}]}]});
        node.create("missing", missing).await;
        let root = json!({"containers": [{"name": "main", "image": support::BUSYBOX, "imagePullPolicy": "IfNotPresent", "securityContext": {"runAsNonRoot": true}}]});
        node.create("root", root).await;

        let given = node.wait("given", "Succeeded", |pod| phase(pod) == "Succeeded").await;
        let ip = given["status"]["podIP"].as_str().unwrap();
        let expected = format!("a-arg a {ip}\ngiven\n192.0.2.1\talias\n1234\nfrom-init\n");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while node.log(&given, "main", 0) != expected {
            assert!(std::time::Instant::now() < deadline, "the log holds {:?}", node.log(&given, "main", 0));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(given["status"]["qosClass"], "Burstable");
        let waiting = |pod: &Value| main_status(pod)["state"]["waiting"].clone();
        let missing =
            node.wait("missing", "a config error", |pod| waiting(pod)["reason"] == "CreateContainerConfigError").await;
        assert_eq!(waiting(&missing)["message"], "configmap \"none\" not found");
        let root =
            node.wait("root", "a config error", |pod| waiting(pod)["reason"] == "CreateContainerConfigError").await;
        assert!(
            waiting(&root)["message"]
                .as_str()
                .unwrap()
                .starts_with("container has runAsNonRoot and image will run as root"),
            "{root}"
        );
    });
}

#[test]
fn containerd_may_die_and_static_pods_come_from_files() {
    on_a_node("faults", |node| async move {
        let mut node = node.lock().await;
        let sleep = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let manifest = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static"},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [shell("main", sleep)]}});
        let file = node.directory.join("manifests/static.json");
        std::fs::write(&file, manifest.to_string()).unwrap();
        let mirror = node.wait("static-node-1", "its mirror Ready", ready).await;
        assert!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string());

        node.create("kept", json!({"containers": [shell("main", sleep)]})).await;
        let before = node.wait("kept", "Ready", ready).await;
        node.kill_runtime();
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.create("after", json!({"containers": [shell("main", sleep)]})).await;
        node.wait_for("after", "Ready once containerd is back", Duration::from_secs(30), ready).await;
        let after = node.wait("kept", "still Ready", ready).await;
        assert_eq!(main_status(&after)["containerID"], main_status(&before)["containerID"]);
        assert_eq!(main_status(&after)["restartCount"], 0);

        // A pod that is deleted while no kubelet runs is ended by the next one.
        node.stop_kubelet().await;
        let now = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        node.pods().delete("after", &now).await.unwrap();
        node.start_kubelet();
        let cri = kubelet::cri::Runtime::new(&node.options.paths.socket);
        let uid = after["metadata"]["uid"].as_str().unwrap().to_owned();
        let until = Instant::now() + Duration::from_secs(15);
        loop {
            let left = cri.list_sandboxes(None).await.unwrap();
            let names: Vec<String> =
                left.iter().filter_map(|sandbox| sandbox.metadata.clone()).map(|meta| meta.name).collect();
            if !names.contains(&"after".to_owned()) {
                assert!(
                    left.iter().any(|sandbox| sandbox.labels.values().any(|value| *value == uid)),
                    "the kept pod stays"
                );
                break;
            }
            assert!(Instant::now() < until, "{names:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(main_status(&node.wait("kept", "still Ready", ready).await)["restartCount"], 0);

        std::fs::remove_file(&file).unwrap();
        node.wait("static-node-1", "gone", Value::is_null).await;
    });
}

#[test]
fn a_static_pod_that_is_put_back_while_it_ends_begins_again() {
    on_a_node("put-back", |node| async move {
        let node = node.lock().await;
        let slow = "trap 'sleep 2; exit 0' TERM; while :; do sleep 0.1; done";
        let manifest = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "slow"},
            "spec": {"terminationGracePeriodSeconds": 10, "containers": [shell("main", slow)]}});
        let file = node.directory.join("manifests/slow.json");
        std::fs::write(&file, manifest.to_string()).unwrap();
        let before = node.wait("slow-node-1", "its mirror Ready", ready).await;
        std::fs::remove_file(&file).unwrap();
        node.wait("slow-node-1", "its mirror gone", Value::is_null).await;
        std::fs::write(&file, manifest.to_string()).unwrap();
        let after = node.wait("slow-node-1", "Ready again", ready).await;
        assert_ne!(main_status(&after)["containerID"], main_status(&before)["containerID"]);
    });
}

#[test]
fn a_second_deletion_leaves_less_time_and_sidecars_still_end_last() {
    on_a_node("hasty", |node| async move {
        let node = node.lock().await;
        let directory = node.directory.join("order");
        std::fs::create_dir_all(&directory).unwrap();
        let ending = |name: &str, seconds: u32| {
            let end = format!("sleep {seconds}; echo {name} >> /order/ended; exit 0");
            let mut container = shell(name, &format!("trap '{end}' TERM; while :; do sleep 0.1; done"));
            container["volumeMounts"] = json!([{"name": "order", "mountPath": "/order"}]);
            container
        };
        let mut sidecar = ending("sidecar", 0);
        sidecar["restartPolicy"] = json!("Always");
        let volumes = json!([{"name": "order", "hostPath": {"path": directory}}]);
        let spec = json!({"terminationGracePeriodSeconds": 60, "initContainers": [sidecar],
            "containers": [ending("main", 3)], "volumes": volumes});
        node.create("hasty", spec).await;
        node.wait("hasty", "Ready", ready).await;
        for seconds in [60, 20] {
            let within = kube::api::DeleteParams { grace_period_seconds: Some(seconds), ..Default::default() };
            node.pods().delete("hasty", &within).await.unwrap();
        }
        node.wait("hasty", "gone", Value::is_null).await;
        assert_eq!(std::fs::read_to_string(directory.join("ended")).unwrap(), "main\nsidecar\n");
    });
}

#[test]
fn a_container_that_somebody_else_removes_runs_again_and_that_counts() {
    on_a_node("removed", |node| async move {
        let node = node.lock().await;
        node.create("web", json!({"containers": [shell("main", "while :; do sleep 0.1; done")]})).await;
        let before = node.wait("web", "Ready", ready).await;
        let id = main_status(&before)["containerID"].as_str().unwrap().trim_start_matches("containerd://").to_owned();
        let cri = kubelet::cri::Runtime::new(&node.options.paths.socket);
        cri.remove_container(&id).await.unwrap();
        let again = |pod: &Value| ready(pod) && main_status(pod)["containerID"] != main_status(&before)["containerID"];
        let after = node.wait("web", "Ready again", again).await;
        assert_eq!((phase(&after), main_status(&after)["restartCount"].as_i64()), ("Running", Some(1)));
    });
}
