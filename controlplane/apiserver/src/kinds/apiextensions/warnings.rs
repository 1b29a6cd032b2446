//! What the writer of a definition is warned about
//! (`k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition/strategy.go`).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::value::{list, text};

/// The texts for a new definition, or for what an old one did not say yet.
pub fn of(new: &Value, old: Option<&Value>) -> Vec<String> {
    let known = old.map(collected).unwrap_or_default();
    let fresh = collected(new);
    let formats = fresh.formats.into_iter().filter(|format| !known.formats.contains(format));
    let sets = fresh.sets.into_iter().filter(|kind| !known.sets.contains(kind)).map(|kind| {
        format!("x-kubernetes-list-type: set for items of type {kind:?} is not supported by server-side apply or CEL validation rules")
    });
    formats.map(|format| format!("unrecognized format {format:?}")).chain(sets).collect()
}

#[derive(Default)]
struct Found {
    /// Formats that no value is checked against, in the order they are met.
    formats: Vec<String>,
    /// Types of items of sets that are no scalars.
    sets: BTreeSet<String>,
}

fn collected(definition: &Value) -> Found {
    let mut found = Found::default();
    for version in list(definition, "spec.versions") {
        visit(&version["schema"]["openAPIV3Schema"], &mut found);
    }
    found
}

fn visit(schema: &Value, found: &mut Found) {
    if !schema.is_object() {
        return;
    }
    let (kind, format) = (text(schema, "type"), text(schema, "format"));
    if !format.is_empty() && !is_known(kind, format) && !found.formats.iter().any(|known| known == format) {
        found.formats.push(format.to_owned());
    }
    let items = text(&schema["items"], "type");
    if schema["x-kubernetes-list-type"] == "set" && matches!(items, "object" | "array") {
        found.sets.insert(items.to_owned());
    }
    visit(&schema["items"], found);
    for key in ["allOf", "oneOf", "anyOf"] {
        list(schema, key).iter().for_each(|part| visit(part, found));
    }
    visit(&schema["not"], found);
    for part in schema["properties"].as_object().into_iter().flat_map(|fields| fields.values()) {
        visit(part, found);
    }
    visit(&schema["additionalProperties"], found);
}

fn is_known(kind: &str, format: &str) -> bool {
    const TEXTS: [&str; 26] = [
        "bsonobjectid",
        "uri",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "cidr",
        "mac",
        "uuid",
        "uuid3",
        "uuid4",
        "uuid5",
        "isbn",
        "isbn10",
        "isbn13",
        "creditcard",
        "ssn",
        "hexcolor",
        "rgbcolor",
        "byte",
        "password",
        "date",
        "duration",
        "datetime",
        "k8sshortname",
        "k8slongname",
    ];
    match kind {
        "" | "string" => TEXTS.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn formats_nobody_checks_and_sets_of_objects_are_warned_about_once() {
        let definition = |fields: Value| {
            let schema = json!({"type": "object", "properties": fields});
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}})
        };
        let old = definition(json!({
            "a": {"type": "string", "format": "date-time"}, "b": {"type": "integer", "format": "int32"},
            "c": {"type": "integer", "format": "uint32"}, "d": {"type": "string", "format": "k8s-short-name"},
        }));
        assert_eq!(of(&old, None), ["unrecognized format \"uint32\""]);
        let new = definition(json!({
            "c": {"type": "integer", "format": "uint32"}, "e": {"type": "array", "items": {"type": "string", "format": "x"}},
            "f": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object", "x-kubernetes-map-type": "atomic"}},
        }));
        assert_eq!(
            of(&new, Some(&old)),
            [
                "unrecognized format \"x\"",
                "x-kubernetes-list-type: set for items of type \"object\" is not supported by server-side apply or CEL validation rules"
            ]
        );
    }
}
