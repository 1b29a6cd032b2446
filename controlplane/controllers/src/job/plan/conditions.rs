//! Conditions of a Job's status.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

use crate::meta;

pub fn condition<'a>(status: &'a JobStatus, name: &str) -> Option<&'a JobCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == name)
}

pub fn set(status: &mut JobStatus, name: &str, value: &str, reason: &str, text: &str, now: Timestamp) {
    if condition(status, name).is_some_and(|known| known.status == value && known.reason.as_deref() == Some(reason)) {
        return;
    }
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != name);
    conditions.push(JobCondition {
        type_: name.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(text.to_owned()),
        last_probe_time: meta::stamp(now),
        last_transition_time: meta::stamp(now),
    });
}
