//! CertificateSigningRequests: approval, signing, cleaning up.
//!
//! - [`recognize`]: which requests are approved by themselves, and what each signer accepts; pure;
//! - [`sign`]: the certificate, made from the request's own subject bytes;
//! - this module: SubjectAccessReviews, conditions, and old requests.

mod der;
mod recognize;
mod sign;

use std::sync::Arc;
use std::time::Duration;

use component::{Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use crate::context::{self, Context, Controller, synced};
use crate::error::{During, Result};
use crate::meta;
use recognize::Recognized;
use sign::{Authority, Request};

const WORKERS: usize = 3;

pub fn start(context: &Context) {
    let authority = match Authority::new(&context.config.ca_certificate, &context.config.ca_key) {
        Ok(authority) => Arc::new(authority),
        Err(error) => {
            tracing::error!(%error, "certificates are not signed");
            return;
        }
    };
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("certificate-controller");
    let requests = context.informers.of::<CertificateSigningRequest>();
    let changed = queue.clone();
    requests.on_change(move |change| changed.add(change.object().name_any()));
    let worker = Arc::new(Worker { controller: controller.clone(), requests: requests.clone(), authority });
    controller.run(&queue, WORKERS, synced!(requests), move |name: String| {
        let worker = worker.clone();
        async move { worker.reconcile(&name).await }
    });
}

struct Worker {
    controller: Controller,
    requests: Informer<CertificateSigningRequest>,
    authority: Arc<Authority>,
}

fn has(request: &CertificateSigningRequest, name: &str) -> bool {
    let conditions = request.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == name && condition.status == "True")
}

fn certificate(request: &CertificateSigningRequest) -> Option<&ByteString> {
    request.status.as_ref()?.certificate.as_ref().filter(|certificate| !certificate.0.is_empty())
}

impl Worker {
    async fn reconcile(&self, name: &str) -> Result<Outcome> {
        let Some(csr) = self.requests.get("", name) else { return Ok(Outcome::Done) };
        let expiry = certificate(&csr).and_then(|certificate| sign::expiry(&certificate.0));
        let settled = has(&csr, "Denied") || has(&csr, "Failed") || certificate(&csr).is_some();
        if !settled && has(&csr, "Approved") {
            self.sign(&csr).await?;
        } else if !settled {
            self.approve(&csr).await?;
        }
        let now = Timestamp::now();
        match recognize::end_of_life(&csr, expiry) {
            moment if moment <= now => {
                let api: Api<CertificateSigningRequest> = self.controller.cluster();
                let deleted = api.delete(name, &DeleteParams::default()).await;
                deleted.unless_gone("cleaning up certificate request", name)?;
                Ok(Outcome::Done)
            }
            moment => Ok(context::at(moment, now)),
        }
    }

    async fn approve(&self, csr: &CertificateSigningRequest) -> Result<()> {
        let Ok(request) = Request::parse(&csr.spec.request.0) else { return Ok(()) };
        for candidate in recognize::candidates(csr, &request) {
            let allowed = match candidate {
                Recognized::Serving => true,
                Recognized::Client { permission, .. } => self.is_allowed(csr, permission).await?,
            };
            if allowed {
                return self.add_condition(csr, "approval", "Approved", "AutoApproved", candidate.message()).await;
            }
        }
        Ok(())
    }

    /// Whether the requester may create `certificatesigningrequests/<permission>`.
    async fn is_allowed(&self, csr: &CertificateSigningRequest, permission: &str) -> Result<bool> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: csr.spec.username.clone(),
                groups: csr.spec.groups.clone(),
                uid: csr.spec.uid.clone(),
                extra: csr.spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".to_owned()),
                    resource: Some("certificatesigningrequests".to_owned()),
                    subresource: Some(permission.to_owned()),
                    version: Some("*".to_owned()),
                    verb: Some("create".to_owned()),
                    ..Default::default()
                }),
                non_resource_attributes: None,
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = self.controller.cluster();
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.during("asking whether to approve", &csr.name_any())?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn sign(&self, csr: &CertificateSigningRequest) -> Result<()> {
        if !recognize::is_ours(&csr.spec.signer_name) {
            return Ok(());
        }
        let request = Request::parse(&csr.spec.request.0).map_err(|error| error.to_string());
        let signed = request.and_then(|request| {
            recognize::validate(csr, &request)?;
            let seconds = csr.spec.expiration_seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs().into()));
            let usages = csr.spec.usages.clone().unwrap_or_default();
            self.authority.sign(&request, &usages, seconds, Timestamp::now()).map_err(|error| error.to_string())
        });
        let pem = match signed {
            Ok(pem) => pem,
            Err(problem) => {
                return self.add_condition(csr, "status", "Failed", "SignerValidationFailure", &problem).await;
            }
        };
        let mut changed = csr.clone();
        changed.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
        let api: Api<CertificateSigningRequest> = self.controller.cluster();
        let written = api.replace_status(&csr.name_any(), &PostParams::default(), &changed).await;
        written.during("issuing the certificate of", &csr.name_any()).map(drop)
    }

    async fn add_condition(
        &self,
        csr: &CertificateSigningRequest,
        subresource: &str,
        name: &str,
        reason: &str,
        message: &str,
    ) -> Result<()> {
        let now = meta::stamp(meta::now());
        let mut changed = csr.clone();
        let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.push(CertificateSigningRequestCondition {
            type_: name.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: now.clone(),
            last_transition_time: now,
        });
        let api: Api<CertificateSigningRequest> = self.controller.cluster();
        let written = api.replace_subresource(subresource, &csr.name_any(), &PostParams::default(), &changed).await;
        written.during("deciding on certificate request", &csr.name_any()).map(drop)
    }
}
