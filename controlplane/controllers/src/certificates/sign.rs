//! Certificates for requests: subject, key and names as asked, usages as the request object says.
//!
//! The subject's bytes are taken over as they are: a subject may have several organizations (each
//! is a group to the API server), which a map of attributes would collapse into one.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::der;

/// Kubernetes' `--cluster-signing-duration`.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// `expirationSeconds` below this are raised to it.
const SHORTEST: Duration = Duration::from_secs(600);
/// Clocks that are behind accept the certificate too.
const BACKDATE: i64 = 5 * 60;

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("reading {what}: {problem}")]
    Read { what: &'static str, problem: String },
    #[error("the request's signature does not fit its public key")]
    Signature,
    #[error("usage \"{0}\" is not known; see the CertificateSigningRequest reference for the usages there are")]
    Usage(String),
    #[error("signing with the cluster CA: {0}")]
    Sign(String),
}

fn read(what: &'static str) -> impl Fn(String) -> SignError {
    move |problem| SignError::Read { what, problem }
}

fn pem_to_der(what: &'static str, pem: &[u8]) -> Result<Vec<u8>, SignError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|error| read(what)(error.to_string()))?;
    Ok(pem.contents)
}

/// What a PKCS#10 request asks for.
#[derive(Debug, Default, Clone)]
pub struct Request {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub emails: usize,
    pub uris: usize,
    subject: Vec<u8>,
    public_key_info: Vec<u8>,
    /// The whole extension value, copied into the certificate.
    names: Option<Vec<u8>>,
}

impl Request {
    /// Reads a PEM request and checks that its sender has the key.
    pub fn parse(pem: &[u8]) -> Result<Self, SignError> {
        const WHAT: &str = "the certificate request";
        let der = pem_to_der(WHAT, pem)?;
        let (_, csr) = X509CertificationRequest::from_der(&der).map_err(|error| read(WHAT)(error.to_string()))?;
        csr.verify_signature().map_err(|_| SignError::Signature)?;
        let info = &csr.certification_request_info;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            value.as_str().map(str::to_owned).unwrap_or_default()
        };
        let mut request = Self {
            common_name: info.subject.iter_common_name().next().map(text).unwrap_or_default(),
            organizations: info.subject.iter_organization().map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            public_key_info: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                names.general_names.iter().for_each(|name| request.add_name(name));
            }
        }
        request.names = request.encoded_names();
        Ok(request)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                if let Ok(four) = <[u8; 4]>::try_from(*bytes) {
                    self.addresses.push(IpAddr::from(four));
                } else if let Ok(sixteen) = <[u8; 16]>::try_from(*bytes) {
                    self.addresses.push(IpAddr::from(sixteen));
                }
            }
            GeneralName::RFC822Name(_) => self.emails += 1,
            GeneralName::URI(_) => self.uris += 1,
            _ => {}
        }
    }

    /// `GeneralNames` with the DNS names and addresses; other kinds are not certified.
    fn encoded_names(&self) -> Option<Vec<u8>> {
        let dns = self.dns_names.iter().map(|name| der::tagged(0x82, name.as_bytes()));
        let addresses = self.addresses.iter().map(|address| match address {
            IpAddr::V4(address) => der::tagged(0x87, &address.octets()),
            IpAddr::V6(address) => der::tagged(0x87, &address.octets()),
        });
        let names: Vec<_> = dns.chain(addresses).collect();
        (!names.is_empty()).then(|| der::sequence(&names))
    }
}

/// The cluster CA.
pub struct Authority {
    key: KeyPair,
    subject: Vec<u8>,
    key_id: Vec<u8>,
    ends: Timestamp,
}

