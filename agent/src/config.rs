//! What an agent is told when it starts. Everything else it learns from the API and the machine.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use kubelet::config::{ContainerLogs, EvictionThresholds, ImageGc};
use kubelet::images::providers;
use kubelet::images::records::Policy;

use crate::containerd::CgroupDriver;
use crate::join::Credentials;

/// How Services reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProxyMode {
    #[default]
    Nftables,
    Iptables,
}

/// One node. [`Config::new`] gives the defaults of a machine that is one node.
#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    /// The node's own address; the one on the interface that routes to the server if none.
    pub node_ip: Option<IpAddr>,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// `https://host:port`
    pub server: String,
    pub credentials: Credentials,
    pub directories: Directories,
    /// Another CRI socket; the agent then runs no containerd.
    pub runtime_endpoint: Option<PathBuf>,
    /// containerd's executable; searched on PATH if none.
    pub containerd: Option<PathBuf>,
    /// `skiff-cni`; searched beside this executable, then on PATH, if none.
    pub cni_executable: Option<PathBuf>,
    /// Image archives to import before pods run.
    pub images: Vec<PathBuf>,
    /// Where static pods' manifests lie.
    pub manifests: Option<PathBuf>,
    /// The cgroup under which pods run, e.g. `/` or `/skiff/lab/demo/node-1`.
    pub cgroup_root: String,
    pub cgroup_driver: CgroupDriver,
    pub proxy_mode: ProxyMode,
    /// The resolv.conf that names the host's resolvers.
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    /// How often addresses without a pod are looked for.
    pub network_gc_period: Duration,
    /// Sysctls that pods may set besides the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    pub kubelet_port: u16,
    /// Where the kubelet says to people of the machine that it is well; none for nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where the proxy tells them about itself.
    pub proxy_metrics: Option<SocketAddr>,
    /// When the node is under pressure and pods must go.
    pub eviction: EvictionThresholds,
    /// When unused images are removed.
    pub image_gc: ImageGc,
    /// When pods have to prove that they may use an image that is there.
    pub image_verification: Policy,
    /// Programs that give logins of registries.
    pub credential_providers: providers::Settings,
    pub container_logs: ContainerLogs,
}

/// Where an agent's files lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// Survives a reboot: `/var/lib/skiff/agent`.
    pub data: PathBuf,
    /// Does not: `/run/skiff`.
    pub run: PathBuf,
    /// Containers' logs: `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// Mirrors and credentials of registries: `/etc/skiff/registries.yaml`.
    pub registries: PathBuf,
    /// The kubelet's, if it does not lie in [`Self::data`]: `/var/lib/kubelet` for drivers that run
    /// outside of pods.
    pub kubelet: Option<PathBuf>,
}

impl Default for Directories {
    fn default() -> Self {
        Self {
            data: "/var/lib/skiff/agent".into(),
            run: "/run/skiff".into(),
            pod_logs: "/var/log/pods".into(),
            registries: "/etc/skiff/registries.yaml".into(),
            kubelet: None,
        }
    }
}

impl Directories {
    /// containerd's `<registry host>/hosts.toml` files, written from [`Self::registries`].
    pub fn registry_hosts(&self) -> PathBuf {
        self.data.join("registries")
    }

    pub fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    pub fn kubelet(&self) -> PathBuf {
        self.kubelet.clone().unwrap_or_else(|| self.data.join("kubelet"))
    }

    /// A link to the kubelet's directory where that lies elsewhere, so that it is found again.
    pub fn kubelet_link(&self) -> PathBuf {
        self.data.join("kubelet-root")
    }

    pub fn cni_bin(&self) -> PathBuf {
        self.data.join("cni/bin")
    }

    pub fn cni_conf(&self) -> PathBuf {
        self.data.join("cni/net.d")
    }

    /// State of CNI plugins: addresses given out by host-local.
    pub fn cni_state(&self) -> PathBuf {
        self.data.join("cni/state")
    }
}

impl Config {
    pub fn new(node_name: impl Into<String>, server: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            node_name: node_name.into(),
            node_ip: None,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            server: server.into(),
            credentials,
            directories: Directories::default(),
            runtime_endpoint: None,
            containerd: None,
            cni_executable: None,
            images: Vec::new(),
            manifests: None,
            cgroup_root: "/".to_owned(),
            cgroup_driver: CgroupDriver::default(),
            proxy_mode: ProxyMode::default(),
            resolv_conf: host_resolv_conf(),
            max_pods: 110,
            network_gc_period: Duration::from_secs(300),
            allowed_unsafe_sysctls: Vec::new(),
            kubelet_port: api::defaults::KUBELET_PORT,
            healthz: Some((Ipv4Addr::LOCALHOST, api::defaults::KUBELET_HEALTHZ_PORT).into()),
            proxy_metrics: Some((Ipv4Addr::LOCALHOST, proxy::METRICS_PORT).into()),
            eviction: EvictionThresholds::default(),
            image_gc: ImageGc::default(),
            image_verification: Policy::default(),
            credential_providers: providers::Settings::default(),
            container_logs: ContainerLogs::default(),
        }
    }
}

/// systemd-resolved writes its stub, on a loopback address that pods cannot reach, to
/// /etc/resolv.conf, and the real resolvers to a file of its own.
fn host_resolv_conf() -> PathBuf {
    let real = Path::new("/run/systemd/resolve/resolv.conf");
    let stub = std::fs::read_to_string("/etc/resolv.conf").is_ok_and(|text| text.contains("nameserver 127.0.0.53"));
    if stub && real.exists() { real.to_owned() } else { PathBuf::from("/etc/resolv.conf") }
}
