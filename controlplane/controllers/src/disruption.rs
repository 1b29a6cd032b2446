//! PodDisruptionBudgets: how many of their pods may be evicted now.
//!
//! [`budget`] is pure; the scale of what a pod belongs to comes from caches, or from the `scale`
//! subresource of kinds that only the API server knows. The eviction subresource spends what is
//! granted here and notes the pods in `disruptedPods`.
//!
//! And pods that say they are to be disrupted, but are not deleted after all: they say so no more.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::selector::Selector;
use component::{EventType, Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::{self, Context, Controller, Key, Pods, synced};
use crate::discovery;
use crate::error::{During, Result, is_not_found};
use crate::meta;
use crate::podstate;

/// An eviction that did not lead to a deletion within this time counts no longer.
const EVICTION_EXPIRES: i64 = 2 * 60;
/// A pod that says it is to be disrupted is deleted within this time, or not at all.
const DISRUPTION_EXPIRES: i64 = 2 * 60;
const WORKERS: usize = 2;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("disruption-controller");
    let budgets = context.informers.of::<PodDisruptionBudget>();
    context::enqueue_changes(&budgets, &queue);
    let (changed, known) = (queue.clone(), budgets.clone());
    context.pods.informer.on_change(move |change| {
        let namespace = change.object().namespace().unwrap_or_default();
        for budget in known.list_namespace(&namespace) {
            let selector = selector(&budget);
            if change.old.into_iter().chain(change.new).any(|pod| selector.matches(meta::labels(&pod.metadata))) {
                changed.add(meta::key(&budget.metadata));
            }
        }
    });
    let sizes = Sizes {
        deployments: context.informers.of(),
        replica_sets: context.informers.of(),
        stateful_sets: context.informers.of(),
        replication_controllers: context.informers.of(),
    };
    watch_sizes(&sizes, &budgets, &queue);
    let ready = synced!(budgets, sizes.deployments, sizes.replica_sets, sizes.stateful_sets, context.pods.informer);
    let worker = Worker { controller: controller.clone(), budgets, sizes, pods: context.pods.clone() };
    let worker = Arc::new(worker);
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
    reset_stale(context, &controller);
}

fn reset_stale(context: &Context, controller: &Controller) {
    let queue = WorkQueue::<Key>::new();
    let (pods, changed) = (context.pods.informer.clone(), queue.clone());
    pods.on_change(move |change| {
        if change.new.is_some_and(|pod| stale_at(pod).is_some()) {
            changed.add(meta::key(&change.object().metadata));
        }
    });
    let (ready, writer) = (synced!(pods), controller.clone());
    controller.run(&queue, 1, ready, move |key| {
        let (pods, writer) = (pods.clone(), writer.clone());
        async move { reset(&writer, &pods, key).await }
    });
}

