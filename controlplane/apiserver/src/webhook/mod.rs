//! Admission webhooks: `MutatingWebhookConfiguration`s and `ValidatingWebhookConfiguration`s.
//!
//! Two plugins among the others ([`Mutating`], [`Validating`]). Which webhooks a request goes to,
//! what they are sent and what their answer means is pure; [`call`] does the exchange.

pub mod call;
pub mod credentials;
pub mod matching;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use component::Supervisor;
use http::StatusCode;
use serde_json::{Value, json};

use crate::admission::config::Configuration;
use crate::admission::manifests::{Kinds, Manifests};
use crate::admit::{Admission, Attributes, Cluster};
use crate::error::{ApiError, Result};
use crate::kinds::core::pod::defaults;
use crate::patch;
use crate::policy::{self, Conditions};
use crate::schema;

use credentials::{Credentials, File};
use matching::{Criteria, Version, Versioned};

const GROUP: &str = "admissionregistration.k8s.io";
const DEFAULT_TIMEOUT: u64 = 10;

/// What the audit log is told under: that a mutating webhook was asked, its patch, and that a webhook did not
/// answer and was done without.
const MUTATION: &str = "mutation.webhook.admission.k8s.io/";
pub const PATCH: &str = "patch.webhook.admission.k8s.io/";
const MUTATION_FAILED_OPEN: &str = "failed-open.mutation.webhook.admission.k8s.io/";
const VALIDATION_FAILED_OPEN: &str = "failed-open.validating.webhook.admission.k8s.io/";

/// Webhooks that may change the object, and policies that may: each may call for the other again.
pub struct Mutating {
    /// Each with what comes from files, if its plugin runs.
    pub policies: Option<Manifests>,
    pub webhooks: Option<Manifests>,
    pub credentials: Credentials,
    /// The plugins that run before this one, in order: what is changed here passes them once more.
    pub before: Vec<Arc<dyn Admission>>,
}

/// Webhooks that only say yes or no.
pub struct Validating {
    pub credentials: Credentials,
    pub manifests: Manifests,
}

/// What a plugin of webhooks is told: users, and webhooks from files.
pub async fn configuration(
    given: Option<&Configuration>,
    kinds: Kinds,
    supervisor: &Supervisor,
) -> std::result::Result<(Credentials, Manifests), String> {
    let credentials = Credentials::new(given).await?;
    let manifests = match given {
        Some(given) => Manifests::read(given, &File::of(given)?.static_manifests_dir, kinds, supervisor)?,
        None => Manifests::default(),
    };
    Ok((credentials, manifests))
}

/// Reviews go to no webhook, webhook configurations themselves to those from files alone.
fn applies(attributes: &Attributes<'_>, manifests: bool) -> bool {
    (manifests || attributes.group != GROUP) && !attributes.descriptor.virtual_
}

#[async_trait]
impl Admission for Mutating {
    fn name(&self) -> &'static str {
        if self.webhooks.is_some() { "MutatingAdmissionWebhook" } else { "MutatingAdmissionPolicy" }
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        let given = |manifests: &Option<Manifests>| manifests.as_ref().is_some_and(Manifests::is_given);
        applies(attributes, given(&self.policies) || given(&self.webhooks))
    }

    /// Policies first, then webhooks. What they changed passes the plugins before this one again, as upstream
    /// has it: a container that a webhook adds gets its token and its default limits. Then who asks for it sees
    /// once more what others changed after it.
    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let by_policies = match &self.policies {
            Some(manifests) => policy::mutating::run(attributes, cluster, (manifests, false)).await?,
            None => false,
        };
        let webhooks = match &self.webhooks {
            Some(manifests) => configured(attributes, cluster, "mutatingwebhookconfigurations", manifests).await?,
            None => Vec::new(),
        };
        let mut last_change = None;
        for (at, webhook) in webhooks.iter().enumerate() {
            if Box::pin(self.mutate_by(webhook, &Place { round: 0, index: at }, attributes, cluster)).await? {
                last_change = Some(at);
            }
        }
        if !by_policies && last_change.is_none() {
            return Ok(());
        }
        let completed = Box::pin(self.complete(attributes, cluster)).await?;
        let again = match &self.policies {
            Some(manifests) => policy::mutating::run(attributes, cluster, (manifests, true)).await?,
            None => false,
        };
        let earlier = if completed || again { webhooks.len() } else { last_change.unwrap_or(0) };
        for (at, webhook) in webhooks.iter().enumerate().take(earlier) {
            if webhook.webhook["reinvocationPolicy"] == "IfNeeded" {
                Box::pin(self.mutate_by(webhook, &Place { round: 1, index: at }, attributes, cluster)).await?;
            }
        }
        Ok(())
    }
}

