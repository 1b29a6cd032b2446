//! `pods/binding` and `pods/eviction`.

use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::delete::DeleteOptions;
use super::metadata::{self, Preconditions};
use super::write::Change;
use super::{Call, Current, subresource};
use crate::admit::{Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;
use crate::kinds::core::pod::eviction::{self, Decision, put_condition};
use crate::resource::GroupVersionKind;

/// Attempts at taking a disruption from a budget that others write, and at deleting a pod that does not run
/// yet as it stands, with the pause between these.
const BUDGET_ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// Assigns a pod to a node.
pub async fn bind(asked: &Asked, call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let mut binding = subresource::decode(asked, call, body, &GroupVersionKind::new("", "v1", "Binding"))?;
    metadata::check_namespace(&mut binding, &call.info.namespace)?;
    if call.info.subresource == "binding" && metadata::text(&binding, "name") != call.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
    }
    let options = call.options_object("CreateOptions");
    let binding = call.mutate(Operation::Create, binding, None, &options).await?;
    let errors = target_problems(&binding);
    if !errors.is_empty() {
        return Err(ApiError::invalid("", "Binding", metadata::text(&binding, "name"), &errors));
    }
    let binding = call.validate(Operation::Create, binding, None, &options).await?;
    let pod_call = on_pod(call, metadata::text(&binding, "name"), "binding")?;
    pod_call.update(&Bind { binding }).await?;
    subresource::succeed(asked, StatusCode::CREATED)
}

/// `ValidatePodBinding`
fn target_problems(binding: &Value) -> api::field::ErrorList {
    let path = api::field::Path::root("target");
    let part = |field: &str| binding["target"][field].as_str().unwrap_or_default();
    let mut errors = Vec::new();
    if !matches!(part("kind"), "" | "Node") {
        errors.push(api::field::Error::not_supported(&path.child("kind"), part("kind"), &["Node", "<empty>"]));
    }
    if part("name").is_empty() {
        errors.push(api::field::Error::required(&path.child("name"), ""));
    }
    errors
}

/// A call on the pod itself, as part of this one.
fn on_pod(call: &Call, name: &str, subresource: &str) -> Result<Call> {
    let resources = call.api.resources();
    let endpoint = resources.by_hub("", "pods").cloned().ok_or_else(ApiError::no_such_path)?;
    let mut info = (*call.info).clone();
    (info.resource, info.name, info.subresource) = ("pods".to_owned(), name.to_owned(), subresource.to_owned());
    Ok(Call {
        api: call.api.clone(),
        endpoint,
        user: call.user.clone(),
        info: Arc::new(info),
        query: call.query.clone(),
        options: call.options.clone(),
        manager: call.manager.clone(),
        applies: false,
        now: call.now,
        deadline: call.deadline,
        warnings: parking_lot::Mutex::default(),
        record: call.record.clone(),
    })
}

struct Bind {
    binding: Value,
}

#[async_trait]
impl Change for Bind {
    async fn apply(&self, call: &Call, old: Option<&Value>) -> Result<Option<Value>> {
        let Some(old) = old else { return Ok(None) };
        bound(old, &self.binding, &api::scalar::time(call.now)).map(Some)
    }

    fn retries(&self) -> bool {
        true
    }

    fn options_kind(&self) -> &'static str {
        "UpdateOptions"
    }
}

