//! Join tokens: a Kubernetes bootstrap token and the digest of the CA that a node must trust.
//!
//! ```text
//! abcdef.0123456789abcdef                          bootstrap token: id and secret
//! abcdef.0123456789abcdef::sha256:9f86d081884c…    join token: with the digest of the CA's DER
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rand::Rng;
use sha2::{Digest, Sha256};

/// Nodes that join are in this group until they have a certificate of their own.
pub const NODE_BOOTSTRAP_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error(
        "{0:?} is no bootstrap token: it has the form abcdef.0123456789abcdef, lower case letters and digits; make one with: skiff token create"
    )]
    Form(String),
    #[error("the CA certificate is not PEM: {0}")]
    Certificate(String),
}

/// `<id>.<secret>`, both of lower case letters and digits (6 and 16 of them).
#[derive(Clone, PartialEq, Eq)]
pub struct BootstrapToken {
    pub id: String,
    pub secret: String,
}

impl BootstrapToken {
    pub fn generate() -> Self {
        let mut random = rand::rng();
        let mut text = |length: usize| -> String {
            (0..length)
                .map(|_| char::from(b"0123456789abcdefghijklmnopqrstuvwxyz"[random.random_range(0..36)]))
                .collect()
        };
        Self { id: text(6), secret: text(16) }
    }

    /// The one in a join token.
    pub fn of_join_token(text: &str) -> Option<Self> {
        text.trim().split("::").next()?.parse().ok()
    }

    /// The name of its Secret.
    pub fn secret_name(&self) -> String {
        format!("bootstrap-token-{}", self.id)
    }

    /// Whether this Secret of its name makes it valid.
    pub fn is_in(&self, secret: &Secret) -> bool {
        let held = secret.data.as_ref().and_then(|data| data.get("token-secret"));
        held.is_some_and(|held| held.0 == self.secret.as_bytes())
    }
}

/// The id only: the rest is a secret.
impl fmt::Debug for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootstrapToken({})", self.id)
    }
}

impl fmt::Display for BootstrapToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl FromStr for BootstrapToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let part = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        match text.split_once('.') {
            Some((id, secret)) if part(id, 6) && part(secret, 16) => {
                Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
            }
            _ => Err(TokenError::Form(text.to_owned())),
        }
    }
}

/// The join token for a cluster with this CA.
pub fn with_ca(token: &str, ca_pem: &str) -> Result<String, TokenError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(ca_pem.as_bytes())
        .map_err(|error| TokenError::Certificate(error.to_string()))?;
    let digest = Sha256::digest(&pem.contents);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{token}::sha256:{hex}"))
}

/// The Secret in `kube-system` that makes a token valid, with kubeadm's fields.
pub fn secret(token: &BootstrapToken, description: &str, expires: Option<Timestamp>) -> Secret {
    let mut data = BTreeMap::from([
        ("token-id", token.id.clone()),
        ("token-secret", token.secret.clone()),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("usage-bootstrap-signing", "true".to_owned()),
        ("auth-extra-groups", NODE_BOOTSTRAP_GROUP.to_owned()),
    ]);
    if !description.is_empty() {
        data.insert("description", description.to_owned());
    }
    if let Some(expires) = expires {
        data.insert("expiration", expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }
    Secret {
        metadata: ObjectMeta {
            name: Some(token.secret_name()),
            namespace: Some("kube-system".to_owned()),
            ..Default::default()
        },
        type_: Some("bootstrap.kubernetes.io/token".to_owned()),
        data: Some(data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_tokens_read_back_and_others_are_refused() {
        let token = BootstrapToken::generate();
        assert!(token.to_string().parse::<BootstrapToken>().is_ok_and(|read| read == token));
        for bad in ["", "abc", "ABCDEF.0123456789abcdef", "abcdef.0123", "abcdef0123456789abcdef"] {
            assert!(bad.parse::<BootstrapToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_restart_knows_the_token_of_the_last_start() {
        let token = BootstrapToken::generate();
        assert_eq!(BootstrapToken::of_join_token(&format!("{token}::sha256:abc\n")), Some(token.clone()));
        assert_eq!(BootstrapToken::of_join_token(""), None);
        assert!(token.is_in(&secret(&token, "", None)));
        let other = BootstrapToken { secret: "0123456789abcdef".to_owned(), ..token.clone() };
        assert!(!token.is_in(&secret(&other, "", None)) && !token.is_in(&Secret::default()));
    }
}
