//! The cluster's certificates and keys on disk: `<data>/server/tls`.
//!
//! | file | what it is |
//! |---|---|
//! | `ca.crt`, `ca.key` | the cluster CA: signs servers, clients and nodes |
//! | `front-proxy-ca.*`, `front-proxy-client.*` | identifies this server to aggregated API servers |
//! | `service-account.key` | signs ServiceAccount tokens (ES256) |
//! | `apiserver.*` | what the API server shows; remade when its names change |
//! | `apiserver-kubelet-client.*` | what it shows to kubelets |
//! | `admin.*` | the administrator's client certificate |
//!
//! All but authorities are remade when they near their end, and when another authority takes the place of the
//! one that signed them.
//!
//! Keys are written 0600 before their certificates, each file by rename, so that a kill in between
//! leaves either the old pair or a state that the next start mends.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use x509_parser::certificate::X509Certificate;

const CA_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// A leaf with less than this left is remade.
const RENEW_BEFORE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Clocks of other machines may be behind.
const BACKDATE: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{doing} {path}: {source}; check that the directory is writable and the disk is not full")]
    File { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("making the certificate {path}: {source}")]
    Make { path: PathBuf, source: rcgen::Error },
    #[error("{path} is not a usable certificate or key: {source}; move it away to have a new one made")]
    Damaged { path: PathBuf, source: rcgen::Error },
    #[error("{certificate} needs its own key, which is not in {key}; copy both from where the authority was made")]
    OtherKey { certificate: PathBuf, key: PathBuf },
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// Everything the control plane needs of its PKI.
#[derive(Clone)]
pub struct Pki {
    pub dir: PathBuf,
    pub ca: Pair,
    pub front_proxy_ca: Pair,
    pub front_proxy_client: Pair,
    pub service_account_key: String,
    pub apiserver: Pair,
    pub kubelet_client: Pair,
    pub admin: Pair,
}

/// Names and addresses that the API server answers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerNames {
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

impl ServerNames {
    /// The names every cluster's API server has, and `more` of this machine's.
    pub fn new(cluster_domain: &str, more: impl IntoIterator<Item = String>) -> Self {
        let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let mut names = Self { dns: service.map(str::to_owned).to_vec(), addresses: Vec::new() };
        names.dns.push(format!("kubernetes.default.svc.{cluster_domain}"));
        let loopback = ["127.0.0.1".to_owned(), "::1".to_owned()];
        for name in more.into_iter().chain(loopback) {
            match name.parse::<IpAddr>() {
                Ok(address) if !names.addresses.contains(&address) => names.addresses.push(address),
                Ok(_) => {}
                Err(_) if !names.dns.contains(&name) => names.dns.push(name),
                Err(_) => {}
            }
        }
        names
    }
}

/// Who a certificate is for.
enum Subject<'a> {
    Authority,
    Server(&'a ServerNames),
    Client { group: Option<&'a str> },
}

impl Pki {
    /// Reads what is there, makes what is missing.
    pub fn ensure(dir: &Path, names: &ServerNames) -> Result<Self, PkiError> {
        std::fs::create_dir_all(dir).map_err(|source| PkiError::File {
            doing: "creating",
            path: dir.to_owned(),
            source,
        })?;
        let ca = authority(dir, "ca", "skiff-ca")?;
        let front_proxy_ca = authority(dir, "front-proxy-ca", "skiff-front-proxy-ca")?;
        Ok(Self {
            front_proxy_client: leaf(
                dir,
                "front-proxy-client",
                "front-proxy-client",
                &front_proxy_ca,
                Subject::Client { group: None },
            )?,
            service_account_key: key(dir, "service-account")?,
            apiserver: leaf(dir, "apiserver", "kube-apiserver", &ca, Subject::Server(names))?,
            kubelet_client: leaf(
                dir,
                "apiserver-kubelet-client",
                "kube-apiserver-kubelet-client",
                &ca,
                Subject::Client { group: Some("system:masters") },
            )?,
            admin: leaf(dir, "admin", "system:admin", &ca, Subject::Client { group: Some("system:masters") })?,
            dir: dir.to_owned(),
            ca,
            front_proxy_ca,
        })
    }

    pub fn certificate_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.crt"))
    }

    pub fn key_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }
}

