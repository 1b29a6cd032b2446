//! Reading `CredentialProviderConfig`, once, when the node starts
//! (`pkg/credentialprovider/plugin/config.go`, `plugin.go: RegisterCredentialProviderPlugins`).
//! The messages are Kubernetes'.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::settings::{Provider, Settings};
use super::validate::validate;
use crate::images::docker_config::hex;

const GROUP: &str = "kubelet.config.k8s.io";
const KIND: &str = "CredentialProviderConfig";

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("plugin binary directory {path} did not exist", path = .0.display())]
    NoDirectory(PathBuf),
    #[error("error inspecting binary directory {path}: {error}", path = path.display())]
    Directory { path: PathBuf, error: io::Error },
    #[error("unable to access path {0:?}: {1}")]
    Access(PathBuf, io::Error),
    #[error("unable to read directory {0:?}: {1}")]
    List(PathBuf, io::Error),
    #[error("no configuration files found in directory {0:?}")]
    Empty(PathBuf),
    #[error("unable to read file {0:?}: {1}")]
    Read(PathBuf, io::Error),
    #[error("error decoding config {0:?}: {1}")]
    Form(PathBuf, String),
    #[error("duplicate provider name {0:?} found in configuration file(s)")]
    Twice(String),
    #[error("failed to validate credential provider config: {0}")]
    Invalid(String),
    #[error("plugin binary executable {path} did not exist", path = .0.display())]
    NoExecutable(PathBuf),
    #[error("error inspecting binary executable {path}: {error}", path = path.display())]
    Executable { path: PathBuf, error: io::Error },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "apiVersion")]
    _api_version: String,
    providers: Vec<Provider>,
}

impl Settings {
    /// `config` is a file, or a directory whose `*.json`, `*.yaml` and `*.yml` files are read by name.
    pub fn read(config: &Path, directory: &Path) -> Result<Self, SettingsError> {
        std::fs::metadata(directory).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SettingsError::NoDirectory(directory.to_owned()),
            _ => SettingsError::Directory { path: directory.to_owned(), error },
        })?;
        let mut settings = Self { directory: directory.to_owned(), ..Self::default() };
        let mut hash = Sha256::new();
        for path in config_files(config)? {
            let bytes = std::fs::read(&path).map_err(|error| SettingsError::Read(path.clone(), error))?;
            // With the length before each, so that no two sets of files have one hash.
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(&bytes);
            settings.providers.extend(decode(&bytes).map_err(|why| SettingsError::Form(path, why))?);
        }
        settings.hash = format!("sha256:{}", hex(&hash.finalize()));
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.providers.iter().find(|provider| !names.insert(&provider.name)) {
            return Err(SettingsError::Twice(twice.name.clone()));
        }
        let problems = validate(&self.providers);
        if !problems.is_empty() {
            return Err(SettingsError::Invalid(api::field::join(&problems)));
        }
        self.providers.iter().try_for_each(|provider| executable(&self.directory.join(&provider.name)))
    }
}

fn config_files(config: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let metadata = std::fs::metadata(config).map_err(|error| SettingsError::Access(config.to_owned(), error))?;
    if !metadata.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let listed = std::fs::read_dir(config).and_then(|listed| listed.collect::<io::Result<Vec<_>>>());
    let entries = listed.map_err(|error| SettingsError::List(config.to_owned(), error))?;
    let plain = entries.iter().filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()));
    let named = |path: &PathBuf| path.extension().is_some_and(|end| end == "json" || end == "yaml" || end == "yml");
    let mut files: Vec<PathBuf> = plain.map(std::fs::DirEntry::path).filter(named).collect();
    files.sort();
    if files.is_empty() { Err(SettingsError::Empty(config.to_owned())) } else { Ok(files) }
}

/// The providers of one file, YAML or JSON.
fn decode(bytes: &[u8]) -> Result<Vec<Provider>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let document: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let field = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    let (kind, version) = (field("kind"), field("apiVersion"));
    if kind.is_empty() || version.is_empty() {
        let missing = if kind.is_empty() { "Kind" } else { "apiVersion" };
        return Err(format!("Object '{missing}' is missing"));
    }
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    if kind != KIND || group != GROUP || !["v1", "v1beta1", "v1alpha1"].contains(&version) {
        return Err(format!(
            "no kind {kind:?} is registered for version \"{group}/{version}\": use {KIND} of {GROUP}/v1"
        ));
    }
    let file = serde_json::from_value(without_nulls(document));
    let file: File = file.map_err(|error| format!("strict decoding error: {error}"))?;
    if version != "v1"
        && let Some(at) = file.providers.iter().position(|provider| provider.token_attributes.is_some())
    {
        return Err(format!("strict decoding error: unknown field \"providers[{at}].tokenAttributes\""));
    }
    Ok(file.providers)
}

