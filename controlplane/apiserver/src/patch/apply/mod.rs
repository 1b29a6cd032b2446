//! Server-side apply and the bookkeeping of plain writes
//! (`k8s.io/apimachinery/pkg/util/managedfields`, `sigs.k8s.io/structured-merge-diff/merge`).
//!
//! [`apply`] merges a configuration into the live object: what it names becomes its manager's;
//! what it named before and no longer does goes, unless someone else owns it; what others own and
//! it would change is a conflict, unless forced. [`track_update`] notes for every other write which
//! fields it changed. [`typed`] walks values, [`fieldset`] is the sets of fields, [`managers`] the
//! `managedFields` list. All are pure, but that owners who wrote in another version are compared in
//! that one, which a webhook may have to convert to: [`versions`].

mod client_side;
pub mod fieldset;
pub mod managers;
pub(crate) mod typed;
mod update;
pub mod versions;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use parking_lot::RwLock;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::resource::{GroupVersionKind, Ownable, split_api_version};
use crate::schema::table::TypeId;
use crate::schema::{Schema, normalize};
use fieldset::FieldSet;
use managers::{Manager, Managers, Operation, Owned};
pub use update::track_update;
use versions::{Comparison, Ignored, Versions, ignored, in_version};

/// Owns what an object had before anyone applied to it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// kubectl's name for its own server-side apply: it takes over from its client-side one.
const KUBECTL: &str = "kubectl";

/// Who writes, by way of which endpoint.
pub struct Write<'a> {
    pub versions: &'a dyn Versions,
    /// The `group/version` of the request: fields are noted as that has them.
    pub version: &'a str,
    pub manager: &'a str,
    pub subresource: &'a str,
    /// What this endpoint writes.
    pub ownable: Ownable,
    pub now: Timestamp,
}

impl Write<'_> {
    fn schema(&self) -> Result<Schema, ApiError> {
        let none = || ApiError::internal(format!("no schema of {}: its fields have no owners", self.version));
        self.versions.schema(self.version).ok_or_else(none)
    }

    /// When the owner took its fields; by way of `scale` upstream does not note it.
    fn time(&self) -> String {
        if self.is_scale() { String::new() } else { crate::schema::time_text(self.now) }
    }

    fn is_scale(&self) -> bool {
        self.subresource == "scale"
    }

    fn ignored(&self) -> Arc<Ignored> {
        ignored(self.ownable)
    }
}

