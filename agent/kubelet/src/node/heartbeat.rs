//! Registers the node and keeps its status and its lease fresh.
//!
//! The status is made anew every 10 s and when something asks for it, and sent when it changed, or
//! every five minutes. The lease is renewed at a quarter of its duration whatever happens here.
//! At start the runtime is asked in quick succession until it is ready, so that a node is Ready
//! within a moment of its runtime.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::resources::Amounts;
use component::{EventType, Supervisor};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lease;
use super::machine::file_system;
use super::runtime::Heard;
use super::status::{self, Pressure, View};
use crate::context::{NodeContext, RuntimeFeatures};
use crate::cri::RuntimeError;

/// How often the status is made anew.
const UPDATE: Duration = Duration::from_secs(10);
/// How often the runtime is asked while the node is not ready.
const WHILE_NOT_READY: Duration = Duration::from_millis(100);
/// Until this long after start; then every second.
const HURRY: Duration = Duration::from_secs(30);

/// Asks for a fresh status, and tells the last one.
#[derive(Default)]
pub struct Heartbeat {
    wanted: Notify,
    pressure: Mutex<Pressure>,
    last: Mutex<Option<NodeStatus>>,
    heard: Mutex<Heard>,
}

impl Heartbeat {
    /// Something changed that the status shows.
    pub fn wake(&self) {
        self.wanted.notify_one();
    }

    pub fn set_pressure(&self, pressure: Pressure) {
        let changed = std::mem::replace(&mut *self.pressure.lock(), pressure) != pressure;
        if changed {
            self.wake();
        }
    }

    pub fn pressure(&self) -> Pressure {
        *self.pressure.lock()
    }

    /// What the Node's conditions were before: as the API has them, where others may have changed them and
    /// an earlier process has left them; as last sent while it does not answer.
    fn last_conditions(&self, held: Option<&NodeStatus>) -> Vec<NodeCondition> {
        let sent = self.last.lock();
        held.or(sent.as_ref()).and_then(|status| status.conditions.clone()).unwrap_or_default()
    }
}

/// Starts the loops.
pub fn start(node: &Arc<NodeContext>, heartbeat: &Arc<Heartbeat>, supervisor: &Supervisor) {
    supervisor.spawn("node-status", keep_status(node.clone(), heartbeat.clone()));
    let (client, name) = (node.client.clone(), node.config.node_name.clone());
    supervisor.spawn("node-lease", lease::keep(client, name, node.config.lease_duration));
}

