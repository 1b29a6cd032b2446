//! Secondary indexes over an informer: its objects by a computed key (owner, node, namespace).
//!
//! An index is an informer's handler. Create it before the handlers that enqueue keys, so that a
//! reconcile which an event starts sees that event in the index.

use std::collections::HashMap;
use std::sync::Arc;

use component::{Informer, Kind};
use kube::ResourceExt;
use parking_lot::RwLock;

type Name = (String, String);
/// Key → the objects under it, by namespace and name.
type Buckets<K> = HashMap<String, HashMap<Name, Arc<K>>>;

pub struct Index<K> {
    buckets: Arc<RwLock<Buckets<K>>>,
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self { buckets: self.buckets.clone() }
    }
}

impl<K: Kind> Index<K> {
    /// `keys` computes the buckets of one object; it must depend on nothing but the object.
    pub fn new(informer: &Informer<K>, keys: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) -> Self {
        let index = Self { buckets: Arc::default() };
        let target = index.clone();
        informer.on_change(move |change| {
            let mut buckets = target.buckets.write();
            if let Some(old) = change.old {
                for key in keys(old) {
                    let Some(bucket) = buckets.get_mut(&key) else { continue };
                    bucket.remove(&name_of(&**old));
                    if bucket.is_empty() {
                        buckets.remove(&key);
                    }
                }
            }
            if let Some(new) = change.new {
                for key in keys(new) {
                    buckets.entry(key).or_default().insert(name_of(&**new), new.clone());
                }
            }
        });
        index
    }

    pub fn get(&self, key: &str) -> Vec<Arc<K>> {
        self.buckets.read().get(key).map(|bucket| bucket.values().cloned().collect()).unwrap_or_default()
    }
}

fn name_of<K: kube::Resource>(object: &K) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(name: &str, node: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("default".into());
        pod.spec = Some(k8s_openapi::api::core::v1::PodSpec { node_name: Some(node.into()), ..Default::default() });
        pod
    }

    #[test]
    fn an_object_moves_between_buckets_and_leaves_them() {
        let informer = Informer::<Pod>::detached();
        informer.apply(pod("a", "n1"));
        let index = Index::new(&informer, |pod: &Pod| pod.spec.iter().filter_map(|s| s.node_name.clone()).collect());
        assert_eq!(index.get("n1").len(), 1);
        informer.apply(pod("a", "n2"));
        assert!(index.get("n1").is_empty());
        assert_eq!(index.get("n2").len(), 1);
        informer.remove(&("default".into(), "a".into()));
        assert!(index.buckets.read().is_empty());
    }
}
