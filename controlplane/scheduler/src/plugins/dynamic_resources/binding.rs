//! PreBind: writes what was allocated and who has it reserved, then waits until the devices are
//! ready. And what takes that back.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

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
use crate::framework::Effects;
use crate::pod::PodInfo;

pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Times that a write is tried when somebody else was faster.
const TRIES: usize = 5;

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn shown(claim: &ResourceClaim) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&claim.metadata.namespace), part(&claim.metadata.name))
}

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
                self.until_ready(&bound).await?;
            }
            Ok(())
        })
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
    async fn until_ready(&self, bound: &[Arc<ResourceClaim>]) -> Result<(), String> {
        let longest = Duration::try_from(readiness::LONGEST_WAIT).unwrap_or_default();
        let waited = tokio::time::timeout(longest, async {
            loop {
                let mut changed = std::pin::pin!(self.devices.changed.notified());
                // From here on no change is missed.
                changed.as_mut().enable();
                if self.are_ready(bound)? {
                    return Ok(());
                }
                changed.await;
            }
        });
        waited.await.unwrap_or_else(|_| Err("device binding timeout".to_owned()))
    }

    fn are_ready(&self, bound: &[Arc<ResourceClaim>]) -> Result<bool, String> {
        let Some(watched) = self.devices.known() else { return Ok(false) };
        for claim in bound {
            let (namespace, name) = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref());
            let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
            // A claim that was created just now may not be seen yet.
            let claim = self.devices.claim(watched, namespace, name).unwrap_or_else(|| claim.clone());
            if !readiness::is_ready(&claim)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn later(
        &self,
        what: &str,
        claim: &ResourceClaim,
        task: impl Future<Output = Result<(), kube::Error>> + Send + 'static,
    ) {
        let what = format!("{what} {}", shown(claim));
        self.supervisor.spawn(what.clone(), async move {
            if let Err(error) = task.await
                && !is_gone(&error)
            {
                // The pod is tried again, and this with it.
                tracing::warn!(what, %error, "could not write a claim");
            }
        });
    }

    /// The pod is not bound after all: others may have what was reserved for it.
    pub(super) fn give_back(&self, pod: &PodInfo, reserved: Vec<Arc<ResourceClaim>>) {
        for claim in reserved {
            if extended::is_claim_of(&claim, pod) {
                self.delete(&claim);
                continue;
            }
            let patch = json!({"metadata": {"uid": claim.metadata.uid},
                "status": {"reservedFor": [{"$patch": "delete", "uid": &*pod.uid}]}});
            let (api, name) = (self.api(&pod.namespace), claim.metadata.name.clone().unwrap_or_default());
            self.later("unreserve", &claim, async move {
                api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
            });
        }
    }

    /// Takes back an allocation that keeps a pod from every node.
    pub(super) fn deallocate(&self, claim: &Arc<ResourceClaim>) {
        let mut freed = ResourceClaim::clone(claim);
        freed.status = None;
        let api = self.api(claim.metadata.namespace.as_deref().unwrap_or_default());
        self.later("deallocate", claim, async move {
            let name = freed.metadata.name.clone().unwrap_or_default();
            api.replace_status(&name, &PostParams::default(), &freed).await.map(drop)
        });
    }

    /// Deletes a claim for extended resources, of which the finalizer has to go first.
    pub(super) fn delete(&self, claim: &Arc<ResourceClaim>) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let api = self.api(claim.metadata.namespace.as_deref().unwrap_or_default());
        self.later("delete", claim, async move {
            for tried in 1.. {
                let mut newest = api.get(&name).await?;
                newest.metadata.finalizers.iter_mut().for_each(|all| all.retain(|finalizer| finalizer != FINALIZER));
                match api.replace(&name, &PostParams::default(), &newest).await {
                    Err(error) if is_conflict(&error) && tried < TRIES => {}
                    outcome => {
                        outcome?;
                        break;
                    }
                }
            }
            api.delete(&name, &DeleteParams::default()).await.map(drop)
        });
    }
}
