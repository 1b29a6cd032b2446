//! `ResourceQuota`: a namespace's usage is checked and booked before an object is stored.
//!
//! Booking is a write of the quota's status, so that servers which share a store agree; the quota
//! controller corrects what failed writes and deletions leave. [`usage`] and [`matches`] are pure
//! and say what one object counts for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::quantity::{Format, Quantity};
use api::resources::{Side, held, of_pod};
use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::core::claim::class;
use crate::kinds::core::pod::{qos_class, quantity};
use crate::kinds::value::{at, entries, has, int, list, map, name, opt_int, set, text, texts};

/// Attempts at booking against other writers of the same quota.
const ATTEMPTS: usize = 5;

#[derive(Default)]
pub struct ResourceQuota {
    /// Bookings of one server go one after the other: no conflicts among themselves.
    turn: Mutex<()>,
}

type Usage = BTreeMap<String, Quantity>;

#[async_trait]
impl Admission for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.descriptor.namespaced
            && (attributes.subresource.is_empty() || attributes.subresource == "resize")
            && matches!(attributes.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let group = attributes.descriptor.hub_group();
        let plural = attributes.descriptor.plural.as_ref();
        let quotas = cluster.list("", "resourcequotas", attributes.namespace).await?;
        if quotas.is_empty() {
            return Ok(());
        }
        let mut fitting = Vec::new();
        for quota in quotas.into_iter().filter(|quota| matches(quota, plural, &attributes.object)) {
            if plural == "pods" && group.is_empty() && attributes.operation == Operation::Create {
                let missing = unspecified(&quota, &attributes.object);
                if !missing.is_empty() {
                    return Err(attributes.forbid(format!("failed quota: {}: must specify {missing}", name(&quota))));
                }
            }
            fitting.push(quota);
        }
        let counted = delta(group, plural, &attributes.object, attributes.old, attributes.operation);
        // All are asked before one is charged.
        for quota in &fitting {
            let counted = limited(quota, &counted);
            if !counted.is_empty() {
                charge(quota, &counted).map_err(|why| attributes.forbid(why))?;
            }
        }
        for quota in fitting {
            self.book(attributes, cluster, quota, &counted).await?;
        }
        Ok(())
    }
}

impl ResourceQuota {
    async fn book(
        &self,
        attributes: &Attributes<'_>,
        cluster: &dyn Cluster,
        quota: Arc<Value>,
        counted: &Usage,
    ) -> Result<()> {
        if limited(&quota, counted).is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let quota_name = name(&quota).to_owned();
        let mut attempt = 1;
        loop {
            let Some(current) = cluster.get_live("", "resourcequotas", attributes.namespace, &quota_name).await? else {
                return Ok(());
            };
            let booked = match charge(&current, &limited(&current, counted)) {
                Ok(booked) => booked,
                Err(why) => return Err(attributes.forbid(why)),
            };
            if attributes.dry_run {
                return Ok(());
            }
            match cluster.update("", "resourcequotas", "status", booked).await {
                Err(error) if error.is_conflict() && attempt < ATTEMPTS => attempt += 1,
                Err(error) if error.is_not_found() => return Ok(()),
                outcome => return outcome.map(|_| ()),
            }
        }
    }
}

/// What of `counted` a quota limits.
fn limited(quota: &Value, counted: &Usage) -> Usage {
    let hard = map(quota, "status.hard");
    let limits = |resource: &String| hard.is_some_and(|hard| hard.contains_key(resource));
    counted
        .iter()
        .filter(|(resource, _)| limits(resource))
        .map(|(resource, amount)| (resource.clone(), *amount))
        .collect()
}

/// The quota with `counted` added to what is used, or why there is no room.
fn charge(quota: &Value, counted: &Usage) -> Result<Value, String> {
    let amounts = |path: &str| -> Usage {
        entries(quota, path).filter_map(|(key, amount)| Some((key.to_owned(), quantity(amount)?))).collect()
    };
    let (hard, mut used) = (amounts("status.hard"), amounts("status.used"));
    let unknown: Vec<&str> = counted.keys().filter(|key| !used.contains_key(*key)).map(String::as_str).collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {}, resources: {}", name(quota), unknown.join(",")));
    }
    let (mut over, before) = (Vec::new(), used.clone());
    for (resource, amount) in counted {
        let total = used.get(resource).copied().unwrap_or(Quantity::ZERO) + *amount;
        if amount > &Quantity::ZERO && hard.get(resource).is_some_and(|most| total > *most) {
            over.push(resource.clone());
        }
        used.insert(resource.clone(), total);
    }
    if !over.is_empty() {
        let shown = |amounts: &Usage| {
            let part =
                |resource: &String| format!("{resource}={}", amounts.get(resource).copied().unwrap_or(Quantity::ZERO));
            over.iter().map(part).collect::<Vec<_>>().join(",")
        };
        return Err(format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            name(quota),
            shown(counted),
            shown(&before),
            shown(&hard)
        ));
    }
    let mut booked = quota.clone();
    let used: Map<String, Value> =
        used.into_iter().map(|(resource, amount)| (resource, amount.to_string().into())).collect();
    set(&mut booked, "status.used", used);
    Ok(booked)
}

