//! What running pods are granted of the node when they wish other resources than they have.

use std::cmp::Reverse;
use std::sync::Arc;

use api::resources::{self, Side, qos_class};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{Manager, is_final, uid_of};
use crate::admission;
use crate::node::status::Pressure;
use crate::pod::mailbox::Source;
use crate::preemption::is_preempted;
use crate::resize;

/// A pod that waits for room.
#[derive(Debug, Clone)]
pub(super) struct Deferred {
    pod: Arc<Pod>,
    /// It requests more than it has.
    grows: bool,
    since: Timestamp,
}

/// Who is served first: those that request no more than they have, then by priority, by QoS class, and
/// by how long they wait (`pkg/kubelet/allocation: sortPendingResizes`).
fn in_order(mut deferred: Vec<Deferred>) -> Vec<Arc<Pod>> {
    deferred.sort_by_key(|waits| {
        let priority = waits.pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        (waits.grows, Reverse(priority), qos_class(&waits.pod) as u8, waits.since)
    });
    deferred.into_iter().map(|waits| waits.pod).collect()
}

fn requests_more(pod: &Pod, earlier: &Pod) -> bool {
    let requests =
        |pod: &Pod| pod.spec.as_ref().map(|spec| resources::of_pod(spec, Side::Requests)).unwrap_or_default();
    let had = requests(earlier);
    let wished = requests(pod);
    wished.iter().any(|(name, quantity)| had.get(name).is_none_or(|had| quantity > had))
}

impl Manager {
    /// The pods that hold resources of this node, but for one.
    pub(super) fn others(&self, uid: &str) -> Vec<Arc<Pod>> {
        let mailboxes = self.state.lock().pods.clone();
        let others = mailboxes.iter().filter(|(other, _)| *other != uid).filter(|(_, mailbox)| {
            let snapshot = mailbox.snapshot();
            let gives_way = mailbox.wish.borrow().verdict.as_ref().is_some_and(|(verdict, _)| is_preempted(verdict));
            !snapshot.ended && !is_final(&snapshot.pod) && !gives_way
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
        let view = admission::View {
            allocatable: &allocatable,
            node: None,
            others: &others,
            unsafe_sysctls: &[],
            apparmor: true,
            strict_groups: None,
            pressure: Pressure::default(),
        };
        let pending = resize::refuse(&pod, &view, source != Source::Api);
        let mut state = self.state.lock();
        match &pending {
            Some(pending) if pending.reason == resize::DEFERRED => {
                let since = state.deferred.get(&uid).map_or_else(Timestamp::now, |known| known.since);
                let grows = requests_more(&pod, earlier);
                state.deferred.insert(uid, Deferred { pod: pod.clone(), grows, since });
            }
            _ => {
                state.deferred.remove(&uid);
            }
        }
        match pending {
            Some(pending) => (Arc::new(resize::with_resources_of(&pod, earlier)), Some(pending)),
            None => (pod, None),
        }
    }

    /// Room may have come free for pods that wish to grow.
    pub(super) fn retry_deferred(self: &Arc<Self>) {
        let deferred = self.state.lock().deferred.values().cloned().collect();
        for pod in in_order(deferred) {
            let uid = uid_of(&pod);
            self.wish(pod, Source::Api, Some(uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32, requests: &serde_json::Value) -> Pod {
        let container = json!({"name": "c", "resources": {"requests": requests}});
        let spec = json!({"priority": priority, "containers": [container]});
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    }

    #[test]
    fn who_waits_is_served_in_order() {
        let some = json!({"cpu": "1"});
        let none = json!({});
        let waits = |name: &str, priority, requests, grows, since| Deferred {
            pod: Arc::new(pod(name, priority, requests)),
            grows,
            since: Timestamp::from_second(since).unwrap(),
        };
        let deferred = vec![
            waits("late", 0, &some, true, 9),
            waits("best-effort", 0, &none, true, 1),
            waits("early", 0, &some, true, 2),
            waits("high", 10, &none, true, 9),
            waits("low", -5, &some, true, 1),
            waits("shrinks", -9, &some, false, 9),
        ];
        let names: Vec<String> =
            in_order(deferred).iter().map(|pod| pod.metadata.name.clone().unwrap_or_default()).collect();
        assert_eq!(names, ["shrinks", "high", "early", "late", "best-effort", "low"]);
    }

    #[test]
    fn growing_is_to_request_more_of_anything() {
        for (had, wished, grows) in [
            (json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "2", "memory": "512Mi"}), true),
            (json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "1", "memory": "512Mi"}), false),
            (json!({"cpu": "1000m"}), json!({"cpu": "1"}), false),
            (json!({}), json!({"cpu": "1"}), true),
        ] {
            assert_eq!(requests_more(&pod("p", 0, &wished), &pod("p", 0, &had)), grows, "{had} {wished}");
        }
    }
}
