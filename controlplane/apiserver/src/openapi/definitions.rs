//! Schemas of types as OpenAPI writes them, from the embedded table.
//!
//! Version 2 has `{"$ref": …, "description": …}` and no defaults of structs; version 3 puts a
//! reference that has company into `allOf`, as upstream does.

use serde_json::{Map, Value, json};

use crate::schema::table::{Base, Descriptions, Element, Field, ListType, Shape, TypeId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V2,
    V3,
}

impl Version {
    pub fn reference(self, name: &str) -> String {
        match self {
            Version::V2 => format!("#/definitions/{name}"),
            Version::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// Types that are not structs of the table: name, then schema.
fn special(base: Base) -> Option<(String, Value)> {
    Some(match base {
        Base::Quantity => (
            "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(),
            json!({"description": "Quantity is a fixed-point representation of a number: a decimal number with an optional suffix, one of n, u, m, k, M, G, T, P, E (powers of 1000), Ki, Mi, Gi, Ti, Pi, Ei (powers of 1024), or a decimal exponent. It is written in canonical form: no fractional digits, the largest suffix that keeps the value whole. Numbers are accepted as well as strings.", "type": "string"}),
        ),
        Base::IntOrString => (
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
            json!({"description": "IntOrString is a type that can hold an int32 or a string.", "type": "string", "format": "int-or-string"}),
        ),
        Base::Time => (
            format!("{META}Time"),
            json!({"description": "Time is an RFC 3339 timestamp with a precision of seconds.", "type": "string", "format": "date-time"}),
        ),
        Base::MicroTime => (
            format!("{META}MicroTime"),
            json!({"description": "MicroTime is an RFC 3339 timestamp with a precision of microseconds.", "type": "string", "format": "date-time"}),
        ),
        Base::Duration => (
            format!("{META}Duration"),
            json!({"description": "Duration is text such as 1h30m or 500ms.", "type": "string"}),
        ),
        Base::FieldsV1 => (
            format!("{META}FieldsV1"),
            json!({"description": "FieldsV1 stores a set of fields in a data structure like a Trie, in JSON format. Each key is '.' for the field itself, 'f:<name>' for a field of a struct or key of a map, 'v:<value>' for an item of a set, 'i:<index>' for an item of a list, 'k:<keys>' for an item of a map-like list by the values of its keys.", "type": "object"}),
        ),
        Base::Raw => (
            "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(),
            json!({"description": "RawExtension holds an object of any kind.", "type": "object"}),
        ),
        Base::Json => (
            format!("{APIEXTENSIONS}JSON"),
            json!({"description": "JSON represents any valid JSON value. These types are supported: bool, int64, float64, string, []interface{}, map[string]interface{} and nil."}),
        ),
        Base::SchemaOrBool => (
            format!("{APIEXTENSIONS}JSONSchemaPropsOrBool"),
            json!({"description": "JSONSchemaPropsOrBool represents JSONSchemaProps or a boolean value. Defaults to true for the boolean property."}),
        ),
        Base::SchemaOrArray => (
            format!("{APIEXTENSIONS}JSONSchemaPropsOrArray"),
            json!({"description": "JSONSchemaPropsOrArray represents a value that can either be a JSONSchemaProps or an array of JSONSchemaProps. Mainly here for serialization purposes."}),
        ),
        Base::SchemaOrStrings => (
            format!("{APIEXTENSIONS}JSONSchemaPropsOrStringArray"),
            json!({"description": "JSONSchemaPropsOrStringArray represents a JSONSchemaProps or a string array."}),
        ),
        _ => return None,
    })
}

/// What a special type may be, where that is more than text. Version 2 cannot say so.
fn alternatives(base: Base) -> &'static [&'static str] {
    match base {
        Base::IntOrString => &["integer", "string"],
        Base::Quantity => &["string", "number"],
        _ => &[],
    }
}

/// Something a schema refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    Type(TypeId),
    Special(Base),
}

impl Reference {
    pub fn name(self) -> String {
        match self {
            Reference::Type(id) => id.name().to_owned(),
            Reference::Special(base) => special(base).map(|(name, _)| name).unwrap_or_default(),
        }
    }
}

/// Renders schemas and keeps the list of what they need.
pub struct Definitions<'a> {
    version: Version,
    texts: &'a Descriptions,
    /// In the order they were first referred to.
    pub needed: Vec<Reference>,
}