impl Mutating {
    /// Runs the plugins before this one once more; whether they changed the object.
    async fn complete(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<bool> {
        let kind = attributes.descriptor.hub_kind();
        // They expect what a patch may have left to be as a client's object is by then.
        if attributes.object["kind"] == *kind.kind
            && let Some(schema) = cluster.schema(&kind.group, &kind.version, &kind.kind)
        {
            schema::normalize(&schema, &mut attributes.object, &kind).map_err(ApiError::internal)?;
            if attributes.is("", "pods") {
                defaults::pod(&mut attributes.object);
            }
        }
        let patched = attributes.object.clone();
        for plugin in &self.before {
            if plugin.handles(attributes) {
                plugin.mutate(attributes, cluster).await?;
            }
        }
        Ok(attributes.object != patched)
    }

    /// Whether the webhook changed the object.
    async fn mutate_by(
        &self,
        Configured { configuration, webhook }: &Configured,
        place: &Place,
        attributes: &mut Attributes<'_>,
        cluster: &dyn Cluster,
    ) -> Result<bool> {
        let asked = match relevant(webhook, attributes, cluster).await? {
            Some(versioned) => ask(webhook, attributes, versioned, cluster, &self.credentials, true).await,
            None => return Ok(false),
        };
        let mut patch = None;
        let outcome = match asked {
            Ok(Some((response, seen))) => take(webhook, &response, seen, attributes, cluster, &mut patch).await,
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let (configuration, named) = (Value::from(configuration.as_str()), Value::from(name(webhook)));
        let about = format!("\"configuration\":{configuration},\"webhook\":{named}");
        if let Some(patch) = patch {
            let note = format!("{{{about},\"patch\":{patch},\"patchType\":\"JSONPatch\"}}");
            attributes.audit.push((place.key(PATCH), note));
        }
        let mutated = matches!(outcome, Ok(Some(true)));
        attributes.audit.push((place.key(MUTATION), format!("{{{about},\"mutated\":{mutated}}}")));
        if matches!(outcome, Ok(None)) {
            attributes.audit.push((place.key(MUTATION_FAILED_OPEN), name(webhook).to_owned()));
        }
        outcome.map(|_| mutated)
    }
}

/// Which call of a webhook it is: those that are asked again are in the second round.
struct Place {
    round: usize,
    index: usize,
}

impl Place {
    fn key(&self, prefix: &str) -> String {
        format!("{prefix}round_{}_index_{}", self.round, self.index)
    }
}

/// Does what a mutating webhook answered; whether that changed the object. None: the answer is no use, which is to
/// be ignored. `applied` is the patch that was applied.
async fn take(
    webhook: &Value,
    response: &Value,
    seen: Seen,
    attributes: &mut Attributes<'_>,
    cluster: &dyn Cluster,
    applied: &mut Option<Value>,
) -> Result<Option<bool>> {
    heard(webhook, response, attributes)?;
    if !has_patch(response) {
        return Ok(Some(false));
    }
    let patch = match decoded(&response["patch"]) {
        Ok(patch) => patch,
        Err(_) if ignores_failures(webhook) => return Ok(None),
        Err(why) => {
            return Err(failed(webhook, &format!("received undecodable patch in webhook response: {why}")));
        }
    };
    if patch.as_array().is_some_and(Vec::is_empty) {
        return Ok(Some(false));
    }
    if !seen.object.is_object() {
        return Err(ApiError::internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            name(webhook)
        )));
    }
    match response["patchType"].as_str() {
        Some(kind) if kind != "JSONPatch" && !ignores_failures(webhook) => {
            return Err(failed(webhook, &format!("unsupported patch type {kind:?}")));
        }
        Some(kind) if kind != "JSONPatch" => return Ok(None),
        _ => {}
    }
    let patched = patch::json(&seen.object, &patch).map_err(|error| ApiError::internal(error.to_string()))?;
    let patched = matching::restored(attributes, cluster, patched, &seen.version).await?;
    *applied = Some(patch);
    let changed = patched != attributes.object;
    attributes.object = patched;
    attributes.patched = true;
    Ok(Some(changed))
}

