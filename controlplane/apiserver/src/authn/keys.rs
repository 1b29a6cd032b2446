//! Keys that sign and check JSON Web Tokens: RSA, P-256, P-384, P-521 and Ed25519.

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{self, EcdsaKeyPair, KeyPair, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

/// What a key is, apart from its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Rsa,
    P256,
    P384,
    P521,
    Ed25519,
}

/// A key that checks signatures.
#[derive(Debug, Clone)]
pub struct PublicKey {
    pub id: String,
    family: Family,
    /// As `aws_lc_rs` reads it: `SubjectPublicKeyInfo`, `RSAPublicKey` or a point.
    bytes: Vec<u8>,
    jwk: Value,
}

fn algorithm(name: &str) -> Option<(Family, &'static dyn VerificationAlgorithm)> {
    Some(match name {
        "RS256" => (Family::Rsa, &signature::RSA_PKCS1_2048_8192_SHA256),
        "RS384" => (Family::Rsa, &signature::RSA_PKCS1_2048_8192_SHA384),
        "RS512" => (Family::Rsa, &signature::RSA_PKCS1_2048_8192_SHA512),
        "PS256" => (Family::Rsa, &signature::RSA_PSS_2048_8192_SHA256),
        "PS384" => (Family::Rsa, &signature::RSA_PSS_2048_8192_SHA384),
        "PS512" => (Family::Rsa, &signature::RSA_PSS_2048_8192_SHA512),
        "ES256" => (Family::P256, &signature::ECDSA_P256_SHA256_FIXED),
        "ES384" => (Family::P384, &signature::ECDSA_P384_SHA384_FIXED),
        "ES512" => (Family::P521, &signature::ECDSA_P521_SHA512_FIXED),
        "EdDSA" => (Family::Ed25519, &signature::ED25519),
        _ => return None,
    })
}

impl PublicKey {
    /// From a `SubjectPublicKeyInfo`; its id is the digest of that, as upstream's.
    fn from_spki(der: &[u8]) -> Option<Self> {
        let (_, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
        let id = BASE64.encode(digest::digest(&digest::SHA256, der));
        let (family, mut jwk) = match info.parsed().ok()? {
            Parsed::RSA(key) => {
                let number =
                    |bytes: &[u8]| BASE64.encode(bytes.iter().copied().skip_while(|b| *b == 0).collect::<Vec<_>>());
                (
                    Family::Rsa,
                    json!({"kty": "RSA", "alg": "RS256", "n": number(key.modulus), "e": number(key.exponent)}),
                )
            }
            Parsed::EC(point) => {
                let (family, curve, name) = match point.key_size() {
                    256 => (Family::P256, "P-256", "ES256"),
                    384 => (Family::P384, "P-384", "ES384"),
                    _ => (Family::P521, "P-521", "ES512"),
                };
                let numbers = point.data().get(1..)?;
                let (x, y) = numbers.split_at(numbers.len() / 2);
                (family, json!({"kty": "EC", "crv": curve, "alg": name, "x": BASE64.encode(x), "y": BASE64.encode(y)}))
            }
            _ => return None,
        };
        jwk["use"] = "sig".into();
        jwk["kid"] = id.as_str().into();
        Some(Self { id, family, bytes: der.to_vec(), jwk })
    }

    /// From a member of a JSON Web Key Set; none for keys that do not sign, or that are not known.
    pub fn from_jwk(jwk: &Value) -> Option<Self> {
        if jwk["use"].as_str().is_some_and(|used| used != "sig") {
            return None;
        }
        let number = |key: &str| BASE64.decode(jwk[key].as_str()?.trim_end_matches('=')).ok();
        let (family, bytes) = match (jwk["kty"].as_str()?, jwk["crv"].as_str().unwrap_or_default()) {
            ("RSA", _) => (Family::Rsa, rsa_public_key(&number("n")?, &number("e")?)),
            ("EC", curve) => {
                let (family, length) = match curve {
                    "P-256" => (Family::P256, 32),
                    "P-384" => (Family::P384, 48),
                    "P-521" => (Family::P521, 66),
                    _ => return None,
                };
                let mut point = vec![4];
                for part in [number("x")?, number("y")?] {
                    point.resize(point.len() + length.max(part.len()) - part.len(), 0);
                    point.extend(part);
                }
                (family, point)
            }
            ("OKP", "Ed25519") => (Family::Ed25519, number("x")?),
            _ => return None,
        };
        Some(Self { id: jwk["kid"].as_str().unwrap_or_default().to_owned(), family, bytes, jwk: jwk.clone() })
    }

    /// Every key of a PEM file, public or private.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, String> {
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|error| error.to_string())?;
            let key = match kind {
                SectionKind::PublicKey => Self::from_spki(&der),
                SectionKind::Certificate => x509_parser::certificate::X509Certificate::from_der(&der)
                    .ok()
                    .and_then(|(_, certificate)| Self::from_spki(certificate.public_key().raw)),
                SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => None,
                _ => continue,
            };
            match key {
                Some(key) => keys.push(key),
                None => keys.push(SigningKey::from_pem(pem)?.public),
            }
        }
        if keys.is_empty() { Err("it holds no key".to_owned()) } else { Ok(keys) }
    }

    pub fn verifies(&self, name: &str, message: &[u8], signed: &[u8]) -> bool {
        let Some((family, algorithm)) = algorithm(name) else { return false };
        family == self.family && UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signed).is_ok()
    }

    /// As a member of a JSON Web Key Set.
    pub fn jwk(&self) -> &Value {
        &self.jwk
    }

    /// The algorithm that a key of this kind signs ServiceAccount tokens with.
    pub fn algorithm(&self) -> &str {
        self.jwk["alg"].as_str().unwrap_or_default()
    }
}

