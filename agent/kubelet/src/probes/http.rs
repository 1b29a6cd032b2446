//! HTTP for probes and hooks: one request on a connection of its own, certificates not verified (the
//! kubelet has no way to know a container's), redirects followed on the same host only.

use std::fmt::Write;
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
/// What Go says of a server that does not speak TLS.
pub const PLAIN_HTTP: &str = "http: server gave HTTP response to HTTPS client";

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
    /// One of 300 and above is of a redirect that is not followed: it leads to another host, or nowhere.
    pub status: u16,
    pub body: String,
}

impl Request {
    pub fn from_action(action: &HTTPGetAction, host: &str, port: u16) -> Self {
        let path = escaped_path(action.path.as_deref().unwrap_or_default());
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

/// The text with every byte escaped that `is_allowed` does not let pass.
fn escaped(text: &str, is_allowed: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_allowed(byte) {
            out.push(char::from(byte));
        } else {
            // Writing to text cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// What a request's line can hold.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"<>`".contains(&byte)
}

/// A path and its query as they can be sent. What is escaped already stays so; a text that is no URL, for a `%`
/// that escapes nothing, is a path as a whole (`probe/http/request.go: formatURL`).
fn escaped_path(text: &str) -> String {
    let text = text.split('#').next().unwrap_or_default();
    let bytes = text.split('?').next().unwrap_or_default().as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let is_broken = |(at, byte): (usize, &u8)| *byte == b'%' && !(is_hex(at + 1) && is_hex(at + 2));
    if bytes.iter().enumerate().any(is_broken) {
        return escaped(text, |byte| is_plain(byte) && !b"%?".contains(&byte));
    }
    escaped(text, is_plain)
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
        let leads_on = matches!(response.status, 301 | 302 | 303 | 307 | 308);
        let location = location.filter(|location| leads_on && !location.is_empty());
        match location.and_then(|location| redirect(&request, &location)) {
            Some(next) => request = next,
            None => return Ok(response),
        }
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

/// The next request, or none if it would leave the host.
fn redirect(request: &Request, location: &str) -> Option<Request> {
    let mut next = request.clone();
    let location = escaped(location.split('#').next().unwrap_or_default(), is_plain);
    let absolute = if location.starts_with("//") {
        format!("{}:{location}", if request.tls { "https" } else { "http" })
    } else if has_scheme(&location) {
        location
    } else {
        next.path = resolve(&request.path, &location);
        return Some(next);
    };
    let uri: http::Uri = absolute.parse().ok()?;
    if uri.host()?.trim_matches(['[', ']']) != request.host {
        return None;
    }
    next.tls = match uri.scheme_str()? {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    next.port = uri.port_u16().unwrap_or(if next.tls { 443 } else { 80 });
    next.path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    // Whom to ask for is in the location itself.
    next.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
    Some(next)
}

fn has_scheme(location: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    location.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.chars().all(is_part)
    })
}

/// Where a reference leads that names no host (RFC 3986, 5.2). `base` is absolute, each with its query.
fn resolve(base: &str, reference: &str) -> String {
    let directory = base.split('?').next().unwrap_or_default();
    let (path, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
    match path {
        "" if query.is_empty() => base.to_owned(),
        "" => format!("{directory}{query}"),
        _ if path.starts_with('/') => format!("{}{query}", without_dots(path)),
        _ => {
            let parent = directory.rfind('/').map_or("/", |at| &directory[..=at]);
            format!("{}{query}", without_dots(&format!("{parent}{path}")))
        }
    }
}

fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            name => kept.push(name),
        }
    }
    let is_directory = path.ends_with("/.") || path.ends_with("/..");
    format!("/{}{}", kept.join("/"), if is_directory && !kept.is_empty() { "/" } else { "" })
}

async fn once(request: &Request, timeout: Duration) -> Result<(Response, Option<String>), String> {
    let stream = connect(&request.host, request.port, timeout).await?;
    if request.tls {
        let name = ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
        let stream = connector().connect(name, stream).await.map_err(|error| handshake_failed(&error))?;
        exchange(request, TokioIo::new(stream)).await
    } else {
        exchange(request, TokioIo::new(stream)).await
    }
}

fn handshake_failed(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => PLAIN_HTTP.to_owned(),
        _ => error.to_string(),
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
        Ok((Response { status, body }, location))
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
    let named = |name: &str, value: &str| name.eq_ignore_ascii_case("host") && !value.is_empty();
    if !request.headers.iter().any(|(name, value)| named(name, value)) {
        builder = builder.header("host", authority(&request.host, request.port));
    }
    if !given("user-agent") {
        builder = builder.header("user-agent", USER_AGENT);
    }
    if !given("accept") {
        builder = builder.header("accept", "*/*");
    }
    // Without a value these are asked to be left out.
    let left_out = |name: &str| ["host", "user-agent", "accept"].iter().any(|own| name.eq_ignore_ascii_case(own));
    for (name, value) in request.headers.iter().filter(|(name, value)| !value.is_empty() || !left_out(name)) {
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
        let host = ("Host".to_owned(), "name".to_owned());
        let request =
            Request { tls: false, host: "10.0.0.1".into(), port: 80, path: "/a/b?q".into(), headers: vec![host] };
        for (location, url) in [
            ("/b?c", Some("http://10.0.0.1:80/b?c")),
            ("login", Some("http://10.0.0.1:80/a/login")),
            ("login?to=http://x/", Some("http://10.0.0.1:80/a/login?to=http://x/")),
            ("./c d", Some("http://10.0.0.1:80/a/c%20d")),
            ("../../x/.", Some("http://10.0.0.1:80/x/")),
            ("?other", Some("http://10.0.0.1:80/a/b?other")),
            ("#top", Some("http://10.0.0.1:80/a/b?q")),
            ("https://10.0.0.1:8443/x", Some("https://10.0.0.1:8443/x")),
            ("//10.0.0.1:81/x", Some("http://10.0.0.1:81/x")),
            ("http://example.org/", None),
            ("//example.org/", None),
            ("mailto:a@example.org", None),
        ] {
            assert_eq!(redirect(&request, location).map(|next| next.url()).as_deref(), url, "{location}");
        }
        let kept = |location: &str| redirect(&request, location).unwrap().headers.len();
        assert_eq!((kept("login"), kept("http://10.0.0.1/x")), (1, 0), "another URL names its own host");
    }

    #[test]
    fn a_path_with_spaces_can_be_asked_for() {
        let path = |path: &str| {
            let action = HTTPGetAction { path: Some(path.to_owned()), ..Default::default() };
            let request = Request::from_action(&action, "10.0.0.1", 80);
            assert!(message(&request).is_ok(), "{path}");
            request.path
        };
        for (given, asked) in [
            ("/healthz", "/healthz"),
            ("healthz?full=1", "/healthz?full=1"),
            ("/a b?c d", "/a%20b?c%20d"),
            ("/a%20b", "/a%20b"),
            ("/a`b", "/a%60b"),
            ("/100%?x", "/100%25%3Fx"),
            ("/\u{e9}#top", "/%C3%A9"),
        ] {
            assert_eq!(path(given), asked, "{given}");
        }
    }

    #[test]
    fn a_header_without_a_value_takes_its_default_away() {
        let headers = ["Accept", "User-Agent", "Host", "X"].map(|name| (name.to_owned(), String::new()));
        let request =
            Request { tls: false, host: "10.0.0.1".into(), port: 80, path: "/".into(), headers: headers.to_vec() };
        let message = message(&request).unwrap();
        let has = |name: &str| message.headers().contains_key(name);
        assert_eq!((has("accept"), has("user-agent"), has("x")), (false, false, true));
        assert_eq!(message.headers()["host"], "10.0.0.1:80");
    }
}
