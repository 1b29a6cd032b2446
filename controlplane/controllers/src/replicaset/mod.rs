//! ReplicaSets and ReplicationControllers: so many pods of a template.
//!
//! Both kinds are one controller behind [`Replicated`]. [`plan`] decides what to create and which
//! pods to delete and computes the status; this module watches, claims pods, and acts. The caller
//! of a ReplicaSet's `spec.replicas` is usually `crate::deployment`.

mod kinds;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use component::{Informer, Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::Api;
use kube::api::PostParams;

pub use kinds::Replicated;
use plan::Failure;

use crate::context::{self, Context, Controller, Key, Pods, synced};
use crate::error::{During, Error, Result, is_namespace_terminating};
use crate::expectations::Expectations;
use crate::index::Index;
use crate::podcontrol::{self, PodOwners};
use crate::{meta, ownership, podstate};

const WORKERS: usize = 8;

pub fn start(context: &Context) {
    let sets = context.informers.of::<ReplicaSet>();
    let siblings = Index::new(&sets, |set: &ReplicaSet| {
        meta::controller_of(&set.metadata).map(|owner| owner.uid.clone()).into_iter().collect()
    });
    launch::<ReplicaSet>(context, sets, Some(siblings));
    launch::<ReplicationController>(context, context.informers.of(), None);
}

struct Replicas<K> {
    controller: Controller,
    objects: Informer<K>,
    pods: Pods,
    expectations: Expectations,
    /// ReplicaSets by the UID of their deployment: their pods crowd the same nodes.
    siblings: Option<Index<ReplicaSet>>,
}

fn launch<K: Replicated>(context: &Context, objects: Informer<K>, siblings: Option<Index<ReplicaSet>>) {
    let queue = WorkQueue::<Key>::new();
    let controller = context.controller(K::CONTROLLER);
    let expectations = Expectations::default();
    expectations.follow(&objects);
    context::enqueue_changes(&objects, &queue);
    podcontrol::watch(&context.pods, owners(&objects), &expectations, &queue);
    let ready = synced!(objects, context.pods.informer);
    let replicas =
        Replicas { controller: controller.clone(), objects, pods: context.pods.clone(), expectations, siblings };
    let replicas = Arc::new(replicas);
    controller.run(&queue, WORKERS, ready, move |key| {
        let replicas = replicas.clone();
        async move { replicas.reconcile(key).await }
    });
}

fn owners<K: Replicated>(objects: &Informer<K>) -> PodOwners {
    let (by_reference, by_selector) = (objects.clone(), objects.clone());
    PodOwners {
        of_reference: Box::new(move |namespace, owner| {
            if owner.kind != K::kind(&()) {
                return None;
            }
            let object = by_reference.get(namespace, &owner.name)?;
            (object.meta().uid.as_deref() == Some(&owner.uid)).then(|| meta::key(object.meta()))
        }),
        of_orphan: Box::new(move |pod: &Pod| {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let matching = by_selector.list_namespace(namespace).into_iter();
            let matching = matching.filter(|object| object.selector().matches(meta::labels(&pod.metadata)));
            matching.map(|object| meta::key(object.meta())).collect()
        }),
    }
}

impl<K: Replicated> Replicas<K> {
    async fn reconcile(&self, key: Key) -> Result<Outcome> {
        let Some(object) = self.objects.get(&key.0, &key.1) else {
            self.expectations.forget(&key);
            return Ok(Outcome::Done);
        };
        let in_step = self.expectations.satisfied(&key);
        let selector = object.selector();
        if selector.is_everything() {
            let problem = "its selector matches every pod; give it labels to match".to_owned();
            return Err(Error::Object { object: meta::display(object.meta()), problem });
        }
        let deleting = meta::is_deleting(object.meta());
        let candidates = self.pods.candidates(&key.0, meta::uid(object.meta()));
        let claim = ownership::claim(meta::uid(object.meta()), deleting, &selector, candidates, podstate::is_active);
        let pods = ownership::settle(&self.controller, &*object, claim).await?;
        let active: Vec<_> = pods.iter().filter(|pod| podstate::is_active(pod)).cloned().collect();
        let failure = if in_step && !deleting { self.manage(&key, &object, &active).await } else { None };

        let now = meta::now();
        let status = plan::status(&*object, &pods, failure.as_ref(), now);
        if status != object.status() {
            let api: Api<K> = self.controller.namespaced(&key.0);
            let updated = object.with_status(status);
            let written = api.replace_status(&key.1, &PostParams::default(), &updated).await;
            written.during("updating the status of", &meta::display(object.meta()))?;
        }
        match failure {
            Some(failure) if !is_namespace_terminating(&failure.error) => {
                Err::<(), _>(failure.error).during(failure.doing, &meta::display(object.meta()))?;
                Ok(Outcome::Retry)
            }
            _ => Ok(self.wake_up(&*object, &active, now)),
        }
    }

    /// Creates or deletes pods until there are as many as wanted.
    async fn manage(&self, key: &Key, object: &Arc<K>, active: &[Arc<Pod>]) -> Option<Failure> {
        let owner = object.object_ref(&());
        match plan::pods(object.replicas(), active, || self.crowding(&**object, active), Timestamp::now()) {
            plan::Action::None => None,
            plan::Action::Create(count) => self.create(key, object, count).await,
            plan::Action::Delete(victims) => {
                let error = podcontrol::delete_all(&self.controller, key, &self.expectations, &victims, &owner).await?;
                Some(Failure { doing: "deleting pods of", reason: "FailedDelete", error })
            }
        }
    }

    async fn create(&self, key: &Key, object: &Arc<K>, count: usize) -> Option<Failure> {
        let owner = object.object_ref(&());
        let template = object.template()?;
        let pod = podcontrol::from_template(template, meta::controller_ref(&**object));
        self.expectations.expect(key, count, []);
        let (_, untried, error) = podcontrol::slow_start(count, |_| async {
            let result = podcontrol::create(&self.controller, &key.0, &pod, &owner).await;
            if result.is_err() {
                self.expectations.created(key);
            }
            result.map(drop)
        })
        .await;
        self.expectations.creations_off(key, untried);
        Some(Failure { doing: "creating pods of", reason: "FailedCreate", error: error? })
    }

    /// Active pods of this set and its siblings, per node.
    fn crowding(&self, object: &K, own: &[Arc<Pod>]) -> HashMap<String, usize> {
        let deployment = meta::controller_of(object.meta());
        let siblings = match (&self.siblings, deployment) {
            (Some(index), Some(owner)) => index.get(&owner.uid),
            _ => Vec::new(),
        };
        let mut counts = HashMap::new();
        let others = siblings.iter().filter(|set| set.metadata.uid != object.meta().uid);
        let others = others.flat_map(|set| self.pods.by_owner.get(meta::uid(&set.metadata)));
        for pod in others.filter(|pod| podstate::is_active(pod)).chain(own.iter().cloned()) {
            *counts.entry(podstate::node_name(&pod).to_owned()).or_insert(0) += 1;
        }
        counts
    }

    /// Ready pods become available with time alone: look again then.
    fn wake_up(&self, object: &K, active: &[Arc<Pod>], now: Timestamp) -> Outcome {
        match podstate::next_available(active, object.min_ready_seconds(), now) {
            Some(moment) => context::at(moment, Timestamp::now()),
            None => Outcome::Done,
        }
    }
}
