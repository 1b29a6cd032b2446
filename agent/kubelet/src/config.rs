//! What a kubelet is told when it starts. Everything else it learns from the API and the runtime.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use api::quantity::Quantity;
use api::resources::Amounts;
use k8s_openapi::api::core::v1::Taint;

use crate::images::providers;
use crate::images::records::Policy;
use crate::layout::Layout;

/// Who arranges cgroups: the kubelet and runc by files, or systemd. The container runtime must be
/// configured the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    #[default]
    Cgroupfs,
    Systemd,
}

/// The 10250 server: where it listens, and the files of its TLS identity (read again when they change).
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub address: SocketAddr,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The CA whose client certificates are trusted.
    pub client_ca: PathBuf,
}

/// When unused images are removed, in percent of the image file system.
#[derive(Debug, Clone)]
pub struct ImageGc {
    pub high_percent: u8,
    pub low_percent: u8,
    pub min_age: Duration,
}

impl Default for ImageGc {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120) }
    }
}

/// How much of a container's log is kept.
#[derive(Debug, Clone)]
pub struct ContainerLogs {
    /// A file is rotated at this many bytes...
    pub max_size: u64,
    /// ... and this many files are kept, the one that is written included.
    pub max_files: u32,
}

impl Default for ContainerLogs {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5 }
    }
}

/// A threshold, of a whole or as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Amount(Quantity),
    Percent(u8),
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Amount(amount) => write!(f, "{amount}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Hard eviction thresholds; Kubernetes' defaults.
#[derive(Debug, Clone)]
pub struct EvictionThresholds {
    /// `memory.available`, bytes.
    pub memory_available: u64,
    /// `nodefs.available`, percent.
    pub nodefs_available_percent: u8,
    /// `nodefs.inodesFree`, percent.
    pub nodefs_inodes_percent: u8,
    /// `imagefs.available`, percent.
    pub imagefs_available_percent: u8,
    /// `imagefs.inodesFree`, percent.
    pub imagefs_inodes_percent: u8,
    /// `pid.available`; without one nobody is evicted for the number of processes.
    pub pid_available: Option<Limit>,
    /// How long a pressure condition stays after the signal recovered.
    pub transition_period: Duration,
}

impl Default for EvictionThresholds {
    fn default() -> Self {
        Self {
            memory_available: 100 << 20,
            nodefs_available_percent: 10,
            nodefs_inodes_percent: 5,
            imagefs_available_percent: 15,
            imagefs_inodes_percent: 5,
            pid_available: None,
            transition_period: Duration::from_secs(300),
        }
    }
}

/// `memory.available<100Mi,nodefs.available<10%,…`, as upstream's `--eviction-hard`; signals that
/// are not named keep their default, `0%` switches one off. Of inodes the images' file system keeps what
/// is named for the node's, unless it is named too.
impl std::str::FromStr for EvictionThresholds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut thresholds = Self::default();
        let mut imagefs_inodes = None;
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (signal, limit) =
                part.split_once('<').ok_or_else(|| format!("{part:?} has not the form signal<limit"))?;
            let percent = || {
                let number = limit.strip_suffix('%').and_then(|number| number.parse::<u8>().ok());
                number
                    .filter(|number| *number <= 100)
                    .ok_or_else(|| format!("{limit:?} is no percentage, as {signal} needs"))
            };
            match signal {
                "memory.available" => {
                    let bytes: Quantity = limit.parse().map_err(|error| format!("{limit:?}: {error}"))?;
                    thresholds.memory_available =
                        u64::try_from(bytes.units()).map_err(|_| format!("{limit:?} is negative"))?;
                }
                "nodefs.available" => thresholds.nodefs_available_percent = percent()?,
                "nodefs.inodesFree" => thresholds.nodefs_inodes_percent = percent()?,
                "imagefs.available" => thresholds.imagefs_available_percent = percent()?,
                "imagefs.inodesFree" => imagefs_inodes = Some(percent()?),
                "pid.available" => {
                    thresholds.pid_available = Some(match limit.ends_with('%') {
                        true => Limit::Percent(percent()?),
                        false => Limit::Amount(limit.parse().map_err(|error| format!("{limit:?}: {error}"))?),
                    });
                }
                other => {
                    return Err(format!(
                        "{other:?} is no eviction signal: use memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree or pid.available"
                    ));
                }
            }
        }
        thresholds.imagefs_inodes_percent = imagefs_inodes.unwrap_or(thresholds.nodefs_inodes_percent);
        Ok(thresholds)
    }
}

