//! Deletion: at once, or in two steps when a grace period, a finalizer or the kind itself holds
//! the object back.

use std::sync::Arc;

use api::field::{Error, ErrorList, Path};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use store::{StoreError, Txn, TxnOutcome};

use super::metadata::{self, Preconditions};
use super::stored::stored_bytes;
use super::write::{Written, written};
use super::{Call, Current};
use crate::admit::Operation;
use crate::authz::Request;
use crate::cache::item::{Item, encode, remove_version};
use crate::cache::store_error;
use crate::error::{ApiError, Result};
use crate::http::options::{check_dry_run, refuse};
use crate::http::query::Query;
use crate::resource::{Descriptor, Hooks};
use crate::schema::normalize::json_type;

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

/// `DeleteOptions`, from the body or, where there is none, the query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period: Option<i64>,
    pub propagation: Option<Propagation>,
    /// The older way to say it: true is `Orphan`, false `Background`.
    pub orphan_dependents: Option<bool>,
    pub preconditions: Preconditions,
    pub dry_run: bool,
    /// The object cannot be read, and is to go as it lies there.
    pub unreadable: bool,
}

/// The option that asks for it.
const UNREADABLE: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";
/// The right that it takes beside `delete`.
const UNREADABLE_VERB: &str = "unsafe-delete-ignore-read-errors";

