//! Empties what a deleted definition leaves behind: deletes its objects, waits until they are gone,
//! and then lets the definition go (`crd_finalizer.go` of apiextensions-apiserver).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::names::{Condition, says};
use super::{CLEANUP, GROUP, MANAGER, PLURAL, is_established, set_condition, write_status};
use crate::admit::Cluster;
use crate::authn::UserInfo;
use crate::cache::Cache;
use crate::error::{ApiError, Result};
use crate::http::info::RequestInfo;
use crate::registry::delete::DeleteOptions;
use crate::registry::write::Replace;
use crate::registry::{Call, metadata};
use crate::resources::Endpoint;
use crate::server::Api;

/// How long an attempt waits for objects that something keeps, and how often it deletes again.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

/// Returns when nothing is left to do for the definition of this name and uid.
pub async fn run(api: &Arc<Api>, name: &str, uid: &str) {
    loop {
        match attempt(api, name, uid).await {
            Ok(true) => return,
            // Somebody else wrote it: at once again.
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(name, %error, "emptying a deleted definition; trying again");
                sleep(RETRY).await;
            }
        }
    }
}

/// False: it was changed meanwhile.
async fn attempt(api: &Arc<Api>, name: &str, uid: &str) -> Result<bool> {
    let Some(definition) = api.get_live(GROUP, PLURAL, "", name).await? else { return Ok(true) };
    let held = metadata::finalizers(&definition).contains(&CLEANUP);
    if metadata::text(&definition, "uid") != uid || !metadata::is_deleting(&definition) || !held {
        return Ok(true);
    }
    let ended = |reason, message: &str| -> Condition { ("Terminating", "False", reason, message.to_owned()) };
    let condition = if !is_established(&definition["status"]) {
        ended("NeverEstablished", "resource was never established")
    } else {
        let names = &definition["status"]["acceptedNames"];
        let group = definition["spec"]["group"].as_str().unwrap_or_default();
        let endpoint = stored(api, group, names["plural"].as_str().unwrap_or_default());
        let outcome = match &endpoint {
            Some(endpoint) => delete_instances(api, endpoint).await,
            None => Err(("InstanceDeletionFailed", "could not list instances: it is not served yet".to_owned())),
        };
        match outcome {
            Ok(()) => ended("InstanceDeletionCompleted", "removed all instances"),
            Err((reason, message)) => {
                let condition: Condition = ("Terminating", "True", reason, message.clone());
                let mut status = definition["status"].clone();
                if !says(&status, &condition) {
                    set_condition(&mut status, condition);
                    write_status(api, &definition, status).await?;
                }
                return Err(ApiError::internal(message));
            }
        }
    };
    let mut changed = (*definition).clone();
    set_condition(&mut changed["status"], condition);
    if let Some(finalizers) = changed["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|finalizer| finalizer != CLEANUP);
    }
    let resources = api.resources();
    let endpoint = resources.by_hub(GROUP, PLURAL).ok_or_else(ApiError::no_such_path)?;
    match call(api, endpoint, "update", "status", name).update(&Replace { object: changed }).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The endpoint of the version that objects are stored in: nothing has to be converted there.
fn stored(api: &Api, group: &str, plural: &str) -> Option<Arc<Endpoint>> {
    let resources = api.resources();
    let found = resources.all().iter().find(|endpoint| {
        let descriptor = endpoint.descriptor();
        descriptor.custom
            && descriptor.stored_as.is_none()
            && descriptor.plural == plural
            && descriptor.hub_group() == group
    });
    found.cloned()
}

/// Reason and message of what went wrong.
async fn delete_instances(api: &Arc<Api>, endpoint: &Arc<Endpoint>) -> Result<(), (&'static str, String)> {
    let cache = &endpoint.cache;
    let unread = |error| ("InstanceDeletionFailed", format!("could not list instances: {error}"));
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let call = call(api, endpoint, "deletecollection", "", "");
        let listed = call.list().await.map_err(unread)?;
        let deleted = call.delete_collection(&listed.items, &DeleteOptions::default()).await;
        deleted.map_err(|error| ("InstanceDeletionFailed", format!("could not issue all deletes: {error}")))?;
        match timeout(POLL, gone(cache)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => return Err(unconfirmed(error)),
            Err(_) => {}
        }
    }
    Err(unconfirmed("context deadline exceeded"))
}

fn unconfirmed(why: impl std::fmt::Display) -> (&'static str, String) {
    ("InstanceDeletionCheck", format!("could not confirm zero CustomResources remaining: {why}"))
}

/// Waits until there is no object any more.
async fn gone(cache: &Arc<Cache>) -> Result<()> {
    let mut changed = cache.subscribe();
    loop {
        cache.fresh().await?;
        {
            // A cache that was stopped is empty as well: it has no revision.
            let state = cache.read();
            if state.revision > 0 && state.is_empty() {
                return Ok(());
            }
        }
        // The sender lives in the cache.
        let _ = changed.changed().await;
    }
}

/// A request of the server itself.
fn call(api: &Arc<Api>, endpoint: &Arc<Endpoint>, verb: &str, subresource: &str, name: &str) -> Call {
    let descriptor = endpoint.descriptor();
    let info = RequestInfo {
        is_resource: true,
        verb: verb.to_owned(),
        group: descriptor.hub_group().to_owned(),
        version: descriptor.hub_version().to_owned(),
        resource: descriptor.plural.to_string(),
        subresource: subresource.to_owned(),
        name: name.to_owned(),
        ..RequestInfo::default()
    };
    Call {
        api: api.clone(),
        endpoint: endpoint.clone(),
        user: Arc::new(UserInfo::server()),
        info: Arc::new(info),
        query: Default::default(),
        options: Default::default(),
        manager: MANAGER.to_owned(),
        applies: false,
        now: jiff::Timestamp::now(),
        deadline: None,
        warnings: Default::default(),
        record: None,
    }
}
