//! StatefulSets: numbered pods with names, claims and an order.
//!
//! - [`identity`]: a pod's name, labels and claims from its ordinal; pure;
//! - [`plan`]: the next steps (create, delete, update) and the status; pure;
//! - this module: watches, history and writes.

mod identity;
mod plan;

use std::sync::Arc;

use api::selector::Selector;
use component::{EventType, Informer, Outcome, WorkQueue};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::context::{self, Context, Controller, Key, Pods, synced};
use crate::error::{During, Error, Result, is_already_exists, is_namespace_terminating, is_not_found, message};
use crate::expectations::Expectations;
use crate::index::Index;
use crate::podcontrol::{self, PodOwners};
use crate::revisions::{self, Settled};
use crate::{meta, ownership};
use plan::{Action, Version};

const WORKERS: usize = 5;

pub fn start(context: &Context) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller("statefulset-controller");
    let sets = context.informers.of::<StatefulSet>();
    let history = context.informers.of::<ControllerRevision>();
    let claims = context.informers.of::<PersistentVolumeClaim>();
    let by_namespace = Index::new(&history, |r: &ControllerRevision| r.metadata.namespace.iter().cloned().collect());
    let expectations = Expectations::default();
    expectations.follow(&sets);
    context::enqueue_changes(&sets, &queue);
    podcontrol::watch(&context.pods, owners(&sets), &expectations, &queue);
    watch_claims(&claims, &sets, &queue);
    let ready = synced!(sets, history, claims, context.pods.informer);
    let worker = Arc::new(Worker {
        controller: controller.clone(),
        sets,
        history: by_namespace,
        claims,
        pods: context.pods.clone(),
        expectations,
    });
    controller.run(&queue, WORKERS, ready, move |key| {
        let worker = worker.clone();
        async move { worker.reconcile(key).await }
    });
}

fn selector(set: &StatefulSet) -> Selector {
    Selector::from_label_selector(Some(&set.spec.selector)).unwrap_or_else(|_| Selector::nothing())
}

fn owners(sets: &Informer<StatefulSet>) -> PodOwners {
    let (by_reference, by_selector) = (sets.clone(), sets.clone());
    PodOwners {
        of_reference: Box::new(move |namespace, owner| {
            let set = by_reference.get(namespace, &owner.name).filter(|_| owner.kind == "StatefulSet")?;
            (set.metadata.uid.as_deref() == Some(&owner.uid)).then(|| meta::key(&set.metadata))
        }),
        of_orphan: Box::new(move |pod: &Pod| {
            let sets = by_selector.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default()).into_iter();
            let matching = sets.filter(|set| {
                selector(set).matches(meta::labels(&pod.metadata)) && identity::ordinal(set, &pod.name_any()).is_some()
            });
            matching.map(|set| meta::key(&set.metadata)).collect()
        }),
    }
}

/// A pod may wait for a claim of its name to be gone.
fn watch_claims(claims: &Informer<PersistentVolumeClaim>, sets: &Informer<StatefulSet>, queue: &WorkQueue<Key>) {
    let (sets, queue) = (sets.clone(), queue.clone());
    claims.on_change(move |change| {
        if change.new.is_some() {
            return;
        }
        let (namespace, claim) = meta::key(&change.object().metadata);
        let own = sets.list_namespace(&namespace).into_iter().filter(|set| identity::is_claim_of(set, &claim));
        own.for_each(|set| queue.add(meta::key(&set.metadata)));
    });
}

struct Worker {
    controller: Controller,
    sets: Informer<StatefulSet>,
    history: Index<ControllerRevision>,
    claims: Informer<PersistentVolumeClaim>,
    pods: Pods,
    /// Of pods made and deleted: the cache must show them before the next step.
    expectations: Expectations,
}

impl Worker {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        let (selector, uid) = (selector(&set), meta::uid(&set.metadata));
        if selector.is_everything() {
            return Ok(Outcome::Done);
        }
        let deleting = meta::is_deleting(&set.metadata);
        let member = |pod: &Pod| identity::ordinal(&set, &pod.name_any()).is_some();
        let claim = ownership::claim(uid, deleting, &selector, self.pods.candidates(&key.0, uid), member);
        let pods = ownership::settle(&self.controller, &*set, claim).await?;
        if deleting {
            // Its pods go before it does: they are counted, and nothing is made for it any more.
            if let Some(versions) = last_versions(&set) {
                self.write_status(&key, &set, plan::status(&set, &pods, &versions, Timestamp::now())).await?;
            }
            return Ok(Outcome::Done);
        }
        let claim = ownership::claim(uid, false, &selector, self.history.get(&key.0), |_| true);
        let history = ownership::settle(&self.controller, &*set, claim).await?;

