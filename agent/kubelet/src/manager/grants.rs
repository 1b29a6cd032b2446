//! What running pods are granted of the node when they wish other resources than they have.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Manager, is_final, uid_of};
use crate::admission;
use crate::pod::mailbox::Source;
use crate::resize;

impl Manager {
    /// The pods that hold resources of this node, but for one.
    pub(super) fn others(&self, uid: &str) -> Vec<Arc<Pod>> {
        let mailboxes = self.state.lock().pods.clone();
        let others = mailboxes.iter().filter(|(other, _)| *other != uid).filter(|(_, mailbox)| {
            let snapshot = mailbox.snapshot();
            !snapshot.ended && !is_final(&snapshot.pod)
        });
        // The latest wish: a worker may not have looked at it yet.
        others.map(|(_, mailbox)| mailbox.wish.borrow().pod.clone()).collect()
    }

    /// The pod as it may be: with the resources that it had if the node has no room for those it wishes.
    pub(super) fn grant(&self, pod: Arc<Pod>, earlier: &Pod, source: Source) -> (Arc<Pod>, Option<resize::Pending>) {
        let uid = uid_of(&pod);
        if !resize::is_wished(&pod, earlier) {
            self.state.lock().deferred.remove(&uid);
            return (pod, None);
        }
        let others = self.others(&uid);
        let others: Vec<&Pod> = others.iter().map(AsRef::as_ref).collect();
        let allocatable = self.node.allocatable.read().clone();
        let view = admission::View { allocatable: &allocatable, node: None, others: &others, unsafe_sysctls: &[] };
        let pending = resize::refuse(&pod, &view, source != Source::Api);
        let mut state = self.state.lock();
        match &pending {
            Some(pending) if pending.reason == resize::DEFERRED => state.deferred.insert(uid, pod.clone()),
            _ => state.deferred.remove(&uid),
        };
        match pending {
            Some(pending) => (Arc::new(resize::with_resources_of(&pod, earlier)), Some(pending)),
            None => (pod, None),
        }
    }

    /// Room may have come free for pods that wish to grow.
    pub(super) fn retry_deferred(self: &Arc<Self>) {
        let deferred: Vec<Arc<Pod>> = self.state.lock().deferred.values().cloned().collect();
        for pod in deferred {
            let uid = uid_of(&pod);
            self.wish(pod, Source::Api, Some(uid));
        }
    }
}
