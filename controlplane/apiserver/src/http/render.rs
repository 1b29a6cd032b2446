//! Values and lists as response bodies.

use std::io::Write;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use serde_json::Value;

use super::body::{Body, BoxError};
use super::negotiate::{Media, Output, View};
use super::ordered::Ordered;
use crate::cache::item::Item;
use crate::error::{ApiError, Result};
use crate::protobuf;
use crate::registry::Call;
use crate::registry::read::Listing;

/// A streamed list is produced in pieces of about this size.
const PIECE: usize = 64 * 1024;
/// What an item takes in a list beside its own bytes, at most.
const ROOM: usize = 96;
/// Smaller answers are not compressed.
pub const GZIP_FROM: usize = 128 * 1024;

/// JSON ends with a newline unless it is indented, as Go's encoder has it.
pub fn encode(value: &Value, output: &Output) -> Result<Bytes> {
    match output.media {
        Media::Json if output.pretty => {
            let text = match Ordered::document(value) {
                Some(document) => serde_json::to_vec_pretty(&document),
                None => serde_json::to_vec_pretty(value),
            };
            text.map(Bytes::from).map_err(ApiError::internal)
        }
        Media::Json => {
            let mut text = match Ordered::document(value) {
                Some(document) => serde_json::to_vec(&document).map_err(ApiError::internal)?,
                None => crate::cache::item::encode(value),
            };
            text.push(b'\n');
            Ok(text.into())
        }
        Media::Yaml => serde_saphyr::to_string(value).map(Bytes::from).map_err(ApiError::internal),
        Media::Protobuf => protobuf::encode(value).map(Bytes::from),
    }
}

/// An object's bytes as an answer of their own.
pub fn line(object: &[u8]) -> Bytes {
    [object, b"\n".as_slice()].concat().into()
}

pub fn response(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub fn json(status: StatusCode, value: &Value) -> Response<Body> {
    response(status, "application/json", serde_json::to_vec(value).unwrap_or_default())
}

/// Indented JSON, as documents come whose representation is not negotiated.
pub fn raw_json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    response(status, "application/json", serde_json::to_vec_pretty(value).unwrap_or_default())
}

/// Plain text for people.
pub fn page(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = response(status, "text/plain; charset=utf-8", text);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A JSON or protobuf answer as a value: for the audit log.
pub fn decode(headers: &http::HeaderMap, bytes: &Bytes) -> Option<Value> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut plain = Vec::new();
    let bytes: &[u8] = if text(header::CONTENT_ENCODING) == "gzip" {
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut plain).ok()?;
        &plain
    } else {
        bytes
    };
    match text(header::CONTENT_TYPE).split(';').next()? {
        "application/json" => serde_json::from_slice(bytes).ok(),
        "application/vnd.kubernetes.protobuf" => protobuf::decode(bytes).ok(),
        _ => None,
    }
}

/// The `Status` that a response is, beside its bytes: the audit log notes it at every level, and is not to
/// parse every body for that.
#[derive(Clone)]
pub struct Told(pub Value);

/// The response to a request that is answered with `status`.
pub fn telling(mut response: Response<Body>, status: Value) -> Response<Body> {
    response.extensions_mut().insert(Told(status));
    response
}

/// The answer to a list.
pub fn list(call: Arc<Call>, listing: Listing, output: Output, gzip: bool) -> Result<Response<Body>> {
    let spliced = output.media == Media::Json
        && !output.pretty
        && match output.view {
            View::Object => !call.converts(),
            View::Metadata { .. } => true,
            View::Table { .. } => false,
        };
    if !spliced {
        let bytes = encode(&list_value(&call, &listing, output.view)?, &output)?;
        return Ok(compressed(response(StatusCode::OK, output.media.name(), Body::empty()), bytes, gzip));
    }
    let large = listing.size() > GZIP_FROM;
    let pieces = Pieces::new(&call, listing, output.view);
    let empty = response(StatusCode::OK, output.media.name(), Body::empty());
    if !large {
        let mut whole = BytesMut::new();
        pieces.for_each(|piece| whole.put(piece));
        return Ok(empty.map(|_| whole.freeze().into()));
    }
    Ok(streamed(empty, pieces, gzip))
}

/// The list as one value: for YAML, protobuf, tables, indented JSON and converted versions.
fn list_value(call: &Call, listing: &Listing, view: View) -> Result<Value> {
    let metadata = list_metadata(call, listing, view);
    if let View::Table { version } = view {
        let objects = listing.items.iter().map(|item| item.decode());
        let row = |object| call.row(object, version, call.now);
        let rows = match call.endpoint.hooks().row_order() {
            // One at a time: decoded, large objects take several times their bytes.
            None => objects.map(row).collect::<Result<Vec<_>>>()?,
            Some(order) => {
                let mut objects: Vec<Value> = objects.collect();
                objects.sort_by(order);
                objects.into_iter().map(row).collect::<Result<Vec<_>>>()?
            }
        };
        return Ok(call.table(rows, &metadata, version));
    }
    let items = listing.items.iter().map(|item| match view {
        View::Metadata { version, .. } => Ok(crate::table::partial(item.decode(), version)),
        _ => call.served(item.decode()),
    });
    let items = items.collect::<Result<Vec<_>>>()?;
    Ok(list_of(call, view, items, metadata))
}

