//! Pure: which requests are approved by themselves, what each signer accepts, when one is old.

use std::collections::BTreeSet;
use std::net::IpAddr;

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
        KUBELET_SERVING if own && validate(csr, request).is_ok() && names_a_machine(request) => {
            vec![Recognized::Serving]
        }
        _ => Vec::new(),
    }
}

/// Whether the names could be a node's. A node that was taken over is not to pass for the API server or another
/// Service of the cluster; who wants such a certificate asks a person to approve it.
fn names_a_machine(request: &Request) -> bool {
    let of_the_cluster = |name: &str| {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let mut parts = name.split('.').skip(2);
        matches!(name.as_str(), "kubernetes" | "kubernetes.default" | "localhost") || parts.any(|part| part == "svc")
    };
    let anywhere = |address: &IpAddr| address.is_loopback() || address.is_unspecified() || address.is_multicast();
    !request.dns_names.iter().any(|name| of_the_cluster(name)) && !request.addresses.iter().any(anywhere)
}

/// What the request's signer demands of it; the error is the message of its `Failed` condition.
pub fn validate(csr: &CertificateSigningRequest, request: &Request) -> Result<(), String> {
    let usages: Vec<&str> = csr.spec.usages.iter().flatten().map(String::as_str).collect();
    match csr.spec.signer_name.as_str() {
        CLIENT => client_usages(&usages),
        KUBELET_CLIENT => {
            of_nodes(request)?;
            let names = [
                ("DNS", !request.dns_names.is_empty()),
                ("Email", request.emails > 0),
                ("IP", !request.addresses.is_empty()),
                ("URI", request.uris > 0),
            ];
            no_names(&names)?;
            of_a_node(request)?;
            exactly(&usages, &["client auth", "digital signature", "key encipherment"])
        }
        KUBELET_SERVING => {
            of_nodes(request)?;
            if request.dns_names.is_empty() && request.addresses.is_empty() {
                return Err("DNS or IP subjectAltName is required".to_owned());
            }
            no_names(&[("Email", request.emails > 0), ("URI", request.uris > 0)])?;
            exactly(&usages, &["digital signature", "key encipherment", "server auth"])?;
            of_a_node(request)
        }
        _ => Ok(()),
    }
}

fn client_usages(usages: &[&str]) -> Result<(), String> {
    const REQUIRED: &str = "client auth";
    if let Some(bad) =
        usages.iter().find(|usage| !matches!(**usage, "digital signature" | "key encipherment" | REQUIRED))
    {
        return Err(format!("invalid usage for client certificate: {bad}"));
    }
    if usages.contains(&REQUIRED) {
        Ok(())
    } else {
        Err(format!("missing required usage for client certificate: {REQUIRED}"))
    }
}

/// These usages and no others; only keys that are not RSA may do without key encipherment, which
/// nobody checks.
fn exactly(usages: &[&str], wanted: &[&str]) -> Result<(), String> {
    let set = |usages: &[&str]| {
        usages.iter().filter(|usage| **usage != "key encipherment").map(|u| (*u).to_owned()).collect::<BTreeSet<_>>()
    };
    if set(usages) == set(wanted) { Ok(()) } else { Err(format!("usages did not match [{}]", wanted.join(" "))) }
}

fn no_names(kinds: &[(&str, bool)]) -> Result<(), String> {
    match kinds.iter().find(|(_, given)| *given) {
        Some((kind, _)) => Err(format!("{kind} subjectAltNames are not allowed")),
        None => Ok(()),
    }
}

fn of_nodes(request: &Request) -> Result<(), String> {
    if request.organizations == ["system:nodes"] {
        Ok(())
    } else {
        Err("subject organization is not system:nodes".to_owned())
    }
}

fn of_a_node(request: &Request) -> Result<(), String> {
    if request.common_name.starts_with("system:node:") {
        Ok(())
    } else {
        Err("subject common name does not begin with system:node:".to_owned())
    }
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
    fn a_node_does_not_get_the_names_of_the_api_server_or_of_services() {
        for (dns, own) in [
            ("n1", true),
            ("n1.example.com", true),
            ("svc.example.com", true),
            ("kubernetes", false),
            ("Kubernetes.default", false),
            ("kubernetes.default.svc.cluster.local", false),
            ("web.shop.svc.", false),
            ("localhost", false),
        ] {
            assert_eq!(names_a_machine(&request("system:node:n1", "system:nodes", &["n1", dns])), own, "{dns}");
        }
        let mut of_this_machine = request("system:node:n1", "system:nodes", &["n1"]);
        of_this_machine.addresses = vec!["10.0.0.1".parse().unwrap()];
        assert!(names_a_machine(&of_this_machine));
        of_this_machine.addresses.push("::1".parse().unwrap());
        assert!(!names_a_machine(&of_this_machine));
    }

    #[test]
    fn signers_say_what_they_do_not_accept() {
        let client = ["client auth", "digital signature"];
        let serving = ["server auth", "digital signature", "key encipherment"];
        let node = |dns: &[&str]| request("system:node:n1", "system:nodes", dns);
        let mut mailed = node(&["n1"]);
        mailed.emails = 1;
        for (signer, usages, request, expected) in [
            (CLIENT, &["client auth"][..], request("jane", "dev", &[]), ""),
            (
                CLIENT,
                &["digital signature"],
                request("jane", "dev", &[]),
                "missing required usage for client certificate: client auth",
            ),
            (CLIENT, &["client auth", "any"], request("jane", "dev", &[]), "invalid usage for client certificate: any"),
            (KUBELET_CLIENT, &client, node(&[]), ""),
            (KUBELET_CLIENT, &client, request("system:node:n1", "x", &[]), "subject organization is not system:nodes"),
            (
                KUBELET_CLIENT,
                &client,
                request("n1", "system:nodes", &[]),
                "subject common name does not begin with system:node:",
            ),
            (KUBELET_CLIENT, &client, node(&["n1"]), "DNS subjectAltNames are not allowed"),
            (
                KUBELET_CLIENT,
                &serving,
                node(&[]),
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (KUBELET_SERVING, &serving, node(&["n1"]), ""),
            (KUBELET_SERVING, &serving, node(&[]), "DNS or IP subjectAltName is required"),
            (KUBELET_SERVING, &serving, mailed, "Email subjectAltNames are not allowed"),
            (
                KUBELET_SERVING,
                &client,
                node(&["n1"]),
                "usages did not match [digital signature key encipherment server auth]",
            ),
            (LEGACY, &["any"], request("jane", "dev", &[]), ""),
        ] {
            let said = validate(&csr(signer, "x", usages), &request).err().unwrap_or_default();
            assert_eq!(said, expected, "{signer} {usages:?}");
        }
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