/// What a create or update adds.
fn delta(group: &str, plural: &str, new: &Value, old: Option<&Value>, operation: Operation) -> Usage {
    let mut counted = usage(group, plural, new);
    if let (Operation::Update, Some(old)) = (operation, old) {
        for (resource, amount) in usage(group, plural, old) {
            let rest = counted.get(&resource).copied().unwrap_or(Quantity::ZERO) - amount;
            counted.insert(resource, rest);
        }
    }
    counted.retain(|_, amount| *amount > Quantity::ZERO);
    counted
}

/// What one object counts for, by the resource names of quotas.
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut counted = Usage::new();
    let one = Quantity::from_units(1, Format::DecimalSi);
    let generic = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
    counted.insert(generic, one);
    match plural {
        "resourceclaims" if group == "resource.k8s.io" => device_usage(object, &mut counted),
        _ if !group.is_empty() => {}
        "pods" => pod_usage(object, &mut counted),
        "services" => service_usage(object, &mut counted),
        "persistentvolumeclaims" => claim_usage(object, &mut counted),
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => {
            counted.insert(plural.to_owned(), one);
        }
        _ => {}
    }
    counted
}

fn pod_usage(pod: &Value, counted: &mut Usage) {
    // Pods that ended, or whose node cannot end them, no longer count but as objects.
    if matches!(text(pod, "status.phase"), "Succeeded" | "Failed") {
        return;
    }
    counted.insert("pods".to_owned(), Quantity::from_units(1, Format::DecimalSi));
    let Ok(spec) = serde_json::from_value(at(pod, "spec").clone()) else { return };
    let status = serde_json::from_value(at(pod, "status").clone()).ok();
    let spec = held(&spec, status.as_ref());
    for (side, prefix) in [(Side::Requests, "requests"), (Side::Limits, "limits")] {
        for (resource, amount) in of_pod(&spec, side) {
            let standard = matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || resource.starts_with("hugepages-");
            if prefix == "requests" && standard {
                counted.insert(resource.clone(), amount);
            }
            if standard || prefix == "requests" {
                counted.insert(format!("{prefix}.{resource}"), amount);
            }
        }
    }
}

fn service_usage(service: &Value, counted: &mut Usage) {
    let number = |count: usize| Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi);
    counted.insert("services".to_owned(), number(1));
    let ports = list(service, "spec.ports");
    match text(service, "spec.type") {
        "NodePort" => {
            counted.insert("services.nodeports".to_owned(), number(ports.len()));
        }
        "LoadBalancer" => {
            let without = crate::kinds::value::opt_flag(service, "spec.allocateLoadBalancerNodePorts") == Some(false);
            let node_ports =
                if without { ports.iter().filter(|port| int(port, "nodePort") != 0).count() } else { ports.len() };
            counted.insert("services.nodeports".to_owned(), number(node_ports));
            counted.insert("services.loadbalancers".to_owned(), number(1));
        }
        _ => {}
    }
}

/// Devices by class. Of alternatives the worst case counts, per class.
fn device_usage(claim: &Value, counted: &mut Usage) {
    const MOST_DEVICES: i64 = 32;
    let of = |wanted: &Value| {
        let count = match text(wanted, "allocationMode") {
            "ExactCount" => int(wanted, "count"),
            "All" => MOST_DEVICES,
            _ => return None,
        };
        let class = format!("{}.deviceclass.resource.k8s.io/devices", text(wanted, "deviceClassName"));
        Some((class, Quantity::from_units(count, Format::DecimalSi)))
    };
    for request in list(claim, "spec.devices.requests") {
        let mut worst = Usage::new();
        let wanted = std::iter::once(at(request, "exactly")).chain(list(request, "firstAvailable"));
        for (class, amount) in wanted.filter_map(of) {
            let held = worst.entry(class).or_insert(amount);
            *held = Quantity::max(*held, amount);
        }
        for (class, amount) in worst {
            let held = counted.get(&class).copied().unwrap_or(Quantity::ZERO);
            counted.insert(class, held + amount);
        }
    }
}

