//! The object model that the control plane and the node share. No I/O, no tokio.
//!
//! - [`cluster`]: the networks and the domain that all parts of a cluster agree on;
//! - [`devices`]: claims and taints of devices;
//! - [`quantity`]: `100m`, `1Gi`: parse, compare, canonical form;
//! - [`field`]: field paths and validation errors in Kubernetes' wording;
//! - [`names`]: DNS-1123 and friends;
//! - [`scalar`]: canonical forms of times, durations and bytes; [`formats`]: texts of a format;
//! - [`selector`]: label and field selectors, from text, JSON and typed objects;
//! - [`references`]: what of the API a pod refers to;
//! - [`resources`]: what a pod asks for, and its QoS class;
//! - [`version`]: which Kubernetes this is.

pub mod cluster;
pub mod devices;
pub mod field;
pub mod formats;
pub mod names;
pub mod quantity;
pub mod references;
pub mod resources;
pub mod scalar;
pub mod selector;
pub mod version;

/// Domain defaults of a skiff cluster, one place for all rooms.
pub mod defaults {
    pub const API_PORT: u16 = 6443;
    pub const KUBELET_PORT: u16 = 10250;
    pub const KUBELET_HEALTHZ_PORT: u16 = 10248;
    pub const PROXY_HEALTH_PORT: u16 = 10256;
    pub const POD_CIDR: &str = "10.42.0.0/16";
    pub const SERVICE_CIDR: &str = "10.43.0.0/16";
    pub const CLUSTER_DOMAIN: &str = "cluster.local";
}
