//! Structural schemas: what a CustomResourceDefinition says of its objects
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema`). Prunes unknown fields and fills
//! defaults in; value validation is left to the validator of custom resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::table::Element;
use super::{Node, Topology};

/// One level of a structural schema.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Structural {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`, or empty.
    pub type_: String,
    pub properties: BTreeMap<String, Structural>,
    pub additional: Option<Box<Structural>>,
    /// `additionalProperties: true`
    pub any_additional: bool,
    pub items: Option<Box<Structural>>,
    pub nullable: bool,
    pub default: Option<Value>,
    pub preserve_unknown: bool,
    pub embedded_resource: bool,
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`: `atomic`, `set`, `map`
    pub list_type: Option<String>,
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type`: `granular`, `atomic`
    pub map_type: Option<String>,
    /// The object itself: it has metadata.
    pub root: bool,
    /// The JSON it was read from, kept by [`super::Schema::from_openapi`] for OpenAPI: a parsed
    /// schema would take five times the memory.
    pub source: Option<Arc<str>>,
}

impl Structural {
    /// Reads `openAPIV3Schema`. What it does not know is left to validation.
    pub fn from_json(schema: &Value) -> Structural {
        let text = |key: &str| schema[key].as_str().map(str::to_owned);
        let flag = |key: &str| schema[key].as_bool().unwrap_or_default();
        let child = |key: &str| schema[key].is_object().then(|| Box::new(Structural::from_json(&schema[key])));
        let properties = schema["properties"].as_object();
        Structural {
            type_: text("type").unwrap_or_default(),
            properties: properties
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), Structural::from_json(schema)))
                .collect(),
            additional: child("additionalProperties"),
            any_additional: flag("additionalProperties"),
            items: child("items"),
            nullable: flag("nullable"),
            default: schema.get("default").cloned(),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list_type: text("x-kubernetes-list-type"),
            list_map_keys: schema["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|key| key.as_str().map(str::to_owned))
                .collect(),
            map_type: text("x-kubernetes-map-type"),
            root: false,
            source: None,
        }
    }

    /// A schema that keeps everything (`preserveUnknownFields`).
    pub fn open() -> Structural {
        Structural { type_: "object".to_owned(), preserve_unknown: true, ..Structural::default() }
    }

    pub(super) fn names(&self, member: &str) -> bool {
        self.properties.contains_key(member)
            || (self.has_meta() && matches!(member, "apiVersion" | "kind" | "metadata"))
    }

    fn has_meta(&self) -> bool {
        self.root || self.embedded_resource
    }

    pub(super) fn member(&self, name: &str) -> Option<Node<'_>> {
        if self.has_meta() && name == "metadata" {
            return super::object_meta().map(|id| Node::Builtin(Element::of_type(id)));
        }
        if self.has_meta() && matches!(name, "apiVersion" | "kind") {
            return Some(Node::Untyped);
        }
        if let Some(schema) = self.properties.get(name) {
            return Some(Node::Custom(schema));
        }
        match &self.additional {
            Some(schema) => Some(Node::Custom(schema)),
            None => (self.preserve_unknown || self.any_additional).then_some(Node::Untyped),
        }
    }

    pub(super) fn item(&self) -> Node<'_> {
        self.items.as_deref().map_or(Node::Untyped, Node::Custom)
    }

    pub(super) fn topology(&self, value: &Value) -> Topology<'_> {
        match value {
            Value::Array(_) => match self.list_type.as_deref() {
                Some("set") => Topology::Set,
                Some("map") => Topology::ListMap(self.list_map_keys.iter().map(String::as_str).collect()),
                _ => Topology::Atomic,
            },
            Value::Object(_) if self.map_type.as_deref() == Some("atomic") => Topology::Atomic,
            Value::Object(_) => Topology::Granular,
            _ => Topology::Scalar,
        }
    }

    /// Drops what the schema does not name from a whole object; apiVersion, kind and metadata stay.
    /// Returns the paths dropped.
    pub fn prune_object(&self, value: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        self.prune(value, true, &mut String::new(), &mut dropped);
        dropped
    }

    /// The same for a value inside of an object.
    pub fn prune_value(&self, value: &mut Value) {
        self.prune(value, false, &mut String::new(), &mut Vec::new());
    }

    fn prune(&self, value: &mut Value, resource: bool, path: &mut String, dropped: &mut Vec<String>) {
        let resource = resource || self.embedded_resource;
        match value {
            Value::Object(members) => self.prune_members(members, resource, path, dropped),
            Value::Array(items) => {
                let Some(schema) = &self.items else { return };
                for (index, item) in items.iter_mut().enumerate() {
                    within(path, &format!("[{index}]"), |path| schema.prune(item, false, path, dropped));
                }
            }
            _ => {}
        }
    }

    fn prune_members(
        &self,
        members: &mut Map<String, Value>,
        resource: bool,
        path: &mut String,
        dropped: &mut Vec<String>,
    ) {
        let meta = |name: &str| resource && matches!(name, "apiVersion" | "kind" | "metadata");
        let mut unknown = Vec::new();
        for (name, value) in members.iter_mut() {
            if meta(name) {
                continue;
            }
            let schema = self.properties.get(name).or(self.additional.as_deref());
            let step = if path.is_empty() { name.clone() } else { format!(".{name}") };
            match schema {
                Some(schema) => within(path, &step, |path| schema.prune(value, false, path, dropped)),
                None if self.preserve_unknown || self.any_additional => {}
                None => unknown.push((name.clone(), step)),
            }
        }
        for (name, step) in unknown {
            members.remove(&name);
            dropped.push(format!("{path}{step}"));
        }
    }

    /// Fills defaults in, top down; nulls that the schema does not allow give way to defaults.
    pub fn fill_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, schema) in &self.properties {
                    let Some(default) = &schema.default else { continue };
                    let missing = match members.get(name) {
                        None => true,
                        Some(found) => found.is_null() && !schema.nullable,
                    };
                    if missing {
                        members.insert(name.clone(), default.clone());
                    }
                }
                for (name, value) in members.iter_mut() {
                    if let Some(schema) = self.properties.get(name).or(self.additional.as_deref()) {
                        schema.fill_defaults(value);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    items.iter_mut().for_each(|item| schema.fill_defaults(item));
                }
            }
            _ => {}
        }
    }
}

