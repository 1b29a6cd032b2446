//! What a pod asks of a node (`k8s.io/component-helpers/resource`), and its QoS class.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;

use crate::quantity::Quantity;

/// Amounts by resource name (`cpu`, `memory`, `example.com/gpu`).
pub type Amounts = BTreeMap<String, Quantity>;

/// The same as they stand in an object.
type Wire = BTreeMap<String, WireQuantity>;

/// Which half of `resources` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Requests,
    Limits,
}

/// The pod's quality of service class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

fn read(amounts: Option<&Wire>) -> Amounts {
    amounts.into_iter().flatten().map(|(name, quantity)| (name.clone(), quantity.into())).collect()
}

pub fn of_container(container: &Container, side: Side) -> Amounts {
    let resources = container.resources.as_ref();
    match side {
        Side::Requests => read(resources.and_then(|r| r.requests.as_ref())),
        Side::Limits => read(resources.and_then(|r| r.limits.as_ref())),
    }
}

/// Whether an init container is a sidecar (`restartPolicy: Always`).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, quantity) in more {
        let sum = total.get(name).map_or(*quantity, |have| *have + *quantity);
        total.insert(name.clone(), sum);
    }
}

fn raise(total: &mut Amounts, least: &Amounts) {
    for (name, quantity) in least {
        let most = total.get(name).map_or(*quantity, |have| (*have).max(*quantity));
        total.insert(name.clone(), most);
    }
}

/// The pod's effective amounts: containers and sidecars together, or one init container with the
/// sidecars started before it, whichever is more; pod-level resources override; plus overhead.
pub fn of_pod(spec: &PodSpec, side: Side) -> Amounts {
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &of_container(container, side));
    }
    let mut sidecars = Amounts::new();
    let mut initial = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container, side);
        if is_sidecar(container) {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut initial, &sidecars);
        } else {
            let mut together = sidecars.clone();
            add(&mut together, &own);
            raise(&mut initial, &together);
        }
    }
    raise(&mut total, &initial);
    if let Some(pod_level) = &spec.resources {
        let pod_level = match side {
            Side::Requests => read(pod_level.requests.as_ref()),
            Side::Limits => read(pod_level.limits.as_ref()),
        };
        total.extend(pod_level);
    }
    let overhead = read(spec.overhead.as_ref());
    match side {
        Side::Requests => add(&mut total, &overhead),
        // Overhead raises only limits that are set.
        Side::Limits => {
            let set: Amounts = overhead.into_iter().filter(|(name, _)| total.contains_key(name)).collect();
            add(&mut total, &set);
        }
    }
    total
}

/// The spec with what its containers hold while they are being resized: the most of what they ask for,
/// have, and were granted. Of a resize that the node can never do, only what they have counts.
pub fn held<'s>(spec: &'s PodSpec, status: Option<&PodStatus>) -> Cow<'s, PodSpec> {
    let mut held = Cow::Borrowed(spec);
    let Some(status) = status else { return held };
    let mut pending = status.conditions.iter().flatten().filter(|condition| condition.type_ == "PodResizePending");
    let infeasible = pending.any(|condition| condition.reason.as_deref() == Some("Infeasible"));
    for (at, container) in spec.containers.iter().enumerate() {
        if let Some(resources) = held_by(container, status.container_statuses.as_ref(), infeasible) {
            held.to_mut().containers[at].resources = Some(resources);
        }
    }
    for (at, container) in spec.init_containers.iter().flatten().enumerate() {
        if !is_sidecar(container) {
            continue;
        }
        if let Some(resources) = held_by(container, status.init_container_statuses.as_ref(), infeasible) {
            held.to_mut().init_containers.get_or_insert_default()[at].resources = Some(resources);
        }
    }
    held
}

/// What a container holds, if that is not what it asks for.
fn held_by(
    container: &Container,
    statuses: Option<&Vec<ContainerStatus>>,
    infeasible: bool,
) -> Option<ResourceRequirements> {
    let status = statuses?.iter().find(|status| status.name == container.name)?;
    let given = status.resources.as_ref()?;
    let wanted = container.resources.clone().unwrap_or_default();
    let most = |wanted: &Option<Wire>, given: [&Option<Wire>; 2]| {
        let mut most = if infeasible { Wire::new() } else { wanted.clone().unwrap_or_default() };
        for (name, amount) in given.into_iter().flatten().flatten() {
            if most.get(name).is_none_or(|known| Quantity::from(known) < Quantity::from(amount)) {
                most.insert(name.clone(), amount.clone());
            }
        }
        if most.is_empty() && wanted.is_none() { None } else { Some(most) }
    };
    let held = ResourceRequirements {
        requests: most(&wanted.requests, [&given.requests, &status.allocated_resources]),
        limits: most(&wanted.limits, [&given.limits, &None]),
        claims: wanted.claims.clone(),
    };
    (held != wanted).then_some(held)
}

