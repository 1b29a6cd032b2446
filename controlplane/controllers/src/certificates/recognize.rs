//! Pure: which requests are approved by themselves, what each signer accepts, when one is old.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::sign::Request;
use crate::meta;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recognized {
    /// Approved if the requester may create `certificatesigningrequests/<permission>`.
    Client { permission: &'static str, message: &'static str },
    /// A node asks for its own serving certificate.
    Serving,
}

impl Recognized {
    pub fn message(self) -> &'static str {
        match self {
            Recognized::Client { message, .. } => message,
            Recognized::Serving => "Auto approving kubelet serving certificate requested by the node it names.",
        }
    }
}

pub fn is_ours(signer: &str) -> bool {
    matches!(signer, CLIENT | KUBELET_CLIENT | KUBELET_SERVING | LEGACY)
}

/// The ways this request could be approved by itself.
pub fn candidates(csr: &CertificateSigningRequest, request: &Request) -> Vec<Recognized> {
    let own = csr.spec.username.as_deref() == Some(request.common_name.as_str());
    match csr.spec.signer_name.as_str() {
        KUBELET_CLIENT if validate(csr, request).is_ok() => {
            let renewal = Recognized::Client {
                permission: "selfnodeclient",
                message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
            };
            let first = Recognized::Client {
                permission: "nodeclient",
                message: "Auto approving kubelet client certificate after SubjectAccessReview.",
            };
            if own { vec![renewal, first] } else { vec![first] }
        }
        KUBELET_SERVING if own && validate(csr, request).is_ok() => vec![Recognized::Serving],
        _ => Vec::new(),
    }
}

/// What the request's signer demands of it.
pub fn validate(csr: &CertificateSigningRequest, request: &Request) -> Result<(), String> {
    let usages: BTreeSet<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    let are = |sets: &[&[&str]]| sets.iter().any(|set| usages == set.iter().copied().collect());
    match csr.spec.signer_name.as_str() {
        CLIENT => {
            let allowed = ["digital signature", "key encipherment", "client auth"];
            if !usages.contains("client auth") || !usages.iter().all(|usage| allowed.contains(usage)) {
                return Err("invalid usage for client certificate: only digital signature, key encipherment and \
                            client auth are allowed, and client auth is required"
                    .to_owned());
            }
            Ok(())
        }
        KUBELET_CLIENT => {
            node_subject(request)?;
            if request.has_names() {
                return Err("subjectAltNames are not allowed".to_owned());
            }
            match are(&[
                &["client auth", "digital signature"],
                &["client auth", "digital signature", "key encipherment"],
            ]) {
                true => Ok(()),
                false => Err(usages_error("[client auth digital signature key encipherment]", &usages)),
            }
        }
        KUBELET_SERVING => {
            node_subject(request)?;
            if request.dns_names.is_empty() && request.addresses.is_empty() {
                return Err("at least one DNS or IP subjectAltName is required".to_owned());
            }
            if request.other_names > 0 {
                return Err("email and URI subjectAltNames are not allowed".to_owned());
            }
            match are(&[
                &["digital signature", "server auth"],
                &["digital signature", "key encipherment", "server auth"],
            ]) {
                true => Ok(()),
                false => Err(usages_error("[digital signature key encipherment server auth]", &usages)),
            }
        }
        _ => Ok(()),
    }
}

fn usages_error(allowed: &str, given: &BTreeSet<&str>) -> String {
    format!("usages did not match {allowed}, with or without key encipherment: {given:?}")
}

fn node_subject(request: &Request) -> Result<(), String> {
    if request.organizations != ["system:nodes"] {
        return Err("organization was not exactly [\"system:nodes\"]".to_owned());
    }
    if !request.common_name.starts_with("system:node:") {
        return Err("subject common name does not begin with system:node:".to_owned());
    }
    Ok(())
}

const HOUR: i64 = 3600;

