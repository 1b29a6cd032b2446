//! Volumes of CSI drivers.

use std::collections::BTreeMap;
use std::path::Path;

use integration::Lab;
use integration::plugins::{Csi, CsiOptions};
use proto::csi::v1::node_service_capability::rpc::Type as Ability;
use serde_json::Value;

use crate::{SOON, claim, delete, event, exec, gone, kill_agent, mounts, pod, root, said, with_claim};

/// Waits for the node's entry of a driver; none where it must go.
#[track_caller]
fn csi_node(lab: &Lab, driver: &str, there: bool) -> Value {
    lab.eventually(&format!("the CSINode tells of {driver}"), SOON, || {
        let node = lab.get(&["csinode", "node-1"]);
        let entry =
            node["spec"]["drivers"].as_array().into_iter().flatten().find(|entry| entry["name"] == driver).cloned();
        match (entry, there) {
            (Some(entry), true) => Ok(entry),
            (None, false) => Ok(Value::Null),
            (entry, _) => Err(format!("{entry:?}")),
        }
    })
}

const FILES: &str = "files.example.com";

#[test]
fn volumes_of_csi_drivers() {
    let lab = Lab::up("csi", &[]);
    let (root, data) = (root(&lab), tempfile::tempdir().unwrap());
    let empty = lab.eventually("the node has a CSINode", SOON, || {
        let found = lab.try_kubectl(&["get", "csinode", "node-1", "-o", "json"]);
        serde_json::from_str::<Value>(&found.stdout).map_err(|_| found.stderr)
    });
    assert!(empty["spec"]["drivers"].as_array().is_none_or(Vec::is_empty), "{empty}");
    let plugins = empty["metadata"]["annotations"]["storage.alpha.kubernetes.io/migrated-plugins"].as_str().unwrap();
    assert!(plugins.starts_with("kubernetes.io/aws-ebs,"), "{plugins}");

    // A driver of another age is told why it may not.
    let old = CsiOptions { versions: vec!["0.3.0".to_owned()], ..Default::default() };
    let old = Csi::start("old.example.com", &root, data.path(), old);
    let why = said(&lab, &old.record, "registered false");
    assert!(why.contains("highest supported version reported by driver is 0.3.0, must be v1.x"), "{why}");
    drop(old);

    let options = CsiOptions {
        abilities: vec![Ability::StageUnstageVolume, Ability::GetVolumeStats, Ability::ExpandVolume],
        topology: BTreeMap::from([("topology.example.com/zone".to_owned(), "z1".to_owned())]),
        limit: 7,
        ..Default::default()
    };
    let driver = Csi::start(FILES, &root, data.path(), options.clone());
    said(&lab, &driver.record, "registered true");
    let entry = csi_node(&lab, FILES, true);
    assert_eq!(entry["nodeID"], "the-node");
    assert_eq!(entry["allocatable"]["count"], 7);
    assert_eq!(entry["topologyKeys"], serde_json::json!(["topology.example.com/zone"]));
    let node = lab.get(&["node", "node-1"]);
    assert_eq!(node["metadata"]["labels"]["topology.example.com/zone"], "z1");
    assert_eq!(
        node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"],
        format!("{{\"{FILES}\":\"the-node\"}}")
    );

    lab.apply(&format!(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {FILES}}}\nspec: {{attachRequired: false, podInfoOnMount: true, fsGroupPolicy: File, volumeLifecycleModes: [Persistent, Ephemeral], tokenRequests: [{{audience: vault}}]}}\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: key}}\nstringData: {{password: s3cret}}\n"
    ));
    persistent(&lab, &driver, &root, data.path());
    failing(&lab, &driver);
    ephemeral(&lab, &driver);
    block(&lab, &driver, &root, data.path());
    let driver = restarts(&lab, driver, &root, data.path(), &options);
    assert!(mounts(&root.join("pods")).is_empty() && mounts(&root.join("plugins")).is_empty());

    drop(driver);
    csi_node(&lab, FILES, false);
    let node = lab.get(&["node", "node-1"]);
    assert!(node["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"].is_null(), "{node}");
}

