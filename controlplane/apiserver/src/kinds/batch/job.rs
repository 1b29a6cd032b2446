//! Jobs.

use api::field::{Error, ErrorList};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{policies, status};
use crate::kinds::apps::{template_cells, template_defaults, template_warnings};
use crate::kinds::check::{Node, label_selector};
use crate::kinds::core::pod::spec::validate_template;
use crate::kinds::table::{named_wide, row_wide, selector, template_columns, words};
use crate::kinds::value::{
    at, copy, default, ensure_map, flag, get, has, int, list, map, name, opt_int, remove, set, text,
};
use crate::resource::{Column, Context, Hooks, human_duration};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";

pub struct Job;

impl Hooks for Job {
    fn defaults(&self, job: &mut Value) {
        defaults(job);
        labels_of_template(job);
    }

    fn prepare_create(&self, _ctx: &Context<'_>, job: &mut Value) {
        set(job, "status", json!({}));
        if !flag(job, "spec.manualSelector") {
            generate_selector(job);
        }
        labels_of_template(job);
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        // A client that applies its manifest again does not know the generated parts.
        if !flag(old, "spec.manualSelector") && !has(new, "spec.selector") {
            copy(old, new, "spec.selector");
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, job: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(job);
        validate_spec(&root.child("spec"), &mut errors);
        generated_labels(job, &mut errors);
        host_names(job, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_update(new, old)
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        if ctx.subresource == "status" { status::validate(new, old) } else { ErrorList::new() }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(new, old)
    }

    fn default_propagation_orphans(&self) -> bool {
        true
    }

    fn row(&self, job: &Value, now: Timestamp) -> Vec<Value> {
        row_wide(
            job,
            now,
            vec![status_word(job).into(), completions(job).into(), duration(job, now).into()],
            template_cells(job, Some(selector(at(job, "spec.selector")))),
        )
    }
}

/// Defaults of a Job and, at `spec`, of a CronJob's template.
pub fn defaults(job: &mut Value) {
    if !has(job, "spec.completions") && !has(job, "spec.parallelism") {
        set(job, "spec.completions", 1);
        set(job, "spec.parallelism", 1);
    }
    default(job, "spec.parallelism", 1);
    let limit = if has(job, "spec.backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    default(job, "spec.backoffLimit", limit);
    default(job, "spec.completionMode", "NonIndexed");
    default(job, "spec.suspend", false);
    let replacement = if has(job, "spec.podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    default(job, "spec.podReplacementPolicy", replacement);
    for rule in crate::kinds::value::list_mut(job, "spec.podFailurePolicy.rules") {
        for condition in crate::kinds::value::list_mut(rule, "onPodConditions") {
            crate::kinds::value::default_text(condition, "status", "True");
        }
    }
    template_defaults(job);
}

/// A Job without labels has those of its pods.
fn labels_of_template(job: &mut Value) {
    if map(job, "metadata.labels").is_none_or(serde_json::Map::is_empty)
        && let Some(labels) = map(job, "spec.template.metadata.labels").filter(|labels| !labels.is_empty()).cloned()
    {
        set(job, "metadata.labels", labels);
    }
}

/// Pods of a Job carry its UID and name, and its selector is the UID.
fn generate_selector(job: &mut Value) {
    let (uid, name) = (text(job, "metadata.uid").to_owned(), name(job).to_owned());
    let labels = ensure_map(job, "spec.template.metadata.labels");
    for (key, value) in [(UID_LABEL, &uid), (NAME_LABEL, &name), ("controller-uid", &uid), ("job-name", &name)] {
        labels.insert(key.to_owned(), value.clone().into());
    }
    ensure_map(job, "spec.selector.matchLabels").insert(UID_LABEL.to_owned(), uid.into());
}

fn generated_labels(job: &Value, errors: &mut ErrorList) {
    let spec = Node::root(job).child("spec");
    let labels = get(job, "spec.template.metadata.labels");
    let matches =
        api::selector::Selector::from_json(Some(spec.child("selector").value)).is_ok_and(|s| s.matches_json(labels));
    if !matches {
        spec.child("template.metadata.labels").invalid(errors, "`selector` does not match template `labels`");
    }
    if spec.child("selector").value.is_null() {
        spec.child("selector").missing(errors, "");
    }
}

const MAX_PARALLELISM_INDEXED: i64 = 100_000;
/// Above so many completions, a limit per index has limits of its own.
const MANY_COMPLETIONS: i64 = 100_000;
const MAX_FOR_MANY: i64 = 10_000;

/// `JobSpec`, also of a CronJob's template.
pub fn validate_spec(spec: &Node<'_>, errors: &mut ErrorList) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        spec.child(field).non_negative(errors);
    }
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        spec.child("backoffLimitPerIndex").missing(errors, "when maxFailedIndexes is specified");
    }
    managed_by(&spec.child("managedBy"), errors);
    let mode = spec.child("completionMode");
    mode.optional_one_of(errors, &["Indexed", "NonIndexed"]);
    if mode.text() == "Indexed" {
        indexed(spec, errors);
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"].iter().filter(|field| spec.has(field)) {
            spec.child(field).invalid(errors, "requires indexed completion mode");
        }
    }
    policies::failure(spec, errors);
    policies::success(spec, errors);
    let replacement = spec.child("podReplacementPolicy");
    let allowed: &[&str] = if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    replacement.optional_one_of(errors, allowed);
    label_selector(&spec.child("selector"), errors);
    let template = spec.child("template");
    validate_template(&template, errors);
    let policy = template.child("spec.restartPolicy");
    match policy.text() {
        "" | "Always" => policy.missing(errors, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.has("podFailurePolicy") => {
            policy.invalid(errors, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" | "Never" => {}
        other => errors.push(Error::not_supported(&policy.path, other, &["Never", "OnFailure"])),
    }
}

/// `domain/path` of the controller that answers for the Job.
fn managed_by(manager: &Node<'_>, errors: &mut ErrorList) {
    if !manager.exists() {
        return;
    }
    match manager.text().split_once('/') {
        Some((domain, path)) if !path.is_empty() => {
            for problem in api::names::dns1123_subdomain(domain) {
                errors.push(Error::invalid(&manager.path, domain, problem));
            }
        }
        _ => manager.invalid(errors, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
    if manager.text().len() > 63 {
        errors.push(Error::too_long(&manager.path, 63));
    }
}

fn indexed(spec: &Node<'_>, errors: &mut ErrorList) {
    let (completions, parallelism, lost) =
        (spec.child("completions"), spec.child("parallelism"), spec.child("maxFailedIndexes"));
    if !completions.exists() {
        completions.missing(errors, "when completion mode is Indexed");
    }
    if parallelism.int() > MAX_PARALLELISM_INDEXED {
        parallelism.invalid(
            errors,
            format!("must be less than or equal to {MAX_PARALLELISM_INDEXED} when completion mode is Indexed"),
        );
    }
    if completions.exists() && lost.int() > completions.int() {
        lost.invalid(errors, "must be less than or equal to completions");
    }
    if lost.int() > MANY_COMPLETIONS {
        lost.invalid(errors, format!("must be less than or equal to {MANY_COMPLETIONS}"));
    }
    if completions.int() > MANY_COMPLETIONS && spec.has("backoffLimitPerIndex") {
        if !lost.exists() {
            lost.missing(errors, format!("must be specified when completions is above {MANY_COMPLETIONS}"));
        }
        for limited in [&parallelism, &lost].into_iter().filter(|limited| limited.int() > MAX_FOR_MANY) {
            limited.invalid(errors, format!("must be less than or equal to {MAX_FOR_MANY} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"));
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, was) = (Node::root(new).child("spec"), Node::root(old).child("spec"));
    validate_spec(&spec, &mut errors);
    let (completions, before) = (spec.child("completions"), was.child("completions"));
    if spec.child("completionMode").text() != "Indexed" {
        completions.immutable(&mut errors, &before);
    } else if completions.int() != before.int() && completions.int() != spec.child("parallelism").int() {
        // An indexed Job may be scaled, as long as both numbers go together.
        completions.invalid(&mut errors, "can only be modified in tandem with spec.parallelism");
    }
    spec.child("selector").immutable(&mut errors, &was.child("selector"));
    let template = scheduled_as(spec.child("template").value, old);
    if !crate::kinds::value::same(&template, was.child("template").value) {
        spec.child("template").invalid(&mut errors, crate::kinds::check::IMMUTABLE);
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        spec.child(field).immutable(&mut errors, &was.child(field));
    }
    errors
}

/// `template` with what steers the pods' placement as in `old`, if that may still be set: before a
/// suspended Job has started.
fn scheduled_as(template: &Value, old: &Value) -> Value {
    let mut template = template.clone();
    if !flag(old, "spec.suspend") || has(old, "status.startTime") {
        return template;
    }
    let was = at(old, "spec.template");
    for field in [
        "metadata.annotations",
        "metadata.labels",
        "spec.nodeSelector",
        "spec.affinity.nodeAffinity",
        "spec.tolerations",
        "spec.schedulingGates",
    ] {
        copy(was, &mut template, field);
    }
    if !has(was, "spec.affinity") && map(&template, "spec.affinity").is_some_and(serde_json::Map::is_empty) {
        remove(&mut template, "spec.affinity");
    }
    template
}

/// Pods of an indexed Job are called after it: the longest name must be a host's.
fn host_names(job: &Value, errors: &mut ErrorList) {
    let completions = int(job, "spec.completions");
    if text(job, "spec.completionMode") != "Indexed" || completions <= 0 {
        return;
    }
    let longest = format!("{}-{}", name(job), completions - 1);
    if !api::names::dns1123_label(&longest).is_empty() {
        let node = Node::root(job).child("metadata.name");
        node.invalid(errors, format!("will not able to create pod with invalid DNS label: {longest}"));
    }
}

fn status_word(job: &Value) -> &'static str {
    let condition = |kind: &str| {
        list(job, "status.conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
    };
    match () {
        () if condition("Complete") => "Complete",
        () if condition("Failed") => "Failed",
        () if has(job, "metadata.deletionTimestamp") => "Terminating",
        () if condition("Suspended") => "Suspended",
        () if condition("FailureTarget") => "FailureTarget",
        () if condition("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(job: &Value) -> String {
    let succeeded = int(job, "status.succeeded");
    match (opt_int(job, "spec.completions"), int(job, "spec.parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn duration(job: &Value, now: Timestamp) -> String {
    let time = |path: &str| text(job, path).parse::<Timestamp>().ok();
    let failed = || {
        let found = list(job, "status.conditions")
            .iter()
            .find(|c| text(c, "type") == "Failed" && text(c, "status") == "True")?;
        text(found, "lastTransitionTime").parse::<Timestamp>().ok()
    };
    let Some(start) = time("status.startTime") else { return String::new() };
    let end = time("status.completionTime").or_else(failed).unwrap_or(now);
    human_duration(end.as_second() - start.as_second())
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Status", "Status of the job."),
            words("Completions", "Number of pods which reached phase Succeeded over the desired number."),
            words("Duration", "Time required to complete the job."),
        ],
        template_columns(true),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    fn job(extra: Value) -> Value {
        let mut object = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        for (key, value) in extra.as_object().unwrap() {
            set(&mut object, key, value.clone());
        }
        Job.defaults(&mut object);
        generate_selector(&mut object);
        object
    }

    #[test]
    fn defaulted() {
        let spec = &job(json!({}))["spec"];
        for (field, value) in [
            ("completions", json!(1)),
            ("parallelism", json!(1)),
            ("backoffLimit", json!(6)),
            ("suspend", json!(false)),
            ("completionMode", json!("NonIndexed")),
            ("podReplacementPolicy", json!("TerminatingOrFailed")),
            ("selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})),
        ] {
            assert_eq!(spec[field], value, "{field}");
        }
        assert_eq!(spec["template"]["metadata"]["labels"]["job-name"], "j");
    }

    #[test]
    fn refused() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"spec.parallelism": -1}),
                "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                json!({"spec.template.spec.restartPolicy": "Always"}),
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ),
            (
                json!({"spec.completionMode": "Indexed", "spec.parallelism": 1}),
                "spec.completions: Required value: when completion mode is Indexed",
            ),
            (
                json!({"spec.maxFailedIndexes": 1}),
                "[spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified, spec.maxFailedIndexes: Invalid value: 1: requires indexed completion mode]",
            ),
            (
                json!({"spec.managedBy": "me"}),
                "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (
                json!({"spec.podFailurePolicy": {"rules": []}, "spec.template.spec.restartPolicy": "OnFailure"}),
                "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified",
            ),
        ] {
            let mut errors = ErrorList::new();
            validate_spec(&Node::root(&job(extra.clone())).child("spec"), &mut errors);
            assert_eq!(join(&errors), expected, "{extra}");
        }
        let old = job(json!({}));
        let new = job(json!({"spec.template.spec.containers": [{"name": "c", "image": "other"}]}));
        assert!(join(&validate_update(&new, &old)).ends_with("field is immutable"));
        assert_eq!(join(&validate_update(&old, &old)), "[]");
        let suspended = job(json!({"spec.suspend": true}));
        let placed = job(
            json!({"spec.suspend": true, "spec.template.spec.affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}),
        );
        assert_eq!(join(&validate_update(&placed, &suspended)), "[]");
        let spread = job(json!({"spec.suspend": true, "spec.template.spec.affinity": {"podAffinity": {"x": 1}}}));
        assert!(join(&validate_update(&spread, &suspended)).ends_with("field is immutable"));
        let indexed = |completions: i64, parallelism: i64| {
            job(
                json!({"spec.completionMode": "Indexed", "spec.completions": completions, "spec.parallelism": parallelism}),
            )
        };
        assert_eq!(join(&validate_update(&indexed(3, 3), &indexed(5, 5))), "[]");
        assert_eq!(
            join(&validate_update(&indexed(3, 1), &indexed(5, 5))),
            "spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism"
        );
    }

    #[test]
    fn rows() {
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let object = job(
            json!({"status": {"succeeded": 1, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:07Z", "conditions": [{"type": "Complete", "status": "True"}]}}),
        );
        let shown: Vec<String> = Job.row(&object, now).iter().map(|c| c.to_string().replace('"', "")).collect();
        assert_eq!(shown[..4].join("|"), "j|Complete|1/1|7s");
    }
}
