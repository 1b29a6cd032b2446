//! Streams to and from nodes: logs, exec, attach, port-forward, proxy.

use bytes::Bytes;
use http::Response;

use crate::error::{ApiError, Result};
use crate::http::body::{Body, BoxError};
use crate::http::pipeline::Asked;

pub async fn connect<B>(asked: Asked, _body: B) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    Err(ApiError::unavailable(format!("{} has no node to go to", asked.info.path)))
}
