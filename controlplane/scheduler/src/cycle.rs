//! One scheduling cycle: which node for this pod? Pure: a snapshot in, a verdict out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::cluster::Snapshot;
use crate::framework::{CycleState, Framework, MAX_SCORE, PluginSet, Point, PostFilter, PreFilter, Rejection};
use crate::node::NodeInfo;
use crate::plugins::default_preemption::Budgets;
use crate::pod::PodInfo;

/// Below so many nodes all are looked at; also the fewest that are enough to choose from.
const FEWEST_TO_FIND: usize = 100;

/// What stands on a node besides its pods: pods of equal or higher priority that preemption made
/// room for there, by node name.
pub type Nominated = HashMap<String, Vec<Arc<PodInfo>>>;

/// The answer of a cycle.
#[derive(Debug)]
pub enum Verdict {
    Place { node: String },
    Reject(FitError),
}

/// Why no node fits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FitError {
    pub all_nodes: usize,
    /// A PreFilter's message; it stands for all nodes.
    pub pre_filter: Option<String>,
    /// Node positions and why not.
    pub rejections: Vec<(usize, Rejection)>,
    pub rejected_by: PluginSet,
    /// What PostFilter could do.
    pub post_filter: Option<PostFilter>,
    /// A plugin failed, as `pre_filter` says: this is not about nodes.
    pub failed: bool,
}

/// What PostFilter plugins get.
pub struct Failed<'a> {
    pub framework: &'a Framework,
    pub snapshot: &'a Snapshot,
    /// What plugins left of the cycle.
    pub state: &'a CycleState,
    pub nominated: &'a Nominated,
    pub pod: &'a PodInfo,
    pub error: &'a FitError,
    pub budgets: Budgets<'a>,
}

pub struct Cycle<'a> {
    pub framework: &'a Framework,
    pub snapshot: &'a Snapshot,
    pub nominated: &'a Nominated,
    pub budgets: Budgets<'a>,
    /// Where to begin looking, so that the first nodes are not always the chosen ones.
    pub start: usize,
}

