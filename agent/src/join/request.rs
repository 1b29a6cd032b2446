//! Asking the cluster for a certificate: a CertificateSigningRequest, answered by the controllers
//! that approve and sign it.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};

use super::JoinError;

/// Which certificate: for speaking to the API server, or for the kubelet's own server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    Client,
    /// The addresses and host name the certificate is to be valid for.
    Serving {
        addresses: Vec<IpAddr>,
        hostname: String,
    },
}

impl Purpose {
    fn signer(&self) -> &'static str {
        match self {
            Purpose::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Purpose::Serving { .. } => "kubernetes.io/kubelet-serving",
        }
    }

    fn usages(&self) -> Vec<String> {
        let role = match self {
            Purpose::Client => "client auth",
            Purpose::Serving { .. } => "server auth",
        };
        // no "key encipherment": the keys are elliptic curve keys
        vec!["digital signature".to_owned(), role.to_owned()]
    }
}

/// A certificate chain and its new key, both PEM.
pub struct Signed {
    pub certificates: String,
    pub key: String,
}

/// How long approval and signing may take before a new request is made.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a key, has it signed for `system:node:<node>`, and waits for the certificate.
pub async fn obtain(client: &Client, node: &str, purpose: &Purpose) -> Result<Signed, JoinError> {
    let key = rcgen::KeyPair::generate().map_err(JoinError::Key)?;
    let request = signing_request(&key, node, purpose)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created = api.create(&PostParams::default(), &request).await.map_err(|error| {
        JoinError::api(format!("creating a CertificateSigningRequest for {}", purpose.signer()), error)
    })?;
    let name = created.metadata.name.clone().unwrap_or_default();
    let waiting = wait_for_certificate(&api, &name, created);
    let certificates = tokio::time::timeout(PATIENCE, waiting)
        .await
        .map_err(|_| JoinError::NotSigned { name: name.clone(), seconds: PATIENCE.as_secs() })??;
    Ok(Signed { certificates, key: key.serialize_pem() })
}

fn signing_request(
    key: &rcgen::KeyPair,
    node: &str,
    purpose: &Purpose,
) -> Result<CertificateSigningRequest, JoinError> {
    let mut params = rcgen::CertificateParams::new(Vec::new()).map_err(JoinError::Key)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    if let Purpose::Serving { addresses, hostname } = purpose {
        let name = hostname.as_str().try_into().map_err(JoinError::Key)?;
        params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        params.subject_alt_names.extend(addresses.iter().map(|address| rcgen::SanType::IpAddress(*address)));
    }
    let pem = params.serialize_request(key).and_then(|request| request.pem()).map_err(JoinError::Key)?;
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..Default::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: purpose.signer().to_owned(),
            usages: Some(purpose.usages()),
            ..Default::default()
        },
        status: None,
    })
}

async fn wait_for_certificate(
    api: &Api<CertificateSigningRequest>,
    name: &str,
    created: CertificateSigningRequest,
) -> Result<String, JoinError> {
    let mut version = created.metadata.resource_version.clone().unwrap_or_default();
    if let Some(outcome) = outcome(&created) {
        return outcome;
    }
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    loop {
        let failed = |error| JoinError::api(format!("waiting for CertificateSigningRequest {name}"), error);
        let mut events = api.watch(&only, &version).await.map_err(failed)?.boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Added(request) | WatchEvent::Modified(request)) => {
                    version = request.metadata.resource_version.clone().unwrap_or(version);
                    if let Some(outcome) = outcome(&request) {
                        return outcome;
                    }
                }
                Ok(WatchEvent::Deleted(_)) => {
                    return Err(JoinError::Refused { name: name.to_owned(), why: "it was deleted".to_owned() });
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // The watch ended: look again, and go on from there.
        let current = api.get(name).await.map_err(failed)?;
        if let Some(outcome) = outcome(&current) {
            return outcome;
        }
        version = current.metadata.resource_version.unwrap_or_default();
    }
}

/// None while nobody decided.
fn outcome(request: &CertificateSigningRequest) -> Option<Result<String, JoinError>> {
    let name = request.metadata.name.clone().unwrap_or_default();
    let status = request.status.as_ref()?;
    for condition in status.conditions.iter().flatten() {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") && condition.status == "True" {
            let message = condition.message.clone().unwrap_or_default();
            return Some(Err(JoinError::Refused { name, why: format!("{}: {message}", condition.type_) }));
        }
    }
    let certificate = status.certificate.as_ref().filter(|bytes| !bytes.0.is_empty())?;
    Some(Ok(String::from_utf8_lossy(&certificate.0).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(status: serde_json::Value) -> CertificateSigningRequest {
        serde_json::from_value(json!({
            "metadata": { "name": "csr-1" },
            "spec": { "request": "", "signerName": "x" },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_request_is_decided_by_its_certificate_or_a_refusal() {
        let approved = json!([{ "type": "Approved", "status": "True" }]);
        assert!(outcome(&request(json!({}))).is_none());
        assert!(outcome(&request(json!({ "conditions": approved }))).is_none());
        let signed = request(json!({ "conditions": approved, "certificate": "YWJj" }));
        assert_eq!(outcome(&signed).unwrap().unwrap(), "abc");
        let denied = request(json!({ "conditions": [{ "type": "Denied", "status": "True", "message": "no" }] }));
        assert!(outcome(&denied).unwrap().unwrap_err().to_string().contains("Denied: no"));
    }

    #[test]
    fn a_serving_request_names_its_addresses() {
        let key = rcgen::KeyPair::generate().unwrap();
        let purpose = Purpose::Serving { addresses: vec!["10.0.0.1".parse().unwrap()], hostname: "n1".to_owned() };
        let request = signing_request(&key, "n1", &purpose).unwrap();
        assert_eq!(request.spec.usages.unwrap(), ["digital signature", "server auth"]);
        let pem = String::from_utf8(request.spec.request.0).unwrap();
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&pem).unwrap();
        assert_eq!(parsed.params.subject_alt_names.len(), 2);
    }
}