#[async_trait]
impl Admission for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        applies(attributes, self.manifests.is_given())
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let webhooks = configured(attributes, cluster, "validatingwebhookconfigurations", &self.manifests).await?;
        if webhooks.is_empty() {
            return Ok(());
        }
        let answers = webhooks.iter().map(|one| consult(&one.webhook, attributes, cluster, &self.credentials));
        let answers = futures::future::join_all(answers).await;
        // Each has its say; the first refusal is the answer.
        let (mut outcome, mut place) = (Ok(()), Place { round: 0, index: 0 });
        for (Configured { webhook, .. }, answer) in webhooks.iter().zip(answers) {
            let said = match answer {
                Ok(Consulted::Not) => continue,
                Ok(Consulted::FailedOpen) => {
                    attributes.audit.push((place.key(VALIDATION_FAILED_OPEN), name(webhook).to_owned()));
                    Ok(())
                }
                Ok(Consulted::Answered(response)) => heard(webhook, &response, attributes),
                Err(error) => Err(error),
            };
            place.index += 1;
            outcome = outcome.and(said);
        }
        outcome
    }
}

fn name(webhook: &Value) -> &str {
    webhook["name"].as_str().unwrap_or_default()
}

/// A webhook, and the name of its configuration.
struct Configured {
    configuration: String,
    webhook: Value,
}

/// All webhooks that a request may go to, in order of their configurations' names: those from files
/// first.
async fn configured(
    attributes: &Attributes<'_>,
    cluster: &dyn Cluster,
    plural: &str,
    manifests: &Manifests,
) -> Result<Vec<Configured>> {
    let mut configurations = manifests.of(plural);
    if attributes.group != GROUP {
        configurations.extend(cluster.list(GROUP, plural, "").await?);
    }
    let mut found = Vec::new();
    for all in &configurations {
        let configuration = all["metadata"]["name"].as_str().unwrap_or_default();
        found.extend(
            all["webhooks"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|webhook| Configured { configuration: configuration.to_owned(), webhook: webhook.clone() }),
        );
    }
    Ok(found)
}

fn failed(webhook: &Value, why: &str) -> ApiError {
    ApiError::internal(format!("failed calling webhook {:?}: {why}", name(webhook)))
}

/// What came of a webhook that only says yes or no.
enum Consulted {
    /// The request is not for it.
    Not,
    FailedOpen,
    Answered(Value),
}

async fn consult(
    webhook: &Value,
    attributes: &Attributes<'_>,
    cluster: &dyn Cluster,
    credentials: &Credentials,
) -> Result<Consulted> {
    let Some(versioned) = relevant(webhook, attributes, cluster).await? else { return Ok(Consulted::Not) };
    let answer = ask(webhook, attributes, versioned, cluster, credentials, false).await?;
    Ok(answer.map_or(Consulted::FailedOpen, |(response, _)| Consulted::Answered(response)))
}

/// What a webhook is to be shown, if the request is for it. `None` also where that cannot be found out, and it is to
/// be ignored.
async fn relevant<'a>(
    webhook: &Value,
    attributes: &'a Attributes<'_>,
    cluster: &dyn Cluster,
) -> Result<Option<Versioned<'a>>> {
    let Some(version) = Criteria::of_webhook(webhook).matched(attributes, cluster).await? else { return Ok(None) };
    let versioned = match matching::versioned(attributes, cluster, version).await {
        Ok(versioned) => versioned,
        Err(_) if ignores_failures(webhook) => return Ok(None),
        Err(error) => return Err(failed(webhook, &format!("failed to call webhook: {error}"))),
    };
    let conditions = policy::match_conditions(webhook, attributes, &versioned, cluster).await?;
    match conditions {
        Conditions::Met => Ok(Some(versioned)),
        Conditions::NotMet => Ok(None),
        Conditions::Failed(_) if ignores_failures(webhook) => Ok(None),
        Conditions::Failed(why) => Err(attributes.forbid(why)),
    }
}

