//! `pods/eviction`: whether a pod may be evicted under the PodDisruptionBudgets that select it
//! (`pkg/registry/core/pod/storage/eviction.go`).
//!
//! [`decide`] is pure; the handler writes the budget's status which it returns (retrying on a
//! conflict) before it deletes the pod.

use http::StatusCode;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::kinds::value::{at, get, has, int, list, map, name, namespace, set, text};

/// How many pods may be on their way out of one budget.
const MAX_DISRUPTED: usize = 2000;

#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Delete the pod; no budget is spent.
    Delete,
    /// The same, as the pod stands: it does not run yet, and may do so in a moment.
    DeletePending,
    /// The same, as the pod stands: it is not ready, and this budget has enough without it.
    DeleteUnready(String),
    /// Delete the pod after this PodDisruptionBudget (with its new status) was written.
    SpendThenDelete(Box<Value>),
}

/// Whether `pod` may go. `budgets` are all PodDisruptionBudgets of its namespace.
pub fn decide(pod: &Value, budgets: &[&Value], now: &str) -> Result<Decision, ApiError> {
    // What does not run, or goes already, costs no availability.
    if matches!(text(pod, "status.phase"), "Succeeded" | "Failed") || has(pod, "metadata.deletionTimestamp") {
        return Ok(Decision::Delete);
    }
    if text(pod, "status.phase") == "Pending" {
        return Ok(Decision::DeletePending);
    }
    let labels = get(pod, "metadata.labels");
    let mut matching = budgets.iter().filter(|budget| {
        namespace(budget) == namespace(pod)
            && api::selector::Selector::from_json(get(budget, "spec.selector")).is_ok_and(|s| s.matches_json(labels))
    });
    let Some(budget) = matching.next() else { return Ok(Decision::Delete) };
    if matching.next().is_some() {
        let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", why));
    }
    if !ready(pod) && unhealthy_may_go(budget) {
        return Ok(Decision::DeleteUnready(name(budget).to_owned()));
    }
    spend(budget, name(pod), now).map(|budget| Decision::SpendThenDelete(Box::new(budget)))
}

fn ready(pod: &Value) -> bool {
    list(pod, "status.conditions").iter().any(|c| text(c, "type") == "Ready" && text(c, "status") == "True")
}

fn unhealthy_may_go(budget: &Value) -> bool {
    if text(budget, "spec.unhealthyPodEvictionPolicy") == "AlwaysAllow" {
        return true;
    }
    let (healthy, desired) = (int(budget, "status.currentHealthy"), int(budget, "status.desiredHealthy"));
    desired > 0 && healthy >= desired
}

/// The budget with one disruption taken.
fn spend(budget: &Value, pod: &str, now: &str) -> Result<Value, ApiError> {
    let budget_name = name(budget);
    if int(budget, "status.observedGeneration") < int(budget, "metadata.generation") {
        return Err(being_processed(budget_name));
    }
    let allowed = int(budget, "status.disruptionsAllowed");
    if allowed < 0 {
        let why = "pdb disruptions allowed is negative";
        return Err(forbidden(budget_name, why, why));
    }
    if map(budget, "status.disruptedPods").map_or(0, serde_json::Map::len) > MAX_DISRUPTED {
        let unconfirmed = "too many evictions not confirmed by PDB controller";
        let cause = "too many pending evictions not confirmed by PDB controller";
        return Err(forbidden(budget_name, &format!("DisruptedPods map too big - {unconfirmed}"), cause));
    }
    if allowed == 0 {
        return Err(too_many("", 0).with_cause("DisruptionBudget", &why_none(budget), ""));
    }
    let mut spent = (*budget).clone();
    set(&mut spent, "status.disruptionsAllowed", allowed - 1);
    let mut disrupted = at(budget, "status.disruptedPods").as_object().cloned().unwrap_or_default();
    disrupted.insert(pod.to_owned(), json!(now));
    set(&mut spent, "status.disruptedPods", disrupted);
    if allowed == 1 {
        for condition in crate::kinds::value::list_mut(&mut spent, "status.conditions") {
            if text(condition, "type") == "DisruptionAllowed" {
                set(condition, "status", "False");
                set(condition, "reason", "InsufficientPods");
            }
        }
    }
    Ok(spent)
}

fn forbidden(budget: &str, why: &str, cause: &str) -> ApiError {
    let cause = format!("The disruption budget {budget} does not allow evicting pods currently: {cause}");
    ApiError::forbidden("policy", "poddisruptionbudget", budget, why).with_cause("DisruptionBudget", &cause, "")
}

/// Why a budget has no disruption to give: from its numbers, or what its controller says.
fn why_none(budget: &Value) -> String {
    let name = name(budget);
    let condition = list(budget, "status.conditions").iter().find(|c| text(c, "type") == "DisruptionAllowed");
    let (reason, message) = condition.map_or(("", ""), |c| (text(c, "reason"), text(c, "message")));
    let stands = condition.is_some_and(|c| text(c, "status") == "False") && !message.is_empty();
    let (desired, healthy) = (int(budget, "status.desiredHealthy"), int(budget, "status.currentHealthy"));
    if stands && reason == "SyncFailed" {
        format!("The disruption budget {name} does not allow evicting pods currently because it failed sync: {message}")
    } else if healthy <= desired {
        format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
    } else if stands {
        format!("The disruption budget {name} does not allow evicting pods currently ({reason}): {message}")
    } else {
        format!("The disruption budget {name} does not allow evicting pods currently")
    }
}

