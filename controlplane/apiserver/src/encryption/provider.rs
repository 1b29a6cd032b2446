//! One key and what it does to a value, in the stored forms of Kubernetes:
//! `k8s:enc:aesgcm:v1:<key>:` + nonce + ciphertext and tag, `k8s:enc:aescbc:v1:<key>:` + IV + padded
//! ciphertext, and `k8s:enc:secretbox:v1:<key>:` + nonce + tag and ciphertext (XSalsa20-Poly1305, as
//! NaCl has it).

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use bytes::Bytes;
use crypto_secretbox::aead::{AeadInPlace, KeyInit};
use crypto_secretbox::{Tag, XSalsa20Poly1305};

use super::kms::Kms;

/// What every encrypted value begins with.
pub const ENCRYPTED: &[u8] = b"k8s:enc:";
const IV: usize = 16;
const BOX_NONCE: usize = 24;
const BOX_TAG: usize = 16;
const TOO_SHORT: &str = "the stored data was shorter than the required size";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Gcm,
    Cbc,
    Secretbox,
}

/// Debug output shows no key.
pub struct SecretKey(XSalsa20Poly1305);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey")
    }
}

#[derive(Debug)]
pub enum Provider {
    /// Plain text.
    Identity,
    Gcm {
        prefix: Box<str>,
        key: Box<LessSafeKey>,
    },
    Cbc {
        prefix: Box<str>,
        seal: Box<PaddedBlockEncryptingKey>,
        open: Box<PaddedBlockDecryptingKey>,
    },
    Secretbox {
        prefix: Box<str>,
        key: Box<SecretKey>,
    },
    Kms(Box<Kms>),
}

impl Provider {
    /// None if `secret` has not the length of a key.
    pub fn new(scheme: Scheme, name: &str, secret: &[u8]) -> Option<Self> {
        match scheme {
            Scheme::Gcm => {
                let algorithm = match secret.len() {
                    16 => &AES_128_GCM,
                    24 => &AES_192_GCM,
                    32 => &AES_256_GCM,
                    _ => return None,
                };
                let key = Box::new(LessSafeKey::new(UnboundKey::new(algorithm, secret).ok()?));
                Some(Self::Gcm { prefix: format!("k8s:enc:aesgcm:v1:{name}:").into(), key })
            }
            Scheme::Cbc => {
                let algorithm = match secret.len() {
                    16 => &AES_128,
                    24 => &AES_192,
                    32 => &AES_256,
                    _ => return None,
                };
                let key = || UnboundCipherKey::new(algorithm, secret).ok();
                Some(Self::Cbc {
                    prefix: format!("k8s:enc:aescbc:v1:{name}:").into(),
                    seal: Box::new(PaddedBlockEncryptingKey::cbc_pkcs7(key()?).ok()?),
                    open: Box::new(PaddedBlockDecryptingKey::cbc_pkcs7(key()?).ok()?),
                })
            }
            Scheme::Secretbox => {
                let key = SecretKey(XSalsa20Poly1305::new_from_slice(secret).ok()?);
                Some(Self::Secretbox { prefix: format!("k8s:enc:secretbox:v1:{name}:").into(), key: Box::new(key) })
            }
        }
    }

    /// Whether `stored` is this provider's: by its prefix alone.
    pub fn owns(&self, stored: &[u8]) -> bool {
        match self {
            Self::Identity => !stored.starts_with(ENCRYPTED),
            Self::Gcm { prefix, .. } | Self::Cbc { prefix, .. } | Self::Secretbox { prefix, .. } => {
                stored.starts_with(prefix.as_bytes())
            }
            Self::Kms(kms) => stored.starts_with(kms.prefix().as_bytes()),
        }
    }

    /// Whether a write would give the value of `context` the form that `stored` has.
    pub fn is_current(&self, context: &str, stored: &Bytes) -> bool {
        match self {
            Self::Kms(kms) => kms.is_current(stored),
            // A key that it was rotated from may have the same name.
            _ => self.owns(stored) && self.open(context, stored).is_ok(),
        }
    }

