//! One node of a cluster, in one process: the container runtime beside it, and in it the kubelet,
//! the pod network, Services and DNS.
//!
//! Layer: above `kubelet`, `network`, `proxy` and `dns`, which it starts; below `cli`. It decides
//! nothing about pods. What lives here is what a node needs before any of these can run:
//!
//! - [`containerd`]: the host's runtime under our own directories; [`images`]: the sandbox image and
//!   images without a registry;
//! - [`join`]: from a token to the node's identity and its `kube::Client`;
//! - [`registries`]: mirrors and credentials of image registries, for containerd;
//! - [`cni`]: the plugins' names in containerd's plugin directory;
//! - [`hollow`]: nodes without machines, in one process of their own;
//! - [`Config`]: everything one is told.
//!
//! [`start`] brings these up side by side: the runtime takes about as long as joining does.

pub mod cni;
mod collect;
mod config;
pub mod containerd;
pub mod hollow;
pub mod images;
pub mod join;
mod parts;
pub mod registries;
mod start;

pub use config::{Config, Directories, ProxyMode};
pub use kubelet::config::{EvictionThresholds, ImageGc};
pub use kubelet::images::{providers as credential_providers, records as image_records};
pub use network::Exception as FirewallException;
pub use start::{
    AgentError, Running, follow_pod_routes, kubelet_elsewhere, kubelet_entries, remove_network_objects, start,
};
