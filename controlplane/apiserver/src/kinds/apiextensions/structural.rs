//! Whether a schema is structural: every field is declared once, outside of combinations, and the
//! combinations (`allOf`, `anyOf`, `oneOf`, `not`) only say what values must be.
//!
//! Upstream: `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/{validation,complete}.go`.

use api::field::{Error, ErrorList, Path};
use serde_json::{Value, json};

use crate::cel::pattern;

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Sorted, as upstream has them.
pub fn validate(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    invariants(schema, Level::Root, path, &mut errors);
    complete(schema, Some(schema), path, path, &mut errors);
    errors.sort_by_key(ToString::to_string);
    errors
}

fn flag(schema: &Value, key: &str) -> bool {
    schema[key] == true
}

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema[key].as_str().unwrap_or_default()
}

/// The schemas under `properties`, with their places.
pub fn properties<'a>(schema: &'a Value, path: &Path) -> Vec<(&'a String, &'a Value, Path)> {
    let place = path.child("properties");
    let members = schema["properties"].as_object().into_iter().flatten();
    members.map(|(name, schema)| (name, schema, place.key(name))).collect()
}

/// The schemas of the combinations, with their places.
pub fn combined<'a>(schema: &'a Value, path: &Path) -> Vec<(&'static str, &'a Value, Path)> {
    let mut all = Vec::new();
    for key in ["anyOf", "allOf", "oneOf"] {
        let parts = schema[key].as_array().into_iter().flatten().enumerate();
        all.extend(parts.map(|(index, part)| (key, part, path.child(key).index(index))));
    }
    if schema["not"].is_object() {
        all.push(("not", &schema["not"], path.child("not")));
    }
    all
}

fn is_int_or_string(parts: &Value) -> bool {
    *parts == json!([{"type": "integer"}, {"type": "string"}])
}

fn invariants(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    let kind = text(schema, "type");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let (open, int_or_string) =
        (flag(schema, "x-kubernetes-preserve-unknown-fields"), flag(schema, "x-kubernetes-int-or-string"));
    if kind == "array" && !schema["items"].is_object() {
        errors.push(Error::required(&path.child("items"), "must be specified"));
    }
    if schema["items"].is_object() {
        invariants(&schema["items"], Level::Item, &path.child("items"), errors);
    }
    for (_, schema, path) in properties(schema, path) {
        invariants(schema, Level::Field, &path, errors);
    }
    let additional = &schema["additionalProperties"];
    if !additional.is_null() {
        let place = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(Error::forbidden(&place, "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &place, errors);
        }
        if embedded {
            errors.push(Error::forbidden(&place, "must not be used if x-kubernetes-embedded-resource is set"));
        }
    }
    for (key, set) in [("x-kubernetes-preserve-unknown-fields", open), ("x-kubernetes-embedded-resource", embedded)] {
        if int_or_string && set {
            errors.push(Error::invalid(&path.child(key), true, "must be false if x-kubernetes-int-or-string is true"));
        }
    }
    values(schema, level, path, errors);
    let place = path.child("type");
    if embedded && kind != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if kind.is_empty() { Error::required(&place, why) } else { Error::invalid(&place, kind, why) });
    } else if kind.is_empty() && !int_or_string && !open {
        let why = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.push(Error::required(&place, why));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(Error::invalid(&place, kind, "must be object at the root"));
    }
    metadata(schema, level, path, errors);
    if embedded && !open && properties(schema, path).is_empty() {
        errors.push(Error::required(
            &path.child("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

/// What is said of `apiVersion`, `kind` and `metadata`, which every resource has.
fn metadata(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    if level != Level::Root && !flag(schema, "x-kubernetes-embedded-resource") {
        return;
    }
    let declared = &schema["properties"];
    let place = |name: &str| path.child("properties").key(name);
    for (name, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        let found = text(&declared[name], "type");
        if declared[name].is_object() && found != wanted {
            errors.push(Error::invalid(&place(name).child("type"), found, format!("must be {wanted}")));
        }
    }
    let Some(own) = declared["metadata"].as_object().filter(|_| level == Level::Root) else { return };
    let only_names = own.iter().all(|(key, value)| match key.as_str() {
        "type" | "default" | "description" => true,
        "properties" => value
            .as_object()
            .is_some_and(|fields| fields.keys().all(|key| matches!(key.as_str(), "name" | "generateName"))),
        _ => false,
    });
    if !only_names {
        errors.push(Error::forbidden(
            &place("metadata"),
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

/// What is said of values, here and in combinations.
fn values(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    for (key, part, place) in combined(schema, path) {
        // The two ways to say that a value is a number or text.
        let integer_or_string = (key == "anyOf" && is_int_or_string(&schema["anyOf"]))
            || (key == "allOf" && schema["allOf"][0] == *part && is_int_or_string(&part["anyOf"]));
        if !integer_or_string {
            nested(part, level, &place, errors);
        }
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(why) = pattern::compile(pattern, pattern::LARGEST)
    {
        let why = format!("must be a valid regular expression, but isn't: {why}");
        errors.push(Error::invalid(&path.child("pattern"), pattern, why));
    }
}

fn nested(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    values(schema, level, path, errors);
    if schema["items"].is_object() {
        nested(&schema["items"], level, &path.child("items"), errors);
    }
    for (_, schema, path) in properties(schema, path) {
        nested(schema, Level::Field, &path, errors);
    }
    for (key, why) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("externalDocs", "must be undefined to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        let empty = match &schema[key] {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        if !empty {
            errors.push(Error::forbidden(&path.child(key), why));
        }
    }
    if schema["properties"]["metadata"].is_object() {
        let place = path.child("properties").key("metadata");
        errors.push(Error::forbidden(&place, "must not be specified in a nested context"));
    }
}

/// Every field that a combination speaks of is declared outside of it.
fn complete(part: &Value, declared: Option<&Value>, place: &Path, part_place: &Path, errors: &mut ErrorList) {
    for (_, part, part_place) in combined(part, part_place) {
        complete_part(part, declared, place, &part_place, errors);
    }
}

fn complete_part(part: &Value, declared: Option<&Value>, place: &Path, part_place: &Path, errors: &mut ErrorList) {
    let Some(schema) = declared else {
        return errors.push(Error::required(place, format!("because it is defined in {part_place}")));
    };
    complete(part, declared, place, part_place, errors);
    if part["items"].is_object() {
        let items = Some(&schema["items"]).filter(|items| items.is_object());
        complete_part(&part["items"], items, &place.child("items"), &part_place.child("items"), errors);
    }
    for (name, part, part_place) in properties(part, part_place) {
        let field = schema["properties"].get(name).filter(|field| field.is_object());
        complete_part(part, field, &place.child("properties").key(name), &part_place, errors);
    }
}
