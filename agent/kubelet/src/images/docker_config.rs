//! Logins of registries as Docker writes them down: in pull secrets (`kubernetes.io/dockerconfigjson`
//! and `kubernetes.io/dockercfg`) and in the kubelet's own directory. Pure, but for reading that.
//!
//! Neighbours: [`super::keyring`] finds the login for an image; [`super::records`] notes a login's hash.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use base64::{DecodeError, Engine};
use k8s_openapi::api::core::v1::Secret;
use proto::runtime::v1::AuthConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Logins by the registry, or the part of one, that they are for.
pub type Logins = BTreeMap<String, Login>;

/// What a registry is told of who pulls. The fields' order and names are the hash's
/// (`pkg/credentialprovider: AuthConfig`).
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
pub struct Login {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub email: String,
    #[serde(rename = "identitytoken", skip_serializing_if = "String::is_empty")]
    pub identity_token: String,
    #[serde(rename = "registrytoken", skip_serializing_if = "String::is_empty")]
    pub registry_token: String,
}

/// Without what must stay secret.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Login {
    /// SHA-256 of the login's JSON as Go writes it: what a record knows a login by.
    pub fn hash(&self) -> String {
        // Text serializes.
        let json = serde_json::to_string(self).unwrap_or_default();
        hex(&Sha256::digest(as_go(&json)))
    }

    pub fn as_auth(&self) -> AuthConfig {
        AuthConfig {
            username: self.username.clone(),
            password: self.password.clone(),
            auth: String::new(),
            // Named, it would have to be a URL of the very host that answers: not so for mirrors, nor for
            // keys without a scheme.
            server_address: String::new(),
            identity_token: self.identity_token.clone(),
            registry_token: self.registry_token.clone(),
        }
    }
}

/// JSON with what Go escapes in it: it is fit to stand in HTML.
fn as_go(json: &str) -> String {
    let escapes =
        [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];
    escapes.into_iter().fold(json.to_owned(), |text, (plain, escaped)| text.replace(plain, escaped))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why logins cannot be read. The words are Kubernetes': pods that need them wait with these.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("illegal base64 data at input byte {0}")]
    Base64(usize),
    #[error("unable to parse auth field, must be formatted as base64(username:password)")]
    Auth,
}

/// `~/.docker/config.json` and `.dockerconfigjson`; others of its fields are no concern of ours.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    email: Option<String>,
    /// base64 of `username:password`, instead of both
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// The logins of a pull secret; none if it is of another type.
pub fn of_secret(secret: &Secret) -> Result<Option<Logins>, DockerConfigError> {
    let data = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
        bytes.filter(|bytes| !bytes.is_empty())
    };
    match (secret.type_.as_deref(), data(".dockerconfigjson"), data(".dockercfg")) {
        (Some("kubernetes.io/dockerconfigjson"), Some(bytes), _) => of_config(bytes).map(Some),
        (Some("kubernetes.io/dockercfg"), _, Some(bytes)) => of_old_config(bytes).map(Some),
        _ => Ok(None),
    }
}

/// The logins that the node has for all of its pods, in the kubelet's directory
/// (`pkg/credentialprovider: ReadDockerConfigFile`). A file that cannot be understood is passed over.
pub fn of_node(root: &Path) -> Logins {
    type Read = fn(&[u8]) -> Result<Logins, DockerConfigError>;
    let files: [(&str, Read); 3] =
        [("config.json", of_config), (".dockercfg", of_old_config), (".dockerconfigjson", of_config)];
    let found = files.into_iter().find_map(|(name, read)| {
        let path = root.join(name);
        let bytes = std::fs::read(&path).ok()?;
        let logins = read(&bytes);
        logins.inspect_err(|error| tracing::warn!(%error, path = %path.display(), "logins of registries cannot be understood; pulls go on without them")).ok()
    });
    found.unwrap_or_default()
}

fn of_config(bytes: &[u8]) -> Result<Logins, DockerConfigError> {
    let config: Config = serde_json::from_slice(bytes)?;
    logins(config.auths.unwrap_or_default())
}

fn of_old_config(bytes: &[u8]) -> Result<Logins, DockerConfigError> {
    logins(serde_json::from_slice(bytes)?)
}

fn logins(entries: BTreeMap<String, Entry>) -> Result<Logins, DockerConfigError> {
    entries.into_iter().map(|(location, entry)| Ok((location, login(entry)?))).collect()
}

