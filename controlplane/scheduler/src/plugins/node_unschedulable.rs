//! NodeUnschedulable: a cordoned node takes no new pods but those that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use crate::event::ClusterEvent;
use crate::framework::{CycleState, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::node_selector::tolerated;
use crate::pod::PodInfo;

pub const REASON: &str = "node(s) were unschedulable";

pub struct NodeUnschedulable;

fn allows(pod: &PodInfo, node: &NodeInfo) -> bool {
    let taint = || Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    !node.is_unschedulable() || tolerated(&taint(), &pod.tolerations)
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if allows(pod, node) { Ok(()) } else { Err(Rejection::unresolvable(REASON)) }
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        event.node_began_to(|node| allows(pod, node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;

    #[test]
    fn a_cordoned_node_takes_only_those_that_tolerate_it() {
        let cordoned = node("n", json!({"spec": {"unschedulable": true}}));
        let state = CycleState::default();
        let plain = pod(json!({"containers": []}));
        assert_eq!(NodeUnschedulable.filter(&state, &plain, &cordoned), Err(Rejection::unresolvable(REASON)));
        let daemon = pod(json!({"containers": [], "tolerations": [
            {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]}));
        assert_eq!(NodeUnschedulable.filter(&state, &daemon, &cordoned), Ok(()));
    }
}
