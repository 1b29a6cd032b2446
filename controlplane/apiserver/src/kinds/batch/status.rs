//! Validation of a Job's status. A rule is asked only when what it is about changes, so that a Job
//! which an older controller wrote stays writable.

use api::field::{Error, ErrorList};
use jiff::Timestamp;
use serde_json::Value;

use super::policies::parse_indexes;
use crate::kinds::check::{Node, Seen};
use crate::kinds::value::{flag, has, int, list, opt_int, same_at, text, texts};

/// A Job with its status, before or after.
struct Job<'a>(&'a Value);

impl Job<'_> {
    fn is(&self, condition: &str) -> bool {
        let found = |c: &Value| text(c, "type") == condition && text(c, "status") == "True";
        list(self.0, "status.conditions").iter().any(found)
    }

    fn is_finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }

    fn time(&self, field: &str) -> Option<Timestamp> {
        text(self.0, &format!("status.{field}")).parse().ok()
    }
}

pub fn validate(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(new).child("status");
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        status.child(field).non_negative(&mut errors);
    }
    uncounted(&status, &mut errors);
    conditions(&Job(new), &Job(old), &status, &mut errors);
    times(&Job(new), &Job(old), &status, &mut errors);
    counters(&Job(new), &Job(old), &status, &mut errors);
    indexes(new, old, &status, &mut errors);
    errors
}

fn uncounted(status: &Node<'_>, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for field in ["uncountedTerminatedPods.succeeded", "uncountedTerminatedPods.failed"] {
        for uid in status.items(field) {
            if uid.text().is_empty() {
                uid.invalid(errors, "must not be empty");
            } else if !seen.insert(uid.text()) {
                uid.duplicate(errors);
            }
        }
    }
}

/// Pairs that exclude each other.
const EXCLUSIVE: [(&str, &str, &str); 4] = [
    ("Complete", "Failed", "cannot set Complete=True and Failed=true conditions"),
    ("Complete", "FailureTarget", "cannot set Complete=True and FailureTarget=true conditions"),
    ("SuccessCriteriaMet", "Failed", "cannot set SuccessCriteriaMet=True and Failed=true conditions"),
    ("SuccessCriteriaMet", "FailureTarget", "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"),
];
/// The end, and the condition that announces it.
const ANNOUNCED: [(&str, &str, &str); 2] = [
    ("Failed", "FailureTarget", "cannot set Failed=True condition without the FailureTarget=true condition"),
    (
        "Complete",
        "SuccessCriteriaMet",
        "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
    ),
];

fn conditions(new: &Job<'_>, old: &Job<'_>, status: &Node<'_>, errors: &mut ErrorList) {
    let mut refuse = |detail: &str| errors.push(Error::invalid_unshown(&status.child("conditions").path, detail));
    let changed = |condition: &str| new.is(condition) != old.is(condition);
    for (one, other, detail) in EXCLUSIVE {
        if new.is(one) && new.is(other) && (changed(one) || changed(other)) {
            refuse(detail);
        }
    }
    for (end, before, detail) in ANNOUNCED {
        if new.is(end) && !new.is(before) && (changed(end) || changed(before)) {
            refuse(detail);
        }
    }
    for terminal in ["Failed", "Complete", "FailureTarget"] {
        if old.is(terminal) && !new.is(terminal) {
            refuse(&format!("cannot disable the terminal {terminal}=True condition"));
        }
    }
    if old.is("SuccessCriteriaMet") && !new.is("SuccessCriteriaMet") {
        refuse("cannot disable the SuccessCriteriaMet=True condition");
    }
}

fn times(new: &Job<'_>, old: &Job<'_>, status: &Node<'_>, errors: &mut ErrorList) {
    let (started, completed) = (status.child("startTime"), status.child("completionTime"));
    let same = |field: &str| same_at(new.0, old.0, field);
    let ends = new.is("Complete") != old.is("Complete") || !same("status.completionTime");
    if ends && completed.exists() && !new.is("Complete") {
        completed.invalid(errors, "cannot set completionTime when there is no Complete=True condition");
    }
    if ends && !completed.exists() && new.is("Complete") {
        completed.missing(errors, "completionTime is required for Complete jobs");
    }
    if (ends || !same("status.startTime"))
        && let (Some(start), Some(end)) = (new.time("startTime"), new.time("completionTime"))
        && end < start
    {
        completed.invalid(errors, "completionTime cannot be set before startTime");
    }
    if completed.exists() && has(old.0, "status.completionTime") && !same("status.completionTime") {
        completed.invalid(errors, "completionTime cannot be mutated");
    }
    if new.is_finished() && !started.exists() && (!old.is_finished() || !same("status.startTime")) {
        started.missing(errors, "startTime is required for finished job");
    }
    if has(old.0, "status.startTime") && !same("status.startTime") && !flag(new.0, "spec.suspend") {
        started.missing(errors, "startTime cannot be removed for unsuspended job");
    }
}