impl Authority {
    pub fn new(certificate: &str, key: &str) -> Result<Self, SignError> {
        const WHAT: &str = "the cluster CA's certificate";
        let der = pem_to_der(WHAT, certificate.as_bytes())?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| read(WHAT)(error.to_string()))?;
        let key = KeyPair::from_pem(key).map_err(|error| read("the cluster CA's key")(error.to_string()))?;
        let key_id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let ends = Timestamp::from_second(certificate.validity().not_after.timestamp());
        Ok(Self {
            subject: certificate.subject().as_raw().to_vec(),
            key_id: key_id.unwrap_or_else(|| Sha256::digest(key.der_bytes())[..20].to_vec()),
            ends: ends.map_err(|error| read(WHAT)(error.to_string()))?,
            key,
        })
    }

    /// The certificate, PEM. `lifetime` is what the request wishes.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[String],
        lifetime: Option<Duration>,
        now: Timestamp,
    ) -> Result<String, SignError> {
        let lifetime = lifetime.map_or(LONGEST, |wish| wish.clamp(SHORTEST, LONGEST));
        let from = crate::meta::after(now, -BACKDATE);
        let until = crate::meta::after(now, lifetime.as_secs() as i64 - BACKDATE).min(self.ends);
        let serial: [u8; 16] = rand::random();
        let algorithm = self.signature_algorithm()?;
        let to_sign = der::sequence(&[
            der::explicit(0, &der::integer(&[2])),
            der::integer(&serial),
            algorithm.clone(),
            self.subject.clone(),
            der::sequence(&[der::time(from), der::time(until)]),
            request.subject.clone(),
            request.public_key_info.clone(),
            der::explicit(3, &der::sequence(&self.extensions(request, usages)?)),
        ]);
        let signature = self.key.sign(&to_sign).map_err(|error| SignError::Sign(error.to_string()))?;
        Ok(pem(&der::sequence(&[to_sign, algorithm, der::bit_string(0, &signature)])))
    }

    fn signature_algorithm(&self) -> Result<Vec<u8>, SignError> {
        // ecdsa-with-SHA256, ecdsa-with-SHA384, Ed25519, sha256WithRSAEncryption (with NULL)
        let algorithm = self.key.algorithm();
        let (id, null): (&[u8], bool) = if *algorithm == rcgen::PKCS_ECDSA_P256_SHA256 {
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2], false)
        } else if *algorithm == rcgen::PKCS_ECDSA_P384_SHA384 {
            (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3], false)
        } else if *algorithm == rcgen::PKCS_ED25519 {
            (&[0x2b, 0x65, 0x70], false)
        } else if *algorithm == rcgen::PKCS_RSA_SHA256 {
            (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b], true)
        } else {
            return Err(SignError::Sign(format!("the CA's key type {algorithm:?} is not supported; use ECDSA P-256")));
        };
        let mut parts = vec![der::oid(id)];
        if null {
            parts.push(vec![5, 0]);
        }
        Ok(der::sequence(&parts))
    }

    fn extensions(&self, request: &Request, usages: &[String]) -> Result<Vec<Vec<u8>>, SignError> {
        let (bits, purposes) = usage_bits(usages)?;
        let mut extensions = Vec::new();
        if bits != 0 {
            let bytes = if bits & 0xff == 0 { vec![(bits >> 8) as u8] } else { vec![(bits >> 8) as u8, bits as u8] };
            let unused = bytes.last().map_or(0, |last| last.trailing_zeros() as u8);
            extensions.push(der::extension(&[0x55, 0x1d, 0x0f], true, &der::bit_string(unused, &bytes)));
        }
        if !purposes.is_empty() {
            extensions.push(der::extension(&[0x55, 0x1d, 0x25], false, &der::sequence(&purposes)));
        }
        extensions.push(der::extension(&[0x55, 0x1d, 0x13], true, &der::sequence(&[])));
        let authority = der::sequence(&[der::tagged(0x80, &self.key_id)]);
        extensions.push(der::extension(&[0x55, 0x1d, 0x23], false, &authority));
        if let Some(names) = &request.names {
            extensions.push(der::extension(&[0x55, 0x1d, 0x11], false, names));
        }
        Ok(extensions)
    }
}

