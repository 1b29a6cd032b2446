//! Claims for devices: makes those that pods have templates for, ends reservations of pods that are
//! gone or done, and takes devices back when nobody has a claim reserved any more.
//!
//! [`plan`] decides. Nothing but rules of device taints, whose status is due without a claim too, is
//! watched, and no worker runs, before the first pod with a claim, unless claims were there already.

mod plan;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use component::{EventType, Informer, Informers, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{
    DeviceTaintRule, ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate,
};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::context::{Context, Controller, Key, Pods, synced};
use crate::error::{During, Error, Result, is_namespace_terminating, message};
use crate::index::Index;
use crate::{device_taint_eviction, meta, podstate};
use plan::Consumer;
pub use plan::uses_claims;

const WORKERS: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Pod(Key),
    Claim(Key),
}

pub fn start(context: &Context) {
    let starter = Arc::new(Starter {
        controller: context.controller("resource-claim-controller"),
        evictions: context.controller("device-taint-eviction-controller"),
        informers: context.informers.clone(),
        pods: context.pods.clone(),
        queue: WorkQueue::new(),
        begun: AtomicBool::new(false),
    });
    let on_pod = starter.clone();
    context.pods.informer.on_change(move |change| {
        let pod = change.object();
        if plan::uses_claims(pod) {
            on_pod.clone().begin_elsewhere();
            on_pod.pod_changed(pod, change.new.is_none());
        }
    });
    let on_rule = starter.clone();
    context.informers.of::<DeviceTaintRule>().on_change(move |_| on_rule.clone().begin_elsewhere());
    let at_first = starter.clone();
    starter.controller.supervisor.spawn("look for claims", async move { at_first.look().await });
}

struct Starter {
    controller: Controller,
    evictions: Controller,
    informers: Informers,
    pods: Pods,
    queue: WorkQueue<Item>,
    begun: AtomicBool,
}

impl Starter {
    /// Claims may be left from before, without a pod that tells of them.
    async fn look(&self) {
        let api = self.controller.cluster::<ResourceClaim>();
        match api.list(&ListParams::default().limit(1)).await {
            Ok(list) if list.items.is_empty() => {}
            Ok(_) => self.begin(),
            Err(error) => {
                tracing::debug!(%error, "could not look for claims; they are watched from now on");
                self.begin();
            }
        }
    }

    fn pod_changed(&self, pod: &Pod, is_gone: bool) {
        if is_gone || plan::is_done(pod) {
            let namespace = pod.namespace().unwrap_or_default();
            for name in plan::claim_names(pod) {
                self.queue.add(Item::Claim((namespace.clone(), name)));
            }
        }
        if !is_gone {
            self.queue.add(Item::Pod(meta::key(&pod.metadata)));
        }
    }

    /// Not where a change is handled: beginning adds handlers for the same kinds.
    fn begin_elsewhere(self: Arc<Self>) {
        if !self.begun.load(Ordering::SeqCst) {
            let starter = self.clone();
            self.controller.supervisor.spawn("begin", async move { starter.begin() });
        }
    }

    fn begin(&self) {
        if self.begun.swap(true, Ordering::SeqCst) {
            return;
        }
        let claims = self.informers.of::<ResourceClaim>();
        let by_owner = Index::new(&claims, |claim: &ResourceClaim| {
            meta::controller_of(&claim.metadata).map(|owner| owner.uid.clone()).into_iter().collect()
        });
        let (queue, pods) = (self.queue.clone(), self.pods.clone());
        claims.on_change(move |change| {
            let claim = change.object();
            if change.new.is_some() {
                queue.add(Item::Claim(meta::key(&claim.metadata)));
                return;
            }
            // One that went is made again while its pod lives.
            let (namespace, name) = meta::key(&claim.metadata);
            for pod in pods.by_namespace.get(&namespace) {
                if plan::claim_names(&pod).contains(&name) {
                    queue.add(Item::Pod(meta::key(&pod.metadata)));
                }
            }
        });
        let controller = &self.controller;
        let templates = self.informers.of::<ResourceClaimTemplate>();
        self.retry_with(&templates);
        let ready = synced!(claims, templates, self.pods.informer);
        let pods = self.pods.clone();
        device_taint_eviction::start(&self.evictions, &self.informers, &claims, &pods);
        let controller = controller.clone();
        let worker = Arc::new(Worker { controller: controller.clone(), templates, claims, by_owner, pods });
        controller.run(&self.queue, WORKERS, ready, move |item| {
            let worker = worker.clone();
            async move {
                match item {
                    Item::Pod(key) => worker.pod(key).await,
                    Item::Claim(key) => worker.claim(key).await,
                }
            }
        });
    }
}

