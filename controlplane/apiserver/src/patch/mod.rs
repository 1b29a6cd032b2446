//! Patches on JSON values, and server-side apply. Nothing here knows a kind by name: what lists
//! merge by comes from the [`Schema`].
//!
//! - [`json`]: RFC 6902; [`merge`]: RFC 7386;
//! - [`strategic`](strategic()): Kubernetes' strategic merge patch, with all its directives;
//! - `apply`: server-side apply and `managedFields`.
//!
//! Results are not yet normalised: unknown fields that a patch brought in are found by
//! [`crate::schema::normalize()`].

pub mod apply;
mod strategic;

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::schema::Schema;

/// What a JSON patch may hold at most.
const MAX_OPERATIONS: usize = 10_000;
/// An array that grows by `copy` may make a document this many bytes larger at most.
const MAX_GROWTH: usize = 3 * 1024 * 1024;
/// Documents that a patch would nest deeper are refused: every later step may then recurse.
const MAX_DEPTH: usize = 120;

/// Applies a JSON patch.
pub fn json(live: &Value, patch: &Value) -> Result<Value, ApiError> {
    let Value::Array(operations) = patch else {
        return Err(ApiError::bad_request(
            "error decoding patch: json: cannot unmarshal a value that is no array into Go value of type jsonpatch.Patch",
        ));
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(ApiError::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let decode = |error: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {error}"));
    let mut patched = live.clone();
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        if operation["op"] == "copy" {
            let source = operation["from"].as_str().and_then(|from| patched.pointer(from));
            copied += source.map_or(0, |value| value.to_string().len());
            if copied > MAX_GROWTH {
                return Err(rejected("the copy operations of the patch add too much data"));
            }
        }
        if deepest(operation, &patched) > MAX_DEPTH {
            return Err(rejected(&format!("operation {index} nests values deeper than {MAX_DEPTH} levels")));
        }
        if tests_absence(operation, &patched) {
            continue;
        }
        let one: json_patch::PatchOperation = serde_json::from_value(operation.clone()).map_err(decode)?;
        json_patch::patch(&mut patched, &[one]).map_err(|error| {
            rejected(&format!("operation {index} failed at path {:?}: {}", error.path.as_str(), error.kind))
        })?;
    }
    Ok(patched)
}

/// A test for null holds of a member that is not there, as upstream's patches have it; clients add
/// the first finalizer that way.
fn tests_absence(operation: &Value, document: &Value) -> bool {
    let Some((parent, name)) = operation["path"].as_str().and_then(|path| path.rsplit_once('/')) else { return false };
    let name = name.replace("~1", "/").replace("~0", "~");
    operation["op"] == "test"
        && operation.get("value").is_some_and(Value::is_null)
        && document.pointer(parent).and_then(Value::as_object).is_some_and(|members| !members.contains_key(&name))
}

/// How deep an operation reaches into the document that it makes.
fn deepest(operation: &Value, document: &Value) -> usize {
    let pointer = |key: &str| operation[key].as_str();
    let moved = match pointer("op") {
        Some("copy" | "move") => pointer("from").and_then(|from| document.pointer(from)),
        Some("add" | "replace") => Some(&operation["value"]),
        _ => None,
    };
    let place = pointer("path").map_or(0, |path| path.matches('/').count());
    place + moved.map_or(0, depth)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// A patch that is well-formed but cannot be applied; the cause says why.
fn rejected(why: &str) -> ApiError {
    ApiError::unprocessable("the server rejected our request due to an error in our request").with_cause(
        "FieldValueInvalid",
        why,
        "patch",
    )
}

/// Applies a JSON merge patch.
pub fn merge(live: &Value, patch: &Value) -> Result<Value, ApiError> {
    if !patch.is_object() {
        return Err(ApiError::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            if patch.is_array() {
                "array"
            } else if patch.is_string() {
                "string"
            } else {
                "number"
            }
        )));
    }
    let mut patched = live.clone();
    merge_into(&mut patched, patch);
    Ok(patched)
}

fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, change) in changes {
        if change.is_null() {
            members.remove(name);
        } else {
            merge_into(members.entry(name.as_str()).or_insert(Value::Null), change);
        }
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
    let (Value::Object(live), Value::Object(patch)) = (live, patch) else {
        return Err(ApiError::bad_request("invalid JSON document"));
    };
    let merged = strategic::merge_map(schema.root(), live.clone(), patch.clone());
    merged.map(Value::Object).map_err(|error| ApiError::bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn json_patches() {
        let live = json!({"a": {"b": [1, 2]}, "c": "x"});
        for (patch, result) in [
            (json!([{"op": "add", "path": "/a/b/-", "value": 3}]), json!({"a": {"b": [1, 2, 3]}, "c": "x"})),
            (
                json!([{"op": "test", "path": "/c", "value": "x"}, {"op": "remove", "path": "/c"}]),
                json!({"a": {"b": [1, 2]}}),
            ),
            (
                json!([{"op": "test", "path": "/a/x~1y", "value": null}, {"op": "add", "path": "/a/x~1y", "value": [1]}]),
                json!({"a": {"b": [1, 2], "x/y": [1]}, "c": "x"}),
            ),
            (json!([{"op": "move", "from": "/c", "path": "/a/d"}]), json!({"a": {"b": [1, 2], "d": "x"}})),
            (json!([]), live.clone()),
        ] {
            assert_eq!(json(&live, &patch).unwrap(), result);
        }
        for (patch, code) in [
            (json!([{"op": "test", "path": "/c", "value": "y"}]), 422),
            (json!([{"op": "test", "path": "/c", "value": null}]), 422),
            (json!([{"op": "test", "path": "/none/of/it", "value": null}]), 422),
            (json!([{"op": "remove", "path": "/nothing"}]), 422),
            (json!([{"op": "replace", "path": "/a/b/7", "value": 1}]), 422),
            (json!([{"op": "bogus", "path": "/a"}]), 400),
            (json!([{"path": "/a"}]), 400),
            (json!({"a": 1}), 400),
            (json!(vec![json!({"op": "test", "path": "/c", "value": "x"}); 10_001]), 413),
        ] {
            let error = json(&live, &patch).unwrap_err();
            assert_eq!(error.code().as_u16(), code, "{error}");
        }
    }

    #[test]
    fn merge_patches_follow_the_rfc() {
        for (live, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": [1]}), json!({"a": {"x": 1, "y": null}}), json!({"a": {"x": 1}})),
            (json!({"a": {"b": 1}}), json!({"a": {"c": {"d": null}}}), json!({"a": {"b": 1, "c": {}}})),
        ] {
            assert_eq!(merge(&live, &patch).unwrap(), result);
        }
        assert_eq!(merge(&json!({}), &json!([])).unwrap_err().code(), 400);
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

        #[test]
        fn json_patches_never_panic(live in any_json(), path in "(/[a-c0-9~-]{0,2}){0,4}", from in "(/[a-c0-9]{0,2}){0,3}", op in "add|remove|replace|move|copy|test", value in any_json()) {
            let _ = json(&live, &json!([{"op": op, "path": path, "from": from, "value": value}]));
        }
    }

    #[test]
    fn a_patch_that_copies_a_value_into_itself_is_refused_not_crashed_on() {
        let mut path = "/a".to_owned();
        let mut operations = Vec::new();
        for _ in 0..20 {
            let deeper = format!("{path}{path}");
            operations.push(serde_json::json!({"op": "copy", "from": "/a", "path": deeper}));
            path = deeper;
        }
        let error = json(&serde_json::json!({"a": {}}), &operations.into()).unwrap_err();
        assert_eq!(error.code(), 422);
    }
}