fn login(entry: Entry) -> Result<Login, DockerConfigError> {
    let mut login = Login {
        username: entry.username.unwrap_or_default(),
        password: entry.password.unwrap_or_default(),
        email: entry.email.unwrap_or_default(),
        identity_token: entry.identitytoken.unwrap_or_default(),
        registry_token: entry.registrytoken.unwrap_or_default(),
    };
    if let Some(auth) = entry.auth.filter(|auth| !auth.is_empty()) {
        (login.username, login.password) = decode(&auth)?;
    }
    Ok(login)
}

fn decode(auth: &str) -> Result<(String, String), DockerConfigError> {
    let auth = auth.replace(['\r', '\n'], "");
    let decoded = if auth.trim().ends_with('=') { STANDARD.decode(&auth) } else { STANDARD_NO_PAD.decode(&auth) };
    let bytes = decoded.map_err(|error| match error {
        DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => DockerConfigError::Base64(at),
        _ => DockerConfigError::Base64(auth.len()),
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let (username, password) = text.split_once(':').ok_or(DockerConfigError::Auth)?;
    Ok((username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(kind: &str, key: &str, text: &str) -> Secret {
        let data = BTreeMap::from([(key.to_owned(), ByteString(text.as_bytes().to_vec()))]);
        Secret { type_: Some(kind.to_owned()), data: Some(data), ..Default::default() }
    }

    #[test]
    fn secrets_are_read_by_their_type() {
        let (new, old) = ("kubernetes.io/dockerconfigjson", "kubernetes.io/dockercfg");
        let auths = r#"{"auths": {"r": {"auth": "bWU6eDp5", "username": "other", "email": null}}, "credsStore": "x"}"#;
        let plain = r#"{"r": {"username": "me", "password": "x:y"}}"#;
        let unpadded = r#"{"r": {"auth": "bWU6eA"}}"#;
        for (kind, key, text, expected) in [
            (new, ".dockerconfigjson", auths, Ok(Some(("me", "x:y")))),
            (old, ".dockercfg", plain, Ok(Some(("me", "x:y")))),
            (old, ".dockercfg", unpadded, Ok(Some(("me", "x")))),
            (new, ".dockerconfigjson", r#"{"auths": null}"#, Ok(None)),
            ("Opaque", ".dockerconfigjson", auths, Ok(None)),
            (old, ".dockerconfigjson", auths, Ok(None)),
            (new, ".dockerconfigjson", "", Ok(None)),
            (old, ".dockercfg", r#"{"r": {"auth": "bW=U"}}"#, Err("illegal base64 data at input byte 2")),
            (
                old,
                ".dockercfg",
                r#"{"r": {"auth": "bWU"}}"#,
                Err("unable to parse auth field, must be formatted as base64(username:password)"),
            ),
        ] {
            let found = of_secret(&secret(kind, key, text)).map_err(|error| error.to_string());
            let found = found.map(|logins| logins.and_then(|logins| logins.get("r").cloned()));
            let pair = found.as_ref().map(|login| login.as_ref().map(|l| (l.username.as_str(), l.password.as_str())));
            assert_eq!(pair.map_err(String::as_str), expected, "{kind} {text}");
        }
        assert!(of_secret(&secret(new, ".dockerconfigjson", "{")).is_err());
    }

    #[test]
    fn hashes_are_those_of_kubernetes() {
        let login = |username: &str, password: &str, email: &str| Login {
            username: username.to_owned(),
            password: password.to_owned(),
            email: email.to_owned(),
            ..Default::default()
        };
        let of = |json: &str| hex(&Sha256::digest(json));
        for (login, json) in [
            (login("me", "x", ""), r#"{"username":"me","password":"x"}"#),
            (login("me", "a<b&c", "m@x"), r#"{"username":"me","password":"a\u003cb\u0026c","email":"m@x"}"#),
            (Login::default(), "{}"),
        ] {
            assert_eq!(login.hash(), of(json));
        }
        assert_eq!(format!("{:?}", login("me", "secret", "")), r#"Login { username: "me", .. }"#);
    }

    #[test]
    fn the_nodes_logins_lie_in_the_kubelets_directory() {
        let root = tempfile::tempdir().unwrap();
        assert!(of_node(root.path()).is_empty());
        std::fs::write(root.path().join(".dockercfg"), r#"{"old": {"username": "me"}}"#).unwrap();
        assert!(of_node(root.path()).contains_key("old"));
        std::fs::write(root.path().join("config.json"), r#"{"auths": {"new": {"username": "me"}}}"#).unwrap();
        assert!(of_node(root.path()).contains_key("new"));
        std::fs::write(root.path().join("config.json"), "?").unwrap();
        assert!(of_node(root.path()).contains_key("old"));
    }
}
