//! In-place resize of pods (KEP-1287): containers get other CPU and memory without being made anew,
//! unless their `resizePolicy` wants that. Pure.
//!
//! Two decisions, in this order:
//! 1. [`refuse`]: whether the node has room for what a running pod now wishes. If not, the pod keeps
//!    what it has ([`with_resources_of`]), and its condition `PodResizePending` says why. So
//!    everything behind the manager only ever sees what was granted.
//! 2. [`changes`]: which running containers do not have yet what was granted, and [`regroups`]: whether the
//!    pod as a whole has not. The worker (`pod::worker::resizing`) gives it to them; meanwhile the condition
//!    is `PodResizeInProgress`.
//!
//! A container without a limit of its own has the pod's ([`Given`]): it changes when the pod's does.
//!
//! What a run was given last is remembered by the worker; after a restart of the kubelet it is what
//! the status says ([`as_running`]).

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

use crate::admission::{self, View};
use crate::cgroups::{Limits, pod_limits};
use crate::pod::actions::Memory;
use crate::pod::observed::Observed;

/// Why a pod does not get what it wishes: the condition `PodResizePending`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// `Infeasible` for ever, `Deferred` until others leave room.
    pub reason: &'static str,
    pub message: String,
}

pub const DEFERRED: &str = "Deferred";
const INFEASIBLE: &str = "Infeasible";

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

fn containers_mut(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten())
}

/// What a container was given: its own resources and those of its pod as a whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Given {
    pub own: Option<ResourceRequirements>,
    pub pod: Option<ResourceRequirements>,
}

impl Given {
    pub fn of(pod: &Pod, container: &Container) -> Self {
        Self { own: container.resources.clone(), pod: pod_level(pod).cloned() }
    }

    fn amounts(&self, name: &str) -> [Option<Quantity>; 2] {
        let [request, limit] = amounts(self.own.as_ref(), name);
        let [_, inherited] = amounts(self.pod.as_ref(), name);
        [request, limit.or(inherited)]
    }
}

/// What the pod as a whole is to have, if it says so.
pub fn pod_level(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref()?.resources.as_ref()
}

/// Of CPU and memory, the only ones that can change.
fn amounts(resources: Option<&ResourceRequirements>, name: &str) -> [Option<Quantity>; 2] {
    // Not as text: `1` and `1000m` are the same.
    [resources.and_then(|r| r.requests.as_ref()), resources.and_then(|r| r.limits.as_ref())]
        .map(|side| side.and_then(|side| side.get(name)).and_then(|quantity| quantity.0.parse().ok()))
}

fn differ(one: Option<&ResourceRequirements>, other: Option<&ResourceRequirements>) -> bool {
    one != other && RESIZABLE.iter().any(|name| amounts(one, name) != amounts(other, name))
}

const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Whether `pod` wishes other resources than `earlier` had.
pub fn is_wished(pod: &Pod, earlier: &Pod) -> bool {
    let (Some(new), Some(old)) = (pod.spec.as_ref(), earlier.spec.as_ref()) else { return false };
    differ(new.resources.as_ref(), old.resources.as_ref())
        || containers(new).any(|container| {
            let mut before = containers(old).filter(|before| before.name == container.name);
            before.any(|before| differ(container.resources.as_ref(), before.resources.as_ref()))
        })
}

/// The pod with the resources that it and its containers had in `earlier`.
pub fn with_resources_of(pod: &Pod, earlier: &Pod) -> Pod {
    let mut kept = pod.clone();
    let (Some(spec), Some(old)) = (kept.spec.as_mut(), earlier.spec.as_ref()) else { return kept };
    spec.resources = old.resources.clone();
    for container in containers_mut(spec) {
        if let Some(before) = containers(old).find(|before| before.name == container.name) {
            container.resources = before.resources.clone();
        }
    }
    kept
}

/// What the status says that the pod as a whole has, of what it says for itself.
pub fn pod_level_as_told(pod: &Pod) -> Option<ResourceRequirements> {
    let mut own = pod_level(pod).cloned()?;
    let told = pod.status.as_ref().and_then(|status| status.resources.as_ref());
    let sides = [
        (&mut own.requests, told.and_then(|r| r.requests.as_ref())),
        (&mut own.limits, told.and_then(|r| r.limits.as_ref())),
    ];
    for (own, told) in sides {
        for (name, quantity) in own.iter_mut().flatten() {
            if let Some(told) = told.and_then(|told| told.get(name)).filter(|_| RESIZABLE.contains(&name.as_str())) {
                *quantity = told.clone();
            }
        }
    }
    Some(own)
}

