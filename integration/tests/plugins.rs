//! Drivers that register with a node: storage, devices, claimed resources. Each test has one lab with
//! real containers; the drivers run beside it, on the sockets that drivers in pods would make.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::plugins::{Csi, CsiOptions, DevicePlugin, Dra, Record};
use integration::{BUSYBOX, Lab, command};
use proto::csi::v1::node_service_capability::rpc::Type as Ability;
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

fn exec(lab: &Lab, pod: &str, script: &str) -> String {
    lab.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

/// What is mounted under a directory.
fn mounts(directory: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    targets.filter(|target| Path::new(target).starts_with(directory)).map(str::to_owned).collect()
}

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
    assert!(claim["status"]["conditions"].as_array().is_none_or(Vec::is_empty), "{claim}");

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

    plugin.say(&[("gpu-0", false), ("gpu-1", true)]);
    has(&lab, "2", "1");
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

/// A claim that was allocated to the pods of this test by hand, as a scheduler would.
fn allocate(lab: &Lab, claim: &str, driver: &str, pods: &[&str]) {
    let user = |pod: &&str| {
        let uid = lab.get(&["pod", pod])["metadata"]["uid"].clone();
        serde_json::json!({"resource": "pods", "name": pod, "uid": uid})
    };
    let users: Vec<Value> = pods.iter().map(user).collect();
    let result = serde_json::json!({"request": "one", "driver": driver, "pool": "pool", "device": "device-0"});
    let status =
        serde_json::json!({"status": {"allocation": {"devices": {"results": [result]}}, "reservedFor": users}});
    let patch = status.to_string();
    lab.kubectl(&["patch", "resourceclaim", claim, "--subresource=status", "--type=merge", "-p", &patch]);
}

fn with_resource(name: &str, claim: &str) -> String {
    pod(
        name,
        "sleep 3600",
        ", resources: {claims: [{name: r}]}",
        &format!("  resourceClaims: [{{name: r, resourceClaimName: {claim}}}]"),
    )
}

#[test]
fn claimed_resources() {
    let lab = Lab::up("dra", &[]);
    let root = root(&lab);
    for (driver, version) in [("new.example.com", "v1"), ("older.example.com", "v1beta1")] {
        let name = version.to_owned();
        let (first, second) = (format!("first-{name}"), format!("second-{name}"));
        lab.apply(&format!(
            "apiVersion: resource.k8s.io/v1\nkind: DeviceClass\nmetadata: {{name: {driver}}}\nspec: {{}}\n---\napiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {{name: {name}}}\nspec: {{devices: {{requests: [{{name: one, exactly: {{deviceClassName: {driver}}}}}]}}}}\n---\n"
        ));
        lab.apply(&(with_resource(&first, &name) + &with_resource(&second, &name)));
        event(
            &lab,
            &first,
            "FailedPrepareDynamicResources",
            "Failed to prepare dynamic resources: prepare dynamic resources: ",
        );
        allocate(&lab, &name, driver, &[&first, &second]);
        let words = format!(
            "Failed to prepare dynamic resources: prepare dynamic resources: DRA driver {driver} is not registered"
        );
        event(&lab, &first, "FailedPrepareDynamicResources", &words);

        let plugin = Dra::start(driver, &root, version);
        plugin.fail(true);
        said(&lab, &plugin.record, "registered true");
        let words = format!(
            "prepare dynamic resources: NodePrepareResources failed for ResourceClaim {name}: the device is on fire"
        );
        event(&lab, &first, "FailedPrepareDynamicResources", &words);
        plugin.fail(false);
        lab.wait(&format!("pod/{first}"), "condition=Ready", 60);
        lab.wait(&format!("pod/{second}"), "condition=Ready", 60);
        let state = std::fs::read_to_string(root.join("dra_manager_state")).unwrap();
        assert!(state.contains(&format!("test.example.com/device={name}")), "{state}");

        // The last pod that goes has the claim taken back, also after a restart.
        delete(&lab, &first);
        gone(&lab, &format!("pod/{first}"));
        assert_eq!(plugin.record.count("unprepare"), 0, "the other pod has it");
        kill_agent(&lab);
        lab.node("start", "node-1").expect_ok();
        lab.wait("node/node-1", "condition=Ready", 60);
        delete(&lab, &second);
        gone(&lab, &format!("pod/{second}"));
        assert_eq!(plugin.record.count("unprepare"), 1, "{:#?}", plugin.record.all());
        drop(plugin);
    }
}
