//! CronJobs.

use api::field::{Error, ErrorList, Path};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{job, schedule};
use crate::kinds::apps::template_defaults;
use crate::kinds::check::Node;
use crate::kinds::core::pod::gated;
use crate::kinds::table::{
    NONE, UNSET, ago_or_none, boolean, cell, containers, named_wide, number, row_wide, selector, size,
    template_columns, words,
};
use crate::kinds::value::{at, default, default_text, get_mut, name, opt_flag, opt_text, same_at, set, text};
use crate::resource::{Column, Context, Hooks, SwitchedOff};

/// Generated Jobs add eleven characters, and a pod's name is at most 63.
const MAX_NAME: usize = 52;

pub struct CronJob;

impl Hooks for CronJob {
    fn defaults(&self, cron: &mut Value) {
        default_text(cron, "spec.concurrencyPolicy", "Allow");
        default(cron, "spec.suspend", false);
        default(cron, "spec.successfulJobsHistoryLimit", 3);
        default(cron, "spec.failedJobsHistoryLimit", 1);
        // Only the pods' part: the Jobs made of the template get a Job's defaults.
        if let Some(template) = get_mut(cron, "spec.jobTemplate") {
            template_defaults(template);
        }
    }

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("spec.jobTemplate.spec.template")
    }

    fn prepare_create(&self, _ctx: &Context<'_>, cron: &mut Value) {
        set(cron, "status", json!({}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, cron: &Value) -> ErrorList {
        let mut errors = validate(cron, None);
        if name(cron).len() > MAX_NAME {
            errors.push(Error::invalid(
                &Path::root("metadata").child("name"),
                name(cron),
                "must be no more than 52 characters",
            ));
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate(new, Some(old))
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if old.is_none() {
            warnings.extend(crate::kinds::apps::name_warning(new));
        }
        let before = old.map(|old| at(old, "spec.jobTemplate"));
        warnings.extend(job::spec_warnings(at(new, "spec.jobTemplate"), before, "spec.jobTemplate.spec"));
        if text(new, "spec.schedule").contains("TZ") {
            warnings.push("CRON_TZ or TZ used in \"spec.schedule\" is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".to_owned());
        }
        warnings
    }

    fn row(&self, cron: &Value, now: Timestamp) -> Vec<Value> {
        let template = at(cron, "spec.jobTemplate.spec");
        let mut wide: Vec<Value> = containers(at(template, "template.spec")).into();
        wide.push(selector(at(template, "selector")).into());
        row_wide(
            cron,
            now,
            vec![
                cell(cron, "spec.schedule"),
                opt_text(cron, "spec.timeZone").unwrap_or(NONE).into(),
                opt_flag(cron, "spec.suspend").map_or(UNSET, |on| if on { "True" } else { "False" }).into(),
                size(cron, "status.active").into(),
                ago_or_none(at(cron, "status.lastScheduleTime"), now),
            ],
            wide,
        )
    }
}

fn validate(cron: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(cron).child("spec");
    schedule_format(&spec, old, &mut errors);
    spec.child("startingDeadlineSeconds").non_negative(&mut errors);
    if old.is_none_or(|old| !same_at(old, cron, "spec.timeZone")) {
        time_zone(&spec.child("timeZone"), &mut errors);
    }
    spec.child("concurrencyPolicy").required_one_of(&mut errors, &["Allow", "Forbid", "Replace"]);
    let template = spec.child("jobTemplate.spec");
    job::validate_spec(&template, &mut errors);
    if template.has("selector") {
        template.child("selector").invalid(&mut errors, "`selector` will be auto-generated");
    }
    if template.child("manualSelector").flag() {
        errors.push(Error::not_supported(&template.child("manualSelector").path, true, &["nil", "false"]));
    }
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        spec.child(field).non_negative(&mut errors);
    }
    errors
}

/// A time zone inside the schedule stays where an older server let it in.
fn schedule_format(spec: &Node<'_>, old: Option<&Value>, errors: &mut ErrorList) {
    let when = spec.child("schedule");
    if !when.required(errors, "") {
        return;
    }
    let zoned = when.text().contains("TZ");
    let plain = when.text().split_once(' ').filter(|_| zoned).map_or(when.text(), |(_, rest)| rest.trim_start());
    if let Some(problem) = schedule::problem(plain) {
        when.invalid(errors, problem);
    }
    let was_zoned = old.is_some_and(|old| text(old, "spec.schedule").contains("TZ"));
    if zoned && !was_zoned {
        when.invalid(errors, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
    } else if zoned && spec.has("timeZone") {
        when.invalid(errors, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
    }
}

fn time_zone(zone: &Node<'_>, errors: &mut ErrorList) {
    if !zone.exists() {
        return;
    }
    if zone.text().is_empty() {
        return zone.invalid(errors, "timeZone must be nil or non-empty string");
    }
    if zone.text().eq_ignore_ascii_case("Local") {
        zone.invalid(errors, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones");
    }
    if jiff::tz::TimeZone::get(zone.text()).is_err() && zone.text() != "Local" {
        zone.invalid(errors, format!("unknown time zone {}", zone.text()));
    }
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Schedule", "The schedule in Cron format, see https://en.wikipedia.org/wiki/Cron."),
            words(
                "Timezone",
                "The time zone name for the given schedule, see https://en.wikipedia.org/wiki/List_of_tz_database_time_zones.",
            ),
            boolean(
                "Suspend",
                "This flag tells the controller to suspend subsequent executions, it does not apply to already started executions.  Defaults to false.",
            ),
            number("Active", "A list of pointers to currently running jobs."),
            words("Last Schedule", "Information when was the last time the job was successfully scheduled."),
        ],
        template_columns(
            "A label query over pods that should match the pod count. Normally, the system sets this field for you. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use api::field::join;

    fn cron(extra: Value) -> Value {
        let mut object = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}}}});
        for (key, value) in extra.as_object().unwrap() {
            set(&mut object, key, value.clone());
        }
        CronJob.defaults(&mut object);
        object
    }

    #[test]
    fn defaulted_and_refused() {
        let spec = &cron(json!({}))["spec"];
        assert_eq!((&spec["concurrencyPolicy"], &spec["suspend"]), (&json!("Allow"), &json!(false)));
        assert_eq!((&spec["successfulJobsHistoryLimit"], &spec["failedJobsHistoryLimit"]), (&json!(3), &json!(1)));
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"spec.schedule": "61 * * * *"}),
                "spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61",
            ),
            (
                json!({"spec.schedule": "TZ=UTC * * * * *"}),
                "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            ),
            (
                json!({"spec.timeZone": "No/Where"}),
                "spec.timeZone: Invalid value: \"No/Where\": unknown time zone No/Where",
            ),
            (
                json!({"spec.concurrencyPolicy": "X"}),
                "spec.concurrencyPolicy: Unsupported value: \"X\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ),
            (
                json!({"spec.failedJobsHistoryLimit": -1}),
                "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
            ),
        ] {
            assert_eq!(join(&validate(&cron(extra.clone()), None)), expected, "{extra}");
        }
    }

    #[test]
    fn stored_zones_stay() {
        let old = cron(json!({"spec.schedule": "CRON_TZ=UTC * * * * *", "spec.timeZone": "No/Where"}));
        let found = tested::updated(&CronJob, &old, &old);
        assert_eq!(
            found,
            "spec.schedule: Invalid value: \"CRON_TZ=UTC * * * * *\": cannot use both timeZone field and TZ or CRON_TZ in schedule"
        );
        let old = cron(json!({"spec.schedule": "TZ=UTC * * * * *"}));
        assert_eq!(tested::updated(&CronJob, &old, &old), "[]");
        assert!(CronJob.warnings(&old, None)[0].starts_with("CRON_TZ or TZ used in"));
    }

    #[test]
    fn templates_warn_as_jobs_do() {
        let odd = cron(json!({
            "spec.jobTemplate.spec.template.spec.nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "spec.jobTemplate.spec.completionMode": "Indexed",
            "spec.jobTemplate.spec.completions": 100_001,
            "spec.jobTemplate.spec.parallelism": 10_001,
        }));
        assert_eq!(
            CronJob.warnings(&odd, Some(&cron(json!({})))),
            [
                "spec.jobTemplate.spec: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail",
                "spec.jobTemplate.spec.template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            ]
        );
        assert_eq!(CronJob.warnings(&odd, None), CronJob.warnings(&odd, Some(&cron(json!({})))));
        assert!(CronJob.warnings(&odd, Some(&odd)).is_empty());
    }

    #[test]
    fn rows() {
        for (extra, shown) in [
            (json!({}), "c|* * * * *|<none>|False|0|<none>|<unknown>|c|i|<none>"),
            (
                json!({"spec.timeZone": "Europe/Berlin", "spec.suspend": true, "status": {"active": [{}, {}], "lastScheduleTime": "2025-12-31T23:59:00Z"}}),
                "c|* * * * *|Europe/Berlin|True|2|60s|<unknown>|c|i|<none>",
            ),
        ] {
            assert_eq!(tested::cells(&CronJob, &cron(extra.clone()), "2026-01-01T00:00:00Z"), shown, "{extra}");
        }
    }
}
