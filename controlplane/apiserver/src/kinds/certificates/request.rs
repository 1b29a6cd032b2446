//! CertificateSigningRequests.

use std::collections::BTreeSet;

use api::field::{Error, ErrorList};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{keep_conditions, pem, signer_name, transition_times};
use crate::kinds::check::{Node, Seen};
use crate::kinds::{table, value};
use crate::resource::{Column, Context, Hooks, Ownable, Paths};

pub fn columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::age(),
        table::words("SignerName", "The signer that is asked."),
        table::words("Requestor", "Base64-encoded PKCS#10 CSR data"),
        table::words("RequestedDuration", "How long the certificate is to be valid."),
        table::words("Condition", "Conditions applied to the request, such as approval or denial."),
    ]
}

/// Who asks is written by the server; what is asked never changes; what is decided has
/// subresources of its own.
pub struct SigningRequest;

/// What a certificate may be for.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Conditions that only `approval` may set or change.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// Conditions that stay once they are true.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";

impl Hooks for SigningRequest {
    fn prepare_create(&self, ctx: &Context<'_>, obj: &mut Value) {
        let user = ctx.user;
        value::set(obj, "spec.username", user.name.as_str());
        value::set(obj, "spec.groups", json!(user.groups));
        for (path, absent, given) in [
            ("spec.uid", user.uid.is_empty(), json!(user.uid)),
            ("spec.extra", user.extra.is_empty(), json!(user.extra)),
        ] {
            if absent {
                value::remove(obj, path);
            } else {
                value::set(obj, path, given);
            }
        }
    }

