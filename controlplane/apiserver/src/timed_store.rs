//! The store with a clock beside it: how long its operations take, for `/metrics`, under the names
//! that people's dashboards know them by.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use store::{Got, Page, Range, Revision, Store, StoreError, Txn, TxnOutcome, Watch};

use crate::http::metrics::{Histogram, head};
use crate::resource::Resource;

/// Operation, and the resource's storage prefix.
type Kind = (&'static str, String);

pub struct TimedStore {
    inner: Arc<dyn Store>,
    /// Group and plural of the built-in resources, by storage prefix.
    names: HashMap<String, (String, String)>,
    took: RwLock<HashMap<Kind, Arc<Histogram>>>,
}

/// `pods` of `/registry/pods/default/web`, `example.com/widgets` of a custom resource's.
fn prefix_of(key: &str) -> &str {
    let rest = key.strip_prefix("/registry/").unwrap_or(key);
    let mut slashes = rest.match_indices('/').map(|(at, _)| at);
    let first = slashes.next().unwrap_or(rest.len());
    if rest[..first].contains('.') { &rest[..slashes.next().unwrap_or(rest.len())] } else { &rest[..first] }
}

impl TimedStore {
    pub fn new(inner: Arc<dyn Store>, resources: &[Resource]) -> Arc<Self> {
        let names = resources.iter().map(|resource| {
            let descriptor = &resource.descriptor;
            let name = (descriptor.hub_group().to_owned(), descriptor.plural.to_string());
            (descriptor.storage_prefix.to_string(), name)
        });
        Arc::new(Self { inner, names: names.collect(), took: RwLock::default() })
    }

    fn note(&self, operation: &'static str, key: &str, since: Instant) {
        let kind = (operation, prefix_of(key).to_owned());
        let held = self.took.read().get(&kind).cloned();
        held.unwrap_or_else(|| self.took.write().entry(kind).or_default().clone()).observe(since.elapsed());
    }

    pub fn metrics(&self, out: &mut String) {
        let mut all: Vec<(Kind, Arc<Histogram>)> =
            self.took.read().iter().map(|(kind, took)| (kind.clone(), took.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let name = "etcd_request_duration_seconds";
        head(out, name, "ALPHA", "histogram", "Etcd request latency in seconds for each operation and object type.");
        for ((operation, resource), took) in all {
            let (group, resource) = match self.names.get(&resource) {
                Some((group, plural)) => (group.as_str(), plural.as_str()),
                None => resource.split_once('/').unwrap_or(("", &resource)),
            };
            let labels = format!("group=\"{group}\",operation=\"{operation}\",resource=\"{resource}\"");
            took.render(out, name, &labels);
        }
    }
}

#[async_trait::async_trait]
impl Store for TimedStore {
    async fn get(&self, key: &str) -> Result<Got, StoreError> {
        let since = Instant::now();
        let got = self.inner.get(key).await;
        self.note("get", key, since);
        got
    }

    async fn range(&self, range: Range) -> Result<Page, StoreError> {
        let (since, prefix) = (Instant::now(), range.prefix.clone());
        let page = self.inner.range(range).await;
        self.note("list", &prefix, since);
        page
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let (since, key) = (Instant::now(), txn.key.clone());
        let outcome = self.inner.txn(txn).await;
        self.note("update", &key, since);
        outcome
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.inner.watch(prefix, after).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn healthy(&self) -> Result<(), StoreError> {
        self.inner.healthy().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.inner.compact(revision).await
    }

    async fn snapshot(&self) -> Result<std::fs::File, StoreError> {
        self.inner.snapshot().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_their_resource() {
        for (key, prefix) in [
            ("/registry/pods/default/web", "pods"),
            ("/registry/pods/", "pods"),
            ("/registry/example.com/widgets/default/a", "example.com/widgets"),
            (
                "/registry/apiextensions.k8s.io/customresourcedefinitions/",
                "apiextensions.k8s.io/customresourcedefinitions",
            ),
            ("x", "x"),
        ] {
            assert_eq!(prefix_of(key), prefix);
        }
    }
}
