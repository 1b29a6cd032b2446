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

/// Main containers first, all at once; then sidecars, the last started first; then sandboxes.
/// `stopping` holds what is being stopped, `stopped` the sandboxes that were.
pub fn decide(pod: &Pod, observed: &Observed, stopping: &HashSet<String>, stopped: &HashSet<String>) -> Ending {
    let mut ending = Ending::default();
    let sidecars: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .filter(|container| is_sidecar(container))
        .map(|container| container.name.as_str())
        .collect();
    let running: Vec<&Run> = observed.runs.iter().filter(|run| run.is_running()).collect();
    let plain: Vec<&&Run> = running.iter().filter(|run| !sidecars.contains(&run.name.as_str())).collect();
    if !plain.is_empty() {
        ending.stop = plain.iter().filter(|run| !stopping.contains(&run.id)).map(|run| run.id.clone()).collect();
        return ending;
    }
    let last_sidecar = sidecars.iter().rev().find_map(|name| running.iter().find(|run| run.name == *name));
    if let Some(run) = last_sidecar {
        if !stopping.contains(&run.id) {
            ending.stop.push(run.id.clone());
        }
        return ending;
    }
    // Also a sandbox that is not ready is stopped once: its network is given back then.
    let left: Vec<&String> =
        observed.sandboxes.iter().map(|sandbox| &sandbox.id).filter(|id| !stopped.contains(*id)).collect();
    ending.stop_sandboxes = left.iter().filter(|id| !stopping.contains(**id)).map(|id| (*id).clone()).collect();
    ending.done = left.is_empty();
    ending
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
    fn main_containers_then_sidecars_backwards_then_the_sandbox() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}]}}))
        .unwrap();
        let all = |states: [RunState; 4]| {
            let names = ["s1", "s2", "a", "b"];
            let runs = names.iter().zip(states).map(|(name, state)| run(name, "sb", state, 0)).collect();
            Observed::new(vec![sandbox("sb", 0, true)], runs)
        };
        use RunState::{Exited, Running};
        let none = HashSet::new();
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<HashSet<String>>();
        for (observed, stopping, stopped, stop, sandboxes, done) in [
            (all([Running; 4]), none.clone(), none.clone(), vec!["a-0", "b-0"], vec![], false),
            (all([Running; 4]), set(&["a-0"]), none.clone(), vec!["b-0"], vec![], false),
            (all([Running, Running, Exited, Exited]), none.clone(), none.clone(), vec!["s2-0"], vec![], false),
            (all([Running, Running, Exited, Exited]), set(&["s2-0"]), none.clone(), vec![], vec![], false),
            (all([Running, Exited, Exited, Exited]), none.clone(), none.clone(), vec!["s1-0"], vec![], false),
            (all([Exited; 4]), none.clone(), none.clone(), vec![], vec!["sb"], false),
            (all([Exited; 4]), set(&["sb"]), none.clone(), vec![], vec![], false),
            (all([Exited; 4]), none.clone(), set(&["sb"]), vec![], vec![], true),
            (Observed::default(), none.clone(), none.clone(), vec![], vec![], true),
        ] {
            let mut ending = decide(&pod, &observed, &stopping, &stopped);
            ending.stop.sort();
            assert_eq!(
                (ending.stop, ending.stop_sandboxes, ending.done),
                (
                    stop.into_iter().map(str::to_owned).collect(),
                    sandboxes.into_iter().map(str::to_owned).collect(),
                    done
                )
            );
        }
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
