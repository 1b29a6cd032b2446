//! Starting one container: image, environment, mounts, create, start, postStart hook.

use std::sync::Arc;

use component::EventType;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodIP, PodStatus};
use proto::runtime::v1::{self as cri, Image};

use super::actions::{ContainerKind, Failure, Waiting};
use super::observed::{Run, Sandbox};
use super::{devices, hooks, make_sandbox, observe, sub_path};
use crate::cgroups::container_resources;
use crate::context::NodeContext;
use crate::cri::RuntimeError;
use crate::spec::container::{Resolved, config, from_ephemeral, termination_path};
use crate::spec::env::{self, Sources};
use crate::spec::{env_file, hosts, mounts, security};
use crate::volume_contract::VolumePaths;
use crate::volumes::blocking;

/// Permanent-looking failures are tried again after this long, as Kubernetes' next sync would.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

/// Everything about the container to start.
pub struct Order {
    pub pod: Arc<Pod>,
    pub container: Container,
    pub kind: ContainerKind,
    pub restart_count: u32,
    pub sandbox: Sandbox,
    /// For ephemeral containers: the run whose PID namespace is entered.
    pub target: Option<String>,
}

/// What became of it. A run may exist although the start failed.
pub struct Outcome {
    pub run: Option<Run>,
    pub failure: Option<Failure>,
    /// The container runs and its postStart hook failed: it must be killed with this message.
    pub hook_failed: Option<String>,
}

pub fn container_of(pod: &Pod, name: &str) -> Option<Container> {
    let spec = pod.spec.as_ref()?;
    let plain =
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|container| container.name == name);
    plain.cloned().or_else(|| {
        spec.ephemeral_containers.iter().flatten().find(|container| container.name == name).map(from_ephemeral)
    })
}

fn failed(reason: &str, message: impl Into<String>) -> Failure {
    Failure {
        waiting: Waiting { reason: reason.to_owned(), message: message.into() },
        retry_at: Timestamp::now().checked_add(RETRY).unwrap_or(Timestamp::MAX),
    }
}

impl Order {
    fn event(&self, node: &NodeContext, kind: EventType, reason: &str, message: impl Into<String>) {
        node.container_event(&self.pod, &self.container.name, kind, reason, message);
    }

    /// The failure, told as an event: `Error: <message>`.
    fn fail(&self, node: &NodeContext, reason: &str, message: impl Into<String>) -> Failure {
        let failure = failed(reason, message);
        self.event(node, EventType::Warning, "Failed", format!("Error: {}", failure.waiting.message));
        failure
    }
}

