//! `Event` objects as kubectl shows them.
//!
//! The same event about the same object is counted, not repeated (client-go's
//! `EventCorrelator`): the first occurrence creates it, the next ones patch `count` and
//! `lastTimestamp`. Of one object's events only so many are written at once, and then one in five
//! minutes: a probe that fails every second is no write every second. Recording never blocks and
//! never fails the caller: a full queue drops the event and says so in the log.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;

use crate::Supervisor;

/// Events waiting to be sent; more are dropped.
const QUEUE: usize = 1000;
/// Distinct events remembered for counting, and objects for what is written of theirs.
const REMEMBERED: usize = 4096;
/// How many events of one object are written at once.
const BURST: f64 = 25.0;
/// Seconds until one more is.
const REFILL: f64 = 300.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

/// Records events for one component, e.g. `kubelet` on `node-1`. Cloning shares the queue.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Occurrence>,
}

struct Occurrence {
    regarding: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Occurrence {
    /// Equal for occurrences of the same event. Only a hash is remembered of each: the texts of some
    /// thousand events would be most of what a resting component holds.
    fn identity(&self, hasher: &RandomState) -> u64 {
        let about = (&self.regarding.uid, &self.regarding.field_path);
        hasher.hash_one((about, self.kind == EventType::Warning, &self.reason, &self.message))
    }

    /// Equal for occurrences about the same object, whatever part of it.
    fn object(&self, hasher: &RandomState) -> u64 {
        let about = &self.regarding;
        hasher.hash_one((&about.api_version, &about.kind, &about.namespace, &about.name, &about.uid))
    }
}

/// How many events may still be written of each object, and since when (`EventSourceObjectSpamFilter`).
#[derive(Default)]
struct Allowance {
    objects: HashMap<u64, (f64, Timestamp)>,
}

impl Allowance {
    fn take(&mut self, object: u64, at: Timestamp) -> bool {
        if self.objects.len() >= REMEMBERED {
            self.objects.clear();
        }
        let (left, since) = self.objects.entry(object).or_insert((BURST, at));
        let passed = at.duration_since(*since).as_secs_f64().max(0.0);
        (*left, *since) = ((*left + passed / REFILL).min(BURST), at);
        let may = *left >= 1.0;
        if may {
            *left -= 1.0;
        }
        may
    }
}

impl EventRecorder {
    /// `host` is the node's name for node components, empty for the control plane.
    pub fn new(client: Client, supervisor: &Supervisor, component: &str, host: &str) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let source =
            EventSource { component: Some(component.to_owned()), host: (!host.is_empty()).then(|| host.to_owned()) };
        supervisor.spawn("events", send_all(client, source, waiting));
        Self { queue }
    }

    /// A recorder that forgets everything, for tests.
    pub fn discard() -> Self {
        Self { queue: mpsc::channel(1).0 }
    }

    pub fn event(&self, regarding: &ObjectReference, kind: EventType, reason: &str, message: impl Into<String>) {
        let occurrence = Occurrence {
            regarding: regarding.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if let Err(mpsc::error::TrySendError::Full(lost)) = self.queue.try_send(occurrence) {
            tracing::warn!(reason = lost.reason, message = lost.message, "event queue is full; event dropped");
        }
    }

    /// An event about a typed object.
    pub fn object_event<K>(&self, object: &K, kind: EventType, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType: Default>,
    {
        self.event(&object.object_ref(&K::DynamicType::default()), kind, reason, message);
    }
}

async fn send_all(client: Client, source: EventSource, mut waiting: mpsc::Receiver<Occurrence>) {
    let hasher = RandomState::new();
    // name of the event object and its count so far
    let mut sent: HashMap<u64, (String, i32)> = HashMap::new();
    let mut allowance = Allowance::default();
    while let Some(occurrence) = waiting.recv().await {
        if sent.len() >= REMEMBERED {
            sent.clear();
        }
        let identity = occurrence.identity(&hasher);
        if !allowance.take(occurrence.object(&hasher), occurrence.at) {
            // The next that is written has the count of all.
            if let Some((_, count)) = sent.get_mut(&identity) {
                *count += 1;
            }
            continue;
        }
        let namespace = occurrence.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let repeated = match sent.get_mut(&identity) {
            Some((name, count)) => {
                *count += 1;
                count_again(&api, name, *count, occurrence.at).await
            }
            None => false,
        };
        if repeated {
            continue;
        }
        let event = first_occurrence(&occurrence, &namespace, &source);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                sent.insert(identity, (name, 1));
            }
            Err(error) => tracing::debug!(reason = occurrence.reason, %error, "event not recorded"),
        }
    }
}

/// Returns whether the event still existed.
async fn count_again(api: &Api<Event>, name: &str, count: i32, at: Timestamp) -> bool {
    let patch = serde_json::json!({ "count": count, "lastTimestamp": Time(at) });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok()
}

fn first_occurrence(occurrence: &Occurrence, namespace: &str, source: &EventSource) -> Event {
    let about = occurrence.regarding.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // client-go's form: the object's name and the time in hexadecimal nanoseconds
            name: Some(format!("{about}.{:x}", occurrence.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: occurrence.regarding.clone(),
        type_: Some(match occurrence.kind {
            EventType::Normal => "Normal".to_owned(),
            EventType::Warning => "Warning".to_owned(),
        }),
        reason: Some(occurrence.reason.clone()),
        message: Some(occurrence.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(occurrence.at)),
        last_timestamp: Some(Time(occurrence.at)),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn an_object_that_fails_every_second_is_not_written_every_second() {
        let mut allowance = Allowance::default();
        let mut at = Timestamp::UNIX_EPOCH;
        let mut written = 0;
        for _ in 0..3600 {
            at += SignedDuration::from_secs(1);
            written += u32::from(allowance.take(1, at));
        }
        assert!((36..=38).contains(&written), "25 and one in five minutes: {written}");
        assert!(allowance.take(2, at), "another object's are its own");
        assert!(allowance.take(1, at + SignedDuration::from_hours(24)));
    }
}