/// A claim's volume is staged and published with all that its driver needs, grown, and given back.
fn persistent(lab: &Lab, driver: &Csi, root: &Path, data: &Path) {
    std::fs::create_dir_all(data.join("handle-files")).unwrap();
    std::fs::write(data.join("handle-files/hello"), "from the driver\n").unwrap();
    let secrets =
        ", nodeStageSecretRef: {namespace: default, name: key}, nodePublishSecretRef: {namespace: default, name: key}";
    lab.apply(&claim("files", FILES, "1Gi", secrets));
    lab.wait("pvc/files", "jsonpath={.status.phase}=Bound", 30);
    lab.kubectl(&["patch", "pv", "pv-files", "--type=merge", "-p", r#"{"spec":{"capacity":{"storage":"2Gi"}}}"#]);
    lab.apply(&with_claim("reader", "files"));
    lab.wait("pod/reader", "condition=Ready", 60);
    assert_eq!(exec(lab, "reader", "cat /v/hello && echo back > /v/answer"), "from the driver\n");
    assert_eq!(std::fs::read_to_string(data.join("handle-files/answer")).unwrap(), "back\n");
    assert_eq!(exec(lab, "reader", "stat -c %g /v"), "4242\n", "the pod's group has it");
    assert!(root.join("plugins/kubernetes.io/csi/files.example.com").is_dir());

    assert_eq!(said(lab, &driver.record, "stage "), "stage handle-files secrets[password=s3cret] publish[]");
    let publish = said(lab, &driver.record, "publish handle-files");
    let uid = lab.get(&["pod", "reader"])["metadata"]["uid"].as_str().unwrap().to_owned();
    for part in [
        "SINGLE_NODE_WRITER [ noatime] readonly=false".to_owned(),
        "csi.storage.k8s.io/ephemeral=false,csi.storage.k8s.io/pod.name=reader,csi.storage.k8s.io/pod.namespace=default".to_owned(),
        format!("csi.storage.k8s.io/pod.uid={uid},csi.storage.k8s.io/serviceAccount.name=default"),
        "csi.storage.k8s.io/serviceAccount.tokens={\"vault\":{\"expirationTimestamp\":".to_owned(),
        "pool=fast".to_owned(),
        "secrets[password=s3cret]".to_owned(),
    ] {
        assert!(publish.contains(&part), "{part:?} in {publish}");
    }

    // it grows to what its volume has
    said(lab, &driver.record, "expand handle-files 2147483648");
    lab.wait("pvc/files", "jsonpath={.status.capacity.storage}=2Gi", 30);
    event(
        lab,
        "files",
        "FileSystemResizeSuccessful",
        "MountVolume.NodeExpandVolume succeeded for volume \"pv-files\" node-1",
    );

    let summary = lab.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"]);
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let pods = summary["pods"].as_array().unwrap();
    let volumes = &pods.iter().find(|pod| pod["podRef"]["name"] == "reader").unwrap()["volume"];
    assert_eq!(
        (&volumes[0]["capacityBytes"], &volumes[0]["pvcRef"]["name"]),
        (&1000.into(), &"files".into()),
        "{volumes}"
    );

    let metrics = lab.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]);
    let sample = "kubelet_volume_stats_capacity_bytes{namespace=\"default\",persistentvolumeclaim=\"files\"} 1000";
    assert!(metrics.contains(sample), "{metrics}");

    // It grows while it is used: the resizer says that the node has to do its part.
    lab.kubectl(&["patch", "pv", "pv-files", "--type=merge", "-p", r#"{"spec":{"capacity":{"storage":"3Gi"}}}"#]);
    let pending = r#"{"status":{"conditions":[{"type":"FileSystemResizePending","status":"True"}]}}"#;
    lab.kubectl(&["patch", "pvc", "files", "--subresource=status", "--type=merge", "-p", pending]);
    // The kubelet looks every minute, and when the pod changes.
    lab.kubectl(&["annotate", "pod", "reader", "look=now"]);
    said(lab, &driver.record, "expand handle-files 3221225472");
    lab.wait("pvc/files", "jsonpath={.status.capacity.storage}=3Gi", 30);
    let claim = lab.get(&["pvc", "files"]);
    let mut conditions = claim["status"]["conditions"].as_array().into_iter().flatten();
    assert!(conditions.all(|condition| condition["type"] == "Unused"), "{claim}");

    // a second pod shares what is staged; the last one that goes has it unstaged
    lab.apply(&with_claim("second", "files"));
    lab.wait("pod/second", "condition=Ready", 60);
    assert_eq!(exec(lab, "second", "cat /v/answer"), "back\n");
    delete(lab, "reader");
    gone(lab, "pod/reader");
    assert_eq!(
        (driver.record.count("unpublish "), driver.record.count("unstage ")),
        (1, 0),
        "{:#?}",
        driver.record.all()
    );
    delete(lab, "second");
    gone(lab, "pod/second");
    assert_eq!(
        (driver.record.count("unpublish "), driver.record.count("unstage ")),
        (2, 1),
        "{:#?}",
        driver.record.all()
    );
    assert!(data.join("handle-files/answer").exists(), "what is on the volume stays");
    let left = std::fs::read_dir(root.join("plugins/kubernetes.io/csi/files.example.com")).unwrap().count();
    assert_eq!(left, 0, "nothing says that it is staged");
}

/// What goes wrong is told in events, and tried again.
fn failing(lab: &Lab, driver: &Csi) {
    driver.fail(true);
    lab.apply(&(claim("burning", FILES, "1Gi", "") + &with_claim("waits", "burning")));
    let words =
        "MountVolume.SetUp failed for volume \"pv-burning\" : rpc error: code = Internal desc = the disk is on fire";
    event(lab, "waits", "FailedMount", words);
    driver.fail(false);
    lab.wait("pod/waits", "condition=Ready", 60);
    delete(lab, "waits");
    gone(lab, "pod/waits");

    let nobody = pod(
        "nobody",
        "true",
        ", volumeMounts: [{name: v, mountPath: /v}]",
        "  volumes: [{name: v, persistentVolumeClaim: {claimName: lost}}]",
    );
    let driver_object = "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: nobody.example.com}\nspec: {attachRequired: false}\n---\n";
    lab.apply(&(driver_object.to_owned() + &claim("lost", "nobody.example.com", "1Gi", "") + &nobody));
    let words = "MountVolume.MountDevice failed for volume \"pv-lost\" : kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name nobody.example.com not found in the list of registered CSI drivers";
    event(lab, "nobody", "FailedMount", words);
    delete(lab, "nobody");
    gone(lab, "pod/nobody");
}

/// A volume of the pod's own words lives and ends with it.
fn ephemeral(lab: &Lab, driver: &Csi) {
    let volumes = format!(
        "  volumes: [{{name: scratch, csi: {{driver: {FILES}, readOnly: true, volumeAttributes: {{size: small}}, nodePublishSecretRef: {{name: key}}}}}}]"
    );
    lab.apply(&pod("inline", "sleep 3600", ", volumeMounts: [{name: scratch, mountPath: /v}]", &volumes));
    lab.wait("pod/inline", "condition=Ready", 60);
    assert!(exec(lab, "inline", "cat /v/context").contains("csi.storage.k8s.io/ephemeral=true"));
    assert_eq!(exec(lab, "inline", "touch /v/x 2> /dev/null || echo refused"), "refused\n");
    let publish = said(lab, &driver.record, "publish csi-");
    assert!(publish.contains("readonly=true") && publish.contains("size=small"), "{publish}");
    let (staged, unpublished) = (driver.record.count("stage csi-"), driver.record.count("unpublish csi-"));
    assert_eq!((staged, unpublished), (0, 0));
    // A driver may want to hear of it again, to renew tokens.
    lab.kubectl(&["patch", "csidriver", FILES, "--type=merge", "-p", r#"{"spec":{"requiresRepublish":true}}"#]);
    lab.apply(&pod("again", "sleep 3600", ", volumeMounts: [{name: scratch, mountPath: /v}]", &volumes));
    lab.wait("pod/again", "condition=Ready", 60);
    let before = driver.record.count("publish csi-");
    lab.kubectl(&["annotate", "pod", "again", "look=now"]);
    lab.eventually("it is published again", SOON, || {
        if driver.record.count("publish csi-") > before { Ok(()) } else { Err(format!("{:#?}", driver.record.all())) }
    });
    assert_eq!(exec(lab, "again", "ls /v"), "context\n", "it stays mounted");
    delete(lab, "again");
    gone(lab, "pod/again");
    assert_eq!(driver.record.count("unpublish csi-"), 1);
    delete(lab, "inline");
    gone(lab, "pod/inline");
    assert_eq!(driver.record.count("unpublish csi-"), 2);
}

/// A volume can be a device.
fn block(lab: &Lab, driver: &Csi, root: &Path, data: &Path) {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    std::fs::create_dir_all(data).unwrap();
    // The first loop device, which need not have a disk.
    mknod(&data.join("handle-raw"), SFlag::S_IFBLK, Mode::from_bits_truncate(0o660), makedev(7, 0)).unwrap();
    let raw = claim("raw", FILES, "1Gi", "")
        .replace("  accessModes: [ReadWriteOnce]\n", "  accessModes: [ReadWriteOnce]\n  volumeMode: Block\n");
    let volumes = "  volumes: [{name: v, persistentVolumeClaim: {claimName: raw}}]";
    lab.apply(
        &(raw.replace("  mountOptions: [noatime]\n", "")
            + &pod("raw", "sleep 3600", ", volumeDevices: [{name: v, devicePath: /dev/disk}]", volumes)),
    );
    lab.wait("pod/raw", "condition=Ready", 60);
    assert_eq!(exec(lab, "raw", "test -b /dev/disk && stat -c %t:%T /dev/disk"), "7:0\n");
    let publish = said(lab, &driver.record, "publish handle-raw");
    assert!(publish.contains("[block]"), "{publish}");
    let link = std::fs::read_dir(root.join("pods"))
        .unwrap()
        .flatten()
        .any(|pod| pod.path().join("volumeDevices/kubernetes.io~csi/pv-raw").is_symlink());
    assert!(link, "the pod's directory says where its device is");
    delete(lab, "raw");
    gone(lab, "pod/raw");
    assert_eq!(driver.record.count("unstage handle-raw"), 1);
    assert!(mounts(&root.join("plugins")).is_empty());
    assert!(!root.join("plugins/kubernetes.io/csi/volumeDevices/pv-raw").exists());
}

/// What is mounted is found again by another kubelet, also when its driver comes later.
fn restarts(lab: &Lab, driver: Csi, root: &Path, data: &Path, options: &CsiOptions) -> Csi {
    lab.apply(&(with_claim("stays", "files") + &with_claim("leaves", "files")));
    lab.wait("pod/stays", "condition=Ready", 60);
    lab.wait("pod/leaves", "condition=Ready", 60);
    kill_agent(lab);
    drop(driver);
    lab.kubectl(&["delete", "pod", "leaves", "--force", "--grace-period=0"]);
    lab.node("start", "node-1").expect_ok();
    lab.wait("node/node-1", "condition=Ready", 60);
    assert_eq!(exec(lab, "stays", "cat /v/hello"), "from the driver\n");
    assert_eq!(lab.get(&["pod", "stays"])["status"]["containerStatuses"][0]["restartCount"], 0);
    delete(lab, "stays");
    // without the driver nothing can be unmounted: the pod stays until it is back
    lab.eventually("the container is gone", SOON, || {
        let status = lab.get(&["pod", "stays"])["status"]["containerStatuses"][0]["state"].clone();
        if status["terminated"].is_object() { Ok(()) } else { Err(status.to_string()) }
    });
    assert!(!mounts(&root.join("pods")).is_empty());
    let driver = Csi::start(FILES, root, data, options.clone());
    gone(lab, "pod/stays");
    lab.eventually("both pods' volumes are given back", SOON, || {
        let record = &driver.record;
        let unpublished = (record.count("unpublish handle-files"), record.count("unstage handle-files"));
        if unpublished.0 >= 2 && unpublished.1 >= 1 && mounts(&root.join("pods")).is_empty() {
            Ok(())
        } else {
            Err(format!("{:#?}", record.all()))
        }
    });
    driver
}