/// Starts the container. Returns once it runs and its postStart hook has ended, or has failed.
pub async fn start(node: &NodeContext, order: &Order, announce: impl Fn(Run)) -> Outcome {
    let outcome = |run, failure| Outcome { run, failure, hook_failed: None };
    let id = match create(node, order).await {
        Ok(id) => id,
        Err(failure) => return outcome(None, Some(failure)),
    };
    order.event(node, EventType::Normal, "Created", "Container created");
    let meta = &order.pod.metadata;
    let pod_name =
        format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    component::timeline(&pod_name, "container created");
    let started = node.runtime.start_container(&id).await;
    let run = observe::run(&node.runtime, &id, &order.sandbox.id).await;
    if let Err(error) = started {
        let failure = order.fail(node, "RunContainerError", error.bare_message());
        return outcome(run.ok(), Some(failure));
    }
    let run = match run {
        Ok(run) => run,
        Err(error) => return outcome(None, Some(order.fail(node, "RunContainerError", error.bare_message()))),
    };
    order.event(node, EventType::Normal, "Started", "Container started");
    let hook = order.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    if let Some(hook) = hook {
        announce(run.clone());
        let pod_ip = order.sandbox.ips.first().cloned();
        if let Err(message) = hooks::run(node, &order.pod, &order.container, &id, pod_ip.as_deref(), hook).await {
            // What a hook says may be secret: events are for others to read.
            tracing::warn!(pod = pod_name, container = order.container.name, message, "a postStart hook failed");
            order.event(node, EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
            return Outcome { run: Some(run), failure: None, hook_failed: Some("FailedPostStartHook".to_owned()) };
        }
    }
    outcome(Some(run), None)
}

async fn create(node: &NodeContext, order: &Order) -> Result<String, Failure> {
    let config_error = |message: String| order.fail(node, "CreateContainerConfigError", message);
    let sandbox_config =
        make_sandbox::sandbox_config(node, &order.pod, order.sandbox.attempt, false).map_err(config_error)?;
    let image = node.images.ensure(node, &order.pod, &order.container, &sandbox_config).await?;
    let pod = with_addresses(node, order);
    let volumes = node.volumes.set_up(&order.pod).await.map_err(|errors| {
        for error in errors.iter() {
            order.event(node, EventType::Warning, error.reason(), error.to_string());
        }
        failed("CreateContainerConfigError", errors.to_string())
    })?;
    let sources = sources(node, &pod, &order.container, &volumes).await.map_err(config_error)?;
    let environment =
        env::environment(&pod, &order.container, &sources).map_err(|error| config_error(error.to_string()))?;
    let extras = devices::extras(node, &pod, &order.container, &volumes).await.map_err(config_error)?;
    let environment = devices::environment(&extras.given, environment);
    let mut mounts = image_mounts(node, order, &environment, &sandbox_config).await?;
    mounts.extend(devices::mounts(&extras.given, &node.config.layout));
    mounts.extend(all_mounts(node, order, &volumes, &environment).await.map_err(config_error)?);
    let mut security = container_security(node, order, &image).map_err(config_error)?;
    if let (Some(target), Some(options)) = (&order.target, security.namespace_options.as_mut()) {
        options.pid = cri::NamespaceMode::Target as i32;
        options.target_id = target.clone();
    }
    let resources = container_resources(&order.pod, &order.container, &node.cgroups.host(node.machine.memory));
    let resolved = Resolved {
        image_ref: image.id.clone(),
        environment,
        mounts,
        devices: extras.devices,
        cdi_devices: extras.cdi_devices,
        annotations: extras.given.annotations,
        resources,
        security,
    };
    let config = config(&order.pod, &order.container, order.restart_count, resolved);
    make_log_directory(node, order).map_err(config_error)?;
    create_anew(node, order, config, sandbox_config)
        .await
        .map_err(|error| order.fail(node, "CreateContainerError", error.bare_message()))
}

/// A container that an interrupted start left behind has the name that is wanted: it goes first.
async fn create_anew(
    node: &NodeContext,
    order: &Order,
    config: cri::ContainerConfig,
    sandbox_config: cri::PodSandboxConfig,
) -> Result<String, RuntimeError> {
    let sandbox = &order.sandbox.id;
    match node.runtime.create_container(sandbox, config.clone(), sandbox_config.clone()).await {
        Err(RuntimeError::Answer { message, .. }) if message.contains("is reserved for") => {
            let holder = message.rsplit('"').nth(1).unwrap_or_default().to_owned();
            tracing::info!(container = order.container.name, holder, "removing a container that was never started");
            node.runtime.remove_container(&holder).await?;
            node.runtime.create_container(sandbox, config, sandbox_config).await
        }
        other => other,
    }
}

/// The pod with its addresses, for downward values: the published status may be behind.
fn with_addresses(node: &NodeContext, order: &Order) -> Pod {
    let mut pod = Pod::clone(&order.pod);
    let status = pod.status.get_or_insert_with(PodStatus::default);
    let host: Vec<String> = node.config.node_ips.iter().map(ToString::to_string).collect();
    let own = if order.sandbox.host_network { host.clone() } else { order.sandbox.ips.clone() };
    status.pod_ip = own.first().cloned();
    status.pod_ips = Some(own.into_iter().map(|ip| PodIP { ip }).collect());
    status.host_ip = host.first().cloned();
    status.host_ips = Some(host.into_iter().map(|ip| k8s_openapi::api::core::v1::HostIP { ip }).collect());
    pod
}

async fn sources(
    node: &NodeContext,
    pod: &Pod,
    container: &Container,
    volumes: &VolumePaths,
) -> Result<Sources, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let (config_maps, secrets) = env::referenced(container);
    let mut sources = Sources { allocatable: node.allocatable.read().clone(), ..Default::default() };
    for name in config_maps {
        let found = node.references.config_map(&node.client, namespace, &name).await;
        let found = found.map_err(|error| format!("reading configmap \"{name}\": {error}"))?;
        sources.config_maps.extend(found.map(|object| (name, object)));
    }
    for name in secrets {
        let found = node.references.secret(&node.client, namespace, &name).await;
        let found = found.map_err(|error| format!("reading secret \"{name}\": {error}"))?;
        sources.secrets.extend(found.map(|object| (name, object)));
    }
    for file in env::files(container) {
        let key = (file.volume_name.clone(), file.path.clone());
        // Each of its variables names the file anew.
        if sources.files.contains_key(&key) {
            continue;
        }
        let Some(volume) = volumes.get(&file.volume_name) else { continue };
        let (directory, path) = (volume.host_path.clone(), file.path.clone());
        let text = tokio::task::spawn_blocking(move || env_file::read(&directory, &path)).await;
        let text = text.map_err(|error| error.to_string()).and_then(|text| text.map_err(|error| error.to_string()));
        sources.files.insert(key, text);
    }
    sources.services = node.services.list_namespace(namespace);
    if namespace != "default" {
        sources.services.extend(node.services.get("default", "kubernetes"));
    }
    Ok(sources)
}

