//! Watches for clients that ask for them through a WebSocket, as browsers do: every event is one
//! message, a text of JSON or the bytes of protobuf.

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::socket;
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;

/// Whether a request is a watch that is to be answered here.
pub fn is_asked_for(asked: &Asked) -> bool {
    asked.info.is_resource && asked.info.verb == "watch" && socket::is_asked_for(&asked.parts.headers)
}

/// Sends the events of `watch` as messages; an answer that is no watch stays as it is.
pub fn answer(asked: &mut Asked, watch: Response<Body>) -> Result<Response<Body>> {
    if watch.status() != StatusCode::OK {
        return Ok(watch);
    }
    let protocol = asked.header(header::SEC_WEBSOCKET_PROTOCOL).to_owned();
    if protocol.contains(',') {
        return Err(ApiError::bad_request("a watch takes one WebSocket protocol at most"));
    }
    let (parts, body) = watch.into_parts();
    let binary = parts.headers.get(header::CONTENT_TYPE) != Some(&HeaderValue::from_static("application/json"));
    let (mut answer, client) = socket::accept(asked, (!protocol.is_empty()).then_some(&*protocol))?;
    answer.headers_mut().extend(parts.headers);
    let messages = messages(body, binary);
    asked.api.supervisor.spawn("watch-socket", socket::send(client, messages, asked.api.stopping.clone()));
    Ok(answer)
}

fn messages(body: Body, binary: bool) -> impl Stream<Item = Message> + Send + 'static {
    let chunks = match body {
        Body::Full(bytes) => stream::iter(bytes.map(Ok)).boxed(),
        Body::Stream(chunks) => chunks,
    };
    // The server sends whole events in each chunk.
    chunks.flat_map(move |chunk| {
        let chunk = chunk.unwrap_or_default();
        stream::iter(if binary { frames(chunk) } else { lines(&chunk) })
    })
}

/// Events one below the other.
fn lines(chunk: &Bytes) -> Vec<Message> {
    let line = |line: &[u8]| Utf8Bytes::try_from(chunk.slice_ref(line)).ok().map(Message::Text);
    chunk.split_inclusive(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Events each behind its length.
fn frames(mut chunk: Bytes) -> Vec<Message> {
    let mut all = Vec::new();
    while chunk.len() >= 4 {
        let length = chunk.get_u32() as usize;
        all.push(Message::Binary(chunk.split_to(length.min(chunk.len()))));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_a_message() {
        assert_eq!(lines(&Bytes::from_static(b"{}\n[]\n")), [Message::text("{}\n"), Message::text("[]\n")]);
        let framed = frames(Bytes::from_static(b"\0\0\0\x02ab\0\0\0\x01c"));
        assert_eq!(framed, [Message::binary(&b"ab"[..]), Message::binary(&b"c"[..])]);
    }
}
