//! What a pod's worker needs of the pod network, and nothing of how it is made.
//!
//! `agent` implements [`PodNetwork`] with the node's network part. A kubelet that is given none asks nobody.

use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;

pub trait PodNetwork: Send + Sync {
    /// Returns once network policies hold for the pod at these addresses, which the API may not show yet; at
    /// once when none selects it. The caller gives up waiting by dropping the future.
    fn isolate<'a>(&'a self, pod: &'a Arc<Pod>, addresses: &'a [IpAddr]) -> BoxFuture<'a, ()>;
}
