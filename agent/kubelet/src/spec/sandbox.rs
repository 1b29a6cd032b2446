//! A pod's sandbox as CRI takes it (`kuberuntime_sandbox.go`). Pure.

use std::collections::HashMap;

use api::resources::{self, QosClass};
use k8s_openapi::api::core::v1::Pod;
use proto::runtime::v1::{
    DnsConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};

use super::hosts::{self, PodNames};
use super::security::{self, Facts};
use crate::cgroups::sandbox_resources;
use crate::layout::Layout;
use crate::pod::labels;
use crate::user_namespaces;

/// What the node adds to the pod's own wishes.
pub struct Surroundings<'a> {
    pub layout: &'a Layout,
    pub dns: DnsConfig,
    pub cgroup_parent: String,
    pub cluster_domain: &'a str,
    pub facts: &'a Facts,
}

/// The sandbox's configuration. The same is handed to CRI again with every container.
pub fn config(pod: &Pod, attempt: u32, node: Surroundings<'_>) -> Result<PodSandboxConfig, String> {
    let meta = &pod.metadata;
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (name, namespace, uid) = (text(&meta.name), text(&meta.namespace), text(&meta.uid));
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    if user_namespaces::wanted(pod) && node.facts.users.is_none() {
        // Never with the host's users instead.
        return Err("the pod has no user IDs of its own on this node".to_owned());
    }
    let names: PodNames = hosts::names(pod, node.cluster_domain);
    let hostname = if host_network { String::new() } else { hosts::sandbox_hostname(pod, &names)? };
    let mut pod_labels: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    pod_labels.insert(labels::POD_NAME.to_owned(), name.clone());
    pod_labels.insert(labels::POD_NAMESPACE.to_owned(), namespace.clone());
    pod_labels.insert(labels::POD_UID.to_owned(), uid.clone());
    let sysctls = spec
        .and_then(|spec| spec.security_context.as_ref())
        .and_then(|context| context.sysctls.as_ref())
        .map(|sysctls| sysctls.iter().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect())
        .unwrap_or_default();
    let whole = sandbox_resources(pod);
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.clone(),
            uid: uid.clone(),
            namespace: namespace.clone(),
            attempt,
        }),
        hostname,
        log_directory: node.layout.pod_logs(&namespace, &name, &uid).to_string_lossy().into_owned(),
        dns_config: Some(node.dns),
        port_mappings: if host_network { Vec::new() } else { port_mappings(pod) },
        labels: pod_labels,
        annotations: meta.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: node.cgroup_parent,
            security_context: Some(security::sandbox(pod, node.facts)),
            sysctls,
            overhead: Some(whole.overhead),
            resources: Some(whole.own),
        }),
    })
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let containers = pod.spec.iter().flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten().filter(|container| resources::is_sidecar(container));
        spec.containers.iter().chain(sidecars)
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            } as i32,
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// The class decides the pod's cgroup.
pub fn qos(pod: &Pod) -> QosClass {
    resources::qos_class(pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::runtime::v1::{NamespaceMode, UserNamespace};
    use serde_json::json;

    fn config_of(spec: serde_json::Value) -> Result<PodSandboxConfig, String> {
        config_with(spec, &Facts::default())
    }

    fn config_with(spec: serde_json::Value, facts: &Facts) -> Result<PodSandboxConfig, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "labels": {"app": "web"}}, "spec": spec
        }))
        .unwrap();
        let layout = Layout::new("/k", "/logs");
        let node = Surroundings {
            layout: &layout,
            dns: DnsConfig::default(),
            cgroup_parent: "/kubepods/podu".to_owned(),
            cluster_domain: "cluster.local",
            facts,
        };
        config(&pod, 2, node)
    }

    #[test]
    fn a_pod_with_ports() {
        let made = config_of(json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]}]}))
        .unwrap();
        assert_eq!((made.hostname.as_str(), made.log_directory.as_str()), ("web", "/logs/n_web_u"));
        assert_eq!(made.metadata.unwrap().attempt, 2);
        assert_eq!(made.labels["io.kubernetes.pod.uid"], "u");
        assert_eq!(made.labels["app"], "web");
        let ports: Vec<(i32, i32, i32)> =
            made.port_mappings.iter().map(|port| (port.protocol, port.container_port, port.host_port)).collect();
        assert_eq!(ports, [(0, 80, 8080), (1, 53, 0)]);
    }

    #[test]
    fn the_hosts_network_has_no_hostname_and_no_mappings() {
        let made = config_of(json!({"hostNetwork": true, "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]})).unwrap();
        assert!(made.hostname.is_empty() && made.port_mappings.is_empty());
    }

    #[test]
    fn a_pod_that_wants_its_own_users_never_has_the_hosts() {
        let own_users = json!({"hostUsers": false, "containers": []});
        assert!(config_of(own_users.clone()).is_err());
        let users = UserNamespace { mode: NamespaceMode::Pod as i32, ..Default::default() };
        let facts = Facts { users: Some(users.clone()), ..Default::default() };
        let made = config_with(own_users, &facts).unwrap();
        let options = made.linux.and_then(|linux| linux.security_context?.namespace_options);
        assert_eq!(options.and_then(|options| options.userns_options), Some(users));
    }
}
