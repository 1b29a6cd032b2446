//! Making a pod's sandbox: directories, cgroup, volumes, then the runtime.

use std::sync::Arc;

use component::EventType;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use proto::runtime::v1::PodSandboxConfig;

use super::observe;
use super::observed::{Observed, Sandbox};
use super::status::Verdict;
use crate::cgroups;
use crate::context::NodeContext;
use crate::cri::Runtime;
use crate::spec::sandbox::{Surroundings, config, qos};
use crate::spec::{dns, security};
use crate::user_namespaces;

/// Which step failed; the event was recorded already.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("making the pod's directory {path}: {source}")]
    Directory { path: String, source: std::io::Error },
    #[error(transparent)]
    Cgroup(#[from] cgroups::CgroupError),
    #[error(transparent)]
    Volumes(#[from] crate::volume_contract::VolumeErrors),
    #[error("Failed to prepare dynamic resources: {0}")]
    Claims(String),
    #[error("Failed to create pod sandbox: {0}")]
    Sandbox(String),
    /// The node cannot have the pod, and never will.
    #[error("{}: {}", .0.reason, .0.message)]
    Refused(Verdict),
}

/// Makes everything a pod's containers need before the first of them. `before` are the sandboxes that it had.
pub async fn make(
    node: &NodeContext,
    pod: &Arc<Pod>,
    attempt: u32,
    before: &[Outlived],
) -> Result<Sandbox, SandboxError> {
    give_back(&node.runtime, before).await;
    prepare(node, pod).await?;
    let made = run_sandbox(node, pod, attempt).await;
    node.user_namespaces.started(pod, made.is_ok());
    made
}

/// A sandbox that another takes the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlived {
    pub id: String,
    /// Some run was in it: its log is kept.
    pub held: bool,
}

/// What a pod's sandboxes become when it is given another.
pub fn outlived(observed: &Observed) -> Vec<Outlived> {
    let held = |id: &str| observed.runs.iter().any(|run| run.sandbox_id == id);
    observed.sandboxes.iter().map(|one| Outlived { id: one.id.clone(), held: held(&one.id) }).collect()
}

/// A sandbox that ended by itself, as with its machine, has its addresses until it is stopped. One that held
/// nothing goes: a pod may have many in its life.
async fn give_back(runtime: &Runtime, before: &[Outlived]) {
    for one in before {
        let mut done = runtime.stop_sandbox(&one.id).await;
        if done.is_ok() && !one.held {
            done = runtime.remove_sandbox(&one.id).await;
        }
        if let Err(error) = done {
            tracing::warn!(sandbox = one.id, %error, "what an earlier sandbox of a pod has could not be given back");
        }
    }
}

async fn run_sandbox(node: &NodeContext, pod: &Arc<Pod>, attempt: u32) -> Result<Sandbox, SandboxError> {
    let sandbox_failed = |message: String| {
        let error = SandboxError::Sandbox(message);
        node.event(pod, EventType::Warning, "FailedCreatePodSandBox", error.to_string());
        error
    };
    let handler = runtime_handler(node, pod).await.map_err(sandbox_failed)?;
    own_users(node, pod, &handler).await.map_err(sandbox_failed)?;
    let config = sandbox_config(node, pod, attempt, true).map_err(sandbox_failed)?;
    let id =
        node.runtime.run_sandbox(config, &handler).await.map_err(|error| sandbox_failed(error.runtime_message()))?;
    observe::sandbox(&node.runtime, &id).await.map_err(|error| sandbox_failed(error.runtime_message()))
}

