//! Which volumes a container sees, and where (`kubelet_pods.go: makeMounts`). Pure: sub-paths are
//! resolved on disk by `crate::pod::sub_path`, which is handed what [`plan`] says.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod, VolumeMount};
use proto::runtime::v1::{ImageSpec, Mount, MountPropagation};

use super::command::expand;
use crate::volume_contract::VolumePaths;

/// One volume mount, before sub-paths are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    pub volume: String,
    pub volume_path: PathBuf,
    /// Relative to the volume; empty for the whole volume.
    pub sub_path: String,
    /// Position among the container's mounts.
    pub index: usize,
    pub container_path: String,
    pub read_only: bool,
    pub recursive_read_only: bool,
    pub propagation: MountPropagation,
}

impl Planned {
    /// CRI's form, binding `host_path`.
    pub fn mount(&self, host_path: &Path) -> Mount {
        Mount {
            container_path: self.container_path.clone(),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: self.read_only,
            recursive_read_only: self.recursive_read_only,
            propagation: self.propagation as i32,
            ..Default::default()
        }
    }
}

/// The container's volume mounts in order. `variables` serve `subPathExpr`.
pub fn plan(
    container: &Container,
    volumes: &VolumePaths,
    variables: &[(String, String)],
    recursive_read_only_works: bool,
) -> Result<Vec<Planned>, String> {
    let mounts = container.volume_mounts.iter().flatten().enumerate();
    mounts
        .map(|(index, mount)| plan_one(container, mount, index, volumes, variables, recursive_read_only_works))
        .collect()
}

/// The mounts of volumes that are images, each with its volume's source.
pub fn images<'a>(pod: &'a Pod, container: &'a Container) -> Vec<(&'a VolumeMount, &'a ImageVolumeSource)> {
    let mounts = container.volume_mounts.iter().flatten();
    mounts.filter_map(|mount| Some((mount, image_source(pod, &mount.name)?))).collect()
}

fn image_source<'a>(pod: &'a Pod, volume: &str) -> Option<&'a ImageVolumeSource> {
    let mut volumes = pod.spec.as_ref()?.volumes.iter().flatten();
    volumes.find(|known| known.name == volume)?.image.as_ref()
}

/// The container with the mounts that are the kubelet's to make.
pub fn without_images(pod: &Pod, container: &Container) -> Container {
    let mut kept = container.clone();
    if let Some(mounts) = kept.volume_mounts.as_mut() {
        mounts.retain(|mount| image_source(pod, &mount.name).is_none());
    }
    kept
}

/// CRI's form of a mounted image: always read-only.
pub fn image(mount: &VolumeMount, image_id: &str, variables: &[(String, String)]) -> Result<Mount, String> {
    Ok(Mount {
        container_path: absolute(&mount.mount_path),
        readonly: true,
        image: Some(ImageSpec { image: image_id.to_owned(), ..Default::default() }),
        image_sub_path: sub_path(mount, variables)?,
        ..Default::default()
    })
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn plan_one(
    container: &Container,
    mount: &VolumeMount,
    index: usize,
    volumes: &VolumePaths,
    variables: &[(String, String)],
    recursive_read_only_works: bool,
) -> Result<Planned, String> {
    let volume = volumes.get(&mount.name).ok_or_else(|| {
        format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name)
    })?;
    let sub_path = sub_path(mount, variables)?;
    let read_only = mount.read_only.unwrap_or(false);
    let recursive_read_only = recursive_read_only(mount, recursive_read_only_works)
        .map_err(|why| format!("failed to resolve recursive read-only mode: {why}"))?;
    Ok(Planned {
        volume: mount.name.clone(),
        volume_path: volume.host_path.clone(),
        sub_path,
        index,
        container_path: absolute(&mount.mount_path),
        read_only: read_only || volume.read_only,
        recursive_read_only,
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        },
    })
}

/// Whether what is mounted below the mount is read-only too. `works` says whether the runtime can do it.
pub fn recursive_read_only(mount: &VolumeMount, works: bool) -> Result<bool, String> {
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
    let refused =
        |why: &str| Err(format!("volume \"{}\" requested recursive read-only mode, but it is {why}", mount.name));
    match mode {
        "Disabled" => Ok(false),
        _ if !mount.read_only.unwrap_or(false) => refused("not read-only"),
        _ if propagation != "None" => refused(&format!("not compatible with propagation \"{propagation}\"")),
        "IfPossible" => Ok(works),
        "Enabled" if works => Ok(true),
        "Enabled" => refused("not supported by the runtime"),
        other => Err(format!("unknown recursive read-only mode \"{other}\"")),
    }
}

fn sub_path(mount: &VolumeMount, variables: &[(String, String)]) -> Result<String, String> {
    let path = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(expression), _) if !expression.is_empty() => {
            let lookup = |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            let expanded = expand(expression, lookup);
            if let Some(at) = expanded.find("$(") {
                let missing = expanded[at + 2..].split(')').next().unwrap_or_default();
                return Err(format!("missing value for \"{missing}\""));
            }
            expanded
        }
        (_, Some(path)) => path.clone(),
        _ => String::new(),
    };
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(path)
}

