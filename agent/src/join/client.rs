//! The agent's connection to the server: one HTTP/2 connection, whose client certificate can be
//! replaced while it is in use.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{Identity, JoinError};

/// Requests per connection: servers refuse more than 100 to 250 streams on one, and a node that
/// watches every object its pods refer to may need more.
const STREAMS: usize = 90;
/// A server that says nothing for this long is pinged; one that does not answer is given up.
const PING: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);

/// How the server is recognised.
#[derive(Debug, Clone)]
pub enum Trust {
    /// By certificates of these authorities (PEM).
    Authorities(Vec<u8>),
    /// Not at all: only to fetch what is checked otherwise.
    Anyone,
}

/// How the client is recognised.
#[derive(Debug, Clone)]
pub enum Credential {
    Anonymous,
    Bearer(String),
    Certificate(Identity),
}

type Connections = HyperClient<HttpsConnector<HttpConnector>, Body>;

/// Requests to one server. Cloning shares the connections.
#[derive(Clone)]
pub struct Connection {
    server: http::Uri,
    trust: Trust,
    current: Arc<RwLock<Current>>,
}

struct Current {
    tls: rustls::ClientConfig,
    /// One HTTP/2 connection each; a new one is added when all are full.
    lanes: Vec<Lane>,
    authorization: Option<HeaderValue>,
}

struct Lane {
    connections: Connections,
    /// Held by each answer that is still being read, so that counting holders counts streams.
    in_use: Arc<()>,
}

impl Lane {
    fn new(tls: &rustls::ClientConfig) -> Self {
        Self { connections: connections(tls.clone()), in_use: Arc::new(()) }
    }

    fn has_room(&self) -> bool {
        Arc::strong_count(&self.in_use) <= STREAMS
    }
}

/// An answer's body, which keeps its place in a lane until it is dropped.
pub struct Counted {
    body: hyper::body::Incoming,
    _place: Arc<()>,
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl Connection {
    /// `server`: `https://host:port`. Connects with the first request.
    pub fn new(server: &str, trust: Trust, credential: &Credential) -> Result<Self, JoinError> {
        let uri: http::Uri = server.parse().map_err(|_| JoinError::Server { server: server.to_owned() })?;
        if uri.scheme_str() != Some("https") || uri.host().is_none() {
            return Err(JoinError::Server { server: server.to_owned() });
        }
        let current = Arc::new(RwLock::new(Current::new(&trust, credential)?));
        Ok(Self { server: uri, trust, current })
    }

    /// Requests from now on use `credential` on new connections; those under way end on the old ones.
    pub fn replace(&self, credential: &Credential) -> Result<(), JoinError> {
        *self.current.write() = Current::new(&self.trust, credential)?;
        Ok(())
    }

    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// A connection with room, and the request as it is to be sent on it.
    fn prepare(&self, mut request: Request<Body>) -> (Connections, Arc<()>, Request<Body>) {
        let mut parts = self.server.clone().into_parts();
        parts.path_and_query = request.uri().path_and_query().cloned();
        // Scheme, authority and path are all present: they come from two valid URIs.
        if let Ok(uri) = http::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        let mut current = self.current.write();
        if let Some(value) = &current.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        // `managedFields` name what a node writes after it.
        let agent = HeaderValue::from_static(api::version::agents::KUBELET);
        request.headers_mut().entry(header::USER_AGENT).or_insert(agent);
        let (connections, place) = current.place();
        (connections, place, request)
    }
}

impl Current {
    fn new(trust: &Trust, credential: &Credential) -> Result<Self, JoinError> {
        let tls = tls_config(trust, credential)?;
        let authorization = match credential {
            Credential::Bearer(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| JoinError::BearerToken)?;
                value.set_sensitive(true);
                Some(value)
            }
            _ => None,
        };
        Ok(Self { lanes: vec![Lane::new(&tls)], tls, authorization })
    }

    fn place(&mut self) -> (Connections, Arc<()>) {
        if !self.lanes.iter().any(Lane::has_room) {
            self.lanes.push(Lane::new(&self.tls));
        }
        // The one just added has room, so there is always one.
        let lane = self.lanes.iter().find(|lane| lane.has_room()).unwrap_or(&self.lanes[0]);
        (lane.connections.clone(), lane.in_use.clone())
    }
}

fn connections(tls: rustls::ClientConfig) -> Connections {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_all_versions().wrap_connector(connector);
    HyperClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        .http2_keep_alive_while_idle(true)
        .http2_adaptive_window(true)
        .build(connector)
}

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<Counted>;
    type Error = tower::BoxError;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (connections, place, request) = self.prepare(request);
        Box::pin(async move {
            let answer = connections.request(request).await?;
            Ok(answer.map(|body| Counted { body, _place: place }))
        })
    }
}

fn tls_config(trust: &Trust, credential: &Credential) -> Result<rustls::ClientConfig, JoinError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(JoinError::Tls)?;
    let builder = match trust {
        Trust::Authorities(pem) => {
            let mut roots = RootCertStore::empty();
            use rustls::pki_types::pem::PemObject;
            for certificate in CertificateDer::pem_slice_iter(pem).flatten() {
                roots.add(certificate).map_err(JoinError::Tls)?;
            }
            builder.with_root_certificates(roots)
        }
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider))),
    };
    Ok(match credential {
        Credential::Certificate(identity) => builder.with_client_cert_resolver(Arc::new(OneKey(identity.key.clone()))),
        _ => builder.with_no_client_auth(),
    })
}

#[derive(Debug)]
struct OneKey(Arc<CertifiedKey>);

impl ResolvesClientCert for OneKey {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts any certificate. Only for the anonymous fetch of the CA, which the token's digest checks.
#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
