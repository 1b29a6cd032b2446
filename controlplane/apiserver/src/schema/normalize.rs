//! What decoding JSON into Go's types and encoding it again does to a value: unknown fields go,
//! wrong types are errors in Go's words, quantities and times get their canonical form, empty
//! values are left out where the type says `omitempty` and written where it does not.
//!
//! ```text
//! {"spec": {"replicas": 1, "foo": 2, "paused": false}}   (apps/v1 Deployment)
//!     → {"spec": {"replicas": 1, "selector": null, "strategy": {}, "template": {…}}, …}
//!       and "unknown field \"spec.foo\""
//! ```

use api::scalar;
use serde_json::{Map, Number, Value};

use super::table::{Base, Element, Field, Shape, TypeId};
use super::{Schema, Structural, numbers, object_meta, schema_props};
use crate::error::ApiError;
use crate::resource::GroupVersionKind;

/// Strict errors are reported up to this many, as upstream does.
const MOST_UNKNOWN: usize = 100;

/// Normalises an object in place. The texts returned are what `fieldValidation` acts on: one
/// `unknown field "…"` for each field that was dropped.
pub fn normalize(schema: &Schema, value: &mut Value, gvk: &GroupVersionKind) -> Result<Vec<String>, ApiError> {
    run(schema, value, gvk, Walk::default())
}

/// Canonicalises what is there and no more: nothing is left out but nulls and unknown fields, and
/// nothing is filled in. For configurations that are applied: what they name is what they own.
pub fn normalize_literal(schema: &Schema, value: &mut Value, gvk: &GroupVersionKind) -> Result<Vec<String>, ApiError> {
    run(schema, value, gvk, Walk { literal: true, ..Walk::default() })
}

/// A value of a built-in type that is no kind of its own, as `encoding/json` would decode it; what is
/// returned are the fields that it does not have.
pub fn decode(id: TypeId, value: &mut Value) -> Result<Vec<String>, DecodeError> {
    let mut walk = Walk::default();
    walk.element(Element::of_type(id), value)?;
    Ok(walk.unknown)
}

fn run(schema: &Schema, value: &mut Value, gvk: &GroupVersionKind, mut walk: Walk) -> Result<Vec<String>, ApiError> {
    let outcome = match schema {
        Schema::Builtin(id) => walk.element(Element::of_type(*id), value).map(|_| ()),
        Schema::Custom(structural) => walk.custom(structural, value),
    };
    match outcome {
        Ok(()) => Ok(walk.unknown),
        Err(error) => Err(cannot_be_handled(gvk, &error.0)),
    }
}

/// `Pod in version "v1" cannot be handled as a Pod: …`
pub fn cannot_be_handled(gvk: &GroupVersionKind, why: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {why}",
        kind = gvk.kind,
        version = gvk.version
    ))
}

/// The 400 that `fieldValidation=Strict` answers to unknown and duplicate fields.
pub fn strict_error(gvk: &GroupVersionKind, problems: &[String]) -> ApiError {
    cannot_be_handled(gvk, &format!("strict decoding error: {}", problems.join(", ")))
}

/// Why a value cannot be decoded, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// What a field was found to be, for `omitempty`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nil,
    /// Go's zero value, or an empty list or map.
    Empty,
    Set,
}

enum Step {
    Field(&'static str),
    Index(usize),
    Key(String),
}

#[derive(Default)]
struct Walk {
    path: Vec<Step>,
    structs: Vec<TypeId>,
    unknown: Vec<String>,
    literal: bool,
}

type Outcome<T> = Result<T, DecodeError>;

impl Walk {
    fn element(&mut self, element: Element, value: &mut Value) -> Outcome<Found> {
        let resolved = element.resolved();
        match resolved.shape {
            Shape::List => self.list(element, resolved, value),
            Shape::Map => self.map(element, resolved, value),
            Shape::Single => self.single(element, resolved, value),
        }
    }

