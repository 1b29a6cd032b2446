//! NodeResourcesFit: requests must fit into what is allocatable; scored LeastAllocated. What a node
//! gives as devices (DynamicResources, [`Delegated`]) is not looked at here.

use std::borrow::Cow;

use crate::event::ClusterEvent;
use crate::framework::{CycleState, MAX_SCORE, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::plugins::dynamic_resources::Delegated;
use crate::plugins::dynamic_resources::extended::is_offered;
use crate::pod::PodInfo;
use crate::resource::is_extended;

pub const TOO_MANY_PODS: &str = "Too many pods";
pub const INSUFFICIENT_CPU: &str = "Insufficient cpu";
pub const INSUFFICIENT_MEMORY: &str = "Insufficient memory";
pub const INSUFFICIENT_EPHEMERAL_STORAGE: &str = "Insufficient ephemeral-storage";

pub struct NodeResourcesFit;

/// One resource of one node, seen from a pod.
struct Need<'a> {
    /// Of one that is not cpu, memory or ephemeral storage.
    name: Option<&'a str>,
    reason: Cow<'static, str>,
    wanted: i64,
    used: i64,
    allocatable: i64,
}

impl Need<'_> {
    fn is_short(&self) -> bool {
        self.wanted > 0 && self.wanted > self.allocatable.saturating_sub(self.used)
    }

    /// More than the node has altogether.
    fn is_hopeless(&self) -> bool {
        self.wanted > self.allocatable
    }
}

fn needs<'a>(pod: &'a PodInfo, node: &'a NodeInfo) -> impl Iterator<Item = Need<'a>> + 'a {
    let (want, used, have) = (&pod.requests, &node.requested, &node.allocatable);
    let need = |reason: &'static str, wanted, used, allocatable| Need {
        name: None,
        reason: reason.into(),
        wanted,
        used,
        allocatable,
    };
    let common = [
        need(INSUFFICIENT_CPU, want.milli_cpu, used.milli_cpu, have.milli_cpu),
        need(INSUFFICIENT_MEMORY, want.memory, used.memory, have.memory),
        need(INSUFFICIENT_EPHEMERAL_STORAGE, want.ephemeral_storage, used.ephemeral_storage, have.ephemeral_storage),
    ];
    let others = want.others.iter().map(|(name, wanted)| Need {
        name: Some(name),
        reason: format!("Insufficient {name}").into(),
        wanted: *wanted,
        used: used.other(name),
        allocatable: have.other(name),
    });
    common.into_iter().chain(others)
}

/// How much of what a node has is free, of [`MAX_SCORE`].
fn free_share(free: i64, allocatable: i64) -> i64 {
    let share = i128::from(free) * i128::from(MAX_SCORE) / i128::from(allocatable);
    i64::try_from(share).unwrap_or(MAX_SCORE)
}

