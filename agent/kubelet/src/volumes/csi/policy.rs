//! What a driver's CSIDriver object says about its volumes. Pure.

use k8s_openapi::api::storage::v1::CSIDriver;

use super::volume::{Lifecycle, Volume};
use crate::volumes::owner::Owner;

/// Whether the driver makes volumes of this kind; without an object, persistent ones only
/// (`pkg/volume/csi/csi_plugin.go: supportsVolumeLifecycleMode`).
pub fn supports(driver: &str, lifecycle: Lifecycle, object: Option<&CSIDriver>) -> Result<(), String> {
    let mode = lifecycle.name();
    let refused = |why: &str| Err(format!("volume mode {mode:?} not supported by driver {driver} ({why})"));
    let Some(object) = object else {
        return if lifecycle == Lifecycle::Persistent { Ok(()) } else { refused("no CSIDriver object") };
    };
    let modes = object.spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
    if modes.iter().any(|known| known == mode) {
        return Ok(());
    }
    let modes: Vec<String> = modes.iter().map(|mode| format!("{mode:?}")).collect();
    refused(&format!("only supports [{}]", modes.join(" ")))
}

/// Whether volumes must be attached to the node before they are mounted.
pub fn attach_required(object: Option<&CSIDriver>) -> bool {
    object.is_none_or(|object| object.spec.attach_required != Some(false))
}

pub fn pod_info(object: Option<&CSIDriver>) -> bool {
    object.is_some_and(|object| object.spec.pod_info_on_mount == Some(true))
}

/// Whether volumes are published again every now and then.
pub fn republish(object: Option<&CSIDriver>) -> bool {
    object.is_some_and(|object| object.spec.requires_republish == Some(true))
}

/// Whether the files are given to the pod's fsGroup here
/// (`pkg/volume/csi/csi_mounter.go: supportsFSGroup`).
pub fn takes_group(volume: &Volume, owner: Owner, object: Option<&CSIDriver>) -> bool {
    let policy = object.and_then(|object| object.spec.fs_group_policy.as_deref());
    if owner.group.is_none() || volume.read_only || policy == Some("None") {
        return false;
    }
    let by_one_node = || volume.access_modes.iter().any(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod");
    policy == Some("File") || !volume.fs_type.is_empty() && (volume.lifecycle == Lifecycle::Ephemeral || by_one_node())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn driver(spec: serde_json::Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "d.example"}, "spec": spec})).unwrap()
    }

    #[test]
    fn what_is_said_of_drivers() {
        let refused = |why: &str| Err(format!("volume mode \"Ephemeral\" not supported by driver d.example ({why})"));
        for (modes, expected) in [
            (json!(["Persistent"]), refused("only supports [\"Persistent\"]")),
            (json!([]), refused("only supports []")),
            (json!(["Persistent", "Ephemeral"]), Ok(())),
        ] {
            let driver = driver(json!({"volumeLifecycleModes": modes}));
            assert_eq!(supports("d.example", Lifecycle::Ephemeral, Some(&driver)), expected, "{modes}");
        }
        assert_eq!(supports("d.example", Lifecycle::Ephemeral, None), refused("no CSIDriver object"));
        assert_eq!(supports("d.example", Lifecycle::Persistent, None), Ok(()));
        assert!(attach_required(None) && attach_required(Some(&driver(json!({})))));
        assert!(!attach_required(Some(&driver(json!({"attachRequired": false})))));
    }

    #[test]
    fn the_group_is_for_volumes_that_one_node_writes() {
        let owner = Owner { group: Some(7), ..Owner::default() };
        let volume = |lifecycle, fs_type: &str, mode: &str, read_only| Volume {
            fs_type: fs_type.to_owned(),
            access_modes: vec![mode.to_owned()],
            read_only,
            ..Volume::of("v", "d", "h", lifecycle)
        };
        use Lifecycle::{Ephemeral, Persistent};
        for (volume, policy, takes) in [
            (volume(Persistent, "ext4", "ReadWriteOnce", false), None, true),
            (volume(Persistent, "ext4", "ReadWriteOncePod", false), Some("ReadWriteOnceWithFSType"), true),
            (volume(Persistent, "", "ReadWriteOnce", false), None, false),
            (volume(Persistent, "ext4", "ReadWriteMany", false), None, false),
            (volume(Persistent, "", "ReadWriteMany", false), Some("File"), true),
            (volume(Persistent, "ext4", "ReadWriteOnce", false), Some("None"), false),
            (volume(Persistent, "ext4", "ReadWriteOnce", true), None, false),
            (volume(Ephemeral, "ext4", "ReadWriteOnce", false), None, true),
        ] {
            let object = policy.map(|policy| driver(json!({"fsGroupPolicy": policy})));
            assert_eq!(takes_group(&volume, owner, object.as_ref()), takes, "{volume:?} {policy:?}");
            assert!(!takes_group(&volume, Owner::default(), object.as_ref()));
        }
    }
}
