//! WebSockets that the server itself answers: it speaks, and listens for nothing but the client's end.

use futures::{SinkExt, Stream, StreamExt};
use http::header::{self, HeaderMap};
use http::{HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_util::sync::CancellationToken;

use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;

pub fn is_asked_for(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// The answer 101, and the connection once it has been sent.
pub fn accept(asked: &mut Asked, protocol: Option<&str>) -> Result<(Response<Body>, OnUpgrade)> {
    let headers = &asked.parts.headers;
    let accept = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let accept = accept.ok_or_else(|| ApiError::bad_request("a WebSocket needs the header Sec-WebSocket-Key"))?;
    let client = asked.parts.extensions.remove::<OnUpgrade>();
    let client = client.ok_or_else(|| ApiError::bad_request("this connection cannot be upgraded; use HTTP/1.1"))?;
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = accept.parse() {
        answer.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(Ok(protocol)) = protocol.map(str::parse) {
        answer.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok((answer, client))
}

/// Sends messages until there are no more, the client goes, or the server stops.
pub async fn send(client: OnUpgrade, messages: impl Stream<Item = Message>, stopping: CancellationToken) {
    let Ok(client) = client.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
    let mut messages = std::pin::pin!(messages);
    loop {
        tokio::select! {
            () = stopping.cancelled() => break,
            message = messages.next() => {
                let Some(message) = message else { break };
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            said = socket.next() => if !matches!(said, Some(Ok(_))) { return },
        }
    }
    // The client may be gone already.
    let _ = socket.close(None).await;
}