/// The pod after the binding, or why it cannot be.
fn bound(pod: &Value, binding: &Value, now: &str) -> Result<Value> {
    let name = metadata::text(pod, "name");
    let optional = |key: &str| Some(metadata::text(binding, key).to_owned()).filter(|text| !text.is_empty());
    let wanted = Preconditions { uid: optional("uid"), resource_version: optional("resourceVersion") };
    let key = format!("/registry/pods/{}/{name}", metadata::text(pod, "namespace"));
    wanted.check_write("", "pods", &key, pod)?;
    let refused = |why: String| Err(ApiError::conflict("", "pods/binding", name, why));
    if metadata::is_deleting(pod) {
        return refused(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let assigned = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !assigned.is_empty() {
        return refused(format!("pod {name} is already assigned to node {assigned:?}"));
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return refused(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    for part in ["annotations", "labels"] {
        for (key, value) in binding["metadata"][part].as_object().into_iter().flatten() {
            pod["metadata"][part][key] = value.clone();
        }
    }
    set_scheduled(&mut pod, now);
    // Where it was to go is where it is now, or does not matter any more (`ClearingNominatedNodeNameAfterBinding`).
    crate::kinds::value::remove(&mut pod, "status.nominatedNodeName");
    Ok(pod)
}

/// Without a generation, as in Kubernetes: that is the kubelet's to say, who thereby owns the field.
fn set_scheduled(pod: &mut Value, now: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    put_condition(pod, condition);
}

/// Deletes a pod unless a disruption budget forbids it now.
pub async fn evict(asked: &Asked, call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let (mut eviction, duplicates) = crate::http::resources::parse_body(asked, body)?;
    // `policy/v1beta1` is what old clients send.
    if eviction["apiVersion"] == "policy/v1beta1" {
        eviction["apiVersion"] = "policy/v1".into();
    }
    subresource::normalize(call, &mut eviction, &GroupVersionKind::new("policy", "v1", "Eviction"), duplicates)?;
    metadata::check_namespace(&mut eviction, &call.info.namespace)?;
    if metadata::text(&eviction, "name") != call.info.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let unreadable = "ignoreStoreReadErrorWithClusterBreakingPotential";
    if eviction["deleteOptions"][unreadable] == true {
        let path = api::field::Path::root("deleteOptions").child(unreadable);
        let detail = "can not be set for pod eviction, try after removing the option";
        let error = api::field::Error::invalid(&path, true, detail);
        return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
    }
    let options = call.options_object("CreateOptions");
    let eviction = call.mutate(Operation::Create, eviction, None, &options).await?;
    let eviction = call.validate(Operation::Create, eviction, None, &options).await?;
    let mut delete = DeleteOptions::parse(&eviction["deleteOptions"])?;
    delete.dry_run |= call.options.dry_run;
    let pod_call = on_pod(call, &call.info.name, "eviction")?;
    // What is insisted on is not tried again with another version.
    let insists = delete.preconditions.resource_version.is_some();
    for attempt in 1.. {
        let Current { value: pod, .. } = pod_call.current().await?.ok_or_else(|| pod_call.not_found())?;
        delete.preconditions.check_delete("", "Pod", &pod)?;
        let decision = spend(call, &pod, delete.dry_run).await?;
        match remove(call, &pod_call, &pod, as_it_stands(&delete, &decision, &pod)).await {
            Err(error) if error.is_conflict() && !insists => match decision {
                Decision::DeletePending if attempt < BUDGET_ATTEMPTS => tokio::time::sleep(PAUSE).await,
                Decision::DeleteUnready(budget) => return Err(eviction::being_processed(&budget)),
                _ => return Err(error),
            },
            Err(error) if !error.is_not_found() => return Err(error),
            _ => break,
        }
    }
    subresource::succeed(asked, StatusCode::CREATED)
}

/// The options for a pod that may go without a budget as long as it is what it was when that was decided.
fn as_it_stands(delete: &DeleteOptions, decision: &Decision, pod: &Value) -> DeleteOptions {
    let mut delete = delete.clone();
    if matches!(decision, Decision::DeletePending | Decision::DeleteUnready(_)) {
        delete.preconditions.resource_version.get_or_insert_with(|| metadata::text(pod, "resourceVersion").to_owned());
    }
    delete
}

/// Marks a pod as evicted and deletes it.
async fn remove(call: &Call, pod_call: &Call, pod: &Value, mut delete: DeleteOptions) -> Result<()> {
    if !delete.dry_run && !metadata::is_deleting(pod) {
        let marked = mark_evicted(call, &call.info.name, &delete.preconditions).await?;
        // The version asked for is the one that was marked.
        if delete.preconditions.resource_version.is_some() {
            delete.preconditions.resource_version = marked;
        }
    }
    pod_call.delete(&delete).await.map(drop)
}

/// Says why the pod goes, so that a Job does not count it as its own failure. The version of the pod that
/// says so; none when it is gone already.
async fn mark_evicted(call: &Call, name: &str, wanted: &Preconditions) -> Result<Option<String>> {
    let now = api::scalar::time(call.now);
    for _ in 0..BUDGET_ATTEMPTS {
        let Some(pod) = call.api.get_live("", "pods", &call.info.namespace, name).await? else { return Ok(None) };
        wanted.check_delete("", "Pod", &pod)?;
        match call.api.update("", "pods", "status", eviction::marked(&pod, &now)).await {
            Err(error) if error.is_conflict() => {}
            Err(error) if error.is_not_found() => return Ok(None),
            outcome => return outcome.map(|pod| Some(metadata::text(&pod, "resourceVersion").to_owned())),
        }
    }
    Err(ApiError::too_many_requests("Cannot evict pod: its status is being changed by others", 10))
}

/// Decides whether the pod may go, and takes a disruption from the budget that covers it.
async fn spend(call: &Call, pod: &Value, dry_run: bool) -> Result<Decision> {
    let now = api::scalar::time(call.now);
    for _ in 0..BUDGET_ATTEMPTS {
        let budgets = call.api.list("policy", "poddisruptionbudgets", &call.info.namespace).await?;
        let budgets: Vec<&Value> = budgets.iter().map(|budget| &**budget).collect();
        let decision = eviction::decide(pod, &budgets, &now)?;
        let Decision::SpendThenDelete(budget) = &decision else { return Ok(decision) };
        if dry_run {
            return Ok(decision);
        }
        match call.api.update("policy", "poddisruptionbudgets", "status", (**budget).clone()).await {
            Err(error) if error.is_conflict() => {
                // The cache will show the newer budget in a moment.
                if let Some(endpoint) = call.api.resources().by_hub("policy", "poddisruptionbudgets") {
                    endpoint.cache.fresh().await?;
                }
            }
            outcome => return outcome.map(|_| decision),
        }
    }
    Err(ApiError::too_many_requests("Cannot evict pod: its disruption budget is being changed by others", 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_to_nodes() {
        for (target, expected) in [
            (json!({"name": "n"}), "[]"),
            (json!({"kind": "Node", "name": "n"}), "[]"),
            (
                json!({"kind": "Pod"}),
                "[target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\", target.name: Required value]",
            ),
        ] {
            assert_eq!(api::field::join(&target_problems(&json!({"target": target}))), expected, "{target}");
        }
    }

    /// It may become ready between the look at it and its deletion, and then a budget has a say.
    #[test]
    fn a_pod_that_needs_no_budget_is_evicted_only_as_it_was_seen() {
        let pod = json!({"metadata": {"name": "a", "resourceVersion": "7"}});
        let insisting = DeleteOptions {
            preconditions: Preconditions { uid: None, resource_version: Some("6".to_owned()) },
            ..DeleteOptions::default()
        };
        let version = |delete: &DeleteOptions, decision: Decision| {
            as_it_stands(delete, &decision, &pod).preconditions.resource_version.unwrap_or_default()
        };
        let free = DeleteOptions::default();
        assert_eq!(version(&free, Decision::DeletePending), "7");
        assert_eq!(version(&free, Decision::DeleteUnready("b".to_owned())), "7");
        assert_eq!(version(&free, Decision::Delete), "");
        assert_eq!(version(&free, Decision::SpendThenDelete(Box::default())), "");
        assert_eq!(version(&insisting, Decision::DeletePending), "6", "the caller's own goes first");
    }

    #[test]
    fn a_pod_is_bound_once() {
        let pod =
            json!({"metadata": {"name": "a", "uid": "u", "generation": 1}, "spec": {}, "status": {"phase": "Pending"}});
        let binding =
            json!({"metadata": {"name": "a", "annotations": {"x": "y"}}, "target": {"kind": "Node", "name": "n1"}});
        let after = bound(&pod, &binding, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(after["spec"]["nodeName"], "n1");
        assert_eq!(after["metadata"]["annotations"]["x"], "y");
        assert_eq!(
            after["status"]["conditions"],
            json!([{"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        );
        let error = bound(&after, &binding, "now").unwrap_err();
        assert_eq!(
            error.message(),
            "Operation cannot be fulfilled on pods/binding \"a\": pod a is already assigned to node \"n1\""
        );
        let other = json!({"metadata": {"name": "a", "uid": "v"}, "target": {"name": "n1"}});
        assert_eq!(bound(&pod, &other, "now").unwrap_err().code(), 409);
    }
}
