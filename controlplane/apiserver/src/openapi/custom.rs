//! Schemas of custom resources as they are published (apiextensions-apiserver `controller/openapi/builder`).

use serde_json::{Map, Value, json};

use super::custom_name;
use super::definitions::{META, Version};
use crate::resource::GroupVersionKind;

/// A type of metadata, and how the member is described.
type Metadata = (&'static str, &'static str);

const OBJECT_META: Metadata = (
    "ObjectMeta",
    "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
);
const LIST_META: Metadata = (
    "ListMeta",
    "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
);

fn meta_properties(version: Version, (name, description): Metadata) -> Value {
    json!({
        "apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"},
        "kind": {"type": "string", "description": "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"},
        "metadata": {"$ref": version.reference(&format!("{META}{name}")), "description": description},
    })
}

fn gvk_extension(gvk: &GroupVersionKind) -> Value {
    json!([{"group": gvk.group, "kind": gvk.kind, "version": gvk.version}])
}

/// The schema of a definition's version as it is published.
pub fn schema(version: Version, schema: Option<&Value>, gvk: &GroupVersionKind) -> Value {
    let open = |schema: &&Value| version == Version::V2 && keeps_unknown(schema);
    let mut custom = match schema {
        // Properties would make kubectl refuse whatever is not among them.
        None => json!({"type": "object"}),
        Some(schema) if open(&schema) => json!({"type": "object"}),
        Some(schema) => {
            let mut custom = schema.clone();
            if version == Version::V2 {
                for_v2(&mut custom);
            }
            if let Value::Object(meta) = meta_properties(version, OBJECT_META) {
                for (name, property) in meta {
                    custom["properties"][&name] = property;
                }
            }
            custom
        }
    };
    custom["x-kubernetes-group-version-kind"] = gvk_extension(gvk);
    custom
}

fn keeps_unknown(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

/// The schema of lists of a kind.
pub fn list(version: Version, kind: &GroupVersionKind, list: &GroupVersionKind) -> Value {
    let mut properties = meta_properties(version, LIST_META);
    properties["items"] = json!({"type": "array", "items": {"$ref": version.reference(&custom_name(kind))},
        "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", kind.kind)});
    json!({"description": format!("{} is a list of {}", list.kind, kind.kind), "type": "object", "required": ["items"],
        "properties": properties, "x-kubernetes-group-version-kind": gvk_extension(list)})
}

/// Takes out of a schema what version 2 cannot say, and what makes kubectl refuse what the server takes
/// (`ToStructuralOpenAPIV2`).
fn for_v2(schema: &mut Value) {
    let Value::Object(members) = schema else { return };
    for key in ["allOf", "anyOf", "oneOf", "not"] {
        members.remove(key);
    }
    let is = |members: &Map<String, Value>, key: &str| members.get(key) == Some(&Value::Bool(true));
    let nullable = is(members, "nullable");
    members.remove("nullable");
    let open = is(members, "x-kubernetes-preserve-unknown-fields");
    if nullable || open {
        members.remove("items");
        members.remove("properties");
    }
    let kind = members.get("type").and_then(Value::as_str).unwrap_or_default();
    if nullable || (open && kind == "object") || (kind == "array" && !members.contains_key("items")) {
        members.remove("type");
    }
    forget_required(members);
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = members.get_mut(key) {
            for_v2(inner);
        }
    }
    if let Some(Value::Object(inner)) = members.get_mut("properties") {
        inner.values_mut().for_each(for_v2);
    }
}

/// What may be null cannot be required.
fn forget_required(members: &mut Map<String, Value>) {
    let all = members.get("additionalProperties").is_some_and(|values| values["nullable"] == true);
    let properties = members.get("properties").cloned().unwrap_or_default();
    let Some(Value::Array(required)) = members.get_mut("required") else { return };
    required.retain(|name| !all && properties[name.as_str().unwrap_or_default()]["nullable"] != true);
    if required.is_empty() {
        members.remove("required");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(version: Version, schema: Option<Value>) -> Value {
        let gvk = GroupVersionKind { group: "g".into(), version: "v1".into(), kind: "K".into() };
        let mut published = super::schema(version, schema.as_ref(), &gvk);
        published.as_object_mut().unwrap().remove("x-kubernetes-group-version-kind");
        published
    }

    #[test]
    fn version_two_leaves_open_what_is_open() {
        for (schema, expected) in [
            (None, json!({"type": "object"})),
            (
                Some(
                    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}}),
                ),
                json!({"type": "object"}),
            ),
        ] {
            assert_eq!(published(Version::V2, schema), expected);
        }
        let members = |version, fields: Value| {
            let schema = json!({"type": "object", "required": ["a", "b"], "properties": fields});
            let mut published = published(version, Some(schema));
            for meta in ["apiVersion", "kind", "metadata"] {
                published["properties"].as_object_mut().unwrap().remove(meta);
            }
            published
        };
        for (field, expected) in [
            (
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
                json!({"x-kubernetes-int-or-string": true}),
            ),
            (
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"c": {}}}),
                json!({"x-kubernetes-preserve-unknown-fields": true}),
            ),
            (
                json!({"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": {}}),
                json!({"x-kubernetes-preserve-unknown-fields": true}),
            ),
            (
                json!({"type": "string", "maxLength": 3, "default": "x", "allOf": [{"minLength": 1}]}),
                json!({"type": "string", "maxLength": 3, "default": "x"}),
            ),
        ] {
            let published = members(Version::V2, json!({"a": field}));
            assert_eq!(published, json!({"type": "object", "required": ["a", "b"], "properties": {"a": expected}}));
        }
        let nullable =
            json!({"a": {"type": "object", "nullable": true, "properties": {"c": {}}}, "b": {"type": "string"}});
        let expected = json!({"type": "object", "required": ["b"], "properties": {"a": {}, "b": {"type": "string"}}});
        assert_eq!(members(Version::V2, nullable.clone()), expected);
        let whole = json!({"type": "object", "required": ["a", "b"], "properties": nullable});
        assert_eq!(members(Version::V3, whole["properties"].clone()), whole);
    }
}
