//! Deletion: at once, or in two steps when a grace period, a finalizer or the kind itself holds
//! the object back.

use api::field::{Error, ErrorList, Path};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use store::{Txn, TxnOutcome};

use super::metadata::{self, Preconditions};
use super::write::{Written, written};
use super::{Call, Current};
use crate::admit::Operation;
use crate::cache::item::{encode, remove_version};
use crate::cache::store_error;
use crate::cache::watch::Selection;
use crate::error::{ApiError, Result};
use crate::http::options::{check_dry_run, refuse};
use crate::http::query::Query;
use crate::resource::{Descriptor, Hooks};

const ATTEMPTS: usize = 64;
/// Objects of one `deletecollection` deleted at the same time.
const PARALLEL: usize = 16;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// `DeleteOptions`, from the body or the query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period: Option<i64>,
    pub propagation: Option<Propagation>,
    pub preconditions: Preconditions,
    pub dry_run: bool,
}

impl DeleteOptions {
    pub fn parse(body: Option<&Value>, query: &Query) -> Result<Self> {
        let mut options = Self::default();
        let null = Value::Null;
        let body = body.unwrap_or(&null);
        if !body.is_null() && !body.is_object() {
            return Err(ApiError::bad_request("the body of a delete must be a DeleteOptions object"));
        }
        check_members(body)?;
        let kind = body["kind"].as_str().unwrap_or("DeleteOptions");
        if kind != "DeleteOptions" {
            return Err(ApiError::bad_request(format!("expected a DeleteOptions object in the body, got {kind}")));
        }
        options.grace_period = match body["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => query.number("gracePeriodSeconds")?,
        };
        let policy = body["propagationPolicy"].as_str().or(query.get("propagationPolicy"));
        let orphan = body["orphanDependents"]
            .as_bool()
            .or(query.get("orphanDependents").map(|_| query.flag("orphanDependents")));
        let policy = policy.filter(|policy| !policy.is_empty());
        let (mut errors, path) = (ErrorList::new(), Path::root("propagationPolicy"));
        if let (Some(policy), Some(_)) = (policy, orphan) {
            errors.push(Error::invalid(&path, policy, "orphanDependents and deletionPropagation cannot be both set"));
        }
        options.propagation = match (policy, orphan) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some(other), _) => {
                errors.push(Error::not_supported(&path, other, &["Foreground", "Background", "Orphan", "nil"]));
                None
            }
            (None, None) => None,
        };
        options.preconditions.uid = body["preconditions"]["uid"].as_str().map(str::to_owned);
        options.preconditions.resource_version = body["preconditions"]["resourceVersion"].as_str().map(str::to_owned);
        let in_body = body["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
        options.dry_run = check_dry_run(&in_body.chain(query.all("dryRun")).collect::<Vec<_>>(), &mut errors);
        refuse("DeleteOptions", &errors)?;
        Ok(options)
    }

    fn to_object(&self) -> Value {
        let mut object = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = self.grace_period {
            object["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(propagation) = self.propagation {
            object["propagationPolicy"] = format!("{propagation:?}").into();
        }
        if self.dry_run {
            object["dryRun"] = json!(["All"]);
        }
        object
    }
}

/// What typed decoding would say of members of the wrong type.
fn check_members(body: &Value) -> Result<()> {
    let found = |value: &Value| match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        _ => "object",
    };
    for (name, wanted, fits) in [
        ("gracePeriodSeconds", "int64", Value::is_i64 as fn(&Value) -> bool),
        ("propagationPolicy", "v1.DeletionPropagation", Value::is_string),
        ("orphanDependents", "bool", Value::is_boolean),
        ("preconditions", "v1.Preconditions", Value::is_object),
        ("dryRun", "[]string", Value::is_array),
    ] {
        if let Some(value) = body.get(name).filter(|value| !value.is_null() && !fits(value)) {
            return Err(ApiError::bad_request(format!(
                "DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: json: cannot unmarshal {} into Go struct field DeleteOptions.{name} of type {wanted}",
                found(value)
            )));
        }
    }
    Ok(())
}

/// What a delete does to the object that is there.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Nothing: it is on its way out already.
    Pending,
    /// Marked, and kept until what holds it lets go.
    Mark(Value),
    Remove,
}

