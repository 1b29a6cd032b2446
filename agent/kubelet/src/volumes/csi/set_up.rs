//! Mounting: from a volume to a directory (or device) of a pod
//! (`csi_attacher.go: MountDevice`, `csi_mounter.go: SetUpAt`, `csi_block.go`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::CSIDriver;
use proto::csi::v1::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use serde_json::json;

use super::data::{self, Place, Record};
use super::driver::{Abilities, Driver};
use super::volume::{Lifecycle, Volume};
use super::{Csi, Published, policy};
use crate::plugins::rpc::RpcError;
use crate::volume_contract::{MountedVolume, VolumeError};
use crate::volumes::owner::{self, Owner};
use crate::volumes::{blocking, mounts, uid_of};

/// A volume to set up for a pod.
pub struct Order<'a> {
    pub pod: &'a Arc<Pod>,
    /// The volume's name in the pod.
    pub name: &'a str,
    pub volume: Volume,
    pub owner: Owner,
    /// The claim and its volume, if there is one.
    pub claim: Option<(PersistentVolumeClaim, PersistentVolume)>,
}

/// What became of a look at a pod's volumes.
#[derive(Default)]
pub struct Refreshed {
    /// Some have to be looked at every now and then.
    pub again: bool,
    pub failed: Vec<String>,
}

/// What the steps of one set-up share.
struct Facts {
    driver: Arc<Driver>,
    abilities: Abilities,
    object: Option<CSIDriver>,
    place: Place,
    publish_context: BTreeMap<String, String>,
    /// The group, if the driver gives the files to it.
    group: Option<u32>,
}

/// What an attempt to publish left behind.
enum Failure {
    Before(VolumeError),
    /// The driver may have mounted something, or still do so.
    Uncertain(VolumeError),
}

impl Order<'_> {
    fn failed(&self, step: &'static str, message: String) -> VolumeError {
        let step = match (self.volume.block, step) {
            (true, "SetUp") => "MapVolume.MapPodDevice",
            (true, "MountDevice") => "MapVolume.SetUpDevice",
            (true, "WaitForAttach") => "MapVolume.WaitForAttach",
            (true, _) => "MapVolume.NewBlockVolumeMapper initialization",
            (false, "SetUp") => "MountVolume.SetUp",
            (false, "MountDevice") => "MountVolume.MountDevice",
            (false, "WaitForAttach") => "MountVolume.WaitForAttach",
            (false, _) => "MountVolume.NewMounter initialization",
        };
        VolumeError { step, volume: self.volume.name.clone(), message }
    }
}

impl Csi {
    /// What this process published already.
    pub fn known(&self, pod: &Pod, name: &str) -> Option<MountedVolume> {
        let key = (uid_of(pod).to_owned(), name.to_owned());
        self.mounted.lock().get(&key).map(|published| published.mounted.clone())
    }

    /// Whether the pod has volumes that this process did not publish: they are published again, so that
    /// their drivers and those that follow them know of them.
    pub fn has_forgotten(&self, uid: &str) -> bool {
        let on_disk = data::of_pod(&self.layout, uid).len();
        let known = self.mounted.lock().keys().filter(|(pod, _)| pod == uid).count();
        on_disk > known
    }

    /// Sets a volume up. If the future is dropped, what was begun is found again on disk.
    pub async fn set_up(&self, order: Order<'_>) -> Result<MountedVolume, VolumeError> {
        let uid = uid_of(order.pod);
        let _mounting = self.locks.hold(&order.volume.unique_name()).await;
        let facts = self.prepare(&order).await?;
        let record = Record::of(&order.volume, &self.node, policy_attaches(&order.volume, facts.object.as_ref()));
        let is_first = std::fs::symlink_metadata(&facts.place.mark).is_err();
        self.mark(&order, &facts.place, &record)?;
        match self.mount(&order, &facts).await {
            Ok(()) => {}
            // What an earlier attempt may have staged or mounted is for a teardown to give back.
            Err(Failure::Before(error)) if !is_first => return Err(error),
            Err(Failure::Before(error)) => {
                if let Err(error) = self.tear_marks(&facts.place, &record) {
                    tracing::debug!(%error, volume = order.volume.name, "what a failed mount left could not be removed");
                }
                return Err(error);
            }
            Err(Failure::Uncertain(error)) => return Err(error),
        }
        let mounted = MountedVolume { host_path: facts.place.target.clone(), read_only: order.volume.read_only };
        let published = Published {
            mounted: mounted.clone(),
            claim: order.claim.as_ref().and_then(|(claim, _)| claim.metadata.name.clone()),
            republish: policy::republish(facts.object.as_ref()),
            usage: Arc::default(),
            volume: Arc::new(order.volume),
        };
        self.mounted.lock().insert((uid.to_owned(), order.name.to_owned()), published);
        Ok(mounted)
    }

