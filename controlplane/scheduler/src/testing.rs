//! Pods and nodes for the tables in this crate's tests.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// A pod `default/p` with this spec.
pub fn pod(spec: Value) -> PodInfo {
    named("p", spec)
}

pub fn named(name: &str, spec: Value) -> PodInfo {
    object(json!({"metadata": {"name": name}, "spec": spec}))
}

/// A pod from JSON; its UID is its name, its namespace `default` unless given.
pub fn object(mut pod: Value) -> PodInfo {
    let meta = &mut pod["metadata"];
    meta["uid"] = meta["name"].clone();
    if meta["namespace"].is_null() {
        meta["namespace"] = json!("default");
    }
    PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()))
}

/// A pod with one container that asks for cpu and memory.
pub fn asking(name: &str, cpu: &str, memory: &str) -> PodInfo {
    named(name, json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}))
}

/// A node with 4 cpus, 8 GiB and room for 110 pods, changed by merging `patch`.
pub fn node(name: &str, patch: Value) -> NodeInfo {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    merge(&mut node, patch);
    NodeInfo::new(Arc::new(serde_json::from_value(node).unwrap()))
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}
