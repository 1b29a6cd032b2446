//! The `authorization.k8s.io` group: access reviews, answered without the store
//! (`registry/reviews.rs`). Here is what they may ask.

use api::field::{Error, ErrorList, Path};
use serde_json::{Value, json};

use super::check::Node;
use super::core::pod::internal::{self, Field, Is};
use super::value::{list, map, namespace, text};
use crate::resource::{Descriptor, Resource};
use api::names;

const NON_RESOURCE: &[Field] = &[Field("path", "Path", Is::Text), Field("verb", "Verb", Is::Text)];

pub fn resources() -> Vec<Resource> {
    [
        ("LocalSubjectAccessReview", "localsubjectaccessreviews", true),
        ("SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
        ("SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
        ("SubjectAccessReview", "subjectaccessreviews", false),
    ]
    .map(|(kind, plural, namespaced)| {
        let mut descriptor = Descriptor::new("authorization.k8s.io", "v1", kind, plural).verbs(&["create"]);
        descriptor.namespaced = namespaced;
        descriptor.virtual_ = true;
        Resource::plain(descriptor)
    })
    .into()
}

/// What an access review is refused for. `SelfSubjectRulesReview`s may hold anything.
pub fn validate(kind: &str, review: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if kind == "SelfSubjectRulesReview" {
        return errors;
    }
    let spec = Node::root(review).child("spec");
    let (resource, other) = (spec.child("resourceAttributes"), spec.child("nonResourceAttributes"));
    if resource.exists() == other.exists() {
        let shown = if other.exists() { other.value } else { &Value::Null };
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(attributes_error(&spec.path, shown, detail));
    }
    if kind != "SelfSubjectAccessReview" && text(spec.value, "user").is_empty() && list(spec.value, "groups").is_empty()
    {
        let detail = "at least one of user or group must be specified";
        errors.push(Error::invalid(&spec.path.child("user"), "", detail));
    }
    for of in ["fieldSelector", "labelSelector"] {
        selector(&resource.child(of), of == "labelSelector", &mut errors);
    }
    let local = kind == "LocalSubjectAccessReview";
    if metadata_holds(review, local) {
        let detail = if local { "must be empty except for namespace" } else { "must be empty" };
        errors.push(Error::invalid(&Path::root("metadata"), shown_metadata(review), detail));
    }
    if local {
        let asked = resource.child("namespace");
        if resource.exists() && asked.text() != namespace(review) {
            errors.push(Error::invalid(&asked.path, asked.text(), "must match metadata.namespace"));
        }
        if other.exists() {
            errors.push(attributes_error(&other.path, other.value, "disallowed on this kind of request"));
        }
    }
    errors
}

fn attributes_error(path: &Path, attributes: &Value, detail: &str) -> Error {
    if attributes.is_null() {
        Error::invalid(path, Value::Null, detail)
    } else {
        internal::invalid(path, attributes, NON_RESOURCE, detail)
    }
}

/// The metadata that the server did not take away itself.
fn shown_metadata(review: &Value) -> Value {
    let mut shown = map(review, "metadata").cloned().unwrap_or_default();
    for stamped in ["creationTimestamp", "uid", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        shown.remove(stamped);
    }
    json!(shown)
}

fn metadata_holds(review: &Value, local: bool) -> bool {
    let zero = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(_) => false,
    };
    map(&json!({"metadata": shown_metadata(review)}), "metadata").is_some_and(|shown| {
        shown.iter().any(|(key, value)| key != "managedFields" && !(local && key == "namespace") && !zero(value))
    })
}

/// Operators which this server does not know are let through: a newer client may know them.
fn selector(node: &Node<'_>, labels: bool, errors: &mut ErrorList) {
    if !node.exists() {
        return;
    }
    let (raw, requirements) = (node.child("rawSelector"), node.child("requirements"));
    match (raw.text().is_empty(), requirements.is_empty()) {
        (false, false) => raw.invalid(errors, "may not specified at the same time as requirements"),
        (true, true) => {
            let detail = format!("when {} is specified, requirements or rawSelector is required", node.path);
            errors.push(Error::required(&requirements.path, detail));
        }
        _ => {}
    }
    for requirement in node.items("requirements") {
        let (key, values) = (requirement.child("key"), requirement.child("values"));
        if !labels && key.text().is_empty() {
            errors.push(Error::required(&key.path, "must be specified"));
        }
        match requirement.child("operator").text() {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(Error::required(&values.path, detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                values.forbidden(errors, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            _ => {}
        }
        if labels {
            key.format(errors, names::qualified_name);
            for value in requirement.items("values") {
                value.format(errors, names::label_value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;

    fn refused(kind: &str, metadata: Value, spec: Value) -> String {
        join(&validate(kind, &json!({"metadata": metadata, "spec": spec})))
    }

    #[test]
    fn specs() {
        let selected =
            |of: &str, selector: Value| json!({"user": "u", "resourceAttributes": {"verb": "list", of: selector}});
        let required = |path: &str, detail: &str| format!("{path}: Required value: {detail}");
        let fields = "spec.resourceAttributes.fieldSelector";
        let labels = "spec.resourceAttributes.labelSelector";
        for (kind, spec, expected) in [
            ("SubjectAccessReview", json!({"user": "u", "resourceAttributes": {}}), "[]".to_owned()),
            ("SubjectAccessReview", json!({"groups": ["g"], "nonResourceAttributes": {}}), "[]".into()),
            ("SelfSubjectAccessReview", json!({"resourceAttributes": {}}), "[]".into()),
            ("SelfSubjectRulesReview", json!({}), "[]".into()),
            (
                "SelfSubjectAccessReview",
                json!({"resourceAttributes": {}, "nonResourceAttributes": {"path": "/a", "verb": "get"}}),
                r#"spec: Invalid value: {"Path":"/a","Verb":"get"}: exactly one of nonResourceAttributes or resourceAttributes must be specified"#.into(),
            ),
            (
                "SubjectAccessReview",
                json!({}),
                r#"[spec: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified, spec.user: Invalid value: "": at least one of user or group must be specified]"#.into(),
            ),
            (
                "SubjectAccessReview",
                selected("fieldSelector", json!({})),
                required(&format!("{fields}.requirements"), &format!("when {fields} is specified, requirements or rawSelector is required")),
            ),
            (
                "SubjectAccessReview",
                selected("labelSelector", json!({"rawSelector": "r", "requirements": [{"key": "a", "operator": "Exists"}]})),
                format!("{labels}.rawSelector: Invalid value: \"r\": may not specified at the same time as requirements"),
            ),
            (
                "SubjectAccessReview",
                selected("fieldSelector", json!({"requirements": [{"operator": "In"}, {"key": "a", "operator": "New"}]})),
                format!(
                    "[{}, {}]",
                    required(&format!("{fields}.requirements[0].key"), "must be specified"),
                    required(&format!("{fields}.requirements[0].values"), "must be specified when `operator` is 'In' or 'NotIn'"),
                ),
            ),
            (
                "SubjectAccessReview",
                selected("labelSelector", json!({"requirements": [{"key": "a", "operator": "Exists", "values": ["x"]}]})),
                format!("{labels}.requirements[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
            ),
        ] {
            assert_eq!(refused(kind, json!({"creationTimestamp": null}), spec.clone()), expected, "{kind} {spec}");
        }
        let named =
            selected("labelSelector", json!({"requirements": [{"key": "!", "operator": "New", "values": ["!"]}]}));
        let refused = refused("SubjectAccessReview", json!({}), named);
        assert!(refused.contains("requirements[0].key: Invalid") && refused.contains("requirements[0].values[0]"));
    }

    #[test]
    fn metadata() {
        let spec = |namespace: &str| json!({"user": "u", "resourceAttributes": {"namespace": namespace}});
        for (kind, metadata, spec, expected) in [
            (
                "SubjectAccessReview",
                json!({"name": "a"}),
                spec("n"),
                r#"metadata: Invalid value: {"name":"a"}: must be empty"#,
            ),
            (
                "SelfSubjectAccessReview",
                json!({"labels": {"a": "b"}}),
                spec("n"),
                r#"metadata: Invalid value: {"labels":{"a":"b"}}: must be empty"#,
            ),
            ("SubjectAccessReview", json!({"managedFields": [{}], "labels": {}, "uid": "u"}), spec("n"), "[]"),
            ("LocalSubjectAccessReview", json!({"namespace": "n"}), spec("n"), "[]"),
            (
                "LocalSubjectAccessReview",
                json!({"namespace": "n", "name": "a"}),
                spec("n"),
                r#"metadata: Invalid value: {"name":"a","namespace":"n"}: must be empty except for namespace"#,
            ),
            (
                "LocalSubjectAccessReview",
                json!({"namespace": "n"}),
                spec("m"),
                r#"spec.resourceAttributes.namespace: Invalid value: "m": must match metadata.namespace"#,
            ),
            (
                "LocalSubjectAccessReview",
                json!({"namespace": "n"}),
                json!({"user": "u", "nonResourceAttributes": {}}),
                r#"spec.nonResourceAttributes: Invalid value: {"Path":"","Verb":""}: disallowed on this kind of request"#,
            ),
        ] {
            assert_eq!(refused(kind, metadata.clone(), spec), expected, "{kind} {metadata}");
        }
    }
}
