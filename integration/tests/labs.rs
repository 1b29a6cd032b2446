//! Labs as a tool: side by side, twice, after everything was killed.

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
        (&["lab", "up", "Bad_Name"][..], 1, "lower case letters"),
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
fn a_reader_that_goes_is_no_panic() {
    let line = format!("for n in 1 2 3 4 5; do {} check | true; done", skiff().display());
    let output = command("sh", &["-c", &line], &[], "");
    assert!(!output.stderr.contains("panicked"), "{output:?}");
}
