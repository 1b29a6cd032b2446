//! What the registry does with every object's metadata. Pure; the rules are those of
//! `k8s.io/apiserver/pkg/registry/rest` (`BeforeCreate`, `BeforeUpdate`, `BeforeDelete`).

use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value, json};

use crate::error::{ApiError, Result};
use crate::resource::{Descriptor, Paths};

/// Letters and digits that names are generated from: no vowels, no look-alikes.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_SUFFIX: usize = 5;
const LONGEST_PREFIX: usize = 63 - NAME_SUFFIX;

pub fn generate_name(prefix: &str) -> String {
    let mut rng = rand::rng();
    let suffix = (0..NAME_SUFFIX).map(|_| char::from(NAME_ALPHABET[rng.random_range(0..NAME_ALPHABET.len())]));
    let prefix = if prefix.len() > LONGEST_PREFIX && prefix.is_char_boundary(LONGEST_PREFIX) {
        &prefix[..LONGEST_PREFIX]
    } else {
        prefix
    };
    prefix.chars().chain(suffix).collect()
}

/// `metadata` as a map, made if absent.
pub fn metadata_mut(object: &mut Value) -> Result<&mut Map<String, Value>> {
    let map = object.as_object_mut().ok_or_else(|| ApiError::bad_request("the object is not a JSON object"))?;
    // Not by `entry`, which is asked with a key of its own.
    if map.get("metadata").is_none_or(Value::is_null) {
        map.insert("metadata".to_owned(), json!({}));
    }
    let metadata = map.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.ok_or_else(|| ApiError::bad_request("metadata is not a JSON object"))
}

pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

pub fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The object's namespace must be the request's; an absent one is filled in.
pub fn check_namespace(object: &mut Value, namespace: &str) -> Result<()> {
    let metadata = metadata_mut(object)?;
    let own = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if namespace.is_empty() {
        metadata.remove("namespace");
    } else if own.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    } else if own != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// The object's name must be the path's; an absent one is filled in.
pub fn check_name(object: &mut Value, name: &str) -> Result<()> {
    let metadata = metadata_mut(object)?;
    let own = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if own.is_empty() {
        metadata.insert("name".into(), name.into());
    } else if own != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({own}) does not match the name on the URL ({name})"
        )));
    }
    Ok(())
}

/// As [`check_name`], of writes of whole objects: those must say their name.
pub fn require_name(object: &mut Value, name: &str) -> Result<()> {
    if text(object, "name").is_empty() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    check_name(object, name)
}

/// The type in the data must be the one of the path; an absent one is filled in.
pub fn check_type(object: &mut Value, api_version: &str, kind: &str, custom: bool) -> Result<()> {
    let map = object
        .as_object_mut()
        .ok_or_else(|| ApiError::bad_request(format!("Object 'Kind' is missing: a {kind} is wanted")))?;
    let given = |key: &str| map.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (given_kind, given_version) = (given("kind"), given("apiVersion"));
    if given_kind == Some(kind) && given_version == Some(api_version) {
        return Ok(());
    }
    let (own_kind, own_version) = (given_kind.unwrap_or(kind), given_version.unwrap_or(api_version));
    let (group, version) = crate::resource::split_api_version(own_version);
    let known = || crate::schema::type_of(group, version, own_kind).is_some();
    if own_kind != kind || (own_version != api_version && !custom && !known()) {
        let why = if known() {
            let (wanted, _) = crate::resource::split_api_version(api_version);
            let package = if wanted.is_empty() { "core" } else { wanted.split('.').next().unwrap_or(wanted) };
            format!("converting ({version}.{own_kind}) to ({package}.{kind}): unknown conversion")
        } else {
            format!(
                "no kind {own_kind:?} is registered for version {own_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
            )
        };
        return Err(ApiError::bad_request(format!(
            "{own_kind} in version {version:?} cannot be handled as a {kind}: {why}"
        )));
    }
    if own_version != api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({own_version}) does not match the expected API version ({api_version})"
        )));
    }
    for (key, text) in [("kind", kind), ("apiVersion", api_version)] {
        if map.get(key).and_then(Value::as_str) != Some(text) {
            map.insert(key.into(), text.into());
        }
    }
    Ok(())
}