/// The pod with the resources that its status says it and its containers run with.
pub fn as_running(pod: &Pod) -> Pod {
    let mut running = pod.clone();
    let together = pod_level_as_told(pod);
    let status = pod.status.clone().unwrap_or_default();
    let statuses = [status.container_statuses, status.init_container_statuses];
    let Some(spec) = running.spec.as_mut() else { return running };
    spec.resources = together;
    for container in containers_mut(spec) {
        let told = statuses.iter().flatten().flatten().find(|status| status.name == container.name);
        if let Some(resources) = told.and_then(|status| status.resources.clone()) {
            container.resources = Some(resources);
        }
    }
    running
}

/// Why the node cannot give what the pod wishes; `view.others` are all pods but this one.
pub fn refuse(pod: &Pod, view: &View<'_>, is_static: bool) -> Option<Pending> {
    let pending = |reason, message| Some(Pending { reason, message });
    if is_static {
        return pending(INFEASIBLE, "In-place resize of static-pods is not supported".to_owned());
    }
    let spec = pod.spec.as_ref()?;
    if let Some(short) = admission::shortage(spec, &View { others: &[], ..*view }) {
        let admission::Shortage { name, requested, capacity, .. } = short;
        let message = format!("Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}");
        return pending(INFEASIBLE, message);
    }
    let short = admission::shortage(spec, view)?;
    pending(DEFERRED, short.to_string())
}

/// A running container that has other resources than it was granted.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub run_id: String,
    pub container: Container,
    /// What it is to have.
    pub given: Given,
    /// Its `resizePolicy` wants it to be made anew.
    pub restart: bool,
}

/// What is still to be done for what was granted.
pub fn changes(pod: &Pod, observed: &Observed, memory: &Memory) -> Vec<Change> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    containers(spec)
        .filter_map(|container| {
            let run = observed.newest(&container.name).filter(|run| run.is_running())?;
            let applied = memory.applied.get(&run.id)?;
            let wished = Given::of(pod, container);
            let changed: Vec<&str> =
                RESIZABLE.into_iter().filter(|name| wished.amounts(name) != applied.amounts(name)).collect();
            let restarts = |name: &&str| {
                container
                    .resize_policy
                    .iter()
                    .flatten()
                    .any(|policy| policy.resource_name == **name && policy.restart_policy == "RestartContainer")
            };
            (!changed.is_empty()).then(|| Change {
                run_id: run.id.clone(),
                container: container.clone(),
                given: wished,
                restart: changed.iter().any(restarts),
            })
        })
        .collect()
}

/// Whether the pod as a whole is to have other resources than its group was given.
pub fn regroups(pod: &Pod, group: Option<&Option<ResourceRequirements>>) -> bool {
    group.is_some_and(|group| differ(pod_level(pod), group.as_ref()))
}

/// Refuses to take memory that a container uses: `before` is what it has, `used` bytes.
pub fn may_shrink(change: &Change, before: Option<&Given>, used: u64) -> Result<(), String> {
    let limit = |given: &Given| given.amounts("memory")[1];
    shrinks_below(before.and_then(limit), limit(&change.given), used).map_or(Ok(()), |limit| {
        let name = &change.container.name;
        Err(format!("attempting to set container {name:?} memory limit ({limit}) below current usage ({used})"))
    })
}

/// The same of the pod as a whole.
pub fn group_may_shrink(pod: &Pod, before: Option<&Option<ResourceRequirements>>, used: u64) -> Result<(), String> {
    let limit = |resources: Option<&ResourceRequirements>| amounts(resources, "memory")[1];
    let had = before.and_then(|before| limit(before.as_ref()));
    shrinks_below(had, limit(pod_level(pod)), used).map_or(Ok(()), |limit| {
        Err(format!("attempting to set pod memory limit ({limit}) below current usage ({used})"))
    })
}

/// The new limit, if it is lower than the old one and than what is used.
fn shrinks_below(before: Option<Quantity>, after: Option<Quantity>, used: u64) -> Option<i64> {
    let had = before.map_or(i64::MAX, |limit| limit.units());
    after.map(|limit| limit.units()).filter(|limit| *limit < had && limit.unsigned_abs() < used)
}