async fn keep_status(node: Arc<NodeContext>, heartbeat: Arc<Heartbeat>) {
    let mut sent: Option<Value> = None;
    let mut sent_at = Instant::now();
    let started = Instant::now();
    let mut registered = false;
    // Until the API has a status of a node that was made anew.
    let mut reset = false;
    // As the Node named them when it was last seen.
    let mut advertised = Amounts::new();
    let mut told = Told::default();
    let mut in_use = node.volumes.in_use();
    let mut devices = node.devices.changes();
    loop {
        if !registered {
            advertised = Amounts::new();
            let (status, _) = fresh_status(&node, &heartbeat, None, &advertised).await;
            match register(&node, &status).await {
                Ok((existing, created)) => {
                    registered = true;
                    reset = !created && node.devices.is_new();
                    if created {
                        node.devices.settle();
                    }
                    node_event(&node, "Starting", "Starting kubelet.");
                    node_event(&node, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods");
                    // What the API has is the base of the first patch.
                    sent = existing;
                }
                Err(error) => {
                    tracing::warn!(%error, node = node.config.node_name, "the node could not be registered; trying again")
                }
            }
        }
        let object = if registered { look(&node).await } else { None };
        let held = object.as_ref().and_then(|object| object.status.as_ref());
        if object.is_some() {
            advertised = status::advertised(held, reset);
        }
        let (fresh, ready) = fresh_status(&node, &heartbeat, held, &advertised).await;
        let withdrawn = status::withdrawn(held, &fresh);
        if held.is_some_and(|held| !is_agreed(held, &fresh)) || !withdrawn.is_empty() {
            sent = None;
        }
        if registered {
            for reason in told.changes(object.as_ref(), &fresh) {
                node_event(&node, reason, &format!("Node {} status is now: {reason}", node.config.node_name));
            }
            let value = serde_json::to_value(&fresh).unwrap_or_else(|_| json!({}));
            let due = sent_at.elapsed() >= node.config.node_status_report;
            let mut agreed = true;
            if due || sent.as_ref().is_none_or(|sent| !same(sent, &value)) {
                let outcome = send(&node, sent.as_ref(), &value, &withdrawn).await;
                agreed = outcome.is_ok();
                match outcome {
                    Ok(()) => {
                        sent = Some(value);
                        sent_at = Instant::now();
                        *heartbeat.last.lock() = Some(fresh);
                    }
                    Err(kube::Error::Api(answer)) if answer.code == 404 => registered = false,
                    Err(error) => tracing::warn!(%error, "the node's status could not be sent; trying again"),
                }
            }
            // What a Node names that was not seen is yet to be reset.
            if reset && agreed && object.is_some() {
                reset = false;
                node.devices.settle();
            }
        }
        let pause = match (ready && registered, started.elapsed() < HURRY) {
            (true, _) => UPDATE,
            (false, true) => WHILE_NOT_READY,
            (false, false) => Duration::from_secs(1),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = heartbeat.wanted.notified() => {}
            Ok(()) = in_use.changed() => {}
            Ok(()) = devices.changed() => {}
        }
    }
}

/// What was last told of the node by events (`pkg/kubelet/nodestatus/setters.go`).
#[derive(Default)]
struct Told {
    conditions: BTreeMap<String, String>,
    unschedulable: bool,
    began: bool,
}

impl Told {
    /// The reasons of the events that are due: conditions that changed since, and whether pods may come. All
    /// are told when the kubelet starts, but for a readiness that the API knows.
    fn changes(&mut self, held: Option<&Node>, fresh: &NodeStatus) -> Vec<&'static str> {
        let known = held.and_then(|held| held.status.as_ref()?.conditions.as_ref()).into_iter().flatten();
        // Others may have set it since: to Unknown, of a node that was cut off.
        if let Some(ready) = known.into_iter().find(|condition| condition.type_ == READY)
            && (!self.began || ready.status == "Unknown")
        {
            self.conditions.insert(READY.to_owned(), ready.status.clone());
        }
        self.began = true;
        let mut due = Vec::new();
        for condition in fresh.conditions.iter().flatten() {
            let before = self.conditions.insert(condition.type_.clone(), condition.status.clone());
            let is_news = before.as_ref() != Some(&condition.status);
            // That a node is not ready yet when it starts is no news.
            let starts = before.is_none() && condition.type_ == READY && condition.status != "True";
            if is_news && !starts {
                due.extend(reason_of(condition));
            }
        }
        if let Some(spec) = held.and_then(|held| held.spec.as_ref()) {
            let unschedulable = spec.unschedulable.unwrap_or(false);
            if unschedulable != self.unschedulable {
                due.push(if unschedulable { "NodeNotSchedulable" } else { "NodeSchedulable" });
            }
            self.unschedulable = unschedulable;
        }
        due
    }
}

const READY: &str = "Ready";

fn reason_of(condition: &NodeCondition) -> Option<&'static str> {
    Some(match (condition.type_.as_str(), condition.status == "True") {
        ("MemoryPressure", true) => "NodeHasInsufficientMemory",
        ("MemoryPressure", false) => "NodeHasSufficientMemory",
        ("DiskPressure", true) => "NodeHasDiskPressure",
        ("DiskPressure", false) => "NodeHasNoDiskPressure",
        ("PIDPressure", true) => "NodeHasInsufficientPID",
        ("PIDPressure", false) => "NodeHasSufficientPID",
        (READY, true) => "NodeReady",
        (READY, false) => "NodeNotReady",
        _ => return None,
    })
}

pub fn node_event(node: &NodeContext, reason: &str, message: &str) {
    node_event_of(node, EventType::Normal, reason, message);
}

pub fn node_event_of(node: &NodeContext, kind: EventType, reason: &str, message: &str) {
    let name = node.config.node_name.clone();
    let reference = ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(name.clone()),
        // As the kubelet does: the node's name stands for its UID.
        uid: Some(name),
        ..Default::default()
    };
    node.recorder.event(&reference, kind, reason, message);
}

/// Equal but for heartbeat times.
fn same(a: &Value, b: &Value) -> bool {
    let without = |value: &Value| {
        let mut value = value.clone();
        for condition in value["conditions"].as_array_mut().into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                condition.remove("lastHeartbeatTime");
            }
        }
        value
    };
    without(a) == without(b)
}

/// How long the runtime has to say how it is. One that hangs must not keep the node from telling.
const ANSWER: Duration = Duration::from_secs(10);

async fn soon<T>(answer: impl Future<Output = Result<T, RuntimeError>>) -> Option<T> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the container runtime does not say how it is; asking again");
            None
        }
        Err(_) => {
            tracing::warn!(seconds = ANSWER.as_secs(), "the container runtime does not answer; asking again");
            None
        }
    }
}

