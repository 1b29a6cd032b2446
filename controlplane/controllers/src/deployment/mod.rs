//! Deployments: ReplicaSets that come and go so that a template rolls out.
//!
//! - [`revision`]: which ReplicaSet is the template's, revisions, annotations, history;
//! - [`scale`]: how large each ReplicaSet should be now: rolling, recreate, proportional;
//! - [`status`]: conditions and the progress deadline;
//! - this module: watches, claims, and carries the decisions out in Kubernetes' order.
//!
//! One run changes sizes in one direction at most; the ReplicaSets' own status changes start the
//! next run.

mod revision;
mod scale;
mod status;

use std::sync::Arc;

use api::selector::Selector;
use component::{EventType, Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource, ResourceExt};

use crate::context::{self, Context, Controller, Key, Pods, synced};
use crate::error::{During, Result, is_already_exists, is_namespace_terminating, message};
use crate::index::Index;
use crate::{meta, ownership, podstate};

const WORKERS: usize = 5;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("deployment-controller");
    let deployments = context.informers.of::<Deployment>();
    let sets = context.informers.of::<ReplicaSet>();
    let own = Sets::new(&sets);
    context::enqueue_changes(&deployments, &queue);
    watch_sets(&sets, &deployments, &queue);
    watch_pods(context, &sets, &deployments, &queue);
    let ready = synced!(deployments, sets, context.pods.informer);
    let worker = Worker { controller: controller.clone(), deployments, sets: own, pods: context.pods.clone() };
    let worker = Arc::new(worker);
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

fn owner_key(deployments: &Informer<Deployment>, set: &ReplicaSet) -> Option<Key> {
    let owner = meta::controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment")?;
    let deployment = deployments.get(set.metadata.namespace.as_deref().unwrap_or_default(), &owner.name)?;
    (deployment.metadata.uid.as_deref() == Some(&owner.uid)).then(|| meta::key(&deployment.metadata))
}

fn watch_sets(sets: &Informer<ReplicaSet>, deployments: &Informer<Deployment>, queue: &WorkQueue<Key>) {
    let (deployments, queue) = (deployments.clone(), queue.clone());
    sets.on_change(move |change| {
        for set in change.old.into_iter().chain(change.new) {
            if let Some(key) = owner_key(&deployments, set) {
                queue.add(key);
            }
        }
        let Some(orphan) = change.new.filter(|set| meta::controller_of(&set.metadata).is_none()) else { return };
        for deployment in deployments.list_namespace(&orphan.namespace().unwrap_or_default()) {
            if selector(&deployment).matches(meta::labels(&orphan.metadata)) {
                queue.add(meta::key(&deployment.metadata));
            }
        }
    });
}

/// A Recreate rollout goes on when the last old pod is gone or finished.
fn watch_pods(
    context: &Context,
    sets: &Informer<ReplicaSet>,
    deployments: &Informer<Deployment>,
    queue: &WorkQueue<Key>,
) {
    let (sets, deployments, queue) = (sets.clone(), deployments.clone(), queue.clone());
    context.pods.informer.on_change(move |change| {
        let pod = change.object();
        if change.new.is_some_and(|pod| !podstate::is_finished(pod)) {
            return;
        }
        let namespace = pod.namespace().unwrap_or_default();
        let owner = meta::controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet");
        let key = owner.and_then(|owner| owner_key(&deployments, &*sets.get(&namespace, &owner.name)?));
        let Some(key) = key else { return };
        if deployments.get(&key.0, &key.1).is_some_and(|deployment| scale::is_recreate(&deployment)) {
            queue.add(key);
        }
    });
}

fn selector(deployment: &Deployment) -> Selector {
    Selector::from_label_selector(Some(&deployment.spec.selector)).unwrap_or_else(|_| Selector::nothing())
}

struct Worker {
    controller: Controller,
    deployments: Informer<Deployment>,
    sets: Sets,
    pods: Pods,
}

/// ReplicaSets as a Deployment looks for them: however many there are in its namespace, it sees few.
struct Sets {
    /// By the UID of the controlling owner.
    by_owner: Index<ReplicaSet>,
    /// Those without one, by namespace.
    orphans: Index<ReplicaSet>,
}

impl Sets {
    fn new(sets: &Informer<ReplicaSet>) -> Self {
        let by_owner = Index::new(sets, |set: &ReplicaSet| {
            meta::controller_of(&set.metadata).map(|owner| owner.uid.clone()).into_iter().collect()
        });
        let orphans = Index::new(sets, |set: &ReplicaSet| match meta::controller_of(&set.metadata) {
            Some(_) => Vec::new(),
            None => set.metadata.namespace.iter().cloned().collect(),
        });
        Self { by_owner, orphans }
    }

