//! The ConfigMaps and Secrets that this node's pods refer to: each watched alone, for as long as a
//! pod here uses it. A node may read only these, and memory holds only these.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use component::{Kind, Supervisor};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use tokio::sync::watch;

type Key = (String, String);

/// What is known of one object.
#[derive(Debug)]
enum Known<K> {
    /// The first list is under way.
    Waiting,
    Absent,
    Present(Arc<K>),
    /// The first list failed; the message is the server's. It is tried again.
    Failed(String),
}

struct Entry<K> {
    /// UIDs of the pods that refer to the object.
    users: HashSet<String>,
    known: watch::Sender<Known<K>>,
    watcher: Supervisor,
}

/// Objects of one kind, each watched while it has users.
pub struct Objects<K> {
    client: Client,
    supervisor: Supervisor,
    /// Called with the UID of each pod that uses an object that changed.
    changed: Arc<dyn Fn(&str) + Send + Sync>,
    entries: Arc<Mutex<HashMap<Key, Entry<K>>>>,
}

impl<K> Objects<K>
where
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    pub fn new(client: Client, supervisor: &Supervisor, changed: Arc<dyn Fn(&str) + Send + Sync>) -> Self {
        Self { client, supervisor: supervisor.clone(), changed, entries: Arc::default() }
    }

    /// The object as it is now, or none if there is no such object. From now on `pod_uid` hears of
    /// its changes, until [`Objects::release`].
    pub async fn get(&self, namespace: &str, name: &str, pod_uid: &str) -> Result<Option<Arc<K>>, String> {
        let mut known = self.subscribe(namespace, name, pod_uid);
        let known = known.wait_for(|known| !matches!(known, Known::Waiting)).await;
        match known.as_deref() {
            Ok(Known::Present(object)) => Ok(Some(object.clone())),
            Ok(Known::Failed(message)) => Err(message.clone()),
            Ok(Known::Absent) => Ok(None),
            // The sender lives in the table until the object is released.
            Ok(Known::Waiting) | Err(_) => Err(format!("the watch of {namespace}/{name} ended; the pod was torn down")),
        }
    }

    /// The pod is gone. Objects that no other pod uses are not watched any more.
    pub fn release(&self, pod_uid: &str) {
        self.entries.lock().retain(|_, entry| {
            entry.users.remove(pod_uid);
            if entry.users.is_empty() {
                entry.watcher.cancel();
            }
            !entry.users.is_empty()
        });
    }

    fn subscribe(&self, namespace: &str, name: &str, pod_uid: &str) -> watch::Receiver<Known<K>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut entries = self.entries.lock();
        let entry = entries.entry(key.clone()).or_insert_with(|| self.start(&key));
        entry.users.insert(pod_uid.to_owned());
        entry.known.subscribe()
    }

    fn start(&self, key: &Key) -> Entry<K> {
        let watcher = self.supervisor.child(format_args!("{}-{}", key.0, key.1));
        let known = watch::Sender::new(Known::Waiting);
        let api: Api<K> = Api::namespaced(self.client.clone(), &key.0);
        let follow = follow(api, key.clone(), known.clone(), Arc::downgrade(&self.entries), self.changed.clone());
        watcher.spawn("watch", follow);
        Entry { users: HashSet::new(), known, watcher }
    }
}

async fn follow<K: Kind>(
    api: Api<K>,
    key: Key,
    known: watch::Sender<Known<K>>,
    entries: std::sync::Weak<Mutex<HashMap<Key, Entry<K>>>>,
    changed: Arc<dyn Fn(&str) + Send + Sync>,
) {
    let config = watcher::Config::default().any_semantic().fields(&format!("metadata.name={}", key.1));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut listed = None;
    let publish = |object: Option<K>| {
        let next = object.map_or(Known::Absent, |object| Known::Present(Arc::new(object)));
        let first = matches!(known.send_replace(next), Known::Waiting);
        // A pod that waits for the first list is told by the channel itself.
        if let Some(entries) = entries.upgrade().filter(|_| !first) {
            let users: Vec<String> =
                entries.lock().get(&key).map(|entry| entry.users.iter().cloned().collect()).unwrap_or_default();
            users.iter().for_each(|uid| changed(uid));
        }
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = None,
            Ok(watcher::Event::InitApply(object)) => listed = Some(object),
            Ok(watcher::Event::InitDone) => publish(listed.take()),
            Ok(watcher::Event::Apply(object)) => publish(Some(object)),
            Ok(watcher::Event::Delete(_)) => publish(None),
            Err(error) => {
                let message = server_message(&error);
                tracing::debug!(
                    namespace = key.0,
                    name = key.1,
                    message,
                    "watching an object of a pod failed; it will be tried again"
                );
                known.send_if_modified(|known| {
                    let first = matches!(known, Known::Waiting | Known::Failed(_));
                    if first {
                        *known = Known::Failed(message);
                    }
                    first
                });
            }
        }
    }
}

/// The server's own words where it answered.
fn server_message(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => status.message.clone(),
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.message.clone(),
        other => other.to_string(),
    }
}
