//! Images on the node: present and allowed to the pod, or pulled, by policy and with back-off.
//!
//! [`Images::ensure`] is what a container start calls. What is there may be for others only:
//! [`records`] knows whose pulls brought it. Who asks for it is known by [`credentials`]: logins
//! ([`docker_config`]) from pull secrets, the node and [`providers`], chosen by [`keyring`] for the
//! [`place`] that an image is in. `pull` gets what may be had; [`names`] parses references, [`gc`]
//! decides what may go when the disk fills, [`totals`] counts.

pub mod credentials;
pub mod docker_config;
pub mod gc;
pub mod keyring;
pub mod names;
pub mod place;
pub mod providers;
mod pull;
pub mod records;
pub mod totals;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use component::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Client;
use parking_lot::Mutex;
use proto::runtime::v1::{Image, PodSandboxConfig};
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::context::NodeContext;
use crate::cri::Runtime;
use crate::pod::actions::{Failure, Waiting};
use crate::pod::backoff::Backoff;
use credentials::Lookup;
use docker_config::DockerConfigError;
use providers::Providers;
use pull::LastError;
use records::{Access, Comparison, Records, compare};
use totals::{Check, Seen, Totals};

/// Until a pod that may not have its image asks again.
const NEVER_RETRY: SignedDuration = SignedDuration::from_secs(10);
const INSPECT_RETRY: SignedDuration = SignedDuration::from_secs(5);

pub struct Images {
    runtime: Runtime,
    pulls: Semaphore,
    /// By pod UID and image.
    backoff: Mutex<Backoff>,
    /// The error that a back-off repeats.
    last_error: Mutex<HashMap<String, LastError>>,
    records: Records,
    /// When images were used last.
    usage: Mutex<gc::Records>,
    providers: Providers,
    /// Of the providers' configuration.
    providers_hash: String,
    totals: Arc<Totals>,
}

/// A container's wish for its image.
struct Wish<'a> {
    node: &'a NodeContext,
    pod: &'a Arc<Pod>,
    container: &'a Container,
    sandbox: &'a PodSandboxConfig,
    /// As the pod writes it.
    given: String,
    /// With its tag.
    image: String,
    policy: &'a str,
}

impl Wish<'_> {
    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.node.container_event(self.pod, &self.container.name, kind, reason, message);
    }

    /// What failures are remembered by.
    fn key(&self) -> String {
        format!("{}/{}", self.pod.metadata.uid.as_deref().unwrap_or_default(), self.image)
    }

    /// The image may be there: that is nothing to be told to a pod that may not use it.
    fn never_present(&self) -> Failure {
        let message = format!("Container image \"{}\" is not present with pull policy of Never", self.given);
        self.event(EventType::Warning, "ErrImageNeverPull", message.clone());
        failure("ErrImageNeverPull", message, NEVER_RETRY)
    }
}

impl Images {
    /// Fails if the records' directory cannot be made.
    pub fn new(runtime: Runtime, client: Client, config: &Config) -> io::Result<Self> {
        let totals = Arc::<Totals>::default();
        Ok(Self {
            runtime,
            pulls: Semaphore::new(config.max_parallel_image_pulls.max(1)),
            backoff: Mutex::default(),
            last_error: Mutex::default(),
            records: Records::open(&config.layout.image_manager(), config.image_verification.clone())?,
            usage: Mutex::default(),
            providers: Providers::new(&config.credential_providers, client, totals.clone()),
            providers_hash: config.credential_providers.hash.clone(),
            totals,
        })
    }

    /// Notes the images whose pulls were interrupted with an earlier process, before pods ask for them.
    pub async fn adopt(&self) {
        if !self.records.has_intents() {
            return;
        }
        match self.runtime.list_images().await {
            Ok(images) => self.records.adopt(&images),
            // The pulls stay noted, and their images closed, until the next start.
            Err(error) => tracing::error!(%error, "images whose pulls were interrupted could not be looked for"),
        }
    }

    /// Drops what is known of images that are not among `present`, the ids the runtime had after `asked`.
    pub fn prune(&self, present: &HashSet<&str>, asked: Timestamp) {
        self.records.prune(present, asked);
    }

    pub fn metrics(&self) -> String {
        self.totals.page(self.records.counts(), &self.providers_hash)
    }