impl<'a> Definitions<'a> {
    pub fn new(version: Version, texts: &'a Descriptions) -> Self {
        Self { version, texts, needed: Vec::new() }
    }

    /// Notes that a type is needed and returns its reference.
    pub fn refer(&mut self, target: Reference) -> String {
        if !self.needed.contains(&target) {
            self.needed.push(target);
        }
        self.version.reference(&target.name())
    }

    /// The schema of something in [`Definitions::needed`]; may add to it.
    pub fn render(&mut self, target: Reference, kinds: &[Value]) -> Value {
        let id = match target {
            Reference::Special(base) => return self.special(base),
            Reference::Type(id) => id,
        };
        let texts: Vec<&str> = self.texts.of(id).collect();
        let mut schema = Map::new();
        put_text(&mut schema, texts.first().copied());
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (field, text) in id.fields().zip(texts.into_iter().skip(1)) {
            properties.insert(field.name().to_owned(), self.field(field, text));
            if field.is_required() {
                required.push(Value::from(field.name()));
            }
        }
        schema.insert("type".to_owned(), "object".into());
        if !properties.is_empty() {
            schema.insert("properties".to_owned(), properties.into());
        }
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
        if id.is_atomic() {
            schema.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        if !kinds.is_empty() {
            schema.insert("x-kubernetes-group-version-kind".to_owned(), kinds.to_vec().into());
        }
        Value::Object(schema)
    }

    fn special(&self, base: Base) -> Value {
        let mut schema = special(base).map(|(_, schema)| schema).unwrap_or_default();
        let types = alternatives(base);
        if self.version == Version::V3
            && !types.is_empty()
            && let Some(members) = schema.as_object_mut()
        {
            members.remove("type");
            members.insert("oneOf".to_owned(), types.iter().map(|kind| json!({"type": kind})).collect());
        }
        schema
    }

    fn field(&mut self, field: Field, text: &str) -> Value {
        let element = field.element();
        let mut schema = self.element(element);
        put_text(&mut schema, Some(text));
        if let Some(default) = self.default_of(field) {
            schema.insert("default".to_owned(), default);
        }
        self.wrap_reference(&mut schema);
        put_merge_rules(&mut schema, field);
        Value::Object(schema)
    }

    /// In version 3 a reference may have no company: it moves into `allOf`.
    fn wrap_reference(&self, schema: &mut Map<String, Value>) {
        if self.version == Version::V3
            && schema.len() > 1
            && let Some(reference) = schema.remove("$ref")
        {
            schema.insert("allOf".to_owned(), json!([{"$ref": reference}]));
        }
    }

    fn default_of(&self, field: Field) -> Option<Value> {
        if let Some(json) = field.default_json() {
            return serde_json::from_str(json).ok();
        }
        let element = field.element().resolved();
        if self.version == Version::V2 || field.is_pointer() || element.shape != Shape::Single {
            return None;
        }
        match element.base {
            Base::Type(_) => Some(json!({})),
            _ if field.omit_empty() => None,
            base => zero(base),
        }
    }

    fn element(&mut self, element: Element) -> Map<String, Value> {
        let named = element.named();
        let resolved = element.resolved();
        let mut schema = Map::new();
        match resolved.shape {
            Shape::Single => self.single(&mut schema, resolved.base, named),
            Shape::List | Shape::Map => {
                let mut item = self.element(resolved.item());
                let default = match resolved.item().resolved() {
                    Element { shape: Shape::Single, base: Base::Type(_), .. } => Some(json!({})),
                    Element { shape: Shape::Single, base, .. } => zero(base),
                    _ => None,
                };
                if let (Version::V3, Some(default)) = (self.version, default) {
                    item.insert("default".to_owned(), default);
                    self.wrap_reference(&mut item);
                }
                let (kind, key) = match resolved.shape {
                    Shape::List => ("array", "items"),
                    _ => ("object", "additionalProperties"),
                };
                schema.insert("type".to_owned(), kind.into());
                schema.insert(key.to_owned(), item.into());
            }
        }
        schema
    }

    fn single(&mut self, schema: &mut Map<String, Value>, base: Base, named: Option<TypeId>) {
        let (kind, format) = match base {
            Base::String => ("string", None),
            Base::Bool => ("boolean", None),
            Base::Int32 => ("integer", Some("int32")),
            Base::Int64 => ("integer", Some("int64")),
            Base::Float => ("number", Some("double")),
            Base::Bytes => ("string", Some("byte")),
            Base::Type(id) => {
                schema.insert("$ref".to_owned(), self.refer(Reference::Type(id)).into());
                return;
            }
            special => {
                schema.insert("$ref".to_owned(), self.refer(Reference::Special(special)).into());
                return;
            }
        };
        schema.insert("type".to_owned(), kind.into());
        if let Some(format) = format {
            schema.insert("format".to_owned(), format.into());
        }
        let values: Vec<Value> = named.into_iter().flat_map(TypeId::values).map(Value::from).collect();
        if !values.is_empty() {
            schema.insert("enum".to_owned(), values.into());
        }
    }
}

/// Go's zero value where upstream declares it as default.
fn zero(base: Base) -> Option<Value> {
    Some(match base {
        Base::String => "".into(),
        Base::Bool => false.into(),
        Base::Int32 | Base::Int64 | Base::Float => 0.into(),
        _ => return None,
    })
}

fn put_text(schema: &mut Map<String, Value>, text: Option<&str>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        schema.insert("description".to_owned(), text.into());
    }
}

