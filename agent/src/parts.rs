//! The node's parts and what each is told, once runtime and identity are there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use api::cluster::{ClusterNetwork, Net};
use component::{Informers, Supervisor};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kubelet::config::{CgroupDriver, ServerConfig};
use kubelet::layout::Layout;
use kubelet::network_contract::PodNetwork;
use netlink::IpNet;
use network::Network;

use crate::config::{Config, ProxyMode};
use crate::containerd;
use crate::join::Files;
use crate::start::AgentError;

/// Starts what needs no runtime: network, proxy and DNS.
pub fn start_network(
    config: &Config,
    cluster: &ClusterNetwork,
    node_ip: IpAddr,
    informers: &Informers,
    supervisor: &Supervisor,
) -> Result<Network, AgentError> {
    let IpAddr::V4(address) = node_ip else { return Err(AgentError::NodeAddress(node_ip)) };
    let net = |net: Net| IpNet::new(net.address.into(), net.prefix);
    let (pods, services) = (net(cluster.pods), net(cluster.services));

    let mut network = network::Config::new(&config.node_name, address);
    network.cni_conf_dir = config.directories.cni_conf();
    network.cni_bin_dir = config.directories.cni_bin();
    network.cni_data_dir = config.directories.cni_state();
    network.cluster_cidr = pods;
    network.service_cidr = services;
    let network = network::start(network, informers.clone(), supervisor);

    let mut proxy = proxy::Config::new(&config.node_name);
    proxy.mode = match config.proxy_mode {
        ProxyMode::Nftables => proxy::Mode::Nftables,
        ProxyMode::Iptables => proxy::Mode::Iptables,
    };
    proxy.node_ip = Some(address);
    proxy.metrics_bind = config.proxy_metrics;
    proxy.cluster_cidr = pods;
    proxy.dns_address = Some(cluster.dns);
    let dns = dns::Config {
        address: cluster.dns,
        domain: cluster.domain.clone(),
        resolv_conf: config.resolv_conf.clone(),
        reverse_nets: vec![pods, services],
        ..dns::Config::default()
    };
    proxy::start(proxy, informers.clone(), supervisor);
    dns::start(dns, informers.clone(), supervisor);
    Ok(network)
}

/// Starts the kubelet, with its server.
pub fn start_kubelet(
    config: kubelet::Config,
    network: Network,
    informers: &Informers,
    supervisor: &Supervisor,
) -> Result<(), AgentError> {
    kubelet::start(config, Some(Arc::new(OwnNetwork(network))), informers.clone(), supervisor)?;
    Ok(())
}

/// The network part as the kubelet knows it.
struct OwnNetwork(Network);

impl PodNetwork for OwnNetwork {
    fn isolate<'a>(&'a self, pod: &'a Arc<Pod>, addresses: &'a [IpAddr]) -> BoxFuture<'a, ()> {
        self.0.isolate(pod, addresses).boxed()
    }
}

pub fn kubelet_config(
    config: &Config,
    cluster: &ClusterNetwork,
    node_ip: IpAddr,
    runtime: &Path,
    files: &Files,
) -> kubelet::Config {
    let layout = Layout::new(config.directories.kubelet(), config.directories.pod_logs.clone());
    let mut kubelet = kubelet::Config::new(&config.node_name, vec![node_ip], layout, runtime.to_owned());
    kubelet.labels = config.labels.clone();
    kubelet.taints = config.taints.clone();
    kubelet.manifests_dir = config.manifests.clone();
    kubelet.cluster_dns = vec![cluster.dns.into()];
    kubelet.cluster_domain = cluster.domain.clone();
    kubelet.resolv_conf = config.resolv_conf.clone();
    kubelet.cgroup_root = config.cgroup_root.clone();
    kubelet.cgroup_driver = match config.cgroup_driver {
        containerd::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        containerd::CgroupDriver::Systemd => CgroupDriver::Systemd,
    };
    kubelet.max_pods = config.max_pods;
    kubelet.allowed_unsafe_sysctls = config.allowed_unsafe_sysctls.clone();
    kubelet.eviction = config.eviction.clone();
    kubelet.image_gc = config.image_gc.clone();
    kubelet.image_verification = config.image_verification.clone();
    kubelet.credential_providers = config.credential_providers.clone();
    kubelet.container_logs = config.container_logs.clone();
    kubelet.healthz = config.healthz;
    kubelet.server = Some(ServerConfig {
        address: (everywhere(node_ip), config.kubelet_port).into(),
        // One file holds certificate and key.
        certificate: files.serving.clone(),
        key: files.serving.clone(),
        client_ca: files.ca.clone(),
    });
    kubelet
}

/// Every address of a node, as Kubernetes' kubelet listens: the node's own programs ask it on loopback.
fn everywhere(node_ip: IpAddr) -> IpAddr {
    match node_ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
