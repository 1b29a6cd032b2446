//! A container as CRI takes it (`kuberuntime_container.go: generateContainerConfig`). Pure: the
//! caller has resolved the image, the environment and the mounts.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};
use proto::runtime::v1::{
    CdiDevice, ContainerConfig, ContainerMetadata, Device, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount,
};

use super::command::expand;
use crate::cri::image_spec;
use crate::layout::Layout;
use crate::pod::labels;

/// Everything that was resolved beforehand.
pub struct Resolved {
    /// The runtime's reference of the image.
    pub image_ref: String,
    pub environment: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Fully qualified CDI names.
    pub cdi_devices: Vec<String>,
    /// What device plugins tell the runtime.
    pub annotations: HashMap<String, String>,
    pub resources: LinuxContainerResources,
    pub security: LinuxContainerSecurityContext,
}

/// `attempt` is the restart count.
pub fn config(pod: &Pod, container: &Container, attempt: u32, resolved: Resolved) -> ContainerConfig {
    let lookup =
        |name: &str| resolved.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let expanded = |words: &Option<Vec<String>>| words.iter().flatten().map(|word| expand(word, lookup)).collect();
    let mounts = with_users(resolved.mounts, &resolved.security);
    let mut image = image_spec(&resolved.image_ref);
    image.user_specified_image = container.image.clone().unwrap_or_default();
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(image),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels: container_labels(pod, container),
        // The kubelet's own have the last word.
        annotations: resolved.annotations.into_iter().chain(annotations(pod, container, attempt)).collect(),
        envs: resolved.environment.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        mounts,
        devices: resolved.devices,
        cdi_devices: resolved.cdi_devices.into_iter().map(|name| CdiDevice { name }).collect(),
        log_path: Layout::container_log(&container.name, attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resolved.resources),
            security_context: Some(resolved.security),
        }),
        ..Default::default()
    }
}

/// The mounts of a container whose pod has users of its own: each shows the owners of its files as the pod
/// knows them, whoever made it (volumes, devices' mounts, the hosts file).
fn with_users(mut mounts: Vec<Mount>, security: &LinuxContainerSecurityContext) -> Vec<Mount> {
    let users = security.namespace_options.as_ref().and_then(|options| options.userns_options.as_ref());
    if let Some(users) = users {
        for mount in &mut mounts {
            mount.uid_mappings = users.uids.clone();
            mount.gid_mappings = users.gids.clone();
        }
    }
    mounts
}

fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    HashMap::from([
        (labels::POD_NAME.to_owned(), text(&pod.metadata.name)),
        (labels::POD_NAMESPACE.to_owned(), text(&pod.metadata.namespace)),
        (labels::POD_UID.to_owned(), text(&pod.metadata.uid)),
        (labels::CONTAINER_NAME.to_owned(), container.name.clone()),
    ])
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let mut annotations = HashMap::from([
        (labels::CONTAINER_HASH.to_owned(), hash(container)),
        (labels::CONTAINER_RESTART_COUNT.to_owned(), attempt.to_string()),
        (labels::CONTAINER_TERMINATION_PATH.to_owned(), termination_path(container).to_owned()),
        (
            labels::CONTAINER_TERMINATION_POLICY.to_owned(),
            container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned()),
        ),
    ]);
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(labels::POD_DELETION_GRACE.to_owned(), seconds.to_string());
    }
    if let Some(seconds) = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds) {
        annotations.insert(labels::POD_TERMINATION_GRACE.to_owned(), seconds.to_string());
    }
    if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref())
        && let Ok(text) = serde_json::to_string(hook)
    {
        annotations.insert(labels::CONTAINER_PRE_STOP.to_owned(), text);
    }
    if let Some(ports) = container.ports.as_ref()
        && let Ok(text) = serde_json::to_string(ports)
    {
        annotations.insert(labels::CONTAINER_PORTS.to_owned(), text);
    }
    annotations
}

pub fn termination_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log")
}

