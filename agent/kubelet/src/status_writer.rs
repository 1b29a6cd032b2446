//! Sends pods' statuses to the API: the latest of each pod, changes only, several pods at once.
//!
//! [`patch`] is pure. A pod that has ended and is marked for deletion is deleted for good here, after
//! its last status was written: nobody can then see it gone while it still ran.

use std::collections::HashMap;
use std::sync::Arc;

use component::{Outcome, Supervisor, WorkQueue};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::pod::conditions;

/// Writers at work at once.
const WRITERS: usize = 8;

#[derive(Clone)]
pub struct StatusWriter {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    queue: WorkQueue<String>,
    /// By the pod's UID in the API.
    entries: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    namespace: String,
    name: String,
    wanted: PodStatus,
    /// What the API has, as far as known.
    base: Value,
    /// The pod is to be deleted once `wanted` is written.
    delete: bool,
}

impl StatusWriter {
    pub fn new(client: Client, supervisor: &Supervisor) -> Self {
        let writer = Self::detached(client);
        let inner = writer.inner.clone();
        writer.inner.queue.run(&supervisor.child("status"), WRITERS, move |uid| {
            let inner = inner.clone();
            async move { inner.write(&uid).await }
        });
        writer
    }

    /// A writer that nothing drives.
    pub fn detached(client: Client) -> Self {
        Self { inner: Arc::new(Inner { client, queue: WorkQueue::new(), entries: Mutex::default() }) }
    }

    /// Wishes a pod's status to be `status`. `uid` is that of the API object.
    pub fn set(&self, pod: &Pod, uid: String, status: &PodStatus, delete: bool) {
        let mut entries = self.inner.entries.lock();
        match entries.get_mut(&uid) {
            Some(entry) if entry.wanted == *status && entry.delete == delete => return,
            Some(entry) => {
                entry.wanted = status.clone();
                entry.delete = delete;
            }
            None => {
                let base = pod
                    .status
                    .as_ref()
                    .and_then(|status| serde_json::to_value(status).ok())
                    .unwrap_or_else(|| json!({}));
                let entry = Entry {
                    namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                    name: pod.metadata.name.clone().unwrap_or_default(),
                    wanted: status.clone(),
                    base,
                    delete,
                };
                entries.insert(uid.clone(), entry);
            }
        }
        drop(entries);
        self.inner.queue.add(uid);
    }

    /// The API shows this status now. If someone else changed what is the kubelet's, it is put right.
    pub fn seen(&self, uid: &str, status: Option<&PodStatus>) {
        let mut entries = self.inner.entries.lock();
        let Some(entry) = entries.get_mut(uid) else { return };
        let theirs = status.cloned().unwrap_or_default();
        if agrees(&entry.wanted, &theirs) {
            return;
        }
        entry.base = serde_json::to_value(&theirs).unwrap_or_else(|_| json!({}));
        drop(entries);
        self.inner.queue.add(uid.to_owned());
    }

    pub fn forget(&self, uid: &str) {
        self.inner.entries.lock().remove(uid);
    }
}

/// Whether phase and owned conditions are as wished.
fn agrees(wanted: &PodStatus, theirs: &PodStatus) -> bool {
    let owned = |status: &PodStatus| -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = status
            .conditions
            .iter()
            .flatten()
            .filter(|condition| conditions::is_owned(&condition.type_))
            .map(|condition| (condition.type_.clone(), condition.status.clone()))
            .collect();
        found.sort();
        found
    };
    wanted.phase == theirs.phase && owned(wanted) == owned(theirs)
}

