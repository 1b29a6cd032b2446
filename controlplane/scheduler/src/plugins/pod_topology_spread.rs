//! PodTopologySpread: pods of a group evenly over zones, hosts or other domains.
//!
//! `DoNotSchedule` constraints filter, `ScheduleAnyway` ones score. A pod without constraints of its
//! own is spread with its siblings (pods of the same ReplicaSet, StatefulSet or
//! ReplicationController, or else behind the same Services) over hosts and zones, as Kubernetes'
//! system defaults do: siblings of a controller are told by its UID, which spares this plugin a
//! cache of controllers.

use std::collections::HashMap;

use api::selector::{Requirement, Selector};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, MAX_SCORE, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::node_selector::untolerated;
use crate::pod::PodInfo;

pub const REASON: &str = "node(s) didn't match pod topology spread constraints";
pub const MISSING_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

pub struct PodTopologySpread;

#[derive(Debug, Clone)]
struct Constraint {
    key: String,
    max_skew: i64,
    min_domains: usize,
    siblings: Siblings,
    honor_affinity: bool,
    honor_taints: bool,
}

/// Which pods are counted.
#[derive(Debug, Clone)]
enum Siblings {
    Selected(Selector),
    Controller(String),
}

impl Constraint {
    /// Those of the pod with this `whenUnsatisfiable`.
    fn of(pod: &PodInfo, when_unsatisfiable: &str) -> Vec<Self> {
        let own = pod.spec().and_then(|spec| spec.topology_spread_constraints.as_ref()).into_iter().flatten();
        own.filter(|constraint| constraint.when_unsatisfiable == when_unsatisfiable)
            .map(|constraint| Self::parse(constraint, pod))
            .collect()
    }

