//! What a connection's TLS is made of, from files: the serving certificate, and whose client
//! certificates stand for whom.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::TlsAcceptor;

use crate::authn::{self, UserInfo, certificate};
use crate::error::{ApiError, Result};
use crate::server::Config;

/// Accepts connections and says who a client certificate is of.
#[derive(Clone)]
pub struct Tls {
    pub acceptor: TlsAcceptor,
    clients: Arc<dyn ClientCertVerifier>,
    proxies: Option<Arc<dyn ClientCertVerifier>>,
}

/// Whom a client certificate stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    Nothing,
    User(Arc<UserInfo>),
    /// A proxy with this common name: its headers say for whom it asks.
    Proxy(String),
    /// It has ended, another authority signed it, or it names nobody.
    Bad,
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
        let any = Arc::new(AnyClient(verifier(&config.client_ca, both, &provider)?));
        let mut tls = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(ApiError::internal)?
            .with_client_cert_verifier(any)
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

    /// Judges what a client showed in the handshake, which takes any certificate.
    fn shown(&self, chain: &[CertificateDer<'_>]) -> Shown {
        let [own, between @ ..] = chain else { return Shown::Nothing };
        let Some(user) = certificate::user_of(own) else { return Shown::Bad };
        let signed = |by: &Arc<dyn ClientCertVerifier>| by.verify_client_cert(own, between, UnixTime::now()).is_ok();
        if signed(&self.clients) {
            Shown::User(Arc::new(authn::authenticated(user)))
        } else if self.proxies.as_ref().is_some_and(signed) {
            Shown::Proxy(user.name)
        } else {
            Shown::Bad
        }
    }
}

/// What connections are accepted with now: it changes with its files.
pub struct Current {
    tls: RwLock<Tls>,
    /// How often it was read again.
    reads: AtomicU64,
}

impl Current {
    pub fn new(tls: Tls) -> Self {
        Self { tls: RwLock::new(tls), reads: AtomicU64::new(0) }
    }

    pub fn get(&self) -> Tls {
        self.tls.read().clone()
    }

    pub fn replace(&self, fresh: Tls) {
        *self.tls.write() = fresh;
        self.reads.fetch_add(1, Ordering::AcqRel);
    }
}

/// The certificates that a connection's client showed. Upstream verifies them for every request; here their
/// judgement holds until the authorities are read again, one of which may then be gone.
pub struct Client {
    chain: Vec<CertificateDer<'static>>,
    current: Arc<Current>,
    /// After how many reads it was found.
    judged: RwLock<(u64, Shown)>,
}

impl Client {
    pub fn new(chain: &[CertificateDer<'_>], current: Arc<Current>) -> Self {
        let reads = current.reads.load(Ordering::Acquire);
        let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let judged = RwLock::new((reads, current.get().shown(&chain)));
        Self { chain, current, judged }
    }

    /// Whom they stand for.
    pub fn shown(&self) -> Shown {
        let reads = self.current.reads.load(Ordering::Acquire);
        {
            let judged = self.judged.read();
            if judged.0 == reads {
                return judged.1.clone();
            }
        }
        let shown = self.current.get().shown(&self.chain);
        *self.judged.write() = (reads, shown.clone());
        shown
    }
}

/// Takes any client certificate: whom it names is judged when a request is authenticated, where a
/// bad one is answered `401` instead of an alert that says nothing.
#[derive(Debug)]
struct AnyClient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
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
