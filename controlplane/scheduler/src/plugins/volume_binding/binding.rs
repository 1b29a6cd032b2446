//! PreBind: keeps what was promised, and waits until every claim is bound.

use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::offers::Promise;
use super::{SELECTED_NODE, VolumeBinding};
use crate::framework::Effects;
use crate::plugins::storage::{bound_volume, claim_names};
use crate::pod::PodInfo;

/// As long as Kubernetes waits; then the pod is scheduled anew.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

impl Effects for VolumeBinding {
    fn will_act(&self, pod: &PodInfo) -> bool {
        self.offers.promised.lock().get(&pod.uid).is_some_and(|promises| !promises.is_empty())
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let promises = self.offers.promised.lock().get(&pod.uid).cloned().unwrap_or_default();
            for promise in &promises {
                self.keep(pod, node, promise).await?;
            }
            if !promises.is_empty() {
                let waited = tokio::time::timeout(LONGEST_WAIT, self.all_bound(pod)).await;
                waited.map_err(|_| "binding volumes: timed out waiting for the condition".to_owned())?;
            }
            self.offers.promised.lock().remove(&pod.uid);
            Ok(())
        })
    }
}

impl VolumeBinding {
    async fn keep(&self, pod: &PodInfo, node: &str, promise: &Promise) -> Result<(), String> {
        match promise {
            Promise::Provision { claim } => {
                let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &pod.namespace);
                let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
                let answer = claims.patch(claim, &PatchParams::default(), &Patch::Merge(patch)).await;
                answer
                    .map(drop)
                    .map_err(|error| format!("binding volumes: selecting a node for claim {claim}: {error}"))
            }
            Promise::Bind { claim, volume } => self.reserve_volume(pod, claim, volume).await,
        }
    }

    /// Writes the claim into the volume; the volume controller then completes the binding.
    async fn reserve_volume(&self, pod: &PodInfo, claim: &str, volume: &str) -> Result<(), String> {
        let known = self.offers.storage.claims.get(&pod.namespace, claim);
        let uid = known.and_then(|claim| claim.metadata.uid.clone());
        let version =
            self.offers.storage.volumes.get("", volume).and_then(|volume| volume.metadata.resource_version.clone());
        let patch = json!({
            "metadata": { "resourceVersion": version, "annotations": { BOUND_BY_CONTROLLER: "yes" } },
            "spec": { "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": pod.namespace, "name": claim, "uid": uid,
            } },
        });
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let answer = volumes.patch(volume, &PatchParams::default(), &Patch::Merge(patch)).await;
        answer.map(drop).map_err(|error| format!("binding volumes: reserving {volume} for claim {claim}: {error}"))
    }

    /// Returns once every claim of the pod is bound.
    async fn all_bound(&self, pod: &PodInfo) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let is_bound = |name: &str| {
                let claim = self.offers.storage.claims.get(&pod.namespace, name);
                claim.is_some_and(|claim| bound_volume(&claim).is_some())
            };
            if claim_names(pod).iter().all(|claim| is_bound(&claim.name)) {
                return;
            }
            changed.await;
        }
    }
}
