//! Pure: a StatefulSet's next steps and its status.
//!
//! `OrderedReady` takes one step at a time: pod n+1 is made when pod n is available, pods go from
//! the highest number down, an update waits for as many pods as may be missing. `Parallel` takes the
//! steps that make and remove pods at once; updates stay ordered, after the pods that are broken.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::ResourceExt;

use super::identity;
use crate::revisions::HASH_LABEL;
use crate::{meta, podstate};

#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// The revision's name; pods carry it as their hash label.
    pub name: String,
    pub template: PodTemplateSpec,
}

pub struct Versions {
    pub current: Version,
    pub update: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Current,
    Update,
}

impl Versions {
    pub fn names(&self) -> [&str; 2] {
        [&self.current.name, &self.update.name]
    }

    pub fn template(&self, side: Side) -> &Version {
        match side {
            Side::Current => &self.current,
            Side::Update => &self.update,
        }
    }
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Create(i32, Side),
    Delete(Arc<Pod>),
    /// Claims of a pod that waits for them.
    Claims(Arc<Pod>, i32),
    /// Labels that an adopted pod lacks.
    Identify(Arc<Pod>, i32),
    /// Owners of the pod's claims, before it is scaled away or after.
    Scale(Arc<Pod>, i32),
}

pub fn revision_of(pod: &Pod) -> Option<&str> {
    meta::labels(&pod.metadata).get(HASH_LABEL).map(String::as_str)
}

fn is_running_and_ready(pod: &Pod) -> bool {
    podstate::phase(pod) == "Running" && podstate::is_ready(pod)
}

fn is_healthy(pod: &Pod) -> bool {
    is_running_and_ready(pod) && !meta::is_deleting(&pod.metadata)
}

fn partition(set: &StatefulSet) -> Option<i32> {
    let strategy = set.spec.update_strategy.as_ref()?;
    strategy.rolling_update.as_ref()?.partition
}

fn is_on_delete(set: &StatefulSet) -> bool {
    set.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete")
}

/// The version a missing pod is made of: the old one below the partition.
fn side(set: &StatefulSet, ordinal: i32) -> Side {
    let kept = identity::start_ordinal(set) + partition(set).unwrap_or(0);
    if ordinal < kept && !is_on_delete(set) { Side::Current } else { Side::Update }
}

/// Members by number.
fn members(set: &StatefulSet, pods: &[Arc<Pod>]) -> BTreeMap<i32, Arc<Pod>> {
    pods.iter().filter_map(|pod| Some((identity::ordinal(set, &pod.name_any())?, pod.clone()))).collect()
}

pub fn steps(set: &StatefulSet, pods: &[Arc<Pod>], versions: &Versions, now: Timestamp) -> Vec<Action> {
    let ordered = set.spec.pod_management_policy.as_deref() != Some("Parallel");
    let members = members(set, pods);
    let first = identity::start_ordinal(set);
    let wanted = first..first + set.spec.replicas.unwrap_or(1);
    let (mut steps, mut settled) = (Vec::new(), true);
    for ordinal in wanted.clone() {
        if !keep(set, members.get(&ordinal), ordinal, now, &mut steps) {
            settled = false;
            if ordered {
                return steps;
            }
        }
    }
    let seconds = set.spec.min_ready_seconds.unwrap_or(0);
    let is_up = |pod: &Pod| is_running_and_ready(pod) && podstate::is_available(pod, seconds, now);
    let down = members.values().find(|pod| !is_up(pod) || meta::is_deleting(&pod.metadata)).map(|pod| pod.name_any());
    for (ordinal, pod) in members.iter().rev().filter(|(ordinal, _)| !wanted.contains(ordinal)) {
        steps.push(Action::Scale(pod.clone(), *ordinal));
        if meta::is_deleting(&pod.metadata) {
            if ordered {
                return steps;
            }
            continue;
        }
        // a lower pod that is not well waits to mend before this one goes
        if ordered && !is_up(pod) && down.as_ref() != Some(&pod.name_any()) {
            return steps;
        }
        steps.push(Action::Delete(pod.clone()));
        settled = false;
        if ordered {
            return steps;
        }
    }
    if (settled || !ordered) && !is_on_delete(set) {
        steps.extend(roll(set, &members, wanted, versions, now));
    }
    steps
}

