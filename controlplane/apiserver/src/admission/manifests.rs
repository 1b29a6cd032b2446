//! Webhooks and policies from files (`staticManifestsDir`): in force before the server serves, and
//! nobody's to change through the API. They see also what the API's own may not: webhook
//! configurations and policies themselves.
//!
//! Upstream: `k8s.io/apiserver/pkg/admission/plugin/manifest`, and `manifest` under `webhook` and
//! `policy`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::field::{Error, Path as Field, join};
use component::{Files, Supervisor};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;

use super::config::Configuration;
use crate::kinds::admissionregistration::{self as kinds, STATIC};
use crate::kinds::value::{has, list, name, text};
use crate::resource::GroupVersionKind;
use crate::schema;

const GROUP: &str = "admissionregistration.k8s.io";
const FIELD: &str = "staticManifestsDir";

/// What a plugin takes: kinds, and what their resources are called.
pub type Kinds = &'static [(&'static str, &'static str)];

pub const VALIDATING_WEBHOOKS: Kinds = &[("ValidatingWebhookConfiguration", "validatingwebhookconfigurations")];
pub const MUTATING_WEBHOOKS: Kinds = &[("MutatingWebhookConfiguration", "mutatingwebhookconfigurations")];
pub const VALIDATING_POLICIES: Kinds = &[
    ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
    ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings"),
];
pub const MUTATING_POLICIES: Kinds = &[
    ("MutatingAdmissionPolicy", "mutatingadmissionpolicies"),
    ("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings"),
];

/// How often it is looked whether the directory is another one, put in the place of the first.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

type Objects = BTreeMap<&'static str, Vec<Arc<Value>>>;

/// What the files of a directory hold; none without a directory.
#[derive(Clone, Default)]
pub struct Manifests {
    held: Arc<RwLock<Objects>>,
    given: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    static_manifests_dir: String,
}

impl Manifests {
    /// By the configuration of a plugin of policies, which is of this kind.
    pub fn of_policies(
        given: Option<&Configuration>,
        kind: &str,
        kinds: Kinds,
        supervisor: &Supervisor,
    ) -> Result<Self, String> {
        let Some(given) = given else { return Ok(Self::default()) };
        let file: PolicyFile = given.typed("apiserver.config.k8s.io", &["v1"], kind)?;
        Self::read(given, &file.static_manifests_dir, kinds, supervisor)
    }

    /// Reads `directory`, and again whenever its files change: what cannot be used then leaves the old in
    /// force.
    ///
    /// # Errors
    ///
    /// What is wrong with the directory, or the first thing that is wrong with what is in it.
    pub fn read(given: &Configuration, directory: &str, kinds: Kinds, supervisor: &Supervisor) -> Result<Self, String> {
        if directory.is_empty() {
            return Ok(Self::default());
        }
        let path = PathBuf::from(directory);
        let wrong = |why: String| given.wrong(Error::invalid(&Field::root(FIELD), directory, why));
        if !path.is_absolute() {
            return Err(wrong("must be an absolute file path".to_owned()));
        }
        let found = std::fs::metadata(&path).map_err(|error| wrong(format!("unable to read: {error}")))?;
        if !found.is_dir() {
            return Err(wrong("must be a directory".to_owned()));
        }
        // Watched first: no change falls between.
        let files = Files::watch_all_in(&path, false).map_err(|error| given.wrong(error))?;
        let held = Arc::new(RwLock::new(load(&path, kinds).map_err(|why| given.wrong(why))?));
        supervisor.spawn_try("static admission manifests", follow(path, kinds, files, held.clone()));
        Ok(Self { held, given: true })
    }

    /// Whether there is a directory.
    pub fn is_given(&self) -> bool {
        self.given
    }

    /// Objects of a resource, in order of their names.
    pub fn of(&self, plural: &str) -> Vec<Arc<Value>> {
        if self.given { self.held.read().get(plural).cloned().unwrap_or_default() } else { Vec::new() }
    }

    #[cfg(test)]
    pub fn holding(plural: &'static str, objects: Vec<Value>) -> Self {
        let objects = objects.into_iter().map(Arc::new).collect();
        Self { held: Arc::new(RwLock::new(BTreeMap::from([(plural, objects)]))), given: true }
    }
}