        let collisions = set.status.as_ref().and_then(|status| status.collision_count);
        let settled = revisions::settle(&self.controller, &*set, &set.spec.template, &history, collisions).await?;
        let Settled::Current(update) = settled else { return self.count_collision(&set).await };
        let versions = versions(&set, &update, &history);
        let now = Timestamp::now();
        let mut failure = None;
        if self.expectations.satisfied(&key) {
            let steps = plan::steps(&set, &pods, &versions, now);
            failure = self.act(&key, &set, &versions, steps).await.err();
        }
        if failure.is_none() {
            let used = |revision: &ControllerRevision| {
                versions.names().contains(&revision.name_any().as_str())
                    || pods.iter().any(|pod| plan::revision_of(pod) == Some(revision.name_any().as_str()))
            };
            let names = revisions::expired(&history, set.spec.revision_history_limit, used);
            revisions::expire(&self.controller, &key.0, &names).await?;
        }
        self.write_status(&key, &set, plan::status(&set, &pods, &versions, now)).await?;
        match failure {
            // a claim is in the way: whoever removes it may need its time
            Some(error @ Error::Object { .. }) => {
                tracing::debug!(%error, "the StatefulSet's pods have to wait");
                Ok(Outcome::Retry)
            }
            Some(error) => Err(error),
            None => {
                let seconds = set.spec.min_ready_seconds.unwrap_or(0);
                let next = crate::podstate::next_available(&pods, seconds, now);
                Ok(next.map_or(Outcome::Done, |moment| context::at(moment, now)))
            }
        }
    }

    async fn act(
        &self,
        key: &Key,
        set: &Arc<StatefulSet>,
        versions: &plan::Versions,
        steps: Vec<Action>,
    ) -> Result<()> {
        // first who owns the claims: once their pod is gone nobody knows any more that they were to go with it
        for steps in plan::in_order(steps) {
            let work = steps.into_iter().map(|step| async move {
                match step {
                    Action::Create(ordinal, side) => self.create(key, set, ordinal, versions.template(side)).await,
                    Action::Delete(pod) => self.delete(key, set, &pod).await,
                    Action::Claims(pod, ordinal) => self.make_claims(key, set, ordinal, &pod).await,
                    Action::Identify(pod, ordinal) => self.identify(key, set, &pod, ordinal).await,
                    Action::Scale(pod, ordinal) => self.own_claims(key, set, &pod, ordinal).await,
                }
            });
            // each to its end: what is dropped half-way would leave expectations that nothing fulfils
            join_all(work).await.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    async fn create(&self, key: &Key, set: &Arc<StatefulSet>, ordinal: i32, version: &Version) -> Result<()> {
        let pod = identity::pod(set, &version.template, &version.name, ordinal);
        let name = pod.name_any();
        for claim in identity::claims(set, ordinal) {
            let existing = self.claims.get(&key.0, &claim.name_any());
            if existing.is_some_and(|existing| identity::is_stale(set, ordinal, &existing)) {
                let problem = format!("claim {} goes with an earlier pod of this name", claim.name_any());
                return Err(Error::Object { object: format!("pod {}/{name}", key.0), problem });
            }
        }
        if let Err(error) = self.make_claims(key, set, ordinal, &pod).await {
            if let Error::Object { problem, .. } = &error {
                let text = format!("create Pod {name} in StatefulSet {} failed error: {problem}", key.1);
                self.controller.events.object_event(&**set, EventType::Warning, "FailedCreate", text);
            }
            return Err(error);
        }
        self.expectations.expect(key, 1, []);
        let api: Api<Pod> = self.controller.namespaced(&key.0);
        match api.create(&PostParams::default(), &pod).await {
            Ok(_) => {
                let text = format!("create Pod {name} in StatefulSet {} successful", key.1);
                self.controller.events.object_event(&**set, EventType::Normal, "SuccessfulCreate", text);
                Ok(())
            }
            Err(error) => {
                self.expectations.created(key);
                if is_already_exists(&error) || is_namespace_terminating(&error) {
                    return Ok(());
                }
                let text = format!("create Pod {name} in StatefulSet {} failed error: {}", key.1, message(&error));
                self.controller.events.object_event(&**set, EventType::Warning, "FailedCreate", text);
                Err(error).during("creating pod", &format!("{}/{name}", key.0))
            }
        }
    }

    async fn make_claims(&self, key: &Key, set: &Arc<StatefulSet>, ordinal: i32, pod: &Pod) -> Result<()> {
        let api: Api<PersistentVolumeClaim> = self.controller.namespaced(&key.0);
        for claim in identity::claims(set, ordinal) {
            let name = claim.name_any();
            match self.claims.get(&key.0, &name) {
                Some(existing) if meta::is_deleting(&existing.metadata) => {
                    let problem = format!("pvc {name} is being deleted");
                    return Err(Error::Object { object: format!("pod {}/{}", key.0, pod.name_any()), problem });
                }
                Some(_) => continue,
                None => {}
            }
            let about = format!("Claim {name} Pod {} in StatefulSet {}", pod.name_any(), key.1);
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let text = format!("create {about} success");
                    self.controller.events.object_event(&**set, EventType::Normal, "SuccessfulCreate", text);
                }
                Err(error) if is_already_exists(&error) => {}
                Err(error) => {
                    let text = format!("create {about} failed error: {}", message(&error));
                    self.controller.events.object_event(&**set, EventType::Warning, "FailedCreate", text);
                    return Err(error).during("creating claim", &format!("{}/{name}", key.0));
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, set: &Arc<StatefulSet>, pod: &Pod) -> Result<()> {
        let (name, api) = (pod.name_any(), self.controller.namespaced::<Pod>(&key.0));
        let uid = meta::uid(&pod.metadata).to_owned();
        self.expectations.expect(key, 0, [uid.clone()]);
        match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {
                let text = format!("delete Pod {name} in StatefulSet {} successful", key.1);
                self.controller.events.object_event(&**set, EventType::Normal, "SuccessfulDelete", text);
                Ok(())
            }
            Err(error) => {
                self.expectations.deleted(key, &uid);
                if is_not_found(&error) {
                    return Ok(());
                }
                let text = format!("delete Pod {name} in StatefulSet {} failed error: {}", key.1, message(&error));
                self.controller.events.object_event(&**set, EventType::Warning, "FailedDelete", text);
                Err(error).during("deleting pod", &format!("{}/{name}", key.0))
            }
        }
    }

    /// Gives an adopted pod the labels its name stands for.
    async fn identify(&self, key: &Key, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"labels": identity::labels(set, ordinal)}}));
        let api: Api<Pod> = self.controller.namespaced(&key.0);
        let patched = api.patch(&pod.name_any(), &PatchParams::default(), &patch).await;
        patched.unless_gone("labelling pod", &meta::display(&pod.metadata)).map(drop)
    }

    /// Sets the owners that the claim retention policy asks for on a pod's claims.
    async fn own_claims(&self, key: &Key, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result<()> {
        let api: Api<PersistentVolumeClaim> = self.controller.namespaced(&key.0);
        for wanted in identity::claims(set, ordinal) {
            let name = wanted.name_any();
            let Some(existing) = self.claims.get(&key.0, &name) else { continue };
            let Some(owners) = identity::claim_owners(set, pod, ordinal, &existing) else { continue };
            let mut changed = (*existing).clone();
            changed.metadata.owner_references = Some(owners);
            let patched = api.replace(&name, &PostParams::default(), &changed).await;
            patched.unless_gone("setting the owners of claim", &name)?;
        }
        Ok(())
    }

    async fn count_collision(&self, set: &StatefulSet) -> Result<Outcome> {
        let mut changed = set.clone();
        let status = changed.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        let key = meta::key(&set.metadata);
        let written = self
            .controller
            .namespaced::<StatefulSet>(&key.0)
            .replace_status(&key.1, &PostParams::default(), &changed)
            .await;
        written.during("counting a hash collision of", &meta::display(&set.metadata))?;
        Ok(Outcome::Retry)
    }

    async fn write_status(
        &self,
        key: &Key,
        set: &StatefulSet,
        status: k8s_openapi::api::apps::v1::StatefulSetStatus,
    ) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = StatefulSet { status: Some(status), ..set.clone() };
        let api: Api<StatefulSet> = self.controller.namespaced(&key.0);
        let written = api.replace_status(&key.1, &PostParams::default(), &changed).await;
        written.during("updating the status of", &meta::display(&set.metadata)).map(drop)
    }
}

