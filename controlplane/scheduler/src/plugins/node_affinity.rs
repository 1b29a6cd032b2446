//! NodeAffinity: `nodeSelector` and node affinity, required and preferred.

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Plugin, Point, PreFilter, Rejection, normalize};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const REASON: &str = "node(s) didn't match Pod's node affinity/selector";

pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn weight(&self) -> i64 {
        2
    }

    /// Terms that pin a node by name (as DaemonSet pods have them) spare looking at the others.
    fn pre_filter(&self, _state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        let affinity = &pod.node_affinity;
        if affinity.required.is_none() && affinity.selector.is_everything() {
            return PreFilter::Skip;
        }
        match affinity.pinned_names() {
            Some(names) => PreFilter::Only(names.into_iter().map(str::to_owned).collect()),
            None => PreFilter::Go,
        }
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if pod.node_affinity.allows(&node.node) { Ok(()) } else { Err(Rejection::unresolvable(REASON)) }
    }

    fn pre_score(&self, _state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot, _nodes: &[usize]) -> bool {
        !pod.node_affinity.preferred.is_empty()
    }

    fn score(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let preferred = pod.node_affinity.preferred.iter();
        preferred.filter(|(_, term)| term.matches(&node.node)).map(|(weight, _)| weight).sum()
    }

    fn normalize(&self, _state: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        normalize(scores, false);
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        event.node_began_to(|node| pod.node_affinity.allows(&node.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;

    #[test]
    fn node_selectors_filter_and_preferences_score() {
        let ssd = node("ssd", json!({"metadata": {"labels": {"disk": "ssd"}}}));
        let other = node("other", json!({}));
        let state = CycleState::default();
        let strict = pod(json!({"containers": [], "nodeSelector": {"disk": "ssd"}}));
        assert_eq!(NodeAffinity.filter(&state, &strict, &ssd), Ok(()));
        assert_eq!(NodeAffinity.filter(&state, &strict, &other), Err(Rejection::unresolvable(REASON)));
        let soft = pod(json!({"containers": [], "affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 7, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]}}}));
        assert_eq!([&ssd, &other].map(|node| NodeAffinity.score(&state, &soft, node)), [7, 0]);
    }

    #[test]
    fn a_pod_pinned_to_a_node_is_only_tried_there() {
        let pinned = pod(json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n7"]}]}]}}}}));
        let got = NodeAffinity.pre_filter(&mut CycleState::default(), &pinned, &Snapshot::default());
        assert_eq!(got, PreFilter::Only(vec!["n7".to_owned()]));
    }
}