async fn follow(path: PathBuf, kinds: Kinds, mut files: Files, held: Arc<RwLock<Objects>>) -> std::io::Result<()> {
    let mut known = inode(&path).await;
    loop {
        match tokio::time::timeout(LOOK_AGAIN, files.changed()).await {
            Ok(changed) => changed?,
            Err(_) if inode(&path).await == known => continue,
            Err(_) => {}
        }
        // The directory itself may be another one by now.
        if let Ok(again) = Files::watch_all_in(&path, false) {
            files = again;
        }
        known = inode(&path).await;
        let directory = path.clone();
        // Policies are compiled.
        let loaded = tokio::task::spawn_blocking(move || load(&directory, kinds)).await;
        match loaded.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(objects) if objects == *held.read() => {}
            Ok(objects) => {
                *held.write() = objects;
                tracing::info!(directory = %path.display(), "static admission manifests were read again");
            }
            Err(why) => {
                tracing::warn!(directory = %path.display(), why, "the old static admission manifests stay");
            }
        }
    }
}

async fn inode(path: &Path) -> Option<u64> {
    tokio::fs::metadata(path).await.ok().map(|found| found.ino())
}

fn load(directory: &Path, kinds: Kinds) -> Result<Objects, String> {
    let unreadable = |error: std::io::Error| format!("failed to read manifest directory {directory:?}: {error}");
    let entries = std::fs::read_dir(directory).map_err(unreadable)?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if matches!(extension.to_ascii_lowercase().as_str(), "yaml" | "yml" | "json") && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    let mut texts = Vec::with_capacity(paths.len());
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(|error| format!("failed to read file {path:?}: {error}"))?;
        texts.push((path.display().to_string(), text));
    }
    of_files(&texts, kinds)
}

/// Pure: the files' names and texts, in order.
fn of_files(files: &[(String, String)], kinds: Kinds) -> Result<Objects, String> {
    let mut reader = Reader { kinds, objects: Objects::new(), seen: BTreeMap::new() };
    for (file, text) in files {
        for document in documents(text) {
            reader.document(file, &document).map_err(|why| format!("error loading {file}: {why}"))?;
        }
    }
    let mut objects = reader.objects;
    bound_here(&objects, kinds)?;
    for all in objects.values_mut() {
        all.sort_by(|a, b| name(a).cmp(name(b)));
    }
    Ok(objects)
}

/// The documents of a file: a line `---` is between two.
fn documents(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("---") {
            Some(rest) if rest.trim().is_empty() => all.push(String::new()),
            _ => {
                // There is one from the start.
                if let Some(last) = all.last_mut() {
                    last.push_str(line);
                    last.push('\n');
                }
            }
        }
    }
    all.retain(|document| !document.trim().is_empty());
    all
}

/// Bindings are to policies from the same place.
fn bound_here(objects: &Objects, kinds: Kinds) -> Result<(), String> {
    let [(_, policies), (_, bindings)] = kinds else { return Ok(()) };
    let of = |plural| objects.get(plural).into_iter().flatten();
    for binding in of(bindings) {
        let policy = text(binding, "spec.policyName");
        if !of(policies).any(|held| name(held) == policy) {
            return Err(format!(
                "binding {:?} references policy {policy:?} which does not exist in the manifest directory",
                name(binding)
            ));
        }
    }
    Ok(())
}

struct Reader {
    kinds: Kinds,
    objects: Objects,
    /// The file of each name, by resource.
    seen: BTreeMap<(&'static str, String), String>,
}

impl Reader {
    fn document(&mut self, file: &str, document: &str) -> Result<(), String> {
        let value: Value = serde_saphyr::from_str(document).map_err(|error| error.to_string())?;
        self.value(file, value)
    }