impl Inner {
    async fn write(&self, uid: &str) -> Outcome {
        let Some((namespace, name, wanted, base, delete)) = self.entries.lock().get(uid).map(|entry| {
            let wanted = serde_json::to_value(&entry.wanted).unwrap_or_else(|_| json!({}));
            (entry.namespace.clone(), entry.name.clone(), wanted, entry.base.clone(), entry.delete)
        }) else {
            return Outcome::Done;
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        if let Some(patch) = patch(uid, &base, &wanted) {
            match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    if let Some(entry) = self.entries.lock().get_mut(uid) {
                        entry.base = wanted;
                    }
                }
                Err(error) => return self.failed(uid, "writing the status of", &namespace, &name, &error).await,
            }
        }
        if !delete {
            return Outcome::Done;
        }
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..Default::default()
        };
        match api.delete(&name, &parameters).await {
            Ok(_) => Outcome::Done,
            Err(error) => self.failed(uid, "deleting", &namespace, &name, &error).await,
        }
    }

    async fn failed(&self, uid: &str, action: &str, namespace: &str, name: &str, error: &kube::Error) -> Outcome {
        let is_gone = match error {
            kube::Error::Api(status) if status.code == 404 => true,
            // Another pod may have its name, or only many others write to it.
            kube::Error::Api(status) if status.code == 409 => !self.rebase(uid, namespace, name).await,
            _ => false,
        };
        if is_gone {
            self.entries.lock().remove(uid);
            return Outcome::Done;
        }
        tracing::warn!(pod = format!("{namespace}/{name}"), %error, "{action} a pod failed; trying again");
        Outcome::Retry
    }

    /// Looks at what the API has now. False if it no longer has this pod.
    async fn rebase(&self, uid: &str, namespace: &str, name: &str) -> bool {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        // Without an answer the next try tells.
        let Ok(found) = api.get_opt(name).await else { return true };
        let Some(pod) = found.filter(|pod| pod.metadata.uid.as_deref() == Some(uid)) else { return false };
        if let Some(entry) = self.entries.lock().get_mut(uid) {
            entry.base = serde_json::to_value(pod.status.unwrap_or_default()).unwrap_or_else(|_| json!({}));
        }
        true
    }
}