impl Starter {
    /// Pods that lacked a template are looked at again when it comes.
    fn retry_with(&self, templates: &Informer<ResourceClaimTemplate>) {
        let (queue, pods) = (self.queue.clone(), self.pods.clone());
        templates.on_change(move |change| {
            if change.old.is_some() || change.new.is_none() {
                return;
            }
            let (namespace, name) = meta::key(&change.object().metadata);
            for pod in pods.by_namespace.get(&namespace) {
                let uses = |entry: &PodResourceClaim| entry.resource_claim_template_name.as_deref() == Some(&name);
                if plan::entries(&pod).iter().any(|entry| uses(entry) && plan::status_of(&pod, &entry.name).is_none()) {
                    queue.add(Item::Pod(meta::key(&pod.metadata)));
                }
            }
        });
    }
}

struct Worker {
    controller: Controller,
    templates: Informer<ResourceClaimTemplate>,
    claims: Informer<ResourceClaim>,
    /// By the UID of the controlling owner.
    by_owner: Index<ResourceClaim>,
    pods: Pods,
}

impl Worker {
    async fn pod(&self, key: Key) -> Result<Outcome> {
        let Some(pod) = self.pods.informer.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        if meta::is_deleting(&pod.metadata) || podstate::is_finished(&pod) {
            return Ok(Outcome::Done);
        }
        let mut made = Vec::new();
        for entry in plan::entries(&pod) {
            match self.generated(&pod, entry).await {
                Ok(name) => made.extend(name.map(|name| (entry.name.clone(), name))),
                Err(Failed { terminating: true, .. }) => return Ok(Outcome::Done),
                Err(Failed { problem, .. }) => {
                    let problem = format!("PodResourceClaim {}: {problem}", entry.name);
                    let (events, reason) = (&self.controller.events, "FailedResourceClaimCreation");
                    events.object_event(&*pod, EventType::Warning, reason, problem.clone());
                    let object = meta::display(&pod.metadata);
                    tracing::debug!(object, problem, "no claim for a pod; it will be retried");
                    return Ok(Outcome::Retry);
                }
            }
        }
        if !made.is_empty() {
            self.tell(&pod, &made).await?;
        }
        if podstate::node_name(&pod).is_empty() {
            // The scheduler reserves.
            return Ok(Outcome::Done);
        }
        self.reserve_all(&pod).await
    }

    /// The name of a claim made for an entry of the pod, if the pod's status does not have it yet.
    async fn generated(&self, pod: &Pod, entry: &PodResourceClaim) -> std::result::Result<Option<String>, Failed> {
        let namespace = pod.namespace().unwrap_or_default();
        let Some(template) = &entry.resource_claim_template_name else { return Ok(None) };
        match plan::status_of(pod, &entry.name) {
            // It was found that none is needed.
            Some(PodResourceClaimStatus { resource_claim_name: None, .. }) => return Ok(None),
            Some(PodResourceClaimStatus { resource_claim_name: Some(name), .. }) => {
                let known = self.claims.get(&namespace, name);
                if known.is_some_and(|claim| meta::is_controlled_by(&claim.metadata, meta::uid(&pod.metadata))) {
                    return Ok(None);
                }
            }
            None => {}
        }
        let own = self.by_owner.get(meta::uid(&pod.metadata));
        if let Some(claim) = own.iter().find(|claim| plan::is_for_entry(claim, pod, &entry.name)) {
            return Ok(Some(claim.name_any()));
        }
        let template = self.templates.get(&namespace, template).ok_or_else(|| Failed {
            problem: format!(
                "resource claim template {template:?}: resourceclaimtemplates.resource.k8s.io {template:?} not found"
            ),
            terminating: false,
        })?;
        let wanted = plan::claim(pod, &entry.name, &template);
        let api = self.controller.namespaced::<ResourceClaim>(&namespace);
        let made = api.create(&PostParams::default(), &wanted).await.map_err(|error| Failed {
            terminating: is_namespace_terminating(&error),
            problem: format!("create ResourceClaim : {}", message(&error)),
        })?;
        // The next run must find it, also if the watch is late.
        self.claims.apply(made.clone());
        Ok(Some(made.name_any()))
    }

