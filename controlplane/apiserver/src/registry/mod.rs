//! One road for every resource: what happens between an authorized request and the store.
//!
//! A [`Call`] is one request on one resource. [`write`] creates and updates (PUT, PATCH and
//! subresources are the same update with another way of computing the new object), [`delete`]
//! deletes, [`read`] gets, lists and watches from the cache. [`metadata`] holds the pure rules.

pub mod cluster;
pub mod delete;
pub mod metadata;
pub mod patch;
mod pods;
mod position;
pub mod read;
mod reviews;
mod scale;
mod stored;
pub mod subresource;
mod token;
pub mod turns;
pub mod usage;
pub mod watch;
pub mod write;

pub use self::reviews::user_object;

use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::admit::{Attributes, Operation};
use crate::audit::Record;
use crate::authn::UserInfo;
use crate::cache::item::{self, Item};
use crate::cache::unreadable::STORE_READ_ERROR;
use crate::error::{ApiError, Result};
use crate::http::info::RequestInfo;
use crate::http::options::{FieldValidation, WriteOptions};
use crate::http::query::Query;
use crate::resource::{Context, Descriptor, GroupVersionKind, api_version};
use crate::resources::Endpoint;
use crate::schema;
use crate::server::Api;

/// One request on one resource.
pub struct Call {
    pub api: Arc<Api>,
    pub endpoint: Arc<Endpoint>,
    pub user: Arc<UserInfo>,
    pub info: Arc<RequestInfo>,
    pub query: Arc<Query>,
    pub options: WriteOptions,
    /// Who owns the fields that this request sets: `fieldManager`, or the client's name.
    pub manager: String,
    /// A server-side apply, which tracks the owners of fields itself.
    pub applies: bool,
    pub now: Timestamp,
    /// When the request is given up.
    pub deadline: Option<tokio::time::Instant>,
    /// Texts of `Warning` headers.
    pub warnings: Mutex<Vec<String>>,
    /// Where the request is noted for the audit log.
    pub record: Option<Arc<Record>>,
}

/// An object as it is stored, with its `resourceVersion`, in the hub version.
pub struct Current {
    pub value: Value,
    pub revision: u64,
}

impl Current {
    pub fn from_item(item: &Item) -> Self {
        Self { value: item.decode(), revision: item.revision }
    }

    pub fn from_stored(kv: &store::KeyValue) -> Result<Self> {
        let value = item::decode_stored(&kv.value, kv.mod_revision)
            .map_err(|error| ApiError::internal(format!("decoding {}: {error}", kv.key)))?;
        Ok(Self { value, revision: kv.mod_revision })
    }
}

impl Call {
    pub fn descriptor(&self) -> &Descriptor {
        self.endpoint.descriptor()
    }

    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// The kind of this resource in the request's version.
    pub fn kind(&self) -> GroupVersionKind {
        let kind = self.descriptor().kind.clone();
        GroupVersionKind::new(self.info.group.clone(), self.info.version.clone(), kind)
    }

    /// Key of the object in this resource's cache.
    pub fn cache_key(&self) -> String {
        cache_key(&self.info.namespace_of(self.descriptor()), &self.info.name)
    }

    pub fn namespace(&self) -> &str {
        if self.descriptor().namespaced { &self.info.namespace } else { "" }
    }