/// KeyUsage bits (the first named is the highest of sixteen) and extended purposes.
fn usage_bits(usages: &[String]) -> Result<(u16, Vec<Vec<u8>>), SignError> {
    const PURPOSE: [u8; 7] = [0x2b, 6, 1, 5, 5, 7, 3];
    let (mut bits, mut purposes) = (0, Vec::new());
    let mut purpose = |last: u8| purposes.push(der::oid(&[&PURPOSE[..], &[last]].concat()));
    for usage in usages {
        match usage.as_str() {
            "signing" | "digital signature" => bits |= 1 << 15,
            "content commitment" => bits |= 1 << 14,
            "key encipherment" => bits |= 1 << 13,
            "data encipherment" => bits |= 1 << 12,
            "key agreement" => bits |= 1 << 11,
            "cert sign" => bits |= 1 << 10,
            "crl sign" => bits |= 1 << 9,
            "encipher only" => bits |= 1 << 8,
            "decipher only" => bits |= 1 << 7,
            "server auth" => purpose(1),
            "client auth" => purpose(2),
            "code signing" => purpose(3),
            "email protection" | "s/mime" => purpose(4),
            "ipsec end system" => purpose(5),
            "ipsec tunnel" => purpose(6),
            "ipsec user" => purpose(7),
            "timestamping" => purpose(8),
            "ocsp signing" => purpose(9),
            unknown => return Err(SignError::Usage(unknown.to_owned())),
        }
    }
    Ok((bits, purposes))
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// When a PEM certificate ends.
pub fn expiry(pem: &[u8]) -> Option<Timestamp> {
    let der = pem_to_der("the certificate", pem).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, SanType};

    fn authority() -> (Authority, Vec<u8>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a CA");
        let authority = Authority::new(&certificate.pem(), &key.serialize_pem()).expect("just made");
        (authority, certificate.der().to_vec())
    }

    fn node_request() -> String {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["n1".to_owned()]).expect("one name");
        params.subject_alt_names.push(SanType::IpAddress("10.0.0.7".parse().expect("an address")));
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:n1");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.serialize_request(&key).expect("a request").pem().expect("as PEM")
    }

    #[test]
    fn a_signed_certificate_verifies_and_says_what_was_asked() {
        let (authority, ca) = authority();
        let request = Request::parse(node_request().as_bytes()).expect("just made");
        assert_eq!(
            (request.common_name.as_str(), request.organizations.as_slice()),
            ("system:node:n1", &["system:nodes".to_owned()][..])
        );
        let usages = ["digital signature", "key encipherment", "server auth"].map(str::to_owned);
        let pem =
            authority.sign(&request, &usages, Some(Duration::from_secs(3600)), at(1_800_000_000)).expect("signed");
        let der = pem_to_der("test", pem.as_bytes()).expect("PEM");
        let (_, certificate) = X509Certificate::from_der(&der).expect("DER");
        let (_, ca) = X509Certificate::from_der(&ca).expect("DER");
        certificate.verify_signature(Some(ca.public_key())).expect("signed by the CA");
        assert_eq!(certificate.subject().to_string(), "CN=system:node:n1, O=system:nodes");
        let usage = certificate.key_usage().expect("readable").expect("present").value.flags;
        assert_eq!(usage, 0b101, "digital signature and key encipherment");
        let extended = certificate.extended_key_usage().expect("readable").expect("present").value;
        assert!(extended.server_auth && !extended.client_auth);
        let names = &certificate.subject_alternative_name().expect("readable").expect("present").value.general_names;
        assert_eq!(names.len(), 2);
        assert_eq!(expiry(pem.as_bytes()), Some(at(1_800_000_000 + 3600 - BACKDATE)));
    }

    #[test]
    fn several_organizations_survive() {
        // two O of the same name: written by hand, as maps of attributes cannot
        let (authority, _) = authority();
        let mut request = Request::parse(node_request().as_bytes()).expect("just made");
        let attribute = |id: u8, text: &str| {
            let pair = der::sequence(&[der::oid(&[0x55, 4, id]), der::tagged(0x0c, text.as_bytes())]);
            der::tagged(0x31, &pair)
        };
        request.subject = der::sequence(&[attribute(10, "dev"), attribute(10, "ops"), attribute(3, "jane")]);
        let pem = authority.sign(&request, &["client auth".to_owned()], None, at(1_800_000_000)).expect("signed");
        let der = pem_to_der("test", pem.as_bytes()).expect("PEM");
        let (_, certificate) = X509Certificate::from_der(&der).expect("DER");
        let groups: Vec<_> = certificate.subject().iter_organization().filter_map(|o| o.as_str().ok()).collect();
        assert_eq!(groups, ["dev", "ops"]);
    }

    #[test]
    fn bad_requests_are_refused_with_a_reason() {
        assert!(Request::parse(b"not PEM").is_err());
        let mut text = node_request();
        let middle = text.len() - 60;
        let flipped = if text.as_bytes()[middle] == b'A' { "B" } else { "A" };
        text.replace_range(middle..=middle, flipped);
        assert!(Request::parse(text.as_bytes()).is_err(), "a tampered request");
        assert!(usage_bits(&["fly".to_owned()]).is_err());
    }
}