    /// Those that the Deployment controls, and those of its namespace that nobody does.
    fn candidates(&self, namespace: &str, uid: &str) -> Vec<Arc<ReplicaSet>> {
        let mut sets = self.by_owner.get(uid);
        sets.retain(|set| set.metadata.namespace.as_deref() == Some(namespace));
        sets.extend(self.orphans.get(namespace));
        sets
    }
}

/// One run: the deployment as it is being changed, and its ReplicaSets.
struct Run<'a> {
    worker: &'a Worker,
    observed: Arc<Deployment>,
    deployment: Deployment,
    new: Option<ReplicaSet>,
    old: Vec<ReplicaSet>,
    now: Timestamp,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(observed) = self.deployments.get(&key.0, &key.1) else { return Ok(Outcome::Done) };
        let selector = selector(&observed);
        if selector.is_everything() {
            return self.refuse_everything(&observed).await;
        }
        let deleting = meta::is_deleting(&observed.metadata);
        let candidates = self.sets.candidates(&key.0, meta::uid(&observed.metadata));
        let claim = ownership::claim(meta::uid(&observed.metadata), deleting, &selector, candidates, |_| true);
        let sets = ownership::settle(&self.controller, &*observed, claim).await?;
        let (new, old) = revision::split(&observed.spec.template, sets.iter().map(|set| (**set).clone()).collect());
        let mut run = Run { worker: self, deployment: (*observed).clone(), observed, new, old, now: meta::now() };
        if deleting {
            return run.write_status().await;
        }
        status::note_pause(&mut run.deployment, run.now);
        if run.deployment.spec.paused == Some(true) || run.was_scaled() {
            run.resize().await
        } else if scale::is_recreate(&run.deployment) {
            run.recreate().await
        } else {
            run.roll().await
        }
    }

    async fn refuse_everything(&self, deployment: &Deployment) -> Result<Outcome> {
        let text = "This deployment is selecting all pods. A non-empty selector is required.";
        self.controller.events.object_event(deployment, EventType::Warning, "SelectingAll", text);
        let mut changed = deployment.clone();
        let status = changed.status.get_or_insert_default();
        if status.observed_generation < deployment.metadata.generation {
            status.observed_generation = deployment.metadata.generation;
            let api: Api<Deployment> = self.controller.namespaced(&deployment.namespace().unwrap_or_default());
            let written = api.replace_status(&deployment.name_any(), &PostParams::default(), &changed).await;
            written.during("updating the status of deployment", &meta::display(&deployment.metadata))?;
        }
        Ok(Outcome::Done)
    }
}

