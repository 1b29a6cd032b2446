//! The join token: `<id>.<secret>::sha256:<hex digest of the CA certificate's DER>`.

use std::fmt;
use std::str::FromStr;

/// A Kubernetes bootstrap token and the digest of the CA that the server must show.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Six characters, public.
    pub id: String,
    secret: String,
    /// Lower-case hex, 64 characters.
    pub ca_digest: String,
}

/// What is wrong with a token's text; never the text itself, which is a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the join token is malformed: {0}; print one with `skiff token create` on the server (form: <6 characters>.<16 characters>::sha256:<64 hex digits>)"
)]
pub struct BadToken(&'static str);

impl JoinToken {
    pub fn new(id: impl Into<String>, secret: impl Into<String>, ca_der: &[u8]) -> Self {
        Self { id: id.into(), secret: secret.into(), ca_digest: ca_digest(ca_der) }
    }

    /// What goes into `Authorization: Bearer`.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    pub fn matches(&self, ca_der: &[u8]) -> bool {
        ca_digest(ca_der) == self.ca_digest
    }
}

/// Hex SHA-256 of a certificate's DER bytes.
pub fn ca_digest(der: &[u8]) -> String {
    crate::images::digest(der).trim_start_matches("sha256:").to_owned()
}

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let (bootstrap, digest) = text.trim().split_once("::").ok_or(BadToken("it has no `::sha256:` part"))?;
        let digest = digest.strip_prefix("sha256:").ok_or(BadToken("only sha256 digests are known"))?;
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadToken("the CA digest is not 64 hex digits"));
        }
        let (id, secret) = bootstrap.split_once('.').ok_or(BadToken("there is no `.` between id and secret"))?;
        let allowed = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if id.len() != 6 || !allowed(id) {
            return Err(BadToken("the id is not 6 lower-case letters or digits"));
        }
        if secret.len() != 16 || !allowed(secret) {
            return Err(BadToken("the secret is not 16 lower-case letters or digits"));
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), ca_digest: digest.to_ascii_lowercase() })
    }
}

/// The whole token, secret included: what is handed to `--token`.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}::sha256:{}", self.id, self.secret, self.ca_digest)
    }
}

/// Without the secret: this is what logs show.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_as_written() {
        let token = JoinToken::new("abcdef", "0123456789abcdef", b"a certificate");
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        assert!(token.matches(b"a certificate"));
        assert!(!token.matches(b"another"));
        assert!(!format!("{token:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn malformed_tokens_are_named_without_repeating_them() {
        let digest = "a".repeat(64);
        let bad = [
            "abcdef.0123456789abcdef".to_owned(),
            format!("abcdef.0123456789abcdef::md5:{digest}"),
            "abcdef.0123456789abcdef::sha256:xyz".to_owned(),
            format!("abcdef0123456789abcdef::sha256:{digest}"),
            format!("abc.0123456789abcdef::sha256:{digest}"),
            format!("abcdef.0123456789ABCDEF::sha256:{digest}"),
        ];
        for text in bad {
            let message = text.parse::<JoinToken>().unwrap_err().to_string();
            assert!(!message.contains("0123456789"), "{message}");
        }
    }
}
