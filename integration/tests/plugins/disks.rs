//! Volumes that are attached, and drivers that live in pods.

use std::path::Path;

use integration::Lab;
use integration::plugins::{Csi, CsiOptions};
use proto::csi::v1::node_service_capability::rpc::Type as Ability;

use crate::{SOON, claim, delete, event, exec, gone, kill_agent, pod, root, said, with_claim};

/// Disks are mounted once they are attached, and detached once they are not mounted.
#[test]
fn disks_are_attached_first() {
    const DISKS: &str = "disks.example.com";
    let lab = Lab::up("disks", &[]);
    let (root, data) = (root(&lab), tempfile::tempdir().unwrap());
    // A driver in a pod sees the kubelet's directory under its usual name.
    let inside = CsiOptions {
        abilities: vec![Ability::StageUnstageVolume],
        root: Some("/var/lib/kubelet".into()),
        ..Default::default()
    };
    let driver = Csi::start(DISKS, &root, data.path(), inside);
    said(&lab, &driver.record, "registered true");
    lab.apply(&(claim("disk", DISKS, "1Gi", ", fsType: ext4") + &with_claim("writer", "disk")));
    let name = "kubernetes.io/csi/disks.example.com^handle-disk";
    let attachment = lab.eventually("the volume is to be attached", SOON, || {
        let all = lab.get(&["volumeattachments"]);
        all["items"][0]["metadata"]["name"].as_str().map(str::to_owned).ok_or_else(|| all.to_string())
    });
    let in_use = || lab.get(&["node", "node-1"])["status"]["volumesInUse"].clone();
    lab.eventually("the node says that it uses it", SOON, || {
        if in_use()[0] == name { Ok(()) } else { Err(in_use().to_string()) }
    });
    assert_eq!(driver.record.count("stage "), 0);

    // what the driver's attacher would do
    let attached = r#"{"status":{"attached":true,"attachmentMetadata":{"device":"/dev/sdx"}}}"#;
    lab.kubectl(&["patch", "volumeattachment", &attachment, "--subresource=status", "--type=merge", "-p", attached]);
    lab.wait("pod/writer", "condition=Ready", 60);
    event(&lab, "writer", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume \"pv-disk\"");
    exec(&lab, "writer", "echo kept > /v/file");
    assert_eq!(std::fs::read_to_string(data.path().join("handle-disk/file")).unwrap(), "kept\n");
    assert_eq!(said(&lab, &driver.record, "stage "), "stage handle-disk secrets[] publish[device=/dev/sdx]");
    assert_eq!(lab.get(&["node", "node-1"])["status"]["volumesAttached"][0]["name"], name);

    // Another kubelet knows that it is in use.
    kill_agent(&lab);
    lab.node("start", "node-1").expect_ok();
    lab.wait("node/node-1", "condition=Ready", 60);
    said(&lab, &driver.record, "registered true");
    lab.eventually("the driver hears of it again", SOON, || {
        let record = &driver.record;
        if record.count("publish handle-disk") == 2 { Ok(()) } else { Err(format!("{:#?}", record.all())) }
    });
    lab.eventually("it is in use still", SOON, || if in_use()[0] == name { Ok(()) } else { Err(in_use().to_string()) });

    delete(&lab, "writer");
    gone(&lab, "pod/writer");
    gone(&lab, &format!("volumeattachment/{attachment}"));
    lab.eventually("the node uses it no longer", SOON, || {
        if in_use().as_array().is_none_or(Vec::is_empty) { Ok(()) } else { Err(in_use().to_string()) }
    });
    assert_eq!(driver.record.count("unstage handle-disk"), 1);
}

/// A pod whose hostPath volumes are in the kubelet's directory under its usual name, and whose mounts
/// there are seen by the host and by other pods.
#[test]
fn drivers_in_pods_find_the_kubelets_directory() {
    let lab = Lab::up("inpod", &[]);
    let root = root(&lab);
    let mounting = "mkdir -p /var/lib/kubelet/plugins/mine/m && mount -t tmpfs none /var/lib/kubelet/plugins/mine/m && echo here > /var/lib/kubelet/plugins/mine/m/file && sleep 3600";
    lab.apply(&pod(
        "mounter",
        mounting,
        ", securityContext: {privileged: true}, volumeMounts: [{name: k, mountPath: /var/lib/kubelet, mountPropagation: Bidirectional}]",
        "  volumes: [{name: k, hostPath: {path: /var/lib/kubelet, type: Directory}}]",
    ));
    let seen = root.join("plugins/mine/m/file");
    lab.eventually("the host sees what the pod mounts", SOON, || {
        std::fs::read_to_string(&seen).map_err(|error| error.to_string())
    });
    lab.apply(&pod(
        "looker",
        "sleep 3600",
        ", volumeMounts: [{name: k, mountPath: /m}]",
        "  volumes: [{name: k, hostPath: {path: /var/lib/kubelet/plugins/mine/m, type: Directory}}]",
    ));
    lab.wait("pod/looker", "condition=Ready", 60);
    assert_eq!(exec(&lab, "looker", "cat /m/file"), "here\n");
    assert!(!Path::new("/var/lib/kubelet/plugins/mine").exists(), "it is the node's, not the machine's");
}
