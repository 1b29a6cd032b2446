//! A CSI volume as the node sees it, from a pod's own source or from a PersistentVolume. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{self as core, CSIVolumeSource, PersistentVolume, Pod};
use proto::csi::v1::VolumeCapability;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use sha2::{Digest, Sha256};

use super::driver::Abilities;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// It is there before and after the pod.
    Persistent,
    /// Made for one pod, by its own words.
    Ephemeral,
}

impl Lifecycle {
    pub fn name(self) -> &'static str {
        match self {
            Self::Persistent => "Persistent",
            Self::Ephemeral => "Ephemeral",
        }
    }
}

/// A Secret by namespace and name.
pub type SecretName = (String, String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The PersistentVolume's name, or the volume's in the pod.
    pub name: String,
    pub driver: String,
    pub handle: String,
    pub lifecycle: Lifecycle,
    pub read_only: bool,
    pub block: bool,
    pub fs_type: String,
    pub mount_options: Vec<String>,
    pub access_modes: Vec<String>,
    pub attributes: BTreeMap<String, String>,
    pub stage_secret: Option<SecretName>,
    pub publish_secret: Option<SecretName>,
    pub expand_secret: Option<SecretName>,
}

impl Volume {
    pub fn of(name: &str, driver: &str, handle: &str, lifecycle: Lifecycle) -> Self {
        Self {
            name: name.to_owned(),
            driver: driver.to_owned(),
            handle: handle.to_owned(),
            lifecycle,
            read_only: false,
            block: false,
            fs_type: String::new(),
            mount_options: Vec::new(),
            access_modes: Vec::new(),
            attributes: BTreeMap::new(),
            stage_secret: None,
            publish_secret: None,
            expand_secret: None,
        }
    }

    /// A volume of the pod's own.
    pub fn inline(pod: &Pod, name: &str, source: &CSIVolumeSource) -> Self {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let handle = format!("csi-{}", hex(&format!("{uid}{name}")));
        Self {
            read_only: source.read_only.unwrap_or(false),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            publish_secret: source.node_publish_secret_ref.as_ref().map(|secret| (namespace, secret.name.clone())),
            ..Self::of(name, &source.driver, &handle, Lifecycle::Ephemeral)
        }
    }

    /// The volume behind a claim; none if it is no CSI volume.
    pub fn persistent(volume: &PersistentVolume, read_only: bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let source = spec.csi.as_ref()?;
        let secret = |secret: &Option<core::SecretReference>| {
            let secret = secret.as_ref()?;
            Some((secret.namespace.clone().unwrap_or_default(), secret.name.clone().unwrap_or_default()))
        };
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        Some(Self {
            read_only,
            block: spec.volume_mode.as_deref() == Some("Block"),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: secret(&source.node_stage_secret_ref),
            publish_secret: secret(&source.node_publish_secret_ref),
            expand_secret: secret(&source.node_expand_secret_ref),
            ..Self::of(name, &source.driver, &source.volume_handle, Lifecycle::Persistent)
        })
    }

    /// As node statuses name it.
    pub fn unique_name(&self) -> String {
        unique_name(&self.driver, &self.handle)
    }

    /// What the driver is told of how the volume is used. `group` is the pod's fsGroup, if the driver
    /// gives the files to it itself.
    pub fn capability(&self, abilities: Abilities, group: Option<u32>) -> VolumeCapability {
        let access_type = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
            })
        };
        let mode = access_mode(self.access_modes.first().map(String::as_str), abilities.single_node_multi_writer);
        VolumeCapability { access_mode: Some(AccessMode { mode: mode as i32 }), access_type: Some(access_type) }
    }
}

pub fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The name of the VolumeAttachment, which the attach-detach controller computes too.
pub fn attachment_name(driver: &str, handle: &str, node: &str) -> String {
    format!("csi-{}", hex(&format!("{handle}{driver}{node}")))
}

/// SHA-256 of a text.
pub fn hex(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// (`pkg/volume/csi/csi_client.go: asCSIAccessModeV1`, `asSingleNodeMultiWriterCapableCSIAccessModeV1`)
fn access_mode(mode: Option<&str>, fine: bool) -> Mode {
    match (mode.unwrap_or("ReadWriteOnce"), fine) {
        ("ReadWriteOnce", true) => Mode::SingleNodeMultiWriter,
        ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
        ("ReadWriteOnce" | "ReadWriteOncePod", false) => Mode::SingleNodeWriter,
        ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
        ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
        _ => Mode::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_of_both_kinds() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u", "namespace": "ns"}})).unwrap();
        let source = json!({"driver": "d", "fsType": "xfs", "nodePublishSecretRef": {"name": "s"}, "volumeAttributes": {"a": "b"}});
        let inline = Volume::inline(&pod, "v", &serde_json::from_value(source).unwrap());
        assert_eq!(inline.publish_secret, Some(("ns".to_owned(), "s".to_owned())));
        assert_eq!((inline.handle.len(), inline.fs_type.as_str()), (68, "xfs"));
        let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": {
            "accessModes": ["ReadOnlyMany"], "mountOptions": ["soft"], "volumeMode": "Block",
            "csi": {"driver": "d", "volumeHandle": "h", "nodeStageSecretRef": {"namespace": "n", "name": "s"}}}}))
        .unwrap();
        let persistent = Volume::persistent(&volume, true).unwrap();
        assert!(persistent.read_only && persistent.block);
        assert_eq!(persistent.unique_name(), "kubernetes.io/csi/d^h");
        assert_eq!(persistent.stage_secret, Some(("n".to_owned(), "s".to_owned())));
        assert_eq!(
            persistent.capability(Abilities::default(), None).access_type,
            Some(AccessType::Block(BlockVolume {}))
        );
        assert_eq!(Volume::persistent(&PersistentVolume::default(), false), None);
    }

    #[test]
    fn access_modes() {
        for (mode, coarse, fine) in [
            (None, Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            (Some("ReadWriteOnce"), Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            (Some("ReadWriteOncePod"), Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter),
            (Some("ReadOnlyMany"), Mode::MultiNodeReaderOnly, Mode::MultiNodeReaderOnly),
            (Some("ReadWriteMany"), Mode::MultiNodeMultiWriter, Mode::MultiNodeMultiWriter),
        ] {
            assert_eq!((access_mode(mode, false), access_mode(mode, true)), (coarse, fine), "{mode:?}");
        }
    }
}
