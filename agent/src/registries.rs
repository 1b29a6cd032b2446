//! Image registries as `registries.yaml` names them, written out for containerd.
//!
//! The file has the form that k3s made known:
//!
//! ```yaml
//! mirrors:
//!   docker.io:
//!     endpoint: ["https://mirror.example:5000", "http://10.0.0.5:5000"]
//!   "*":
//!     endpoint: ["https://everything.example"]
//! configs:
//!   mirror.example:5000:
//!     auth: {username: me, password: secret}
//!     tls: {ca_file: /etc/ssl/mirror.pem, insecure_skip_verify: false}
//! ```
//!
//! containerd reads `<directory>/<registry host>/hosts.toml` at every pull. The registry itself is
//! tried after its mirrors. Credentials travel as an Authorization header; pull secrets of pods are
//! another matter and go with the pull itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    #[error("{path} is not understood: {why}; see docs/registries.md for its form", path = path.display())]
    Form { path: PathBuf, why: String },
    #[error("{doing} {path}: {error}", path = path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registries {
    #[serde(default)]
    mirrors: BTreeMap<String, Option<Mirror>>,
    #[serde(default)]
    configs: BTreeMap<String, Access>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    #[serde(default)]
    endpoint: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Access {
    #[serde(default)]
    auth: Auth,
    #[serde(default)]
    tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// base64 of `username:password`, instead of these
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identity_token: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    #[serde(default)]
    ca_file: String,
    #[serde(default)]
    cert_file: String,
    #[serde(default)]
    key_file: String,
    #[serde(default)]
    insecure_skip_verify: bool,
}

/// Writes the hosts.toml files for `file` into `directory`, and removes those of registries that the
/// file no longer names. A missing file is an empty one.
pub fn install(file: &Path, directory: &Path) -> Result<(), RegistriesError> {
    let failed = |doing: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error| RegistriesError::File { doing, path, error }
    };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed("reading", file)(error)),
    };
    let wanted = render(&text).map_err(|why| RegistriesError::Form { path: file.to_owned(), why })?;
    std::fs::create_dir_all(directory).map_err(failed("creating", directory))?;
    for entry in std::fs::read_dir(directory).map_err(failed("listing", directory))?.flatten() {
        if !wanted.contains_key(entry.file_name().to_string_lossy().as_ref()) {
            std::fs::remove_dir_all(entry.path()).map_err(failed("removing", &entry.path()))?;
        }
    }
    for (host, text) in wanted {
        let place = directory.join(host);
        std::fs::create_dir_all(&place).map_err(failed("creating", &place))?;
        let path = place.join("hosts.toml");
        write_private(&path, &text).map_err(failed("writing", &path))?;
    }
    Ok(())
}

/// It may hold credentials.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, text.as_bytes())
}

/// Directory name → hosts.toml.
fn render(text: &str) -> Result<BTreeMap<String, String>, String> {
    let registries: Registries = match text.trim() {
        "" => Registries::default(),
        text => serde_saphyr::from_str(text).map_err(|error| error.to_string())?,
    };
    let hosts: BTreeSet<&String> = registries.mirrors.keys().chain(registries.configs.keys()).collect();
    hosts
        .into_iter()
        .map(|host| {
            let mirror = registries.mirrors.get(host).cloned().flatten().unwrap_or_default();
            Ok((directory_name(host)?, hosts_toml(host, &mirror.endpoint, &registries.configs)?))
        })
        .collect()
}

fn directory_name(host: &str) -> Result<String, String> {
    match host {
        "*" => Ok("_default".to_owned()),
        _ if host.is_empty() || host.starts_with('.') || host.contains(['/', '\\', '\0']) => {
            Err(format!("{host:?} is no registry host; give host or host:port without https:// and path"))
        }
        _ => Ok(host.to_owned()),
    }
}

fn hosts_toml(host: &str, endpoints: &[String], configs: &BTreeMap<String, Access>) -> Result<String, String> {
    let mut text = String::from("# Written by skiff from registries.yaml at every start; changes here are lost.\n");
    let own = match host {
        "*" => None,
        "docker.io" => Some("https://registry-1.docker.io".to_owned()),
        _ => Some(format!("https://{host}")),
    };
    // Without a server containerd goes to the registry that the image names.
    if let Some(server) = &own {
        line(&mut text, format_args!("server = {}", quote(server)));
    }
    for endpoint in endpoints {
        section(&mut text, endpoint, configs)?;
    }
    if let Some(server) = own.filter(|server| configs.contains_key(host) && !endpoints.contains(server)) {
        let access = &configs[host];
        host_section(&mut text, &server, access);
    }
    Ok(text)
}