impl Cycle<'_> {
    /// `pick(n)` chooses one of n equally good nodes.
    pub fn run(&self, pod: &PodInfo, pick: impl FnOnce(usize) -> usize) -> Verdict {
        let mut state = CycleState::default();
        let found = self.find_nodes(&mut state, pod);
        match found {
            Ok(fitting) => {
                let best = self.best(&mut state, pod, &fitting);
                let at = best[pick(best.len()).min(best.len() - 1)];
                Verdict::Place { node: self.snapshot.nodes[at].name.clone() }
            }
            Err(error) if error.failed => Verdict::Reject(error),
            Err(mut error) => {
                let failed = Failed {
                    framework: self.framework,
                    snapshot: self.snapshot,
                    state: &state,
                    nominated: self.nominated,
                    pod,
                    error: &error,
                    budgets: self.budgets,
                };
                error.post_filter = post_filter(self.framework, &failed);
                Verdict::Reject(error)
            }
        }
    }

    /// The positions of nodes that fit: at least one.
    fn find_nodes(&self, state: &mut CycleState, pod: &PodInfo) -> Result<Vec<usize>, FitError> {
        let nodes = &self.snapshot.nodes;
        let mut error = FitError { all_nodes: nodes.len(), ..FitError::default() };
        let only = match pre_filter(self.framework, state, pod, self.snapshot) {
            Ok(only) => only,
            Err((plugin, rejection)) => {
                error.failed = rejection.failed;
                error.pre_filter = Some(match rejection.failed {
                    true => self.failure(plugin, "PreFilter", &rejection),
                    false => rejection.reasons.join(", "),
                });
                error.rejected_by.insert(plugin);
                error.rejections = (0..nodes.len()).map(|at| (at, rejection.clone())).collect();
                return Err(error);
            }
        };
        // The node that room was made on comes first, and suffices.
        if let Some(at) = pod.nominated_node().and_then(|name| nodes.iter().position(|node| node.name == name))
            && self.fits(state, pod, at).is_ok()
        {
            return Ok(vec![at]);
        }
        let enough = enough_nodes(nodes.len());
        let mut fitting = Vec::new();
        for offset in 0..nodes.len() {
            let at = (self.start + offset) % nodes.len();
            if only.as_ref().is_some_and(|(_, names)| !names.contains(&nodes[at].name)) {
                let reason = "node(s) didn't satisfy plugin(s) [NodeAffinity]".to_owned();
                error.rejections.push((at, Rejection::unresolvable(reason)));
                continue;
            }
            match self.fits(state, pod, at) {
                Ok(()) => fitting.push(at),
                Err((plugin, rejection)) => {
                    error.rejected_by.insert(plugin);
                    if rejection.failed {
                        error.failed = true;
                        error.pre_filter = Some(self.failure(plugin, "filter", &rejection));
                        return Err(error);
                    }
                    error.rejections.push((at, rejection));
                }
            }
            if fitting.len() == enough {
                break;
            }
        }
        if let Some((plugin, _)) = only {
            error.rejected_by.insert(plugin);
        }
        if fitting.is_empty() { Err(error) } else { Ok(fitting) }
    }

    /// Upstream's text of a plugin that failed.
    fn failure(&self, plugin: usize, point: &str, rejection: &Rejection) -> String {
        let name = self.framework.plugin(plugin).map_or("", |plugin| plugin.name());
        format!("running \"{name}\" {point} plugin: {}", rejection.reasons.join(", "))
    }

    /// Filters one node, with the pods nominated to it on it if there are any: they may come before
    /// this pod. It must also fit without them, since they may not come after all.
    fn fits(&self, state: &CycleState, pod: &PodInfo, at: usize) -> Result<(), (usize, Rejection)> {
        let node = &self.snapshot.nodes[at];
        let before = self.nominated.get(&node.name).into_iter().flatten();
        let before: Vec<_> = before.filter(|other| other.priority >= pod.priority && other.uid != pod.uid).collect();
        if !before.is_empty() {
            let mut crowded = NodeInfo::clone(node);
            before.into_iter().for_each(|other| crowded.add_pod(other.clone()));
            fits_with(self.framework, self.snapshot, pod, at, crowded)?;
        }
        filter(self.framework, state, pod, node)
    }

    /// The positions of the nodes with the highest total score: at least one.
    fn best(&self, state: &mut CycleState, pod: &PodInfo, fitting: &[usize]) -> Vec<usize> {
        if fitting.len() == 1 {
            return fitting.to_vec();
        }
        let totals = scores(self.framework, state, pod, self.snapshot, fitting);
        let highest = totals.iter().copied().max().unwrap_or(0);
        fitting.iter().zip(totals).filter(|(_, total)| *total == highest).map(|(at, _)| *at).collect()
    }
}

/// Runs PreFilter: the nodes to stay with, if a plugin limits them, and which one did.
type Limits = Option<(usize, Vec<String>)>;

fn pre_filter(
    framework: &Framework,
    state: &mut CycleState,
    pod: &PodInfo,
    snapshot: &Snapshot,
) -> Result<Limits, (usize, Rejection)> {
    let mut only: Limits = None;
    for (at, plugin) in framework.at(Point::PreFilter) {
        match plugin.pre_filter(state, pod, snapshot) {
            PreFilter::Go => {}
            PreFilter::Skip => state.skip_filter(at),
            PreFilter::Only(names) => {
                only = Some(match only {
                    None => (at, names),
                    Some((by, before)) => (by, before.into_iter().filter(|name| names.contains(name)).collect()),
                });
            }
            PreFilter::Reject(rejection) => return Err((at, rejection)),
        }
    }
    Ok(only)
}

/// The first plugin that can make room decides; else all say why they cannot.
fn post_filter(framework: &Framework, failed: &Failed<'_>) -> Option<PostFilter> {
    let (mut texts, mut waits) = (Vec::new(), false);
    for (_, plugin) in framework.at(Point::PostFilter) {
        match plugin.post_filter(failed) {
            outcome @ PostFilter::Nominate { .. } => return Some(outcome),
            PostFilter::Nothing(text) => texts.push(text),
            PostFilter::Wait(text) => {
                waits = true;
                texts.push(text);
            }
        }
    }
    texts.retain(|text| !text.is_empty());
    let text = texts.join(", ");
    Some(if waits { PostFilter::Wait(text) } else { PostFilter::Nothing(text) })
}