    fn list(&mut self, named: Element, element: Element, value: &mut Value) -> Outcome<Found> {
        let items = match value {
            Value::Null => return Ok(Found::Nil),
            Value::Array(items) => items,
            other => return Err(self.mismatch(named, other)),
        };
        for (index, item) in items.iter_mut().enumerate() {
            self.path.push(Step::Index(index));
            self.element(element.item(), item)?;
            zero_if_null(element.item(), item);
            self.path.pop();
        }
        Ok(if items.is_empty() { Found::Empty } else { Found::Set })
    }

    fn map(&mut self, named: Element, element: Element, value: &mut Value) -> Outcome<Found> {
        let members = match value {
            Value::Null => return Ok(Found::Nil),
            Value::Object(members) => members,
            other => return Err(self.mismatch(named, other)),
        };
        // Only structs have unknown fields whose path could need the key.
        let nested = matches!(element.base, Base::Type(_) | Base::SchemaOrBool | Base::SchemaOrArray);
        for (key, item) in members.iter_mut() {
            if nested {
                self.path.push(Step::Key(key.clone()));
            }
            self.element(element.item(), item)?;
            zero_if_null(element.item(), item);
            if nested {
                self.path.pop();
            }
        }
        Ok(if members.is_empty() { Found::Empty } else { Found::Set })
    }

    fn structure(&mut self, id: TypeId, value: &mut Value) -> Outcome<Found> {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        let Value::Object(members) = value else {
            return Err(self.mismatch(Element::of_type(id), value));
        };
        let unknown: Vec<String> = members.keys().filter(|key| id.field(key).is_none()).cloned().collect();
        for key in unknown {
            members.remove(&key);
            self.report_unknown(&key);
        }
        self.structs.push(id);
        for field in id.fields() {
            self.field(field, members)?;
        }
        self.structs.pop();
        Ok(Found::Set)
    }

    fn field(&mut self, field: Field, members: &mut Map<String, Value>) -> Outcome<()> {
        let name = field.name();
        let element = field.element();
        let Some(value) = members.get_mut(name) else {
            if let Some(zero) = zero_of_absent(field).filter(|_| !self.literal) {
                members.insert(name.to_owned(), zero);
            }
            return Ok(());
        };
        if value.is_null() {
            members.remove(name);
            if let Some(zero) = zero_of_absent(field).filter(|_| !self.literal) {
                members.insert(name.to_owned(), zero);
            }
            return Ok(());
        }
        self.path.push(Step::Field(name));
        let found = self.element(element, value)?;
        self.path.pop();
        let drop = match found {
            _ if self.literal => false,
            Found::Set => false,
            Found::Nil | Found::Empty => field.omit_empty() && !(field.is_pointer() && found == Found::Empty),
        };
        if drop {
            members.remove(name);
        }
        Ok(())
    }

    fn single(&mut self, named: Element, element: Element, value: &mut Value) -> Outcome<Found> {
        if value.is_null() && !matches!(element.base, Base::Type(_)) {
            return Ok(Found::Nil);
        }
        match element.base {
            Base::Type(id) => self.structure(id, value),
            Base::String => match value {
                Value::String(text) if text.is_empty() => Ok(Found::Empty),
                Value::String(_) => Ok(Found::Set),
                other => Err(self.mismatch(named, other)),
            },
            Base::Bool => match value {
                Value::Bool(truth) => Ok(if *truth { Found::Set } else { Found::Empty }),
                other => Err(self.mismatch(named, other)),
            },
            Base::Int32 | Base::Int64 => self.integer(named, element.base, value),
            Base::Float => match value {
                Value::Number(number) => {
                    let found = if number.as_f64() == Some(0.0) { Found::Empty } else { Found::Set };
                    numbers::canonical(value);
                    Ok(found)
                }
                other => Err(self.mismatch(named, other)),
            },
            Base::Bytes => match value {
                Value::String(text) => {
                    let bytes = scalar::base64(text).map_err(DecodeError)?;
                    // Go takes text that was broken into lines, and writes it in one.
                    if text.contains(['\r', '\n']) {
                        *text = scalar::to_base64(&bytes);
                    }
                    Ok(if text.is_empty() { Found::Empty } else { Found::Set })
                }
                // Go fills bytes from numbers as it fills any list.
                Value::Array(numbers) => {
                    let bytes = numbers.iter().map(|number| self.byte(number)).collect::<Outcome<Vec<u8>>>()?;
                    *value = scalar::to_base64(&bytes).into();
                    Ok(if bytes.is_empty() { Found::Empty } else { Found::Set })
                }
                other => Err(self.mismatch(named, other)),
            },
            Base::Quantity | Base::IntOrString | Base::Time | Base::MicroTime | Base::Duration => {
                own_form(element.base, value).map_err(DecodeError)?;
                Ok(Found::Set)
            }
            Base::Json => {
                numbers::canonical(value);
                Ok(Found::Set)
            }
            Base::Raw => Ok(Found::Set),
            Base::FieldsV1 => match value {
                Value::Object(_) => Ok(Found::Set),
                other => Err(self.mismatch(named, other)),
            },
            Base::SchemaOrBool | Base::SchemaOrArray | Base::SchemaOrStrings => self.schema_or(element.base, value),
        }
    }

