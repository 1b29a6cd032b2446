//! What to do next about a pod that has to end (`kuberuntime_container.go:
//! killContainersWithSyncResult`, `kuberuntime_termination_order.go`). Pure.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Pod;

use super::actions::is_sidecar;
use super::observed::{Observed, Run};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Runs to stop now.
    pub stop: Vec<String>,
    /// Sandboxes to stop now: nothing runs any more.
    pub stop_sandboxes: Vec<String>,
    /// Nothing is left to stop.
    pub done: bool,
}

/// Everything that runs is told to stop at once, so that preStop hooks run side by side; each then
/// waits for its turn ([`before`]). Sandboxes come last.
/// `stopping` holds what is being stopped, `stopped` the sandboxes that were.
pub fn decide(observed: &Observed, stopping: &HashSet<String>, stopped: &HashSet<String>) -> Ending {
    let mut ending = Ending::default();
    if observed.any_running() {
        let running = observed.runs.iter().filter(|run| run.is_running() && !stopping.contains(&run.id));
        ending.stop = running.map(|run| run.id.clone()).collect();
        return ending;
    }
    // Also a sandbox that is not ready is stopped once: its network is given back then.
    let left: Vec<&String> =
        observed.sandboxes.iter().map(|sandbox| &sandbox.id).filter(|id| !stopped.contains(*id)).collect();
    ending.stop_sandboxes = left.iter().filter(|id| !stopping.contains(**id)).map(|id| (*id).clone()).collect();
    ending.done = left.is_empty();
    ending
}

/// The running runs that end before `run` does: for a sidecar, everything but the sidecars that were
/// started before it.
pub fn before(pod: &Pod, observed: &Observed, run: &Run) -> Vec<String> {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars: Vec<&str> = init.filter(|one| is_sidecar(one)).map(|one| one.name.as_str()).collect();
    let place = |name: &str| sidecars.iter().position(|sidecar| *sidecar == name);
    let Some(own) = place(&run.name) else { return Vec::new() };
    let first = observed.runs.iter().filter(|other| other.is_running());
    first.filter(|other| place(&other.name).is_none_or(|place| place > own)).map(|other| other.id.clone()).collect()
}

/// Seconds a pod gets to end: what its deletion says, else what its spec says, at least one.
pub fn grace(pod: &Pod) -> i64 {
    let of_deletion = pod.metadata.deletion_timestamp.as_ref().and(pod.metadata.deletion_grace_period_seconds);
    let of_spec = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    of_deletion.or(of_spec).unwrap_or(30).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::actions::tests_support::{run, sandbox};
    use crate::pod::observed::RunState;
    use serde_json::json;

    #[test]
    fn everything_is_told_at_once_and_the_sandbox_comes_last() {
        let all = |states: [RunState; 2]| {
            let runs = ["s", "a"].iter().zip(states).map(|(name, state)| run(name, "sb", state, 0)).collect();
            Observed::new(vec![sandbox("sb", 0, true)], runs)
        };
        use RunState::{Exited, Running};
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<HashSet<String>>();
        for (observed, stopping, stopped, stop, sandboxes, done) in [
            (all([Running; 2]), set(&[]), set(&[]), set(&["a-0", "s-0"]), vec![], false),
            (all([Running; 2]), set(&["a-0"]), set(&[]), set(&["s-0"]), vec![], false),
            (all([Running, Exited]), set(&["s-0"]), set(&[]), set(&[]), vec![], false),
            (all([Exited; 2]), set(&[]), set(&[]), set(&[]), vec!["sb"], false),
            (all([Exited; 2]), set(&["sb"]), set(&[]), set(&[]), vec![], false),
            (all([Exited; 2]), set(&[]), set(&["sb"]), set(&[]), vec![], true),
            (Observed::default(), set(&[]), set(&[]), set(&[]), vec![], true),
        ] {
            let ending = decide(&observed, &stopping, &stopped);
            let stop_now: HashSet<String> = ending.stop.into_iter().collect();
            assert_eq!(
                (stop_now, ending.stop_sandboxes, ending.done),
                (stop, sandboxes.into_iter().map(str::to_owned).collect(), done)
            );
        }
    }

    #[test]
    fn sidecars_end_after_the_main_containers_the_last_started_first() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "i"}, {"name": "s2", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}]}}))
        .unwrap();
        let runs =
            [("s1", RunState::Running), ("s2", RunState::Running), ("a", RunState::Running), ("b", RunState::Exited)];
        let runs: Vec<Run> = runs.iter().map(|(name, state)| run(name, "sb", *state, 0)).collect();
        let observed = Observed::new(vec![sandbox("sb", 0, true)], runs.clone());
        let order = |at: usize| -> HashSet<String> { before(&pod, &observed, &runs[at]).into_iter().collect() };
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<HashSet<String>>();
        assert_eq!((order(0), order(1), order(2)), (set(&["s2-0", "a-0"]), set(&["a-0"]), set(&[])));
    }

    #[test]
    fn grace_periods() {
        for (meta, spec, seconds) in [
            (json!({}), json!({"containers": []}), 30),
            (json!({}), json!({"containers": [], "terminationGracePeriodSeconds": 5}), 5),
            (
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}),
                json!({"containers": [], "terminationGracePeriodSeconds": 5}),
                1,
            ),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap();
            assert_eq!(grace(&pod), seconds);
        }
    }
}
