//! Aggregated API servers: group versions that another server answers, named by an APIService.
//!
//! Layer: beside the registry, below HTTP. A request for such a group version is authenticated and
//! authorized here as any other and then passed on ([`forward`]), with the user's name in headers
//! that the front-proxy certificate vouches for. One task keeps an APIService for every group
//! version served here ([`register`]) and one task per remote server looks after its `Available`
//! condition and its discovery ([`remote`]).

pub mod available;
pub mod discovery;
mod forward;
pub mod register;
pub mod remote;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde_json::Value;
use store::Txn;

pub use self::forward::{forward, forward_document};
use self::register::Action;
use self::remote::Remote;
use crate::admit::Cluster;
use crate::cache::store_error;
use crate::error::Result;
use crate::http::pipeline::Asked;
use crate::server::Api;

const PLURAL: &str = "apiservices";
const RETRY: Duration = Duration::from_millis(250);

/// Where a group stands among groups, and a version in its group: the higher comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority {
    pub group: i64,
    pub version: i64,
}

/// The remote servers that there are now.
#[derive(Default)]
pub struct Aggregator {
    remotes: RwLock<Arc<[Arc<Remote>]>>,
}

impl Aggregator {
    pub fn remotes(&self) -> Arc<[Arc<Remote>]> {
        self.remotes.read().clone()
    }

    pub fn find(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        self.remotes.read().iter().find(|remote| remote.group == group && remote.version == version).cloned()
    }
}

/// The remote server that a request is for.
pub fn route(asked: &Asked) -> Option<Arc<Remote>> {
    let mut parts = asked.info.path.strip_prefix("/apis/")?.splitn(3, '/');
    asked.api.aggregator.find(parts.next()?, parts.next()?)
}

/// Begins to follow APIServices and what is served here.
pub fn start(api: &Arc<Api>) {
    let api = api.clone();
    let supervisor = api.supervisor.clone();
    supervisor.spawn("apiservices", async move {
        while let Err(error) = follow(&api).await {
            tracing::debug!(%error, "following APIServices; trying again");
            tokio::time::sleep(RETRY).await;
        }
    });
}

async fn follow(api: &Arc<Api>) -> Result<()> {
    let Some(endpoint) = api.resources().by_hub(register::OWN_GROUP, PLURAL).cloned() else { return Ok(()) };
    let (mut changed, mut resources) = (endpoint.cache.subscribe(), api.watch_resources());
    let mut seen = 0;
    loop {
        let served = register::served(&resources.borrow_and_update());
        // Looked at first: what changes meanwhile is then looked at again, not missed.
        let now = endpoint.cache.read().changed;
        let held = api.list(register::OWN_GROUP, PLURAL, "").await?;
        let actions = register::plan(&served, &held).into_iter().map(|action| carry_out(api, action));
        futures::future::try_join_all(actions).await?;
        if now != seen {
            seen = now;
            follow_remotes(api, &held);
        }
        loop {
            tokio::select! {
                swapped = resources.changed() => if swapped.is_err() { return Ok(()) } else { break },
                again = changed.changed() => if again.is_err() { return Ok(()) },
            }
            if endpoint.cache.read().changed != seen {
                break;
            }
        }
    }
}

async fn carry_out(api: &Api, action: Action) -> Result<()> {
    let now = || api::scalar::time(jiff::Timestamp::now());
    let outcome = match action {
        Action::Create(mut object) => {
            object["status"]["conditions"] = vec![register::local_condition(&now())].into();
            api.create(register::OWN_GROUP, PLURAL, object).await.map(drop)
        }
        Action::Update(object) => api.update(register::OWN_GROUP, PLURAL, "", object).await.map(drop),
        Action::Delete(name, revision) => {
            let resources = api.resources();
            let Some(endpoint) = resources.by_hub(register::OWN_GROUP, PLURAL) else { return Ok(()) };
            let txn = Txn::delete(endpoint.descriptor().key("", &name), revision);
            api.store.txn(txn).await.map(drop).map_err(store_error)
        }
    };
    match outcome {
        // Another server, or somebody, was first: the change comes back as an event.
        Err(error) if error.is_conflict() || error.is_already_exists() || error.is_not_found() => Ok(()),
        outcome => outcome,
    }
}

/// Starts tasks for new remote servers and ends those of servers that are gone or changed.
fn follow_remotes(api: &Arc<Api>, held: &[Arc<Value>]) {
    let before = api.aggregator.remotes();
    let mut remotes = Vec::new();
    for object in held.iter().filter(|object| object["spec"]["service"].is_object()) {
        let known = before.iter().find(|remote| remote.is_of(object));
        remotes.push(known.cloned().unwrap_or_else(|| Remote::start(api, object)));
    }
    for gone in before.iter().filter(|remote| !remotes.iter().any(|kept| Arc::ptr_eq(kept, remote))) {
        gone.stop();
    }
    *api.aggregator.remotes.write() = remotes.into();
}