    fn integer(&self, named: Element, base: Base, value: &mut Value) -> Outcome<Found> {
        let Value::Number(number) = &*value else { return Err(self.mismatch(named, value)) };
        let fits = |n: &i64| base == Base::Int64 || i32::try_from(*n).is_ok();
        match number.as_i64().filter(fits) {
            Some(n) => Ok(if n == 0 { Found::Empty } else { Found::Set }),
            None => Err(self.mismatch_text(named, &format!("number {number}"))),
        }
    }

    fn byte(&self, value: &Value) -> Outcome<u8> {
        let found = match value {
            Value::Number(number) => match number.as_u64().and_then(|number| u8::try_from(number).ok()) {
                Some(byte) => return Ok(byte),
                None => format!("number {number}"),
            },
            Value::Null => return Ok(0),
            other => json_type(other).to_owned(),
        };
        Err(self.mismatch_of("uint8", &found))
    }

    fn schema_or(&mut self, base: Base, value: &mut Value) -> Outcome<Found> {
        let schema = schema_props().map(Element::of_type);
        match (value, base, schema) {
            (Value::Bool(_), Base::SchemaOrBool, _) => {}
            (value @ Value::Object(_), Base::SchemaOrBool | Base::SchemaOrArray, Some(schema)) => {
                self.element(schema, value)?;
            }
            (Value::Array(items), Base::SchemaOrArray, Some(schema)) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.path.push(Step::Index(index));
                    self.element(schema, item)?;
                    self.path.pop();
                }
            }
            (Value::Array(items), Base::SchemaOrStrings, _) if items.iter().all(Value::is_string) => {}
            (value @ Value::Object(_), Base::SchemaOrStrings, Some(schema)) => {
                self.element(schema, value)?;
            }
            (_, Base::SchemaOrBool, _) => return Err(DecodeError("boolean or JSON schema expected".to_owned())),
            _ => return Err(DecodeError("JSON schema or array of JSON schemas expected".to_owned())),
        }
        Ok(Found::Set)
    }

    /// Prunes an object of a custom resource; its metadata is decoded as for built-in kinds.
    fn custom(&mut self, schema: &Structural, value: &mut Value) -> Outcome<()> {
        numbers::canonical(value);
        if let (Some(id), Some(found)) = (object_meta(), value.get_mut("metadata")) {
            self.path.push(Step::Field("metadata"));
            self.element(Element::of_type(id), found)?;
            self.path.pop();
        }
        for path in schema.prune_object(value) {
            self.unknown.push(format!("unknown field {path:?}"));
        }
        schema.drop_nulls(value);
        self.embedded(schema, value)?;
        self.unknown.truncate(MOST_UNKNOWN);
        Ok(())
    }

    /// Metadata of the objects that an object embeds.
    fn embedded(&mut self, schema: &Structural, value: &mut Value) -> Outcome<()> {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    if schema.embedded_resource
                        && name == "metadata"
                        && let Some(id) = object_meta()
                    {
                        self.path.push(Step::Field("metadata"));
                        self.element(Element::of_type(id), value)?;
                        self.path.pop();
                    } else if let Some(inner) = schema.inner(name) {
                        self.path.push(Step::Key(name.clone()));
                        self.embedded(inner, value)?;
                        self.path.pop();
                    }
                }
            }
            Value::Array(items) => {
                let Some(inner) = &schema.items else { return Ok(()) };
                for (index, item) in items.iter_mut().enumerate() {
                    self.path.push(Step::Index(index));
                    self.embedded(inner, item)?;
                    self.path.pop();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn report_unknown(&mut self, key: &str) {
        if self.unknown.len() < MOST_UNKNOWN {
            let mut path = render(&self.path);
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(key);
            self.unknown.push(format!("unknown field {path:?}"));
        }
    }

    fn mismatch(&self, element: Element, value: &Value) -> DecodeError {
        self.mismatch_text(element, json_type(value))
    }

    fn mismatch_text(&self, element: Element, found: &str) -> DecodeError {
        self.mismatch_of(&go_type(element), found)
    }

    fn mismatch_of(&self, go_type: &str, found: &str) -> DecodeError {
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|step| match step {
                Step::Field(name) => Some(*name),
                _ => None,
            })
            .collect();
        DecodeError(match self.structs.last() {
            Some(owner) if !fields.is_empty() => format!(
                "json: cannot unmarshal {found} into Go struct field {}.{} of type {go_type}",
                owner.kind(),
                fields.join(".")
            ),
            _ => format!("json: cannot unmarshal {found} into Go value of type {go_type}"),
        })
    }
}

