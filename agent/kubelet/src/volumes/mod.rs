//! Pods' volumes on the host.
//!
//! Layer: below the pod workers, which know only [`crate::volume_contract`]. [`NodeVolumes`] makes
//! every volume under `<root>/pods/<uid>/volumes/<plugin>/<name>`, as Kubernetes lays it out, and
//! keeps the ones made of files current while the pod lives:
//!
//! - `payload`: objects → files, pure; `gather`: fetching the objects and tokens; `objects`: a watch
//!   for each ConfigMap and Secret that a pod here refers to; `tokens`: ServiceAccount tokens;
//! - `atomic`: writing a set of files in one step; `owner`: fsGroup;
//! - `csi`: volumes of drivers that registered with the node;
//! - `empty_dir`, `host_path`, `claims`: volumes without an object of their own, or that exist elsewhere; `mounts`: tmpfs, unmounting, removal.
//!
//! Nothing is remembered across a restart: [`Volumes::set_up`] finds what is there, and
//! [`Volumes::tear_down`] needs only the pod's directory.

mod atomic;
mod claims;
pub mod csi;
mod empty_dir;
mod gather;
mod host_path;
pub(crate) mod mounts;
mod objects;
mod owner;
mod payload;
mod tokens;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::resources::Amounts;
use async_trait::async_trait;
use component::{Outcome, Supervisor, WorkQueue};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use kube::Client;
use parking_lot::Mutex;

use crate::layout::Layout;
use crate::volume_contract::{MountedVolume, VolumeError, VolumePaths, VolumeUsage, Volumes};
use csi::Csi;
use gather::Sources;
use owner::Owner;

/// Pods whose files are refreshed at once.
const REFRESHERS: usize = 2;
/// How often volumes are looked at that may have to grow, or that are published again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How soon a refresh that failed is tried again, doubling...
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// ... up to this, as Kubernetes' operations on volumes.
const LONGEST_RETRY: Duration = Duration::from_secs(122);

/// Every pod's volumes on this node.
pub struct NodeVolumes {
    layout: Layout,
    client: Client,
    sources: Sources,
    csi: Arc<Csi>,
    pods: Mutex<HashMap<String, Entry>>,
    refreshes: WorkQueue<String>,
}

struct Entry {
    pod: Arc<Pod>,
    /// Held while the pod's files are written: by a set-up or by a refresh.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// The pod is ending: its files stay as they are.
    frozen: bool,
    failures: Failures,
}

/// Refreshes of one pod that failed in a row.
#[derive(Default)]
struct Failures {
    count: u32,
    /// What was said of them; the same is not said again.
    said: Vec<String>,
}

impl Failures {
    /// Another refresh failed for these reasons: those that are new, and when to try again.
    fn take(&mut self, messages: Vec<String>) -> (Vec<String>, Duration) {
        let new = messages.iter().filter(|message| !self.said.contains(message)).cloned().collect();
        let delay = FIRST_RETRY.saturating_mul(1 << self.count.min(8)).min(LONGEST_RETRY);
        *self = Self { count: self.count.saturating_add(1), said: messages };
        (new, delay)
    }
}

impl NodeVolumes {
    /// `allocatable`: the node's allocatable resources, for downwardAPI files that show a limit
    /// which the container does not set.
    pub fn start(
        layout: Layout,
        client: Client,
        allocatable: Arc<dyn Fn() -> Amounts + Send + Sync>,
        csi: Arc<Csi>,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let supervisor = supervisor.child("volumes");
        let refreshes = WorkQueue::new();
        let queue = refreshes.clone();
        let changed = Arc::new(move |uid: &str| queue.add(uid.to_owned()));
        let sources = Sources::new(client.clone(), allocatable, changed, &supervisor);
        let volumes = Arc::new(Self { layout, client, sources, csi, pods: Mutex::default(), refreshes });
        // The workers hold it weakly: they end with their supervisor, not with the last pod.
        let weak = Arc::downgrade(&volumes);
        volumes.refreshes.run(&supervisor, REFRESHERS, move |uid| {
            let volumes = weak.upgrade();
            async move {
                match volumes {
                    Some(volumes) => volumes.refresh_files(&uid).await,
                    None => Outcome::Done,
                }
            }
        });
        volumes
    }

