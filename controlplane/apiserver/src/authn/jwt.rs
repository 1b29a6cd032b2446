//! JSON Web Tokens: taking them apart, checking their signature, making them. Pure but for
//! randomness in signatures; what a token claims is judged in [`super::serviceaccount`] and
//! [`super::oidc`].

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};

use super::keys::{PublicKey, SigningKey};
use crate::error::{ApiError, Result};

/// A token whose signature has not been checked.
pub struct Token<'a> {
    pub algorithm: String,
    pub key_id: String,
    pub claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// None for what is no JWT.
    pub fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let read = |part: &str| serde_json::from_slice::<Value>(&BASE64.decode(part).ok()?).ok();
        let (header, claims) = (read(header)?, read(claims)?);
        let text = |key: &str| header[key].as_str().unwrap_or_default().to_owned();
        let (algorithm, key_id) = (text("alg"), text("kid"));
        Some(Self { algorithm, key_id, claims, signed, signature: BASE64.decode(signature).ok()? })
    }

    /// Whether one of these keys signed it. A key of the id that the token names is asked alone.
    pub fn is_signed_by(&self, keys: &[PublicKey]) -> bool {
        let good = |key: &&PublicKey| key.verifies(&self.algorithm, self.signed.as_bytes(), &self.signature);
        let named = || keys.iter().filter(|key| !self.key_id.is_empty() && key.id == self.key_id);
        if named().next().is_some() { named().any(|key| good(&key)) } else { keys.iter().any(|key| good(&key)) }
    }

    pub fn issuer(&self) -> &str {
        self.claims["iss"].as_str().unwrap_or_default()
    }
}

/// The keys of ServiceAccount tokens: the one that signs, and all that are accepted.
pub struct AccountKeys {
    signing: SigningKey,
    pub accepted: Vec<PublicKey>,
}

impl AccountKeys {
    pub fn read(signing: &std::path::Path, accepted: &[std::path::PathBuf]) -> Result<Self> {
        let unusable = |path: &std::path::Path, why: String| {
            ApiError::internal(format!("reading the ServiceAccount key {}: {why}", path.display()))
        };
        let read = |path: &std::path::Path| std::fs::read(path).map_err(|error| unusable(path, error.to_string()));
        let key = SigningKey::from_pem(&read(signing)?).map_err(|why| unusable(signing, why))?;
        let mut keys = vec![key.public.clone()];
        for path in accepted {
            let more = PublicKey::all_from_pem(&read(path)?).map_err(|why| unusable(path, why))?;
            keys.extend(more.into_iter().filter(|one| one.id != key.public.id));
        }
        Ok(Self { signing: key, accepted: keys })
    }

    pub fn sign(&self, claims: &Value) -> Result<String> {
        let public = &self.signing.public;
        let header = json!({"alg": public.algorithm(), "kid": public.id});
        let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature = self
            .signing
            .sign(signed.as_bytes())
            .map_err(|why| ApiError::internal(format!("signing a token: {why}")))?;
        Ok(format!("{signed}.{}", BASE64.encode(signature)))
    }

    /// The claims, if one of these keys signed them.
    pub fn verify(&self, token: &str) -> Option<Value> {
        let token = Token::parse(token)?;
        token.is_signed_by(&self.accepted).then_some(token.claims)
    }

    /// For `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        json!({"keys": self.accepted.iter().map(PublicKey::jwk).collect::<Vec<_>>()})
    }

    /// What the tokens are signed with, for the discovery document.
    pub fn algorithms(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.accepted.iter().map(PublicKey::algorithm).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(kind: &'static rcgen::SignatureAlgorithm, accepted: &[String]) -> AccountKeys {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, pem: &str| {
            std::fs::write(dir.path().join(name), pem).unwrap();
            dir.path().join(name)
        };
        let signing = write("key", &rcgen::KeyPair::generate_for(kind).unwrap().serialize_pem());
        let accepted: Vec<_> = accepted.iter().enumerate().map(|(at, pem)| write(&format!("{at}"), pem)).collect();
        AccountKeys::read(&signing, &accepted).unwrap()
    }

    #[test]
    fn only_accepted_signatures_are_good() {
        for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_RSA_SHA256] {
            let (own, other) = (keys(kind, &[]), keys(kind, &[]));
            let token = own.sign(&json!({"sub": "a"})).unwrap();
            assert_eq!(own.verify(&token).unwrap()["sub"], "a");
            assert!(other.verify(&token).is_none());
            let (signed, signature) = token.rsplit_once('.').unwrap();
            let (header, _) = signed.split_once('.').unwrap();
            let forged = format!("{header}.{}.{signature}", BASE64.encode(r#"{"sub":"b"}"#));
            assert!(own.verify(&forged).is_none());
            for garbage in ["", "a.b", "a.b.c", "....", &format!("{}.e30.", BASE64.encode(r#"{"alg":"none"}"#))] {
                assert!(own.verify(garbage).is_none(), "{garbage}");
            }
        }
    }

    #[test]
    fn tokens_of_an_older_key_are_still_accepted() {
        let old = rcgen::KeyPair::generate().unwrap();
        let fresh = keys(&rcgen::PKCS_RSA_SHA256, &[old.public_key_pem()]);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("old"), old.serialize_pem()).unwrap();
        let before = AccountKeys::read(&dir.path().join("old"), &[]).unwrap();
        assert!(fresh.verify(&before.sign(&json!({})).unwrap()).is_some());
        assert!(before.verify(&fresh.sign(&json!({})).unwrap()).is_none());
        assert_eq!(fresh.algorithms(), ["ES256", "RS256"]);
        assert_eq!(fresh.key_set()["keys"].as_array().unwrap().len(), 2);
    }
}