/// What Go's JSON decoding calls a value.
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn render(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Field(name) => join(&mut text, name),
            Step::Key(name) => join(&mut text, name),
        }
    }
    text
}

fn join(text: &mut String, name: &str) {
    if !text.is_empty() {
        text.push('.');
    }
    text.push_str(name);
}

/// Types that decode themselves from text: the canonical text replaces the value.
fn own_form(base: Base, value: &mut Value) -> Result<(), String> {
    let not_text = |value: &Value| format!("json: cannot unmarshal {} into Go value of type string", json_type(value));
    let canonical = match (base, &*value) {
        (Base::Quantity, Value::String(text)) => scalar::quantity(text)?,
        (Base::Quantity, Value::Number(number)) => scalar::quantity(&number.to_string())?,
        (Base::Quantity, other) => scalar::quantity(&other.to_string())?,
        (Base::IntOrString, Value::String(_)) => return Ok(()),
        (Base::IntOrString, Value::Number(number)) => {
            return match number.as_i64().filter(|n| i32::try_from(*n).is_ok()) {
                Some(_) => Ok(()),
                None => Err(format!("json: cannot unmarshal number {number} into Go value of type int32")),
            };
        }
        (Base::IntOrString, other) => return Err(not_text(other).replace("type string", "type int32")),
        (Base::Time, Value::String(text)) => scalar::time(scalar::timestamp(text)?),
        (Base::MicroTime, Value::String(text)) => scalar::micro_time(scalar::timestamp(text)?),
        (Base::Duration, Value::String(text)) => scalar::go_duration_text(scalar::go_duration(text)?),
        (_, other) => return Err(not_text(other)),
    };
    *value = Value::String(canonical);
    Ok(())
}

/// What Go writes for a field that is not in the input; `None` when it is left out.
fn zero_of_absent(field: Field) -> Option<Value> {
    let element = field.element();
    let resolved = element.resolved();
    if field.is_pointer() || resolved.shape != Shape::Single {
        return (!field.omit_empty()).then_some(Value::Null);
    }
    match resolved.base {
        // Structs have no empty value for `omitempty`.
        Base::Type(_)
        | Base::Quantity
        | Base::IntOrString
        | Base::Time
        | Base::MicroTime
        | Base::Raw
        | Base::Json
        | Base::Duration
            if field.omit_zero() =>
        {
            None
        }
        Base::Type(id) => Some(zero_struct(id)),
        Base::Quantity => Some("0".into()),
        Base::IntOrString => Some(0.into()),
        Base::Time | Base::MicroTime | Base::Raw | Base::Json => Some(Value::Null),
        Base::Duration => Some("0s".into()),
        _ if field.omit_empty() => None,
        Base::String => Some("".into()),
        Base::Bool => Some(false.into()),
        Base::Int32 | Base::Int64 => Some(0.into()),
        Base::Float => Some(Value::Number(Number::from(0))),
        _ => Some(Value::Null),
    }
}

