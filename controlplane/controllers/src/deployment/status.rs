//! Pure: a Deployment's status, its conditions, and the progress deadline.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetStatus};
use kube::ResourceExt;

use super::scale;
use crate::meta;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// Of the condition and of the event.
pub const FAILED_CREATE: &str = "ReplicaSetCreateError";
const PAUSED: &str = "DeploymentPaused";

type Conditions = Vec<DeploymentCondition>;

fn find<'a>(conditions: Option<&'a Conditions>, name: &str) -> Option<&'a DeploymentCondition> {
    conditions?.iter().find(|condition| condition.type_.as_deref() == Some(name))
}

fn current<'a>(deployment: &'a Deployment, name: &str) -> Option<&'a DeploymentCondition> {
    find(deployment.status.as_ref()?.conditions.as_ref(), name)
}

fn condition(name: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(name.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: meta::stamp(now),
        last_transition_time: meta::stamp(now),
    }
}

/// Replaces the condition unless status and reason are the same; keeps the transition time while
/// the status is.
fn set(conditions: &mut Conditions, mut next: DeploymentCondition) {
    if let Some(before) = conditions.iter().find(|condition| condition.type_ == next.type_) {
        if before.status == next.status && before.reason == next.reason {
            return;
        }
        if before.status == next.status {
            next.last_transition_time = before.last_transition_time.clone();
        }
    }
    remove(conditions, next.type_.as_deref().unwrap_or_default());
    conditions.push(next);
}

fn remove(conditions: &mut Conditions, name: &str) {
    conditions.retain(|condition| condition.type_.as_deref() != Some(name));
}

fn note(deployment: &mut Deployment, next: DeploymentCondition) {
    set(deployment.status.get_or_insert_default().conditions.get_or_insert_default(), next);
}

fn deadline_seconds(deployment: &Deployment) -> Option<i32> {
    deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)
}

fn reason(condition: Option<&DeploymentCondition>) -> Option<&str> {
    condition?.reason.as_deref()
}

/// Says when a Deployment is paused and when it resumes; the deadline does not run meanwhile.
pub fn note_pause(deployment: &mut Deployment, now: Timestamp) {
    let progressing = reason(current(deployment, PROGRESSING));
    if deadline_seconds(deployment).is_none() || progressing == Some(TIMED_OUT) {
        return;
    }
    let paused = deployment.spec.paused == Some(true);
    let next = match (paused, progressing == Some(PAUSED)) {
        (true, false) => condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused".into(), now),
        (false, true) => condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into(), now),
        _ => return,
    };
    note(deployment, next);
}

pub fn note_created(deployment: &mut Deployment, set: &str, now: Timestamp) {
    if deadline_seconds(deployment).is_some() {
        let text = format!("Created new replica set \"{set}\"");
        note(deployment, condition(PROGRESSING, "True", "NewReplicaSetCreated", text, now));
    }
}

/// An existing set fits the template: progress is counted from now.
pub fn note_found(deployment: &mut Deployment, set: &str, now: Timestamp) {
    if deadline_seconds(deployment).is_some() && current(deployment, PROGRESSING).is_none() {
        let text = format!("Found new replica set \"{set}\"");
        note(deployment, condition(PROGRESSING, "True", "FoundNewReplicaSet", text, now));
    }
}

pub fn note_failed_create(deployment: &mut Deployment, message: &str, now: Timestamp) {
    note(deployment, condition(PROGRESSING, "False", FAILED_CREATE, message.to_owned(), now));
}

