//! StatefulSets.

use api::field::{Error, ErrorList};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Counts, restarts_always, rolling_in_go, template_cells, template_defaults, template_warnings, validate_counts,
    validate_selector, validate_template_labels,
};
use crate::kinds::check::{Node, not_more_than_hundred_percent, positive_int_or_percent};
use crate::kinds::core::claim::fractional_sizes;
use crate::kinds::core::pod::gated;
use crate::kinds::core::pod::spec::validate_template as pod_template;
use crate::kinds::table::{named_wide, row_wide, template_columns, words};
use crate::kinds::value::{at, copy, default, default_text, ensure_list, int, list, list_mut, same_at, set, text};
use crate::resource::{Column, Context, Hooks, SwitchedOff};

/// What may change, in the order upstream says it.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

const COUNTS: Counts = Counts {
    fields: &[
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ],
    within_replicas: &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
    within_ready: Some("cannot be greater than status.readyReplicas"),
};

/// Said of a limit below zero.
const KEEPS_ALL: &str =
    "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended";

/// What of a spec is looked at: stored objects may hold what is refused today.
#[derive(Clone, Copy)]
struct Strict {
    service_name: bool,
    template: bool,
}

const ALL: Strict = Strict { service_name: true, template: true };

pub struct StatefulSet;

impl Hooks for StatefulSet {
    fn defaults(&self, set: &mut Value) {
        default_text(set, "spec.podManagementPolicy", "OrderedReady");
        default_text(set, "spec.updateStrategy.type", "RollingUpdate");
        if text(set, "spec.updateStrategy.type") == "RollingUpdate" {
            default(set, "spec.updateStrategy.rollingUpdate.partition", 0);
            default(set, "spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
        }
        default_text(set, "spec.persistentVolumeClaimRetentionPolicy.whenDeleted", "Retain");
        default_text(set, "spec.persistentVolumeClaimRetentionPolicy.whenScaled", "Retain");
        default(set, "spec.replicas", 1);
        default(set, "spec.revisionHistoryLimit", 10);
        for claim in list_mut(set, "spec.volumeClaimTemplates") {
            default_text(claim, "apiVersion", "v1");
            default_text(claim, "kind", "PersistentVolumeClaim");
            default(claim, "spec.volumeMode", "Filesystem");
            default_text(claim, "status.phase", "Pending");
        }
        template_defaults(set);
    }

    fn switched_off(&self) -> SwitchedOff {
        gated::fields("spec.template")
    }

    fn prepare_create(&self, _ctx: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({"replicas": 0, "availableReplicas": 0}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, set: &Value) -> ErrorList {
        validate(set, ALL)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let stored = Strict { service_name: false, template: true };
        let template = validate(old, stored).is_empty();
        let mut errors = validate(new, Strict { template, ..stored });
        let mut munged = new.clone();
        for field in MUTABLE {
            copy(old, &mut munged, &format!("spec.{field}"));
        }
        if !same_at(&munged, old, "spec") {
            Node::root(new).child("spec").forbidden(&mut errors, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
        }
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        if ctx.subresource == "status" { validate_counts(new, old, &COUNTS) } else { ErrorList::new() }
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = template_warnings(new, old);
        for (index, claim) in list(new, "spec.volumeClaimTemplates").iter().enumerate() {
            found.extend(fractional_sizes(at(claim, "spec"), &format!("spec.volumeClaimTemplates[{index}]")));
        }
        if int(new, "spec.revisionHistoryLimit") < 0 {
            found.push(KEEPS_ALL.to_owned());
        }
        found
    }

    fn row(&self, set: &Value, now: Timestamp) -> Vec<Value> {
        let ready = format!("{}/{}", int(set, "status.readyReplicas"), int(set, "spec.replicas"));
        row_wide(set, now, vec![ready.into()], template_cells(set, None))
    }
}

fn validate(set: &Value, strict: Strict) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(set).child("spec");
    let management = spec.child("podManagementPolicy");
    if !matches!(management.text(), "OrderedReady" | "Parallel") {
        management.invalid(&mut errors, "must be 'OrderedReady' or 'Parallel'");
    }
    update_strategy(&spec.child("updateStrategy"), &mut errors);
    for field in ["whenDeleted", "whenScaled"] {
        spec.child("persistentVolumeClaimRetentionPolicy").child(field).one_of(&mut errors, &["Retain", "Delete"]);
    }
    for field in ["replicas", "minReadySeconds", "ordinals.start"] {
        spec.child(field).non_negative(&mut errors);
    }
    if strict.service_name && !spec.child("serviceName").text().is_empty() {
        spec.child("serviceName").format(&mut errors, api::names::dns1123_subdomain);
    }
    validate_selector(&spec, "statefulset", &mut errors);
    let template = spec.child("template");
    if validate_template_labels(&spec, "", &mut errors) && strict.template {
        let whole = with_claim_volumes(set);
        pod_template(&Node::root(&whole).child("spec.template"), &mut errors);
    }
    restarts_always(&template, "StatefulSet", &mut errors);
    errors
}

fn update_strategy(strategy: &Node<'_>, errors: &mut ErrorList) {
    // The whole struct is shown, by the names of its Go fields.
    let shown = || json!({"Type": strategy.child("type").text(), "RollingUpdate": rolling_in_go(strategy)});
    let rolling = strategy.child("rollingUpdate");
    match strategy.child("type").text() {
        "" => strategy.missing(errors, ""),
        "OnDelete" => {
            if rolling.exists() {
                let detail = "only allowed for updateStrategy 'RollingUpdate'";
                errors.push(Error::invalid(&rolling.path, rolling_in_go(strategy), detail));
            }
        }
        "RollingUpdate" => {
            rolling.child("partition").non_negative(errors);
            let unavailable = rolling.child("maxUnavailable");
            if unavailable.exists() {
                positive_int_or_percent(&unavailable, errors);
                if super::deployment::is_zero(unavailable.value) {
                    unavailable.invalid(errors, "cannot be 0");
                }
                not_more_than_hundred_percent(&unavailable, errors);
            }
        }
        _ => errors.push(Error::invalid(&strategy.path, shown(), "must be 'RollingUpdate' or 'OnDelete'")),
    }
}

/// The claims are volumes of the pods too, so mounts may name them: a copy of the set whose
/// template has them.
fn with_claim_volumes(set: &Value) -> Value {
    let mut copy = set.clone();
    let volumes: Vec<Value> = list(set, "spec.volumeClaimTemplates")
        .iter()
        .map(|claim| text(claim, "metadata.name"))
        .filter(|name| !list(set, "spec.template.spec.volumes").iter().any(|volume| text(volume, "name") == *name))
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
        .collect();
    if !volumes.is_empty() {
        ensure_list(&mut copy, "spec.template.spec.volumes").extend(volumes);
    }
    copy
}

pub fn columns() -> Vec<Column> {
    named_wide(vec![words("Ready", "Number of the pod with ready state")], template_columns(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use api::field::join;

    fn stateful(extra: Value) -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [
                {"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]}}}});
        for (key, value) in extra.as_object().unwrap() {
            set(&mut object, key, value.clone());
        }
        StatefulSet.defaults(&mut object);
        object
    }

    #[test]
    fn claims_warn_of_fractions() {
        let claim = json!({"spec": {"resources": {"requests": {"storage": "500m"}}}});
        assert_eq!(
            StatefulSet.warnings(&stateful(json!({"spec.volumeClaimTemplates": [claim]})), None),
            [
                "spec.volumeClaimTemplates[0].resources.requests[storage]: fractional byte value \"500m\" is invalid, must be an integer"
            ]
        );
    }

    #[test]
    fn a_negative_history_limit_is_taken_with_a_warning() {
        let old = stateful(json!({}));
        let endless = stateful(json!({"spec.revisionHistoryLimit": -1}));
        assert_eq!(join(&validate(&endless, ALL)), "[]");
        assert_eq!(tested::updated(&StatefulSet, &old, &endless), "[]");
        assert_eq!(StatefulSet.warnings(&endless, None), [KEEPS_ALL]);
        assert_eq!(StatefulSet.warnings(&endless, Some(&old)), [KEEPS_ALL]);
        assert!(StatefulSet.warnings(&old, None).is_empty());
    }

    #[test]
    fn defaulted_and_refused() {
        let spec = &stateful(json!({}))["spec"];
        assert_eq!(
            spec["updateStrategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 1}})
        );
        assert_eq!(
            spec["persistentVolumeClaimRetentionPolicy"],
            json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
        );
        assert_eq!(spec["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"spec.updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}}}),
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"Partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
            ),
            (
                json!({"spec.updateStrategy.type": "X"}),
                "spec.updateStrategy: Invalid value: {\"RollingUpdate\":null,\"Type\":\"X\"}: must be 'RollingUpdate' or 'OnDelete'",
            ),
            (
                json!({"spec.updateStrategy.rollingUpdate.maxUnavailable": "0%", "spec.ordinals.start": -1}),
                "[spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": cannot be 0, \
                 spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0]",
            ),
            (
                json!({"spec.persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Keep", "whenScaled": "Delete"}}),
                "spec.persistentVolumeClaimRetentionPolicy.whenDeleted: Unsupported value: \"Keep\": supported values: \"Retain\", \"Delete\"",
            ),
            (
                json!({"spec.selector": {}, "spec.template.spec.activeDeadlineSeconds": 1}),
                "[spec.selector: Invalid value: {}: empty selector is invalid for statefulset, \
                 spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in StatefulSet is not Supported]",
            ),
            (
                json!({"spec.podManagementPolicy": "X"}),
                "spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'",
            ),
            (
                json!({"spec.updateStrategy.rollingUpdate.partition": -1}),
                "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
            ),
        ] {
            assert_eq!(join(&validate(&stateful(extra.clone()), ALL)), expected, "{extra}");
        }
    }