    fn value(&mut self, file: &str, mut value: Value) -> Result<(), String> {
        if text(&value, "apiVersion") == "v1" && text(&value, "kind") == "List" {
            let items = value["items"].take();
            let Value::Array(items) = items else { return Ok(()) };
            return items.into_iter().try_for_each(|item| self.value(file, item));
        }
        let (version, kind) = (text(&value, "apiVersion").to_owned(), text(&value, "kind").to_owned());
        if kind.is_empty() {
            return Err("Object 'Kind' is missing".to_owned());
        }
        let known = self.kinds.iter().find(|(known, _)| *known == kind && version == format!("{GROUP}/v1"));
        let Some((_, plural)) = known else {
            return Err(format!("no kind {kind:?} is registered for version {version:?} in scheme"));
        };
        let kind = GroupVersionKind::new(GROUP, "v1", kind);
        if let Some(schema) = schema::lookup(&kind) {
            let unknown = schema::normalize(&schema, &mut value, &kind).map_err(|error| error.message().to_owned())?;
            if !unknown.is_empty() {
                return Err(format!("strict decoding error: {}", unknown.join(", ")));
            }
        }
        let errors = kinds::of_file(&kind.kind, &mut value);
        if !errors.is_empty() {
            return Err(format!("validation failed for {} {:?}: {}", kind.kind, name(&value), join(&errors)));
        }
        self.name(file, plural, name(&value))?;
        fits(&kind.kind, &value, file)?;
        self.objects.entry(plural).or_default().push(Arc::new(value));
        Ok(())
    }

    fn name(&mut self, file: &str, plural: &'static str, name: &str) -> Result<(), String> {
        if name.is_empty() {
            return Err(format!("resource in file {file:?} must have a name"));
        }
        if !name.ends_with(STATIC) {
            return Err(format!("{name:?} in file {file:?} must have a name ending with {STATIC:?}"));
        }
        match self.seen.insert((plural, name.to_owned()), file.to_owned()) {
            None => Ok(()),
            Some(before) => {
                Err(format!("duplicate name {name:?} found in file {file:?} (previously seen in {before:?})"))
            }
        }
    }
}

/// What only the API could give: Services, parameters, policies of others.
fn fits(kind: &str, object: &Value, file: &str) -> Result<(), String> {
    let own = name(object);
    for webhook in list(object, "webhooks") {
        let place = format!("webhook {:?} in {own:?} (file {file:?})", text(webhook, "name"));
        if has(webhook, "clientConfig.service") {
            return Err(format!(
                "{place}: clientConfig.service is not supported for static manifests; use clientConfig.url instead"
            ));
        }
        if text(webhook, "clientConfig.url").is_empty() {
            return Err(format!("{place}: clientConfig.url is required for static manifests"));
        }
    }
    if has(object, "spec.paramKind") {
        return Err(format!("{kind} {own:?}: spec.paramKind is not supported for static manifests"));
    }
    if !kind.ends_with("Binding") {
        return Ok(());
    }
    let policy = text(object, "spec.policyName");
    if policy.is_empty() {
        return Err(format!("binding {own:?} must reference a policy (spec.policyName)"));
    }
    if !policy.ends_with(STATIC) {
        return Err(format!("binding {own:?}: spec.policyName {policy:?} must end with {STATIC:?}"));
    }
    if has(object, "spec.paramRef") {
        return Err(format!("binding {own:?}: spec.paramRef is not supported for static manifests"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(name: &str) -> Value {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {"matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
                "validations": [{"expression": "true"}]}})
    }

    fn binding(name: &str, policy: &str) -> Value {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": name},
            "spec": {"policyName": policy, "validationActions": ["Deny"]}})
    }

    fn webhooks(name: &str, client: &Value) -> Value {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": name},
            "webhooks": [{"name": "w.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "clientConfig": client}]})
    }

    fn read(kinds: Kinds, files: &[Value]) -> Result<Objects, String> {
        let text = |(at, file): (usize, &Value)| {
            let documents = file.as_array().cloned().unwrap_or_else(|| vec![file.clone()]);
            let text = documents.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n");
            (format!("/m/{at}.yaml"), text)
        };
        of_files(&files.iter().enumerate().map(text).collect::<Vec<_>>(), kinds)
    }

    #[test]
    fn files_hold_policies_with_their_bindings() {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [policy("b.static.k8s.io")]});
        let files = [json!([binding("x.static.k8s.io", "a.static.k8s.io"), list]), policy("a.static.k8s.io")];
        let objects = read(VALIDATING_POLICIES, &files).unwrap();
        let names: Vec<&str> = objects["validatingadmissionpolicies"].iter().map(|policy| name(policy)).collect();
        assert_eq!(names, ["a.static.k8s.io", "b.static.k8s.io"]);
        let held = &objects["validatingadmissionpolicies"][0];
        assert_eq!(text(held, "spec.failurePolicy"), "Fail", "with defaults");
        assert_eq!(objects["validatingadmissionpolicybindings"].len(), 1);
        assert!(read(VALIDATING_POLICIES, &[]).unwrap().is_empty());
    }

