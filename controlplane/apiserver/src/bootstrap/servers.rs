//! Which servers the cluster has, by address: each keeps a key of its own in the store, which goes by itself
//! when nobody renews it.
//!
//! Upstream: `pkg/controlplane/reconcilers/lease.go`; the keys and their time are its own.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use store::{Range, Txn};

use crate::cache::store_error;
use crate::error::Result;
use crate::server::Api;

const PREFIX: &str = "/registry/masterleases/";
/// A server that was not heard of for longer is gone.
const LASTS: Duration = Duration::from_secs(15);

/// Says that this server is there. Returns the addresses of all that are, in order.
pub async fn renew(api: &Api) -> Result<Vec<IpAddr>> {
    let (own, key) = (api.config.advertise_address, key(api));
    let value =
        json!({"kind": "Endpoints", "apiVersion": "v1", "metadata": {}, "subsets": [{"addresses": [{"ip": own}]}]});
    let txn = match api.store.get(&key).await.map_err(store_error)?.kv {
        Some(held) => Txn::update(key, held.mod_revision, value.to_string()),
        None => Txn::create(key, value.to_string()),
    };
    // A conflict is no failure: another process at this address has just done the same.
    api.store.txn(txn.with_ttl(LASTS)).await.map_err(store_error)?;
    all(api).await
}

/// Takes back that this server is there. Returns the addresses of those that go on.
pub async fn leave(api: &Api) -> Result<Vec<IpAddr>> {
    let key = key(api);
    if let Some(held) = api.store.get(&key).await.map_err(store_error)?.kv {
        // A conflict: another process at this address goes on.
        api.store.txn(Txn::delete(key, held.mod_revision)).await.map_err(store_error)?;
    }
    all(api).await
}

fn key(api: &Api) -> String {
    format!("{PREFIX}{}", api.config.advertise_address)
}

async fn all(api: &Api) -> Result<Vec<IpAddr>> {
    let all = api.store.range(Range::prefix(PREFIX)).await.map_err(store_error)?;
    let mut addresses: Vec<IpAddr> =
        all.kvs.iter().filter_map(|held| held.key.strip_prefix(PREFIX)?.parse().ok()).collect();
    addresses.sort_unstable();
    Ok(addresses)
}
