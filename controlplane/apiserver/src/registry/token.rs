//! `serviceaccounts/token`: issues tokens (`TokenRequest`).

use api::field::{Error, Path};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::Value;

use super::{Call, metadata, subresource};
use crate::admit::{Cluster, Operation};
use crate::authn::serviceaccount::{self, Bound, Grant};
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::pipeline::Asked;
use crate::resource::GroupVersionKind;

const DEFAULT_SECONDS: i64 = 3600;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;

pub async fn issue(asked: &Asked, call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let kind = GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest");
    let mut request = subresource::decode(asked, call, body, &kind)?;
    metadata::check_namespace(&mut request, &call.info.namespace)?;
    metadata::check_name(&mut request, &call.info.name)?;
    let account = call.current().await?.ok_or_else(|| call.not_found())?.value;
    let issuer = &call.api.config.issuer;
    if request["spec"]["audiences"].as_array().is_none_or(Vec::is_empty) {
        request["spec"]["audiences"] = vec![issuer.clone()].into();
    }
    if request["spec"]["expirationSeconds"].is_null() {
        request["spec"]["expirationSeconds"] = DEFAULT_SECONDS.into();
    }
    let options = call.options_object("CreateOptions");
    let request = call.mutate(Operation::Create, request, None, &options).await?;
    let errors = problems(&request);
    if !errors.is_empty() {
        return Err(ApiError::invalid(&kind.group, &kind.kind, &call.info.name, &errors));
    }
    let mut request = call.validate(Operation::Create, request, None, &options).await?;
    let bound = bound_to(call, &request["spec"]["boundObjectRef"]).await?;
    let audiences: Vec<String> = request["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let grant = Grant {
        namespace: &call.info.namespace,
        account: &call.info.name,
        account_uid: metadata::text(&account, "uid"),
        audiences: &audiences,
        seconds: request["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS),
        bound,
    };
    let (claims, ends) = serviceaccount::claims(&grant, issuer, call.now);
    request["status"]["token"] = call.api.authn.keys.sign(&claims)?.into();
    request["status"]["expirationTimestamp"] = metadata::timestamp(ends).into();
    request["metadata"]["creationTimestamp"] = metadata::timestamp(call.now).into();
    subresource::answer(asked, StatusCode::CREATED, &request)
}

fn problems(request: &Value) -> Vec<Error> {
    let path = Path::root("spec").child("expirationSeconds");
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(0);
    let mut errors = Vec::new();
    if seconds < SHORTEST {
        errors.push(Error::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > LONGEST {
        errors.push(Error::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    errors
}

/// The objects that a token is bound to: what the request names, and the node of a pod.
async fn bound_to(call: &Call, reference: &Value) -> Result<Vec<Bound>> {
    if reference.is_null() {
        return Ok(Vec::new());
    }
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let (plural, namespace, claim) = match (text("apiVersion"), kind) {
        ("v1", "Pod") => ("pods", call.info.namespace.as_str(), "pod"),
        ("v1", "Secret") => ("secrets", call.info.namespace.as_str(), "secret"),
        ("v1", "Node") => ("nodes", "", "node"),
        (version, _) => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {version}, Kind={kind}; it may be bound to a Pod, a Secret or a Node (v1)"
            )));
        }
    };
    let object =
        call.api.get("", plural, namespace, name).await?.ok_or_else(|| ApiError::not_found("", plural, name))?;
    let found = metadata::text(&object, "uid");
    if !uid.is_empty() && uid != found {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict("", plural, name, why));
    }
    let mut bound = vec![Bound { claim, name: name.to_owned(), uid: found.to_owned() }];
    if claim == "pod" {
        let account = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
        if account != call.info.name {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                call.info.name
            )));
        }
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        if !node.is_empty()
            && let Some(node_object) = call.api.get("", "nodes", "", node).await?
        {
            let uid = metadata::text(&node_object, "uid").to_owned();
            bound.push(Bound { claim: "node", name: node.to_owned(), uid });
        }
    }
    Ok(bound)
}
