//! What a large cluster's pods cost.

use std::sync::Arc;

use futures::StreamExt;
use integration::figures::{Figure, resident_mib};
use serde_json::json;
use store::{Embedded, Store, Txn};

use crate::child::Server;
use crate::client::Ask;

const PODS: usize = 150_000;

pub async fn measure() -> anyhow::Result<Vec<Figure>> {
    let dir = tempfile::tempdir()?;
    let store = Arc::new(Embedded::open(&dir.path().join("db"))?);
    let length = pod(0).len();
    let writes = (0..PODS).map(|n| store.txn(Txn::create(format!("/registry/pods/n{}/pod-{n}", n % 100), pod(n))));
    let mut writes = futures::stream::iter(writes).buffer_unordered(1000);
    while let Some(outcome) = writes.next().await {
        outcome?;
    }
    drop(writes);
    drop(store);
    let server = Server::api(dir.path())?;
    let before = resident_mib(server.pid());
    // Refused while they are being read.
    while let Err(error) = server.target.once(Ask::get("/api/v1/pods?limit=1")).await {
        anyhow::ensure!(error.to_string().contains("initializing"), error);
    }
    let held = resident_mib(server.pid());
    Ok(vec![Figure::new(
        format!("resident memory with {PODS} pods of {length} bytes"),
        format!("{held:.0} MiB"),
        format!("{before:.0} MiB before; the bytes alone {:.0} MiB", (PODS * length) as f64 / f64::from(1 << 20)),
    )])
}

/// A pod as a Deployment's looks once it runs, about 2 KiB.
fn pod(n: usize) -> String {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": format!("pod-{n}"), "namespace": format!("n{}", n % 100), "generateName": "web-7c5ddbdf54-",
            "uid": format!("3f0c6f5a-6a9a-4a41-9d0c-{n:012}"), "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "web", "pod-template-hash": "7c5ddbdf54"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c5ddbdf54", "uid": "0b3a8f1c-55d5-4d4e-8d10-0a7f5d0c1b2a", "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "nodeName": format!("node-{}", n % 1000), "serviceAccountName": "default", "serviceAccount": "default",
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler", "priority": 0, "preemptionPolicy": "PreemptLowerPriority", "enableServiceLinks": true, "securityContext": {},
            "containers": [{"name": "nginx", "image": "nginx:1.27", "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "128Mi"}}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}, {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {
            "phase": "Running", "hostIP": "10.0.0.1", "podIP": format!("10.42.{}.{}", n / 250 % 250, n % 250), "qosClass": "Burstable", "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:01Z"}, {"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "containerStatuses": [{"name": "nginx", "ready": true, "started": true, "restartCount": 0, "image": "docker.io/library/nginx:1.27", "imageID": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "containerID": format!("containerd://{n:064}"), "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}}, "lastState": {}}],
        },
    })
    .to_string()
}

/// Begins to note the peak of resident memory anew; what is resident now, in MiB.
pub fn reset_peak(pid: i64) -> anyhow::Result<f64> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    Ok(resident_mib(pid))
}

/// The peak of resident memory since [`reset_peak`], in MiB.
pub fn peak_mib(pid: i64) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
