//! Whether this node takes a pod that was bound to it (`pkg/kubelet/lifecycle/predicate.go`). Pure.
//!
//! The scheduler may have been wrong or bypassed (`spec.nodeName`), so the node checks again.

use std::collections::BTreeSet;

use api::quantity::Quantity;
use api::resources::{self, Amounts, QosClass, Side};
use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorTerm, Pod, PodSpec};

use crate::eviction::is_critical;
use crate::node::status::Pressure;
use crate::pod::status::{EVICTED, Verdict};

/// What the node has, and the pods that it took already.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub allocatable: &'a Amounts,
    /// None while the node's object is not known: selectors are then not checked.
    pub node: Option<&'a Node>,
    pub others: &'a [&'a Pod],
    /// Sysctls that pods may set besides the safe ones; `*` at the end stands for anything.
    pub unsafe_sysctls: &'a [String],
    /// The host can confine what runs by AppArmor's profiles.
    pub apparmor: bool,
    /// The runtime can give a pod the groups of its spec alone. None while that is not known.
    pub strict_groups: Option<bool>,
    /// What the node runs out of.
    pub pressure: Pressure,
}

/// The reason to refuse, if there is one.
pub fn refuse(pod: &Pod, view: &View<'_>) -> Option<Verdict> {
    let spec = pod.spec.as_ref()?;
    refuse_under_pressure(pod, view.pressure)
        .or_else(|| refuse_resources(spec, view))
        .or_else(|| refuse_otherwise(pod, spec, view))
}

/// The reason to refuse a pod for which others make room.
pub fn refuse_given_room(pod: &Pod, view: &View<'_>) -> Option<Verdict> {
    let spec = pod.spec.as_ref()?;
    refuse_under_pressure(pod, view.pressure).or_else(|| refuse_otherwise(pod, spec, view))
}

fn refuse_otherwise(pod: &Pod, spec: &PodSpec, view: &View<'_>) -> Option<Verdict> {
    refuse_ports(spec, view)
        .or_else(|| refuse_selectors(spec, view))
        .or_else(|| refuse_groups(spec, view.strict_groups))
        .or_else(|| refuse_sysctls(spec, view.unsafe_sysctls))
        .or_else(|| refuse_profiles(pod, view))
}

/// A node that ends pods for what it runs out of takes none that would be next: under pressure of memory
/// alone those that request none, else all but critical ones (`eviction_manager.go: Admit`).
fn refuse_under_pressure(pod: &Pod, pressure: Pressure) -> Option<Verdict> {
    let names = [("MemoryPressure", pressure.memory), ("DiskPressure", pressure.disk), ("PIDPressure", pressure.pid)];
    let met: Vec<&str> = names.into_iter().filter(|(_, met)| *met).map(|(name, _)| name).collect();
    let takes = match met.as_slice() {
        [] => true,
        ["MemoryPressure"] => resources::qos_class(pod) != QosClass::BestEffort || tolerates_memory_pressure(pod),
        _ => false,
    };
    (!takes && !is_critical(pod))
        .then(|| Verdict::refused(EVICTED, format!("The node had condition: [{}]. ", met.join(" "))))
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    let mut tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    tolerations.any(|toleration| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let exists = text(&toleration.operator) == "Exists";
        let key = text(&toleration.key);
        let names_it = key == "node.kubernetes.io/memory-pressure" && (exists || text(&toleration.value).is_empty());
        let any_effect = ["", "NoSchedule"].contains(&text(&toleration.effect).as_str());
        (names_it || key.is_empty() && exists) && any_effect
    })
}

/// A pod that wants the groups of its spec alone, where the runtime cannot but add those of the image
/// (`SupplementalGroupsPolicy`). A refusal is for good: it needs the runtime's own word.
fn refuse_groups(spec: &PodSpec, works: Option<bool>) -> Option<Verdict> {
    let policy = spec.security_context.as_ref()?.supplemental_groups_policy.as_deref();
    (policy == Some("Strict") && works == Some(false)).then(|| {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        Verdict::refused("SupplementalGroupsPolicyNotSupported", message)
    })
}

