//! What a container gets besides images, environment and volumes: devices of plugins and of block
//! volumes, and what drivers prepared of its claims.

use k8s_openapi::api::core::v1::{Container, Pod};
use proto::runtime::v1 as cri;

use crate::context::NodeContext;
use crate::devices::Given;
use crate::layout::Layout;
use crate::volume_contract::VolumePaths;

/// For the runtime, but for the environment.
pub struct Extras {
    pub given: Given,
    pub devices: Vec<cri::Device>,
    pub cdi_devices: Vec<String>,
}

pub async fn extras(
    node: &NodeContext,
    pod: &Pod,
    container: &Container,
    volumes: &VolumePaths,
) -> Result<Extras, String> {
    let given = node.devices.for_container(pod, container).await?;
    let mut cdi_devices: Vec<String> = given.cdi_devices.iter().map(|device| device.name.clone()).collect();
    for device in node.dra.cdi_devices(pod, container)? {
        if !cdi_devices.contains(&device) {
            cdi_devices.push(device);
        }
    }
    let mut devices = block_volumes(container, volumes)?;
    devices.extend(of_plugins(&given, &node.config.layout));
    Ok(Extras { given, devices, cdi_devices })
}

/// The environment with what plugins add; what the pod sets itself stays.
pub fn environment(given: &Given, own: Vec<(String, String)>) -> Vec<(String, String)> {
    let added = given.envs.iter().filter(|(name, _)| own.iter().all(|(known, _)| known != *name));
    let mut all: Vec<(String, String)> = added.map(|(name, value)| (name.clone(), value.clone())).collect();
    all.sort();
    all.extend(own);
    all
}

pub fn mounts(given: &Given, layout: &Layout) -> Vec<cri::Mount> {
    let mount = |mount: &proto::v1beta1::Mount| cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: own(layout, &mount.host_path),
        readonly: mount.read_only,
        ..Default::default()
    };
    given.mounts.iter().map(mount).collect()
}

fn own(layout: &Layout, path: &str) -> String {
    layout.own(path.as_ref()).to_string_lossy().into_owned()
}

fn of_plugins(given: &Given, layout: &Layout) -> Vec<cri::Device> {
    let device = |device: &proto::v1beta1::DeviceSpec| cri::Device {
        container_path: device.container_path.clone(),
        host_path: own(layout, &device.host_path),
        permissions: device.permissions.clone(),
    };
    given.devices.iter().map(device).collect()
}

fn block_volumes(container: &Container, volumes: &VolumePaths) -> Result<Vec<cri::Device>, String> {
    let wanted = container.volume_devices.iter().flatten();
    let device = |wanted: &k8s_openapi::api::core::v1::VolumeDevice| {
        let volume = volumes.get(&wanted.name).ok_or_else(|| {
            format!("cannot find volume {:?} to pass into container {:?}", wanted.name, container.name)
        })?;
        Ok(cri::Device {
            container_path: wanted.device_path.clone(),
            host_path: volume.host_path.to_string_lossy().into_owned(),
            permissions: if volume.read_only { "r".to_owned() } else { "mrw".to_owned() },
        })
    };
    wanted.map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume_contract::MountedVolume;
    use serde_json::json;

    #[test]
    fn the_pods_own_environment_stays() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let given = Given { envs: [pair("A", "plugin"), pair("B", "plugin")].into(), ..Default::default() };
        assert_eq!(environment(&given, vec![pair("A", "pod")]), [pair("B", "plugin"), pair("A", "pod")]);
    }

    #[test]
    fn block_volumes_are_devices() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]}))
                .unwrap();
        let volume = |read_only| MountedVolume { host_path: "/p/u".into(), read_only };
        for (read_only, permissions) in [(false, "mrw"), (true, "r")] {
            let volumes = VolumePaths::from([("v".to_owned(), volume(read_only))]);
            let found = block_volumes(&container, &volumes).unwrap();
            assert_eq!((found[0].host_path.as_str(), found[0].permissions.as_str()), ("/p/u", permissions));
        }
        let missing = block_volumes(&container, &VolumePaths::new());
        assert_eq!(missing, Err("cannot find volume \"v\" to pass into container \"c\"".to_owned()));
    }
}