async fn fresh_status(
    node: &NodeContext,
    heartbeat: &Heartbeat,
    held: Option<&NodeStatus>,
    advertised: &Amounts,
) -> (NodeStatus, bool) {
    let runtime = &node.runtime;
    let (told, version, images) =
        tokio::join!(soon(runtime.status()), soon(runtime.version()), soon(runtime.list_images()));
    let now = Instant::now();
    let heard = {
        let mut heard = heartbeat.heard.lock();
        if let Some(status) = told {
            heard.note(status, now);
        }
        if let Some(version) = version {
            heard.version = format!("{}://{}", version.runtime_name, version.runtime_version);
        }
        if let Some(images) = images {
            heard.images = images;
        }
        heard.clone()
    };
    let judged = heard.judge(*node.relisted.read(), now);
    let runtime = judged.as_deref().map_err(String::as_str);
    if let Ok(status) = runtime {
        let default = status.runtime_handlers.iter().find(|handler| handler.name.is_empty());
        let recursive =
            default.and_then(|handler| handler.features.as_ref()).is_some_and(|f| f.recursive_read_only_mounts);
        let strict = status.features.as_ref().is_some_and(|features| features.supplemental_groups_policy);
        *node.runtime_features.write() =
            RuntimeFeatures { recursive_read_only_mounts: recursive, strict_groups: Some(strict) };
    }
    let root = file_system(&node.config.layout.root).unwrap_or_default();
    let last = heartbeat.last_conditions(held);
    let status = status::generate(&View {
        config: &node.config,
        machine: &node.machine,
        root,
        runtime,
        runtime_version: &heard.version,
        images: &heard.images,
        pressure: heartbeat.pressure(),
        volumes_in_use: &node.volumes.in_use().borrow().clone(),
        devices: &node.devices.counts(),
        advertised,
        last: &last,
        now: Timestamp::now(),
    });
    let ready = status::readiness(runtime).0;
    (status, ready)
}

/// How long a look at the Node may take.
const LOOK: Duration = Duration::from_secs(5);

/// The Node as the API has it.
async fn look(node: &NodeContext) -> Option<Node> {
    let api: Api<Node> = Api::all(node.client.clone());
    // Without an answer what it said last is the better guess: what is sent next will tell.
    tokio::time::timeout(LOOK, api.get_opt(&node.config.node_name)).await.ok()?.ok()?
}

/// Whether the API's Ready condition is the one this node would send. The node lifecycle controller
/// sets it to Unknown while the node is cut off; it is the node that sets it right again.
fn is_agreed(held: &NodeStatus, fresh: &NodeStatus) -> bool {
    let ready = |status: &NodeStatus| {
        let conditions = status.conditions.as_ref().into_iter().flatten();
        conditions.filter(|condition| condition.type_ == "Ready").map(|ready| ready.status.clone()).next()
    };
    ready(held) == ready(fresh)
}

/// Creates the Node, or puts its labels right. Returns the status that the API has, and whether the Node was
/// created.
async fn register(node: &NodeContext, status: &NodeStatus) -> Result<(Option<Value>, bool), kube::Error> {
    let api: Api<Node> = Api::all(node.client.clone());
    let config = &node.config;
    let annotations = [("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())];
    let object = Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(status::labels(&node.config, &node.machine)),
            annotations: Some(annotations.into_iter().collect()),
            ..Default::default()
        },
        spec: Some(NodeSpec {
            taints: (!config.taints.is_empty()).then(|| config.taints.clone()),
            provider_id: config.provider_id.clone(),
            ..Default::default()
        }),
        status: Some(status.clone()),
    };
    match api.create(&PostParams::default(), &object).await {
        // The status a creation carries is kept by the API; nothing else is to be sent.
        Ok(created) => Ok((created.status.and_then(|status| serde_json::to_value(status).ok()), true)),
        Err(kube::Error::Api(answer)) if answer.code == 409 => {
            let patch = json!({"metadata": {"labels": status::labels(&node.config, &node.machine)}});
            let existing = api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            Ok((existing.status.and_then(|status| serde_json::to_value(status).ok()), false))
        }
        Err(error) => Err(error),
    }
}

/// Sends what changed.
async fn send(
    node: &NodeContext,
    sent: Option<&Value>,
    wanted: &Value,
    withdrawn: &[String],
) -> Result<(), kube::Error> {
    let mut changes = changes(sent, wanted);
    for name in withdrawn {
        changes["status"]["allocatable"][name] = Value::Null;
    }
    let patch = Patch::Strategic(changes);
    let api: Api<Node> = Api::all(node.client.clone());
    api.patch_status(&node.config.node_name, &PatchParams::default(), &patch).await.map(drop)
}

