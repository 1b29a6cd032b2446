//! Server-side apply and the bookkeeping of plain writes
//! (`k8s.io/apimachinery/pkg/util/managedfields`, `sigs.k8s.io/structured-merge-diff/merge`).
//!
//! [`apply`] merges a configuration into the live object: what it names becomes its manager's;
//! what it named before and no longer does goes, unless someone else owns it; what others own and
//! it would change is a conflict, unless forced. [`track_update`] notes for every other write which
//! fields it changed. Both are pure; [`typed`] walks values, [`fieldset`] is the sets of fields,
//! [`managers`] the `managedFields` list.

pub mod fieldset;
pub mod managers;
pub(crate) mod typed;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use parking_lot::RwLock;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::resource::{GroupVersionKind, split_api_version};
use crate::schema::table::TypeId;
use crate::schema::{Schema, normalize, parse};
use fieldset::FieldSet;
use managers::{Manager, Managers, Operation, Owned};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Annotations of an object hold at most this many bytes.
const MAX_ANNOTATIONS: usize = 256 * 1024;
/// Owns what an object had before anyone applied to it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// kubectl's name for its own server-side apply: it takes over from its client-side one.
const KUBECTL: &str = "kubectl";

/// Applies a configuration; the result carries the new `managedFields` and is normalised.
///
/// `live` is `None` when the object does not exist. The configuration is taken as it was sent: it
/// must not have been normalised, since what it names it owns.
pub fn apply(
    schema: &Schema,
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    subresource: &str,
    force: bool,
    now: Timestamp,
) -> Result<Value, ApiError> {
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
    let version = config["apiVersion"].as_str().unwrap_or_default().to_owned();
    if managers.entries.is_empty() && live.is_some() {
        let before = Manager::new(Operation::Update, BEFORE_FIRST_APPLY, &version, "");
        let empty = empty_object(schema, &base, &gvk)?;
        let found = typed::compare(schema.root(), &empty, &base).without(ignored(schema, ""));
        managers.add(before, found.added.union(found.modified), &version, now);
    }
    let request = Request { schema, base: &base, config: &config, version: &version, manager, subresource, now };
    let outcome = match request.merge(managers.clone(), force) {
        // kubectl's own client-side apply is no conflict: this is how people move over.
        Err(conflicts) if manager == KUBECTL && !force => {
            let allowed = last_applied_fields(schema, &base, &gvk);
            let rest: Conflicts = conflicts
                .into_iter()
                .map(|(manager, fields)| (manager, fields.difference(&allowed)))
                .filter(|(_, fields)| !fields.is_empty())
                .collect();
            if rest.is_empty() { request.merge(managers, true) } else { Err(rest) }
        }
        other => other,
    };
    let (mut object, managers) = outcome.map_err(|conflicts| conflict_error(&conflicts))?;
    if manager == KUBECTL {
        renew_last_applied(&mut object, &config);
    }
    object["apiVersion"] = config["apiVersion"].clone();
    object["kind"] = config["kind"].clone();
    normalize(schema, &mut object, &gvk)?;
    managers.write(&mut object);
    Ok(object)
}

/// Notes in `new.metadata.managedFields` which fields a plain write (create, update, patch, or a
/// write of a subresource) owns from now on.
pub fn track_update(
    schema: &Schema,
    live: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: &str,
    now: Timestamp,
) -> Result<(), ApiError> {
    let metadata = new.get_mut("metadata").and_then(Value::as_object_mut);
    let sent = metadata.and_then(|metadata| metadata.remove("managedFields")).unwrap_or_default();
    let mut managers = live_or_sent(live, &sent, subresource);
    if managers.entries.is_empty() && live.is_some() {
        // An object that is not tracked stays so until someone applies to it.
        return Ok(());
    }
    // Of a live object `managedFields` is ignored as well.
    let difference = match live {
        Some(live) => typed::compare(schema.root(), live, new),
        None => typed::compare(schema.root(), &*known_empty(schema, new)?, new),
    };
    let difference = difference.without(ignored(schema, subresource));
    let changed = difference.added.union(difference.modified);
    for owned in managers.entries.values_mut() {
        owned.fields = std::mem::take(&mut owned.fields).difference(&changed).difference(&difference.removed);
    }
    managers.drop_empty();
    if !changed.is_empty() {
        let version = new["apiVersion"].as_str().unwrap_or_default().to_owned();
        managers.add(Manager::new(Operation::Update, manager, &version, subresource), changed, &version, now);
        managers.cap();
    }
    managers.write(new);
    Ok(())
}

/// The managed fields that a write begins with. Clients may write them, but not lose them: an empty
/// list means the live one. A list of one empty entry resets them.
fn live_or_sent(live: Option<&Value>, sent: &Value, subresource: &str) -> Managers {
    let of_live = || live.map(read_managers).unwrap_or_default();
    if !subresource.is_empty() {
        return of_live();
    }
    match sent.as_array().map(Vec::as_slice) {
        None | Some([]) => of_live(),
        Some([Value::Object(only)]) if only.values().all(|v| v.is_null() || v == "") => Managers::default(),
        Some(_) => Managers::read(sent).filter(|managers| !managers.entries.is_empty()).unwrap_or_else(of_live),
    }
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
    let kind = format!("{}, Kind={}", gvk.api_version(), gvk.kind);
    Err(ApiError::bad_request(format!(
        "failed to create typed patch object ({}/{}; {kind}): {problems}",
        text("namespace"),
        text("name")
    )))
}

