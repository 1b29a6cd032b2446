//! Watch-fed caches, one per kind and process.
//!
//! An [`Informer`] keeps every object of one kind (or of one selector) as shared typed values and
//! calls its handlers on each change, synchronously and in order. A handler must only compute and
//! enqueue (typically `queue.add(key)`): it runs on the watch task. That keeps every consumer
//! bounded without a channel per consumer: a [`crate::WorkQueue`] holds each key once.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::Supervisor;

/// A kind an informer can hold.
pub trait Kind:
    Resource<DynamicType: Default + Eq + Hash + Clone> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}
impl<K> Kind for K where
    K: Resource<DynamicType: Default + Eq + Hash + Clone> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

/// One change of one object: `old` is none when it appeared, `new` is none when it went.
#[derive(Debug)]
pub struct Change<'a, K> {
    pub old: Option<&'a Arc<K>>,
    pub new: Option<&'a Arc<K>>,
}

impl<'a, K> Change<'a, K> {
    /// The newest known version of the object.
    pub fn object(&self) -> &'a Arc<K> {
        // A change always has at least one side: it is only built by `Informer` below.
        match (self.new, self.old) {
            (Some(object), _) | (None, Some(object)) => object,
            (None, None) => unreachable!("a change without an object"),
        }
    }
}

type Key = (String, String);
type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// The objects of one kind, kept current by a watch. Cloning shares the cache.
pub struct Informer<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    objects: RwLock<HashMap<Key, Arc<K>>>,
    /// Held while a change is applied and announced, so that a handler added meanwhile
    /// sees every object exactly once.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: Kind> Informer<K> {
    /// An informer that nothing feeds: for tests, which call [`Informer::apply`] and
    /// [`Informer::remove`] themselves.
    pub fn detached() -> Self {
        Self {
            inner: Arc::new(Inner {
                objects: RwLock::default(),
                handlers: Mutex::default(),
                synced: watch::Sender::new(false),
            }),
        }
    }

    /// `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.inner.objects.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.objects.read().values().cloned().collect()
    }

    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.inner
            .objects
            .read()
            .iter()
            .filter(|((ns, _), _)| ns == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub fn len(&self) -> usize {
        self.inner.objects.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns once the first complete list is in the cache.
    pub async fn synced(&self) {
        // The sender lives in `self.inner`, so waiting cannot fail.
        let _ = self.inner.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Calls `handler` for every object held now (as appearing) and on each later change.
    /// It must not block, and must not call back into this informer's `on_change`.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.inner.handlers.lock();
        for object in self.list() {
            handler(&Change { old: None, new: Some(&object) });
        }
        handlers.push(Box::new(handler));
    }

    /// Puts an object in and tells the handlers.
    pub fn apply(&self, object: K) {
        let key = key_of(&object);
        let new = Arc::new(object);
        let handlers = self.inner.handlers.lock();
        let old = self.inner.objects.write().insert(key, new.clone());
        for handler in handlers.iter() {
            handler(&Change { old: old.as_ref(), new: Some(&new) });
        }
    }

    /// Takes an object out and tells the handlers.
    pub fn remove(&self, key: &(String, String)) {
        let handlers = self.inner.handlers.lock();
        let Some(old) = self.inner.objects.write().remove(key) else { return };
        for handler in handlers.iter() {
            handler(&Change { old: Some(&old), new: None });
        }
    }

    /// Marks the first list complete. Tests with a detached informer call it themselves.
    pub fn mark_synced(&self) {
        self.inner.synced.send_replace(true);
    }

    async fn follow(self, api: Api<K>, config: watcher::Config) {
        let _ended = Ended(self.clone());
        let mut relisted: Option<Vec<K>> = None;
        let mut events = std::pin::pin!(kube::runtime::WatchStreamExt::default_backoff(watcher(api, config)));
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => relisted = Some(Vec::new()),
                Ok(watcher::Event::InitApply(object)) => match &mut relisted {
                    Some(list) => list.push(object),
                    None => self.apply(object),
                },
                Ok(watcher::Event::InitDone) => {
                    self.replace(relisted.take().unwrap_or_default());
                    self.mark_synced();
                }
                Ok(watcher::Event::Apply(object)) => self.apply(object),
                Ok(watcher::Event::Delete(object)) => self.remove(&key_of(&object)),
                Err(error) => {
                    let error = brief_watch(&error);
                    tracing::warn!(kind = %K::kind(&K::DynamicType::default()), error, "watch failed; it will be retried");
                }
            }
        }
    }

    fn replace(&self, list: Vec<K>) {
        let mut gone: std::collections::HashSet<Key> = self.inner.objects.read().keys().cloned().collect();
        for object in list {
            let key = key_of(&object);
            gone.remove(&key);
            let known = self.inner.objects.read().get(&key).and_then(|old| old.resource_version());
            if known.is_none() || known != object.resource_version() {
                self.apply(object);
            }
        }
        for key in gone {
            self.remove(&key);
        }
    }
}

