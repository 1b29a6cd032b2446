//! A bearer token among the protocols of a WebSocket: browsers cannot name it in a header
//! (`k8s.io/apiserver/pkg/authentication/request/websocket`).

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL};

use crate::error::{ApiError, Result};
use crate::proxy::socket;
use crate::schema;

const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Moves the token to where tokens are; 401 for one that cannot be read, or that comes alone.
pub fn unwrap(headers: &mut HeaderMap) -> Result<()> {
    if !socket::is_asked_for(headers) || headers.contains_key(AUTHORIZATION) {
        return Ok(());
    }
    let all = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let all = all.flat_map(|value| value.split(',')).map(|name| name.trim().to_owned());
    let (tokens, others): (Vec<String>, Vec<String>) = all.partition(|name| name.starts_with(PREFIX));
    let [token] = tokens.as_slice() else {
        return if tokens.is_empty() { Ok(()) } else { Err(ApiError::unauthorized()) };
    };
    let token = schema::base64_url(&token[PREFIX.len()..]).ok().filter(|token| !token.is_empty());
    let header = token.and_then(|token| HeaderValue::from_bytes(&[b"Bearer ", &*token].concat()).ok());
    let (Some(header), false) = (header, others.is_empty()) else { return Err(ApiError::unauthorized()) };
    headers.insert(AUTHORIZATION, header);
    if let Ok(others) = HeaderValue::from_str(&others.join(",")) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_out_of_the_protocols() {
        for (protocols, taken) in [
            ("v4.channel.k8s.io", Ok((None, "v4.channel.k8s.io"))),
            (
                "base64url.bearer.authorization.k8s.io.YS1i, base64.binary.k8s.io",
                Ok((Some("Bearer a-b"), "base64.binary.k8s.io")),
            ),
            ("base64url.bearer.authorization.k8s.io.YS1i", Err(())),
            ("base64url.bearer.authorization.k8s.io.!,x", Err(())),
            ("base64url.bearer.authorization.k8s.io.YQ,base64url.bearer.authorization.k8s.io.YQ,x", Err(())),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
            let read = unwrap(&mut headers).map_err(drop).map(|()| {
                let text = |name| headers.get(name).map(|value| value.to_str().unwrap());
                (text(AUTHORIZATION), text(SEC_WEBSOCKET_PROTOCOL).unwrap())
            });
            assert_eq!(read, taken, "{protocols}");
        }
    }
}
