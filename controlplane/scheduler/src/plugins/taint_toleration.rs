//! TaintToleration: NoSchedule and NoExecute taints keep pods away, PreferNoSchedule ones count
//! against a node.

use crate::event::ClusterEvent;
use crate::framework::{CycleState, Plugin, Point, Rejection, normalize};
use crate::node::NodeInfo;
use crate::node_selector::{tolerated, untolerated};
use crate::pod::PodInfo;

/// Without the taint's name since Kubernetes 1.35: nodes with different taints count together.
pub const REASON: &str = "node(s) had untolerated taint(s)";

const HARD: &[&str] = &["NoSchedule", "NoExecute"];

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter, Point::Score]
    }

    fn weight(&self) -> i64 {
        3
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match untolerated(node.taints(), &pod.tolerations, HARD) {
            None => Ok(()),
            Some(_) => Err(Rejection::unresolvable(REASON)),
        }
    }

    fn score(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let soft = node.taints().iter().filter(|taint| taint.effect == "PreferNoSchedule");
        soft.filter(|taint| !tolerated(taint, &pod.tolerations)).count() as i64
    }

    fn normalize(&self, _state: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        normalize(scores, true);
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        event.node_began_to(|node| untolerated(node.taints(), &pod.tolerations, HARD).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;

    #[test]
    fn every_hard_taint_must_be_tolerated() {
        let tainted = node(
            "n",
            json!({"spec": {"taints": [
                {"key": "soft", "effect": "PreferNoSchedule"},
                {"key": "a", "value": "1", "effect": "NoSchedule"},
                {"key": "b", "effect": "NoExecute"},
            ]}}),
        );
        for (tolerations, want) in [
            (json!([]), Some(REASON)),
            (json!([{"key": "a", "operator": "Exists"}]), Some(REASON)),
            (json!([{"operator": "Exists"}]), None),
        ] {
            let pod = pod(json!({"containers": [], "tolerations": tolerations}));
            let got = TaintToleration.filter(&CycleState::default(), &pod, &tainted);
            assert_eq!(got.err().map(|rejection| rejection.reasons[0].to_string()).as_deref(), want);
        }
        let plain = pod(json!({"containers": []}));
        assert_eq!(TaintToleration.score(&CycleState::default(), &plain, &tainted), 1);
    }

    #[test]
    fn a_removed_taint_helps() {
        let pod = pod(json!({"containers": []}));
        let tainted =
            std::sync::Arc::new(node("n", json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})));
        let free = std::sync::Arc::new(node("n", json!({})));
        let update = |old: &_, new: &_| ClusterEvent::NodeUpdated { old: Clone::clone(old), new: Clone::clone(new) };
        assert!(TaintToleration.helps(&pod, &update(&tainted, &free)));
        assert!(!TaintToleration.helps(&pod, &update(&free, &tainted)));
        assert!(!TaintToleration.helps(&pod, &update(&free, &free)), "it would have fitted before");
    }
}
