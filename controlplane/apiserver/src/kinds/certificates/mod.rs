//! The `certificates.k8s.io` group.

mod bundle;
pub mod pem;
mod pod_request;
mod proof;
mod request;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::Node;
use super::{table, value};
use crate::resource::{Column, Descriptor, NameRule, Resource};

const GROUP: &str = "certificates.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(request_descriptor().columns(request::columns()), request::SigningRequest),
        Resource::new(
            bundle_descriptor().columns(vec![
                Column::name(),
                table::words("SignerName", "The signer associated with the trust bundle"),
            ]),
            bundle::TrustBundle,
        ),
        Resource::new(pod_request_descriptor().columns(pod_request::columns()), pod_request::PodRequest),
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
    let mut descriptor = Descriptor::new(GROUP, "v1", "ClusterTrustBundle", "clustertrustbundles")
        .cluster_scoped()
        .names(NameRule::Unchecked)
        .selectable("spec.signerName");
    descriptor.unconditional_update = false;
    descriptor
}

fn pod_request_descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new(GROUP, "v1", "PodCertificateRequest", "podcertificaterequests")
        .with_status()
        .selectable("spec.signerName")
        .selectable("spec.podName")
        .selectable("spec.nodeName");
    descriptor.unconditional_update = false;
    descriptor.field_labels.no_namespace = true;
    descriptor
}

/// `domain/path`, as all signers are named (`ValidateSignerName`).
pub fn signer_name(signer: &Node<'_>, errors: &mut ErrorList) {
    if !signer.required(errors, "") {
        return;
    }
    let parts: Vec<&str> = signer.text().split('/').collect();
    let [domain, path] = parts.as_slice() else {
        return signer
            .invalid(errors, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
    };
    if domain.len() > 253 {
        errors.push(Error::too_long(&signer.path, 253));
    }
    labels(signer, domain, names::dns1123_label, errors);
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.push(Error::invalid(&signer.path, *domain, detail));
    }
    labels(signer, path, names::dns1123_subdomain, errors);
    if signer.text().len() > 571 {
        errors.push(Error::too_long(&signer.path, 571));
    }
}

/// The first of the labels that is wrong says it for all.
fn labels(signer: &Node<'_>, all: &str, check: fn(&str) -> Vec<String>, errors: &mut ErrorList) {
    let problems = |label: &str| (label.to_owned(), check(label));
    let wrong = all.split('.').map(problems).find(|(_, problems)| !problems.is_empty());
    for problem in wrong.iter().flat_map(|(label, problems)| problems.iter().map(move |problem| (label, problem))) {
        let (label, problem) = problem;
        errors.push(Error::invalid(&signer.path, all, format!("validating label {label:?}: {problem}")));
    }
}

/// The conditions of these types are what they were, as long as none came or went.
fn keep_conditions(new: &mut Value, old: &Value, types: &[&str]) {
    for type_ in types {
        let is = |condition: &&Value| value::text(condition, "type") == *type_;
        let before: Vec<Value> = value::list(old, "status.conditions").iter().filter(is).cloned().collect();
        let mut held: Vec<&mut Value> =
            value::list_mut(new, "status.conditions").filter(|condition| is(&&**condition)).collect();
        if held.len() == before.len() {
            held.iter_mut().zip(before).for_each(|(condition, before)| **condition = before);
        }
    }
}

/// Times that the writer left out: unchanged conditions keep theirs.
fn transition_times(new: &mut Value, old: &Value, now: Timestamp) {
    let now = json!(api::scalar::time(now));
    for condition in value::list_mut(new, "status.conditions") {
        if value::has(condition, "lastTransitionTime") {
            continue;
        }
        let same = |before: &&Value| ["type", "status"].iter().all(|field| value::same_at(before, condition, field));
        let before = value::list(old, "status.conditions").iter().filter(same);
        let time = before.map(|before| value::at(before, "lastTransitionTime")).find(|time| !time.is_null());
        let time = time.cloned().unwrap_or_else(|| now.clone());
        value::set(condition, "lastTransitionTime", time);
    }
}

/// Certificates and requests for the tests of this group.
#[cfg(test)]
pub mod made {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    fn key() -> KeyPair {
        KeyPair::generate().expect("a key")
    }

    /// A PEM request whose signature holds.
    pub fn request() -> String {
        CertificateParams::default().serialize_request(&key()).and_then(|request| request.pem()).expect("a request")
    }

    /// A PEM certificate of an authority.
    pub fn authority() -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(&key()).expect("a certificate").pem()
    }

    /// A DER request, and a PEM certificate of its key for the given days of January 1970.
    pub fn issued(from: u8, to: u8) -> (Vec<u8>, String) {
        let (mut params, key) = (CertificateParams::default(), key());
        let request = params.serialize_request(&key).expect("a request").der().to_vec();
        params.not_before = date_time_ymd(1970, 1, from);
        params.not_after = date_time_ymd(1970, 1, to);
        (request, params.self_signed(&key).expect("a certificate").pem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signers_are_named() {
        let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        for (name, expected) in [
            ("example.com/s", "[]".to_owned()),
            ("example.com/n.s", "[]".to_owned()),
            ("", "s: Required value".to_owned()),
            ("x", "s: Invalid value: \"x\": must be a fully qualified domain and path of the form 'example.com/signer-name'".to_owned()),
            ("a.b/c/d", "s: Invalid value: \"a.b/c/d\": must be a fully qualified domain and path of the form 'example.com/signer-name'".to_owned()),
            ("example/s", "s: Invalid value: \"example\": should be a domain with at least two segments separated by dots".to_owned()),
            ("A.B/s", format!("s: Invalid value: \"A.B\": validating label \"A\": {label}")),
        ] {
            let (object, mut errors) = (json!({ "s": name }), ErrorList::new());
            signer_name(&Node::root(&object).child("s"), &mut errors);
            assert_eq!(api::field::join(&errors), expected, "{name}");
        }
    }
}