async fn all_mounts(
    node: &NodeContext,
    order: &Order,
    volumes: &VolumePaths,
    environment: &[(String, String)],
) -> Result<Vec<cri::Mount>, String> {
    let uid = order.pod.metadata.uid.as_deref().unwrap_or_default();
    let recursive = node.runtime_features.read().recursive_read_only_mounts;
    let mut made = Vec::new();
    let container = mounts::without_images(&order.pod, &order.container);
    for planned in mounts::plan(&container, volumes, environment, recursive)? {
        let host_path = if planned.sub_path.is_empty() {
            planned.volume_path.clone()
        } else {
            let target = node.config.layout.sub_path(uid, &planned.volume, &order.container.name, planned.index);
            let (volume, path) = (planned.volume_path.clone(), planned.sub_path.clone());
            // The volume may be of a file server that does not answer.
            let bind = move || sub_path::bind(&volume, &path, &target).map_err(|error| error.to_string());
            blocking(bind).await.map_err(|error| {
                format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                    planned.volume, order.container.name
                )
            })?
        };
        made.push(planned.mount(&host_path));
    }
    made.extend(hosts_mount(node, order, uid)?);
    made.extend(termination_mount(node, order, uid)?);
    Ok(made)
}

/// Images that are mounted as volumes; the runtime mounts them, if it can (containerd from 2.1 on).
async fn image_mounts(
    node: &NodeContext,
    order: &Order,
    environment: &[(String, String)],
    sandbox_config: &cri::PodSandboxConfig,
) -> Result<Vec<cri::Mount>, Failure> {
    let mut made = Vec::new();
    for (mount, source) in mounts::images(&order.pod, &order.container) {
        let puller = Container {
            name: order.container.name.clone(),
            image: source.reference.clone(),
            image_pull_policy: source.pull_policy.clone(),
            ..Default::default()
        };
        let image = node.images.ensure(node, &order.pod, &puller, sandbox_config).await?;
        let planned = mounts::image(mount, &image.id, environment);
        made.push(planned.map_err(|message| order.fail(node, "CreateContainerConfigError", message))?);
    }
    Ok(made)
}

/// The hosts file that the kubelet writes, unless the container brings its own.
fn hosts_mount(node: &NodeContext, order: &Order, uid: &str) -> Result<Option<cri::Mount>, String> {
    const PATH: &str = "/etc/hosts";
    if mounts::has_mount_at(&order.container, PATH) {
        return Ok(None);
    }
    let spec = order.pod.spec.as_ref();
    let aliases = spec.and_then(|spec| spec.host_aliases.as_deref()).unwrap_or_default();
    let text = if order.sandbox.host_network {
        hosts::host_network(&std::fs::read_to_string(PATH).unwrap_or_default(), aliases)
    } else {
        hosts::managed(&order.sandbox.ips, &hosts::names(&order.pod, &node.config.cluster_domain), aliases)
    };
    let file = node.config.layout.etc_hosts(uid);
    std::fs::write(&file, text).map_err(|error| format!("writing {}: {error}", file.display()))?;
    Ok(Some(cri::Mount {
        container_path: PATH.to_owned(),
        host_path: file.to_string_lossy().into_owned(),
        ..Default::default()
    }))
}

fn termination_mount(node: &NodeContext, order: &Order, uid: &str) -> Result<Option<cri::Mount>, String> {
    let path = termination_path(&order.container);
    let directory = node.config.layout.container(uid, &order.container.name);
    let file = directory.join(format!("{:08x}", rand::random::<u32>()));
    let made = std::fs::create_dir_all(&directory).and_then(|()| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&file, "")?;
        // Whatever user the container runs as may write its last words.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))
    });
    made.map_err(|error| format!("making the termination log {}: {error}", file.display()))?;
    Ok(Some(cri::Mount {
        container_path: path.to_owned(),
        host_path: file.to_string_lossy().into_owned(),
        ..Default::default()
    }))
}

fn container_security(
    node: &NodeContext,
    order: &Order,
    image: &Image,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let facts = security::Facts {
        image_uid: image.uid.as_ref().map(|uid| uid.value),
        image_user: image.username.clone(),
        ..make_sandbox::security_facts(node, &order.pod)
    };
    security::container(&order.pod, &order.container, &facts)
}

fn make_log_directory(node: &NodeContext, order: &Order) -> Result<(), String> {
    let meta = &order.pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let directory = node
        .config
        .layout
        .pod_logs(&text(&meta.namespace), &text(&meta.name), &text(&meta.uid))
        .join(&order.container.name);
    std::fs::create_dir_all(&directory)
        .map_err(|error| format!("making the log directory {}: {error}", directory.display()))
}
