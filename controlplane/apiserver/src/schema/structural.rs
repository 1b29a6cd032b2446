//! Structural schemas: what a CustomResourceDefinition says of its objects
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema`). Prunes unknown fields and fills
//! defaults in; value validation is left to the validator of custom resources.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::source::Source;
use super::table::Element;
use super::{Node, Topology};

/// One level of a structural schema. A cluster holds some hundred thousand of these: what few of
/// them have is in a box of its own.
#[derive(Debug, Clone, Default)]
pub struct Structural {
    /// One of [`TYPES`], or empty.
    pub type_: &'static str,
    /// By name, ascending.
    properties: Box<[(Box<str>, Structural)]>,
    additional: Option<Box<Structural>>,
    pub items: Option<Box<Structural>>,
    pub default: Option<Box<Value>>,
    /// `x-kubernetes-list-map-keys`
    keys: Box<[Box<str>]>,
    list: ListKind,
    /// `x-kubernetes-map-type: atomic`
    atomic_map: bool,
    /// `additionalProperties: true`
    any_additional: bool,
    nullable: bool,
    preserve_unknown: bool,
    pub embedded_resource: bool,
    pub int_or_string: bool,
    /// The object itself: it has metadata.
    pub root: bool,
    /// What it was read from, kept by [`super::Schema::from_openapi`].
    pub source: Option<Arc<Source>>,
}

const TYPES: [&str; 6] = ["object", "array", "string", "integer", "number", "boolean"];

/// Paths of pruned members that are told, at most: each may be as long as the object.
const MOST_DROPPED: usize = 100;

/// `x-kubernetes-list-type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ListKind {
    #[default]
    Atomic,
    Set,
    Map,
}

impl Structural {
    /// Reads `openAPIV3Schema`. What it does not know is left to validation.
    pub fn from_json(schema: &Value) -> Structural {
        let flag = |key: &str| schema[key].as_bool().unwrap_or_default();
        let child = |key: &str| schema[key].is_object().then(|| Box::new(Structural::from_json(&schema[key])));
        let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        Structural {
            type_: TYPES.into_iter().find(|kind| schema["type"] == *kind).unwrap_or_default(),
            properties: properties(&schema["properties"]),
            additional: child("additionalProperties"),
            items: child("items"),
            default: schema.get("default").cloned().map(Box::new),
            keys: keys.filter_map(|key| Some(key.as_str()?.into())).collect(),
            list: match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListKind::Set,
                Some("map") => ListKind::Map,
                _ => ListKind::Atomic,
            },
            atomic_map: schema["x-kubernetes-map-type"] == "atomic",
            any_additional: flag("additionalProperties"),
            nullable: flag("nullable"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            root: false,
            source: None,
        }
    }

    /// The schema of a declared property.
    pub fn property(&self, name: &str) -> Option<&Structural> {
        let at = self.properties.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        self.properties.get(at).map(|(_, schema)| schema)
    }

    /// The schema of a member: of a property, or of all keys.
    pub fn inner(&self, name: &str) -> Option<&Structural> {
        self.property(name).or(self.additional.as_deref())
    }

    pub(super) fn names(&self, member: &str) -> bool {
        self.property(member).is_some() || (self.has_meta() && matches!(member, "apiVersion" | "kind" | "metadata"))
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
        match self.inner(name) {
            Some(schema) => Some(Node::Custom(schema)),
            None => (self.preserve_unknown || self.any_additional).then_some(Node::Untyped),
        }
    }

    pub(super) fn item(&self) -> Node<'_> {
        self.items.as_deref().map_or(Node::Untyped, Node::Custom)
    }

    pub(super) fn topology(&self, value: &Value) -> Topology<'_> {
        match value {
            Value::Array(_) => match self.list {
                ListKind::Set => Topology::Set,
                ListKind::Map => Topology::ListMap(self.keys.iter().map(|key| &**key).collect()),
                ListKind::Atomic => Topology::Atomic,
            },
            Value::Object(_) if self.atomic_map => Topology::Atomic,
            Value::Object(_) => Topology::Granular,
            _ => Topology::Scalar,
        }
    }

    /// Drops what the schema does not name from a whole object; apiVersion, kind and metadata stay.
    /// Returns the first of the paths dropped, sorted.
    pub fn prune_object(&self, value: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        self.prune(value, true, false, &mut String::new(), &mut dropped);
        dropped.sort_unstable();
        dropped
    }

    /// The same for a value inside of an object.
    pub fn prune_value(&self, value: &mut Value) {
        self.prune(value, false, false, &mut String::new(), &mut Vec::new());
    }

    /// An `open` value keeps what its schema does not name. Items of a list that does so are open
    /// too, members of an object are not.
    fn prune(&self, value: &mut Value, resource: bool, open: bool, path: &mut String, dropped: &mut Vec<String>) {
        let (resource, open) = (resource || self.embedded_resource, open || self.preserve_unknown);
        match value {
            Value::Object(members) => self.prune_members(members, resource, open, path, dropped),
            Value::Array(items) => {
                let Some(schema) = &self.items else { return };
                for (index, item) in items.iter_mut().enumerate() {
                    within(path, &format!("[{index}]"), |path| schema.prune(item, false, open, path, dropped));
                }
            }
            _ => {}
        }
    }

    fn prune_members(
        &self,
        members: &mut Map<String, Value>,
        resource: bool,
        open: bool,
        path: &mut String,
        dropped: &mut Vec<String>,
    ) {
        let meta = |name: &str| resource && matches!(name, "apiVersion" | "kind" | "metadata");
        let mut unknown = Vec::new();
        for (name, value) in members.iter_mut() {
            if meta(name) {
                continue;
            }
            let schema = self.inner(name);
            let step = if path.is_empty() { name.clone() } else { format!(".{name}") };
            match schema {
                Some(schema) => within(path, &step, |path| schema.prune(value, false, false, path, dropped)),
                None if self.any_additional => within(path, &step, |path| prune_undescribed(value, path, dropped)),
                None if open => {}
                None => unknown.push((name.clone(), step)),
            }
        }
        for (name, step) in unknown {
            members.remove(&name);
            tell(path, &step, dropped);
        }
    }

    /// Drops nulls that the schema does not allow: such a member is as good as absent. Those that
    /// have a default are left to it.
    pub fn drop_nulls(&self, value: &mut Value) {
        match value {
            Value::Object(members) => members.retain(|name, value| {
                let Some(schema) = self.inner(name) else { return true };
                schema.drop_nulls(value);
                !schema.forbids(value) || schema.default.is_some()
            }),
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    items.iter_mut().for_each(|item| schema.drop_nulls(item));
                }
            }
            _ => {}
        }
    }

    /// Whether it is null and may not be.
    fn forbids(&self, value: &Value) -> bool {
        value.is_null() && !self.nullable
    }

    /// Fills defaults in, top down; nulls that the schema does not allow give way to defaults.
    pub fn fill_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (name, schema) in self.properties.iter() {
                    let Some(default) = &schema.default else { continue };
                    if !members.contains_key(&**name) {
                        members.insert(name.to_string(), (**default).clone());
                    }
                }
                for (name, value) in members.iter_mut() {
                    if let Some(schema) = self.inner(name) {
                        schema.fill_default(value);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(schema) = &self.items {
                    items.iter_mut().for_each(|item| schema.fill_default(item));
                }
            }
            _ => {}
        }
    }

    /// A value that is there.
    fn fill_default(&self, value: &mut Value) {
        if let Some(default) = self.default.as_ref().filter(|_| self.forbids(value)) {
            *value = (**default).clone();
        }
        self.fill_defaults(value);
    }
}