/// Go takes null for what is not there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, field)| !field.is_null())
            .map(|(name, field)| (name, without_nulls(field)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

fn executable(path: &Path) -> Result<(), SettingsError> {
    let failed = |error| SettingsError::Executable { path: path.to_owned(), error };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Err(failed(io::Error::other("is a directory"))),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
            Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, "permission denied")))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SettingsError::NoExecutable(path.to_owned())),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::settings::{GoDuration, Variable};
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n";

    fn provider(name: &str) -> String {
        format!(
            "- {{name: {name}, matchImages: ['*.r.io'], defaultCacheDuration: 1h30m, apiVersion: credentialprovider.kubelet.k8s.io/v1}}\n"
        )
    }

    /// A directory with the executables `one` and `two`, and one for configurations.
    fn directories() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let (bin, config) = (root.path().join("bin"), root.path().join("config"));
        std::fs::create_dir(&bin).unwrap();
        std::fs::create_dir(&config).unwrap();
        for name in ["one", "two"] {
            std::os::unix::fs::symlink("/bin/sh", bin.join(name)).unwrap();
        }
        (root, bin, config)
    }

    #[test]
    fn a_directory_is_read_file_by_file() {
        let (_root, bin, config) = directories();
        std::fs::write(config.join("b.yaml"), format!("{HEAD}{}", provider("two"))).unwrap();
        let json = r#"{"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [{"name": "one", "matchImages": ["r.io"], "defaultCacheDuration": "0s", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "env": [{"name": "A", "value": "b"}], "args": null, "tokenAttributes": {"serviceAccountTokenAudience": "a", "cacheType": "Token", "requireServiceAccount": true}}]}"#;
        std::fs::write(config.join("a.json"), json).unwrap();
        std::fs::write(config.join("notes.txt"), "no").unwrap();
        let read = Settings::read(&config, &bin).unwrap();
        let names: Vec<&str> = read.providers.iter().map(|provider| provider.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(read.providers[0].env, [Variable { name: "A".to_owned(), value: "b".to_owned() }]);
        assert!(read.providers[0].token_attributes.as_ref().unwrap().is_by_token());
        let kept = read.providers[1].default_cache_duration.and_then(GoDuration::duration);
        assert_eq!(kept, Some(Duration::from_secs(5400)));
        assert!(read.hash.starts_with("sha256:") && read.hash.len() == 71);
        assert_ne!(read.hash, Settings::read(&config.join("a.json"), &bin).unwrap().hash);
    }

    #[test]
    fn what_is_wrong_is_said_at_the_start() {
        let (root, bin, config) = directories();
        let file = config.join("c.yaml");
        let said = |text: &str, bin: &Path| {
            std::fs::write(&file, text).unwrap();
            Settings::read(&file, bin).unwrap_err().to_string()
        };
        let one = format!("{HEAD}{}", provider("one"));
        let none = root.path().join("none");
        assert_eq!(said(&one, &none), format!("plugin binary directory {} did not exist", none.display()));
        for (text, words) in [
            (format!("{one}{}", provider("one")), "duplicate provider name \"one\" found in configuration file(s)"),
            (format!("{HEAD}{}", provider("three")), "/three did not exist"),
            (
                format!("{HEAD}{}", provider("'a b'")),
                "providers.name: Invalid value: \"a b\": provider name cannot contain spaces",
            ),
            (
                one.replace("/v1\nkind", "/v2\nkind"),
                "no kind \"CredentialProviderConfig\" is registered for version \"kubelet.config.k8s.io/v2\"",
            ),
            (one.replace("kind: C", "kind: X"), "no kind"),
            (one.replace("kind:", "sort:"), "Object 'Kind' is missing"),
            (one.replace("matchImages", "matchimages"), "strict decoding error: unknown field"),
            (one.replace("1h30m", "soon"), "time: invalid duration \"soon\""),
            (
                one.replace("/v1\nkind", "/v1beta1\nkind").replace("name: one", "name: one, tokenAttributes: {}"),
                "unknown field \"providers[0].tokenAttributes\"",
            ),
            ("[".to_owned(), "error decoding config"),
        ] {
            let said = said(&text, &bin);
            assert!(said.contains(words), "{words}: {said}");
        }
        std::fs::remove_file(&file).unwrap();
        for (path, words) in [(&config, "no configuration files found in directory"), (&file, "unable to access path")]
        {
            let said = Settings::read(path, &bin).unwrap_err().to_string();
            assert!(said.contains(words), "{said}");
        }
        std::fs::write(bin.join("plain"), "").unwrap();
        let denied = said(&format!("{HEAD}{}", provider("plain")), &bin);
        assert!(denied.contains("plain: permission denied"), "{denied}");
    }
}
