//! Reviews: who is this token, may they, what may I. Answered from authentication and
//! authorization, never stored.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Call, metadata, subresource};
use crate::authn::UserInfo;
use crate::authz::Request;
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::negotiate::View;
use crate::http::pipeline::Asked;
use crate::http::{render, resources};
use crate::kinds::authorization;

pub async fn handle(asked: &Asked, call: &Call, body: &Bytes) -> Result<Response<Body>> {
    let mut review = subresource::decode(asked, call, body, &call.kind())?;
    let kind = &*call.descriptor().kind;
    if let Some(metadata) = review["metadata"].as_object_mut() {
        metadata.remove("creationTimestamp");
    }
    if kind == "SelfSubjectReview" {
        review["metadata"]["creationTimestamp"] = api::scalar::time(call.now).into();
    }
    if call.descriptor().hub_group() == "authorization.k8s.io" {
        metadata::check_namespace(&mut review, &call.info.namespace)?;
        let errors = authorization::validate(kind, &review);
        if !errors.is_empty() {
            return Err(ApiError::invalid(&call.info.group, kind, "", &errors));
        }
    }
    review["status"] = match kind {
        "TokenReview" => token_status(call, &review["spec"]).await?,
        "SelfSubjectReview" => json!({"userInfo": user_object(&call.user)}),
        "SelfSubjectAccessReview" => access_status(call, &call.user, &review["spec"]).await?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            access_status(call, &reviewed_user(&review["spec"]), &review["spec"]).await?
        }
        "SelfSubjectRulesReview" => rules_status(call, &review["spec"]).await?,
        _ => return Err(ApiError::no_such_path()),
    };
    subresource::answer(asked, StatusCode::CREATED, &review)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `UserInfo` as `authentication.k8s.io` writes it.
pub fn user_object(user: &UserInfo) -> Value {
    let mut object = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        object["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        object["extra"] = json!(user.extra);
    }
    object
}

async fn token_status(call: &Call, spec: &Value) -> Result<Value> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let asked = texts(&spec["audiences"]);
    let wanted = if asked.is_empty() { vec![call.api.config.issuer.clone()] } else { asked };
    let (mut user, audiences) = match call.api.authn.by_token(&call.api, token, &wanted).await {
        Ok(found) => found,
        Err(why) => return Ok(json!({"user": {}, "error": why})),
    };
    if !user.in_group(crate::authn::AUTHENTICATED) {
        user.groups.push(crate::authn::AUTHENTICATED.to_owned());
    }
    Ok(json!({"authenticated": true, "user": user_object(&user), "audiences": audiences}))
}

fn reviewed_user(spec: &Value) -> UserInfo {
    let extra: BTreeMap<String, Vec<String>> = spec["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.to_lowercase(), texts(values)))
        .collect();
    UserInfo {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: texts(&spec["groups"]),
        extra,
    }
}

async fn access_status(call: &Call, user: &UserInfo, spec: &Value) -> Result<Value> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &'static str, of: &Value| of[value].as_str().unwrap_or_default().to_owned();
    let (verb, group, kind, sub, namespace, name) = (
        text("verb", if resource.is_null() { path } else { resource }),
        text("group", resource),
        text("resource", resource),
        text("subresource", resource),
        text("namespace", resource),
        text("name", resource),
    );
    let path = text("path", path);
    let (fields, labels) = (selector_text(&resource["fieldSelector"]), selector_text(&resource["labelSelector"]));
    let version = text("version", resource);
    let request = Request {
        verb: &verb,
        group: &group,
        resource: &kind,
        subresource: &sub,
        namespace: &namespace,
        name: &name,
        path: &path,
        version: &version,
        field_selector: &fields,
        label_selector: &labels,
    };
    let (mut status, reason) = match call.api.authz.decide(&call.api, user, &request).await {
        Ok(reason) => (json!({"allowed": true}), reason.to_string()),
        Err(refused) if refused.denied => (json!({"allowed": false, "denied": true}), refused.reason),
        Err(refused) => (json!({"allowed": false}), refused.reason),
    };
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}

/// A selector in a review, raw or as requirements, as it would stand in a URL.
fn selector_text(selector: &Value) -> String {
    if let Some(raw) = selector["rawSelector"].as_str() {
        return raw.to_owned();
    }
    let requirements = selector["requirements"].as_array().into_iter().flatten().filter_map(|requirement| {
        let (key, values) = (requirement["key"].as_str()?, texts(&requirement["values"]));
        Some(match (requirement["operator"].as_str()?, values.as_slice()) {
            ("In", [one]) => format!("{key}={one}"),
            ("NotIn", [one]) => format!("{key}!={one}"),
            ("In", many) => format!("{key} in ({})", many.join(",")),
            ("NotIn", many) => format!("{key} notin ({})", many.join(",")),
            ("Exists", _) => key.to_owned(),
            ("DoesNotExist", _) => format!("!{key}"),
            _ => return None,
        })
    });
    requirements.collect::<Vec<_>>().join(",")
}

async fn rules_status(call: &Call, spec: &Value) -> Result<Value> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let rules = call.api.authz.index(&call.api).await.map_err(ApiError::internal)?.rules_of(&call.user, namespace);
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if rule.urls.is_empty() {
            let mut entry = json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                entry["resourceNames"] = json!(rule.names);
            }
            resources.push(entry);
        } else {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.urls}));
        }
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    if let Some(why) = call.api.authz.hides_rules(&call.user) {
        status["incomplete"] = true.into();
        status["evaluationError"] = why.into();
    }
    Ok(status)
}

/// `componentstatuses`: deprecated upstream, still asked for.
pub async fn component_statuses(asked: &Asked, call: &Call) -> Result<Response<Body>> {
    let healthy = call.api.store.healthy().await.is_ok();
    let condition = if healthy {
        json!({"type": "Healthy", "status": "True", "message": "ok"})
    } else {
        json!({"type": "Healthy", "status": "False", "message": "the store does not answer"})
    };
    let component = |name: &str, condition: Value| json!({"metadata": {"name": name}, "conditions": [condition]});
    let well = json!({"type": "Healthy", "status": "True", "message": "ok"});
    let mut all = vec![
        component("controller-manager", well.clone()),
        component("scheduler", well),
        component("etcd-0", condition),
    ];
    let output = asked.output(true, true)?;
    let shown = if call.info.verb == "get" {
        let Some(at) = all.iter().position(|one| one["metadata"]["name"] == call.info.name) else {
            return Err(call.not_found());
        };
        let mut one = all.swap_remove(at);
        one["kind"] = "ComponentStatus".into();
        one["apiVersion"] = "v1".into();
        call.render(one, &output)?
    } else {
        let list = match output.view {
            View::Table { version } => {
                let rows = all.into_iter().map(|one| call.row(one, version, call.now)).collect::<Result<Vec<_>>>()?;
                call.table(rows, &json!({}), version)
            }
            view => render::list_of(call, view, all, json!({})),
        };
        render::encode(&list, &output)?
    };
    Ok(resources::ok(StatusCode::OK, &output, shown, asked))
}
