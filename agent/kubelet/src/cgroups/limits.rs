//! From requests and limits to cgroup values (`pkg/kubelet/cm/helpers_linux.go`,
//! `pkg/kubelet/qos/policy.go`). Pure.

use api::quantity::Quantity;
use api::resources::{self, Amounts, QosClass, Side};
use k8s_openapi::api::core::v1::{Container, Pod};
use proto::runtime::v1::{HugepageLimit, LinuxContainerResources};

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const SHARES_PER_CPU: u64 = 1024;
/// CFS period in microseconds.
pub(super) const PERIOD: i64 = 100_000;
/// The kernel refuses less, microseconds.
const MIN_QUOTA: i64 = 1000;

/// Values of one group; none leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_shares: Option<u64>,
    /// Microseconds per 100 ms.
    pub cpu_quota: Option<i64>,
    pub memory_bytes: Option<i64>,
    pub pids: Option<u64>,
}

pub(super) fn shares(millicores: i64) -> u64 {
    if millicores <= 0 {
        return MIN_SHARES;
    }
    (millicores.unsigned_abs() * SHARES_PER_CPU / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

pub(super) fn quota(millicores: i64) -> Option<i64> {
    (millicores > 0).then(|| (millicores * PERIOD / 1000).max(MIN_QUOTA))
}

/// v1 shares as a v2 weight (1 to 10000).
pub fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - 2) * 9999 / 262_142
}

pub(super) fn amount(amounts: &Amounts, name: &str) -> Option<Quantity> {
    amounts.get(name).copied().filter(|quantity| !quantity.is_zero())
}

/// The pod's own group.
pub fn pod_limits(pod: &Pod) -> Limits {
    let Some(spec) = &pod.spec else { return Limits::default() };
    let requests = resources::of_pod(spec, Side::Requests);
    let limits = resources::of_pod(spec, Side::Limits);
    let class = resources::qos_class(pod);
    // A limit binds the pod only if every container has one, or the pod itself does.
    let pod_level = |name: &str| {
        spec.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|limits| limits.contains_key(name))
    };
    let all_have = |name: &str| {
        pod_level(name)
            || spec
                .containers
                .iter()
                .chain(spec.init_containers.iter().flatten())
                .all(|container| amount(&resources::of_container(container, Side::Limits), name).is_some())
    };
    let cpu_request = amount(&requests, "cpu").or_else(|| amount(&limits, "cpu"));
    Limits {
        cpu_shares: Some(match class {
            QosClass::BestEffort => MIN_SHARES,
            _ => shares(cpu_request.map_or(0, |cpu| cpu.milli())),
        }),
        cpu_quota: amount(&limits, "cpu").filter(|_| all_have("cpu")).and_then(|cpu| quota(cpu.milli())),
        memory_bytes: amount(&limits, "memory").filter(|_| all_have("memory")).map(|memory| memory.units()),
        pids: None,
    }
}

/// A QoS class's group: burstable pods weigh their requests together, best-effort ones nothing.
pub fn qos_limits<'a>(class: QosClass, pods: impl Iterator<Item = &'a Pod>) -> Limits {
    let cpu_shares = match class {
        QosClass::BestEffort => Some(MIN_SHARES),
        QosClass::Guaranteed => None,
        QosClass::Burstable => {
            let millicores: i64 = pods
                .filter(|pod| resources::qos_class(pod) == QosClass::Burstable)
                .filter_map(|pod| pod.spec.as_ref())
                .filter_map(|spec| amount(&resources::of_pod(spec, Side::Requests), "cpu"))
                .map(|cpu| cpu.milli())
                .sum();
            Some(shares(millicores))
        }
    };
    Limits { cpu_shares, ..Default::default() }
}

/// What of the host decides how a container's limits are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host {
    /// Bytes.
    pub memory: u64,
    pub is_v2: bool,
    /// Groups can limit swap.
    pub limits_swap: bool,
}

/// What CRI is told about one container.
pub fn container_resources(pod: &Pod, container: &Container, host: &Host) -> LinuxContainerResources {
    let requests = resources::of_container(container, Side::Requests);
    let mut limits = resources::of_container(container, Side::Limits);
    // A container without a limit has its pod's, and programs see that in their own group
    // (`kuberuntime_container_linux.go: getCPULimit`, `getMemoryLimit`).
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.limits.as_ref());
    for name in ["cpu", "memory"] {
        let inherited = of_pod.and_then(|limits| limits.get(name)).and_then(|limit| limit.0.parse().ok());
        if let Some(inherited) = inherited.filter(|_| amount(&limits, name).is_none()) {
            limits.insert(name.to_owned(), inherited);
        }
    }
    let cpu_request = amount(&requests, "cpu").or_else(|| amount(&limits, "cpu"));
    let memory_limit = amount(&limits, "memory").map_or(0, |memory| memory.units());
    let mut resources = LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: amount(&limits, "cpu").and_then(|cpu| quota(cpu.milli())).unwrap_or(0),
        cpu_shares: i64::try_from(shares(cpu_request.map_or(0, |cpu| cpu.milli()))).unwrap_or(i64::MAX),
        memory_limit_in_bytes: memory_limit,
        oom_score_adj: oom_score_adj(pod, container, host.memory),
        hugepage_limits: huge_pages(&limits),
        ..Default::default()
    };
    if host.is_v2 && memory_limit > 0 {
        // The whole container dies of one process's OOM, as Kubernetes sets it on v2.
        resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    // No container swaps, whatever the host has (`swapBehavior: NoSwap`).
    if host.limits_swap && host.is_v2 {
        resources.unified.insert("memory.swap.max".to_owned(), "0".to_owned());
    } else if host.limits_swap {
        // Version 1 limits both together.
        resources.memory_swap_limit_in_bytes = memory_limit;
    }
    resources
}

