//! `Event` objects as kubectl shows them.
//!
//! The same event about the same object is counted, not repeated (client-go's
//! `EventCorrelator`): the first occurrence creates it, the next ones patch `count` and
//! `lastTimestamp`. Events that differ in nothing but their messages are counted together from the
//! tenth message on: a ReplicaSet of a hundred pods is no hundred events. Of one object's events only so many are written at once, and then one in five
//! minutes: a probe that fails every second is no write every second. Recording never blocks and
//! never fails the caller: a full queue drops the event and says so in the log.

use std::collections::{HashMap, HashSet};
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

/// From so many messages on events of one sort are counted together.
const SIMILAR: usize = 10;
/// Seconds without such an event after which its messages are told one by one again.
const SIMILAR_FOR: f64 = 600.0;

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
        hasher.hash_one((self.sort(hasher), &self.regarding.field_path, &self.message))
    }

    /// Equal for occurrences about the same object that differ in their messages only.
    fn sort(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one((self.object(hasher), self.kind == EventType::Warning, &self.reason))
    }

    /// Equal for occurrences about the same object, whatever part of it.
    fn object(&self, hasher: &RandomState) -> u64 {
        let about = &self.regarding;
        hasher.hash_one((&about.api_version, &about.kind, &about.namespace, &about.name, &about.uid))
    }
}

/// The messages of each sort of event that are told one by one, and when one of it came last
/// (`EventAggregator`).
#[derive(Default)]
struct Similar {
    messages: HashMap<u64, (HashSet<u64>, Timestamp)>,
}

impl Similar {
    /// Whether an event with this message is counted together with others of its sort.
    fn joins(&mut self, sort: u64, message: u64, at: Timestamp) -> bool {
        if self.messages.len() >= REMEMBERED {
            self.messages.clear();
        }
        let (known, last) = self.messages.entry(sort).or_insert_with(|| (HashSet::new(), at));
        if at.duration_since(*last).as_secs_f64() > SIMILAR_FOR {
            known.clear();
        }
        *last = at;
        if known.contains(&message) {
            return false;
        }
        let joins = known.len() + 1 >= SIMILAR;
        if !joins {
            known.insert(message);
        }
        joins
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
    let (mut allowance, mut similar) = (Allowance::default(), Similar::default());
    while let Some(mut occurrence) = waiting.recv().await {
        if sent.len() >= REMEMBERED {
            sent.clear();
        }
        let (mut identity, sort) = (occurrence.identity(&hasher), occurrence.sort(&hasher));
        if similar.joins(sort, hasher.hash_one(&occurrence.message), occurrence.at) {
            identity = sort;
            occurrence.message.insert_str(0, "(combined from similar events): ");
        }
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
                count_again(&api, name, *count, &occurrence).await
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

/// Returns whether the event still existed. One that stands for several has the newest one's message.
async fn count_again(api: &Api<Event>, name: &str, count: i32, newest: &Occurrence) -> bool {
    let (at, message) = (Time(newest.at), &newest.message);
    let patch = serde_json::json!({ "count": count, "lastTimestamp": at, "message": message });
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
    fn objects_without_a_uid_are_told_apart_by_their_names() {
        let hasher = RandomState::new();
        let of = |name: &str| Occurrence {
            regarding: ObjectReference { name: Some(name.to_owned()), ..Default::default() },
            kind: EventType::Warning,
            reason: "OwnerRefInvalidNamespace".to_owned(),
            message: "the same".to_owned(),
            at: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(of("a").identity(&hasher), of("a").identity(&hasher));
        assert_ne!(of("a").identity(&hasher), of("b").identity(&hasher));
    }

    #[test]
    fn a_hundred_messages_of_one_sort_are_ten_events() {
        let (mut similar, mut at) = (Similar::default(), Timestamp::UNIX_EPOCH);
        let alone = (0..100).filter(|message| !similar.joins(1, *message, at)).count();
        assert_eq!(alone, 9, "the tenth stands for all that follow");
        assert!(!similar.joins(1, 3, at), "one that was told alone is counted alone");
        assert!(!similar.joins(2, 200, at), "another sort has its own");
        at += SignedDuration::from_secs(601);
        assert!(!similar.joins(1, 300, at), "they are forgotten after ten minutes");
    }

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