    /// The stored form of `plain`. `context` is the storage key: a value moved to another key is
    /// not accepted there (AES-GCM only; CBC authenticates nothing, a secretbox no context).
    pub fn seal(&self, context: &str, plain: &Bytes) -> Result<Bytes, String> {
        match self {
            Self::Identity => Ok(plain.clone()),
            Self::Kms(kms) => kms.seal(context, plain),
            Self::Gcm { prefix, key } => {
                let mut nonce = [0; 12];
                aws_lc_rs::rand::fill(&mut nonce).map_err(|_| "no random numbers for a nonce")?;
                let mut out = Vec::with_capacity(prefix.len() + nonce.len() + plain.len() + 16);
                out.extend_from_slice(prefix.as_bytes());
                out.extend_from_slice(&nonce);
                let from = out.len();
                out.extend_from_slice(plain);
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(context.as_bytes()), &mut out[from..]);
                out.extend_from_slice(tag.map_err(|_| "AES-GCM failed")?.as_ref());
                Ok(out.into())
            }
            Self::Cbc { prefix, seal, .. } => {
                let mut body = plain.to_vec();
                let context = seal.encrypt(&mut body).map_err(|_| "AES-CBC failed")?;
                let iv: &[u8] = (&context).try_into().map_err(|_| "AES-CBC gave no IV")?;
                Ok([prefix.as_bytes(), iv, &body].concat().into())
            }
            Self::Secretbox { prefix, key } => {
                let mut nonce = [0; BOX_NONCE];
                aws_lc_rs::rand::fill(&mut nonce).map_err(|_| "no random numbers for a nonce")?;
                Ok([prefix.as_bytes(), &boxed(key, nonce, plain)?].concat().into())
            }
        }
    }

    /// The plain text of a value that this provider [`owns`](Self::owns).
    pub fn open(&self, context: &str, stored: &Bytes) -> Result<Bytes, String> {
        match self {
            Self::Identity => Ok(stored.clone()),
            Self::Kms(kms) => kms.open(context, stored),
            Self::Gcm { prefix, key } => {
                let rest = &stored[prefix.len()..];
                let (nonce, body) =
                    rest.split_at_checked(12).ok_or("the stored data was shorter than the required size")?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| "the nonce is damaged")?;
                let mut body = body.to_vec();
                let plain = key.open_in_place(nonce, Aad::from(context.as_bytes()), &mut body);
                let length = plain
                    .map_err(
                        |_| "message authentication failed: another key of that name encrypted it, or it is damaged",
                    )?
                    .len();
                body.truncate(length);
                Ok(body.into())
            }
            Self::Cbc { prefix, open, .. } => {
                let rest = &stored[prefix.len()..];
                let (iv, body) =
                    rest.split_at_checked(IV).ok_or("the stored data was shorter than the required size")?;
                let iv: [u8; IV] = iv.try_into().map_err(|_| "the IV is damaged")?;
                let mut body = body.to_vec();
                let plain = open.decrypt(&mut body, DecryptionContext::Iv128(FixedLength::from(iv)));
                let length = plain
                    .map_err(|_| "it cannot be decrypted: another key of that name encrypted it, or it is damaged")?
                    .len();
                body.truncate(length);
                Ok(body.into())
            }
            Self::Secretbox { prefix, key } => {
                let (nonce, rest) = stored[prefix.len()..].split_at_checked(BOX_NONCE).ok_or(TOO_SHORT)?;
                let (tag, body) = rest.split_at_checked(BOX_TAG).ok_or(TOO_SHORT)?;
                let mut body = body.to_vec();
                let opened = key.0.decrypt_in_place_detached(nonce.into(), b"", &mut body, Tag::from_slice(tag));
                opened
                    .map_err(|_| "failed to decrypt data: another key of that name encrypted it, or it is damaged")?;
                Ok(body.into())
            }
        }
    }
}

/// Nonce, tag, ciphertext.
fn boxed(key: &SecretKey, nonce: [u8; BOX_NONCE], plain: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut body = plain.to_vec();
    let tag = key.0.encrypt_in_place_detached(&nonce.into(), b"", &mut body).map_err(|_| "XSalsa20-Poly1305 failed")?;
    Ok([&nonce[..], tag.as_slice(), &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NaCl's own vector (`tests/secretbox.c`).
    #[test]
    fn a_secretbox_is_nacls() {
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
        };
        let secret = bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce: [u8; BOX_NONCE] = bytes("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37").try_into().unwrap();
        let plain = bytes(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        );
        let sealed = boxed(&SecretKey(XSalsa20Poly1305::new_from_slice(&secret).unwrap()), nonce, &plain).unwrap();
        assert_eq!(sealed[..BOX_NONCE], nonce);
        assert_eq!(
            sealed[BOX_NONCE..BOX_NONCE + 32],
            bytes("f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce")
        );
    }

    #[test]
    fn a_secretbox_opens_with_its_key_only() {
        let plain = Bytes::from_static(b"{\"kind\":\"Secret\"}");
        let provider = Provider::new(Scheme::Secretbox, "one", &[7; 32]).unwrap();
        let sealed = provider.seal("/registry/secrets/a/b", &plain).unwrap();
        assert!(provider.owns(&sealed) && sealed.starts_with(b"k8s:enc:secretbox:v1:one:"));
        assert_eq!(provider.open("/registry/secrets/a/b", &sealed).unwrap(), plain);
        let other = Provider::new(Scheme::Secretbox, "one", &[8; 32]).unwrap();
        assert!(other.open("/registry/secrets/a/b", &sealed).is_err());
        for end in "k8s:enc:secretbox:v1:one:".len()..sealed.len() {
            assert!(provider.open("/registry/secrets/a/b", &sealed.slice(..end)).is_err());
        }
        assert!(Provider::new(Scheme::Secretbox, "one", &[7; 16]).is_none());
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_key_and_context_only() {
        let plain = Bytes::from_static(b"{\"kind\":\"Secret\"}");
        for scheme in [Scheme::Gcm, Scheme::Cbc] {
            for length in [16, 24, 32] {
                let provider = Provider::new(scheme, "one", &vec![7; length]).unwrap();
                let sealed = provider.seal("/registry/secrets/a/b", &plain).unwrap();
                assert!(provider.owns(&sealed) && sealed.starts_with(ENCRYPTED));
                assert!(!sealed.windows(6).any(|part| part == b"Secret"));
                assert_ne!(provider.seal("/registry/secrets/a/b", &plain).unwrap(), sealed, "a nonce is used once");
                assert_eq!(provider.open("/registry/secrets/a/b", &sealed).unwrap(), plain);
                let other = Provider::new(scheme, "one", &vec![8; length]).unwrap();
                assert_ne!(other.open("/registry/secrets/a/b", &sealed).ok(), Some(plain.clone()));
                for end in 0..sealed.len() {
                    if end >= "k8s:enc:aesgcm:v1:one:".len() {
                        assert!(provider.open("/registry/secrets/a/b", &sealed.slice(..end)).is_err());
                    }
                }
            }
        }
        let gcm = Provider::new(Scheme::Gcm, "one", &[7; 32]).unwrap();
        let sealed = gcm.seal("/registry/secrets/a/b", &plain).unwrap();
        assert!(gcm.open("/registry/secrets/a/c", &sealed).is_err(), "moved to another key");
        assert!(Provider::new(Scheme::Gcm, "one", &[7; 15]).is_none());
    }
}
