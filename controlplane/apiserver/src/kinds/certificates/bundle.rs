//! ClusterTrustBundles: a signer's trust anchors, or anybody's.

use std::collections::BTreeMap;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::{pem, signer_name};
use crate::kinds::check::Node;
use crate::kinds::{table, value};
use crate::resource::{Context, Hooks};

pub struct TrustBundle;

impl Hooks for TrustBundle {
    fn validate_create(&self, _ctx: &Context<'_>, bundle: &Value) -> ErrorList {
        validate(bundle, true)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        // What was taken once is not read again.
        let mut errors = validate(new, !value::same_at(new, old, "spec.trustBundle"));
        let (signer, was) = (Node::root(new).child("spec.signerName"), Node::root(old).child("spec.signerName"));
        if signer.text() != was.text() {
            signer.invalid_text(&mut errors, "field is immutable");
        }
        errors
    }

    fn row(&self, bundle: &Value, _now: Timestamp) -> Vec<Value> {
        vec![value::name(bundle).into(), table::or_none(value::text(bundle, "spec.signerName"))]
    }
}

fn validate(bundle: &Value, anchors_count: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(bundle);
    let signer = root.child("spec.signerName");
    bundle_name(&root.child("metadata.name"), signer.text(), &mut errors);
    if !signer.text().is_empty() {
        signer_name(&signer, &mut errors);
    }
    if anchors_count {
        anchors(&root.child("spec.trustBundle"), &mut errors);
    }
    errors
}

/// Bundles of a signer begin with its name.
fn bundle_name(name: &Node<'_>, signer: &str, errors: &mut ErrorList) {
    let prefix = format!("{}:", signer.replace('/', ":"));
    let rest = if signer.is_empty() { Some(name.text()) } else { name.text().strip_prefix(&prefix) };
    match rest {
        None => name.invalid_text(
            errors,
            format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"),
        ),
        Some(rest) if signer.is_empty() && rest.contains(':') => {
            name.invalid_text(errors, "ClusterTrustBundle without signer name must not have \":\" in its name");
        }
        Some(rest) => {
            for problem in names::dns1123_subdomain(rest) {
                name.invalid_text(errors, problem);
            }
        }
    }
}

/// Certificates of authorities, each once.
fn anchors(bundle: &Node<'_>, errors: &mut ErrorList) {
    let invalid = |detail: String| Error::invalid(&bundle.path, "<value omitted>", detail);
    let mut held: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
    let before = errors.len();
    for (index, block) in pem::blocks(bundle.text().as_bytes()).into_iter().enumerate() {
        match anchor_problem(&block) {
            Some(problem) => errors.push(invalid(format!("entry {index} {problem}"))),
            None => held.entry(block.der).or_default().push(index.to_string()),
        }
    }
    if errors.len() > before {
        return;
    }
    if held.is_empty() {
        errors.push(invalid("at least one trust anchor must be provided".to_owned()));
    }
    for indices in held.values().filter(|indices| indices.len() > 1) {
        errors.push(invalid(format!("duplicate trust anchor (indices [{}])", indices.join(" "))));
    }
}

fn anchor_problem(block: &pem::Block) -> Option<String> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    if block.label != "CERTIFICATE" {
        return Some(format!("has bad block type: {}", block.label));
    }
    if block.has_headers {
        return Some("has PEM block headers".to_owned());
    }
    let Ok((_, certificate)) = X509Certificate::from_der(&block.der) else {
        return Some("does not parse as X.509".to_owned());
    };
    (!certificate.is_ca()).then(|| "does not have the CA bit set".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{cells, created, updated};
    use serde_json::json;

    fn bundle(name: &str, signer: &str, bundle: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": bundle}})
    }

    #[test]
    fn bundles_refused() {
        let authority = super::super::made::authority();
        let (authority, twice) = (authority.as_str(), format!("{authority}{authority}"));
        for (object, expected) in [
            (bundle("a", "", authority), "[]"),
            (bundle("example.com:s:a", "example.com/s", authority), "[]"),
            (
                bundle("a", "example.com/s", authority),
                "metadata.name: Invalid value: \"a\": ClusterTrustBundle for signerName example.com/s must be named with prefix example.com:s:",
            ),
            (
                bundle("a:b", "", authority),
                "metadata.name: Invalid value: \"a:b\": ClusterTrustBundle without signer name must not have \":\" in its name",
            ),
            (
                bundle("a", "", ""),
                "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided",
            ),
            (
                bundle(
                    "a",
                    "",
                    "-----BEGIN KEY-----\neA==\n-----END KEY-----\n-----BEGIN CERTIFICATE-----\na: b\n\neA==\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\neA==\n-----END CERTIFICATE-----\n",
                ),
                "[spec.trustBundle: Invalid value: \"<value omitted>\": entry 0 has bad block type: KEY, \
                 spec.trustBundle: Invalid value: \"<value omitted>\": entry 1 has PEM block headers, \
                 spec.trustBundle: Invalid value: \"<value omitted>\": entry 2 does not parse as X.509]",
            ),
            (
                bundle("a", "", &twice),
                "spec.trustBundle: Invalid value: \"<value omitted>\": duplicate trust anchor (indices [0 1])",
            ),
        ] {
            assert_eq!(created(&TrustBundle, &object), expected);
        }
        let stored = bundle("a", "", "x");
        assert_eq!(updated(&TrustBundle, &stored, &stored), "[]");
        assert!(
            updated(&TrustBundle, &stored, &bundle("a", "example.com/s", "x"))
                .ends_with("spec.signerName: Invalid value: \"example.com/s\": field is immutable]")
        );
    }

    #[test]
    fn rows() {
        assert_eq!(cells(&TrustBundle, &json!({"metadata": {"name": "b"}}), "2026-01-01T00:00:00Z"), "b|<none>");
    }
}