/// Lets the handlers go with the watch, however it ends: they hold caches, often this very one, which would stay
/// for as long as the process. A server that loses its lead and wins it again starts all of them anew.
struct Ended<K>(Informer<K>);

impl<K> Drop for Ended<K> {
    fn drop(&mut self) {
        // Not under the lock: with them goes what they alone held.
        let handlers = std::mem::take(&mut *self.0.inner.handlers.lock());
        drop(handlers);
    }
}

fn brief_watch(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => crate::brief(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn key_of<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// A kind and the selector that narrows it.
type Selected = (TypeId, String);

/// The process's informers: asking twice for a kind and selector gives the same cache.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    supervisor: Supervisor,
    started: Arc<Mutex<HashMap<Selected, Box<dyn Any + Send>>>>,
}

impl Informers {
    pub fn new(client: Client, supervisor: &Supervisor) -> Self {
        Self { client, supervisor: supervisor.child("informers"), started: Arc::default() }
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Every object of a kind, in all namespaces.
    pub fn of<K: Kind>(&self) -> Informer<K> {
        self.selected("")
    }

    /// Those matching a field selector, e.g. `spec.nodeName=node-1`.
    pub fn selected<K: Kind>(&self, field_selector: &str) -> Informer<K> {
        let mut started = self.started.lock();
        let key = (TypeId::of::<K>(), field_selector.to_owned());
        if let Some(informer) = started.get(&key).and_then(|any| any.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = Informer::detached();
        let mut config = watcher::Config::default().any_semantic();
        if !field_selector.is_empty() {
            config = config.fields(field_selector);
        }
        let kind = K::kind(&K::DynamicType::default()).into_owned();
        self.supervisor.spawn(kind, informer.clone().follow(Api::all(self.client.clone()), config));
        started.insert(key, Box::new(informer.clone()));
        informer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn config_map(name: &str, version: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("default".into());
        object.metadata.resource_version = Some(version.into());
        object
    }

    #[test]
    fn handlers_see_what_was_there_and_what_changes() {
        let informer = Informer::<ConfigMap>::detached();
        informer.apply(config_map("a", "1"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        informer.on_change(move |change| {
            log.lock().push((change.object().name_any(), change.old.is_some(), change.new.is_some()))
        });
        informer.replace(vec![config_map("b", "2")]);
        assert_eq!(
            *seen.lock(),
            [("a".to_owned(), false, true), ("b".to_owned(), false, true), ("a".to_owned(), true, false)]
        );
        assert!(informer.get("default", "a").is_none());
    }

    #[test]
    fn a_cache_goes_with_its_watch_although_a_handler_holds_it() {
        let informer = Informer::<ConfigMap>::detached();
        let (cache, held) = (Arc::downgrade(&informer.inner), informer.clone());
        informer.on_change(move |_| assert!(held.len() < 2));
        informer.apply(config_map("a", "1"));
        drop(Ended(informer));
        assert!(cache.upgrade().is_none());
    }

    #[test]
    fn a_relist_does_not_announce_what_did_not_change() {
        let informer = Informer::<ConfigMap>::detached();
        informer.apply(config_map("a", "1"));
        let count = Arc::new(Mutex::new(0));
        let counted = count.clone();
        informer.on_change(move |_| *counted.lock() += 1);
        informer.replace(vec![config_map("a", "1")]);
        assert_eq!(*count.lock(), 1, "only the replay");
    }
}
