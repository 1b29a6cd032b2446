//! What happens in the cluster that could let a waiting pod be placed.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};

use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// An object that appeared, or its newer version.
#[derive(Debug, Clone)]
pub struct Changed<K> {
    pub old: Option<Arc<K>>,
    pub new: Arc<K>,
}

impl<K> Changed<K> {
    pub fn is_new(&self) -> bool {
        self.old.is_none()
    }
}

/// One change. Nodes come without their pods.
#[derive(Debug, Clone)]
pub enum ClusterEvent {
    NodeAdded(Arc<NodeInfo>),
    NodeUpdated {
        old: Arc<NodeInfo>,
        new: Arc<NodeInfo>,
    },
    NodeRemoved(Arc<NodeInfo>),
    /// A pod was bound.
    PodAssigned(Arc<PodInfo>),
    /// A bound pod's labels or requests changed.
    PodUpdated {
        old: Arc<PodInfo>,
        new: Arc<PodInfo>,
    },
    /// A bound or assumed pod ended, was deleted, or its binding failed; or a node expects a pod no more.
    PodGone(Arc<PodInfo>),
    /// The labels of a namespace changed.
    NamespaceChanged,
    VolumeClaim(Changed<PersistentVolumeClaim>),
    Volume(Changed<PersistentVolume>),
    StorageClass(Changed<StorageClass>),
    Driver(Changed<CSIDriver>),
    /// The drivers on a node.
    DriverNode(Changed<CSINode>),
    /// What a driver has left.
    Capacity(Changed<CSIStorageCapacity>),
    /// A volume is attached to a node no more.
    Detached,
    /// A claim for devices appeared or changed.
    ClaimChanged {
        old: Option<Arc<ResourceClaim>>,
        new: Arc<ResourceClaim>,
    },
    /// A claim for devices was deleted.
    ClaimGone(Arc<ResourceClaim>),
    /// A class of devices appeared or changed.
    ClassChanged(Arc<DeviceClass>),
    /// Devices or their taints appeared or changed, or are known only now.
    DevicesChanged,
}

impl ClusterEvent {
    /// Whether it brought a node that passes `test`, or changed one from failing to passing it.
    pub fn node_began_to(&self, test: impl Fn(&NodeInfo) -> bool) -> bool {
        match self {
            Self::NodeAdded(node) => test(node),
            Self::NodeUpdated { old, new } => test(new) && !test(old),
            _ => false,
        }
    }
}
