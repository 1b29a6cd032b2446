//! Answers: plain text, JSON, streams.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type Reply = Response<Body>;

pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub fn text(status: StatusCode, message: impl Into<String>) -> Reply {
    with_type(status, "text/plain; charset=utf-8", message.into())
}

/// An error as the kubelet words it: its text is shown to the user of kubectl.
pub fn error(status: StatusCode, message: impl Into<String>) -> Reply {
    text(status, message)
}

pub fn json(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_type(StatusCode::OK, "application/json", bytes),
        Err(failure) => error(StatusCode::INTERNAL_SERVER_ERROR, format!("encoding the answer: {failure}")),
    }
}

pub fn with_type(status: StatusCode, media_type: &'static str, content: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(body(content));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    reply
}
