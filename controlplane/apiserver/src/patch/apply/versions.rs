//! An object in the versions that the owners of its fields wrote it in: what changed is compared in
//! the version of each of them (`merge.Converter` of structured-merge-diff).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use parking_lot::RwLock;
use serde_json::Value;

use super::fieldset::FieldSet;
use super::managers::Managers;
use super::typed::{self, Difference};
use super::{known_empty, nobodys};
use crate::error::ApiError;
use crate::resource::{Ownable, Paths};
use crate::schema::Schema;

/// The versions of a kind, by `group/version`.
#[async_trait]
pub trait Versions: Send + Sync {
    /// None: there is no such version, any more.
    fn schema(&self, version: &str) -> Option<Schema>;

    async fn convert(&self, object: Value, version: &str) -> Result<Value, ApiError>;
}

/// A kind of one version.
pub struct Only {
    pub version: String,
    pub schema: Schema,
}

impl Only {
    pub fn of(object: &Value, schema: Schema) -> Self {
        Self { version: object["apiVersion"].as_str().unwrap_or_default().to_owned(), schema }
    }
}

#[async_trait]
impl Versions for Only {
    fn schema(&self, version: &str) -> Option<Schema> {
        (version == self.version).then(|| self.schema.clone())
    }

    async fn convert(&self, object: Value, _version: &str) -> Result<Value, ApiError> {
        Ok(object)
    }
}

/// The object in a version of its kind.
pub async fn in_version(versions: &dyn Versions, object: Value, version: &str) -> Result<Value, ApiError> {
    if object["apiVersion"] == version { Ok(object) } else { versions.convert(object, version).await }
}

async fn seen_in<'a>(versions: &dyn Versions, object: &'a Value, version: &str) -> Result<Cow<'a, Value>, ApiError> {
    if object["apiVersion"] == version {
        return Ok(Cow::Borrowed(object));
    }
    versions.convert(object.clone(), version).await.map(Cow::Owned)
}

/// How an object changed, as each version sees it.
pub struct Comparison<'a> {
    versions: &'a dyn Versions,
    old: Option<&'a Value>,
    new: &'a Value,
    /// Fields that this write does not count for.
    ignored: &'a Ignored,
    /// Mostly of one version, never of many.
    known: Vec<(String, Option<Difference>)>,
}

impl<'a> Comparison<'a> {
    pub fn new(versions: &'a dyn Versions, old: Option<&'a Value>, new: &'a Value, ignored: &'a Ignored) -> Self {
        Self { versions, old, new, ignored, known: Vec::new() }
    }

    /// None: there is no such version.
    pub async fn seen_in(&mut self, version: &str) -> Result<Option<&Difference>, ApiError> {
        let at = self.look(version).await?;
        Ok(self.known[at].1.as_ref())
    }

    /// The same, when it is the last that is asked for.
    pub async fn last_seen_in(mut self, version: &str) -> Result<Option<Difference>, ApiError> {
        let at = self.look(version).await?;
        Ok(self.known.swap_remove(at).1)
    }

    async fn look(&mut self, version: &str) -> Result<usize, ApiError> {
        if let Some(at) = self.known.iter().position(|(known, _)| known == version) {
            return Ok(at);
        }
        let found = self.compare(version).await?;
        self.known.push((version.to_owned(), found));
        Ok(self.known.len() - 1)
    }

    async fn compare(&self, version: &str) -> Result<Option<Difference>, ApiError> {
        let Some(schema) = self.versions.schema(version) else { return Ok(None) };
        let new = seen_in(self.versions, self.new, version).await?;
        let difference = match self.old {
            Some(old) => {
                typed::compare(schema.root(), &*seen_in(self.versions, old, version).await?, &new, self.ignored)
            }
            None => typed::compare(schema.root(), &*known_empty(&schema, &new)?, &new, self.ignored),
        };
        Ok(Some(difference))
    }
}

/// Fields that nobody owns by a write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored {
    /// These, and what is below them.
    pub fields: FieldSet,
    /// Everything but what is here.
    pub only: Option<Paths>,
}

impl Ignored {
    /// What may be owned of these fields.
    pub fn left_of(&self, fields: FieldSet) -> FieldSet {
        let fields = fields.recursive_difference(&self.fields);
        match self.only {
            None => fields,
            Some(places) => fields.within(places),
        }
    }
}

/// Of writes to an endpoint: identity, what the server sets, and what the endpoint does not write.
pub fn ignored(ownable: Ownable) -> Arc<Ignored> {
    static KNOWN: LazyLock<RwLock<HashMap<Ownable, Arc<Ignored>>>> = LazyLock::new(RwLock::default);
    if let Some(known) = KNOWN.read().get(&ownable) {
        return known.clone();
    }
    let ignored = Arc::new(nobodys(ownable));
    KNOWN.write().insert(ownable, ignored.clone());
    ignored
}

impl Managers {
    /// Drops who wrote in versions that are gone, and follows what has become atomic since.
    pub fn reconcile(&mut self, versions: &dyn Versions) {
        self.entries.retain(|_, owned| match versions.schema(&owned.api_version) {
            None => false,
            // The types of built-in kinds stay as they are.
            Some(Schema::Builtin(_)) => true,
            Some(schema) => {
                owned.fields = typed::reconciled(schema.root(), std::mem::take(&mut owned.fields));
                true
            }
        });
    }
}
