//! Garbage collection: objects whose owners are gone go too, in the background or, when asked,
//! before their owner; or are freed.
//!
//! - [`monitors`]: one metadata watch per resource the API server serves, custom ones included;
//! - [`graph`]: owners and dependents, pure;
//! - this module: looks at what the graph points out, and acts on the API server's own word.

mod graph;
mod monitors;

use std::sync::Arc;
use std::time::Duration;

use component::{EventType, Outcome, WorkQueue};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;

use crate::context::{Context, Controller};
use crate::error::{During, Error, Result, is_not_found};
use crate::meta;
use graph::{Deletion, FOREGROUND, Graph, Location, ORPHAN, Standing, Uid, Verdict, Work};
use monitors::Mapper;

const WORKERS: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Task {
    Delete(Uid),
    Orphan(Uid),
}

pub fn start(context: &Context) {
    let controller = context.controller("generic-garbage-collector");
    let queue = WorkQueue::<Task>::new();
    let graph = Arc::new(Mutex::new(Graph::default()));
    let (mapper, ready) = monitors::start(&controller, &graph, &queue, &context.removals);
    let worker = Arc::new(Worker { controller: controller.clone(), graph, queue: queue.clone(), mapper });
    controller.run(&queue, WORKERS, ready, move |task| {
        let worker = worker.clone();
        async move {
            let result = match task {
                Task::Delete(uid) => worker.look_at(&uid).await,
                Task::Orphan(uid) => worker.free_dependents(&uid).await,
            };
            match result {
                // a kind that is not served may be again, when its definition is back
                Err(error @ Error::Object { .. }) => {
                    tracing::debug!(%error, "garbage collection has to wait");
                    Ok(Outcome::Retry)
                }
                result => result,
            }
        }
    });
}

fn enqueue(queue: &WorkQueue<Task>, work: Work) {
    work.delete.into_iter().for_each(|uid| queue.add(Task::Delete(uid)));
    work.orphan.into_iter().for_each(|uid| queue.add(Task::Orphan(uid)));
}

struct Worker {
    controller: Controller,
    graph: Arc<Mutex<Graph>>,
    queue: WorkQueue<Task>,
    mapper: Mapper,
}

