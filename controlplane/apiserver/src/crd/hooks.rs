//! Hooks of a custom resource: all it has to say is in its schema.
//!
//! Layer: what the registry calls for each write and each row; made by [`super::served`]. Errors come
//! in the order of `customresource/strategy.go` of apiextensions-apiserver.

use std::sync::Arc;

use api::field::{ErrorList, Path};
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;

use super::convert::Served;
use super::resource::cells;
use super::{embedded, replicas};
use crate::error::{ApiError, Result};
use crate::registry::metadata;
use crate::resource::{ALL_BUT_STATUS, Column, Context, Hooks, Paths, ScalePaths};
use crate::schema::Schema;
use crate::schema::constraints::Constraints;

pub struct SchemaHooks {
    pub schema: Option<Schema>,
    pub constraints: Option<Arc<Constraints>>,
    pub columns: Vec<Column>,
    pub scale: Option<ScalePaths>,
    pub decoder: Arc<Served>,
    /// The version that objects are stored in.
    pub stored: Arc<Served>,
    /// Objects may lie in the store in other versions, too.
    pub several: bool,
}

impl SchemaHooks {
    fn validate(&self, ctx: &Context<'_>, new: &Value, old: Option<&Value>) -> ErrorList {
        let constraints = self.constraints.as_deref();
        let mut errors = constraints.map(|constraints| constraints.values(new, old)).unwrap_or_default();
        if let Some(paths) = &self.scale {
            replicas::check_spec(new, paths, &mut errors);
            replicas::check_status(new, paths, &mut errors);
        }
        if let Some(Schema::Custom(schema)) = &self.schema {
            embedded::check(new, schema, &Path::empty(), &mut errors);
        }
        self.check_duplicates(new, old, &mut errors);
        self.check_rules(ctx, new, old, &mut errors);
        errors
    }

    fn check_duplicates(&self, new: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let Some(constraints) = &self.constraints else { return };
        errors.append(&mut constraints.duplicates(new, old, &Path::empty()));
    }

    fn check_rules(&self, ctx: &Context<'_>, new: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let Some(constraints) = &self.constraints else { return };
        for let_pass in constraints.then_rules(new, old, &Path::empty(), errors) {
            ctx.warn(let_pass.to_string());
        }
    }
}

#[async_trait]
impl Hooks for SchemaHooks {
    fn defaults(&self, object: &mut Value) {
        if let Some(Schema::Custom(schema)) = &self.schema {
            schema.fill_defaults(object);
        }
    }

    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn validate_create(&self, ctx: &Context<'_>, object: &Value) -> ErrorList {
        self.validate(ctx, object, None)
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        self.validate(ctx, new, Some(old))
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let constraints = self.constraints.as_deref();
        let mut errors = constraints.map(|constraints| constraints.status_values(new, old)).unwrap_or_default();
        if let Some(paths) = &self.scale {
            replicas::check_status(new, paths, &mut errors);
        }
        self.check_duplicates(new, Some(old), &mut errors);
        self.check_rules(ctx, new, Some(old), &mut errors);
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        unqualified_finalizers(new, old)
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        cells(&self.columns, object, now)
    }

    async fn to_stored(&self, object: Value) -> Result<Value> {
        one(self.stored.fitted(vec![object]).await?)
    }

    fn stored_version(&self) -> Option<&str> {
        self.several.then_some(self.stored.api_version.as_str())
    }

    async fn as_served(&self, object: Value) -> Result<Value> {
        one(self.decoder.values(vec![object]).await?)
    }
}

fn one(objects: Vec<Value>) -> Result<Value> {
    objects.into_iter().next().ok_or_else(|| ApiError::internal("a conversion lost its object"))
}

/// Warnings about new finalizers whose names others might choose as well.
fn unqualified_finalizers(new: &Value, old: Option<&Value>) -> Vec<String> {
    let known = old.map(metadata::finalizers).unwrap_or_default();
    let mut added = metadata::finalizers(new);
    added.retain(|name| !known.contains(name) && !name.contains('/'));
    added.retain(|name| !matches!(*name, "orphan" | "foregroundDeletion" | "kubernetes"));
    added.sort_unstable();
    added.dedup();
    let warning = |name: &&str| {
        let how = if name.contains('.') { " including a path (/)" } else { "" };
        format!(
            "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name{how} to avoid accidental conflicts with other finalizer writers"
        )
    };
    added.iter().map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finalizers_that_others_might_choose_are_warned_about_once() {
        let object = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
        let new = object(json!(["foregroundDeletion", "e.com", "e.com/x", "cleanup", "old"]));
        assert_eq!(
            unqualified_finalizers(&new, Some(&object(json!(["old"])))),
            [
                "metadata.finalizers: \"cleanup\": prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers",
                "metadata.finalizers: \"e.com\": prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers",
            ]
        );
        assert_eq!(unqualified_finalizers(&new, Some(&new)), Vec::<String>::new());
    }
}
