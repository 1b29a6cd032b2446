//! The node's pods as the kubelet knows them now, and news of them for whoever watches. Synchronous; what
//! waits for a slow watcher is bounded.
//!
//! The manager says which pods there are, their workers how they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use proto::v1alpha1::EventType;
use tokio::sync::broadcast;

/// A watcher that is further behind than this is dropped.
const BEHIND: usize = 100;

/// Not every source of pods has been read: what is known is not all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Kubelet is initializing")]
pub struct Initializing;

#[derive(Debug, Clone)]
pub struct Event {
    pub kind: EventType,
    pub pod: Arc<Pod>,
}

pub struct Feed {
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct State {
    complete: bool,
    /// By UID, in which order they are listed.
    pods: BTreeMap<String, Arc<Pod>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { state: Mutex::default(), events: broadcast::Sender::new(BEHIND) }
    }
}

fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

impl Feed {
    /// Every source has been read.
    pub fn complete(&self) {
        self.state.lock().complete = true;
    }

    /// A pod that came. Nobody has looked at it yet.
    pub fn add(&self, pod: &Pod) {
        let pod = Arc::new(unseen(pod.clone()));
        let mut state = self.state.lock();
        let before = state.pods.insert(uid_of(&pod).to_owned(), pod.clone());
        self.tell(if before.is_none() { EventType::Added } else { EventType::Modified }, pod);
    }

    /// How a pod is; `looked` says that its worker has seen what runs.
    pub fn show(&self, pod: &Arc<Pod>, looked: bool) {
        let pod = if looked { pod.clone() } else { Arc::new(unseen(Pod::clone(pod))) };
        let mut state = self.state.lock();
        // One that was removed meanwhile does not come back.
        let Some(known) = state.pods.get_mut(uid_of(&pod)) else { return };
        if *known != pod {
            *known = pod.clone();
            self.tell(EventType::Modified, pod);
        }
    }

    /// A pod that its source names no longer.
    pub fn remove(&self, uid: &str) {
        let mut state = self.state.lock();
        let Some(pod) = state.pods.remove(uid) else { return };
        let ObjectMeta { name, namespace, uid, .. } = pod.metadata.clone();
        let metadata = ObjectMeta { name, namespace, uid, ..Default::default() };
        self.tell(EventType::Deleted, Arc::new(Pod { metadata, ..Default::default() }));
    }

    /// Called with the state locked: events are in the order of what they tell.
    fn tell(&self, kind: EventType, pod: Arc<Pod>) {
        // Nobody may be watching.
        let _ = self.events.send(Event { kind, pod });
    }

    pub fn list(&self) -> Result<Vec<Arc<Pod>>, Initializing> {
        let state = self.state.lock();
        if state.complete { Ok(state.pods.values().cloned().collect()) } else { Err(Initializing) }
    }

    pub fn get(&self, uid: &str) -> Result<Option<Arc<Pod>>, Initializing> {
        let state = self.state.lock();
        if state.complete { Ok(state.pods.get(uid).cloned()) } else { Err(Initializing) }
    }

    /// All pods, and what becomes of them from then on.
    pub fn watch(&self) -> Result<(Vec<Arc<Pod>>, broadcast::Receiver<Event>), Initializing> {
        let state = self.state.lock();
        if !state.complete {
            return Err(Initializing);
        }
        Ok((state.pods.values().cloned().collect(), self.events.subscribe()))
    }
}

/// What the API says of a pod that was not looked at here: that it is ready was true of before
/// (`pkg/kubelet/apis/pods: getEffectivePodStatus`).
fn unseen(mut pod: Pod) -> Pod {
    let status = pod.status.get_or_insert_default();
    status.phase.get_or_insert_with(|| "Pending".to_owned());
    if let Some(condition) = status.conditions.iter_mut().flatten().find(|condition| is_ready(condition)) {
        condition.status = "False".to_owned();
        condition.reason = Some("ContainersNotReady".to_owned());
        condition.message = Some("Kubelet is initializing pod containers".to_owned());
    }
    pod
}

