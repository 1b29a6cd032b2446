//! What the runtime is told of a pod as a whole (`kuberuntime_sandbox_linux.go`). It makes no group of it, but
//! runtimes that give a pod a machine of its own size it so, and the runtime's plugins see it. Pure.

use api::resources::{self, Amounts, Side};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use proto::runtime::v1::LinuxContainerResources;

use super::limits::{PERIOD, amount, quota, shares};

/// In CRI's terms.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxResources {
    /// What the runtime needs besides; all zero if the RuntimeClass names nothing.
    pub overhead: LinuxContainerResources,
    /// What the containers have together.
    pub own: LinuxContainerResources,
}

pub fn sandbox_resources(pod: &Pod) -> SandboxResources {
    let Some(spec) = &pod.spec else { return SandboxResources::default() };
    let bare = PodSpec { overhead: None, ..spec.clone() };
    let side = |side| resources::of_pod(&bare, side);
    let overhead = spec.overhead.as_ref().map(|overhead| {
        let amounts: Amounts =
            overhead.iter().filter_map(|(name, quantity)| Some((name.clone(), quantity.0.parse().ok()?))).collect();
        written(&amounts, &amounts)
    });
    SandboxResources {
        overhead: overhead.unwrap_or_default(),
        own: written(&side(Side::Requests), &side(Side::Limits)),
    }
}

fn written(requests: &Amounts, limits: &Amounts) -> LinuxContainerResources {
    let request = requests.get("cpu").or_else(|| limits.get("cpu")).map_or(0, |cpu| cpu.milli());
    LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: amount(limits, "cpu").and_then(|cpu| quota(cpu.milli())).unwrap_or(0),
        cpu_shares: i64::try_from(shares(request)).unwrap_or(i64::MAX),
        memory_limit_in_bytes: amount(limits, "memory").map_or(0, |memory| memory.units()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_runtime_learns_what_a_pod_has_as_a_whole() {
        let cases = [
            (json!({"containers": [{"name": "a"}]}), (2, 0, 0), (0, 0, 0)),
            (
                json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "1Mi"}}},
                    {"name": "b", "resources": {"limits": {"memory": "1Mi"}}}]}),
                (512, 100_000, 2 << 20),
                (0, 0, 0),
            ),
            (
                json!({"overhead": {"cpu": "250m", "memory": "64Mi"},
                    "containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}]}),
                (1024, 100_000, 0),
                (256, 25_000, 64 << 20),
            ),
        ];
        for (spec, own, overhead) in cases {
            let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
            let made = sandbox_resources(&pod);
            let read = |made: &LinuxContainerResources| (made.cpu_shares, made.cpu_quota, made.memory_limit_in_bytes);
            assert_eq!((read(&made.own), read(&made.overhead)), (own, overhead), "{spec}");
        }
    }
}
