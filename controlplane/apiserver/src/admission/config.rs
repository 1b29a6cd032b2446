//! `AdmissionConfiguration` (`apiserver.config.k8s.io`): a configuration for each plugin, inline or
//! in a file of its own. What a configuration says is the plugin's business.
//!
//! Upstream: `k8s.io/apiserver/pkg/admission/config.go`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const GROUP: &str = "apiserver.config.k8s.io";
/// What these plugins take without an `AdmissionConfiguration` around it, by their first field.
const LEGACY: [(&str, &str); 2] =
    [("ImagePolicyWebhook", "imagePolicy"), ("PodNodeSelector", "podNodeSelectorPluginConfig")];
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    plugins: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    path: PathBuf,
    #[serde(default)]
    configuration: Value,
}

/// The configuration of one plugin, and where it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// For messages: the plugin and the file.
    pub source: String,
    pub value: Value,
}

impl Configuration {
    /// Of an expected kind in one of a group's versions.
    ///
    /// # Errors
    ///
    /// Another kind, unknown fields, wrong types: named with the source.
    pub fn typed<T: DeserializeOwned>(&self, group: &str, versions: &[&str], kind: &str) -> Result<T, String> {
        let text = |key: &str| self.value[key].as_str().unwrap_or_default();
        let (found_version, found) = (text("apiVersion"), text("kind"));
        let version = found_version.strip_prefix(group).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
        if found != kind || !versions.contains(&version) {
            return Err(format!(
                "{}: it is {found:?} of {found_version:?}; {kind:?} of \"{group}/{}\" is needed",
                self.source, versions[0]
            ));
        }
        let mut value = self.value.clone();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        self.read(value)
    }

    /// Without kind and version.
    pub fn untyped<T: DeserializeOwned>(&self) -> Result<T, String> {
        self.read(self.value.clone())
    }

    fn read<T: DeserializeOwned>(&self, value: Value) -> Result<T, String> {
        serde_json::from_value(value).map_err(|error| self.wrong(error))
    }

    /// A message that names the source.
    pub fn wrong(&self, why: impl std::fmt::Display) -> String {
        format!("{}: {why}", self.source)
    }
}

/// What an `AdmissionConfiguration` says, by plugin.
#[derive(Debug, Default)]
pub struct Configurations(Vec<(String, Configuration)>);

impl Configurations {
    /// Reads the file; `running` are the plugins that run, `is_known` tells names of plugins.
    pub async fn read(file: &Path, running: &[&str], is_known: impl Fn(&str) -> bool) -> Result<Self, String> {
        let shown = file.display();
        let unreadable = |why: &dyn std::fmt::Display| {
            format!("unable to read admission control configuration from \"{shown}\" [{why}]")
        };
        let text = tokio::fs::read_to_string(file).await.map_err(|error| unreadable(&error))?;
        let document: Value = serde_saphyr::from_str(&text).map_err(|error| unreadable(&error))?;
        let version = document["apiVersion"].as_str().and_then(|version| version.strip_prefix(GROUP));
        if document["kind"] != "AdmissionConfiguration" || !matches!(version, Some("/v1" | "/v1alpha1")) {
            return Self::legacy(file, running, &document);
        }
        let read: File = serde_json::from_value(document).map_err(|error| unreadable(&error))?;
        let base = file.parent().unwrap_or(Path::new("."));
        let mut all: Vec<(String, Configuration)> = Vec::new();
        for (at, entry) in read.plugins.into_iter().enumerate() {
            let name = entry.name.clone();
            if !is_known(&name) {
                return Err(unreadable(&format!("plugins[{at}].name: {name:?} is no admission plugin")));
            }
            // As upstream, the first of a name counts.
            if let Some(configuration) = entry.configuration(file, base).await?
                && all.iter().all(|(other, _)| *other != name)
            {
                all.push((name, configuration));
            }
        }
        Ok(Self(all))
    }

    /// A plugin's own file in place of an `AdmissionConfiguration`, from before there was one.
    fn legacy(file: &Path, running: &[&str], document: &Value) -> Result<Self, String> {
        let named = |(_, field): &&(&str, &str)| document.get(*field).is_some();
        if !LEGACY.iter().any(|one| named(&one)) {
            let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "{}: it is {:?} of {:?}; \"AdmissionConfiguration\" of \"{GROUP}/v1\" is needed",
                file.display(),
                text("kind"),
                text("apiVersion")
            ));
        }
        let source = |name: &str| format!("{name}: {}", file.display());
        let takers = LEGACY.iter().filter(|(name, _)| running.contains(name));
        let given = takers
            .map(|(name, _)| ((*name).to_owned(), Configuration { source: source(name), value: document.clone() }));
        Ok(Self(given.collect()))
    }

    /// Hands a plugin its own.
    pub fn take(&mut self, name: &str) -> Option<Configuration> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(at).1)
    }

    /// Refuses what no plugin took although the one that it is for runs.
    pub fn check_all_taken(&self, running: &[&str]) -> Result<(), String> {
        match self.0.iter().find(|(name, _)| running.contains(&name.as_str())) {
            Some((_, configuration)) => Err(configuration.wrong("this plugin takes no configuration")),
            None => Ok(()),
        }
    }
}

