//! Pure: how many pods to create, which to delete, and the status to report.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::Replicated;
use crate::error::message;
use crate::{meta, podstate};

/// At most so many pods are created or deleted in one run.
const BURST: usize = 500;

#[derive(Debug, PartialEq)]
pub enum Action {
    None,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// Why pods could not be made or removed; becomes the `ReplicaFailure` condition.
pub struct Failure {
    pub doing: &'static str,
    pub reason: &'static str,
    pub error: kube::Error,
}

pub fn pods(
    replicas: i32,
    active: &[Arc<Pod>],
    crowding: impl FnOnce() -> HashMap<String, usize>,
    now: Timestamp,
) -> Action {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    if active.len() < wanted {
        return Action::Create((wanted - active.len()).min(BURST));
    }
    let surplus = (active.len() - wanted).min(BURST);
    if surplus == 0 {
        return Action::None;
    }
    let mut victims = active.to_vec();
    if wanted > 0 {
        let crowding = crowding();
        victims.sort_by(|a, b| podstate::deletion_order(a, b, &crowding, now));
    }
    victims.truncate(surplus);
    Action::Delete(victims)
}

pub fn status<K: Replicated>(
    object: &K,
    pods: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let old = object.status();
    let active = || pods.iter().filter(|pod| podstate::is_active(pod));
    let count = |matches: &dyn Fn(&Pod) -> bool| active().filter(|pod| matches(pod)).count() as i32;
    let template_labels = object.template().and_then(|t| t.metadata.as_ref()).map(meta::labels);
    let labelled = |pod: &Pod| {
        let labels = meta::labels(&pod.metadata);
        template_labels.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
    };
    let terminating = pods.iter().filter(|pod| meta::is_deleting(&pod.metadata) && !podstate::is_finished(pod)).count();
    let terminating_replicas = (K::CONTROLLER == "replicaset-controller").then_some(terminating as i32);
    ReplicaSetStatus {
        replicas: active().count() as i32,
        fully_labeled_replicas: nonzero(count(&labelled)),
        ready_replicas: nonzero(count(&podstate::is_ready)),
        available_replicas: nonzero(count(&|pod| podstate::is_available(pod, object.min_ready_seconds(), now))),
        terminating_replicas,
        observed_generation: object.meta().generation,
        conditions: conditions(old.conditions, failure, now),
    }
}

/// Zero counts are left out on the wire.
fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

fn conditions(
    old: Option<Vec<ReplicaSetCondition>>,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.unwrap_or_default();
    let position = conditions.iter().position(|condition| condition.type_.as_deref() == Some("ReplicaFailure"));
    match (failure, position) {
        (Some(failure), None) => conditions.push(ReplicaSetCondition {
            type_: Some("ReplicaFailure".to_owned()),
            status: Some("True".to_owned()),
            reason: Some(failure.reason.to_owned()),
            message: Some(message(&failure.error)),
            last_transition_time: meta::stamp(now),
        }),
        (None, Some(position)) => drop(conditions.remove(position)),
        _ => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod, ready};
    use k8s_openapi::api::apps::v1::ReplicaSet;

    fn running(count: usize) -> Vec<Arc<Pod>> {
        (0..count).map(|i| Arc::new(ready(pod(&format!("p{i}"), "n1", "Running"), 0))).collect()
    }

    #[test]
    fn creates_and_deletes_the_difference() {
        let plan = |wanted, have| pods(wanted, &running(have), HashMap::new, at(100));
        assert_eq!(plan(3, 3), Action::None);
        assert_eq!(plan(3, 1), Action::Create(2));
        assert_eq!(plan(2000, 0), Action::Create(BURST));
        for (wanted, have, victims) in [(1, 3, 2), (0, 4, 4), (-1, 1, 1)] {
            let Action::Delete(pods) = plan(wanted, have) else { panic!("{wanted} of {have} deletes") };
            assert_eq!(pods.len(), victims);
        }
    }

    #[test]
    fn an_unready_pod_goes_before_a_ready_one() {
        let mut have = running(2);
        have.push(Arc::new(pod("sick", "n1", "Running")));
        let Action::Delete(victims) = pods(2, &have, HashMap::new, at(100)) else { panic!("one too many") };
        assert_eq!(victims[0].metadata.name.as_deref(), Some("sick"));
    }

    #[test]
    fn status_counts_and_failure_comes_and_goes() {
        let mut set = ReplicaSet::default();
        set.metadata.generation = Some(4);
        set.spec.min_ready_seconds = Some(10);
        let pods = [
            Arc::new(ready(pod("old", "n1", "Running"), 0)),
            Arc::new(ready(pod("new", "n1", "Running"), 95)),
            Arc::new(pod("pending", "", "Pending")),
            Arc::new(pod("done", "n1", "Succeeded")),
        ];
        let status_now = status(&set, &pods, None, at(100));
        assert_eq!(status_now.replicas, 3);
        assert_eq!(status_now.ready_replicas, Some(2));
        assert_eq!(status_now.available_replicas, Some(1));
        assert_eq!(status_now.observed_generation, Some(4));

        let error = kube::Error::Api(kube::core::Status::failure("exceeded quota", "Forbidden").with_code(403).boxed());
        let failure = Failure { doing: "creating", reason: "FailedCreate", error };
        set.status = Some(status(&set, &pods, Some(&failure), at(100)));
        let condition = &set.status().conditions.unwrap_or_default()[0];
        assert_eq!(
            (condition.reason.as_deref(), condition.message.as_deref()),
            (Some("FailedCreate"), Some("exceeded quota"))
        );
        assert_eq!(status(&set, &pods, None, at(101)).conditions, None);
    }
}
