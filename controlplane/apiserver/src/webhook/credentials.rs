//! As whom webhooks are asked: `WebhookAdmissionConfiguration` names a kubeconfig whose users are
//! named after the webhooks' hosts.
//!
//! Upstream: `k8s.io/apiserver/pkg/util/webhook/authentication.go`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use kube::config::{AuthInfo, Kubeconfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::admission::config::Configuration;
use crate::proxy::dial::Identity;
use crate::remote;

const GROUP: &str = "apiserver.config.k8s.io";

/// `WebhookAdmissionConfiguration`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    kube_config_file: PathBuf,
    #[serde(default)]
    pub static_manifests_dir: String,
}

impl File {
    pub fn of(given: &Configuration) -> Result<Self, String> {
        given.typed(GROUP, &["v1"], "WebhookAdmissionConfiguration")
    }
}

/// Users by the hosts that they are for; the default has none.
#[derive(Debug, Default)]
pub struct Credentials {
    users: BTreeMap<String, AuthInfo>,
    /// Of the kubeconfig's current context: for hosts that no user is named after.
    current: Option<AuthInfo>,
}

/// What one webhook is shown.
#[derive(Debug, Default)]
pub struct Shown {
    pub headers: HeaderMap,
    pub certificate: Option<Identity>,
}

impl Credentials {
    /// # Errors
    ///
    /// What is wrong with the configuration, or with its kubeconfig.
    pub async fn new(given: Option<&Configuration>) -> Result<Self, String> {
        let Some(given) = given else { return Ok(Self::default()) };
        let file = File::of(given)?;
        let path = &file.kube_config_file;
        if path.as_os_str().is_empty() {
            return Ok(Self::default());
        }
        if !path.is_absolute() {
            let why = "must be an absolute file path";
            let at = api::field::Path::root("kubeConfigFile");
            return Err(given.wrong(api::field::Error::invalid(&at, path.display().to_string(), why)));
        }
        let read = remote::kubeconfig(path).await.and_then(Self::of);
        read.map_err(|why| given.wrong(format!("{}: {why}", path.display())))
    }

    /// Paths in it are absolute.
    fn of(kubeconfig: Kubeconfig) -> Result<Self, String> {
        let mut users = BTreeMap::new();
        for named in kubeconfig.auth_infos {
            let (name, user) = (named.name, named.auth_info.unwrap_or_default());
            if user.exec.is_some() || user.auth_provider.is_some() {
                return Err(format!("user {name:?}: exec and auth-provider are not built into skiff"));
            }
            if users.contains_key(&name) {
                return Err(format!("duplicate name {name:?} in users"));
            }
            users.insert(name, user);
        }
        let name = kubeconfig.current_context.unwrap_or_default();
        let context = kubeconfig.contexts.into_iter().find(|context| context.name == name);
        let user = context.and_then(|context| context.context?.user);
        let current = user.and_then(|user| users.get(&user).cloned());
        Ok(Self { users, current })
    }

    /// The user for a host: named exactly, or by `*.` and a domain of it, with the port or (for 443)
    /// without; else `*`; else that of the current context.
    fn find(&self, host: &str, port: u16) -> Option<&AuthInfo> {
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let with_port = format!("{bracketed}:{port}");
        let without = (port == 443).then_some(host);
        let named = [Some(with_port.as_str()), without].into_iter().flatten().find_map(|target| {
            let exact = self.users.get(target);
            let domains = target.match_indices('.').map(|(at, _)| format!("*{}", &target[at..]));
            exact.or_else(|| { domains }.find_map(|domain| self.users.get(&domain)))
        });
        named.or_else(|| self.users.get("*")).or(self.current.as_ref())
    }

    /// `port` is the one that the webhook is named with: a Service's, not its endpoint's.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is not PEM; what cannot be shown together.
    pub async fn shown_to(&self, host: &str, port: u16) -> Result<Shown, String> {
        match self.find(host, port) {
            Some(user) => shown(user).await,
            None => Ok(Shown::default()),
        }
    }
}