    fn enter(&self, pod: &Arc<Pod>) -> Arc<tokio::sync::Mutex<()>> {
        let mut pods = self.pods.lock();
        let entry = pods.entry(uid_of(pod).to_owned()).or_insert_with(|| Entry {
            pod: pod.clone(),
            writing: Arc::default(),
            frozen: false,
            failures: Failures::default(),
        });
        entry.pod = pod.clone();
        entry.writing.clone()
    }

    /// One volume: its place, and when its files are due again.
    async fn set_up_volume(&self, pod: &Arc<Pod>, volume: &Volume, owner: Owner) -> Result<Option<Made>, VolumeError> {
        let failed = |message| VolumeError::set_up(&volume.name, message);
        if gather::plugin_of(volume).is_some() {
            return self.set_up_files(pod, volume, owner).await.map(Some).map_err(failed);
        }
        let made = if let Some(source) = &volume.empty_dir {
            self.set_up_empty_dir(pod, volume, source, owner).await.map_err(failed)?
        } else if let Some(source) = &volume.host_path {
            // What pods know as the kubelet's directory is ours.
            let path = self.layout.own(Path::new(&source.path));
            let kind = source.type_.clone().unwrap_or_default();
            blocking(move || host_path::check(&path, &kind).map(|()| path)).await.map_err(failed)?.into()
        } else if let Some(source) = &volume.nfs {
            let target = claims::nfs(&source.server, &source.path, source.read_only.unwrap_or(false), Vec::new());
            let path = claims::make_available(&target, &self.layout, uid_of(pod), &volume.name).await;
            Made { read_only: source.read_only.unwrap_or(false), ..path.map_err(failed)?.into() }
        } else if let Some((claim, read_only)) = claims::claim_of(pod, volume) {
            self.set_up_claim(pod, volume, &claim, read_only, owner).await?
        } else if let Some(source) = &volume.csi {
            let csi = csi::Volume::inline(pod, &volume.name, source);
            self.set_up_csi(csi::Order { pod, name: &volume.name, volume: csi, owner, claim: None }).await?
        } else if volume.image.is_some() {
            // The runtime mounts images itself.
            return Ok(None);
        } else {
            return Err(failed("no volume plugin matched: this node has configMap, secret, projected, downwardAPI, emptyDir, hostPath, nfs, csi, persistentVolumeClaim and ephemeral volumes".to_owned()));
        };
        Ok(Some(made))
    }

    async fn set_up_csi(&self, order: csi::Order<'_>) -> Result<Made, VolumeError> {
        let mounted = match self.csi.known(order.pod, order.name) {
            Some(known) => known,
            None => {
                let uid = uid_of(order.pod).to_owned();
                let mounted = self.csi.set_up(order).await?;
                self.refreshes.add_after(uid, LOOK_AGAIN);
                mounted
            }
        };
        Ok(Made { read_only: mounted.read_only, ..mounted.host_path.into() })
    }

    async fn set_up_files(&self, pod: &Pod, volume: &Volume, owner: Owner) -> Result<Made, String> {
        let Some((plugin, in_memory)) = gather::plugin_of(volume) else {
            return Err("not a volume of files".to_owned());
        };
        let gathered = self.sources.gather(pod, volume, owner).await?;
        let path = self.layout.volume(uid_of(pod), plugin, &volume.name);
        let directory = path.clone();
        blocking(move || {
            let made = empty_dir::make_directory(&directory, 0o777, in_memory.then_some(None));
            made.map_err(|error| error.to_string())?;
            atomic::write(&directory, &gathered.payload, |version| owner::give_to_group(version, owner.always(), true))
                .map_err(|error| error.to_string())
        })
        .await?;
        Ok(Made { path, read_only: true, renew_after: gathered.renew_after })
    }

    async fn set_up_empty_dir(
        &self,
        pod: &Pod,
        volume: &Volume,
        source: &EmptyDirVolumeSource,
        owner: Owner,
    ) -> Result<Made, String> {
        let path = self.layout.volume(uid_of(pod), "kubernetes.io/empty-dir", &volume.name);
        let in_memory = match source.medium.as_deref().unwrap_or_default() {
            "" => None,
            "Memory" => Some(empty_dir::memory_size(pod, source)),
            other => return Err(format!("storage medium {other:?} is not available on this node")),
        };
        let mode = source.mode.map_or(0o777, payload::mode_bits);
        let directory = path.clone();
        blocking(move || {
            let fresh = empty_dir::make_directory(&directory, mode, in_memory).map_err(|error| error.to_string())?;
            // Once: what containers wrote since is theirs.
            if fresh {
                owner::give_to_group(&directory, owner, false).map_err(|error| error.to_string())
            } else {
                Ok(())
            }
        })
        .await?;
        Ok(path.into())
    }

