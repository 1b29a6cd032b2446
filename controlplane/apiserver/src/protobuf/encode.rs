//! JSON → protobuf. Fields go out in the order of their numbers; fields that are no pointers in Go
//! are written even when they are empty, as upstream's encoder does.

use serde_json::{Map, Value};

use super::wire::Writer;
use crate::schema::table::{Base, Element, Field, Shape, TypeId};
use crate::schema::{base64_bytes, go_duration_nanos, parse_timestamp};

pub fn object(out: &mut Writer, id: TypeId, value: &Value) {
    let none = Map::new();
    members(out, id, value.as_object().unwrap_or(&none), [0, 0], 0);
}

/// A field of the message, or a message that holds inlined fields.
enum Part {
    Field(Field),
    Nested,
}

/// Writes the fields that sit `depth` messages deep under `via`.
fn members(out: &mut Writer, id: TypeId, members_: &Map<String, Value>, via: [u8; 2], depth: usize) {
    let mut parts: Vec<(u32, Part)> = Vec::new();
    for field in id.fields() {
        let path = field.via();
        if path[..depth] != via[..depth] {
            continue;
        }
        match path.get(depth).copied().unwrap_or_default() {
            0 if field.number() > 0 => parts.push((u32::from(field.number()), Part::Field(field))),
            0 => {}
            number => {
                if !parts.iter().any(|(known, part)| *known == u32::from(number) && matches!(part, Part::Nested)) {
                    parts.push((u32::from(number), Part::Nested));
                }
            }
        }
    }
    parts.sort_by_key(|(number, _)| *number);
    for (number, part) in parts {
        match part {
            Part::Field(field) => put_field(out, field, number, members_.get(field.name()).unwrap_or(&Value::Null)),
            Part::Nested => {
                let mut deeper = via;
                // Numbers of inlined structs fit: the table holds them in bytes.
                deeper[depth] = number as u8;
                out.message(number, |out| members(out, id, members_, deeper, depth + 1));
            }
        }
    }
}

fn put_field(out: &mut Writer, field: Field, number: u32, value: &Value) {
    let element = field.element();
    let resolved = element.resolved();
    match (resolved.shape, value) {
        (Shape::Single, Value::Null) if field.is_pointer() => {}
        (Shape::Single, value) => single(out, number, resolved.base, value),
        (Shape::List, Value::Array(items)) if element.named().is_some_and(TypeId::is_message) => {
            message_list(out, number, resolved, items);
        }
        (Shape::List, Value::Array(items)) => {
            for item in items {
                inner(out, number, resolved.item(), item);
            }
        }
        (Shape::Map, Value::Object(entries)) => {
            let mut names: Vec<&String> = entries.keys().collect();
            names.sort();
            for name in names {
                out.message(number, |out| {
                    out.bytes(1, name.as_bytes());
                    inner(out, 2, resolved.item(), &entries[name]);
                });
            }
        }
        _ => {}
    }
}

/// An item of a list or a value of a map.
fn inner(out: &mut Writer, number: u32, element: Element, value: &Value) {
    let resolved = element.resolved();
    match (resolved.shape, value) {
        (Shape::Single, value) => single(out, number, resolved.base, value),
        (_, Value::Array(items)) => message_list(out, number, resolved, items),
        _ => out.bytes(number, b""),
    }
}

/// A named list that is a message of its own: `{items = 1}`.
fn message_list(out: &mut Writer, number: u32, element: Element, items: &[Value]) {
    out.message(number, |out| items.iter().for_each(|item| inner(out, 1, element.item(), item)));
}

fn single(out: &mut Writer, number: u32, base: Base, value: &Value) {
    let text = || value.as_str().unwrap_or_default();
    match base {
        Base::String => out.bytes(number, text().as_bytes()),
        Base::Bool => out.varint(number, u64::from(value.as_bool().unwrap_or_default())),
        Base::Int32 | Base::Int64 => out.varint(number, integer(value)),
        Base::Float => out.fixed64(number, value.as_f64().unwrap_or_default().to_le_bytes()),
        Base::Bytes if value.is_null() => {}
        Base::Bytes => out.bytes(number, &base64_bytes(text())),
        Base::Type(id) => out.message(number, |out| object(out, id, value)),
        Base::Quantity => {
            let text = if value.is_null() { "0" } else { text() };
            out.message(number, |out| out.bytes(1, text.as_bytes()));
        }
        Base::IntOrString => out.message(number, |out| {
            out.varint(1, u64::from(value.is_string()));
            out.varint(2, integer(value));
            out.bytes(3, text().as_bytes());
        }),
        Base::Time | Base::MicroTime => out.message(number, |out| {
            let Ok(time) = parse_timestamp(text()) else { return };
            out.varint(1, time.as_second().cast_unsigned());
            let nanos = if base == Base::MicroTime { time.subsec_microsecond_floor() } else { 0 };
            out.varint(2, nanos);
        }),
        Base::Duration => out.message(number, |out| out.varint(1, go_duration_nanos(text()).cast_unsigned())),
        Base::FieldsV1 | Base::Raw | Base::Json => out.message(number, |out| {
            if !value.is_null() {
                out.bytes(1, value.to_string().as_bytes());
            }
        }),
        Base::SchemaOrBool | Base::SchemaOrArray | Base::SchemaOrStrings => {
            out.message(number, |out| schema_or(out, base, value));
        }
    }
}

/// Two's complement in 64 bits, as protobuf writes signed integers.
fn integer(value: &Value) -> u64 {
    value.as_i64().unwrap_or_default().cast_unsigned()
}

fn schema_or(out: &mut Writer, base: Base, value: &Value) {
    let Some(schema) = crate::schema::schema_props() else { return };
    match (base, value) {
        (Base::SchemaOrBool, Value::Bool(allows)) => out.varint(1, u64::from(*allows)),
        (Base::SchemaOrBool, value) => {
            out.varint(1, 1);
            out.message(2, |out| object(out, schema, value));
        }
        (Base::SchemaOrArray, Value::Array(items)) => {
            items.iter().for_each(|item| out.message(2, |out| object(out, schema, item)));
        }
        (_, Value::Array(items)) => {
            items.iter().for_each(|item| out.bytes(2, item.as_str().unwrap_or_default().as_bytes()));
        }
        (_, value) => out.message(1, |out| object(out, schema, value)),
    }
}

/// Nanoseconds within the second, cut to microseconds.
trait Subsecond {
    fn subsec_microsecond_floor(&self) -> u64;
}

impl Subsecond for jiff::Timestamp {
    fn subsec_microsecond_floor(&self) -> u64 {
        let nanos = u64::try_from(self.subsec_nanosecond()).unwrap_or_default();
        nanos - nanos % 1000
    }
}