impl Entry {
    async fn configuration(self, file: &Path, base: &Path) -> Result<Option<Configuration>, String> {
        let source = |path: &Path| format!("{}: {}", self.name, path.display());
        if !self.configuration.is_null() {
            return Ok(Some(Configuration { source: source(file), value: self.configuration }));
        }
        if self.path.as_os_str().is_empty() {
            return Ok(None);
        }
        let path = base.join(&self.path);
        let text = tokio::fs::read_to_string(&path).await.map_err(|error| format!("{}: {error}", source(&path)))?;
        let value = serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", source(&path)))?;
        Ok(Some(Configuration { source: source(&path), value }))
    }
}

#[cfg(test)]
pub fn given(value: Value) -> Configuration {
    Configuration { source: "plugin: file".to_owned(), value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RUNNING: [&str; 3] = ["PodNodeSelector", "PodSecurity", "LimitRanger"];

    async fn read(dir: &Path, text: &str) -> Result<Configurations, String> {
        let file = dir.join("admission.yaml");
        std::fs::write(&file, text).unwrap();
        Configurations::read(&file, &RUNNING, |name| name != "Nope")
            .await
            .map_err(|why| why.replace(dir.to_str().unwrap(), "DIR"))
    }

    #[tokio::test]
    async fn inline_or_by_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("own.yaml"), "a: 1").unwrap();
        for version in ["v1", "v1alpha1"] {
            let text = format!(
                "apiVersion: {GROUP}/{version}\nkind: AdmissionConfiguration\nplugins:\n- name: A\n  path: own.yaml\n- name: B\n  configuration: {{kind: X}}\n  path: nowhere\n- name: C\n- name: A\n  configuration: {{}}\n"
            );
            let mut found = read(dir.path(), &text).await.unwrap();
            let own = found.take("A").unwrap();
            assert_eq!(own.value, json!({"a": 1}), "relative to the file; the first counts");
            assert!(own.source.ends_with("/own.yaml"));
            assert_eq!(found.take("B").unwrap().value, json!({"kind": "X"}), "inline goes first");
            assert_eq!(found.take("C"), None);
        }
    }

    #[tokio::test]
    async fn old_files_still_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = read(dir.path(), "podNodeSelectorPluginConfig: {a: b=c}").await.unwrap();
        assert_eq!(found.take("PodNodeSelector").unwrap().value["podNodeSelectorPluginConfig"]["a"], "b=c");
        assert_eq!(found.take("ImagePolicyWebhook"), None, "it does not run");
    }

    #[tokio::test]
    async fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let head = format!("apiVersion: {GROUP}/v1\nkind: AdmissionConfiguration\n");
        for (text, expected) in [
            (
                "a: b".to_owned(),
                "DIR/admission.yaml: it is \"\" of \"\"; \"AdmissionConfiguration\" of \"apiserver.config.k8s.io/v1\" is needed",
            ),
            (format!("apiVersion: {GROUP}/v2\nkind: AdmissionConfiguration\n"), "of \"apiserver.config.k8s.io/v2\""),
            (format!("{head}plugins: [{{name: Nope}}]\n"), "[plugins[0].name: \"Nope\" is no admission plugin]"),
            (format!("{head}plugin: []\n"), "unknown field `plugin`"),
            (format!("{head}plugins: [{{name: A, path: gone.yaml}}]\n"), "A: DIR/gone.yaml: No such file"),
        ] {
            let error = read(dir.path(), &text).await.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let missing = Configurations::read(Path::new("/nowhere"), &[], |_| true).await.unwrap_err();
        assert!(missing.starts_with("unable to read admission control configuration from \"/nowhere\" ["), "{missing}");
        let text = format!("{head}plugins: [{{name: LimitRanger, configuration: {{}}}}]\n");
        let mut found = read(dir.path(), &text).await.unwrap();
        let left = found.check_all_taken(&RUNNING).unwrap_err();
        assert!(left.ends_with("this plugin takes no configuration"), "{left}");
        assert_eq!(found.check_all_taken(&["PodSecurity"]), Ok(()), "it does not run");
        assert!(found.take("LimitRanger").is_some());
        assert_eq!(found.check_all_taken(&RUNNING), Ok(()));
    }

    #[test]
    fn kinds_are_checked() {
        #[derive(Debug, Deserialize, PartialEq)]
        #[serde(deny_unknown_fields)]
        struct Own {
            a: u8,
        }
        let read = |value: Value| given(value).typed::<Own>("g", &["v1", "v1beta1"], "Own");
        assert_eq!(read(json!({"apiVersion": "g/v1beta1", "kind": "Own", "a": 1})), Ok(Own { a: 1 }));
        for (value, expected) in [
            (
                json!({"apiVersion": "g/v2", "kind": "Own", "a": 1}),
                "plugin: file: it is \"Own\" of \"g/v2\"; \"Own\" of \"g/v1\" is needed",
            ),
            (json!({"apiVersion": "g/v1", "kind": "Own", "b": 1}), "unknown field `b`"),
            (json!({"apiVersion": "g/v1", "kind": "Own", "a": "x"}), "invalid type: string \"x\""),
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
