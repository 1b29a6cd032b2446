//! Jobs.

use api::field::{Error, ErrorList};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{policies, status};
use crate::kinds::apps::{name_warning, template_cells, template_defaults};
use crate::kinds::check::{Node, domain_prefixed_path, label_selector};
use crate::kinds::core::pod::gated;
use crate::kinds::core::pod::spec::validate_template;
use crate::kinds::table::{named_wide, row_wide, selector, template_columns, words};
use crate::kinds::value::{
    at, copy, default, ensure_map, flag, get, has, int, list, map, name, opt_int, remove, same_at, set, text,
};
use crate::registry::delete::Propagation;
use crate::resource::{Column, Context, Hooks, SwitchedOff, human_duration};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";
const NAME_LABEL: &str = "batch.kubernetes.io/job-name";

pub struct Job;

impl Hooks for Job {
    fn defaults(&self, job: &mut Value) {
        defaults(job);
        labels_of_template(job);
    }

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("spec.template")
    }

    fn prepare_create(&self, _ctx: &Context<'_>, job: &mut Value) {
        set(job, "status", json!({}));
        if !flag(job, "spec.manualSelector") {
            generate_selector(job);
        }
        labels_of_template(job);
    }

    fn validate_create(&self, _ctx: &Context<'_>, job: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        generated_labels(job, &mut errors);
        validate_whole_spec(&Node::root(job).child("spec"), &mut errors);
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
        let mut warnings: Vec<String> =
            if old.is_none() { name_warning(new).into_iter().collect() } else { Vec::new() };
        warnings.extend(spec_warnings(new, old, "spec"));
        warnings
    }

    fn default_propagation(&self) -> Option<Propagation> {
        Some(Propagation::Orphan)
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
    default(job, "spec.manualSelector", false);
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

/// Pods of a Job carry its UID and name, and its selector is the UID. What the template says of
/// these already stays, and is refused when it says something else.
fn generate_selector(job: &mut Value) {
    let (uid, name) = (text(job, "metadata.uid").to_owned(), name(job).to_owned());
    let labels = ensure_map(job, "spec.template.metadata.labels");
    for (key, value) in generated(&uid, &name) {
        labels.entry(key).or_insert_with(|| value.into());
    }
    ensure_map(job, "spec.selector.matchLabels").entry(UID_LABEL).or_insert_with(|| uid.into());
}

fn generated<'a>(uid: &'a str, name: &'a str) -> [(&'static str, &'a str); 4] {
    [("controller-uid", uid), ("job-name", name), (UID_LABEL, uid), (NAME_LABEL, name)]
}

/// `ValidateGeneratedSelector`: the labels and the selector are the Job's own.
fn generated_labels(job: &Value, errors: &mut ErrorList) {
    if flag(job, "spec.manualSelector") || !has(job, "spec.selector") {
        return;
    }
    let (uid, name) = (text(job, "metadata.uid"), name(job));
    let labels = Node::root(job).child("spec.template.metadata.labels");
    for (key, value) in generated(uid, name) {
        let (path, detail) = (labels.path.key(key), format!("must be '{value}'"));
        match labels.value.get(key).and_then(Value::as_str) {
            None => errors.push(Error::required(&path, detail)),
            Some(given) if given != value => errors.push(Error::invalid(&path, labels.value.clone(), detail)),
            Some(_) => {}
        }
    }
    let own: serde_json::Map<String, Value> =
        generated(uid, name).into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let selector = Node::root(job).child("spec.selector");
    let chosen = api::selector::Selector::from_json(Some(selector.value));
    if chosen.is_ok_and(|chosen| !chosen.matches_json(Some(&Value::Object(own)))) {
        selector.invalid(errors, "`selector` not auto-generated");
    }
}

/// `ValidateJobSpec`: everything of a Job, whose selector is there and chooses its pods.
fn validate_whole_spec(spec: &Node<'_>, errors: &mut ErrorList) {
    validate_spec(spec, errors);
    let selector = spec.child("selector");
    if selector.exists() {
        label_selector(&selector, errors);
    } else {
        selector.missing(errors, "");
    }
    let chosen = api::selector::Selector::from_json(Some(selector.value));
    let labels = get(spec.value, "template.metadata.labels");
    if chosen.is_ok_and(|chosen| !selector.exists() || !chosen.matches_json(labels)) {
        spec.child("template.metadata.labels").invalid(errors, "`selector` does not match template `labels`");
    }
}

