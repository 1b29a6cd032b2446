//! The `certificates.k8s.io` group.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::Node;
use super::{table, value};
use crate::resource::{Column, Context, Descriptor, Hooks, NameRule, Resource};

const GROUP: &str = "certificates.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(request_descriptor().columns(columns()), SigningRequest),
        Resource::new(
            bundle_descriptor().columns(vec![
                Column::name(),
                table::words("SignerName", "The signer associated with the trust bundle"),
            ]),
            TrustBundle,
        ),
        Resource::new(
            pod_request_descriptor().columns(super::pod_certificate::columns()),
            super::pod_certificate::PodRequest,
        ),
    ]
}

fn request_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "CertificateSigningRequest", "certificatesigningrequests")
        .cluster_scoped()
        .short(&["csr"])
        .names(NameRule::PathSegment)
        .with_status()
        .subresource("approval", (GROUP, "v1", "CertificateSigningRequest"), &["get", "patch", "update"])
        .selectable("spec.signerName")
}

fn bundle_descriptor() -> Descriptor {
    Descriptor::new(GROUP, "v1", "ClusterTrustBundle", "clustertrustbundles")
        .cluster_scoped()
        .names(NameRule::Unchecked)
        .selectable("spec.signerName")
}

fn pod_request_descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new(GROUP, "v1", "PodCertificateRequest", "podcertificaterequests")
        .with_status()
        .selectable("spec.signerName")
        .selectable("spec.podName")
        .selectable("spec.nodeName");
    descriptor.field_labels.no_namespace = true;
    descriptor
}

fn columns() -> Vec<Column> {
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
struct SigningRequest;

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

    fn prepare_subresource_update(&self, ctx: &Context<'_>, new: &mut Value, old: &Value) {
        let conditions = value::list(new, "status.conditions").to_vec();
        let certificate = value::at(new, "status.certificate").clone();
        let decision = |condition: &Value| DECISIONS.contains(&value::text(condition, "type"));
        let approving = ctx.subresource == "approval";
        // Each subresource writes its own conditions and keeps the other's.
        let mut kept: Vec<Value> =
            value::list(old, "status.conditions").iter().filter(|c| decision(c) != approving).cloned().collect();
        let mut written: Vec<Value> = conditions.into_iter().filter(|c| decision(c) == approving).collect();
        for condition in &mut written {
            stamp(condition, old, ctx.now);
        }
        kept.extend(written);
        value::copy(old, new, "spec");
        value::copy(old, new, "status");
        if !kept.is_empty() || !value::list(old, "status.conditions").is_empty() {
            value::set(new, "status.conditions", Value::Array(kept));
        }
        if !approving && !certificate.is_null() {
            value::set(new, "status.certificate", certificate);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, obj: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(obj).child("spec");
        let request = spec.child("request");
        if request.required(&mut errors, "") && !is_request(request.text()) {
            request.invalid(&mut errors, "PEM block type must be CERTIFICATE REQUEST");
        }
        spec.child("usages").required(&mut errors, "usages is required");
        for usage in spec.items("usages") {
            usage.one_of(&mut errors, &USAGES);
        }
        spec.child("usages").unique(&mut errors);
        super::pod_certificate::signer_name(&spec.child("signerName"), &mut errors);
        let expiration = spec.child("expirationSeconds");
        if expiration.exists() && expiration.int() < 600 {
            expiration.invalid(&mut errors, "may not specify a duration less than 600 seconds (10 minutes)");
        }
        errors
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let conditions = Node::root(new).child("status.conditions");
        let has = |object: &Value, kind: &str| {
            value::list(object, "status.conditions").iter().any(|c| value::text(c, "type") == kind)
        };
        if has(new, "Approved") && has(new, "Denied") {
            conditions.invalid(&mut errors, "Approved and Denied conditions are mutually exclusive");
        }
        for decision in DECISIONS {
            if has(old, decision) && !has(new, decision) {
                conditions.forbidden(&mut errors, format!("updates may not remove a condition of type {decision:?}"));
            }
        }
        let before = value::text(old, "status.certificate");
        if !before.is_empty() && before != value::text(new, "status.certificate") {
            Node::root(new)
                .child("status.certificate")
                .forbidden(&mut errors, "updates may not change the certificate");
        }
        errors
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

/// Times that the writer left out: unchanged conditions keep theirs.
fn stamp(condition: &mut Value, old: &Value, now: Timestamp) {
    let kind = value::text(condition, "type").to_owned();
    let status = value::text(condition, "status").to_owned();
    let before = value::list(old, "status.conditions").iter().find(|c| value::text(c, "type") == kind);
    let now = json!(super::core::pod::timestamp(now));
    if !value::has(condition, "lastUpdateTime") {
        value::set(condition, "lastUpdateTime", now.clone());
    }
    let transition = before
        .filter(|before| value::text(before, "status") == status)
        .map(|before| value::at(before, "lastTransitionTime").clone())
        .filter(|time| !time.is_null());
    if !value::has(condition, "lastTransitionTime") {
        value::set(condition, "lastTransitionTime", transition.unwrap_or(now));
    }
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

fn is_request(base64: &str) -> bool {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(base64).unwrap_or_default();
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&decoded) else { return false };
    pem.label == "CERTIFICATE REQUEST"
}

struct TrustBundle;

impl Hooks for TrustBundle {
    fn validate_create(&self, _ctx: &Context<'_>, bundle: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(bundle);
        let (name, signer) = (root.child("metadata.name"), root.child("spec.signerName"));
        if signer.text().is_empty() {
            if name.text().contains(':') {
                name.invalid(&mut errors, "ClusterTrustBundle without signer name must not have \":\" in its name");
            }
        } else if !name.text().starts_with(&format!("{}:", signer.text().replace('/', ":"))) {
            name.invalid(
                &mut errors,
                format!(
                    "ClusterTrustBundle for signerName {} must be named with prefix {}:",
                    signer.text(),
                    signer.text().replace('/', ":")
                ),
            );
        }
        root.child("spec.trustBundle").required(&mut errors, "");
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        Node::root(new).child("spec.signerName").immutable(&mut errors, &Node::root(old).child("spec.signerName"));
        errors
    }

    fn row(&self, bundle: &Value, _now: Timestamp) -> Vec<Value> {
        vec![value::name(bundle).into(), table::or_none(value::text(bundle, "spec.signerName"))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created};

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
        assert_eq!(cells(&TrustBundle, &json!({"metadata": {"name": "b"}}), "2026-01-01T00:00:00Z"), "b|<none>");
    }

    #[test]
    fn usages_refused() {
        let request = json!({"metadata": {"name": "r"}, "spec": {"signerName": "example.com/s", "usages": ["client auth", "fun", "client auth"]}});
        assert_eq!(
            created(&SigningRequest, &request).split(", spec.usages[2]").map(str::to_owned).collect::<Vec<_>>(),
            [
                format!(
                    "[spec.request: Required value, spec.usages[1]: Unsupported value: \"fun\": supported values: {}",
                    USAGES.map(|usage| format!("{usage:?}")).join(", ")
                ),
                ": Duplicate value: \"client auth\"]".to_owned(),
            ]
        );
    }
}