/// Where profiles used to be named.
const PROFILE_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A pod that is to be confined must not run unconfined (`pkg/security/apparmor/validate.go`).
fn refuse_profiles(pod: &Pod, view: &View<'_>) -> Option<Verdict> {
    if view.apparmor {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of_containers = containers.map(|container| container.security_context.as_ref());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| container.security_context.as_ref());
    let of_containers = of_containers
        .chain(ephemeral)
        .filter_map(|context| context.and_then(|context| context.app_armor_profile.as_ref()));
    let of_pod = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let by_field = of_pod.into_iter().chain(of_containers).any(|profile| profile.type_ != "Unconfined");
    let annotations = pod.metadata.annotations.iter().flatten();
    let by_annotation =
        annotations.filter(|(key, _)| key.starts_with(PROFILE_ANNOTATION)).any(|(_, profile)| profile != "unconfined");
    (by_field || by_annotation)
        .then(|| Verdict::refused("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"))
}

/// What one pod sets has no effect on others (`pkg/kubelet/sysctl/safe_sysctls.go`).
const SAFE_SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Whether a sysctl belongs to one of the pod's namespaces, whatever it is set to.
fn is_namespaced(sysctl: &str) -> bool {
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    sysctl == "kernel.sem" || sysctl.starts_with("net.") || ipc.iter().any(|prefix| sysctl.starts_with(prefix))
}

fn refuse_sysctls(spec: &PodSpec, allowed: &[String]) -> Option<Verdict> {
    let listed = |name: &str| {
        allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
    };
    let forbidden = spec.security_context.as_ref()?.sysctls.iter().flatten().find(|sysctl| {
        let name = sysctl.name.replace('/', ".");
        !(SAFE_SYSCTLS.contains(&name.as_str()) || listed(&name) && is_namespaced(&name))
    })?;
    Some(Verdict::refused("SysctlForbidden", format!("forbidden sysctl: {:?} not allowlisted", forbidden.name)))
}

/// What the node has too little of. CPU in millicores, the rest in units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    pub name: String,
    pub requested: i64,
    pub used: i64,
    pub capacity: i64,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, requested, used, capacity } = self;
        write!(
            f,
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }
}

fn refuse_resources(spec: &PodSpec, view: &View<'_>) -> Option<Verdict> {
    let short = shortage(spec, view)?;
    Some(Verdict::refused(format!("OutOf{}", short.name), short))
}

/// What is missing for the pod beside the others, if anything is.
pub fn shortage(spec: &PodSpec, view: &View<'_>) -> Option<Shortage> {
    shortages(spec, view).into_iter().next()
}

/// Everything that is missing for the pod beside the others.
pub fn shortages(spec: &PodSpec, view: &View<'_>) -> Vec<Shortage> {
    let mut missing = Vec::new();
    let capacity = |name: &str| view.allocatable.get(name).copied().unwrap_or(Quantity::ZERO);
    let pods = i64::try_from(view.others.len()).unwrap_or(i64::MAX);
    if view.allocatable.contains_key("pods") && pods + 1 > capacity("pods").units() {
        missing.push(out_of("pods", 1, pods, capacity("pods").units()));
    }
    let mut used = Amounts::new();
    for other in view.others.iter().filter_map(|pod| pod.spec.as_ref()) {
        for (name, amount) in resources::of_pod(other, Side::Requests) {
            let sum = used.get(&name).map_or(amount, |have| *have + amount);
            used.insert(name, sum);
        }
    }
    for (name, wanted) in resources::of_pod(spec, Side::Requests) {
        // Resources that the node never heard of are left to their plugins.
        let known = view.allocatable.contains_key(&name);
        if wanted.is_zero() || !known {
            continue;
        }
        let have = used.get(&name).copied().unwrap_or(Quantity::ZERO);
        if have + wanted > capacity(&name) {
            let count = |quantity: Quantity| if name == "cpu" { quantity.milli() } else { quantity.units() };
            missing.push(out_of(&name, count(wanted), count(have), count(capacity(&name))));
        }
    }
    missing
}

fn out_of(name: &str, requested: i64, used: i64, capacity: i64) -> Shortage {
    Shortage { name: name.to_owned(), requested, used, capacity }
}

/// (address, protocol, port)
type HostPort = (String, String, i32);

