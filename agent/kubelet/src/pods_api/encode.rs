//! A pod in protobuf, as Go's `v1.Pod` marshals it. Pure.
//!
//! A pod's JSON is encoded by the table of Kubernetes' messages that `proto` has
//! ([`proto::POD_DESCRIPTORS`]): keys there are fields here. Where the two forms differ is said by
//! [`AROUND`] and [`plain`].

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost::{DecodeError, Message};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use serde_json::{Value, json};

/// Messages whose fields JSON has among those of the message around them.
const AROUND: [&str; 4] = ["volumeSource", "ephemeralContainerCommon", "handler", "localObjectReference"];

#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("making JSON of the pod: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{value} is no value of a pod's field {field}")]
    Value { field: String, value: String },
}

pub struct Encoder {
    /// Fields by the message's name; an entry of a map is a message too.
    messages: HashMap<String, Vec<Field>>,
}

struct Field {
    name: String,
    number: u32,
    kind: Kind,
    shape: Shape,
}

enum Kind {
    Text,
    Number,
    Flag,
    Message(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    Many,
    /// An object whose keys and values are entries.
    Map,
    Around,
}

impl Encoder {
    /// Reads the table.
    pub fn new() -> Result<Self, DecodeError> {
        let files = FileDescriptorSet::decode(proto::POD_DESCRIPTORS)?;
        let mut messages = HashMap::new();
        for message in files.file.iter().flat_map(|file| &file.message_type) {
            let entries =
                message.nested_type.iter().map(|entry| (format!("{}.{}", message.name(), entry.name()), entry));
            for (name, message) in entries.chain([(message.name().to_owned(), message)]) {
                messages.insert(name, fields(message));
            }
        }
        Ok(Self { messages })
    }

    pub fn pod(&self, pod: &Pod) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::new();
        self.message("Pod", &serde_json::to_value(pod)?, &mut out)?;
        Ok(out)
    }

    fn message(&self, name: &str, json: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if let Some(done) = plain(name, json, out) {
            return done;
        }
        for field in self.messages.get(name).into_iter().flatten() {
            match (field.shape, json.get(&field.name)) {
                (Shape::Around, _) => self.field(field, json, out)?,
                (_, None | Some(Value::Null)) => {}
                (Shape::Many, Some(Value::Array(items))) => {
                    items.iter().try_for_each(|item| self.field(field, item, out))?;
                }
                (Shape::Map, Some(Value::Object(entries))) => {
                    let mut entries = entries.iter().map(|(key, value)| json!({"key": key, "value": value}));
                    entries.try_for_each(|entry| self.field(field, &entry, out))?;
                }
                (_, Some(value)) => self.field(field, value, out)?,
            }
        }
        Ok(())
    }

    fn field(&self, field: &Field, value: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let wrong = || wrong(&field.name, value);
        match &field.kind {
            Kind::Text => put_bytes(field.number, value.as_str().ok_or_else(wrong)?.as_bytes(), out),
            Kind::Number => put_number(field.number, value.as_i64().ok_or_else(wrong)?, out),
            Kind::Flag => put_number(field.number, value.as_bool().ok_or_else(wrong)?.into(), out),
            Kind::Message(name) => {
                let mut inner = Vec::new();
                self.message(name, value, &mut inner)?;
                put_bytes(field.number, &inner, out);
            }
        }
        Ok(())
    }
}

fn wrong(field: &str, value: &Value) -> EncodeError {
    EncodeError::Value { field: field.to_owned(), value: value.to_string() }
}

fn fields(message: &DescriptorProto) -> Vec<Field> {
    let is_map = |field: &FieldDescriptorProto| {
        message.nested_type.iter().any(|entry| field.type_name().ends_with(&format!(".{}", entry.name())))
    };
    let read = |field: &FieldDescriptorProto| Field {
        name: field.name().to_owned(),
        number: field.number().unsigned_abs(),
        kind: match field.r#type() {
            Type::Message => Kind::Message(field.type_name().trim_start_matches(".pod.").to_owned()),
            Type::Int32 | Type::Int64 => Kind::Number,
            Type::Bool => Kind::Flag,
            _ => Kind::Text,
        },
        shape: match field.label() {
            _ if AROUND.contains(&field.name()) => Shape::Around,
            _ if is_map(field) => Shape::Map,
            Label::Repeated => Shape::Many,
            _ => Shape::One,
        },
    };
    message.field.iter().map(read).collect()
}

/// Messages that JSON has as one value; none for others.
fn plain(message: &str, json: &Value, out: &mut Vec<u8>) -> Option<Result<(), EncodeError>> {
    match (message, json) {
        ("Quantity", Value::String(amount)) => put_bytes(1, amount.as_bytes(), out),
        ("FieldsV1", fields) => put_bytes(1, fields.to_string().as_bytes(), out),
        // The first field says which of the others counts.
        ("IntOrString", Value::String(name)) => {
            put_number(1, 1, out);
            put_bytes(3, name.as_bytes(), out);
        }
        ("IntOrString", number) if number.is_i64() => put_number(2, number.as_i64().unwrap_or_default(), out),
        ("Time", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(at) => {
                put_number(1, at.as_second(), out);
                put_number(2, at.subsec_nanosecond().into(), out);
            }
            Err(_) => return Some(Err(wrong(message, json))),
        },
        ("Quantity" | "IntOrString" | "Time", _) => return Some(Err(wrong(message, json))),
        _ => return None,
    }
    Some(Ok(()))
}

fn put_number(field: u32, number: i64, out: &mut Vec<u8>) {
    encode_key(field, WireType::Varint, out);
    // A negative number is ten bytes, whatever its type.
    encode_varint(number.cast_unsigned(), out);
}

fn put_bytes(field: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
