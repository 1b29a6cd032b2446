//! What a pod's worker needs of volumes, and nothing of how they are made.
//!
//! `crate::volumes` implements [`Volumes`]; the pod workers call it: [`Volumes::set_up`] before a
//! pod's sandbox is made (and again before a container starts, when it must return at once for what
//! is mounted already), [`Volumes::refresh`] when the pod object changed, [`Volumes::tear_down`]
//! once no container of the pod is left. Container mounts (`subPath`, propagation, read-only) are
//! the caller's: it binds [`MountedVolume::host_path`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

/// A volume that is ready to be bound into containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedVolume {
    /// An existing directory or file on the host; a device's file for a block volume.
    pub host_path: PathBuf,
    /// The volume itself is read-only, whatever the container's mount says
    /// (configMap, secret, projected, downwardAPI, `readOnly: true` sources).
    pub read_only: bool,
}

/// Every volume of a pod by its name in `spec.volumes`.
pub type VolumePaths = BTreeMap<String, MountedVolume>;

/// Why volumes could not be made or removed. Shown in the event `FailedMount`, and the set-up is tried
/// again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step} failed for volume \"{volume}\" : {message}")]
pub struct VolumeError {
    /// As Kubernetes names it, e.g. `MountVolume.SetUp`.
    pub step: &'static str,
    /// The volume's name in the pod, or its PersistentVolume's.
    pub volume: String,
    /// What came back, e.g. `configmap "settings" not found`.
    pub message: String,
}

impl VolumeError {
    pub fn set_up(volume: &str, message: String) -> Self {
        Self { step: "MountVolume.SetUp", volume: volume.to_owned(), message }
    }

    /// The reason of the event.
    pub fn reason(&self) -> &'static str {
        if self.step.starts_with("MapVolume") { "FailedMapVolume" } else { "FailedMount" }
    }
}

/// The volumes of a pod that could not be made, one at least: each is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{first}")]
pub struct VolumeErrors {
    pub first: VolumeError,
    pub others: Vec<VolumeError>,
}

impl VolumeErrors {
    pub fn iter(&self) -> impl Iterator<Item = &VolumeError> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

/// How many certificates of pods' volumes there are, by signer and state (`fresh`, `denied`, ...).
pub type CertificateStates = BTreeMap<(String, &'static str), usize>;

/// How full a volume is. Bytes and inodes; none where the driver does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// The volume's name in the pod.
    pub name: String,
    pub claim: Option<String>,
    pub bytes: Option<Amount>,
    pub inodes: Option<Amount>,
    /// What is wrong with the volume, if its driver says that something is.
    pub abnormal: Option<bool>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub total: u64,
    pub available: u64,
    pub used: u64,
}

#[async_trait]
pub trait Volumes: Send + Sync {
    /// Makes every volume of the pod available on the host. Idempotent, and quick when all is there.
    /// The caller gives up waiting by dropping the future: what is half made must be found again by
    /// the next `set_up` or `tear_down`.
    async fn set_up(&self, pod: &Arc<Pod>) -> Result<VolumePaths, VolumeErrors>;

    /// The pod runs, with volumes that an earlier process set up: they are kept current from now on.
    /// Must not block.
    fn resume(&self, pod: &Arc<Pod>);

    /// The pod object changed (labels or annotations that downwardAPI volumes show). Must not block.
    fn refresh(&self, pod: &Arc<Pod>);

    /// The pod is ending: its volumes stay as they are until they are torn down.
    fn freeze(&self, pod_uid: &str);

    /// Unmounts and removes everything of the pod. Succeeds when nothing is there.
    /// Collects errors, goes on with the other volumes and reports the first.
    async fn tear_down(&self, pod_uid: &str) -> Result<(), VolumeError>;

    /// The attached volumes that this node uses, as `status.volumesInUse` names them.
    fn in_use(&self) -> watch::Receiver<Vec<String>>;

    /// How full the pod's volumes are whose drivers can tell.
    async fn usage(&self, pod: &Pod) -> Vec<VolumeUsage>;

    /// The certificates of all pods' volumes.
    fn certificates(&self) -> CertificateStates;
}
