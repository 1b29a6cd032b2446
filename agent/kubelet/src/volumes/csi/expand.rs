//! Growing volumes on the node after their claims were resized
//! (`pkg/volume/util/operationexecutor/node_expander.go`).

use std::sync::Arc;

use api::quantity::Quantity;
use component::{EventType, brief};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource};
use proto::csi::v1::{CapacityRange, NodeExpandVolumeRequest};
use serde_json::{Value, json};

use super::data::Place;
use super::driver::Driver;
use super::volume::Volume;
use super::{Csi, Published};
use crate::context::pod_reference;
use crate::volumes::uid_of;

/// How often a write that met another one is tried.
const TRIES: usize = 4;

impl Csi {
    /// Grows the volume if its claim does not have all of it yet.
    pub(super) async fn expand_if_due(
        &self,
        pod: &Pod,
        volume: &Volume,
        driver: &Driver,
        place: &Place,
        (claim, persistent): (&PersistentVolumeClaim, &PersistentVolume),
    ) {
        let Some(size) = due(claim, persistent).filter(|_| !volume.read_only) else { return };
        let Ok(abilities) = driver.abilities().await else { return };
        if !abilities.expand {
            return;
        }
        match self.expand(volume, driver, place, size).await {
            Ok(()) => self.expanded(pod, volume, claim, persistent).await,
            Err(error) => {
                let message = format!("MountVolume.NodeExpandVolume failed for volume {:?} : {error}", volume.name);
                self.tell(pod, claim, EventType::Warning, "VolumeResizeFailed", &message);
            }
        }
    }

    async fn expand(&self, volume: &Volume, driver: &Driver, place: &Place, size: i64) -> Result<(), String> {
        let abilities = driver.abilities().await.map_err(|error| error.to_string())?;
        let staging = if abilities.stage { place.staging.to_string_lossy().into_owned() } else { String::new() };
        let request = NodeExpandVolumeRequest {
            volume_id: volume.handle.clone(),
            volume_path: place.target.to_string_lossy().into_owned(),
            capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
            staging_target_path: staging,
            volume_capability: Some(volume.capability(abilities, None)),
            secrets: self.secret(volume.expand_secret.as_ref()).await?,
        };
        driver.expand(request).await.map(drop).map_err(|error| error.to_string())
    }

    /// Says so in the claim's status.
    async fn expanded(&self, pod: &Pod, volume: &Volume, claim: &PersistentVolumeClaim, grown: &PersistentVolume) {
        match self.write_size(claim, grown).await {
            Ok(()) => {
                let message =
                    format!("MountVolume.NodeExpandVolume succeeded for volume {:?} {}", volume.name, self.node);
                self.tell(pod, claim, EventType::Normal, "FileSystemResizeSuccessful", &message);
            }
            Err(error) => {
                tracing::warn!(
                    claim = claim.metadata.name,
                    error = brief(&error),
                    "a claim does not say yet that its volume has grown; trying again"
                );
            }
        }
    }

    async fn write_size(&self, asked: &PersistentVolumeClaim, grown: &PersistentVolume) -> Result<(), kube::Error> {
        let (Some(namespace), Some(name)) = (&asked.metadata.namespace, &asked.metadata.name) else { return Ok(()) };
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let mut claim = asked.clone();
        for _ in 1..TRIES {
            let patch = Patch::Merge(status_patch(&claim, grown));
            match api.patch_status(name, &PatchParams::default(), &patch).await {
                Err(kube::Error::Api(answer)) if answer.code == 409 => claim = api.get(name).await?,
                outcome => return outcome.map(drop),
            }
            // Another has said it, or it is another claim by now.
            let is_said = due(&claim, grown).is_none() && !waits_for_node(&claim);
            if is_said || claim.metadata.uid != asked.metadata.uid {
                return Ok(());
            }
        }
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status_patch(&claim, grown))).await.map(drop)
    }

    fn tell(&self, pod: &Pod, claim: &PersistentVolumeClaim, kind: EventType, reason: &str, message: &str) {
        self.recorder.event(&pod_reference(pod, None), kind, reason, message);
        let about: ObjectReference = claim.object_ref(&());
        self.recorder.event(&about, kind, reason, message);
    }

    /// Grows a mounted volume whose claim waits for that. Returns whether it may ever have to grow.
    pub(super) async fn expand_later(&self, pod: &Arc<Pod>, published: &Published) -> bool {
        let (Some(claim), Some(namespace)) = (&published.claim, &pod.metadata.namespace) else { return false };
        let volume = &published.volume;
        let Ok(driver) = self.drivers.get(&volume.driver) else { return true };
        if !driver.abilities().await.is_ok_and(|abilities| abilities.expand) {
            return false;
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let Ok(claim) = api.get(claim).await else { return true };
        if !waits_for_node(&claim) {
            return true;
        }
        let Ok(persistent) = Api::<PersistentVolume>::all(self.client.clone()).get(&volume.name).await else {
            return true;
        };
        let place = Place::of(&self.layout, uid_of(pod), &volume.name, &volume.driver, &volume.handle, volume.block);
        let _growing = self.locks.hold(&volume.unique_name()).await;
        self.expand_if_due(pod, volume, &driver, &place, (&claim, &persistent)).await;
        true
    }
}

fn waits_for_node(claim: &PersistentVolumeClaim) -> bool {
    let conditions = claim.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "FileSystemResizePending" && condition.status == "True")
}

/// The volume's size in bytes, if it is more than what the claim has.
fn due(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<i64> {
    let has = claim.status.as_ref()?.capacity.as_ref()?.get("storage").map(Quantity::from)?;
    let grown = volume.spec.as_ref()?.capacity.as_ref()?.get("storage").map(Quantity::from)?;
    (grown > has).then(|| grown.units())
}

/// The claim has what the volume has, and waits for nothing. Nobody may have written its status since:
/// its conditions are replaced.
fn status_patch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Value {
    let size = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage").cloned());
    let status = claim.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "FileSystemResizePending" && condition.type_ != "Resizing");
    let version = claim.metadata.resource_version.clone();
    let mut patch = json!({"metadata": {"resourceVersion": version},
        "status": {"capacity": {"storage": size}, "conditions": conditions}});
    if status.allocated_resource_statuses.is_some_and(|statuses| statuses.contains_key("storage")) {
        patch["status"]["allocatedResourceStatuses"] = json!({"storage": null});
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_has_less_than_its_volume_grows() {
        let claim = |size: &str| -> PersistentVolumeClaim {
            let conditions =
                json!([{"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"}]);
            serde_json::from_value(json!({"metadata": {"resourceVersion": "7"}, "status": {"capacity": {"storage": size}, "conditions": conditions,
                "allocatedResourceStatuses": {"storage": "NodeResizePending"}}}))
            .unwrap()
        };
        let volume: PersistentVolume =
            serde_json::from_value(json!({"spec": {"capacity": {"storage": "2Gi"}}})).unwrap();
        assert_eq!(due(&claim("1Gi"), &volume), Some(2 << 30));
        assert_eq!(due(&claim("2048Mi"), &volume), None);
        assert_eq!(due(&PersistentVolumeClaim::default(), &volume), None);
        assert!(waits_for_node(&claim("1Gi")) && !waits_for_node(&PersistentVolumeClaim::default()));
        let patch = status_patch(&claim("1Gi"), &volume);
        assert_eq!(patch["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(patch["metadata"]["resourceVersion"], "7", "a newer status is not written over");
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        assert!(patch["status"]["allocatedResourceStatuses"]["storage"].is_null());
    }
}
