//! Asking the API for a certificate: a new key, and a PodCertificateRequest that names the pod, its
//! account and this node as they are now.

use component::{Informer, brief};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};

use super::keys::{self, KeyError};
use super::namespace;

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("making a key was interrupted: {0}; it will be tried again")]
    Interrupted(String),
    #[error("reading the pod's ServiceAccount {account:?} for its UID: {}; it will be tried again", brief(.source))]
    Account { account: String, source: Box<kube::Error> },
    #[error("the API server has told of no Node {0:?} yet, whose UID the request names; it will be tried again")]
    Node(String),
    #[error("creating a PodCertificateRequest for signer {signer:?}: {}; it will be tried again", brief(.source))]
    Create { signer: String, source: Box<kube::Error> },
}

/// A request that the API server took, and the key that it is for (PEM).
pub struct Made {
    pub key: String,
    pub request: PodCertificateRequest,
}

/// Makes this node's requests.
pub struct Asker {
    pub client: Client,
    pub node: String,
    pub nodes: Informer<Node>,
}

impl Asker {
    pub async fn ask(&self, pod: &Pod, source: &PodCertificateProjection) -> Result<Made, AskError> {
        let account_uid = self.account_uid(pod).await?;
        let node_uid = self.node_uid()?;
        let kind = source.key_type.clone();
        let key = tokio::task::spawn_blocking(move || keys::generate(&kind)).await;
        let key = key.map_err(|error| AskError::Interrupted(error.to_string()))??;
        let mut request = request(pod, source, &self.node, key.request);
        request.spec.service_account_uid = account_uid;
        request.spec.node_uid = node_uid;
        let api: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), namespace(pod));
        let request = api
            .create(&PostParams::default(), &request)
            .await
            .map_err(|error| AskError::Create { signer: source.signer_name.clone(), source: Box::new(error) })?;
        Ok(Made { key: key.pem, request })
    }

    async fn account_uid(&self, pod: &Pod) -> Result<String, AskError> {
        let account = account(pod);
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace(pod));
        let found = api
            .get(account)
            .await
            .map_err(|error| AskError::Account { account: account.to_owned(), source: Box::new(error) })?;
        Ok(found.metadata.uid.unwrap_or_default())
    }

    fn node_uid(&self) -> Result<String, AskError> {
        let node = self.nodes.get("", &self.node).ok_or_else(|| AskError::Node(self.node.clone()))?;
        Ok(node.metadata.uid.clone().unwrap_or_default())
    }
}

fn account(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or_default()
}

/// All but the UIDs that have to be looked up. It goes with its pod.
fn request(pod: &Pod, source: &PodCertificateProjection, node: &str, pkcs10: Vec<u8>) -> PodCertificateRequest {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.clone(),
        uid: uid.clone(),
        controller: None,
        block_owner_deletion: None,
    };
    PodCertificateRequest {
        metadata: ObjectMeta {
            namespace: pod.metadata.namespace.clone(),
            generate_name: Some("req-".to_owned()),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: PodCertificateRequestSpec {
            signer_name: source.signer_name.clone(),
            pod_name: name,
            pod_uid: uid,
            service_account_name: account(pod).to_owned(),
            node_name: node.to_owned(),
            max_expiration_seconds: source.max_expiration_seconds,
            stub_pkc_s10_request: ByteString(pkcs10),
            unverified_user_annotations: source.user_annotations.clone(),
            ..Default::default()
        },
        status: None,
    }
}
