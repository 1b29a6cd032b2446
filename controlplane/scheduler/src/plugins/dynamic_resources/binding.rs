//! PreBind: writes what was allocated and who has it reserved, then waits until the devices are
//! ready. And what takes that back.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::devices::FINALIZER;
use component::EventType;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::caches::{Promise, uid};
use super::{DynamicResources, claims, extended, readiness};
use crate::devices::shown;
use crate::framework::Effects;
use crate::pod::{PodInfo, Uid};
use crate::refusal::{is_conflict, is_missing};

/// Times that a write is tried when somebody else was faster.
const TRIES: usize = 5;

/// Why one try to write did not do.
enum Trouble {
    /// Somebody else wrote meanwhile.
    Conflict(String),
    Final(String),
}

impl Trouble {
    fn of(what: String) -> impl Fn(kube::Error) -> Self {
        move |error| {
            let why = format!("{what}: {error}");
            if is_conflict(&error) { Self::Conflict(why) } else { Self::Final(why) }
        }
    }
}

impl Effects for DynamicResources {
    fn will_act(&self, pod: &PodInfo) -> bool {
        pod.has_claims() || !self.devices.promises(&pod.uid).is_empty()
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            if !pod.may_need_devices() {
                return Ok(());
            }
            let Some(watched) = self.devices.known() else { return Ok(()) };
            let promises = self.devices.promises(&pod.uid);
            let mut bound = Vec::new();
            for claim in claims::of_pod(&self.devices, watched, pod)? {
                let promise = promises.iter().find(|promise| uid(&promise.claim) == uid(&claim));
                bound.push(self.bind_claim(pod, claim, promise).await?);
            }
            for promise in promises.iter().filter(|promise| extended::is_in_memory(&promise.claim)) {
                bound.push(self.bind_extended(pod, promise).await?);
            }
            if bound.iter().any(|claim| readiness::has_conditions(claim)) {
                let text = format!("waiting for binding conditions for device on node {node}");
                self.recorder.object_event(pod.pod.as_ref(), EventType::Normal, "BindingConditionsPending", text);
                self.until_ready(pod, &bound).await?;
            }
            Ok(())
        })
    }

    fn take_back<'a>(&'a self, pod: &'a PodInfo, _node: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(self.give_back(pod))
    }

    fn post_bind<'a>(&'a self, pod: &'a PodInfo, _node: &'a str) -> BoxFuture<'a, ()> {
        self.devices.forget(&pod.uid);
        Box::pin(std::future::ready(()))
    }
}

impl DynamicResources {
    fn api(&self, namespace: &str) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reserves a claim for the pod, and allocates it if that was promised.
    async fn bind_claim(
        &self,
        pod: &PodInfo,
        claim: Arc<ResourceClaim>,
        promise: Option<&Promise>,
    ) -> Result<Arc<ResourceClaim>, String> {
        if claims::is_reserved_for(&claim, pod) {
            self.devices.keep(&pod.uid, promise, &claim);
            return Ok(claim);
        }
        let api = self.api(&pod.namespace);
        let mut current = ResourceClaim::clone(&claim);
        for tried in 1.. {
            match self.write_claim(&api, pod, current, promise).await {
                Ok(written) => {
                    let written = Arc::new(written);
                    self.devices.keep(&pod.uid, promise, &written);
                    return Ok(written);
                }
                Err(Trouble::Conflict(_)) if tried < TRIES => {}
                Err(Trouble::Conflict(why) | Trouble::Final(why)) => return Err(why),
            }
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let newest = api.get(name).await;
            let failed = |error| format!("get updated claim {} after conflict: {error}", shown(&claim));
            current = newest.map_err(failed)?;
            if uid(&current) != uid(&claim) {
                return Err(format!("claim {} got deleted and made anew in the meantime", shown(&claim)));
            }
        }
        unreachable!("the last try returns")
    }