async fn shown(user: &AuthInfo) -> Result<Shown, String> {
    let mut headers = HeaderMap::new();
    let mut add = |name: HeaderName, value: &str| {
        let value = HeaderValue::from_str(value).map_err(|error| format!("the {name} header: {error}"))?;
        headers.append(name, value);
        Ok::<_, String>(())
    };
    let token = token(user).await?;
    let (name, password) = (user.username.as_deref().unwrap_or_default(), exposed(user.password.as_ref()));
    let has_password = !name.is_empty() || !password.is_empty();
    match (token.is_empty(), has_password) {
        (false, true) => return Err("username/password or bearer token may be set, but not both".to_owned()),
        (false, false) => add(header::AUTHORIZATION, &format!("Bearer {token}"))?,
        (true, true) => {
            let pair = BASE64_STANDARD.encode(format!("{name}:{password}"));
            add(header::AUTHORIZATION, &format!("Basic {pair}"))?;
        }
        (true, false) => {}
    }
    if let Some(other) = user.impersonate.as_deref().filter(|other| !other.is_empty()) {
        add(HeaderName::from_static("impersonate-user"), other)?;
        if let Some(uid) = user.impersonate_uid.as_deref().filter(|uid| !uid.is_empty()) {
            add(HeaderName::from_static("impersonate-uid"), uid)?;
        }
        for group in user.impersonate_groups.iter().flatten() {
            add(HeaderName::from_static("impersonate-group"), group)?;
        }
        for (key, values) in user.impersonate_user_extra.iter().flatten() {
            let name = HeaderName::from_bytes(format!("impersonate-extra-{}", escaped(key)).as_bytes());
            let name = name.map_err(|error| format!("as-user-extra {key:?}: {error}"))?;
            values.iter().try_for_each(|value| add(name.clone(), value))?;
        }
    }
    let data = user.client_certificate_data.as_deref().unwrap_or_default();
    let chain = pem(data, user.client_certificate.as_deref()).await?;
    let key = pem(exposed(user.client_key_data.as_ref()), user.client_key.as_deref()).await?;
    let certificate = match chain.zip(key) {
        Some((chain, key)) => Some(identity(&chain, &key).map_err(|error| format!("a client certificate: {error}"))?),
        None => None,
    };
    Ok(Shown { headers, certificate })
}

fn exposed(secret: Option<&SecretString>) -> &str {
    secret.map_or("", |secret| secret.expose_secret())
}

/// A token file is read each time, since it may be rotated; while it cannot be read the token beside
/// it serves, if there is one.
async fn token(user: &AuthInfo) -> Result<String, String> {
    let given = exposed(user.token.as_ref());
    let Some(file) = user.token_file.as_deref().filter(|file| !file.is_empty()) else { return Ok(given.to_owned()) };
    match read(file).await {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).trim().to_owned()),
        Err(_) if !given.is_empty() => Ok(given.to_owned()),
        Err(why) => Err(why),
    }
}

/// From base64 beside it, else from a file.
async fn pem(data: &str, file: Option<&str>) -> Result<Option<Vec<u8>>, String> {
    match file {
        _ if !data.is_empty() => {
            BASE64_STANDARD.decode(data).map(Some).map_err(|error| format!("a client certificate: not base64: {error}"))
        }
        Some(file) if !file.is_empty() => read(file).await.map(Some),
        _ => Ok(None),
    }
}

async fn read(path: &str) -> Result<Vec<u8>, String> {
    tokio::fs::read(Path::new(path)).await.map_err(|error| format!("reading {path}: {error}"))
}

