//! The store as it is, for `skiff store get` and `skiff snapshot save`: the keys under
//! `/skiff/v1/store/keys`, a snapshot under `/skiff/v1/store/snapshot`.
//!
//! Non-resource paths, so that only those may read them who may read every such path: by default
//! the administrators. Keys show their values as the server reads them; in a snapshot those that
//! are encrypted stay so.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use store::{KeyValue, Range, StoreError};
use tokio_util::io::ReaderStream;

use super::body::{Body, BoxError};
use super::pipeline::Asked;
use super::render;
use crate::cache::store_error;
use crate::error::{ApiError, Result};

/// Keys in one answer, unless fewer are asked for.
const PAGE: usize = 1000;

pub async fn handle(asked: &Asked, what: &str) -> Result<Response<Body>> {
    match what {
        "keys" => Ok(render::json(StatusCode::OK, &keys(asked).await?)),
        "snapshot" => snapshot(asked).await,
        _ => Err(ApiError::page_not_found()),
    }
}

/// `key` (that key), or `prefix` with `start`, `limit`, `revision` and `keysOnly`.
async fn keys(asked: &Asked) -> Result<Value> {
    let (store, query) = (&asked.api.store, &asked.query);
    let keys_only = query.flag("keysOnly");
    if let Some(key) = query.get("key") {
        let got = store.get(key).await.map_err(store_error)?;
        let kvs: Vec<Value> = got.kv.iter().map(|kv| entry(kv, keys_only)).collect();
        return Ok(json!({"revision": got.revision, "count": kvs.len(), "kvs": kvs}));
    }
    let number = |name: &str| query.number(name).map(|number| number.map_or(0, i64::cast_unsigned));
    let limit = usize::try_from(number("limit")?).unwrap_or(PAGE);
    let limit = if limit == 0 { PAGE } else { limit.min(PAGE) };
    let mut range = Range::prefix(query.text("prefix")).limit(limit).at(number("revision")?);
    range.keys_only = keys_only;
    range.start = query.get("start").map(str::to_owned);
    let page = store.range(range).await.map_err(store_error)?;
    let kvs: Vec<Value> = page.kvs.iter().map(|kv| entry(kv, keys_only)).collect();
    Ok(json!({"revision": page.revision, "count": page.count, "kvs": kvs}))
}

fn entry(kv: &KeyValue, keys_only: bool) -> Value {
    let mut entry = json!({"key": &*kv.key, "modRevision": kv.mod_revision});
    if !keys_only {
        entry["value"] = BASE64_STANDARD.encode(&kv.value).into();
    }
    entry
}

async fn snapshot(asked: &Asked) -> Result<Response<Body>> {
    let file = asked.api.store.snapshot().await.map_err(|error| match error {
        StoreError::NoSnapshot { .. } => ApiError::bad_request(error.to_string()),
        error => store_error(error),
    })?;
    let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file), 64 * 1024);
    let pieces = futures::StreamExt::map(pieces, |piece| piece.map_err(BoxError::from));
    Ok(render::response(StatusCode::OK, "application/octet-stream", Body::stream(pieces)))
}
