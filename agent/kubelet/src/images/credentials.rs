//! Whom a pull for a pod can speak for, in the order Kubernetes tries: the pod's pull secrets, the
//! node's own logins, the providers (`image_manager.go: makeLookupPullCredentialsFunc`).

use component::EventType;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::OnceCell;

use super::docker_config::{self, DockerConfigError};
use super::keyring::{Coordinates, Credential, Keyring, Source};
use super::providers::Providers;
use crate::context::NodeContext;

/// A pod's credentials for an image, looked for once, and only if they matter: it costs questions to
/// the API and to programs.
pub struct Lookup<'a> {
    node: &'a NodeContext,
    providers: &'a Providers,
    pod: &'a Pod,
    /// The image's name in full, without tag and digest.
    repository: String,
    found: OnceCell<Vec<Credential>>,
}

impl<'a> Lookup<'a> {
    pub fn new(node: &'a NodeContext, providers: &'a Providers, pod: &'a Pod, repository: String) -> Self {
        Self { node, providers, pod, repository, found: OnceCell::new() }
    }

    /// The error is one of a pull secret that cannot be understood.
    pub async fn get(&self) -> Result<&[Credential], DockerConfigError> {
        self.found.get_or_try_init(|| self.gather()).await.map(Vec::as_slice)
    }

    async fn gather(&self) -> Result<Vec<Credential>, DockerConfigError> {
        let mut found = self.secrets().await?.lookup(&self.repository);
        let mut of_node = Keyring::default();
        of_node.add(&Source::Node, docker_config::of_node(&self.node.config.layout.root));
        found.extend(of_node.lookup(&self.repository));
        found.extend(self.providers.keyring(&self.repository, self.pod).await.lookup(&self.repository));
        Ok(found)
    }

    async fn secrets(&self) -> Result<Keyring, DockerConfigError> {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = self.pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let (mut keyring, mut missing) = (Keyring::default(), Vec::new());
        for reference in named {
            let name = reference.name.as_str();
            match self.node.references.secret(&self.node.client, namespace, name).await {
                Ok(Some(secret)) => {
                    let uid = secret.metadata.uid.clone().unwrap_or_default();
                    let coordinates = Coordinates { uid, namespace: namespace.to_owned(), name: name.to_owned() };
                    let logins = docker_config::of_secret(&secret)?.unwrap_or_default();
                    keyring.add(&Source::Secret(coordinates), logins);
                }
                Ok(None) => missing.push(name),
                Err(error) => {
                    tracing::warn!(%error, namespace, secret = name, "an image pull secret could not be read");
                    missing.push(name);
                }
            }
        }
        self.tell_of(&missing);
        Ok(keyring)
    }

    fn tell_of(&self, missing: &[&str]) {
        if missing.is_empty() {
            return;
        }
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        self.node.event(self.pod, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
    }
}