fn huge_pages(limits: &Amounts) -> Vec<HugepageLimit> {
    limits
        .iter()
        .filter_map(|(name, quantity)| {
            let size = name.strip_prefix("hugepages-")?;
            let page: Quantity = size.parse().ok()?;
            let page_size = match page.units() {
                bytes if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
                bytes if bytes >= 1 << 20 => format!("{}MB", bytes >> 20),
                bytes => format!("{}KB", bytes >> 10),
            };
            Some(HugepageLimit { page_size, limit: quantity.units().unsigned_abs() })
        })
        .collect()
}

/// How readily the kernel kills the container, -997 (guaranteed) to 1000 (best effort).
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: u64) -> i64 {
    let critical = pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= 2_000_000_000);
    if critical {
        return -997;
    }
    match resources::qos_class(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let requests = resources::of_container(container, Side::Requests);
            let request = amount(&requests, "memory").map_or(0, |memory| memory.units());
            let node = i64::try_from(node_memory.max(1)).unwrap_or(i64::MAX);
            let adj = 1000 - i64::try_from(1000 * i128::from(request) / i128::from(node)).unwrap_or(1000);
            // Above every guaranteed container, below every best-effort one.
            adj.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn a_pods_group() {
        for (containers, expected) in [
            (json!([{"name": "a"}]), Limits { cpu_shares: Some(2), ..Default::default() }),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "500m"}}}]),
                Limits { cpu_shares: Some(512), ..Default::default() },
            ),
            (
                json!([{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}}]),
                Limits { cpu_shares: Some(1024), cpu_quota: Some(100_000), memory_bytes: Some(1 << 30), pids: None },
            ),
            (
                // one container without a limit: the pod has none
                json!([{"name": "a", "resources": {"limits": {"memory": "1Gi"}}}, {"name": "b"}]),
                Limits { cpu_shares: Some(2), ..Default::default() },
            ),
        ] {
            assert_eq!(pod_limits(&pod(containers.clone())), expected, "{containers}");
        }
    }

    #[test]
    fn oom_scores() {
        let node = 10 << 30;
        for (resources, score) in [
            (json!({}), 1000),
            (json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}), -997),
            (json!({"requests": {"memory": "1Gi"}}), 900),
            (json!({"requests": {"memory": "10Gi"}}), 3),
            (json!({"requests": {"cpu": "100m"}}), 999),
        ] {
            let pod = pod(json!([{"name": "a", "resources": resources}]));
            assert_eq!(oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], node), score, "{resources}");
        }
    }

    #[test]
    fn no_container_swaps() {
        let pod = pod(json!([{"name": "a", "resources": {"limits": {"memory": "1Mi"}}}]));
        let of = |is_v2, limits_swap| {
            let host = Host { memory: 1 << 30, is_v2, limits_swap };
            let made = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &host);
            (made.memory_swap_limit_in_bytes, made.unified.get("memory.swap.max").cloned())
        };
        assert_eq!((of(true, true), of(true, false)), ((0, Some("0".to_owned())), (0, None)));
        assert_eq!((of(false, true), of(false, false)), ((1 << 20, None), (0, None)));
    }

    #[test]
    fn a_container_without_a_limit_has_its_pods() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "resources": {"limits": {"cpu": "200m", "memory": "200Mi"}},
            "containers": [{"name": "bare"}, {"name": "half", "resources": {"limits": {"cpu": "100m"}, "requests": {"cpu": "50m"}}}]}}))
        .unwrap();
        let of = |at: usize| {
            let made = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[at], &Host::default());
            (made.cpu_quota, made.cpu_shares, made.memory_limit_in_bytes)
        };
        assert_eq!(of(0), (20_000, 204, 200 << 20));
        assert_eq!(of(1), (10_000, 51, 200 << 20));
    }

    #[test]
    fn shares_and_weights() {
        assert_eq!((shares(0), shares(1), shares(1000), shares(1_000_000)), (2, 2, 1024, 262_144));
        assert_eq!((cpu_weight(2), cpu_weight(1024), cpu_weight(262_144)), (1, 39, 10_000));
        assert_eq!((quota(0), quota(5), quota(250)), (None, Some(1000), Some(25_000)));
    }

    #[test]
    fn huge_pages_by_size() {
        let pod =
            pod(json!([{"name": "a", "resources": {"limits": {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}}}]));
        let resources = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &Host::default());
        let sizes: Vec<(String, u64)> = resources.hugepage_limits.into_iter().map(|h| (h.page_size, h.limit)).collect();
        assert_eq!(sizes, [("1GB".to_owned(), 1 << 30), ("2MB".to_owned(), 4 << 20)]);
    }
}
