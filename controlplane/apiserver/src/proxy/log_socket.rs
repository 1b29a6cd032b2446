//! Logs for clients that ask for them through a WebSocket: every piece of the log is one message,
//! as it is (`binary.k8s.io`, or no protocol named) or in base64 (`base64.binary.k8s.io`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;

const PROTOCOLS: [&str; 2] = ["binary.k8s.io", "base64.binary.k8s.io"];

pub fn is_asked_for(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// The headers that ask for the WebSocket; the kubelet is asked without.
pub fn strip(headers: &mut HeaderMap) {
    let own: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("sec-websocket-")).cloned().collect();
    for name in own.into_iter().chain([header::CONNECTION, header::UPGRADE]) {
        headers.remove(name);
    }
}

/// The first protocol of the client's that is known; none where it named none.
fn choose(headers: &HeaderMap) -> std::result::Result<Option<&'static str>, String> {
    let mut named = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .peekable();
    if named.peek().is_none() {
        return Ok(None);
    }
    let known = named.find_map(|name| PROTOCOLS.into_iter().find(|protocol| *protocol == name));
    known.map(Some).ok_or_else(|| format!("none of the WebSocket protocols is known; use one of {PROTOCOLS:?}"))
}

/// Answers 101 and sends the log's pieces until it or the client ends.
pub fn answer(asked: &mut Asked, log: Response<hyper::body::Incoming>) -> Result<Response<Body>> {
    let headers = &asked.parts.headers;
    let protocol = choose(headers).map_err(ApiError::bad_request)?;
    let accept = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let accept = accept.ok_or_else(|| ApiError::bad_request("a WebSocket needs the header Sec-WebSocket-Key"))?;
    let client = asked.parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let client = client.ok_or_else(|| ApiError::bad_request("this connection cannot be upgraded; use HTTP/1.1"))?;
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = accept.parse() {
        answer.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = protocol {
        answer.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let in_base64 = protocol == Some(PROTOCOLS[1]);
    let stopping = asked.api.supervisor.token().clone();
    asked.api.supervisor.spawn("log-socket", async move {
        let Ok(client) = client.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
        let mut pieces = log.into_body().into_data_stream();
        loop {
            tokio::select! {
                () = stopping.cancelled() => break,
                piece = pieces.next() => {
                    let Some(Ok(piece)) = piece else { break };
                    if socket.send(message(piece, in_base64)).await.is_err() {
                        return;
                    }
                }
                // Nothing is expected of the client but its end.
                said = socket.next() => if !matches!(said, Some(Ok(_))) { return },
            }
        }
        // The client may be gone already.
        let _ = socket.close(None).await;
    });
    Ok(answer)
}

fn message(piece: Bytes, in_base64: bool) -> Message {
    if in_base64 { Message::text(STANDARD.encode(piece)) } else { Message::Binary(piece) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        for (named, chosen) in [
            ("", Ok(None)),
            ("binary.k8s.io", Ok(Some("binary.k8s.io"))),
            ("v9, base64.binary.k8s.io,binary.k8s.io", Ok(Some("base64.binary.k8s.io"))),
            ("v9", Err(())),
        ] {
            let headers = HeaderMap::from_iter([(header::SEC_WEBSOCKET_PROTOCOL, named.parse().unwrap())]);
            assert_eq!(choose(&headers).map_err(drop), chosen, "{named}");
        }
        assert_eq!(message(Bytes::from_static(b"hi"), true), Message::text("aGk="));
    }
}