fn claim_usage(claim: &Value, counted: &mut Usage) {
    let one = Quantity::from_units(1, Format::DecimalSi);
    let storage = quantity(at(claim, "spec.resources.requests.storage")).unwrap_or(Quantity::ZERO);
    counted.insert("persistentvolumeclaims".to_owned(), one);
    counted.insert("requests.storage".to_owned(), storage);
    if let Some(class) = class(claim).filter(|class| !class.is_empty()) {
        counted.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one);
        counted.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), storage);
    }
}

/// Whether a quota's scopes take the object in.
pub fn matches(quota: &Value, plural: &str, object: &Value) -> bool {
    let scopes = texts(quota, "spec.scopes");
    let expressions = list(quota, "spec.scopeSelector.matchExpressions");
    if scopes.is_empty() && expressions.is_empty() {
        return true;
    }
    // Scopes are about pods only.
    match plural {
        "pods" => {
            scopes.iter().all(|scope| in_scope(scope, object))
                && expressions.iter().all(|expression| match text(expression, "scopeName") {
                    "PriorityClass" => selects(expression, &[text(object, "spec.priorityClassName")]),
                    scope => in_scope(scope, object),
                })
        }
        "persistentvolumeclaims" => {
            let classes = [
                "spec.volumeAttributesClassName",
                "status.currentVolumeAttributesClassName",
                "status.modifyVolumeStatus.targetVolumeAttributesClassName",
            ]
            .map(|path| text(object, path));
            scopes
                .iter()
                .all(|scope| *scope == "VolumeAttributesClass" && classes.iter().any(|class| !class.is_empty()))
                && expressions.iter().all(|expression| {
                    text(expression, "scopeName") == "VolumeAttributesClass" && selects(expression, &classes)
                })
        }
        _ => false,
    }
}

/// Whether an expression chooses an object with one of these classes; empty ones are none.
fn selects(expression: &Value, classes: &[&str]) -> bool {
    let values = texts(expression, "values");
    let mut named = classes.iter().filter(|class| !class.is_empty());
    match text(expression, "operator") {
        "In" => named.any(|class| values.contains(class)),
        "NotIn" => named.clone().next().is_none() || named.any(|class| !values.contains(class)),
        "Exists" => named.next().is_some(),
        "DoesNotExist" => named.next().is_none(),
        _ => false,
    }
}

fn in_scope(scope: &str, pod: &Value) -> bool {
    let terminating = opt_int(pod, "spec.activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => qos_class(pod) == "BestEffort",
        "NotBestEffort" => qos_class(pod) != "BestEffort",
        "PriorityClass" => !text(pod, "spec.priorityClassName").is_empty(),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let across = |term: &Value| !list(term, "namespaces").is_empty() || has(term, "namespaceSelector");
    ["spec.affinity.podAffinity", "spec.affinity.podAntiAffinity"].iter().any(|kind| {
        list(pod, &format!("{kind}.requiredDuringSchedulingIgnoredDuringExecution")).iter().any(across)
            || list(pod, &format!("{kind}.preferredDuringSchedulingIgnoredDuringExecution"))
                .iter()
                .any(|preferred| across(at(preferred, "podAffinityTerm")))
    })
}

const COMPUTE: [(&str, &str, &str); 6] = [
    ("cpu", "resources.requests", "cpu"),
    ("limits.cpu", "resources.limits", "cpu"),
    ("limits.memory", "resources.limits", "memory"),
    ("memory", "resources.requests", "memory"),
    ("requests.cpu", "resources.requests", "cpu"),
    ("requests.memory", "resources.requests", "memory"),
];

/// `limits.cpu for: a,b; memory for: a`: what a quota limits and containers leave open.
fn unspecified(quota: &Value, pod: &Value) -> String {
    let mut parts = Vec::new();
    // A pod that says it for all its containers need not say it for each.
    if ["requests", "limits"].iter().any(|side| entries(pod, &format!("spec.resources.{side}")).next().is_some()) {
        return String::new();
    }
    for (resource, side, key) in COMPUTE {
        if !map(quota, "status.hard").is_some_and(|hard| hard.contains_key(resource)) {
            continue;
        }
        let open: BTreeSet<&str> = ["spec.containers", "spec.initContainers"]
            .iter()
            .flat_map(|field| list(pod, field))
            .filter(|container| !map(container, side).is_some_and(|amounts| amounts.contains_key(key)))
            .map(|container| text(container, "name"))
            .collect();
        if !open.is_empty() {
            let names: Vec<&str> = open.into_iter().collect();
            parts.push(format!("{resource} for: {}", names.join(",")));
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests;
