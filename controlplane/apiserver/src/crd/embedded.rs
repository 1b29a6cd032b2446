//! Objects within custom resources (`x-kubernetes-embedded-resource`): they say what they are, and
//! their metadata is sound.
//!
//! Upstream: `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta`.

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::{Value, json};

use crate::kinds::meta;
use crate::registry::metadata;
use crate::resource::NameRule;
use crate::schema::Structural;

/// Adds what is wrong with the objects in `value`, which `schema` is of and which is at `path`.
pub fn check(value: &Value, schema: &Structural, path: &Path, errors: &mut ErrorList) {
    match value {
        Value::Object(members) => {
            if schema.embedded_resource {
                kind_of_object(value, path, errors);
                if value.get("metadata").is_some() {
                    metadata_of(value, path, errors);
                }
            }
            for (name, value) in members {
                if let Some(field) = schema.property(name) {
                    check(value, field, &path.child(name), errors);
                } else if let Some(schema) = schema.inner(name) {
                    check(value, schema, &path.key(name), errors);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            items.iter().enumerate().for_each(|(index, item)| check(item, schema, &path.index(index), errors));
        }
        _ => {}
    }
}

fn kind_of_object(object: &Value, path: &Path, errors: &mut ErrorList) {
    for key in ["apiVersion", "kind"] {
        let place = path.child(key);
        match object.get(key) {
            None => errors.push(Error::required(&place, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(Error::invalid(&place, "", "must not be empty"));
            }
            Some(Value::String(text)) => {
                errors.extend(wrong(key, text).map(|why| Error::invalid(&place, &**text, why)))
            }
            Some(other) => errors.push(Error::invalid(&place, other.clone(), "must be a string")),
        }
    }
}

/// What is wrong with the text of a member.
fn wrong(key: &str, text: &str) -> Option<String> {
    if key == "apiVersion" {
        return (text.matches('/').count() > 1).then(|| format!("unexpected GroupVersion string: {text}"));
    }
    let problems = names::dns1035_label(&text.to_lowercase());
    let why = || format!("may have mixed case, but should otherwise match: {}", problems.join(","));
    (!problems.is_empty()).then(why)
}

fn metadata_of(object: &Value, path: &Path, errors: &mut ErrorList) {
    // Of any kind, and by itself it needs no name.
    let mut alone = json!({"apiVersion": "embedded/v1", "metadata": object["metadata"]});
    if !alone["metadata"].is_object() {
        return;
    }
    if metadata::text(&alone, "name").is_empty() {
        alone["metadata"]["name"] = "fakename".into();
    }
    let namespaced = !metadata::text(&alone, "namespace").is_empty();
    for mut error in meta::validate_create(&alone, namespaced, NameRule::PathSegment) {
        error.field = path.child(&error.field.to_string());
        errors.push(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_within_objects_are_checked() {
        let schema = Structural::from_json(&json!({"type": "object", "properties": {"list": {"type": "array", "items":
            {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}));
        for (object, expected) in [
            (json!({"apiVersion": "v1", "kind": "Pod"}), &[][..]),
            (
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a:b", "finalizers": ["x"]}}),
                &[],
            ),
            (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "b"}}), &[]),
            (json!({"kind": "Pod"}), &["list[0].apiVersion: Required value"]),
            (
                json!({"apiVersion": "a/b/c", "kind": ""}),
                &[
                    "list[0].apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                    "list[0].kind: Invalid value: \"\": must not be empty",
                ],
            ),
            (
                json!({"apiVersion": "v1", "kind": 1, "metadata": {"name": "a/b"}}),
                &[
                    "list[0].kind: Invalid value: 1: must be a string",
                    "list[0].metadata.name: Invalid value: \"a/b\": may not contain '/'",
                ],
            ),
        ] {
            let mut errors = ErrorList::new();
            check(&json!({"list": [object]}), &schema, &Path::empty(), &mut errors);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{object}");
        }
    }
}
