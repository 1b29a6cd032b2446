//! Volumes that come from a PersistentVolumeClaim: from the claim to the PersistentVolume to a path.

use std::path::{Path, PathBuf};
use std::time::Duration;

use component::brief;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::{Api, Client};

use super::{blocking, format, host_path, mounts};
use crate::layout::Layout;

/// How often, and how soon again, a claim is looked at that is being bound.
const LOOKS: usize = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The plugin of local volumes.
const LOCAL: &str = "kubernetes.io/local-volume";

/// What a claim leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A directory (or file) of this host that is used where it is.
    Path { path: PathBuf, kind: String, takes_group: bool },
    /// Something to mount: `kind` and `source` as mount(8) takes them.
    Mount { plugin: &'static str, kind: String, source: String, options: Vec<String>, takes_group: bool },
}

/// The claim's name and whether the pod wants it read-only.
pub fn claim_of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some((claim.claim_name.clone(), claim.read_only.unwrap_or(false)));
    }
    // A generic ephemeral volume's claim is named after the pod.
    volume
        .ephemeral
        .as_ref()
        .map(|_| (format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name), false))
}

/// A claim and its PersistentVolume, bound to each other. Messages are Kubernetes'.
pub async fn bound(
    client: &Client,
    pod: &Pod,
    volume: &Volume,
    claim: &str,
) -> Result<(PersistentVolumeClaim, PersistentVolume), String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let wrong = |why: String| format!("error processing PVC {namespace}/{claim}: {why}");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let unread = |error| wrong(format!("failed to fetch PVC from API server: {}", brief(&error)));
    let mut object = claims.get(claim).await.map_err(unread)?;
    // The scheduler is content when the claim names its volume; a moment later its phase says so too.
    for _ in 0..LOOKS {
        if !is_being_bound(&object) {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        object = claims.get(claim).await.map_err(unread)?;
    }
    let volume_name = usable(&object, pod, volume).map_err(wrong)?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let bound = volumes
        .get(&volume_name)
        .await
        .map_err(|error| wrong(format!("failed to fetch PV {volume_name:?} from API server: {}", brief(&error))))?;
    let holder = bound.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()).and_then(|claim| claim.uid.as_deref());
    if holder != object.metadata.uid.as_deref() {
        return Err(wrong(format!("PV {volume_name} is bound to another claim")));
    }
    Ok((object, bound))
}

fn is_being_bound(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_ref()).is_some_and(|name| !name.is_empty());
    named && phase != "Bound" && phase != "Lost" && claim.metadata.deletion_timestamp.is_none()
}

/// The name of the claim's volume, if the pod may use it now.
fn usable(claim: &PersistentVolumeClaim, pod: &Pod, volume: &Volume) -> Result<String, String> {
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted".to_owned());
    }
    if volume.ephemeral.is_some() {
        let owners = claim.metadata.owner_references.iter().flatten();
        if !owners.into_iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref()) {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            return Err(format!("PVC {name} was not created for the pod"));
        }
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    if phase != "Bound" || name.is_empty() {
        return Err(format!("PVC has non-bound phase ({phase:?}) or empty pvc.Spec.VolumeName ({name:?})"));
    }
    Ok(name.to_owned())
}

/// How this node gets at a PersistentVolume.
pub fn target(volume: &PersistentVolume) -> Result<Target, String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(spec) = &volume.spec else { return Err(format!("PV {name} has no spec")) };
    let options = spec.mount_options.clone().unwrap_or_default();
    if let Some(source) = &spec.host_path {
        let kind = source.type_.clone().unwrap_or_default();
        return Ok(Target::Path { path: source.path.clone().into(), kind, takes_group: false });
    }
    if let Some(source) = &spec.local {
        return Ok(match (&source.fs_type, is_block_device(Path::new(&source.path))) {
            (kind, true) => Target::Mount {
                plugin: LOCAL,
                kind: kind.clone().unwrap_or_else(|| "ext4".to_owned()),
                source: source.path.clone(),
                options,
                takes_group: true,
            },
            _ => Target::Path { path: source.path.clone().into(), kind: "Directory".to_owned(), takes_group: true },
        });
    }
    if let Some(source) = &spec.nfs {
        return Ok(nfs(&source.server, &source.path, source.read_only.unwrap_or(false), options));
    }
    Err(format!("no volume plugin matched PV {name}: this node mounts hostPath, local, nfs and csi volumes"))
}

