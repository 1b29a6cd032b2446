//! EndpointSlices: the addresses behind each Service with a selector.
//!
//! [`desired`] computes the endpoints, [`topology`] which zone each serves where the Service asks for
//! that, [`pack`] lays them into slices with the fewest writes; this module watches and writes. Readers: kube-proxy and cluster DNS on every node.

mod desired;
mod pack;
mod topology;

use std::collections::HashSet;
use std::sync::Arc;

use component::{EventType, Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use parking_lot::Mutex;

use crate::context::{Context, Controller, Key, Pods, synced};
use crate::error::{During, Result, is_namespace_terminating};
use crate::index::Index;
use crate::lag::{LOST_AFTER, Lag};
use crate::service_pods::{self, SERVICE_NAME};
use crate::{meta, podstate};

pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const WORKERS: usize = 5;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("endpointslice-controller");
    let services = context.informers.of::<Service>();
    let slices = context.informers.of::<EndpointSlice>();
    let nodes = context.informers.of::<Node>();
    let lag = Lag::default();
    let by_service = Index::new(&slices, |slice: &EndpointSlice| ours(slice).into_iter().map(index_key).collect());
    watch_slices(&slices, &lag, &queue);
    service_pods::watch(&services, &service_pods::by_namespace(&services), &context.pods, &queue);
    watch_zones(&nodes, &services, &queue);
    let ready = synced!(services, slices, nodes, context.pods.informer);
    let worker = Arc::new(Worker {
        controller: controller.clone(),
        services,
        slices: by_service,
        nodes,
        pods: context.pods.clone(),
        lag,
        hinted: Mutex::default(),
    });
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

fn index_key(key: Key) -> String {
    format!("{}/{}", key.0, key.1)
}

/// The Service a slice of this controller belongs to.
fn ours(slice: &EndpointSlice) -> Option<Key> {
    let labels = meta::labels(&slice.metadata);
    let service = labels.get(SERVICE_NAME).filter(|_| labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER))?;
    Some((slice.metadata.namespace.clone()?, service.clone()))
}

fn watch_slices(slices: &Informer<EndpointSlice>, lag: &Lag, queue: &WorkQueue<Key>) {
    let (lag, queue) = (lag.clone(), queue.clone());
    slices.on_change(move |change| {
        if let (Some(key), None) = (change.old.and_then(|old| ours(old)), change.new) {
            lag.gone(&key, &change.object().name_any());
            queue.add(key);
        } else if let Some((key, slice)) = change.new.and_then(|new| Some((ours(new)?, new))) {
            lag.seen(&key, &slice.metadata);
            queue.add(key);
        } else if let Some(key) = change.old.and_then(|old| ours(old)) {
            // its labels were taken from it
            lag.gone(&key, &change.object().name_any());
            queue.add(key);
        }
    });
}

/// A node's zone shows in every endpoint on it; its CPU decides how many its zone gets.
fn watch_zones(nodes: &Informer<Node>, services: &Informer<Service>, queue: &WorkQueue<Key>) {
    let (services, queue) = (services.clone(), queue.clone());
    nodes.on_change(move |change| {
        let zone = |node: Option<&Arc<Node>>| node.and_then(|node| desired::zone(node));
        let weight = |node: Option<&Arc<Node>>| node.and_then(|node| topology::weight(node));
        let moved = zone(change.old) != zone(change.new);
        if moved || weight(change.old) != weight(change.new) {
            let services = services.list().into_iter().filter(|service| moved || topology::is_wanted(service));
            services.for_each(|service| queue.add(meta::key(&service.metadata)));
        }
    });
}