/// Asks a webhook: what it answers, and what it was shown. `None`: it could not be asked, and that is to be ignored.
async fn ask(
    webhook: &Value,
    attributes: &Attributes<'_>,
    versioned: Versioned<'_>,
    cluster: &dyn Cluster,
    credentials: &Credentials,
    mutating: bool,
) -> Result<Option<(Value, Seen)>> {
    if attributes.dry_run && !matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        return Err(ApiError::bad_request(format!("admission webhook {:?} does not support dry run", name(webhook))));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let mut request = matching::request(attributes, &versioned.version, &uid);
    request["object"] = (*versioned.object).clone();
    request["oldObject"] = (*versioned.old).clone();
    let review_version = webhook["admissionReviewVersions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .find(|version| matches!(*version, "v1" | "v1beta1"))
        .unwrap_or("v1");
    let api_version = format!("admission.k8s.io/{review_version}");
    let review = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": request});
    let seconds = webhook["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT).clamp(1, 30);
    let config = &webhook["clientConfig"];
    let query = format!("timeout={seconds}s");
    let answer = call::post_with(cluster, config, &review, Duration::from_secs(seconds), &query, credentials).await;
    let response = answer.map_err(|why| format!("failed to call webhook: {why}")).and_then(|answer| {
        read(&answer, &api_version, &uid, mutating).map_err(|why| format!("received invalid webhook response: {why}"))
    });
    match response {
        Ok(response) => {
            let seen = Seen { object: versioned.object.into_owned(), version: versioned.version };
            Ok(Some((response, seen)))
        }
        Err(why) if ignores_failures(webhook) => {
            tracing::warn!(webhook = name(webhook), why, "webhook failed; its policy is to ignore that");
            Ok(None)
        }
        Err(why) => Err(failed(webhook, &why)),
    }
}

/// What a webhook was shown.
struct Seen {
    object: Value,
    version: Version,
}

fn ignores_failures(webhook: &Value) -> bool {
    webhook["failurePolicy"] == "Ignore"
}

/// The response in an answered review; `Err` says what is wrong with it.
fn read(answer: &Value, api_version: &str, uid: &str, mutating: bool) -> std::result::Result<Value, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if !api_version.ends_with("/v1") {
        return Ok(response.clone());
    }
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text(&response["uid"])));
    }
    if answer["apiVersion"] != api_version || answer["kind"] != "AdmissionReview" {
        let (found, kind) = (text(&answer["apiVersion"]), text(&answer["kind"]));
        let slash = if found.contains('/') { "" } else { "/" };
        return Err(format!(
            "expected webhook response of {api_version}, Kind=AdmissionReview, got {slash}{found}, Kind={kind}"
        ));
    }
    let problem = match (mutating, has_patch(response), response["patchType"].as_str()) {
        (true, true, None) => "webhook returned response.patch but not response.patchType",
        (true, false, Some(_)) => "webhook returned response.patchType but not response.patch",
        (true, true, Some("")) => "webhook returned invalid response.patchType of \"\"",
        (false, true, _) => "validating webhook may not return response.patch",
        (false, false, Some(_)) => "validating webhook may not return response.patchType",
        _ => return Ok(response.clone()),
    };
    Err(problem.to_owned())
}

/// Takes the notes of a response, and its refusal.
fn heard(webhook: &Value, response: &Value, attributes: &mut Attributes<'_>) -> Result<()> {
    take_notes(webhook, response, attributes);
    if response["allowed"] == true { Ok(()) } else { Err(denied(webhook, response)) }
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
    ApiError::from_status(status, StatusCode::BAD_REQUEST)
}

/// Warnings and audit annotations of an answer.
fn take_notes(webhook: &Value, response: &Value, attributes: &mut Attributes<'_>) {
    let warnings = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    attributes.warnings.extend(warnings.map(str::to_owned));
    for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
        attributes.audit.push((format!("{}/{key}", name(webhook)), value.as_str().unwrap_or_default().to_owned()));
    }
}

fn has_patch(response: &Value) -> bool {
    match &response["patch"] {
        Value::String(text) => !text.is_empty(),
        Value::Array(bytes) => !bytes.is_empty(),
        _ => false,
    }
}

