//! Device taint eviction: deletes pods whose devices have `NoExecute` taints, of their slices or by
//! rule, when their claims do not tolerate them or no longer do.
//!
//! Started with the first claim: see `resource_claim`.

use std::sync::Arc;

use api::devices::{is_tainted_by, tolerates};
use component::{EventType, Informer, Informers, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceTaintRule, ResourceClaim, ResourceSlice,
};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::{self, Controller, Key, Pods, synced};
use crate::error::{During, Result};
use crate::index::Index;
use crate::taint_eviction::disruption;
use crate::taints::NO_EXECUTE;
use crate::{meta, podstate};

const WORKERS: usize = 4;

pub fn start(controller: &Controller, informers: &Informers, claims: &Informer<ResourceClaim>, pods: &Pods) {
    let queue = WorkQueue::<Key>::new();
    let (slices, rules) = (informers.of::<ResourceSlice>(), informers.of::<DeviceTaintRule>());
    let changed = queue.clone();
    claims.on_change(move |change| {
        if let Some(claim) = change.new {
            enqueue_users(claim, &changed);
        }
    });
    let by_pool =
        Index::new(&slices, |slice: &ResourceSlice| vec![format!("{}/{}", slice.spec.driver, slice.spec.pool.name)]);
    let (changed, all) = (queue.clone(), claims.clone());
    slices.on_change(move |change| {
        let (old, new) = (change.old.map(|slice| taints(slice)), change.new.map(|slice| taints(slice)));
        if old.unwrap_or_default() != new.unwrap_or_default() {
            all.list().iter().for_each(|claim| enqueue_users(claim, &changed));
        }
    });
    let (changed, all) = (queue.clone(), claims.clone());
    rules.on_change(move |change| {
        if change.old.map(|rule| &rule.spec) != change.new.map(|rule| &rule.spec) {
            all.list().iter().for_each(|claim| enqueue_users(claim, &changed));
        }
    });
    let ready = synced!(slices, rules, claims, pods.informer);
    let worker =
        Arc::new(Worker { controller: controller.clone(), by_pool, rules, claims: claims.clone(), pods: pods.clone() });
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

/// Names of devices that have taints of this kind, with these.
fn taints(slice: &ResourceSlice) -> Vec<(String, Vec<DeviceTaint>)> {
    let devices = slice.spec.devices.iter().flatten();
    let executes = |taint: &&DeviceTaint| taint.effect == NO_EXECUTE;
    let tainted = devices.map(|device| {
        (device.name.clone(), device.taints.iter().flatten().filter(executes).cloned().collect::<Vec<_>>())
    });
    tainted.filter(|(_, taints)| !taints.is_empty()).collect()
}

fn enqueue_users(claim: &ResourceClaim, queue: &WorkQueue<Key>) {
    let namespace = claim.namespace().unwrap_or_default();
    let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    for consumer in reserved.filter(|consumer| consumer.resource == "pods") {
        queue.add((namespace.clone(), consumer.name.clone()));
    }
}

/// When a pod has to go because of one of its devices; none: never.
fn eviction(given: &DeviceRequestAllocationResult, taints: &[DeviceTaint], now: Timestamp) -> Option<Timestamp> {
    let until = |taint: &DeviceTaint| {
        let added = taint.time_added.as_ref().map_or(now, |time| time.0);
        let covering: Vec<_> = given.tolerations.iter().flatten().filter(|one| tolerates(one, taint)).collect();
        if covering.is_empty() {
            return Some(added);
        }
        let seconds = covering.iter().filter_map(|toleration| toleration.toleration_seconds).min();
        seconds.map(|seconds| meta::after(added, seconds.max(0)))
    };
    taints.iter().filter(|taint| taint.effect == NO_EXECUTE).filter_map(until).min()
}

struct Worker {
    controller: Controller,
    /// Slices by `driver/pool`.
    by_pool: Index<ResourceSlice>,
    rules: Informer<DeviceTaintRule>,
    claims: Informer<ResourceClaim>,
    pods: Pods,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(pod) = self.pods.informer.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        let waits = podstate::node_name(&pod).is_empty();
        if waits || meta::is_deleting(&pod.metadata) || podstate::is_finished(&pod) {
            return Ok(Outcome::Done);
        }
        let now = Timestamp::now();
        match self.due(&pod, now) {
            None => Ok(Outcome::Done),
            Some(moment) if moment > now => Ok(context::at(moment, now)),
            Some(_) => {
                self.evict(&pod).await?;
                Ok(Outcome::Done)
            }
        }
    }

    fn due(&self, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        let claims = self.claims.list_namespace(&pod.namespace().unwrap_or_default());
        let uses = |claim: &&Arc<ResourceClaim>| {
            let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
            reserved.into_iter().any(|consumer| Some(&consumer.uid) == pod.metadata.uid.as_ref())
        };
        let due = claims.iter().filter(uses).flat_map(|claim| {
            let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
            let given = allocation.and_then(|allocation| allocation.devices.as_ref());
            given.into_iter().flat_map(|devices| devices.results.iter().flatten())
        });
        due.filter_map(|given| eviction(given, &self.taints_of(given), now)).min()
    }

    /// The taints of a device: what the newest slices of its pool say, and what rules add.
    fn taints_of(&self, given: &DeviceRequestAllocationResult) -> Vec<DeviceTaint> {
        let slices = self.by_pool.get(&format!("{}/{}", given.driver, given.pool));
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
        let current = slices.iter().filter(|slice| Some(slice.spec.pool.generation) == newest);
        let device = current.flat_map(|slice| slice.spec.devices.iter().flatten()).find(|one| one.name == given.device);
        let mut taints = device.and_then(|device| device.taints.clone()).unwrap_or_default();
        let rules = self.rules.list();
        let meant = rules.iter().filter(|rule| is_tainted_by(rule, &given.driver, &given.pool, &given.device));
        taints.extend(meant.map(|rule| rule.spec.taint.clone()));
        taints
    }

    async fn evict(&self, pod: &Pod) -> Result<()> {
        let (name, shown) = (pod.name_any(), meta::display(&pod.metadata));
        let events = &self.controller.events;
        events.object_event(pod, EventType::Normal, "DeviceTaintManagerEviction", "Marking for deletion");
        let api: Api<Pod> = self.controller.namespaced(&pod.namespace().unwrap_or_default());
        let message = "Device Taint manager: deleting due to NoExecute taint";
        let condition = disruption("DeletionByDeviceTaintManager", message);
        let patch =
            Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}}));
        let marked = api.patch_status(&name, &PatchParams::default(), &patch).await;
        if marked.unless_gone("marking pod", &shown)?.is_some() {
            let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
            let deleted = api.delete(&name, &DeleteParams::default().preconditions(same)).await;
            deleted.unless_gone("evicting pod", &shown)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;
    use serde_json::Value;

    #[test]
    fn a_pod_goes_when_a_toleration_of_its_device_ends() {
        let from = |tolerations: Value| -> DeviceRequestAllocationResult {
            serde_json::from_value(
                json!({"driver": "d", "pool": "p", "device": "x", "request": "r", "tolerations": tolerations}),
            )
            .unwrap()
        };
        let taint = |effect: &str, added: i64| DeviceTaint {
            key: "k".into(),
            effect: effect.into(),
            value: None,
            time_added: meta::stamp(at(added)),
        };
        for (tolerations, taints, due) in [
            (json!([]), vec![taint("NoExecute", 900)], Some(at(900))),
            (json!([]), vec![taint("NoSchedule", 900), taint("None", 900)], None),
            (json!([{"operator": "Exists"}]), vec![taint("NoExecute", 900)], None),
            (
                json!([{"operator": "Exists", "tolerationSeconds": 300}]),
                vec![taint("NoExecute", 900), taint("NoExecute", 800)],
                Some(at(1100)),
            ),
            (json!([{"key": "other", "operator": "Exists"}]), vec![taint("NoExecute", 900)], Some(at(900))),
        ] {
            assert_eq!(eviction(&from(tolerations.clone()), &taints, at(1000)), due, "{tolerations} {taints:?}");
        }
    }
}
