//! InterPodAffinity: pods near to, or away from, other pods, per topology domain.
//!
//! PreFilter counts, once per cycle, the matching pods in each domain (a label key with a value);
//! Filter then only looks the node's domains up.

use std::collections::HashMap;

use crate::cluster::Snapshot;
use crate::event::ClusterEvent;
use crate::framework::{CycleState, MAX_SCORE, Plugin, Point, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::{PodInfo, Term};

pub const AFFINITY: &str = "node(s) didn't match pod affinity rules";
pub const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
pub const EXISTING_ANTI_AFFINITY: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// What a required affinity term of a pod that is already there counts, when scored.
const HARD_AFFINITY_WEIGHT: i64 = 1;

pub struct InterPodAffinity;

/// Numbers by topology key, then by its value: a node looks its own few domains up, however many there are.
type Domains = HashMap<String, HashMap<String, i64>>;

#[derive(Default)]
struct Counts {
    /// Domains that pods there keep this pod out of.
    existing_anti: Domains,
    affinity: Domains,
    anti: Domains,
    /// Whether the pod satisfies its own affinity terms: the first of its kind may go anywhere.
    selects_itself: bool,
}

struct Scores(Domains);

fn add(domains: &mut Domains, term: &Term, node: &NodeInfo, amount: i64) {
    if let Some(value) = node.label(&term.topology_key) {
        *domains.entry(term.topology_key.clone()).or_default().entry(value.to_owned()).or_default() += amount;
    }
}

/// The numbers of the domains that the node is in.
fn of_node<'a>(domains: &'a Domains, node: &'a NodeInfo) -> impl Iterator<Item = i64> + 'a {
    domains.iter().filter_map(move |(key, values)| values.get(node.label(key)?).copied())
}

fn at(domains: &Domains, term: &Term, node: &NodeInfo) -> Option<i64> {
    let value = node.label(&term.topology_key)?;
    Some(domains.get(&term.topology_key).and_then(|values| values.get(value)).copied().unwrap_or(0))
}

fn count(pod: &PodInfo, snapshot: &Snapshot) -> Counts {
    let own_labels = snapshot.namespace_labels(&pod.namespace);
    let required = &pod.affinity.required;
    let mut counts =
        Counts { selects_itself: required.iter().all(|term| term.selects(pod, own_labels)), ..Counts::default() };
    for node in snapshot.nodes.iter() {
        if node.with_required_anti_affinity > 0 {
            let terms = node.pods.iter().flat_map(|existing| &existing.anti_affinity.required);
            for term in terms.filter(|term| term.selects(pod, own_labels)) {
                add(&mut counts.existing_anti, term, node, 1);
            }
        }
        if required.is_empty() && pod.anti_affinity.required.is_empty() {
            continue;
        }
        for existing in &node.pods {
            let labels = snapshot.namespace_labels(&existing.namespace);
            if !required.is_empty() && required.iter().all(|term| term.selects(existing, labels)) {
                required.iter().for_each(|term| add(&mut counts.affinity, term, node, 1));
            }
            for term in pod.anti_affinity.required.iter().filter(|term| term.selects(existing, labels)) {
                add(&mut counts.anti, term, node, 1);
            }
        }
    }
    counts
}

impl Counts {
    fn satisfies_affinity(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        let found: Option<Vec<i64>> = pod.affinity.required.iter().map(|term| at(&self.affinity, term, node)).collect();
        match found {
            // The node is in no domain of one of the keys.
            None => false,
            Some(found) if found.iter().all(|count| *count > 0) => true,
            Some(_) => self.affinity.is_empty() && self.selects_itself,
        }
    }

    fn violates_anti_affinity(&self, pod: &PodInfo, node: &NodeInfo) -> bool {
        pod.anti_affinity.required.iter().any(|term| at(&self.anti, term, node).is_some_and(|count| count > 0))
    }

    fn is_kept_out(&self, node: &NodeInfo) -> bool {
        of_node(&self.existing_anti, node).any(|count| count > 0)
    }
}

fn score_domains(pod: &PodInfo, snapshot: &Snapshot) -> Domains {
    let own_labels = snapshot.namespace_labels(&pod.namespace);
    let has_preferences = !pod.affinity.preferred.is_empty() || !pod.anti_affinity.preferred.is_empty();
    let mut domains = Domains::new();
    for node in snapshot.nodes.iter().filter(|node| has_preferences || node.with_affinity > 0) {
        for existing in &node.pods {
            let labels = snapshot.namespace_labels(&existing.namespace);
            for (weight, term) in pod.affinity.preferred.iter().filter(|(_, term)| term.selects(existing, labels)) {
                add(&mut domains, term, node, *weight);
            }
            for (weight, term) in pod.anti_affinity.preferred.iter().filter(|(_, term)| term.selects(existing, labels))
            {
                add(&mut domains, term, node, -weight);
            }
            for term in existing.affinity.required.iter().filter(|term| term.selects(pod, own_labels)) {
                add(&mut domains, term, node, HARD_AFFINITY_WEIGHT);
            }
            for (weight, term) in existing.affinity.preferred.iter().filter(|(_, term)| term.selects(pod, own_labels)) {
                add(&mut domains, term, node, *weight);
            }
            for (weight, term) in existing.anti_affinity.preferred.iter().filter(|(_, t)| t.selects(pod, own_labels)) {
                add(&mut domains, term, node, -weight);
            }
        }
    }
    domains
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot) -> PreFilter {
        let counts = count(pod, snapshot);
        let nothing_to_say = pod.affinity.required.is_empty()
            && pod.anti_affinity.required.is_empty()
            && counts.existing_anti.is_empty();
        state.put(counts);
        if nothing_to_say { PreFilter::Skip } else { PreFilter::Go }
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(counts) = state.get::<Counts>() else { return Ok(()) };
        if !counts.satisfies_affinity(pod, node) {
            return Err(Rejection::unresolvable(AFFINITY));
        }
        if counts.violates_anti_affinity(pod, node) {
            return Err(Rejection::unschedulable(ANTI_AFFINITY));
        }
        if counts.is_kept_out(node) {
            return Err(Rejection::unschedulable(EXISTING_ANTI_AFFINITY));
        }
        Ok(())
    }

    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, snapshot: &Snapshot, _nodes: &[usize]) -> bool {
        let domains = score_domains(pod, snapshot);
        let any = !domains.is_empty();
        state.put(Scores(domains));
        any
    }

    fn score(&self, state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        state.get::<Scores>().map_or(0, |Scores(domains)| of_node(domains, node).sum())
    }

    /// Scores may be negative here: the range between the worst and the best is spread out.
    fn normalize(&self, _state: &CycleState, _pod: &PodInfo, scores: &mut [i64]) {
        let (least, most) = (scores.iter().min().copied().unwrap_or(0), scores.iter().max().copied().unwrap_or(0));
        for score in scores {
            *score = if most > least { (*score - least) * MAX_SCORE / (most - least) } else { 0 };
        }
    }

    fn helps(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        let wants = |other: &PodInfo| pod.affinity.required.iter().any(|term| term.selector.matches(&other.labels));
        let avoids = |other: &PodInfo| {
            let mine = pod.anti_affinity.required.iter().any(|term| term.selector.matches(&other.labels));
            mine || other.anti_affinity.required.iter().any(|term| term.selector.matches(&pod.labels))
        };
        match event {
            ClusterEvent::NodeAdded(_) | ClusterEvent::NamespaceChanged => true,
            ClusterEvent::NodeUpdated { old, new } => old.node.metadata.labels != new.node.metadata.labels,
            ClusterEvent::PodAssigned(other) => wants(other),
            ClusterEvent::PodUpdated { old, new } => old.labels != new.labels && (wants(new) || avoids(old)),
            ClusterEvent::PodGone(other) => avoids(other),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, object};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn labelled(name: &str, app: &str, affinity: Value) -> PodInfo {
        object(
            json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": {"containers": [], "affinity": affinity}}),
        )
    }

    fn term(app: &str) -> Value {
        json!([{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "zone"}])
    }

    /// Two zones; `there` is in zone a.
    fn snapshot(there: Vec<PodInfo>) -> Snapshot {
        let zone = |name, zone| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
        let mut a = zone("a1", "a");
        there.into_iter().for_each(|pod| a.add_pod(Arc::new(pod)));
        let nodes =
            vec![Arc::new(a), Arc::new(zone("a2", "a")), Arc::new(zone("b1", "b")), Arc::new(node("none", json!({})))];
        Snapshot { nodes: Arc::new(nodes), ..Snapshot::default() }
    }

    fn filtered(pod: &PodInfo, snapshot: &Snapshot) -> Vec<Option<String>> {
        let mut state = CycleState::default();
        InterPodAffinity.pre_filter(&mut state, pod, snapshot);
        let outcome = |node: &Arc<NodeInfo>| InterPodAffinity.filter(&state, pod, node).err();
        snapshot.nodes.iter().map(outcome).map(|rejection| rejection.map(|r| r.reasons[0].to_string())).collect()
    }

    #[test]
    fn required_terms_work_per_domain() {
        let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("web")}});
        let far = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("web")}});
        let web = || labelled("web", "web", json!({}));
        let no = |reason: &str| Some(reason.to_owned());
        let cases = [
            (labelled("p", "x", near.clone()), vec![web()], [None, None, no(AFFINITY), no(AFFINITY)]),
            (labelled("p", "x", far.clone()), vec![web()], [no(ANTI_AFFINITY), no(ANTI_AFFINITY), None, None]),
            (labelled("p", "x", near.clone()), vec![], [no(AFFINITY), no(AFFINITY), no(AFFINITY), no(AFFINITY)]),
            // The first of a group that wants to be together.
            (labelled("p", "web", near), vec![], [None, None, None, no(AFFINITY)]),
            // The other one keeps it out.
            (
                web(),
                vec![labelled("q", "y", far)],
                [no(EXISTING_ANTI_AFFINITY), no(EXISTING_ANTI_AFFINITY), None, None],
            ),
        ];
        for (pod, there, want) in cases {
            assert_eq!(filtered(&pod, &snapshot(there)), want, "{:?}", pod.affinity);
        }
    }

    #[test]
    fn terms_of_other_namespaces_do_not_concern_it() {
        let mut foreign = labelled("web", "web", json!({}));
        foreign.namespace = "other".to_owned();
        let near = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term("web")}});
        let got = filtered(&labelled("p", "x", near), &snapshot(vec![foreign]));
        assert!(got.iter().all(Option::is_some));
    }

    #[test]
    fn preferences_score_by_domain() {
        let preferred = json!([{"weight": 5, "podAffinityTerm": term("web")[0]}]);
        let pod = labelled(
            "p",
            "x",
            json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}),
        );
        let snapshot = snapshot(vec![labelled("web", "web", json!({}))]);
        let mut state = CycleState::default();
        assert!(InterPodAffinity.pre_score(&mut state, &pod, &snapshot, &[]));
        let mut scores: Vec<i64> =
            snapshot.nodes.iter().map(|node| InterPodAffinity.score(&state, &pod, node)).collect();
        assert_eq!(scores, [-5, -5, 0, 0]);
        InterPodAffinity.normalize(&state, &pod, &mut scores);
        assert_eq!(scores, [0, 0, 100, 100]);
    }

    #[test]
    fn what_a_node_costs_does_not_grow_with_the_domains() {
        let far = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}});
        let nodes = (0..50).map(|at| {
            let mut here = node(&format!("n{at}"), json!({}));
            here.add_pod(Arc::new(labelled(&format!("p{at}"), "web", far.clone())));
            Arc::new(here)
        });
        let mut nodes: Vec<Arc<NodeInfo>> = nodes.collect();
        nodes.push(Arc::new(node("free", json!({}))));
        let snapshot = Snapshot { nodes: Arc::new(nodes), ..Snapshot::default() };
        let pod = labelled("p", "web", far);
        let counts = count(&pod, &snapshot);
        assert_eq!(counts.existing_anti.len(), 1, "one key, which a node is asked for once");
        assert_eq!(filtered(&pod, &snapshot).iter().filter(|refused| refused.is_none()).count(), 1);
    }
}
