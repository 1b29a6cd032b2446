//! A pod as the scheduler looks at it: everything parsed once, when it is seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::resources::{Side, held, of_pod};
use api::selector::{Requirement, Selector};
use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, PodSpec, Toleration, WeightedPodAffinityTerm};

use crate::node_selector::NodeAffinity;
use crate::resource::Resources;

pub const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// What a container without a request counts as when nodes are scored.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

pub type Uid = Arc<str>;

#[derive(Debug, PartialEq)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    pub priority: i32,
    pub labels: BTreeMap<String, String>,
    pub requests: Resources,
    /// The same with defaults for containers that ask for no cpu or memory: for scores only.
    pub scored_milli_cpu: i64,
    pub scored_memory: i64,
    pub host_ports: Vec<HostPort>,
    pub tolerations: Vec<Toleration>,
    pub node_affinity: NodeAffinity,
    pub affinity: Terms,
    pub anti_affinity: Terms,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// `0.0.0.0` for every address.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        let any = |port: &Self| port.ip == "0.0.0.0";
        self.port == other.port && self.protocol == other.protocol && (self.ip == other.ip || any(self) || any(other))
    }
}

/// `podAffinity` or `podAntiAffinity`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Terms {
    pub required: Vec<Term>,
    pub preferred: Vec<(i64, Term)>,
}

/// One affinity term: pods it selects, and over which kind of domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    pub selector: Selector,
    pub topology_key: String,
    pub namespaces: Vec<String>,
    pub namespace_selector: Selector,
}

impl Term {
    /// Whether it selects `pod`; `namespace_labels` are those of the pod's namespace.
    pub fn selects(&self, pod: &PodInfo, namespace_labels: Option<&BTreeMap<String, String>>) -> bool {
        let none = BTreeMap::new();
        let in_namespace = self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.matches(namespace_labels.unwrap_or(&none));
        in_namespace && self.selector.matches(&pod.labels)
    }
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let meta = &pod.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let labels = meta.labels.clone().unwrap_or_default();
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let requests = Resources::from_amounts(&of_pod(&held(spec, pod.status.as_ref()), Side::Requests));
        let (scored_milli_cpu, scored_memory) = scored(spec, &requests);
        let owner = Owner { namespace: &namespace, labels: &labels };
        let near = spec.affinity.as_ref().and_then(|affinity| affinity.pod_affinity.as_ref());
        let far = spec.affinity.as_ref().and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        Self {
            uid: meta.uid.clone().unwrap_or_default().into(),
            name: meta.name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            host_ports: host_ports(spec),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            node_affinity: NodeAffinity::of(spec),
            affinity: owner.terms(
                near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
                near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: owner.terms(
                far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
                far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            requests,
            scored_milli_cpu,
            scored_memory,
            namespace,
            labels,
            pod,
        }
    }

    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// The node it is bound to.
    pub fn node_name(&self) -> Option<&str> {
        self.spec().and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty())
    }

    /// The node that preemption made room on for it, or where it is expected for another reason.
    pub fn nominated_node(&self) -> Option<&str> {
        nominated_node(&self.pod)
    }

    /// Whether its containers are done for good: it holds no resources any more.
    pub fn is_terminal(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    pub fn is_being_deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Whether it is this scheduler's to place.
    pub fn is_ours(&self) -> bool {
        let name = self.spec().and_then(|spec| spec.scheduler_name.as_deref());
        name.is_none_or(|name| name.is_empty() || name == DEFAULT_SCHEDULER)
    }

    /// Whether it may need devices: it has claims, or asks for resources that may be devices.
    pub fn may_need_devices(&self) -> bool {
        self.has_claims() || self.extended_resources().next().is_some()
    }

    pub fn has_claims(&self) -> bool {
        self.spec().and_then(|spec| spec.resource_claims.as_ref()).is_some_and(|claims| !claims.is_empty())
    }

    /// What it asks for that is not Kubernetes' own: name and amount.
    pub fn extended_resources(&self) -> impl Iterator<Item = (&str, i64)> {
        let others = self.requests.others.iter().map(|(name, amount)| (name.as_str(), *amount));
        others.filter(|(name, amount)| *amount != 0 && crate::resource::is_extended(name))
    }

    /// `namespace/name`, as messages have it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

pub fn nominated_node(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|name| !name.is_empty())
}

/// cpu and memory with a default for each container that asks for none, so that many pods without
/// requests do not all end up on one node.
fn scored(spec: &PodSpec, requests: &Resources) -> (i64, i64) {
    let pod_level = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let missing = |name: &str| {
        if pod_level.is_some_and(|requests| requests.contains_key(name)) {
            return 0;
        }
        let asks =
            |requests: Option<&BTreeMap<String, _>>| requests.is_some_and(|requests| requests.contains_key(name));
        let without = spec.containers.iter().filter(|c| !asks(c.resources.as_ref().and_then(|r| r.requests.as_ref())));
        without.count() as i64
    };
    (
        requests.milli_cpu.saturating_add(missing("cpu") * DEFAULT_MILLI_CPU),
        requests.memory.saturating_add(missing("memory") * DEFAULT_MEMORY),
    )
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| api::resources::is_sidecar(container));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let text = |value: &Option<String>, default: &str| match value.as_deref() {
                None | Some("") => default.to_owned(),
                Some(value) => value.to_owned(),
            };
            let number = port.host_port.filter(|number| *number > 0)?;
            Some(HostPort { ip: text(&port.host_ip, "0.0.0.0"), protocol: text(&port.protocol, "TCP"), port: number })
        })
        .collect()
}

