//! Pods' volumes on the host.
//!
//! Layer: below the pod workers, which know only [`crate::volume_contract`]. [`NodeVolumes`] makes
//! every volume under `<root>/pods/<uid>/volumes/<plugin>/<name>`, as Kubernetes lays it out, and
//! keeps the ones made of files current while the pod lives:
//!
//! - `payload`: objects → files, pure; `gather`: fetching the objects and tokens; `objects`: a watch
//!   for each ConfigMap and Secret that a pod here refers to; `tokens`: ServiceAccount tokens;
//!   `pod_certificates`: keys and certificates;
//! - `atomic`: writing a set of files in one step; `owner`: fsGroup;
//! - `refresh`: keeping both current, each in a queue of its own;
//! - `csi`: volumes of drivers that registered with the node;
//! - `empty_dir`, `host_path`, `claims`: volumes without an object of their own, or that exist elsewhere; `block`: volumes
//!   that are devices; `format`: file systems made on devices; `mounts`: tmpfs, unmounting, removal.
//!
//! Nothing is remembered across a restart: [`Volumes::set_up`] finds what is there and asks anew for
//! tokens and certificates, and [`Volumes::tear_down`] needs only the pod's directory.

mod atomic;
mod block;
mod claims;
pub mod csi;
mod empty_dir;
mod format;
mod gather;
mod host_path;
pub(crate) mod mounts;
mod objects;
mod owner;
mod payload;
mod pod_certificates;
mod refresh;
pub(crate) mod tokens;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::resources::Amounts;
use async_trait::async_trait;
use component::{EventRecorder, Informers, Supervisor};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};
use kube::Client;
use parking_lot::Mutex;

use crate::layout::Layout;
use crate::retry::Failures;
use crate::volume_contract::{
    CertificateStates, MountedVolume, VolumeError, VolumeErrors, VolumePaths, VolumeUsage, Volumes,
};
use csi::Csi;
use gather::Sources;
use owner::Owner;
use pod_certificates::PodCertificates;
use refresh::{LOOK_AGAIN, Refreshes};

/// The node that the volumes are on.
pub struct Home<'a> {
    pub layout: Layout,
    pub node: &'a str,
    pub informers: &'a Informers,
    pub recorder: EventRecorder,
}

/// Every pod's volumes on this node.
pub struct NodeVolumes {
    layout: Layout,
    client: Client,
    sources: Sources,
    csi: Arc<Csi>,
    pods: Mutex<HashMap<String, Entry>>,
    refreshes: Refreshes,
}

struct Entry {
    pod: Arc<Pod>,
    files: Part,
    /// Everything that is no files of ours: a driver that does not answer must not keep those waiting.
    others: Part,
    /// The pod is ending: its volumes stay as they are.
    frozen: bool,
}

/// Volumes of a pod that are looked after together.
#[derive(Clone)]
struct Part {
    /// Held while they are made, refreshed or removed.
    working: Arc<tokio::sync::Mutex<()>>,
    /// Of refreshes.
    failures: Arc<Mutex<Failures>>,
}

impl NodeVolumes {
    /// `allocatable`: the node's allocatable resources, for downwardAPI files that show a limit
    /// which the container does not set.
    pub fn start(
        home: Home<'_>,
        allocatable: Arc<dyn Fn() -> Amounts + Send + Sync>,
        csi: Arc<Csi>,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let Home { layout, node, informers, recorder } = home;
        let (client, supervisor) = (informers.client(), supervisor.child("volumes"));
        let refreshes = Refreshes::default();
        let queue = refreshes.files.clone();
        let changed: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(move |uid: &str| queue.add(uid.to_owned()));
        let certificates = PodCertificates::start(node, informers, recorder, changed.clone(), &supervisor);
        let sources = Sources::new(client.clone(), allocatable, changed, certificates, &supervisor);
        let volumes = Arc::new(Self { layout, client, sources, csi, pods: Mutex::default(), refreshes });
        refresh::run(&volumes, &supervisor);
        volumes
    }

