//! CustomResourceDefinitions: serves what they define, a moment after they are written.
//!
//! Layer: beside the registry, which serves custom resources like any other. One task, [`follow`],
//! follows the stored definitions: with each change it looks at that one definition, accepts its
//! names, and swaps the set of served resources. [`cleanup`] empties what a deleted definition
//! leaves behind. [`names`], [`resource`] and [`hooks`] are the pure parts.

mod cleanup;
pub mod convert;
mod embedded;
mod follow;
mod hooks;
pub mod jsonpath;
mod names;
mod replicas;
pub mod resource;
mod served;

pub use self::names::set_condition;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use serde_json::Value;
use store::{Txn, TxnOutcome};

use crate::cache::item::{encode, remove_version};
use crate::cache::store_error;
use crate::error::{ApiError, Result};
use crate::patch::apply::versions::Only;
use crate::patch::apply::{Write, track_update};
use crate::registry::metadata;
use crate::server::Api;

pub const GROUP: &str = "apiextensions.k8s.io";
pub const PLURAL: &str = "customresourcedefinitions";
/// Keeps a deleted definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Who writes statuses.
const MANAGER: &str = "kube-apiserver";

/// What following the definitions took so far: each change should take what one definition does,
/// however many there are.
#[derive(Debug, Default)]
pub struct Work {
    pub decoded: AtomicU64,
    pub compiled: AtomicU64,
}

/// Serves the definitions that are stored now, and follows them from then on.
pub async fn start(api: &Arc<Api>) -> Result<()> {
    let endpoint = api.resources().by_hub(GROUP, PLURAL).cloned().ok_or_else(ApiError::no_such_path)?;
    endpoint.cache.ready().await?;
    let mut follower = follow::Follower::new(api, endpoint);
    follower.begin().await;
    api.supervisor.spawn("custom-resources", follower.follow());
    Ok(())
}

/// Writes the status of a definition as it was read; none when it was changed in between.
async fn write_status(api: &Api, definition: &Value, status: Value) -> Result<Option<Value>> {
    let resources = api.resources();
    let endpoint = resources.by_hub(GROUP, PLURAL).ok_or_else(ApiError::no_such_path)?;
    let read = metadata::text(definition, "resourceVersion").parse().unwrap_or(0);
    let mut new = definition.clone();
    new["status"] = status;
    if let Some(schema) = endpoint.hub_schema() {
        let versions = Only::of(definition, schema.clone());
        let write = Write {
            versions: &versions,
            version: &versions.version,
            manager: MANAGER,
            subresource: "status",
            ownable: crate::resource::Ownable::AllBut(&[&["spec"]]),
            now: jiff::Timestamp::now(),
        };
        track_update(&write, Some(definition), &mut new).await?;
    }
    remove_version(&mut new);
    let key = endpoint.descriptor().key("", metadata::text(definition, "name"));
    match api.store.txn(Txn::update(key, read, Bytes::from(encode(&new)))).await.map_err(store_error)? {
        TxnOutcome::Done { revision } => {
            new["metadata"]["resourceVersion"] = revision.to_string().into();
            Ok(Some(new))
        }
        TxnOutcome::Conflict { .. } => Ok(None),
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn holds(status: &Value, kind: &str) -> bool {
    condition(status, kind).is_some_and(|condition| condition["status"] == "True")
}

/// Once it is, it is for good.
pub fn is_established(status: &Value) -> bool {
    holds(status, "Established")
}