#[derive(Debug, Clone)]
pub struct Config {
    /// The Node object's name.
    pub node_name: String,
    /// The label `kubernetes.io/hostname` and the node address of type Hostname.
    pub hostname: String,
    /// One address per family at most, the preferred family first.
    pub node_ips: Vec<IpAddr>,
    pub labels: BTreeMap<String, String>,
    /// Taints the node registers with; later changes belong to the API object.
    pub taints: Vec<Taint>,
    /// `spec.providerID`, e.g. `skiff://lab/node-1`.
    pub provider_id: Option<String>,
    pub layout: Layout,
    /// Directory of static pods' manifests.
    pub manifests_dir: Option<PathBuf>,
    /// The CRI socket.
    pub runtime_endpoint: PathBuf,
    /// The largest number of image pulls under way at once.
    pub max_parallel_image_pulls: usize,
    /// When pods have to prove that they may use an image that is there.
    pub image_verification: Policy,
    /// Programs that give logins of registries.
    pub credential_providers: providers::Settings,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The resolv.conf that pods with dnsPolicy Default inherit.
    pub resolv_conf: PathBuf,
    /// The cgroup under which `kubepods` is made, e.g. `/` or `/skiff/lab/demo/node-1`.
    pub cgroup_root: String,
    pub cgroup_driver: CgroupDriver,
    pub max_pods: u32,
    /// Sysctls that pods may set besides the safe ones, e.g. `net.core.somaxconn` or `net.ipv4.*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Kept from pods: subtracted from capacity to give allocatable.
    pub system_reserved: Amounts,
    pub eviction: EvictionThresholds,
    pub image_gc: ImageGc,
    pub container_logs: ContainerLogs,
    /// None for a kubelet without its HTTP server (tests).
    pub server: Option<ServerConfig>,
    /// Where `/healthz` is answered without a question, for people and programs of this machine.
    pub healthz: Option<SocketAddr>,
    /// How often an unchanged node status is sent.
    pub node_status_report: Duration,
    /// Lease duration; renewed four times as often.
    pub lease_duration: Duration,
    /// How often everything is compared with the runtime, whatever events said.
    pub audit_period: Duration,
}

