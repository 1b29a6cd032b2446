//! Creates and updates.
//!
//! An update is a loop: read the current object, compute the new one from it, admit, validate,
//! write if nobody else wrote in between. A request that names a `resourceVersion` fails with 409
//! when that is no longer current; one that does not is computed again.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use store::{Txn, TxnOutcome};

use super::metadata::{self, Preconditions};
use super::stored::stored_bytes;
use super::turns::Turn;
use super::{Call, Current};
use crate::admit::Operation;
use crate::authz::{self, escalation};
use crate::cache::item::{encode, remove_version, with_version};
use crate::cache::store_error;
use crate::error::{ApiError, Result};
use crate::kinds::meta;
use crate::patch::apply::managers;

/// Attempts at a name that is not taken yet.
const NAME_ATTEMPTS: usize = 8;
/// Attempts at an update while others write the same object.
const UPDATE_ATTEMPTS: usize = 64;

/// When repeated owners are found.
const AFTER_ADMISSION: &str = " after mutating admission happens";

/// What a write left in the store.
pub struct Written {
    /// In the hub version, with its `resourceVersion`.
    pub value: Value,
    /// The same, encoded.
    pub bytes: Bytes,
    pub created: bool,
    /// The write took the last thing that kept a marked object: it is gone.
    pub deleted: bool,
}

/// How an update computes the new object, in the version of the request.
#[async_trait]
pub trait Change: Sync {
    /// `old` is none when the object does not exist; the answer none then means 404.
    async fn apply(&self, call: &Call, old: Option<&Value>) -> Result<Option<Value>>;

    /// What the change says against there being no object.
    fn check_absent(&self, _call: &Call) -> Result<()> {
        Ok(())
    }

    /// Conflicting writes are always retried: the change applies to whatever is there.
    fn retries(&self) -> bool;

    fn options_kind(&self) -> &'static str;
}

