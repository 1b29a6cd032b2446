//! Workloads whose pods belong to nodes: DaemonSets as they are updated, StatefulSets on local volumes.

use integration::{BUSYBOX, Lab};
use serde_json::Value;

use crate::{SOON, condition};

#[test]
fn workloads() {
    let lab = Lab::up("cwork", &["--nodes", "2"]);
    let host = tempfile::tempdir().unwrap();
    for node in ["node-1", "node-2"] {
        std::fs::create_dir(host.path().join(node)).unwrap();
    }
    let directory = host.path().display().to_string();
    lab.apply(&include_str!("workloads.yaml").replace("BUSYBOX", BUSYBOX).replace("/HOSTDIR", &directory));
    daemon_set(&lab);
    stateful_set(&lab, host.path());
}

fn daemon_set(lab: &Lab) {
    lab.kubectl(&["rollout", "status", "daemonset/everywhere", "--timeout=60s"]);
    let version = |pod: &Value| pod["spec"]["containers"][0]["env"][0]["value"].as_str().unwrap_or_default().to_owned();
    // How many were ready at the same time, at the least, until all have `wanted`.
    let fewest = |wanted: &str| {
        let mut fewest = usize::MAX;
        lab.eventually(&format!("all pods are of version {wanted}"), SOON, || {
            let pods = lab.get(&["pods", "-l", "app=everywhere"])["items"].as_array().cloned().unwrap_or_default();
            let ready = pods.iter().filter(|pod| condition(pod, "Ready")["status"] == "True").count();
            fewest = fewest.min(ready);
            let versions: Vec<String> = pods.iter().map(version).collect();
            if ready == 2 && versions == [wanted; 2] { Ok(()) } else { Err(format!("{versions:?}, {ready} ready")) }
        });
        fewest
    };
    let update = |version: &str| {
        lab.kubectl(&["set", "env", "daemonset/everywhere", &format!("VERSION={version}")]);
    };
    update("2");
    assert!(fewest("2") >= 1, "one at a time");
    lab.kubectl(&["rollout", "status", "daemonset/everywhere", "--timeout=60s"]);

    // With a surge the old pod stays until the new one is ready.
    let surge = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}}}"#;
    lab.kubectl(&["patch", "daemonset", "everywhere", "-p", surge]);
    update("3");
    assert!(fewest("3") >= 2, "none is missed");

    lab.kubectl(&["rollout", "undo", "daemonset/everywhere"]);
    assert!(fewest("2") >= 2);
    let history = lab.kubectl(&["rollout", "history", "daemonset/everywhere"]);
    let revisions: Vec<&str> = history.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(revisions.contains(&"1") && revisions.contains(&"3") && revisions.contains(&"4"), "{history}");

    // Wanted on no node, and then on one.
    let status = |field: &str| lab.get(&["daemonset", "everywhere"])["status"][field].as_u64();
    lab.kubectl(&[
        "patch",
        "daemonset",
        "everywhere",
        "-p",
        r#"{"spec":{"template":{"spec":{"nodeSelector":{"colour":"red"}}}}}"#,
    ]);
    lab.eventually("no node is red", SOON, || match status("desiredNumberScheduled") {
        Some(0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.kubectl(&["wait", "pods", "-l", "app=everywhere", "--for=delete", "--timeout=60s"]);
    lab.kubectl(&["label", "node", "node-2", "colour=red"]);
    lab.eventually("one node is red", SOON, || match status("numberAvailable") {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let pods = lab.get(&["pods", "-l", "app=everywhere"]);
    assert_eq!(pods["items"][0]["spec"]["nodeName"], "node-2");
    lab.kubectl(&["delete", "daemonset", "everywhere", "--timeout=60s"]);
}

fn stateful_set(lab: &Lab, host: &std::path::Path) {
    lab.kubectl(&["rollout", "status", "statefulset/keeps", "--timeout=60s"]);
    let node_of = |pod: &str| lab.get(&["pod", pod])["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let names = |node: &str| std::fs::read_to_string(host.join(node).join("names")).unwrap_or_default();
    let nodes = [node_of("keeps-0"), node_of("keeps-1")];
    let both = nodes.contains(&"node-1".to_owned()) && nodes.contains(&"node-2".to_owned());
    assert!(both, "each is where its volume is: {nodes:?}");
    for (index, node) in nodes.iter().enumerate() {
        assert_eq!(names(node), format!("keeps-{index}\n"));
        let claim = lab.get(&["pvc", &format!("data-keeps-{index}")]);
        assert_eq!(
            (&claim["status"]["phase"], &claim["spec"]["volumeName"]),
            (&"Bound".into(), &format!("on-{node}").into())
        );
    }

    // It comes back to what it had.
    lab.kubectl(&["delete", "pod", "keeps-1", "--timeout=60s"]);
    lab.kubectl(&["rollout", "status", "statefulset/keeps", "--timeout=60s"]);
    assert_eq!(node_of("keeps-1"), nodes[1]);
    lab.eventually("it says its name again", SOON, || match names(&nodes[1]).as_str() {
        "keeps-1\nkeeps-1\n" => Ok(()),
        other => Err(other.to_owned()),
    });

    // Scaled down, its claim stays; deleted, the claims go and the volumes are kept.
    lab.kubectl(&["scale", "statefulset", "keeps", "--replicas=1"]);
    lab.kubectl(&["wait", "pod/keeps-1", "--for=delete", "--timeout=60s"]);
    assert_eq!(lab.get(&["pvc", "data-keeps-1"])["status"]["phase"], "Bound");
    lab.kubectl(&["scale", "statefulset", "keeps", "--replicas=2"]);
    lab.kubectl(&["rollout", "status", "statefulset/keeps", "--timeout=60s"]);
    lab.kubectl(&["delete", "statefulset", "keeps", "--timeout=60s"]);
    lab.eventually("the claims are gone, and the volumes released", SOON, || {
        let claims = lab.get(&["pvc"])["items"].as_array().map_or(0, Vec::len);
        let volumes = lab.get(&["pv"]);
        let phases: Vec<&Value> =
            volumes["items"].as_array().into_iter().flatten().map(|volume| &volume["status"]["phase"]).collect();
        if claims == 0 && phases == ["Released"; 2] { Ok(()) } else { Err(format!("{claims} claims, {phases:?}")) }
    });
}