/// PKCS 1 `RSAPublicKey`: a sequence of modulus and exponent.
fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut out = vec![tag];
        if length < 128 {
            out.push(length as u8);
        } else {
            let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | bytes.len() as u8);
            out.extend(bytes);
        }
        out.extend_from_slice(content);
        out
    }
    let integer = |number: &[u8]| {
        let number: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
        let sign: &[u8] = if number.first().is_none_or(|byte| *byte >= 0x80) { &[0] } else { &[] };
        element(2, &[sign, &number[..]].concat())
    };
    element(0x30, &[integer(modulus), integer(exponent)].concat())
}

enum Pair {
    Rsa(rsa::KeyPair),
    Ec(EcdsaKeyPair),
}

/// A key that signs.
pub struct SigningKey {
    pair: Pair,
    pub public: PublicKey,
}

impl SigningKey {
    /// The first private key of a PEM file: PKCS 8, PKCS 1 or SEC 1; RSA, P-256, P-384 or P-521.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
        let pair = Self::rsa(&key).or_else(|| Self::ec(&key));
        let pair = pair.ok_or("it is no RSA, P-256, P-384 or P-521 key in PKCS 8, PKCS 1 or SEC 1")?;
        let spki: Option<Vec<u8>> = match &pair {
            Pair::Rsa(pair) => {
                AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).ok().map(|der| der.as_ref().to_vec())
            }
            Pair::Ec(pair) => {
                AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).ok().map(|der| der.as_ref().to_vec())
            }
        };
        let public = spki.and_then(|der| PublicKey::from_spki(&der)).ok_or("its public half cannot be read")?;
        Ok(Self { pair, public })
    }

    fn rsa(key: &PrivateKeyDer<'_>) -> Option<Pair> {
        let pair = match key {
            PrivateKeyDer::Pkcs1(der) => rsa::KeyPair::from_der(der.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(der) => rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            _ => return None,
        };
        pair.ok().map(Pair::Rsa)
    }

    fn ec(key: &PrivateKeyDer<'_>) -> Option<Pair> {
        let kinds = [
            &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
        ];
        let pair = |kind| match key {
            PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(kind, der.secret_pkcs8_der()).ok(),
            PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(kind, der.secret_sec1_der()).ok(),
            _ => None,
        };
        kinds.into_iter().find_map(pair).map(Pair::Ec)
    }

    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair) => {
                pair.sign(&random, message).map(|signed| signed.as_ref().to_vec()).map_err(|error| error.to_string())
            }
            Pair::Rsa(pair) => {
                let mut signed = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut signed)
                    .map(|()| signed)
                    .map_err(|error| error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(kind: &'static rcgen::SignatureAlgorithm) -> SigningKey {
        SigningKey::from_pem(rcgen::KeyPair::generate_for(kind).unwrap().serialize_pem().as_bytes()).unwrap()
    }

    #[test]
    fn every_kind_of_key_signs_and_is_read_back_from_its_jwk() {
        for (kind, name) in [
            (&rcgen::PKCS_RSA_SHA256, "RS256"),
            (&rcgen::PKCS_ECDSA_P256_SHA256, "ES256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "ES384"),
        ] {
            let key = generated(kind);
            assert_eq!(key.public.algorithm(), name);
            let signed = key.sign(b"message").unwrap();
            let again = PublicKey::from_jwk(key.public.jwk()).unwrap();
            for public in [&key.public, &again] {
                assert!(public.verifies(name, b"message", &signed), "{name}");
                assert!(!public.verifies(name, b"other", &signed) && !public.verifies("none", b"message", &signed));
            }
            assert!(!key.public.verifies(if name == "RS256" { "ES256" } else { "RS256" }, b"message", &signed));
        }
    }

    #[test]
    fn public_keys_are_read_from_pem() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let key = SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap();
        let both = format!("{}{}", pair.public_key_pem(), pair.serialize_pem());
        let keys = PublicKey::all_from_pem(both.as_bytes()).unwrap();
        assert_eq!(keys.iter().map(|read| &read.id).collect::<Vec<_>>(), [&key.public.id, &key.public.id]);
        assert!(PublicKey::all_from_pem(b"nothing").is_err() && SigningKey::from_pem(b"nothing").is_err());
    }
}
