//! Which resources the server serves now: built-in ones and those that definitions add.
//!
//! An [`Endpoint`] is one resource with its cache. [`Resources`] is an immutable index of them;
//! a change of the set swaps the whole index, so that a request keeps the one it began with.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use component::Supervisor;
use store::Store;

use crate::cache::Cache;
use crate::error::ApiError;
use crate::resource::{Descriptor, GroupVersionKind, Hooks, Resource};
use crate::schema::{self, Schema};

/// One resource being served.
pub struct Endpoint {
    pub resource: Resource,
    pub cache: Arc<Cache>,
    /// By served version, for custom resources; built-in kinds are looked up.
    custom_schemas: Vec<Option<Schema>>,
    schemas: OnceLock<Vec<Option<Schema>>>,
    /// Events sent to watchers.
    pub watched: AtomicU64,
    /// Its definition is being deleted: nothing is created any more.
    pub terminating: AtomicBool,
}

impl Endpoint {
    pub fn new(resource: Resource, store: Arc<dyn Store>, supervisor: &Supervisor) -> Arc<Self> {
        let cache = Cache::new(resource.descriptor.clone(), store, supervisor);
        Arc::new(Self {
            resource,
            cache,
            custom_schemas: Vec::new(),
            schemas: OnceLock::new(),
            watched: AtomicU64::new(0),
            terminating: AtomicBool::new(false),
        })
    }

    /// A custom resource; `schemas` are in the order of `served`.
    pub fn custom(resource: Resource, cache: Arc<Cache>, schemas: Vec<Option<Schema>>) -> Arc<Self> {
        Arc::new(Self {
            resource,
            cache,
            custom_schemas: schemas,
            schemas: OnceLock::new(),
            watched: AtomicU64::new(0),
            terminating: AtomicBool::new(false),
        })
    }

    pub fn descriptor(&self) -> &Descriptor {
        &self.resource.descriptor
    }

    pub fn hooks(&self) -> &dyn Hooks {
        &*self.resource.hooks
    }

    /// The schema of a served version; none for versions that are not served.
    pub fn schema(&self, group: &str, version: &str) -> Option<&Schema> {
        let descriptor = self.descriptor();
        let at = descriptor.served.iter().position(|served| served.group == group && served.version == version)?;
        let schemas = self.schemas.get_or_init(|| {
            if descriptor.custom {
                return self.custom_schemas.clone();
            }
            let kind = |served: &crate::resource::Served| {
                GroupVersionKind::new(served.group.clone(), served.version.clone(), descriptor.kind.clone())
            };
            descriptor.served.iter().map(|served| schema::lookup(&kind(served))).collect()
        });
        schemas.get(at)?.as_ref()
    }

    pub fn hub_schema(&self) -> Option<&Schema> {
        self.schema(self.descriptor().hub_group(), self.descriptor().hub_version())
    }
}

/// The index.
#[derive(Default)]
pub struct Resources {
    endpoints: Vec<Arc<Endpoint>>,
    /// By plural: few have the same in another group. Asked several times by every write.
    by_plural: foldhash::HashMap<String, Vec<Arc<Endpoint>>>,
}

impl Resources {
    pub fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let mut index = Self::default();
        for endpoint in &endpoints {
            let plural = endpoint.descriptor().plural.to_string();
            // Of several versions of a custom resource the preferred one comes first.
            index.by_plural.entry(plural).or_default().push(endpoint.clone());
        }
        index.endpoints = endpoints;
        index
    }

    pub fn all(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Endpoint>> {
        let serves = |endpoint: &&Arc<Endpoint>| {
            endpoint.descriptor().find_served(group, version).is_some_and(|served| served.served)
        };
        self.by_plural.get(plural)?.iter().find(serves)
    }

    /// By hub group and plural, whatever the version.
    pub fn by_hub(&self, group: &str, plural: &str) -> Option<&Arc<Endpoint>> {
        self.by_plural.get(plural)?.iter().find(|endpoint| endpoint.descriptor().hub_group() == group)
    }

    /// By kind, in any served group version.
    pub fn by_kind(&self, group: &str, kind: &str) -> Option<&Arc<Endpoint>> {
        self.endpoints.iter().find(|endpoint| {
            let descriptor = endpoint.descriptor();
            descriptor.kind == kind && descriptor.served.iter().any(|served| served.group == group)
        })
    }

    /// What is answered where nothing of `group` is served: groups of definitions end with their resources.
    pub fn nothing_in(&self, group: &str) -> ApiError {
        let own = |endpoint: &Arc<Endpoint>| {
            let descriptor = endpoint.descriptor();
            !descriptor.custom && descriptor.served.iter().any(|served| served.group == group)
        };
        if self.endpoints.iter().any(own) { ApiError::no_such_path() } else { ApiError::page_not_found() }
    }

    pub fn has_group_version(&self, group: &str, version: &str) -> bool {
        self.endpoints
            .iter()
            .any(|endpoint| endpoint.descriptor().find_served(group, version).is_some_and(|s| s.served))
    }
}