/// The pod that affinity terms belong to: terms are about its namespace unless they say otherwise.
struct Owner<'a> {
    namespace: &'a str,
    labels: &'a BTreeMap<String, String>,
}

impl Owner<'_> {
    fn terms(
        &self,
        required: Option<&Vec<PodAffinityTerm>>,
        preferred: Option<&Vec<WeightedPodAffinityTerm>>,
    ) -> Terms {
        let preferred = preferred.into_iter().flatten();
        Terms {
            required: required.into_iter().flatten().map(|term| self.term(term)).collect(),
            preferred: preferred.map(|w| (i64::from(w.weight), self.term(&w.pod_affinity_term))).collect(),
        }
    }

    fn term(&self, term: &PodAffinityTerm) -> Term {
        let own_namespace = term.namespaces.as_ref().is_none_or(Vec::is_empty) && term.namespace_selector.is_none();
        Term {
            // What the API server accepted parses; should it not, the term selects nothing.
            selector: self.with_label_keys(term),
            topology_key: term.topology_key.clone(),
            namespaces: if own_namespace {
                vec![self.namespace.to_owned()]
            } else {
                term.namespaces.clone().unwrap_or_default()
            },
            namespace_selector: Selector::from_label_selector(term.namespace_selector.as_ref())
                .unwrap_or_else(|_| Selector::nothing()),
        }
    }

    /// `matchLabelKeys` and `mismatchLabelKeys` take their values from the pod itself.
    fn with_label_keys(&self, term: &PodAffinityTerm) -> Selector {
        let parsed = Selector::from_label_selector(term.label_selector.as_ref());
        let mut selector = parsed.unwrap_or_else(|_| Selector::nothing());
        for key in term.match_label_keys.iter().flatten() {
            if let Some(value) = self.labels.get(key) {
                selector.requirements.push(Requirement::In(key.clone(), vec![value.clone()]));
            }
        }
        for key in term.mismatch_label_keys.iter().flatten() {
            if let Some(value) = self.labels.get(key) {
                selector.requirements.push(Requirement::NotIn(key.clone(), vec![value.clone()]));
            }
        }
        selector
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_without_requests_counts_when_scored_but_not_when_fitted() {
        let pod = crate::testing::pod(json!({"containers": [
            {"name": "a"},
            {"name": "b", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
        ]}));
        assert_eq!(pod.requests.milli_cpu, 1000);
        assert_eq!((pod.scored_milli_cpu, pod.scored_memory), (1100, (1 << 30) + 200 * 1024 * 1024));
    }

    #[test]
    fn a_pod_being_resized_holds_the_most_of_what_it_asks_for_and_has() {
        let pod = |spec: &str, has: &str, granted: &str, pending: serde_json::Value| {
            let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
            let mut sidecar = container("1");
            sidecar["restartPolicy"] = json!("Always");
            let status = |cpu: &str, granted: &str| {
                json!([{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "resources": {"requests": {"cpu": cpu}}, "allocatedResources": {"cpu": granted}}])
            };
            crate::testing::object(json!({"metadata": {"name": "p"},
                "spec": {"containers": [container(spec)], "initContainers": [sidecar]},
                "status": {"containerStatuses": status(has, granted), "initContainerStatuses": status("2", "1"),
                    "conditions": pending}}))
        };
        let pending = |reason: &str| json!([{"type": "PodResizePending", "status": "True", "reason": reason}]);
        for (spec, has, granted, pending, want) in [
            ("1", "1", "1000m", json!([]), 3000),
            ("1", "4", "1", json!([]), 6000),
            ("1", "1", "3", json!([]), 5000),
            ("8", "1", "1", pending("Deferred"), 10_000),
            ("8", "1", "1", pending("Infeasible"), 3000),
        ] {
            let pod = pod(spec, has, granted, pending);
            assert_eq!(pod.requests.milli_cpu, want, "{spec} wanted, {has} had, {granted} granted");
        }
    }

    #[test]
    fn host_ports_conflict_by_protocol_address_and_number() {
        let port = |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        let here = port("10.0.0.1", "TCP", 80);
        for (other, conflicts) in [
            (port("10.0.0.1", "TCP", 80), true),
            (port("0.0.0.0", "TCP", 80), true),
            (port("10.0.0.2", "TCP", 80), false),
            (port("10.0.0.1", "UDP", 80), false),
            (port("10.0.0.1", "TCP", 81), false),
        ] {
            assert_eq!(here.conflicts(&other), conflicts, "{other:?}");
        }
    }
}
