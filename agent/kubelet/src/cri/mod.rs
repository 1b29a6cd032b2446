//! The container runtime, through CRI v1 on a unix socket.
//!
//! [`Runtime`] is a thin client: one method per call, with a deadline each, and errors that say what
//! was asked of what. Nothing here decides anything. [`events`] tells of exits.

pub mod events;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use proto::runtime::v1 as cri;
use proto::runtime::v1::image_service_client::ImageServiceClient;
use proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cgroups::SandboxResources;

/// Ordinary calls.
const CALL: Duration = Duration::from_secs(120);
/// Calls that start a sandbox or a container (the network plugin runs inside).
const START: Duration = Duration::from_secs(240);
/// How soon a container that is on its way to another state is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Answers hold the status of every container of a node.
const LARGEST_MESSAGE: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime answered with an error. `message` is its own text.
    #[error("{call}: rpc error: code = {} desc = {message}", code_name(*code))]
    Answer { call: &'static str, code: Code, message: String },
    #[error("{call}: no answer from the container runtime within {} s; check that it is not stuck", limit.as_secs())]
    Deadline { call: &'static str, limit: Duration },
    #[error("{call}: the container runtime answered without the expected {missing}")]
    Incomplete { call: &'static str, missing: &'static str },
}

impl RuntimeError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, RuntimeError::Answer { code: Code::NotFound, .. })
    }

    pub fn is_unimplemented(&self) -> bool {
        matches!(self, RuntimeError::Answer { code: Code::Unimplemented, .. })
    }

    pub fn is_unavailable(&self) -> bool {
        matches!(self, RuntimeError::Answer { code: Code::Unavailable, .. })
    }

    /// The container is on its way from one state to the next, and can soon be asked again.
    fn is_in_between(&self) -> bool {
        let words = ["container is in starting state", "container is already in removing state"];
        matches!(self, RuntimeError::Answer { message, .. } if words.iter().any(|words| message.contains(words)))
    }

    /// The runtime's own words, without the status around them.
    pub fn bare_message(&self) -> String {
        match self {
            RuntimeError::Answer { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }

    /// The runtime's own message, as Go's gRPC client prints a status.
    pub fn runtime_message(&self) -> String {
        match self {
            RuntimeError::Answer { code, message, .. } => {
                format!("rpc error: code = {} desc = {message}", code_name(*code))
            }
            other => other.to_string(),
        }
    }
}

/// The names that Go's gRPC uses in messages.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// A client of one runtime. Cloning shares the connection, which comes back by itself when the
/// runtime was restarted.
#[derive(Clone)]
pub struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    channel: Channel,
}

/// What a container has on disk besides its image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layer {
    pub bytes: u64,
    pub inodes: u64,
}

type Answer<T> = Result<T, RuntimeError>;

async fn within<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Answer<T> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => {
            Err(RuntimeError::Answer { call, code: status.code(), message: status.message().to_owned() })
        }
        Err(_) => Err(RuntimeError::Deadline { call, limit }),
    }
}

/// Selects what belongs to one pod.
pub fn pod_selector(uid: &str) -> HashMap<String, String> {
    HashMap::from([(crate::pod::labels::POD_UID.to_owned(), uid.to_owned())])
}

