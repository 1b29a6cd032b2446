//! What is served of one definition: an endpoint for each of its versions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::convert::{Converter, Served};
use super::hooks::SchemaHooks;
use super::resource::{self, Custom};
use crate::cache::Cache;
use crate::discovery;
use crate::resource::{Descriptor, Resource, api_version};
use crate::resources::Endpoint;
use crate::server::Api;

pub struct ServedDefinition {
    /// One for each version, the preferred first.
    pub endpoints: Vec<Arc<Endpoint>>,
    made_from: MadeFrom,
}

/// Names the parts of a definition that its endpoints are made from.
struct MadeFrom {
    uid: Value,
    /// May change where the spec does not.
    generation: Value,
    spec: [u8; 32],
    names: Value,
}

impl ServedDefinition {
    /// None if no version of it can be served.
    pub fn of(definition: &Value, names: &Value, api: &Arc<Api>) -> Option<Self> {
        let mut versions = resource::read(definition, names)?;
        versions.sort_by_key(|custom| std::cmp::Reverse(discovery::version_priority(custom.descriptor.hub_version())));
        // A version that objects may lie in cannot be taken from the definition.
        let several = definition["spec"]["versions"].as_array().is_some_and(|versions| versions.len() > 1);
        let stored = versions.iter().find(|custom| custom.descriptor.stored_as.is_none());
        let stored = Arc::new(Served {
            converter: Arc::new(Converter::new(definition, api)),
            api_version: stored.map(|custom| own_version(&custom.descriptor)).unwrap_or_default(),
            schema: stored.and_then(|custom| custom.schema.clone()),
        });
        let endpoints = versions.into_iter().map(|custom| endpoint(api, custom, &stored, several)).collect();
        Some(Self { endpoints, made_from: MadeFrom::of(definition, names) })
    }

    /// Whether this is what would be made of the definition.
    pub fn is_of(&mut self, definition: &Value, names: &Value) -> bool {
        let (made_from, metadata) = (&mut self.made_from, &definition["metadata"]);
        if made_from.uid != metadata["uid"] || made_from.names != *names {
            return false;
        }
        if made_from.generation != metadata["generation"] {
            if made_from.spec != digest(definition) {
                return false;
            }
            made_from.generation = metadata["generation"].clone();
        }
        true
    }

    /// Nothing more is created once a definition is deleted.
    pub fn set_terminating(&self, terminating: bool) {
        self.endpoints.iter().for_each(|endpoint| endpoint.terminating.store(terminating, Ordering::Relaxed));
    }

    pub fn stop(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.cache.stop());
    }

    pub fn prefix(&self) -> &str {
        self.endpoints.first().map_or("", |endpoint| &endpoint.descriptor().storage_prefix)
    }
}

impl MadeFrom {
    fn of(definition: &Value, names: &Value) -> Self {
        let metadata = &definition["metadata"];
        Self {
            uid: metadata["uid"].clone(),
            generation: metadata["generation"].clone(),
            spec: digest(definition),
            names: names.clone(),
        }
    }
}

fn digest(definition: &Value) -> [u8; 32] {
    Sha256::digest(definition["spec"].to_string()).into()
}

/// `group/version` of the one version that a definition's endpoint serves.
fn own_version(descriptor: &Descriptor) -> String {
    api_version(descriptor.hub_group(), descriptor.hub_version())
}

fn endpoint(api: &Arc<Api>, custom: Custom, stored: &Arc<Served>, several: bool) -> Arc<Endpoint> {
    let Custom { descriptor, schema, constraints } = custom;
    let (converter, version) = (stored.converter.clone(), own_version(&descriptor));
    let decoder = Arc::new(Served { converter, api_version: version, schema: schema.clone() });
    let hooks = SchemaHooks {
        schema: schema.clone(),
        constraints,
        columns: descriptor.columns.clone(),
        scale: descriptor.scale.clone(),
        decoder: decoder.clone(),
        stored: stored.clone(),
        several,
    };
    let descriptor = Arc::new(descriptor);
    let cache = Cache::decoding(descriptor.clone(), api.store.clone(), &api.supervisor, Some(decoder));
    Endpoint::custom(Resource { descriptor, hooks: Arc::new(hooks) }, cache, vec![schema])
}