/// Whether a new object says that it is stored already. What is no number is no version, as for upstream's
/// store, and is dropped.
pub fn claims_version(object: &Value) -> bool {
    text(object, "resourceVersion").parse::<u64>().is_ok_and(|version| version != 0)
}

/// Before mutating admission: what clients may not set at create goes.
pub fn clear_for_create(object: &mut Value) -> Result<()> {
    let metadata = metadata_mut(object)?;
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(key);
    }
    Ok(())
}

/// Takes repeated owners out of an object; the UIDs of those that were there before.
pub fn drop_repeated_owners(object: &mut Value) -> Vec<String> {
    let owners = object.get_mut("metadata").and_then(|metadata| metadata.get_mut("ownerReferences")?.as_array_mut());
    let Some(owners) = owners.filter(|owners| owners.len() > 1) else { return Vec::new() };
    let mut kept: Vec<Value> = Vec::with_capacity(owners.len());
    let mut repeated = Vec::new();
    for owner in owners.drain(..) {
        if kept.contains(&owner) {
            repeated.push(owner["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            kept.push(owner);
        }
    }
    *owners = kept;
    repeated
}

/// After mutating admission: identity, and status dropped where it is written separately.
pub fn prepare_create(descriptor: &Descriptor, object: &mut Value, now: Timestamp) -> Result<()> {
    let metadata = metadata_mut(object)?;
    let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
    if metadata.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() && !prefix.is_empty() {
        metadata.insert("name".into(), generate_name(prefix).into());
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), api::scalar::time(now).into());
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        metadata.remove(key);
    }
    if descriptor.generation {
        metadata.insert("generation".into(), 1.into());
    }
    if descriptor.status
        && !descriptor.keep_status_on_create
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    Ok(())
}

/// Metadata that no update changes is taken from `old`. A deletion that an update would begin, or give
/// another period, is left for validation to refuse.
pub fn keep_system_fields(new: &mut Value, old: &Value) -> Result<()> {
    let metadata = metadata_mut(new)?;
    if !old["metadata"]["deletionTimestamp"].is_null() {
        metadata.insert("deletionTimestamp".into(), old["metadata"]["deletionTimestamp"].clone());
    }
    let period = &old["metadata"]["deletionGracePeriodSeconds"];
    if !period.is_null() && !metadata.contains_key("deletionGracePeriodSeconds") {
        metadata.insert("deletionGracePeriodSeconds".into(), period.clone());
    }
    for key in ["uid", "creationTimestamp", "generation", "name", "namespace"] {
        match &old["metadata"][key] {
            Value::Null => {
                metadata.remove(key);
            }
            value if metadata.get(key) == Some(value) => {}
            value => {
                metadata.insert(key.into(), value.clone());
            }
        }
    }
    metadata.remove("selfLink");
    Ok(())
}

/// `status` stays as it is in `old`.
pub fn keep_status(new: &mut Value, old: &Value) {
    if let Some(map) = new.as_object_mut() {
        match old.get("status") {
            Some(status) => map.insert("status".into(), status.clone()),
            None => map.remove("status"),
        };
    }
}

/// For a write to `status`: everything of `old` but status and the metadata that goes with it, unless the
/// kind keeps that as well.
pub fn only_status(kept_parts: Paths, new: &mut Value, old: &Value) -> Result<()> {
    let mut kept = old.clone();
    if let (Some(map), Some(from)) = (kept.as_object_mut(), new.as_object_mut()) {
        match from.remove("status") {
            Some(status) => map.insert("status".into(), status),
            None => map.remove("status"),
        };
    }
    let keeps = |key: &str| kept_parts.iter().any(|path| *path == ["metadata"] || *path == ["metadata", key]);
    let written = ["labels", "annotations", "finalizers", "ownerReferences"].into_iter().filter(|key| !keeps(key));
    let metadata = metadata_mut(&mut kept)?;
    // These two are the write's own.
    for key in ["managedFields", "resourceVersion"].into_iter().chain(written) {
        match &new["metadata"][key] {
            Value::Null => metadata.remove(key),
            value => metadata.insert(key.into(), value.clone()),
        };
    }
    *new = kept;
    Ok(())
}

