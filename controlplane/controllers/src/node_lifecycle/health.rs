//! Pure: what a silent node's conditions and taints should be, and how fast a zone may be evicted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};

use crate::meta::{self, Labels};
use crate::taints::*;

/// How long a node may take to post its first status.
pub const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// One node in ten seconds is tainted for eviction, in a zone that is mostly well.
const EVICTION_PERIOD: Duration = Duration::from_secs(10);
/// In a large zone that is mostly lost: one in a hundred seconds.
const SLOW_EVICTION_PERIOD: Duration = Duration::from_secs(100);
const LARGE_ZONE: usize = 50;
const UNHEALTHY_SHARE: f64 = 0.55;
const OUR_REASONS: [&str; 2] = ["NodeStatusUnknown", "NodeStatusNeverUpdated"];

pub fn condition<'a>(node: &'a Node, name: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == name)
}

pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|condition| condition.status == "True")
}

/// The Ready condition is what this controller wrote, not the kubelet.
pub fn is_our_verdict(node: &Node) -> bool {
    let reason = condition(node, "Ready").and_then(|condition| condition.reason.as_deref());
    reason.is_some_and(|reason| OUR_REASONS.contains(&reason))
}

/// The conditions of a node that has been silent too long; none when they say so already.
pub fn unknown(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let before = conditions.clone();
    for name in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|condition| condition.type_ == name) {
            None => conditions.push(NodeCondition {
                type_: name.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: meta::stamp(now),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = meta::stamp(now);
            }
            Some(_) => {}
        }
    }
    (conditions != before).then_some(conditions)
}

const KEPT_NO_SCHEDULE: [&str; 7] =
    [NOT_READY, UNREACHABLE, UNSCHEDULABLE, MEMORY_PRESSURE, DISK_PRESSURE, PID_PRESSURE, NETWORK_UNAVAILABLE];

fn no_schedule(node: &Node) -> Vec<&'static str> {
    let status = |name| condition(node, name).map(|condition| condition.status.as_str());
    let mut keys = Vec::new();
    match status("Ready") {
        Some("False") => keys.push(NOT_READY),
        Some("Unknown") => keys.push(UNREACHABLE),
        _ => {}
    }
    for (name, key) in [
        ("MemoryPressure", MEMORY_PRESSURE),
        ("DiskPressure", DISK_PRESSURE),
        ("PIDPressure", PID_PRESSURE),
        ("NetworkUnavailable", NETWORK_UNAVAILABLE),
    ] {
        if status(name) == Some("True") {
            keys.push(key);
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        keys.push(UNSCHEDULABLE);
    }
    keys
}

/// The node's taints as they should be, or none when they are. `permit` is asked before a
/// `NoExecute` taint is added anew; none is added or kept while every zone is lost
/// (`master_cut_off`): then it is more likely this side that is cut off.
pub fn taints(node: &Node, master_cut_off: bool, permit: impl FnOnce() -> bool, now: Timestamp) -> Option<Vec<Taint>> {
    let before = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let has = |key: &str, effect: &str| before.iter().any(|taint| taint.key == key && taint.effect == effect);
    let mut wanted: Vec<(&str, &str)> = no_schedule(node).into_iter().map(|key| (key, NO_SCHEDULE)).collect();
    let execute = match condition(node, "Ready").map(|condition| condition.status.as_str()) {
        Some("False") => Some(NOT_READY),
        Some("Unknown") => Some(UNREACHABLE),
        _ => None,
    };
    if let Some(key) = execute.filter(|_| !master_cut_off) {
        let tainted = has(NOT_READY, NO_EXECUTE) || has(UNREACHABLE, NO_EXECUTE);
        if tainted || permit() {
            wanted.push((key, NO_EXECUTE));
        }
    }
    let kept = |taint: &Taint| match taint.effect.as_str() {
        NO_SCHEDULE => KEPT_NO_SCHEDULE.contains(&taint.key.as_str()),
        NO_EXECUTE => taint.key == NOT_READY || taint.key == UNREACHABLE,
        _ => false,
    };
    let asked = |taint: &Taint| wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect);
    let mut after: Vec<Taint> = before.iter().filter(|taint| !kept(taint) || asked(taint)).cloned().collect();
    let missing = wanted.iter().filter(|(key, effect)| !has(key, effect));
    after.extend(missing.map(|(key, effect)| Taint {
        key: (*key).to_owned(),
        effect: (*effect).to_owned(),
        value: None,
        time_added: meta::stamp(now),
    }));
    (after != before).then_some(after)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneState {
    Normal,
    /// Most nodes are lost; the number is the zone's size.
    Partial(usize),
    Full,
}

pub fn zone(node: &Node) -> String {
    let labels = meta::labels(&node.metadata);
    let part = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    format!("{}:{}", part("topology.kubernetes.io/region"), part("topology.kubernetes.io/zone"))
}

