//! Volumes that containers get as devices: whether a volume is of the mode in which the pod uses it, and the
//! device of a local one. CSI drivers publish their own.
//!
//! Layer: beside [`super::claims`], whose volumes these are.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};

use super::claims::is_block_device;

/// Whether the volume is a device. One mode is not to be had for the other.
pub fn wanted(pod: &Pod, name: &str, volume: &PersistentVolume) -> Result<bool, String> {
    let mode = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()).unwrap_or("Filesystem");
    let block = mode == "Block";
    let (mounted, mapped) = uses(pod, name);
    match (block, mounted, mapped) {
        (true, true, _) => Err(format!("volume {name} has volumeMode {mode}, but is specified in volumeMounts")),
        (false, _, true) => Err(format!("volume {name} has volumeMode {mode}, but is specified in volumeDevices")),
        _ => Ok(block),
    }
}

/// Whether some container mounts the volume, and whether some container has it as a device.
fn uses(pod: &Pod, name: &str) -> (bool, bool) {
    let spec = pod.spec.iter();
    let containers = spec.clone().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let passing = spec.flat_map(|spec| spec.ephemeral_containers.iter().flatten());
    let mounts = containers.clone().flat_map(|each| each.volume_mounts.iter().flatten());
    let mounts = mounts.chain(passing.clone().flat_map(|each| each.volume_mounts.iter().flatten()));
    let devices = containers.flat_map(|each| each.volume_devices.iter().flatten());
    let devices = devices.chain(passing.flat_map(|each| each.volume_devices.iter().flatten()));
    (mounts.into_iter().any(|mount| mount.name == name), devices.into_iter().any(|device| device.name == name))
}

/// The device's file on this node.
pub fn device(volume: &PersistentVolume) -> Result<PathBuf, String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let local = volume.spec.as_ref().and_then(|spec| spec.local.as_ref());
    let local = local
        .ok_or_else(|| format!("no block volume plugin matched PV {name}: this node maps local and csi volumes"))?;
    let path = Path::new(&local.path);
    if is_block_device(path) {
        return Ok(path.to_owned());
    }
    Err(format!("{} of PV {name} is not a block device", local.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_mode_is_not_to_be_had_for_the_other() {
        let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        let devices = json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]});
        let cases = [
            (json!("Block"), &devices, Ok(true)),
            (json!("Block"), &mounts, Err("volume v has volumeMode Block, but is specified in volumeMounts")),
            (json!("Filesystem"), &mounts, Ok(false)),
            (json!(null), &mounts, Ok(false)),
            (json!(null), &devices, Err("volume v has volumeMode Filesystem, but is specified in volumeDevices")),
        ];
        for (mode, container, expected) in cases {
            let volume = serde_json::from_value(json!({"spec": {"volumeMode": mode}})).unwrap();
            for place in ["initContainers", "containers"] {
                let mut spec = json!({"containers": []});
                spec[place] = json!([container]);
                spec[place][0]["name"] = json!("c");
                let pod = serde_json::from_value(json!({"spec": spec})).unwrap();
                assert_eq!(wanted(&pod, "v", &volume), expected.map_err(str::to_owned), "{mode} {place}");
                assert!(wanted(&pod, "other", &volume).is_ok());
            }
        }
    }

    #[test]
    fn a_directory_is_no_device() {
        let volume = |spec| serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        for (spec, wanted) in [
            (json!({"local": {"path": "/tmp"}}), "/tmp of PV p is not a block device"),
            (json!({"hostPath": {"path": "/dev"}}), "no block volume plugin matched PV p"),
        ] {
            let refused = device(&volume(spec)).unwrap_err();
            assert!(refused.starts_with(wanted), "{refused}");
        }
    }
}
