//! Encryption at rest: a [`Store`] around the store, which seals what is written and opens what is
//! read, so that nothing above it (registry, watch cache, continued lists) knows of it.
//!
//! Without a configuration values pass through as they are; an encrypted one is then an error that
//! names its key, never a missing object.

mod config;
mod kms;
mod provider;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use component::Supervisor;
use parking_lot::RwLock;
use store::{Got, KeyValue, Page, Range, Revision, Store, StoreError, Txn, TxnOutcome, Unreadable, Watch, Write};

use self::config::Rule;
use self::provider::{ENCRYPTED, Provider};
use crate::error::{ApiError, Result};
use crate::reload::{self, AsyncReload};
use crate::resource::Resource;

/// Before a configuration whose plugins are not well is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

const UNKNOWN: &str =
    "no matching prefix found; --encryption-provider-config must name the key or identity that it was written with";

/// The store as the rest of the server sees it.
pub struct Sealed {
    inner: Arc<dyn Store>,
    rules: Arc<Rules>,
    /// Whether the file is read again: then there may be plugins at any time.
    reloads: bool,
}

#[derive(Default)]
struct Rules {
    current: RwLock<Arc<[Rule]>>,
    /// `plural.group` by storage prefix, of built-in resources.
    resources: HashMap<String, String>,
}

impl Sealed {
    /// `file` is the `EncryptionConfiguration`, if there is one; with `reload` it is read again when it
    /// changes.
    pub fn new(
        inner: Arc<dyn Store>,
        built_in: &[Resource],
        file: Option<&Path>,
        reload: bool,
        supervisor: &Supervisor,
    ) -> Result<Arc<Self>> {
        let resources = built_in.iter().map(|resource| {
            let descriptor = &resource.descriptor;
            let name = crate::error::qualified(descriptor.hub_group(), &descriptor.plural);
            (descriptor.storage_prefix.to_string(), name)
        });
        let rules = Arc::new(Rules { current: RwLock::default(), resources: resources.collect() });
        if let Some(file) = file {
            *rules.current.write() = read(file)?;
            if reload {
                let reread = Reread { rules: rules.clone(), file: file.to_owned() };
                reload::follow("encryption configuration", file, supervisor, reread)?;
            }
        }
        Ok(Arc::new(Self { inner, rules, reloads: reload && file.is_some() }))
    }

    pub fn reloads(&self) -> bool {
        self.reloads
    }

    /// Whether there is something to say about the health of plugins.
    pub fn has_plugins(&self) -> bool {
        self.reloads || self.rules.current.read().iter().any(|rule| plugins(rule).next().is_some())
    }

    /// Whether every KMS plugin is well; `Err` names those that are not.
    pub async fn health(&self) -> std::result::Result<(), String> {
        let rules = self.rules.current.read().clone();
        health(&rules).await
    }

    /// Whether the value under `key` is there in another form than a write would give it now: an
    /// update that changes nothing then writes all the same, which is how keys are rotated.
    pub async fn is_stale(&self, key: &str) -> std::result::Result<bool, StoreError> {
        let rules = self.rules.current.read().clone();
        let Some(writer) = self.rules.find(&rules, key).map(Provider::writer) else { return Ok(false) };
        let stored = self.inner.get(key).await?.kv;
        Ok(stored.is_some_and(|kv| !writer.is_current(key, &kv.value)))
    }
}

fn plugins(rule: &Rule) -> impl Iterator<Item = &kms::Kms> {
    rule.providers.iter().filter_map(|provider| match provider {
        Provider::Kms(kms) => Some(&**kms),
        _ => None,
    })
}