    async fn set_up_claim(
        &self,
        pod: &Arc<Pod>,
        volume: &Volume,
        claim: &str,
        read_only: bool,
        owner: Owner,
    ) -> Result<Made, VolumeError> {
        let failed = |message| VolumeError::set_up(&volume.name, message);
        if let Some(known) = self.csi.known(pod, &volume.name) {
            return Ok(Made { read_only: known.read_only, ..known.host_path.into() });
        }
        let (claim, bound) = claims::bound(&self.client, pod, volume, claim).await.map_err(failed)?;
        if let Some(csi) = csi::Volume::persistent(&bound, read_only) {
            let order = csi::Order { pod, name: &volume.name, volume: csi, owner, claim: Some((claim, bound)) };
            return self.set_up_csi(order).await;
        }
        let target = claims::target(&bound).map_err(failed)?;
        let name = bound.metadata.name.as_deref().unwrap_or(&volume.name);
        let path = claims::make_available(&target, &self.layout, uid_of(pod), name).await.map_err(failed)?;
        let (claims::Target::Path { takes_group, .. } | claims::Target::Mount { takes_group, .. }) = target;
        if takes_group && !read_only {
            let directory = path.clone();
            let given =
                blocking(move || owner::give_to_group(&directory, owner, false).map_err(|error| error.to_string()));
            given.await.map_err(failed)?;
        }
        Ok(Made { read_only, ..path.into() })
    }

    /// Writes a pod's volumes of files again, because an object changed or a token is due.
    async fn refresh_files(&self, uid: &str) -> Outcome {
        let known = self.pods.lock().get(uid).filter(|entry| !entry.frozen).map(|e| (e.pod.clone(), e.writing.clone()));
        let Some((pod, writing)) = known else { return Outcome::Done };
        let _writing = writing.lock().await;
        let owner = Owner::of(&pod);
        let mut next: Option<Duration> = None;
        let mut failed = Vec::new();
        for volume in volumes_of(&pod) {
            let Some((plugin, _)) = gather::plugin_of(volume) else { continue };
            // Not set up yet: the worker will do it.
            if !self.layout.volume(uid, plugin, &volume.name).join("..data").exists() {
                continue;
            }
            match self.set_up_files(&pod, volume, owner).await {
                Ok(made) => next = next.into_iter().chain(made.renew_after).min(),
                // The files stay as they are, as Kubernetes leaves them.
                Err(message) => failed.push(format!("{}: {message}", volume.name)),
            }
        }
        if self.csi.has_forgotten(uid) {
            for volume in volumes_of(&pod).iter().filter(|volume| may_be_of_driver(volume)) {
                if let Err(error) = self.set_up_volume(&pod, volume, owner).await {
                    failed.push(error.to_string());
                }
            }
        }
        if self.csi.refresh(&pod, owner).await {
            next = next.into_iter().chain([LOOK_AGAIN]).min();
        }
        let mut pods = self.pods.lock();
        let Some(entry) = pods.get_mut(uid).filter(|entry| !entry.frozen) else { return Outcome::Done };
        if failed.is_empty() {
            entry.failures = Failures::default();
            return next.map_or(Outcome::Done, Outcome::After);
        }
        let (new, delay) = entry.failures.take(failed);
        for message in new {
            tracing::warn!(pod = %name_of(&pod), message, "a volume could not be refreshed; trying again");
        }
        Outcome::After(delay)
    }
}