    /// Removes what [`Csi::mark`] and a failed staging made, if nothing is mounted there.
    fn tear_marks(&self, place: &Place, record: &Record) -> std::io::Result<()> {
        if mounts::is_mounted(&place.target) {
            return Ok(());
        }
        super::tear_down::remove_marks(place)?;
        if mounts::is_mounted(&place.staging) || self.is_used(record, None) {
            return Ok(());
        }
        super::tear_down::remove_staging(&place.staging)
    }

    /// Everything that needs no trace on disk.
    async fn prepare(&self, order: &Order<'_>) -> Result<Facts, VolumeError> {
        let (volume, uid) = (&order.volume, uid_of(order.pod));
        let object = self.object(&volume.driver).await.map_err(|error| order.failed("NewMounter", error))?;
        policy::supports(&volume.driver, volume.lifecycle, object.as_ref())
            .map_err(|error| order.failed("NewMounter", error))?;
        let publish_context = if policy_attaches(volume, object.as_ref()) {
            self.attached.wait(volume, uid).await.map_err(|error| order.failed("WaitForAttach", error))?
        } else {
            BTreeMap::new()
        };
        let driver = self.drivers.get(&volume.driver).map_err(|error| match volume.lifecycle {
            Lifecycle::Persistent => order.failed(
                "MountDevice",
                format!("kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: {error}"),
            ),
            Lifecycle::Ephemeral => {
                order.failed("SetUp", format!("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: {error}"))
            }
        })?;
        let abilities = driver.abilities().await.map_err(|error| {
            let what = "mounter.SetUpAt failed to check for STAGE_UNSTAGE_VOLUME capability";
            order.failed("SetUp", format!("kubernetes.io/csi: {what}: {error}"))
        })?;
        let place = Place::of(&self.layout, uid, &volume.name, &volume.driver, &volume.handle, volume.block);
        let group = order.owner.group.filter(|_| abilities.mount_group && !volume.block);
        Ok(Facts { driver, abilities, object, place, publish_context, group })
    }

    /// Leaves on disk what is about to be mounted.
    fn mark(&self, order: &Order<'_>, place: &Place, record: &Record) -> Result<(), VolumeError> {
        let failed = |error: std::io::Error| {
            order.failed("NewMounter", format!("kubernetes.io/csi: failed to save volume info data: {error}"))
        };
        record.write(&place.data).map_err(failed)?;
        if !place.block {
            return Ok(());
        }
        data::make_directory(place.target.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        data::make_directory(place.mark.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        match std::os::unix::fs::symlink(&place.target, &place.mark) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => Ok(()),
        }
    }

    async fn mount(&self, order: &Order<'_>, facts: &Facts) -> Result<(), Failure> {
        if order.volume.lifecycle == Lifecycle::Persistent && facts.abilities.stage {
            self.stage(order, facts).await?;
        }
        self.publish(order, facts).await?;
        if policy::takes_group(&order.volume, order.owner, facts.object.as_ref())
            && facts.group.is_none()
            && !order.volume.block
        {
            let (target, owner) = (facts.place.target.clone(), order.owner);
            let given =
                blocking(move || owner::give_to_group(&target, owner, false).map_err(|error| error.to_string())).await;
            given.map_err(|error| {
                let message = format!("applyFSGroup failed for vol {}: {error}", order.volume.handle);
                Failure::Uncertain(order.failed("SetUp", message))
            })?;
        }
        if let Some((claim, volume)) = &order.claim {
            self.expand_if_due(order.pod, &order.volume, &facts.driver, &facts.place, (claim, volume)).await;
        }
        Ok(())
    }

    async fn stage(&self, order: &Order<'_>, facts: &Facts) -> Result<(), Failure> {
        let volume = &order.volume;
        let before = |message: String| Failure::Before(order.failed("MountDevice", message));
        let staging = &facts.place.staging;
        let secrets = self.secret(volume.stage_secret.as_ref()).await.map_err(before)?;
        let made = data::make_directory(staging).and_then(|()| match volume.block {
            true => Ok(()),
            false => {
                let record =
                    Record { driver: volume.driver.clone(), handle: volume.handle.clone(), ..Default::default() };
                record.write(staging.parent().unwrap_or(staging))
            }
        });
        made.map_err(|error| {
            before(format!("kubernetes.io/csi: attacher.MountDevice failed to create dir {:?}:  {error}", staging))
        })?;
        let request = NodeStageVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: plain(&facts.publish_context),
            staging_target_path: staging.to_string_lossy().into_owned(),
            volume_capability: Some(volume.capability(facts.abilities, facts.group)),
            secrets,
            volume_context: plain(&volume.attributes),
        };
        facts.driver.stage(request).await.map_err(|error| {
            let failed = order.failed("MountDevice", error.to_string());
            if error.is_final() { Failure::Before(failed) } else { Failure::Uncertain(failed) }
        })
    }

