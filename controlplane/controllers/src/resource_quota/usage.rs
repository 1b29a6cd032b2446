//! Pure: what pods, Services and claims use of a quota.

use std::sync::Arc;

use api::quantity::{Format, Quantity};
use api::resources::{self, Amounts, QosClass, Side};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ScopedResourceSelectorRequirement, Service,
};

use crate::meta;
use crate::podstate;

fn one() -> Quantity {
    number(1)
}

fn number(count: i64) -> Quantity {
    Quantity::from_units(count, Format::DecimalSi)
}

pub fn add(total: &mut Amounts, more: Amounts) {
    for (name, amount) in more {
        let sum = total.get(&name).map_or(amount, |have| *have + amount);
        total.insert(name, sum);
    }
}

/// Amounts of every name that pods can use, zero included.
pub fn pods(quota: &ResourceQuota, pods: &[Arc<Pod>]) -> Amounts {
    let names = ["pods", "count/pods", "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory"];
    let more = ["requests.ephemeral-storage", "limits.cpu", "limits.memory", "limits.ephemeral-storage"];
    let mut total: Amounts = names.into_iter().chain(more).map(|name| (name.to_owned(), Quantity::ZERO)).collect();
    for pod in pods.iter().filter(|pod| in_scope(quota, pod)) {
        add(&mut total, [("count/pods".to_owned(), one())].into());
        if !podstate::is_finished(pod) {
            add(&mut total, of_pod(pod));
        }
    }
    total
}

fn of_pod(pod: &Pod) -> Amounts {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut amounts = Amounts::from([("pods".to_owned(), one())]);
    for (name, amount) in resources::of_pod(&spec, Side::Requests) {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            amounts.insert(name.clone(), amount);
        }
        amounts.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in resources::of_pod(&spec, Side::Limits) {
        amounts.insert(format!("limits.{name}"), amount);
    }
    amounts
}

fn in_scope(quota: &ResourceQuota, pod: &Pod) -> bool {
    let spec = quota.spec.clone().unwrap_or_default();
    let plain = spec.scopes.unwrap_or_default().into_iter().map(|scope_name| ScopedResourceSelectorRequirement {
        operator: "Exists".to_owned(),
        scope_name,
        values: None,
    });
    let selected = spec.scope_selector.and_then(|selector| selector.match_expressions).unwrap_or_default();
    plain.chain(selected).all(|scope| matches_scope(&scope, pod))
}

