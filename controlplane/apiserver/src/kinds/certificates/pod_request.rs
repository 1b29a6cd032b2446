//! PodCertificateRequests: a node asks for a certificate for one of its pods. What is asked never
//! changes, and one terminal condition ends it.

use api::field::{Error, ErrorList};
use api::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{keep_conditions, pem, signer_name, transition_times};
use crate::kinds::check::{Node, conditions};
use crate::kinds::table::{cell, words};
use crate::kinds::value::{self, same_at};
use crate::resource::{ALL_BUT_STATUS, Column, Context, Hooks, Paths};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const MINUTE: i64 = 60;
const NANOS: i64 = 1_000_000_000;
const MAX_REQUEST: usize = 10 * 1024;
const MAX_CHAIN: usize = 100 * 1024;
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

    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        keep_conditions(new, old, &ENDS);
        transition_times(new, old, ctx.now);
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_status(new, old, ctx.now)
    }

    fn row(&self, request: &Value, _now: Timestamp) -> Vec<Value> {
        cells(request)
    }
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

fn validate(spec: &Node<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    signer_name(&spec.child("signerName"), &mut errors);
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
    stub(&spec.child("stubPKCS10Request"), &mut errors);
    errors
}

/// A DER request by the key's owner.
fn stub(request: &Node<'_>, errors: &mut ErrorList) {
    let der = STANDARD.decode(request.text()).unwrap_or_default();
    if der.len() > MAX_REQUEST {
        errors.push(Error::too_long(&request.path, MAX_REQUEST));
    } else if let Err(problem) = pem::request_key(&der) {
        errors.push(Error::invalid_unshown(&request.path, problem));
    }
}

fn validate_status(new: &Value, old: &Value, now: Timestamp) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Node::root(new).child("status");
    ends(&status, &mut errors);
    conditions(&Node::root(new), "status.conditions", &mut errors);
    if !errors.is_empty() {
        return errors;
    }
    let has = |object: &Value, end: &str| {
        let conditions = value::list(object, "status.conditions");
        conditions.iter().any(|held| value::text(held, "type") == end && value::text(held, "status") == "True")
    };
    let mut must = |holds: bool, detail: &str| {
        if !holds {
            errors.push(Error::invalid_unshown(&status.path, detail));
        }
    };
    if ENDS.iter().any(|end| has(old, end)) {
        must(same_at(new, old, "status"), "immutable after PodCertificateRequest is issued, denied, or failed");
    } else if has(new, "Denied") || has(new, "Failed") {
        let empty =
            !["certificateChain", "notBefore", "notAfter", "beginRefreshAt"].iter().any(|field| status.has(field));
        must(empty, "non-condition status fields must be empty when denying or failing the PodCertificateRequest");
    } else if has(new, "Issued") {
        let spec = Node::root(old).child("spec");
        errors.extend(issued(&status, &spec, now).err().unwrap_or_default());
    } else {
        let detail = "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
        must(same_at(new, old, "status"), detail);
    }
    errors
}

