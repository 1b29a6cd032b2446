//! Pure: what pods, Services, and claims of volumes and devices use of a quota.

use std::sync::Arc;

use api::quantity::{Format, Quantity};
use api::resources::{self, Amounts, QosClass, Side};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ScopedResourceSelectorRequirement, Service,
};
use k8s_openapi::api::resource::v1::ResourceClaim;

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

/// Whether a pod should be gone: its node is lost, say. It keeps nobody from making others.
pub fn is_overdue(pod: &Pod, now: Timestamp) -> bool {
    let meta = &pod.metadata;
    let (Some(deleted), Some(grace)) = (&meta.deletion_timestamp, meta.deletion_grace_period_seconds) else {
        return false;
    };
    now > meta::after(deleted.0, grace)
}

/// Amounts of every name that pods can use, zero included.
pub fn pods(quota: &ResourceQuota, pods: &[Arc<Pod>], now: Timestamp) -> Amounts {
    let names = ["pods", "count/pods", "cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory"];
    let more = ["requests.ephemeral-storage", "limits.cpu", "limits.memory", "limits.ephemeral-storage"];
    let mut total: Amounts = names.into_iter().chain(more).map(|name| (name.to_owned(), Quantity::ZERO)).collect();
    for pod in pods.iter().filter(|pod| in_scope(quota, pod)) {
        add(&mut total, [("count/pods".to_owned(), one())].into());
        if !podstate::is_finished(pod) && !is_overdue(pod, now) {
            add(&mut total, of_pod(pod));
        }
    }
    total
}

