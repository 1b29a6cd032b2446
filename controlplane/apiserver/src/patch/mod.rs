//! Patches on JSON values, and server-side apply. Nothing here knows a kind by name: what lists
//! merge by comes from the [`Schema`].
//!
//! - [`json`](json()): RFC 6902; [`merge`]: RFC 7386;
//! - [`strategic`](strategic()): Kubernetes' strategic merge patch, with all its directives;
//! - `apply`: server-side apply and `managedFields`.
//!
//! Results are not yet normalised: unknown fields that a patch brought in are found by
//! [`crate::schema::normalize()`].

pub mod apply;
mod json;
pub(crate) mod shown;
mod strategic;

pub use json::{JsonPatchError, json};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::schema::Schema;
use crate::schema::normalize::json_type;

/// Applies a JSON merge patch.
pub fn merge(live: &Value, patch: &Value) -> Result<Value, ApiError> {
    let Value::Object(changes) = patch else {
        return Err(ApiError::bad_request(match patch {
            Value::Null => "Invalid JSON Patch".to_owned(),
            other => format!("error decoding patch: {}", no_map(other)),
        }));
    };
    let mut patched = live.clone();
    merge_into(&mut patched, changes);
    Ok(patched)
}

fn no_map(value: &Value) -> String {
    format!("json: cannot unmarshal {} into Go value of type map[string]interface {{}}", json_type(value))
}

fn merge_into(target: &mut Value, changes: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, change) in changes {
        match change {
            Value::Null => drop(members.remove(name)),
            Value::Object(changes) => merge_into(members.entry(name.as_str()).or_insert(Value::Null), changes),
            change => drop(members.insert(name.clone(), without_nulls(change))),
        }
    }
}

/// A value in which no object has a null, at any depth.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.iter().filter(|(_, value)| !value.is_null());
            Value::Object(members.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// Applies a strategic merge patch; custom resources have none (415).
pub fn strategic(schema: &Schema, live: &Value, patch: &Value) -> Result<Value, ApiError> {
    if !schema.is_builtin() {
        return Err(ApiError::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ]));
    }
    let (live, patch) = match (live, patch) {
        (live, Value::Null) => return Ok(live.clone()),
        (Value::Object(live), Value::Object(patch)) => (live, patch),
        (_, patch) => return Err(ApiError::bad_request(no_map(patch))),
    };
    let mut merged = strategic::merge_map(schema.root(), live.clone(), patch.clone()).map_err(ApiError::from)?;
    // The outcome is read as the type that was patched, whatever the patch calls it: a Scale is sent as a Deployment.
    for name in ["apiVersion", "kind"] {
        if let Some(own) = live.get(name)
            && merged.get(name).is_none_or(Value::is_string)
        {
            merged.insert(name.to_owned(), own.clone());
        }
    }
    Ok(Value::Object(merged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn merge_patches_follow_the_rfc() {
        for (live, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": [1]}), json!({"a": {"x": 1, "y": null}}), json!({"a": {"x": 1}})),
            (json!({"a": {"b": 1}}), json!({"a": {"c": {"d": null}}}), json!({"a": {"b": 1, "c": {}}})),
            // Upstream's are not: nulls also go from objects in lists.
            (json!({}), json!({"a": [{"b": null, "c": [{"d": null}]}, null]}), json!({"a": [{"c": [{}]}, null]})),
        ] {
            assert_eq!(merge(&live, &patch).unwrap(), result);
        }
        for (patch, why) in [
            (json!(null), "Invalid JSON Patch"),
            (
                json!([]),
                "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
            ),
        ] {
            let error = merge(&json!({}), &patch).unwrap_err();
            assert_eq!((error.code().as_u16(), error.message()), (400, why));
        }
    }

    #[test]
    fn a_strategic_patch_does_not_change_the_type() {
        let kind = crate::resource::GroupVersionKind::new("autoscaling", "v1", "Scale");
        let schema = crate::schema::lookup(&kind).unwrap();
        let live = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 1}});
        let scaled = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 2}});
        for own in [json!({"kind": "Deployment"}), json!({"kind": null, "apiVersion": "apps/v1"}), json!({})] {
            let mut patch = own.clone();
            patch["spec"] = json!({"replicas": 2});
            assert_eq!(strategic(&schema, &live, &patch).unwrap(), scaled, "{own}");
        }
        // What is no text cannot be read at all, and is left for whoever reads the outcome to say so.
        assert_eq!(strategic(&schema, &live, &json!({"kind": 5})).unwrap()["kind"], 5);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Applying a merge patch twice is applying it once.
        #[test]
        fn merging_is_idempotent(live in any_json(), patch in any_json()) {
            if let Ok(once) = merge(&live, &patch) {
                prop_assert_eq!(merge(&once, &patch).unwrap(), once);
            }
        }
    }
}
