//! Subresources and resources that are not simply stored: which they are and who answers them.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Call, pods, reviews, scale, token, usage};
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;
use crate::http::{render, resources};
use crate::resource::GroupVersionKind;
use crate::schema;

/// Verbs that `status` has everywhere.
const STATUS_VERBS: &[&str] = &["get", "update", "patch"];

/// Whether the request is one with a handler of its own.
pub fn is_special(call: &Call) -> bool {
    matches!(call.info.subresource.as_str(), "scale" | "binding" | "eviction" | "token")
}

/// Whether a subresource that is an update of the object exists, with this verb.
pub fn check(call: &Call) -> Result<()> {
    let (descriptor, name) = (call.descriptor(), call.info.subresource.as_str());
    let verbs: &[&str] = if (name == "status" && descriptor.status) || (name == "scale" && descriptor.scale.is_some()) {
        STATUS_VERBS
    } else {
        match descriptor.subresources.iter().find(|subresource| subresource.name == name) {
            Some(subresource) => subresource.verbs,
            None if descriptor.custom => return Err(call.not_found()),
            None => return Err(ApiError::no_such_path()),
        }
    };
    let verb = call.info.verb.as_str();
    match verbs.contains(&verb) {
        true => Ok(()),
        false if descriptor.custom => Err(ApiError::method_not_supported(&call.info.group, &descriptor.plural, verb)),
        false => Err(ApiError::method_not_allowed()),
    }
}

pub async fn handle(asked: &Asked, call: Arc<Call>, body: Bytes) -> Result<Response<Body>> {
    if call.descriptor().virtual_ {
        if !call.info.subresource.is_empty() {
            return Err(ApiError::no_such_path());
        }
        return virtual_resource(asked, &call, &body).await;
    }
    check(&call)?;
    match call.info.subresource.as_str() {
        "scale" => scale::handle(asked, &call, &body).await,
        "binding" => pods::bind(asked, &call, &body).await,
        "eviction" => pods::evict(asked, &call, &body).await,
        "token" => token::issue(asked, &call, &body).await,
        _ => Err(ApiError::no_such_path()),
    }
}

async fn virtual_resource(asked: &Asked, call: &Call, body: &Bytes) -> Result<Response<Body>> {
    if !call.descriptor().allows(&call.info.verb) {
        return Err(ApiError::method_not_allowed());
    }
    match &*call.descriptor().plural {
        "bindings" => pods::bind(asked, call, body).await,
        _ if call.descriptor().hub_group() == usage::GROUP => usage::answer(asked, call).await,
        "componentstatuses" => reviews::component_statuses(asked, call).await,
        _ => reviews::handle(asked, call, body).await,
    }
}

/// The object in the body of a request whose kind is not the resource's own.
pub fn decode(asked: &Asked, call: &Call, body: &Bytes, kind: &GroupVersionKind) -> Result<Value> {
    let (mut object, duplicates) = resources::parse_body(asked, body)?;
    normalize(call, &mut object, kind, duplicates)?;
    Ok(object)
}

pub fn normalize(call: &Call, object: &mut Value, kind: &GroupVersionKind, mut problems: Vec<String>) -> Result<()> {
    super::metadata::check_type(object, &kind.api_version(), &kind.kind, false)?;
    if let Some(schema) = schema::lookup(kind) {
        problems.extend(schema::normalize(&schema, object, kind)?);
    }
    call.report_fields(kind, &problems)
}

/// Answers with an object as it is.
pub fn answer(asked: &Asked, status: StatusCode, object: &Value) -> Result<Response<Body>> {
    let output = asked.output(true, false)?;
    Ok(resources::ok(status, &output, render::encode(object, &output)?, asked))
}

/// Answers that it was done, with nothing else to say.
pub fn succeed(asked: &Asked, code: StatusCode) -> Result<Response<Body>> {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()});
    resources::status_response(asked, code, status, &asked.output(true, false)?)
}
