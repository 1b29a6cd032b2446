//! Images on the node: present or pulled, by policy and with back-off.
//!
//! [`Images::ensure`] is what a container start calls; [`names`] parses references, [`auth`] finds
//! registry credentials in pull secrets, [`gc`] decides what may go when the disk fills.

pub mod auth;
pub mod gc;
pub mod names;

use std::sync::Arc;
use std::time::Instant;

use component::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use proto::runtime::v1::{Image, PodSandboxConfig};
use tokio::sync::Semaphore;

use crate::context::NodeContext;
use crate::cri::{Runtime, RuntimeError};
use crate::pod::actions::{Failure, Waiting};
use crate::pod::backoff::Backoff;

/// After this long a failed pull shows as waiting for its next try.
const SHOW_FAILURE: SignedDuration = SignedDuration::from_secs(3);

pub struct Images {
    runtime: Runtime,
    pulls: Semaphore,
    /// By pod UID and image.
    backoff: Mutex<Backoff>,
    /// The error that a back-off repeats.
    last_error: Mutex<std::collections::HashMap<String, (String, Timestamp)>>,
}

impl Images {
    pub fn new(runtime: Runtime, parallel: usize) -> Self {
        Self {
            runtime,
            pulls: Semaphore::new(parallel.max(1)),
            backoff: Mutex::default(),
            last_error: Mutex::default(),
        }
    }