/// Fields that nobody owns: identity, what the server sets, and what this endpoint does not write.
fn ignored(schema: &Schema, subresource: &str) -> &'static FieldSet {
    static IGNORED: LazyLock<[FieldSet; 3]> = LazyLock::new(|| [None, Some("status"), Some("spec")].map(nobodys));
    match subresource {
        "" if schema.is_builtin() => &IGNORED[1],
        "status" => &IGNORED[2],
        _ => &IGNORED[0],
    }
}

fn nobodys(part: Option<&str>) -> FieldSet {
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
    if let Some(part) = part {
        ignored.insert_fields(&[part]);
    }
    ignored
}

/// `metadata` as a whole is nobody's either; what is in it may be.
fn without_identity(fields: FieldSet, ignored: &FieldSet) -> FieldSet {
    let mut metadata = FieldSet::default();
    metadata.insert_fields(&["metadata"]);
    fields.recursive_difference(ignored).difference(&metadata)
}

type Conflicts = BTreeMap<Manager, FieldSet>;

struct Request<'a> {
    schema: &'a Schema,
    base: &'a Value,
    config: &'a Value,
    version: &'a str,
    manager: &'a str,
    subresource: &'a str,
    now: Timestamp,
}

impl Request<'_> {
    fn merge(&self, mut managers: Managers, force: bool) -> Result<(Value, Managers), Conflicts> {
        let root = self.schema.root();
        let ignored = ignored(self.schema, self.subresource);
        let me = Manager::new(Operation::Apply, self.manager, self.version, self.subresource);
        let fields = without_identity(typed::fields_of(root, self.config).children, ignored);
        let last = managers.entries.get(&me).cloned();
        let time = last.as_ref().map(|last| last.time.clone()).unwrap_or_default();
        let owned = Owned { fields, api_version: self.version.to_owned(), time };
        managers.entries.insert(me.clone(), owned);

        let mut object = typed::merge(root, Some(self.base), self.config);
        if let Some(last) = last {
            let orphans = typed::orphaned(root, &last.fields, Some(&managers.all_fields()));
            typed::remove(root, &mut object, &orphans);
        }
        let difference = typed::compare(root, self.base, &object).without(ignored);
        let changed = difference.added.union(difference.modified);
        let mut conflicts = Conflicts::new();
        for (manager, owned) in managers.entries.iter_mut().filter(|(manager, _)| **manager != me) {
            let contested = owned.fields.intersection(&changed);
            let fields = std::mem::take(&mut owned.fields);
            owned.fields = fields.difference(&contested).difference(&difference.removed);
            if !contested.is_empty() {
                conflicts.insert(manager.clone(), contested);
            }
        }
        if !conflicts.is_empty() && !force {
            return Err(conflicts);
        }
        let noop = changed.is_empty() && difference.removed.is_empty();
        if let Some(mine) = managers.entries.get_mut(&me)
            && (!noop || mine.time.is_empty())
        {
            mine.time = crate::schema::time_text(self.now);
        }
        managers.drop_empty();
        Ok((object, managers))
    }
}

/// 409 with a cause for each field.
fn conflict_error(conflicts: &Conflicts) -> ApiError {
    let all: Vec<(String, String)> = conflicts
        .iter()
        .flat_map(|(manager, fields)| fields.paths().into_iter().map(|path| (manager.shown(), path)))
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

/// Fields of kubectl's last client-side configuration that the live object still has as they were.
fn last_applied_fields(schema: &Schema, live: &Value, gvk: &GroupVersionKind) -> FieldSet {
    let Some(text) = live["metadata"]["annotations"][LAST_APPLIED].as_str() else { return FieldSet::default() };
    let Ok(parsed) = parse(text.as_bytes(), crate::schema::ContentType::Json) else { return FieldSet::default() };
    let mut last = parsed.value;
    if crate::schema::normalize_literal(schema, &mut last, gvk).is_err() {
        return FieldSet::default();
    }
    let difference = typed::compare(schema.root(), &last, live);
    let changed = difference.added.union(difference.modified).union(difference.removed);
    typed::fields_of(schema.root(), &last).children.difference(&changed)
}

/// Keeps kubectl's annotation in step, so that people can go back to client-side apply.
fn renew_last_applied(object: &mut Value, config: &Value) {
    let Some(annotations) = object["metadata"]["annotations"].as_object_mut() else { return };
    if !annotations.contains_key(LAST_APPLIED) {
        return;
    }
    let mut config = config.clone();
    if let Some(kept) = config["metadata"]["annotations"].as_object_mut() {
        kept.remove(LAST_APPLIED);
        let empty: &Map<String, Value> = kept;
        if empty.is_empty()
            && let Some(metadata) = config["metadata"].as_object_mut()
        {
            metadata.remove("annotations");
        }
    }
    let text = format!("{config}\n");
    let others: usize = annotations
        .iter()
        .filter(|(name, _)| *name != LAST_APPLIED)
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    if others + LAST_APPLIED.len() + text.len() > MAX_ANNOTATIONS {
        annotations.remove(LAST_APPLIED);
    } else {
        annotations.insert(LAST_APPLIED.to_owned(), text.into());
    }
}
