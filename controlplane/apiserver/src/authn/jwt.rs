//! ServiceAccount tokens as JSON Web Tokens: signing, checking signatures, and the key as a JWK.
//!
//! ES256 with the key of `Config::service_account_key`. Pure but for randomness in signatures;
//! whether what a token claims still holds is asked in [`super::serviceaccount`].

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::error::{ApiError, Result};

/// What a public P-256 key's DER begins with (`SubjectPublicKeyInfo`).
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

pub struct SigningKey {
    pair: EcdsaKeyPair,
    pub key_id: String,
}

impl SigningKey {
    pub fn read(path: &std::path::Path) -> Result<Self> {
        let unusable = |why: String| {
            ApiError::internal(format!(
                "reading the ServiceAccount key {}: {why}; it must be a P-256 key, PKCS 8 in PEM",
                path.display()
            ))
        };
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|error| unusable(error.to_string()))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
            .map_err(|error| unusable(error.to_string()))?;
        let spki = [&SPKI_P256, pair.public_key().as_ref()].concat();
        let key_id = BASE64.encode(digest::digest(&digest::SHA256, &spki));
        Ok(Self { pair, key_id })
    }

    pub fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|error| ApiError::internal(format!("signing a token: {error}")))?;
        Ok(format!("{signed}.{}", BASE64.encode(signature)))
    }

    /// The claims, if this key signed them.
    pub fn verify(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" {
            return None;
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        key.verify(signed.as_bytes(), &BASE64.decode(signature).ok()?).ok()?;
        serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()
    }

    /// For `/openid/v1/jwks`.
    pub fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..65]),
        })
    }
}

/// The claims of a token, unverified: to find out who could check it.
pub fn unverified_claims(token: &str) -> Option<Value> {
    let claims = token.split('.').nth(1)?;
    serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        SigningKey::read(&path).unwrap()
    }

    #[test]
    fn only_the_own_signature_is_good() {
        let (key, other) = (key(), key());
        let token = key.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(key.verify(&token).unwrap()["sub"], "a");
        assert!(other.verify(&token).is_none());
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = signed.split_once('.').unwrap();
        let forged = format!("{header}.{}.{signature}", BASE64.encode(r#"{"sub":"b"}"#));
        assert!(key.verify(&forged).is_none());
        for garbage in ["", "a.b", "a.b.c", "....", &format!("{}.e30.", BASE64.encode(r#"{"alg":"none"}"#))] {
            assert!(key.verify(garbage).is_none(), "{garbage}");
        }
    }
}