/// A patch in base64 or, as Go's decoder takes bytes as well and Rust's kube sends them, in numbers.
fn decoded(patch: &Value) -> std::result::Result<Value, String> {
    let byte = |number: &Value| {
        let byte = number.as_u64().and_then(|number| u8::try_from(number).ok());
        byte.ok_or_else(|| {
            format!(
                "json: cannot unmarshal {number} into Go struct field AdmissionResponse.response.patch of type uint8"
            )
        })
    };
    let bytes = match patch {
        Value::Array(numbers) => numbers.iter().map(byte).collect::<std::result::Result<Vec<u8>, String>>()?,
        text => BASE64_STANDARD.decode(text.as_str().unwrap_or_default()).map_err(|error| error.to_string())?,
    };
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;
    use crate::admit::Operation;
    use crate::authn::UserInfo;
    use crate::resource::Descriptor;

    #[tokio::test]
    async fn a_webhook_that_is_done_without_is_told_to_the_audit_log() {
        let descriptor = Descriptor::new("", "v1", "ConfigMap", "configmaps");
        let (user, options) = (UserInfo::admin(), json!({}));
        let mut attributes = Attributes {
            user: &user,
            descriptor: &descriptor,
            group: "",
            version: "v1",
            subresource: "",
            operation: Operation::Create,
            namespace: "a",
            name: "x",
            object: json!({"kind": "ConfigMap", "metadata": {"name": "x"}}),
            old: None,
            options: &options,
            dry_run: false,
            deadline: None,
            patched: false,
            warnings: Vec::new(),
            audit: Vec::new(),
        };
        let rules = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]);
        // Nobody listens there.
        let webhook = json!({"name": "x.y", "failurePolicy": "Ignore", "rules": rules,
            "clientConfig": {"url": "http://127.0.0.1:1/"}});
        let configured = Configured { configuration: "c".to_owned(), webhook: webhook.clone() };
        let credentials = Credentials::default();
        let mutating = Mutating { policies: None, webhooks: None, credentials, before: Vec::new() };
        let (place, cluster) = (Place { round: 1, index: 2 }, Fixed::default());
        assert_eq!(mutating.mutate_by(&configured, &place, &mut attributes, &cluster).await, Ok(false));
        let told =
            [(MUTATION, r#"{"configuration":"c","webhook":"x.y","mutated":false}"#), (MUTATION_FAILED_OPEN, "x.y")];
        assert_eq!(attributes.audit, told.map(|(key, value)| (format!("{key}round_1_index_2"), value.to_owned())));
        attributes.audit.clear();
        let configuration = json!({"metadata": {"name": "c"}, "webhooks": [webhook]});
        let cluster = Fixed::with(&[(GROUP, "validatingwebhookconfigurations", configuration)]);
        let validating = Validating { credentials: Credentials::default(), manifests: Manifests::default() };
        validating.validate(&mut attributes, &cluster).await.unwrap();
        assert_eq!(attributes.audit, [(format!("{VALIDATION_FAILED_OPEN}round_0_index_0"), "x.y".to_owned())]);
    }

    #[test]
    fn patches_and_refusals() {
        let patch = r#"[{"op":"add","path":"/a","value":1}]"#;
        for sent in [json!(BASE64_STANDARD.encode(patch)), json!(patch.as_bytes())] {
            let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "u", "patch": sent, "patchType": "JSONPatch"}});
            let response = read(&review, "admission.k8s.io/v1", "u", true).unwrap();
            assert_eq!(decoded(&response["patch"]).unwrap()[0]["path"], "/a");
        }
        for bad in [json!("!"), json!([91, 300])] {
            assert!(decoded(&bad).is_err(), "{bad}");
        }
        let error =
            denied(&json!({"name": "x.y"}), &json!({"allowed": false, "status": {"message": "no", "code": 422}}));
        assert_eq!((error.code().as_u16(), error.message()), (422, "admission webhook \"x.y\" denied the request: no"));
    }

    #[test]
    fn responses_that_do_not_fit_are_refused_in_upstreams_words() {
        let review = |response: Value| json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        for (answer, mutating, problem) in [
            (json!({}), true, "webhook response was absent"),
            (review(json!({"uid": "other"})), true, "expected response.uid=\"u\", got \"other\""),
            (
                json!({"kind": "X", "response": {"uid": "u"}}),
                true,
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=X",
            ),
            (
                review(json!({"uid": "u", "patch": "W10="})),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                review(json!({"uid": "u", "patchType": "JSONPatch"})),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            (
                review(json!({"uid": "u", "patch": "W10=", "patchType": ""})),
                true,
                "webhook returned invalid response.patchType of \"\"",
            ),
            (review(json!({"uid": "u", "patch": "W10="})), false, "validating webhook may not return response.patch"),
            (
                review(json!({"uid": "u", "patchType": "JSONPatch"})),
                false,
                "validating webhook may not return response.patchType",
            ),
        ] {
            assert_eq!(read(&answer, "admission.k8s.io/v1", "u", mutating).unwrap_err(), problem, "{answer}");
        }
        // The older version says less, and is asked less.
        let older = json!({"response": {"allowed": true, "patch": "W10="}});
        assert!(read(&older, "admission.k8s.io/v1beta1", "u", true).is_ok());
    }
}