/// Counts a change of anything but metadata and status; the status of a custom resource counts where it
/// is written with the rest.
pub fn bump_generation(descriptor: &Descriptor, new: &mut Value, old: &Value) {
    if !descriptor.generation {
        return;
    }
    let (Some(a), Some(b)) = (new.as_object(), old.as_object()) else { return };
    let counted = |key: &str| match key {
        "metadata" | "kind" | "apiVersion" => false,
        "status" => descriptor.custom && !descriptor.status,
        _ => true,
    };
    let changed = a.iter().any(|(key, value)| counted(key) && b.get(key) != Some(value))
        || b.keys().any(|key| counted(key) && !a.contains_key(key));
    if changed {
        next_generation(new);
    }
}

pub fn next_generation(object: &mut Value) {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
    object["metadata"]["generation"] = generation.into();
}

/// `resourceVersion` and `uid` as preconditions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl Preconditions {
    /// Of a delete, which names the kind.
    pub fn check_delete(&self, group: &str, kind: &str, object: &Value) -> Result<()> {
        let (name, uid, version) = (text(object, "name"), text(object, "uid"), text(object, "resourceVersion"));
        let refused = |what: &str, wanted: &str, held: &str, guess: &str| {
            let why = format!(
                "the {what} in the precondition ({wanted}) does not match the {what} in record ({held}). The object might have been {guess}"
            );
            Err(ApiError::conflict(group, kind, name, why))
        };
        if let Some(wanted) = self.uid.as_deref().filter(|wanted| *wanted != uid) {
            return refused("UID", wanted, uid, "deleted and then recreated");
        }
        if let Some(wanted) = self.resource_version.as_deref().filter(|wanted| *wanted != version) {
            return refused("ResourceVersion", wanted, version, "modified");
        }
        Ok(())
    }

    /// Of a write to the object under `key`; what storage says of it.
    pub fn check_write(&self, group: &str, resource: &str, key: &str, object: &Value) -> Result<()> {
        let (name, uid, version) = (text(object, "name"), text(object, "uid"), text(object, "resourceVersion"));
        let refused = |what: &str, wanted: &str, held: &str| {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {held}"
            );
            Err(ApiError::conflict(group, resource, name, why))
        };
        if let Some(wanted) = self.uid.as_deref().filter(|wanted| *wanted != uid) {
            return refused("UID", wanted, uid);
        }
        if let Some(wanted) = self.resource_version.as_deref().filter(|wanted| *wanted != version) {
            return refused("ResourceVersion", wanted, version);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::ALL_BUT_STATUS;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05.678Z".parse().unwrap()
    }

    #[test]
    fn names_are_generated_from_a_safe_alphabet() {
        let name = generate_name("web-");
        assert_eq!(name.len(), 9);
        assert!(name[4..].bytes().all(|byte| NAME_ALPHABET.contains(&byte)), "{name}");
        assert_eq!(generate_name(&"x".repeat(100)).len(), 63);
    }

    #[test]
    fn a_status_that_is_written_with_the_rest_counts_for_custom_resources() {
        let mut custom = Descriptor::new("example.com", "v1", "Foo", "foos").with_generation();
        custom.custom = true;
        let mut apart = custom.clone();
        apart.status = true;
        let built_in = Descriptor::new("", "v1", "Foo", "foos").with_generation();
        for (descriptor, generation) in [(custom, 2), (apart, 1), (built_in, 1)] {
            let old = json!({"metadata": {"generation": 1}, "status": {"a": 1}});
            let mut new = json!({"metadata": {"generation": 1, "labels": {}}, "status": {"a": 2}});
            bump_generation(&descriptor, &mut new, &old);
            assert_eq!(new["metadata"]["generation"], generation);
        }
    }

    #[test]
    fn a_new_object_gets_its_identity() {
        let descriptor = Descriptor::new("apps", "v1", "Deployment", "deployments").with_status().with_generation();
        let mut object =
            json!({"metadata": {"generateName": "web-", "uid": "mine", "deletionTimestamp": "x"}, "status": {}});
        clear_for_create(&mut object).unwrap();
        prepare_create(&descriptor, &mut object, now()).unwrap();
        assert!(text(&object, "name").starts_with("web-"));
        assert_ne!(text(&object, "uid"), "mine");
        assert_eq!(text(&object, "creationTimestamp"), "2026-01-02T03:04:05Z");
        assert_eq!(object["metadata"]["generation"], 1);
        assert!(object.get("status").is_none());
        assert!(!is_deleting(&object));
    }

    #[test]
    fn only_a_number_claims_a_version() {
        for (version, claims) in [("5", true), ("0", false), ("", false), ("v1", false), ("-1", false)] {
            let mut object = json!({"metadata": {"resourceVersion": version}});
            assert_eq!(claims_version(&object), claims, "{version}");
            clear_for_create(&mut object).unwrap();
            assert_eq!(object, json!({"metadata": {}}));
        }
        assert!(!claims_version(&json!({})));
    }

    #[test]
    fn generation_counts_changes_of_the_spec_only() {
        let descriptor = Descriptor::new("apps", "v1", "Deployment", "deployments").with_generation();
        let old = json!({"metadata": {"generation": 3, "labels": {}}, "spec": {"replicas": 1}, "status": {"x": 1}});
        let mut same = json!({"metadata": {"generation": 3, "labels": {"a": "b"}}, "spec": {"replicas": 1}});
        bump_generation(&descriptor, &mut same, &old);
        assert_eq!(same["metadata"]["generation"], 3);
        let mut changed = json!({"metadata": {"generation": 3}, "spec": {"replicas": 2}});
        bump_generation(&descriptor, &mut changed, &old);
        assert_eq!(changed["metadata"]["generation"], 4);
    }

    #[test]
    fn a_status_write_leaves_the_spec_and_what_its_kind_says() {
        let old = json!({"metadata": {"name": "a", "uid": "u", "labels": {"x": "1"}}, "spec": 1, "status": 1});
        let new = json!({"metadata": {"name": "a", "resourceVersion": "7", "annotations": {"y": "1"}, "labels": {"x": "2"}}, "spec": 2, "status": 2});
        let (labels, annotations) = (json!({"x": "1"}), json!({"y": "1"}));
        let cases: [(Paths, Value); 3] = [
            (&[&["spec"]], json!({"labels": {"x": "2"}, "annotations": annotations})),
            (&[&["spec"], &["metadata", "labels"]], json!({"labels": labels, "annotations": annotations})),
            (ALL_BUT_STATUS, json!({"labels": labels})),
        ];
        for (kept, metadata) in cases {
            let mut written = new.clone();
            only_status(kept, &mut written, &old).unwrap();
            let mut wanted = json!({"metadata": metadata, "spec": 1, "status": 2});
            for (key, value) in [("name", "a"), ("uid", "u"), ("resourceVersion", "7")] {
                wanted["metadata"][key] = value.into();
            }
            assert_eq!(written, wanted);
        }
    }

    #[test]
    fn types_names_and_namespaces_must_fit_the_path() {
        let mut object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"namespace": "a", "name": "x"}});
        assert!(check_type(&mut object, "v1", "Pod", true).is_ok());
        assert_eq!(check_type(&mut object, "v1", "Service", true).unwrap_err().code(), 400);
        assert_eq!(
            check_type(&mut object, "v2", "Pod", true).unwrap_err().message(),
            "the API version in the data (v1) does not match the expected API version (v2)"
        );
        assert!(check_namespace(&mut object, "b").is_err());
        assert!(check_name(&mut object, "y").is_err());
    }

    #[test]
    fn preconditions_name_both_sides() {
        let object = json!({"metadata": {"name": "a", "uid": "u1", "resourceVersion": "5"}});
        let wrong = Preconditions { uid: Some("u2".into()), resource_version: None };
        assert_eq!(
            wrong.check_write("", "pods", "/registry/pods/d/a", &object).unwrap_err().message(),
            "Operation cannot be fulfilled on pods \"a\": StorageError: invalid object, Code: 4, Key: /registry/pods/d/a, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: u2, UID in object meta: u1"
        );
        assert_eq!(
            wrong.check_delete("", "Pod", &object).unwrap_err().message(),
            "Operation cannot be fulfilled on Pod \"a\": the UID in the precondition (u2) does not match the UID in record (u1). The object might have been deleted and then recreated"
        );
        assert!(Preconditions::default().check_delete("", "Pod", &object).is_ok());
    }
}
