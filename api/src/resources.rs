//! What a pod asks of a node (`k8s.io/component-helpers/resource`), and its QoS class.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;

use crate::quantity::Quantity;

/// Amounts by resource name (`cpu`, `memory`, `example.com/gpu`).
pub type Amounts = BTreeMap<String, Quantity>;

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

fn read(amounts: Option<&BTreeMap<String, WireQuantity>>) -> Amounts {
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