impl Runtime {
    /// Connects with the first call.
    pub fn new(socket: &Path) -> Self {
        let channel = proto::unix_channel_lazy(socket);
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            channel,
        }
    }

    /// The connection, for other services on the same socket.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The raw CRI client, e.g. for streaming calls.
    pub fn service(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    pub async fn version(&self) -> Answer<cri::VersionResponse> {
        let request = cri::VersionRequest { version: "v1".to_owned() };
        within("Version", CALL, self.runtime.clone().version(request)).await
    }

    pub async fn status(&self) -> Answer<cri::StatusResponse> {
        within("Status", CALL, self.runtime.clone().status(cri::StatusRequest { verbose: false })).await
    }

    pub async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: &str) -> Answer<String> {
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let answer = within("RunPodSandbox", START, self.runtime.clone().run_pod_sandbox(request)).await?;
        Ok(answer.pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Answer<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(within("StopPodSandbox", CALL, self.runtime.clone().stop_pod_sandbox(request)).await.map(|_| ()))
    }

    pub async fn remove_sandbox(&self, id: &str) -> Answer<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(
            within("RemovePodSandbox", CALL, self.runtime.clone().remove_pod_sandbox(request)).await.map(|_| ()),
        )
    }

    pub async fn sandbox_status(&self, id: &str) -> Answer<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = within("PodSandboxStatus", CALL, self.runtime.clone().pod_sandbox_status(request)).await?;
        answer.status.ok_or(RuntimeError::Incomplete { call: "PodSandboxStatus", missing: "status" })
    }

    /// All sandboxes, or those of one pod.
    pub async fn list_sandboxes(&self, pod_uid: Option<&str>) -> Answer<Vec<cri::PodSandbox>> {
        let filter =
            pod_uid.map(|uid| cri::PodSandboxFilter { label_selector: pod_selector(uid), ..Default::default() });
        let request = cri::ListPodSandboxRequest { filter };
        Ok(within("ListPodSandbox", CALL, self.runtime.clone().list_pod_sandbox(request)).await?.items)
    }

    /// All containers, or those of one pod.
    pub async fn list_containers(&self, pod_uid: Option<&str>) -> Answer<Vec<cri::Container>> {
        let filter =
            pod_uid.map(|uid| cri::ContainerFilter { label_selector: pod_selector(uid), ..Default::default() });
        let request = cri::ListContainersRequest { filter };
        Ok(within("ListContainers", CALL, self.runtime.clone().list_containers(request)).await?.containers)
    }

    pub async fn container_status(&self, id: &str) -> Answer<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = within("ContainerStatus", CALL, self.runtime.clone().container_status(request)).await?;
        answer.status.ok_or(RuntimeError::Incomplete { call: "ContainerStatus", missing: "status" })
    }

    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Answer<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(within("CreateContainer", START, self.runtime.clone().create_container(request)).await?.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Answer<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        within("StartContainer", START, self.runtime.clone().start_container(request)).await.map(|_| ())
    }

    /// Asks the container to end, and kills it after `grace_seconds`. Returns once it is gone.
    pub async fn stop_container(&self, id: &str, grace_seconds: i64) -> Answer<()> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace_seconds };
        let limit = CALL + Duration::from_secs(grace_seconds.max(0).unsigned_abs());
        gone_is_done(within("StopContainer", limit, self.runtime.clone().stop_container(request)).await.map(|_| ()))
    }

    /// One whose start was given up on is removed once the runtime is done with starting it.
    pub async fn remove_container(&self, id: &str) -> Answer<()> {
        let request = || cri::RemoveContainerRequest { container_id: id.to_owned() };
        let until = Instant::now() + START;
        loop {
            let answer = within("RemoveContainer", CALL, self.runtime.clone().remove_container(request())).await;
            match gone_is_done(answer.map(|_| ())) {
                Err(error) if error.is_in_between() && Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
                answer => return answer,
            }
        }
    }

    pub async fn update_resources(&self, id: &str, resources: cri::LinuxContainerResources) -> Answer<()> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            annotations: HashMap::new(),
        };
        within("UpdateContainerResources", CALL, self.runtime.clone().update_container_resources(request))
            .await
            .map(|_| ())
    }

    /// Tells the runtime what the pod as a whole has now.
    pub async fn update_sandbox_resources(&self, id: &str, resources: SandboxResources) -> Answer<()> {
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            overhead: Some(resources.overhead),
            resources: Some(resources.own),
        };
        within("UpdatePodSandboxResources", CALL, self.runtime.clone().update_pod_sandbox_resources(request))
            .await
            .map(|_| ())
    }

    /// Writes what the container is now to an archive at `location`. The runtime has no less time for it
    /// than for another call.
    pub async fn checkpoint_container(&self, id: &str, location: &Path, limit: Duration) -> Answer<()> {
        let limit = limit.max(CALL);
        let request = cri::CheckpointContainerRequest {
            container_id: id.to_owned(),
            location: location.to_string_lossy().into_owned(),
            timeout: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        };
        within("CheckpointContainer", limit, self.runtime.clone().checkpoint_container(request)).await.map(|_| ())
    }

    pub async fn reopen_log(&self, id: &str) -> Answer<()> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        within("ReopenContainerLog", CALL, self.runtime.clone().reopen_container_log(request)).await.map(|_| ())
    }

    /// Runs a command to its end. `limit` none is no limit.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Answer<cri::ExecSyncResponse> {
        let seconds = limit.map_or(0, |limit| i64::try_from(limit.as_secs()).unwrap_or(i64::MAX));
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout: seconds };
        // The runtime enforces the limit; a second more keeps its own answer visible.
        let wait = limit.map_or(Duration::from_secs(86_400), |limit| limit + Duration::from_secs(1));
        within("ExecSync", wait, self.runtime.clone().exec_sync(request)).await
    }

    /// What each container wrote into its image, by container id.
    pub async fn layers(&self) -> Answer<BTreeMap<String, Layer>> {
        let request = cri::ListContainerStatsRequest::default();
        let answer = within("ListContainerStats", CALL, self.runtime.clone().list_container_stats(request)).await?;
        let written = answer.stats.into_iter().filter_map(|stats| {
            let layer = stats.writable_layer?;
            let value = |number: Option<cri::UInt64Value>| number.map(|number| number.value);
            let (bytes, inodes) = (value(layer.used_bytes)?, value(layer.inodes_used).unwrap_or(0));
            Some((stats.attributes?.id, Layer { bytes, inodes }))
        });
        Ok(written.collect())
    }

    pub async fn exec(&self, request: cri::ExecRequest) -> Answer<String> {
        Ok(within("Exec", CALL, self.runtime.clone().exec(request)).await?.url)
    }

    pub async fn attach(&self, request: cri::AttachRequest) -> Answer<String> {
        Ok(within("Attach", CALL, self.runtime.clone().attach(request)).await?.url)
    }

    pub async fn port_forward(&self, request: cri::PortForwardRequest) -> Answer<String> {
        Ok(within("PortForward", CALL, self.runtime.clone().port_forward(request)).await?.url)
    }

    pub async fn list_images(&self) -> Answer<Vec<cri::Image>> {
        Ok(within("ListImages", CALL, self.images.clone().list_images(cri::ListImagesRequest::default())).await?.images)
    }

    /// The image, if the node has it.
    pub async fn image_status(&self, image: &str) -> Answer<Option<cri::Image>> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        Ok(within("ImageStatus", CALL, self.images.clone().image_status(request)).await?.image)
    }

    /// Pulls an image, however long it takes (the caller may drop the future). Returns its reference.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Answer<String> {
        let request = Request::new(cri::PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config });
        let answer = self.images.clone().pull_image(request).await.map_err(|status| RuntimeError::Answer {
            call: "PullImage",
            code: status.code(),
            message: status.message().to_owned(),
        })?;
        Ok(answer.into_inner().image_ref)
    }

    pub async fn remove_image(&self, image: &str) -> Answer<()> {
        let request = cri::RemoveImageRequest { image: Some(image_spec(image)) };
        gone_is_done(within("RemoveImage", CALL, self.images.clone().remove_image(request)).await.map(|_| ()))
    }

    pub async fn image_fs_info(&self) -> Answer<cri::ImageFsInfoResponse> {
        within("ImageFsInfo", CALL, self.images.clone().image_fs_info(cri::ImageFsInfoRequest {})).await
    }
}

pub fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// Stopping or removing what is not there has succeeded.
fn gone_is_done(answer: Answer<()>) -> Answer<()> {
    match answer {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}
