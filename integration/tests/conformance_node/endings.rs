//! Pods that are ended in the middle of something: they go, and the node has nothing to warn of.

use integration::{BUSYBOX, Lab};

/// A pod whose volume shows a ConfigMap.
const SHOWS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: shows}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: map, configMap: {name: map}}]
  containers:
  - {name: main, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [sleep, \"3600\"], volumeMounts: [{name: map, mountPath: /map}]}
";

#[test]
fn endings() {
    let lab = Lab::up("cend", &[]);
    let run = |namespace: &str, name: &str| {
        let image = format!("--image={BUSYBOX}");
        lab.kubectl(&["run", "-n", namespace, name, &image, "--image-pull-policy=IfNotPresent", "--", "sleep", "3600"]);
    };

    // Deleted at every moment of a start.
    let names: Vec<String> = (0..12).map(|number| format!("early-{number}")).collect();
    for name in &names {
        run("default", name);
        lab.kubectl(&["delete", "pod", name, "--grace-period=1", "--wait=false"]);
    }
    lab.kubectl(&["wait", "pod", "--all", "--for=delete", "--timeout=120s"]);

    // A namespace takes the ConfigMaps of its pods with it.
    lab.kubectl(&["create", "namespace", "doomed"]);
    for name in ["one", "two", "three"] {
        run("doomed", name);
    }
    lab.kubectl(&["wait", "-n", "doomed", "pod", "--all", "--for=condition=Ready", "--timeout=60s"]);
    lab.kubectl(&["delete", "namespace", "doomed", "--timeout=120s"]);

    // One that stays without its ConfigMap is told of once, and shows the next one when it comes.
    lab.kubectl(&["create", "configmap", "map", "--from-literal=key=one"]);
    lab.apply(&SHOWS.replace("BUSYBOX", BUSYBOX));
    lab.wait("pod/shows", "condition=Ready", 60);
    lab.kubectl(&["delete", "configmap", "map"]);
    let warning = "map: configmap \"map\" not found";
    let count = || lab.log("node-1").matches("a volume could not be refreshed").count();
    lab.eventually("the node says what is missing", crate::SOON, || {
        let log = lab.log("node-1");
        if log.contains(warning) || log.contains(&warning.replace('"', "\\\"")) { Ok(()) } else { Err(log) }
    });
    lab.kubectl(&["create", "configmap", "map", "--from-literal=key=two"]);
    lab.eventually("the next ConfigMap is shown", crate::SOON, || {
        let shown = lab.kubectl(&["exec", "shows", "--", "cat", "/map/key"]);
        if shown == "two" { Ok(()) } else { Err(shown) }
    });
    assert_eq!(count(), 1, "{}", lab.log("node-1"));
    lab.kubectl(&["delete", "pod", "shows", "--timeout=60s"]);
    let log = lab.log("node-1");
    assert!(!log.contains("can't be removed"), "{log}");
}
