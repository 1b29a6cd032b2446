//! ResourceQuotas: what a namespace uses, counted again when something goes or changes.
//!
//! Admission counts up as objects are created; this controller is the one that counts down, and
//! that corrects. [`usage`] is pure. Pods, claims and Services come from caches; every other
//! resource that a quota names is counted by listing its metadata.

mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::quantity::{Format, Quantity};
use component::{Informer, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, ResourceQuotaStatus, Service};
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
        let counts = |pod: &&Arc<_>| !podstate::is_finished(pod);
        if change.old.filter(counts).is_some() && change.new.filter(counts).is_none() {
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
        let mut used = usage::pods(&quota, &self.pods.by_namespace.get(&key.0));
        usage::add(&mut used, usage::services(&self.services.get(&key.0)));
        usage::add(&mut used, usage::claims(&self.claims.get(&key.0)));
        // discovered once, and only if there is something to be listed
        let mut served: Option<Vec<Served>> = None;
        let mut status = BTreeMap::new();
        for name in hard.keys() {
            let amount = match used.get(name) {
                Some(amount) => *amount,
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

    /// Objects of one resource; a resource that is not served counts nothing.
    async fn count(&self, namespace: &str, served: Option<&Served>) -> Result<Quantity> {
        let Some(served) = served.filter(|served| served.namespaced) else { return Ok(Quantity::ZERO) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.controller.client.clone(), namespace, &served.api);
        let list = api.list_metadata(&ListParams::default()).await.during("counting", &served.name())?;
        Ok(Quantity::from_units(list.items.len() as i64, Format::DecimalSi))
    }
}
