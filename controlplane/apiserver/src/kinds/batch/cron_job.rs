//! CronJobs.

use api::field::{Error, ErrorList, Path};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{job, schedule};
use crate::kinds::apps::template_defaults;
use crate::kinds::check::Node;
use crate::kinds::table::{
    ago_or_none, boolean, cell, containers, named_wide, number, or_none, row_wide, selector, size, template_columns,
    words,
};
use crate::kinds::value::{at, default, default_text, flag, get_mut, name, set, text};
use crate::resource::{Column, Context, Hooks};

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

    fn prepare_create(&self, _ctx: &Context<'_>, cron: &mut Value) {
        set(cron, "status", json!({}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, cron: &Value) -> ErrorList {
        let mut errors = validate(cron);
        if name(cron).len() > MAX_NAME {
            errors.push(Error::invalid(
                &Path::root("metadata").child("name"),
                name(cron),
                "must be no more than 52 characters",
            ));
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate(new)
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            Vec::new()
        } else {
            crate::kinds::core::pod::warnings(
                at(new, "spec.jobTemplate.spec.template"),
                "spec.jobTemplate.spec.template",
            )
        }
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
                or_none(text(cron, "spec.timeZone")),
                if flag(cron, "spec.suspend") { "True" } else { "False" }.into(),
                size(cron, "status.active").into(),
                ago_or_none(at(cron, "status.lastScheduleTime"), now),
            ],
            wide,
        )
    }
}

fn validate(cron: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(cron).child("spec");
    let when = spec.child("schedule");
    if when.required(&mut errors, "") {
        let zoned = when.text().contains("TZ");
        let plain = when.text().split_once(' ').filter(|_| zoned).map_or(when.text(), |(_, rest)| rest);
        if let Some(problem) = schedule::problem(plain) {
            when.invalid(&mut errors, problem);
        }
        if zoned {
            when.invalid(&mut errors, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        }
    }
    let zone = spec.child("timeZone");
    if zone.exists() {
        if zone.text().is_empty() {
            zone.invalid(&mut errors, "timeZone must be nil or non-empty string");
        } else if zone.text().eq_ignore_ascii_case("Local") {
            zone.invalid(
                &mut errors,
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            );
        } else if jiff::tz::TimeZone::get(zone.text()).is_err() {
            zone.invalid(&mut errors, format!("unknown time zone {}", zone.text()));
        }
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        spec.child(field).non_negative(&mut errors);
    }
    spec.child("concurrencyPolicy").required_one_of(&mut errors, &["Allow", "Forbid", "Replace"]);
    let template = spec.child("jobTemplate.spec");
    if template.has("selector") {
        template.child("selector").invalid(&mut errors, "`selector` will be auto-generated");
    }
    if template.child("manualSelector").flag() {
        errors.push(Error::not_supported(&template.child("manualSelector").path, true, &["nil", "false"]));
    }
    job::validate_spec(&template, &mut errors);
    errors
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
                "This flag tells the controller to suspend subsequent executions, it does not apply to already started executions.",
            ),
            number("Active", "A list of pointers to currently running jobs."),
            words("Last Schedule", "Information when was the last time the job was successfully scheduled."),
        ],
        template_columns(true),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
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
            assert_eq!(join(&validate(&cron(extra.clone()))), expected, "{extra}");
        }
    }
}
