//! The server's TLS identity, read again when its files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::config;

/// Certificate, key and client CA files, and what they gave when last read.
pub struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    loaded: Mutex<Option<(Stamp, Arc<ServerConfig>)>>,
}

/// When each of the files was last written.
type Stamp = [Option<SystemTime>; 3];

impl TlsFiles {
    pub fn new(config: &config::ServerConfig) -> Self {
        Self {
            certificate: config.certificate.clone(),
            key: config.key.clone(),
            client_ca: config.client_ca.clone(),
            loaded: Mutex::new(None),
        }
    }

    /// The configuration for the next connection. Fails while there is no certificate yet; if a
    /// changed file is not usable, the one before serves on.
    pub fn current(&self) -> Result<Arc<ServerConfig>, String> {
        let stamp = [&self.certificate, &self.key, &self.client_ca].map(|path| written(path));
        let mut loaded = self.loaded.lock();
        if let Some((known, config)) = loaded.as_ref().filter(|(known, _)| *known == stamp) {
            let _ = known;
            return Ok(config.clone());
        }
        match self.load() {
            Ok(config) => {
                *loaded = Some((stamp, config.clone()));
                Ok(config)
            }
            Err(error) => match loaded.as_ref() {
                Some((_, config)) => {
                    tracing::warn!(error, "the server's changed certificate is not usable; the old one serves on");
                    Ok(config.clone())
                }
                None => Err(error),
            },
        }
    }

    fn load(&self) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.client_ca)? {
            roots.add(certificate).map_err(|error| format!("{}: {error}", self.client_ca.display()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            // without a certificate there may still be a bearer token
            .allow_unauthenticated()
            .build()
            .map_err(|error| format!("{}: {error}", self.client_ca.display()))?;
        let chain = certificates(&self.certificate)?;
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| format!("{}: {error}", self.key.display()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|error| format!("{}: {error}", self.certificate.display()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let named = |error: rustls::pki_types::pem::Error| format!("{}: {error}", path.display());
    let found: Vec<_> = CertificateDer::pem_file_iter(path).map_err(named)?.collect::<Result<_, _>>().map_err(named)?;
    if found.is_empty() { Err(format!("{} holds no certificate", path.display())) } else { Ok(found) }
}
