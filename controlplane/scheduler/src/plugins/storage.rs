//! What the plugins about volumes share: the caches they look into, and the claims of a pod.

use std::sync::Arc;

use component::{Informer, Informers};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};

use crate::pod::PodInfo;

/// Set in place of `spec.storageClassName` by what is older than that field.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// Claims, volumes, and where drivers are and what they have. Cloning shares the caches.
#[derive(Clone)]
pub struct Storage {
    pub claims: Informer<PersistentVolumeClaim>,
    pub volumes: Informer<PersistentVolume>,
    pub classes: Informer<StorageClass>,
    pub drivers: Informer<CSIDriver>,
    /// The drivers on each node, by the node's name.
    pub on_nodes: Informer<CSINode>,
    pub capacities: Informer<CSIStorageCapacity>,
    pub attachments: Informer<VolumeAttachment>,
}

impl Storage {
    pub fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.of(),
            volumes: informers.of(),
            classes: informers.of(),
            drivers: informers.of(),
            on_nodes: informers.of(),
            capacities: informers.of(),
            attachments: informers.of(),
        }
    }

    pub async fn synced(&self) {
        tokio::join!(
            self.claims.synced(),
            self.volumes.synced(),
            self.classes.synced(),
            self.drivers.synced(),
            self.on_nodes.synced(),
            self.capacities.synced(),
            self.attachments.synced(),
        );
    }

    pub fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        self.classes.get("", class_name(claim))
    }

    /// A claim that the pod names; the error is the API server's of one that is not there.
    pub fn claim(&self, pod: &PodInfo, name: &str) -> Result<Arc<PersistentVolumeClaim>, String> {
        self.claims.get(&pod.namespace, name).ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))
    }
}

/// A claim a pod names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimName {
    pub name: String,
    /// Made for the pod by the ephemeral volume controller.
    pub ephemeral: bool,
}

pub fn volumes(pod: &PodInfo) -> impl Iterator<Item = &Volume> {
    pod.spec().and_then(|spec| spec.volumes.as_ref()).into_iter().flatten()
}

/// The claims of a pod, by its volumes.
pub fn claim_names(pod: &PodInfo) -> Vec<ClaimName> {
    let named = volumes(pod).filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(ClaimName { name: claim.claim_name.clone(), ephemeral: false }),
        (None, Some(_)) => Some(ClaimName { name: format!("{}-{}", pod.name, volume.name), ephemeral: true }),
        (None, None) => None,
    });
    named.collect()
}

/// The claims that a pod names itself: none that is made for it.
pub fn shared_claims(pod: &PodInfo) -> impl Iterator<Item = &str> {
    volumes(pod).filter_map(|volume| volume.persistent_volume_claim.as_ref()).map(|claim| claim.claim_name.as_str())
}

/// Whether a pod names this claim.
pub fn names(pod: &PodInfo, claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.namespace.as_deref() == Some(&pod.namespace)
        && claim_names(pod).iter().any(|name| claim.metadata.name.as_deref() == Some(&name.name))
}

/// Whether a claim that goes by the name of one for an ephemeral volume of the pod is its own.
pub fn is_made_for(claim: &PersistentVolumeClaim, pod: &PodInfo) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.controller == Some(true) && *owner.uid == *pod.uid)
}

/// The volume a claim is bound to, both sides agreeing; none: not bound.
pub fn bound_volume(claim: &PersistentVolumeClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref();
    volume_name(claim).filter(|_| annotations.is_some_and(|annotations| annotations.contains_key(BIND_COMPLETED)))
}

/// The volume that a claim names, bound to it or not.
pub fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty())
}

pub fn class_name(claim: &PersistentVolumeClaim) -> &str {
    let old = claim.metadata.annotations.as_ref().and_then(|annotations| annotations.get(OLD_CLASS));
    let spec = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    old.or(spec).map(String::as_str).unwrap_or_default()
}

/// Whether binding waits for a pod to be placed.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

#[cfg(test)]
pub mod testing {
    use serde::de::DeserializeOwned;
    use serde_json::Value;

    use super::*;

    impl Storage {
        /// Empty, fed by tests.
        pub fn detached() -> Self {
            Self {
                claims: Informer::detached(),
                volumes: Informer::detached(),
                classes: Informer::detached(),
                drivers: Informer::detached(),
                on_nodes: Informer::detached(),
                capacities: Informer::detached(),
                attachments: Informer::detached(),
            }
        }
    }

    pub fn from<K: DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    /// A claim `default/NAME`.
    pub fn claim(name: &str, spec: Value) -> PersistentVolumeClaim {
        from(serde_json::json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec}))
    }

    /// One that is bound to a volume.
    pub fn bound(name: &str, volume: &str) -> PersistentVolumeClaim {
        let mut claim = claim(name, serde_json::json!({"volumeName": volume}));
        claim.metadata.annotations = Some([(BIND_COMPLETED.to_owned(), "yes".to_owned())].into());
        claim
    }

    /// A pod that uses claims.
    pub fn using(name: &str, claims: &[&str]) -> PodInfo {
        let volume = |claim: &&str| serde_json::json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
        let volumes: Vec<Value> = claims.iter().map(volume).collect();
        crate::testing::named(name, serde_json::json!({"containers": [], "volumes": volumes}))
    }
}
