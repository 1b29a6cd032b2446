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

/// Where a webhook is.
struct Place {
    /// What is connected to: an endpoint, if a Service names the webhook.
    address: String,
    port: u16,
    /// As the webhook's configuration names it: scheme, host and port, for messages and for the server.
    url: String,
    /// The name that its certificate must have, and the port that goes with it: the Service's, not the
    /// endpoint's. Users of the kubeconfig are named after both.
    name: String,
    named_port: u16,
    path: String,
    tls: bool,
}

impl Place {
    fn failed(&self, why: impl std::fmt::Display) -> String {
        format!("Post \"{}{}\": {why}", self.url, self.path)
    }
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
    let place = place(cluster, client_config, query).await?;
    let exchange = async {
        let shown = credentials.shown_to(&place.name, place.named_port).await?;
        exchange(&place, client_config, body, shown).await
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(place.failed("context deadline exceeded")),
    }
}

/// `path` with another query behind what it may have.
fn with_query(mut path: String, query: &str) -> String {
    if !query.is_empty() {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(query);
    }
    path
}

async fn place(cluster: &dyn Cluster, client_config: &Value, query: &str) -> Result<Place, String> {
    if let Some(url) = client_config["url"].as_str() {
        return at_url(url, query);
    }
    let text = |key: &str| client_config["service"][key].as_str().unwrap_or_default();
    let (namespace, service) = (text("namespace"), text("name"));
    let port = client_config["service"]["port"].as_u64().unwrap_or(443);
    let path = text("path");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let name = format!("{service}.{namespace}.svc");
    let url = format!("https://{name}:{port}");
    let mut place =
        Place { address: String::new(), port: 0, url, name, named_port: 0, path: with_query(path, query), tls: true };
    place.named_port = u16::try_from(port).map_err(|_| place.failed(format!("{port} is no port")))?;
    let found = crate::proxy::resolve(cluster, namespace, service, port).await;
    (place.address, place.port) = found.map_err(|why| place.failed(why))?;
    Ok(place)
}

fn at_url(url: &str, query: &str) -> Result<Place, String> {
    let uri: http::Uri = url.parse().map_err(|error| format!("the URL {url:?} is not valid: {error}"))?;
    let tls = uri.scheme_str() != Some("http");
    let name = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    Ok(Place {
        address: name.clone(),
        port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
        url: format!("{}://{authority}", if tls { "https" } else { "http" }),
        name,
        named_port: uri.port_u16().unwrap_or(443),
        path: with_query(uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(), query),
        tls,
    })
}

async fn exchange(place: &Place, client_config: &Value, body: &Value, shown: Shown) -> Result<Value, String> {
    let failed = |why: &dyn std::fmt::Display| place.failed(why);
    let address = format!("{}:{}", place.address, place.port);
    let refused = |error: std::io::Error| failed(&words::of_connection(&error, &address, &place.name));
    let stream = TcpStream::connect((place.address.as_str(), place.port)).await.map_err(&refused)?;
    let host = place.url.split_once("://").map_or(place.name.as_str(), |(_, host)| host);
    let mut request = Request::post(&place.path)
        .header(header::HOST, host)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;
    use serde_json::json;

    fn cluster() -> Fixed {
        let ports = |port: u16| json!([{"name": "hook", "port": port}]);
        Fixed::with(&[
            ("", "services", json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"ports": ports(443)}})),
            ("", "services", json!({"metadata": {"name": "t", "namespace": "n"}, "spec": {"ports": ports(8443)}})),
            (
                "discovery.k8s.io",
                "endpointslices",
                json!({"metadata": {"name": "s-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "s"}},
                    "ports": ports(9443), "endpoints": [{"addresses": ["10.0.0.1"]}]}),
            ),
        ])
    }

    #[tokio::test]
    async fn a_webhook_goes_by_its_services_port_though_the_endpoint_has_another() {
        let place = |config: Value| async move { place(&cluster(), &config, "timeout=1s").await };
        let of_service = place(json!({"service": {"namespace": "n", "name": "s", "path": "hook"}})).await.unwrap();
        assert_eq!((of_service.address.as_str(), of_service.port), ("10.0.0.1", 9443));
        assert_eq!((of_service.name.as_str(), of_service.named_port), ("s.n.svc", 443));
        assert_eq!(of_service.failed("no"), "Post \"https://s.n.svc:443/hook?timeout=1s\": no");
        let nobody = place(json!({"service": {"namespace": "n", "name": "t", "port": 8443}})).await.err().unwrap();
        let why = "Post \"https://t.n.svc:8443/?timeout=1s\": no endpoints available for service \"t\"";
        assert_eq!(nobody, why);
    }

    #[test]
    fn a_url_says_where_and_as_what() {
        for (url, port, named_port, shown) in [
            ("https://h.example.com/x", 443, 443, "Post \"https://h.example.com/x?timeout=1s\": no"),
            (
                "https://h.example.com:8443/x?a=b",
                8443,
                8443,
                "Post \"https://h.example.com:8443/x?a=b&timeout=1s\": no",
            ),
            ("http://h.example.com", 80, 443, "Post \"http://h.example.com/?timeout=1s\": no"),
        ] {
            let place = at_url(url, "timeout=1s").unwrap();
            assert_eq!((place.port, place.named_port, place.failed("no").as_str()), (port, named_port, shown));
        }
    }
}