/// Counts, with the conditions of before.
pub fn calculate(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |of: &dyn Fn(&ReplicaSetStatus) -> i32| -> i32 {
        all.iter().filter_map(|set| set.status.as_ref()).map(of).sum()
    };
    let some = |count: i32| (count != 0).then_some(count);
    let available = sum(&|status| status.available_replicas.unwrap_or(0));
    let wanted: i32 = all.iter().map(|set| scale::size(set)).sum();
    let updated = new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(&|status| status.replicas)),
        updated_replicas: some(updated),
        ready_replicas: some(sum(&|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some((wanted - available).max(0)),
        terminating_replicas: Some(sum(&|status| status.terminating_replicas.unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: None,
    };
    status.conditions = with_availability(old.conditions, deployment, &status, now);
    status
}

pub fn with_availability(
    conditions: Option<Conditions>,
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Conditions> {
    let mut conditions = conditions.unwrap_or_default();
    let least = scale::replicas(deployment) - scale::max_unavailable(deployment);
    let next = if status.available_replicas.unwrap_or(0) >= least {
        let text = "Deployment has minimum availability.".to_owned();
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", text, now)
    } else {
        let text = "Deployment does not have minimum availability.".to_owned();
        condition(AVAILABLE, "False", "MinimumReplicasUnavailable", text, now)
    };
    set(&mut conditions, next);
    Some(conditions)
}

pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = scale::replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn is_progressing(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let old_pods = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    after.updated_replicas > before.updated_replicas
        || old_pods(after) < old_pods(before)
        || after.ready_replicas > before.ready_replicas
        || after.available_replicas > before.available_replicas
}

fn deadline_of(deployment: &Deployment, progressing: &DeploymentCondition) -> Option<Timestamp> {
    let since = progressing.last_update_time.as_ref()?;
    Some(meta::after(since.0, i64::from(deadline_seconds(deployment)?)))
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let progressing = find(status.conditions.as_ref(), PROGRESSING);
    match reason(progressing) {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => progressing.and_then(|condition| deadline_of(deployment, condition)).is_some_and(|moment| moment < now),
    }
}

/// The whole status of a rollout under way or complete.
pub fn rollout(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = calculate(deployment, new, all, now);
    let mut conditions = status.conditions.clone().unwrap_or_default();
    if deadline_seconds(deployment).is_none() {
        remove(&mut conditions, PROGRESSING);
    }
    let before = deployment.status.clone().unwrap_or_default();
    let progressing = current(deployment, PROGRESSING);
    let was_complete = status.replicas == status.updated_replicas && reason(progressing) == Some(NEW_SET_AVAILABLE);
    if deadline_seconds(deployment).is_some() && !was_complete {
        let subject = match new {
            Some(set) => format!("ReplicaSet \"{}\"", set.name_any()),
            None => format!("Deployment \"{}\"", deployment.name_any()),
        };
        if is_complete(deployment, &status) {
            let text = format!("{subject} has successfully progressed.");
            set(&mut conditions, condition(PROGRESSING, "True", NEW_SET_AVAILABLE, text, now));
        } else if is_progressing(&before, &status) {
            let text = format!("{subject} is progressing.");
            let mut next = condition(PROGRESSING, "True", "ReplicaSetUpdated", text, now);
            if let Some(known) = progressing.filter(|condition| condition.status.as_deref() == Some("True")) {
                next.last_transition_time = known.last_transition_time.clone();
            }
            // replaced even when equal: its update time is what the deadline counts from
            remove(&mut conditions, PROGRESSING);
            conditions.push(next);
        } else if has_timed_out(deployment, &status, now) {
            let text = format!("{subject} has timed out progressing.");
            set(&mut conditions, condition(PROGRESSING, "False", TIMED_OUT, text, now));
        }
    }
    match replica_failure(new, all) {
        Some(failure) => set(&mut conditions, failure),
        None => remove(&mut conditions, REPLICA_FAILURE),
    }
    status.conditions = Some(conditions);
    status
}

fn replica_failure(new: Option<&ReplicaSet>, all: &[&ReplicaSet]) -> Option<DeploymentCondition> {
    let conditions = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.conditions.clone());
    let failures = new.into_iter().chain(all.iter().copied()).filter_map(conditions).flatten();
    let failure = failures.into_iter().find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE))?;
    Some(DeploymentCondition {
        type_: failure.type_,
        status: failure.status,
        reason: failure.reason,
        message: failure.message,
        last_update_time: failure.last_transition_time.clone(),
        last_transition_time: failure.last_transition_time,
    })
}