/// The pod with the condition that tells an eviction from a failure.
pub fn marked(pod: &Value, now: &str) -> Value {
    let mut pod = pod.clone();
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now,
    });
    if let Some(generation) = pod["metadata"]["generation"].as_i64().filter(|generation| *generation > 0) {
        condition["observedGeneration"] = generation.into();
    }
    put_condition(&mut pod, condition);
    pod
}

/// Puts a condition in the place of the one of its type.
pub fn put_condition(pod: &mut Value, condition: Value) {
    let conditions = crate::kinds::value::ensure_list(pod, "status.conditions");
    match conditions.iter_mut().find(|held| held["type"] == condition["type"]) {
        Some(held) => *held = condition,
        None => conditions.push(condition),
    }
}

/// To be asked again soon.
pub fn being_processed(budget: &str) -> ApiError {
    too_many(&format!("The disruption budget {budget} is still being processed by the server."), 10)
}

fn too_many(why: &str, retry_after: u64) -> ApiError {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let error = ApiError::too_many_requests(message, retry_after);
    if why.is_empty() { error } else { error.with_cause("DisruptionBudget", why, "") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64) -> Value {
        json!({"metadata": {"name": "b", "namespace": "n", "generation": 1}, "spec": {"selector": {"matchLabels": {"a": "b"}}},
               "status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "desiredHealthy": 2, "currentHealthy": 2}})
    }

    fn pod(phase: &str, ready: &str) -> Value {
        json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}},
               "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}})
    }

    #[test]
    fn an_evicted_pod_says_so() {
        let after = marked(&pod("Running", "True"), "now");
        assert_eq!(list(&after, "status.conditions").len(), 2);
        assert_eq!(after["status"]["conditions"][1]["reason"], "EvictionByEvictionAPI");
        assert_eq!(marked(&after, "now"), after);
    }

    #[test]
    fn decisions() {
        let (open, closed) = (budget(1), budget(0));
        assert_eq!(decide(&pod("Pending", "False"), &[&closed], "t"), Ok(Decision::DeletePending));
        assert_eq!(decide(&pod("Failed", "False"), &[&closed], "t"), Ok(Decision::Delete));
        assert_eq!(decide(&pod("Running", "True"), &[], "t"), Ok(Decision::Delete));
        let unready = decide(&pod("Running", "False"), &[&closed], "t");
        assert_eq!(unready, Ok(Decision::DeleteUnready("b".to_owned())));
        let refused = decide(&pod("Running", "True"), &[&closed], "t").unwrap_err();
        assert_eq!(refused.code(), 429);
        assert_eq!(refused.message(), "Cannot evict pod as it would violate the pod's disruption budget.");
        assert_eq!(
            refused.to_status()["details"]["causes"][0]["message"],
            "The disruption budget b needs 2 healthy pods and has 2 currently"
        );
        match decide(&pod("Running", "True"), &[&open], "2026-01-01T00:00:00Z") {
            Ok(Decision::SpendThenDelete(spent)) => {
                assert_eq!(spent["status"]["disruptionsAllowed"], 0);
                assert_eq!(spent["status"]["disruptedPods"]["p"], "2026-01-01T00:00:00Z");
            }
            other => panic!("{other:?}"),
        }
        let two = decide(&pod("Running", "True"), &[&open, &closed], "t").unwrap_err();
        assert_eq!((two.code().as_u16(), two.to_status().get("reason")), (500, None));
        assert!(two.message().starts_with("This pod has more than one PodDisruptionBudget"), "{}", two.message());
        let mut negative = budget(0);
        negative["status"]["disruptionsAllowed"] = json!(-1);
        let refused = decide(&pod("Running", "True"), &[&negative], "t").unwrap_err();
        assert_eq!(
            refused.message(),
            "poddisruptionbudget.policy \"b\" is forbidden: pdb disruptions allowed is negative"
        );
        assert_eq!(
            refused.to_status()["details"]["causes"][0]["message"],
            "The disruption budget b does not allow evicting pods currently: pdb disruptions allowed is negative"
        );
    }

    #[test]
    fn why_there_is_none() {
        let with = |healthy: i64, status: &str, reason: &str, message: &str| {
            let mut budget = budget(0);
            budget["status"]["currentHealthy"] = json!(healthy);
            let condition =
                json!({"type": "DisruptionAllowed", "status": status, "reason": reason, "message": message});
            budget["status"]["conditions"] = json!([condition]);
            why_none(&budget)
        };
        let name = "The disruption budget b";
        for (why, expected) in [
            (with(1, "False", "SyncFailed", "m"), "does not allow evicting pods currently because it failed sync: m"),
            (with(1, "False", "InsufficientPods", "m"), "needs 2 healthy pods and has 1 currently"),
            (with(3, "False", "Other", "m"), "does not allow evicting pods currently (Other): m"),
            (with(3, "False", "Other", ""), "does not allow evicting pods currently"),
            (with(3, "True", "SyncFailed", "m"), "does not allow evicting pods currently"),
        ] {
            assert_eq!(why, format!("{name} {expected}"));
        }
    }
}