/// Whether the container brings its own mount at `path`, so that ours must not cover it.
pub fn has_mount_at(container: &Container, path: &str) -> bool {
    container.volume_mounts.iter().flatten().any(|mount| mount.mount_path.trim_end_matches('/') == path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume_contract::MountedVolume;
    use serde_json::json;

    fn planned(mount: serde_json::Value) -> Result<Planned, String> {
        let container: Container = serde_json::from_value(json!({"name": "c", "volumeMounts": [mount]})).unwrap();
        let volumes = VolumePaths::from([
            ("data".to_owned(), MountedVolume { host_path: "/v/data".into(), read_only: false }),
            ("cfg".to_owned(), MountedVolume { host_path: "/v/cfg".into(), read_only: true }),
        ]);
        let variables = [("POD".to_owned(), "web-0".to_owned())];
        plan(&container, &volumes, &variables, false).map(|mut list| list.remove(0))
    }

    #[test]
    fn mounts() {
        let plain = planned(json!({"name": "data", "mountPath": "/data"})).unwrap();
        assert_eq!((plain.read_only, plain.sub_path.as_str()), (false, ""));
        assert!(planned(json!({"name": "cfg", "mountPath": "/c"})).unwrap().read_only, "the volume is");
        assert_eq!(
            planned(json!({"name": "data", "mountPath": "/d", "subPathExpr": "$(POD)/x"})).unwrap().sub_path,
            "web-0/x"
        );
        let shared = planned(json!({"name": "data", "mountPath": "rel", "mountPropagation": "Bidirectional"})).unwrap();
        assert_eq!(
            (shared.container_path.as_str(), shared.propagation),
            ("/rel", MountPropagation::PropagationBidirectional)
        );
    }

    #[test]
    fn what_cannot_be() {
        for (mount, message) in [
            (json!({"name": "none", "mountPath": "/x"}), "cannot find volume \"none\" to mount into container \"c\""),
            (
                json!({"name": "data", "mountPath": "/x", "subPath": "../etc"}),
                "unable to provision SubPath `../etc`: must not contain '..'",
            ),
            (
                json!({"name": "data", "mountPath": "/x", "subPath": "/etc"}),
                "error SubPath `/etc` must not be an absolute path",
            ),
            (json!({"name": "data", "mountPath": "/x", "subPathExpr": "$(NONE)"}), "missing value for \"NONE\""),
        ] {
            assert_eq!(planned(mount).unwrap_err(), message);
        }
    }

    #[test]
    fn recursive_read_only_mounts() {
        let refused = |why: &str| Err(format!("volume \"v\" requested recursive read-only mode, but it is {why}"));
        for (mount, works, expected) in [
            (json!({}), true, Ok(false)),
            (json!({"readOnly": true}), true, Ok(false)),
            (json!({"readOnly": true, "recursiveReadOnly": "Disabled"}), true, Ok(false)),
            (json!({"readOnly": true, "recursiveReadOnly": "IfPossible"}), true, Ok(true)),
            (json!({"readOnly": true, "recursiveReadOnly": "IfPossible"}), false, Ok(false)),
            (json!({"readOnly": true, "recursiveReadOnly": "Enabled", "mountPropagation": "None"}), true, Ok(true)),
            (json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), false, refused("not supported by the runtime")),
            (json!({"recursiveReadOnly": "Enabled"}), true, refused("not read-only")),
            (
                json!({"readOnly": true, "recursiveReadOnly": "IfPossible", "mountPropagation": "HostToContainer"}),
                true,
                refused("not compatible with propagation \"HostToContainer\""),
            ),
        ] {
            let mut whole = json!({"name": "v", "mountPath": "/v"});
            whole.as_object_mut().unwrap().extend(mount.as_object().unwrap().clone());
            let mount: VolumeMount = serde_json::from_value(whole).unwrap();
            assert_eq!(recursive_read_only(&mount, works), expected, "{mount:?}");
        }
        let failed =
            planned(json!({"name": "data", "mountPath": "/d", "readOnly": true, "recursiveReadOnly": "Enabled"}));
        assert_eq!(
            failed.unwrap_err(),
            "failed to resolve recursive read-only mode: volume \"data\" requested recursive read-only mode, but it is not supported by the runtime"
        );
    }

    #[test]
    fn images_are_left_to_the_runtime() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"volumes": [{"name": "i", "image": {"reference": "a:1"}}, {"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "volumeMounts": [{"name": "i", "mountPath": "i", "subPath": "dir"}, {"name": "v", "mountPath": "/v"}]}]}}))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let found = images(&pod, container);
        assert_eq!((found.len(), found[0].1.reference.as_deref()), (1, Some("a:1")));
        let mount = image(found[0].0, "sha256:1", &[]).unwrap();
        let made =
            (mount.container_path.as_str(), mount.readonly, mount.image.unwrap().image, mount.image_sub_path.as_str());
        assert_eq!(made, ("/i", true, "sha256:1".to_owned(), "dir"));
        let kept = without_images(&pod, container).volume_mounts.unwrap();
        assert_eq!(kept.iter().map(|mount| mount.name.as_str()).collect::<Vec<_>>(), ["v"]);
    }
}
