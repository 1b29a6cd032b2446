//! PersistentVolumeClaims (`pkg/api/persistentvolumeclaim`). Neighbour: [`super::persistent_volume`].

mod change;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::pod::quantity;
use super::pod::resources::resource_quantity;
use crate::kinds::check::{Node, label_selector, label_selector_where};
use crate::kinds::table::{UNSET, access_modes, named_wide, row_wide, words};
use crate::kinds::value::{annotation, at, default, default_text, has, list, map, opt_text, remove, set, text};
use crate::resource::{Column, Context, Hooks};

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// The class of a volume or claim: the old annotation goes first.
pub fn class(object: &Value) -> Option<&str> {
    annotation(object, CLASS_ANNOTATION).or_else(|| opt_text(object, "spec.storageClassName"))
}

/// An amount of storage; an absent one counts as none at all.
pub fn storage<'a>(object: &'a Value, path: &str) -> &'a str {
    opt_text(object, path).unwrap_or("0")
}

/// The annotation that stood for the class before there was a field.
pub fn old_class(object: &Value) -> Option<String> {
    annotation(object, CLASS_ANNOTATION)?;
    Some(format!(
        "metadata.annotations[{CLASS_ANNOTATION}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
    ))
}

pub struct Claim;

impl Hooks for Claim {
    fn defaults(&self, claim: &mut Value) {
        default_text(claim, "status.phase", "Pending");
        claim_spec_defaults(claim);
    }

