//! Routes to the pods for a machine that is no node: that of a server without an agent, which must
//! reach webhooks, aggregated API servers and proxied Services in pods.
//!
//! Nodes on one of this machine's links get plain routes. Others are left to the network between:
//! a VXLAN end needs a pod prefix of its own, which only nodes have.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use component::{Informers, Supervisor};
use k8s_openapi::api::core::v1::Node;
use tokio::sync::Notify;

use crate::{AUDIT, Error, kernel, plan};

const RETRY: Duration = Duration::from_secs(1);

/// Keeps routes to all nodes' pods through the link that holds `address`. Does nothing while there
/// is a node in this network namespace: its own routes are more.
pub fn follow(address: Ipv4Addr, informers: &Informers, supervisor: &Supervisor) {
    let nodes = informers.of::<Node>();
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    nodes.on_change(move |change| {
        if plan::matters(change.old.map(AsRef::as_ref), change.new.map(AsRef::as_ref)) {
            wake.notify_one();
        }
    });
    supervisor.spawn("pod routes", async move {
        // Half a list would remove the routes to the other half.
        nodes.synced().await;
        let mut said = None;
        loop {
            let seen = nodes.list();
            let outcome = tokio::task::spawn_blocking(move || reconcile(address, &seen)).await;
            let failure = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic.to_string()),
            };
            if let Some(message) = failure.as_ref().filter(|_| failure != said) {
                tracing::warn!(message, "webhooks and aggregated API servers in pods cannot be reached; retrying");
            }
            let pause = if failure.is_some() { RETRY } else { AUDIT };
            said = failure;
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
}

fn reconcile(address: Ipv4Addr, nodes: &[Arc<Node>]) -> Result<(), Error> {
    let uplink = kernel::uplink(address)?;
    let peers = plan::neighbours(address, &uplink, nodes.iter().filter_map(|node| plan::peer(node)));
    kernel::apply_routes(&uplink, &peers)
}