fn counters(new: &Job<'_>, old: &Job<'_>, status: &Node<'_>, errors: &mut ErrorList) {
    let finishes = new.is_finished() && !old.is_finished();
    for field in ["active", "terminating"] {
        if finishes && status.child(field).int() > 0 {
            status.child(field).invalid(errors, format!("{field}>0 is invalid for finished job"));
        }
    }
    let waiting = status.child("uncountedTerminatedPods");
    if finishes && ["succeeded", "failed"].iter().any(|field| !texts(waiting.value, field).is_empty()) {
        waiting.invalid(errors, "uncountedTerminatedPods needs to be empty for finished job");
    }
    let ready = status.child("ready");
    if !same_at(new.0, old.0, "status.ready") && ready.int() > status.child("active").int() {
        ready.invalid(errors, "cannot set more ready pods than active");
    }
    // An indexed Job may be scaled down, and then counts anew.
    let elastic = text(new.0, "spec.completionMode") == "Indexed" && same_numbers(new.0);
    for (field, may_fall) in [("failed", false), ("succeeded", elastic)] {
        if !may_fall && status.child(field).int() < int(old.0, &format!("status.{field}")) {
            status.child(field).invalid(errors, format!("cannot decrease the {field} counter"));
        }
    }
}

fn same_numbers(job: &Value) -> bool {
    opt_int(job, "spec.completions") == opt_int(job, "spec.parallelism")
}

fn indexes(new: &Value, old: &Value, status: &Node<'_>, errors: &mut ErrorList) {
    let completions = opt_int(new, "spec.completions");
    let (completed, failed) = (status.child("completedIndexes"), status.child("failedIndexes"));
    let parse = |set: &Node<'_>, name: &str, errors: &mut ErrorList| {
        let parsed = parse_indexes(set.text(), completions.unwrap_or(i64::MAX));
        parsed.map_err(|why| set.invalid(errors, format!("error parsing {name}: {why}"))).ok()
    };
    let (completed_changed, failed_changed) =
        (!same_at(new, old, "status.completedIndexes"), !same_at(new, old, "status.failedIndexes"));
    if completed_changed && !completed.text().is_empty() && text(new, "spec.completionMode") != "Indexed" {
        completed.invalid(errors, "cannot set non-empty completedIndexes when non-indexed completion mode");
    }
    if failed_changed && failed.exists() && !has(new, "spec.backoffLimitPerIndex") {
        failed.invalid(errors, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    if !completed_changed && !failed_changed {
        return;
    }
    let (done, lost) = (parse(&completed, "completedIndexes", errors), parse(&failed, "failedIndexes", errors));
    let overlap = done.iter().flatten().any(|d| lost.iter().flatten().any(|l| d.0 <= l.1 && l.0 <= d.1));
    if overlap {
        failed.invalid(errors, "failedIndexes and completedIndexes overlap");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn statuses_refused() {
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        let running = json!({"spec": {"completions": 3, "parallelism": 1}, "status": {"startTime": "2026-01-01T00:00:00Z", "active": 1, "failed": 2}});
        let with = |status: Value| {
            let mut job = running.clone();
            for (key, value) in status.as_object().unwrap() {
                job["status"][key] = value.clone();
            }
            job
        };
        for (status, expected) in [
            (json!({"active": 2}), "[]"),
            (
                json!({"active": 0, "conditions": [condition("SuccessCriteriaMet"), condition("Complete")], "completionTime": "2026-01-01T00:01:00Z"}),
                "[]",
            ),
            (json!({"active": -1}), "status.active: Invalid value: -1: must be greater than or equal to 0"),
            (json!({"failed": 1}), "status.failed: Invalid value: 1: cannot decrease the failed counter"),
            (
                json!({"conditions": [condition("FailureTarget"), condition("Failed")]}),
                "status.active: Invalid value: 1: active>0 is invalid for finished job",
            ),
            (
                json!({"active": 0, "conditions": [condition("Failed")]}),
                "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
            ),
            (
                json!({"active": 0, "conditions": [condition("SuccessCriteriaMet"), condition("Complete")]}),
                "status.completionTime: Required value: completionTime is required for Complete jobs",
            ),
            (
                json!({"startTime": null}),
                "status.startTime: Required value: startTime cannot be removed for unsuspended job",
            ),
            (
                json!({"completedIndexes": "0"}),
                "status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when non-indexed completion mode",
            ),
        ] {
            assert_eq!(join(&validate(&with(status.clone()), &running)), expected, "{status}");
        }
        let ended = with(json!({"active": 0, "conditions": [condition("FailureTarget"), condition("Failed")]}));
        assert_eq!(
            join(&validate(&with(json!({"active": 0})), &ended)),
            "[status.conditions: Invalid value: cannot disable the terminal Failed=True condition, \
             status.conditions: Invalid value: cannot disable the terminal FailureTarget=True condition]"
        );
    }
}
