//! Kubernetes' protobuf form of built-in objects, transcoded from and to JSON by the numbers in the
//! schema table.
//!
//! ```text
//! "k8s\0"  runtime.Unknown { typeMeta = 1 { apiVersion = 1, kind = 2 }, raw = 2 (the object),
//!                            contentEncoding = 3, contentType = 4 }
//! ```
//! Watches send `meta.v1.WatchEvent { type = 1, object = 2 { raw = 1 (an envelope as above) } }`,
//! each with its length in front as four bytes, big-endian. Kinds without a protobuf form (tables,
//! custom resources) are refused with 406.
//!
//! Layer: above `schema`, below HTTP. [`encode`](mod@encode) and [`decode`](mod@decode) walk values,
//! [`wire`] is the wire format.

mod decode;
mod encode;
mod wire;

use serde_json::Value;

use crate::error::ApiError;
use crate::resource::split_api_version;
use crate::schema::table::TypeId;
use crate::schema::type_of;
use wire::{Payload, Reader, Writer};

const MAGIC: &[u8; 4] = b"k8s\0";
const TABLE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Table";

/// Why bytes are not the protobuf form of an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error("the message ends early")]
    Short,
    #[error("a varint is longer than 64 bits")]
    Varint,
    #[error("field {0} has a wire type that its type does not allow")]
    WireType(u32),
    #[error("field number 0 or a group: not a message of this kind")]
    Tag,
    #[error("text is not UTF-8")]
    Text,
    #[error("embedded JSON: {0}")]
    Json(String),
    #[error("messages are nested too deeply")]
    Depth,
}

/// Decodes an object; the result has kind and apiVersion and is to be normalised.
pub fn decode(bytes: &[u8]) -> Result<Value, ApiError> {
    let Some(body) = bytes.strip_prefix(MAGIC) else {
        return Err(ApiError::bad_request(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        ));
    };
    let malformed = |error: ProtobufError| {
        ApiError::bad_request(format!("the object provided is unrecognized: protobuf decode error: {error}"))
    };
    let envelope = Envelope::read(body).map_err(malformed)?;
    if envelope.content_type == "application/json" {
        return Ok(crate::schema::parse(envelope.raw, crate::schema::ContentType::Json)?.value);
    }
    let (api_version, kind) = (envelope.api_version, envelope.kind);
    let (group, version) = split_api_version(api_version);
    let id = type_of(group, layout_version(group, version, kind), kind).ok_or_else(|| {
        ApiError::bad_request(format!(
            "no kind {kind:?} is registered for version {api_version:?} in protobuf: send it as JSON"
        ))
    })?;
    let mut object = decode::object(id, envelope.raw).map_err(malformed)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

/// The version whose layout a message has: evictions are still taken in a version that is not served
/// any more, with the same fields.
fn layout_version<'a>(group: &str, version: &'a str, kind: &str) -> &'a str {
    match (group, version, kind) {
        ("policy", "v1beta1", "Eviction") => "v1",
        _ => version,
    }
}

/// Encodes an object, list or `Status`.
pub fn encode(value: &Value) -> Result<Vec<u8>, ApiError> {
    let api_version = value["apiVersion"].as_str().unwrap_or_default();
    let kind = value["kind"].as_str().unwrap_or_default();
    let (group, version) = split_api_version(api_version);
    let id = type_of(group, version, kind).filter(|id| has_form(*id));
    let id = id.ok_or_else(|| ApiError::not_acceptable(&["application/json", "application/yaml"]))?;
    let mut raw = Writer::default();
    encode::object(&mut raw, id, value);
    let mut out = Writer(MAGIC.to_vec());
    out.message(1, |out| {
        out.bytes(1, api_version.as_bytes());
        out.bytes(2, kind.as_bytes());
    });
    out.bytes(2, &raw.0);
    out.bytes(3, b"");
    out.bytes(4, b"");
    Ok(out.0)
}

/// Whether a kind has a protobuf form.
pub fn has_form(id: TypeId) -> bool {
    id.name() != TABLE
}

/// Encodes a watch event with its length in front. `kind` is `ADDED`, `MODIFIED`, ...
pub fn encode_watch_event(kind: &str, object: &Value) -> Result<Vec<u8>, ApiError> {
    Ok(frame_watch_event(kind, &encode(object)?))
}

/// A watch event around an object that [`encode`](encode()) has encoded already.
pub fn frame_watch_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut event = Writer::default();
    event.bytes(1, kind.as_bytes());
    event.message(2, |out| out.bytes(1, object));
    // An event is far smaller than 4 GiB: bodies are limited.
    let length = u32::try_from(event.0.len()).unwrap_or(u32::MAX);
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend(event.0);
    frame
}

struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
    content_type: &'a str,
}

impl<'a> Envelope<'a> {
    fn read(body: &'a [u8]) -> Result<Self, ProtobufError> {
        let mut envelope = Envelope { api_version: "", kind: "", raw: &[], content_type: "" };
        let mut reader = Reader::new(body);
        while let Some((number, payload)) = reader.next()? {
            match (number, payload) {
                (1, Payload::Bytes(meta)) => {
                    let mut meta = Reader::new(meta);
                    while let Some((number, payload)) = meta.next()? {
                        match (number, payload) {
                            (1, Payload::Bytes(text)) => envelope.api_version = utf8(text)?,
                            (2, Payload::Bytes(text)) => envelope.kind = utf8(text)?,
                            _ => {}
                        }
                    }
                }
                (2, Payload::Bytes(raw)) => envelope.raw = raw,
                (4, Payload::Bytes(text)) => envelope.content_type = utf8(text)?,
                _ => {}
            }
        }
        Ok(envelope)
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| ProtobufError::Text)
}

#[cfg(test)]
mod tests;
