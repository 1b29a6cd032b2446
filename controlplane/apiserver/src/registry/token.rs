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
use crate::resource::{GroupVersionKind, split_api_version};

const DEFAULT_SECONDS: i64 = 3600;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;

pub async fn issue(asked: &Asked, call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let kind = GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest");
    let mut request = subresource::decode(asked, call, body, &kind)?;
    check_home(&mut request, call, &kind)?;
    let account = call.current().await?.ok_or_else(|| call.not_found())?.value;
    check_account(&request, call, &account)?;
    if request["spec"]["expirationSeconds"].is_null() {
        request["spec"]["expirationSeconds"] = DEFAULT_SECONDS.into();
    }
    let options = call.options_object("CreateOptions");
    let mut request = call.mutate(Operation::Create, request, None, &options).await?;
    // Only now: plugins see whether an audience was asked for.
    let issuer = &call.api.config.issuer;
    if request["spec"]["audiences"].as_array().is_none_or(Vec::is_empty) {
        request["spec"]["audiences"] = vec![issuer.clone()].into();
    }
    let errors = problems(&request);
    if !errors.is_empty() {
        return Err(ApiError::invalid(&kind.group, &kind.kind, "", &errors));
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
    if let Some(record) = &call.record {
        let id = format!("JTI={}", claims["jti"].as_str().unwrap_or_default());
        record.annotate("authentication.kubernetes.io/issued-credential-id", id);
    }
    request["status"]["token"] = call.api.authn.keys.sign(&claims)?.into();
    request["status"]["expirationTimestamp"] = api::scalar::time(ends).into();
    request["metadata"]["creationTimestamp"] = api::scalar::time(call.now).into();
    subresource::answer(asked, StatusCode::CREATED, &request)
}

/// What the request says of name and namespace must be the account's; what it does not is filled in.
fn check_home(request: &mut Value, call: &Call, kind: &GroupVersionKind) -> Result<()> {
    for (key, own) in [("name", &call.info.name), ("namespace", &call.info.namespace)] {
        let given = metadata::text(request, key);
        if !given.is_empty() && given != own {
            let detail = format!("must match the service account {key} if specified");
            let error = Error::invalid(&Path::root("metadata").child(key), given, detail);
            return Err(ApiError::invalid(&kind.group, &kind.kind, &call.info.name, &[error]));
        }
    }
    metadata::check_namespace(request, &call.info.namespace)?;
    metadata::check_name(request, &call.info.name)
}

/// A request that names a uid is for that account alone, and not for another that took its name since.
fn check_account(request: &Value, call: &Call, account: &Value) -> Result<()> {
    let (asked, found) = (metadata::text(request, "uid"), metadata::text(account, "uid"));
    if asked.is_empty() || asked == found {
        return Ok(());
    }
    let why = format!("the UID in the token request ({asked}) does not match the UID of the service account ({found})");
    Err(ApiError::conflict("authentication.k8s.io", "TokenRequest", &call.info.name, why))
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
    let (group, version) = split_api_version(text("apiVersion"));
    let (plural, namespace, claim) = match (group, kind) {
        ("", "Pod") => ("pods", call.info.namespace.as_str(), "pod"),
        ("", "Secret") => ("secrets", call.info.namespace.as_str(), "secret"),
        ("", "Node") => ("nodes", "", "node"),
        _ => {
            let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(ApiError::bad_request(why));
        }
    };
    let object =
        call.api.get("", plural, namespace, name).await?.ok_or_else(|| ApiError::not_found("", plural, name))?;
    let account = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    if claim == "pod" && account != call.info.name {
        return Err(ApiError::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            call.info.name
        )));
    }
    let found = metadata::text(&object, "uid");
    if !uid.is_empty() && uid != found {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict("", kind, name, why));
    }
    let mut bound = vec![Bound { claim, name: name.to_owned(), uid: found.to_owned() }];
    let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
    if claim == "pod" && !node.is_empty() {
        // Its name tells something even when it is gone.
        let object = call.api.get("", "nodes", "", node).await?;
        let uid = object.map(|object| metadata::text(&object, "uid").to_owned()).unwrap_or_default();
        bound.push(Bound { claim: "node", name: node.to_owned(), uid });
    }
    Ok(bound)
}
