//! The controllers of the control plane: one module per controller.
//!
//! Each watches shared caches ([`context::Context`]), turns changes into keys, and for each key
//! runs `reconcile`: a pure decision from what is wanted and what is observed, then the writes.
//! They know the cluster only through `kube::Client`s, one identity per controller. Neighbours:
//! `controlplane` starts this crate, `component` owns caches, queues and tasks.
//!
//! Example, the way of a Deployment: `deployment` makes a ReplicaSet and sizes it, `replicaset`
//! makes its pods, `endpointslice` publishes them when they are ready, `garbage_collector` removes
//! what an owner leaves behind.

mod context;
mod discovery;
mod error;
mod expectations;
mod hash;
mod index;
mod lag;
mod meta;
mod node_match;
mod ownership;
mod podcontrol;
mod podstate;
mod revisions;
mod service_pods;
mod taints;

mod attach_detach;
mod autoscaler;
mod bootstrap;
mod certificates;
mod cluster_dns;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taint_eviction;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod ephemeral_volume;
mod garbage_collector;
mod job;
mod legacy_token_cleaner;
mod namespace;
mod namespace_defaults;
mod node_ipam;
mod node_lifecycle;
mod node_ttl;
mod pod_certificate_cleaner;
mod pod_gc;
mod replicaset;
mod resource_claim;
mod resource_quota;
mod service_account_tokens;
mod service_cidr;
mod statefulset;
mod storage_migration;
mod taint_eviction;
mod trust_bundle_publisher;
mod ttl_after_finished;
mod volume_binder;
mod volume_protection;

use std::sync::Arc;

use component::Supervisor;
use kube::Client;

/// What the controllers need to know of their cluster.
pub struct Config {
    /// A client that acts as the ServiceAccount `kube-system/<name>`; for the empty name as
    /// `system:kube-controller-manager`.
    pub client: Arc<dyn Fn(&str) -> Client + Send + Sync>,
    /// The cluster CA, PEM: published to every namespace and, with its key, signs certificates.
    pub ca_certificate: String,
    pub ca_key: String,
    /// Each node gets a network of `node_mask` bits out of this one, e.g. `10.42.0.0/16` and 24.
    pub cluster_cidr: String,
    pub node_mask: u8,
    /// Never given to a node, e.g. `10.43.0.0/16`.
    pub service_cidr: String,
    /// What nodes reach the API server by, e.g. `https://10.0.0.1:6443`; published in
    /// `kube-public/cluster-info`.
    pub server: String,
}

/// Starts every controller. They end with `supervisor`.
pub fn start(config: Config, supervisor: &Supervisor) {
    let context = context::Context::new(config, supervisor);
    replicaset::start(&context);
    deployment::start(&context);
    daemonset::start(&context);
    statefulset::start(&context);
    job::start(&context);
    cronjob::start(&context);
    ttl_after_finished::start(&context);
    disruption::start(&context);
    volume_protection::start(&context);
    ephemeral_volume::start(&context);
    resource_claim::start(&context);
    node_ttl::start(&context);
    volume_binder::start(&context);
    resource_quota::start(&context);
    autoscaler::start(&context);
    attach_detach::start(&context);
    storage_migration::start(&context);
    service_account_tokens::start(&context);
    legacy_token_cleaner::start(&context);
    trust_bundle_publisher::start(&context);
    service_cidr::start(&context);
    endpointslice_mirroring::start(&context);
    endpointslice::start(&context);
    endpoints::start(&context);
    cluster_dns::start(&context);
    namespace_defaults::start(&context);
    namespace::start(&context);
    garbage_collector::start(&context);
    certificates::start(&context);
    pod_certificate_cleaner::start(&context);
    bootstrap::start(&context);
    node_ipam::start(&context);
    node_lifecycle::start(&context);
    taint_eviction::start(&context);
    pod_gc::start(&context);
}