    pub fn context<'a>(&'a self, name: &'a str) -> Context<'a> {
        Context {
            user: &self.user,
            verb: &self.info.verb,
            group: &self.info.group,
            namespace: self.namespace(),
            name,
            subresource: &self.info.subresource,
            dry_run: self.options.dry_run,
            now: self.now,
            cluster: &*self.api,
            warnings: &self.warnings,
        }
    }

    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.info.group, &self.descriptor().plural, &self.info.name)
    }

    /// The object named by the request, at least as new as every answered write.
    pub async fn current(&self) -> Result<Option<Current>> {
        self.current_or(None).await
    }

    /// The same; `known`, decoded already, if that is it.
    pub async fn current_or(&self, known: Option<Current>) -> Result<Option<Current>> {
        let cache = &self.endpoint.cache;
        let found = match cache.fresh().await {
            Ok(()) => cache.read().get(&self.cache_key()).cloned(),
            Err(error) if error.reason() == STORE_READ_ERROR => self.stored_item().await?,
            Err(error) => return Err(error),
        };
        Ok(match (found, known) {
            (Some(item), Some(known)) if known.revision == item.revision => Some(known),
            (found, _) => found.map(|item| Current::from_item(&item)),
        })
    }

    /// Whether requests in this version need conversion.
    pub fn converts(&self) -> bool {
        let descriptor = self.descriptor();
        descriptor.hub_group() != self.info.group || descriptor.hub_version() != self.info.version
    }

    /// Hub version → the version of the request.
    pub fn to_served(&self, object: &mut Value) -> Result<()> {
        let descriptor = self.descriptor();
        let hub = (descriptor.hub_group(), descriptor.hub_version());
        self.convert(object, hub, (&self.info.group, &self.info.version))
    }

    /// The version of the request → hub version.
    pub fn to_hub(&self, object: &mut Value) -> Result<()> {
        let descriptor = self.descriptor();
        let hub = (descriptor.hub_group(), descriptor.hub_version());
        self.convert(object, (&self.info.group, &self.info.version), hub)
    }

    fn convert(&self, object: &mut Value, from: (&str, &str), to: (&str, &str)) -> Result<()> {
        if from == to {
            return Ok(());
        }
        self.endpoint.hooks().convert(object, from, to)?;
        object["apiVersion"] = api_version(to.0, to.1).into();
        Ok(())
    }

    /// The type in the data must be the one of the path; an absent one is filled in.
    pub fn check_type(&self, object: &mut Value) -> Result<()> {
        let kind = self.kind();
        let own = object["kind"].as_str().filter(|own| !own.is_empty() && *own != kind.kind);
        if let Some(own) = own.filter(|_| self.descriptor().custom) {
            let path = api::field::Path::root("kind");
            let error = api::field::Error::invalid(&path, own, format!("must be {}", kind.kind));
            return Err(ApiError::invalid(&kind.group, &kind.kind, metadata::text(object, "name"), &[error]));
        }
        metadata::check_type(object, &kind.api_version(), &kind.kind, self.descriptor().custom)
    }

    /// Checks and normalises an object that a client sent, by the schema of the request's version.
    /// `duplicates` come from parsing.
    /// What is returned are the unknown and duplicate fields.
    pub fn field_problems(&self, object: &mut Value, duplicates: &[String]) -> Result<Vec<String>> {
        let kind = self.kind();
        self.check_type(object)?;
        // An empty list of owners resets them; decoding would lose it.
        if object["metadata"]["managedFields"].as_array().is_some_and(Vec::is_empty) {
            object["metadata"]["managedFields"] = json!([{}]);
        }
        let mut problems = duplicates.to_vec();
        if let Some(schema) = self.endpoint.schema(&kind.group, &kind.version) {
            problems.extend(schema::normalize(schema, object, &kind)?);
        }
        Ok(problems)
    }

    /// Refuses or warns of unknown and duplicate fields, as the request asks.
    pub fn report_fields(&self, kind: &GroupVersionKind, problems: &[String]) -> Result<()> {
        if problems.is_empty() {
            return Ok(());
        }
        match self.options.field_validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => problems.iter().for_each(|problem| self.warn(problem)),
            FieldValidation::Strict => return Err(schema::normalize::strict_error(kind, problems)),
        }
        Ok(())
    }

    /// `CreateOptions` and so on, as admission sees them.
    pub fn options_object(&self, kind: &str) -> Value {
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.options.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if !self.options.field_manager.is_empty() {
            options["fieldManager"] = self.options.field_manager.as_str().into();
        }
        if self.options.field_validation == FieldValidation::Strict {
            options["fieldValidation"] = "Strict".into();
        }
        options
    }

    pub fn attributes<'a>(
        &'a self,
        operation: Operation,
        object: Value,
        old: Option<&'a Value>,
        options: &'a Value,
    ) -> Attributes<'a> {
        Attributes {
            user: &self.user,
            descriptor: self.descriptor(),
            group: &self.info.group,
            version: &self.info.version,
            subresource: &self.info.subresource,
            operation,
            namespace: &self.info.namespace,
            name: &self.info.name,
            object,
            old,
            options,
            dry_run: self.options.dry_run,
            deadline: self.deadline,
            patched: false,
            warnings: Vec::new(),
            audit: Vec::new(),
        }
    }

    /// Takes over what plugins want to be said of the request.
    fn note(&self, attributes: &mut Attributes<'_>) {
        for warning in std::mem::take(&mut attributes.warnings) {
            self.warn(warning);
        }
        if let Some(record) = &self.record {
            attributes.audit.drain(..).for_each(|(key, value)| record.annotate(key, value));
        }
    }

    /// Whether what is done to a pod was admitted before, as what asked for it: a `Binding` binds it, an
    /// `Eviction` deletes it.
    fn is_admitted(&self, operation: Operation) -> bool {
        operation != Operation::Create && matches!(self.info.subresource.as_str(), "binding" | "eviction")
    }

    /// Runs the mutating half of admission; gives the object back.
    pub async fn mutate(
        &self,
        operation: Operation,
        object: Value,
        old: Option<&Value>,
        options: &Value,
    ) -> Result<Value> {
        if self.is_admitted(operation) {
            return Ok(object);
        }
        let mut attributes = self.attributes(operation, object, old, options);
        for plugin in self.api.admission.iter() {
            if plugin.handles(&attributes) {
                let outcome = plugin.mutate(&mut attributes, &*self.api).await;
                outcome.inspect_err(|_| self.note(&mut attributes))?;
            }
        }
        self.note(&mut attributes);
        let mut object = attributes.object;
        let kind = self.descriptor().hub_kind();
        if attributes.patched && object["kind"] == *kind.kind {
            // What the type does not know goes, as when a client sends it.
            if let Some(schema) = self.endpoint.hub_schema() {
                schema::normalize(schema, &mut object, &kind).map_err(ApiError::internal)?;
            }
        }
        Ok(object)
    }

    /// Runs the validating half of admission.
    pub async fn validate(
        &self,
        operation: Operation,
        object: Value,
        old: Option<&Value>,
        options: &Value,
    ) -> Result<Value> {
        if self.is_admitted(operation) {
            return Ok(object);
        }
        let mut attributes = self.attributes(operation, object, old, options);
        for plugin in self.api.admission.iter() {
            if plugin.handles(&attributes) {
                let outcome = plugin.validate(&mut attributes, &*self.api).await;
                outcome.inspect_err(|_| self.note(&mut attributes))?;
            }
        }
        self.note(&mut attributes);
        Ok(attributes.object)
    }
}

impl RequestInfo {
    /// The namespace that objects of this resource are in: none for cluster-scoped ones, also for
    /// namespaces themselves.
    pub fn namespace_of(&self, descriptor: &Descriptor) -> String {
        if descriptor.namespaced { self.namespace.clone() } else { String::new() }
    }
}

pub fn cache_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { [namespace, "/", name].concat() }
}