    #[test]
    fn updates() {
        let old = stateful(json!({"spec.serviceName": "s"}));
        for (extra, expected) in [
            (
                json!({"spec.serviceName": "s", "spec.replicas": 3, "spec.minReadySeconds": 1, "spec.revisionHistoryLimit": 2}),
                "[]",
            ),
            (
                json!({"spec.serviceName": "t"}),
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ),
        ] {
            assert_eq!(tested::updated(&StatefulSet, &old, &stateful(extra.clone())), expected, "{extra}");
        }
        // What is stored may stay, though it would not be taken today.
        let old = stateful(json!({"spec.serviceName": "Not_A_Label", "spec.template.spec.containers": []}));
        let mut new = old.clone();
        new["spec"]["replicas"] = 5.into();
        assert_eq!(tested::updated(&StatefulSet, &old, &new), "[]");
        assert!(tested::created(&StatefulSet, &new).contains("spec.serviceName: Invalid value: \"Not_A_Label\""));
        let status = |status: Value| json!({ "status": status });
        assert_eq!(
            tested::updated_sub(
                &StatefulSet,
                "status",
                &status(json!({})),
                &status(json!({"replicas": 1, "currentReplicas": 2, "availableReplicas": 1}))
            ),
            "[status.currentReplicas: Invalid value: 2: cannot be greater than status.replicas, \
             status.availableReplicas: Invalid value: 1: cannot be greater than status.readyReplicas]"
        );
    }
}