pub fn zones(nodes: &[Arc<Node>]) -> HashMap<String, ZoneState> {
    let mut counts: HashMap<String, (usize, usize)> = HashMap::new();
    for node in nodes {
        let count = counts.entry(zone(node)).or_default();
        if is_ready(node) {
            count.0 += 1;
        } else if condition(node, "Ready").is_some() {
            count.1 += 1;
        }
    }
    let state = |(ready, lost): (usize, usize)| match (ready, lost) {
        (0, 1..) => ZoneState::Full,
        _ if lost > 2 && lost as f64 / (ready + lost) as f64 >= UNHEALTHY_SHARE => ZoneState::Partial(ready + lost),
        _ => ZoneState::Normal,
    };
    counts.into_iter().map(|(zone, count)| (zone, state(count))).collect()
}

pub fn all_lost(zones: &HashMap<String, ZoneState>) -> bool {
    !zones.is_empty() && zones.values().all(|state| *state == ZoneState::Full)
}

/// Time between two nodes' `NoExecute` taints in a zone; none when no further one may be tainted.
pub fn eviction_period(zones: &HashMap<String, ZoneState>, zone: &str) -> Option<Duration> {
    match zones.get(zone) {
        Some(ZoneState::Partial(size)) if *size > LARGE_ZONE => Some(SLOW_EVICTION_PERIOD),
        Some(ZoneState::Partial(_)) => None,
        _ => Some(EVICTION_PERIOD),
    }
}

pub fn secondary_labels(labels: &Labels) -> BTreeMap<String, String> {
    let mut missing = BTreeMap::new();
    for (stable, beta) in
        [("kubernetes.io/os", "beta.kubernetes.io/os"), ("kubernetes.io/arch", "beta.kubernetes.io/arch")]
    {
        if let Some(value) = labels.get(stable).filter(|value| labels.get(beta) != Some(*value)) {
            missing.insert(beta.to_owned(), value.clone());
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus};

    fn node(ready: &str) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some("n1".into());
        let condition = NodeCondition { type_: "Ready".into(), status: ready.into(), ..Default::default() };
        node.status = Some(NodeStatus { conditions: Some(vec![condition]), ..Default::default() });
        node
    }

    fn shape(taints: Option<Vec<Taint>>) -> Vec<(String, String)> {
        let mut shape: Vec<_> = taints.unwrap_or_default().into_iter().map(|t| (t.key, t.effect)).collect();
        shape.sort();
        shape
    }

    #[test]
    fn a_silent_node_is_marked_once() {
        let mut silent = node("True");
        let conditions = unknown(&silent, at(50)).expect("it said True");
        let ready = &conditions[0];
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
        assert_eq!(ready.message.as_deref(), Some("Kubelet stopped posting node status."));
        assert_eq!(conditions[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        silent.status.get_or_insert_default().conditions = Some(conditions);
        assert!(is_our_verdict(&silent));
        assert_eq!(unknown(&silent, at(60)), None);
    }

    #[test]
    fn taints_follow_the_ready_condition() {
        let both = |key: &str| vec![(key.to_owned(), NO_EXECUTE.to_owned()), (key.to_owned(), NO_SCHEDULE.to_owned())];
        let mut lost = node("Unknown");
        assert_eq!(shape(taints(&lost, false, || true, at(1))), both(UNREACHABLE));
        assert_eq!(
            shape(taints(&lost, false, || false, at(1))),
            [both(UNREACHABLE)[1].clone()],
            "its turn comes later"
        );
        assert_eq!(shape(taints(&lost, true, || true, at(1))), [both(UNREACHABLE)[1].clone()], "nobody is evicted");
        lost.spec = Some(NodeSpec { taints: taints(&lost, false, || true, at(1)), ..Default::default() });
        assert_eq!(taints(&lost, false, || true, at(2)), None);
        lost.status = node("False").status;
        assert_eq!(shape(taints(&lost, false, || false, at(2))), both(NOT_READY), "swapped without a turn");
        lost.status = node("True").status;
        assert_eq!(taints(&lost, false, || false, at(3)), Some(Vec::new()));
    }

    #[test]
    fn foreign_taints_stay_and_cordon_adds_its_own() {
        let own = Taint { key: "team".into(), effect: NO_SCHEDULE.into(), ..Default::default() };
        let mut cordoned = node("True");
        cordoned.spec = Some(NodeSpec { unschedulable: Some(true), taints: Some(vec![own]), ..Default::default() });
        let expected =
            [(UNSCHEDULABLE.to_owned(), NO_SCHEDULE.to_owned()), ("team".to_owned(), NO_SCHEDULE.to_owned())];
        assert_eq!(shape(taints(&cordoned, false, || false, at(1))), expected);
    }

    #[test]
    fn zones_tell_lost_nodes_from_a_lost_network() {
        let of = |ready: usize, lost: usize| {
            let nodes: Vec<_> = (0..ready).map(|_| node("True")).chain((0..lost).map(|_| node("Unknown"))).collect();
            zones(&nodes.into_iter().map(Arc::new).collect::<Vec<_>>())
        };
        assert!(all_lost(&of(0, 2)));
        assert!(!all_lost(&of(1, 2)) && !all_lost(&of(0, 0)));
        assert_eq!(eviction_period(&of(1, 2), ":"), Some(EVICTION_PERIOD));
        assert_eq!(eviction_period(&of(2, 8), ":"), None);
        assert_eq!(eviction_period(&of(10, 60), ":"), Some(SLOW_EVICTION_PERIOD));
    }
}