    fn prepare_create(&self, _ctx: &Context<'_>, claim: &mut Value) {
        set(claim, "status", json!({"phase": "Pending"}));
        data_sources(claim, None);
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        data_sources(new, Some(old));
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        // What only a feature that is off would report.
        if ctx.subresource == "status" && !has(old, "status.healthStatus") {
            remove(new, "status.healthStatus");
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, claim: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        validate_spec(&Node::root(claim).child("spec"), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        change::update(new, old)
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        change::status(new)
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        old_class(new).into_iter().chain(fractional_sizes(at(new, "spec"), "spec")).collect()
    }

    fn row(&self, claim: &Value, now: Timestamp) -> Vec<Value> {
        let phase = if has(claim, "metadata.deletionTimestamp") { "Terminating" } else { text(claim, "status.phase") };
        let bound = !text(claim, "spec.volumeName").is_empty();
        let (capacity, modes) = if bound {
            (storage(claim, "status.capacity.storage"), access_modes(list(claim, "status.accessModes")))
        } else {
            ("", String::new())
        };
        row_wide(
            claim,
            now,
            vec![
                phase.into(),
                text(claim, "spec.volumeName").into(),
                capacity.into(),
                modes.into(),
                class(claim).unwrap_or("").into(),
                opt_text(claim, "spec.volumeAttributesClassName").unwrap_or(UNSET).into(),
            ],
            vec![opt_text(claim, "spec.volumeMode").unwrap_or(UNSET).into()],
        )
    }
}

fn claim_spec_defaults(claim: &mut Value) {
    default(claim, "spec.volumeMode", "Filesystem");
}

/// `dataSource` and `dataSourceRef` say the same when they can. A new `dataSource` of a kind that
/// only `dataSourceRef` may name is dropped, and so is a new reference into another namespace.
fn data_sources(claim: &mut Value, old: Option<&Value>) {
    let before = |field: &str| old.is_some_and(|old| has(old, field));
    if !text(claim, "spec.dataSourceRef.namespace").is_empty() && !before("spec.dataSourceRef") {
        remove(claim, "spec.dataSourceRef");
    }
    let in_use = before("spec.dataSource") || before("spec.dataSourceRef");
    if !in_use && !has(claim, "spec.dataSourceRef") && !is_claim_or_snapshot(at(claim, "spec.dataSource")) {
        remove(claim, "spec.dataSource");
    }
    if has(claim, "spec.dataSource") && !has(claim, "spec.dataSourceRef") {
        let source = at(claim, "spec.dataSource").clone();
        set(claim, "spec.dataSourceRef", source);
    } else if has(claim, "spec.dataSourceRef")
        && !has(claim, "spec.dataSource")
        && text(claim, "spec.dataSourceRef.namespace").is_empty()
    {
        let mut source = at(claim, "spec.dataSourceRef").clone();
        remove(&mut source, "namespace");
        set(claim, "spec.dataSource", source);
    }
}

fn is_claim_or_snapshot(source: &Value) -> bool {
    matches!(
        (text(source, "kind"), text(source, "apiGroup")),
        ("PersistentVolumeClaim", "") | ("VolumeSnapshot", "snapshot.storage.k8s.io")
    )
}

/// Warnings about a claim's spec at `path` (`GetWarningsForPersistentVolumeClaimSpec`).
pub fn fractional_sizes(spec: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for side in ["requests", "limits"] {
        let amount = map(spec, &format!("resources.{side}")).and_then(|amounts| amounts.get("storage"));
        if let Some(amount) = amount.and_then(quantity).filter(|amount| !amount.is_integer()) {
            found.push(format!(
                "{path}.resources.{side}[storage]: fractional byte value \"{amount}\" is invalid, must be an integer"
            ));
        }
    }
    found
}

/// What a stored claim may hold although it is refused today.
#[derive(Default)]
struct Kept {
    selector_values: bool,
    data_source_group: bool,
}

impl Kept {
    fn of(old: &Value) -> Self {
        let mut errors = ErrorList::new();
        label_selector(&Node::root(old).child("spec.selector"), &mut errors);
        let named = ["spec.dataSource.apiGroup", "spec.dataSourceRef.apiGroup"];
        Self { selector_values: !errors.is_empty(), data_source_group: named.iter().any(|path| has(old, path)) }
    }
}

/// `PersistentVolumeClaimSpec`, also of templates.
pub fn validate_spec(spec: &Node<'_>, errors: &mut ErrorList) {
    validate_kept(spec, &Kept::default(), errors);
}

fn validate_kept(spec: &Node<'_>, kept: &Kept, errors: &mut ErrorList) {
    if spec.child("accessModes").is_empty() {
        spec.child("accessModes").missing(errors, "at least 1 access mode is required");
    }
    label_selector_where(&spec.child("selector"), !kept.selector_values, errors);
    modes(spec, errors);
    let asked = spec.child("resources.requests.storage").value;
    let storage = Node::new(asked, spec.child("resources").path.key("storage"));
    if !storage.exists() {
        storage.missing(errors, "");
    } else if !positive_quantity(&storage, errors) {
        resource_quantity("storage", &storage, errors);
    }
    if !spec.child("storageClassName").text().is_empty() {
        spec.child("storageClassName").format(errors, names::dns1123_subdomain);
    }
    spec.child("volumeMode").optional_one_of(errors, &["Block", "Filesystem"]);
    let (source, reference) = (spec.child("dataSource"), spec.child("dataSourceRef"));
    for part in [&source, &reference] {
        data_source(part, kept, errors);
    }
    let namespace = reference.child("namespace");
    if !namespace.text().is_empty() {
        namespace.format(errors, names::dns1123_label);
    }
    // The value shown is the path itself, which has nothing to show.
    let clash = |errors: &mut ErrorList, detail: &str| errors.push(Error::invalid(&spec.path, json!({}), detail));
    if !namespace.text().is_empty() && source.exists() {
        clash(errors, "may not be specified when dataSourceRef.namespace is specified");
    } else if source.exists() && reference.exists() {
        let said = |field: &str| source.child(field).value == reference.child(field).value;
        if !["apiGroup", "kind", "name"].into_iter().all(said) {
            clash(errors, "must match dataSourceRef");
        }
    }
    if !spec.child("volumeAttributesClassName").text().is_empty() {
        spec.child("volumeAttributesClassName").format(errors, names::dns1123_subdomain);
    }
}

fn data_source(source: &Node<'_>, kept: &Kept, errors: &mut ErrorList) {
    if !source.exists() {
        return;
    }
    source.child("name").required(errors, "");
    source.child("kind").required(errors, "");
    let (group, kind) = (source.child("apiGroup"), source.child("kind").text());
    if group.text().is_empty() && kind != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(Error::invalid(&source.path, kind, detail));
    }
    if !group.text().is_empty() && !kept.data_source_group {
        group.format(errors, names::dns1123_subdomain);
    }
}

/// Greater than zero; says whether it was not.
pub fn positive_quantity(amount: &Node<'_>, errors: &mut ErrorList) -> bool {
    let wrong = quantity(amount.value).is_some_and(|amount| amount.is_negative() || amount.is_zero());
    if wrong {
        amount.invalid(errors, "must be greater than zero");
    }
    wrong
}

/// Known access modes, `ReadWriteOncePod` alone.
pub fn modes(spec: &Node<'_>, errors: &mut ErrorList) {
    let all = spec.child("accessModes");
    let (mut exclusive, mut shared) = (false, false);
    for mode in spec.items("accessModes") {
        match mode.text() {
            "ReadWriteOncePod" => exclusive = true,
            known if MODES.contains(&known) => shared = true,
            unknown => errors.push(Error::not_supported(&all.path, unknown, &MODES)),
        }
    }
    if exclusive && shared {
        all.forbidden(errors, "may not use ReadWriteOncePod with other access modes");
    }
}

pub fn claim_columns() -> Vec<Column> {
    named_wide(
        vec![
            words("Status", "phase represents the current phase of PersistentVolumeClaim."),
            words("Volume", "volumeName is the binding reference to the PersistentVolume backing this claim."),
            words("Capacity", "capacity represents the actual resources of the underlying volume."),
            words(
                "Access Modes",
                "accessModes contains the actual access modes the volume backing the PVC has. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes-1",
            ),
            words("StorageClass", "StorageClass of the pvc"),
            words("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
        ],
        vec![words(
            "VolumeMode",
            "volumeMode defines what type of volume is required by the claim. Value of Filesystem is implied when not included in claim spec.",
        )],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, prepared, updated};

    pub fn claim(extra: Value) -> Value {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "n"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        for (path, value) in extra.as_object().expect("the test's own fields") {
            set(&mut claim, path, value.clone());
        }
        claim
    }

    #[test]
    fn created_claims() {
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"spec": {}}),
                "[spec.accessModes: Required value: at least 1 access mode is required, spec.resources[storage]: Required value]",
            ),
            (
                json!({"spec.accessModes": ["ReadWriteOncePod", "ReadWriteOnce", "Never"]}),
                "[spec.accessModes: Unsupported value: \"Never\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\", \
                 spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes]",
            ),
            (json!({"spec.accessModes": ["ReadWriteOncePod", "ReadWriteOncePod"]}), "[]"),
            (
                json!({"spec.resources.requests.storage": "0"}),
                "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
            ),
            (
                json!({"spec.volumeMode": "Tape"}),
                "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
            ),
            (json!({"spec.dataSource": {"kind": "PersistentVolumeClaim", "name": "d"}}), "[]"),
            // A kind that the old field never took is dropped.
            (json!({"spec.dataSource": {"kind": "Pod", "name": "d"}}), "[]"),
            (
                json!({"spec.dataSourceRef": {"kind": "Pod", "name": ""}}),
                "[spec.dataSource.name: Required value, \
                 spec.dataSource: Invalid value: \"Pod\": must be 'PersistentVolumeClaim' when referencing the default apiGroup, \
                 spec.dataSourceRef.name: Required value, \
                 spec.dataSourceRef: Invalid value: \"Pod\": must be 'PersistentVolumeClaim' when referencing the default apiGroup]",
            ),
            (
                json!({"spec.dataSource": {"kind": "PersistentVolumeClaim", "name": "d"}, "spec.dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "e"}}),
                "spec: Invalid value: {}: must match dataSourceRef",
            ),
            (
                json!({"spec.volumeAttributesClassName": "A"}),
                "spec.volumeAttributesClassName: Invalid value: \"A\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ),
        ] {
            assert_eq!(created(&Claim, &claim(extra.clone())), expected, "{extra}");
        }
    }

    #[test]
    fn data_sources_say_the_same() {
        let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        let elsewhere = json!({"kind": "PersistentVolumeClaim", "name": "s", "namespace": "other"});
        for (given, old, (source, reference)) in [
            (json!({"dataSource": snapshot}), json!({}), (snapshot.clone(), snapshot.clone())),
            (json!({"dataSourceRef": snapshot}), json!({}), (snapshot.clone(), snapshot.clone())),
            (json!({"dataSource": {"kind": "Pod", "name": "p"}}), json!({}), (Value::Null, Value::Null)),
            (json!({"dataSourceRef": elsewhere}), json!({}), (Value::Null, Value::Null)),
            (
                json!({"dataSourceRef": elsewhere}),
                json!({"dataSourceRef": elsewhere}),
                (Value::Null, elsewhere.clone()),
            ),
        ] {
            let mut new = json!({ "spec": given });
            prepared(&Claim, &mut new, &json!({ "spec": old }));
            assert_eq!((at(&new, "spec.dataSource"), at(&new, "spec.dataSourceRef")), (&source, &reference), "{given}");
        }
    }

    #[test]
    fn what_is_stored_may_stay() {
        let bad =
            claim(json!({"spec.selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["-"]}]}}));
        assert_eq!(updated(&Claim, &bad, &bad), "[]");
        assert!(created(&Claim, &bad).starts_with("spec.selector.matchExpressions[0].values[0]: Invalid value: \"-\""));
        let source = json!({"apiGroup": "A", "kind": "K", "name": "n"});
        let grouped = claim(json!({"spec.dataSource": source, "spec.dataSourceRef": source}));
        assert_eq!(updated(&Claim, &grouped, &grouped), "[]");
    }

    #[test]
    fn warned() {
        let mut claim = claim(json!({"spec.resources.limits": {"storage": "1500m"}}));
        set(&mut claim, "metadata.annotations", json!({ CLASS_ANNOTATION: "a" }));
        assert_eq!(
            Claim.warnings(&claim, None),
            [
                "metadata.annotations[volume.beta.kubernetes.io/storage-class]: deprecated since v1.8; use \"storageClassName\" attribute instead",
                "spec.resources.limits[storage]: fractional byte value \"1500m\" is invalid, must be an integer",
            ]
        );
    }
}
