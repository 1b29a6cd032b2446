//! What is given back when a pod ends, and what is removed when its object is gone.
//! Errors are collected; everything that can be done is done.

use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::observed::{Observed, Run};
use super::sub_path;
use crate::context::NodeContext;
use crate::spec::sandbox::qos;
pub use crate::volumes::mounts::remove_tree;

/// Claimed resources, devices, volumes and cgroup: nothing of the pod runs any more.
pub async fn give_back(node: &NodeContext, pod: &Arc<Pod>) -> Result<(), String> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    sub_path::release_all(&node.config.layout.pod(&uid).join("volume-subpaths"));
    let mut problems = Vec::new();
    problems.extend(node.dra.unprepare(&uid).await.err());
    node.devices.release(&uid);
    if let Err(error) = node.volumes.tear_down(&uid).await {
        problems.push(error.to_string());
    }
    if let Err(error) = node.cgroups.remove(&node.cgroups.pod(qos(pod), &uid)).await {
        problems.push(error.to_string());
    }
    if !problems.is_empty() {
        return Err(problems.join("; "));
    }
    // Last: the next pod to have these users must not find anything of this one.
    node.user_namespaces.release(&uid);
    Ok(())
}

/// Dead containers, sandboxes, logs and the pod's directory.
pub async fn purge(node: &NodeContext, pod: &Arc<Pod>, observed: &Observed) -> Result<(), String> {
    let meta = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let uid = text(&meta.uid);
    let mut problems = Vec::new();
    for run in &observed.runs {
        if let Err(error) = node.runtime.remove_container(&run.id).await {
            problems.push(error.to_string());
        }
    }
    for sandbox in &observed.sandboxes {
        if let Err(error) = node.runtime.remove_sandbox(&sandbox.id).await {
            problems.push(error.to_string());
        }
    }
    let layout = &node.config.layout;
    // One that was given up on may have been bound since.
    sub_path::release_all(&layout.pod(&uid).join("volume-subpaths"));
    for directory in [layout.pod_logs(&text(&meta.namespace), &text(&meta.name), &uid), layout.pod(&uid)] {
        if let Err(error) = remove_tree(&directory) {
            problems.push(format!("removing {}: {error}", directory.display()));
        }
    }
    node.images.forget_pod(&uid);
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

/// Removes dead runs and their logs; returns those that are gone.
pub async fn remove_runs(node: &NodeContext, runs: &[Run]) -> Vec<String> {
    let mut gone = Vec::new();
    for run in runs {
        match node.runtime.remove_container(&run.id).await {
            Ok(()) => {
                if !run.log_path.is_empty() {
                    remove_log(Path::new(&run.log_path));
                }
                if let Some(file) = &run.termination_file {
                    let _ = std::fs::remove_file(file);
                }
                gone.push(run.id.clone());
            }
            Err(error) => tracing::debug!(container = run.id, %error, "a dead container could not be removed"),
        }
    }
    gone
}

/// A run's log and what was rotated from it.
fn remove_log(log: &Path) {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else { return };
    let prefix = format!("{}.", name.to_string_lossy());
    let _ = std::fs::remove_file(log);
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