pub fn nfs(server: &str, path: &str, read_only: bool, mut options: Vec<String>) -> Target {
    if read_only {
        options.push("ro".to_owned());
    }
    let server =
        if server.contains(':') && !server.starts_with('[') { format!("[{server}]") } else { server.to_owned() };
    Target::Mount {
        plugin: "kubernetes.io/nfs",
        kind: "nfs".to_owned(),
        source: format!("{server}:{path}"),
        options,
        takes_group: false,
    }
}

/// Makes the target available; returns its path on the host.
pub async fn make_available(target: &Target, layout: &Layout, uid: &str, name: &str) -> Result<PathBuf, String> {
    match target {
        Target::Path { path, kind, .. } => {
            let (path, kind) = (path.clone(), kind.clone());
            blocking(move || host_path::check(&path, &kind).map(|()| path)).await
        }
        Target::Mount { plugin, kind, source, options, .. } => {
            let path = layout.volume(uid, plugin, name);
            let place = path.clone();
            // A file server that is away does not answer who asks for what is mounted of it.
            let mounted = blocking(move || {
                let made = std::fs::create_dir_all(&place);
                made.map_err(|error| format!("mkdir {}: {error}", place.display()))?;
                Ok(mounts::is_mount_point(&place))
            });
            if !mounted.await? {
                if *plugin == LOCAL {
                    format::prepare(source, kind, options.iter().any(|option| option == "ro")).await?;
                }
                mounts::mount_with_helper(source, &path, kind, options).await.map_err(|error| error.to_string())?;
            }
            Ok(path)
        }
    }
}

pub fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(value: serde_json::Value) -> PersistentVolumeClaim {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_bound_claims_are_usable() {
        let (pod, volume) = (Pod::default(), Volume::default());
        let bound = claim(json!({ "spec": { "volumeName": "v" }, "status": { "phase": "Bound" } }));
        assert_eq!(usable(&bound, &pod, &volume).unwrap(), "v");
        let pending = claim(json!({ "spec": {}, "status": { "phase": "Pending" } }));
        assert_eq!(
            usable(&pending, &pod, &volume).unwrap_err(),
            "PVC has non-bound phase (\"Pending\") or empty pvc.Spec.VolumeName (\"\")"
        );
        let deleted = claim(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }));
        assert_eq!(usable(&deleted, &pod, &volume).unwrap_err(), "PVC is being deleted");
    }

    #[test]
    fn a_claim_that_is_being_bound_is_looked_at_again() {
        for (value, again) in [
            (json!({"spec": {"volumeName": "v"}, "status": {"phase": "Pending"}}), true),
            (json!({"spec": {"volumeName": "v"}}), true),
            (json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}), false),
            (json!({"spec": {"volumeName": "v"}, "status": {"phase": "Lost"}}), false),
            (json!({"spec": {}, "status": {"phase": "Pending"}}), false),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"volumeName": "v"}}), false),
        ] {
            assert_eq!(is_being_bound(&claim(value.clone())), again, "{value}");
        }
    }

    #[test]
    fn an_ephemeral_claim_must_belong_to_the_pod() {
        let pod: Pod = serde_json::from_value(json!({ "metadata": { "name": "p", "uid": "u" } })).unwrap();
        let volume: Volume = serde_json::from_value(json!({ "name": "scratch", "ephemeral": {} })).unwrap();
        assert_eq!(claim_of(&pod, &volume), Some(("p-scratch".to_owned(), false)));
        let foreign = claim(json!({ "metadata": { "name": "p-scratch" } }));
        assert_eq!(usable(&foreign, &pod, &volume).unwrap_err(), "PVC p-scratch was not created for the pod");
    }

    #[test]
    fn volumes_lead_to_paths_and_mounts() {
        let volume: PersistentVolume =
            serde_json::from_value(json!({ "spec": { "nfs": { "server": "fd::1", "path": "/x", "readOnly": true }, "mountOptions": ["soft"] } }))
                .unwrap();
        let Target::Mount { source, options, .. } = target(&volume).unwrap() else { panic!("not a mount") };
        assert_eq!((source.as_str(), options), ("[fd::1]:/x", vec!["soft".to_owned(), "ro".to_owned()]));
        let other: PersistentVolume =
            serde_json::from_value(json!({ "metadata": { "name": "v" }, "spec": {} })).unwrap();
        assert!(target(&other).unwrap_err().starts_with("no volume plugin matched PV v"));
    }
}
