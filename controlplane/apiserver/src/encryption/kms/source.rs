//! What the keys of values are made from: a key, or a seed that gives each value one of its own.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use proto::v2::EncryptedDekSourceType;

/// Bytes of a seed, of a key, and of what tells one derived key from another.
pub const SIZE: usize = 32;
const TOO_SHORT: &str = "the stored data was shorter than the required size";

pub enum Source {
    Key(Box<LessSafeKey>),
    Seed(Box<Prk>),
}

/// The key that HKDF is asked for.
struct Derived;

impl KeyType for Derived {
    fn len(&self) -> usize {
        SIZE
    }
}

impl Source {
    pub fn new(kind: EncryptedDekSourceType, plain: &[u8]) -> Result<Self, String> {
        match kind {
            EncryptedDekSourceType::AesGcmKey => Ok(Self::Key(Box::new(key(plain)?))),
            EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed if plain.len() < SIZE => {
                Err(format!("invalid seed length {} used for key generation", plain.len()))
            }
            EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed => {
                Ok(Self::Seed(Box::new(Prk::new_less_safe(HKDF_SHA256, plain))))
            }
        }
    }

    /// For a seed: what derives the key, nonce, ciphertext and tag.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(SIZE + NONCE_LEN + plain.len() + 16);
        let derived = match self {
            Self::Key(_) => return Err("a key is only good for what was written with it".to_owned()),
            Self::Seed(seed) => {
                let info: [u8; SIZE] = random()?;
                out.extend_from_slice(&info);
                derive(seed, &info)?
            }
        };
        let nonce: [u8; NONCE_LEN] = random()?;
        out.extend_from_slice(&nonce);
        let from = out.len();
        out.extend_from_slice(plain);
        let (nonce, context) = (Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()));
        let tag = derived.seal_in_place_separate_tag(nonce, context, &mut out[from..]);
        out.extend_from_slice(tag.map_err(|_| "AES-GCM failed")?.as_ref());
        Ok(out)
    }

    pub fn open(&self, context: &str, stored: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Key(key) => open_with(key, context, stored),
            Self::Seed(seed) => {
                let (info, rest) = stored.split_at_checked(SIZE).ok_or(TOO_SHORT)?;
                open_with(&derive(seed, info)?, context, rest)
            }
        }
    }
}

fn open_with(key: &LessSafeKey, context: &str, stored: &[u8]) -> Result<Vec<u8>, String> {
    let (nonce, body) = stored.split_at_checked(NONCE_LEN).ok_or(TOO_SHORT)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| "the nonce is damaged")?;
    let mut body = body.to_vec();
    let plain = key.open_in_place(nonce, Aad::from(context.as_bytes()), &mut body);
    let length = plain.map_err(|_| "cipher: message authentication failed")?.len();
    body.truncate(length);
    Ok(body)
}

fn key(bytes: &[u8]) -> Result<LessSafeKey, String> {
    let key = UnboundKey::new(&AES_256_GCM, bytes);
    key.map(LessSafeKey::new).map_err(|_| format!("crypto/aes: invalid key size {}", bytes.len()))
}

fn derive(seed: &Prk, info: &[u8]) -> Result<LessSafeKey, String> {
    const FAILED: &str = "failed to KDF expand seed with info";
    let mut bytes = [0; SIZE];
    let info = [info];
    let expanded = seed.expand(&info, Derived).map_err(|_| FAILED)?;
    expanded.fill(&mut bytes).map_err(|_| FAILED)?;
    key(&bytes)
}

/// From the system's source of random numbers.
pub fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random numbers")?;
    Ok(bytes)
}

impl std::fmt::Debug for Source {
    /// Shows no key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key",
            Self::Seed(_) => "Seed",
        })
    }
}