    fn enter(&self, pod: &Arc<Pod>) -> (Part, Part) {
        self.sources.certificates.track(pod);
        let mut pods = self.pods.lock();
        let entry = pods.entry(uid_of(pod).to_owned()).or_insert_with(|| Entry {
            pod: pod.clone(),
            files: Part::new(),
            others: Part::new(),
            frozen: false,
        });
        entry.pod = pod.clone();
        (entry.files.clone(), entry.others.clone())
    }

    async fn set_up_all<'a>(
        &self,
        pod: &Arc<Pod>,
        volumes: Vec<&'a Volume>,
        part: &Part,
    ) -> Vec<Result<(&'a Volume, Option<Made>), VolumeError>> {
        let _working = part.working.lock().await;
        let owner = Owner::of(pod);
        let all = volumes
            .into_iter()
            .map(|volume| async move { self.set_up_volume(pod, volume, owner).await.map(|made| (volume, made)) });
        futures::future::join_all(all).await
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
                self.refreshes.drivers.add_after(uid, LOOK_AGAIN);
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
            // All of the volume, its own directory too, not the new version alone.
            let give = |_: &Path| owner::give_to_group(&directory, owner.always(), true);
            atomic::write(&directory, &gathered.payload, give).map_err(|error| error.to_string())
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
        let block = block::wanted(pod, &volume.name, &bound).map_err(failed)?;
        if let Some(csi) = csi::Volume::persistent(&bound, read_only) {
            let order = csi::Order { pod, name: &volume.name, volume: csi, owner, claim: Some((claim, bound)) };
            return self.set_up_csi(order).await;
        }
        if block {
            return Ok(Made { read_only, ..block::device(&bound).map_err(failed)?.into() });
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
}

#[async_trait]
impl Volumes for NodeVolumes {
    async fn set_up(&self, pod: &Arc<Pod>) -> Result<VolumePaths, VolumeErrors> {
        let (files, others) = self.enter(pod);
        let is_files = |volume: &&Volume| gather::plugin_of(volume).is_some();
        let (of_files, of_others): (Vec<&Volume>, Vec<&Volume>) = volumes_of(pod).iter().partition(is_files);
        let of_files = async {
            // Before the lock: what else is in the pod's files is kept current meanwhile.
            self.sources.certificates.settled(uid_of(pod)).await;
            self.set_up_all(pod, of_files, &files).await
        };
        let (of_files, of_others) = tokio::join!(of_files, self.set_up_all(pod, of_others, &others));
        let mut paths = VolumePaths::new();
        let mut renew_after: Option<Duration> = None;
        let mut failed = Vec::new();
        for outcome in of_files.into_iter().chain(of_others) {
            let (volume, made) = match outcome {
                Ok((volume, Some(made))) => (volume, made),
                Ok((_, None)) => continue,
                Err(error) => {
                    failed.push(error);
                    continue;
                }
            };
            renew_after = renew_after.into_iter().chain(made.renew_after).min();
            paths.insert(volume.name.clone(), MountedVolume { host_path: made.path, read_only: made.read_only });
        }
        let mut failed = failed.into_iter();
        if let Some(first) = failed.next() {
            return Err(VolumeErrors { first, others: failed.collect() });
        }
        if let Some(delay) = renew_after {
            self.refreshes.files.add_after(uid_of(pod).to_owned(), delay);
        }
        Ok(paths)
    }

    fn resume(&self, pod: &Arc<Pod>) {
        self.enter(pod);
        self.refreshes.add(uid_of(pod));
    }

    fn refresh(&self, pod: &Arc<Pod>) {
        let uid = uid_of(pod);
        if let Some(entry) = self.pods.lock().get_mut(uid) {
            entry.pod = pod.clone();
            self.refreshes.add(uid);
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
        let _working = match &entry {
            Some(entry) => Some(tokio::join!(entry.files.working.lock(), entry.others.working.lock())),
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

    fn certificates(&self) -> CertificateStates {
        self.sources.certificates.states()
    }
}

impl Part {
    fn new() -> Self {
        let failures = Failures::new(refresh::FIRST_RETRY, refresh::LONGEST_RETRY);
        Self { working: Arc::default(), failures: Arc::new(Mutex::new(failures)) }
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
