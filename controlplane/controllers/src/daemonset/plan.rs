//! Pure: a DaemonSet's pods to create and to delete, and its status.
//!
//! Each node is looked at alone (is a pod missing, or one too many), then a rolling update replaces
//! old pods within `maxUnavailable`, or puts new ones beside them within `maxSurge`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use super::nodes;
use crate::revisions::HASH_LABEL;
use crate::{meta, podstate};

pub struct View<'a> {
    set: &'a DaemonSet,
    /// By name: should run here, may stay here, pods here (oldest first).
    nodes: BTreeMap<String, OnNode>,
    /// Pods meant for nodes that do not exist.
    stray: Vec<Arc<Pod>>,
    /// Nodes whose failed pods are left for now.
    resting: BTreeSet<String>,
    hash: String,
    now: Timestamp,
}

struct OnNode {
    should_run: bool,
    may_stay: bool,
    pods: Vec<Arc<Pod>>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Node names.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Those among `delete` that ended by themselves, with the event's reason.
    pub failed: Vec<(Arc<Pod>, &'static str)>,
}

impl<'a> View<'a> {
    pub fn new(set: &'a DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>], hash: &str, now: Timestamp) -> Self {
        let spec = nodes::template(set, hash).spec.unwrap_or_default();
        let mut placed = super::by_node(pods);
        let nodes = nodes.iter().map(|node| {
            let (should_run, may_stay) = nodes::should_run(&spec, node);
            let mut pods = placed.remove(&node.name_any()).unwrap_or_default();
            pods.sort_by_key(|pod| (meta::created(&pod.metadata), pod.name_any()));
            (node.name_any(), OnNode { should_run, may_stay, pods })
        });
        let nodes = nodes.collect();
        let stray = placed.into_values().flatten().collect();
        Self { set, nodes, stray, resting: BTreeSet::new(), hash: hash.to_owned(), now }
    }

    /// The same where failed pods of some nodes are not deleted.
    pub fn leaving(self, resting: BTreeSet<String>) -> Self {
        Self { resting, ..self }
    }

    /// Whether a pod still is of the revision with this hash.
    pub fn uses(&self, hash: &str) -> bool {
        let mut pods = self.nodes.values().flat_map(|on| &on.pods);
        pods.any(|pod| meta::labels(&pod.metadata).get(HASH_LABEL).map(String::as_str) == Some(hash))
    }

    pub fn next_look(&self, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        podstate::next_available(pods, self.min_ready(), self.now)
    }

