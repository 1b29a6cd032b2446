//! NodeDeclaredFeatures: a pod that needs what not every node of this version can do goes where the node
//! says that it can.

use k8s_openapi::api::core::v1::{Container, Node};

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const UNSATISFIED: &str = "node(s) didn't match Pod's required features";

/// An exit of one container can start all of the pod anew.
const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";

pub struct NodeDeclaredFeatures;

/// What the pod needs. Others of Kubernetes' features are of fields that are dropped, or matter only
/// when a pod on a node is changed (NodeDeclaredFeatureValidator).
fn required(pod: &PodInfo) -> Option<&'static str> {
    let spec = pod.spec()?;
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let restarts_all = |container: &Container| {
        container.restart_policy_rules.iter().flatten().any(|rule| rule.action == "RestartAllContainers")
    };
    containers.any(restarts_all).then_some(RESTART_ALL)
}

fn declared(node: &Node) -> &[String] {
    node.status.as_ref().and_then(|status| status.declared_features.as_deref()).unwrap_or_default()
}

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatures"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter(&self, _state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        if required(pod).is_none() { PreFilter::Skip } else { PreFilter::Go }
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let lacks = |feature: &str| !declared(&node.node).iter().any(|declared| declared == feature);
        if required(pod).is_some_and(lacks) { Err(Rejection::unresolvable(UNSATISFIED)) } else { Ok(()) }
    }

    fn helps(&self, _pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::NodeUpdated { old, new } => declared(&old.node) != declared(&new.node),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;

    #[test]
    fn what_a_pod_needs_its_node_must_declare() {
        let rules = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [42]}}]);
        let main = |action: &str| json!({"containers": [{"name": "c", "restartPolicyRules": rules(action)}]});
        let init = json!({"containers": [{"name": "c"}], "initContainers": [
            {"name": "i", "restartPolicyRules": rules("RestartAllContainers")}]});
        let can = || node("n", json!({"status": {"declaredFeatures": ["GuaranteedQoSPodCPUResize", RESTART_ALL]}}));
        let cannot = || node("n", json!({}));
        for (spec, node, want) in [
            (main("RestartAllContainers"), can(), true),
            (main("RestartAllContainers"), cannot(), false),
            (init.clone(), can(), true),
            (init, cannot(), false),
            (main("Restart"), cannot(), true),
        ] {
            let want = if want { Ok(()) } else { Err(Rejection::unresolvable(UNSATISFIED)) };
            assert_eq!(NodeDeclaredFeatures.filter(&CycleState::default(), &pod(spec.clone()), &node), want, "{spec}");
        }
        let waits = pod(main("RestartAllContainers"));
        let updated =
            |old: NodeInfo, new: NodeInfo| ClusterEvent::NodeUpdated { old: Arc::new(old), new: Arc::new(new) };
        assert!(NodeDeclaredFeatures.helps(&waits, &updated(cannot(), can())));
        assert!(!NodeDeclaredFeatures.helps(&waits, &updated(can(), can())));
    }
}