    /// The image of a container, on the node when this returns.
    pub async fn ensure(
        &self,
        node: &NodeContext,
        pod: &Arc<Pod>,
        container: &Container,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, Failure> {
        self.find_or_pull(node, pod, container, sandbox).await.inspect_err(|failure| {
            let message = format!("Error: {}", failure.waiting.reason);
            node.container_event(pod, &container.name, EventType::Warning, "Failed", message);
        })
    }

    async fn find_or_pull(
        &self,
        node: &NodeContext,
        pod: &Arc<Pod>,
        container: &Container,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, Failure> {
        let given = container.image.clone().unwrap_or_default();
        let image = names::with_default_tag(&given).map_err(|reason| {
            let message = format!(
                "Failed to apply default image tag \"{given}\": couldn't parse image name \"{given}\": {reason}"
            );
            node.container_event(pod, &container.name, EventType::Warning, "InspectFailed", message.clone());
            failure("InvalidImageName", message, SignedDuration::from_secs(10))
        })?;
        let policy = container.image_pull_policy.as_deref().unwrap_or_else(|| names::default_policy(&image));
        let present = self.runtime.image_status(&image).await.map_err(|error| {
            let message = format!("Failed to inspect image \"{image}\": {}", error.runtime_message());
            node.container_event(pod, &container.name, EventType::Warning, "InspectFailed", message.clone());
            failure("ImageInspectError", message, SignedDuration::from_secs(5))
        })?;
        match (policy, present) {
            ("Never", None) => {
                let message = format!("Container image \"{given}\" is not present with pull policy of Never");
                node.container_event(pod, &container.name, EventType::Warning, "ErrImageNeverPull", message.clone());
                Err(failure("ErrImageNeverPull", message, SignedDuration::from_secs(10)))
            }
            ("Never" | "IfNotPresent", Some(found)) => {
                let message =
                    format!("Container image \"{given}\" already present on machine and can be accessed by the pod");
                node.container_event(pod, &container.name, EventType::Normal, "Pulled", message);
                Ok(found)
            }
            _ => self.pull(node, pod, container, &given, &image, sandbox).await,
        }
    }

    async fn pull(
        &self,
        node: &NodeContext,
        pod: &Arc<Pod>,
        container: &Container,
        given: &str,
        image: &str,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, Failure> {
        let key = format!("{}/{image}", pod.metadata.uid.as_deref().unwrap_or_default());
        if let Some(waiting) = self.backed_off(node, pod, container, given, &key) {
            return Err(waiting);
        }
        let began = Instant::now();
        // The semaphore is never closed.
        let permit = self.pulls.acquire().await;
        node.container_event(pod, &container.name, EventType::Normal, "Pulling", format!("Pulling image \"{given}\""));
        let pulling = Instant::now();
        let outcome = self.pull_with_secrets(node, pod, image, sandbox).await;
        drop(permit);
        let pulled = match outcome {
            Ok(_) => self.runtime.image_status(image).await.map_err(|error| error.runtime_message()),
            Err(message) => Err(message),
        };
        match pulled {
            Ok(Some(found)) => {
                self.backoff.lock().forget(&key);
                self.last_error.lock().remove(&key);
                let message = format!(
                    "Successfully pulled image \"{given}\" in {} ({} including waiting). Image size: {} bytes.",
                    go_elapsed(pulling.elapsed()),
                    go_elapsed(began.elapsed()),
                    found.size
                );
                node.container_event(pod, &container.name, EventType::Normal, "Pulled", message);
                Ok(found)
            }
            Ok(None) => Err(self.pull_failed(
                node,
                pod,
                container,
                given,
                &key,
                "the image was pulled and is not there".to_owned(),
            )),
            Err(message) => Err(self.pull_failed(node, pod, container, given, &key, message)),
        }
    }

    /// While a failed pull may not be tried again: the reason, and for how long.
    fn backed_off(
        &self,
        node: &NodeContext,
        pod: &Pod,
        container: &Container,
        given: &str,
        key: &str,
    ) -> Option<Failure> {
        let (error, failed_at) = self.last_error.lock().get(key).cloned()?;
        let (_, until) = self.backoff.lock().waiting(key, failed_at, Timestamp::now())?;
        let message = format!("Back-off pulling image \"{given}\"");
        node.container_event(pod, &container.name, EventType::Normal, "BackOff", message.clone());
        let waiting =
            Waiting { reason: "ImagePullBackOff".to_owned(), message: format!("{message}: ErrImagePull: {error}") };
        Some(Failure { waiting, retry_at: until })
    }

    fn pull_failed(
        &self,
        node: &NodeContext,
        pod: &Pod,
        container: &Container,
        given: &str,
        key: &str,
        error: String,
    ) -> Failure {
        let now = Timestamp::now();
        self.backoff.lock().advance(key, now, now);
        self.last_error.lock().insert(key.to_owned(), (error.clone(), now));
        let message = format!("Failed to pull image \"{given}\": {error}");
        node.container_event(pod, &container.name, EventType::Warning, "Failed", message);
        failure("ErrImagePull", error, SHOW_FAILURE)
    }

    /// Tries every matching credential; without any, anonymously.
    async fn pull_with_secrets(
        &self,
        node: &NodeContext,
        pod: &Pod,
        image: &str,
        sandbox: &PodSandboxConfig,
    ) -> Result<String, String> {
        let credentials = self.credentials(node, pod, image).await;
        let mut last: Option<RuntimeError> = None;
        for auth in credentials.into_iter().map(Some).chain(std::iter::once(None)) {
            if auth.is_none() && last.is_some() {
                break;
            }
            match self.runtime.pull_image(image, auth, Some(sandbox.clone())).await {
                Ok(reference) => return Ok(reference),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map(|error| error.runtime_message()).unwrap_or_default())
    }

    async fn credentials(&self, node: &NodeContext, pod: &Pod, image: &str) -> Vec<proto::runtime::v1::AuthConfig> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut found = Vec::new();
        for reference in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
            match node.references.secret(&node.client, namespace, &reference.name).await {
                Ok(Some(secret)) => found.extend(auth::matching(&secret, image)),
                Ok(None) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    node.event(pod, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
                }
                Err(error) => tracing::warn!(%error, secret = reference.name, "image pull secret could not be read"),
            }
        }
        found
    }

    /// Forgets a pod that is gone.
    pub fn forget_pod(&self, uid: &str) {
        let prefix = format!("{uid}/");
        let mut errors = self.last_error.lock();
        let gone: Vec<String> = errors.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
        for key in gone {
            errors.remove(&key);
            self.backoff.lock().forget(&key);
        }
    }
}

fn failure(reason: &str, message: String, retry_after: SignedDuration) -> Failure {
    Failure {
        waiting: Waiting { reason: reason.to_owned(), message },
        retry_at: Timestamp::now().checked_add(retry_after).unwrap_or(Timestamp::MAX),
    }
}

/// A duration as Go prints it, to the millisecond.
fn go_elapsed(elapsed: std::time::Duration) -> String {
    let millis = elapsed.as_millis();
    if millis < 1000 { format!("{millis}ms") } else { format!("{}s", millis as f64 / 1000.0) }
}
