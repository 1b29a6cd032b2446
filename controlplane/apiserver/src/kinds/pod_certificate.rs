//! PodCertificateRequests: a node asks for a certificate for one of its pods. What is asked never
//! changes, and one terminal condition ends it.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::check::Node;
use super::table::{cell, words};
use super::value::{self, same_at};
use crate::resource::{Column, Context, Hooks};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];

pub struct PodRequest;

impl Hooks for PodRequest {
    fn defaults(&self, request: &mut Value) {
        value::default(request, "spec.maxExpirationSeconds", DAY);
    }

    fn validate_create(&self, _ctx: &Context<'_>, request: &Value) -> ErrorList {
        validate(&Node::root(request).child("spec"))
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("spec").immutable(&mut errors, &Node::root(old).child("spec"));
        errors
    }

    fn row(&self, request: &Value, _now: Timestamp) -> Vec<Value> {
        cells(request)
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_status(new, old)
    }
}

fn validate(spec: &Node<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    signer_name(&spec.child("signerName"), &mut errors);
    for (name, uid) in [("podName", "podUID"), ("serviceAccountName", "serviceAccountUID"), ("nodeName", "nodeUID")] {
        spec.child(name).format(&mut errors, names::dns1123_subdomain);
        let uid = spec.child(uid);
        if uid.text().is_empty() {
            uid.invalid(&mut errors, "must not be empty");
        } else if uid.text().len() > 128 {
            errors.push(Error::too_long(&uid.path, 128));
        }
    }
    let (lifetime, ours) = (spec.child("maxExpirationSeconds"), spec.child("signerName").text());
    let most = if ours.starts_with("kubernetes.io/") { DAY } else { 91 * DAY };
    if !(HOUR..=most).contains(&lifetime.int()) {
        lifetime.invalid(&mut errors, format!("must be in the range [{HOUR}, {most}]"));
    }
    for (key, _) in spec.entries("unverifiedUserAnnotations") {
        let path = spec.child("unverifiedUserAnnotations").path;
        if !key.contains('/') {
            errors.push(Error::invalid(&path, key, "must be a domain-prefixed path (such as \"acme.io/foo\")"));
            continue;
        }
        for problem in names::qualified_name(&key.to_lowercase()) {
            errors.push(Error::invalid(&path, key, problem));
        }
    }
    errors
}

pub fn columns() -> Vec<Column> {
    vec![
        Column::name(),
        words("PodName", "podName is the name of the pod into which the certificate will be mounted."),
        words("ServiceAccountName", "serviceAccountName is the name of the service account the pod is running as."),
        words("NodeName", "nodeName is the name of the node the pod is assigned to."),
        words("SignerName", "signerName indicates the requested signer."),
        words("State", "Is the request Pending, Issued, Denied, or Failed?"),
    ]
}

fn cells(request: &Value) -> Vec<Value> {
    let end = value::list(request, "status.conditions")
        .iter()
        .map(|condition| value::text(condition, "type"))
        .rfind(|kind| ENDS.contains(kind));
    let mut cells = vec![value::name(request).into()];
    cells
        .extend(["podName", "serviceAccountName", "nodeName", "signerName"].map(|field| cell(&request["spec"], field)));
    cells.push(end.unwrap_or("Pending").into());
    cells
}

/// `domain/path`, as all signers are named.
pub fn signer_name(signer: &Node<'_>, errors: &mut ErrorList) {
    if !signer.required(errors, "") {
        return;
    }
    let Some((domain, path)) = signer.text().split_once('/') else {
        return signer
            .invalid(errors, "must be a fully qualified domain and path of the form \"example.com/signer-name\"");
    };
    let problems = names::dns1123_subdomain(domain);
    let sound = problems.is_empty();
    for problem in problems {
        errors.push(Error::invalid(&signer.path, domain, format!("validating label {domain:?}: {problem}")));
    }
    if sound && !domain.contains('.') {
        signer.invalid(errors, "should be a domain with at least two segments separated by dots");
    }
    for part in path.split('.') {
        for problem in names::dns1123_label(part) {
            signer.invalid(errors, format!("validating label {part:?}: {problem}"));
        }
    }
    if signer.text().len() > 571 {
        errors.push(Error::too_long(&signer.path, 571));
    }
}