/// The pod's group while its containers change one after the other: room for the old and the new.
pub fn limits_meanwhile(
    pod: &Pod,
    group: Option<&Option<ResourceRequirements>>,
    observed: &Observed,
    memory: &Memory,
) -> Limits {
    let mut before = pod.clone();
    if let Some(spec) = before.spec.as_mut() {
        if let Some(group) = group {
            spec.resources = group.clone();
        }
        for container in containers_mut(spec) {
            let applied = observed.newest(&container.name).and_then(|run| memory.applied.get(&run.id));
            if let Some(applied) = applied {
                container.resources = applied.own.clone();
            }
        }
    }
    let (old, new) = (pod_limits(&before), pod_limits(pod));
    // None is no limit at all.
    fn larger<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
        one.zip(other).map(|(one, other)| one.max(other))
    }
    Limits {
        cpu_shares: larger(old.cpu_shares, new.cpu_shares),
        cpu_quota: larger(old.cpu_quota, new.cpu_quota),
        memory_bytes: larger(old.memory_bytes, new.memory_bytes),
        pids: None,
    }
}

/// What the events `ResizeStarted` and `ResizeCompleted` tell.
pub fn summary(pod: &Pod) -> String {
    let containers: Vec<_> = pod
        .spec
        .iter()
        .flat_map(containers)
        .map(|container| serde_json::json!({"name": container.name, "resources": container.resources}))
        .collect();
    serde_json::json!({"containers": containers, "generation": pod.metadata.generation}).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::pod::actions::tests_support::run;
    use crate::pod::observed::RunState;

    fn pod(cpu: &str, memory: &str) -> Pod {
        let amounts = json!({"cpu": cpu, "memory": memory});
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": amounts, "limits": amounts},
             "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}, {"resourceName": "cpu", "restartPolicy": "NotRequired"}]},
            {"name": "other"}]}}))
        .unwrap()
    }

    fn resources(pod: &Pod) -> Option<ResourceRequirements> {
        pod.spec.as_ref().unwrap().containers[0].resources.clone()
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let allocatable = [("cpu", "2"), ("memory", "1Gi")]
            .into_iter()
            .map(|(name, amount)| (name.to_owned(), amount.parse().unwrap()))
            .collect();
        let other = pod("1", "100Mi");
        for (cpu, is_static, expected) in [
            ("1", false, None),
            (
                "1001m",
                false,
                Some((DEFERRED, "Node didn't have enough resource: cpu, requested: 1001, used: 1000, capacity: 2000")),
            ),
            ("3", false, Some((INFEASIBLE, "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000"))),
            ("1", true, Some((INFEASIBLE, "In-place resize of static-pods is not supported"))),
        ] {
            let view = View {
                allocatable: &allocatable,
                node: None,
                others: &[&other],
                unsafe_sysctls: &[],
                apparmor: true,
                strict_groups: None,
                pressure: Default::default(),
            };
            let pending = refuse(&pod(cpu, "1Mi"), &view, is_static);
            let expected = expected.map(|(reason, message)| Pending { reason, message: message.to_owned() });
            assert_eq!(pending, expected, "{cpu}");
        }
    }

    #[test]
    fn a_refused_pod_keeps_what_it_has() {
        let (old, new) = (pod("1", "1Mi"), pod("2", "1Mi"));
        assert!(is_wished(&new, &old) && !is_wished(&old, &old));
        assert_eq!(resources(&with_resources_of(&new, &old)), resources(&old));
        let mut told = new.clone();
        let status: Value = json!({"containerStatuses": [{"name": "c", "resources": resources(&old), "image": "", "imageID": "", "ready": true, "restartCount": 0}]});
        told.status = serde_json::from_value(status).unwrap();
        assert_eq!(resources(&as_running(&told)), resources(&old));
    }

    #[test]
    fn memory_in_use_is_not_taken() {
        let change = |memory: &str| {
            let pod = pod("1", memory);
            let container = pod.spec.as_ref().unwrap().containers[0].clone();
            Change { run_id: String::new(), given: Given::of(&pod, &container), container, restart: false }
        };
        let before = change("20Mi").given;
        for (memory, used, allowed) in [("10Mi", 5 << 20, true), ("10Mi", 11 << 20, false), ("20Mi", 30 << 20, true)] {
            assert_eq!(may_shrink(&change(memory), Some(&before), used).is_ok(), allowed, "{memory} {used}");
        }
        let refused = may_shrink(&change("10Ki"), Some(&before), 376_832).unwrap_err();
        assert_eq!(refused, "attempting to set container \"c\" memory limit (10240) below current usage (376832)");
    }

    #[test]
    fn equal_amounts_are_no_change() {
        assert!(!is_wished(&pod("1", "1Mi"), &pod("1000m", "1024Ki")));
    }

    #[test]
    fn only_running_containers_with_other_resources_change() {
        let old = pod("1", "1Mi");
        let mut observed = Observed::default();
        observed.put_run(run("c", "s", RunState::Running, 0));
        let memory = Memory {
            applied: HashMap::from([("c-0".to_owned(), Given { own: resources(&old), pod: None })]),
            ..Default::default()
        };
        let restarts =
            |pod: &Pod| -> Vec<bool> { changes(pod, &observed, &memory).iter().map(|change| change.restart).collect() };
        assert_eq!(restarts(&old), [] as [bool; 0]);
        assert_eq!(restarts(&pod("2", "1Mi")), [false]);
        assert_eq!(restarts(&pod("1", "2Mi")), [true]);
        assert!(changes(&pod("2", "1Mi"), &observed, &Memory::default()).is_empty(), "not known what it has");

        let meanwhile = |cpu: &str| limits_meanwhile(&pod(cpu, "1Mi"), None, &observed, &memory).cpu_shares;
        assert_eq!((meanwhile("2"), meanwhile("500m")), (Some(2048), Some(1024)));
    }

    #[test]
    fn the_pods_own_resources_reach_its_group_and_the_containers_that_have_no_limit() {
        let pod = |cpu: &str, memory: &str| -> Pod {
            let amounts = json!({"cpu": cpu, "memory": memory});
            let limited =
                json!({"limits": {"cpu": "100m", "memory": "1Mi"}, "requests": {"cpu": "100m", "memory": "1Mi"}});
            serde_json::from_value(
                json!({"spec": {"resources": {"requests": amounts, "limits": amounts}, "containers": [
                {"name": "bare", "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]},
                {"name": "limited", "resources": limited}]}}),
            )
            .unwrap()
        };
        let old = pod("200m", "200Mi");
        let mut observed = Observed::default();
        let mut memory = Memory::default();
        for container in &old.spec.as_ref().unwrap().containers {
            let run = run(&container.name, "s", RunState::Running, 0);
            memory.applied.insert(run.id.clone(), Given::of(&old, container));
            observed.put_run(run);
        }
        let group = Some(pod_level(&old).cloned());
        let changed = |pod: &Pod| -> Vec<(String, bool)> {
            changes(pod, &observed, &memory).into_iter().map(|change| (change.container.name, change.restart)).collect()
        };
        for (cpu, memory, expected) in [
            ("200m", "200Mi", None),
            ("0.2", "200Mi", None),
            ("300m", "200Mi", Some(false)),
            ("200m", "300Mi", Some(true)),
        ] {
            let new = pod(cpu, memory);
            let bare = expected.map(|restart| ("bare".to_owned(), restart));
            assert_eq!(changed(&new), Vec::from_iter(bare), "{cpu} {memory}");
            assert_eq!(
                (is_wished(&new, &old), regroups(&new, group.as_ref())),
                (expected.is_some(), expected.is_some())
            );
        }
        let new = pod("300m", "100Mi");
        let meanwhile = limits_meanwhile(&new, group.as_ref(), &observed, &memory);
        assert_eq!((meanwhile.cpu_quota, meanwhile.memory_bytes), (Some(30_000), Some(200 << 20)));
        assert_eq!(pod_level(&with_resources_of(&new, &old)), pod_level(&old));
        let error = group_may_shrink(&new, group.as_ref(), 150 << 20).unwrap_err();
        assert_eq!(error, "attempting to set pod memory limit (104857600) below current usage (157286400)");
        assert_eq!(group_may_shrink(&new, group.as_ref(), 50 << 20), Ok(()));

        let mut told = new.clone();
        told.status = serde_json::from_value(json!({"resources": {"requests": {"cpu": "200m", "memory": "200Mi"}, "limits": {"cpu": "200m", "memory": "200Mi"}}})).unwrap();
        assert_eq!(pod_level(&as_running(&told)), pod_level(&old), "after a restart of the kubelet");
    }
}