    fn parse(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Self {
        let parsed = Selector::from_label_selector(constraint.label_selector.as_ref());
        let mut selector = parsed.unwrap_or_else(|_| Selector::nothing());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = pod.labels.get(key) {
                selector.requirements.push(Requirement::In(key.clone(), vec![value.clone()]));
            }
        }
        Self {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            min_domains: usize::try_from(constraint.min_domains.unwrap_or(1)).unwrap_or(1),
            siblings: Siblings::Selected(selector),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// Kubernetes' system defaults.
    fn defaults(pod: &PodInfo, snapshot: &Snapshot) -> Vec<Self> {
        let owners = pod.pod.metadata.owner_references.iter().flatten();
        let controller = owners
            .filter(|owner| owner.controller == Some(true))
            .find(|owner| matches!(owner.kind.as_str(), "ReplicaSet" | "StatefulSet" | "ReplicationController"));
        let siblings = match controller {
            Some(controller) => Siblings::Controller(controller.uid.clone()),
            None => {
                let labels = snapshot.service_labels(pod);
                if labels.is_empty() {
                    return Vec::new();
                }
                Siblings::Selected(Selector::from_map(&labels))
            }
        };
        let over = |key: &str, max_skew| Self {
            key: key.to_owned(),
            max_skew,
            min_domains: 1,
            siblings: siblings.clone(),
            honor_affinity: true,
            honor_taints: false,
        };
        vec![over(HOSTNAME, 3), over(ZONE, 5)]
    }

    /// Whether pods on this node are counted.
    fn counts_on(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        (!self.honor_affinity || pod.node_affinity.allows(&node.node))
            && (!self.honor_taints
                || untolerated(node.taints(), &pod.tolerations, &["NoSchedule", "NoExecute"]).is_none())
    }

    fn is_sibling(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        if other.namespace != pod.namespace || other.is_being_deleted() {
            return false;
        }
        match &self.siblings {
            Siblings::Selected(selector) => selector.matches(&other.labels),
            Siblings::Controller(uid) => {
                other.pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == *uid)
            }
        }
    }

    fn siblings_on(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        node.pods.iter().filter(|other| self.is_sibling(pod, other)).count() as i64
    }
}

/// Siblings by the values of one constraint's key.
type Counts = HashMap<String, i64>;

fn count(constraints: &[Constraint], pod: &PodInfo, snapshot: &Snapshot, require_all: bool) -> Vec<Counts> {
    let mut counts = vec![Counts::new(); constraints.len()];
    for node in snapshot.nodes.iter() {
        if require_all && constraints.iter().any(|constraint| node.label(&constraint.key).is_none()) {
            continue;
        }
        for (constraint, counts) in constraints.iter().zip(&mut counts) {
            let Some(value) = node.label(&constraint.key) else { continue };
            if constraint.counts_on(pod, node) {
                *counts.entry(value.to_owned()).or_default() += constraint.siblings_on(pod, node);
            }
        }
    }
    counts
}

struct Hard(Vec<Spread>);

struct Spread {
    constraint: Constraint,
    counts: Counts,
    /// Siblings in the domain with the fewest: found once, not for every node.
    fewest: i64,
}

impl Spread {
    fn of((constraint, counts): (Constraint, Counts)) -> Self {
        let fewest = match counts.values().min() {
            Some(fewest) if counts.len() >= constraint.min_domains => *fewest,
            // A domain that is missing has none.
            _ => 0,
        };
        Self { constraint, counts, fewest }
    }
}

impl Hard {
    fn check(&self, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        for Spread { constraint, counts, fewest } in &self.0 {
            let Some(value) = node.label(&constraint.key) else {
                return Err(Rejection::unresolvable(MISSING_LABEL));
            };
            let with_it = i64::from(constraint.is_sibling(pod, pod));
            let here = counts.get(value).copied().unwrap_or(0);
            if here + with_it - fewest > constraint.max_skew {
                return Err(Rejection::unschedulable(REASON));
            }
        }
        Ok(())
    }
}

struct Soft {
    constraints: Vec<(Constraint, Counts, f64)>,
    /// A node without one of the keys scores nothing.
    require_all: bool,
}

/// What a node without a required key scores before normalizing.
const IGNORED: i64 = i64::MIN;

impl Soft {
    fn prepare(pod: &PodInfo, snapshot: &Snapshot, nodes: &[usize]) -> Option<Self> {
        let own = Constraint::of(pod, "ScheduleAnyway");
        let has_own =
            pod.spec().is_some_and(|spec| spec.topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty()));
        let constraints = if has_own { own } else { Constraint::defaults(pod, snapshot) };
        if constraints.is_empty() {
            return None;
        }
        let counts = count(&constraints, pod, snapshot, has_own);
        let weighted = constraints.into_iter().zip(counts).map(|(constraint, counts)| {
            // More domains would otherwise mean lower numbers, and with them less say.
            let domains = distinct(&constraint.key, snapshot, nodes);
            (constraint, counts, ((domains + 2) as f64).ln())
        });
        Some(Self { constraints: weighted.collect(), require_all: has_own })
    }

    fn score(&self, pod: &PodInfo, node: &NodeInfo) -> i64 {
        let mut score = 0.0;
        for (constraint, counts, weight) in &self.constraints {
            let Some(value) = node.label(&constraint.key) else {
                if self.require_all {
                    return IGNORED;
                }
                continue;
            };
            let siblings = match constraint.key.as_str() {
                HOSTNAME => constraint.siblings_on(pod, node),
                _ => counts.get(value).copied().unwrap_or(0),
            };
            score += siblings as f64 * weight + (constraint.max_skew - 1) as f64;
        }
        score.round() as i64
    }
}

