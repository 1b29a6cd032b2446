//! One key and what it does to a value, in the stored forms of Kubernetes:
//! `k8s:enc:aesgcm:v1:<key>:` + nonce + ciphertext and tag, and `k8s:enc:aescbc:v1:<key>:` + IV +
//! padded ciphertext.

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use bytes::Bytes;

/// What every encrypted value begins with.
pub const ENCRYPTED: &[u8] = b"k8s:enc:";
const IV: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Gcm,
    Cbc,
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
}

impl Provider {
    /// None if `secret` has not the length of an AES key.
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
        }
    }

    /// Whether `stored` is this provider's: by its prefix alone.
    pub fn owns(&self, stored: &[u8]) -> bool {
        match self {
            Self::Identity => !stored.starts_with(ENCRYPTED),
            Self::Gcm { prefix, .. } | Self::Cbc { prefix, .. } => stored.starts_with(prefix.as_bytes()),
        }
    }

    /// The stored form of `plain`. `context` is the storage key: a value moved to another key is
    /// not accepted there (AES-GCM only; CBC authenticates nothing).
    pub fn seal(&self, context: &str, plain: &Bytes) -> Result<Bytes, &'static str> {
        match self {
            Self::Identity => Ok(plain.clone()),
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
        }
    }

    /// The plain text of a value that this provider [`owns`](Self::owns).
    pub fn open(&self, context: &str, stored: &Bytes) -> Result<Bytes, &'static str> {
        match self {
            Self::Identity => Ok(stored.clone()),
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