fn zero_struct(id: TypeId) -> Value {
    let members = id.fields().filter_map(|field| Some((field.name().to_owned(), zero_of_absent(field)?)));
    Value::Object(members.collect())
}

/// A null item of a list or map of plain values becomes Go's zero value.
fn zero_if_null(element: Element, value: &mut Value) {
    if !value.is_null() || element.resolved().shape != Shape::Single {
        return;
    }
    *value = match element.resolved().base {
        Base::String => "".into(),
        Base::Bool => false.into(),
        Base::Int32 | Base::Int64 | Base::Float | Base::IntOrString => 0.into(),
        Base::Quantity => "0".into(),
        _ => return,
    };
}

/// The type as Go's messages name it.
fn go_type(element: Element) -> String {
    let base = match element.base {
        Base::Type(id) => id.go_name(),
        Base::String => "string",
        Base::Bool => "bool",
        Base::Int32 => "int32",
        Base::Int64 => "int64",
        Base::Float => "float64",
        Base::Bytes => "[]uint8",
        Base::Quantity => "resource.Quantity",
        Base::IntOrString => "intstr.IntOrString",
        Base::Time => "v1.Time",
        Base::MicroTime => "v1.MicroTime",
        Base::Duration => "v1.Duration",
        Base::FieldsV1 => "v1.FieldsV1",
        Base::Raw => "runtime.RawExtension",
        Base::Json => "v1.JSON",
        Base::SchemaOrBool => "v1.JSONSchemaPropsOrBool",
        Base::SchemaOrArray => "v1.JSONSchemaPropsOrArray",
        Base::SchemaOrStrings => "v1.JSONSchemaPropsOrStringArray",
    };
    match element.shape {
        Shape::Single => base.to_owned(),
        Shape::List => format!("[]{base}"),
        Shape::Map => format!("map[string]{base}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::lookup;
    use serde_json::json;

    fn run(group: &'static str, kind: &'static str, mut value: Value) -> Result<(Value, Vec<String>), String> {
        let gvk = GroupVersionKind::new(group, "v1", kind);
        let schema = lookup(&gvk).unwrap();
        let unknown = normalize(&schema, &mut value, &gvk).map_err(|error| error.message().to_owned())?;
        Ok((value, unknown))
    }

    #[test]
    fn empty_values_are_written_as_go_writes_them() {
        let (pod, _) =
            run("", "Pod", json!({"metadata": {"name": "a", "labels": {}, "creationTimestamp": null}})).unwrap();
        assert_eq!(pod, json!({"metadata": {"name": "a"}, "spec": {"containers": null}, "status": {}}));
        let (deployment, unknown) = run(
            "apps",
            "Deployment",
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0, "paused": false, "foo": 1,
                "template": {"spec": {"containers": [{"name": "a", "bar": {}}]}}}}),
        )
        .unwrap();
        assert_eq!(
            deployment,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}, "status": {},
                "spec": {"replicas": 0, "selector": null, "strategy": {}, "template": {"metadata": {}, "spec": {"containers":
                    [{"name": "a", "resources": {}}]}}}})
        );
        assert_eq!(unknown, ["unknown field \"spec.foo\"", "unknown field \"spec.template.spec.containers[0].bar\""]);
    }

    #[test]
    fn scalars_get_their_canonical_form() {
        let (pod, _) = run(
            "",
            "Pod",
            json!({"metadata": {"creationTimestamp": "2024-01-01T02:00:00.5+01:00"}, "spec": {"containers": [{"name": "a",
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Ki", "x": 2}},
                "ports": [{"containerPort": 80}]}]}}),
        )
        .unwrap();
        assert_eq!(pod["metadata"]["creationTimestamp"], "2024-01-01T01:00:00Z");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"], json!({"cpu": "500m", "memory": "1Mi", "x": "2"}));
        assert_eq!(container["ports"], json!([{"containerPort": 80}]));
        let (service, _) = run("", "Service", json!({"spec": {"ports": [{"port": 80}]}})).unwrap();
        assert_eq!(service["spec"]["ports"], json!([{"port": 80, "targetPort": 0}]));
    }

    #[test]
    fn wrong_types_are_told_in_gos_words() {
        for (group, kind, value, message) in [
            (
                "apps",
                "Deployment",
                json!({"spec": {"replicas": "three"}}),
                "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "",
                "Pod",
                json!({"metadata": {"labels": {"a": 1}}}),
                "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                "",
                "Pod",
                json!({"spec": {"containers": {}}}),
                "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                "",
                "Pod",
                json!({"spec": {"containers": [{"ports": [{"containerPort": 1.5}]}]}}),
                "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number 1.5 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
            ),
            (
                "",
                "Pod",
                json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}}),
                "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                "",
                "Secret",
                json!({"data": {"a": "?"}}),
                "Secret in version \"v1\" cannot be handled as a Secret: illegal base64 data at input byte 0",
            ),
            (
                "",
                "Secret",
                json!({"data": {"a": [104, 500]}}),
                "Secret in version \"v1\" cannot be handled as a Secret: json: cannot unmarshal number 500 into Go struct field Secret.data of type uint8",
            ),
            (
                "",
                "Pod",
                json!({"spec": "x"}),
                "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field Pod.spec of type v1.PodSpec",
            ),
        ] {
            assert_eq!(run(group, kind, value).unwrap_err(), message);
        }
    }

    #[test]
    fn whole_floats_are_written_as_integers() {
        let schema = json!({"type": "number", "minimum": 0.0, "default": 2.0, "enum": [1.0, 2.5]});
        let crd = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}});
        let (crd, _) = run("apiextensions.k8s.io", "CustomResourceDefinition", crd).unwrap();
        assert_eq!(
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
            json!({"type": "number", "minimum": 0, "default": 2, "enum": [1, 2.5]})
        );
        let schema = Schema::custom(Structural::from_json(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}),
        ));
        let mut widget = json!({"apiVersion": "e.com/v1", "kind": "W", "spec": {"a": 1.0, "b": [2.0, 0.5]}});
        normalize(&schema, &mut widget, &GroupVersionKind::new("e.com", "v1", "W")).unwrap();
        assert_eq!(widget["spec"], json!({"a": 1, "b": [2, 0.5]}));
    }

    #[test]
    fn bytes_may_come_as_numbers() {
        let (secret, _) = run("", "Secret", json!({"data": {"a": [104, 105], "b": []}})).unwrap();
        assert_eq!(secret["data"], json!({"a": "aGk=", "b": ""}));
    }

    #[test]
    fn base64_in_lines_is_kept_in_one() {
        let (secret, _) = run("", "Secret", json!({"data": {"a": "aGVs\nbG8=\n", "b": "\r\n"}})).unwrap();
        assert_eq!(secret["data"], json!({"a": "aGVsbG8=", "b": ""}));
    }

    #[test]
    fn schemas_of_custom_resources_are_walked() {
        let crd = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "a": {"type": "array", "items": {"type": "string"}}, "b": {"additionalProperties": true, "bogus": 1}}}}}]}});
        let (value, unknown) = run("apiextensions.k8s.io", "CustomResourceDefinition", crd).unwrap();
        let properties = &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        assert_eq!(properties["a"], json!({"type": "array", "items": {"type": "string"}}));
        assert_eq!(properties["b"], json!({"additionalProperties": true}));
        assert_eq!(unknown, ["unknown field \"spec.versions[0].schema.openAPIV3Schema.properties.b.bogus\""]);
    }

    #[test]
    fn normalising_twice_changes_nothing() {
        let service =
            json!({"spec": {"ports": [{"port": 80, "targetPort": "x"}], "type": ""}, "metadata": {"finalizers": []}});
        let (once, _) = run("", "Service", service).unwrap();
        let (twice, unknown) = run("", "Service", once.clone()).unwrap();
        assert_eq!((once, unknown.is_empty()), (twice, true));
    }
}