/// The versions that the status names; none: it was never written.
fn last_versions(set: &StatefulSet) -> Option<plan::Versions> {
    let status = set.status.as_ref()?;
    let version = |name: &Option<String>| Some(Version { name: name.clone()?, template: set.spec.template.clone() });
    Some(plan::Versions { current: version(&status.current_revision)?, update: version(&status.update_revision)? })
}

/// The revision being rolled out, and the one it replaces.
fn versions(set: &StatefulSet, update: &ControllerRevision, history: &[Arc<ControllerRevision>]) -> plan::Versions {
    let version = |revision: &ControllerRevision| Version {
        name: revision.name_any(),
        template: revisions::template(revision).unwrap_or_else(|| set.spec.template.clone()),
    };
    let named = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let current = history.iter().find(|revision| Some(revision.name_any().as_str()) == named);
    let update = Version { name: update.name_any(), template: set.spec.template.clone() };
    plan::Versions { current: current.map_or_else(|| update.clone(), |revision| version(revision)), update }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::{at, pod, ready};
    use k8s_openapi::api::apps::v1::StatefulSetStatus;

    #[test]
    fn pods_of_a_set_being_deleted_are_counted_by_the_versions_it_had() {
        let mut set = StatefulSet::default();
        set.metadata.name = Some("web".into());
        assert!(last_versions(&set).is_none(), "nothing was ever counted");
        set.status = Some(StatefulSetStatus {
            replicas: 3,
            ready_replicas: Some(3),
            current_revision: Some("old".into()),
            update_revision: Some("new".into()),
            ..Default::default()
        });
        let versions = last_versions(&set).expect("the status names both");
        let mut left = ready(pod("web-0", "n1", "Running"), 0);
        left.metadata.labels = Some([(revisions::HASH_LABEL.to_owned(), "old".to_owned())].into());
        let status = plan::status(&set, &[Arc::new(left)], &versions, at(10));
        assert_eq!((status.replicas, status.ready_replicas, status.current_replicas), (1, Some(1), Some(1)));
        assert_eq!((status.current_revision.as_deref(), status.update_revision.as_deref()), (Some("old"), Some("new")));
    }
}