struct Worker {
    controller: Controller,
    services: Informer<Service>,
    slices: Index<EndpointSlice>,
    nodes: Informer<Node>,
    pods: Pods,
    lag: Lag,
    /// Services whose endpoints were given to zones by CPU.
    hinted: Mutex<HashSet<Key>>,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(service) = self.services.get(&key.0, &key.1) else {
            // the garbage collector removes the slices of a Service that is gone
            self.lag.forget(&key);
            self.hinted.lock().remove(&key);
            return Ok(Outcome::Done);
        };
        let Some(selector) = service_pods::selector(&service) else { return Ok(Outcome::Done) };
        if meta::is_deleting(&service.metadata) {
            return Ok(Outcome::Done);
        }
        if !self.lag.caught_up(&key) {
            return Ok(Outcome::After(LOST_AFTER));
        }
        let mut pods = self.pods.by_namespace.get(&key.0);
        pods.retain(|pod| selector.matches(meta::labels(&pod.metadata)));
        let zone = |node: &str| self.nodes.get("", node).and_then(|node| desired::zone(&node));
        let mut wanted = desired::groups(&service, &pods, zone);
        self.hint(&key, &service, &mut wanted);
        let existing = self.slices.get(&index_key(key.clone()));
        let mut changes = pack::pack(&service, wanted, &existing);
        if changes.is_empty() {
            return Ok(Outcome::Done);
        }
        let trigger = service_pods::trigger_time(&service, &pods);
        for slice in changes.create.iter_mut().chain(&mut changes.update) {
            let annotations = slice.metadata.annotations.get_or_insert_default();
            annotations.insert(service_pods::TRIGGER_TIME.to_owned(), trigger.clone());
        }
        let result = self.write(&key, &changes, &existing).await;
        // also after a failure: what was written before it may have been seen before it was waited for
        self.settle_lag(&key, &changes.delete);
        if let Err(error) = &result
            && !error.is_ordinary()
        {
            let text = format!("Error updating Endpoint Slices for Service {}/{}: {error}", key.0, key.1);
            self.controller.events.object_event(&*service, EventType::Warning, "FailedToUpdateEndpointSlices", text);
        }
        result.map(|()| Outcome::Done)
    }

    /// Hints by the zones' CPU, in place of those of `trafficDistribution`.
    fn hint(&self, key: &Key, service: &Service, groups: &mut [desired::Group]) {
        let warn = |text: String| {
            self.controller.events.object_event(service, EventType::Warning, "TopologyAwareHintsDisabled", text);
        };
        if !topology::is_wanted(service) {
            if self.hinted.lock().remove(key) {
                warn("Topology Aware Hints has been disabled".to_owned());
            }
            return;
        }
        let shares = topology::shares(&self.nodes.list());
        let mut families: Vec<String> = groups.iter().map(|group| group.address_type.clone()).collect();
        families.dedup();
        for family in families {
            let own = groups.iter_mut().filter(|group| group.address_type == family);
            let mut endpoints: Vec<_> = own.flat_map(|group| &mut group.endpoints).collect();
            match topology::hint(&mut endpoints, shares.as_ref()) {
                Err(why) => {
                    self.hinted.lock().remove(key);
                    warn(format!("{why}, addressType: {family}"));
                }
                Ok(()) if self.hinted.lock().insert(key.clone()) => {
                    let text = format!("Topology Aware Hints has been enabled, addressType: {family}");
                    self.controller.events.object_event(service, EventType::Normal, "TopologyAwareHintsEnabled", text);
                }
                Ok(()) => {}
            }
        }
    }

    async fn write(&self, key: &Key, changes: &pack::Changes, existing: &[Arc<EndpointSlice>]) -> Result<()> {
        let api: Api<EndpointSlice> = self.controller.namespaced(&key.0);
        let cached = |name: &str| existing.iter().find(|slice| slice.name_any() == name);
        for slice in &changes.create {
            match api.create(&PostParams::default(), slice).await {
                Ok(created) => self.lag.wrote(key, &created.metadata, None),
                Err(error) if is_namespace_terminating(&error) => return Ok(()),
                Err(error) => return Err(error).during("creating an EndpointSlice of", &index_key(key.clone())),
            }
        }
        for slice in &changes.update {
            let name = slice.name_any();
            let updated = api.replace(&name, &PostParams::default(), slice).await;
            let updated = updated.during("updating EndpointSlice", &meta::display(&slice.metadata))?;
            self.lag.wrote(key, &updated.metadata, cached(&name).map(|slice| &slice.metadata));
        }
        for name in &changes.delete {
            self.lag.deleted(key, name, true);
            let deleted = api.delete(name, &DeleteParams::default()).await;
            if let Err(error) = deleted.unless_gone("deleting EndpointSlice", name) {
                self.lag.gone(key, name);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Watch events that came while the writes were under way were not waited for yet.
    fn settle_lag(&self, key: &Key, deleted: &[String]) {
        let shown = self.slices.get(&index_key(key.clone()));
        for slice in &shown {
            self.lag.seen(key, &slice.metadata);
        }
        for name in deleted.iter().filter(|name| !shown.iter().any(|slice| slice.name_any() == **name)) {
            self.lag.gone(key, name);
        }
    }
}

/// Whether a pod belongs into slices at all: it has an address and has not finished.
fn is_endpoint(pod: &k8s_openapi::api::core::v1::Pod, family: &str) -> bool {
    !podstate::is_finished(pod) && !service_pods::addresses(pod, family).is_empty()
}