/// The steps in two turns: what a pod's claims are told, and what happens to pods.
pub fn in_order(steps: Vec<Action>) -> [Vec<Action>; 2] {
    let (owners, others) = steps.into_iter().partition(|step| matches!(step, Action::Scale(..)));
    [owners, others]
}

/// One wanted pod; returns whether the next one may be looked at.
fn keep(set: &StatefulSet, pod: Option<&Arc<Pod>>, ordinal: i32, now: Timestamp, steps: &mut Vec<Action>) -> bool {
    let Some(pod) = pod else {
        steps.push(Action::Create(ordinal, side(set, ordinal)));
        return false;
    };
    if meta::is_deleting(&pod.metadata) {
        return false;
    }
    match podstate::phase(pod) {
        "Failed" | "Succeeded" => steps.push(Action::Delete(pod.clone())),
        phase => {
            if phase == "Pending" && set.spec.volume_claim_templates.is_some() {
                steps.push(Action::Claims(pod.clone(), ordinal));
            }
            if set.spec.persistent_volume_claim_retention_policy.is_some() {
                steps.push(Action::Scale(pod.clone(), ordinal));
            }
            if !identity::has_identity(set, pod, ordinal) {
                steps.push(Action::Identify(pod.clone(), ordinal));
            }
            return is_running_and_ready(pod)
                && podstate::is_available(pod, set.spec.min_ready_seconds.unwrap_or(0), now);
        }
    }
    false
}

/// Replaces pods of other versions from the highest number down to the partition, as many at once as
/// may be missing. `Parallel` first replaces those that are not available, whatever their number:
/// they cost no further availability, and might never mend.
fn roll(
    set: &StatefulSet,
    members: &BTreeMap<i32, Arc<Pod>>,
    wanted: std::ops::Range<i32>,
    versions: &Versions,
    now: Timestamp,
) -> Vec<Action> {
    let rolling = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let most = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let most = most.map_or(1, |value| meta::scaled(value, set.spec.replicas.unwrap_or(1), true)).max(1);
    let seconds = set.spec.min_ready_seconds.unwrap_or(0);
    let is_up = |pod: &Arc<Pod>| is_healthy(pod) && podstate::is_available(pod, seconds, now);
    let down = wanted.clone().filter(|ordinal| !members.get(ordinal).is_some_and(is_up)).count();
    let room = usize::try_from(most).unwrap_or(1).saturating_sub(down);
    let lowest = wanted.start + partition(set).unwrap_or(0);
    let is_due = |pod: &Arc<Pod>| {
        // those that ended are made again already
        revision_of(pod) != Some(versions.update.name.as_str()) && podstate::is_active(pod)
    };
    let above = members.range(wanted).rev().filter(|(ordinal, _)| **ordinal >= lowest);
    let due = above.map(|(_, pod)| pod).filter(|pod| is_due(pod));
    let (broken, up): (Vec<_>, Vec<_>) = match set.spec.pod_management_policy.as_deref() {
        Some("Parallel") => due.partition(|pod| !is_up(pod)),
        _ => (Vec::new(), due.collect()),
    };
    broken.into_iter().chain(up.into_iter().take(room)).map(|pod| Action::Delete(pod.clone())).collect()
}

