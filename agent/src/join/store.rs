//! Keys and certificates on disk, and when they are due for renewal.
//!
//! One PEM file holds a certificate chain and its key, so that replacing it is one rename and no
//! reader ever sees a certificate with another's key. Files are readable by root only.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::JoinError;

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Identity {
    pub key: Arc<CertifiedKey>,
    pub common_name: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Identity {
    /// Reads what [`save`] wrote. None if there is no such file.
    pub fn load(path: &Path) -> Result<Option<Self>, JoinError> {
        match std::fs::read(path) {
            Ok(pem) => Self::from_pem(&pem).map(Some).map_err(|why| JoinError::Identity { path: path.to_owned(), why }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(JoinError::File { doing: "reading", path: path.to_owned(), error }),
        }
    }

    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
        let leaf = chain.first().ok_or("it holds no certificate")?;
        let (common_name, not_before, not_after) = describe(leaf)?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("its private key: {error}"))?;
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
        let key = Arc::new(CertifiedKey::new(chain, signer));
        key.keys_match().map_err(|error| format!("key and certificate do not belong together: {error}"))?;
        Ok(Self { key, common_name, not_before, not_after })
    }

    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// Whether the certificate is one for all of these addresses.
    pub fn names(&self, addresses: &[IpAddr]) -> bool {
        let Some(leaf) = self.key.cert.first() else { return false };
        let Ok((_, parsed)) = X509Certificate::from_der(leaf) else { return false };
        let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return false };
        addresses.iter().all(|address| {
            let octets = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            let names = &alternatives.value.general_names;
            names.iter().any(|name| matches!(name, GeneralName::IPAddress(named) if *named == octets))
        })
    }

    /// When to ask for the next certificate: at a point between 70 and 90 % of its life, given by
    /// `share` in 0..1, so that nodes that joined together do not renew together.
    pub fn renewal(&self, share: f64) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before).as_secs_f64().max(0.0);
        let wait = Duration::try_from_secs_f64(life * (0.7 + 0.2 * share.clamp(0.0, 1.0))).unwrap_or(Duration::ZERO);
        self.not_before.checked_add(wait).unwrap_or(self.not_after)
    }
}

fn describe(certificate: &CertificateDer<'_>) -> Result<(String, Timestamp, Timestamp), String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let at =
        |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).map_err(|error| error.to_string());
    Ok((name.to_owned(), at(parsed.validity().not_before)?, at(parsed.validity().not_after)?))
}

/// Writes a certificate chain and its key, both PEM, to one file with mode 0600.
pub fn save(path: &Path, certificates: &str, key: &str) -> Result<(), JoinError> {
    write_private(path, format!("{}\n{key}", certificates.trim_end()).as_bytes())
}

/// Replaces a file in one step; only its owner may read it.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), JoinError> {
    let failed = |error| JoinError::File { doing: "writing", path: path.to_owned(), error };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

/// The first certificate of a PEM file, as DER.
pub fn first_certificate(pem: &[u8]) -> Option<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn pair(days: i64) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n1");
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = params.not_before + Duration::from_secs(days as u64 * 86_400);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn an_identity_is_private_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client.pem");
        assert!(Identity::load(&path).unwrap().is_none());
        let (certificate, key) = pair(10);
        save(&path, &certificate, &key).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let identity = Identity::load(&path).unwrap().unwrap();
        assert_eq!(identity.common_name, "system:node:n1");
    }

    #[test]
    fn renewal_lies_between_70_and_90_percent() {
        let (certificate, key) = pair(10);
        let identity = Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap();
        let day = |days: i64| identity.not_before + jiff::SignedDuration::from_hours(24 * days);
        assert_eq!(identity.renewal(0.0), day(7));
        assert_eq!(identity.renewal(1.0), day(9));
        assert!(identity.is_valid_at(day(9)) && !identity.is_valid_at(day(10)));
    }

    #[test]
    fn a_certificate_for_the_address_before_is_none_for_the_address_now() {
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names.push(rcgen::SanType::IpAddress(address(1)));
        let pem = format!("{}{}", params.self_signed(&key).unwrap().pem(), key.serialize_pem());
        let identity = Identity::from_pem(pem.as_bytes()).unwrap();
        assert!(identity.names(&[address(1)]));
        assert!(!identity.names(&[address(2)]) && !identity.names(&[address(1), address(2)]));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (certificate, _) = pair(10);
        let (_, key) = pair(10);
        assert!(Identity::from_pem(format!("{certificate}{key}").as_bytes()).is_err());
    }
}
