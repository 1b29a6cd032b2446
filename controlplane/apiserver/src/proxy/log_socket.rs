//! Logs for clients that ask for them through a WebSocket: every piece of the log is one message,
//! as it is (`binary.k8s.io`, or no protocol named) or in base64 (`base64.binary.k8s.io`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt, future};
use http::Response;
use http::header::{self, HeaderMap, HeaderName};
use http_body_util::BodyExt;
use tokio_tungstenite::tungstenite::Message;

use super::socket;
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;

const PROTOCOLS: [&str; 2] = ["binary.k8s.io", "base64.binary.k8s.io"];

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
    let protocol = choose(&asked.parts.headers).map_err(ApiError::bad_request)?;
    let (answer, client) = socket::accept(asked, protocol)?;
    let in_base64 = protocol == Some(PROTOCOLS[1]);
    let pieces = log.into_body().into_data_stream();
    let messages =
        pieces.take_while(|piece| future::ready(piece.is_ok())).filter_map(|piece| future::ready(piece.ok()));
    let messages = messages.map(move |piece| message(piece, in_base64));
    asked.api.supervisor.spawn("log-socket", socket::send(client, messages, asked.api.supervisor.token().clone()));
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
