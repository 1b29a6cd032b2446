//! One HTTPS POST of JSON to a webhook, named by URL or by Service.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::credentials::{Credentials, Shown};
use crate::admit::Cluster;
use crate::proxy::{dial, words};

/// Larger answers are refused.
const MAX_ANSWER: usize = 3 << 20;

/// Where a webhook is: addresses to try, the name its certificate must have, the path.
struct Place {
    address: String,
    port: u16,
    name: String,
    path: String,
    tls: bool,
}

/// As [`post_with`], with no query, as nobody.
pub async fn post(
    cluster: &dyn Cluster,
    client_config: &Value,
    body: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    post_with(cluster, client_config, body, timeout, "", &Credentials::default()).await
}

/// Posts `body` to where `client_config` (`WebhookClientConfig`) says, as whom `credentials` name for
/// it, and reads the JSON answer.
pub async fn post_with(
    cluster: &dyn Cluster,
    client_config: &Value,
    body: &Value,
    timeout: Duration,
    query: &str,
    credentials: &Credentials,
) -> Result<Value, String> {
    let mut place = place(cluster, client_config, query).await?;
    if !query.is_empty() {
        place.path.push(if place.path.contains('?') { '&' } else { '?' });
        place.path.push_str(query);
    }
    let shown = credentials.shown_to(&place.name, place.port)?;
    let exchange = exchange(&place, client_config, body, shown);
    match tokio::time::timeout(timeout, exchange).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(format!("Post \"https://{}:{}{}\": context deadline exceeded", place.name, place.port, place.path))
        }
    }
}

async fn place(cluster: &dyn Cluster, client_config: &Value, query: &str) -> Result<Place, String> {
    if let Some(url) = client_config["url"].as_str() {
        let uri: http::Uri = url.parse().map_err(|error| format!("the URL {url:?} is not valid: {error}"))?;
        let tls = uri.scheme_str() != Some("http");
        let name = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        return Ok(Place { address: name.clone(), port, name, path, tls });
    }
    let text = |key: &str| client_config["service"][key].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let port = client_config["service"]["port"].as_u64().unwrap_or(443);
    let path = text("path");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let asked = if query.is_empty() { String::new() } else { format!("?{query}") };
    let failed = |why| format!("Post \"https://{name}.{namespace}.svc:{port}{path}{asked}\": {why}");
    let (address, number) = crate::proxy::resolve(cluster, namespace, name, port).await.map_err(failed)?;
    Ok(Place { address, port: number, name: format!("{name}.{namespace}.svc"), path, tls: true })
}

async fn exchange(place: &Place, client_config: &Value, body: &Value, shown: Shown) -> Result<Value, String> {
    let failed =
        |why: &dyn std::fmt::Display| format!("Post \"https://{}:{}{}\": {why}", place.name, place.port, place.path);
    let address = format!("{}:{}", place.address, place.port);
    let refused = |error: std::io::Error| failed(&words::of_connection(&error, &address, &place.name));
    let stream = TcpStream::connect((place.address.as_str(), place.port)).await.map_err(&refused)?;
    let mut request = Request::post(&place.path)
        .header(header::HOST, &place.name)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .header(header::USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| failed(&error))?;
    request.headers_mut().extend(shown.headers);
    let response = if place.tls {
        let roots = dial::roots(client_config["caBundle"].as_str().unwrap_or_default());
        let config = roots.and_then(|roots| dial::client_config(dial::Trust::Roots(roots), shown.certificate));
        let connector = TlsConnector::from(config.map_err(|error| failed(&error))?);
        let name = ServerName::try_from(place.name.clone()).map_err(|error| failed(&error))?;
        let stream = connector.connect(name, stream).await.map_err(&refused)?;
        send(TokioIo::new(stream), request).await
    } else {
        send(TokioIo::new(stream), request).await
    };
    let (status, bytes, is_text) = response.map_err(|error| failed(&error))?;
    if !status.is_success() {
        let text = String::from_utf8_lossy(&bytes);
        return Err(words::of_status(status, is_text.then(|| text.trim())));
    }
    serde_json::from_slice(&bytes).map_err(|error| failed(&format!("its answer is no JSON: {error}")))
}

/// The status, the body, and whether that is text.
async fn send<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes, bool), crate::http::body::BoxError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let kind = response.headers().get(header::CONTENT_TYPE);
        let is_text = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/"));
        let bytes = Limited::new(response.into_body(), MAX_ANSWER).collect().await?.to_bytes();
        Ok((status, bytes, is_text))
    };
    // The connection is driven only as long as its one answer is awaited.
    tokio::select! {
        answer = answer => answer,
        ended = connection => Err(ended.err().map_or_else(|| "the connection was closed".into(), Into::into)),
    }
}
