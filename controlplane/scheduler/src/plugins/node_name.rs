//! NodeName: a pod that names its node fits only there.

use crate::event::ClusterEvent;
use crate::framework::{CycleState, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const REASON: &str = "node(s) didn't match the requested node name";

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn filter(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        match pod.node_name() {
            Some(name) if name != node.name => Err(Rejection::unresolvable(REASON)),
            _ => Ok(()),
        }
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        event.node_began_to(|node| pod.node_name() == Some(&node.name))
    }
}
