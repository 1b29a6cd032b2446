//! What the `scale` subresource reads of a custom resource must be numbers of replicas, whatever the
//! schema says of them (`customresource/validator.go` of apiextensions-apiserver).

use api::field::{Error, ErrorList, Path};
use serde_json::Value;

use crate::patch::shown::{go_text, go_type};
use crate::resource::ScalePaths;

pub fn check_spec(object: &Value, paths: &ScalePaths, errors: &mut ErrorList) {
    check_count(object, &paths.spec_replicas, errors);
}

pub fn check_status(object: &Value, paths: &ScalePaths, errors: &mut ErrorList) {
    check_count(object, &paths.status_replicas, errors);
    if let Some(selector) = &paths.selector
        && let Err(why) = found(object, selector, "string", Value::is_string)
    {
        errors.push(Error::invalid(&place(selector), "", why));
    }
}

/// As the definition writes it.
fn place(path: &str) -> Path {
    Path::root(&format!(".{path}"))
}

fn check_count(object: &Value, path: &str, errors: &mut ErrorList) {
    let count = match found(object, path, "int64", Value::is_i64) {
        Ok(count) => count.and_then(Value::as_i64).unwrap_or(0),
        Err(why) => return errors.push(Error::invalid(&place(path), 0, why)),
    };
    if count < 0 {
        errors.push(Error::invalid(&place(path), count, "should be a non-negative integer"));
    } else if count > i64::from(i32::MAX) {
        errors.push(Error::invalid(&place(path), count, format!("should be less than or equal to {}", i32::MAX)));
    }
}

/// The value at a dotted path, if there is one; `Err` says that it, or what it would be in, is of another type.
/// In null there is nothing.
fn found<'a>(
    object: &'a Value,
    path: &str,
    wanted: &str,
    fits: impl Fn(&Value) -> bool,
) -> Result<Option<&'a Value>, String> {
    let (mut value, mut walked) = (object, String::new());
    for name in path.split('.') {
        walked.push('.');
        walked.push_str(name);
        if value.is_null() {
            return Ok(None);
        }
        if !value.is_object() {
            return Err(other_type(&walked, value, "map[string]interface{}"));
        }
        let Some(next) = value.get(name) else { return Ok(None) };
        value = next;
    }
    if fits(value) { Ok(Some(value)) } else { Err(other_type(&walked, value, wanted)) }
}

fn other_type(path: &str, value: &Value, wanted: &str) -> String {
    format!("{path} accessor error: {} is of the type {}, expected {wanted}", go_text(value), go_type(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_and_selectors() {
        let paths = ScalePaths {
            spec_replicas: "spec.replicas".into(),
            status_replicas: "status.replicas".into(),
            selector: Some("status.selector".into()),
        };
        for (object, expected) in [
            (json!({}), &[][..]),
            (json!({"spec": null, "status": null}), &[]),
            (json!({"spec": {"replicas": 3}, "status": {"selector": "a=b"}}), &[]),
            (
                json!({"spec": {"replicas": -1}}),
                &[".spec.replicas: Invalid value: -1: should be a non-negative integer"],
            ),
            (
                json!({"status": {"replicas": 2_147_483_648_u32}}),
                &[".status.replicas: Invalid value: 2147483648: should be less than or equal to 2147483647"],
            ),
            (
                json!({"spec": {"replicas": "x"}, "status": {"selector": 1}}),
                &[
                    ".spec.replicas: Invalid value: 0: .spec.replicas accessor error: x is of the type string, expected int64",
                    ".status.selector: Invalid value: \"\": .status.selector accessor error: 1 is of the type int64, expected string",
                ],
            ),
            (
                json!({"spec": 5}),
                &[
                    ".spec.replicas: Invalid value: 0: .spec.replicas accessor error: 5 is of the type int64, expected map[string]interface{}",
                ],
            ),
        ] {
            let mut errors = ErrorList::new();
            check_spec(&object, &paths, &mut errors);
            check_status(&object, &paths, &mut errors);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{object}");
        }
    }
}