const MAX_PARALLELISM_INDEXED: i64 = 100_000;
/// Above so many completions, a limit per index has limits of its own.
const MANY_COMPLETIONS: i64 = 100_000;
const MAX_FOR_MANY: i64 = 10_000;

/// Of Jobs that have so many indexes, and run so many of them at once.
const UNTRACKED: &str = "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail";

/// Warnings about the spec of a Job, or of a CronJob's template, that stands at `path` (`WarningsForJobSpec`).
pub fn spec_warnings(job: &Value, old: Option<&Value>, path: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    if old.is_some_and(|old| same_at(old, job, "spec")) {
        return warnings;
    }
    let many = int(job, "spec.completions") > MANY_COMPLETIONS && int(job, "spec.parallelism") > MAX_FOR_MANY;
    if many && text(job, "spec.completionMode") == "Indexed" {
        warnings.push(format!("{path}: {UNTRACKED}"));
    }
    if old.is_none_or(|old| !same_at(old, job, "spec.template")) {
        warnings.extend(crate::kinds::core::pod::warnings(at(job, "spec.template"), &format!("{path}.template")));
    }
    warnings
}

/// What holds for a Job and for a CronJob's template.
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
    mode.optional_one_of(errors, &["NonIndexed", "Indexed"]);
    if mode.text() == "Indexed" {
        indexed(spec, errors);
    }
    if matches!(mode.text(), "" | "NonIndexed") {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"].iter().filter(|field| spec.has(field)) {
            spec.child(field).invalid(errors, "requires indexed completion mode");
        }
    }
    policies::failure(spec, errors);
    policies::success(spec, errors);
    let replacement = spec.child("podReplacementPolicy");
    let allowed: &[&str] = if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    replacement.optional_one_of(errors, allowed);
    let template = spec.child("template");
    validate_template(&template, errors);
    let policy = template.child("spec.restartPolicy");
    match policy.text() {
        "" | "Always" => policy.missing(errors, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.has("podFailurePolicy") => {
            policy.invalid(errors, "only \"Never\" is supported when podFailurePolicy is specified");
        }
        "OnFailure" | "Never" => {}
        other => errors.push(Error::not_supported(&policy.path, other, &["OnFailure", "Never"])),
    }
}