/// When to look again at a rollout that may be stuck.
pub fn deadline(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Timestamp> {
    let progressing = find(status.conditions.as_ref(), PROGRESSING)?;
    if is_complete(deployment, status) || matches!(reason(Some(progressing)), Some(TIMED_OUT | PAUSED)) {
        return None;
    }
    let moment = meta::after(deadline_of(deployment, progressing)?, 1);
    Some(moment.max(meta::after(now, 1)))
}

#[cfg(test)]
mod tests {
    use super::super::revision::testing::{deployment, set as replica_set};
    use super::*;
    use crate::podstate::testing::at;

    fn outcome(deployment: &Deployment, new: &ReplicaSet, now: i64) -> DeploymentStatus {
        rollout(deployment, Some(new), &[new], at(now))
    }

    fn progress(status: &DeploymentStatus) -> (String, String) {
        let found = find(status.conditions.as_ref(), PROGRESSING).cloned().unwrap_or_default();
        (found.status.unwrap_or_default(), found.reason.unwrap_or_default())
    }

    #[test]
    fn a_rollout_progresses_completes_and_stays_complete() {
        let mut web = deployment(2, 1, 0);
        web.spec.progress_deadline_seconds = Some(600);
        note_created(&mut web, "web-1", at(0));
        let first = outcome(&web, &replica_set("web-1", 1, 2, 0), 1);
        assert_eq!(progress(&first), ("True".into(), "ReplicaSetUpdated".into()));
        assert_eq!(first.unavailable_replicas, Some(2));
        web.status = Some(first);
        let complete = outcome(&web, &replica_set("web-1", 1, 2, 2), 5);
        assert_eq!(progress(&complete), ("True".into(), NEW_SET_AVAILABLE.into()));
        let available = find(complete.conditions.as_ref(), AVAILABLE).cloned().unwrap_or_default();
        assert_eq!(available.reason.as_deref(), Some("MinimumReplicasAvailable"));
        web.status = Some(complete.clone());
        assert_eq!(outcome(&web, &replica_set("web-1", 1, 2, 2), 900), complete, "no write without a change");
    }

    #[test]
    fn a_stuck_rollout_times_out_once() {
        let mut web = deployment(1, 1, 0);
        web.spec.progress_deadline_seconds = Some(10);
        note_created(&mut web, "web-1", at(0));
        let stuck = replica_set("web-1", 1, 1, 0);
        web.status = Some(outcome(&web, &stuck, 1));
        assert_eq!(deadline(&web, web.status.as_ref().expect("set above"), at(1)), Some(at(12)));
        let late = outcome(&web, &stuck, 12);
        assert_eq!(progress(&late), ("False".into(), TIMED_OUT.into()));
        assert_eq!(deadline(&web, &late, at(12)), None);
    }

    #[test]
    fn a_replica_set_that_is_refused_is_told_by_kubernetes_reason() {
        let mut web = deployment(1, 1, 0);
        web.spec.progress_deadline_seconds = Some(10);
        note_failed_create(&mut web, "quota", at(1));
        let condition = current(&web, PROGRESSING).cloned().unwrap_or_default();
        let told = (condition.status.as_deref(), condition.reason.as_deref(), condition.message.as_deref());
        assert_eq!(told, (Some("False"), Some("ReplicaSetCreateError"), Some("quota")));
    }

    #[test]
    fn pausing_and_resuming_are_said() {
        let mut web = deployment(1, 1, 0);
        web.spec.progress_deadline_seconds = Some(10);
        web.spec.paused = Some(true);
        note_pause(&mut web, at(1));
        assert_eq!(reason(current(&web, PROGRESSING)), Some(PAUSED));
        web.spec.paused = None;
        note_pause(&mut web, at(2));
        assert_eq!(reason(current(&web, PROGRESSING)), Some("DeploymentResumed"));
    }
}
