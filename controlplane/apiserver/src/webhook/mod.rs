//! Admission webhooks: `MutatingWebhookConfiguration`s and `ValidatingWebhookConfiguration`s.
//!
//! Two plugins among the others ([`Mutating`], [`Validating`]). Which webhooks a request goes to,
//! what they are sent and what their answer means is pure; [`call`] does the exchange.

pub mod call;

use std::sync::Arc;
use std::time::Duration;

use api::selector::Selector;
use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::StatusCode;
use serde_json::{Value, json};

use crate::admit::{Admission, Attributes, Cluster};
use crate::cel;
use crate::error::{ApiError, Result};
use crate::patch;

const GROUP: &str = "admissionregistration.k8s.io";
const DEFAULT_TIMEOUT: u64 = 10;

/// Webhooks that may change the object.
pub struct Mutating;
/// Webhooks that only say yes or no.
pub struct Validating;

/// Webhook configurations themselves, and reviews, go to no webhook.
fn applies(attributes: &Attributes<'_>) -> bool {
    attributes.group != GROUP && !attributes.descriptor.virtual_
}

#[async_trait]
impl Admission for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        applies(attributes)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let webhooks = matching(attributes, cluster, "mutatingwebhookconfigurations").await?;
        let mut last_change = None;
        for (at, webhook) in webhooks.iter().enumerate() {
            if mutate_by(webhook, attributes, cluster).await? {
                last_change = Some(at);
            }
        }
        // Those that ask for it see once more what others changed after them.
        for webhook in webhooks.iter().take(last_change.unwrap_or(0)) {
            if webhook["reinvocationPolicy"] == "IfNeeded" {
                mutate_by(webhook, attributes, cluster).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        applies(attributes)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let webhooks = matching(attributes, cluster, "validatingwebhookconfigurations").await?;
        let answers = webhooks.iter().map(|webhook| consult(webhook, attributes, cluster));
        let answers = futures::future::join_all(answers).await;
        for (webhook, answer) in webhooks.iter().zip(answers) {
            if let Some(response) = answer? {
                take_notes(webhook, &response, attributes);
            }
        }
        Ok(())
    }
}

fn name(webhook: &Value) -> &str {
    webhook["name"].as_str().unwrap_or_default()
}

/// The webhooks that a request goes to, in order of their configurations' names.
async fn matching(attributes: &Attributes<'_>, cluster: &dyn Cluster, plural: &str) -> Result<Vec<Value>> {
    let configurations = cluster.list(GROUP, plural, "").await?;
    let mut chosen = Vec::new();
    for configuration in configurations.iter() {
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            if rules_match(&webhook["rules"], attributes) && selected(webhook, attributes, cluster).await? {
                if let Some(outcome) = conditions(webhook, attributes) {
                    match outcome {
                        Ok(true) => {}
                        Ok(false) => continue,
                        Err(_) if webhook["failurePolicy"] == "Ignore" => continue,
                        Err(why) => return Err(failed(webhook, &why)),
                    }
                }
                chosen.push(webhook.clone());
            }
        }
    }
    Ok(chosen)
}

fn contains(list: &Value, wanted: &str) -> bool {
    list.as_array().into_iter().flatten().any(|held| held == "*" || held == wanted)
}

/// Whether one of the rules covers the request.
fn rules_match(rules: &Value, attributes: &Attributes<'_>) -> bool {
    let exact = webhook_versions(attributes);
    rules.as_array().into_iter().flatten().any(|rule| {
        let scope = match rule["scope"].as_str().unwrap_or("*") {
            "Namespaced" => !attributes.namespace.is_empty() && attributes.descriptor.namespaced,
            "Cluster" => !attributes.descriptor.namespaced,
            _ => true,
        };
        scope
            && contains(&rule["operations"], attributes.operation.name())
            && exact
                .iter()
                .any(|(group, version)| contains(&rule["apiGroups"], group) && contains(&rule["apiVersions"], version))
            && rule["resources"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .any(|held| resource_matches(held, &attributes.descriptor.plural, attributes.subresource))
    })
}

/// Every version that the resource is served in: a rule for one of them covers the others
/// (`matchPolicy: Equivalent`, the default).
fn webhook_versions<'a>(attributes: &'a Attributes<'_>) -> Vec<(&'a str, &'a str)> {
    let others = attributes.descriptor.served.iter().map(|served| (&*served.group, &*served.version));
    std::iter::once((attributes.group, attributes.version)).chain(others).collect()
}

