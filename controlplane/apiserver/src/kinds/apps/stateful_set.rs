//! StatefulSets.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{template_cells, template_defaults, template_warnings, validate_counts, validate_workload};
use crate::kinds::check::{Node, not_more_than_hundred_percent, positive_int_or_percent};
use crate::kinds::table::{named_wide, row_wide, template_columns, words};
use crate::kinds::value::{copy, default, default_text, ensure_list, int, list, list_mut, same_at, set, text};
use crate::resource::{Column, Context, Hooks};

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

    fn prepare_create(&self, _ctx: &Context<'_>, object: &mut Value) {
        set(object, "status", json!({"replicas": 0, "availableReplicas": 0}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, set: &Value) -> ErrorList {
        validate(set)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new);
        let mut munged = new.clone();
        for field in MUTABLE {
            copy(old, &mut munged, &format!("spec.{field}"));
        }
        if !same_at(&munged, old, "spec") {
            Node::root(new).child("spec").forbidden(&mut errors, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
        }
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        if ctx.subresource != "status" {
            return ErrorList::new();
        }
        validate_counts(
            new,
            &[
                "replicas",
                "readyReplicas",
                "availableReplicas",
                "currentReplicas",
                "updatedReplicas",
                "observedGeneration",
            ],
        )
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        template_warnings(new, old)
    }

    fn row(&self, set: &Value, now: Timestamp) -> Vec<Value> {
        let ready = format!("{}/{}", int(set, "status.readyReplicas"), int(set, "spec.replicas"));
        row_wide(set, now, vec![ready.into()], template_cells(set, None))
    }
}

fn validate(set: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(set).child("spec");
    let management = spec.child("podManagementPolicy");
    if !matches!(management.text(), "OrderedReady" | "Parallel") {
        management.invalid(&mut errors, "must be 'OrderedReady' or 'Parallel'");
    }
    let strategy = spec.child("updateStrategy");
    match strategy.child("type").text() {
        "" => strategy.missing(&mut errors, ""),
        "OnDelete" => {
            if strategy.has("rollingUpdate") {
                strategy.child("rollingUpdate").invalid(&mut errors, "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => {
            strategy.child("rollingUpdate.partition").non_negative(&mut errors);
            let unavailable = strategy.child("rollingUpdate.maxUnavailable");
            if unavailable.exists() {
                positive_int_or_percent(&unavailable, &mut errors);
                not_more_than_hundred_percent(&unavailable, &mut errors);
                if super::deployment::is_zero(unavailable.value) {
                    unavailable.invalid(&mut errors, "cannot be 0");
                }
            }
        }
        _ => strategy.invalid(&mut errors, "must be 'RollingUpdate' or 'OnDelete'"),
    }
    for field in ["whenDeleted", "whenScaled"] {
        spec.child("persistentVolumeClaimRetentionPolicy").child(field).one_of(&mut errors, &["Delete", "Retain"]);
    }
    spec.child("ordinals.start").non_negative(&mut errors);
    if !spec.child("serviceName").text().is_empty() {
        spec.child("serviceName").format(&mut errors, api::names::dns1123_subdomain);
    }
    let whole = with_claim_volumes(set);
    validate_workload(&Node::root(&whole).child("spec"), "statefulset", &mut errors);
    errors
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
    named_wide(vec![words("Ready", "Number of the pod with ready state")], template_columns(false))
}

#[cfg(test)]
mod tests {
    use super::*;
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
                json!({"spec.podManagementPolicy": "X"}),
                "spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'",
            ),
            (
                json!({"spec.updateStrategy.rollingUpdate.partition": -1}),
                "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
            ),
        ] {
            assert_eq!(join(&validate(&stateful(extra.clone()))), expected, "{extra}");
        }
    }
}