pub fn status(set: &StatefulSet, pods: &[Arc<Pod>], versions: &Versions, now: Timestamp) -> StatefulSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| pods.iter().filter(|pod| test(pod)).count() as i32;
    let seconds = set.spec.min_ready_seconds.unwrap_or(0);
    let of = |name: &str| count(&|pod| !meta::is_deleting(&pod.metadata) && revision_of(pod) == Some(name));
    let wanted = set.spec.replicas.unwrap_or(1);
    let replicas = pods.len() as i32;
    let ready = count(&is_running_and_ready);
    let updated = of(&versions.update.name);
    let mut current = (versions.current.name.clone(), of(&versions.current.name));
    if !is_on_delete(set) && updated == wanted && ready == wanted && replicas == wanted {
        current = (versions.update.name.clone(), updated);
    }
    let some = |count: i32| (count != 0).then_some(count);
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: some(ready),
        available_replicas: Some(count(&|pod| is_running_and_ready(pod) && podstate::is_available(pod, seconds, now))),
        current_replicas: some(current.1),
        updated_replicas: some(updated),
        current_revision: Some(current.0),
        update_revision: Some(versions.update.name.clone()),
        collision_count: Some(old.collision_count.unwrap_or(0)),
        conditions: old.conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod, ready};
    use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSetUpdateStrategy};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn set(replicas: i32, policy: &str, partition: i32) -> StatefulSet {
        let mut set = StatefulSet::default();
        set.metadata.name = Some("web".into());
        set.spec.replicas = Some(replicas);
        set.spec.pod_management_policy = Some(policy.into());
        set.spec.update_strategy = Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateStatefulSetStrategy {
                partition: Some(partition),
                max_unavailable: None,
            }),
        });
        set
    }

    fn member(ordinal: i32, revision: &str, is_ready: bool) -> Arc<Pod> {
        let mut pod = pod(&format!("web-{ordinal}"), "n1", if is_ready { "Running" } else { "Pending" });
        let mut labels = identity::labels(&set(1, "", 0), ordinal);
        labels.insert(HASH_LABEL.into(), revision.into());
        pod.metadata.labels = Some(labels);
        Arc::new(if is_ready { ready(pod, 0) } else { pod })
    }

    fn deleting(pod: &Arc<Pod>) -> Arc<Pod> {
        let mut pod = (**pod).clone();
        pod.metadata.deletion_timestamp = Some(Time(at(1)));
        Arc::new(pod)
    }

    fn versions() -> Versions {
        let version = |name: &str| Version { name: name.into(), template: PodTemplateSpec::default() };
        Versions { current: version("old"), update: version("new") }
    }

    fn told(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
        let steps = steps(set, pods, &versions(), at(100)).into_iter();
        let tell = steps.filter_map(|step| match step {
            Action::Create(ordinal, side) => Some(format!("create {ordinal} {side:?}")),
            Action::Delete(pod) => Some(format!("delete {}", pod.name_any())),
            _ => None,
        });
        tell.collect()
    }

    #[test]
    fn ordered_pods_come_one_by_one() {
        let set = set(3, "OrderedReady", 0);
        assert_eq!(told(&set, &[]), ["create 0 Update"]);
        assert!(told(&set, &[member(0, "new", false)]).is_empty());
        assert_eq!(told(&set, &[member(0, "new", true)]), ["create 1 Update"]);
        let gap = [member(0, "new", true), deleting(&member(1, "new", true)), member(2, "new", true)];
        assert!(told(&set, &gap).is_empty(), "it waits for the one being deleted");
    }

    #[test]
    fn parallel_pods_come_and_go_at_once() {
        assert_eq!(told(&set(3, "Parallel", 0), &[]), ["create 0 Update", "create 1 Update", "create 2 Update"]);
        let four: Vec<_> = (0..4).map(|ordinal| member(ordinal, "new", true)).collect();
        assert_eq!(told(&set(2, "Parallel", 0), &four), ["delete web-3", "delete web-2"]);
    }

    #[test]
    fn ordered_scale_down_takes_the_highest_first() {
        let four: Vec<_> = (0..4).map(|ordinal| member(ordinal, "new", true)).collect();
        assert_eq!(told(&set(2, "OrderedReady", 0), &four), ["delete web-3"]);
        let going = [four[0].clone(), four[1].clone(), four[2].clone(), deleting(&four[3])];
        assert!(told(&set(2, "OrderedReady", 0), &going).is_empty());
    }

    #[test]
    fn claims_learn_of_their_owners_before_a_pod_goes() {
        let set = set(1, "Parallel", 0);
        let pods: Vec<_> = (0..3).map(|ordinal| member(ordinal, "new", true)).collect();
        let [owners, others] = in_order(steps(&set, &pods, &versions(), at(100)));
        assert_eq!(owners, [Action::Scale(pods[2].clone(), 2), Action::Scale(pods[1].clone(), 1)]);
        assert_eq!(others, [Action::Delete(pods[2].clone()), Action::Delete(pods[1].clone())]);
    }

    #[test]
    fn a_pod_that_is_not_available_waits_for_a_lower_one_before_it_is_scaled_away() {
        let mut set = set(1, "OrderedReady", 0);
        set.spec.min_ready_seconds = Some(50);
        let since = |ordinal: i32, second: i64| Arc::new(ready((*member(ordinal, "new", false)).clone(), second));
        let running = |pod: Arc<Pod>| {
            let mut pod = (*pod).clone();
            pod.status.get_or_insert_default().phase = Some("Running".into());
            Arc::new(pod)
        };
        let pods = |lower| [running(since(0, 0)), running(since(1, lower)), running(since(2, 90))];
        assert!(told(&set, &pods(80)).is_empty(), "web-1 was ready for less than 50 seconds");
        assert_eq!(told(&set, &pods(0)), ["delete web-2"], "web-2 is the first that is not available");
    }

    #[test]
    fn an_update_goes_down_to_the_partition() {
        let old: Vec<_> = (0..3).map(|ordinal| member(ordinal, "old", true)).collect();
        assert_eq!(told(&set(3, "OrderedReady", 0), &old), ["delete web-2"]);
        let next = [old[0].clone(), old[1].clone(), member(2, "new", true)];
        assert_eq!(told(&set(3, "OrderedReady", 0), &next), ["delete web-1"]);
        assert!(told(&set(3, "OrderedReady", 2), &next).is_empty(), "the partition is reached");
        let missing = [old[0].clone(), old[1].clone()];
        assert_eq!(told(&set(3, "OrderedReady", 3), &missing), ["create 2 Current"]);
        assert_eq!(told(&set(3, "OrderedReady", 2), &missing), ["create 2 Update"]);
    }

    #[test]
    fn as_many_are_updated_at_once_as_may_be_missing() {
        let at_once = |policy, most: i32| {
            let mut set = set(4, policy, 0);
            let rolling = set.spec.update_strategy.get_or_insert_default().rolling_update.get_or_insert_default();
            rolling.max_unavailable = Some(IntOrString::Int(most));
            set
        };
        let pods = |which: [(&str, bool); 4]| -> Vec<_> {
            (0..).zip(which).map(|(ordinal, (revision, ready))| member(ordinal, revision, ready)).collect()
        };
        let all = pods([("old", true); 4]);
        assert_eq!(told(&at_once("OrderedReady", 2), &all), ["delete web-3", "delete web-2"]);
        assert_eq!(told(&at_once("Parallel", 3), &all), ["delete web-3", "delete web-2", "delete web-1"]);
        // a missing pod is an unavailable one
        assert_eq!(told(&at_once("Parallel", 2), &all[..3]), ["create 3 Update", "delete web-2"]);
        // broken ones of the old version go first, beyond the budget
        let broken = pods([("old", false), ("old", true), ("old", false), ("old", true)]);
        assert_eq!(told(&at_once("Parallel", 1), &broken), ["delete web-2", "delete web-0"]);
        assert_eq!(told(&at_once("Parallel", 3), &broken), ["delete web-2", "delete web-0", "delete web-3"]);
        // broken ones of the new version use it up
        let bad = pods([("old", true), ("old", true), ("old", true), ("new", false)]);
        assert!(told(&at_once("Parallel", 1), &bad).is_empty());
        // ready at second 0, so not available at 100
        let mut slow = at_once("Parallel", 1);
        slow.spec.min_ready_seconds = Some(200);
        let young = pods([("old", true), ("old", true), ("old", true), ("new", true)]);
        assert_eq!(told(&slow, &young), ["delete web-2", "delete web-1", "delete web-0"]);
    }

    #[test]
    fn an_updated_pod_is_not_made_of_the_old_version_while_the_status_lags() {
        let mut set = set(3, "OrderedReady", 0);
        set.status = Some(StatefulSetStatus { current_replicas: Some(3), ..Default::default() });
        assert_eq!(told(&set, &[member(0, "old", true), member(1, "old", true)]), ["create 2 Update"]);
    }

    #[test]
    fn failed_pods_are_made_again() {
        let failed = Arc::new(pod("web-0", "n1", "Failed"));
        let steps = steps(&set(1, "OrderedReady", 0), std::slice::from_ref(&failed), &versions(), at(1));
        assert_eq!(steps, [Action::Delete(failed)]);
    }

    #[test]
    fn the_new_revision_becomes_current_when_all_have_it() {
        let half = [member(0, "old", true), member(1, "new", true)];
        let status_half = status(&set(2, "OrderedReady", 0), &half, &versions(), at(1));
        assert_eq!((status_half.current_revision.as_deref(), status_half.updated_replicas), (Some("old"), Some(1)));
        let all = [member(0, "new", true), member(1, "new", true)];
        let status_all = status(&set(2, "OrderedReady", 0), &all, &versions(), at(1));
        assert_eq!((status_all.current_revision.as_deref(), status_all.current_replicas), (Some("new"), Some(2)));
    }
}
