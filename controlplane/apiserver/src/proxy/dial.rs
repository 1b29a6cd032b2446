//! Connections to kubelets, pods and Services, one per request.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::RequestBody;
use super::target::Target;
use super::words;
use crate::http::tls::read_certificates;
use crate::server::{Api, KeyPair};

/// Larger documents are refused.
const MAX_DOCUMENT: usize = 32 << 20;
const DIAL: Duration = Duration::from_secs(10);
/// Before a node that says nothing is asked whether it is still there; upstream's.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How a connection is protected.
#[derive(Debug, Clone)]
pub enum Security {
    Plain,
    /// TLS with any server, as upstream does for proxied pods.
    Unverified,
    /// Shown our client certificate; verified if the configuration names a CA.
    Kubelet,
    /// With this configuration, under this name.
    Verified(Arc<ClientConfig>, String),
}

/// Whose certificates are taken.
pub enum Trust {
    Anyone,
    Roots(RootCertStore),
}

/// Sends a request to the target; the connection lives as long as its answer, or its upgrade.
pub async fn send(api: &Api, target: &Target, request: Request<RequestBody>) -> Result<Response<Incoming>, String> {
    let failed = |why: &dyn std::fmt::Display| format!("dial tcp {}: {why}", target.host);
    let tls = secured(api, target).map_err(|why| failed(&why))?;
    let name = tls.as_ref().map_or_else(String::new, |(_, name)| name.clone());
    let dialing = async {
        let stream = TcpStream::connect((target.address.as_str(), target.port)).await?;
        stream.set_nodelay(true)?;
        component::keep_alive(&stream, KEEP_ALIVE)?;
        let Some((config, name)) = tls else { return Ok::<_, std::io::Error>(Err(stream)) };
        let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await.map(Ok)
    };
    match tokio::time::timeout(DIAL, dialing).await {
        Err(_) => Err(failed(&"i/o timeout")),
        Ok(Err(error)) => Err(words::of_connection(&error, &target.host, &name)),
        Ok(Ok(Ok(tls))) => exchange(api, tls, request).await.map_err(|error| failed(&error)),
        Ok(Ok(Err(plain))) => exchange(api, plain, request).await.map_err(|error| failed(&error)),
    }
}

/// GETs a whole document.
pub async fn get(api: &Api, target: &Target) -> Result<(StatusCode, Bytes), String> {
    let mut request = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *request.uri_mut() = target.path.parse().map_err(|error| format!("{:?} is no path: {error}", target.path))?;
    *request.headers_mut() = target.headers.clone();
    request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    if let Ok(host) = target.host.parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    let response = send(api, target, request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_DOCUMENT).collect().await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}

/// The TLS configuration for a target and the name it must have.
fn secured(api: &Api, target: &Target) -> Result<Option<(Arc<ClientConfig>, String)>, String> {
    let address = target.address.clone();
    Ok(match &target.security {
        Security::Plain => None,
        Security::Unverified => Some((client_config(Trust::Anyone, None)?, address)),
        Security::Kubelet => {
            let trust = match &api.config.kubelet_ca {
                Some(file) => {
                    Trust::Roots(roots_of(read_certificates(file).map_err(|error| error.message().to_owned())?)?)
                }
                None => Trust::Anyone,
            };
            Some((client_config(trust, api.config.kubelet_client.as_ref().map(identity).transpose()?)?, address))
        }
        Security::Verified(config, name) => Some((config.clone(), name.clone())),
    })
}

async fn exchange<S>(api: &Api, stream: S, request: Request<RequestBody>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    api.supervisor.spawn("backend connection", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node ended");
        }
    });
    sender.send_request(request).await
}

/// A client's certificate with those that signed it, and its key.
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads both files.
pub fn identity(pair: &KeyPair) -> Result<Identity, String> {
    let chain = read_certificates(&pair.certificate).map_err(|error| error.message().to_owned())?;
    let key =
        PrivateKeyDer::from_pem_file(&pair.key).map_err(|error| format!("reading {}: {error}", pair.key.display()))?;
    Ok((chain, key))
}

/// A client's side of TLS: whom it takes, and what it shows.
pub fn client_config(trust: Trust, identity: Option<Identity>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match trust {
        Trust::Anyone => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider))),
        Trust::Roots(roots) => {
            let rooted = super::trust::Rooted::new(roots, provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(rooted))
        }
    };
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The certificates of a `caBundle` (PEM in base64), or this machine's own when it is empty.
pub fn roots(bundle: &str) -> Result<RootCertStore, String> {
    let pem = BASE64_STANDARD.decode(bundle).map_err(|error| format!("caBundle is not base64: {error}"))?;
    let pem = if pem.is_empty() { system_roots() } else { pem };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let roots = roots_of(read.map_err(|error| format!("caBundle is not PEM: {error}"))?)?;
    if roots.is_empty() {
        return Err(
            "tls: failed to verify certificate: x509: certificate signed by unknown authority (caBundle is empty)"
                .to_owned(),
        );
    }
    Ok(roots)
}

fn roots_of(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| format!("a CA certificate cannot be used: {error}"))?;
    }
    Ok(roots)
}

/// What the distribution trusts; empty if it has nothing in the usual places.
fn system_roots() -> Vec<u8> {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let usual = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    named.as_deref().into_iter().chain(usual).find_map(|path| std::fs::read(path).ok()).unwrap_or_default()
}

/// Takes any serving certificate: that of a proxied pod, or where an APIService says so. Possession
/// of the key is proved all the same.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
