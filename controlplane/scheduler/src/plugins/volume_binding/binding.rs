//! PreBind: keeps what was promised, and waits until every claim is bound, or will not be any more: a
//! provisioner that can make no volume for the node takes the node's name off the claim.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::matching::reaches;
use super::offers::{Promise, selected_node};
use super::{SELECTED_NODE, VolumeBinding};
use crate::framework::Effects;
use crate::plugins::storage::{Storage, bound_volume, claim_names};
use crate::pod::PodInfo;

/// As long as Kubernetes waits; then the pod is scheduled anew.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";

/// The claims that name the pod's node for their provisioner, and the version since when each does.
type Told = HashMap<String, u64>;

impl Effects for VolumeBinding {
    fn will_act(&self, pod: &PodInfo) -> bool {
        self.offers.promised.lock().get(&pod.uid).is_some_and(|promises| !promises.is_empty())
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let promises = self.offers.promised.lock().get(&pod.uid).cloned().unwrap_or_default();
            let mut told = Told::new();
            for promise in &promises {
                told.extend(self.keep(pod, node, promise).await?);
            }
            if !promises.is_empty() {
                let waited = tokio::time::timeout(LONGEST_WAIT, self.until_bound(pod, node, &told)).await;
                let outcome = waited.map_err(|_| "timed out waiting for the condition".to_owned()).flatten();
                outcome.map_err(|why| format!("binding volumes: {why}"))?;
            }
            self.offers.promised.lock().remove(&pod.uid);
            Ok(())
        })
    }
}

impl VolumeBinding {
    /// Returns the claim that was told the node, if there is one to tell.
    async fn keep(&self, pod: &PodInfo, node: &str, promise: &Promise) -> Result<Option<(String, u64)>, String> {
        match promise {
            Promise::Provision { claim } => {
                let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &pod.namespace);
                let patch = json!({ "metadata": { "annotations": { SELECTED_NODE: node } } });
                let answer = claims.patch(claim, &PatchParams::default(), &Patch::Merge(patch)).await;
                let told =
                    answer.map_err(|error| format!("binding volumes: selecting a node for claim {claim}: {error}"))?;
                Ok(Some((claim.clone(), version(&told))))
            }
            Promise::Bind { claim, volume } => self.reserve_volume(pod, claim, volume).await.map(|()| None),
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

    /// Returns once every claim of the pod is bound; an error once that will not happen any more.
    async fn until_bound(&self, pod: &PodInfo, node: &str, told: &Told) -> Result<(), String> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let same = |known: &k8s_openapi::api::core::v1::Pod| known.metadata.uid.as_deref() == Some(&*pod.uid);
            if !self.pods.get(&pod.namespace, &pod.name).is_some_and(|known| same(&known)) {
                return Err("pod does not exist any more".to_owned());
            }
            let found = self.nodes.get("", node).ok_or_else(|| format!("node \"{node}\" not found"))?;
            if all_bound(&self.offers.storage, pod, &found, told)? {
                return Ok(());
            }
            changed.await;
        }
    }
}

fn version(claim: &PersistentVolumeClaim) -> u64 {
    claim.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether all claims of the pod are bound, to volumes that its node reaches.
fn all_bound(storage: &Storage, pod: &PodInfo, node: &Node, told: &Told) -> Result<bool, String> {
    let mut all = true;
    for name in claim_names(pod) {
        let claim = storage.claim(pod, &name.name)?;
        let Some(volume) = bound_volume(&claim) else {
            // What the cache has of it may be older than what was written.
            let is_current = told.get(&name.name).is_some_and(|since| version(&claim) >= *since);
            if is_current && selected_node(&claim) != node.metadata.name.as_deref() {
                return Err(format!("provisioning failed for PVC \"{}\"", name.name));
            }
            all = false;
            continue;
        };
        match storage.volumes.get("", volume) {
            None => all = false,
            Some(found) if !reaches(&found, node) => {
                let node = node.metadata.name.as_deref().unwrap_or_default();
                return Err(format!("pv \"{volume}\" node affinity doesn't match node \"{node}\""));
            }
            Some(_) => {}
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::storage::testing::{bound, claim, from, using};
    use crate::testing::node;

    fn asking(selected: Option<&str>, version: &str) -> PersistentVolumeClaim {
        let mut claim = claim("data", json!({"storageClassName": "fast"}));
        claim.metadata.resource_version = Some(version.to_owned());
        claim.metadata.annotations = selected.map(|node| [(SELECTED_NODE.to_owned(), node.to_owned())].into());
        claim
    }

    #[test]
    fn a_claim_whose_provisioner_gave_up_is_not_waited_for() {
        let (storage, here) = (Storage::detached(), node("n", json!({})).node);
        let (pod, told) = (using("p", &["data"]), Told::from([("data".to_owned(), 7)]));
        let outcome = || all_bound(&storage, &pod, &here, &told);
        storage.claims.apply(asking(None, "6"));
        assert_eq!(outcome(), Ok(false), "the cache is behind");
        storage.claims.apply(asking(Some("n"), "7"));
        assert_eq!(outcome(), Ok(false), "the volume is being made");
        storage.claims.apply(asking(None, "8"));
        assert_eq!(outcome(), Err("provisioning failed for PVC \"data\"".to_owned()));

        storage.claims.apply(bound("data", "v"));
        assert_eq!(outcome(), Ok(false), "its volume is not known yet");
        let on = |name: &str| -> PersistentVolume {
            from(json!({"metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [name]}]}]}}}}))
        };
        storage.volumes.apply(on("n"));
        assert_eq!(outcome(), Ok(true));
        storage.volumes.apply(on("other"));
        assert!(outcome().is_err(), "it was made elsewhere");
        storage.claims.remove(&("default".to_owned(), "data".to_owned()));
        assert!(outcome().is_err(), "the claim is gone");
    }
}