    async fn publish(&self, order: &Order<'_>, facts: &Facts) -> Result<(), Failure> {
        let request = self.publish_request(order, facts).await.map_err(|message| {
            // A staged volume has to be unstaged by a teardown.
            let failed = order.failed("SetUp", message);
            if facts.abilities.stage { Failure::Uncertain(failed) } else { Failure::Before(failed) }
        })?;
        facts.driver.publish(request).await.map_err(|error: RpcError| {
            let failed = order.failed("SetUp", error.to_string());
            if error.is_final() && !facts.abilities.stage {
                Failure::Before(failed)
            } else {
                Failure::Uncertain(failed)
            }
        })
    }

    async fn publish_request(&self, order: &Order<'_>, facts: &Facts) -> Result<NodePublishVolumeRequest, String> {
        let volume = &order.volume;
        let staged = volume.lifecycle == Lifecycle::Persistent && facts.abilities.stage;
        let mut secrets = self.secret(volume.publish_secret.as_ref()).await.map_err(|error| {
            let (namespace, name) = volume.publish_secret.clone().unwrap_or_default();
            format!("fetching NodePublishSecretRef {namespace}/{name} failed: {error}")
        })?;
        let mut context = plain(&volume.attributes);
        if policy::pod_info(facts.object.as_ref()) {
            context.extend(pod_attributes(order.pod, volume.lifecycle));
        }
        let tokens = self.pod_tokens(order.pod, facts.object.as_ref()).await.map_err(|error| {
            format!("kubernetes.io/csi: mounter.SetUpAt failed to get service account token attributes: {error}")
        })?;
        let in_secrets =
            facts.object.as_ref().is_some_and(|object| object.spec.service_account_token_in_secrets == Some(true));
        if in_secrets {
            secrets.extend(tokens)
        } else {
            context.extend(tokens)
        }
        let staging = if staged { facts.place.staging.to_string_lossy().into_owned() } else { String::new() };
        Ok(NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: plain(&facts.publish_context),
            staging_target_path: staging,
            target_path: facts.place.target.to_string_lossy().into_owned(),
            volume_capability: Some(volume.capability(facts.abilities, facts.group)),
            readonly: volume.read_only,
            secrets,
            volume_context: context,
        })
    }

    /// The tokens that the driver wants of the pod's service account.
    async fn pod_tokens(&self, pod: &Pod, object: Option<&CSIDriver>) -> Result<Option<(String, String)>, String> {
        let wanted = object.and_then(|object| object.spec.token_requests.as_deref()).unwrap_or_default();
        let mut tokens = serde_json::Map::new();
        for request in wanted {
            let audience = Some(request.audience.as_str()).filter(|audience| !audience.is_empty());
            let lent = self.tokens.get(pod, audience, request.expiration_seconds).await?;
            let expires = api::scalar::time(lent.expires);
            tokens.insert(request.audience.clone(), json!({"token": lent.value, "expirationTimestamp": expires}));
        }
        let text = (!tokens.is_empty()).then(|| serde_json::Value::Object(tokens).to_string());
        Ok(text.map(|text| ("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), text)))
    }

    /// Publishes the pod's volumes again whose drivers want that, and grows those that wait for it.
    pub async fn refresh(&self, pod: &Arc<Pod>, owner: Owner) -> Refreshed {
        let uid = uid_of(pod);
        let all: Vec<(String, Published)> = {
            let mounted = self.mounted.lock();
            let own = mounted.iter().filter(|((known, _), _)| known == uid);
            own.map(|((_, name), published)| (name.clone(), published.clone())).collect()
        };
        let mut refreshed = Refreshed::default();
        for (name, published) in all {
            if published.republish {
                refreshed.again = true;
                let volume = Volume::clone(&published.volume);
                let order = Order { pod, name: &name, volume, owner, claim: None };
                // It stays mounted whatever comes of this.
                refreshed.failed.extend(self.republish(order).await.err().map(|error| error.to_string()));
            }
            refreshed.again |= self.expand_later(pod, &published).await;
        }
        refreshed
    }

    async fn republish(&self, order: Order<'_>) -> Result<(), VolumeError> {
        let _mounting = self.locks.hold(&order.volume.unique_name()).await;
        let facts = self.prepare(&order).await?;
        match self.publish(&order, &facts).await {
            Ok(()) => Ok(()),
            Err(Failure::Before(error) | Failure::Uncertain(error)) => Err(error),
        }
    }
}

fn policy_attaches(volume: &Volume, object: Option<&CSIDriver>) -> bool {
    volume.lifecycle == Lifecycle::Persistent && policy::attach_required(object)
}

fn plain(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn pod_attributes(pod: &Pod, lifecycle: Lifecycle) -> [(String, String); 5] {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    [
        ("pod.name", text(&pod.metadata.name)),
        ("pod.namespace", text(&pod.metadata.namespace)),
        ("pod.uid", text(&pod.metadata.uid)),
        ("serviceAccount.name", text(&account)),
        ("ephemeral", (lifecycle == Lifecycle::Ephemeral).to_string()),
    ]
    .map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value))
}