fn within(path: &mut String, step: &str, run: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push_str(step);
    run(path);
    path.truncate(length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Structural {
        Structural::from_json(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "size": {"type": "integer", "default": 3},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string", "default": "x"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"b": {"type": "string"}}}},
            }},
        }}))
    }

    #[test]
    fn unknown_fields_are_pruned() {
        let mut value = json!({"apiVersion": "e/v1", "kind": "X", "metadata": {"name": "x"}, "top": 1, "spec": {
            "free": {"any": 1}, "other": 2, "list": [{"a": "1", "z": 1}], "map": {"k": {"b": "", "z": 1}}}});
        let dropped = schema().prune_object(&mut value);
        assert_eq!(dropped, ["spec.list[0].z", "spec.map.k.z", "spec.other", "top"]);
        assert_eq!(value["spec"], json!({"free": {"any": 1}, "list": [{"a": "1"}], "map": {"k": {"b": ""}}}));
        assert_eq!(value["metadata"]["name"], "x");
    }

    #[test]
    fn defaults_are_filled_in_top_down() {
        let mut value = json!({"spec": {"size": null, "list": [{}]}});
        schema().fill_defaults(&mut value);
        assert_eq!(value, json!({"spec": {"size": 3, "list": [{"a": "x"}]}}));
        let mut nothing = json!({});
        schema().fill_defaults(&mut nothing);
        assert_eq!(nothing, json!({}));
    }
}