/// Whether the pod would fit on the node if nothing else were there. What the node does not have as a
/// resource it may have as a device.
fn fits_empty(pod: &PodInfo, node: &NodeInfo) -> bool {
    let maybe_device = |need: &Need<'_>| need.allocatable == 0 && need.name.is_some_and(is_extended);
    node.allowed_pods > 0 && needs(pod, node).all(|need| !need.is_hopeless() || maybe_device(&need))
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter, Point::Score]
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let delegated = state.get::<Delegated>();
        let mut rejection = Rejection { resolvable: true, reasons: Vec::new(), failed: false };
        if node.pods.len() + 1 > node.allowed_pods {
            rejection.reasons.push(TOO_MANY_PODS.into());
        }
        let here = |need: &Need| {
            !delegated
                .is_some_and(|delegated| need.allocatable == 0 && need.name.is_some_and(|name| delegated.has(name)))
        };
        for need in needs(pod, node).filter(here).filter(Need::is_short) {
            rejection.resolvable &= !need.is_hopeless();
            rejection.reasons.push(need.reason);
        }
        if rejection.reasons.is_empty() { Ok(()) } else { Err(rejection) }
    }

    /// LeastAllocated: the mean share of cpu and memory that stays free.
    fn score(&self, _state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let free = [
            (node.scored_milli_cpu.saturating_add(pod.scored_milli_cpu), node.allocatable.milli_cpu),
            (node.scored_memory.saturating_add(pod.scored_memory), node.allocatable.memory),
        ];
        let known: Vec<i64> = free
            .into_iter()
            .filter(|(_, allocatable)| *allocatable > 0)
            .map(|(taken, allocatable)| free_share(allocatable.saturating_sub(taken).max(0), allocatable))
            .collect();
        if known.is_empty() { 0 } else { known.iter().sum::<i64>() / known.len() as i64 }
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdded(node) => fits_empty(pod, node),
            ClusterEvent::NodeUpdated { old, new } => {
                (old.allocatable != new.allocatable || old.allowed_pods != new.allowed_pods) && fits_empty(pod, new)
            }
            // Also one without requests: its place among the node's pods is free.
            ClusterEvent::PodGone(_) => true,
            ClusterEvent::PodUpdated { old, new } => old.requests != new.requests,
            // What was no node's resource is devices now.
            ClusterEvent::ClassChanged(class) => is_offered(class, pod),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{asking, named, node};
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn every_missing_resource_is_named() {
        let mut full = node("n", json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}}}));
        full.add_pod(Arc::new(asking("there", "600m", "100Mi")));
        let reject = |resolvable, reasons: &[&str]| Rejection {
            resolvable,
            reasons: reasons.iter().map(|reason| (*reason).to_owned().into()).collect(),
            failed: false,
        };
        let gpu = named("p", json!({"containers": [{"name": "c", "resources": {"requests": {"x.io/gpu": "1"}}}]}));
        for (pod, want) in [
            (asking("p", "500m", "100Mi"), reject(true, &["Too many pods", "Insufficient cpu"])),
            (asking("p", "0", "0"), reject(true, &["Too many pods"])),
            (asking("p", "2", "2Gi"), reject(false, &["Too many pods", "Insufficient cpu", "Insufficient memory"])),
            (gpu, reject(false, &["Too many pods", "Insufficient x.io/gpu"])),
        ] {
            assert_eq!(NodeResourcesFit.filter(&CycleState::default(), &pod, &full), Err(want));
        }
        let roomy = node("n", json!({}));
        assert_eq!(NodeResourcesFit.filter(&CycleState::default(), &asking("p", "4", "8Gi"), &roomy), Ok(()));
    }

    #[test]
    fn a_class_helps_who_asks_for_what_it_offers() {
        let class = |offers: &str| {
            let class = json!({"metadata": {"name": "c"}, "spec": {"extendedResourceName": offers}});
            ClusterEvent::ClassChanged(Arc::new(serde_json::from_value(class).unwrap()))
        };
        let gpu = named("p", json!({"containers": [{"name": "c", "resources": {"requests": {"x.io/gpu": "1"}}}]}));
        assert!(NodeResourcesFit.helps(&gpu, &class("x.io/gpu")));
        assert!(!NodeResourcesFit.helps(&gpu, &class("x.io/nic")));
        assert!(!NodeResourcesFit.helps(&asking("p", "1", "1Gi"), &class("x.io/gpu")));
    }

    #[test]
    fn amounts_stay_at_what_can_be_counted() {
        let exa = |amount: &str| json!({"status": {"allocatable": {"memory": amount}}});
        let mut full = node("n", exa("7Ei"));
        full.add_pod(Arc::new(asking("q", "1", "7Ei")));
        full.add_pod(Arc::new(asking("r", "1", "7Ei")));
        let pod = asking("p", "1", "7Ei");
        let rejection = NodeResourcesFit.filter(&CycleState::default(), &pod, &full).unwrap_err();
        assert_eq!(rejection.reasons, [INSUFFICIENT_MEMORY]);
        let score = NodeResourcesFit.score(&CycleState::default(), &asking("p", "4", "0"), &node("n", exa("7Ei")));
        assert_eq!(score, 50);
    }

    #[test]
    fn the_emptier_node_scores_higher() {
        let pod = asking("p", "1", "2Gi");
        let empty = node("a", json!({}));
        let mut busy = node("b", json!({}));
        busy.add_pod(Arc::new(asking("q", "2", "4Gi")));
        let state = CycleState::default();
        assert_eq!([&empty, &busy].map(|node| NodeResourcesFit.score(&state, &pod, node)), [75, 25]);
    }
}
