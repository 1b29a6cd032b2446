//! Device taint eviction: deletes pods whose devices have `NoExecute` taints, of their slices or by
//! rule, when their claims do not tolerate them or no longer do. Rules say in their status how far that
//! is ([`rule_status`]).
//!
//! Started with the first claim or rule: see `resource_claim`.

mod rule_status;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::devices::{is_tainted_by, tolerates};
use component::{EventType, Informer, Informers, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceTaintRule, ResourceClaim, ResourceSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{self, Controller, Key, Pods, synced};
use crate::error::{During, Result};
use crate::index::Index;
use crate::resource_claim::uses_claims;
use crate::taint_eviction::disruption;
use crate::taints::NO_EXECUTE;
use crate::{meta, podstate};
use rule_status::Counts;

const WORKERS: usize = 4;
/// The shortest time between two updates of a rule's status.
const STATUS_PERIOD: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Pod(Key),
    /// The status of a rule, by its name.
    Rule(String),
}

pub fn start(controller: &Controller, informers: &Informers, claims: &Informer<ResourceClaim>, pods: &Pods) {
    let queue = WorkQueue::<Item>::new();
    let evicted = Evicted::default();
    let (slices, rules) = (informers.of::<ResourceSlice>(), informers.of::<DeviceTaintRule>());
    let changed = queue.clone();
    claims.on_change(move |change| {
        if let Some(claim) = change.new {
            enqueue_users(claim, &changed);
        }
    });
    let changed = queue.clone();
    pods.informer.on_change(move |change| {
        // Claims are reserved before the pod is bound; from then on it can be evicted.
        let was_placed = change.old.is_some_and(|pod| !podstate::node_name(pod).is_empty());
        let placed = change.new.filter(|pod| !was_placed && !podstate::node_name(pod).is_empty());
        if let Some(pod) = placed.filter(|pod| uses_claims(pod)) {
            changed.add(Item::Pod(meta::key(&pod.metadata)));
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
    let (changed, all, counted) = (queue.clone(), claims.clone(), evicted.clone());
    rules.on_change(move |change| {
        let identity = |rule: &Arc<DeviceTaintRule>| (rule.metadata.uid.clone(), rule.spec.clone());
        if change.old.map(identity) != change.new.map(identity) {
            all.list().iter().for_each(|claim| enqueue_users(claim, &changed));
            changed.add(Item::Rule(change.object().name_any()));
        }
        if change.new.is_none() {
            counted.lock().remove(meta::uid(&change.object().metadata));
        }
    });
    let ready = synced!(slices, rules, claims, pods.informer);
    let worker = Arc::new(Worker {
        controller: controller.clone(),
        queue: queue.clone(),
        slices,
        by_pool,
        rules,
        claims: claims.clone(),
        pods: pods.clone(),
        evicted,
    });
    controller.run(&queue, WORKERS, ready, move |item| {
        let worker = worker.clone();
        async move {
            match item {
                Item::Pod(key) => worker.pod(key).await,
                Item::Rule(name) => worker.rule(&name).await,
            }
        }
    });
}

/// How many pods went because of a rule since this was started, by its UID.
type Evicted = Arc<Mutex<HashMap<String, usize>>>;

/// Names of devices that have taints of this kind, with these.
fn taints(slice: &ResourceSlice) -> Vec<(String, Vec<DeviceTaint>)> {
    let devices = slice.spec.devices.iter().flatten();
    let executes = |taint: &&DeviceTaint| taint.effect == NO_EXECUTE;
    let tainted = devices.map(|device| {
        (device.name.clone(), device.taints.iter().flatten().filter(executes).cloned().collect::<Vec<_>>())
    });
    tainted.filter(|(_, taints)| !taints.is_empty()).collect()
}

fn enqueue_users(claim: &ResourceClaim, queue: &WorkQueue<Item>) {
    let namespace = claim.namespace().unwrap_or_default();
    let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    for consumer in reserved.filter(|consumer| consumer.resource == "pods") {
        queue.add(Item::Pod((namespace.clone(), consumer.name.clone())));
    }
}

/// When a pod has to go because of a taint of one of its devices; none: never.
fn until(given: &DeviceRequestAllocationResult, taint: &DeviceTaint, now: Timestamp) -> Option<Timestamp> {
    if taint.effect != NO_EXECUTE {
        return None;
    }
    let added = taint.time_added.as_ref().map_or(now, |time| time.0);
    let covering: Vec<_> = given.tolerations.iter().flatten().filter(|one| tolerates(one, taint)).collect();
    if covering.is_empty() {
        return Some(added);
    }
    // One without a time tolerates for ever, whatever others say.
    let seconds: Option<Vec<i64>> = covering.iter().map(|toleration| toleration.toleration_seconds).collect();
    seconds?.into_iter().min().map(|seconds| meta::after(added, seconds.max(0)))
}

/// The devices that a claim was given.
fn given(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.into_iter().flat_map(|devices| devices.results.iter().flatten())
}

fn selects(rule: &DeviceTaintRule, given: &DeviceRequestAllocationResult) -> bool {
    is_tainted_by(rule, &given.driver, &given.pool, &given.device)
}

/// That a pod has to go.
#[derive(Debug, PartialEq)]
struct Eviction {
    when: Timestamp,
    /// Rules among the reasons: names by UID.
    rules: BTreeMap<String, String>,
}

impl Eviction {
    fn join(self, mut other: Self) -> Self {
        other.rules.extend(self.rules);
        Self { when: self.when.min(other.when), rules: other.rules }
    }
}

/// Because of one device, of which the slice says `taints`.
fn eviction(
    given: &DeviceRequestAllocationResult,
    taints: &[DeviceTaint],
    rules: &[Arc<DeviceTaintRule>],
    now: Timestamp,
) -> Option<Eviction> {
    let own =
        taints.iter().filter_map(|taint| Some(Eviction { when: until(given, taint, now)?, rules: BTreeMap::new() }));
    let ruled = rules.iter().filter(|rule| selects(rule, given)).filter_map(|rule| {
        let named = (meta::uid(&rule.metadata).to_owned(), rule.name_any());
        Some(Eviction { when: until(given, &rule.spec.taint, now)?, rules: [named].into() })
    });
    own.chain(ruled).reduce(Eviction::join)
}

struct Worker {
    controller: Controller,
    queue: WorkQueue<Item>,
    slices: Informer<ResourceSlice>,
    /// Slices by `driver/pool`.
    by_pool: Index<ResourceSlice>,
    rules: Informer<DeviceTaintRule>,
    claims: Informer<ResourceClaim>,
    pods: Pods,
    evicted: Evicted,
}

/// Whether the pod runs, or will, unless it is evicted.
fn stays(pod: &Pod) -> bool {
    !podstate::node_name(pod).is_empty() && !meta::is_deleting(&pod.metadata) && !podstate::is_finished(pod)
}

impl Worker {
    async fn pod(&self, key: Key) -> Result<Outcome> {
        let Some(pod) = self.pods.informer.get(&key.0, &key.1).filter(|pod| stays(pod)) else {
            return Ok(Outcome::Done);
        };
        let now = Timestamp::now();
        let Some(eviction) = self.due(&pod, now) else { return Ok(Outcome::Done) };
        if eviction.when > now {
            eviction.rules.into_values().for_each(|name| self.queue.add(Item::Rule(name)));
            return Ok(context::at(eviction.when, now));
        }
        if self.evict(&pod).await? {
            for (uid, name) in eviction.rules {
                *self.evicted.lock().entry(uid).or_default() += 1;
                // Not at once: what is counted for the status comes from caches, which lag behind.
                self.queue.add_after(Item::Rule(name), STATUS_PERIOD);
            }
        }
        Ok(Outcome::Done)
    }

    async fn rule(&self, name: &str) -> Result<Outcome> {
        let Some(rule) = self.rules.get("", name) else { return Ok(Outcome::Done) };
        let now = meta::now();
        if let Some(known) =
            rule_status::known(&rule).filter(|known| known.observed_generation == rule.metadata.generation)
        {
            let next = meta::after(known.last_transition_time.0, STATUS_PERIOD.as_secs().cast_signed());
            if next > now {
                return Ok(context::at(next, Timestamp::now()));
            }
        }
        // Pods that go by themselves do not bring it here: it is looked at until it is done.
        let again = |condition: &Condition| match condition.status.as_str() {
            "True" => Outcome::After(STATUS_PERIOD),
            _ => Outcome::Done,
        };
        let Some(condition) = rule_status::changed(&rule, &self.counts(&rule), &Time(now)) else {
            return Ok(rule_status::known(&rule).map_or(Outcome::Done, again));
        };
        let outcome = again(&condition);
        let status = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule",
            "metadata": {"name": name, "uid": rule.metadata.uid}, "status": {"conditions": [condition]}});
        let api = self.controller.cluster::<DeviceTaintRule>();
        let ours = PatchParams::apply(&self.controller.name).force();
        let written = api.patch_status(name, &ours, &Patch::Apply(status)).await;
        written.unless_gone("writing the status of DeviceTaintRule", name)?;
        Ok(outcome)
    }

    /// What a rule selects, and whom it evicts; with the effect `None`: would evict.
    fn counts(&self, rule: &DeviceTaintRule) -> Counts {
        let mut counts = Counts {
            evicted: self.evicted.lock().get(meta::uid(&rule.metadata)).copied().unwrap_or(0),
            ..Counts::default()
        };
        let taint = match rule.spec.taint.effect.as_str() {
            NO_EXECUTE => rule.spec.taint.clone(),
            "None" => DeviceTaint { effect: NO_EXECUTE.to_owned(), ..rule.spec.taint.clone() },
            _ => return counts,
        };
        let mut pods = BTreeSet::new();
        for claim in self.claims.list() {
            let selected: Vec<_> = given(&claim).filter(|given| selects(rule, given)).collect();
            counts.allocated += selected.len();
            if selected.iter().any(|given| until(given, &taint, Timestamp::UNIX_EPOCH).is_some()) {
                pods.extend(self.users(&claim));
            }
        }
        counts.pods = pods.len();
        counts.namespaces = pods.iter().map(|(namespace, _)| namespace).collect::<BTreeSet<_>>().len();
        counts.published = self.published(rule);
        counts
    }

    /// The pods that hold a claim and stay.
    fn users(&self, claim: &ResourceClaim) -> Vec<Key> {
        let namespace = claim.namespace().unwrap_or_default();
        let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
        let pods = reserved.filter(|consumer| consumer.resource == "pods").filter_map(|consumer| {
            let pod = self.pods.informer.get(&namespace, &consumer.name)?;
            (meta::uid(&pod.metadata) == consumer.uid && stays(&pod)).then(|| meta::key(&pod.metadata))
        });
        pods.collect()
    }

    /// How many devices of the newest slices of all pools a rule selects.
    fn published(&self, rule: &DeviceTaintRule) -> usize {
        let slices = self.slices.list();
        let mut newest: HashMap<(&str, &str), i64> = HashMap::new();
        for slice in &slices {
            let generation = newest.entry((&slice.spec.driver, &slice.spec.pool.name)).or_insert(i64::MIN);
            *generation = slice.spec.pool.generation.max(*generation);
        }
        let is_newest = |slice: &&Arc<ResourceSlice>| {
            newest.get(&(slice.spec.driver.as_str(), slice.spec.pool.name.as_str()))
                == Some(&slice.spec.pool.generation)
        };
        let selected = slices.iter().filter(is_newest).flat_map(|slice| {
            let (driver, pool) = (&slice.spec.driver, &slice.spec.pool.name);
            slice.spec.devices.iter().flatten().filter(move |device| is_tainted_by(rule, driver, pool, &device.name))
        });
        selected.count()
    }

    fn due(&self, pod: &Pod, now: Timestamp) -> Option<Eviction> {
        let claims = self.claims.list_namespace(&pod.namespace().unwrap_or_default());
        let uses = |claim: &&Arc<ResourceClaim>| {
            let reserved = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
            reserved.into_iter().any(|consumer| Some(&consumer.uid) == pod.metadata.uid.as_ref())
        };
        let rules = self.rules.list();
        let devices = claims.iter().filter(uses).flat_map(|claim| given(claim));
        devices.filter_map(|given| eviction(given, &self.taints_of(given), &rules, now)).reduce(Eviction::join)
    }

    /// The taints of a device as the newest slices of its pool have them.
    fn taints_of(&self, given: &DeviceRequestAllocationResult) -> Vec<DeviceTaint> {
        let slices = self.by_pool.get(&format!("{}/{}", given.driver, given.pool));
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
        let current = slices.iter().filter(|slice| Some(slice.spec.pool.generation) == newest);
        let device = current.flat_map(|slice| slice.spec.devices.iter().flatten()).find(|one| one.name == given.device);
        device.and_then(|device| device.taints.clone()).unwrap_or_default()
    }

    /// False: the pod was gone already.
    async fn evict(&self, pod: &Pod) -> Result<bool> {
        let (name, shown) = (pod.name_any(), meta::display(&pod.metadata));
        let events = &self.controller.events;
        events.object_event(pod, EventType::Normal, "DeviceTaintManagerEviction", "Marking for deletion");
        let api: Api<Pod> = self.controller.namespaced(&pod.namespace().unwrap_or_default());
        let message = "Device Taint manager: deleting due to NoExecute taint";
        let condition = disruption("DeletionByDeviceTaintManager", message);
        let patch =
            Patch::Strategic(json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}}));
        let marked = api.patch_status(&name, &PatchParams::default(), &patch).await;
        if marked.unless_gone("marking pod", &shown)?.is_none() {
            return Ok(false);
        }
        let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let deleted = api.delete(&name, &DeleteParams::default().preconditions(same)).await;
        Ok(deleted.unless_gone("evicting pod", &shown)?.is_some())
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
            (
                json!([{"operator": "Exists"}, {"operator": "Exists", "tolerationSeconds": 300}]),
                vec![taint("NoExecute", 900)],
                None,
            ),
            (json!([{"key": "other", "operator": "Exists"}]), vec![taint("NoExecute", 900)], Some(at(900))),
        ] {
            let eviction = eviction(&from(tolerations.clone()), &taints, &[], at(1000));
            assert_eq!(eviction.map(|eviction| eviction.when), due, "{tolerations} {taints:?}");
        }
    }

    #[test]
    fn the_rules_that_evict_a_pod_are_known() {
        let given: DeviceRequestAllocationResult =
            serde_json::from_value(json!({"driver": "d", "pool": "p", "device": "x", "request": "r",
                "tolerations": [{"key": "borne", "operator": "Exists"}]}))
            .unwrap();
        let rule = |name: &str, key: &str, effect: &str, device: &str, added: i64| {
            let added = meta::stamp(at(added));
            let spec = json!({"deviceSelector": {"device": device},
                "taint": {"key": key, "effect": effect, "timeAdded": added}});
            let rule = json!({"metadata": {"name": name, "uid": format!("{name}-uid")}, "spec": spec});
            Arc::new(serde_json::from_value::<DeviceTaintRule>(rule).unwrap())
        };
        let rules = [
            rule("first", "k", "NoExecute", "x", 900),
            rule("second", "k", "NoExecute", "x", 800),
            rule("borne", "borne", "NoExecute", "x", 700),
            rule("elsewhere", "k", "NoExecute", "y", 700),
            rule("mild", "k", "NoSchedule", "x", 700),
        ];
        let eviction = eviction(&given, &[], &rules, at(1000)).unwrap();
        assert_eq!(eviction.when, at(800));
        assert_eq!(eviction.rules.into_values().collect::<Vec<_>>(), ["first", "second"]);
    }
}
