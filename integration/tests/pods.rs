//! What a pod may be made of, and what people do to running ones.
//!
//! Each test has a lab of its own and tells several short stories in it, each in a namespace.

use std::time::Duration;

use integration::{BUSYBOX, Lab, NGINX};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn pod(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{name: {name}}}}}\nspec:\n{spec}\n")
}

/// One busybox container running `script`, with more YAML for the container (indented by 4).
fn shell(name: &str, script: &str, more: &str) -> String {
    pod(
        name,
        &format!(
            "  terminationGracePeriodSeconds: 2\n  restartPolicy: Never\n  containers:\n  - name: main\n    image: {BUSYBOX}\n    imagePullPolicy: IfNotPresent\n    command: [sh, -c, {script:?}]\n{more}"
        ),
    )
}

#[track_caller]
fn finished(lab: &Lab, name: &str) -> String {
    lab.eventually(&format!("pod {name} finishes"), SOON, || {
        let pod = lab.get(&["pod", name]);
        match pod["status"]["phase"].as_str() {
            Some("Succeeded" | "Failed") => Ok(()),
            _ => Err(pod["status"].to_string()),
        }
    });
    lab.kubectl(&["logs", name])
}

#[track_caller]
fn container_state(lab: &Lab, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    lab.eventually(&format!("the container of {name}"), SOON, || {
        let pod = lab.get(&["pod", name]);
        let status = pod["status"]["containerStatuses"][0].clone();
        if wanted(&status) { Ok(status) } else { Err(pod["status"].to_string()) }
    })
}

#[test]
fn containers_get_their_environment_and_volumes() {
    let lab = Lab::up("env", &[]);
    lab.kubectl(&["create", "configmap", "settings", "--from-literal=colour=blue", "--from-literal=size=10"]);
    lab.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=password=s3cret"]);
    lab.kubectl(&["create", "service", "clusterip", "backend", "--tcp=5432"]);
    lab.apply(&shell(
        "env",
        "env; cat /config/colour /secret/password /info/labels /all/colour /all/name; ls -ln /config/..data/; mount | grep /memory; \
         cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; cut -d. -f2 /var/run/secrets/kubernetes.io/serviceaccount/token | wc -c; hostname; cat /etc/resolv.conf /etc/hosts",
        r#"
    env:
    - {name: PLAIN, value: "x"}
    - {name: EXPANDED, value: "$(PLAIN)-$(MISSING)-$$(PLAIN)"}
    - {name: MY_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: MY_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: MY_NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: MY_CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: hidden, key: password}}}
    - {name: NONE, valueFrom: {configMapKeyRef: {name: absent, key: colour, optional: true}}}
    envFrom: [{prefix: P_, configMapRef: {name: settings}}]
    resources: {requests: {cpu: 50m, memory: 16Mi}}
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: secret, mountPath: /secret}
    - {name: info, mountPath: /info}
    - {name: all, mountPath: /all}
    - {name: memory, mountPath: /memory}
    - {name: disk, mountPath: /disk}
  hostname: myhost
  hostAliases: [{ip: 10.1.2.3, hostnames: [alias.example]}]
  volumes:
  - {name: config, configMap: {name: settings, defaultMode: 0400}}
  - {name: secret, secret: {secretName: hidden}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - name: all
    projected:
      sources:
      - configMap: {name: settings}
      - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: disk, emptyDir: {}}"#,
    ));
    let text = finished(&lab, "env");
    for line in [
        "PLAIN=x",
        "EXPANDED=x-$(MISSING)-$(PLAIN)",
        "MY_NAME=env",
        "MY_NODE=node-1",
        "MY_CPU=50",
        "COLOUR=blue",
        "PASSWORD=s3cret",
        "P_size=10",
        "BACKEND_SERVICE_PORT=5432",
        "KUBERNETES_SERVICE_HOST=10.43.0.1",
        "MY_IP=10.42.",
        "myhost",
        "tmpfs",
        "name=\"env\"",
        "nameserver 10.43.0.10",
        "default.svc.cluster.local svc.cluster.local cluster.local",
        "options ndots:5",
        "alias.example",
        "-r--------",
    ] {
        assert!(text.contains(line), "{line:?} is missing in:\n{text}");
    }
    assert!(!text.contains("NONE="), "an optional reference to nothing sets nothing");
}

