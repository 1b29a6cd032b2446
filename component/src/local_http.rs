//! A small HTTP/1.1 server for health checks and the like, without TLS, people and load balancers
//! as its clients: the kubelet's `/healthz`, the proxy's health, mode and metrics.
//!
//! What is answered depends on the path alone, is ready at once and fits in memory: [`serve`] takes a
//! function. A connection gets one answer and is closed, or is given up after [`PATIENCE`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Before a port that is taken is tried again: nothing tells when it is free.
const BIND_RETRY: Duration = Duration::from_secs(5);
/// Before the next connection where there were no descriptors for one: those of others come free again.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a client may take to ask and to read.
const PATIENCE: Duration = Duration::from_secs(10);

pub type Answer = Response<Full<Bytes>>;

/// Answers by `respond`, which gets the request's path, until it is dropped. A port that is taken is tried
/// again; `what` is served there, for people: "the proxy's health".
pub async fn serve<R>(what: &'static str, address: SocketAddr, respond: R)
where
    R: Fn(&str) -> Answer + Clone + Send + Sync + 'static,
{
    let listener = bind(what, address).await;
    accept(listener, respond).await;
}

async fn bind(what: &str, address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !told => {
                tracing::warn!(%address, %error, "{what} cannot be served yet; trying again");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_RETRY).await;
    }
}

async fn accept<R>(listener: TcpListener, respond: R)
where
    R: Fn(&str) -> Answer + Clone + Send + Sync + 'static,
{
    loop {
        match listener.accept().await {
            // Short-lived by construction: it needs no supervisor.
            Ok((stream, _)) => drop(tokio::spawn(answer_one(stream, respond.clone()))),
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

async fn answer_one<R>(stream: TcpStream, respond: R)
where
    R: Fn(&str) -> Answer + Send + Sync + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = respond(request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false);
    // A client that breaks off, or is too slow, is nobody's concern.
    let _ = tokio::time::timeout(PATIENCE, http.serve_connection(TokioIo::new(stream), service)).await;
}

/// Plain text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.into())
}

pub fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    answer(status, "application/json", value.to_string().into())
}

/// What Go's server says of a path that it does not know.
pub fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let mut say = |name: HeaderName, value: &'static str| {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    };
    say(CONTENT_TYPE, content_type);
    say(X_CONTENT_TYPE_OPTIONS, "nosniff");
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn respond(path: &str) -> Answer {
        match path {
            "/healthz" => text(StatusCode::OK, "ok"),
            "/state" => json(StatusCode::SERVICE_UNAVAILABLE, &json!({"well": false})),
            _ => not_found(),
        }
    }

    /// Everything that comes until the connection is closed.
    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn each_connection_gets_one_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let supervisor = crate::Supervisor::new("test");
        supervisor.spawn("serve", accept(listener, respond));
        for (path, status, content_type, body) in [
            ("/healthz", "200 OK", "text/plain; charset=utf-8", "ok"),
            ("/healthz?verbose", "200 OK", "text/plain; charset=utf-8", "ok"),
            ("/state", "503 Service Unavailable", "application/json", "{\"well\":false}"),
            ("/other", "404 Not Found", "text/plain; charset=utf-8", "404 page not found\n"),
        ] {
            let answer = get(address, path).await;
            let (head, found) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {head}");
            let lines = [format!("content-type: {content_type}"), "x-content-type-options: nosniff".to_owned()];
            for line in lines {
                assert!(head.lines().any(|have| have == line), "{path}: {line} is not in {head}");
            }
            assert_eq!(found, body, "{path}");
        }
        supervisor.cancel();
    }
}
