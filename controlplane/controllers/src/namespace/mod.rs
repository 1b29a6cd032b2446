//! Namespace deletion: everything in a namespace goes, then the namespace.
//!
//! Pods go first, then every other namespaced resource that discovery knows. What remains, and
//! why, stands in the namespace's conditions. [`conditions`] is pure.

mod conditions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use component::{Informer, Outcome, WorkQueue};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::{Api, ResourceExt};

use crate::context::{Context, Controller, synced};
use crate::discovery::{self, Served};
use crate::error::{During, Result, is_not_found, message};
use crate::meta;
use conditions::Progress;

const WORKERS: usize = 10;
/// Resources of one namespace worked on at once.
const PARALLEL: usize = 8;
const FINALIZER: &str = "kubernetes";

pub fn start(context: &Context) {
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("namespace-controller");
    let namespaces = context.informers.of::<Namespace>();
    let changed = queue.clone();
    namespaces.on_change(move |change| {
        if let Some(namespace) = change.new.filter(|namespace| meta::is_deleting(&namespace.metadata)) {
            changed.add(namespace.name_any());
        }
    });
    let (changed, terminating) = (queue.clone(), namespaces.clone());
    // whatever goes may have been the last that held the namespace
    context.removals.subscribe(move |namespace| {
        let going = |namespace: Arc<Namespace>| meta::is_deleting(&namespace.metadata);
        if terminating.get("", namespace).is_some_and(going) {
            changed.add(namespace.to_owned());
        }
    });
    let worker = Arc::new(Worker { controller: controller.clone(), namespaces: namespaces.clone() });
    controller.run(&queue, WORKERS, synced!(namespaces), move |name: String| {
        let worker = worker.clone();
        async move { worker.reconcile(&name).await }
    });
}

struct Worker {
    controller: Controller,
    namespaces: Informer<Namespace>,
}

impl Worker {
    async fn reconcile(&self, name: &str) -> Result<Outcome> {
        let Some(namespace) = self.namespaces.get("", name) else { return Ok(Outcome::Done) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if !meta::is_deleting(&namespace.metadata) || !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(Outcome::Done);
        }
        let progress = self.delete_content(name).await?;
        if progress.is_done() {
            self.finalize(&namespace, finalizers).await?;
            return Ok(Outcome::Done);
        }
        self.report(&namespace, &progress).await?;
        // what goes wakes this key; this is for what no watch tells
        Ok(match progress.grace {
            0 => Outcome::Retry,
            grace => Outcome::After(Duration::from_secs((grace / 2 + 1).unsigned_abs())),
        })
    }

    async fn delete_content(&self, namespace: &str) -> Result<Progress> {
        let found = discovery::discover(&self.controller.client).await?;
        let mut progress = Progress { undiscovered: found.failures, ..Default::default() };
        let deletable =
            found.resources.into_iter().filter(|served| served.namespaced && served.can(&["list", "delete"]));
        let (pods, others): (Vec<_>, Vec<_>) = deletable.partition(|served| served.name() == "pods");
        self.empty(namespace, pods, &mut progress).await;
        if progress.remaining.is_empty() {
            self.empty(namespace, others, &mut progress).await;
        }
        Ok(progress)
    }

    async fn empty(&self, namespace: &str, resources: Vec<Served>, progress: &mut Progress) {
        let work = resources.into_iter().map(|served| async move {
            let result = self.empty_one(namespace, &served).await;
            (served.name(), result)
        });
        let mut results: Vec<_> = futures::stream::iter(work).buffer_unordered(PARALLEL).collect().await;
        results.sort_by(|a, b| a.0.cmp(&b.0));
        for (resource, result) in results {
            match result {
                Ok(left) if left.count == 0 => {}
                Ok(left) => progress.add(resource, left),
                Err(error) => progress.failures.push(message(&error)),
            }
        }
    }

    /// Deletes one resource's objects; returns what is still there.
    async fn empty_one(&self, namespace: &str, served: &Served) -> std::result::Result<Left, kube::Error> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.controller.client.clone(), namespace, &served.api);
        let list = match api.list_metadata(&ListParams::default()).await {
            Err(error) if is_not_found(&error) || is_not_allowed(&error) => return Ok(Left::default()),
            other => other?,
        };
        if list.items.is_empty() {
            return Ok(Left::default());
        }
        let params = DeleteParams::background();
        if served.can(&["deletecollection"]) {
            api.delete_collection(&params, &ListParams::default()).await?;
        } else {
            for object in &list.items {
                match api.delete(&object.name_any(), &params).await {
                    Err(error) if !is_not_found(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        let remaining = api.list_metadata(&ListParams::default()).await?;
        let mut left = Left { count: remaining.items.len(), ..Default::default() };
        for object in &remaining.items {
            for finalizer in object.finalizers() {
                *left.finalizers.entry(finalizer.clone()).or_insert(0) += 1;
            }
            left.grace = left.grace.max(object.metadata.deletion_grace_period_seconds.unwrap_or(0));
        }
        Ok(left)
    }

    async fn report(&self, namespace: &Namespace, progress: &Progress) -> Result<()> {
        let before = namespace.status.clone().unwrap_or_default();
        let conditions = conditions::updated(before.conditions.clone().unwrap_or_default(), progress, meta::now());
        if before.conditions.as_ref() == Some(&conditions) {
            return Ok(());
        }
        let mut changed = namespace.clone();
        changed.status.get_or_insert_default().conditions = Some(conditions);
        let api: Api<Namespace> = self.controller.cluster();
        let written = api.replace_status(&namespace.name_any(), &PostParams::default(), &changed).await;
        written.unless_gone("reporting on the deletion of namespace", &namespace.name_any())?;
        Ok(())
    }

    async fn finalize(&self, namespace: &Namespace, mut finalizers: Vec<String>) -> Result<()> {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        let mut changed = namespace.clone();
        changed.spec = Some(NamespaceSpec { finalizers: Some(finalizers) });
        let (api, name) = (self.controller.cluster::<Namespace>(), namespace.name_any());
        let written = api.replace_subresource("finalize", &name, &PostParams::default(), &changed).await;
        written.unless_gone("finalizing namespace", &name)?;
        Ok(())
    }
}

fn is_not_allowed(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 405)
}

/// What remains of one resource after its deletion.
#[derive(Debug, Default, PartialEq)]
pub struct Left {
    pub count: usize,
    pub finalizers: BTreeMap<String, usize>,
    /// The longest grace period among them, in seconds.
    pub grace: i64,
}
