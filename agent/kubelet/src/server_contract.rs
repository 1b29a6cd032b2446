//! What the 10250 server may ask of the node's pods.
//!
//! `crate::server` serves HTTP over a [`NodePods`]; `crate::manager` implements it from the pod
//! workers' own knowledge, so that a request costs no call to the container runtime. Exec, attach and
//! port-forward go to the runtime through [`NodePods::runtime`].

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::cgroups::Cgroups;
use crate::cri::Runtime;
use crate::volume_contract::{CertificateStates, VolumeUsage};

/// One run of a container, as the runtime last reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRun {
    /// The name in the pod's spec (init and ephemeral containers too).
    pub name: String,
    /// The runtime's id, without `containerd://`.
    pub id: String,
    /// How often the container was restarted before this run; names the log file.
    pub attempt: u32,
    pub running: bool,
    /// Unset until the process was started.
    pub started_at: Option<Timestamp>,
    /// Set once it exited.
    pub finished_at: Option<Timestamp>,
    /// The CRI log file of this run, rotated files beside it (`0.log.20261122-044937`).
    pub log_path: PathBuf,
}

/// What runs for one pod now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodRuntimeView {
    /// The sandbox that is ready, if any.
    pub sandbox_id: Option<String>,
    /// All runs that still exist in the runtime, newest first for each name.
    pub containers: Vec<ContainerRun>,
}

impl PodRuntimeView {
    /// The newest run of a container, or the one before it.
    pub fn container(&self, name: &str, previous: bool) -> Option<&ContainerRun> {
        self.containers.iter().filter(|run| run.name == name).nth(usize::from(previous))
    }
}

/// The node's pods as its agent sees them.
#[async_trait]
pub trait NodePods: Send + Sync {
    /// Every pod bound to this node, with the status the agent last computed.
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// One of them. A static pod is found by its mirror pod's name (`<name>-<node>`).
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;

    /// What runs for the pod with this UID.
    fn runtime_view(&self, pod_uid: &str) -> PodRuntimeView;

    /// How full the pod's volumes are, as far as their drivers say.
    async fn volume_usage(&self, pod: &Pod) -> Vec<VolumeUsage>;

    /// The certificates of pods' volumes.
    fn certificates(&self) -> CertificateStates;

    /// The CRI client.
    fn runtime(&self) -> &Runtime;

    /// Where pods' and containers' cgroups are, and how to read their usage.
    fn cgroups(&self) -> &Cgroups;

    /// How probes went, as metrics.
    fn probe_metrics(&self) -> String;

    /// How images were wanted and logins for them found, as metrics.
    fn image_metrics(&self) -> String;

    /// How often programs on this node asked for its pods, as metrics.
    fn pods_api_metrics(&self) -> String;

    /// How many pods with users of their own were started, as metrics.
    fn user_namespace_metrics(&self) -> String;

    /// `Ok` when the agent's own loops are alive: what /healthz answers.
    async fn healthy(&self) -> Result<(), String>;
}