impl Config {
    /// Kubernetes' defaults for a node with its directories under `layout`.
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>, layout: Layout, runtime_endpoint: PathBuf) -> Self {
        let node_name = node_name.into();
        Self {
            hostname: node_name.clone(),
            node_name,
            node_ips,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            provider_id: None,
            layout,
            manifests_dir: None,
            runtime_endpoint,
            max_parallel_image_pulls: 5,
            image_verification: Policy::default(),
            credential_providers: providers::Settings::default(),
            cluster_dns: vec![api::cluster::ClusterNetwork::default().dns.into()],
            cluster_domain: api::defaults::CLUSTER_DOMAIN.to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            cgroup_root: "/".to_owned(),
            cgroup_driver: CgroupDriver::default(),
            max_pods: 110,
            allowed_unsafe_sysctls: Vec::new(),
            system_reserved: Amounts::new(),
            eviction: EvictionThresholds::default(),
            image_gc: ImageGc::default(),
            container_logs: ContainerLogs::default(),
            server: None,
            healthz: None,
            node_status_report: Duration::from_secs(300),
            lease_duration: Duration::from_secs(40),
            audit_period: Duration::from_secs(10),
        }
    }

    /// The configuration in Kubernetes' field names (`KubeletConfiguration`), as /configz shows it.
    pub fn as_json(&self) -> serde_json::Value {
        let driver = match self.cgroup_driver {
            CgroupDriver::Cgroupfs => "cgroupfs",
            CgroupDriver::Systemd => "systemd",
        };
        let mut eviction_hard = BTreeMap::from([
            ("memory.available", self.eviction.memory_available.to_string()),
            ("nodefs.available", format!("{}%", self.eviction.nodefs_available_percent)),
            ("nodefs.inodesFree", format!("{}%", self.eviction.nodefs_inodes_percent)),
            ("imagefs.available", format!("{}%", self.eviction.imagefs_available_percent)),
            ("imagefs.inodesFree", format!("{}%", self.eviction.imagefs_inodes_percent)),
        ]);
        eviction_hard.extend(self.eviction.pid_available.map(|limit| ("pid.available", limit.to_string())));
        let reserved: BTreeMap<&String, String> =
            self.system_reserved.iter().map(|(name, quantity)| (name, quantity.to_string())).collect();
        serde_json::json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "staticPodPath": self.manifests_dir,
            "port": self.server.as_ref().map(|server| server.address.port()),
            "address": self.server.as_ref().map(|server| server.address.ip().to_string()),
            "healthzPort": self.healthz.map_or(0, |address| address.port()),
            "healthzBindAddress": self.healthz.map(|address| address.ip().to_string()),
            "clusterDomain": self.cluster_domain,
            "clusterDNS": self.cluster_dns,
            "containerRuntimeEndpoint": format!("unix://{}", self.runtime_endpoint.display()),
            "nodeStatusReportFrequency": format!("{}s", self.node_status_report.as_secs()),
            "nodeLeaseDurationSeconds": self.lease_duration.as_secs(),
            "imageMinimumGCAge": format!("{}s", self.image_gc.min_age.as_secs()),
            "imageGCHighThresholdPercent": self.image_gc.high_percent,
            "imageGCLowThresholdPercent": self.image_gc.low_percent,
            "cgroupRoot": self.cgroup_root,
            "cgroupDriver": driver,
            "maxPods": self.max_pods,
            "allowedUnsafeSysctls": self.allowed_unsafe_sysctls,
            "resolvConf": self.resolv_conf,
            "maxParallelImagePulls": self.max_parallel_image_pulls,
            "serializeImagePulls": self.max_parallel_image_pulls <= 1,
            "imagePullCredentialsVerificationPolicy": self.image_verification.name(),
            "preloadedImagesVerificationAllowlist": self.image_verification.allowlist(),
            "evictionHard": eviction_hard,
            "containerLogMaxSize": self.container_logs.max_size.to_string(),
            "containerLogMaxFiles": self.container_logs.max_files,
            "systemReserved": reserved,
            "podLogsDir": self.layout.logs,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eviction_thresholds_are_read() {
        let read = |text: &str| text.parse::<EvictionThresholds>();
        let default = read("").unwrap();
        assert_eq!((default.nodefs_inodes_percent, default.imagefs_inodes_percent), (5, 5));
        assert_eq!(default.pid_available, None);
        let off = read("nodefs.available<0%,nodefs.inodesFree<0%").unwrap();
        assert_eq!((off.nodefs_inodes_percent, off.imagefs_inodes_percent, off.imagefs_available_percent), (0, 0, 15));
        assert_eq!(read("imagefs.inodesFree<7%,nodefs.inodesFree<1%").unwrap().imagefs_inodes_percent, 7);
        for (text, limit) in [("10%", Limit::Percent(10)), ("1k", Limit::Amount("1k".parse().unwrap()))] {
            let limited = read(&format!("pid.available<{text}")).unwrap().pid_available;
            assert_eq!((limited, limited.unwrap().to_string()), (Some(limit), text.to_owned()));
        }
        for bad in ["pid.available", "pid.available<101%", "pid.available<x", "pods<1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
