//! Protobuf → JSON. Empty values of fields that Go omits when empty are left out; numbers that no
//! field has are skipped, as older servers do with newer clients.

use serde_json::{Map, Number, Value};

use super::wire::{Payload, Reader};
use super::{ProtobufError, utf8};
use crate::schema::table::{Base, Element, Field, Shape, TypeId};
use crate::schema::{go_duration_text, micro_time_text, time_text, to_base64};

/// As deep as JSON documents may be.
const MAX_DEPTH: usize = 120;

type Result<T> = std::result::Result<T, ProtobufError>;

pub fn object(id: TypeId, bytes: &[u8]) -> Result<Map<String, Value>> {
    let mut members = Map::new();
    message(id, bytes, [0, 0], 0, &mut members, 0)?;
    Ok(members)
}

fn structure(id: TypeId, bytes: &[u8], nesting: usize) -> Result<Value> {
    let mut members = Map::new();
    message(id, bytes, [0, 0], 0, &mut members, nesting)?;
    Ok(Value::Object(members))
}

/// Reads the fields that sit `depth` messages deep under `via`.
fn message(
    id: TypeId,
    bytes: &[u8],
    via: [u8; 2],
    depth: usize,
    members: &mut Map<String, Value>,
    nesting: usize,
) -> Result<()> {
    if nesting > MAX_DEPTH {
        return Err(ProtobufError::Depth);
    }
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        let here = |field: &Field| field.via()[..depth] == via[..depth];
        let nested = depth < 2 && id.fields().filter(here).any(|field| u32::from(field.via()[depth]) == number);
        if nested {
            let Payload::Bytes(inner) = payload else { return Err(ProtobufError::WireType(number)) };
            let mut deeper = via;
            // It equals a byte of the table.
            deeper[depth] = number as u8;
            message(id, inner, deeper, depth + 1, members, nesting + 1)?;
            continue;
        }
        let direct = |field: &Field| {
            here(field) && field.via().get(depth).is_none_or(|next| *next == 0) && u32::from(field.number()) == number
        };
        if let Some(field) = id.fields().find(direct) {
            read_field(field, number, payload, members, nesting)?;
        }
    }
    Ok(())
}