/// The strategic merge patch that makes `base` into `wanted`; none if nothing changed.
pub fn patch(uid: &str, base: &Value, wanted: &Value) -> Option<Value> {
    let empty = Map::new();
    let base = base.as_object().unwrap_or(&empty);
    let wanted = wanted.as_object().unwrap_or(&empty);
    let mut changes = Map::new();
    for (key, value) in wanted {
        if base.get(key) == Some(value) {
            continue;
        }
        let change = match key.as_str() {
            "conditions" => changed_conditions(base.get(key), value),
            "podIPs" | "hostIPs" => replaced_ips(base.get(key), value),
            _ => value.clone(),
        };
        if change.as_array().is_none_or(|list| !list.is_empty()) {
            if key == "conditions"
                && let Some(order) = order_of_conditions(base.get(key), value)
            {
                changes.insert("$setElementOrder/conditions".to_owned(), order);
            }
            changes.insert(key.clone(), change);
        }
    }
    for key in base.keys().filter(|key| !wanted.contains_key(*key)) {
        changes.insert(key.clone(), Value::Null);
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

/// The kubelet's own conditions that differ: the list merges by type.
fn changed_conditions(base: Option<&Value>, wanted: &Value) -> Value {
    let known = base.and_then(Value::as_array).cloned().unwrap_or_default();
    let changed = wanted.as_array().into_iter().flatten().filter(|condition| {
        let name = condition["type"].as_str().unwrap_or_default();
        conditions::is_ours(name, condition["reason"].as_str()) && !known.contains(condition)
    });
    let with_removals = changed.map(|condition| {
        let before = known.iter().find(|before| before["type"] == condition["type"]);
        let mut condition = condition.clone();
        for key in ["reason", "message"] {
            if before.is_some_and(|before| before.get(key).is_some()) && condition.get(key).is_none() {
                condition[key] = Value::Null;
            }
        }
        condition
    });
    let wanted_type =
        |name: &Value| wanted.as_array().into_iter().flatten().any(|condition| condition["type"] == *name);
    let gone = known
        .iter()
        .filter(|before| conditions::is_owned(before["type"].as_str().unwrap_or_default()))
        .filter(|before| !wanted_type(&before["type"]))
        .map(|before| json!({"type": before["type"], "$patch": "delete"}));
    Value::Array(with_removals.chain(gone).collect())
}

/// A condition that is new would be put behind all others: the list's order is told with it.
fn order_of_conditions(base: Option<&Value>, wanted: &Value) -> Option<Value> {
    let types = |list: &Value| -> Vec<Value> {
        list.as_array().into_iter().flatten().map(|condition| json!({"type": condition["type"]})).collect()
    };
    let known = types(base?);
    let wanted = types(wanted);
    let has_new = !known.is_empty() && wanted.iter().any(|one| !known.contains(one));
    has_new.then_some(Value::Array(wanted))
}

/// Addresses merge by `ip`: those that are gone are deleted by name.
fn replaced_ips(base: Option<&Value>, wanted: &Value) -> Value {
    let known = base.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut list = wanted.as_array().cloned().unwrap_or_default();
    let gone: Vec<Value> =
        known.iter().filter(|ip| !list.contains(ip)).map(|ip| json!({"ip": ip["ip"], "$patch": "delete"})).collect();
    list.extend(gone);
    Value::Array(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An API that refuses every patch for a conflict, and has the pod `p` with this UID.
    fn conflicting(uid: &'static str) -> Client {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let meta = json!({"name": "p", "uid": uid});
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": {"phase": "Pending"}});
            let conflict = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                "message": "no", "reason": "Conflict", "code": 409});
            let (code, body): (u16, Value) =
                if request.method() == http::Method::GET { (200, pod) } else { (409, conflict) };
            async move {
                let body = kube::client::Body::from(body.to_string().into_bytes());
                http::Response::builder().status(code).body(body).map_err(tower::BoxError::from)
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn a_conflict_is_tried_again_unless_the_pod_is_another() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let running = PodStatus { phase: Some("Running".to_owned()), ..Default::default() };
        let known = Some(json!({"phase": "Pending"}));
        for (uid, outcome, base) in [("u", Outcome::Retry, known), ("v", Outcome::Done, None)] {
            let writer = StatusWriter::detached(conflicting(uid));
            writer.set(&pod, "u".to_owned(), &running, false);
            assert_eq!(writer.inner.write("u").await, outcome, "{uid}");
            assert_eq!(writer.inner.entries.lock().get("u").map(|entry| entry.base.clone()), base, "{uid}");
        }
    }

    #[test]
    fn only_what_changed_is_sent() {
        let ready = |status: &str| json!({"type": "Ready", "status": status});
        for (base, wanted, status) in [
            (json!({"phase": "Running"}), json!({"phase": "Running"}), None),
            (
                json!({"phase": "Pending", "message": "m"}),
                json!({"phase": "Running"}),
                Some(json!({"phase": "Running", "message": null})),
            ),
            (
                json!({"conditions": [ready("False"), {"type": "Foreign", "status": "True"}]}),
                json!({"conditions": [{"type": "Foreign", "status": "False"}, ready("True")]}),
                Some(json!({"conditions": [ready("True")]})),
            ),
            (
                json!({"conditions": [{"type": "Ready", "status": "False", "reason": "X"}]}),
                json!({"conditions": [ready("True")]}),
                Some(json!({"conditions": [{"type": "Ready", "status": "True", "reason": null}]})),
            ),
            (
                json!({"conditions": [ready("True"), {"type": "PodResizePending", "status": "True"}, {"type": "Foreign", "status": "True"}]}),
                json!({"conditions": [ready("True")]}),
                Some(json!({"conditions": [{"type": "PodResizePending", "$patch": "delete"}]})),
            ),
            (
                json!({"conditions": [ready("True")]}),
                json!({"conditions": [{"type": "PodResizePending", "status": "True"}, ready("True")]}),
                Some(json!({"$setElementOrder/conditions": [{"type": "PodResizePending"}, {"type": "Ready"}],
                    "conditions": [{"type": "PodResizePending", "status": "True"}]})),
            ),
            (
                json!({"podIPs": [{"ip": "1.1.1.1"}]}),
                json!({"podIPs": [{"ip": "2.2.2.2"}]}),
                Some(json!({"podIPs": [{"ip": "2.2.2.2"}, {"ip": "1.1.1.1", "$patch": "delete"}]})),
            ),
            // a node with another address than before
            (
                json!({"hostIPs": [{"ip": "1.1.1.1"}]}),
                json!({"hostIPs": [{"ip": "2.2.2.2"}]}),
                Some(json!({"hostIPs": [{"ip": "2.2.2.2"}, {"ip": "1.1.1.1", "$patch": "delete"}]})),
            ),
        ] {
            let expected = status.map(|status| json!({"metadata": {"uid": "u"}, "status": status}));
            assert_eq!(patch("u", &base, &wanted), expected, "{base} {wanted}");
        }
    }
}