/// When the request may be deleted: an hour after it was decided, a day while nobody decides, and
/// when its certificate ends.
pub fn end_of_life(csr: &CertificateSigningRequest, certificate_ends: Option<Timestamp>) -> Timestamp {
    let created = meta::created(&csr.metadata);
    let conditions = csr.status.as_ref().and_then(|status| status.conditions.as_ref());
    let decided = conditions.into_iter().flatten().map(|condition| {
        let since = condition.last_update_time.as_ref().map_or(created, |time| time.0);
        meta::after(since, HOUR)
    });
    let limit = decided.min().unwrap_or_else(|| meta::after(created, 24 * HOUR));
    certificate_ends.map_or(limit, |ends| limit.min(ends))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr(signer: &str, user: &str, usages: &[&str]) -> CertificateSigningRequest {
        let mut csr = CertificateSigningRequest::default();
        csr.spec.signer_name = signer.into();
        csr.spec.username = Some(user.into());
        csr.spec.usages = Some(usages.iter().map(|usage| (*usage).to_owned()).collect());
        csr
    }

    fn request(name: &str, organization: &str, dns: &[&str]) -> Request {
        let mut request = Request::default();
        request.common_name = name.into();
        request.organizations = vec![organization.into()];
        request.dns_names = dns.iter().map(|name| (*name).to_owned()).collect();
        request
    }

    #[test]
    fn kubelet_requests_are_recognized() {
        let client = ["digital signature", "client auth"];
        let node = request("system:node:n1", "system:nodes", &[]);
        let permissions = |csr: &CertificateSigningRequest, request: &Request| -> Vec<&str> {
            let found = candidates(csr, request).into_iter();
            found
                .map(|r| match r {
                    Recognized::Client { permission, .. } => permission,
                    Recognized::Serving => "serving",
                })
                .collect()
        };
        let bootstrap = csr(KUBELET_CLIENT, "system:bootstrap:abcdef", &client);
        assert_eq!(permissions(&bootstrap, &node), ["nodeclient"]);
        assert_eq!(
            permissions(&csr(KUBELET_CLIENT, "system:node:n1", &client), &node),
            ["selfnodeclient", "nodeclient"]
        );
        let greedy = request("system:node:n1", "system:masters", &[]);
        assert!(permissions(&bootstrap, &greedy).is_empty());
        assert!(permissions(&csr(KUBELET_CLIENT, "x", &["server auth"]), &node).is_empty());

        let serving = ["digital signature", "server auth"];
        let named = request("system:node:n1", "system:nodes", &["n1"]);
        assert_eq!(permissions(&csr(KUBELET_SERVING, "system:node:n1", &serving), &named), ["serving"]);
        assert!(permissions(&csr(KUBELET_SERVING, "system:node:n2", &serving), &named).is_empty(), "another node's");
        assert!(permissions(&csr(KUBELET_SERVING, "system:node:n1", &serving), &node).is_empty(), "without names");
        assert!(permissions(&csr(CLIENT, "jane", &client), &request("jane", "dev", &[])).is_empty());
    }

    #[test]
    fn requests_end_an_hour_after_the_decision() {
        use crate::podstate::testing::at;
        use k8s_openapi::api::certificates::v1::{CertificateSigningRequestCondition, CertificateSigningRequestStatus};
        let mut old = csr(CLIENT, "jane", &[]);
        old.metadata.creation_timestamp = Some(at(0).into());
        assert_eq!(end_of_life(&old, None), at(24 * HOUR));
        let approved =
            CertificateSigningRequestCondition { last_update_time: Some(at(100).into()), ..Default::default() };
        old.status = Some(CertificateSigningRequestStatus { conditions: Some(vec![approved]), certificate: None });
        assert_eq!(end_of_life(&old, None), at(100 + HOUR));
        assert_eq!(end_of_life(&old, Some(at(200))), at(200));
    }
}