/// Changes when a running container no longer matches its spec: the name and the image, the only
/// fields that may change without an in-place resize.
pub fn hash(container: &Container) -> String {
    // FNV-1a: written into containers' annotations, so it must never change with a toolchain.
    let mut hash: u32 = 0x811c_9dc5;
    for byte in container.name.bytes().chain([0]).chain(container.image.iter().flat_map(|image| image.bytes())) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

/// An ephemeral container in the form of any other. It has no ports, probes, hooks or resources.
pub fn from_ephemeral(ephemeral: &EphemeralContainer) -> Container {
    Container {
        name: ephemeral.name.clone(),
        image: ephemeral.image.clone(),
        image_pull_policy: ephemeral.image_pull_policy.clone(),
        command: ephemeral.command.clone(),
        args: ephemeral.args.clone(),
        working_dir: ephemeral.working_dir.clone(),
        env: ephemeral.env.clone(),
        env_from: ephemeral.env_from.clone(),
        volume_mounts: ephemeral.volume_mounts.clone(),
        security_context: ephemeral.security_context.clone(),
        stdin: ephemeral.stdin,
        stdin_once: ephemeral.stdin_once,
        tty: ephemeral.tty,
        termination_message_path: ephemeral.termination_message_path.clone(),
        termination_message_policy: ephemeral.termination_message_policy.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::runtime::v1::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace};
    use serde_json::json;

    #[test]
    fn commands_see_the_environment_and_annotations_tell_the_rest() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"terminationGracePeriodSeconds": 9, "containers": [
                {"name": "c", "image": "i:1", "command": ["run", "$(A)"], "args": ["$(B)", "$$(A)"], "tty": true}]}}))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let resolved = Resolved {
            image_ref: "sha256:1".into(),
            environment: vec![("A".into(), "1".into())],
            mounts: Vec::new(),
            devices: Vec::new(),
            cdi_devices: vec!["vendor/class=name".into()],
            annotations: HashMap::from([("plugin".to_owned(), "told".to_owned())]),
            resources: LinuxContainerResources::default(),
            security: LinuxContainerSecurityContext::default(),
        };
        let made = config(&pod, container, 3, resolved);
        assert_eq!(
            (made.command, made.args),
            (vec!["run".to_owned(), "1".into()], vec!["$(B)".to_owned(), "$(A)".into()])
        );
        assert_eq!(made.log_path, "c/3.log");
        assert_eq!(
            (made.cdi_devices[0].name.as_str(), made.annotations["plugin"].as_str()),
            ("vendor/class=name", "told")
        );
        assert!(made.tty && !made.stdin);
        assert_eq!(made.annotations[labels::CONTAINER_RESTART_COUNT], "3");
        assert_eq!(made.annotations[labels::POD_TERMINATION_GRACE], "9");
        assert_eq!(made.labels[labels::CONTAINER_NAME], "c");
    }

    #[test]
    fn everything_mounted_in_a_pod_with_its_own_users_is_mapped() {
        let mapping = |host| vec![IdMapping { host_id: host, container_id: 0, length: 65536 }];
        let users = UserNamespace { mode: NamespaceMode::Pod as i32, uids: mapping(65536), gids: mapping(131_072) };
        let options = |users| NamespaceOption { userns_options: users, ..Default::default() };
        let security =
            |users| LinuxContainerSecurityContext { namespace_options: Some(options(users)), ..Default::default() };
        let mounts = || vec![Mount { host_path: "/v".into(), ..Default::default() }, Mount::default()];
        let mapped = with_users(mounts(), &security(Some(users)));
        let expected = (mapping(65536), mapping(131_072));
        assert!(mapped.iter().all(|mount| (&mount.uid_mappings, &mount.gid_mappings) == (&expected.0, &expected.1)));
        assert_eq!(with_users(mounts(), &security(None)), mounts());
    }

    #[test]
    fn only_name_and_image_count_for_the_hash() {
        let container = |image: &str, tty: bool| Container {
            name: "c".into(),
            image: Some(image.into()),
            tty: Some(tty),
            ..Default::default()
        };
        assert_eq!(hash(&container("a", false)), hash(&container("a", true)));
        assert_ne!(hash(&container("a", false)), hash(&container("b", false)));
    }
}