fn put_merge_rules(schema: &mut Map<String, Value>, field: Field) {
    let mut put = |key: &str, value: Value| {
        schema.insert(format!("x-kubernetes-{key}"), value);
    };
    match field.list_type() {
        Some(ListType::Atomic) => put("list-type", "atomic".into()),
        Some(ListType::Set) => put("list-type", "set".into()),
        Some(ListType::Map(keys)) => {
            put("list-type", "map".into());
            put("list-map-keys", keys.split(',').map(Value::from).collect());
        }
        None => {}
    }
    if field.is_atomic() {
        put("map-type", "atomic".into());
    } else if field.is_granular() {
        put("map-type", "granular".into());
    }
    let strategies: Vec<&str> = [
        (field.patch_merges(), "merge"),
        (field.patch_retains_keys(), "retainKeys"),
        (field.patch_replaces(), "replace"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect();
    if !strategies.is_empty() {
        put("patch-strategy", strategies.join(",").into());
    }
    if let Some(key) = field.patch_merge_key() {
        put("patch-merge-key", key.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn property(version: Version, kind: &str, name: &str) -> Value {
        let texts = Descriptions::unpack();
        let mut definitions = Definitions::new(version, &texts);
        let id = TypeId::named(kind).unwrap();
        let mut property = definitions.render(Reference::Type(id), &[])["properties"][name].clone();
        property.as_object_mut().unwrap().remove("description");
        property
    }

    #[test]
    fn fields_read_as_upstreams() {
        let spec = "io.k8s.api.core.v1.PodSpec";
        assert_eq!(
            property(Version::V3, spec, "containers"),
            json!({"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}], "default": {}},
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "name"})
        );
        assert_eq!(
            property(Version::V2, spec, "volumes"),
            json!({"type": "array", "items": {"$ref": "#/definitions/io.k8s.api.core.v1.Volume"},
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-patch-strategy": "merge,retainKeys", "x-kubernetes-patch-merge-key": "name"})
        );
        assert_eq!(
            property(Version::V3, spec, "dnsPolicy"),
            json!({"type": "string", "enum": ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]})
        );
        assert_eq!(
            property(Version::V3, "io.k8s.api.core.v1.ResourceRequirements", "limits"),
            json!({"type": "object", "additionalProperties": {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.api.resource.Quantity"}})
        );
        assert_eq!(
            property(Version::V3, "io.k8s.api.core.v1.Pod", "spec"),
            json!({"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}], "default": {}})
        );
        assert_eq!(
            property(Version::V3, "io.k8s.api.core.v1.ContainerPort", "containerPort"),
            json!({"type": "integer", "format": "int32", "default": 0})
        );
    }
}