fn host_ports(spec: &PodSpec) -> BTreeSet<HostPort> {
    let host_network = spec.host_network.unwrap_or(false);
    let sidecars = spec.init_containers.iter().flatten().filter(|container| resources::is_sidecar(container));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|port| *port > 0).or(host_network.then_some(port.container_port))?;
            let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((ip, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
        })
        .collect()
}

fn refuse_ports(spec: &PodSpec, view: &View<'_>) -> Option<Verdict> {
    let wanted = host_ports(spec);
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    let clash =
        view.others.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(host_ports).any(|(ip, protocol, port)| {
            wanted.iter().any(|(own_ip, own_protocol, own_port)| {
                port == *own_port && protocol == *own_protocol && (ip == *own_ip || any(&ip) || any(own_ip))
            })
        });
    clash.then(|| {
        Verdict::refused(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        )
    })
}

fn refuse_selectors(spec: &PodSpec, view: &View<'_>) -> Option<Verdict> {
    let node = view.node?;
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let simple = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let name = node.metadata.name.clone().unwrap_or_default();
    let matches = simple && required.is_none_or(|selector| selector_matches(selector, &labels, &name));
    (!matches).then(|| {
        Verdict::refused(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        )
    })
}

type Labels = std::collections::BTreeMap<String, String>;

fn selector_matches(selector: &NodeSelector, labels: &Labels, name: &str) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, labels, name))
}

fn term_matches(term: &NodeSelectorTerm, labels: &Labels, name: &str) -> bool {
    let empty = term.match_expressions.as_ref().is_none_or(Vec::is_empty)
        && term.match_fields.as_ref().is_none_or(Vec::is_empty);
    if empty {
        return false;
    }
    let expressions = term.match_expressions.iter().flatten().all(|requirement| {
        holds(
            &requirement.operator,
            labels.get(&requirement.key).map(String::as_str),
            requirement.values.as_deref().unwrap_or_default(),
        )
    });
    let fields = term.match_fields.iter().flatten().all(|requirement| {
        requirement.key == "metadata.name"
            && holds(&requirement.operator, Some(name), requirement.values.as_deref().unwrap_or_default())
    });
    expressions && fields
}

