//! HTTP for probes and hooks: one request on a connection of its own, certificates not verified (the
//! kubelet has no way to know a container's), redirects followed on the same host only.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;

/// How probes name themselves.
pub const USER_AGENT: &str = api::version::agents::PROBE;
/// How much of an answer is read.
const BODY_LIMIT: usize = 10 << 10;
const REDIRECTS: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub tls: bool,
    pub host: String,
    pub port: u16,
    /// With the query.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: String,
    /// A redirect led to another host and was not followed.
    pub redirected_away: bool,
}

impl Request {
    pub fn from_action(action: &HTTPGetAction, host: &str, port: u16) -> Self {
        let path = action.path.clone().unwrap_or_default();
        Self {
            tls: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS")),
            host: host.to_owned(),
            port,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: action
                .http_headers
                .iter()
                .flatten()
                .map(|header| (header.name.clone(), header.value.clone()))
                .collect(),
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", authority(&self.host, self.port), self.path)
    }
}

/// `host:port`, an IPv6 address in brackets.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Opens a TCP connection; the error is worded as Go's.
pub async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let shown = authority(host, port);
    let dial = async {
        match super::check::socket_address(host, port) {
            Some(address) => TcpStream::connect(address).await,
            None => TcpStream::connect((host, port)).await,
        }
    };
    match tokio::time::timeout(timeout, dial).await {
        Err(_) => Err(format!("dial tcp {shown}: i/o timeout")),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.kind() {
            std::io::ErrorKind::ConnectionRefused => format!("dial tcp {shown}: connect: connection refused"),
            std::io::ErrorKind::HostUnreachable => format!("dial tcp {shown}: connect: no route to host"),
            std::io::ErrorKind::NetworkUnreachable => format!("dial tcp {shown}: connect: network is unreachable"),
            _ => format!("dial tcp {shown}: {error}"),
        }),
    }
}

/// Asks, following redirects on the same host.
pub async fn fetch(request: &Request, timeout: Duration) -> Result<Response, String> {
    let in_url = |message: String| format!("Get \"{}\": {message}", request.url());
    match tokio::time::timeout(timeout, follow(request.clone(), timeout)).await {
        Ok(answer) => answer.map_err(in_url),
        Err(_) => Err(in_url("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned())),
    }
}

async fn follow(mut request: Request, timeout: Duration) -> Result<Response, String> {
    for _ in 0..REDIRECTS {
        let (response, location) = once(&request, timeout).await?;
        let Some(location) = location.filter(|_| (300..400).contains(&response.status)) else { return Ok(response) };
        match redirect(&request, &location) {
            Some(next) => request = next,
            None => return Ok(Response { redirected_away: true, ..response }),
        }
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

/// The next request, or none if it would leave the host.
fn redirect(request: &Request, location: &str) -> Option<Request> {
    let mut next = request.clone();
    if location.starts_with('/') && !location.starts_with("//") {
        next.path = location.to_owned();
        return Some(next);
    }
    let uri: http::Uri = location.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    if host != request.host {
        return None;
    }
    next.tls = uri.scheme_str() == Some("https");
    next.port = uri.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
    next.path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Some(next)
}

async fn once(request: &Request, timeout: Duration) -> Result<(Response, Option<String>), String> {
    let stream = connect(&request.host, request.port, timeout).await?;
    if request.tls {
        let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
        let stream = connector().connect(name, stream).await.map_err(|error| error.to_string())?;
        exchange(request, TokioIo::new(stream)).await
    } else {
        exchange(request, TokioIo::new(stream)).await
    }
}

async fn exchange<IO>(request: &Request, io: IO) -> Result<(Response, Option<String>), String>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| match error.is_incomplete_message() {
        true => "EOF".to_owned(),
        false => error.to_string(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(text)?;
    let message = message(request)?;
    // The connection is driven here, next to the request: no task outlives the probe.
    let exchange = async {
        let answer = sender.send_request(message).await.map_err(text)?;
        let status = answer.status().as_u16();
        let location =
            answer.headers().get(http::header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = Limited::new(answer.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok((Response { status, body, redirected_away: false }, location))
    };
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}

fn message(request: &Request) -> Result<http::Request<Empty<Bytes>>, String> {
    let mut builder = http::Request::get(&request.path).header("connection", "close");
    let given = |name: &str| request.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    if !given("host") {
        builder = builder.header("host", authority(&request.host, request.port));
    }
    if !given("user-agent") {
        builder = builder.header("user-agent", USER_AGENT);
    }
    if !given("accept") {
        builder = builder.header("accept", "*/*");
    }
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    builder.body(Empty::new()).map_err(|error| error.to_string())
}

fn connector() -> tokio_rustls::TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(AcceptAny(provider.clone()));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        // The provider supports TLS 1.2 and 1.3: the defaults cannot be refused.
        .unwrap_or_else(|_| unreachable!("default TLS versions"))
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

/// Probes ask whether something answers, not who it is.
#[derive(Debug)]
struct AcceptAny(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_the_host() {
        let request = Request { tls: false, host: "10.0.0.1".into(), port: 80, path: "/a".into(), headers: Vec::new() };
        assert_eq!(redirect(&request, "/b?c").unwrap().url(), "http://10.0.0.1:80/b?c");
        assert_eq!(redirect(&request, "https://10.0.0.1:8443/x").unwrap().url(), "https://10.0.0.1:8443/x");
        assert_eq!(redirect(&request, "http://example.org/"), None);
    }
}