/// Applies a configuration; the result carries the new `managedFields` and is normalised.
///
/// `live`, in the version of the request, is `None` when the object does not exist. The
/// configuration is taken as it was sent: it must not have been normalised, since what it names it
/// owns.
pub async fn apply(write: &Write<'_>, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, ApiError> {
    let schema = &write.schema()?;
    let mut config = config.clone();
    let gvk = kind_of(&config);
    if config["metadata"].get("managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    check(schema, &mut config, &gvk)?;
    let base = match live {
        Some(live) => without_managed_fields(live),
        None => empty_object(schema, &config, &gvk)?,
    };
    let mut managers = live.map(read_managers).unwrap_or_default();
    if managers.entries.is_empty() && live.is_some() {
        let before = Manager::new(Operation::Update, BEFORE_FIRST_APPLY, write.version, write.subresource);
        let empty = empty_object(schema, &base, &gvk)?;
        let found = typed::compare(schema.root(), &empty, &base, &write.ignored());
        managers.add(before, found.added.union(found.modified), write.version, crate::schema::time_text(write.now));
    }
    let request = Request { write, schema, base: &base, config: &config };
    let outcome = match request.merge(managers.clone(), force).await? {
        // kubectl's own client-side apply is no conflict: this is how people move over.
        Err(conflicts) if write.manager == KUBECTL && !force => {
            let allowed = client_side::last_applied_fields(schema, &base, &gvk);
            let rest: Conflicts = conflicts
                .into_iter()
                .map(|(manager, fields)| (manager, fields.difference(&allowed)))
                .filter(|(_, fields)| !fields.is_empty())
                .collect();
            if rest.is_empty() { request.merge(managers, true).await? } else { Err(rest) }
        }
        other => other,
    };
    let (mut object, managers) = outcome.map_err(|conflicts| conflict_error(&conflicts, write.is_scale()))?;
    if write.manager == KUBECTL {
        client_side::renew_last_applied(&mut object, &config);
    }
    object["apiVersion"] = config["apiVersion"].clone();
    object["kind"] = config["kind"].clone();
    normalize(schema, &mut object, &gvk)?;
    managers.write(&mut object);
    Ok(object)
}

fn read_managers(object: &Value) -> Managers {
    Managers::read(&object["metadata"]["managedFields"]).unwrap_or_default()
}

fn kind_of(object: &Value) -> GroupVersionKind {
    let (group, version) = split_api_version(object["apiVersion"].as_str().unwrap_or_default());
    let kind = object["kind"].as_str().unwrap_or_default();
    GroupVersionKind::new(group.to_owned(), version.to_owned(), kind.to_owned())
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

/// What the types give an object that says nothing: the other side of comparing a new one.
fn empty_object(schema: &Schema, like: &Value, gvk: &GroupVersionKind) -> Result<Value, ApiError> {
    let mut empty = json!({"apiVersion": like["apiVersion"], "kind": like["kind"]});
    normalize(schema, &mut empty, gvk)?;
    Ok(empty)
}

/// The same, which is not made anew for each object of a built-in kind.
fn known_empty(schema: &Schema, like: &Value) -> Result<Arc<Value>, ApiError> {
    static KNOWN: LazyLock<RwLock<HashMap<TypeId, Arc<Value>>>> = LazyLock::new(RwLock::default);
    let Schema::Builtin(id) = schema else { return empty_object(schema, like, &kind_of(like)).map(Arc::new) };
    if let Some(empty) = KNOWN.read().get(id) {
        return Ok(empty.clone());
    }
    let empty = Arc::new(empty_object(schema, like, &kind_of(like))?);
    KNOWN.write().insert(*id, empty.clone());
    Ok(empty)
}

/// A configuration says of what kind it is: of the one that it is applied to.
pub fn check_kind(config: &Value, wanted: &GroupVersionKind) -> Result<(), ApiError> {
    let given = kind_of(config);
    if given == *wanted {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("invalid object type: {}", shown_kind(&given))))
}

/// `apps/v1, Kind=Deployment`, of the core group `/v1, Kind=Pod`.
fn shown_kind(gvk: &GroupVersionKind) -> String {
    format!("{}/{}, Kind={}", gvk.group, gvk.version, gvk.kind)
}

/// Canonicalises a configuration and refuses what cannot be merged.
fn check(schema: &Schema, config: &mut Value, gvk: &GroupVersionKind) -> Result<(), ApiError> {
    let mut problems = Vec::new();
    typed::check(schema.root(), config, "", &mut problems);
    if problems.is_empty() {
        crate::schema::normalize_literal(schema, config, gvk)?;
        return Ok(());
    }
    let problems = match problems.as_slice() {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let text = |key: &str| config["metadata"][key].as_str().unwrap_or_default();
    let (namespace, name, kind) = (text("namespace"), text("name"), shown_kind(gvk));
    let why = format!("failed to create typed patch object ({namespace}/{name}; {kind}): {problems}");
    // Upstream answers 500 without a reason; it is the client's mistake all the same.
    Err(ApiError::bad_request(why))
}

/// Identity, what the server sets, and what an endpoint does not write.
fn nobodys(ownable: Ownable) -> Ignored {
    let mut ignored = FieldSet::default();
    ignored.insert_fields(&["apiVersion"]);
    ignored.insert_fields(&["kind"]);
    for name in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        ignored.insert_fields(&["metadata", name]);
    }
    match ownable {
        Ownable::AllBut(places) => {
            places.iter().for_each(|path| ignored.insert_fields(path));
            Ignored { fields: ignored, only: None }
        }
        Ownable::Only(places) => Ignored { fields: ignored, only: Some(places) },
    }
}

fn without_identity(fields: FieldSet, ignored: &Ignored) -> FieldSet {
    without_metadata(ignored.left_of(fields))
}

/// `metadata` as a whole is nobody's either; what is in it may be.
fn without_metadata(mut fields: FieldSet) -> FieldSet {
    fields.disown("metadata");
    fields
}

type Conflicts = BTreeMap<Manager, FieldSet>;

struct Request<'a> {
    write: &'a Write<'a>,
    schema: &'a Schema,
    base: &'a Value,
    config: &'a Value,
}