pub fn of_pod(pod: &Pod) -> Amounts {
    let spec = pod.spec.clone().unwrap_or_default();
    let spec = resources::held(&spec, pod.status.as_ref());
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

/// All that must hold for what the quota is about.
fn scopes(quota: &ResourceQuota) -> impl Iterator<Item = ScopedResourceSelectorRequirement> {
    let spec = quota.spec.clone().unwrap_or_default();
    let plain = spec.scopes.unwrap_or_default().into_iter().map(|scope_name| ScopedResourceSelectorRequirement {
        operator: "Exists".to_owned(),
        scope_name,
        values: None,
    });
    let selected = spec.scope_selector.and_then(|selector| selector.match_expressions).unwrap_or_default();
    plain.chain(selected)
}

fn in_scope(quota: &ResourceQuota, pod: &Pod) -> bool {
    scopes(quota).all(|scope| matches_scope(&scope, pod))
}

/// Of claims only the classes of their attributes can be chosen: what is asked for, what the volume has, and
/// what it is being changed to.
fn takes_in(quota: &ResourceQuota, claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    let classes = [
        claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref()),
        status.and_then(|status| status.current_volume_attributes_class_name.as_ref()),
        status
            .and_then(|status| status.modify_volume_status.as_ref())
            .and_then(|change| change.target_volume_attributes_class_name.as_ref()),
    ];
    let classes: Vec<&String> = classes.into_iter().flatten().filter(|class| !class.is_empty()).collect();
    scopes(quota).all(|scope| {
        let named = |class: &&String| scope.values.as_ref().is_some_and(|values| values.contains(class));
        scope.scope_name == "VolumeAttributesClass"
            && match scope.operator.as_str() {
                "In" => classes.iter().any(named),
                "NotIn" => classes.is_empty() || classes.iter().any(|class| !named(class)),
                "DoesNotExist" => classes.is_empty(),
                _ => !classes.is_empty(),
            }
    })
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
        let given = || spec.ports.iter().flatten().filter(|port| port.node_port.is_some_and(|node| node != 0)).count();
        match spec.type_.as_deref() {
            Some("NodePort") => node_ports += ports,
            Some("LoadBalancer") => {
                balancers += 1;
                let without = spec.allocate_load_balancer_node_ports == Some(false);
                node_ports += if without { given() as i64 } else { ports };
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

pub fn claims(quota: &ResourceQuota, claims: &[Arc<PersistentVolumeClaim>]) -> Amounts {
    let names = ["persistentvolumeclaims", "count/persistentvolumeclaims", "requests.storage"];
    let mut total: Amounts = names.into_iter().map(|name| (name.to_owned(), Quantity::ZERO)).collect();
    for claim in claims.iter().filter(|claim| takes_in(quota, claim)) {
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

/// What follows a class's name where its devices are counted.
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// As many as a claim for all devices may get.
const MOST_DEVICES: i64 = 32;

pub fn counts_devices(name: &str) -> bool {
    name.ends_with(DEVICES)
}

/// Devices by class. Of a request's alternatives the most counts, per class.
pub fn devices(claims: &[ResourceClaim]) -> Amounts {
    let mut total = Amounts::new();
    let claimed = claims.iter().filter_map(|claim| claim.spec.as_ref()?.devices.as_ref()?.requests.as_ref());
    for request in claimed.flatten() {
        let exactly = request.exactly.iter().map(|one| (&one.device_class_name, &one.allocation_mode, one.count));
        let options = request.first_available.iter().flatten();
        let options = options.map(|one| (&one.device_class_name, &one.allocation_mode, one.count));
        let mut most = Amounts::new();
        for (class, mode, count) in exactly.chain(options) {
            let amount = match mode.as_deref() {
                Some("All") => MOST_DEVICES,
                _ => count.unwrap_or(1),
            };
            let held = most.entry(format!("{class}{DEVICES}")).or_insert(Quantity::ZERO);
            *held = (*held).max(number(amount));
        }
        add(&mut total, most);
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
    use crate::podstate::testing::at;
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
        let used = pods(&ResourceQuota::default(), &all, at(0));
        let shown = ["pods", "count/pods", "requests.cpu", "cpu", "limits.memory", "requests.memory"]
            .map(|name| text(&used, name));
        assert_eq!(shown, ["2", "3", "1100m", "1100m", "2Gi", "0"]);
    }

    #[test]
    fn scopes_choose_pods() {
        let all = [pod("Running", "1", Some(60)), pod("Running", "2", None)];
        let scoped = |scope: &str| {
            let quota = json!({"spec": {"scopes": [scope]}});
            text(&pods(&serde_json::from_value(quota).expect("a quota"), &all, at(0)), "cpu")
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
        let used = claims(&ResourceQuota::default(), &[Arc::new(serde_json::from_value(claim).expect("a claim"))]);
        assert_eq!(text(&used, "fast.storageclass.storage.k8s.io/requests.storage"), "2Gi");
        assert_eq!(counted_resource("count/jobs.batch"), Some(("jobs".into(), "batch".into())));
        assert_eq!(counted_resource("requests.nvidia.com/gpu"), None);
    }

    #[test]
    fn pods_that_should_be_gone_count_only_as_objects() {
        let mut lost = (*pod("Running", "1", None)).clone();
        lost.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100)));
        lost.metadata.deletion_grace_period_seconds = Some(30);
        let lost = [Arc::new(lost)];
        let used = |now: i64| {
            let used = pods(&ResourceQuota::default(), &lost, at(now));
            ["pods", "count/pods", "cpu"].map(|name| text(&used, name))
        };
        assert_eq!(used(130), ["1", "1", "1"]);
        assert_eq!(used(131), ["0", "1", "0"]);
    }

    #[test]
    fn a_pod_being_resized_counts_what_it_holds() {
        let mut resized = (*pod("Running", "1", None)).clone();
        let statuses = json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "resources": {"requests": {"cpu": "3"}}}]);
        resized.status.get_or_insert_default().container_statuses = serde_json::from_value(statuses).expect("statuses");
        assert_eq!(text(&of_pod(&resized), "requests.cpu"), "3");
    }

    #[test]
    fn devices_are_counted_by_class() {
        let claim = json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"name": "b", "firstAvailable": [
                {"name": "x", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1},
                {"name": "y", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 3},
                {"name": "z", "deviceClassName": "nic", "allocationMode": "All"}]}]}}});
        let claim: ResourceClaim = serde_json::from_value(claim).expect("a claim");
        let used = devices(&[claim.clone(), claim]);
        let name = |class: &str| format!("{class}.deviceclass.resource.k8s.io/devices");
        assert_eq!((text(&used, &name("gpu")), text(&used, &name("nic"))), ("10".into(), "64".into()));
        assert!(counts_devices(&name("gpu")) && !counts_devices("count/resourceclaims.resource.k8s.io"));
    }

    #[test]
    fn a_scope_of_attributes_classes_chooses_claims() {
        let of = |class: Option<&str>| {
            let claim = json!({"spec": {"volumeAttributesClassName": class}});
            Arc::new(serde_json::from_value::<PersistentVolumeClaim>(claim).expect("a claim"))
        };
        let all = [of(Some("gold")), of(Some("silver")), of(None)];
        for (operator, count) in [("In", "1"), ("NotIn", "2"), ("Exists", "2"), ("DoesNotExist", "1")] {
            let quota = json!({"spec": {"scopeSelector": {"matchExpressions": [
                {"scopeName": "VolumeAttributesClass", "operator": operator, "values": ["gold"]}]}}});
            let used = claims(&serde_json::from_value(quota).expect("a quota"), &all);
            assert_eq!(text(&used, "persistentvolumeclaims"), count, "{operator}");
        }
    }
}