fn resource_matches(rule: &str, plural: &str, subresource: &str) -> bool {
    match rule.split_once('/') {
        None => subresource.is_empty() && (rule == "*" || rule == plural),
        Some((main, sub)) => {
            (main == "*" || main == plural) && (sub == "*" || (!subresource.is_empty() && sub == subresource))
        }
    }
}

/// Whether the namespace and the object have the labels that the webhook asks for.
async fn selected(webhook: &Value, attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Result<bool> {
    let selector = |key: &str| -> Option<Selector> {
        let selector = &webhook[key];
        Selector::from_json(Some(selector))
            .ok()
            .filter(|_| selector.is_object())
            .filter(|selector| !selector.is_everything())
    };
    if let Some(wanted) = selector("namespaceSelector") {
        let own = attributes.is("", "namespaces");
        let namespace = if own {
            Some(Arc::new(attributes.object.clone()))
        } else if attributes.namespace.is_empty() {
            None
        } else {
            cluster.get("", "namespaces", "", attributes.namespace).await?
        };
        if let Some(namespace) = namespace
            && !wanted.matches_json(namespace["metadata"].get("labels"))
        {
            return Ok(false);
        }
    }
    if let Some(wanted) = selector("objectSelector") {
        let matches = |object: &Value| object.is_object() && wanted.matches_json(object["metadata"].get("labels"));
        if !matches(&attributes.object) && !attributes.old.is_some_and(matches) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `matchConditions`: none without any; an expression that fails is an error.
fn conditions(webhook: &Value, attributes: &Attributes<'_>) -> Option<Result<bool, String>> {
    let conditions = webhook["matchConditions"].as_array().filter(|conditions| !conditions.is_empty())?;
    let variables = [
        ("object", cel::from_json(&attributes.object)),
        ("oldObject", cel::from_json(attributes.old.unwrap_or(&Value::Null))),
        ("request", cel::from_json(&request(attributes, ""))),
    ];
    for condition in conditions {
        let expression = condition["expression"].as_str().unwrap_or_default();
        let outcome = cel::compile(expression).and_then(|program| program.test(&variables));
        match outcome {
            Ok(true) => {}
            Ok(false) => return Some(Ok(false)),
            Err(error) => return Some(Err(format!("match condition {expression:?}: {error}"))),
        }
    }
    Some(Ok(true))
}

/// `AdmissionRequest`.
fn request(attributes: &Attributes<'_>, uid: &str) -> Value {
    let descriptor = attributes.descriptor;
    let (group, version) = (descriptor.hub_group(), descriptor.hub_version());
    let object_kind = |object: &Value| -> Value {
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = crate::resource::split_api_version(api_version);
        json!({"group": group, "version": version, "kind": object["kind"]})
    };
    let sample = if attributes.object.is_object() { Some(&attributes.object) } else { attributes.old };
    let kind = sample.map_or_else(|| json!({"group": group, "version": version, "kind": descriptor.kind}), object_kind);
    let resource = json!({"group": group, "version": version, "resource": descriptor.plural});
    let name = if attributes.name.is_empty() {
        attributes.object["metadata"]["name"].as_str().unwrap_or_default()
    } else {
        attributes.name
    };
    let mut request = json!({
        "uid": uid, "kind": kind, "resource": resource, "requestKind": kind,
        "requestResource": {"group": attributes.group, "version": attributes.version, "resource": descriptor.plural},
        "name": name, "operation": attributes.operation.name(),
        "userInfo": crate::registry::user_object(attributes.user),
        "object": attributes.object, "oldObject": attributes.old, "dryRun": attributes.dry_run, "options": attributes.options,
    });
    if !attributes.namespace.is_empty() {
        request["namespace"] = attributes.namespace.into();
    }
    if !attributes.subresource.is_empty() {
        request["subResource"] = attributes.subresource.into();
        request["requestSubResource"] = attributes.subresource.into();
    }
    request
}

fn failed(webhook: &Value, why: &str) -> ApiError {
    ApiError::internal(format!("failed calling webhook {:?}: failed to call webhook: {why}", name(webhook)))
}

/// Asks one webhook. `None`: it could not be asked, and that is to be ignored.
async fn consult(webhook: &Value, attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Result<Option<Value>> {
    if attributes.dry_run && !matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        return Err(ApiError::bad_request(format!("admission webhook {:?} does not support dry run", name(webhook))));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let review =
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request(attributes, &uid)});
    let timeout = Duration::from_secs(webhook["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT).clamp(1, 30));
    let answer = call::post(cluster, &webhook["clientConfig"], &review, timeout).await;
    let response = answer.and_then(|answer| read(&answer, &uid));
    match response {
        Ok(response) if response["allowed"] == true => Ok(Some(response)),
        Ok(response) => Err(denied(webhook, &response)),
        Err(why) if webhook["failurePolicy"] == "Ignore" => {
            tracing::warn!(webhook = name(webhook), why, "webhook failed; its policy is to ignore that");
            Ok(None)
        }
        Err(why) => Err(failed(webhook, &why)),
    }
}

/// The response in an answered review.
fn read(answer: &Value, uid: &str) -> std::result::Result<Value, String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {}", response["uid"]));
    }
    Ok(response.clone())
}

fn denied(webhook: &Value, response: &Value) -> ApiError {
    let status = &response["status"];
    let (message, reason) =
        (status["message"].as_str().unwrap_or_default(), status["reason"].as_str().unwrap_or_default());
    let name = name(webhook);
    let text = match (message, reason) {
        ("", "") => format!("admission webhook {name:?} denied the request without explanation"),
        ("", reason) => format!("admission webhook {name:?} denied the request: {reason}"),
        (message, _) => format!("admission webhook {name:?} denied the request: {message}"),
    };
    let mut status = if status.is_object() { status.clone() } else { json!({}) };
    status["message"] = text.into();
    ApiError::from_status(status, StatusCode::FORBIDDEN)
}

/// Warnings and audit annotations of an answer.
fn take_notes(webhook: &Value, response: &Value, attributes: &mut Attributes<'_>) {
    let warnings = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    attributes.warnings.extend(warnings.map(str::to_owned));
    for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
        attributes.audit.push((format!("{}/{key}", name(webhook)), value.as_str().unwrap_or_default().to_owned()));
    }
}

/// Whether the webhook changed the object.
async fn mutate_by(webhook: &Value, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<bool> {
    let Some(response) = consult(webhook, attributes, cluster).await? else { return Ok(false) };
    take_notes(webhook, &response, attributes);
    let Some(encoded) = response["patch"].as_str().filter(|patch| !patch.is_empty()) else { return Ok(false) };
    let patched = patched(&attributes.object, encoded).map_err(|why| failed(webhook, &why))?;
    let changed = patched != attributes.object;
    attributes.object = patched;
    Ok(changed)
}

fn patched(object: &Value, encoded: &str) -> std::result::Result<Value, String> {
    if !object.is_object() {
        return Err("a request without an object cannot be patched".to_owned());
    }
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|error| format!("its patch is not base64: {error}"))?;
    let patch: Value = serde_json::from_slice(&bytes).map_err(|error| format!("its patch is no JSON: {error}"))?;
    patch::json(object, &patch).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::Operation;
    use crate::authn::UserInfo;
    use crate::resource::Descriptor;

    #[test]
    fn rules_choose_requests() {
        let descriptor = Descriptor::new("apps", "v1", "Deployment", "deployments");
        let (user, options) = (UserInfo::admin(), json!({}));
        let attributes = Attributes {
            user: &user,
            descriptor: &descriptor,
            group: "apps",
            version: "v1",
            subresource: "",
            operation: Operation::Create,
            namespace: "a",
            name: "x",
            object: json!({}),
            old: None,
            options: &options,
            dry_run: false,
            warnings: Vec::new(),
            audit: Vec::new(),
        };
        let rule = |operations: &str, group: &str, resource: &str, scope: &str| json!([{"operations": [operations], "apiGroups": [group], "apiVersions": ["*"], "resources": [resource], "scope": scope}]);
        for (rules, expected) in [
            (rule("CREATE", "apps", "deployments", "*"), true),
            (rule("*", "*", "*", "Namespaced"), true),
            (rule("*", "*", "*/*", "*"), true),
            (rule("UPDATE", "apps", "deployments", "*"), false),
            (rule("CREATE", "", "deployments", "*"), false),
            (rule("CREATE", "apps", "deployments/status", "*"), false),
            (rule("CREATE", "apps", "deployments", "Cluster"), false),
        ] {
            assert_eq!(rules_match(&rules, &attributes), expected, "{rules}");
        }
    }

    #[test]
    fn patches_and_refusals() {
        let patch = BASE64_STANDARD.encode(r#"[{"op":"add","path":"/a","value":1}]"#);
        assert_eq!(patched(&json!({}), &patch).unwrap(), json!({"a": 1}));
        assert!(patched(&json!({}), "!").is_err());
        let error =
            denied(&json!({"name": "x.y"}), &json!({"allowed": false, "status": {"message": "no", "code": 422}}));
        assert_eq!((error.code().as_u16(), error.message()), (422, "admission webhook \"x.y\" denied the request: no"));
        assert!(read(&json!({"response": {"uid": "other"}}), "u").is_err());
    }
}
