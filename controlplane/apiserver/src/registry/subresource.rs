//! Subresources and resources that are not simply stored: `scale`, `binding`, `eviction`, `token`,
//! reviews.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use serde_json::Value;

use super::Call;
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;

/// Verbs that `status` has everywhere.
const STATUS_VERBS: &[&str] = &["get", "update", "patch"];

/// Whether the request is one that this module answers by itself.
pub fn is_special(call: &Call) -> bool {
    matches!(call.info.subresource.as_str(), "scale" | "binding" | "eviction" | "token")
}

/// Whether a subresource that is an update of the object exists, with this verb.
pub fn check(call: &Call) -> Result<()> {
    let (descriptor, name) = (call.descriptor(), call.info.subresource.as_str());
    let verbs: &[&str] = if name == "status" && descriptor.status {
        STATUS_VERBS
    } else {
        match descriptor.subresources.iter().find(|subresource| subresource.name == name) {
            Some(subresource) => subresource.verbs,
            None => return Err(ApiError::no_such_path()),
        }
    };
    if verbs.contains(&call.info.verb.as_str()) { Ok(()) } else { Err(ApiError::method_not_allowed()) }
}

pub async fn handle(asked: &Asked, call: Arc<Call>, body: Bytes) -> Result<Response<Body>> {
    let _: (&Asked, &Bytes, Option<Value>) = (asked, &body, None);
    Err(call.not_found())
}