impl Request<'_> {
    async fn merge(
        &self,
        mut managers: Managers,
        force: bool,
    ) -> Result<Result<(Value, Managers), Conflicts>, ApiError> {
        let (root, write) = (self.schema.root(), self.write);
        let ignored = &write.ignored();
        managers.reconcile(write.versions);
        let me = Manager::new(Operation::Apply, write.manager, write.version, write.subresource);
        let fields = typed::fields_of(root, self.config).children;
        let last = managers.entries.get(&me).cloned();
        let time = last.as_ref().map(|last| last.time.clone()).unwrap_or_default();
        managers.entries.insert(me.clone(), Owned { fields, api_version: write.version.to_owned(), time });

        let mut object = typed::merge(root, Some(self.base), self.config);
        if let Some(last) = last {
            object = prune(write, object, &last, &managers).await?;
        }
        if let Some(mine) = managers.entries.get_mut(&me) {
            mine.fields = without_identity(std::mem::take(&mut mine.fields), ignored);
        }
        let mut comparison = Comparison::new(write.versions, Some(self.base), &object, ignored);
        let mut conflicts = Conflicts::new();
        for (manager, owned) in managers.entries.iter_mut().filter(|(manager, _)| **manager != me) {
            let Some(difference) = comparison.seen_in(&owned.api_version).await? else { continue };
            let contested = owned.fields.intersection(&difference.changed());
            let fields = std::mem::take(&mut owned.fields);
            owned.fields = fields.difference(&contested).difference(&difference.removed);
            if !contested.is_empty() {
                conflicts.insert(manager.clone(), contested);
            }
        }
        if !conflicts.is_empty() && !force {
            return Ok(Err(conflicts));
        }
        let own = comparison.seen_in(write.version).await?;
        let noop = own.is_none_or(|own| own.changed().is_empty() && own.removed.is_empty());
        if let Some(mine) = managers.entries.get_mut(&me)
            && !noop
            && !write.is_scale()
        {
            mine.time = write.time();
        }
        managers.drop_empty();
        Ok(Ok((object, managers)))
    }
}

/// Takes out what the manager applied before and nobody owns any more. Each version says for itself
/// what its owners keep.
async fn prune(write: &Write<'_>, merged: Value, last: &Owned, managers: &Managers) -> Result<Value, ApiError> {
    let versions = write.versions;
    let Some(schema) = versions.schema(&last.api_version) else { return Ok(merged) };
    let root = schema.root();
    let mut owned = managers.all_fields();
    let mut merged = in_version(versions, merged, &last.api_version).await?;
    let orphans = typed::orphaned(root, &last.fields, owned.remove(&last.api_version).as_ref());
    if orphans.is_empty() {
        return in_version(versions, merged, write.version).await;
    }
    let mut pruned = merged.clone();
    typed::remove(root, &mut pruned, &orphans);
    if !owned.is_empty() {
        for (version, owned) in owned {
            let Some(schema) = versions.schema(&version) else { continue };
            let mut whole = in_version(versions, merged.clone(), &version).await?;
            let rest = in_version(versions, pruned, &version).await?;
            let kept = typed::fields_of(schema.root(), &rest).children.union(owned);
            let all = typed::fields_of(schema.root(), &whole).children;
            typed::remove(schema.root(), &mut whole, &typed::orphaned(schema.root(), &all, Some(&kept)));
            pruned = whole;
        }
        // Whatever came back: nothing goes but what was the manager's own.
        let rest = typed::fields_of(root, &in_version(versions, pruned, &last.api_version).await?).children;
        let all = typed::with_named(root, &typed::fields_of(root, &merged).children);
        let gone = all.difference(&typed::with_named(root, &rest));
        typed::remove(root, &mut merged, &gone.intersection(&typed::with_named(root, &last.fields)));
        pruned = merged;
    }
    in_version(versions, pruned, write.version).await
}

/// 409 with a cause for each field. What is applied by way of `scale` conflicts as a Scale has it.
fn conflict_error(conflicts: &Conflicts, scale: bool) -> ApiError {
    let shown = |(manager, path): (&Manager, String)| match scale {
        true => (manager.shown("autoscaling/v1"), ".spec.replicas".to_owned()),
        false => (manager.shown(&manager.api_version), path),
    };
    let all: Vec<(String, String)> = conflicts
        .iter()
        .flat_map(|(manager, fields)| fields.paths().into_iter().map(move |path| (manager, path)))
        .map(shown)
        .collect();
    let message = match all.as_slice() {
        [(manager, path)] => format!("Apply failed with 1 conflict: conflict with {manager}: {path}"),
        many => {
            let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (manager, path) in many {
                by_manager.entry(manager).or_default().push(path);
            }
            let lines = by_manager.into_iter().flat_map(|(manager, paths)| {
                let head = format!("conflicts with {manager}:");
                std::iter::once(head).chain(paths.into_iter().map(|path| format!("- {path}")))
            });
            format!("Apply failed with {} conflicts: {}", many.len(), lines.collect::<Vec<_>>().join("\n"))
        }
    };
    let error = ApiError::new(http::StatusCode::CONFLICT, "Conflict", message);
    all.iter().fold(error, |error, (manager, path)| {
        error.with_cause("FieldManagerConflict", &format!("conflict with {manager}"), path)
    })
}