/// Kubernetes' rule: no cpu or memory anywhere is BestEffort; every container with limits for both
/// and requests equal to them is Guaranteed; the rest is Burstable.
pub fn qos_class(pod: &Pod) -> QosClass {
    let Some(spec) = &pod.spec else { return QosClass::BestEffort };
    let counted = |amounts: Amounts| -> Amounts {
        amounts.into_iter().filter(|(name, q)| (name == "cpu" || name == "memory") && !q.is_zero()).collect()
    };
    let mut sets: Vec<(Amounts, Amounts)> = Vec::new();
    match &spec.resources {
        // They count once they say something (`PodLevelResourcesFixKubeletQOSClass`).
        Some(pod_level)
            if [&pod_level.requests, &pod_level.limits]
                .iter()
                .any(|side| side.as_ref().is_some_and(|side| !side.is_empty())) =>
        {
            sets.push((counted(read(pod_level.requests.as_ref())), counted(read(pod_level.limits.as_ref()))));
        }
        _ => {
            for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
                let side = |side| counted(of_container(container, side));
                sets.push((side(Side::Requests), side(Side::Limits)));
            }
        }
    }
    if sets.iter().all(|(requests, limits)| requests.is_empty() && limits.is_empty()) {
        return QosClass::BestEffort;
    }
    // Requests default to limits when the object is admitted, so only explicit differences count.
    let guaranteed = sets.iter().all(|(requests, limits)| {
        limits.len() == 2 && requests.iter().all(|(name, request)| limits.get(name) == Some(request))
    });
    if guaranteed { QosClass::Guaranteed } else { QosClass::Burstable }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn container(requests: serde_json::Value, limits: serde_json::Value) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn init_containers_count_once_and_sidecars_always() {
        let mut sidecar = container(json!({"cpu": "100m"}), json!({}));
        sidecar["restartPolicy"] = json!("Always");
        let pod = pod(json!({
            "containers": [container(json!({"cpu": "200m", "memory": "1Gi"}), json!({}))],
            "initContainers": [sidecar, container(json!({"cpu": "500m"}), json!({}))],
            "overhead": {"cpu": "10m"},
        }));
        let amounts = of_pod(pod.spec.as_ref().unwrap(), Side::Requests);
        assert_eq!(amounts["cpu"].milli(), 610, "the init container beside its sidecar is more than the steady state");
        assert_eq!(amounts["memory"].units(), 1 << 30);
    }

    #[test]
    fn a_container_being_resized_holds_the_most_of_its_requests_and_limits() {
        let held_limits = |wanted: &str, has: &str, pending: &str| {
            let pod: Pod = serde_json::from_value(json!({
                "spec": {"containers": [container(json!({"cpu": "1"}), json!({"cpu": wanted}))]},
                "status": {
                    "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                        "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": has}}}],
                    "conditions": [{"type": "PodResizePending", "status": "True", "reason": pending}],
                },
            }))
            .unwrap();
            let held = held(pod.spec.as_ref().unwrap(), pod.status.as_ref());
            (of_pod(&held, Side::Requests)["cpu"].milli(), of_pod(&held, Side::Limits)["cpu"].milli())
        };
        assert_eq!(held_limits("1", "4", "Deferred"), (1000, 4000));
        assert_eq!(held_limits("8", "4", "Deferred"), (1000, 8000));
        assert_eq!(held_limits("8", "4", "Infeasible"), (1000, 4000));
    }

    #[test]
    fn qos_classes() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        for (requests, limits, class) in [
            (json!({}), json!({}), QosClass::BestEffort),
            (json!({"cpu": "1"}), json!({}), QosClass::Burstable),
            (both.clone(), both.clone(), QosClass::Guaranteed),
            (json!({}), both.clone(), QosClass::Guaranteed),
            (json!({"cpu": "500m"}), both, QosClass::Burstable),
        ] {
            assert_eq!(qos_class(&pod(json!({"containers": [container(requests.clone(), limits.clone())]}))), class);
            let empty =
                json!({"containers": [container(requests, limits)], "resources": {"requests": {}, "limits": {}}});
            assert_eq!(qos_class(&pod(empty)), class);
        }
    }
}