    /// Writes the names of generated claims into the pod's status.
    async fn tell(&self, pod: &Pod, made: &[(String, String)]) -> Result<()> {
        let statuses: Vec<_> =
            made.iter().map(|(entry, claim)| json!({"name": entry, "resourceClaimName": claim})).collect();
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"resourceClaimStatuses": statuses}});
        let api = self.controller.namespaced::<Pod>(&pod.namespace().unwrap_or_default());
        let patched = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await;
        patched.unless_gone("writing the claims of pod", &meta::display(&pod.metadata)).map(drop)
    }

    /// A pod that went to a node past the scheduler gets what is allocated already.
    async fn reserve_all(&self, pod: &Pod) -> Result<Outcome> {
        let namespace = pod.namespace().unwrap_or_default();
        for claim in plan::claim_names(pod).iter().filter_map(|name| self.claims.get(&namespace, name)) {
            let allocated = claim.status.as_ref().is_some_and(|status| status.allocation.is_some());
            if !allocated || plan::consumers(&claim).iter().any(|one| Some(&one.uid) == pod.metadata.uid.as_ref()) {
                continue;
            }
            let mut reserved = ResourceClaim::clone(&claim);
            reserved.status.get_or_insert_default().reserved_for.get_or_insert_default().push(
                ResourceClaimConsumerReference {
                    api_group: None,
                    resource: "pods".to_owned(),
                    name: pod.name_any(),
                    uid: meta::uid(&pod.metadata).to_owned(),
                },
            );
            let api = self.controller.namespaced::<ResourceClaim>(&namespace);
            let shown = meta::display(&claim.metadata);
            api.replace_status(&claim.name_any(), &PostParams::default(), &reserved)
                .await
                .during("reserving for a pod claim", &shown)?;
        }
        Ok(Outcome::Done)
    }

    async fn claim(&self, key: Key) -> Result<Outcome> {
        let Some(claim) = self.claims.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        let mut valid = Vec::new();
        for consumer in plan::consumers(&claim) {
            let known = match plan::pod_of(consumer) {
                Err(problem) => return Err(Error::Object { object: meta::display(&claim.metadata), problem }),
                Ok(name) => self.consumer(&key.0, name).await?,
            };
            if plan::is_valid(consumer, known) {
                valid.push(consumer.clone());
            }
        }
        let owner = match plan::owning_pod(&claim) {
            Some(owner) => self.pods.informer.get(&key.0, &owner.name),
            None => None,
        };
        let plan = plan::decide(&claim, valid, owner.as_deref());
        self.carry_out(&claim, plan).await?;
        Ok(Outcome::Done)
    }

    /// The pod of a reservation: one that the cache does not have may be just too new.
    async fn consumer(&self, namespace: &str, name: &str) -> Result<Option<Consumer>> {
        if let Some(pod) = self.pods.informer.get(namespace, name) {
            return Ok(Some(Consumer::of(&pod)));
        }
        let api = self.controller.namespaced::<Pod>(namespace);
        let pod = api.get_opt(name).await.during("looking for pod", &format!("{namespace}/{name}"))?;
        Ok(pod.as_ref().map(Consumer::of))
    }

    async fn carry_out(&self, claim: &Arc<ResourceClaim>, plan: plan::Plan) -> Result<()> {
        let (name, shown) = (claim.name_any(), meta::display(&claim.metadata));
        let api = self.controller.namespaced::<ResourceClaim>(&claim.namespace().unwrap_or_default());
        let mut current = ResourceClaim::clone(claim);
        if let Some(status) = plan.status {
            current.status = Some(status);
            let written = api.replace_status(&name, &PostParams::default(), &current).await;
            let Some(written) = written.unless_gone("freeing claim", &shown)? else { return Ok(()) };
            current = written;
        }
        if plan.release {
            current
                .metadata
                .finalizers
                .iter_mut()
                .for_each(|all| all.retain(|finalizer| finalizer != api::devices::FINALIZER));
            let written = api.replace(&name, &PostParams::default(), &current).await;
            if written.unless_gone("removing the finalizer of claim", &shown)?.is_none() {
                return Ok(());
            }
        }
        if plan.delete {
            let same = Preconditions { uid: current.metadata.uid.clone(), resource_version: None };
            let deleted = api.delete(&name, &DeleteParams::default().preconditions(same)).await;
            deleted.unless_gone("deleting claim", &shown)?;
        }
        Ok(())
    }
}

/// Why there is no claim for an entry of a pod.
struct Failed {
    problem: String,
    /// Its namespace is being deleted: there will be none.
    terminating: bool,
}