fn authority(dir: &Path, name: &str, common_name: &str) -> Result<Pair, PkiError> {
    let path = dir.join(format!("{name}.crt"));
    if let Some(certificate) = read(&path)? {
        // Without its key: another one would sign what nobody accepts.
        let key_path = path.with_extension("key");
        let key = read(&key_path)?.unwrap_or_default();
        if !key.is_empty() && is_of_key(&certificate, &parse_key(&path, &key)?) {
            return Ok(Pair { certificate, key });
        }
        return Err(PkiError::OtherKey { certificate: path, key: key_path });
    }
    let key = key(dir, name)?;
    let key_pair = parse_key(&path, &key)?;
    let params =
        params(common_name, &Subject::Authority).map_err(|source| PkiError::Make { path: path.clone(), source })?;
    let made = params.self_signed(&key_pair).map_err(|source| PkiError::Make { path: path.clone(), source })?;
    write(&path, &made.pem(), 0o644)?;
    Ok(Pair { certificate: made.pem(), key })
}

fn leaf(dir: &Path, name: &str, common_name: &str, ca: &Pair, subject: Subject<'_>) -> Result<Pair, PkiError> {
    let path = dir.join(format!("{name}.crt"));
    let key = key(dir, name)?;
    let key_pair = parse_key(&path, &key)?;
    if let Some(certificate) = read(&path)?
        && still_good(&certificate, &subject)
        && is_of_key(&certificate, &key_pair)
        && is_signed_by(&certificate, &ca.certificate)
    {
        return Ok(Pair { certificate, key });
    }
    let make = |source| PkiError::Make { path: path.clone(), source };
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, parse_key(&path, &ca.key)?)
        .map_err(|source| PkiError::Damaged { path: path.clone(), source })?;
    let made = params(common_name, &subject).map_err(make)?.signed_by(&key_pair, &issuer).map_err(make)?;
    write(&path, &made.pem(), 0o644)?;
    Ok(Pair { certificate: made.pem(), key })
}

fn key(dir: &Path, name: &str) -> Result<String, PkiError> {
    let path = dir.join(format!("{name}.key"));
    if let Some(key) = read(&path)? {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(|source| PkiError::Make { path: path.clone(), source })?.serialize_pem();
    write(&path, &key, 0o600)?;
    Ok(key)
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(pem).map_err(|source| PkiError::Damaged { path: path.with_extension("key"), source })
}

fn params(common_name: &str, subject: &Subject<'_>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    let mut name = DistinguishedName::new();
    if let Subject::Client { group: Some(group) } = subject {
        name.push(DnType::OrganizationName, *group);
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + if matches!(subject, Subject::Authority) { CA_LIFETIME } else { LEAF_LIFETIME }).into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    match subject {
        Subject::Authority => {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        }
        Subject::Server(names) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            for dns in &names.dns {
                params.subject_alt_names.push(SanType::DnsName(dns.as_str().try_into()?));
            }
            params.subject_alt_names.extend(names.addresses.iter().map(|address| SanType::IpAddress(*address)));
        }
        Subject::Client { .. } => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
    }
    Ok(params)
}

/// Calls `is` with a certificate, if it is one.
fn parsed(pem: &str, is: impl FnOnce(&X509Certificate<'_>) -> bool) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else { return false };
    pem.parse_x509().is_ok_and(|parsed| is(&parsed))
}

fn is_of_key(certificate: &str, key: &KeyPair) -> bool {
    parsed(certificate, |certificate| *certificate.public_key().subject_public_key.data == *key.public_key_raw())
}

/// Whether an authority's key signed a certificate, whatever both are called.
fn is_signed_by(certificate: &str, authority: &str) -> bool {
    let algorithms: [&'static dyn VerificationAlgorithm; 5] = [
        &signature::ECDSA_P256_SHA256_ASN1,
        &signature::ECDSA_P384_SHA384_ASN1,
        &signature::ECDSA_P521_SHA512_ASN1,
        &signature::ED25519,
        &signature::RSA_PKCS1_2048_8192_SHA256,
    ];
    parsed(authority, |authority| {
        let key = &authority.public_key().subject_public_key.data;
        parsed(certificate, |certificate| {
            let signed: &[u8] = certificate.tbs_certificate.as_ref();
            let by = &certificate.signature_value.data;
            algorithms.iter().any(|algorithm| UnparsedPublicKey::new(*algorithm, key).verify(signed, by).is_ok())
        })
    })
}

/// Whether a certificate has time left and names all it should.
fn still_good(certificate: &str, subject: &Subject<'_>) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else { return false };
    let Ok(parsed) = pem.parse_x509() else { return false };
    let left = parsed.validity().time_to_expiration().map(|left| left.whole_seconds()).unwrap_or(0);
    if left < RENEW_BEFORE.as_secs() as i64 {
        return false;
    }
    let Subject::Server(names) = subject else { return true };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return false };
    let has = |wanted: &dyn Fn(&x509_parser::extensions::GeneralName<'_>) -> bool| {
        alternatives.value.general_names.iter().any(wanted)
    };
    names
        .dns
        .iter()
        .all(|dns| has(&|name| matches!(name, x509_parser::extensions::GeneralName::DNSName(n) if n == dns)))
        && names.addresses.iter().all(|address| {
            let bytes = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            has(&|name| matches!(name, x509_parser::extensions::GeneralName::IPAddress(n) if *n == bytes))
        })
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { doing: "reading", path: path.to_owned(), source }),
    }
}

