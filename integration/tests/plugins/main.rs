//! Drivers that register with a node: storage, devices, claimed resources; and those who ask it for its
//! pods. Each test has one lab with real containers; the drivers run beside it, on the sockets that
//! drivers in pods would make.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

mod devices;
mod disks;
mod pods;
mod resources;
mod volumes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::plugins::Record;
use integration::{BUSYBOX, Lab, command};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// The kubelet's directory of the lab's node.
fn root(lab: &Lab) -> PathBuf {
    PathBuf::from(lab.member("node-1")["dataDir"].as_str().unwrap()).join("agent/kubelet")
}

/// A pod with the given rest of its spec; its container `c` runs a script.
fn pod(name: &str, script: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: node-1\n  terminationGracePeriodSeconds: 1\n  containers: [{{name: c, image: {BUSYBOX}, imagePullPolicy: IfNotPresent, command: [sh, -c, \"{script}\"]{container}}}]\n{spec}\n---\n"
    )
}

#[track_caller]
fn event(lab: &Lab, object: &str, reason: &str, words: &str) {
    lab.eventually(&format!("{object} has an event {reason}: {words}"), SOON, || {
        let fields = format!("--field-selector=involvedObject.name={object},reason={reason}");
        let events = lab.kubectl(&["get", "events", &fields, "-o", "jsonpath={.items[*].message}"]);
        if events.contains(words) { Ok(()) } else { Err(events) }
    });
}

#[track_caller]
fn said(lab: &Lab, record: &Record, start: &str) -> String {
    lab.eventually(&format!("the driver is told: {start}"), SOON, || {
        let all = record.all();
        all.iter().find(|line| line.starts_with(start)).cloned().ok_or_else(|| format!("{all:#?}"))
    })
}

#[track_caller]
fn gone(lab: &Lab, object: &str) {
    lab.eventually(&format!("{object} is gone"), SOON, || {
        let left = lab.try_kubectl(&["get", object, "-o", "yaml"]);
        if left.stderr.contains("not found") { Ok(()) } else { Err(left.stdout + &left.stderr) }
    });
}

fn delete(lab: &Lab, pod: &str) {
    lab.kubectl(&["delete", "pod", pod, "--wait=false"]);
}

/// Ends the agent, not its pods.
fn kill_agent(lab: &Lab) {
    let agent = lab.member("node-1")["pid"].to_string();
    command("kill", &["-9", &agent], &[], "").expect_ok();
    lab.eventually("the agent is gone", SOON, || {
        if lab.member("node-1")["pid"].is_null() { Ok(()) } else { Err("it is there".to_owned()) }
    });
}

/// How the devices are that a pod's container has, as its status says.
#[track_caller]
fn devices_are(lab: &Lab, pod: &str, wanted: &Value) {
    lab.eventually(&format!("the devices of {pod} are {wanted}"), SOON, || {
        let container = lab.get(&["pod", pod])["status"]["containerStatuses"][0].clone();
        let shown = &container["allocatedResourcesStatus"];
        if shown == wanted { Ok(()) } else { Err(container.to_string()) }
    });
}

fn exec(lab: &Lab, pod: &str, script: &str) -> String {
    lab.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

/// What is mounted under a directory.
fn mounts(directory: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    targets.filter(|target| Path::new(target).starts_with(directory)).map(str::to_owned).collect()
}

/// A volume of a driver and a claim that is bound to it.
fn claim(name: &str, driver: &str, size: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: pv-{name}}}\nspec:\n  capacity: {{storage: {size}}}\n  accessModes: [ReadWriteOnce]\n  persistentVolumeReclaimPolicy: Retain\n  claimRef: {{namespace: default, name: {name}}}\n  csi: {{driver: {driver}, volumeHandle: handle-{name}, volumeAttributes: {{pool: fast}}{more}}}\n  mountOptions: [noatime]\n---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  storageClassName: \"\"\n  volumeName: pv-{name}\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: {size}}}}}\n---\n"
    )
}

fn with_claim(name: &str, claim: &str) -> String {
    pod(
        name,
        "sleep 3600",
        ", volumeMounts: [{name: v, mountPath: /v}]",
        &format!(
            "  securityContext: {{fsGroup: 4242}}\n  volumes: [{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}]"
        ),
    )
}