/// When it is stale that a pod says it is to be disrupted. What its kubelet says holds, however long that
/// takes.
fn stale_at(pod: &Pod) -> Option<Timestamp> {
    let condition = podstate::condition(pod, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    if condition.reason.as_deref() == Some("TerminationByKubelet") || !podstate::is_active(pod) {
        return None;
    }
    let since = condition.last_transition_time.as_ref().map_or(meta::created(&pod.metadata), |time| time.0);
    Some(meta::after(since, DISRUPTION_EXPIRES))
}

async fn reset(controller: &Controller, pods: &Informer<Pod>, key: Key) -> Result<Outcome> {
    let Some(pod) = pods.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
    let (Some(moment), now) = (stale_at(&pod), Timestamp::now()) else { return Ok(Outcome::Done) };
    if moment > now {
        return Ok(context::at(moment, now));
    }
    let condition = json!({"type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
        "observedGeneration": pod.metadata.generation, "lastTransitionTime": Time(meta::now())});
    // Of this very version: by the next one it may be going after all.
    let patch = Patch::Strategic(json!({"metadata": {"resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": [condition]}}));
    let api: Api<Pod> = controller.namespaced(&key.0);
    let written = api.patch_status(&key.1, &PatchParams::default(), &patch).await;
    written.unless_gone("resetting the stale disruption of pod", &meta::display(&pod.metadata))?;
    Ok(Outcome::Done)
}

struct Sizes {
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
}

/// A percentage is of the owner's size: when that changes, so does what may be evicted.
fn watch_sizes(sizes: &Sizes, budgets: &Informer<PodDisruptionBudget>, queue: &WorkQueue<Key>) {
    let wake = |namespace: Option<String>, budgets: &Informer<PodDisruptionBudget>, queue: &WorkQueue<Key>| {
        for budget in budgets.list_namespace(&namespace.unwrap_or_default()) {
            queue.add(meta::key(&budget.metadata));
        }
    };
    let (known, changed) = (budgets.clone(), queue.clone());
    sizes.deployments.on_change(move |change| {
        if change.old.map(|old| old.spec.replicas) != change.new.map(|new| new.spec.replicas) {
            wake(change.object().namespace(), &known, &changed);
        }
    });
    let (known, changed) = (budgets.clone(), queue.clone());
    sizes.stateful_sets.on_change(move |change| {
        if change.old.map(|old| old.spec.replicas) != change.new.map(|new| new.spec.replicas) {
            wake(change.object().namespace(), &known, &changed);
        }
    });
}

fn selector(budget: &PodDisruptionBudget) -> Selector {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    Selector::from_label_selector(selector).unwrap_or_else(|_| Selector::nothing())
}

struct Worker {
    controller: Controller,
    budgets: Informer<PodDisruptionBudget>,
    sizes: Sizes,
    pods: Pods,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(object) = self.budgets.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        if meta::is_deleting(&object.metadata) {
            return Ok(Outcome::Done);
        }
        let selector = selector(&object);
        let mut pods = self.pods.by_namespace.get(&key.0);
        pods.retain(|pod| selector.matches(meta::labels(&pod.metadata)));
        if pods.is_empty() {
            self.controller.events.object_event(&*object, EventType::Normal, "NoPods", "No matching pods found");
        }
        let now = meta::now();
        let counts = self.counts(&object, &pods).await;
        let events = &self.controller.events;
        let status = match counts {
            Ok(counts) => {
                for pod in spared(&object, &pods, now) {
                    let text = format!("Pod was expected by PDB {}/{} to be deleted but it wasn't", key.0, key.1);
                    events.object_event(&**pod, EventType::Warning, "NotDeleted", text);
                }
                budget(&object, &pods, counts, now)
            }
            Err(problem) => {
                let text = format!("Failed to calculate the number of expected pods: {problem}");
                events.object_event(&*object, EventType::Warning, "CalculateExpectedPodCountFailed", text);
                // the condition has the problem alone
                failed(&object, &problem, now)
            }
        };
        let wake = status.disrupted_pods.iter().flatten().map(|(_, time)| meta::after(time.0, EVICTION_EXPIRES)).min();
        if object.status.as_ref() != Some(&status) {
            let changed = PodDisruptionBudget { status: Some(status), ..(*object).clone() };
            let api: Api<PodDisruptionBudget> = self.controller.namespaced(&key.0);
            let written = api.replace_status(&key.1, &PostParams::default(), &changed).await;
            written.during("updating the status of", &meta::display(&object.metadata))?;
        }
        Ok(wake.map_or(Outcome::Done, |moment| context::at(moment, Timestamp::now())))
    }

    /// Pods there should be, and healthy ones among them that must stay.
    async fn counts(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> std::result::Result<Counts, String> {
        use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
        let spec = budget.spec.clone().unwrap_or_default();
        match (&spec.max_unavailable, &spec.min_available) {
            (Some(most), _) => {
                let expected = self.expected(budget, pods).await?;
                let desired = (expected - meta::scaled(most, expected, true)).max(0);
                Ok(Counts { expected, desired })
            }
            (None, Some(IntOrString::Int(least))) => Ok(Counts { expected: pods.len() as i32, desired: *least }),
            (None, Some(percent)) => {
                let expected = self.expected(budget, pods).await?;
                Ok(Counts { expected, desired: meta::scaled(percent, expected, true) })
            }
            (None, None) => Ok(Counts { expected: pods.len() as i32, desired: 0 }),
        }
    }

    /// The sizes of everything the pods belong to, each counted once.
    async fn expected(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> std::result::Result<i32, String> {
        let namespace = budget.namespace().unwrap_or_default();
        let mut owners: BTreeMap<String, OwnerReference> = BTreeMap::new();
        let mut unmanaged = Vec::new();
        for pod in pods {
            match meta::controller_of(&pod.metadata) {
                Some(owner) => drop(owners.insert(owner.uid.clone(), owner.clone())),
                None => unmanaged.push(pod.name_any()),
            }
        }
        if !unmanaged.is_empty() {
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the \
                 status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account \
                 for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                selector(budget)
            );
            self.controller.events.object_event(budget, EventType::Warning, "UnmanagedPods", text);
        }
        let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
        for owner in owners.values() {
            let (uid, size) = self.size(&namespace, owner).await?;
            sizes.insert(uid, size);
        }
        Ok(sizes.values().sum())
    }

    /// The topmost owner that has a size, and the size.
    async fn size(&self, namespace: &str, owner: &OwnerReference) -> std::result::Result<(String, i32), String> {
        let size = |replicas: Option<i32>| Ok((owner.uid.clone(), replicas.unwrap_or(1)));
        match owner.kind.as_str() {
            "ReplicaSet" => {
                if let Some(set) = self.sizes.replica_sets.get(namespace, &owner.name) {
                    let above = meta::controller_of(&set.metadata).filter(|above| above.kind == "Deployment");
                    let above = above.and_then(|above| self.sizes.deployments.get(namespace, &above.name));
                    return match above {
                        Some(above) => Ok((meta::uid(&above.metadata).to_owned(), above.spec.replicas.unwrap_or(1))),
                        None => size(set.spec.replicas),
                    };
                }
            }
            "StatefulSet" => {
                if let Some(set) = self.sizes.stateful_sets.get(namespace, &owner.name) {
                    return size(set.spec.replicas);
                }
            }
            "ReplicationController" => {
                if let Some(set) = self.sizes.replication_controllers.get(namespace, &owner.name) {
                    return size(set.spec.as_ref().and_then(|spec| spec.replicas));
                }
            }
            _ => return self.scale_of(namespace, owner).await.map(|replicas| (owner.uid.clone(), replicas)),
        }
        Err(format!("{} {namespace}/{} does not exist", owner.kind, owner.name))
    }

    async fn scale_of(&self, namespace: &str, owner: &OwnerReference) -> std::result::Result<i32, String> {
        let served =
            discovery::version(&self.controller.client, &owner.api_version).await.map_err(|e| e.to_string())?;
        let served = served.into_iter().find(|served| served.api.kind == owner.kind);
        let served = served.ok_or_else(|| format!("{} does not serve {}", owner.api_version, owner.kind))?;
        let client = self.controller.client.clone();
        let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &served.api);
        match api.get_scale(&owner.name).await {
            Ok(scale) => Ok(scale.spec.and_then(|spec| spec.replicas).unwrap_or(0)),
            Err(error) if is_not_found(&error) => {
                Err(format!("{} does not implement the scale subresource", served.name()))
            }
            Err(error) => Err(crate::error::message(&error)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Counts {
    expected: i32,
    desired: i32,
}

/// Evictions that are still under way, or too fresh to be seen.
fn disrupted(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], now: Timestamp) -> BTreeMap<String, Time> {
    let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let pending = |name: &str| {
        pods.iter().any(|pod| pod.metadata.name.as_deref() == Some(name) && !meta::is_deleting(&pod.metadata))
    };
    noted.into_iter().filter(|(name, time)| pending(name) && meta::after(time.0, EVICTION_EXPIRES) > now).collect()
}

/// Pods whose eviction did not lead to a deletion in time.
fn spared<'p>(budget: &PodDisruptionBudget, pods: &'p [Arc<Pod>], now: Timestamp) -> Vec<&'p Arc<Pod>> {
    let noted = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
    let since = |pod: &Pod| noted?.get(pod.metadata.name.as_deref()?);
    let is_overdue = |pod: &Pod| since(pod).is_some_and(|time| meta::after(time.0, EVICTION_EXPIRES) <= now);
    pods.iter().filter(|pod| !meta::is_deleting(&pod.metadata) && is_overdue(pod)).collect()
}

fn budget(
    object: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    counts: Counts,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let disrupted = disrupted(object, pods, now);
    let healthy = pods.iter().filter(|pod| {
        !meta::is_deleting(&pod.metadata) && !disrupted.contains_key(&pod.name_any()) && podstate::is_ready(pod)
    });
    let healthy = healthy.count() as i32;
    let allowed = if counts.expected > 0 { (healthy - counts.desired).max(0) } else { 0 };
    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    PodDisruptionBudgetStatus {
        conditions: Some(conditions(object, status, reason, "", now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(counts.desired),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(counts.expected),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        observed_generation: object.metadata.generation,
    }
}

/// When the count cannot be had, nothing may be evicted.
fn failed(object: &PodDisruptionBudget, text: &str, now: Timestamp) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        disruptions_allowed: Some(0),
        observed_generation: object.metadata.generation,
        conditions: Some(conditions(object, "False", "SyncFailed", text, now)),
        ..object.status.clone().unwrap_or_default()
    }
}

fn conditions(object: &PodDisruptionBudget, status: &str, reason: &str, text: &str, now: Timestamp) -> Vec<Condition> {
    let mut conditions = object.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let next = Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: text.to_owned(),
        observed_generation: object.metadata.generation,
        last_transition_time: Time(now),
    };
    meta::set_condition(&mut conditions, next);
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod, ready};
    use k8s_openapi::api::core::v1::PodCondition;

    #[test]
    fn what_is_healthy_beyond_the_desired_may_go() {
        let mut object = PodDisruptionBudget::default();
        let mut pods: Vec<_> = (0..4).map(|i| Arc::new(ready(pod(&format!("p{i}"), "n", "Running"), 0))).collect();
        pods.push(Arc::new(pod("sick", "n", "Running")));
        let allowed = |object: &PodDisruptionBudget, desired| {
            budget(object, &pods, Counts { expected: 5, desired }, at(1000)).disruptions_allowed
        };
        assert_eq!(allowed(&object, 3), Some(1));
        assert_eq!(allowed(&object, 5), Some(0));
        // an eviction under way is spent, until it is too old
        let disrupted_pods = Some([("p0".to_owned(), Time(at(950)))].into());
        object.status = Some(PodDisruptionBudgetStatus { disrupted_pods, ..Default::default() });
        assert_eq!(allowed(&object, 3), Some(0));
        let later = budget(&object, &pods, Counts { expected: 5, desired: 3 }, at(1100));
        assert_eq!((later.disruptions_allowed, later.disrupted_pods), (Some(1), None));
    }

    #[test]
    fn an_eviction_that_led_to_no_deletion_is_told_when_it_expires() {
        let mut object = PodDisruptionBudget::default();
        let mut going = pod("going", "n", "Running");
        going.metadata.deletion_timestamp = Some(Time(at(11)));
        let pods = [Arc::new(pod("spared", "n", "Running")), Arc::new(going), Arc::new(pod("other", "n", "Running"))];
        let noted = ["spared", "going"].map(|name| (name.to_owned(), Time(at(10))));
        object.status = Some(PodDisruptionBudgetStatus { disrupted_pods: Some(noted.into()), ..Default::default() });
        assert!(spared(&object, &pods, at(100)).is_empty());
        assert_eq!(spared(&object, &pods, at(130)), [&pods[0]]);
    }

    #[test]
    fn an_unchanged_budget_compares_equal() {
        let mut object = PodDisruptionBudget::default();
        let pods = [Arc::new(ready(pod("a", "n", "Running"), 0))];
        let counts = Counts { expected: 1, desired: 1 };
        object.status = Some(budget(&object, &pods, counts, at(10)));
        assert_eq!(Some(budget(&object, &pods, counts, at(99))), object.status);
        assert_eq!(failed(&object, "why", at(99)).disruptions_allowed, Some(0));
    }

    #[test]
    fn a_disruption_that_led_to_no_deletion_is_stale_after_two_minutes() {
        let disrupted = |status: &str, reason: &str, phase: &str| {
            let mut pod = pod("p", "n", phase);
            pod.status.get_or_insert_default().conditions = Some(vec![PodCondition {
                type_: "DisruptionTarget".into(),
                status: status.into(),
                reason: Some(reason.into()),
                last_transition_time: Some(Time(at(100))),
                ..Default::default()
            }]);
            pod
        };
        assert_eq!(stale_at(&disrupted("True", "EvictionByEvictionAPI", "Running")), Some(at(220)));
        for held in [
            disrupted("False", "EvictionByEvictionAPI", "Running"),
            disrupted("True", "TerminationByKubelet", "Running"),
            disrupted("True", "EvictionByEvictionAPI", "Failed"),
            pod("p", "n", "Running"),
        ] {
            assert_eq!(stale_at(&held), None);
        }
        let mut going = disrupted("True", "PreemptionByScheduler", "Running");
        going.metadata.deletion_timestamp = Some(Time(at(101)));
        assert_eq!(stale_at(&going), None);
    }
}