fn filter(framework: &Framework, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Result<(), (usize, Rejection)> {
    framework
        .at(Point::Filter)
        .filter(|(at, _)| state.filters(*at))
        .try_for_each(|(at, plugin)| plugin.filter(state, pod, node).map_err(|rejection| (at, rejection)))
}

/// Whether the pod would fit on node `at` if that node were `changed`. Everything is asked anew,
/// so that plugins which look at the whole cluster see the change too.
pub fn fits_with(
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &PodInfo,
    at: usize,
    changed: NodeInfo,
) -> Result<(), (usize, Rejection)> {
    let snapshot = snapshot.with_node(at, changed);
    let mut state = CycleState::default();
    pre_filter(framework, &mut state, pod, &snapshot)?;
    filter(framework, &state, pod, &snapshot.nodes[at])
}

/// The weighted totals of `fitting`, in its order.
fn scores(
    framework: &Framework,
    state: &mut CycleState,
    pod: &PodInfo,
    snapshot: &Snapshot,
    fitting: &[usize],
) -> Vec<i64> {
    for (at, plugin) in framework.at(Point::PreScore) {
        if !plugin.pre_score(state, pod, snapshot, fitting) {
            state.skip_score(at);
        }
    }
    let mut totals = vec![0; fitting.len()];
    for (_, plugin) in framework.at(Point::Score).filter(|(at, _)| state.scores(*at)) {
        let mut own: Vec<i64> = fitting.iter().map(|at| plugin.score(state, pod, &snapshot.nodes[*at])).collect();
        plugin.normalize(state, pod, &mut own);
        for (total, score) in totals.iter_mut().zip(own) {
            *total += score.clamp(0, MAX_SCORE) * plugin.weight();
        }
    }
    totals
}

/// How many fitting nodes are enough to choose from: all of a small cluster, a shrinking share of
/// a large one (50 % less a percent per 125 nodes, never under 5 % or 100 nodes).
fn enough_nodes(all: usize) -> usize {
    if all < FEWEST_TO_FIND {
        return all;
    }
    let percent = 50usize.saturating_sub(all / 125).max(5);
    (all * percent / 100).max(FEWEST_TO_FIND)
}

impl FitError {
    /// Kubernetes' text, as it stands in the condition and the event.
    pub fn message(&self) -> String {
        if self.all_nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut text = format!("0/{} nodes are available:", self.all_nodes);
        match &self.pre_filter {
            Some(message) => text.push_str(&format!(" {message}.")),
            None => {
                let counted = histogram(self.rejections.iter().map(|(_, rejection)| rejection));
                if !counted.is_empty() {
                    text.push_str(&format!(" {counted}."));
                }
            }
        }
        match &self.post_filter {
            Some(PostFilter::Nothing(message) | PostFilter::Wait(message)) if !message.is_empty() => {
                text.push_str(&format!(" {message}"));
            }
            _ => {}
        }
        text
    }
}

/// `1 Insufficient cpu, 2 node(s) were unschedulable`.
pub fn histogram<'a>(rejections: impl Iterator<Item = &'a Rejection>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in rejections.flat_map(|rejection| &rejection.reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    let mut lines: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    lines.sort();
    lines.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::deciding;
    use crate::plugins::default_preemption::Budget;
    use crate::testing::{asking, named, node, object};
    use serde_json::json;
    use std::cell::Cell;

    fn no_budgets() -> Vec<Budget> {
        Vec::new()
    }

    fn run_with(pod: &PodInfo, nodes: Vec<NodeInfo>, nominated: &Nominated) -> Verdict {
        let framework = Framework::new(deciding());
        let snapshot = Snapshot { nodes: Arc::new(nodes.into_iter().map(Arc::new).collect()), ..Snapshot::default() };
        Cycle { framework: &framework, snapshot: &snapshot, nominated, budgets: &no_budgets, start: 0 }.run(pod, |_| 0)
    }

    fn run(pod: &PodInfo, nodes: Vec<NodeInfo>) -> Verdict {
        run_with(pod, nodes, &Nominated::new())
    }

    fn message(verdict: Verdict) -> String {
        match verdict {
            Verdict::Reject(error) => error.message(),
            Verdict::Place { node } => panic!("placed on {node}"),
        }
    }

    fn placed(verdict: Verdict) -> String {
        match verdict {
            Verdict::Place { node } => node,
            Verdict::Reject(error) => panic!("{}", error.message()),
        }
    }

    fn with_priority(name: &str, cpu: &str, priority: i32) -> PodInfo {
        named(
            name,
            json!({"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}),
        )
    }

    fn holding(name: &str, pods: Vec<PodInfo>) -> NodeInfo {
        let mut node = node(name, json!({}));
        pods.into_iter().for_each(|pod| node.add_pod(Arc::new(pod)));
        node
    }

    #[test]
    fn messages_are_those_of_kubernetes() {
        let tainted = || node("t", json!({"spec": {"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]}}));
        let cordoned = || node("c", json!({"spec": {"unschedulable": true}}));
        let elsewhere = named("p", json!({"containers": [], "nodeSelector": {"disk": "ssd"}}));
        let cases = [
            (asking("p", "1", "1Gi"), vec![], "no nodes available to schedule pods"),
            (
                asking("p", "1", "1Gi"),
                vec![tainted(), cordoned()],
                "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable. \
                 preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
            ),
            (
                asking("p", "3", "1Gi"),
                vec![holding("full", vec![asking("q", "2", "1Gi")]), tainted()],
                "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). \
                 preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, \
                 1 Preemption is not helpful for scheduling.",
            ),
            (
                elsewhere,
                vec![node("n", json!({}))],
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
                 preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
            ),
            (
                named(
                    "p",
                    json!({"preemptionPolicy": "Never", "containers": [
                    {"name": "c", "resources": {"requests": {"cpu": "99"}}}]}),
                ),
                vec![node("n", json!({}))],
                "0/1 nodes are available: 1 Insufficient cpu. \
                 preemption: not eligible due to preemptionPolicy=Never.",
            ),
        ];
        for (pod, nodes, want) in cases {
            assert_eq!(message(run(&pod, nodes)), want);
        }
    }

    #[test]
    fn the_emptier_node_is_chosen() {
        let nodes = vec![holding("busy", vec![asking("q", "2", "4Gi")]), node("free", json!({}))];
        assert_eq!(placed(run(&asking("p", "1", "1Gi"), nodes)), "free");
    }

    #[test]
    fn a_daemon_pod_goes_to_its_node_only() {
        let daemon = named(
            "d",
            json!({"containers": [], "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}}),
        );
        assert_eq!(placed(run(&daemon, vec![node("a", json!({})), node("b", json!({}))])), "b");
    }

    #[test]
    fn the_least_important_victims_are_chosen() {
        let nodes = || {
            vec![
                holding("one", vec![with_priority("a", "2", 5), with_priority("b", "2", 1)]),
                holding("two", vec![with_priority("c", "4", 3)]),
            ]
        };
        let victims = |verdict| match verdict {
            Verdict::Reject(FitError { post_filter: Some(PostFilter::Nominate { node, victims }), .. }) => {
                (node, victims.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(victims(run(&with_priority("p", "2", 10), nodes())), ("one".into(), vec!["b".into()]));
        assert_eq!(victims(run(&with_priority("p", "4", 10), nodes())), ("two".into(), vec!["c".into()]));
        let text = message(run(&with_priority("p", "2", 0), nodes()));
        assert!(text.ends_with("2 No preemption victims found for incoming pod."), "{text}");
    }

    #[test]
    fn budgets_are_read_once_and_only_where_pods_could_make_room() {
        let framework = Framework::new(deciding());
        let node = holding("n", vec![with_priority("a", "4", 1), with_priority("b", "0", 1)]);
        let snapshot = Snapshot { nodes: Arc::new(vec![Arc::new(node)]), ..Snapshot::default() };
        let nominated = Nominated::new();
        let reads = |pod: &PodInfo| {
            let read = Cell::new(0);
            let budgets = || -> Vec<Budget> {
                read.set(read.get() + 1);
                Vec::new()
            };
            let cycle = Cycle {
                framework: &framework,
                snapshot: &snapshot,
                nominated: &nominated,
                budgets: &budgets,
                start: 0,
            };
            cycle.run(pod, |_| 0);
            read.get()
        };
        assert_eq!(reads(&with_priority("fits", "0", 10)), 0);
        assert_eq!(reads(&with_priority("p", "2", 10)), 1);
        assert_eq!(reads(&named("p", json!({"containers": [], "nodeSelector": {"disk": "ssd"}, "priority": 10}))), 0);
    }

    #[test]
    fn room_made_for_one_pod_is_not_taken_by_a_lesser_one() {
        let nominated = Nominated::from([("n".to_owned(), vec![Arc::new(with_priority("first", "3", 10))])]);
        let node = || vec![node("n", json!({}))];
        let text = message(run_with(&with_priority("p", "2", 0), node(), &nominated));
        assert!(text.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{text}");
        assert_eq!(placed(run_with(&with_priority("p", "2", 20), node(), &nominated)), "n");
        let mine = object(json!({"metadata": {"name": "first"}, "status": {"nominatedNodeName": "n"},
            "spec": {"priority": 10, "containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]}}));
        assert_eq!(placed(run_with(&mine, node(), &nominated)), "n");
    }

    /// Rejects every node, and cannot tell about one.
    struct Stub {
        name: &'static str,
        rejects: &'static str,
        fails_at: &'static str,
    }

    impl crate::framework::Plugin for Stub {
        fn name(&self) -> &'static str {
            self.name
        }

        fn points(&self) -> &'static [Point] {
            &[Point::Filter]
        }

        fn filter(&self, _state: &CycleState, _pod: &PodInfo, node: &NodeInfo) -> Result<(), Rejection> {
            match node.name.as_str() {
                name if name == self.fails_at => Err(Rejection::failure("no idea")),
                name if name == self.rejects => Err(Rejection::unresolvable("no")),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn the_plugin_that_failed_is_named() {
        let framework = Framework::new(vec![
            Box::new(Stub { name: "Failing", rejects: "", fails_at: "b" }),
            Box::new(Stub { name: "Rejecting", rejects: "a", fails_at: "" }),
        ]);
        let nodes = ["a", "b"].map(|name| Arc::new(node(name, json!({}))));
        let snapshot = Snapshot { nodes: Arc::new(nodes.into()), ..Snapshot::default() };
        let nominated = Nominated::new();
        let cycle =
            Cycle { framework: &framework, snapshot: &snapshot, nominated: &nominated, budgets: &no_budgets, start: 0 };
        match cycle.run(&asking("p", "1", "1Gi"), |_| 0) {
            Verdict::Reject(error) => {
                assert_eq!(error.pre_filter.as_deref(), Some("running \"Failing\" filter plugin: no idea"));
                assert!(error.failed);
            }
            Verdict::Place { node } => panic!("placed on {node}"),
        }
    }

    #[test]
    fn large_clusters_are_sampled() {
        for (nodes, enough) in [(5, 5), (99, 99), (100, 100), (1000, 420), (5000, 500), (10000, 500)] {
            assert_eq!(enough_nodes(nodes), enough, "{nodes}");
        }
    }

    #[test]
    fn a_decision_about_a_large_cluster_is_quick() {
        let nodes: Vec<NodeInfo> = (0..2000)
            .map(|n| {
                let pods = (0..20).map(|p| asking(&format!("p{n}-{p}"), "100m", "100Mi"));
                holding(&format!("n{n}"), pods.collect())
            })
            .collect();
        let nodes: Arc<Vec<_>> = Arc::new(nodes.into_iter().map(Arc::new).collect());
        let snapshot = Snapshot { nodes, ..Snapshot::default() };
        let (framework, nominated) = (Framework::new(deciding()), Nominated::new());
        let cycle =
            Cycle { framework: &framework, snapshot: &snapshot, nominated: &nominated, budgets: &no_budgets, start: 7 };
        let begin = std::time::Instant::now();
        for _ in 0..10 {
            placed(cycle.run(&asking("p", "1", "1Gi"), |_| 0));
        }
        let took = begin.elapsed() / 10;
        println!("one decision about 2,000 nodes with 40,000 pods: {took:?}");
        // An optimized build takes a fraction of this.
        assert!(took < std::time::Duration::from_millis(100), "{took:?}");
    }
}