    fn prepare_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        value::copy(old, new, "spec");
        value::copy(old, new, "status");
    }

    /// `approval` writes the conditions; `status` all but the decisions among them.
    fn reset_by_status(&self) -> Paths {
        &[&["spec"], &["status", "conditions"]]
    }

    /// Once made a request is changed by way of its subresources alone.
    fn ownable(&self, subresource: &str) -> Option<Ownable> {
        Some(Ownable::AllBut(match subresource {
            "approval" => &[&["spec"], &["status", "certificate"]],
            _ => &[&["spec"], &["status"]],
        }))
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        let approving = ctx.subresource == "approval";
        if !approving {
            keep_conditions(new, old, &DECISIONS);
        }
        transition_times(new, old, ctx.now);
        let now = json!(api::scalar::time(ctx.now));
        for condition in value::list_mut(new, "status.conditions") {
            value::default(condition, "lastUpdateTime", now.clone());
        }
        value::copy(old, new, "spec");
        if approving {
            let conditions = value::at(new, "status.conditions").clone();
            value::copy(old, new, "status");
            if conditions.is_null() {
                value::remove(new, "status.conditions");
            } else {
                value::set(new, "status.conditions", conditions);
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, request: &Value) -> ErrorList {
        let mut errors = validate(request, None);
        exclusive(request, None, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_update(new, old, "")
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_update(new, old, ctx.subresource)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let duration = match value::opt_int(obj, "spec.expirationSeconds") {
            Some(seconds) => crate::resource::human_duration(seconds).into(),
            None => json!("<none>"),
        };
        vec![
            obj["metadata"]["name"].clone(),
            crate::resource::age(obj, now),
            table::or_none(value::text(obj, "spec.signerName")),
            table::cell(obj, "spec.username"),
            duration,
            condition(obj).into(),
        ]
    }
}

/// What a stored request may hold although it is refused today.
#[derive(Default)]
struct Kept {
    legacy_signer: bool,
    duplicate_conditions: bool,
    unnamed_conditions: bool,
    certificate: bool,
    duplicate_usages: bool,
    unknown_usages: bool,
}

impl Kept {
    fn of(new: &Value, old: &Value) -> Self {
        let types: Vec<&str> = conditions(old).collect();
        let usages = value::texts(old, "spec.usages");
        let twice = |all: &[&str]| all.iter().collect::<BTreeSet<_>>().len() < all.len();
        Self {
            legacy_signer: value::text(old, "spec.signerName") == LEGACY_SIGNER,
            duplicate_conditions: twice(&types),
            unnamed_conditions: types.contains(&""),
            certificate: value::same_at(new, old, "status.certificate")
                || pem::certificate_problem(&decoded(old, "status.certificate")).is_some(),
            duplicate_usages: twice(&usages),
            unknown_usages: usages.iter().any(|usage| !USAGES.contains(usage)),
        }
    }
}

fn conditions(request: &Value) -> impl Iterator<Item = &str> {
    value::list(request, "status.conditions").iter().map(|condition| value::text(condition, "type"))
}

fn decoded(request: &Value, path: &str) -> Vec<u8> {
    STANDARD.decode(value::text(request, path)).unwrap_or_default()
}

fn validate(request: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let (root, kept) = (Node::root(request), old.map(|old| Kept::of(request, old)).unwrap_or_default());
    let spec = root.child("spec");
    if let Err(problem) = pem::check_request(&decoded(request, "spec.request")) {
        spec.child("request").invalid(&mut errors, problem);
    }
    spec.child("usages").required(&mut errors, "");
    if !kept.unknown_usages {
        for usage in spec.items("usages") {
            usage.one_of(&mut errors, &USAGES);
        }
    }
    if !kept.duplicate_usages {
        spec.child("usages").unique(&mut errors);
    }
    let signer = spec.child("signerName");
    if signer.text() == LEGACY_SIGNER && !kept.legacy_signer {
        signer.invalid(&mut errors, "the legacy signerName is not allowed via this API version");
    } else {
        signer_name(&signer, &mut errors);
    }
    let expiration = spec.child("expirationSeconds");
    if expiration.exists() && expiration.int() < 600 {
        expiration.invalid(&mut errors, "may not specify a duration less than 600 seconds (10 minutes)");
    }
    validate_conditions(&root, &kept, &mut errors);
    let problem = pem::certificate_problem(&decoded(request, "status.certificate"));
    if let Some(problem) = problem.filter(|_| !kept.certificate) {
        errors.push(Error::invalid(&root.child("status.certificate").path, "<certificate data>", problem));
    }
    errors
}

fn validate_conditions(request: &Node<'_>, kept: &Kept, errors: &mut ErrorList) {
    let mut seen = Seen::default();
    for condition in request.items("status.conditions") {
        let (type_, status) = (condition.child("type"), condition.child("status"));
        if !kept.unnamed_conditions {
            type_.required(errors, "");
        }
        let final_ = FINAL.contains(&type_.text());
        status.required_one_of(errors, if final_ { &["True"] } else { &["False", "True", "Unknown"] });
        if !seen.insert(type_.text()) && !kept.duplicate_conditions {
            errors.push(Error::duplicate(&type_.path, type_.text()));
        }
    }
}

/// Approved or Denied. A declared rule: it speaks last, and not of what was so before.
fn exclusive(new: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let decided = |request: &Value| DECISIONS.map(|decision| conditions(request).any(|type_| type_ == decision));
    if decided(new) == [true, true] && old.is_none_or(|old| decided(old) != [true, true]) {
        let member = |decision: &str| format!("conditions[{{\"type\": \"{decision}\"}}]");
        let [approved, denied] = DECISIONS.map(member);
        errors.push(Error::invalid(
            &Node::root(new).child("status.conditions").path,
            format!("{{{approved}, {denied}}}"),
            format!("must specify at most one of: `{approved}`, `{denied}`"),
        ));
    }
}

fn validate_update(new: &Value, old: &Value, subresource: &str) -> ErrorList {
    let mut errors = validate(new, Some(old));
    let status = Node::root(new).child("status");
    let count = |request: &Value, type_: &str| conditions(request).filter(|held| *held == type_).count();
    for type_ in FINAL {
        if count(new, type_) < count(old, type_) {
            let detail = format!("updates may not remove a condition of type {type_:?}");
            status.child("conditions").forbidden(&mut errors, detail);
        }
    }
    for decision in DECISIONS {
        if subresource != "approval" && count(new, decision) > count(old, decision) {
            let detail = format!("updates may not add a condition of type {decision:?}");
            status.child("conditions").forbidden(&mut errors, detail);
        }
    }
    if value::text(new, "status.certificate") != value::text(old, "status.certificate") {
        if subresource != "status" {
            status.child("certificate").forbidden(&mut errors, "updates may not set certificate content");
        } else if !value::text(old, "status.certificate").is_empty() {
            status.child("certificate").forbidden(&mut errors, "updates may not modify existing certificate content");
        }
    }
    exclusive(new, Some(old), &mut errors);
    errors
}

/// As kubectl prints it: `Approved,Issued`.
fn condition(obj: &Value) -> String {
    let has = |kind: &str| value::list(obj, "status.conditions").iter().any(|c| value::text(c, "type") == kind);
    let mut words = vec![if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }];
    if has("Failed") {
        words.push("Failed");
    }
    if !value::text(obj, "status.certificate").is_empty() {
        words.push("Issued");
    }
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, updated, with};
    use api::field::join;

    fn request(status: Value) -> Value {
        let pem = STANDARD.encode(super::super::made::request());
        json!({"metadata": {"name": "r"}, "spec": {"request": pem, "signerName": "example.com/s", "usages": ["client auth"]}, "status": status})
    }

    fn written(subresource: &str, old: &Value, status: Value) -> (Value, String) {
        let mut new = request(status);
        let found = with(&json!({}), subresource, |ctx| {
            SigningRequest.prepare_subresource_update(ctx, &mut new, old);
            join(&SigningRequest.validate_subresource_update(ctx, &new, old))
        });
        (new["status"].take(), found)
    }

    #[test]
    fn what_kubectl_prints() {
        let approved = json!({"type": "Approved", "status": "True"});
        for (status, expected) in [
            (json!({}), "Pending"),
            (json!({"conditions": [approved]}), "Approved"),
            (json!({"conditions": [approved], "certificate": "eA=="}), "Approved,Issued"),
        ] {
            assert_eq!(condition(&json!({"status": status})), expected);
        }
    }

    #[test]
    fn rows() {
        let row = |spec: Value, status: Value| {
            let request = json!({"metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
            cells(&SigningRequest, &request, "2026-01-01T00:05:00Z")
        };
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        assert_eq!(
            row(json!({"signerName": "example.com/s", "username": "jane", "expirationSeconds": 3600}), json!({})),
            "r|5m|example.com/s|jane|60m|Pending"
        );
        assert_eq!(
            row(
                json!({"signerName": "s", "username": "jane"}),
                json!({"conditions": [condition("Approved"), condition("Failed")]})
            ),
            "r|5m|s|jane|<none>|Approved,Failed"
        );
        assert_eq!(
            row(json!({"signerName": "s", "username": "jane"}), json!({"conditions": [condition("Denied")]})),
            "r|5m|s|jane|<none>|Denied"
        );
    }

    #[test]
    fn requests_refused() {
        let usages = USAGES.map(|usage| format!("{usage:?}")).join(", ");
        for (path, value, expected) in [
            ("spec.expirationSeconds", json!(600), "[]".to_owned()),
            ("spec.request", Value::Null, "spec.request: Invalid value: null: PEM block type must be CERTIFICATE REQUEST".to_owned()),
            ("spec.usages", json!([]), "spec.usages: Required value".to_owned()),
            (
                "spec.usages",
                json!(["client auth", "fun", "client auth"]),
                format!("[spec.usages[1]: Unsupported value: \"fun\": supported values: {usages}, spec.usages[2]: Duplicate value: \"client auth\"]"),
            ),
            (
                "spec.signerName",
                json!("kubernetes.io/legacy-unknown"),
                "spec.signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName is not allowed via this API version".to_owned(),
            ),
            (
                "spec.expirationSeconds",
                json!(599),
                "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)".to_owned(),
            ),
        ] {
            let mut object = request(json!({}));
            value::set(&mut object, path, value);
            assert_eq!(created(&SigningRequest, &object), expected, "{path}");
        }
    }

    #[test]
    fn what_is_stored_may_stay() {
        for (path, value) in [
            ("spec.usages", json!(["fun", "client auth", "client auth"])),
            ("spec.signerName", json!(LEGACY_SIGNER)),
            ("status.conditions", json!([{"status": "True"}, {"status": "True"}])),
            (
                "status.conditions",
                json!([{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]),
            ),
            ("status.certificate", json!("eA==")),
        ] {
            let mut object = request(json!({}));
            value::set(&mut object, path, value);
            assert_eq!(updated(&SigningRequest, &object, &object), "[]", "{path}");
        }
    }

    #[test]
    fn decisions_are_approvals() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z", "lastUpdateTime": "2026-01-01T00:00:00Z"});
        let approved = request(json!({"conditions": [condition("Approved", "True")]}));
        let none = request(json!({}));
        for (subresource, old, status, expected) in [
            ("approval", &none, json!({"conditions": [condition("Approved", "True")]}), "[]"),
            (
                "status",
                &none,
                json!({"conditions": [condition("Failed", "True"), condition("Other", "Unknown")]}),
                "[]",
            ),
            (
                "status",
                &none,
                json!({"conditions": [condition("Approved", "True")]}),
                "status.conditions: Forbidden: updates may not add a condition of type \"Approved\"",
            ),
            (
                "approval",
                &approved,
                json!({"conditions": [condition("Denied", "True")]}),
                "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\"",
            ),
            (
                "approval",
                &approved,
                json!({"conditions": [condition("Approved", "True"), condition("Denied", "True")]}),
                "status.conditions: Invalid value: \"{conditions[{\\\"type\\\": \\\"Approved\\\"}], conditions[{\\\"type\\\": \\\"Denied\\\"}]}\": must specify at most one of: `conditions[{\"type\": \"Approved\"}]`, `conditions[{\"type\": \"Denied\"}]`",
            ),
            (
                "approval",
                &none,
                json!({"conditions": [condition("Denied", "False"), condition("", ""), condition("", "True")]}),
                "[status.conditions[0].status: Unsupported value: \"False\": supported values: \"True\", \
                 status.conditions[1].type: Required value, status.conditions[1].status: Required value, \
                 status.conditions[2].type: Required value, status.conditions[2].type: Duplicate value: \"\"]",
            ),
        ] {
            assert_eq!(written(subresource, old, status).1, expected);
        }
        // What `status` says of a decision is not heard.
        let (status, found) = written("status", &approved, json!({"conditions": [condition("Approved", "False")]}));
        assert_eq!((status["conditions"][0]["status"].as_str(), found.as_str()), (Some("True"), "[]"));
        let (status, _) = written(
            "approval",
            &none,
            json!({"conditions": [{"type": "Approved", "status": "True"}], "certificate": "eA=="}),
        );
        assert_eq!(
            status,
            json!({"conditions": [{"type": "Approved", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z", "lastUpdateTime": "1970-01-01T00:00:00Z"}]})
        );
    }

    #[test]
    fn certificates_are_written_once() {
        let none = request(json!({}));
        assert_eq!(
            written("status", &none, json!({"certificate": "eA=="})).1,
            "status.certificate: Invalid value: \"<certificate data>\": must contain at least one CERTIFICATE PEM block"
        );
        let held = request(json!({"certificate": "eA=="}));
        assert_eq!(
            written("status", &held, json!({"certificate": "eQ=="})).1,
            "status.certificate: Forbidden: updates may not modify existing certificate content"
        );
    }
}
