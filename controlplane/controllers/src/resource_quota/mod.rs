//! ResourceQuotas: what a namespace uses, counted again when something goes or changes.
//!
//! Admission counts up as objects are created; this controller is the one that counts down, and
//! that corrects. [`usage`] is pure. Pods, claims and Services come from caches; claims for devices,
//! and every other resource that a quota names, are listed: the latter by their metadata.

mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::{Format, Quantity};
use api::resources::Amounts;
use component::{Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::{Api, ResourceExt};

use crate::context::{self, Context, Controller, Key, Pods, synced};
use crate::discovery::{self, Served};
use crate::error::{During, Result};
use crate::index::Index;
use crate::{meta, podstate};

/// Corrects what no event told.
const RESYNC: Duration = Duration::from_secs(5 * 60);
const WORKERS: usize = 5;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("resourcequota-controller");
    let quotas = context.informers.of::<ResourceQuota>();
    let services = context.informers.of::<Service>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let by_namespace = |claim: &PersistentVolumeClaim| claim.metadata.namespace.iter().cloned().collect();
    let claims_index = Index::new(&claims, by_namespace);
    let services_index = crate::service_pods::by_namespace(&services);
    let changed = queue.clone();
    quotas.on_change(move |change| {
        let spec = |quota: &Arc<ResourceQuota>| quota.spec.clone();
        let counted = change.new.and_then(|quota| quota.status.as_ref()).and_then(|status| status.hard.as_ref());
        if change.old.map(spec) != change.new.map(spec) || counted.is_none() {
            changed.add(meta::key(&change.object().metadata));
        }
    });
    let wake = waker(&quotas, &queue);
    let wake_pods = wake.clone();
    context.pods.informer.on_change(move |change| {
        let counts = |pod: &&Arc<Pod>| !podstate::is_finished(pod);
        let fewer = match (change.old.filter(counts), change.new.filter(counts)) {
            (Some(old), Some(new)) => resources(old) != resources(new) && usage::of_pod(old) != usage::of_pod(new),
            (old, new) => old.is_some() && new.is_none(),
        };
        if fewer {
            wake_pods(&change.object().namespace().unwrap_or_default());
        }
    });
    let wake_services = wake.clone();
    services.on_change(move |change| {
        let spec = |service: &Arc<Service>| service.spec.as_ref().map(|spec| (spec.type_.clone(), spec.ports.clone()));
        if change.old.is_some() && change.old.map(spec) != change.new.map(spec) {
            wake_services(&change.object().namespace().unwrap_or_default());
        }
    });
    let wake_claims = wake.clone();
    claims.on_change(move |change| {
        if change.old.is_some() && change.new.is_none() {
            wake_claims(&change.object().namespace().unwrap_or_default());
        }
    });
    context.removals.subscribe(move |namespace| wake(namespace));
    let ready = synced!(quotas, services, claims, context.pods.informer);
    let worker = Worker {
        controller: controller.clone(),
        quotas,
        services: services_index,
        claims: claims_index,
        pods: context.pods.clone(),
    };
    let worker = Arc::new(worker);
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

/// What a resize changes of a pod, on its way and at its end.
fn resources(pod: &Pod) -> impl PartialEq {
    let wanted = pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let wanted: Vec<_> = wanted.map(|container| &container.resources).collect();
    let statuses = pod.status.iter().flat_map(|status| [&status.container_statuses, &status.init_container_statuses]);
    let held: Vec<_> =
        statuses.flatten().flatten().map(|status| (&status.resources, &status.allocated_resources)).collect();
    let pending = podstate::condition(pod, "PodResizePending").map(|condition| &condition.reason);
    (wanted, held, pending)
}

/// Enqueues the quotas of a namespace.
fn waker(quotas: &Informer<ResourceQuota>, queue: &WorkQueue<Key>) -> impl Fn(&str) + Clone + Send + Sync + 'static {
    let (quotas, queue) = (quotas.clone(), queue.clone());
    move |namespace: &str| {
        for quota in quotas.list_namespace(namespace) {
            queue.add(meta::key(&quota.metadata));
        }
    }
}

struct Worker {
    controller: Controller,
    quotas: Informer<ResourceQuota>,
    services: Index<Service>,
    claims: Index<PersistentVolumeClaim>,
    pods: Pods,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(quota) = self.quotas.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
        let now = meta::now();
        let pods = self.pods.by_namespace.get(&key.0);
        let mut used = usage::pods(&quota, &pods, now);
        usage::add(&mut used, usage::services(&self.services.get(&key.0)));
        usage::add(&mut used, usage::claims(&quota, &self.claims.get(&key.0)));
        // discovered once, and only if there is something to be listed
        let mut served: Option<Vec<Served>> = None;
        let mut devices: Option<Amounts> = None;
        let mut status = BTreeMap::new();
        for name in hard.keys() {
            let amount = match used.get(name) {
                Some(amount) => *amount,
                None if usage::counts_devices(name) => {
                    if devices.is_none() {
                        devices = Some(self.devices(&key.0).await?);
                    }
                    devices.as_ref().and_then(|devices| devices.get(name)).copied().unwrap_or(Quantity::ZERO)
                }
                None => match usage::counted_resource(name) {
                    Some((resource, group)) => {
                        if served.is_none() {
                            served = Some(discovery::discover(&self.controller.client).await?.resources);
                        }
                        let is_it = |served: &&Served| served.api.plural == resource && served.api.group == group;
                        self.count(&key.0, served.iter().flatten().find(is_it)).await?
                    }
                    None => Quantity::ZERO,
                },
            };
            status.insert(name.clone(), amount.into());
        }
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(status) };
        if quota.status.as_ref() != Some(&status) {
            let changed = ResourceQuota { status: Some(status), ..(*quota).clone() };
            let api: Api<ResourceQuota> = self.controller.namespaced(&key.0);
            let written = api.replace_status(&key.1, &PostParams::default(), &changed).await;
            written.during("updating the status of", &meta::display(&quota.metadata))?;
        }
        Ok(context::at(meta::after(meta::now(), RESYNC.as_secs() as i64), meta::now()))
    }

    /// The devices that the namespace's claims ask for, by class.
    async fn devices(&self, namespace: &str) -> Result<Amounts> {
        let api: Api<ResourceClaim> = self.controller.namespaced(namespace);
        let claims = api.list(&ListParams::default()).await.unless_gone("listing claims in", namespace)?;
        Ok(claims.map(|claims| usage::devices(&claims.items)).unwrap_or_default())
    }

    /// Objects of one resource; a resource that is not served counts nothing.
    async fn count(&self, namespace: &str, served: Option<&Served>) -> Result<Quantity> {
        let Some(served) = served.filter(|served| served.namespaced) else { return Ok(Quantity::ZERO) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.controller.client.clone(), namespace, &served.api);
        let list = api.list_metadata(&ListParams::default()).await.during("counting", &served.name())?;
        Ok(Quantity::from_units(list.items.len() as i64, Format::DecimalSi))
    }
}