impl Worker {
    async fn look_at(&self, uid: &str) -> Result<Outcome> {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(Outcome::Done) };
        if matches!(node.deletion, Deletion::Plain | Deletion::Orphaning) {
            return Ok(Outcome::Done);
        }
        let Some(latest) = self.read(&node.location).await?.filter(|meta| meta::uid(meta) == uid) else {
            let served = self.mapper.find(&node.location.api_version, &node.location.kind).await?;
            let work = self.graph.lock().lost(uid, served.is_some_and(|served| served.namespaced));
            enqueue(&self.queue, work);
            return Ok(Outcome::Done);
        };
        if node.is_virtual {
            // it exists, but its watch has not shown it yet
            return Ok(Outcome::Retry);
        }
        if node.deletion == Deletion::Foreground {
            return self.go_on_in_foreground(uid, &node.location, &latest).await;
        }
        if meta::is_deleting(&latest) {
            return Ok(Outcome::Done);
        }
        let mut standings = Vec::new();
        for owner in latest.owner_references.iter().flatten() {
            standings.push((owner.uid.clone(), self.standing(&node.location, owner).await?));
        }
        let has_dependents = self.graph.lock().get(uid).is_some_and(|node| !node.dependents.is_empty());
        match graph::judge(&standings, has_dependents) {
            Verdict::Keep => {}
            Verdict::Release(owners) => self.release(&node.location, &latest, &owners).await?,
            Verdict::Delete { foreground: true } if self.graph.lock().may_be_in_circle(uid) && blocks(&latest) => {
                self.unblock(&node.location, &latest).await?;
                return Ok(Outcome::After(Duration::ZERO));
            }
            Verdict::Delete { foreground } => self.delete(&node.location, &latest, foreground).await?,
        }
        Ok(Outcome::Done)
    }

    /// The object's metadata as the API server has it now.
    async fn read(&self, location: &Location) -> Result<Option<ObjectMeta>> {
        let api = self.api(location).await?;
        let found = api.get_metadata_opt(&location.name).await.during("reading", &shown(location))?;
        Ok(found.map(|object| object.metadata))
    }

    async fn api(&self, location: &Location) -> Result<Api<DynamicObject>> {
        let served = self.mapper.find(&location.api_version, &location.kind).await?.ok_or_else(|| Error::Object {
            object: shown(location),
            problem: format!("no kind {} is served in {}; its dependents stay", location.kind, location.api_version),
        })?;
        let client = self.controller.client.clone();
        Ok(if served.namespaced {
            Api::namespaced_with(client, &location.namespace, &served.api)
        } else {
            Api::all_with(client, &served.api)
        })
    }

    /// The graph's word is enough that an owner is there: should it be going, its deletion event
    /// leads here again. That it is gone only the API server says.
    async fn standing(&self, dependent: &Location, owner: &OwnerReference) -> Result<Standing> {
        let (known, absent) = {
            let graph = self.graph.lock();
            let known = graph.get(&owner.uid).filter(|node| !node.is_virtual);
            (
                known.map(|node| (node.deletion, node.can_own_in(&dependent.namespace))),
                graph.is_absent(&owner.uid, &dependent.namespace),
            )
        };
        match known {
            Some((Deletion::Foreground, true)) => return Ok(Standing::Waiting),
            Some((_, true)) => return Ok(Standing::Solid),
            Some((_, false)) => self.warn_of_namespace(dependent, owner),
            None if absent => return Ok(Standing::Dangling),
            None => {}
        }
        let location = Location {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            namespace: dependent.namespace.clone(),
            name: owner.name.clone(),
        };
        let namespaced =
            self.mapper.find(&owner.api_version, &owner.kind).await?.is_some_and(|served| served.namespaced);
        if namespaced && dependent.namespace.is_empty() {
            if known.is_none() {
                self.warn_of_namespace(dependent, owner);
            }
            return Ok(Standing::Solid);
        }
        match self.read(&location).await?.filter(|meta| meta::uid(meta) == owner.uid) {
            None => {
                self.graph.lock().note_absent(&owner.uid, &dependent.namespace);
                Ok(Standing::Dangling)
            }
            Some(meta) if meta::is_deleting(&meta) && meta::has_finalizer(&meta, FOREGROUND) => Ok(Standing::Waiting),
            Some(_) => Ok(Standing::Solid),
        }
    }

    fn warn_of_namespace(&self, dependent: &Location, owner: &OwnerReference) {
        let reference = ObjectReference {
            api_version: Some(dependent.api_version.clone()),
            kind: Some(dependent.kind.clone()),
            namespace: Some(dependent.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(dependent.name.clone()),
            ..Default::default()
        };
        let namespace = &dependent.namespace;
        let text = format!(
            "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace \"{namespace}\"",
            owner.api_version, owner.kind, owner.name, owner.uid
        );
        self.controller.events.event(&reference, EventType::Warning, "OwnerRefInvalidNamespace", text);
    }

    /// Lets the object go when nothing blocks it any more; sends what blocks it on its way else.
    async fn go_on_in_foreground(&self, uid: &str, location: &Location, latest: &ObjectMeta) -> Result<Outcome> {
        let blocking = self.graph.lock().blocking(uid);
        if blocking.is_empty() {
            self.drop_finalizer(location, latest, FOREGROUND).await?;
            return Ok(Outcome::Done);
        }
        for dependent in blocking {
            let going = self.graph.lock().get(&dependent).is_some_and(|node| node.deletion != Deletion::None);
            if !going {
                self.queue.add(Task::Delete(dependent));
            }
        }
        Ok(Outcome::Done)
    }

    async fn drop_finalizer(&self, location: &Location, latest: &ObjectMeta, finalizer: &str) -> Result<()> {
        if !meta::has_finalizer(latest, finalizer) {
            return Ok(());
        }
        let kept: Vec<_> = latest.finalizers.iter().flatten().filter(|name| *name != finalizer).collect();
        let patch = json!({"metadata": {"resourceVersion": latest.resource_version, "finalizers": kept}});
        self.patch(location, "removing the finalizer of", &patch).await
    }

    /// In a circle of owners each would wait for the next: this one no longer keeps its owners waiting.
    async fn unblock(&self, location: &Location, latest: &ObjectMeta) -> Result<()> {
        let mut owners = latest.owner_references.clone().unwrap_or_default();
        owners.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
        let patch = json!({"metadata": {"resourceVersion": latest.resource_version, "ownerReferences": owners}});
        self.patch(location, "unblocking the owners of", &patch).await
    }

    async fn release(&self, location: &Location, latest: &ObjectMeta, owners: &[Uid]) -> Result<()> {
        let kept: Vec<_> = latest.owner_references.iter().flatten().filter(|o| !owners.contains(&o.uid)).collect();
        let patch = json!({"metadata": {"resourceVersion": latest.resource_version, "ownerReferences": kept}});
        self.patch(location, "removing lost owners of", &patch).await
    }

    async fn patch(&self, location: &Location, doing: &'static str, patch: &serde_json::Value) -> Result<()> {
        let api = self.api(location).await?;
        let patched = api.patch_metadata(&location.name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.unless_gone(doing, &shown(location)).map(drop)
    }

    async fn delete(&self, location: &Location, latest: &ObjectMeta, foreground: bool) -> Result<()> {
        let mut params = if foreground || meta::has_finalizer(latest, FOREGROUND) {
            DeleteParams::foreground()
        } else if meta::has_finalizer(latest, ORPHAN) {
            DeleteParams::orphan()
        } else {
            DeleteParams::background()
        };
        params.preconditions =
            Some(Preconditions { uid: latest.uid.clone(), resource_version: latest.resource_version.clone() });
        let deleted = self.api(location).await?.delete(&location.name, &params).await;
        deleted.unless_gone("collecting", &shown(location)).map(drop)
    }

    /// Takes the owner's reference out of every dependent, then lets the owner go.
    async fn free_dependents(&self, uid: &str) -> Result<Outcome> {
        let Some(owner) = self.graph.lock().get(uid).cloned() else { return Ok(Outcome::Done) };
        for dependent in &owner.dependents {
            let Some(node) = self.graph.lock().get(dependent).cloned() else { continue };
            let Some(latest) = self.read(&node.location).await? else { continue };
            let refers = latest.owner_references.iter().flatten().any(|reference| reference.uid == uid);
            if meta::uid(&latest) == dependent && refers {
                self.release(&node.location, &latest, &[uid.to_owned()]).await?;
            }
        }
        if let Some(latest) = self.read(&owner.location).await?.filter(|meta| meta::uid(meta) == uid) {
            self.drop_finalizer(&owner.location, &latest, ORPHAN).await?;
        }
        Ok(Outcome::Done)
    }
}

fn blocks(meta: &ObjectMeta) -> bool {
    meta.owner_references.iter().flatten().any(|owner| owner.block_owner_deletion == Some(true))
}

fn shown(location: &Location) -> String {
    let place = if location.namespace.is_empty() { String::new() } else { format!("{}/", location.namespace) };
    format!("{} {place}{}", location.kind, location.name)
}

/// Whether discovery failed because the group is not there at all.
fn is_gone(error: &kube::Error) -> bool {
    is_not_found(error)
}