    #[test]
    fn what_a_file_may_not_hold_is_named() {
        let url = json!({"url": "https://127.0.0.1:1/"});
        let service = json!({"service": {"namespace": "n", "name": "s"}});
        let with = |mut object: Value, field: &str, value: Value| {
            object["spec"][field] = value;
            object
        };
        let a = "a.static.k8s.io";
        for (kinds, files, expected) in [
            (VALIDATING_WEBHOOKS, vec![webhooks(a, &url)], ""),
            (
                VALIDATING_WEBHOOKS,
                vec![webhooks("a", &url)],
                "error loading /m/0.yaml: \"a\" in file \"/m/0.yaml\" must have a name ending with \".static.k8s.io\"",
            ),
            (
                VALIDATING_WEBHOOKS,
                vec![webhooks(a, &url), webhooks(a, &url)],
                "error loading /m/1.yaml: duplicate name \"a.static.k8s.io\" found in file \"/m/1.yaml\" (previously seen in \"/m/0.yaml\")",
            ),
            (
                VALIDATING_WEBHOOKS,
                vec![webhooks(a, &service)],
                "error loading /m/0.yaml: webhook \"w.example.com\" in \"a.static.k8s.io\" (file \"/m/0.yaml\"): clientConfig.service is not supported for static manifests; use clientConfig.url instead",
            ),
            (
                MUTATING_WEBHOOKS,
                vec![webhooks(a, &url)],
                "error loading /m/0.yaml: no kind \"ValidatingWebhookConfiguration\" is registered for version \"admissionregistration.k8s.io/v1\" in scheme",
            ),
            (
                VALIDATING_POLICIES,
                vec![with(policy(a), "other", json!(1))],
                "error loading /m/0.yaml: strict decoding error: unknown field \"spec.other\"",
            ),
            (
                VALIDATING_POLICIES,
                vec![with(policy(a), "validations", json!([]))],
                "error loading /m/0.yaml: validation failed for ValidatingAdmissionPolicy \"a.static.k8s.io\": ",
            ),
            (
                VALIDATING_POLICIES,
                vec![with(policy(a), "paramKind", json!({"apiVersion": "v1", "kind": "ConfigMap"}))],
                "error loading /m/0.yaml: ValidatingAdmissionPolicy \"a.static.k8s.io\": spec.paramKind is not supported for static manifests",
            ),
            (
                VALIDATING_POLICIES,
                vec![binding(a, "p")],
                "error loading /m/0.yaml: binding \"a.static.k8s.io\": spec.policyName \"p\" must end with \".static.k8s.io\"",
            ),
            (
                VALIDATING_POLICIES,
                vec![binding(a, "p.static.k8s.io")],
                "binding \"a.static.k8s.io\" references policy \"p.static.k8s.io\" which does not exist in the manifest directory",
            ),
            (
                VALIDATING_POLICIES,
                vec![json!({"apiVersion": "v1"})],
                "error loading /m/0.yaml: Object 'Kind' is missing",
            ),
        ] {
            let why = read(kinds, &files).err().unwrap_or_default();
            assert!(why.starts_with(expected) && why.is_empty() == expected.is_empty(), "{files:?}: {why}");
        }
    }

    #[test]
    fn directories_are_absolute_and_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.yaml");
        std::fs::write(&file, "a: b").unwrap();
        let given = super::super::config::given(json!({}));
        let supervisor = Supervisor::new("test");
        for (path, expected) in [
            ("rel".to_owned(), "must be an absolute file path"),
            (dir.path().join("none").display().to_string(), "unable to read: "),
            (file.display().to_string(), "must be a directory"),
        ] {
            let why = Manifests::read(&given, &path, VALIDATING_WEBHOOKS, &supervisor).err().unwrap_or_default();
            assert!(why.contains(&format!("staticManifestsDir: Invalid value: {path:?}: {expected}")), "{why}");
        }
    }
}