    fn min_ready(&self) -> i32 {
        self.set.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_new(&self, pod: &Pod) -> bool {
        meta::labels(&pod.metadata).get(HASH_LABEL) == Some(&self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        podstate::is_available(pod, self.min_ready(), self.now)
    }

    fn desired(&self) -> i32 {
        self.nodes.values().filter(|on| on.should_run).count() as i32
    }

    /// `(maxUnavailable, maxSurge)` in pods; none when updates wait for pods to be deleted.
    fn limits(&self) -> Option<(i32, i32)> {
        let strategy = self.set.spec.update_strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("OnDelete") {
            return None;
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let surge = rolling.max_surge.map_or(0, |value| meta::scaled(&value, self.desired(), true));
        let unavailable = rolling.max_unavailable.map_or(1, |value| meta::scaled(&value, self.desired(), true));
        // a rollout that may do neither would never move
        Some(if surge == 0 && unavailable == 0 { (1, 0) } else { (unavailable, surge) })
    }
}

pub fn changes(view: &View<'_>) -> Changes {
    let mut changes = Changes::default();
    for (name, on) in &view.nodes {
        place(view, name, on, &mut changes);
    }
    changes.delete.extend(view.stray.iter().filter(|pod| is_unscheduled(pod)).cloned());
    if let Some((unavailable, surge)) = view.limits() {
        match surge {
            0 => replace(view, unavailable, &mut changes),
            surge => put_beside(view, surge, &mut changes),
        }
    }
    let mut seen = BTreeSet::new();
    changes.delete.retain(|pod| !meta::is_deleting(&pod.metadata) && seen.insert(meta::uid(&pod.metadata).to_owned()));
    changes
}

fn is_unscheduled(pod: &Pod) -> bool {
    podstate::node_name(pod).is_empty()
}

/// One node: a missing pod, a finished one, one too many.
fn place(view: &View<'_>, name: &str, on: &OnNode, changes: &mut Changes) {
    if !on.may_stay {
        changes.delete.extend(on.pods.iter().cloned());
        return;
    }
    if on.pods.is_empty() && on.should_run {
        changes.create.push(name.to_owned());
        return;
    }
    let mut running = Vec::new();
    for pod in on.pods.iter().filter(|pod| !meta::is_deleting(&pod.metadata)) {
        match podstate::phase(pod) {
            "Failed" if view.resting.contains(name) => {}
            "Failed" => changes.failed.push((pod.clone(), "FailedDaemonPod")),
            "Succeeded" => changes.failed.push((pod.clone(), "SucceededDaemonPod")),
            _ => running.push(pod.clone()),
        }
    }
    changes.delete.extend(changes.failed.iter().map(|(pod, _)| pod.clone()));
    // scheduled before unscheduled, then the oldest stays
    running.sort_by_key(|pod| is_unscheduled(pod));
    if view.limits().is_some_and(|(_, surge)| surge > 0) {
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| view.is_new(pod));
        changes.delete.extend(new.into_iter().skip(1).chain(old.into_iter().skip(1)));
    } else {
        changes.delete.extend(running.into_iter().skip(1));
    }
}

/// The new and the old pod of a node.
type Pair<'p> = (Option<&'p Arc<Pod>>, Option<&'p Arc<Pod>>);

/// None when it has several of one sort, which `place` mends.
fn pair<'p>(view: &View<'_>, on: &'p OnNode) -> Option<Pair<'p>> {
    let (mut new, mut old) = (None, None);
    for pod in on.pods.iter().filter(|pod| !meta::is_deleting(&pod.metadata)) {
        let place = if view.is_new(pod) { &mut new } else { &mut old };
        if place.replace(pod).is_some() {
            return None;
        }
    }
    Some((new, old))
}

/// Deletes old pods; `place` makes the new one when the old is gone.
fn replace(view: &View<'_>, max_unavailable: i32, changes: &mut Changes) {
    let (mut unavailable, mut candidates) = (0, Vec::new());
    for on in view.nodes.values().filter(|on| on.may_stay && (on.should_run || !on.pods.is_empty())) {
        match pair(view, on) {
            None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
            Some((Some(new), None)) => unavailable += i32::from(!view.is_available(new)),
            Some((None, Some(old))) if view.is_available(old) => candidates.push(old.clone()),
            // it serves nobody: replacing it costs nothing
            Some((None, Some(old))) => {
                unavailable += 1;
                changes.delete.push(old.clone());
            }
        }
    }
    let room = usize::try_from(max_unavailable - unavailable).unwrap_or(0);
    changes.delete.extend(candidates.into_iter().take(room));
}

/// Creates new pods beside old ones, and deletes an old one when its successor is available.
fn put_beside(view: &View<'_>, max_surge: i32, changes: &mut Changes) {
    let (mut surge, mut candidates) = (0, Vec::new());
    for (name, on) in view.nodes.iter().filter(|(_, on)| on.may_stay) {
        match pair(view, on) {
            None => surge += 1,
            Some((None, Some(_))) if !on.should_run => {}
            Some((None, Some(old))) if view.is_available(old) => candidates.push(name.clone()),
            Some((None, Some(_))) => {
                surge += 1;
                changes.create.push(name.clone());
            }
            Some((Some(new), Some(old))) => {
                if view.is_available(new) || !view.is_available(old) {
                    changes.delete.push(old.clone());
                } else {
                    surge += 1;
                }
            }
            _ => {}
        }
    }
    let room = usize::try_from(max_surge - surge).unwrap_or(0);
    changes.create.extend(candidates.into_iter().take(room));
}

pub fn status(view: &View<'_>) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: view.set.metadata.generation,
        collision_count: view.set.status.as_ref().and_then(|status| status.collision_count),
        conditions: view.set.status.as_ref().and_then(|status| status.conditions.clone()),
        desired_number_scheduled: view.desired(),
        ..Default::default()
    };
    let (mut updated, mut available) = (0, 0);
    for on in view.nodes.values() {
        if !on.should_run {
            status.number_misscheduled += i32::from(!on.pods.is_empty());
            continue;
        }
        let Some(pod) = on.pods.iter().find(|pod| podstate::is_ready(pod)).or(on.pods.first()) else { continue };
        status.current_number_scheduled += 1;
        if podstate::is_ready(pod) {
            status.number_ready += 1;
            available += i32::from(view.is_available(pod));
        }
        updated += i32::from(on.pods.iter().any(|pod| view.is_new(pod)));
    }
    let some = |count: i32| (count != 0).then_some(count);
    status.updated_number_scheduled = some(updated);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod, ready};
    use k8s_openapi::api::apps::v1::{DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn node(name: &str) -> Arc<Node> {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        Arc::new(node)
    }

    fn daemon(name: &str, node: &str, hash: &str, is_ready: bool) -> Arc<Pod> {
        let mut pod = pod(name, node, "Running");
        pod.metadata.labels = Some([(HASH_LABEL.to_owned(), hash.to_owned())].into());
        Arc::new(if is_ready { ready(pod, 0) } else { pod })
    }

    fn set(unavailable: i32, surge: i32) -> DaemonSet {
        let mut set = DaemonSet::default();
        set.spec.update_strategy = Some(DaemonSetUpdateStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDaemonSet {
                max_surge: Some(IntOrString::Int(surge)),
                max_unavailable: Some(IntOrString::Int(unavailable)),
            }),
        });
        set
    }