async fn health(rules: &[Rule]) -> std::result::Result<(), String> {
    // Together: one that does not answer is not to be waited for by the others' turn.
    let answers = futures::future::join_all(rules.iter().flat_map(plugins).map(kms::Kms::health)).await;
    let ill = answers.into_iter().enumerate().filter_map(|(at, answer)| Some((at, answer.err()?)));
    let ill: Vec<String> = ill.map(|(at, why)| format!("kms-provider-{at}: {why}")).collect();
    match ill.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

impl Provider {
    fn writer(rule: &Rule) -> &Self {
        rule.providers.first().unwrap_or(&Self::Identity)
    }
}

/// Reads the file; plugins that it names are at work afterwards.
fn read(file: &Path) -> Result<Arc<[Rule]>> {
    let parsed = std::fs::read_to_string(file).map_err(|error| error.to_string()).and_then(|text| config::parse(&text));
    let started = parsed.and_then(|rules| {
        for kms in rules.iter().flat_map(plugins) {
            kms.start().map_err(|error| format!("starting a KMS provider: {error}"))?;
        }
        Ok(rules)
    });
    started
        .map(Into::into)
        .map_err(|why| ApiError::internal(format!("reading the encryption configuration {}: {why}", file.display())))
}

/// Puts the file in force again.
struct Reread {
    rules: Arc<Rules>,
    file: PathBuf,
}

impl AsyncReload for Reread {
    /// With a plugin that is not well nothing could be written: what is in force stays until it is, or until the
    /// file says something else.
    async fn reload(&mut self) -> Result<()> {
        let mut pause = RETRY.0;
        loop {
            let fresh = read(&self.file)?;
            let Err(why) = health(&fresh).await else {
                *self.rules.current.write() = fresh;
                return Ok(());
            };
            tracing::warn!(why, "the old encryption configuration stays until the plugins of the new one are well");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }
}

impl Rules {
    /// The first rule for the resource that `key` belongs to.
    fn find<'a>(&self, rules: &'a [Rule], key: &str) -> Option<&'a Rule> {
        if rules.is_empty() {
            return None;
        }
        let resource = self.resource(key)?;
        rules.iter().find(|rule| rule.covers(&resource))
    }

    /// `plural.group` of the object under `key`; none for what is no object.
    fn resource(&self, key: &str) -> Option<String> {
        let rest = key.strip_prefix("/registry/")?;
        let (first, rest) = rest.split_once('/')?;
        if let Some(name) = self.resources.get(first) {
            return Some(name.clone());
        }
        let (second, _) = rest.split_once('/')?;
        let known = self.resources.get(&format!("{first}/{second}")).cloned();
        // Custom resources lie under /registry/<group>/<plural>/.
        known.or_else(|| first.contains('.').then(|| format!("{second}.{first}")))
    }

    fn seal(&self, key: &str, plain: &Bytes) -> std::result::Result<Bytes, StoreError> {
        let rules = self.current.read().clone();
        let Some(rule) = self.find(&rules, key) else { return Ok(plain.clone()) };
        let unsealed = |detail| StoreError::Unsealed { key: key.to_owned(), detail };
        Provider::writer(rule).seal(key, plain).map_err(unsealed)
    }

    /// `Err` says why the value cannot be read.
    fn open(&self, key: &str, stored: &Bytes) -> std::result::Result<Bytes, String> {
        let rules = self.current.read().clone();
        if rules.is_empty() && !stored.starts_with(ENCRYPTED) {
            return Ok(stored.clone());
        }
        let providers = self.find(&rules, key).map_or(&[Provider::Identity][..], |rule| &rule.providers);
        let mut failed: Vec<String> = Vec::new();
        // Several may have one prefix: a key and the one it was rotated from, of the same name.
        for provider in providers.iter().filter(|provider| provider.owns(stored)) {
            match provider.open(key, stored) {
                Ok(plain) => return Ok(plain),
                Err(why) if failed.contains(&why) => {}
                Err(why) => failed.push(why),
            }
        }
        Err(match failed.as_slice() {
            [] => UNKNOWN.to_owned(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        })
    }

    fn open_one(&self, kv: &mut KeyValue) -> std::result::Result<(), Unreadable> {
        kv.value = self.open(&kv.key, &kv.value).map_err(|why| unreadable(&kv.key, kv.mod_revision, why))?;
        Ok(())
    }

    fn open_value(&self, kv: &mut KeyValue) -> std::result::Result<(), StoreError> {
        self.open_one(kv).map_err(|one| StoreError::Unreadable(vec![one]))
    }
}

fn unreadable(key: &str, revision: Revision, why: String) -> Unreadable {
    Unreadable { key: key.to_owned(), revision, why }
}

#[async_trait::async_trait]
impl Store for Sealed {
    async fn get(&self, key: &str) -> std::result::Result<Got, StoreError> {
        let mut got = self.inner.get(key).await?;
        got.kv.iter_mut().try_for_each(|kv| self.rules.open_value(kv))?;
        Ok(got)
    }

    async fn range(&self, range: Range) -> std::result::Result<Page, StoreError> {
        let mut page = self.inner.range(range).await?;
        // All of them: who has to remove them wants to know which they are.
        let failed: Vec<Unreadable> = page.kvs.iter_mut().filter_map(|kv| self.rules.open_one(kv).err()).collect();
        if failed.is_empty() { Ok(page) } else { Err(StoreError::Unreadable(failed)) }
    }

    async fn txn(&self, mut txn: Txn) -> std::result::Result<TxnOutcome, StoreError> {
        if let Write::Put { value, .. } = &mut txn.write {
            *value = self.rules.seal(&txn.key, value)?;
        }
        let mut outcome = self.inner.txn(txn).await?;
        if let TxnOutcome::Conflict { current: Some(kv), .. } = &mut outcome {
            self.rules.open_value(kv)?;
        }
        Ok(outcome)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> std::result::Result<Watch, StoreError> {
        let rules = self.rules.clone();
        let watch = self.inner.watch(prefix, after).await?;
        Ok(watch.opened_by(Arc::new(move |event| {
            if let Some(value) = &mut event.value {
                let failed = |why| StoreError::Unreadable(vec![unreadable(&event.key, event.revision, why)]);
                *value = rules.open(&event.key, value).map_err(failed)?;
            }
            // Of what was deleted a watcher is shown what was there: without it the event would be
            // lost. Who listens is to list again, as after a value that cannot be opened.
            event.previous.as_mut().map_or(Ok(()), |previous| rules.open_value(previous))
        })))
    }

    async fn revision(&self) -> std::result::Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn healthy(&self) -> std::result::Result<(), StoreError> {
        self.inner.healthy().await
    }

    async fn snapshot(&self) -> std::result::Result<std::fs::File, StoreError> {
        // Sealed values stay sealed.
        self.inner.snapshot().await
    }

    async fn compact(&self, revision: Revision) -> std::result::Result<(), StoreError> {
        self.inner.compact(revision).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const OTHER_SECRET: &str = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=";

    /// Secrets under AES-GCM keys, each a name and a secret.
    fn keys(keys: &[(&str, &str)]) -> Arc<[Rule]> {
        let key = |(name, secret): &(&str, &str)| format!("{{name: {name}, secret: {secret}}}");
        let providers = keys.iter().map(|one| format!("{{aesgcm: {{keys: [{}]}}}}", key(one)));
        let providers = providers.collect::<Vec<_>>().join(", ");
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{providers}]\n"
        );
        config::parse(&text).unwrap().into()
    }

    fn rules(key: &str) -> Arc<[Rule]> {
        keys(&[(key, SECRET)])
    }

    /// A store that seals Secrets with the key `one`, the store below it, and the revision of one Secret in it.
    async fn sealed_with(dir: &tempfile::TempDir, key: &str) -> (Arc<store::Embedded>, Arc<Rules>, Sealed, u64) {
        let inner = Arc::new(store::Embedded::open(dir.path()).unwrap());
        let resources = HashMap::from([("secrets".to_owned(), "secrets".to_owned())]);
        let held = Arc::new(Rules { current: RwLock::new(rules("one")), resources });
        let sealed = Sealed { inner: inner.clone(), rules: held.clone(), reloads: false };
        let TxnOutcome::Done { revision } = sealed.txn(Txn::create(key, "{}")).await.unwrap() else {
            panic!("nobody else writes");
        };
        (inner, held, sealed, revision)
    }

    /// People leave the name as their first example had it.
    #[tokio::test]
    async fn a_key_may_be_rotated_to_another_of_the_same_name() {
        const KEY: &str = "/registry/secrets/n/a";
        let dir = tempfile::tempdir().unwrap();
        let (inner, held, sealed, revision) = sealed_with(&dir, KEY).await;
        assert_eq!(sealed.is_stale(KEY).await, Ok(false));
        *held.current.write() = keys(&[("one", OTHER_SECRET), ("one", SECRET)]);
        assert_eq!(&sealed.get(KEY).await.unwrap().kv.unwrap().value[..], b"{}");
        assert_eq!(sealed.is_stale(KEY).await, Ok(true), "it is to be written again");
        sealed.txn(Txn::update(KEY, revision, "{}")).await.unwrap();
        assert_eq!(sealed.is_stale(KEY).await, Ok(false));
        *held.current.write() = keys(&[("one", OTHER_SECRET)]);
        assert_eq!(&sealed.get(KEY).await.unwrap().kv.unwrap().value[..], b"{}");
        inner.close();
    }

    #[tokio::test]
    async fn a_deletion_of_what_cannot_be_opened_ends_the_watch_and_is_not_lost() {
        const KEY: &str = "/registry/secrets/n/a";
        let dir = tempfile::tempdir().unwrap();
        let (inner, held, sealed, revision) = sealed_with(&dir, KEY).await;
        let mut watch = sealed.watch("/registry/secrets/", revision).await.unwrap();
        *held.current.write() = rules("two");
        inner.txn(Txn::delete(KEY, revision)).await.unwrap();
        let error = loop {
            match watch.next().await.expect("the watch ends with an error") {
                Ok(batch) => assert!(batch.events.is_empty(), "{:?}", batch.events),
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, StoreError::Unreadable(all) if all[0].key == KEY), "{error}");
        inner.close();
    }

    #[test]
    fn keys_belong_to_resources() {
        let resources =
            [("secrets", "secrets"), ("apiregistration.k8s.io/apiservices", "apiservices.apiregistration.k8s.io")];
        let resources = resources.map(|(prefix, name)| (prefix.to_owned(), name.to_owned())).into();
        let rules = Rules { resources, ..Rules::default() };
        for (key, resource) in [
            ("/registry/secrets/default/a", Some("secrets")),
            ("/registry/apiregistration.k8s.io/apiservices/v1.apps", Some("apiservices.apiregistration.k8s.io")),
            ("/registry/example.com/widgets/default/a", Some("widgets.example.com")),
            ("/registry/ranges/serviceips", None),
            ("/other", None),
        ] {
            assert_eq!(rules.resource(key).as_deref(), resource, "{key}");
        }
    }
}
