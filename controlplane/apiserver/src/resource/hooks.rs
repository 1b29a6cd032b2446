//! What is particular to a kind.

use std::cmp::Ordering;

use api::field::ErrorList;
use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;

use super::{Ownable, Paths, SwitchedOff, age};
use crate::admit::Cluster;
use crate::authn::UserInfo;
use crate::error::Result;
use crate::registry::delete::Propagation;

/// What hooks may know of the request beside the object.
pub struct Context<'a> {
    pub user: &'a UserInfo,
    /// `create`, `update`, `patch`, ...
    pub verb: &'a str,
    /// API group of the request: a kind served in two groups may have rules for each.
    pub group: &'a str,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    pub name: &'a str,
    /// Empty, `status`, `scale`, `approval`, ...
    pub subresource: &'a str,
    pub dry_run: bool,
    pub now: Timestamp,
    pub cluster: &'a dyn Cluster,
    /// What the client is told beside the answer.
    pub warnings: &'a Mutex<Vec<String>>,
}

impl Context<'_> {
    /// Tells the client, once.
    pub fn warn(&self, text: String) {
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }
}

/// Something taken for a write that is under way (a Service address). When it is not known what
/// became of the write, neither is called: a repair finds out later.
#[async_trait]
pub trait Reservation: Send {
    /// The write is stored.
    async fn commit(self: Box<Self>, cluster: &dyn Cluster);

    /// The write was refused: what was taken for it is given back.
    async fn release(self: Box<Self>, cluster: &dyn Cluster);
}

/// What is particular to one kind. Every method has the behaviour of a plain kind as default.
/// All but `reserve`, `deleted` and `repair` are pure and quick. Objects are in the hub version.
#[async_trait]
pub trait Hooks: Send + Sync + 'static {
    /// Fills in defaults, at create and update, and for objects inside a review or a template.
    fn defaults(&self, _obj: &mut Value) {}

    /// Called after the registry's own preparation (status dropped, metadata set).
    fn prepare_create(&self, _ctx: &Context<'_>, _obj: &mut Value) {}

    /// Called after the registry's own preparation (status kept), before generation is compared.
    fn prepare_update(&self, _ctx: &Context<'_>, _new: &mut Value, _old: &Value) {}

    /// For a write to `status` or another updatable subresource (`ctx.subresource`). The registry
    /// has already put `new`'s part for the subresource into a copy of `old` for `status`; for
    /// others (`approval`, `resize`, `ephemeralcontainers`, `finalize`) this does all of it.
    fn prepare_subresource_update(&self, _ctx: &Context<'_>, _new: &mut Value, _old: &Value) {}

    /// Fields that are dropped because their feature is off.
    fn switched_off(&self) -> SwitchedOff {
        SwitchedOff::default()
    }

    fn validate_create(&self, _ctx: &Context<'_>, _obj: &Value) -> ErrorList {
        ErrorList::new()
    }

    /// `new` also passes what `validate_create` asks for where upstream does so: call it from here.
    fn validate_update(&self, _ctx: &Context<'_>, _new: &Value, _old: &Value) -> ErrorList {
        ErrorList::new()
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, _new: &Value, _old: &Value) -> ErrorList {
        ErrorList::new()
    }

    /// Texts for `Warning` headers of writes to the object itself.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// As [`Hooks::warnings`], of writes to a subresource.
    fn subresource_warnings(&self, _ctx: &Context<'_>, _new: &Value, _old: &Value) -> Vec<String> {
        Vec::new()
    }

    /// The cells of one table row, as many as the descriptor has columns.
    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![obj["metadata"]["name"].clone(), age(obj, now)]
    }

    /// The row's `conditions`, or null.
    fn row_conditions(&self, _obj: &Value) -> Value {
        Value::Null
    }

    /// How the rows of a list are ordered, where not as the list is.
    fn row_order(&self) -> Option<fn(&Value, &Value) -> Ordering> {
        None
    }

    /// Between served versions. The registry rewrites `apiVersion` and calls this only when group
    /// or version really differ. Identical schemas need nothing.
    fn convert(&self, _obj: &mut Value, _from: (&str, &str), _to: (&str, &str)) -> Result<()> {
        Ok(())
    }

    /// An object in the hub version as it is stored, where that is another version.
    async fn to_stored(&self, obj: Value) -> Result<Value> {
        Ok(obj)
    }

    /// The `group/version` that a write stores, where objects may lie in the store in others.
    fn stored_version(&self) -> Option<&str> {
        None
    }

    /// A stored object in the hub version.
    async fn as_served(&self, obj: Value) -> Result<Value> {
        Ok(obj)
    }

    /// Takes what must be unique in the cluster (addresses, ports) and writes it into `new`.
    async fn reserve(
        &self,
        _ctx: &Context<'_>,
        _new: &mut Value,
        _old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reservation>>> {
        Ok(None)
    }

    /// The object has gone from the store.
    async fn deleted(&self, _cluster: &dyn Cluster, _obj: &Value) {}

    /// For `graceful` kinds: the grace period in seconds that a delete gets when it asks for
    /// `asked` (none: the object's own). 0 deletes at once.
    fn grace_period(&self, _obj: &Value, asked: Option<i64>) -> i64 {
        asked.unwrap_or(0)
    }

    /// Called when an object is marked for deletion (`deletionTimestamp` is set): a namespace
    /// becomes `Terminating`.
    fn begin_delete(&self, _obj: &mut Value) {}

    /// Whether the kind marks its objects itself when their deletion begins: then no grace period is noted and
    /// no generation counted.
    fn marks_deletion(&self) -> bool {
        false
    }

    /// Finalizers that a delete adds: they keep the object until what depends on it is cleaned up.
    fn delete_finalizers(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether something other than `metadata.finalizers` keeps a marked object: a namespace's
    /// `spec.finalizers`.
    fn holds_deletion(&self, _obj: &Value) -> bool {
        false
    }

    /// What writes to `status` leave as it was, and so do not own.
    fn reset_by_status(&self) -> Paths {
        &[&["spec"]]
    }

    /// What writes to the object itself (an empty name) or to a subresource other than `status` own;
    /// none: all but a status that is apart.
    fn ownable(&self, _subresource: &str) -> Option<Ownable> {
        None
    }

    /// What deletion does with dependents when the caller says nothing; none: it takes no notice of
    /// them, whatever the caller says.
    fn default_propagation(&self) -> Option<Propagation> {
        Some(Propagation::Background)
    }

    /// Before requests are served, and every few minutes: bring what `reserve` takes in line with
    /// the stored objects.
    async fn repair(&self, _cluster: &dyn Cluster) -> Result<()> {
        Ok(())
    }
}

/// Hooks of a kind with nothing particular.
pub struct Plain;

impl Hooks for Plain {}
