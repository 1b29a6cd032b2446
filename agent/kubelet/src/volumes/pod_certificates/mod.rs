//! Certificates for projected volumes: a key for each `podCertificate` source of each pod, the request
//! for its certificate, and its renewal (`pkg/kubelet/podcertificate`, KEP-4317).
//!
//! Layer: beside `tokens`, below `gather`. [`state`] decides, pure; [`keys`] and [`asking`] make
//! requests; [`bundle`] makes files. This module holds what is known of each source and wakes on what
//! the API tells: requests of this node are watched once the first pod here needs a certificate.
//!
//! Keys are in memory only. After a restart every source is asked for again; until the answer comes, pods
//! keep the files that they have.

mod asking;
mod bundle;
mod keys;
mod state;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use component::{EventRecorder, EventType, Informer, Informers, Outcome, Supervisor, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::uid_of;
use crate::context::pod_reference;
use crate::volume_contract::CertificateStates;
use asking::{AskError, Asker, Made};
use state::{Answer, Asked, Next, State, Step};

pub use bundle::{Credential, files};

/// Sources that are looked after at once: one may be making a key.
const WORKERS: usize = 2;
/// How long the set-up of a pod waits for answers before it says that there are none.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest delay of renewals, and of giving up a request that nobody sees, in milliseconds.
const JITTER: u64 = 5 * 60 * 1000;

/// One source of one pod's volumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    pod_uid: String,
    volume: String,
    /// Its index in the volume.
    source: usize,
}

struct Record {
    pod: Arc<Pod>,
    source: PodCertificateProjection,
    state: State,
    /// What the state answers, for those that wait for it.
    answer: watch::Sender<Answer>,
    /// The last failure that was logged.
    said: Option<String>,
}

type Watch = Box<dyn Fn() -> Informer<PodCertificateRequest> + Send + Sync>;

/// The certificates of this node's pods.
pub struct PodCertificates {
    me: Weak<Self>,
    asker: Asker,
    recorder: EventRecorder,
    /// Called with the UID of a pod whose certificate changed.
    changed: Arc<dyn Fn(&str) + Send + Sync>,
    watch: Watch,
    requests: OnceLock<Informer<PodCertificateRequest>>,
    records: Mutex<HashMap<Key, Record>>,
    queue: WorkQueue<Key>,
}

impl PodCertificates {
    pub fn start(
        node: &str,
        informers: &Informers,
        recorder: EventRecorder,
        changed: Arc<dyn Fn(&str) + Send + Sync>,
        supervisor: &Supervisor,
    ) -> Arc<Self> {
        let asker = Asker { client: informers.client(), node: node.to_owned(), nodes: informers.of::<Node>() };
        let (informers, selector) = (informers.clone(), format!("spec.nodeName={node}"));
        let certificates = Self::new(asker, recorder, changed, Box::new(move || informers.selected(&selector)));
        certificates.run(&supervisor.child("certificates"));
        certificates
    }

