//! Connecting to the runtime's stream server, and passing bytes through.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::super::reply::{self, Reply};
use component::Supervisor;

/// Why the two ends were not joined.
pub enum Failed {
    /// The runtime answered something else than an upgrade; the client gets that.
    Answer(Box<Reply>),
    Runtime(String),
}

/// Asks the runtime's server to upgrade. Returns its 101 answer; the connection is in it.
pub async fn dial(url: &str, method: Method, mut headers: HeaderMap) -> Result<Response<Incoming>, Failed> {
    let failed = |error: &dyn std::fmt::Display| Failed::Runtime(format!("{url}: {error}"));
    let uri: http::Uri = url.parse().map_err(|error: http::uri::InvalidUri| failed(&error))?;
    let authority = uri.authority().cloned().ok_or_else(|| failed(&"it has no host"))?;
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((authority.host(), port)).await.map_err(|error| failed(&error))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    // It ends with the upgrade or with the answer: the connection then belongs to whoever joined it.
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    headers.remove(header::AUTHORIZATION);
    headers.insert(header::HOST, HeaderValue::try_from(authority.as_str()).map_err(|error| failed(&error))?);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| failed(&error))?;
    *request.headers_mut() = headers;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let status = answer.status();
    let content = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Err(Failed::Answer(Box::new(reply::with_type(status, "text/plain; charset=utf-8", content))))
}

/// Passes the client's own upgrade request on, and then every byte.
pub async fn join(url: &str, mut request: Request<Incoming>, supervisor: &Supervisor) -> Result<Reply, Failed> {
    let mut headers = request.headers().clone();
    headers.remove(header::CONTENT_LENGTH);
    let mut answer = dial(url, request.method().clone(), headers).await?;
    let mut reply = Response::new(reply::body(Bytes::new()));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *reply.headers_mut() = answer.headers().clone();
    let client = hyper::upgrade::on(&mut request);
    let runtime = hyper::upgrade::on(&mut answer);
    supervisor.spawn("stream", async move {
        let (Ok(client), Ok(runtime)) = tokio::join!(client, runtime) else { return };
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(runtime)).await;
    });
    Ok(reply)
}

/// Connects with SPDY and the subprotocol `stream_protocol`.
pub async fn dial_spdy(url: &str, stream_protocol: &'static str) -> Result<TokioIo<Upgraded>, Failed> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert("x-stream-protocol-version", HeaderValue::from_static(stream_protocol));
    let answer = dial(url, Method::POST, headers).await?;
    hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(|error| Failed::Runtime(format!("{url}: {error}")))
}

/// Accepts a WebSocket request with one subprotocol.
pub fn accept_websocket(request: &Request<Incoming>, protocol: &'static str) -> Result<Reply, Failed> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
    let Some(key) = key else {
        let refused = reply::error(StatusCode::BAD_REQUEST, "unable to upgrade: missing Sec-WebSocket-Key");
        return Err(Failed::Answer(Box::new(refused)));
    };
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let mut reply = Response::new(reply::body(Bytes::new()));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = reply.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    // Base64 text is always a valid header value.
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(reply)
}
