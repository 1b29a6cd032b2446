//! What matters of a Pod to policies. Comparing views keeps status updates from rewriting tables.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    pub namespace: String,
    pub name: String,
    pub node: String,
    pub address: Ipv4Addr,
    pub labels: BTreeMap<String, String>,
    /// Name, protocol number, number.
    pub ports: Vec<(String, u8, u16)>,
    /// It is being deleted: another pod may have its address already.
    pub leaving: bool,
}

/// TCP when nothing is said.
pub fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

impl PodView {
    /// None for a pod without an address of its own: on the host's network, not started, or over.
    pub fn new(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let addresses = status.pod_ips.iter().flatten().map(|each| &each.ip).chain(&status.pod_ip);
        Self::at(pod, addresses.filter_map(|ip| ip.parse().ok()).next()?)
    }

    /// The same for a pod whose status may not show its address yet.
    pub fn at(pod: &Pod, address: Ipv4Addr) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) || spec.host_network == Some(true) {
            return None;
        }
        // A restartable init container serves beside the others.
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.clone()?, protocol(port.protocol.as_deref())?, number))
        });
        Some(Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            node: spec.node_name.clone().unwrap_or_default(),
            address,
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ports: ports.collect(),
            leaving: pod.metadata.deletion_timestamp.is_some(),
        })
    }

    /// The number of a named port, where this pod has it with that protocol.
    pub fn port(&self, name: &str, protocol: u8) -> Option<u16> {
        self.ports.iter().find(|(each, number, _)| each == name && *number == protocol).map(|(_, _, port)| *port)
    }
}
