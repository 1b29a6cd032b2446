//! Mount propagation between containers and the host, and mounts that are read-only all the way down.

use integration::{BUSYBOX, Lab};

use crate::{SOON, status_of};

#[test]
fn mounts() {
    let lab = Lab::up_with_shared_mounts("cmount", &[]);
    let host = tempfile::tempdir().unwrap();
    let directory = host.path().display().to_string();
    lab.apply(&include_str!("mounts.yaml").replace("BUSYBOX", BUSYBOX).replace("/HOSTDIR", &directory));
    lab.wait("pod/propagates", "condition=Ready", 60);
    let inside =
        |container: &str, script: &str| lab.kubectl(&["exec", "propagates", "-c", container, "--", "sh", "-c", script]);
    let on_host = |script: &str| lab.exec_with_mounts("node-1", &["sh", "-c", script]).expect_ok();

    // What a container mounts is seen by the host, and by whom the host gives it to.
    inside("gives", "mkdir /v/inside && mount -t tmpfs none /v/inside && touch /v/inside/file");
    assert_eq!(on_host(&format!("ls {directory}/inside")), "file\n");
    assert_eq!(inside("takes", "ls /v/inside"), "file\n");
    assert_eq!(inside("alone", "ls /v/inside"), "");

    // What the host mounts is seen by both.
    on_host(&format!(
        "mkdir {directory}/outside && mount -t tmpfs none {directory}/outside && touch {directory}/outside/file"
    ));
    for (container, files) in [("gives", "file\n"), ("takes", "file\n"), ("alone", "")] {
        assert_eq!(inside(container, "ls /v/outside"), files, "{container}");
    }

    lab.kubectl(&["delete", "pod", "propagates", "--timeout=60s"]);
    assert_eq!(on_host(&format!("ls {directory}/inside")), "", "it was unmounted with its last container");
    on_host(&format!("umount {directory}/outside"));

    recursive(&lab);
}

fn recursive(lab: &Lab) {
    let node = lab.get(&["nodes"])["items"][0].clone();
    let handlers = node["status"]["runtimeHandlers"].as_array().cloned().unwrap_or_default();
    let works = handlers.iter().any(|handler| {
        handler["name"].as_str().unwrap_or_default().is_empty()
            && handler["features"]["recursiveReadOnlyMounts"] == true
    });
    lab.wait("pod/recursive-if-possible", "condition=Ready", 60);
    let mode = |pod: &str| status_of(&lab.get(&["pod", pod]), "main")["volumeMounts"][0]["recursiveReadOnly"].clone();
    assert_eq!(mode("recursive-if-possible"), if works { "Enabled" } else { "Disabled" });
    lab.kubectl(&["exec", "recursive-if-possible", "--", "sh", "-c", "! touch /v/file 2> /dev/null"]);
    if works {
        lab.wait("pod/recursive", "condition=Ready", 60);
        assert_eq!(mode("recursive"), "Enabled");
        return;
    }
    lab.eventually("a runtime that cannot says so", SOON, || {
        let waiting = status_of(&lab.get(&["pod", "recursive"]), "main")["state"]["waiting"].clone();
        let message = "failed to resolve recursive read-only mode: volume \"v\" requested recursive read-only mode, but it is not supported by the runtime";
        let said = waiting["reason"] == "CreateContainerConfigError" && waiting["message"] == message;
        if said { Ok(()) } else { Err(waiting.to_string()) }
    });
}
