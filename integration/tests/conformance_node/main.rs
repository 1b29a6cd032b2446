//! The conformance tests of sig-node and sig-storage that one pod can check by itself, told again with
//! this repository's own images; docs/conformance-node.md says which line of Kubernetes' list is where.
//!
//! `*.yaml` beside this file hold pods whose scripts end with an error at the first thing that is not
//! as it must be. Each test has one lab.

// A test that cannot go on fails, in its helpers too.
#![allow(clippy::unwrap_used)]

mod certificates;
mod endings;
mod lifecycle;
mod logs;
mod mounts;
mod network;
mod pods;
mod probes;
mod resize;
mod streams;
mod volumes;
mod websocket;
mod workloads;

use std::time::Duration;

use integration::{BUSYBOX, Lab, NGINX};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(120);

/// A container's status, of whatever kind.
fn status_of(pod: &Value, container: &str) -> Value {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let mut all = lists.iter().flat_map(|list| pod["status"][*list].as_array().into_iter().flatten());
    all.find(|status| status["name"] == container).cloned().unwrap_or_default()
}

fn condition(pod: &Value, name: &str) -> Value {
    let mut all = pod["status"]["conditions"].as_array().into_iter().flatten();
    all.find(|condition| condition["type"] == name).cloned().unwrap_or_default()
}

/// Applies the pods, and waits until every one has succeeded; shows the logs of those that failed.
#[track_caller]
fn all_succeed(lab: &Lab, yaml: &str) {
    lab.apply(&yaml.replace("BUSYBOX", BUSYBOX).replace("NGINX", NGINX));
    all_succeed_of(lab);
}

/// Waits until every pod there is has succeeded.
#[track_caller]
fn all_succeed_of(lab: &Lab) {
    let failed: Vec<String> = lab.eventually("every pod ends", SOON, || {
        let pods = lab.get(&["pods"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let phases: Vec<(String, String)> = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["phase"])))
            .collect();
        if phases.iter().any(|(_, phase)| !matches!(phase.as_str(), "Succeeded" | "Failed")) {
            return Err(format!("{phases:?}"));
        }
        Ok(phases.into_iter().filter(|(_, phase)| phase == "Failed").map(|(name, _)| name).collect())
    });
    let logs = |pod: &String| {
        lab.try_kubectl(&["logs", pod, "--all-containers", "--prefix", "--tail=4", "--ignore-errors"]).stdout
    };
    let logs: Vec<String> = failed.iter().map(logs).collect();
    assert!(failed.is_empty(), "{failed:?} failed:\n{}", logs.join("\n"));
}

#[test]
fn storage() {
    let lab = Lab::up("cstore", &[]);
    let host = tempfile::tempdir().unwrap();
    all_succeed(&lab, &include_str!("storage.yaml").replace("/HOSTDIR", &host.path().display().to_string()));
    assert_eq!(std::fs::read_to_string(host.path().join("made/here/file")).unwrap(), "from-pod\n");
    assert_eq!(std::fs::read_to_string(host.path().join("made-file")).unwrap(), "from-pod\n");
}

#[test]
fn node() {
    let lab = Lab::up("cnode", &[]);
    all_succeed(&lab, include_str!("node.yaml"));
}
