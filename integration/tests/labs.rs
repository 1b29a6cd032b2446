//! Labs as a tool: side by side, twice, after everything was killed.

use std::time::Duration;

use integration::{Lab, command, skiff};

#[test]
fn two_labs_side_by_side_do_not_meet() {
    let first = Lab::up_without_images("one", &[]);
    let second = Lab::up_without_images("two", &[]);
    assert_ne!(first.address("server"), second.address("server"));
    first.kubectl(&["create", "namespace", "only-in-first"]);
    second.try_kubectl(&["get", "namespace", "only-in-first"]).expect_failure("not found");
}

#[test]
fn up_twice_is_the_same_lab_and_may_add_nodes() {
    let lab = Lab::up_without_images("twice", &[]);
    let server = lab.member("server")["pid"].clone();
    command(skiff(), &["lab", "up", &lab.name, "--nodes", "2"], &[], "").expect_ok();
    assert_eq!(lab.member("server")["pid"], server, "the server went on");
    assert_eq!(lab.get(&["nodes"])["items"].as_array().unwrap().len(), 2);
    command(skiff(), &["lab", "up", &lab.name, "--proxy-mode", "iptables"], &[], "")
        .expect_failure("--proxy-mode nftables");
}

#[test]
fn down_after_everything_was_killed_leaves_nothing() {
    let lab = Lab::up("killed", &["--nodes", "2"]);
    lab.kubectl(&["create", "deployment", "web", &format!("--image={}", integration::NGINX), "--replicas=2"]);
    lab.kubectl(&[
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/spec/template/spec/containers/0/imagePullPolicy","value":"IfNotPresent"}]"#,
    ]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    for member in ["server", "node-1", "node-2"] {
        lab.node("kill", member).expect_ok();
    }
    // The lab's own check, when it is dropped, looks for what is left.
}

#[test]
fn wrong_names_and_flags_are_refused_with_advice() {
    for (arguments, code, words) in [
        (&["lab", "up", "Bad_Name"][..], 2, "lower case letters"),
        (&["lab", "up", "x", "--store", "foo"][..], 2, "embedded"),
        (&["lab", "up", "x", "--server-arg=--frobnicate"][..], 2, "frobnicate"),
        (&["lab", "up", "x", "--nodes", "0"][..], 2, "--hollow-nodes"),
        (&["lab", "up", "x", "--hollow-nodes", "256"][..], 2, "--node-cidr-mask"),
        (&["lab", "up", "x", "--proxy-mode", "ipvs"][..], 2, "nftables"),
        (&["lab", "kubeconfig", "no-such-lab"][..], 1, "skiff lab up"),
        (&["lab", "exec", "no-such-lab/node-1", "--", "true"][..], 1, "there is no lab"),
        (&["frobnicate"][..], 2, "Usage"),
    ] {
        let output = command(skiff(), arguments, &[], "");
        assert_eq!(output.code, Some(code), "{output:?}");
        output.expect_failure(words);
    }
}

#[test]
fn a_node_that_cannot_start_is_named_at_once() {
    let name = format!("unfit-{}", std::process::id() % 100_000);
    let providers = ["config", "bin-dir"].map(|what| format!("--node-arg=--image-credential-provider-{what}=/no/such"));
    for (arguments, words) in [
        (&[&*providers[0], &*providers[1]][..], "plugin binary directory /no/such did not exist"),
        (&["--server-arg=--anonymous-auth=false"][..], "answers nobody without credentials"),
    ] {
        let up = command(skiff(), &[&["lab", "up", &name][..], arguments].concat(), &[], "");
        command(skiff(), &["lab", "down", &name], &[], "").expect_ok();
        let told = up.expect_failure("node-1 ended");
        assert_eq!(told.matches(words).count(), 1, "{told}");
    }
}

/// `ip netns add` mounts `/run/netns` on itself where that is no mount yet. Tried in a mount namespace where it
/// is none.
#[test]
fn a_namespace_that_is_added_later_keeps_no_lab_from_going() {
    let name = format!("added-{}", std::process::id() % 100_000);
    let script = r#"
        while umount -l /run/netns 2>/dev/null; do :; done
        "$1" lab up "$2" || exit
        ip netns add "$2-other"
        "$1" lab down "$2"; code=$?
        ip netns delete "$2-other"
        exit $code"#;
    let program = skiff().display().to_string();
    let arguments = ["--mount", "--propagation", "private", "sh", "-c", script, "sh", &program, &name];
    command("unshare", &arguments, &[], "").expect_ok();
    let left = std::path::Path::new("/run/netns").join(format!("skiff-{name}-server"));
    assert!(!left.exists(), "{}", left.display());
}

/// Scheduler, controllers and quotas at a size that this machine could not run.
#[test]
fn hollow_nodes_take_pods_and_keep_real_ones_off() {
    let lab = Lab::up_without_images("hollow", &["--hollow-nodes", "30"]);
    assert_eq!(lab.get(&["nodes"])["items"].as_array().map(Vec::len), Some(31));
    let hollow = r#"tolerations: [{key: skiff/hollow, operator: Exists}], nodeSelector: {skiff/hollow: "true"}"#;
    let containers = "containers: [{name: c, image: nowhere}]";
    lab.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: many}}
spec:
  replicas: 150
  selector: {{matchLabels: {{a: b}}}}
  template: {{metadata: {{labels: {{a: b}}}}, spec: {{{hollow}, {containers}}}}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: work}}
spec:
  completions: 20
  parallelism: 5
  template: {{spec: {{{hollow}, restartPolicy: Never, {containers}}}}}
"
    ));
    lab.kubectl(&["rollout", "status", "deployment/many", "--timeout=120s"]);
    lab.wait("job/work", "condition=Complete", 60);
    let pods = lab.get(&["pods", "-l", "a=b"])["items"].as_array().cloned().unwrap_or_default();
    let text =
        |pod: &serde_json::Value, path: &str| pod.pointer(path).and_then(|v| v.as_str()).unwrap_or("").to_owned();
    let addresses: std::collections::BTreeSet<_> = pods.iter().map(|pod| text(pod, "/status/podIP")).collect();
    assert_eq!(addresses.len(), 150, "every pod has an address of its own");
    assert!(pods.iter().all(|pod| text(pod, "/spec/nodeName").starts_with("hollow-")));

    // A pod that does not ask for them runs on the real node, or not at all.
    lab.kubectl(&["cordon", "node-1"]);
    lab.kubectl(&["run", "real", "--image=nowhere"]);
    lab.eventually("the taint keeps it away", Duration::from_secs(30), || {
        let message = lab.kubectl(&["get", "pod", "real", "-o", "jsonpath={.status.conditions[0].message}"]);
        if message.contains("30 node(s) had untolerated taint") { Ok(()) } else { Err(message) }
    });

    // They die and come back as others do.
    lab.node("kill", "hollow").expect_ok();
    lab.node("start", "hollow").expect_ok();
    lab.kubectl(&["delete", "deployment/many", "--timeout=60s"]);
    lab.kubectl(&["wait", "pod", "-l", "a=b", "--for=delete", "--timeout=60s"]);
}

#[test]
fn a_reader_that_goes_is_no_panic() {
    let line = format!("for n in 1 2 3 4 5; do {} check | true; done", skiff().display());
    let output = command("sh", &["-c", &line], &[], "");
    assert!(!output.stderr.contains("panicked"), "{output:?}");
}
