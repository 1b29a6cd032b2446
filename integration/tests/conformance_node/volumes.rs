//! Volumes of running pods: what is updated in them, what binds, what is too large, what is refused.

use integration::{BUSYBOX, Lab};
use serde_json::{Value, json};

use crate::{SOON, all_succeed_of, status_of};

#[test]
fn volumes() {
    let lab = Lab::up("cvol", &[]);
    let host = tempfile::tempdir().unwrap();
    std::fs::create_dir(host.path().join("local")).unwrap();
    let yaml = include_str!("volumes.yaml").replace("BUSYBOX", BUSYBOX);
    lab.apply(&yaml.replace("/HOSTDIR", &host.path().display().to_string()));
    lab.wait("pod/updates", "condition=Ready", 60);

    // the pod waits for all of these, and fails if what must stay does not
    lab.kubectl(&["patch", "configmap", "map", "-p", r#"{"data":{"a":"2","b":null,"c":"new"}}"#]);
    lab.kubectl(&["patch", "secret", "hidden", "-p", r#"{"stringData":{"a":"2"}}"#]);
    lab.kubectl(&["create", "configmap", "later", "--from-literal=a=2"]);
    lab.kubectl(&["create", "secret", "generic", "later", "--from-literal=a=2"]);
    lab.kubectl(&["label", "pod", "updates", "colour=red", "--overwrite"]);
    lab.kubectl(&["annotate", "pod", "updates", "note=second", "--overwrite"]);
    lab.try_kubectl(&["patch", "configmap", "fixed", "-p", r#"{"data":{"a":"2"}}"#]).expect_failure("immutable");

    // an expansion that cannot be is told, and mends itself
    let waiting = |name: &str, message: &str| {
        lab.eventually(&format!("{name} says why it waits"), SOON, || {
            let waiting = status_of(&lab.get(&["pod", name]), "main")["state"]["waiting"].clone();
            let said = waiting["message"].as_str().unwrap_or_default().contains(message);
            if waiting["reason"] == "CreateContainerConfigError" && said { Ok(()) } else { Err(waiting.to_string()) }
        });
    };
    waiting("expands-up", "must not contain '..'");
    waiting("expands-absolute", "must not be an absolute path");
    lab.kubectl(&["annotate", "pod", "expands-later", "path=mended", "--overwrite"]);
    for name in ["expands-up", "expands-absolute"] {
        lab.kubectl(&["delete", "pod", name, "--now"]);
    }

    // host paths that are not what they must be
    for (name, message) in [
        ("host-directory", "/none is not a directory"),
        ("host-file", "/none is not a file"),
        ("host-socket", "is not a socket file"),
        ("host-block", "is not a block device"),
    ] {
        lab.eventually(&format!("{name} says why it does not start"), SOON, || {
            let selector = format!("--field-selector=involvedObject.name={name},reason=FailedMount");
            let events = lab.kubectl(&["get", "events", &selector, "-o", "wide"]);
            if events.contains(message) { Ok(()) } else { Err(events) }
        });
        lab.kubectl(&["delete", "pod", name, "--now"]);
    }

    // volumes of CSI drivers, of which there is none here
    for (name, message) in [
        (
            "csi-unknown",
            "MountVolume.NewMounter initialization failed for volume \"v\" : volume mode \"Ephemeral\" not supported by driver unknown.example.com (no CSIDriver object)",
        ),
        (
            "csi-persistent",
            "MountVolume.NewMounter initialization failed for volume \"v\" : volume mode \"Ephemeral\" not supported by driver persistent.example.com (only supports [\"Persistent\"])",
        ),
        (
            "csi-inline",
            "MountVolume.SetUp failed for volume \"v\" : kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name inline.example.com not found in the list of registered CSI drivers",
        ),
    ] {
        lab.eventually(&format!("{name} says why it does not start"), SOON, || {
            let selector = format!("--field-selector=involvedObject.name={name},reason=FailedMount");
            let events = lab.kubectl(&["get", "events", &selector, "-o", "jsonpath={.items[*].message}"]);
            if events.contains(message) { Ok(()) } else { Err(events) }
        });
        lab.kubectl(&["delete", "pod", name, "--now"]);
    }

    // what uses more of the disk than it may is evicted
    for (name, message) in [
        ("large-volume", "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "),
        ("large-container", "Container main exceeded its local ephemeral storage limit \"1Mi\". "),
    ] {
        let pod: Value = lab.eventually(&format!("{name} is evicted"), SOON, || {
            let pod = lab.get(&["pod", name]);
            if pod["status"]["phase"] == "Failed" { Ok(pod) } else { Err(pod["status"].to_string()) }
        });
        let status = &pod["status"];
        let pod_wide = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ";
        let said = status["message"].as_str().unwrap_or_default();
        assert_eq!(status["reason"], "Evicted", "{status}");
        assert!(said == message || name == "large-container" && said == pod_wide, "{status}");
        lab.kubectl(&["delete", "pod", name]);
    }
    lab.apply(&many_config_maps());
    all_succeed_of(&lab);
    assert_eq!(std::fs::read_to_string(host.path().join("static/file")).unwrap(), "claim\n");
    assert_eq!(std::fs::read_to_string(host.path().join("local/file")).unwrap(), "generic\n");
}

/// Fifty ConfigMaps, and five pods that show them all.
fn many_config_maps() -> String {
    let maps: Vec<String> = (0..50).map(|number| format!("many-{number}")).collect();
    let objects = maps.iter().map(
        |name| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": name}}),
    );
    let volumes: Vec<Value> = maps.iter().map(|name| json!({"name": name, "configMap": {"name": name}})).collect();
    let mounts: Vec<Value> =
        maps.iter().map(|name| json!({"name": name, "mountPath": format!("/maps/{name}")})).collect();
    let script = "for map in /maps/*; do test \"$(cat $map/key)\" = \"${map##*/}\" || exit 1; done; test $(ls /maps | wc -l) = 50";
    let pods = (0..5).map(|number| {
        let container = json!({"name": "main", "image": BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script], "volumeMounts": mounts});
        let spec = json!({"restartPolicy": "Never", "volumes": volumes, "containers": [container]});
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("many-{number}")}, "spec": spec})
    });
    let items: Vec<Value> = objects.chain(pods).collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}