/// `domain/path` of the controller that answers for the Job.
fn managed_by(manager: &Node<'_>, errors: &mut ErrorList) {
    if !manager.exists() {
        return;
    }
    domain_prefixed_path(manager, errors);
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
    validate_whole_spec(&spec, &mut errors);
    let (completions, before) = (spec.child("completions"), was.child("completions"));
    if spec.child("completionMode").text() != "Indexed" {
        completions.immutable(&mut errors, &before);
    } else if completions.exists()
        && completions.value != before.value
        && completions.int() != spec.child("parallelism").int()
    {
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

/// `template` with what steers the pods' placement as in `old`, if that may still be set: while a
/// suspended Job has not started, or has no pods any more.
fn scheduled_as(template: &Value, old: &Value) -> Value {
    let mut template = template.clone();
    let parked = is_parked(old);
    if !flag(old, "spec.suspend") || has(old, "status.startTime") && !parked {
        return template;
    }
    let was = at(old, "spec.template");
    if parked {
        resources_as(&mut template, was);
    }
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

/// Suspended, and no pod of it is left.
fn is_parked(job: &Value) -> bool {
    let suspended = |c: &Value| text(c, "type") == "Suspended" && text(c, "status") == "True";
    flag(job, "spec.suspend") && int(job, "status.active") == 0 && list(job, "status.conditions").iter().any(suspended)
}

/// What a parked Job's containers ask for may change too.
fn resources_as(template: &mut Value, was: &Value) {
    for field in ["spec.containers", "spec.initContainers"] {
        let before = list(was, field);
        for (container, old) in crate::kinds::value::list_mut(template, field).zip(before) {
            if text(container, "name") == text(old, "name") {
                copy(old, container, "resources");
            }
        }
    }
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
        let found = list(job, "status.conditions").iter().find(|condition| text(condition, "type") == kind);
        found.is_some_and(|condition| text(condition, "status") == "True")
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
    let Some(start) = time("status.startTime") else { return String::new() };
    let end = time("status.completionTime").unwrap_or(now);
    human_duration(end.duration_since(start).as_secs())
}

pub fn columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Status", "Status of the job."),
            words(
                "Completions",
                "The number of pods which reached phase Succeeded. The value increases monotonically for a given spec. However, it may decrease in reaction to scale down of elastic indexed jobs.",
            ),
            words("Duration", "Time required to complete the job."),
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
            ("manualSelector", json!(false)),
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

    #[test]
    fn states() {
        let row = |spec: Value, status: Value| {
            let mut object = json!({"metadata": {"name": "j", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
            object["spec"]["template"]["spec"]["containers"] =
                json!([{"name": "c", "image": "i"}, {"name": "d", "image": "k"}]);
            tested::cells(&Job, &object, "2026-01-01T00:02:00Z")
        };
        let condition = |kind: &str| json!([{"type": kind, "status": "True"}]);
        for (spec, status, shown) in [
            (
                json!({"completions": 3}),
                json!({"startTime": "2026-01-01T00:00:30Z", "succeeded": 1}),
                "Running|1/3|90s",
            ),
            (json!({"completions": 1}), json!({"conditions": condition("Suspended")}), "Suspended|0/1|"),
            (json!({"parallelism": 4}), json!({"succeeded": 2}), "Running|2/1 of 4|"),
            (json!({"parallelism": 1}), json!({}), "Running|0/1|"),
            (
                json!({"completions": 1}),
                json!({"startTime": "2026-01-01T00:00:00Z", "conditions": condition("FailureTarget")}),
                "FailureTarget|0/1|2m",
            ),
        ] {
            assert_eq!(row(spec, status), format!("j|{shown}|2m|c,d|i,k|<none>"));
        }
    }

    #[test]
    fn own_labels() {
        let refused = |extra: Value| {
            let mut object = job(json!({}));
            for (key, value) in extra.as_object().unwrap() {
                set(&mut object, key, value.clone());
            }
            tested::created(&Job, &object)
        };
        assert_eq!(refused(json!({})), "[]");
        let found = refused(json!({"spec.template.metadata.labels": {"job-name": "other"}}));
        assert!(found.contains("spec.template.metadata.labels[job-name]: Invalid value: {"), "{found}");
        assert!(found.contains(": must be 'j'"), "{found}");
        assert_eq!(
            refused(json!({"spec.selector": {"matchLabels": {"a": "b"}}})),
            "[spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"batch.kubernetes.io/controller-uid\":\"u\"}}: `selector` not auto-generated, \
             spec.template.metadata.labels: Invalid value: {\"batch.kubernetes.io/controller-uid\":\"u\",\"batch.kubernetes.io/job-name\":\"j\",\"controller-uid\":\"u\",\"job-name\":\"j\"}: `selector` does not match template `labels`]"
        );
        // By hand, the selector is the user's own.
        assert_eq!(
            refused(
                json!({"spec.manualSelector": true, "spec.selector": {"matchLabels": {"a": "b"}}, "spec.template.metadata.labels": {"a": "b"}})
            ),
            "[]"
        );
    }

    #[test]
    fn what_a_parked_job_may_change() {
        let parked = job(
            json!({"spec.suspend": true, "status": {"startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Suspended", "status": "True"}]}}),
        );
        let resources = json!([{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}}]);
        let changed = job(
            json!({"spec.suspend": true, "spec.template.spec.containers": resources, "spec.template.spec.nodeSelector": {"a": "b"}}),
        );
        assert_eq!(join(&validate_update(&changed, &parked)), "[]");
        let mut busy = parked.clone();
        set(&mut busy, "status.active", 1);
        assert!(join(&validate_update(&changed, &busy)).ends_with("field is immutable"));
    }
}