    async fn write_claim(
        &self,
        api: &Api<ResourceClaim>,
        pod: &PodInfo,
        mut claim: ResourceClaim,
        promise: Option<&Promise>,
    ) -> Result<ResourceClaim, Trouble> {
        let (name, full) = (claim.metadata.name.clone().unwrap_or_default(), shown(&claim));
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(Trouble::Final(format!("claim {full} got deleted in the meantime")));
        }
        if let Some(promise) = promise {
            if super::is_allocated(&claim) {
                return Err(Trouble::Final(format!("claim {full} got allocated elsewhere in the meantime")));
            }
            let finalizers = claim.metadata.finalizers.get_or_insert_default();
            if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
                finalizers.push(FINALIZER.to_owned());
                let written = api.replace(&name, &PostParams::default(), &claim).await;
                claim = written.map_err(Trouble::of(format!("add finalizer to claim {full}")))?;
            }
            claim.status.get_or_insert_default().allocation = Some(promise.allocation.clone());
        }
        let status = claim.status.get_or_insert_default();
        status.reserved_for.get_or_insert_default().push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: pod.name.clone(),
            uid: pod.uid.to_string(),
        });
        if let Some(allocation) = status.allocation.as_mut().filter(|_| promise.is_some()) {
            allocation.allocation_timestamp.get_or_insert(Time(Timestamp::now()));
        }
        let what = if promise.is_some() { "add allocation and reservation" } else { "add reservation" };
        let written = api.replace_status(&name, &PostParams::default(), &claim).await;
        written.map_err(Trouble::of(format!("{what} to claim {full}")))
    }

    /// Creates the claim for the pod's extended resources, binds it, and says so in the pod's status.
    async fn bind_extended(&self, pod: &PodInfo, promise: &Promise) -> Result<Arc<ResourceClaim>, String> {
        let mut claim = ResourceClaim::clone(&promise.claim);
        claim.metadata.uid = None;
        let created = self.api(&pod.namespace).create(&PostParams::default(), &claim).await;
        let failed = |error| format!("create claim for extended resources {}: {error}", pod.full_name());
        let created = Arc::new(created.map_err(failed)?);
        // From here on it has to be deleted should the pod not be bound.
        self.devices.keep(&pod.uid, None, &created);
        let bound = self.bind_claim(pod, created, Some(promise)).await?;
        let status = json!({"metadata": {"uid": &*pod.uid}, "status": {"extendedResourceClaimStatus": {
            "resourceClaimName": bound.metadata.name, "requestMappings": promise.mappings}}});
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let patched = pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(status)).await;
        let failed = |error| format!("update pod {} ExtendedResourceClaimStatus: {error}", pod.full_name());
        patched.map_err(failed)?;
        Ok(bound)
    }

    /// Returns once every device is ready.
    async fn until_ready(&self, pod: &PodInfo, bound: &[Arc<ResourceClaim>]) -> Result<(), String> {
        let longest = Duration::try_from(readiness::LONGEST_WAIT).unwrap_or_default();
        let waited = tokio::time::timeout(longest, async {
            loop {
                let mut changed = std::pin::pin!(self.devices.changed.notified());
                // From here on no change is missed.
                changed.as_mut().enable();
                if self.are_ready(pod, bound)? {
                    return Ok(());
                }
                changed.await;
            }
        });
        waited.await.unwrap_or_else(|_| Err("device binding timeout".to_owned()))
    }

    fn are_ready(&self, pod: &PodInfo, bound: &[Arc<ResourceClaim>]) -> Result<bool, String> {
        let Some(watched) = self.devices.known() else { return Ok(false) };
        for claim in bound {
            let now = self.devices.current(watched, claim);
            let now = now.ok_or_else(|| format!("claim {} got deleted in the meantime", shown(claim)))?;
            readiness::is_held(claim, &now, pod)?;
            if !readiness::is_ready(&now)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The pod is not bound after all: others may have what was reserved for it.
    async fn give_back(&self, pod: &PodInfo) {
        for claim in self.devices.reserved(&pod.uid) {
            if extended::is_claim_of(&claim, pod) {
                done("delete", &claim, delete(self.api(&pod.namespace), claim.clone()).await);
            } else {
                done("unreserve", &claim, self.unreserve_claim(pod, &claim).await);
            }
        }
    }

    async fn unreserve_claim(&self, pod: &PodInfo, claim: &ResourceClaim) -> Result<(), kube::Error> {
        let patch = json!({"metadata": {"uid": claim.metadata.uid},
            "status": {"reservedFor": [{"$patch": "delete", "uid": &*pod.uid}]}});
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api = self.api(&pod.namespace);
        let written = api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        // The next try must not take it for reserved because the cache lags behind.
        self.devices.wrote(&Arc::new(written));
        Ok(())
    }

    fn later(
        &self,
        what: &'static str,
        claim: &Arc<ResourceClaim>,
        task: impl Future<Output = Result<(), kube::Error>> + Send + 'static,
    ) {
        let claim = claim.clone();
        self.supervisor.spawn(format_args!("{what} {}", shown(&claim)), async move { done(what, &claim, task.await) });
    }

    /// Takes back an allocation that keeps a pod from every node.
    pub(super) fn deallocate_later(&self, claim: &Arc<ResourceClaim>, pod: &PodInfo) {
        let api = self.api(claim.metadata.namespace.as_deref().unwrap_or_default());
        self.later("deallocate", claim, deallocate(api, claim.clone(), pod.uid.clone()));
    }

    /// Deletes a claim for extended resources that an earlier try left.
    pub(super) fn delete_later(&self, claim: &Arc<ResourceClaim>) {
        let api = self.api(claim.metadata.namespace.as_deref().unwrap_or_default());
        self.later("delete", claim, delete(api, claim.clone()));
    }
}

/// Says what went wrong, unless it is what others did: that wakes the pod, and this is tried again.
fn done(what: &str, claim: &ResourceClaim, outcome: Result<(), kube::Error>) {
    if let Err(error) = outcome
        && !is_missing(&error)
        && !is_conflict(&error)
    {
        tracing::warn!(what, claim = shown(claim), %error, "could not write a claim");
    }
}

/// Unless somebody else uses the claim by now, or it was freed.
async fn deallocate(api: Api<ResourceClaim>, held: Arc<ResourceClaim>, pod: Uid) -> Result<(), kube::Error> {
    let name = held.metadata.name.as_deref().unwrap_or_default();
    let mut freed = ResourceClaim::clone(&held);
    for tried in 1.. {
        freed.status = None;
        match api.replace_status(name, &PostParams::default(), &freed).await {
            Err(error) if is_conflict(&error) && tried < TRIES => {}
            outcome => return outcome.map(drop),
        }
        freed = api.get(name).await?;
        let same = uid(&freed) == uid(&held) && claims::allocation(&freed) == claims::allocation(&held);
        if !same || !claims::is_only_for(&freed, &pod) {
            break;
        }
    }
    Ok(())
}

/// The finalizer has to go first.
async fn delete(api: Api<ResourceClaim>, claim: Arc<ResourceClaim>) -> Result<(), kube::Error> {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    for tried in 1.. {
        let mut newest = api.get(name).await?;
        newest.metadata.finalizers.iter_mut().for_each(|all| all.retain(|finalizer| finalizer != FINALIZER));
        match api.replace(name, &PostParams::default(), &newest).await {
            Err(error) if is_conflict(&error) && tried < TRIES => {}
            outcome => {
                outcome?;
                break;
            }
        }
    }
    api.delete(name, &DeleteParams::default()).await.map(drop)
}