/// At most one of the ends, and true.
fn ends(status: &Node<'_>, errors: &mut ErrorList) {
    let mut ends = 0;
    for (index, condition) in status.items("conditions").iter().enumerate() {
        // The index stands as a field of its own, as upstream.
        let path = status.child("conditions").path.child(&format!("[{index}]"));
        let field = |name: &str| Node::new(condition.child(name).value, path.child(name));
        let (type_, state) = (field("type"), field("status"));
        if !ENDS.contains(&type_.text()) {
            errors.push(Error::not_supported(&type_.path, type_.text(), &ENDS));
            continue;
        }
        ends += 1;
        if ends > 1 {
            type_.invalid(errors, "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"");
        }
        state.one_of(errors, &["True"]);
    }
}

/// The chain is one for the key that asked, and its times are what the status says.
fn issued(status: &Node<'_>, spec: &Node<'_>, now: Timestamp) -> Result<(), ErrorList> {
    let chain = status.child("certificateChain");
    let refuse = |detail: &str| Err(vec![Error::invalid(&chain.path, chain.text(), detail)]);
    if chain.text().len() > MAX_CHAIN {
        return Err(vec![Error::too_long(&chain.path, MAX_CHAIN)]);
    }
    let blocks = pem::blocks(chain.text().as_bytes());
    let Some((leaf, others)) = blocks.split_first() else {
        return refuse("issued certificate chain must contain at least one certificate");
    };
    if leaf.label != "CERTIFICATE" {
        return refuse("issued certificate chain must consist entirely of CERTIFICATE PEM blocks");
    }
    let Ok((_, leaf)) = X509Certificate::from_der(&leaf.der) else {
        return refuse("leaf certificate does not parse as valid X.509");
    };
    let mut errors = ErrorList::new();
    dns_names(&leaf, &chain, &mut errors);
    let asked = STANDARD.decode(spec.child("stubPKCS10Request").text()).unwrap_or_default();
    if pem::request_key(&asked).ok().as_deref() != Some(leaf.public_key().raw) {
        errors.extend(refuse("leaf certificate was not issued to the requested public key").err().unwrap_or_default());
        return Err(errors);
    }
    times(&leaf, status, spec, now, errors)?;
    for block in others {
        if block.label != "CERTIFICATE" {
            return refuse("issued certificate chain must consist entirely of CERTFICATE PEM blocks");
        }
        if X509Certificate::from_der(&block.der).is_err() {
            return refuse("intermediate certificate does not parse as valid X.509");
        }
    }
    Ok(())
}

fn dns_names(leaf: &X509Certificate<'_>, chain: &Node<'_>, errors: &mut ErrorList) {
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return };
    for name in &names.value.general_names {
        let GeneralName::DNSName(name) = name else { continue };
        let mut wrong = |detail: &str| errors.push(Error::invalid(&chain.path, *name, detail));
        if name.is_empty() {
            wrong("leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            wrong("leaf certificate's DNSName should not contain '..'");
        }
        if name.starts_with('.') || name.ends_with('.') {
            wrong("leaf certificate's DNSName should not start or end with '.'");
        }
    }
}

/// `errors` are those found before, which come first.
fn times(
    leaf: &X509Certificate<'_>,
    status: &Node<'_>,
    spec: &Node<'_>,
    now: Timestamp,
    mut errors: ErrorList,
) -> Result<(), ErrorList> {
    let (before, after, refresh) =
        (status.child("notBefore"), status.child("notAfter"), status.child("beginRefreshAt"));
    before.required(&mut errors, "must be present and consistent with the issued certificate");
    after.required(&mut errors, "must be present and consistent with the issued certificate");
    refresh.required(&mut errors, "must be present and in the range [notbefore+10min, notafter-10min]");
    if !errors.is_empty() {
        return Err(errors);
    }
    let second = |node: &Node<'_>| node.text().parse::<Timestamp>().map_or(i64::MIN, Timestamp::as_second);
    let refuse = |node: &Node<'_>, detail: &str| Err(vec![Error::invalid(&node.path, node.text(), detail)]);
    let (begins, ends) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    let lifetime = ends - begins;
    let chain = status.child("certificateChain").path;
    let lives = |detail: String| Err(vec![Error::invalid(&chain, lifetime.saturating_mul(NANOS), detail)]);
    let most = spec.child("maxExpirationSeconds").int();
    if second(&before) != begins {
        return refuse(&before, "must be set to the NotBefore time encoded in the leaf certificate");
    }
    if (begins - now.as_second()).abs() >= 5 * MINUTE {
        return refuse(&before, "must be set to within 5 minutes of kube-apiserver's current time");
    }
    if second(&after) != ends {
        return refuse(&after, "must be set to the NotAfter time encoded in the leaf certificate");
    }
    if lifetime < HOUR {
        return lives("leaf certificate lifetime must be >= 1 hour".to_owned());
    }
    if lifetime > most {
        return lives(format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})"));
    }
    if second(&refresh) < begins + 10 * MINUTE {
        return refuse(&refresh, "must be at least 10 minutes after status.notBefore");
    }
    if second(&refresh) > ends - 10 * MINUTE {
        return refuse(&refresh, "must be at least 10 minutes before status.notAfter");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::made;
    use super::*;
    use crate::kinds::tested::{created, updated, with};
    use api::field::join;
    use serde_json::json;

    fn request(der: &[u8]) -> Value {
        json!({"metadata": {"name": "r", "namespace": "n"}, "spec": {"signerName": "example.com/s", "podName": "p", "podUID": "1", "serviceAccountName": "s", "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "maxExpirationSeconds": 86400, "stubPKCS10Request": STANDARD.encode(der)}})
    }

    #[test]
    fn requests_refused() {
        let (der, _) = made::issued(1, 2);
        for (field, value, expected) in [
            ("podName", json!("p"), "[]"),
            ("podUID", json!(""), "spec.podUID: Invalid value: \"\": must not be empty"),
            ("nodeUID", json!("u".repeat(129)), "spec.nodeUID: Too long: may not be more than 128 bytes"),
            (
                "maxExpirationSeconds",
                json!(60),
                "spec.maxExpirationSeconds: Invalid value: 60: must be in the range [3600, 7862400]",
            ),
            (
                "unverifiedUserAnnotations",
                json!({"a": "b"}),
                "spec.unverifiedUserAnnotations: Invalid value: \"a\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (
                "stubPKCS10Request",
                json!("eA=="),
                "spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 certificate signing request",
            ),
        ] {
            let mut object = request(&der);
            object["spec"][field] = value;
            assert_eq!(created(&PodRequest, &object), expected, "{field}");
        }
        let (old, mut new) = (request(&der), request(&der));
        new["spec"]["podUID"] = json!("9");
        assert!(updated(&PodRequest, &old, &new).ends_with(": field is immutable"));
    }

    fn written(old: &Value, status: Value) -> String {
        let mut new = old.clone();
        new["status"] = status;
        with(&json!({}), "status", |ctx| {
            PodRequest.prepare_subresource_update(ctx, &mut new, old);
            join(&PodRequest.validate_subresource_update(ctx, &new, old))
        })
    }

    #[test]
    fn one_end() {
        let end = |type_: &str| json!({"type": type_, "status": "True", "reason": "R", "message": ""});
        let open = request(&[]);
        let mut denied = open.clone();
        denied["status"] = json!({"conditions": [end("Denied")]});
        for (old, status, expected) in [
            (&open, json!({"conditions": [end("Denied")]}), "[]"),
            (
                &open,
                json!({"conditions": [end("Denied"), end("Failed")]}),
                "status.conditions.[1].type: Invalid value: \"Failed\": There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"",
            ),
            (
                &open,
                json!({"conditions": [end("Other")]}),
                "status.conditions.[0].type: Unsupported value: \"Other\": supported values: \"Issued\", \"Denied\", \"Failed\"",
            ),
            (
                &open,
                json!({"conditions": [{"type": "Denied", "status": "True"}]}),
                "status.conditions[0].reason: Required value",
            ),
            (
                &open,
                json!({"conditions": [end("Denied")], "certificateChain": "x"}),
                "status: Invalid value: non-condition status fields must be empty when denying or failing the PodCertificateRequest",
            ),
            (
                &open,
                json!({"certificateChain": "x"}),
                "status: Invalid value: status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"",
            ),
            (
                &denied,
                json!({"conditions": []}),
                "status: Invalid value: immutable after PodCertificateRequest is issued, denied, or failed",
            ),
        ] {
            assert_eq!(written(old, status.clone()), expected, "{status}");
        }
    }

    #[test]
    fn issued_certificates() {
        let (der, chain) = made::issued(1, 2);
        let (_, strange) = made::issued(1, 2);
        let (late_der, late) = made::issued(2, 3);
        let (long_der, long) = made::issued(1, 4);
        let at = |text: &str| format!("1970-01-{text}:00Z");
        let status = |chain: &str, before: &str, after: &str, refresh: &str| {
            json!({"conditions": [{"type": "Issued", "status": "True", "reason": "R"}], "certificateChain": chain,
                "notBefore": at(before), "notAfter": at(after), "beginRefreshAt": at(refresh)})
        };
        let day = "02T00:00";
        for (der, status, expected) in [
            (&der, status(&chain, "01T00:00", day, "01T12:00"), "[]"),
            (
                &der,
                status("x", "01T00:00", day, "01T12:00"),
                "status.certificateChain: Invalid value: \"x\": issued certificate chain must contain at least one certificate",
            ),
            (
                &der,
                status(&chain, "01T00:01", day, "01T12:00"),
                "status.notBefore: Invalid value: \"1970-01-01T00:01:00Z\": must be set to the NotBefore time encoded in the leaf certificate",
            ),
            (
                &der,
                status(&chain, "01T00:00", "02T00:01", "01T12:00"),
                "status.notAfter: Invalid value: \"1970-01-02T00:01:00Z\": must be set to the NotAfter time encoded in the leaf certificate",
            ),
            (
                &der,
                status(&chain, "01T00:00", day, "01T00:09"),
                "status.beginRefreshAt: Invalid value: \"1970-01-01T00:09:00Z\": must be at least 10 minutes after status.notBefore",
            ),
            (
                &der,
                status(&chain, "01T00:00", day, "01T23:51"),
                "status.beginRefreshAt: Invalid value: \"1970-01-01T23:51:00Z\": must be at least 10 minutes before status.notAfter",
            ),
            (
                &late_der,
                status(&late, day, "03T00:00", "02T12:00"),
                "status.notBefore: Invalid value: \"1970-01-02T00:00:00Z\": must be set to within 5 minutes of kube-apiserver's current time",
            ),
            (
                &long_der,
                status(&long, "01T00:00", "04T00:00", "02T12:00"),
                "status.certificateChain: Invalid value: 259200000000000: leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)",
            ),
        ] {
            assert_eq!(written(&request(der), status), expected);
        }
        assert!(
            written(&request(&der), status(&strange, "01T00:00", day, "01T12:00"))
                .ends_with(": leaf certificate was not issued to the requested public key")
        );
        assert_eq!(
            written(
                &request(&der),
                json!({"conditions": [{"type": "Issued", "status": "True", "reason": "R"}], "certificateChain": chain})
            ),
            "[status.notBefore: Required value: must be present and consistent with the issued certificate, \
             status.notAfter: Required value: must be present and consistent with the issued certificate, \
             status.beginRefreshAt: Required value: must be present and in the range [notbefore+10min, notafter-10min]]"
        );
    }
}
