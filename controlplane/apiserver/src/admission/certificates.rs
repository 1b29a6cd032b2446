//! `CertificateApproval`, `CertificateSigning`, `ClusterTrustBundleAttest` and
//! `CertificateSubjectRestriction`: who may vouch for which signer's certificates.

use api::field::{Error, Path};
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::creates;
use crate::admit::{Access, Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::value::{name, same_at, text};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const POD_REQUESTS: &str = "podcertificaterequests";

/// Whether the user may `verb` for a signer by its name, or for all of its domain.
async fn allowed(attributes: &Attributes<'_>, cluster: &dyn Cluster, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    for name in [signer.to_owned(), format!("{domain}/*")] {
        let access = Access { verb, group: GROUP, resource: "signers", name: &name, ..Access::default() };
        if cluster.allowed(attributes.user, access).await {
            return true;
        }
    }
    false
}

pub struct CertificateApproval;

#[async_trait]
impl Admission for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Update
            && attributes.subresource == "approval"
            && attributes.is(GROUP, REQUESTS)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let signer = attributes.old.map_or("", |old| text(old, "spec.signerName"));
        if allowed(attributes, cluster, "approve", signer).await {
            return Ok(());
        }
        Err(attributes.forbid(format!("user not permitted to approve requests with signerName \"{signer}\"")))
    }
}

pub struct CertificateSigning;

#[async_trait]
impl Admission for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.operation == Operation::Update
            && attributes.subresource == "status"
            && (attributes.is(GROUP, REQUESTS) || attributes.is(GROUP, POD_REQUESTS))
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let Some(old) = attributes.old else { return Ok(()) };
        if attributes.is(GROUP, POD_REQUESTS) {
            return signs_for_pods(attributes, old, cluster).await;
        }
        // Only the certificate and the conditions are the signer's word.
        if same_at(old, &attributes.object, "status.certificate")
            && same_at(old, &attributes.object, "status.conditions")
        {
            return Ok(());
        }
        let signer = text(old, "spec.signerName");
        if allowed(attributes, cluster, "sign", signer).await {
            return Ok(());
        }
        Err(attributes.forbid(format!("user not permitted to sign requests with signerName \"{signer}\"")))
    }
}

/// Upstream asks this while it validates, so the answer is that of validation.
async fn signs_for_pods(attributes: &Attributes<'_>, old: &Value, cluster: &dyn Cluster) -> Result<()> {
    let signer = text(old, "spec.signerName");
    if same_at(old, &attributes.object, "status.certificateChain") || allowed(attributes, cluster, "sign", signer).await
    {
        return Ok(());
    }
    let path = Path::root("spec").child("signerName");
    let user = &attributes.user.name;
    let error = Error::forbidden(&path, format!("User {user:?} is not permitted to \"sign\" for signer {signer:?}"));
    Err(ApiError::invalid(GROUP, "PodCertificateRequest", name(old), &[error]))
}

pub struct ClusterTrustBundleAttest;

#[async_trait]
impl Admission for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        matches!(attributes.operation, Operation::Create | Operation::Update)
            && attributes.is(GROUP, "clustertrustbundles")
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let signer = text(&attributes.object, "spec.signerName").to_owned();
        let unchanged = attributes.old.is_some_and(|old| same_at(old, &attributes.object, "spec"));
        if signer.is_empty() || unchanged || allowed(attributes, cluster, "attest", &signer).await {
            return Ok(());
        }
        Err(attributes.forbid(format!("user not permitted to attest for signerName \"{signer}\"")))
    }
}

pub struct CertificateSubjectRestriction;

#[async_trait]
impl Admission for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        creates(attributes, GROUP, REQUESTS)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        let request = &attributes.object;
        if text(request, "spec.signerName") != "kubernetes.io/kube-apiserver-client" {
            return Ok(());
        }
        if organizations(request).iter().any(|group| group == "system:masters") {
            return Err(attributes
                .forbid("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"));
        }
        Ok(())
    }
}

/// Groups that a request's subject claims; none when it cannot be read, which validation reports.
fn organizations(request: &Value) -> Vec<String> {
    let Ok(pem) = STANDARD.decode(text(request, "spec.request")) else { return Vec::new() };
    crate::kinds::certificates::pem::organizations(&pem).unwrap_or_default()
}