impl DeleteOptions {
    pub fn parse(body: &Value) -> Result<Self> {
        if !body.is_null() && !body.is_object() {
            return Err(ApiError::bad_request("the body of a delete must be a DeleteOptions object"));
        }
        check_members(body)?;
        let kind = body["kind"].as_str().unwrap_or("DeleteOptions");
        if kind != "DeleteOptions" {
            return Err(ApiError::bad_request(format!("expected a DeleteOptions object in the body, got {kind}")));
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut options = Self {
            grace_period: body["gracePeriodSeconds"].as_i64(),
            orphan_dependents: body["orphanDependents"].as_bool(),
            unreadable: body[UNREADABLE] == true,
            preconditions: Preconditions {
                uid: text(&body["preconditions"]["uid"]),
                resource_version: text(&body["preconditions"]["resourceVersion"]),
            },
            ..Self::default()
        };
        let policy = body["propagationPolicy"].as_str().filter(|policy| !policy.is_empty());
        let (mut errors, path) = (ErrorList::new(), Path::root("propagationPolicy"));
        if let (Some(policy), Some(_)) = (policy, options.orphan_dependents) {
            errors.push(Error::invalid(&path, policy, "orphanDependents and deletionPropagation cannot be both set"));
        }
        options.propagation = match policy {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                errors.push(Error::not_supported(&path, other, &["Foreground", "Background", "Orphan", "nil"]));
                None
            }
        };
        let dry_runs = body["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
        options.dry_run = check_dry_run(&dry_runs.collect::<Vec<_>>(), &mut errors);
        if options.unreadable {
            let excluded = ["propagationPolicy", "orphanDependents", "gracePeriodSeconds", "preconditions"];
            let set = excluded.iter().filter(|name| !body[**name].is_null());
            errors.extend(set.map(|name| unreadable_error(format!("cannot be set together with .{name}"))));
        }
        refuse("DeleteOptions", &errors)?;
        Ok(options)
    }

    /// What the query of a request without a body says.
    pub fn from_query(query: &Query) -> Result<Self> {
        let mut body = json!({"dryRun": query.all("dryRun").collect::<Vec<_>>()});
        if let Some(seconds) = query.number("gracePeriodSeconds")? {
            body["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = query.get("propagationPolicy") {
            body["propagationPolicy"] = policy.into();
        }
        if query.get("orphanDependents").is_some() {
            body["orphanDependents"] = query.flag("orphanDependents").into();
        }
        if query.flag(UNREADABLE) {
            body[UNREADABLE] = true.into();
        }
        if let Some(uid) = query.get("uid").filter(|uid| !uid.is_empty()) {
            body["preconditions"] = json!({"uid": uid});
        }
        Self::parse(&body)
    }

    /// What cannot be read is named one by one.
    pub fn check_collection(&self) -> Result<()> {
        let why = "is not allowed with DELETECOLLECTION, try again after removing the option";
        if self.unreadable { refuse("DeleteOptions", &[unreadable_error(why.to_owned())]) } else { Ok(()) }
    }

    /// What becomes of dependents, if that was said.
    fn dependents(&self) -> Option<Propagation> {
        let older = |orphan: bool| if orphan { Propagation::Orphan } else { Propagation::Background };
        self.orphan_dependents.map(older).or(self.propagation)
    }

    /// The answer to a delete that has to wait is `202` only for clients that asked in the older way.
    pub fn accepts_waiting(&self) -> bool {
        self.orphan_dependents == Some(false)
    }

    /// As admission sees them.
    fn to_object(&self) -> Value {
        let mut object = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = self.grace_period {
            object["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(propagation) = self.propagation {
            object["propagationPolicy"] = format!("{propagation:?}").into();
        }
        if let Some(orphan) = self.orphan_dependents {
            object["orphanDependents"] = orphan.into();
        }
        let Preconditions { uid, resource_version } = &self.preconditions;
        for (key, value) in [("uid", uid), ("resourceVersion", resource_version)] {
            if let Some(value) = value {
                object["preconditions"][key] = value.as_str().into();
            }
        }
        if self.dry_run {
            object["dryRun"] = json!(["All"]);
        }
        object
    }
}

fn unreadable_error(why: String) -> Error {
    Error::invalid(&Path::root(UNREADABLE), true, why)
}

/// What typed decoding would say of members of the wrong type.
fn check_members(body: &Value) -> Result<()> {
    for (name, wanted, fits) in [
        ("gracePeriodSeconds", "int64", Value::is_i64 as fn(&Value) -> bool),
        ("propagationPolicy", "v1.DeletionPropagation", Value::is_string),
        ("orphanDependents", "bool", Value::is_boolean),
        ("preconditions", "v1.Preconditions", Value::is_object),
        ("dryRun", "[]string", Value::is_array),
        (UNREADABLE, "bool", Value::is_boolean),
    ] {
        if let Some(value) = body.get(name).filter(|value| !value.is_null() && !fits(value)) {
            return Err(ApiError::bad_request(format!(
                "DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: json: cannot unmarshal {} into Go struct field DeleteOptions.{name} of type {wanted}",
                json_type(value)
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
    let already = metadata::is_deleting(object);
    if already && hooks.marks_deletion() && hooks.holds_deletion(object) {
        return Decision::Pending;
    }
    let plain = already || !hooks.marks_deletion();
    let held = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let asked = options.grace_period.map(at_least_one);
    let (grace, due) = match held.filter(|held| *held > 0 && descriptor.graceful) {
        _ if !already => {
            let grace = if descriptor.graceful { at_least_one(hooks.grace_period(object, asked)) } else { 0 };
            (grace, seconds_after(now, grace))
        }
        // Deletion under way can be hurried, and nothing else.
        Some(held) => match asked.filter(|asked| *asked < held) {
            Some(period) => hurried(object, held, period, now),
            None => return Decision::Pending,
        },
        None => (0, due(object, now).min(now)),
    };
    let mut marked = object.clone();
    let mut finalizers = propagation_finalizers(object, options.dependents(), hooks.default_propagation());
    if !already {
        let missing = hooks.delete_finalizers().iter().filter(|name| !finalizers.iter().any(|held| held == *name));
        let missing: Vec<String> = missing.map(|name| (*name).to_owned()).collect();
        finalizers.extend(missing);
    }
    set_finalizers(&mut marked, finalizers);
    let holds = !metadata::finalizers(&marked).is_empty() || hooks.holds_deletion(object) || grace > 0;
    if !holds {
        return Decision::Remove;
    }
    if !already || held != Some(grace) {
        marked["metadata"]["deletionTimestamp"] = api::scalar::time(due).into();
        if plain {
            marked["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        }
    }
    if !already {
        if plain && marked["metadata"]["generation"].as_i64().unwrap_or(0) > 0 {
            metadata::next_generation(&mut marked);
        }
        hooks.begin_delete(&mut marked);
    }
    if marked == *object { Decision::Pending } else { Decision::Mark(marked) }
}

/// A negative period means the shortest.
fn at_least_one(period: i64) -> i64 {
    if period < 0 { 1 } else { period }
}

fn seconds_after(time: jiff::Timestamp, seconds: i64) -> jiff::Timestamp {
    time.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(time)
}

/// When the deletion under way is due.
fn due(object: &Value, now: jiff::Timestamp) -> jiff::Timestamp {
    metadata::text(object, "deletionTimestamp").parse().unwrap_or(now)
}

/// Period and end of a deletion under way for which `period` is enough: it counts from when the deletion
/// was asked for. What is over by that is due now; who still is to act sees a period of one second.
fn hurried(object: &Value, held: i64, period: i64, now: jiff::Timestamp) -> (i64, jiff::Timestamp) {
    let then = seconds_after(due(object, now), period.saturating_sub(held));
    if then < now { (period.min(1), now) } else { (period, then) }
}

/// The finalizers that make the garbage collector orphan or delete dependents first.
fn propagation_finalizers(object: &Value, asked: Option<Propagation>, default: Option<Propagation>) -> Vec<String> {
    let held = metadata::finalizers(object);
    let has = |name: &str| held.contains(&name);
    let kept = has(ORPHAN).then_some(Propagation::Orphan).or(has(FOREGROUND).then_some(Propagation::Foreground));
    let wanted = default.map(|default| asked.or(kept).unwrap_or(default));
    let (orphan, foreground) = (wanted == Some(Propagation::Orphan), wanted == Some(Propagation::Foreground));
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
            let (txn, value, shown, deleted) = match decide(descriptor, hooks, &object, options, self.now) {
                Decision::Pending => return Ok(unchanged(object)),
                Decision::Remove => (Txn::delete(key, revision), object, None, true),
                Decision::Mark(mut marked) => {
                    remove_version(&mut marked);
                    let stored = self.pass_through_store(&mut marked).await?;
                    let shown = Bytes::from(encode(&marked));
                    let txn = Txn::update(key, revision, stored_bytes(stored.as_ref(), &shown));
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
                    return Ok(match shown {
                        Some(shown) => written(value, &shown, revision, false),
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

    /// Removes the object named by the request, which cannot be read: no finalizer, precondition or plugin
    /// has a say.
    pub async fn delete_unreadable(&self, options: &DeleteOptions) -> Result<()> {
        if let Some(record) = &self.record {
            record.annotate("apiserver.k8s.io/unsafe-delete-ignore-read-error", "");
        }
        let (info, plural) = (&self.info, &*self.descriptor().plural);
        let right = Request { verb: UNREADABLE_VERB, ..Request::from(&**info) };
        if let Err(refused) = self.api.authz.decide(&self.api, &self.user, &right).await {
            let why = format!("not permitted to do {UNREADABLE_VERB:?}, reason: {}", refused.reason);
            return Err(ApiError::forbidden(&info.group, plural, &info.name, why));
        }
        let key = self.descriptor().key(self.namespace(), &info.name);
        for _ in 0..ATTEMPTS {
            let revision = self.unreadable_at(&key).await?;
            if options.dry_run {
                return Ok(());
            }
            match self.api.store.txn(Txn::delete(key.clone(), revision)).await {
                Ok(TxnOutcome::Done { .. }) => {
                    self.endpoint.cache.try_again();
                    return Ok(());
                }
                // Written again meanwhile.
                Ok(TxnOutcome::Conflict { .. }) | Err(StoreError::Unreadable(_)) => {}
                Err(error) => return Err(store_error(error)),
            }
        }
        Err(ApiError::modified(&info.group, plural, &info.name))
    }

    /// Where what cannot be read was written; an error if it is not there, or is an object.
    async fn unreadable_at(&self, key: &str) -> Result<u64> {
        let kv = match self.api.store.get(key).await {
            Ok(got) => got.kv.ok_or_else(|| self.not_found())?,
            Err(StoreError::Unreadable(all)) if !all.is_empty() => return Ok(all[0].revision),
            Err(error) => return Err(store_error(error)),
        };
        let cache = &self.endpoint.cache;
        let Ok(values) = cache.decoded(vec![kv.value.clone()]).await else { return Ok(kv.mod_revision) };
        if values.iter().any(|value| cache.decode(&kv, value).is_err()) {
            return Ok(kv.mod_revision);
        }
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: unsafe deletion is not allowed because the object is decodable from storage"
        );
        Err(ApiError::conflict(&self.info.group, &self.descriptor().plural, &self.info.name, why))
    }

    /// Deletes what was listed.
    pub async fn delete_collection(&self, items: &[Arc<Item>], options: &DeleteOptions) -> Result<()> {
        let mut running = futures::stream::iter(items.to_vec())
            .map(|item| async move { self.delete_from(Some(Current::from_item(&item)), item.name(), options).await })
            .buffer_unordered(PARALLEL);
        while let Some(outcome) = running.next().await {
            match outcome {
                Err(error) if error.is_not_found() => {}
                outcome => drop(outcome?),
            }
        }
        Ok(())
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
        DeleteOptions::parse(&body).unwrap()
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

    /// A namespace, or a definition of custom resources.
    struct MarksItself;

    impl Hooks for MarksItself {
        fn marks_deletion(&self) -> bool {
            true
        }

        fn holds_deletion(&self, object: &Value) -> bool {
            object["spec"]["finalizers"].is_array()
        }
    }

    #[test]
    fn what_marks_itself_notes_no_period_and_counts_no_generation() {
        let descriptor = Descriptor::new("", "v1", "Namespace", "namespaces");
        let namespace = json!({"metadata": {"name": "a", "generation": 1}, "spec": {"finalizers": ["kubernetes"]}});
        let decided = |object: &Value| decide(&descriptor, &MarksItself, object, &options(json!({})), now());
        let mut marked = namespace.clone();
        marked["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
        assert_eq!(decided(&namespace), Decision::Mark(marked.clone()));
        assert_eq!(decided(&marked), Decision::Pending);

        // Asked again, what only finalizers hold is deleted as any other object.
        let held = json!({"metadata": {"name": "a", "generation": 1, "finalizers": ["x/y"], "deletionTimestamp": "2026-01-02T03:00:00Z"}});
        let mut again = held.clone();
        again["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        assert_eq!(decided(&held), Decision::Mark(again));
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
    fn an_expired_deletion_that_is_hurried_is_due_now() {
        let mut descriptor = Descriptor::new("", "v1", "Pod", "pods");
        descriptor.graceful = true;
        let pod = |due: &str, held: i64| json!({"metadata": {"name": "a", "generation": 4, "finalizers": ["x/y"], "deletionTimestamp": due, "deletionGracePeriodSeconds": held}, "spec": {"nodeName": "n"}});
        let long_ago = pod("2026-01-02T03:00:00Z", 30);
        for (asked, period, due) in [(5, 1, "2026-01-02T03:04:05Z"), (0, 0, "2026-01-02T03:04:05Z")] {
            let options = options(json!({"gracePeriodSeconds": asked, "propagationPolicy": "Foreground"}));
            let Decision::Mark(marked) = decide(&descriptor, &Graceful, &long_ago, &options, now()) else { panic!() };
            let metadata = &marked["metadata"];
            assert_eq!(
                (&metadata["deletionGracePeriodSeconds"], &metadata["deletionTimestamp"]),
                (&json!(period), &json!(due))
            );
            assert_eq!(
                (&metadata["generation"], &metadata["finalizers"]),
                (&json!(4), &json!(["x/y", "foregroundDeletion"]))
            );
        }
        // While it waits its period, a deletion takes no other policy.
        let foreground = options(json!({"propagationPolicy": "Foreground"}));
        assert_eq!(decide(&descriptor, &Graceful, &long_ago, &foreground, now()), Decision::Pending);
        // After it, what is due in the future is due now.
        let Decision::Mark(marked) =
            decide(&descriptor, &Graceful, &pod("2026-01-02T04:00:00Z", 0), &foreground, now())
        else {
            panic!()
        };
        assert_eq!(marked["metadata"]["finalizers"], json!(["x/y", "foregroundDeletion"]));
    }

    #[test]
    fn options_come_from_the_body_or_the_query() {
        let query = Query::parse("gracePeriodSeconds=5&propagationPolicy=Orphan&uid=u&dryRun=All");
        let parsed = DeleteOptions::from_query(&query).unwrap();
        assert_eq!(
            parsed.to_object(),
            json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "gracePeriodSeconds": 5, "propagationPolicy": "Orphan", "preconditions": {"uid": "u"}, "dryRun": ["All"]})
        );
        assert_eq!(options(json!({"orphanDependents": true})).dependents(), Some(Propagation::Orphan));
        assert_eq!(options(json!({"orphanDependents": false})).dependents(), Some(Propagation::Background));
        assert!(DeleteOptions::parse(&json!({"propagationPolicy": "x"})).is_err());
        assert!(DeleteOptions::from_query(&Query::parse(&format!("{UNREADABLE}=true"))).unwrap().unreadable);
        let mixed = json!({UNREADABLE: true, "gracePeriodSeconds": 0, "preconditions": {}, "dryRun": ["All"]});
        assert_eq!(
            DeleteOptions::parse(&mixed).unwrap_err().message(),
            format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: [{UNREADABLE}: Invalid value: true: cannot be set together with .gracePeriodSeconds, {UNREADABLE}: Invalid value: true: cannot be set together with .preconditions]"
            )
        );
        assert!(DeleteOptions::parse(&json!({"kind": "Pod"})).is_err());
    }
}
