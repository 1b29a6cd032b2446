//! What every controller gets: shared caches, and its own identity to write with.
//!
//! [`Context`] is built once; [`Context::controller`] gives one controller its [`Controller`]:
//! a client that acts as `system:serviceaccount:kube-system:<name>`, an event recorder of that
//! name, and a subtree of tasks. [`run`] turns a `Result`-returning reconcile into the queue's
//! outcome.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use component::{EventRecorder, Informer, Informers, Kind, Outcome, Supervisor, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Resource};

use crate::Config;
use crate::error::{Error, Result};
use crate::index::Index;

/// Namespace (empty for cluster-scoped kinds) and name.
pub type Key = (String, String);

pub struct Context {
    pub config: Arc<Config>,
    pub informers: Informers,
    pub supervisor: Supervisor,
    pub pods: Pods,
    pub removals: Removals,
}

type Listener = Box<dyn Fn(&str) + Send + Sync>;

/// Tells when any object of a namespace has gone, whatever its kind. The garbage collector, which
/// watches every kind, is the source.
#[derive(Clone, Default)]
pub struct Removals {
    listeners: Arc<parking_lot::RwLock<Vec<Listener>>>,
}

impl Removals {
    /// `listener` gets the namespace; it must not block.
    pub fn subscribe(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        self.listeners.write().push(Box::new(listener));
    }

    pub fn announce(&self, namespace: &str) {
        self.listeners.read().iter().for_each(|listener| listener(namespace));
    }
}

/// Every pod, and the ways controllers look for them.
#[derive(Clone)]
pub struct Pods {
    pub informer: Informer<Pod>,
    pub by_namespace: Index<Pod>,
    /// Those without a controlling owner, by namespace: candidates for adoption.
    pub orphans: Index<Pod>,
    /// By the UID of the controlling owner.
    pub by_owner: Index<Pod>,
    pub by_node: Index<Pod>,
}

impl Pods {
    pub fn new(informer: Informer<Pod>) -> Self {
        let by_namespace = Index::new(&informer, |pod: &Pod| pod.metadata.namespace.iter().cloned().collect());
        let orphans = Index::new(&informer, |pod: &Pod| match crate::meta::controller_of(&pod.metadata) {
            Some(_) => Vec::new(),
            None => pod.metadata.namespace.iter().cloned().collect(),
        });
        let by_owner = Index::new(&informer, |pod: &Pod| {
            crate::meta::controller_of(&pod.metadata).map(|owner| owner.uid.clone()).into_iter().collect()
        });
        let by_node = Index::new(&informer, |pod: &Pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            node.filter(|node| !node.is_empty()).into_iter().collect()
        });
        Self { informer, by_namespace, orphans, by_owner, by_node }
    }
}

impl Pods {
    /// The pods `owner_uid` controls, and those of the namespace that nobody does.
    pub fn candidates(&self, namespace: &str, owner_uid: &str) -> Vec<Arc<Pod>> {
        let mut pods = self.by_owner.get(owner_uid);
        pods.retain(|pod| pod.metadata.namespace.as_deref() == Some(namespace));
        pods.extend(self.orphans.get(namespace));
        pods
    }
}

impl Context {
    pub fn new(config: Config, supervisor: &Supervisor) -> Self {
        let supervisor = supervisor.child("controllers");
        let informers = Informers::new((config.client)(""), &supervisor);
        let pods = Pods::new(informers.of::<Pod>());
        Self { config: Arc::new(config), informers, supervisor, pods, removals: Removals::default() }
    }

    /// `name` is Kubernetes' name of the controller, and of its ServiceAccount.
    pub fn controller(&self, name: &str) -> Controller {
        self.controller_as(name, event_source(name))
    }

    /// The same, whose events come from `source`.
    pub fn controller_as(&self, name: &str, source: &str) -> Controller {
        let supervisor = self.supervisor.child(name);
        let client = (self.config.client)(name);
        let events = EventRecorder::new(client.clone(), &supervisor, source, "");
        Controller { client, events, supervisor, name: name.to_owned() }
    }
}