fn validate_status(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(new).child("status");
    let mut ends = 0;
    for condition in status.items("conditions") {
        let (kind, state) = (condition.child("type"), condition.child("status"));
        if !kind.one_of(&mut errors, &ENDS) {
            continue;
        }
        ends += 1;
        if ends > 1 {
            kind.invalid(
                &mut errors,
                "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"",
            );
        }
        state.one_of(&mut errors, &["True"]);
    }
    if !errors.is_empty() {
        return errors;
    }
    let has = |object: &Value, kind: &str| {
        value::list(object, "status.conditions").iter().any(|condition| value::text(condition, "type") == kind)
    };
    let fields = ["certificateChain", "notBefore", "notAfter", "beginRefreshAt"];
    if ENDS.iter().any(|end| has(old, end)) {
        if !same_at(new, old, "status") {
            status.invalid(&mut errors, "immutable after PodCertificateRequest is issued, denied, or failed");
        }
    } else if has(new, "Denied") || has(new, "Failed") {
        if fields.iter().any(|field| status.has(field)) {
            let detail = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
            status.invalid(&mut errors, detail);
        }
    } else if has(new, "Issued") {
        issued(&status, &fields[1..], &mut errors);
    }
    errors
}

fn issued(status: &Node<'_>, times: &[&str], errors: &mut ErrorList) {
    let chain = status.child("certificateChain");
    let blocks: Result<Vec<_>, _> = x509_parser::pem::Pem::iter_from_buffer(chain.text().as_bytes()).collect();
    let Some(blocks) = blocks.ok().filter(|blocks| !blocks.is_empty()) else {
        return chain.invalid(errors, "issued certificate chain must contain at least one certificate");
    };
    for (index, block) in blocks.iter().enumerate() {
        if block.label != "CERTIFICATE" {
            chain.invalid(errors, "issued certificate chain must consist entirely of CERTIFICATE PEM blocks");
        } else if index == 0 && block.parse_x509().is_err() {
            chain.invalid(errors, "leaf certificate does not parse as valid X.509");
        }
    }
    for field in times {
        status.child(field).required(errors, "must be present and consistent with the issued certificate");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn requests_refused() {
        let sound = json!({"signerName": "example.com/s", "podName": "p", "podUID": "1", "serviceAccountName": "s", "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "maxExpirationSeconds": 86400});
        for (field, value, expected) in [
            ("podName", json!("p"), "[]"),
            ("podUID", json!(""), "spec.podUID: Invalid value: \"\": must not be empty"),
            (
                "maxExpirationSeconds",
                json!(60),
                "spec.maxExpirationSeconds: Invalid value: 60: must be in the range [3600, 7862400]",
            ),
            (
                "signerName",
                json!("x"),
                "spec.signerName: Invalid value: \"x\": must be a fully qualified domain and path of the form \"example.com/signer-name\"",
            ),
        ] {
            let mut object = json!({"spec": sound.clone()});
            object["spec"][field] = value;
            assert_eq!(join(&validate(&Node::root(&object).child("spec"))), expected, "{field}");
        }
    }

    #[test]
    fn one_end() {
        let with = |conditions: Value| json!({"status": {"conditions": conditions}});
        let denied = json!({"type": "Denied", "status": "True"});
        assert_eq!(join(&validate_status(&with(json!([denied])), &json!({}))), "[]");
        assert!(join(&validate_status(&with(json!([denied, denied])), &json!({}))).contains("at most one condition"));
        assert!(join(&validate_status(&with(json!([])), &with(json!([denied])))).contains("immutable after"));
        let issued = with(json!([{"type": "Issued", "status": "True"}]));
        assert!(join(&validate_status(&issued, &json!({}))).contains("must contain at least one certificate"));
    }
}