    fn outcome(set: &DaemonSet, nodes: &[&str], pods: &[Arc<Pod>]) -> (Vec<String>, Vec<String>) {
        let nodes: Vec<_> = nodes.iter().map(|name| node(name)).collect();
        let changes = changes(&View::new(set, &nodes, pods, "new", at(100)));
        let mut deleted: Vec<_> = changes.delete.iter().map(|pod| pod.name_any()).collect();
        deleted.sort();
        (changes.create, deleted)
    }

    #[test]
    fn every_node_gets_one_and_keeps_one() {
        let set = set(1, 0);
        let pods = [daemon("a", "n1", "new", true), daemon("b", "n1", "new", true), daemon("x", "", "new", true)];
        assert_eq!(outcome(&set, &["n1", "n2"], &pods), (vec!["n2".into()], vec!["b".into()]));
        let failed = Arc::new(pod("f", "n1", "Failed"));
        assert_eq!(outcome(&set, &["n1"], &[failed]).1, ["f"]);
    }

    #[test]
    fn a_pod_that_ended_but_is_held_by_a_finalizer_keeps_no_other_from_its_node() {
        let mut held = pod("held", "n1", "Failed");
        held.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1)));
        let set = set(1, 0);
        assert_eq!(outcome(&set, &["n1"], &[Arc::new(held.clone())]), (vec!["n1".into()], vec![]));
        held.status.get_or_insert_default().phase = Some("Running".into());
        assert_eq!(outcome(&set, &["n1"], &[Arc::new(held)]), (vec![], vec![]), "one that still runs is waited for");
    }

    #[test]
    fn a_failed_pod_is_left_while_its_node_rests() {
        let (set, nodes) = (set(1, 0), [node("n1"), node("n2")]);
        let mut failed = [pod("a", "n1", "Failed"), pod("b", "n2", "Failed")];
        for pod in &mut failed {
            pod.metadata.labels = Some([(HASH_LABEL.to_owned(), "new".to_owned())].into());
        }
        let pods = failed.map(Arc::new);
        let view = View::new(&set, &nodes, &pods, "new", at(100)).leaving(["n1".to_owned()].into());
        let changes = changes(&view);
        assert_eq!(changes.delete.iter().map(|pod| pod.name_any()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(changes.create, Vec::<String>::new());
    }

    #[test]
    fn a_rolling_update_takes_no_more_than_allowed() {
        let old = |name: &str, node: &str, ready| daemon(name, node, "old", ready);
        let all = [old("a", "n1", true), old("b", "n2", true), old("c", "n3", true)];
        assert_eq!(outcome(&set(1, 0), &["n1", "n2", "n3"], &all).1, ["a"]);
        assert_eq!(outcome(&set(2, 0), &["n1", "n2", "n3"], &all).1, ["a", "b"]);
        let started = [daemon("a", "n1", "new", false), old("b", "n2", true), old("c", "n3", true)];
        assert!(outcome(&set(1, 0), &["n1", "n2", "n3"], &started).1.is_empty(), "the new one is not ready");
        let broken = [old("a", "n1", false), old("b", "n2", true)];
        assert_eq!(outcome(&set(1, 0), &["n1", "n2"], &broken).1, ["a"], "a broken old pod goes first");
    }

    #[test]
    fn surge_adds_before_it_removes() {
        let old = |name: &str, node: &str| daemon(name, node, "old", true);
        let all = [old("a", "n1"), old("b", "n2")];
        assert_eq!(outcome(&set(0, 1), &["n1", "n2"], &all), (vec!["n1".into()], vec![]));
        let beside = [old("a", "n1"), old("b", "n2"), daemon("a2", "n1", "new", false)];
        assert_eq!(outcome(&set(0, 1), &["n1", "n2"], &beside), (vec![], vec![]));
        let done = [old("a", "n1"), old("b", "n2"), daemon("a2", "n1", "new", true)];
        assert_eq!(outcome(&set(0, 1), &["n1", "n2"], &done), (vec!["n2".into()], vec!["a".into()]));
    }

    #[test]
    fn status_counts_nodes() {
        let set = set(1, 0);
        let nodes = [node("n1"), node("n2"), node("n3")];
        let pods = [daemon("a", "n1", "new", true), daemon("b", "n2", "old", false)];
        let status = status(&View::new(&set, &nodes, &pods, "new", at(100)));
        assert_eq!((status.desired_number_scheduled, status.current_number_scheduled, status.number_ready), (3, 2, 1));
        assert_eq!((status.updated_number_scheduled, status.number_unavailable), (Some(1), Some(2)));
    }
}