fn properties(schemas: &Value) -> Box<[(Box<str>, Structural)]> {
    let schemas = schemas.as_object().into_iter().flatten();
    let mut all: Vec<(Box<str>, Structural)> =
        schemas.map(|(name, schema)| (name.as_str().into(), Structural::from_json(schema))).collect();
    all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    all.into()
}

/// `additionalProperties: true` lets members of any name and type in, but describes none: nothing is
/// left of objects, as upstream.
fn prune_undescribed(value: &mut Value, path: &mut String, dropped: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, _) in std::mem::take(members) {
                tell(path, &format!(".{name}"), dropped);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                within(path, &format!("[{index}]"), |path| prune_undescribed(item, path, dropped));
            }
        }
        _ => {}
    }
}

fn tell(path: &str, step: &str, dropped: &mut Vec<String>) {
    if dropped.len() < MOST_DROPPED {
        dropped.push(format!("{path}{step}"));
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

    /// controller-gen marks a field of raw objects so, list and all.
    #[test]
    fn items_of_a_list_that_keeps_unknown_fields_keep_theirs() {
        let schema = Structural::from_json(&json!({"type": "object", "properties": {
            "raw": {"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": {
                "type": "object", "properties": {"closed": {"type": "object", "properties": {}}}}},
            "lists": {"type": "array", "x-kubernetes-preserve-unknown-fields": true, "items": {
                "type": "array", "items": {"type": "object"}}},
        }}));
        let mut value =
            json!({"raw": [{"kind": "X", "spec": {"a": 1}, "closed": {"b": 1}}], "lists": [[{"a": 1}]], "z": 1});
        assert_eq!(schema.prune_object(&mut value), ["raw[0].closed.b", "z"]);
        assert_eq!(value, json!({"raw": [{"kind": "X", "spec": {"a": 1}, "closed": {}}], "lists": [[{"a": 1}]]}));
    }

    #[test]
    fn additional_properties_without_a_schema_are_kept_but_not_what_is_in_them() {
        let schema = Structural::from_json(&json!({"type": "object", "properties": {
            "map": {"type": "object", "additionalProperties": true},
        }}));
        let mut value = json!({"a": 1, "map": {"n": 1, "o": {"p": 1}, "l": ["x", {"q": 1}]}});
        assert_eq!(schema.prune_object(&mut value), ["a", "map.l[1].q", "map.o.p"]);
        assert_eq!(value, json!({"map": {"n": 1, "o": {}, "l": ["x", {}]}}));
    }

    #[test]
    fn of_many_unknown_fields_below_a_long_key_the_first_are_told() {
        let unknown: Map<String, Value> = (0..20_000).map(|at| (at.to_string(), 1.into())).collect();
        let key = "k".repeat(1 << 20);
        let mut value = json!({"spec": {"map": {key: unknown}}});
        // All their paths would be 20 GB.
        assert_eq!(schema().prune_object(&mut value).len(), MOST_DROPPED);
        assert_eq!(value["spec"]["map"].as_object().unwrap().values().collect::<Vec<_>>(), [&json!({})]);
    }

    #[test]
    fn nulls_that_may_not_be_are_as_good_as_absent() {
        let schema = Structural::from_json(&json!({"type": "object", "properties": {
            "plain": {"type": "object"}, "may": {"type": "string", "nullable": true}, "has": {"type": "string", "default": "x"},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
        }}));
        let mut value = json!({"plain": null, "may": null, "has": null, "open": {"any": null}, "map": {"k": null},
            "list": [{"a": null}, null]});
        schema.drop_nulls(&mut value);
        assert_eq!(value, json!({"may": null, "has": null, "open": {"any": null}, "map": {}, "list": [{}, null]}));
        schema.fill_defaults(&mut value);
        assert_eq!(value["has"], "x");
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