    /// The image of a container, on the node and the pod's to use when this returns.
    pub async fn ensure(
        &self,
        node: &NodeContext,
        pod: &Arc<Pod>,
        container: &Container,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, Failure> {
        let mut seen = Seen::default();
        let outcome = match wish(node, pod, container, sandbox) {
            Ok(wish) => self.find_or_pull(&wish, &mut seen).await,
            Err(failure) => Err(failure),
        };
        self.totals.wanted(container.image_pull_policy.as_deref().unwrap_or_default(), seen);
        outcome.inspect_err(|failure| {
            let message = format!("Error: {}", failure.waiting.reason);
            node.container_event(pod, &container.name, EventType::Warning, "Failed", message);
        })
    }

    async fn find_or_pull(&self, wish: &Wish<'_>, seen: &mut Seen) -> Result<Image, Failure> {
        let lookup = Lookup::new(wish.node, &self.providers, wish.pod, names::repository(&wish.image));
        if wish.policy != "Always" {
            let found = self.inspect(wish).await?;
            seen.present = Some(found.is_some());
            match found {
                Some(found) => {
                    let may = self.may_use(wish, &found, &lookup).await;
                    seen.pull_required = may.as_ref().ok().map(|may| !may);
                    if may.map_err(|error| failure(&error.to_string(), error.to_string(), NEVER_RETRY))? {
                        return Ok(found);
                    }
                }
                None if wish.policy == "Never" => return Err(wish.never_present()),
                None => {}
            }
        }
        seen.pull_required = Some(true);
        if wish.policy == "Never" {
            return Err(wish.never_present());
        }
        self.pull(wish, &lookup).await
    }

    async fn inspect(&self, wish: &Wish<'_>) -> Result<Option<Image>, Failure> {
        self.runtime.image_status(&wish.image).await.map_err(|error| {
            let message = format!("Failed to inspect image \"{}\": {}", wish.image, error.runtime_message());
            wish.event(EventType::Warning, "InspectFailed", message.clone());
            failure("ImageInspectError", message, INSPECT_RETRY)
        })
    }

    /// Whether the pod may use an image that is there, without asking the registry.
    async fn may_use(&self, wish: &Wish<'_>, found: &Image, lookup: &Lookup<'_>) -> Result<bool, DockerConfigError> {
        let check = self.check(wish, found, lookup).await;
        self.totals.checked(check.as_ref().map_or(Check::Failed, |check| *check));
        let may = matches!(check?, Check::PolicyAllowed | Check::RecordFound);
        if may {
            let message =
                format!("Container image \"{}\" already present on machine and can be accessed by the pod", wish.given);
            wish.event(EventType::Normal, "Pulled", message);
        }
        Ok(may)
    }

    async fn check(&self, wish: &Wish<'_>, found: &Image, lookup: &Lookup<'_>) -> Result<Check, DockerConfigError> {
        let recorded = match self.records.access(&wish.given, &found.id) {
            Access::Exempt => return Ok(Check::PolicyAllowed),
            Access::Open => return Ok(Check::RecordFound),
            Access::Closed => return Ok(Check::MustAuthenticate),
            Access::Unknown => return Ok(Check::Failed),
            Access::By(recorded) => recorded,
        };
        Ok(match compare(&recorded, lookup.get().await?) {
            Comparison::Fits => Check::RecordFound,
            Comparison::FitsAnew(secret) => {
                self.records.note(&wish.given, &found.id, secret);
                Check::RecordFound
            }
            Comparison::Strange => Check::MustAuthenticate,
        })
    }
}

fn wish<'a>(
    node: &'a NodeContext,
    pod: &'a Arc<Pod>,
    container: &'a Container,
    sandbox: &'a PodSandboxConfig,
) -> Result<Wish<'a>, Failure> {
    let given = container.image.clone().unwrap_or_default();
    let image = names::with_default_tag(&given).map_err(|reason| {
        let message =
            format!("Failed to apply default image tag \"{given}\": couldn't parse image name \"{given}\": {reason}");
        node.container_event(pod, &container.name, EventType::Warning, "InspectFailed", message.clone());
        failure("InvalidImageName", message, NEVER_RETRY)
    })?;
    let policy = container.image_pull_policy.as_deref().unwrap_or_else(|| names::default_policy(&image));
    Ok(Wish { node, pod, container, sandbox, given, image, policy })
}

fn failure(reason: &str, message: String, retry_after: SignedDuration) -> Failure {
    Failure {
        waiting: Waiting { reason: reason.to_owned(), message },
        retry_at: Timestamp::now().checked_add(retry_after).unwrap_or(Timestamp::MAX),
    }
}
