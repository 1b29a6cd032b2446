//! As whom webhooks are asked: `WebhookAdmissionConfiguration` names a kubeconfig whose users are
//! named after the webhooks' hosts.
//!
//! Upstream: `k8s.io/apiserver/pkg/util/webhook/authentication.go`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde_json::Value;

use crate::admission::config::Configuration;
use crate::proxy::dial::Identity;

const GROUP: &str = "apiserver.config.k8s.io";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(default)]
    kube_config_file: PathBuf,
    #[serde(default)]
    static_manifests_dir: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    users: Vec<Named<User>>,
    #[serde(default)]
    contexts: Vec<Named<Context>>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "user", alias = "context")]
    value: T,
}

#[derive(Deserialize)]
struct Context {
    #[serde(default)]
    user: String,
}

/// What a user of a kubeconfig may show.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: PathBuf,
    username: String,
    password: String,
    client_certificate: PathBuf,
    client_certificate_data: String,
    client_key: PathBuf,
    client_key_data: String,
    #[serde(rename = "as")]
    impersonate: String,
    as_groups: Vec<String>,
    exec: Value,
    auth_provider: Value,
}

/// Users by the hosts that they are for; the default has none.
#[derive(Debug, Default)]
pub struct Credentials {
    users: BTreeMap<String, User>,
    /// Of the kubeconfig's current context: for hosts that no user is named after.
    current: Option<User>,
    /// What files in the kubeconfig are relative to.
    base: PathBuf,
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
    pub fn new(given: Option<&Configuration>) -> Result<Self, String> {
        let Some(given) = given else { return Ok(Self::default()) };
        let file: File = given.typed(GROUP, &["v1"], "WebhookAdmissionConfiguration")?;
        if !file.static_manifests_dir.is_empty() {
            return Err(given.wrong("staticManifestsDir is not built into skiff; create the configurations in the API"));
        }
        let path = &file.kube_config_file;
        if path.as_os_str().is_empty() {
            return Ok(Self::default());
        }
        if !path.is_absolute() {
            let why = "must be an absolute file path";
            let at = api::field::Path::root("kubeConfigFile");
            return Err(given.wrong(api::field::Error::invalid(&at, path.display().to_string(), why)));
        }
        Self::read(path).map_err(|why| given.wrong(format!("{}: {why}", path.display())))
    }

    fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let read: Kubeconfig = serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
        let users: BTreeMap<String, User> = read.users.into_iter().map(|user| (user.name, user.value)).collect();
        for (name, user) in &users {
            if !user.exec.is_null() || !user.auth_provider.is_null() {
                return Err(format!("user {name:?}: exec and auth-provider are not built into skiff"));
            }
        }
        let context = read.contexts.into_iter().find(|context| context.name == read.current_context);
        let current = context.and_then(|context| users.get(&context.value.user).cloned());
        let base = path.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { users, current, base })
    }

    /// The user for a host: named exactly, or by `*.` and a domain of it, with the port or (for 443)
    /// without; else `*`; else that of the current context.
    fn find(&self, host: &str, port: u16) -> Option<&User> {
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

    /// # Errors
    ///
    /// A file that cannot be read or is not PEM.
    pub fn shown_to(&self, host: &str, port: u16) -> Result<Shown, String> {
        self.find(host, port).map_or_else(|| Ok(Shown::default()), |user| user.shown(&self.base))
    }
}

