//! NodeResourcesBalancedAllocation: prefers nodes whose cpu and memory are used about equally.

use crate::cluster::Snapshot;
use crate::framework::{CycleState, MAX_SCORE, Plugin, Point};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeResourcesBalancedAllocation;

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score]
    }

    /// A pod that asks for nothing balances nothing.
    fn pre_score(&self, _state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot, _nodes: &[usize]) -> bool {
        pod.requests.milli_cpu > 0 || pod.requests.memory > 0
    }

    fn score(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let used = [
            (node.requested.milli_cpu.saturating_add(pod.requests.milli_cpu), node.allocatable.milli_cpu),
            (node.requested.memory.saturating_add(pod.requests.memory), node.allocatable.memory),
        ];
        let shares: Vec<f64> = used
            .into_iter()
            .filter(|(_, allocatable)| *allocatable > 0)
            .map(|(used, allocatable)| (used as f64 / allocatable as f64).min(1.0))
            .collect();
        // The standard deviation of two values is half their distance.
        let deviation = if let [cpu, memory] = shares[..] { (cpu - memory).abs() / 2.0 } else { 0.0 };
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{asking, node};
    use serde_json::json;

    #[test]
    fn even_use_scores_best() {
        let here = node("n", json!({}));
        let score = |cpu, memory| {
            NodeResourcesBalancedAllocation.score(&CycleState::default(), &asking("p", cpu, memory), &here)
        };
        assert_eq!([score("2", "4Gi"), score("4", "4Gi"), score("4", "0")], [100, 75, 50]);
    }
}