#[test]
fn init_containers_hooks_and_restarts() {
    let lab = Lab::up("life", &[]);
    lab.apply(&pod(
        "ordered",
        &format!(
            r#"  restartPolicy: Never
  volumes: [{{name: v, emptyDir: {{}}}}]
  initContainers:
  - {{name: one, image: {BUSYBOX}, imagePullPolicy: IfNotPresent, command: [sh, -c, "echo one >> /v/log"], volumeMounts: [{{name: v, mountPath: /v}}]}}
  - {{name: two, image: {BUSYBOX}, imagePullPolicy: IfNotPresent, command: [sh, -c, "echo two >> /v/log"], volumeMounts: [{{name: v, mountPath: /v}}]}}
  - {{name: side, restartPolicy: Always, image: {BUSYBOX}, imagePullPolicy: IfNotPresent, command: [sh, -c, "echo side >> /v/log; exec sleep 3600"], volumeMounts: [{{name: v, mountPath: /v}}], startupProbe: {{exec: {{command: [grep, side, /v/log]}}, periodSeconds: 1}}}}
  containers:
  - {{name: main, image: {BUSYBOX}, imagePullPolicy: IfNotPresent, command: [sh, -c, "cat /v/log"], volumeMounts: [{{name: v, mountPath: /v}}]}}"#
        ),
    ));
    lab.wait("pod/ordered", "jsonpath={.status.phase}=Succeeded", 60);
    assert_eq!(lab.kubectl(&["logs", "ordered", "-c", "main"]), "one\ntwo\nside\n");

    // a container that fails is restarted with back-off, and its last end is told
    let mut yaml = shell("failing", "echo about to fail; exit 3", "");
    yaml = yaml.replace("restartPolicy: Never", "restartPolicy: Always");
    lab.apply(&yaml);
    let status = container_state(&lab, "failing", |status| {
        status["restartCount"].as_u64() > Some(0) && status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error");
    assert!(lab.kubectl(&["logs", "failing", "--previous"]).contains("about to fail"));

    // a liveness probe that fails restarts; a readiness probe that fails only takes out of service
    lab.apply(
        &shell(
            "probed",
            "exec sleep 3600",
            // Good from the container's first moment: one that its own script made good would race with the first probe.
            r#"
    livenessProbe: {exec: {command: [test, "!", -e, /tmp/dead]}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}"#,
        )
        .replace("restartPolicy: Never", "restartPolicy: Always"),
    );
    container_state(&lab, "probed", |status| status["started"] == true && status["ready"] == false);
    lab.kubectl(&["exec", "probed", "--", "touch", "/tmp/ready"]);
    lab.wait("pod/probed", "condition=Ready", 30);
    lab.kubectl(&["exec", "probed", "--", "touch", "/tmp/dead"]);
    container_state(&lab, "probed", |status| status["restartCount"].as_u64() == Some(1));
    lab.eventually("the probe's failure is an event", SOON, || {
        let events = lab.kubectl(&["get", "events", "--field-selector=involvedObject.name=probed"]);
        if events.contains("Liveness probe failed") && events.contains("failed liveness probe, will be restarted") {
            Ok(())
        } else {
            Err(events)
        }
    });

    // hooks, and a container that ignores SIGTERM
    lab.apply(&shell(
        "hooked",
        "trap '' TERM; while true; do sleep 1; done",
        r#"
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo started > /tmp/hook"]}}
      preStop: {exec: {command: [sh, -c, "echo stopping > /proc/1/fd/1"]}}"#,
    ));
    lab.wait("pod/hooked", "condition=Ready", 30);
    assert_eq!(lab.kubectl(&["exec", "hooked", "--", "cat", "/tmp/hook"]), "started\n");
    let before = std::time::Instant::now();
    lab.kubectl(&["delete", "pod", "hooked", "--timeout=30s"]);
    assert!(before.elapsed() > Duration::from_millis(1500), "it had its grace period of 2 s");
}

#[test]
fn logs_exec_attach_copy_and_port_forward() {
    let lab = Lab::up("talk", &[]);
    lab.apply(&shell(
        "talker",
        "for i in 1 2 3 4 5; do echo line $i; done; echo problem >&2; cat; sleep 3600",
        "    stdin: true\n",
    ));
    lab.wait("pod/talker", "condition=Ready", 30);
    lab.eventually("all lines are logged", SOON, || {
        let text = lab.kubectl(&["logs", "talker"]);
        if text.lines().count() == 6 { Ok(()) } else { Err(text) }
    });
    assert_eq!(lab.kubectl(&["logs", "talker", "--tail=1"]).lines().count(), 1);
    assert!(lab.kubectl(&["logs", "talker"]).contains("problem"));
    assert!(lab.kubectl(&["logs", "talker", "--timestamps", "--tail=1"]).starts_with("20"));

    for version in ["1.27", "1.33"] {
        let kubectl = integration::kubectl_of_version(version);
        let Some(kubectl) = kubectl else { continue };
        let run = |arguments: &[&str], input: &str| lab.kubectl_with(&kubectl, arguments, input);
        assert_eq!(run(&["exec", "-i", "talker", "--", "cat"], "hello\n").expect_ok(), "hello\n", "kubectl {version}");
        let failed = run(&["exec", "talker", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], "");
        assert_eq!((failed.code, failed.stdout.as_str()), (Some(7), "out\n"), "{failed:?}");
        assert!(failed.stderr.contains("err"), "{failed:?}");
    }
    lab.try_kubectl(&["exec", "talker", "--", "no-such-program"]).expect_failure("no-such-program");

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    let content = "some text\n".repeat(10_000);
    std::fs::write(&file, &content).unwrap();
    lab.kubectl(&["cp", file.to_str().unwrap(), "talker:/tmp/copied"]);
    let back = directory.path().join("back");
    lab.kubectl(&["cp", "talker:/tmp/copied", back.to_str().unwrap()]);
    assert!(std::fs::read_to_string(&back).unwrap() == content, "what came back is what was sent");

    lab.kubectl(&["run", "web", &format!("--image={NGINX}"), "--image-pull-policy=IfNotPresent"]);
    lab.wait("pod/web", "condition=Ready", 30);
    let mut forward = lab.spawn_kubectl(&["port-forward", "pod/web", ":80"]);
    let port = forward.line_with("Forwarding from 127.0.0.1:");
    let port = port.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    let url = format!("http://127.0.0.1:{port}/");
    let page = || integration::command("curl", &["-sS", "--max-time", "10", &url], &[], "");
    // A container without a probe is ready before what is in it listens.
    lab.eventually("nginx listens", SOON, || {
        let page = page();
        if page.ok { Ok(()) } else { Err(page.stderr) }
    });
    for _ in 0..3 {
        assert!(page().expect_ok().contains("nginx"));
    }

    let mut follow = lab.spawn_kubectl(&["logs", "-f", "talker"]);
    follow.line_with("line 5");
    let attached = lab.kubectl_with(
        &integration::kubectl(),
        &["attach", "-i", "talker", "--pod-running-timeout=10s"],
        "through attach\n",
    );
    follow.line_with("through attach");
    assert!(attached.stdout.contains("through attach") || attached.ok, "{attached:?}");
}

#[test]
fn what_cannot_start_says_why() {
    let lab = Lab::up("wrong", &[]);
    lab.kubectl(&["run", "no-image", "--image=skiff.test/none:latest", "--restart=Never"]);
    lab.apply(&shell("no-command", "true", "").replace("[sh, -c, \"true\"]", "[/no/such/command]"));
    lab.apply(&shell("no-config", "true", "    envFrom: [{configMapRef: {name: absent}}]\n"));
    lab.apply(&shell("never", "true", "").replace("IfNotPresent", "Never").replace(BUSYBOX, "skiff.test/none:latest"));
    lab.apply(&shell("too-big", "true", "    resources: {requests: {cpu: \"1000\"}}\n"));

    let waiting = |name: &str, reasons: &[&str]| {
        container_state(&lab, name, |status| {
            let state = &status["state"];
            let reason = state["waiting"]["reason"].as_str().or(state["terminated"]["reason"].as_str());
            reason.is_some_and(|reason| reasons.contains(&reason))
        })
    };
    waiting("no-image", &["ErrImagePull", "ImagePullBackOff"]);
    let status = waiting("no-command", &["StartError", "RunContainerError", "ContainerCannotRun"]);
    assert!(status["state"].to_string().contains("/no/such/command"), "{status}");
    let status = waiting("no-config", &["CreateContainerConfigError"]);
    assert_eq!(status["state"]["waiting"]["message"], "configmap \"absent\" not found");
    waiting("never", &["ErrImageNeverPull"]);
    lab.eventually("the scheduler says why", SOON, || {
        let pod = lab.get(&["pod", "too-big"]);
        let condition = &pod["status"]["conditions"][0];
        let message = condition["message"].as_str().unwrap_or_default();
        if condition["reason"] == "Unschedulable" && message.contains("0/1 nodes are available: 1 Insufficient cpu.") {
            Ok(())
        } else {
            Err(pod["status"].to_string())
        }
    });
    // and mends itself when the cause is gone
    lab.kubectl(&["create", "configmap", "absent"]);
    lab.wait("pod/no-config", "jsonpath={.status.phase}=Succeeded", 90);
}

#[test]
fn static_pods_run_and_are_mirrored() {
    let lab = Lab::up("static", &[]);
    let node = lab.member("node-1");
    let manifests = std::path::Path::new(node["dataDir"].as_str().unwrap()).join("manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let path = manifests.join("pinned.yaml");
    std::fs::write(&path, shell("pinned", "sleep 3600", "").replace("restartPolicy: Never", "restartPolicy: Always"))
        .unwrap();
    lab.eventually("the mirror pod runs", SOON, || {
        let answer = lab.try_kubectl(&["get", "pod", "pinned-node-1", "-o", "jsonpath={.status.phase}"]);
        if answer.stdout == "Running" { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    std::fs::remove_file(&path).unwrap();
    lab.eventually("the mirror pod goes", SOON, || {
        let answer = lab.try_kubectl(&["get", "pod", "pinned-node-1"]);
        if answer.ok { Err(answer.stdout) } else { Ok(()) }
    });
}