/// What a controller's events say they come from. Most say the controller's name; some have kept an
/// older one, which people filter by.
fn event_source(controller: &str) -> &str {
    match controller {
        "daemon-set-controller" => "daemonset-controller",
        "disruption-controller" => "controllermanager",
        "endpointslice-controller" => "endpoint-slice-controller",
        "endpointslicemirroring-controller" => "endpoint-slice-mirroring-controller",
        "ephemeral-volume-controller" => "ephemeral_volume",
        "generic-garbage-collector" => "garbage-collector-controller",
        "persistent-volume-binder" => "persistentvolume-controller",
        "resource-claim-controller" => "resource_claim",
        "service-cidrs-controller" => "service-cidr-controller",
        same => same,
    }
}

/// One controller's identity.
#[derive(Clone)]
pub struct Controller {
    pub name: String,
    pub client: Client,
    pub events: EventRecorder,
    pub supervisor: Supervisor,
}

impl Controller {
    pub fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn cluster<K: Resource<DynamicType: Default>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Runs `reconcile` for the queue's keys once `ready` has completed (the caches it reads).
    pub fn run<Q, F, Fut>(
        &self,
        queue: &WorkQueue<Q>,
        workers: usize,
        ready: impl Future<Output = ()> + Send + 'static,
        reconcile: F,
    ) where
        Q: Eq + Hash + Clone + Debug + Send + Sync + 'static,
        F: Fn(Q) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Result<Outcome>> + Send + 'static,
    {
        let (queue, supervisor, name) = (queue.clone(), self.supervisor.clone(), self.name.clone());
        self.supervisor.spawn("start", async move {
            ready.await;
            queue.run(&supervisor, workers, move |key: Q| {
                let (run, name) = (reconcile(key.clone()), name.clone());
                async move { settle(&name, &key, run.await) }
            });
        });
    }

    /// Adds `key` to the queue every `period`; the first time at once.
    pub fn every<Q>(&self, queue: &WorkQueue<Q>, period: Duration, key: Q)
    where
        Q: Eq + Hash + Clone + Debug + Send + Sync + 'static,
    {
        let queue = queue.clone();
        self.supervisor.spawn("resync", async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                queue.add(key.clone());
            }
        });
    }
}

fn settle(controller: &str, key: &impl Debug, result: Result<Outcome>) -> Outcome {
    match result {
        Ok(outcome) => outcome,
        Err(error) if error.is_ordinary() => {
            tracing::debug!(controller, ?key, %error, "reconcile will be retried");
            Outcome::Retry
        }
        Err(error @ Error::Object { .. }) => {
            tracing::warn!(controller, ?key, %error, "object cannot be reconciled until it changes");
            Outcome::Done
        }
        Err(error) => {
            tracing::warn!(controller, ?key, %error, "reconcile failed");
            Outcome::Retry
        }
    }
}

/// Enqueues every object of a kind as it changes.
pub fn enqueue_changes<K: Kind>(informer: &Informer<K>, queue: &WorkQueue<Key>) {
    let queue = queue.clone();
    informer.on_change(move |change| queue.add(crate::meta::key(change.object().meta())));
}

/// Waits for several caches: `synced!(a, b)` is a future that owns its informers.
macro_rules! synced {
    ($($informer:expr),+ $(,)?) => {{
        let mut waits: Vec<futures::future::BoxFuture<'static, ()>> = Vec::new();
        $({
            let informer = $informer.clone();
            waits.push(Box::pin(async move { informer.synced().await }));
        })+
        async move {
            futures::future::join_all(waits).await;
        }
    }};
}
pub(crate) use synced;

/// Runs again when `moment` comes; at once when it has passed.
pub fn at(moment: Timestamp, now: Timestamp) -> Outcome {
    let wait = moment.duration_since(now);
    Outcome::After(Duration::try_from(wait).unwrap_or_default().max(Duration::from_millis(1)))
}
