//! NodePorts: host ports a pod wants must be free on the node.

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::{HostPort, PodInfo};

pub const REASON: &str = "node(s) didn't have free ports for the requested pod ports";

pub struct NodePorts;

fn conflict(wanted: &[HostPort], used: &[HostPort]) -> bool {
    wanted.iter().any(|port| used.iter().any(|other| port.conflicts(other)))
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter(&self, _state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        if pod.host_ports.is_empty() { PreFilter::Skip } else { PreFilter::Go }
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        if conflict(&pod.host_ports, &node.used_ports) { Err(Rejection::unschedulable(REASON)) } else { Ok(()) }
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdded(_) => true,
            ClusterEvent::PodGone(gone) => conflict(&pod.host_ports, &gone.host_ports),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};
    use serde_json::json;
    use std::sync::Arc;

    fn on_port(port: u16) -> PodInfo {
        pod(json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": port}]}]}))
    }

    #[test]
    fn a_taken_port_rejects_and_its_release_helps() {
        let mut taken = node("n", json!({}));
        taken.add_pod(Arc::new(on_port(80)));
        let state = CycleState::default();
        assert_eq!(NodePorts.filter(&state, &on_port(80), &taken), Err(Rejection::unschedulable(REASON)));
        assert_eq!(NodePorts.filter(&state, &on_port(81), &taken), Ok(()));
        assert!(NodePorts.helps(&on_port(80), &ClusterEvent::PodGone(Arc::new(on_port(80)))));
        assert!(!NodePorts.helps(&on_port(80), &ClusterEvent::PodGone(Arc::new(on_port(81)))));
        taken.remove_pod("p");
        assert!(taken.used_ports.is_empty());
    }
}
