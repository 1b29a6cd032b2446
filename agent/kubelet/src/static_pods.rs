//! Static pods: manifests in a directory on the node, shown in the API as mirror pods
//! (`pkg/kubelet/config/file.go`, `pkg/kubelet/pod/mirror_client.go`). [`parse`] is pure.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use component::{Files, Supervisor};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use sha2::{Digest, Sha256};

use crate::context::NodeContext;
use crate::manager::Manager;
use crate::pod::labels;
use crate::retry::Delays;

/// The directory is read on each change, and this often besides (kubelet's `fileCheckFrequency`): it may not
/// exist yet, or lie on a file system that tells of no changes.
const PERIOD: Duration = Duration::from_secs(20);

/// To make a mirror, within [`PERIOD`].
const TRIES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("reading the manifest {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the manifest {} is not a pod: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    /// It must run without the API, and nobody asked whether its author may read what it names.
    #[error("the manifest {}: static pods may not reference {what}", path.display())]
    Reference { path: PathBuf, what: &'static str },
}

/// A manifest as a pod of this node: named after it, with a UID made of its content.
pub fn parse(path: &Path, text: &str, node_name: &str) -> Result<Pod, ManifestError> {
    let bad = |message: String| ManifestError::Parse { path: path.to_owned(), message };
    // By way of a JSON value: one more decoder of every pod type would cost megabytes of program.
    let document: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))?;
    if let Some(what) = api::references::of_pod(&document) {
        return Err(ManifestError::Reference { path: path.to_owned(), what });
    }
    let mut pod: Pod = serde_json::from_value(document).map_err(|error| bad(error.to_string()))?;
    let name = pod
        .metadata
        .name
        .clone()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| bad("metadata.name is required".to_owned()))?;
    let spec = pod.spec.as_mut().ok_or_else(|| bad("spec is required".to_owned()))?;
    if spec.containers.is_empty() {
        return Err(bad("spec.containers: Required value".to_owned()));
    }
    spec.node_name = Some(node_name.to_owned());
    fill_defaults(spec);
    let digest = Sha256::digest(format!("{node_name}\n{}\n{text}", path.display()));
    let hash: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    pod.metadata.uid = Some(hash.clone());
    pod.metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".to_owned());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(labels::CONFIG_HASH.to_owned(), hash);
    annotations.insert(labels::CONFIG_SOURCE.to_owned(), "file".to_owned());
    annotations.insert(labels::CONFIG_SEEN.to_owned(), jiff::Timestamp::now().to_string());
    Ok(pod)
}

/// What the API would have filled in.
fn fill_defaults(spec: &mut k8s_openapi::api::core::v1::PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    // Static pods stay where they are, whatever the node's taints.
    let tolerations = spec.tolerations.get_or_insert_default();
    if tolerations.is_empty() {
        tolerations.push(k8s_openapi::api::core::v1::Toleration {
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            ..Default::default()
        });
    }
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
        container.termination_message_policy.get_or_insert_with(|| "File".to_owned());
        if let Some(resources) = &mut container.resources
            && let Some(limits) = resources.limits.clone()
        {
            let requests = resources.requests.get_or_insert_default();
            for (name, limit) in limits {
                requests.entry(name).or_insert(limit);
            }
        }
    }
}

/// The UID of the static pod that a pod of the API mirrors.
pub fn mirror_of(pod: &Pod) -> Option<String> {
    pod.metadata.annotations.as_ref()?.get(labels::CONFIG_MIRROR).cloned()
}

/// Follows the directory for as long as the task lives.
pub async fn follow(directory: PathBuf, node_name: String, manager: Arc<Manager>) {
    let mut last: Option<Vec<(PathBuf, std::time::SystemTime, u64)>> = None;
    let mut changes = None;
    loop {
        if changes.is_none() {
            changes = Files::watch_all_in(&directory, false).ok();
        }
        let listing = list(&directory);
        if last.as_ref() != Some(&listing) {
            let pods = listing.iter().filter_map(|(path, _, _)| match read(path, &node_name) {
                Ok(pod) => Some(Arc::new(pod)),
                Err(error) => {
                    tracing::error!(%error, "a static pod's manifest is ignored; mend or remove it");
                    None
                }
            });
            manager.static_pods(pods.collect());
            last = Some(listing);
        }
        let changed = async {
            let heard = match &changes {
                Some(changes) => changes.changed().await.is_ok(),
                None => false,
            };
            if !heard {
                std::future::pending::<()>().await;
            }
        };
        if tokio::time::timeout(PERIOD, changed).await.is_err() {
            // Watched anew: the directory may have been made since, or replaced.
            changes = None;
            manager.mend_mirrors();
        }
    }
}