/// What has to be sent, after `sent` if that is known. Conditions and addresses merge by type, so those
/// of others stay.
fn changes(sent: Option<&Value>, wanted: &Value) -> Value {
    let mut changes = serde_json::Map::new();
    for (key, value) in wanted.as_object().into_iter().flatten() {
        let unchanged = sent.is_some_and(|sent| sent.get(key) == Some(value));
        if unchanged {
            continue;
        }
        let value = match (key.as_str(), value) {
            // Addresses of a type that occurs twice cannot merge: the list is replaced.
            ("addresses", Value::Array(list)) => {
                let mut list = list.clone();
                list.push(json!({"$patch": "replace"}));
                Value::Array(list)
            }
            (_, value) => value.clone(),
        };
        changes.insert(key.clone(), value);
    }
    // The only list that can become empty. What the API has may be unknown.
    let used = |status: &Value| status.get("volumesInUse").is_some_and(|list| list != &json!([]));
    if !used(wanted) && sent.is_none_or(used) {
        changes.insert("volumesInUse".to_owned(), json!([]));
    }
    json!({"status": changes})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_alone_are_no_change() {
        let status = |heartbeat: &str, ready: &str| json!({"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}]});
        assert!(same(&status("1", "True"), &status("2", "True")));
        assert!(!same(&status("1", "True"), &status("1", "False")));
    }

    #[test]
    fn transitions_count_from_what_the_api_has() {
        let status = |ready: &str, at: &str| -> NodeStatus {
            let ready = json!({"type": "Ready", "status": ready, "lastTransitionTime": at});
            serde_json::from_value(json!({"conditions": [ready]})).unwrap()
        };
        let (old, unknown) = (status("True", "2026-01-01T00:00:00Z"), status("Unknown", "2026-01-02T00:00:00Z"));
        let heartbeat = Heartbeat::default();
        assert!(heartbeat.last_conditions(None).is_empty());
        assert_eq!(heartbeat.last_conditions(Some(&old)), old.conditions.clone().unwrap(), "of an earlier process");
        *heartbeat.last.lock() = Some(old.clone());
        assert_eq!(heartbeat.last_conditions(Some(&unknown)), unknown.conditions.unwrap(), "it was cut off");
        assert_eq!(heartbeat.last_conditions(None), old.conditions.unwrap());
    }

    #[test]
    fn volumes_that_are_used_no_longer_are_taken_back_also_from_what_is_unknown() {
        let used = json!({"volumesInUse": ["v"]});
        for (sent, wanted, said) in [
            (Some(&used), json!({}), Some(json!([]))),
            (None, json!({}), Some(json!([]))),
            (Some(&json!({})), json!({}), None),
            (None, used.clone(), Some(json!(["v"]))),
            (Some(&used), used.clone(), None),
        ] {
            assert_eq!(changes(sent, &wanted)["status"].get("volumesInUse"), said.as_ref(), "{sent:?} {wanted}");
        }
    }

    #[test]
    fn changes_of_a_node_are_told_once() {
        let status = |ready: &str, memory: &str| -> NodeStatus {
            let condition = |name: &str, status: &str| json!({"type": name, "status": status});
            let conditions = [
                condition("MemoryPressure", memory),
                condition("DiskPressure", "False"),
                condition("PIDPressure", "False"),
                condition("Ready", ready),
            ];
            serde_json::from_value(json!({"conditions": conditions})).unwrap()
        };
        let held = |ready: &str, unschedulable: bool| -> Node {
            let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
            serde_json::from_value(json!({"spec": {"unschedulable": unschedulable}, "status": status})).unwrap()
        };
        let mut told = Told::default();
        let at_start = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"];
        for (object, fresh, expected) in [
            (None, status("False", "False"), at_start.to_vec()),
            (Some(held("False", false)), status("True", "False"), vec!["NodeReady"]),
            (Some(held("True", true)), status("True", "True"), vec!["NodeHasInsufficientMemory", "NodeNotSchedulable"]),
            (None, status("True", "True"), vec![]),
            (Some(held("True", false)), status("True", "False"), vec!["NodeHasSufficientMemory", "NodeSchedulable"]),
            (Some(held("Unknown", false)), status("True", "False"), vec!["NodeReady"]),
            (Some(held("True", false)), status("False", "False"), vec!["NodeNotReady"]),
        ] {
            assert_eq!(told.changes(object.as_ref(), &fresh), expected);
        }
        let mut again = Told::default();
        assert_eq!(again.changes(Some(&held("True", false)), &status("True", "False")), at_start, "another kubelet");
    }
}