fn matches_scope(scope: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    let spec = pod.spec.clone().unwrap_or_default();
    let best_effort = || resources::qos_class(pod) == QosClass::BestEffort;
    match scope.scope_name.as_str() {
        "Terminating" => spec.active_deadline_seconds.is_some(),
        "NotTerminating" => spec.active_deadline_seconds.is_none(),
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = spec.priority_class_name.unwrap_or_default();
            let named = scope.values.iter().flatten().any(|value| *value == class);
            match scope.operator.as_str() {
                "In" => named,
                "NotIn" => !named,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Pod) -> bool {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.clone()).unwrap_or_default();
    let (with, against) = (affinity.pod_affinity.unwrap_or_default(), affinity.pod_anti_affinity.unwrap_or_default());
    let required = with.required_during_scheduling_ignored_during_execution.into_iter().flatten();
    let required = required.chain(against.required_during_scheduling_ignored_during_execution.into_iter().flatten());
    let preferred = with.preferred_during_scheduling_ignored_during_execution.into_iter().flatten();
    let preferred = preferred.chain(against.preferred_during_scheduling_ignored_during_execution.into_iter().flatten());
    let mut terms = required.chain(preferred.map(|weighted| weighted.pod_affinity_term));
    terms.any(|term| term.namespaces.is_some_and(|names| !names.is_empty()) || term.namespace_selector.is_some())
}

pub fn services(services: &[Arc<Service>]) -> Amounts {
    let (mut balancers, mut node_ports) = (0, 0);
    for spec in services.iter().filter_map(|service| service.spec.as_ref()) {
        let ports = spec.ports.as_ref().map_or(0, Vec::len) as i64;
        match spec.type_.as_deref() {
            Some("NodePort") => node_ports += ports,
            Some("LoadBalancer") => {
                balancers += 1;
                if spec.allocate_load_balancer_node_ports != Some(false) {
                    node_ports += ports;
                }
            }
            _ => {}
        }
    }
    let all = number(services.len() as i64);
    Amounts::from([
        ("services".to_owned(), all),
        ("count/services".to_owned(), all),
        ("services.loadbalancers".to_owned(), number(balancers)),
        ("services.nodeports".to_owned(), number(node_ports)),
    ])
}

pub fn claims(claims: &[Arc<PersistentVolumeClaim>]) -> Amounts {
    let names = ["persistentvolumeclaims", "count/persistentvolumeclaims", "requests.storage"];
    let mut total: Amounts = names.into_iter().map(|name| (name.to_owned(), Quantity::ZERO)).collect();
    for claim in claims {
        let spec = claim.spec.clone().unwrap_or_default();
        let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
        let storage = requests.get("storage").map_or(Quantity::ZERO, Quantity::from);
        let annotated = meta::annotation(&claim.metadata, "volume.beta.kubernetes.io/storage-class").map(str::to_owned);
        let mut amounts = Amounts::from([
            ("persistentvolumeclaims".to_owned(), one()),
            ("count/persistentvolumeclaims".to_owned(), one()),
            ("requests.storage".to_owned(), storage),
        ]);
        if let Some(class) = annotated.or(spec.storage_class_name).filter(|class| !class.is_empty()) {
            amounts.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
            amounts.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
        }
        add(&mut total, amounts);
    }
    total
}

/// Resource and group of a name that counts objects: `count/deployments.apps`, `secrets`.
pub fn counted_resource(name: &str) -> Option<(String, String)> {
    if let Some(counted) = name.strip_prefix("count/") {
        let (resource, group) = counted.split_once('.').unwrap_or((counted, ""));
        return Some((resource.to_owned(), group.to_owned()));
    }
    let plain = ["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];
    plain.contains(&name).then(|| (name.to_owned(), String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(phase: &str, cpu: &str, deadline: Option<i64>) -> Arc<Pod> {
        let value = json!({
            "metadata": {"name": "p"},
            "spec": {
                "activeDeadlineSeconds": deadline,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"memory": "1Gi"}}}],
            },
            "status": {"phase": phase},
        });
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    fn text(amounts: &Amounts, name: &str) -> String {
        amounts.get(name).map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn finished_pods_count_only_as_objects() {
        let all = [pod("Running", "100m", None), pod("Pending", "1", None), pod("Succeeded", "4", None)];
        let used = pods(&ResourceQuota::default(), &all);
        let shown = ["pods", "count/pods", "requests.cpu", "cpu", "limits.memory", "requests.memory"]
            .map(|name| text(&used, name));
        assert_eq!(shown, ["2", "3", "1100m", "1100m", "2Gi", "0"]);
    }

    #[test]
    fn scopes_choose_pods() {
        let all = [pod("Running", "1", Some(60)), pod("Running", "2", None)];
        let scoped = |scope: &str| {
            let quota = json!({"spec": {"scopes": [scope]}});
            text(&pods(&serde_json::from_value(quota).expect("a quota"), &all), "cpu")
        };
        assert_eq!(
            (scoped("Terminating"), scoped("NotTerminating"), scoped("BestEffort")),
            ("1".into(), "2".into(), "0".into())
        );
    }

    #[test]
    fn services_and_claims() {
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}, {"port": 443}]}});
        let used = services(&[Arc::new(serde_json::from_value(service).expect("a service"))]);
        assert_eq!(
            (text(&used, "services.loadbalancers"), text(&used, "services.nodeports")),
            ("1".into(), "2".into())
        );
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}});
        let used = claims(&[Arc::new(serde_json::from_value(claim).expect("a claim"))]);
        assert_eq!(text(&used, "fast.storageclass.storage.k8s.io/requests.storage"), "2Gi");
        assert_eq!(counted_resource("count/jobs.batch"), Some(("jobs".into(), "batch".into())));
        assert_eq!(counted_resource("requests.nvidia.com/gpu"), None);
    }
}