fn is_ready(condition: &PodCondition) -> bool {
    condition.type_ == "Ready" && condition.status == "True"
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn pod(uid: &str, status: &serde_json::Value) -> Pod {
        let metadata = json!({"name": format!("name-{uid}"), "namespace": "ns", "uid": uid, "labels": {"a": "b"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": []}, "status": status})).unwrap()
    }

    fn shown(feed: &Feed, uid: &str, phase: &str) {
        feed.show(&Arc::new(pod(uid, &json!({"phase": phase}))), true);
    }

    fn phase(pod: &Pod) -> &str {
        pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
    }

    #[test]
    fn nothing_is_told_before_all_is_known() {
        let feed = Feed::default();
        feed.add(&pod("b", &json!({})));
        assert_eq!((feed.list().err(), feed.watch().map(drop).err()), (Some(Initializing), Some(Initializing)));
        assert!(feed.get("b").is_err());
        feed.complete();
        feed.add(&pod("a", &json!({})));
        let listed = feed.list().unwrap();
        assert_eq!(listed.iter().map(|pod| uid_of(pod)).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((feed.get("b").unwrap().is_some(), feed.get("c").unwrap().is_some()), (true, false));
    }

    #[test]
    fn watchers_are_told_what_changes_after_what_they_were_given() {
        let feed = Feed::default();
        feed.complete();
        feed.add(&pod("a", &json!({})));
        let (pods, mut events) = feed.watch().unwrap();
        assert_eq!((pods.len(), phase(&pods[0])), (1, "Pending"));
        shown(&feed, "a", "Running");
        shown(&feed, "a", "Running");
        feed.add(&pod("b", &json!({})));
        feed.remove("a");
        feed.remove("a");
        shown(&feed, "a", "Failed");
        let mut told = Vec::new();
        while let Ok(Event { kind, pod }) = events.try_recv() {
            told.push((kind, uid_of(&pod).to_owned(), phase(&pod).to_owned()));
            if kind == EventType::Deleted {
                assert_eq!((pod.metadata.name.as_deref(), &pod.metadata.labels), (Some("name-a"), &None));
            }
        }
        let event = |kind, uid: &str, phase: &str| (kind, uid.to_owned(), phase.to_owned());
        assert_eq!(
            told,
            [
                event(EventType::Modified, "a", "Running"),
                event(EventType::Added, "b", "Pending"),
                event(EventType::Deleted, "a", ""),
            ]
        );
    }

    #[test]
    fn a_watcher_that_is_far_behind_is_told_so() {
        let feed = Feed::default();
        feed.complete();
        feed.add(&pod("a", &json!({})));
        let (_, mut events) = feed.watch().unwrap();
        for turn in 0..1000 {
            shown(&feed, "a", &turn.to_string());
        }
        assert!(matches!(events.try_recv(), Err(TryRecvError::Lagged(_))));
    }

    #[test]
    fn a_pod_that_was_not_looked_at_is_not_ready() {
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        let status = json!({"phase": "Running", "conditions": [condition("PodScheduled"), condition("Ready")]});
        let feed = Feed::default();
        feed.complete();
        feed.add(&pod("a", &status));
        let conditions = |feed: &Feed| {
            let pod = feed.get("a").unwrap().unwrap();
            let all = pod.status.clone().unwrap().conditions.unwrap();
            all.into_iter().map(|one| (one.status, one.reason.unwrap_or_default())).collect::<Vec<_>>()
        };
        let pair = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
        assert_eq!(conditions(&feed), [pair("True", ""), pair("False", "ContainersNotReady")]);
        feed.show(&Arc::new(pod("a", &status)), false);
        assert_eq!(conditions(&feed)[1].0, "False");
        feed.show(&Arc::new(pod("a", &status)), true);
        assert_eq!(conditions(&feed)[1], pair("True", ""));
    }
}