/// A list object around items in the request's version.
pub fn list_of(call: &Call, view: View, mut items: Vec<Value>, metadata: Value) -> Value {
    let (kind, api_version) = list_type(call, view);
    if !call.descriptor().custom && view == View::Object {
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.remove("kind");
            item.remove("apiVersion");
        }
    }
    serde_json::json!({"kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items})
}

/// Lists of custom resources always have a `continue`: no Go type leaves it out where it is empty.
fn list_metadata(call: &Call, listing: &Listing, view: View) -> Value {
    let mut metadata = listing.metadata();
    if call.descriptor().custom && view == View::Object && metadata["continue"].is_null() {
        metadata["continue"] = "".into();
    }
    metadata
}

fn list_type(call: &Call, view: View) -> (String, String) {
    match view {
        View::Metadata { version, .. } => ("PartialObjectMetadataList".to_owned(), format!("meta.k8s.io/{version}")),
        _ => (call.descriptor().list_kind.to_string(), call.kind().api_version()),
    }
}

/// A list's JSON, piece by piece, from the stored bytes.
struct Pieces {
    items: std::vec::IntoIter<Arc<Item>>,
    view: View,
    /// Items of built-in kinds come without `kind` and `apiVersion`, as upstream's.
    typed: bool,
    head: Option<Bytes>,
    first: bool,
    done: bool,
}

impl Pieces {
    fn new(call: &Call, listing: Listing, view: View) -> Self {
        let (kind, api_version) = list_type(call, view);
        let metadata = list_metadata(call, &listing, view);
        let head =
            format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[");
        Self {
            items: listing.items.into_iter(),
            view,
            typed: call.descriptor().custom,
            head: Some(head.into()),
            first: true,
            done: false,
        }
    }

    fn put(&mut self, piece: &mut BytesMut, item: &Item) {
        if !std::mem::take(&mut self.first) {
            piece.put_u8(b',');
        }
        match self.view {
            View::Metadata { version, .. } => {
                piece.put_slice(&crate::registry::read::partial_bytes(item, version));
            }
            _ if self.typed => piece.put_slice(&item.bytes),
            _ => {
                piece.put_u8(b'{');
                piece.put_slice(item.without_type());
            }
        }
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut piece = BytesMut::with_capacity(PIECE.min(1024 + self.items.len() * 1024));
        if let Some(head) = self.head.take() {
            piece.put(head);
        }
        loop {
            let Some(item) = self.items.as_slice().first() else {
                self.done = true;
                piece.put_slice(b"]}\n");
                break;
            };
            // A piece that grows is copied: the next item goes into the next one.
            if !piece.is_empty() && piece.len() + item.bytes.len() + ROOM > PIECE {
                break;
            }
            if let Some(item) = self.items.next() {
                self.put(&mut piece, &item);
            }
        }
        Some(piece.freeze())
    }
}

/// One body at once, compressed if it is large and the client can.
pub fn compressed(empty: Response<Body>, bytes: Bytes, gzip: bool) -> Response<Body> {
    if !gzip || bytes.len() <= GZIP_FROM {
        return empty.map(|_| bytes.into());
    }
    // Nothing else goes on in this thread while a piece is compressed.
    let pieces = (0..bytes.len()).step_by(PIECE).map(move |at| bytes.slice(at..bytes.len().min(at + PIECE)));
    streamed(empty, pieces, true)
}

fn streamed(
    mut empty: Response<Body>,
    pieces: impl Iterator<Item = Bytes> + Send + 'static,
    gzip: bool,
) -> Response<Body> {
    if !gzip {
        return empty.map(|_| Body::stream(futures::stream::iter(pieces.map(Ok))));
    }
    let headers = empty.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let pieces = Gzip { pieces, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) };
    empty.map(|_| Body::stream(futures::stream::iter(pieces)))
}

struct Gzip<I> {
    pieces: I,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I: Iterator<Item = Bytes>> Iterator for Gzip<I> {
    type Item = Result<Bytes, BoxError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut encoder = self.encoder.take()?;
            let Some(piece) = self.pieces.next() else {
                return Some(encoder.finish().map(Bytes::from).map_err(Into::into));
            };
            if let Err(error) = encoder.write_all(&piece) {
                return Some(Err(error.into()));
            }
            let out = std::mem::take(encoder.get_mut());
            self.encoder = Some(encoder);
            if !out.is_empty() {
                return Some(Ok(out.into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use http_body_util::BodyExt;

    use super::*;

    /// A list in protobuf may have a hundred megabytes: at once that would hold up all else for seconds.
    #[tokio::test]
    async fn a_large_answer_is_compressed_piece_by_piece() {
        let mut random = 1_u32;
        let byte = || {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            random as u8
        };
        let bytes: Vec<u8> = std::iter::repeat_with(byte).take(1 << 20).collect();
        let empty = response(StatusCode::OK, "application/json", Body::empty());
        let mut body = compressed(empty, bytes.clone().into(), true).into_body();
        let (mut sent, mut largest) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            largest = largest.max(piece.len());
            sent.extend_from_slice(&piece);
        }
        let mut plain = Vec::new();
        GzDecoder::new(&sent[..]).read_to_end(&mut plain).unwrap();
        assert!(plain == bytes);
        assert!(largest <= 4 * PIECE, "{largest} bytes at once");
    }
}
