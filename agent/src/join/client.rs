//! The agent's connection to the server: one HTTP/2 connection, whose client certificate can be
//! replaced while it is in use.

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
    connections: Connections,
    authorization: Option<HeaderValue>,
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

    fn prepare(&self, mut request: Request<Body>) -> (Connections, Request<Body>) {
        let mut parts = self.server.clone().into_parts();
        parts.path_and_query = request.uri().path_and_query().cloned();
        // Scheme, authority and path are all present: they come from two valid URIs.
        if let Ok(uri) = http::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        let current = self.current.read();
        if let Some(value) = &current.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        let agent = HeaderValue::from_static(concat!("skiff-agent/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry(header::USER_AGENT).or_insert(agent);
        (current.connections.clone(), request)
    }
}

impl Current {
    fn new(trust: &Trust, credential: &Credential) -> Result<Self, JoinError> {
        let tls = tls_config(trust, credential)?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_all_versions()
            .wrap_connector(connector);
        let connections = HyperClient::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PING)
            .http2_keep_alive_while_idle(true)
            .http2_adaptive_window(true)
            .build(connector);
        let authorization = match credential {
            Credential::Bearer(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| JoinError::BearerToken)?;
                value.set_sensitive(true);
                Some(value)
            }
            _ => None,
        };
        Ok(Self { connections, authorization })
    }
}

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<hyper::body::Incoming>;
    type Error = tower::BoxError;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (connections, request) = self.prepare(request);
        Box::pin(async move { connections.request(request).await.map_err(Into::into) })
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
