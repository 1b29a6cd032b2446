//! Keys of the types that a pod may name, each with the request that asks for its certificate.
//!
//! Layer: a leaf of [`super`]; nothing here knows of pods or of the API.

use aws_lc_rs::signature::Ed25519KeyPair;
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
};
use rustls::pki_types::PrivatePkcs8KeyDer;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("key type {0:?} is not known to this node: it makes RSA, ECDSA and Ed25519 keys")]
    Unknown(String),
    #[error("making a key of type {kind} and a request for it: {source}; it will be tried again")]
    Make { kind: String, source: rcgen::Error },
}

/// A private key, and what proves that its owner asks for a certificate.
pub struct Key {
    /// PKCS #8, PEM.
    pub pem: String,
    /// PKCS #10, DER. It says nothing but the public key: who the pod is says the API object around it.
    pub request: Vec<u8>,
}

/// Computes for up to seconds where the key is RSA: not for a task that others wait for.
pub fn generate(kind: &str) -> Result<Key, KeyError> {
    let failed = |source| KeyError::Make { kind: kind.to_owned(), source };
    let pair = match kind {
        "RSA3072" => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
        "RSA4096" => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        "ECDSAP256" => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512),
        "ED25519" => ed25519(),
        _ => return Err(KeyError::Unknown(kind.to_owned())),
    };
    let pair = pair.map_err(failed)?;
    let mut nothing = CertificateParams::default();
    nothing.distinguished_name = DistinguishedName::new();
    let request = nothing.serialize_request(&pair).map_err(failed)?;
    Ok(Key { pem: pair.serialize_pem(), request: request.der().to_vec() })
}

/// In version 1 of PKCS #8, as Go writes it: OpenSSL does not read version 2, which rcgen would make.
fn ed25519() -> Result<KeyPair, rcgen::Error> {
    let pkcs8 = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1());
    let pkcs8 = pkcs8.map_err(|_| rcgen::Error::RingUnspecified)?;
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8.as_ref()), &PKCS_ED25519)
}

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData;
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    use super::*;

    /// Of ecdsa-with-SHA256, -384, -512; sha256WithRSAEncryption; Ed25519.
    #[test]
    fn requests_say_the_key_alone_and_are_signed_as_go_signs() {
        for (kind, algorithm) in [
            ("RSA3072", "1.2.840.113549.1.1.11"),
            ("RSA4096", "1.2.840.113549.1.1.11"),
            ("ECDSAP256", "1.2.840.10045.4.3.2"),
            ("ECDSAP384", "1.2.840.10045.4.3.3"),
            ("ECDSAP521", "1.2.840.10045.4.3.4"),
            ("ED25519", "1.3.101.112"),
        ] {
            let key = generate(kind).unwrap();
            let (rest, request) = X509CertificationRequest::from_der(&key.request).unwrap();
            assert!(rest.is_empty());
            assert_eq!(request.signature_algorithm.algorithm.to_id_string(), algorithm, "{kind}");
            let info = &request.certification_request_info;
            assert_eq!((info.subject.iter().count(), info.attributes().len()), (0, 0), "{kind}");
            let pair = KeyPair::from_pem(&key.pem).unwrap();
            assert_eq!(pair.subject_public_key_info(), info.subject_pki.raw, "{kind}");
            assert!(key.pem.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{kind}");
        }
    }

    #[test]
    fn ed25519_keys_are_version_1() {
        let pair = ed25519().unwrap();
        assert_eq!(pair.serialized_der()[..5], [0x30, 0x2e, 2, 1, 0]);
    }

    #[test]
    fn other_types_are_refused() {
        let error = generate("RSA2048").err().unwrap().to_string();
        assert_eq!(error, "key type \"RSA2048\" is not known to this node: it makes RSA, ECDSA and Ed25519 keys");
    }
}
