//! DefaultPreemption: makes room for a pod by deleting pods of lower priority.
//!
//! For each node where that could help, the smallest set of victims is found: all lower pods are
//! taken away, then put back one by one, the most important first, as long as the pod still fits.
//! Then the node whose victims matter least is nominated.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use api::selector::Selector;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cycle::{Failed, fits_with, histogram};
use crate::framework::{Plugin, Point, PostFilter, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
pub const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
pub const POLICY_NEVER: &str = "not eligible due to preemptionPolicy=Never.";
pub const WAITING: &str = "not eligible due to a terminating pod on the nominated node.";

/// Candidates looked at: this share of the possible nodes, but no fewer than [`FEWEST_CANDIDATES`].
const CANDIDATE_PERCENT: usize = 10;
const FEWEST_CANDIDATES: usize = 100;

pub struct DefaultPreemption;

/// Reads and parses the budgets: asked for only when pods could be deleted.
pub type Budgets<'a> = &'a dyn Fn() -> Vec<Budget>;

/// A PodDisruptionBudget, parsed.
#[derive(Debug, Clone)]
pub struct Budget {
    namespace: String,
    selector: Selector,
    allowed: i32,
    /// Pods whose disruption was granted already.
    granted: Vec<String>,
}

impl Budget {
    pub fn of(budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let status = budget.status.as_ref();
        Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector: Selector::from_label_selector(selector).unwrap_or_else(|_| Selector::nothing()),
            allowed: status.and_then(|status| status.disruptions_allowed).unwrap_or(0),
            granted: status
                .and_then(|status| status.disrupted_pods.as_ref())
                .map(|pods| pods.keys().cloned().collect())
                .unwrap_or_default(),
        }
    }

    fn covers(&self, pod: &PodInfo) -> bool {
        self.namespace == pod.namespace && self.selector.matches(&pod.labels) && !self.granted.contains(&pod.name)
    }
}

/// A node, and who would have to go.
struct Candidate {
    node: String,
    /// The most important first.
    victims: Vec<Arc<PodInfo>>,
    budget_violations: usize,
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PostFilter]
    }

    fn post_filter(&self, failed: &Failed<'_>) -> PostFilter {
        if let Some(outcome) = not_eligible(failed) {
            return outcome;
        }
        let (candidates, rejections) = find_candidates(failed);
        match candidates.into_iter().min_by_key(cost) {
            Some(best) => PostFilter::Nominate { node: best.node, victims: best.victims },
            None => {
                let all = failed.snapshot.nodes.len();
                PostFilter::Nothing(format!(
                    "preemption: 0/{all} nodes are available: {}.",
                    histogram(rejections.iter())
                ))
            }
        }
    }
}

fn not_eligible(failed: &Failed<'_>) -> Option<PostFilter> {
    let pod = failed.pod;
    if pod.spec().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
        return Some(PostFilter::Nothing(format!("preemption: {POLICY_NEVER}")));
    }
    let at = failed.snapshot.nodes.iter().position(|node| Some(node.name.as_str()) == pod.nominated_node())?;
    let hopeless = failed.error.rejections.iter().any(|(node, rejection)| *node == at && !rejection.resolvable);
    let leaving = |other: &Arc<PodInfo>| other.priority < pod.priority && is_preempted(other);
    let waits = !hopeless && failed.snapshot.nodes[at].pods.iter().any(leaving);
    waits.then(|| PostFilter::Wait(format!("preemption: {WAITING}")))
}

