//! How hooks, plugins and the server's own parts see and change objects: [`Cluster`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use store::{Txn, TxnOutcome};

use super::{Current, cache_key, metadata};
use crate::admit::{Access, Cluster, RecordChange};
use crate::authn::UserInfo;
use crate::cache::item::{Item, encode, remove_version};
use crate::cache::store_error;
use crate::cache::unreadable::STORE_READ_ERROR;
use crate::error::{ApiError, Result};
use crate::http::inprocess;
use crate::resource::{Descriptor, GroupVersionKind, api_version, split_api_version};
use crate::resources::Endpoint;
use crate::schema::Schema;
use crate::server::Api;

/// Attempts at a record while others write it.
const RECORD_ATTEMPTS: usize = 256;

impl Api {
    fn endpoint(&self, group: &str, plural: &str) -> Result<Arc<Endpoint>> {
        self.resources().by_hub(group, plural).cloned().ok_or_else(|| {
            ApiError::internal(format!("resource {} is not served", crate::error::qualified(group, plural)))
        })
    }
}

/// Kinds of which a cluster has many, or large ones, are decoded whenever they are asked for: a
/// decoded object takes several times the room of its bytes.
fn decoded(descriptor: &Descriptor, item: &Item) -> Arc<Value> {
    const NUMEROUS: [&str; 8] =
        ["pods", "events", "secrets", "configmaps", "nodes", "endpoints", "endpointslices", "persistentvolumeclaims"];
    if NUMEROUS.contains(&&*descriptor.plural) { Arc::new(item.decode()) } else { item.shared() }
}

#[async_trait]
impl Cluster for Api {
    async fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Result<Option<Arc<Value>>> {
        let endpoint = self.endpoint(group, plural)?;
        let (cache, key) = (&endpoint.cache, cache_key(namespace, name));
        let held = async {
            cache.ready().await?;
            if let Some(item) = cache.read().get(&key).cloned() {
                return Ok::<_, ApiError>(Some(item));
            }
            // Absence may be a lag: what the caller asks for may just have been created.
            cache.fresh().await?;
            Ok(cache.read().get(&key).cloned())
        };
        let item = match held.await {
            // Others of its resource cannot be read; this one may be.
            Err(error) if error.reason() == STORE_READ_ERROR => {
                cache.stored(&endpoint.descriptor().key(namespace, name)).await?.map(Arc::new)
            }
            held => held?,
        };
        Ok(item.map(|item| decoded(endpoint.descriptor(), &item)))
    }