impl User {
    fn shown(&self, base: &Path) -> Result<Shown, String> {
        let read = |path: &Path| {
            let path = base.join(path);
            std::fs::read(&path).map_err(|error| format!("reading {}: {error}", path.display()))
        };
        let mut headers = HeaderMap::new();
        let mut add = |name: HeaderName, value: String| {
            let value = HeaderValue::from_str(&value).map_err(|error| format!("the {name} header: {error}"))?;
            headers.append(name, value);
            Ok::<_, String>(())
        };
        // A token file is read each time: it may be rotated.
        let token = match self.token_file.as_os_str().is_empty() {
            true => self.token.clone(),
            false => String::from_utf8_lossy(&read(&self.token_file)?).trim().to_owned(),
        };
        if !token.is_empty() {
            add(header::AUTHORIZATION, format!("Bearer {token}"))?;
        } else if !self.username.is_empty() || !self.password.is_empty() {
            let pair = BASE64_STANDARD.encode(format!("{}:{}", self.username, self.password));
            add(header::AUTHORIZATION, format!("Basic {pair}"))?;
        }
        if !self.impersonate.is_empty() {
            add(HeaderName::from_static("impersonate-user"), self.impersonate.clone())?;
            for group in &self.as_groups {
                add(HeaderName::from_static("impersonate-group"), group.clone())?;
            }
        }
        let pem = |data: &str, file: &Path| match (data.is_empty(), file.as_os_str().is_empty()) {
            (false, _) => BASE64_STANDARD.decode(data).map(Some).map_err(|error| format!("not base64: {error}")),
            (true, false) => read(file).map(Some),
            (true, true) => Ok(None),
        };
        let certificate = pem(&self.client_certificate_data, &self.client_certificate)?;
        let key = pem(&self.client_key_data, &self.client_key)?;
        let certificate = match certificate.zip(key) {
            Some((chain, key)) => {
                Some(identity(&chain, &key).map_err(|error| format!("a client certificate: {error}"))?)
            }
            None => None,
        };
        Ok(Shown { headers, certificate })
    }
}

fn identity(chain: &[u8], key: &[u8]) -> Result<Identity, rustls_pki_types::pem::Error> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(key)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::config::given;
    use serde_json::json;

    fn credentials(users: &[&str], current: &str) -> Credentials {
        let user = |name: &str| User { token: format!("of {name}"), ..User::default() };
        Credentials {
            users: users.iter().map(|name| ((*name).to_owned(), user(name))).collect(),
            current: (!current.is_empty()).then(|| user(current)),
            base: PathBuf::new(),
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
            let token = held.find(host, port).map_or(String::new(), |user| user.token.clone());
            let expected = if expected.is_empty() { String::new() } else { format!("of {expected}") };
            assert_eq!(token, expected, "{users:?} {host}:{port}");
        }
    }

    #[test]
    fn what_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        std::fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(dir.path().join("token"), "secret\n").unwrap();
        let data = BASE64_STANDARD.encode(certificate.pem());
        let text = format!(
            "users:\n- name: a\n  user: {{client-certificate-data: {data}, client-key: key.pem}}\n- name: b\n  user: {{token: old, tokenFile: token}}\n- name: c\n  user: {{username: u, password: p, as: other, as-groups: [g, h]}}\n- name: d\n  user: {{tokenFile: gone}}\ncontexts:\n- name: x\n  context: {{cluster: c, user: b}}\ncurrent-context: x\n"
        );
        let file = dir.path().join("kubeconfig");
        std::fs::write(&file, text).unwrap();
        let config = given(json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
            "kubeConfigFile": file}));
        let credentials = Credentials::new(Some(&config)).unwrap();
        let shown = |host: &str| credentials.shown_to(host, 443).unwrap();
        assert_eq!(shown("a").certificate.unwrap().0.len(), 1);
        assert_eq!(shown("b").headers["authorization"], "Bearer secret");
        assert_eq!(shown("other").headers["authorization"], "Bearer secret", "of the current context");
        let headers = shown("c").headers;
        assert_eq!(headers["authorization"], "Basic dTpw");
        assert_eq!(headers["impersonate-user"], "other");
        assert_eq!(headers.get_all("impersonate-group").iter().count(), 2);
        assert!(credentials.shown_to("d", 443).unwrap_err().contains("gone"));
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kubeconfig");
        std::fs::write(&file, "users: [{name: a, user: {exec: {command: x}}}]").unwrap();
        let read = |fields: Value| {
            let mut config =
                json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration"});
            config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            Credentials::new(Some(&given(config))).map(drop)
        };
        for (fields, expected) in [
            (json!({"kubeConfigFile": "rel"}), "kubeConfigFile: Invalid value: \"rel\": must be an absolute file path"),
            (json!({"kubeConfigFile": "/nowhere"}), "plugin: file: /nowhere: No such file"),
            (json!({"kubeConfigFile": file}), "user \"a\": exec and auth-provider are not built into skiff"),
            (json!({"staticManifestsDir": "/x"}), "staticManifestsDir is not built into skiff"),
            (json!({"kubeconfig": "/x"}), "unknown field `kubeconfig`"),
            (json!({"kind": "Other"}), "\"WebhookAdmissionConfiguration\" of \"apiserver.config.k8s.io/v1\" is needed"),
        ] {
            let error = read(fields).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(read(json!({})), Ok(()));
    }
}