#[async_trait]
impl Volumes for NodeVolumes {
    async fn set_up(&self, pod: &Arc<Pod>) -> Result<VolumePaths, VolumeError> {
        let writing = self.enter(pod);
        let _writing = writing.lock().await;
        let owner = Owner::of(pod);
        let all = volumes_of(pod)
            .iter()
            .map(|volume| async move { self.set_up_volume(pod, volume, owner).await.map(|made| (volume, made)) });
        let mut paths = VolumePaths::new();
        let mut renew_after: Option<Duration> = None;
        for outcome in futures::future::join_all(all).await {
            let (volume, Some(made)) = outcome? else { continue };
            renew_after = renew_after.into_iter().chain(made.renew_after).min();
            paths.insert(volume.name.clone(), MountedVolume { host_path: made.path, read_only: made.read_only });
        }
        if let Some(delay) = renew_after {
            self.refreshes.add_after(uid_of(pod).to_owned(), delay);
        }
        Ok(paths)
    }

    fn resume(&self, pod: &Arc<Pod>) {
        self.enter(pod);
        self.refreshes.add(uid_of(pod).to_owned());
    }

    fn refresh(&self, pod: &Arc<Pod>) {
        let uid = uid_of(pod);
        if let Some(entry) = self.pods.lock().get_mut(uid) {
            entry.pod = pod.clone();
            self.refreshes.add(uid.to_owned());
        }
    }

    fn freeze(&self, pod_uid: &str) {
        if let Some(entry) = self.pods.lock().get_mut(pod_uid) {
            entry.frozen = true;
        }
    }

    async fn tear_down(&self, pod_uid: &str) -> Result<(), VolumeError> {
        let entry = self.pods.lock().remove(pod_uid);
        self.sources.release(pod_uid);
        let _writing = match &entry {
            Some(entry) => Some(entry.writing.lock().await),
            None => None,
        };
        // Only their driver unmounts them: until it has, they and what holds them stay.
        let of_drivers = self.csi.tear_down(pod_uid).await;
        let (pod, volumes) = (self.layout.pod(pod_uid), self.layout.volumes(pod_uid));
        let kept = match of_drivers {
            Ok(()) => Vec::new(),
            Err(_) => vec![self.layout.volume(pod_uid, csi::PLUGIN, "")],
        };
        let removed = blocking(move || {
            // subPath mounts lie beside the volumes they are made from, and keep them busy
            mounts::unmount_all(&pod, &kept).map_err(|error| error.to_string())?;
            let remove = |directory: &Path| mounts::remove_tree(directory).map_err(|error| error.to_string());
            if kept.is_empty() {
                return remove(&volumes);
            }
            let plugins = std::fs::read_dir(&volumes).into_iter().flatten().flatten().map(|entry| entry.path());
            plugins
                .filter(|plugin| !kept.iter().any(|kept| kept.starts_with(plugin)))
                .try_for_each(|plugin| remove(&plugin))
        });
        let removed = removed.await.map_err(|message| VolumeError::set_up("*", message));
        of_drivers.and(removed)
    }

    fn in_use(&self) -> tokio::sync::watch::Receiver<Vec<String>> {
        self.csi.in_use()
    }

    async fn usage(&self, pod: &Pod) -> Vec<VolumeUsage> {
        self.csi.usage(pod).await
    }
}

/// A volume that is in place.
struct Made {
    path: PathBuf,
    read_only: bool,
    renew_after: Option<Duration>,
}

impl From<PathBuf> for Made {
    fn from(path: PathBuf) -> Self {
        Self { path, read_only: false, renew_after: None }
    }
}

fn may_be_of_driver(volume: &Volume) -> bool {
    volume.csi.is_some() || volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

fn volumes_of(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

pub(crate) fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn name_of(pod: &Pod) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_once_and_tried_again_ever_later() {
        let mut failures = Failures::default();
        let mut take = |messages: &[&str]| {
            let (new, delay) = failures.take(messages.iter().map(|message| (*message).to_owned()).collect());
            (new.join(","), delay.as_millis())
        };
        assert_eq!(take(&["a"]), ("a".to_owned(), 500));
        assert_eq!(take(&["a"]), (String::new(), 1000));
        assert_eq!(take(&["a", "b"]), ("b".to_owned(), 2000));
        assert_eq!(take(&["b"]), (String::new(), 4000));
        let delays: Vec<u128> = (0..5).map(|_| take(&["b"]).1).collect();
        assert_eq!(delays, [8000, 16_000, 32_000, 64_000, 122_000]);
        assert_eq!(take(&["a"]), ("a".to_owned(), 122_000), "it had gone");
    }
}