/// Pure: the object (hub version), the request, the time.
pub fn decide(
    descriptor: &Descriptor,
    hooks: &dyn Hooks,
    object: &Value,
    options: &DeleteOptions,
    now: jiff::Timestamp,
) -> Decision {
    let mut marked = object.clone();
    set_finalizers(
        &mut marked,
        propagation_finalizers(object, options.propagation, hooks.default_propagation_orphans()),
    );
    let mut grace = if descriptor.graceful { hooks.grace_period(object, options.grace_period) } else { 0 };
    if grace < 0 {
        grace = 1;
    }
    let already = metadata::is_deleting(object);
    if !already {
        let held = metadata::finalizers(&marked).into_iter().map(str::to_owned);
        let missing = hooks.delete_finalizers().iter().filter(|name| !metadata::finalizers(&marked).contains(name));
        let all = held.chain(missing.map(|name| (*name).to_owned())).collect();
        set_finalizers(&mut marked, all);
    }
    if already {
        let held = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        // A second delete can only shorten the wait, and only when it says so.
        let shortens = descriptor.graceful && options.grace_period.is_some() && grace < held;
        if !shortens {
            grace = held;
        }
    }
    let holds = !metadata::finalizers(&marked).is_empty() || hooks.holds_deletion(object) || grace > 0;
    if !holds {
        return Decision::Remove;
    }
    let held = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if !already || held != Some(grace) {
        let then = if already && held.is_some() { deletion_started(object, now) } else { now };
        let due = then.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
        marked["metadata"]["deletionTimestamp"] = metadata::timestamp(due).into();
        marked["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        if marked["metadata"]["generation"].as_i64().unwrap_or(0) > 0 {
            metadata::next_generation(&mut marked);
        }
        hooks.begin_delete(&mut marked);
    }
    if marked == *object { Decision::Pending } else { Decision::Mark(marked) }
}

/// When the deletion under way was asked for: a shorter period counts from then.
fn deletion_started(object: &Value, now: jiff::Timestamp) -> jiff::Timestamp {
    let held = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let due = metadata::text(object, "deletionTimestamp").parse::<jiff::Timestamp>().unwrap_or(now);
    due.checked_sub(jiff::SignedDuration::from_secs(held)).unwrap_or(now)
}

/// The finalizers that make the garbage collector orphan or delete dependents first.
fn propagation_finalizers(object: &Value, asked: Option<Propagation>, orphans_by_default: bool) -> Vec<String> {
    let held = metadata::finalizers(object);
    let has = |name: &str| held.contains(&name);
    let (orphan, foreground) = match asked {
        Some(Propagation::Orphan) => (true, false),
        Some(Propagation::Foreground) => (false, true),
        Some(Propagation::Background) => (false, false),
        None if has(ORPHAN) || has(FOREGROUND) => (has(ORPHAN), has(FOREGROUND)),
        None => (orphans_by_default, false),
    };
    let mut kept: Vec<String> =
        held.iter().filter(|name| **name != ORPHAN && **name != FOREGROUND).map(|name| (*name).to_owned()).collect();
    if orphan {
        kept.push(ORPHAN.to_owned());
    }
    if foreground {
        kept.push(FOREGROUND.to_owned());
    }
    kept
}

fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    if metadata::finalizers(object) == finalizers {
        return;
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        if finalizers.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".into(), finalizers.into());
        }
    }
}

impl Call {
    /// Deletes the object named by the request.
    pub async fn delete(&self, options: &DeleteOptions) -> Result<Written> {
        let current = self.current().await?;
        self.delete_from(current, &self.info.name, options).await
    }

    async fn delete_from(&self, mut current: Option<Current>, name: &str, options: &DeleteOptions) -> Result<Written> {
        let (descriptor, hooks) = (self.descriptor(), self.endpoint.hooks());
        let options_object = options.to_object();
        for _ in 0..ATTEMPTS {
            let Some(Current { value: object, revision }) = current else {
                return Err(ApiError::not_found(&self.info.group, &descriptor.plural, name));
            };
            options.preconditions.check_delete(&self.info.group, &descriptor.kind, &object)?;
            self.mutate(Operation::Delete, Value::Null, Some(&object), &options_object).await?;
            self.validate(Operation::Delete, Value::Null, Some(&object), &options_object).await?;
            let key = descriptor.key(metadata::text(&object, "namespace"), name);
            let (txn, value, stored, deleted) = match decide(descriptor, hooks, &object, options, self.now) {
                Decision::Pending => return Ok(unchanged(object)),
                Decision::Remove => (Txn::delete(key, revision), object, None, true),
                Decision::Mark(mut marked) => {
                    remove_version(&mut marked);
                    let shown = Bytes::from(encode(&marked));
                    let stored = self.stored_bytes(&marked, &shown).await?;
                    let txn = Txn::update(key, revision, stored);
                    (txn, marked, Some(shown), false)
                }
            };
            if options.dry_run {
                return Ok(Written { deleted, ..unchanged(value) });
            }
            match self.api.store.txn(txn).await.map_err(store_error)? {
                TxnOutcome::Done { revision } => {
                    if deleted {
                        hooks.deleted(&*self.api, &value).await;
                    }
                    return Ok(match stored {
                        Some(stored) => written(value, &stored, revision, false),
                        None => Written { deleted, ..unchanged(value) },
                    });
                }
                TxnOutcome::Conflict { current: newer, .. } => {
                    current = match newer {
                        Some(kv) => Some(self.open(&kv).await?),
                        None => None,
                    };
                }
            }
        }
        Err(ApiError::modified(&self.info.group, &descriptor.plural, name))
    }