async fn prepare(node: &NodeContext, pod: &Arc<Pod>) -> Result<(), SandboxError> {
    let meta = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let uid = text(&meta.uid);
    let layout = &node.config.layout;
    for directory in [layout.volumes(&uid), layout.pod_logs(&text(&meta.namespace), &text(&meta.name), &uid)] {
        std::fs::create_dir_all(&directory)
            .map_err(|source| SandboxError::Directory { path: directory.display().to_string(), source })?;
    }
    let group = node.cgroups.pod(qos(pod), &uid);
    if let Err(error) = node.cgroups.apply(&group, &cgroups::pod_limits(pod)).await {
        let message =
            format!("error killing pod: failed to create cgroup for pod: {error}").replace("error killing pod: ", "");
        node.event(pod, EventType::Warning, "FailedCreatePodContainer", message);
        return Err(error.into());
    }
    if let Err(message) = node.devices.admit(pod).await {
        const REASON: &str = "UnexpectedAdmissionError";
        node.event(pod, EventType::Warning, REASON, message.clone());
        return Err(SandboxError::Refused(Verdict::refused(REASON, message)));
    }
    if let Err(errors) = node.volumes.set_up(pod).await {
        for error in errors.iter() {
            node.event(pod, EventType::Warning, error.reason(), error.to_string());
        }
        return Err(errors.into());
    }
    if let Err(message) = node.dra.prepare(pod).await {
        let error = SandboxError::Claims(message);
        node.event(pod, EventType::Warning, "FailedPrepareDynamicResources", error.to_string());
        return Err(error);
    }
    component::timeline(&format!("{}/{}", text(&meta.namespace), text(&meta.name)), "volumes ready");
    Ok(())
}

/// The same for every call about one sandbox. `tell` records warnings as events.
pub fn sandbox_config(
    node: &NodeContext,
    pod: &Arc<Pod>,
    attempt: u32,
    tell: bool,
) -> Result<PodSandboxConfig, String> {
    let resolver = dns::resolver(pod, &node.cluster_dns(), &node.host_resolver());
    if tell {
        for warning in resolver.warnings {
            let reason = if warning.starts_with("kubelet does not have ClusterDNS") {
                "MissingClusterDNS"
            } else {
                "DNSConfigForming"
            };
            node.event(pod, EventType::Warning, reason, warning);
        }
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let surroundings = Surroundings {
        layout: &node.config.layout,
        dns: resolver.config,
        cgroup_parent: node.cgroups.path(&node.cgroups.pod(qos(pod), &uid)),
        cluster_domain: &node.config.cluster_domain,
        facts: &security_facts(node, pod),
    };
    config(pod, attempt, surroundings)
}

/// What the host says for every container of the pod.
pub fn security_facts(node: &NodeContext, pod: &Pod) -> security::Facts {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    security::Facts {
        users: if user_namespaces::wanted(pod) { node.user_namespaces.of(uid) } else { None },
        apparmor: node.machine.apparmor,
        seccomp_directory: node.config.layout.root.join("seccomp").to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// A pod with users of its own is given IDs for them, if the runtime can make the namespace.
async fn own_users(node: &NodeContext, pod: &Pod, handler: &str) -> Result<(), String> {
    if !user_namespaces::wanted(pod) {
        return Ok(());
    }
    let status = node.runtime.status().await;
    let status =
        status.map_err(|error| format!("{}: {}", user_namespaces::refusal(handler), error.runtime_message()))?;
    user_namespaces::supported(&status.runtime_handlers, handler)?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    node.user_namespaces.give(uid).map_err(|error| format!("create user namespace: {error}"))
}

async fn runtime_handler(node: &NodeContext, pod: &Pod) -> Result<String, String> {
    let Some(class) =
        pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.clone()).filter(|name| !name.is_empty())
    else {
        return Ok(String::new());
    };
    match Api::<RuntimeClass>::all(node.client.clone()).get_opt(&class).await {
        Ok(Some(found)) => Ok(found.handler),
        Ok(None) => Err(format!("failed to get sandbox runtime: RuntimeClass \"{class}\" not found")),
        Err(error) => Err(format!("failed to get sandbox runtime: reading RuntimeClass \"{class}\": {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::actions::tests_support::{exited, sandbox};

    #[test]
    fn every_earlier_sandbox_gives_its_addresses_back() {
        let sandboxes = vec![sandbox("first", 0, false), sandbox("second", 1, false)];
        let observed = Observed::new(sandboxes, vec![exited("a", "first", 137, 0)]);
        let outlived = outlived(&observed).into_iter().map(|one| (one.id, one.held)).collect::<Vec<_>>();
        assert_eq!(outlived, [("second".to_owned(), false), ("first".to_owned(), true)]);
        assert!(super::outlived(&Observed::default()).is_empty());
    }
}
