//! Encryption with a key management service (KMS v2): a plugin behind a unix socket holds the key,
//! and never lets it go. What encrypts values here is a [`source`]: a seed that this server made and
//! the plugin sealed; every value is stored with its sealed source beside it.
//!
//! Stored form: `k8s:enc:kms:v2:<provider>:` and an `EncryptedObject`, as upstream's.

mod plugin;
mod source;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use proto::v2::{EncryptedDekSourceType, EncryptedObject};

use self::plugin::Plugin;
use self::source::Source;

const KEY_ID_LIMIT: usize = 1024;
const SOURCE_LIMIT: usize = 1024;
const ANNOTATIONS_LIMIT: usize = 32 * 1024;
/// Opened sources that are remembered: there is one for each key and start of a server.
const OPENED: usize = 1024;

/// A `kms` entry of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub name: String,
    pub socket: PathBuf,
    /// Of one call.
    pub timeout: Duration,
}

/// One provider. It works from [`start`](Self::start) on until it is dropped.
#[derive(Debug)]
pub struct Kms {
    prefix: Box<str>,
    plugin: Plugin,
    opened: Mutex<HashMap<[u8; 32], Arc<Source>>>,
}

impl Kms {
    pub fn new(settings: Settings) -> Self {
        let prefix = format!("k8s:enc:kms:v2:{}:", settings.name).into();
        Self { prefix, plugin: Plugin::new(settings), opened: Mutex::default() }
    }

    /// Begins to talk with the plugin; waits for its first answer, but not for ever.
    pub fn start(&self) -> std::io::Result<()> {
        self.plugin.start()
    }

    /// Whether the plugin is well; a plugin that has not been asked for a while is asked.
    pub async fn health(&self) -> Result<(), String> {
        self.plugin.health().await
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether a write would use the key that `stored` was written with.
    pub fn is_current(&self, stored: &[u8]) -> bool {
        let Some(Ok(object)) = stored.strip_prefix(self.prefix.as_bytes()).map(EncryptedObject::decode) else {
            return false;
        };
        let seed = EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed;
        self.plugin
            .state()
            .is_ok_and(|state| state.key_id == object.key_id && object.encrypted_dek_source_type() == seed)
    }

    /// `context` is the storage key, which the value is bound to.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Bytes, String> {
        let state = self.plugin.state()?;
        state.check()?;
        let object = EncryptedObject {
            encrypted_data: state.source.seal(context, plain)?,
            key_id: state.key_id.clone(),
            encrypted_dek_source: state.sealed.clone(),
            annotations: state.annotations.clone(),
            encrypted_dek_source_type: EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed.into(),
        };
        self.remember(identity(&object), state.source.clone());
        let mut out = Vec::with_capacity(self.prefix.len() + object.encoded_len());
        out.extend_from_slice(self.prefix.as_bytes());
        object.encode(&mut out).map_err(|error| error.to_string())?;
        Ok(out.into())
    }

    pub fn open(&self, context: &str, stored: &[u8]) -> Result<Bytes, String> {
        let body = stored.strip_prefix(self.prefix.as_bytes()).ok_or("it is another provider's")?;
        let object = EncryptedObject::decode(body).map_err(|error| error.to_string())?;
        validate(&object)?;
        let id = identity(&object);
        let known = self.opened.lock().get(&id).cloned();
        let source = match known {
            Some(source) => source,
            None => {
                let plain =
                    self.plugin.decrypt(&object).map_err(|why| format!("failed to decrypt DEK, error: {why}"))?;
                let source = Arc::new(Source::new(object.encrypted_dek_source_type(), &plain)?);
                self.remember(id, source.clone());
                source
            }
        };
        source.open(context, &object.encrypted_data).map(Bytes::from)
    }

    fn remember(&self, id: [u8; 32], source: Arc<Source>) {
        let mut opened = self.opened.lock();
        if opened.len() >= OPENED && !opened.contains_key(&id) {
            opened.clear();
        }
        opened.insert(id, source);
    }
}

/// What tells one sealed source from another.
fn identity(object: &EncryptedObject) -> [u8; 32] {
    use sha2::Digest;
    let mut digest = sha2::Sha256::new();
    let mut put = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    put(&object.encrypted_dek_source_type.to_be_bytes());
    put(&object.encrypted_dek_source);
    put(object.key_id.as_bytes());
    let mut annotations: Vec<_> = object.annotations.iter().collect();
    annotations.sort();
    for (key, value) in annotations {
        put(key.as_bytes());
        put(value);
    }
    digest.finalize().into()
}

/// What a plugin may give, and what may be stored of it.
fn validate(object: &EncryptedObject) -> Result<(), String> {
    if EncryptedDekSourceType::try_from(object.encrypted_dek_source_type).is_err() {
        return Err(format!("unknown encryptedDEKSourceType: {}", object.encrypted_dek_source_type));
    }
    if object.encrypted_data.is_empty() {
        return Err("encrypted data is empty".to_owned());
    }
    let source = object.encrypted_dek_source.len();
    if source == 0 {
        return Err("failed to validate encrypted DEK source: encrypted DEK source is empty".to_owned());
    }
    if source > SOURCE_LIMIT {
        return Err(format!(
            "failed to validate encrypted DEK source: encrypted DEK source is {source} bytes, which exceeds the max size of {SOURCE_LIMIT}"
        ));
    }
    check_key_id(&object.key_id).map_err(|why| format!("failed to validate key id: {why}"))?;
    let size: usize = object.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > ANNOTATIONS_LIMIT {
        return Err(format!(
            "failed to validate annotations: total size of annotations is {size}, which exceeds the max size of {ANNOTATIONS_LIMIT}"
        ));
    }
    Ok(())
}

fn check_key_id(id: &str) -> Result<(), String> {
    match id.len() {
        0 => Err("keyID is empty".to_owned()),
        length if length > KEY_ID_LIMIT => {
            Err(format!("keyID is {length} bytes, which exceeds the max size of {KEY_ID_LIMIT}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
