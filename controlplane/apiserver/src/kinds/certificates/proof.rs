//! Whether a request was signed with the key that it is for (PKCS #10).
//!
//! x509-parser knows the algorithms but for ECDSA on P-521, which Kubernetes takes.

use aws_lc_rs::signature::{
    ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, EcdsaVerificationAlgorithm,
    UnparsedPublicKey,
};
use x509_parser::prelude::X509CertificationRequest;

/// `secp521r1` (RFC 5480).
const P521: &str = "1.3.132.0.35";

pub fn is_signed(request: &X509CertificationRequest<'_>) -> bool {
    request.verify_signature().is_ok() || p521(request).is_some()
}

fn p521(request: &X509CertificationRequest<'_>) -> Option<()> {
    let info = &request.certification_request_info;
    let curve = info.subject_pki.algorithm.parameters.as_ref()?.as_oid().ok()?;
    if curve.to_id_string() != P521 {
        return None;
    }
    let algorithm = algorithm(&request.signature_algorithm.algorithm.to_id_string())?;
    let key = UnparsedPublicKey::new(algorithm, &info.subject_pki.subject_public_key.data);
    key.verify(info.raw, &request.signature_value.data).ok()
}

/// By the identifiers `ecdsa-with-SHA256` and so on (RFC 5758).
fn algorithm(id: &str) -> Option<&'static EcdsaVerificationAlgorithm> {
    match id {
        "1.2.840.10045.4.3.2" => Some(&ECDSA_P521_SHA256_ASN1),
        "1.2.840.10045.4.3.3" => Some(&ECDSA_P521_SHA384_ASN1),
        "1.2.840.10045.4.3.4" => Some(&ECDSA_P521_SHA512_ASN1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512,
        PKCS_ED25519, PKCS_RSA_SHA256,
    };
    use x509_parser::prelude::FromDer;

    use super::*;

    #[test]
    fn requests_of_every_kind_of_key_prove_it() {
        for (name, kind) in [
            ("P-256", &PKCS_ECDSA_P256_SHA256),
            ("P-384", &PKCS_ECDSA_P384_SHA384),
            ("P-521", &PKCS_ECDSA_P521_SHA512),
            ("Ed25519", &PKCS_ED25519),
            ("RSA", &PKCS_RSA_SHA256),
        ] {
            let key = KeyPair::generate_for(kind).expect("a key");
            let request = CertificateParams::default().serialize_request(&key).expect("a request");
            let mut der = request.der().to_vec();
            let signed = |der: &[u8]| X509CertificationRequest::from_der(der).is_ok_and(|(_, read)| is_signed(&read));
            assert!(signed(&der), "{name}");
            if let Some(last) = der.last_mut() {
                *last ^= 1;
            }
            assert!(!signed(&der), "{name}");
        }
    }
}