fn holds(operator: &str, value: Option<&str>, values: &[String]) -> bool {
    let listed = value.is_some_and(|value| values.iter().any(|known| known == value));
    let compared = || {
        let number = value?.parse::<i64>().ok()?;
        let bound = values.first()?.parse::<i64>().ok()?;
        Some(number.cmp(&bound))
    };
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared() == Some(std::cmp::Ordering::Greater),
        "Lt" => compared() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn container(resources: Value, ports: Value) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": resources}, "ports": ports}]})
    }

    #[test]
    fn reasons_to_refuse() {
        let allocatable: Amounts = [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")]
            .into_iter()
            .map(|(name, amount)| (name.to_owned(), amount.parse().unwrap()))
            .collect();
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "gen": "7"}}})).unwrap();
        let other = pod(container(json!({"cpu": "1500m"}), json!([{"containerPort": 80, "hostPort": 80}])));
        let affinity = |operator: &str, key: &str, values: Value| {
            json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]}}}})
        };
        let sysctl =
            |name: &str| json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        let unsafe_sysctls = ["net.ipv4.ip_*".to_owned(), "fs.*".to_owned()];
        for (spec, reason) in [
            (container(json!({"cpu": "500m"}), json!([])), None),
            (container(json!({"cpu": "501m"}), json!([])), Some("OutOfcpu")),
            (container(json!({"memory": "2Gi"}), json!([])), Some("OutOfmemory")),
            (container(json!({"example.com/unknown": "1"}), json!([])), None),
            (container(json!({}), json!([{"containerPort": 1, "hostPort": 80}])), Some("NodePorts")),
            (container(json!({}), json!([{"containerPort": 1, "hostPort": 80, "protocol": "UDP"}])), None),
            (json!({"containers": [], "nodeSelector": {"disk": "hdd"}}), Some("NodeAffinity")),
            (json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), None),
            (affinity("Gt", "gen", json!(["5"])), None),
            (affinity("NotIn", "disk", json!(["ssd"])), Some("NodeAffinity")),
            (json!({"containers": [], "securityContext": {"supplementalGroupsPolicy": "Merge"}}), None),
            (
                json!({"containers": [], "securityContext": {"supplementalGroupsPolicy": "Strict"}}),
                Some("SupplementalGroupsPolicyNotSupported"),
            ),
            (
                json!({"containers": [], "securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}),
                Some("AppArmor"),
            ),
            (json!({"containers": [], "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}), None),
            (
                json!({"containers": [{"name": "c", "securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "p"}}}]}),
                Some("AppArmor"),
            ),
            (sysctl("net.ipv4.tcp_slow_start_after_idle"), None),
            (sysctl("kernel.shm_rmid_forced"), None),
            (sysctl("net/ipv4/tcp_syncookies"), None),
            (sysctl("net.ipv4.ip_forward"), None),
            (sysctl("net.core.somaxconn"), Some("SysctlForbidden")),
            (sysctl("fs.mount-max"), Some("SysctlForbidden")),
        ] {
            let others: &[&Pod] = &[&other];
            let view = View {
                allocatable: &allocatable,
                node: Some(&node),
                others,
                unsafe_sysctls: &unsafe_sysctls,
                apparmor: false,
                strict_groups: Some(false),
                pressure: Pressure::default(),
            };
            let verdict = refuse(&pod(spec.clone()), &view);
            assert_eq!(verdict.map(|verdict| verdict.reason).as_deref(), reason, "{spec}");
        }
        let full = refuse(
            &pod(json!({"containers": []})),
            &View {
                allocatable: &allocatable,
                node: None,
                others: &[&other, &other, &other],
                unsafe_sysctls: &[],
                apparmor: false,
                strict_groups: None,
                pressure: Pressure::default(),
            },
        )
        .unwrap();
        assert_eq!(
            full.message,
            "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"
        );
    }

    #[test]
    fn what_the_host_and_its_runtime_can_do_is_not_refused() {
        let mut pod = pod(json!({"containers": [], "securityContext": {"supplementalGroupsPolicy": "Strict"}}));
        let annotation = ("container.apparmor.security.beta.kubernetes.io/c".to_owned(), "runtime/default".to_owned());
        pod.metadata.annotations = Some([annotation].into());
        let allocatable = Amounts::new();
        let view = |apparmor, strict_groups| View {
            allocatable: &allocatable,
            node: None,
            others: &[],
            unsafe_sysctls: &[],
            apparmor,
            strict_groups,
            pressure: Pressure::default(),
        };
        assert_eq!(refuse(&pod, &view(true, Some(true))), None);
        assert_eq!(refuse(&pod, &view(true, None)), None, "the runtime has not said yet");
        let refused = refuse(&pod, &view(false, Some(true))).unwrap();
        assert_eq!(refused.message, "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host");
    }

    #[test]
    fn a_node_under_pressure_takes_no_pod_that_it_would_end_next() {
        let plain = json!({});
        let requests = json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Mi"}}}]});
        let tolerates = |key: &str| json!({"tolerations": [{"key": key, "operator": "Exists"}]});
        let critical = json!({"priority": 2_000_000_000});
        let memory = Pressure { memory: true, ..Default::default() };
        let disk = Pressure { disk: true, ..Default::default() };
        for (spec, pressure, conditions) in [
            (&plain, Pressure::default(), None),
            (&plain, memory, Some("MemoryPressure")),
            (&requests, memory, None),
            (&tolerates("node.kubernetes.io/memory-pressure"), memory, None),
            (&tolerates("node.kubernetes.io/disk-pressure"), memory, Some("MemoryPressure")),
            (&requests, disk, Some("DiskPressure")),
            (&tolerates("node.kubernetes.io/disk-pressure"), disk, Some("DiskPressure")),
            (&requests, Pressure { memory: true, ..disk }, Some("MemoryPressure DiskPressure")),
            (&critical, disk, None),
        ] {
            let mut spec = spec.clone();
            spec["containers"] = if spec["containers"].is_array() { spec["containers"].take() } else { json!([]) };
            let verdict = refuse_under_pressure(&pod(spec.clone()), pressure);
            let told = verdict.map(|verdict| (verdict.reason, verdict.message));
            let expected = conditions.map(|conditions| {
                ("Evicted".to_owned(), format!("Pod was rejected: The node had condition: [{conditions}]. "))
            });
            assert_eq!(told, expected, "{spec} {pressure:?}");
        }
    }
}
