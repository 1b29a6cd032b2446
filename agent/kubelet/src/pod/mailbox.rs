//! How the rest of the kubelet talks to a pod's worker: the latest wish, and a few marks. Nothing
//! here grows with the number of messages, and nobody ever waits for the worker.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use super::observed::{Observed, Run};
use super::status::Verdict;
use crate::probes::Update;
use crate::resize::Pending;

/// Where a pod's object comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Api,
    /// A manifest on this node.
    File,
    /// Found in the runtime only; it has to go.
    Runtime,
}

/// What is wanted of the pod now.
#[derive(Debug, Clone)]
pub struct Wish {
    pub pod: Arc<Pod>,
    pub source: Source,
    /// The object's UID in the API: a static pod's mirror has its own. None while there is none.
    pub api_uid: Option<String>,
    /// No longer wanted by its source.
    pub removed: bool,
    /// The node itself ends the pod: why, and with how many seconds of grace.
    pub verdict: Option<(Verdict, i64)>,
    /// Why the pod does not have the resources that its object wishes.
    pub resize_pending: Option<Pending>,
}

/// What happened since the worker last looked.
#[derive(Debug, Default)]
pub struct Mail {
    /// Containers or sandboxes that the runtime says have changed, and whether they ended.
    pub changed: HashMap<String, bool>,
    /// Compare everything with the runtime.
    pub resync: bool,
    /// Verdicts of probes, oldest first.
    pub probes: Vec<Update>,
    /// Runs that started and whose postStart hook is running.
    pub announced: Vec<Run>,
}

/// What the worker knows, for others to read.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// With the status that the worker last computed.
    pub pod: Arc<Pod>,
    pub observed: Arc<Observed>,
    /// The worker builds something: the runtime may be ahead of `observed`.
    pub busy: bool,
    /// Nothing runs and nothing will.
    pub ended: bool,
}

pub struct Mailbox {
    pub wish: watch::Sender<Wish>,
    mail: Mutex<Mail>,
    arrived: Notify,
    snapshot: RwLock<Snapshot>,
}

impl Mailbox {
    pub fn new(wish: Wish) -> Self {
        let snapshot = Snapshot { pod: wish.pod.clone(), ..Default::default() };
        Self {
            wish: watch::Sender::new(wish),
            mail: Mutex::default(),
            arrived: Notify::new(),
            snapshot: RwLock::new(snapshot),
        }
    }

    pub fn post(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut self.mail.lock());
        self.arrived.notify_one();
    }

    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub fn take(&self) -> Mail {
        std::mem::take(&mut self.mail.lock())
    }

    pub fn take_announced(&self) -> Vec<Run> {
        std::mem::take(&mut self.mail.lock().announced)
    }

    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.read().clone()
    }

    pub fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.write() = snapshot;
    }
}