fn read_field(
    field: Field,
    number: u32,
    payload: Payload<'_>,
    members: &mut Map<String, Value>,
    nesting: usize,
) -> Result<()> {
    let element = field.element();
    let resolved = element.resolved();
    match resolved.shape {
        Shape::Single => {
            let value = single(resolved.base, number, payload, nesting)?;
            if field.is_pointer() || !(field.omit_empty() && is_zero(&value)) {
                members.insert(field.name().to_owned(), value);
            }
        }
        Shape::List => {
            let list = members.entry(field.name()).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = list else { return Ok(()) };
            match payload {
                Payload::Bytes(bytes) if element.named().is_some_and(TypeId::is_message) => {
                    *items = message_list(resolved, bytes, nesting)?;
                }
                // Lists of numbers may come packed.
                Payload::Bytes(bytes)
                    if matches!(resolved.item().resolved().base, Base::Int32 | Base::Int64 | Base::Bool) =>
                {
                    let mut packed = Reader::new(bytes);
                    while !packed.is_empty() {
                        let payload = Payload::Varint(packed.varint()?);
                        items.push(single(resolved.item().resolved().base, number, payload, nesting)?);
                    }
                }
                payload => items.push(inner(resolved.item(), number, payload, nesting)?),
            }
        }
        Shape::Map => {
            let Payload::Bytes(bytes) = payload else { return Err(ProtobufError::WireType(number)) };
            let (name, value) = entry(resolved.item(), bytes, nesting)?;
            let map = members.entry(field.name()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = map {
                entries.insert(name, value);
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(truth) => !truth,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn entry(element: Element, bytes: &[u8], nesting: usize) -> Result<(String, Value)> {
    let (mut name, mut value) = (String::new(), None);
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        match (number, payload) {
            (1, Payload::Bytes(text)) => name = utf8(text)?.to_owned(),
            (2, payload) => value = Some(inner(element, number, payload, nesting)?),
            _ => {}
        }
    }
    // An entry without a value has the empty one.
    let empty = || match element.resolved().base {
        Base::String | Base::Bytes => "".into(),
        Base::Bool => false.into(),
        Base::Int32 | Base::Int64 | Base::Float => 0.into(),
        Base::Quantity => "0".into(),
        _ => Value::Null,
    };
    Ok((name, value.unwrap_or_else(empty)))
}

/// An item of a list or a value of a map.
fn inner(element: Element, number: u32, payload: Payload<'_>, nesting: usize) -> Result<Value> {
    let resolved = element.resolved();
    match (resolved.shape, payload) {
        (Shape::Single, payload) => single(resolved.base, number, payload, nesting),
        (_, Payload::Bytes(bytes)) => message_list(resolved, bytes, nesting).map(Value::Array),
        _ => Err(ProtobufError::WireType(number)),
    }
}

fn message_list(element: Element, bytes: &[u8], nesting: usize) -> Result<Vec<Value>> {
    let mut items = Vec::new();
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        if number == 1 {
            items.push(inner(element.item(), number, payload, nesting + 1)?);
        }
    }
    Ok(items)
}

fn single(base: Base, number: u32, payload: Payload<'_>, nesting: usize) -> Result<Value> {
    Ok(match (base, payload) {
        (Base::String, Payload::Bytes(text)) => utf8(text)?.into(),
        (Base::Bytes, Payload::Bytes(bytes)) => to_base64(bytes).into(),
        (Base::Bool, Payload::Varint(value)) => (value != 0).into(),
        // Protobuf keeps the low 32 bits.
        (Base::Int32, Payload::Varint(value)) => (value as u32).cast_signed().into(),
        (Base::Int64, Payload::Varint(value)) => value.cast_signed().into(),
        (Base::Float, Payload::Fixed64(value)) => {
            Number::from_f64(f64::from_le_bytes(value)).map_or(Value::Null, Value::Number)
        }
        (Base::Type(id), Payload::Bytes(bytes)) => structure(id, bytes, nesting + 1)?,
        (Base::Quantity, Payload::Bytes(bytes)) => match text_at(bytes, 1)? {
            "" => "0".into(),
            text => text.into(),
        },
        (Base::IntOrString, Payload::Bytes(bytes)) => int_or_string(bytes)?,
        (Base::Time | Base::MicroTime, Payload::Bytes(bytes)) => time(base, bytes)?,
        (Base::Duration, Payload::Bytes(bytes)) => go_duration_text(numbers(bytes)?[0].cast_signed()).into(),
        (Base::FieldsV1 | Base::Raw | Base::Json, Payload::Bytes(bytes)) => embedded_json(bytes)?,
        (Base::SchemaOrBool | Base::SchemaOrArray | Base::SchemaOrStrings, Payload::Bytes(bytes)) => {
            schema_or(base, bytes, nesting)?
        }
        _ => return Err(ProtobufError::WireType(number)),
    })
}

fn text_at(bytes: &[u8], wanted: u32) -> Result<&str> {
    let mut text = "";
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        if let (true, Payload::Bytes(value)) = (number == wanted, payload) {
            text = utf8(value)?;
        }
    }
    Ok(text)
}

/// The varints numbered 1 and 2.
fn numbers(bytes: &[u8]) -> Result<[u64; 2]> {
    let mut values = [0; 2];
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        if let (1 | 2, Payload::Varint(value)) = (number, payload) {
            values[number as usize - 1] = value;
        }
    }
    Ok(values)
}

fn int_or_string(bytes: &[u8]) -> Result<Value> {
    let [kind, number] = numbers(bytes)?;
    Ok(if kind == 1 { text_at(bytes, 3)?.into() } else { (number as u32).cast_signed().into() })
}

fn time(base: Base, bytes: &[u8]) -> Result<Value> {
    let [seconds, nanos] = numbers(bytes)?;
    if (seconds, nanos) == (0, 0) {
        return Ok(Value::Null);
    }
    let nanos = (nanos as u32).cast_signed();
    let Ok(time) = jiff::Timestamp::new(seconds.cast_signed(), nanos) else { return Ok(Value::Null) };
    Ok(if base == Base::Time { time_text(time) } else { micro_time_text(time) }.into())
}

fn embedded_json(bytes: &[u8]) -> Result<Value> {
    let mut value = Value::Null;
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        if let (1, Payload::Bytes(raw)) = (number, payload)
            && !raw.is_empty()
        {
            let parsed = crate::schema::parse(raw, crate::schema::ContentType::Json);
            value = parsed.map_err(|error| ProtobufError::Json(error.message().to_owned()))?.value;
        }
    }
    Ok(value)
}

fn schema_or(base: Base, bytes: &[u8], nesting: usize) -> Result<Value> {
    let Some(schema) = crate::schema::schema_props() else { return Ok(Value::Null) };
    let (mut allows, mut one, mut many) = (false, None, Vec::new());
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        match (base, number, payload) {
            (Base::SchemaOrBool, 1, Payload::Varint(value)) => allows = value != 0,
            (Base::SchemaOrBool, 2, Payload::Bytes(inner)) | (_, 1, Payload::Bytes(inner)) => {
                one = Some(structure(schema, inner, nesting + 1)?);
            }
            (Base::SchemaOrArray, 2, Payload::Bytes(inner)) => many.push(structure(schema, inner, nesting + 1)?),
            (Base::SchemaOrStrings, 2, Payload::Bytes(text)) => many.push(utf8(text)?.into()),
            _ => {}
        }
    }
    Ok(match (one, base) {
        (Some(schema), _) => schema,
        (None, Base::SchemaOrBool) => allows.into(),
        (None, _) => many.into(),
    })
}