fn distinct(key: &str, snapshot: &Snapshot, nodes: &[usize]) -> usize {
    let mut values: Vec<&str> = nodes.iter().filter_map(|at| snapshot.nodes[*at].label(key)).collect();
    values.sort_unstable();
    values.dedup();
    values.len()
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let constraints = Constraint::of(pod, "DoNotSchedule");
        if constraints.is_empty() {
            return PreFilter::Skip;
        }
        let counts = count(&constraints, pod, snapshot, true);
        state.put(Hard(constraints.into_iter().zip(counts).map(Spread::of).collect()));
        PreFilter::Go
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        state.get::<Hard>().map_or(Ok(()), |hard| hard.check(pod, node))
    }

    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, nodes: &[usize]) -> bool {
        match Soft::prepare(pod, snapshot, nodes) {
            Some(soft) => {
                state.put(soft);
                true
            }
            None => false,
        }
    }

    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> i64 {
        state.get::<Soft>().map_or(0, |soft| soft.score(pod, node))
    }

    /// Fewer siblings are better.
    fn normalize(&self, _state: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        let known = || scores.iter().copied().filter(|score| *score != IGNORED);
        let (least, most) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
        for score in scores {
            *score = match *score {
                IGNORED => 0,
                _ if most == 0 => MAX_SCORE,
                score => MAX_SCORE * (most + least - score) / most,
            };
        }
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let constraints = Constraint::of(pod, "DoNotSchedule");
        let concerns = |other: &PodInfo| constraints.iter().any(|constraint| constraint.is_sibling(pod, other));
        let in_all = |node: &NodeInfo| constraints.iter().all(|constraint| node.label(&constraint.key).is_some());
        match event {
            ClusterEvent::PodAssigned(other) => concerns(other),
            // It may have been a sibling before it was being deleted, which `is_sibling` leaves out.
            ClusterEvent::PodGone(other) => other.namespace == pod.namespace,
            ClusterEvent::PodUpdated { old, new } => concerns(old) != concerns(new),
            ClusterEvent::NodeAdded(node) | ClusterEvent::NodeRemoved(node) => in_all(node),
            ClusterEvent::NodeUpdated { old, new } => {
                old.node.metadata.labels != new.node.metadata.labels || old.taints() != new.taints()
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, object};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn web(name: &str, constraints: Value) -> PodInfo {
        object(json!({"metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"containers": [], "topologySpreadConstraints": constraints}}))
    }

    fn constraint(when: &str, max_skew: i32) -> Value {
        json!({"topologyKey": "zone", "maxSkew": max_skew, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}})
    }

    /// `counts[i]` pods in zone i, and one node without a zone.
    fn snapshot(counts: &[usize]) -> Snapshot {
        let mut nodes: Vec<NodeInfo> = counts
            .iter()
            .enumerate()
            .map(|(zone, count)| {
                let mut here = node(&format!("n{zone}"), json!({"metadata": {"labels": {"zone": zone.to_string()}}}));
                (0..*count).for_each(|n| here.add_pod(Arc::new(web(&format!("p{zone}-{n}"), json!([])))));
                here
            })
            .collect();
        nodes.push(node("none", json!({})));
        Snapshot { nodes: Arc::new(nodes.into_iter().map(Arc::new).collect()), ..Snapshot::default() }
    }

    #[test]
    fn hard_constraints_limit_the_skew() {
        let min3 = {
            let mut constraint = constraint("DoNotSchedule", 1);
            constraint["minDomains"] = json!(3);
            constraint
        };
        for (constraint, counts, want) in [
            (constraint("DoNotSchedule", 1), [1, 0], [Some(REASON), None, Some(MISSING_LABEL)]),
            (constraint("DoNotSchedule", 2), [1, 0], [None, None, Some(MISSING_LABEL)]),
            (constraint("DoNotSchedule", 1), [1, 1], [None, None, Some(MISSING_LABEL)]),
            // A third zone is missing, so the fewest is nothing.
            (min3, [1, 1], [Some(REASON), Some(REASON), Some(MISSING_LABEL)]),
        ] {
            let (pod, snapshot) = (web("new", json!([constraint])), snapshot(&counts));
            let mut state = CycleState::default();
            assert_eq!(PodTopologySpread.pre_filter(&mut state, &pod, &snapshot), PreFilter::Go);
            let got: Vec<_> =
                snapshot.nodes.iter().map(|node| PodTopologySpread.filter(&state, &pod, node).err()).collect();
            let got: Vec<_> = got.iter().map(|r| r.as_ref().map(|r| r.reasons[0].as_ref())).collect();
            assert_eq!(got, want, "{counts:?}");
        }
    }

    #[test]
    fn the_emptiest_domain_is_looked_for_once() {
        let mut of_three = constraint("DoNotSchedule", 1);
        of_three["minDomains"] = json!(3);
        for (constraint, fewest) in [(constraint("DoNotSchedule", 1), 2), (of_three, 0)] {
            let (pod, snapshot) = (web("new", json!([constraint])), snapshot(&[3, 2]));
            let mut state = CycleState::default();
            PodTopologySpread.pre_filter(&mut state, &pod, &snapshot);
            assert_eq!(state.get::<Hard>().map(|hard| hard.0[0].fewest), Some(fewest));
        }
    }

    #[test]
    fn soft_constraints_prefer_fewer_siblings() {
        let (pod, snapshot) = (web("new", json!([constraint("ScheduleAnyway", 1)])), snapshot(&[2, 1, 0]));
        let mut state = CycleState::default();
        assert!(PodTopologySpread.pre_score(&mut state, &pod, &snapshot, &[0, 1, 2, 3]));
        let mut scores: Vec<i64> =
            snapshot.nodes.iter().map(|node| PodTopologySpread.score(&state, &pod, node)).collect();
        PodTopologySpread.normalize(&state, &pod, &mut scores);
        assert!(scores[0] < scores[1] && scores[1] < scores[2], "{scores:?}");
        assert_eq!((scores[2], scores[3]), (100, 0));
    }

    #[test]
    fn replicas_spread_over_hosts_without_being_told() {
        let replica = |name: &str| {
            object(json!({"metadata": {"name": name, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "rs", "controller": true}]},
                "spec": {"containers": []}}))
        };
        let mut busy = node("busy", json!({}));
        busy.add_pod(Arc::new(replica("a")));
        let snapshot = Snapshot {
            nodes: Arc::new(vec![Arc::new(busy), Arc::new(node("free", json!({})))]),
            ..Snapshot::default()
        };
        let mut state = CycleState::default();
        let pod = replica("b");
        assert!(PodTopologySpread.pre_score(&mut state, &pod, &snapshot, &[0, 1]));
        let scores: Vec<i64> = snapshot.nodes.iter().map(|node| PodTopologySpread.score(&state, &pod, node)).collect();
        assert!(scores[0] > scores[1], "more siblings before normalizing: {scores:?}");
    }

    #[test]
    fn bare_pods_behind_a_service_spread_over_hosts_without_being_told() {
        let mut busy = node("busy", json!({}));
        busy.add_pod(Arc::new(web("a", json!([]))));
        let mut snapshot = Snapshot {
            nodes: Arc::new(vec![Arc::new(busy), Arc::new(node("free", json!({})))]),
            ..Snapshot::default()
        };
        let pod = web("b", json!([]));
        assert!(!PodTopologySpread.pre_score(&mut CycleState::default(), &pod, &snapshot, &[0, 1]), "no Service");
        let selector = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let services = BTreeMap::from([("web".to_owned(), selector)]);
        snapshot.services = Arc::new(HashMap::from([("default".to_owned(), services)]));
        let mut state = CycleState::default();
        assert!(PodTopologySpread.pre_score(&mut state, &pod, &snapshot, &[0, 1]));
        let scores: Vec<i64> = snapshot.nodes.iter().map(|node| PodTopologySpread.score(&state, &pod, node)).collect();
        assert!(scores[0] > scores[1], "more siblings before normalizing: {scores:?}");
    }
}
