//! What a connection's TLS is made of, from files: the serving certificate, and whose client
//! certificates stand for whom.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::TlsAcceptor;

use crate::authn::{UserInfo, certificate};
use crate::error::{ApiError, Result};
use crate::server::Config;

/// Accepts connections and says who a client certificate is of.
#[derive(Clone)]
pub struct Tls {
    pub acceptor: TlsAcceptor,
    clients: Arc<dyn ClientCertVerifier>,
    proxies: Option<Arc<dyn ClientCertVerifier>>,
}

/// Whom a verified client certificate stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    Nothing,
    User(UserInfo),
    /// A proxy with this common name: its headers say for whom it asks.
    Proxy(String),
}

impl Tls {
    /// Reads all files.
    pub fn read(config: &Config) -> Result<Self> {
        let chain = read_certificates(&config.serving.certificate)?;
        let key =
            PrivateKeyDer::from_pem_file(&config.serving.key).map_err(|error| unusable(&config.serving.key, error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = read_certificates(&config.client_ca)?;
        let proxies = config.requestheader_ca().map(read_certificates).transpose()?;
        let both: Vec<_> = clients.iter().chain(proxies.iter().flatten()).cloned().collect();
        let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(ApiError::internal)?
            .with_client_cert_verifier(verifier(&config.client_ca, both, &provider)?)
            .with_single_cert(chain, key)
            .map_err(|error| unusable(&config.serving.certificate, error))?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let proxies = proxies.map(|proxies| verifier(&config.client_ca, proxies, &provider)).transpose()?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            clients: verifier(&config.client_ca, clients, &provider)?,
            proxies,
        })
    }

    /// `chain` passed the handshake, so one of the two authorities signed it.
    pub fn shown(&self, chain: Option<&[CertificateDer<'_>]>) -> Shown {
        let Some([own, between @ ..]) = chain else { return Shown::Nothing };
        let Some(user) = certificate::user_of(own) else { return Shown::Nothing };
        let signed = |by: &Arc<dyn ClientCertVerifier>| by.verify_client_cert(own, between, UnixTime::now()).is_ok();
        match &self.proxies {
            Some(proxies) if signed(proxies) && !signed(&self.clients) => Shown::Proxy(user.name),
            _ => Shown::User(user),
        }
    }
}

fn verifier(
    path: &Path,
    certificates: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| unusable(path, error))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| unusable(path, error))
}

fn unusable(path: &Path, error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(format!("reading {}: {error}; it must hold PEM that this server can read", path.display()))
}

/// All certificates of a PEM file.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, error))?;
    certificates.collect::<std::result::Result<_, _>>().map_err(|error| unusable(path, error))
}