    /// Deletes everything selected; gives what was there.
    pub async fn delete_collection(&self, selection: &Selection, options: &DeleteOptions) -> Result<Vec<Value>> {
        let cache = &self.endpoint.cache;
        let limit = self.query.number("limit")?.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        cache.fresh().await?;
        let items: Vec<_> = {
            let state = cache.read();
            let matching = state.scan(&selection.namespace).filter(|item| selection.matches(cache, item));
            matching.take(limit).cloned().collect()
        };
        let mut deleted = Vec::new();
        let mut running = futures::stream::iter(items)
            .map(|item| async move {
                let current = Current::from_item(&item);
                match self.delete_from(Some(current), item.name(), options).await {
                    Err(error) if error.is_not_found() => Ok(None),
                    outcome => outcome.map(|written| Some(written.value)),
                }
            })
            .buffered(PARALLEL);
        while let Some(outcome) = running.next().await {
            deleted.extend(outcome?);
        }
        Ok(deleted)
    }
}

fn unchanged(value: Value) -> Written {
    let bytes = Bytes::from(encode(&value));
    Written { value, bytes, created: false, deleted: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Plain;

    struct Graceful;

    impl Hooks for Graceful {
        fn grace_period(&self, object: &Value, asked: Option<i64>) -> i64 {
            if object["spec"]["nodeName"].is_null() { 0 } else { asked.unwrap_or(30) }
        }
    }

    fn now() -> jiff::Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    fn options(body: Value) -> DeleteOptions {
        DeleteOptions::parse(Some(&body), &Query::default()).unwrap()
    }

    #[test]
    fn plain_objects_go_at_once_unless_finalizers_hold_them() {
        let descriptor = Descriptor::new("", "v1", "ConfigMap", "configmaps");
        let free = json!({"metadata": {"name": "a"}});
        assert_eq!(decide(&descriptor, &Plain, &free, &options(json!({})), now()), Decision::Remove);

        let held = json!({"metadata": {"name": "a", "finalizers": ["x/y"], "generation": 2}});
        let Decision::Mark(marked) = decide(&descriptor, &Plain, &held, &options(json!({})), now()) else { panic!() };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-02T03:04:05Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(marked["metadata"]["generation"], 3);
        assert_eq!(decide(&descriptor, &Plain, &marked, &options(json!({})), now()), Decision::Pending);
    }

    #[test]
    fn propagation_becomes_finalizers() {
        let descriptor = Descriptor::new("apps", "v1", "Deployment", "deployments");
        let object = json!({"metadata": {"name": "a", "finalizers": ["orphan"]}});
        for (policy, finalizers) in [("Orphan", json!(["orphan"])), ("Foreground", json!(["foregroundDeletion"]))] {
            let options = options(json!({"propagationPolicy": policy}));
            let Decision::Mark(marked) = decide(&descriptor, &Plain, &object, &options, now()) else { panic!() };
            assert_eq!(marked["metadata"]["finalizers"], finalizers);
        }
        let background = options(json!({"propagationPolicy": "Background"}));
        assert_eq!(decide(&descriptor, &Plain, &object, &background, now()), Decision::Remove);
    }

    #[test]
    fn grace_periods_can_only_be_shortened() {
        let mut descriptor = Descriptor::new("", "v1", "Pod", "pods");
        descriptor.graceful = true;
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}});
        let Decision::Mark(marked) = decide(&descriptor, &Graceful, &pod, &options(json!({})), now()) else { panic!() };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-02T03:04:35Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        for (body, pending) in [(json!({}), true), (json!({"gracePeriodSeconds": 60}), true)] {
            let decision = decide(&descriptor, &Graceful, &marked, &options(body), now());
            assert_eq!(decision == Decision::Pending, pending);
        }
        let shorter = options(json!({"gracePeriodSeconds": 5}));
        let Decision::Mark(shorter) = decide(&descriptor, &Graceful, &marked, &shorter, now()) else { panic!() };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-01-02T03:04:10Z");
        let at_once = options(json!({"gracePeriodSeconds": 0}));
        assert_eq!(decide(&descriptor, &Graceful, &marked, &at_once, now()), Decision::Remove);
        let unscheduled = json!({"metadata": {"name": "a"}});
        assert_eq!(decide(&descriptor, &Graceful, &unscheduled, &options(json!({})), now()), Decision::Remove);
    }

    #[test]
    fn options_come_from_body_and_query() {
        let parsed =
            DeleteOptions::parse(None, &Query::parse("gracePeriodSeconds=5&propagationPolicy=Orphan")).unwrap();
        assert_eq!((parsed.grace_period, parsed.propagation), (Some(5), Some(Propagation::Orphan)));
        assert!(DeleteOptions::parse(Some(&json!({"propagationPolicy": "x"})), &Query::default()).is_err());
        assert!(DeleteOptions::parse(Some(&json!({"kind": "Pod"})), &Query::default()).is_err());
    }
}
