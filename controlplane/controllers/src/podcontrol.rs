//! Making and deleting pods for an owner, with the events that say so, and the pod watch that
//! every owner of pods needs.

use std::future::Future;
use std::sync::Arc;

use component::{EventType, WorkQueue};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use crate::context::{Controller, Key, Pods};
use crate::error::{is_namespace_terminating, is_not_found, message};
use crate::expectations::Expectations;
use crate::meta;

/// A pod of `template`, controlled by `owner`, to be named by the API server after the owner.
pub fn from_template(template: &PodTemplateSpec, owner: OwnerReference) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates a pod and records `SuccessfulCreate` or `FailedCreate` on its owner.
pub async fn create(
    controller: &Controller,
    namespace: &str,
    pod: &Pod,
    owner: &ObjectReference,
) -> Result<Pod, kube::Error> {
    let api: Api<Pod> = controller.namespaced(namespace);
    match api.create(&PostParams::default(), pod).await {
        Ok(created) => {
            let text = format!("Created pod: {}", created.name_any());
            controller.events.event(owner, EventType::Normal, "SuccessfulCreate", text);
            Ok(created)
        }
        Err(error) => {
            if !is_namespace_terminating(&error) {
                let text = format!("Error creating: {}", message(&error));
                controller.events.event(owner, EventType::Warning, "FailedCreate", text);
            }
            Err(error)
        }
    }
}

/// Deletes a pod and records `SuccessfulDelete` or `FailedDelete`; one that is gone is an error
/// (`NotFound`), so that the caller can settle its expectation.
pub async fn delete(controller: &Controller, pod: &Pod, owner: &ObjectReference) -> Result<(), kube::Error> {
    let api: Api<Pod> = controller.namespaced(&pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    match api.delete(&name, &DeleteParams::default()).await {
        Ok(_) => {
            let text = format!("Deleted pod: {name}");
            controller.events.event(owner, EventType::Normal, "SuccessfulDelete", text);
            Ok(())
        }
        Err(error) => {
            if !is_not_found(&error) {
                let text = format!("Error deleting: {}", message(&error));
                controller.events.event(owner, EventType::Warning, "FailedDelete", text);
            }
            Err(error)
        }
    }
}

/// Deletes all `pods` of `key` at once; expectations are set here.
pub async fn delete_all(
    controller: &Controller,
    key: &Key,
    expectations: &Expectations,
    pods: &[Arc<Pod>],
    owner: &ObjectReference,
) -> Option<kube::Error> {
    expectations.expect(key, 0, pods.iter().map(|pod| meta::uid(&pod.metadata).to_owned()));
    let deletions = pods.iter().map(|pod| async move {
        let result = delete(controller, pod, owner).await;
        if result.is_err() {
            expectations.deleted(key, meta::uid(&pod.metadata));
        }
        result
    });
    join_all(deletions).await.into_iter().filter_map(Result::err).find(|error| !is_not_found(error))
}

/// Calls `make` for 0..count in batches of 1, 2, 4, ...: a template that the API server refuses
/// (quota, admission) costs one refused request, not thousands. Stops at the first batch with a
/// failure. Returns how many were made, how many never tried, and that failure.
pub async fn slow_start<F, Fut, E>(count: usize, make: F) -> (usize, usize, Option<E>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    let (mut done, mut next, mut batch) = (0, 0, 1);
    while next < count {
        let size = batch.min(count - next);
        let results = join_all((next..next + size).map(&make)).await;
        next += size;
        done += results.iter().filter(|result| result.is_ok()).count();
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return (done, count - next, Some(error));
        }
        batch *= 2;
    }
    (done, 0, None)
}

type ByReference = dyn Fn(&str, &OwnerReference) -> Option<Key> + Send + Sync;
type BySelector = dyn Fn(&Pod) -> Vec<Key> + Send + Sync;

/// How a pod's event finds the keys of its owners.
pub struct PodOwners {
    /// The key a controller reference leads to, if that very object exists.
    pub of_reference: Box<ByReference>,
    /// Owners whose selector matches an orphan.
    pub of_orphan: Box<BySelector>,
}

/// Turns pod events into keys, and ticks off expectations.
pub fn watch(pods: &Pods, owners: PodOwners, expectations: &Expectations, queue: &WorkQueue<Key>) {
    let (expectations, queue) = (expectations.clone(), queue.clone());
    pods.informer.on_change(move |change| {
        let owner_of = |pod: &Pod| {
            let owner = meta::controller_of(&pod.metadata)?;
            (owners.of_reference)(pod.metadata.namespace.as_deref().unwrap_or_default(), owner)
        };
        let Some(pod) = change.new else {
            if let Some(key) = change.old.and_then(|old| owner_of(old)) {
                expectations.deleted(&key, meta::uid(&change.object().metadata));
                queue.add(key);
            }
            return;
        };
        if let Some(old) = change.old
            && meta::controller_of(&old.metadata) != meta::controller_of(&pod.metadata)
            && let Some(key) = owner_of(old)
        {
            queue.add(key);
        }
        if let Some(key) = owner_of(pod) {
            if meta::is_deleting(&pod.metadata) {
                expectations.deleted(&key, meta::uid(&pod.metadata));
            } else if change.old.is_none() {
                expectations.created(&key);
            }
            queue.add(key);
        } else if meta::controller_of(&pod.metadata).is_none() && !meta::is_deleting(&pod.metadata) {
            for key in (owners.of_orphan)(pod) {
                queue.add(key);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[tokio::test]
    async fn slow_start_doubles_and_stops_at_a_failure() {
        let tried = Mutex::new(Vec::new());
        let result = slow_start(10, |index| {
            tried.lock().push(index);
            async move { if index == 4 { Err("refused") } else { Ok(()) } }
        })
        .await;
        assert_eq!(result, (6, 3, Some("refused")));
        assert_eq!(*tried.lock(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(slow_start(5, |_| async { Ok::<(), ()>(()) }).await, (5, 0, None));
    }
}