fn section(text: &mut String, endpoint: &str, configs: &BTreeMap<String, Access>) -> Result<(), String> {
    let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    let Some(address) = rest.filter(|rest| !rest.is_empty()) else {
        return Err(format!("the endpoint {endpoint:?} is no URL; it has the form https://host:port"));
    };
    let host = address.split('/').next().unwrap_or(address);
    let nothing = Access::default();
    host_section(text, endpoint.trim_end_matches('/'), configs.get(host).unwrap_or(&nothing));
    Ok(())
}

fn host_section(text: &mut String, url: &str, access: &Access) {
    let name = format!("host.{}", quote(url));
    line(text, format_args!("\n[{name}]\ncapabilities = [\"pull\", \"resolve\"]"));
    let Access { auth, tls } = access;
    // A path in the endpoint replaces the API's own `/v2`.
    if url.splitn(4, '/').nth(3).is_some_and(|path| !path.is_empty()) {
        line(text, format_args!("override_path = true"));
    }
    if !tls.ca_file.is_empty() {
        line(text, format_args!("ca = {}", quote(&tls.ca_file)));
    }
    if !tls.cert_file.is_empty() {
        line(text, format_args!("client = [[{}, {}]]", quote(&tls.cert_file), quote(&tls.key_file)));
    }
    if tls.insecure_skip_verify {
        line(text, format_args!("skip_verify = true"));
    }
    if let Some(value) = authorization(auth) {
        line(text, format_args!("[{name}.header]\nauthorization = [{}]", quote(&value)));
    }
}

fn authorization(auth: &Auth) -> Option<String> {
    if !auth.identity_token.is_empty() {
        return Some(format!("Bearer {}", auth.identity_token));
    }
    if !auth.auth.is_empty() {
        return Some(format!("Basic {}", auth.auth));
    }
    let both = format!("{}:{}", auth.username, auth.password);
    (!auth.username.is_empty()).then(|| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(both)))
}

/// JSON's strings are TOML's basic strings.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{arguments}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_and_credentials_become_hosts_files() {
        let files = render(
            r#"
mirrors:
  docker.io: {endpoint: ["https://mirror.example:5000", "http://10.0.0.5:5000/v2/hub"]}
  "*": {endpoint: ["https://everything.example"]}
  "plain.example:5000":
configs:
  "mirror.example:5000": {auth: {username: me, password: s3cret}, tls: {ca_file: /etc/ca.pem}}
  "10.0.0.5:5000": {tls: {insecure_skip_verify: true}}
"#,
        )
        .unwrap();
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["10.0.0.5:5000", "_default", "docker.io", "mirror.example:5000", "plain.example:5000"]);
        let hub = files["docker.io"].split_once('\n').unwrap().1;
        assert_eq!(
            hub,
            "server = \"https://registry-1.docker.io\"\n\n[host.\"https://mirror.example:5000\"]\n\
             capabilities = [\"pull\", \"resolve\"]\nca = \"/etc/ca.pem\"\n\
             [host.\"https://mirror.example:5000\".header]\nauthorization = [\"Basic bWU6czNjcmV0\"]\n\n\
             [host.\"http://10.0.0.5:5000/v2/hub\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\nskip_verify = true\n"
        );
        assert!(!files["_default"].contains("server ="), "{}", files["_default"]);
        assert!(files["mirror.example:5000"].contains("[host.\"https://mirror.example:5000\".header]"));
        assert!(render("").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (text, words) in [
            ("mirrors: {docker.io: {endpoint: [mirror.example]}}", "is no URL"),
            ("mirrors: {\"https://docker.io\": {endpoint: []}}", "is no registry host"),
            ("mirrors: {\"..\": {}}", "is no registry host"),
            ("mirrors: {docker.io: {rewrite: {a: b}}}", "rewrite"),
            ("mirror: {}", "mirror"),
            ("- a", ""),
        ] {
            let error = render(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn files_of_registries_no_longer_named_go() {
        let root = tempfile::tempdir().unwrap();
        let (file, hosts) = (root.path().join("registries.yaml"), root.path().join("hosts"));
        std::fs::write(&file, "mirrors: {a.example: {endpoint: [\"http://b.example\"]}}").unwrap();
        install(&file, &hosts).unwrap();
        assert!(hosts.join("a.example/hosts.toml").exists());
        std::fs::remove_file(&file).unwrap();
        install(&file, &hosts).unwrap();
        assert_eq!(std::fs::read_dir(&hosts).unwrap().count(), 0);
    }
}