/// Whether the pod is going because the scheduler wanted it to.
fn is_preempted(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let mut conditions =
        conditions.filter(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True");
    pod.is_being_deleted() && conditions.any(|condition| condition.reason.as_deref() == Some("PreemptionByScheduler"))
}

/// The possible nodes, and why the others are not.
fn find_candidates(failed: &Failed<'_>) -> (Vec<Candidate>, Vec<Rejection>) {
    let possible: Vec<usize> =
        failed.error.rejections.iter().filter(|(_, rejection)| rejection.resolvable).map(|(at, _)| *at).collect();
    let enough = (possible.len() * CANDIDATE_PERCENT / 100).max(FEWEST_CANDIDATES);
    let hopeless = failed.snapshot.nodes.len() - possible.len();
    let mut rejections = vec![Rejection::unresolvable(NOT_HELPFUL); hopeless];
    let mut candidates = Vec::new();
    let budgets = if possible.is_empty() { Vec::new() } else { (failed.budgets)() };
    for at in possible {
        match select_victims(failed, at, &budgets) {
            Ok(candidate) => candidates.push(candidate),
            Err(rejection) => rejections.push(rejection),
        }
        if candidates.len() == enough {
            break;
        }
    }
    (candidates, rejections)
}

fn select_victims(failed: &Failed<'_>, at: usize, budgets: &[Budget]) -> Result<Candidate, Rejection> {
    let node = &failed.snapshot.nodes[at];
    let mut lower: Vec<Arc<PodInfo>> =
        node.pods.iter().filter(|pod| pod.priority < failed.pod.priority).cloned().collect();
    if lower.is_empty() {
        return Err(Rejection::unresolvable(NO_VICTIMS));
    }
    let mut trial = NodeInfo::clone(node);
    lower.iter().for_each(|pod| trial.remove_pod(&pod.uid));
    let before = failed.nominated.get(&node.name).into_iter().flatten();
    for nominated in before.filter(|other| other.priority >= failed.pod.priority && other.uid != failed.pod.uid) {
        trial.add_pod(nominated.clone());
    }
    let fits = |trial: &NodeInfo| fits_with(failed.framework, failed.snapshot, failed.pod, at, trial.clone());
    fits(&trial).map_err(|(_, rejection)| rejection)?;

    lower.sort_by_key(|pod| (Reverse(pod.priority), started(pod)));
    let (violating, others) = split_by_budgets(lower, budgets);
    let mut candidate = Candidate { node: node.name.clone(), victims: Vec::new(), budget_violations: 0 };
    let budget_bound = violating.len();
    for (nth, pod) in violating.into_iter().chain(others).enumerate() {
        trial.add_pod(pod.clone());
        if fits(&trial).is_err() {
            trial.remove_pod(&pod.uid);
            candidate.budget_violations += usize::from(nth < budget_bound);
            candidate.victims.push(pod);
        }
    }
    candidate.victims.sort_by_key(|pod| (Reverse(pod.priority), started(pod)));
    Ok(candidate)
}

/// Those whose deletion would break a budget, and the others; both in the order given.
fn split_by_budgets(pods: Vec<Arc<PodInfo>>, budgets: &[Budget]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: HashMap<usize, i32> = budgets.iter().map(|budget| budget.allowed).enumerate().collect();
    pods.into_iter().partition(|pod| {
        let mut breaks = false;
        for (at, _) in budgets.iter().enumerate().filter(|(_, budget)| budget.covers(pod)) {
            let allowed = left.entry(at).or_default();
            *allowed -= 1;
            breaks |= *allowed < 0;
        }
        breaks
    })
}

/// When the pod was started; one that was not has run shortest.
fn started(pod: &PodInfo) -> Timestamp {
    let status = pod.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    status.map_or(Timestamp::MAX, |time| time.0)
}

/// Less is better, by these in turn: broken budgets, the highest victim, all victims' priorities,
/// their number, and how long the highest ones have run.
fn cost(candidate: &Candidate) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let highest = candidate.victims.first().map_or(i32::MIN, |pod| pod.priority);
    // Shifted to be positive, so that more victims never cost less.
    let sum = candidate.victims.iter().map(|pod| i64::from(pod.priority) - i64::from(i32::MIN)).sum();
    let among_highest = candidate.victims.iter().filter(|pod| pod.priority == highest);
    let earliest = among_highest.map(|pod| started(pod)).min().unwrap_or(Timestamp::MAX);
    (candidate.budget_violations, highest, sum, candidate.victims.len(), Reverse(earliest))
}
