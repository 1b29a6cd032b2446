//! Schemas of custom resources: what their definitions say, with what every object has.

use serde_json::{Value, json};

use super::META;
use super::definitions::Version;
use crate::resource::{GroupVersionKind, SelectableField};

const PRESERVES: &str = "x-kubernetes-preserve-unknown-fields";

/// `com.example.v1.Foo` for group `example.com`.
pub fn name(gvk: &GroupVersionKind) -> String {
    let mut parts: Vec<&str> = gvk.group.split('.').rev().collect();
    parts.push(&gvk.version);
    parts.push(&gvk.kind);
    parts.join(".")
}

fn meta_properties(version: Version, metadata: &str) -> Value {
    let reference = version.reference(&format!("{META}{metadata}"));
    let metadata = match version {
        Version::V2 => json!({"$ref": reference, "description": "Standard object's metadata."}),
        Version::V3 => json!({"allOf": [{"$ref": reference}], "description": "Standard object's metadata."}),
    };
    json!({
        "apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources"},
        "kind": {"type": "string", "description": "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"},
        "metadata": metadata,
    })
}

fn gvk_extension(gvk: &GroupVersionKind) -> Value {
    json!([{"group": gvk.group, "kind": gvk.kind, "version": gvk.version}])
}

/// The schema of a kind.
pub fn schema(
    version: Version,
    schema: Option<&Value>,
    gvk: &GroupVersionKind,
    selectable: &[SelectableField],
) -> Value {
    let mut schema = schema.cloned().unwrap_or_else(|| json!({PRESERVES: true}));
    if version == Version::V2 {
        for_v2(&mut schema);
    }
    put_embedded(version, &mut schema);
    schema["type"] = "object".into();
    // Of an open object kubectl would take what is named for all that is allowed.
    if version == Version::V3 || schema[PRESERVES] != true {
        put_meta(version, &mut schema);
    }
    schema["x-kubernetes-group-version-kind"] = gvk_extension(gvk);
    if !selectable.is_empty() {
        let fields = selectable.iter().map(|field| json!({"fieldPath": &*field.label}));
        schema["x-kubernetes-selectable-fields"] = fields.collect();
    }
    schema
}

fn put_meta(version: Version, schema: &mut Value) {
    if let Value::Object(meta) = meta_properties(version, "ObjectMeta") {
        for (name, property) in meta {
            schema["properties"][&name] = property;
        }
    }
}

/// Gives the objects within an object the members that every object has.
fn put_embedded(version: Version, schema: &mut Value) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(|property| put_embedded(version, property));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner @ Value::Object(_)) = schema.get_mut(key) {
            put_embedded(version, inner);
        }
    }
    if schema["x-kubernetes-embedded-resource"] != true || (version == Version::V2 && schema[PRESERVES] == true) {
        return;
    }
    put_meta(version, schema);
    let mut required = schema["required"].as_array().cloned().unwrap_or_default();
    for name in ["kind", "apiVersion"] {
        if !required.iter().any(|held| held == name) {
            required.push(name.into());
        }
    }
    schema["required"] = required.into();
}

/// The schema of its list.
pub fn list(version: Version, kind: &GroupVersionKind, list: &GroupVersionKind) -> Value {
    let mut properties = meta_properties(version, "ListMeta");
    properties["items"] = json!({"type": "array", "items": {"$ref": version.reference(&name(kind))},
        "description": format!("List of {}. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", kind.kind)});
    json!({"description": format!("{} is a list of {}", list.kind, kind.kind), "type": "object", "required": ["items"],
        "properties": properties, "x-kubernetes-group-version-kind": gvk_extension(list)})
}

/// Takes out of a schema what version 2 cannot say.
fn for_v2(schema: &mut Value) {
    let Value::Object(members) = schema else { return };
    for key in ["anyOf", "oneOf", "not", "nullable", "x-kubernetes-validations", "default"] {
        members.remove(key);
    }
    let preserve = members.get(PRESERVES) == Some(&Value::Bool(true));
    let either = members.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    if preserve || either {
        // kubectl would refuse what the server takes: leave the place open.
        members.remove("items");
        members.remove("properties");
        members.remove("type");
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = members.get_mut(key) {
            for_v2(inner);
        }
    }
    for key in ["properties"] {
        if let Some(Value::Object(inner)) = members.get_mut(key) {
            inner.values_mut().for_each(for_v2);
        }
    }
    if let Some(Value::Array(all)) = members.get_mut("allOf") {
        all.iter_mut().for_each(for_v2);
    }
}
