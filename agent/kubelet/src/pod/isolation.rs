//! Network policies hold before the first container of a pod starts, be it an init container (Kubernetes' page on
//! network policies, "pod lifecycle").

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use component::EventType;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::timeout;

use super::actions::pod_id;
use super::observed::Sandbox;
use crate::context::NodeContext;
use crate::network_contract::PodNetwork;

/// A pod waits so long for it. Then it starts all the same: policies may be what the node cannot have.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits until containers may start in the sandbox.
pub async fn isolate(node: &NodeContext, pod: &Arc<Pod>, sandbox: &Sandbox) {
    let Some(network) = &node.network else { return };
    if !is_isolated(network.as_ref(), pod, sandbox).await {
        let message = "network is not ready: its policies are not in force yet, containers start without them";
        tracing::warn!(pod = pod_id(pod), message);
        node.event(pod, EventType::Warning, "NetworkNotReady", message);
    }
}

/// Whether it is in time.
async fn is_isolated(network: &dyn PodNetwork, pod: &Arc<Pod>, sandbox: &Sandbox) -> bool {
    if sandbox.host_network {
        return true;
    }
    let addresses: Vec<IpAddr> = sandbox.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
    timeout(PATIENCE, network.isolate(pod, &addresses)).await.is_ok()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;

    use super::*;
    use crate::pod::actions::tests_support::sandbox;

    /// Never done with 10.0.0.9.
    struct Stuck;

    impl PodNetwork for Stuck {
        fn isolate<'a>(&'a self, _: &'a Arc<Pod>, addresses: &'a [IpAddr]) -> BoxFuture<'a, ()> {
            match addresses == [IpAddr::from([10, 0, 0, 9])] {
                true => std::future::pending().boxed(),
                false => std::future::ready(()).boxed(),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_that_does_not_answer_keeps_no_pod_for_ever() {
        let pod = Arc::new(Pod::default());
        let began = tokio::time::Instant::now();
        assert!(!is_isolated(&Stuck, &pod, &sandbox("sb", 0, true)).await);
        assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs());
        let on_host = Sandbox { host_network: true, ..sandbox("sb", 0, true) };
        let other = Sandbox { ips: vec!["10.0.0.10".to_owned()], ..sandbox("sb", 0, true) };
        assert!(is_isolated(&Stuck, &pod, &on_host).await && is_isolated(&Stuck, &pod, &other).await);
        assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs(), "neither waits");
    }
}