/// Writes by rename, so that nobody ever reads half a file.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        // On a full disk each start would leave one more.
        let _ = std::fs::remove_file(&temporary);
        PkiError::File { doing: "writing", path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_keeps_everything_and_a_new_name_only_the_server_certificate_changes() {
        let dir = tempfile::tempdir().unwrap();
        let names = ServerNames::new("cluster.local", ["10.0.0.1".to_owned()]);
        let first = Pki::ensure(dir.path(), &names).unwrap();
        let second = Pki::ensure(dir.path(), &names).unwrap();
        assert_eq!(first.apiserver.certificate, second.apiserver.certificate);
        let more = ServerNames::new("cluster.local", ["10.0.0.1".to_owned(), "lab.example".to_owned()]);
        let third = Pki::ensure(dir.path(), &more).unwrap();
        assert_ne!(first.apiserver.certificate, third.apiserver.certificate);
        assert_eq!(first.ca.certificate, third.ca.certificate);
        assert_eq!(first.admin.certificate, third.admin.certificate);
    }

    #[test]
    fn what_another_authority_signed_is_remade() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let names = ServerNames::new("cluster.local", ["10.0.0.1".to_owned()]);
        let cluster = Pki::ensure(first.path(), &names).unwrap();
        let own = Pki::ensure(second.path(), &names).unwrap();
        for file in ["ca.crt", "ca.key"] {
            std::fs::copy(first.path().join(file), second.path().join(file)).unwrap();
        }
        let joined = Pki::ensure(second.path(), &names).unwrap();
        assert_eq!(joined.ca.certificate, cluster.ca.certificate);
        for (before, after) in [
            (&own.apiserver, &joined.apiserver),
            (&own.admin, &joined.admin),
            (&own.kubelet_client, &joined.kubelet_client),
        ] {
            assert!(!is_signed_by(&before.certificate, &cluster.ca.certificate));
            assert!(is_signed_by(&after.certificate, &cluster.ca.certificate));
            assert_eq!(before.key, after.key);
        }
        assert_eq!(own.front_proxy_client.certificate, joined.front_proxy_client.certificate);
    }

    #[test]
    fn an_authority_without_its_key_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let names = ServerNames::new("cluster.local", ["10.0.0.1".to_owned()]);
        Pki::ensure(dir.path(), &names).unwrap();
        let key = dir.path().join("ca.key");
        for other in [None, Some(KeyPair::generate().unwrap().serialize_pem())] {
            std::fs::remove_file(&key).unwrap();
            other.iter().for_each(|other| std::fs::write(&key, other).unwrap());
            let error = Pki::ensure(dir.path(), &names).err().unwrap().to_string();
            assert!(error.contains("ca.crt needs its own key") && error.contains("ca.key"), "{error}");
            std::fs::write(&key, "").unwrap();
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.crt");
        // A directory with something in it is in the way of the rename.
        std::fs::create_dir_all(path.join("other")).unwrap();
        assert!(write(&path, "text", 0o600).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.key"), "not a key").unwrap();
        let error = Pki::ensure(dir.path(), &ServerNames::default()).err().unwrap().to_string();
        assert!(error.contains("ca.key"), "{error}");
    }
}