impl Call {
    /// Creates `object`, which is in the version of the request, normalised.
    pub async fn create(&self, mut object: Value) -> Result<Written> {
        metadata::check_namespace(&mut object, self.namespace())?;
        let versioned = metadata::claims_version(&object);
        metadata::clear_for_create(&mut object)?;
        self.to_hub(&mut object)?;
        let options = self.options_object("CreateOptions");
        self.endpoint.hooks().defaults(&mut object);
        if self.endpoint.terminating.load(Ordering::Relaxed) {
            let why = "create not allowed while custom resource definition is terminating";
            let name = metadata::text(&object, "name");
            return Err(ApiError::forbidden(&self.info.group, &self.descriptor().plural, name, why));
        }
        self.unrepeat_owners(&mut object, "");
        self.track_fields(None, &mut object).await?;
        let mut object = self.mutate(Operation::Create, object, None, &options).await?;
        self.unrepeat_owners(&mut object, AFTER_ADMISSION);
        let generates =
            metadata::text(&object, "name").is_empty() && !metadata::text(&object, "generateName").is_empty();
        if !generates {
            return self.create_once(object, &options, versioned).await;
        }
        let mut attempt = 1;
        loop {
            match self.create_once(object.clone(), &options, versioned).await {
                Err(error) if error.is_already_exists() && attempt < NAME_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    /// One attempt at a name. An object that came with a version is refused only where it would be stored:
    /// it is upstream's store that says so, after everyone else, and a dry run does not get there.
    async fn create_once(&self, mut object: Value, options: &Value, versioned: bool) -> Result<Written> {
        let (descriptor, hooks) = (self.descriptor(), self.endpoint.hooks());
        hooks.defaults(&mut object);
        metadata::prepare_create(descriptor, &mut object, self.now)?;
        let asked = metadata::text(&object, "name").to_owned();
        hooks.prepare_create(&self.context(&asked), &mut object);
        hooks.switched_off().drop_from(&mut object, None);
        let name = metadata::text(&object, "name").to_owned();
        let context = self.context(&name);
        let mut errors = meta::validate_create(&object, descriptor.namespaced, descriptor.name_rule);
        errors.extend(hooks.validate_create(&context, &object));
        if !errors.is_empty() {
            return Err(ApiError::invalid(&self.info.group, &descriptor.kind, &name, &errors));
        }
        for warning in hooks.warnings(&object, None) {
            self.warn(warning);
        }
        self.guard_rights(&object, None).await?;
        let mut object = self.validate(Operation::Create, object, None, options).await?;
        if versioned && !self.options.dry_run {
            let why = "resourceVersion should not be set on objects to be created";
            // Upstream answers 500 without a reason; it is the client's mistake all the same.
            return Err(ApiError::bad_request(why));
        }
        let reservation = hooks.reserve(&context, &mut object, None).await?;
        let stored = self.pass_through_store(&mut object).await?;
        let shown = Bytes::from(encode(&object));
        let key = descriptor.key(self.namespace(), &name);
        if self.options.dry_run {
            return self.pretend_create(&key, object, shown).await;
        }
        let mut txn = Txn::create(key, stored_bytes(stored.as_ref(), &shown));
        if let Some(seconds) = descriptor.ttl {
            txn = txn.with_ttl(std::time::Duration::from_secs(seconds));
        }
        match self.api.store.txn(txn).await.map_err(store_error)? {
            TxnOutcome::Done { revision } => {
                if let Some(reservation) = reservation {
                    reservation.commit(&*self.api).await;
                }
                if descriptor.plural == "pods" && descriptor.hub_group().is_empty() {
                    let pod = format!("{}/{name}", self.namespace());
                    component::timeline_at(&pod, "accepted", self.now);
                    component::timeline(&pod, "stored");
                }
                Ok(written(object, &shown, revision, true))
            }
            TxnOutcome::Conflict { current, .. } => {
                if let Some(reservation) = reservation {
                    reservation.release(&*self.api).await;
                }
                Err(self.taken(&object, current.as_ref()))
            }
        }
    }

    /// Owners are kept once each; the client is told when.
    fn unrepeat_owners(&self, object: &mut Value, when: &str) {
        let repeated = metadata::drop_repeated_owners(object);
        if !repeated.is_empty() {
            self.warn(format!(
                ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
                repeated.join(", ")
            ));
        }
    }

    async fn guard_rights(&self, new: &Value, old: Option<&Value>) -> Result<()> {
        if self.descriptor().hub_group() != "rbac.authorization.k8s.io" {
            return Ok(());
        }
        escalation::check(&self.api, &self.user, &self.descriptor().plural, new, old).await
    }

    async fn pretend_create(&self, key: &str, object: Value, stored: Bytes) -> Result<Written> {
        if let Some(holder) = self.api.store.get(key).await.map_err(store_error)?.kv {
            return Err(self.taken(&object, Some(&holder)));
        }
        Ok(Written { value: object, bytes: stored, created: true, deleted: false })
    }

    /// The name of a new object is taken. One that could have been generated is told of so, whoever chose it.
    fn taken(&self, object: &Value, holder: Option<&store::KeyValue>) -> ApiError {
        let (group, plural, name) = (&self.info.group, &self.descriptor().plural, metadata::text(object, "name"));
        let error = match metadata::text(object, "generateName") {
            "" => ApiError::already_exists(group, plural, name),
            _ => ApiError::generate_name_conflict(group, plural, name),
        };
        match holder.map(Current::from_stored) {
            Some(Ok(holder)) if metadata::is_deleting(&holder.value) => error.prefixed("object is being deleted: "),
            _ => error,
        }
    }

    /// Updates the object named by the request, or the part that the subresource stands for.
    pub async fn update(&self, change: &dyn Change) -> Result<Written> {
        let key = self.descriptor().key(self.namespace(), &self.info.name);
        let (mut current, mut turn) = if self.api.turns.contested(&key) {
            let mut turn = self.api.turns.take(&key).await;
            (self.current_or(turn.left()).await?, Some(turn))
        } else {
            (self.current_or(None).await?, None)
        };
        for _ in 0..UPDATE_ATTEMPTS {
            match self.update_once(change, current).await? {
                Attempt::Done(written) => {
                    if let Some(turn) = &mut turn {
                        self.hand_on(turn, &written);
                    }
                    return Ok(*written);
                }
                Attempt::Conflict(newer) if turn.is_some() => current = newer,
                // Others write it too: from here on one after another, each from what the last left.
                Attempt::Conflict(newer) => {
                    let mut held = self.api.turns.take(&key).await;
                    current = held.newer_than(newer);
                    turn = Some(held);
                }
            }
        }
        Err(ApiError::modified(&self.info.group, &self.descriptor().plural, &self.info.name))
    }

    /// Lets the next writer of this object begin with what was just written (a dry run wrote nothing).
    fn hand_on(&self, turn: &mut Turn, written: &Written) {
        if self.options.dry_run {
            return;
        }
        let revision = metadata::text(&written.value, "resourceVersion").parse().unwrap_or(0);
        if revision > 0 && !written.deleted {
            turn.leave(Current { value: written.value.clone(), revision });
        }
    }

    async fn update_once(&self, change: &dyn Change, current: Option<Current>) -> Result<Attempt> {
        let Some(current) = current else {
            change.check_absent(self)?;
            let Some(object) = change.apply(self, None).await?.filter(|_| self.info.subresource.is_empty()) else {
                return Err(self.not_found());
            };
            return self.create_named(object).await.map(|written| Attempt::Done(Box::new(written)));
        };
        let old = current.value;
        let mut new = self.proposed(change, &old).await?;
        let conditional = self.check_version(&mut new, &old, change.retries())?;
        let options = self.options_object(change.options_kind());
        metadata::keep_system_fields(&mut new, &old)?;
        if !change.retries() {
            self.unrepeat_owners(&mut new, "");
        }
        self.track_fields(Some(&old), &mut new).await?;
        let mut new = self.mutate(Operation::Update, new, Some(&old), &options).await?;
        self.unrepeat_owners(&mut new, AFTER_ADMISSION);
        let new = self.prepare(new, &old)?;
        self.guard_rights(&new, Some(&old)).await?;
        let mut new = self.validate(Operation::Update, new, Some(&old), &options).await?;
        let hooks = self.endpoint.hooks();
        let context = self.context(&self.info.name);
        let reservation = hooks.reserve(&context, &mut new, Some(&old)).await?;
        let gone = metadata::is_deleting(&new) && is_released(hooks, &new);
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        managers::keep_times(&mut new, &old);
        let stored = if gone { None } else { self.pass_through_store(&mut new).await? };
        if new == old && !gone && (self.options.dry_run || !self.is_stale().await?) {
            let bytes = Bytes::from(encode(&new));
            return Ok(Attempt::done(Written { value: new, bytes, created: false, deleted: false }));
        }
        if self.options.dry_run {
            let bytes = Bytes::from(encode(&new));
            return Ok(Attempt::done(Written { value: new, bytes, created: false, deleted: gone }));
        }
        remove_version(&mut new);
        let outcome = self.write(&new, stored.as_ref(), current.revision, gone).await?;
        match outcome {
            Ok((shown, revision)) => {
                if let Some(reservation) = reservation {
                    reservation.commit(&*self.api).await;
                }
                if gone {
                    hooks.deleted(&*self.api, &new).await;
                }
                let mut written = written(new, &shown, revision, false);
                written.deleted = gone;
                Ok(Attempt::done(written))
            }
            Err(newer) => {
                if let Some(reservation) = reservation {
                    reservation.release(&*self.api).await;
                }
                if conditional && !change.retries() {
                    return Err(ApiError::modified(&self.info.group, &self.descriptor().plural, &self.info.name));
                }
                Ok(Attempt::Conflict(newer))
            }
        }
    }

    /// A PUT or apply of a name that does not exist yet.
    async fn create_named(&self, mut object: Value) -> Result<Written> {
        metadata::require_name(&mut object, &self.info.name)?;
        if let Some(uid) = Some(metadata::text(&object, "uid")).filter(|uid| !uid.is_empty()) {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(ApiError::conflict(&self.info.group, &self.descriptor().plural, &self.info.name, why));
        }
        self.may_create().await?;
        self.create(object).await
    }

    /// Whoever may update or patch may not create by that alone.
    async fn may_create(&self) -> Result<()> {
        let request = authz::Request { verb: "create", ..authz::Request::from(&*self.info) };
        let decision = self.api.authz.decide(&self.api, &self.user, &request).await;
        decision.map(|_| ()).map_err(|refused| request.refusal(&self.user, &refused.reason))
    }

    /// The object that the client wants, in the hub version, with defaults.
    async fn proposed(&self, change: &dyn Change, old: &Value) -> Result<Value> {
        let mut new = if self.converts() {
            let mut served = old.clone();
            self.to_served(&mut served)?;
            change.apply(self, Some(&served)).await?
        } else {
            change.apply(self, Some(old)).await?
        }
        .ok_or_else(|| self.not_found())?;
        metadata::check_namespace(&mut new, self.namespace())?;
        metadata::require_name(&mut new, &self.info.name)?;
        self.to_hub(&mut new)?;
        self.endpoint.hooks().defaults(&mut new);
        Ok(new)
    }

    /// Whether the request insists on a version; fails when that is not the current one.
    fn check_version(&self, new: &mut Value, old: &Value, patches: bool) -> Result<bool> {
        let (group, plural) = (&self.info.group, &self.descriptor().plural);
        let uid = metadata::text(new, "uid");
        if !uid.is_empty() {
            if patches && uid != metadata::text(old, "uid") {
                let path = api::field::Path::root("metadata").child("uid");
                let error = api::field::Error::invalid(&path, uid, "field is immutable");
                return Err(ApiError::invalid(group, &self.descriptor().kind, &self.info.name, &[error]));
            }
            let wanted = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
            wanted.check_write(group, plural, &self.descriptor().key(self.namespace(), &self.info.name), old)?;
        }
        let version = metadata::text(new, "resourceVersion");
        if version.is_empty() || version == "0" {
            // A Scale is put into the object that is there.
            if !self.descriptor().unconditional_update && self.info.subresource != "scale" {
                let path = api::field::Path::root("metadata").child("resourceVersion");
                let error = api::field::Error::invalid(&path, 0, "must be specified for an update");
                // Where the kind belongs upstream names the resource.
                return Err(ApiError::invalid(group, plural, &self.info.name, &[error]));
            }
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            return Ok(false);
        }
        if version != metadata::text(old, "resourceVersion") {
            return Err(ApiError::modified(group, plural, &self.info.name));
        }
        Ok(true)
    }

    /// Keeps what this write may not change, counts the generation, and validates.
    fn prepare(&self, mut new: Value, old: &Value) -> Result<Value> {
        let (descriptor, hooks) = (self.descriptor(), self.endpoint.hooks());
        let context = self.context(&self.info.name);
        hooks.defaults(&mut new);
        metadata::keep_system_fields(&mut new, old)?;
        let mut errors;
        if matches!(self.info.subresource.as_str(), "" | "scale") {
            if descriptor.status {
                metadata::keep_status(&mut new, old);
            }
            hooks.prepare_update(&context, &mut new, old);
            hooks.switched_off().drop_from(&mut new, Some(old));
            metadata::bump_generation(descriptor, &mut new, old);
            errors = meta::validate_update(&new, old);
            errors.extend(hooks.validate_update(&context, &new, old));
        } else {
            if self.info.subresource == "status" {
                metadata::only_status(hooks.reset_by_status(), &mut new, old)?;
            }
            hooks.prepare_subresource_update(&context, &mut new, old);
            hooks.switched_off().drop_from(&mut new, Some(old));
            // A pod that is bound is still the first generation of its spec.
            if self.info.subresource != "binding" {
                metadata::bump_generation(descriptor, &mut new, old);
            }
            errors = meta::validate_update(&new, old);
            errors.extend(hooks.validate_subresource_update(&context, &new, old));
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(&self.info.group, &descriptor.kind, &self.info.name, &errors));
        }
        let warnings = match self.info.subresource.as_str() {
            "" | "scale" => hooks.warnings(&new, Some(old)),
            _ => hooks.subresource_warnings(&context, &new, old),
        };
        for warning in warnings {
            self.warn(warning);
        }
        Ok(new)
    }

    /// Whether the object lies in the store in another form than a write would give it now: encrypted
    /// by a key that writes no more, or in a version that is stored no more.
    async fn is_stale(&self) -> Result<bool> {
        let key = self.descriptor().key(self.namespace(), &self.info.name);
        if self.api.sealed.is_stale(&key).await.map_err(store_error)? {
            return Ok(true);
        }
        let Some(version) = self.endpoint.hooks().stored_version() else { return Ok(false) };
        let Some(stored) = self.api.store.get(&key).await.map_err(store_error)?.kv else { return Ok(false) };
        Ok(Current::from_stored(&stored)?.value["apiVersion"] != version)
    }

    /// What is stored, in the hub version.
    pub(super) async fn open(&self, kv: &store::KeyValue) -> Result<Current> {
        let current = Current::from_stored(kv)?;
        Ok(Current { value: self.endpoint.hooks().as_served(current.value).await?, revision: current.revision })
    }

    /// Writes the new state, which is stored as `stored` if that is another; `Err` is what is there instead.
    async fn write(
        &self,
        new: &Value,
        stored: Option<&Value>,
        expected: u64,
        gone: bool,
    ) -> Result<std::result::Result<(Bytes, u64), Option<Current>>> {
        let descriptor = self.descriptor();
        let key = descriptor.key(self.namespace(), &self.info.name);
        let shown = Bytes::from(encode(new));
        let txn = if gone {
            Txn::delete(key, expected)
        } else {
            let txn = Txn::update(key, expected, stored_bytes(stored, &shown));
            match descriptor.ttl {
                Some(seconds) => txn.with_ttl(std::time::Duration::from_secs(seconds)),
                None => txn,
            }
        };
        match self.api.store.txn(txn).await.map_err(store_error)? {
            TxnOutcome::Done { revision } => Ok(Ok((shown, revision))),
            TxnOutcome::Conflict { current, .. } => {
                let current = match current {
                    Some(kv) => Some(self.open(&kv).await?),
                    None => None,
                };
                Ok(Err(current))
            }
        }
    }
}

enum Attempt {
    Done(Box<Written>),
    Conflict(Option<Current>),
}

impl Attempt {
    fn done(written: Written) -> Self {
        Attempt::Done(Box::new(written))
    }
}

/// Nothing keeps a marked object any longer.
fn is_released(hooks: &dyn crate::resource::Hooks, object: &Value) -> bool {
    metadata::finalizers(object).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !hooks.holds_deletion(object)
}

pub(super) fn written(mut value: Value, stored: &Bytes, revision: u64, created: bool) -> Written {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
    Written { value, bytes: with_version(stored, revision), created, deleted: false }
}

/// PUT: the object in the request's body.
pub struct Replace {
    /// In the version of the request, normalised.
    pub object: Value,
}

#[async_trait]
impl Change for Replace {
    async fn apply(&self, call: &Call, old: Option<&Value>) -> Result<Option<Value>> {
        if old.is_none() && !call.descriptor().create_on_update {
            return Ok(None);
        }
        Ok(Some(self.object.clone()))
    }

    fn check_absent(&self, call: &Call) -> Result<()> {
        let uid = metadata::text(&self.object, "uid");
        if uid.is_empty() {
            return Ok(());
        }
        let none = serde_json::json!({"metadata": {"name": call.info.name}});
        let wanted = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let key = call.descriptor().key(call.namespace(), &call.info.name);
        wanted.check_write(&call.info.group, &call.descriptor().plural, &key, &none)
    }

    fn retries(&self) -> bool {
        false
    }

    fn options_kind(&self) -> &'static str {
        "UpdateOptions"
    }
}