/// Reads the directory once.
pub fn read_all(directory: &Path, node_name: &str) -> Vec<Arc<Pod>> {
    list(directory).iter().filter_map(|(path, _, _)| read(path, node_name).ok().map(Arc::new)).collect()
}

fn read(path: &Path, node_name: &str) -> Result<Pod, ManifestError> {
    let text = std::fs::read_to_string(path).map_err(|source| ManifestError::Read { path: path.to_owned(), source })?;
    parse(path, &text, node_name)
}

fn list(directory: &Path) -> Vec<(PathBuf, std::time::SystemTime, u64)> {
    let mut found: Vec<(PathBuf, std::time::SystemTime, u64)> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .filter_map(|entry| {
            let meta = std::fs::metadata(entry.path()).ok().filter(|meta| meta.is_file() && meta.len() > 0)?;
            Some((entry.path(), meta.modified().ok()?, meta.len()))
        })
        .collect();
    found.sort();
    found
}

/// Shows a static pod in the API; tries a few times, until it worked or the pod has its mirror.
/// [`Manager::mend_mirrors`] does it again.
pub fn create_mirror(node: &Arc<NodeContext>, pod: Arc<Pod>, supervisor: &Supervisor) {
    let node = node.clone();
    supervisor.spawn("mirror", async move {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(node.client.clone(), &namespace);
        let mut delays = Delays::new(Duration::from_millis(100), Duration::from_secs(10));
        for _ in 0..TRIES {
            let owner = Api::<Node>::all(node.client.clone()).get_opt(&node.config.node_name).await.ok().flatten();
            match api.create(&PostParams::default(), &mirror(&pod, owner.as_ref())).await {
                Ok(_) => return,
                Err(kube::Error::Api(answer)) if answer.code == 409 => return,
                Err(error) => tracing::debug!(%error, pod = pod.metadata.name, "the mirror of a static pod could not be made; trying again"),
            }
            tokio::time::sleep(delays.take()).await;
        }
    });
}

fn mirror(pod: &Pod, owner: Option<&Node>) -> Pod {
    let mut mirror = pod.clone();
    let hash = mirror.metadata.uid.take().unwrap_or_default();
    mirror.status = None;
    mirror.metadata.annotations.get_or_insert_default().insert(labels::CONFIG_MIRROR.to_owned(), hash);
    mirror.metadata.owner_references = owner.and_then(|owner| owner.metadata.uid.clone()).map(|uid| {
        vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            uid,
            controller: Some(true),
            ..Default::default()
        }]
    });
    mirror
}

pub fn delete_mirror(node: &Arc<NodeContext>, mirror: Arc<Pod>, supervisor: &Supervisor) {
    let node = node.clone();
    supervisor.spawn("mirror", async move {
        let (Some(namespace), Some(name)) = (&mirror.metadata.namespace, &mirror.metadata.name) else { return };
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: mirror.metadata.uid.clone(), resource_version: None }),
            ..Default::default()
        };
        if let Err(error) = Api::<Pod>::namespaced(node.client.clone(), namespace).delete(name, &parameters).await {
            tracing::debug!(%error, pod = name, "the mirror of a static pod could not be deleted");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str =
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: nginx\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_the_node() {
        let pod = parse(Path::new("/m/web.yaml"), MANIFEST, "node-1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node-1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let uid = pod.metadata.uid.clone().unwrap();
        assert_eq!(uid.len(), 32);
        assert_eq!(parse(Path::new("/m/web.yaml"), MANIFEST, "node-1").unwrap().metadata.uid, Some(uid.clone()));
        assert_ne!(
            parse(Path::new("/m/web.yaml"), &format!("{MANIFEST} "), "node-1").unwrap().metadata.uid,
            Some(uid.clone())
        );
        let mirrored = mirror(&pod, None);
        assert_eq!(mirror_of(&mirrored), Some(uid));
        assert_eq!(mirrored.metadata.uid, None);
    }

    #[test]
    fn what_is_no_pod_is_said() {
        for text in ["{", "metadata: {name: x}\nspec: {containers: []}", "spec: {containers: [{name: c}]}"] {
            assert!(matches!(parse(Path::new("/m/x"), text, "n"), Err(ManifestError::Parse { .. })), "{text}");
        }
    }

    #[test]
    fn a_static_pod_must_not_need_the_api() {
        let manifest = format!("{MANIFEST}    envFrom:\n    - secretRef: {{name: s}}\n");
        let error = parse(Path::new("/m/x"), &manifest, "n").unwrap_err();
        assert_eq!(error.to_string(), "the manifest /m/x: static pods may not reference secrets");
    }
}