    async fn get_live(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Result<Option<Arc<Value>>> {
        let endpoint = self.endpoint(group, plural)?;
        let key = endpoint.descriptor().key(namespace, name);
        let Some(kv) = self.store.get(&key).await.map_err(store_error)?.kv else { return Ok(None) };
        Ok(Some(Arc::new(Current::from_stored(&kv)?.value)))
    }

    async fn list(&self, group: &str, plural: &str, namespace: &str) -> Result<Vec<Arc<Value>>> {
        let endpoint = self.endpoint(group, plural)?;
        endpoint.cache.ready().await?;
        let items: Vec<_> = endpoint.cache.read().scan(namespace).cloned().collect();
        Ok(items.iter().map(|item| decoded(endpoint.descriptor(), item)).collect())
    }

    async fn update(&self, group: &str, plural: &str, subresource: &str, mut object: Value) -> Result<Arc<Value>> {
        let endpoint = self.endpoint(group, plural)?;
        let descriptor = endpoint.descriptor();
        let (namespace, name) =
            (metadata::text(&object, "namespace").to_owned(), metadata::text(&object, "name").to_owned());
        let expected = metadata::text(&object, "resourceVersion").parse::<u64>().unwrap_or(0);
        let key = descriptor.key(&namespace, &name);
        let current = self.store.get(&key).await.map_err(store_error)?.kv;
        let Some(kv) = current else { return Err(ApiError::not_found(group, plural, &name)) };
        let Current { value: old, revision } = Current::from_stored(&kv)?;
        if expected != 0 && expected != revision {
            return Err(ApiError::modified(group, plural, &name));
        }
        metadata::keep_system_fields(&mut object, &old)?;
        match subresource {
            "status" => metadata::only_status(endpoint.hooks().reset_by_status(), &mut object, &old)?,
            _ => metadata::bump_generation(descriptor, &mut object, &old),
        }
        remove_version(&mut object);
        let stored = Bytes::from(encode(&object));
        let txn = Txn::update(key, revision, stored.clone());
        match self.store.txn(txn).await.map_err(store_error)? {
            TxnOutcome::Done { revision } => {
                Ok(Arc::new(super::write::written(object, &stored, revision, false).value))
            }
            TxnOutcome::Conflict { .. } => Err(ApiError::modified(group, plural, &name)),
        }
    }

    async fn create(&self, group: &str, plural: &str, mut object: Value) -> Result<Arc<Value>> {
        let endpoint = self.endpoint(group, plural)?;
        let descriptor = endpoint.descriptor();
        let kind = descriptor.hub_kind();
        metadata::check_type(&mut object, &kind.api_version(), &kind.kind, false)?;
        endpoint.hooks().defaults(&mut object);
        let status = object.get("status").cloned();
        metadata::prepare_create(descriptor, &mut object, Timestamp::now())?;
        // The server's own objects may come with a status.
        if let (Some(status), Some(map)) = (status, object.as_object_mut()) {
            map.insert("status".into(), status);
        }
        let name = metadata::text(&object, "name").to_owned();
        let key = descriptor.key(metadata::text(&object, "namespace"), &name);
        let stored = Bytes::from(encode(&object));
        let mut txn = Txn::create(key, stored.clone());
        if let Some(seconds) = descriptor.ttl {
            txn = txn.with_ttl(std::time::Duration::from_secs(seconds));
        }
        match self.store.txn(txn).await.map_err(store_error)? {
            TxnOutcome::Done { revision } => Ok(Arc::new(super::write::written(object, &stored, revision, true).value)),
            TxnOutcome::Conflict { .. } => Err(ApiError::already_exists(group, plural, &name)),
        }
    }

    async fn submit(&self, group: &str, plural: &str, mut object: Value) -> Result<Arc<Value>> {
        let endpoint = self.endpoint(group, plural)?;
        let descriptor = endpoint.descriptor();
        let kind = descriptor.hub_kind();
        metadata::check_type(&mut object, &kind.api_version(), &kind.kind, false)?;
        let root = if kind.group.is_empty() { "api" } else { "apis" };
        let namespace = match metadata::text(&object, "namespace") {
            namespace if descriptor.namespaced => format!("namespaces/{namespace}/"),
            _ => String::new(),
        };
        let path = format!("/{root}/{}/{namespace}{plural}", kind.api_version());
        inprocess::create(self.this()?, &path, &object).await.map(Arc::new)
    }

    async fn delete(&self, group: &str, plural: &str, object: &Value) -> Result<()> {
        let endpoint = self.endpoint(group, plural)?;
        let name = metadata::text(object, "name");
        let key = endpoint.descriptor().key(metadata::text(object, "namespace"), name);
        let expected = metadata::text(object, "resourceVersion").parse::<u64>().unwrap_or(0);
        match self.store.txn(Txn::delete(key, expected)).await.map_err(store_error)? {
            TxnOutcome::Done { .. } => Ok(()),
            TxnOutcome::Conflict { current: None, .. } => Err(ApiError::not_found(group, plural, name)),
            TxnOutcome::Conflict { .. } => Err(ApiError::modified(group, plural, name)),
        }
    }

    async fn record(&self, key: &str, change: RecordChange<'_>) -> Result<()> {
        let mut current = self.store.get(key).await.map_err(store_error)?.kv;
        for _ in 0..RECORD_ATTEMPTS {
            let held = current.as_ref().map(|kv| serde_json::from_slice::<Value>(&kv.value));
            let held = held.transpose().map_err(|error| ApiError::internal(format!("decoding {key}: {error}")))?;
            let Some(new) = change(held.as_ref())? else { return Ok(()) };
            let expected = current.as_ref().map_or(0, |kv| kv.mod_revision);
            match self.store.txn(Txn::update(key, expected, new.to_string())).await.map_err(store_error)? {
                TxnOutcome::Done { .. } => return Ok(()),
                TxnOutcome::Conflict { current: newer, .. } => current = newer,
            }
        }
        Err(ApiError::internal(format!("{key} was changed by others {RECORD_ATTEMPTS} times in a row; try again")))
    }

    fn versions(&self, descriptor: &Descriptor) -> Vec<(String, String)> {
        let same = |other: &Descriptor| other.storage_prefix == descriptor.storage_prefix;
        let resources = self.resources();
        let endpoints = resources.all().iter().filter(|endpoint| same(endpoint.descriptor()));
        let served = endpoints.flat_map(|endpoint| endpoint.descriptor().served.iter().filter(|served| served.served));
        served.map(|served| (served.group.to_string(), served.version.to_string())).collect()
    }

    async fn convert(&self, descriptor: &Descriptor, mut object: Value, group: &str, version: &str) -> Result<Value> {
        let resources = self.resources();
        let endpoint = resources.find(group, version, &descriptor.plural).ok_or_else(ApiError::no_such_path)?;
        if descriptor.custom {
            return endpoint.hooks().as_served(object).await;
        }
        let from = object["apiVersion"].as_str().unwrap_or_default().to_owned();
        endpoint.hooks().convert(&mut object, split_api_version(&from), (group, version))?;
        object["apiVersion"] = api_version(group, version).into();
        Ok(object)
    }

    async fn convert_kind(&self, group: &str, kind: &str, object: Value, version: &str) -> Result<Value> {
        let resources = self.resources();
        let endpoint = resources.by_kind(group, kind).ok_or_else(ApiError::no_such_path)?;
        self.convert(endpoint.descriptor(), object, group, version).await
    }

    fn resource_of(&self, group: &str, kind: &str) -> Option<(String, bool)> {
        let resources = self.resources();
        let descriptor = resources.by_kind(group, kind)?.descriptor();
        Some((descriptor.plural.to_string(), descriptor.namespaced))
    }

    fn schema(&self, group: &str, version: &str, kind: &str) -> Option<Schema> {
        let resources = self.resources();
        let custom = resources.all().iter().find(|endpoint| {
            let descriptor = endpoint.descriptor();
            descriptor.custom && descriptor.kind == kind && descriptor.find_served(group, version).is_some()
        });
        match custom {
            Some(endpoint) => endpoint.schema(group, version).cloned(),
            None => {
                crate::schema::lookup(&GroupVersionKind::new(group.to_owned(), version.to_owned(), kind.to_owned()))
            }
        }
    }

    async fn allowed(&self, user: &UserInfo, access: Access<'_>) -> bool {
        self.authz.allowed(self, user, &access.into()).await
    }
}