impl Run<'_> {
    fn all(&self) -> Vec<&ReplicaSet> {
        self.new.iter().chain(&self.old).collect()
    }

    /// Someone changed `spec.replicas` since the ReplicaSets were last sized.
    fn was_scaled(&self) -> bool {
        let wanted = scale::replicas(&self.deployment);
        let active = self.all().into_iter().filter(|set| scale::size(set) > 0);
        active.filter_map(revision::desired_replicas).any(|desired| desired != wanted)
    }

    /// Paused, or scaled while rolling: sizes change in proportion, nothing is rolled.
    async fn resize(&mut self) -> Result<Outcome> {
        self.sync_revision(false).await?;
        let sizes = scale::proportional(&self.deployment, self.new.as_ref(), &self.old);
        self.apply(sizes).await?;
        if self.deployment.spec.paused == Some(true) {
            self.clean_up().await?;
        }
        let all = self.all();
        let conditions = self.deployment.status.as_ref().and_then(|status| status.conditions.clone());
        let mut next = status::calculate(&self.deployment, self.new.as_ref(), &all, self.now);
        next.conditions = status::with_availability(conditions, &self.deployment, &next, self.now);
        self.deployment.status = Some(next);
        self.write().await?;
        Ok(Outcome::Done)
    }

    async fn roll(&mut self) -> Result<Outcome> {
        self.sync_revision(true).await?;
        let Some(new) = self.new.as_ref() else { return self.write_status().await };
        let grow = scale::grow_new(&self.deployment, new, &self.old);
        if self.apply(grow).await? {
            return self.write_status().await;
        }
        let shrink = self.new.as_ref().map(|new| scale::shrink_old(&self.deployment, new, &self.old));
        if self.apply(shrink.unwrap_or_default()).await? {
            return self.write_status().await;
        }
        self.finish().await
    }

    async fn recreate(&mut self) -> Result<Outcome> {
        self.sync_revision(false).await?;
        let active = self.old.iter().filter(|set| scale::size(set) > 0);
        let stop = active.map(|set| (set.name_any(), 0)).collect();
        if self.apply(stop).await? || self.old_pods_run() {
            return self.write_status().await;
        }
        self.sync_revision(true).await?;
        let wanted = scale::replicas(&self.deployment);
        let grow = self.new.iter().map(|new| (new.name_any(), wanted)).collect();
        self.apply(grow).await?;
        self.finish().await
    }

    fn old_pods_run(&self) -> bool {
        let reported = self.old.iter().any(|set| set.status.as_ref().is_some_and(|status| status.replicas > 0));
        let runs = |pod: &Arc<Pod>| !podstate::is_finished(pod);
        reported || self.old.iter().any(|set| self.worker.pods.by_owner.get(meta::uid(&set.metadata)).iter().any(runs))
    }

    async fn finish(&mut self) -> Result<Outcome> {
        let all = self.all();
        let next = status::calculate(&self.deployment, self.new.as_ref(), &all, self.now);
        if status::is_complete(&self.deployment, &next) {
            self.clean_up().await?;
        }
        self.write_status().await
    }

    /// Finds or makes the template's ReplicaSet and gives it the newest revision.
    async fn sync_revision(&mut self, create: bool) -> Result<()> {
        let revision = revision::newest(&self.old) + 1;
        let Some(found) = &self.new else {
            return if create { self.create_new(revision).await } else { Ok(()) };
        };
        let mut changed = found.clone();
        let annotated = revision::annotate(&mut changed, &self.deployment, revision, true);
        let seconds = self.deployment.spec.min_ready_seconds.filter(|seconds| *seconds != 0);
        if annotated || changed.spec.min_ready_seconds.filter(|seconds| *seconds != 0) != seconds {
            changed.spec.min_ready_seconds = seconds;
            self.new = Some(self.update_set(&changed).await?);
        } else if let Some(number) = meta::annotation(&found.metadata, revision::REVISION).map(str::to_owned) {
            revision::set_on_deployment(&mut self.deployment, &number);
            let name = found.name_any();
            status::note_found(&mut self.deployment, &name, self.now);
            return Ok(());
        }
        let number = self.new.as_ref().and_then(|set| meta::annotation(&set.metadata, revision::REVISION));
        if let Some(number) = number.map(str::to_owned) {
            revision::set_on_deployment(&mut self.deployment, &number);
        }
        Ok(())
    }

    async fn create_new(&mut self, revision: i64) -> Result<()> {
        let wanted = revision::new_set(&self.deployment, scale::first_size(&self.deployment, &self.old), revision);
        let name = wanted.name_any();
        let api = self.sets_api();
        let created = match api.create(&PostParams::default(), &wanted).await {
            Ok(created) => {
                self.announce_scale(&name, 0, scale::size(&created));
                status::note_created(&mut self.deployment, &name, self.now);
                created
            }
            Err(error) if is_already_exists(&error) => {
                let existing = api.get(&name).await.during("reading ReplicaSet", &name)?;
                let ours = meta::is_controlled_by(&existing.metadata, meta::uid(&self.deployment.metadata));
                let template = existing.spec.template.as_ref();
                if !ours || !template.is_some_and(|t| revision::same_template(t, &self.deployment.spec.template)) {
                    return self.count_collision(&name, error).await;
                }
                existing
            }
            Err(error) => return self.report_failed_create(&name, error).await,
        };
        revision::set_on_deployment(&mut self.deployment, &revision.to_string());
        self.new = Some(created);
        Ok(())
    }

    /// Another object has the name: the next hash will differ.
    async fn count_collision(&mut self, name: &str, error: kube::Error) -> Result<()> {
        let status = self.deployment.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write().await?;
        Err(error).during("creating ReplicaSet", name)
    }

    async fn report_failed_create(&mut self, name: &str, error: kube::Error) -> Result<()> {
        if !is_namespace_terminating(&error) {
            let text = format!("Failed to create new replica set \"{name}\": {}", message(&error));
            status::note_failed_create(&mut self.deployment, &text, self.now);
            self.write().await?;
            self.worker.controller.events.object_event(
                &self.deployment,
                EventType::Warning,
                status::FAILED_CREATE,
                text,
            );
        }
        Err(error).during("creating ReplicaSet", name)
    }

    /// Gives ReplicaSets new sizes and current annotations; returns whether a size changed.
    async fn apply(&mut self, sizes: Vec<(String, i32)>) -> Result<bool> {
        let mut resized = false;
        for (name, size) in sizes {
            let Some(set) = self.all().into_iter().find(|set| set.name_any() == name) else { continue };
            let (before, mut changed) = (scale::size(set), set.clone());
            let annotated = revision::annotate_sizes(&mut changed, &self.deployment);
            if before == size && !annotated {
                continue;
            }
            changed.spec.replicas = Some(size);
            let updated = self.update_set(&changed).await?;
            if before != size {
                self.announce_scale(&name, before, size);
                resized = true;
            }
            for kept in self.new.iter_mut().chain(&mut self.old) {
                if kept.metadata.uid == updated.metadata.uid {
                    *kept = updated.clone();
                }
            }
        }
        Ok(resized)
    }

    fn announce_scale(&self, name: &str, from: i32, to: i32) {
        let direction = if to < from { "down" } else { "up" };
        if from != to {
            let text = format!("Scaled {direction} replica set {name} from {from} to {to}");
            let events = &self.worker.controller.events;
            events.object_event(&self.deployment, EventType::Normal, "ScalingReplicaSet", text);
        }
    }

    /// Deletes ReplicaSets beyond the history limit.
    async fn clean_up(&self) -> Result<()> {
        let api = self.sets_api();
        for name in revision::expired(&self.deployment, &self.old) {
            api.delete(&name, &DeleteParams::background()).await.unless_gone("deleting ReplicaSet", &name)?;
        }
        Ok(())
    }

    async fn write_status(&mut self) -> Result<Outcome> {
        let all = self.all();
        let next = status::rollout(&self.deployment, self.new.as_ref(), &all, self.now);
        let wake = status::deadline(&self.deployment, &next, self.now);
        self.deployment.status = Some(next);
        self.write().await?;
        Ok(wake.map_or(Outcome::Done, |moment| context::at(moment, Timestamp::now())))
    }

    /// Writes status and revision annotation if they differ from what was observed.
    async fn write(&mut self) -> Result<()> {
        let (before, after) = (&self.observed, &self.deployment);
        let annotated = before.metadata.annotations != after.metadata.annotations;
        if before.status == after.status && !annotated {
            return Ok(());
        }
        let (name, shown) = (after.name_any(), meta::display(&after.metadata));
        let api: Api<Deployment> = self.worker.controller.namespaced(&after.namespace().unwrap_or_default());
        let params = PostParams::default();
        let mut written = api.replace_status(&name, &params, after).await.during("updating the status of", &shown)?;
        // Kubernetes lets annotations through with the status; an API server that does not
        // needs the second write.
        if annotated && written.metadata.annotations != after.metadata.annotations {
            written.metadata.annotations = after.metadata.annotations.clone();
            written = api.replace(&name, &params, &written).await.during("updating the revision of", &shown)?;
        }
        self.deployment = written.clone();
        self.observed = Arc::new(written);
        Ok(())
    }

    fn sets_api(&self) -> Api<ReplicaSet> {
        self.worker.controller.namespaced(&self.deployment.namespace().unwrap_or_default())
    }

    async fn update_set(&self, set: &ReplicaSet) -> Result<ReplicaSet> {
        let name = set.name_any();
        let updated = self.sets_api().replace(&name, &PostParams::default(), set).await;
        updated.during("updating ReplicaSet", &meta::display(set.meta()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    #[test]
    fn a_deployment_looks_at_no_replica_set_of_another() {
        let informer = Informer::<ReplicaSet>::detached();
        let sets = Sets::new(&informer);
        let all = [("mine", "a", Some("me")), ("theirs", "a", Some("you")), ("orphan", "a", None), ("far", "b", None)];
        for (name, namespace, owner) in all {
            let mut set = ReplicaSet::default();
            (set.metadata.name, set.metadata.namespace) = (Some(name.into()), Some(namespace.into()));
            set.metadata.owner_references =
                owner.map(|uid| vec![OwnerReference { uid: uid.into(), controller: Some(true), ..Default::default() }]);
            informer.apply(set);
        }
        let mut names: Vec<_> = sets.candidates("a", "me").iter().map(|set| set.name_any()).collect();
        names.sort();
        assert_eq!(names, ["mine", "orphan"]);
    }
}