    fn new(asker: Asker, recorder: EventRecorder, changed: Arc<dyn Fn(&str) + Send + Sync>, watch: Watch) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            asker,
            recorder,
            changed,
            watch,
            requests: OnceLock::new(),
            records: Mutex::default(),
            queue: WorkQueue::new(),
        })
    }

    fn run(&self, supervisor: &Supervisor) {
        let me = self.me.clone();
        self.queue.run(supervisor, WORKERS, move |key: Key| {
            let certificates = me.upgrade();
            async move {
                match certificates {
                    Some(certificates) => certificates.advance(&key).await,
                    None => Outcome::Done,
                }
            }
        });
    }

    /// Looks after the pod's certificates from now on, until [`PodCertificates::release`].
    pub fn track(&self, pod: &Arc<Pod>) {
        for (key, source) in sources(pod) {
            let mut records = self.records.lock();
            match records.entry(key.clone()) {
                Entry::Occupied(mut known) => known.get_mut().pod = pod.clone(),
                Entry::Vacant(place) => {
                    place.insert(Record::new(pod, source));
                    self.queue.add(key);
                }
            }
        }
    }

    /// The pod is gone, and so are its keys.
    pub fn release(&self, pod_uid: &str) {
        let mut records = self.records.lock();
        let gone: Vec<Key> = records.keys().filter(|key| key.pod_uid == pod_uid).cloned().collect();
        for key in gone {
            records.remove(&key);
            // It waits for its renewal no longer.
            self.queue.add(key);
        }
    }

    /// Returns once every certificate of the pod is issued or refused, or patience is at its end.
    pub async fn settled(&self, pod_uid: &str) {
        let waiting: Vec<_> = {
            let records = self.records.lock();
            let own = records.iter().filter(|(key, _)| key.pod_uid == pod_uid);
            own.map(|(_, record)| record.answer.subscribe()).collect()
        };
        let answers = waiting.into_iter().map(|mut answer| async move {
            // It ends early only with the record: there is nothing to wait for then.
            let _ = answer.wait_for(|answer| *answer != Answer::NotYet).await;
        });
        let _ = tokio::time::timeout(PATIENCE, futures::future::join_all(answers)).await;
    }

    /// The key and the certificate of a volume's source, as they are now.
    pub fn get(&self, pod: &Pod, volume: &str, source: usize) -> Result<Arc<Credential>, String> {
        let key = Key { pod_uid: uid_of(pod).to_owned(), volume: volume.to_owned(), source };
        match self.records.lock().get(&key).map(|record| record.state.answer()) {
            Some(Answer::Issued(credential)) => Ok(credential),
            Some(Answer::Never(why)) => Err(why),
            Some(Answer::NotYet) | None => Err("credential bundle is not issued yet".to_owned()),
        }
    }

    /// How many sources are in which state, by signer.
    pub fn states(&self) -> CertificateStates {
        let now = Timestamp::now();
        let mut states = CertificateStates::new();
        for record in self.records.lock().values() {
            *states.entry((record.source.signer_name.clone(), record.state.name(now))).or_default() += 1;
        }
        states
    }

    async fn advance(&self, key: &Key) -> Outcome {
        match self.step(key) {
            Some(Next::Ask) => self.ask(key).await,
            Some(Next::Wait(Some(moment))) => Outcome::After(until(moment)),
            Some(Next::Wait(None)) | None => Outcome::Done,
        }
    }

    /// None if the pod is gone.
    fn step(&self, key: &Key) -> Option<Next> {
        let requests = self.requests();
        let mut records = self.records.lock();
        let record = records.get_mut(key)?;
        let seen = record.state.request().and_then(|name| requests.get(namespace(&record.pod), name));
        let step = std::mem::take(&mut record.state).step(seen.as_deref(), Timestamp::now(), jitter());
        let Step { state, next, notices } = step;
        record.state = state;
        for notice in notices {
            let pod = pod_reference(&record.pod, None);
            self.recorder.event(&pod, EventType::Warning, notice.reason, notice.message);
        }
        let changed = record.publish();
        drop(records);
        if changed {
            (self.changed)(&key.pod_uid);
        }
        Some(next)
    }

    async fn ask(&self, key: &Key) -> Outcome {
        let wish = self.records.lock().get(key).map(|record| (record.pod.clone(), record.source.clone()));
        let Some((pod, source)) = wish else { return Outcome::Done };
        match self.asker.ask(&pod, &source).await {
            Ok(made) => {
                self.asked(key, made);
                // Looks at once whether there is an answer.
                Outcome::After(Duration::ZERO)
            }
            Err(error) => {
                self.failed(key, &error);
                Outcome::Retry
            }
        }
    }

    fn asked(&self, key: &Key, made: Made) {
        let Made { key: private, request } = made;
        let created = request.metadata.creation_timestamp.map_or_else(Timestamp::now, |time| time.0);
        let asked = Asked::new(private, request.metadata.name.unwrap_or_default(), created, jitter());
        if let Some(record) = self.records.lock().get_mut(key) {
            record.state = std::mem::take(&mut record.state).asked(asked);
            record.said = None;
        }
    }

    /// Says each failure once, however often it comes again.
    fn failed(&self, key: &Key, error: &AskError) {
        let message = error.to_string();
        let mut records = self.records.lock();
        let Some(record) = records.get_mut(key).filter(|record| record.said.as_ref() != Some(&message)) else { return };
        let pod = format!("{}/{}", namespace(&record.pod), record.pod.metadata.name.as_deref().unwrap_or_default());
        tracing::warn!(pod, volume = key.volume, message, "a certificate of a pod could not be asked for");
        record.said = Some(message);
    }

    /// This node's requests, watched from the first time on.
    fn requests(&self) -> &Informer<PodCertificateRequest> {
        self.requests.get_or_init(|| {
            let requests = (self.watch)();
            let me = self.me.clone();
            requests.on_change(move |change| {
                if let Some(certificates) = me.upgrade() {
                    certificates.wake(&change.object().spec.pod_uid);
                }
            });
            requests
        })
    }

    fn wake(&self, pod_uid: &str) {
        let records = self.records.lock();
        records.keys().filter(|key| key.pod_uid == pod_uid).for_each(|key| self.queue.add(key.clone()));
    }
}

impl Record {
    fn new(pod: &Arc<Pod>, source: PodCertificateProjection) -> Self {
        let answer = watch::Sender::new(Answer::NotYet);
        Self { pod: pod.clone(), source, state: State::default(), answer, said: None }
    }

    /// Returns whether there is another answer than before.
    fn publish(&self) -> bool {
        let answer = self.state.answer();
        self.answer.send_if_modified(|known| {
            let changed = *known != answer;
            if changed {
                *known = answer;
            }
            changed
        })
    }
}

/// Every certificate that the pod's volumes show.
fn sources(pod: &Pod) -> Vec<(Key, PodCertificateProjection)> {
    let mut found = Vec::new();
    for volume in super::volumes_of(pod) {
        let Some(projected) = &volume.projected else { continue };
        for (index, source) in projected.sources.iter().flatten().enumerate() {
            if let Some(certificate) = &source.pod_certificate {
                let key = Key { pod_uid: uid_of(pod).to_owned(), volume: volume.name.clone(), source: index };
                found.push((key, certificate.clone()));
            }
        }
    }
    found
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

fn jitter() -> Duration {
    Duration::from_millis(rand::random_range(0..JITTER))
}

/// How long until then; nothing if it has passed.
fn until(moment: Timestamp) -> Duration {
    Duration::try_from(moment.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}
