//! What a pod's status says to its controllers: active, ready, available; and which pod to delete
//! first (`k8s.io/kubernetes/pkg/controller`, `ActivePodsWithRanks`).

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use crate::meta;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !meta::is_deleting(&pod.metadata)
}

pub fn condition<'a>(pod: &'a Pod, name: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == name)
}

fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, "Ready").filter(|condition| condition.status == "True")
}

pub fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some()
}

/// Since when the pod is ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    ready_condition(pod)?.last_transition_time.as_ref().map(|time| time.0)
}

/// Ready for at least `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    if !is_ready(pod) {
        return false;
    }
    min_ready_seconds == 0
        || ready_since(pod).is_some_and(|since| meta::after(since, i64::from(min_ready_seconds)) <= now)
}

/// When the first ready pod that is not available yet becomes so.
pub fn next_available<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Option<Timestamp> {
    if min_ready_seconds == 0 {
        return None;
    }
    let moments = pods.into_iter().filter_map(|pod| ready_since(pod));
    moments.map(|since| meta::after(since, i64::from(min_ready_seconds))).filter(|moment| *moment > now).min()
}

pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

fn phase_order(pod: &Pod) -> u8 {
    match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    meta::annotation(&pod.metadata, DELETION_COST).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Ages count by magnitude, so that near-equal ages do not always pick the same victim.
fn age_rank(since: Timestamp, now: Timestamp) -> i64 {
    let seconds = meta::elapsed(since, now);
    if seconds < 1.0 { 0 } else { seconds.log2() as i64 + 1 }
}

/// `Less` means `a` is deleted before `b`. `crowding` counts related active pods per node.
pub fn deletion_order(a: &Pod, b: &Pod, crowding: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    let crowd = |pod: &Pod| crowding.get(node_name(pod)).copied().unwrap_or(0);
    let assigned = |pod: &Pod| !node_name(pod).is_empty();
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_order(a).cmp(&phase_order(b)))
        .then_with(|| is_ready(a).cmp(&is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| younger_first(ready_since(a), ready_since(b), now))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| younger_first(Some(meta::created(&a.metadata)), Some(meta::created(&b.metadata)), now))
        .then_with(|| meta::uid(&a.metadata).cmp(meta::uid(&b.metadata)))
}

fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let rank = |since: Option<Timestamp>| since.map_or(-1, |since| age_rank(since, now));
    rank(a).cmp(&rank(b))
}

#[cfg(test)]
pub mod testing {
    //! Pods for the tables of other modules' tests.
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    pub fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a small number is a timestamp")
    }

    pub fn pod(name: &str, node: &str, phase: &str) -> Pod {
        let mut pod = Pod {
            spec: Some(PodSpec { node_name: (!node.is_empty()).then(|| node.to_owned()), ..Default::default() }),
            status: Some(PodStatus { phase: Some(phase.into()), ..Default::default() }),
            ..Default::default()
        };
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("default".into());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod.metadata.creation_timestamp = Some(Time(at(0)));
        pod
    }

    pub fn ready(mut pod: Pod, since: i64) -> Pod {
        let condition = PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(since))),
            ..Default::default()
        };
        pod.status.get_or_insert_default().conditions = Some(vec![condition]);
        pod
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;

    #[test]
    fn deletion_takes_the_least_useful_first() {
        let mut cheap = ready(pod("cheap", "n1", "Running"), 10);
        cheap.metadata.annotations = Some([(DELETION_COST.to_owned(), "-5".to_owned())].into());
        let mut pods = [
            ready(pod("old", "n1", "Running"), 0),
            ready(pod("crowded", "n2", "Running"), 0),
            ready(pod("young", "n1", "Running"), 990),
            cheap,
            pod("not-ready", "n1", "Running"),
            pod("pending", "n1", "Pending"),
            pod("unassigned", "", "Pending"),
        ];
        let crowding = HashMap::from([("n2".to_owned(), 3), ("n1".to_owned(), 1)]);
        pods.sort_by(|a, b| deletion_order(a, b, &crowding, at(1000)));
        let order: Vec<_> = pods.iter().map(|pod| pod.metadata.name.clone().unwrap_or_default()).collect();
        assert_eq!(order, ["unassigned", "pending", "not-ready", "cheap", "crowded", "young", "old"]);
    }

    #[test]
    fn available_after_min_ready_seconds() {
        let pod = Arc::new(ready(pod("a", "n1", "Running"), 100));
        assert!(is_available(&pod, 0, at(100)));
        assert!(!is_available(&pod, 10, at(109)));
        assert!(is_available(&pod, 10, at(110)));
        assert_eq!(next_available([&pod], 10, at(105)), Some(at(110)));
        assert_eq!(next_available([&pod], 10, at(110)), None);
    }
}