/// A key as a part of a header's name (`headerKeyEscape` of client-go).
fn escaped(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    key.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn identity(chain: &[u8], key: &[u8]) -> Result<Identity, rustls_pki_types::pem::Error> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(key)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::config::given;
    use serde_json::{Value, json};

    fn credentials(users: &[&str], current: &str) -> Credentials {
        let user = |name: &str| AuthInfo { token: Some(format!("of {name}").into()), ..AuthInfo::default() };
        Credentials {
            users: users.iter().map(|name| ((*name).to_owned(), user(name))).collect(),
            current: (!current.is_empty()).then(|| user(current)),
        }
    }

    /// Upstream's rows (`TestAuthenticationDetection`).
    #[test]
    fn users_are_named_after_hosts() {
        let both = ["foo.com", "foo.com:443", "*"];
        for (users, current, host, port, expected) in [
            (&["*"][..], "", "foo.com", 443, "*"),
            (&["foo.com"], "", "foo.com", 443, "foo.com"),
            (&["foo.com"], "", "foo.com", 8443, ""),
            (&["foo.com:8443"], "", "foo.com", 8443, "foo.com:8443"),
            (&both, "", "foo.com", 443, "foo.com:443"),
            (&["*.foo.com", "*"], "", "www.foo.com", 443, "*.foo.com"),
            (&["*.foo.com", "*.com"], "", "a.b.foo.com", 443, "*.foo.com"),
            (&["*.foo.com:443", "*.foo.com"], "", "www.foo.com", 443, "*.foo.com:443"),
            (&["*.foo.com"], "", "foo.com", 443, ""),
            (&["*.foo.com"], "", "www.foo.com", 80, ""),
            (&["hook.ns.svc"], "", "hook.ns.svc", 443, "hook.ns.svc"),
            (&["other"], "current", "foo.com", 443, "current"),
            (&["*"], "current", "foo.com", 443, "*"),
            (&[], "", "foo.com", 443, ""),
        ] {
            let held = credentials(users, current);
            let token = held.find(host, port).map_or("", |user| exposed(user.token.as_ref()));
            let expected = if expected.is_empty() { String::new() } else { format!("of {expected}") };
            assert_eq!(token, expected, "{users:?} {host}:{port}");
        }
    }

    #[tokio::test]
    async fn what_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(dir.path().join("token"), "secret\n").unwrap();
        let data = BASE64_STANDARD.encode(certificate.pem());
        let users = [
            format!("a\n  user: {{client-certificate-data: {data}, client-key: key.pem}}"),
            "b\n  user: {token: old, tokenFile: token}".to_owned(),
            "c\n  user: {username: u, password: p, as: other, as-uid: '7', as-groups: [g, h], as-user-extra: {Why/not: [x, y]}}"
                .to_owned(),
            "d\n  user: {tokenFile: gone}".to_owned(),
            "e\n  user: {token: old, tokenFile: gone}".to_owned(),
            "f\n  user: {token: t, username: u}".to_owned(),
        ];
        let users: String = users.iter().map(|user| format!("- name: {user}\n")).collect();
        let contexts = "contexts:\n- name: x\n  context: {cluster: c, user: b}\ncurrent-context: x\n";
        let file = dir.path().join("kubeconfig");
        std::fs::write(&file, format!("users:\n{users}{contexts}")).unwrap();
        let config = given(json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
            "kubeConfigFile": file}));
        let credentials = Credentials::new(Some(&config)).await.unwrap();
        let shown = async |host: &str| credentials.shown_to(host, 443).await;
        assert_eq!(shown("a").await.unwrap().certificate.unwrap().0.len(), 1);
        assert_eq!(shown("b").await.unwrap().headers["authorization"], "Bearer secret");
        assert_eq!(shown("other").await.unwrap().headers["authorization"], "Bearer secret", "of the current context");
        let headers = shown("c").await.unwrap().headers;
        assert_eq!(headers["authorization"], "Basic dTpw");
        assert_eq!(
            (&headers["impersonate-user"], &headers["impersonate-uid"]),
            (&"other".parse().unwrap(), &"7".parse().unwrap())
        );
        assert_eq!(headers.get_all("impersonate-group").iter().count(), 2);
        assert_eq!(headers.get_all("impersonate-extra-why%2fnot").iter().count(), 2);
        assert!(shown("d").await.unwrap_err().contains("gone"));
        assert_eq!(shown("e").await.unwrap().headers["authorization"], "Bearer old", "the file cannot be read");
        let both = shown("f").await.unwrap_err();
        assert_eq!(both, "username/password or bearer token may be set, but not both");
    }

    #[tokio::test]
    async fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let written = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            json!({"kubeConfigFile": file})
        };
        let read = async |fields: Value| {
            let mut config =
                json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration"});
            config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            Credentials::new(Some(&given(config))).await.map(drop)
        };
        for (fields, expected) in [
            (json!({"kubeConfigFile": "rel"}), "kubeConfigFile: Invalid value: \"rel\": must be an absolute file path"),
            (json!({"kubeConfigFile": "/nowhere"}), "plugin: file: /nowhere: "),
            (json!({"kubeConfigFile": "/nowhere"}), "No such file"),
            (
                written("exec", "users: [{name: a, user: {exec: {command: x}}}]"),
                "user \"a\": exec and auth-provider are not built into skiff",
            ),
            (written("twice", "users: [{name: a, user: {}}, {name: a, user: {}}]"), "duplicate name \"a\" in users"),
            (written("text", "users: 1"), "failed to parse kubeconfig YAML"),
            (json!({"kubeconfig": "/x"}), "unknown field `kubeconfig`"),
            (json!({"kind": "Other"}), "\"WebhookAdmissionConfiguration\" of \"apiserver.config.k8s.io/v1\" is needed"),
        ] {
            let error = read(fields).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(read(json!({})).await, Ok(()));
    }
}
