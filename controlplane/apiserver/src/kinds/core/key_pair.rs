//! Whether a certificate and a private key belong together, in the words of Go's
//! `tls.X509KeyPair`.

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls_pki_types::PrivateKeyDer;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

/// What is wrong with the pair of PEM texts.
pub fn problem(certificate: &[u8], key: &[u8]) -> Option<String> {
    matching(certificate, key).err()
}

fn matching(certificate: &[u8], key: &[u8]) -> Result<(), String> {
    let certificate = first(certificate, |label| label == "CERTIFICATE").map_err(|skipped| match skipped.as_slice() {
        [] => "tls: failed to find any PEM data in certificate input".to_owned(),
        [label] if label.ends_with("PRIVATE KEY") => {
            "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".to_owned()
        }
        labels => format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]",
            labels.join(" ")
        ),
    })?;
    let is_key = |label: &str| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY");
    let key = first(key, is_key).map_err(|skipped| match skipped.as_slice() {
        [] => "tls: failed to find any PEM data in key input".to_owned(),
        [label] if label == "CERTIFICATE" => {
            "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
        }
        labels => format!(
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]",
            labels.join(" ")
        ),
    })?;
    let (_, certificate) =
        X509Certificate::from_der(&certificate).map_err(|_| "x509: malformed certificate".to_owned())?;
    let unreadable = || "tls: failed to parse private key".to_owned();
    let key = PrivateKeyDer::try_from(key).map_err(|_| unreadable())?;
    let public = any_supported_type(&key).ok().and_then(|key| key.public_key().map(|public| public.to_vec()));
    let public = public.ok_or_else(unreadable)?;
    let (_, public) = SubjectPublicKeyInfo::from_der(&public).map_err(|_| unreadable())?;
    let of_certificate = certificate.public_key();
    if of_certificate.algorithm.algorithm != public.algorithm.algorithm {
        return Err("tls: private key type does not match public key type".to_owned());
    }
    if of_certificate.subject_public_key.data != public.subject_public_key.data {
        return Err("tls: private key does not match public key".to_owned());
    }
    Ok(())
}

/// The contents of the first block with a fitting label, or the labels of those without.
fn first(pem: &[u8], fits: impl Fn(&str) -> bool) -> Result<Vec<u8>, Vec<String>> {
    let mut skipped = Vec::new();
    for block in Pem::iter_from_buffer(pem).map_while(Result::ok) {
        if fits(&block.label) {
            return Ok(block.contents);
        }
        skipped.push(block.label);
    }
    Err(skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        let made = |algorithm| {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let certificate = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap();
            (certificate.pem(), key.serialize_pem())
        };
        let (certificate, key) = made(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, other) = made(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (_, edwards) = made(&rcgen::PKCS_ED25519);
        let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        for (certificate, key, expected) in [
            (&certificate, &key, None),
            (&certificate, &other, Some("tls: private key does not match public key")),
            (&certificate, &edwards, Some("tls: private key type does not match public key type")),
            (&"x".to_owned(), &key, Some("tls: failed to find any PEM data in certificate input")),
            (
                &key,
                &certificate,
                Some(
                    "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched",
                ),
            ),
            (
                &[block("A"), block("B C")].concat(),
                &key,
                Some(
                    "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [A B C]",
                ),
            ),
            (&certificate, &String::new(), Some("tls: failed to find any PEM data in key input")),
            (
                &certificate,
                &certificate,
                Some("tls: found a certificate rather than a key in the PEM for the private key"),
            ),
            (
                &certificate,
                &block("A"),
                Some(
                    "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [A]",
                ),
            ),
            (&certificate, &block("RSA PRIVATE KEY"), Some("tls: failed to parse private key")),
            (&block("CERTIFICATE"), &key, Some("x509: malformed certificate")),
        ] {
            assert_eq!(problem(certificate.as_bytes(), key.as_bytes()).as_deref(), expected);
        }
    }
}
