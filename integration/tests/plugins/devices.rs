//! Device plugins.

use integration::Lab;
use integration::plugins::DevicePlugin;
use serde_json::json;

use crate::{SOON, delete, devices_are, event, exec, gone, kill_agent, pod, root};

const GPU: &str = "example.com/gpu";

/// What the node says it has of the plugin's resource: all, and what works.
#[track_caller]
fn has(lab: &Lab, all: &str, working: &str) {
    lab.eventually(&format!("the node has {working} of {all} devices"), SOON, || {
        let status = lab.get(&["node", "node-1"])["status"].clone();
        let (capacity, allocatable) = (&status["capacity"][GPU], &status["allocatable"][GPU]);
        if capacity == all && allocatable == working { Ok(()) } else { Err(format!("{capacity} {allocatable}")) }
    });
}

fn with_devices(name: &str, count: u32) -> String {
    pod(name, "sleep 3600", &format!(", resources: {{limits: {{{GPU}: {count}}}}}"), "")
}

#[test]
fn device_plugins() {
    let lab = Lab::up("devices", &[]);
    let root = root(&lab);
    let plugin = DevicePlugin::start(GPU, &root, &[("gpu-0", true), ("gpu-1", true)]);
    has(&lab, "2", "2");
    let wrong = plugin.register("v1alpha1").unwrap_err();
    assert!(wrong.message().contains("requested API version \"v1alpha1\" is not supported by kubelet"), "{wrong}");

    lab.apply(&with_devices("one", 1));
    lab.wait("pod/one", "condition=Ready", 60);
    assert_eq!(exec(&lab, "one", "echo $DEVICES $RESOURCE"), format!("gpu-1 {GPU}\n"), "the plugin prefers the last");
    assert_eq!(exec(&lab, "one", "test -c /dev/test-device && test -f /plugin-mount/passwd && echo there"), "there\n");
    assert_eq!(plugin.record.all(), ["allocate gpu-1", "prestart gpu-1"]);

    // The node refuses what it cannot give.
    lab.apply(&with_devices("two", 2));
    let refused = lab.eventually("a pod with too many devices is refused", SOON, || {
        let status = lab.get(&["pod", "two"])["status"].clone();
        if status["phase"] == "Failed" { Ok(status) } else { Err(status.to_string()) }
    });
    let why = format!(
        "Allocate failed due to requested number of devices unavailable for {GPU}. Requested: 2, Available: 1, which is unexpected"
    );
    assert_eq!(refused["reason"], "UnexpectedAdmissionError");
    assert_eq!(refused["message"], format!("Pod was rejected: {why}"));
    event(&lab, "two", "UnexpectedAdmissionError", &why);

    let of_one = |health: &str| json!([{"name": GPU, "resources": [{"resourceID": "gpu-1", "health": health}]}]);
    devices_are(&lab, "one", &of_one("Healthy"));
    plugin.say(&[("gpu-0", true), ("gpu-1", false)]);
    devices_are(&lab, "one", &of_one("Unhealthy"));
    plugin.say(&[("gpu-0", false), ("gpu-1", true)]);
    has(&lab, "2", "1");
    devices_are(&lab, "one", &of_one("Healthy"));
    plugin.say(&[("gpu-0", true), ("gpu-1", true)]);
    has(&lab, "2", "2");

    // After a restart nothing is there until the plugin is back; who has what is known.
    kill_agent(&lab);
    lab.node("start", "node-1").expect_ok();
    lab.wait("node/node-1", "condition=Ready", 60);
    has(&lab, "0", "0");
    drop(plugin);
    let plugin = DevicePlugin::start(GPU, &root, &[("gpu-0", true), ("gpu-1", true)]);
    has(&lab, "2", "2");
    assert_eq!(exec(&lab, "one", "echo $DEVICES"), "gpu-1\n");
    lab.apply(&with_devices("other", 1));
    lab.wait("pod/other", "condition=Ready", 60);
    assert_eq!(exec(&lab, "other", "echo $DEVICES"), "gpu-0\n", "the first is taken");

    delete(&lab, "one");
    gone(&lab, "pod/one");
    lab.apply(&with_devices("next", 1));
    lab.wait("pod/next", "condition=Ready", 60);
    assert_eq!(exec(&lab, "next", "echo $DEVICES"), "gpu-1\n", "it came free");
    drop(plugin);
    has(&lab, "2", "0");
}
