//! The one thread that writes: takes whatever waits, commits it with one sync, then answers.
//!
//! [`Inbox`] is what callers put requests into; memory in it is bounded by the callers' permits
//! (`Embedded`). Order after a commit: new [`View`] for readers, events to the watchers, answers.
//! An error while writing ends the writer for good: what the file holds is then only known to the
//! next start.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex, RwLock};
use redb::Database;
use tokio::sync::oneshot;

use super::commit::{Group, State};
use super::damage::Damage;
use super::retention::History;
use super::view::View;
use crate::hub::Hub;
use crate::{Event, Revision, StoreError, Txn, TxnOutcome, Write};

/// A commit takes no more requests than this, nor starts another beyond so many bytes: larger ones
/// outgrow the page cache, and the first in the group would wait for the last.
const GROUP_REQUESTS: usize = 1024;
const GROUP_BYTES: usize = 2 * 1024 * 1024;
/// Keys that expire in one commit: the rest waits for the next.
const EXPIRE_STEP: usize = 256;
/// Revisions compacted in one commit, beside two for each request in it.
const CLEAN_STEP: u64 = 16;
/// The same for a commit without requests; less than that is left alone while nothing is written.
const IDLE_CLEAN_STEP: u64 = 256;
/// How often history is looked at while nothing is written and there is some to forget.
const HISTORY_TICK: Duration = Duration::from_secs(10);
/// Expiry is no more exact than this.
const EXPIRY_TICK: Duration = Duration::from_secs(1);

pub enum Request {
    Txn { txn: Txn, reply: oneshot::Sender<Result<TxnOutcome, StoreError>> },
    Compact { revision: Revision, reply: oneshot::Sender<Result<(), StoreError>> },
}

/// Requests on their way to the writer.
#[derive(Default)]
pub struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    /// No more requests are taken; those that wait are still answered.
    closed: bool,
    failed: Option<StoreError>,
}

impl Waiting {
    /// The oldest requests, as many as share a commit well.
    fn group(&mut self) -> Vec<Request> {
        let mut bytes = 0;
        let fitting = self.requests.iter().take(GROUP_REQUESTS).take_while(|request| {
            let fits = bytes < GROUP_BYTES;
            bytes += request.size();
            fits
        });
        let fitting = fitting.count();
        self.requests.drain(..fitting).collect()
    }
}

impl Inbox {
    pub fn push(&self, request: Request) -> Result<(), StoreError> {
        let mut waiting = self.waiting.lock();
        if let Some(error) = &waiting.failed {
            return Err(error.clone());
        }
        if waiting.closed {
            return Err(StoreError::Closed);
        }
        waiting.requests.push_back(request);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_one();
    }

    fn fail(&self, error: &StoreError) -> VecDeque<Request> {
        let mut waiting = self.waiting.lock();
        waiting.failed = Some(error.clone());
        std::mem::take(&mut waiting.requests)
    }

    /// What waits, up to a group; empty after `limit` with nothing. None: closed and all is done.
    fn take(&self, limit: Option<Duration>) -> Option<Vec<Request>> {
        let mut waiting = self.waiting.lock();
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if !waiting.requests.is_empty() {
                return Some(waiting.group());
            }
            if waiting.closed {
                return None;
            }
            match deadline {
                None => self.arrived.wait(&mut waiting),
                Some(deadline) => {
                    if self.arrived.wait_until(&mut waiting, deadline).timed_out() {
                        return Some(waiting.group());
                    }
                }
            }
        }
    }
}

/// What readers and the writer share.
pub struct Shared {
    pub path: PathBuf,
    pub inbox: Inbox,
    pub hub: Arc<Hub>,
    /// None once closed: the file's lock goes with the last view.
    pub view: RwLock<Option<Arc<View>>>,
}

pub struct Writer {
    pub db: Database,
    pub shared: Arc<Shared>,
    pub state: State,
    pub history: History,
    /// When the next key expires, in seconds since 1970.
    pub next_expiry: Option<u64>,
}

/// What is said to one request, once its commit is durable.
enum Outcome {
    Txn(TxnOutcome),
    Compact(Result<(), StoreError>),
}

impl Request {
    /// Bytes it will write, about.
    fn size(&self) -> usize {
        match self {
            Self::Txn { txn: Txn { write: Write::Put { value, .. }, .. }, .. } => value.len(),
            _ => 0,
        }
    }

    /// A caller that has gone away does not want its answer.
    fn answer(self, outcome: Outcome) {
        match (self, outcome) {
            (Self::Txn { reply, .. }, Outcome::Txn(outcome)) => drop(reply.send(Ok(outcome))),
            (Self::Compact { reply, .. }, Outcome::Compact(outcome)) => drop(reply.send(outcome)),
            // `Writer::commit` answers each request with its own kind.
            (request, _) => request.refuse(&StoreError::Closed),
        }
    }

    fn refuse(self, error: &StoreError) {
        match self {
            Self::Txn { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::Compact { reply, .. } => drop(reply.send(Err(error.clone()))),
        }
    }
}

impl Writer {
    /// Runs until the inbox is closed, or writing fails.
    pub fn run(mut self) {
        while let Some(requests) = self.shared.inbox.take(self.patience()) {
            let path = self.shared.path.clone();
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit(&requests)))
                .unwrap_or_else(|panic| Err(Damage::of(&path).panicked(panic.as_ref())));
            match committed {
                Ok(outcomes) => {
                    requests.into_iter().zip(outcomes).for_each(|(request, outcome)| request.answer(outcome));
                }
                Err(error) => return self.fail(requests, &error),
            }
        }
        self.shared.hub.close(StoreError::Closed);
        *self.shared.view.write() = None;
    }

    fn fail(self, requests: Vec<Request>, error: &StoreError) {
        tracing::error!(%error, "the store takes no more writes");
        let waiting = self.shared.inbox.fail(error);
        requests.into_iter().chain(waiting).for_each(|request| request.refuse(error));
        self.shared.hub.close(error.clone());
    }

    /// How long to wait for requests before looking after expiry and history.
    fn patience(&self) -> Option<Duration> {
        if self.state.cleaned < self.state.compacted {
            return Some(Duration::ZERO);
        }
        let history = (self.state.revision - self.state.compacted >= IDLE_CLEAN_STEP).then_some(HISTORY_TICK);
        let expiry =
            self.next_expiry.map(|due| Duration::from_secs(due.saturating_sub(unix_seconds())).max(EXPIRY_TICK));
        history.into_iter().chain(expiry).min()
    }

    /// One transaction, one sync. Nothing is durable, published or answered unless it returns `Ok`.
    fn commit(&mut self, requests: &[Request]) -> Result<Vec<Outcome>, StoreError> {
        let path = self.shared.path.clone();
        let damage = Damage::of(&path);
        let now = unix_seconds();
        let mut txn = self.db.begin_write().map_err(damage.writing())?;
        // The allocator's state goes with each commit, so that opening after a crash reads no data.
        txn.set_quick_repair(true);
        let mut group = Group::begin(&txn, self.state, damage)?;
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            outcomes.push(match request {
                Request::Txn { txn, .. } => Outcome::Txn(group.apply(txn, now)?),
                Request::Compact { revision, .. } => Outcome::Compact(group.compact(*revision)),
            });
        }
        group.expire(now, EXPIRE_STEP)?;
        self.forget(&mut group, requests.len() as u64)?;
        self.next_expiry = group.next_expiry()?;
        match group.finish(&txn)? {
            Some((state, events)) => {
                txn.commit().map_err(damage.writing())?;
                self.publish(state, &events)?;
            }
            None => txn.abort().map_err(damage.writing())?,
        }
        Ok(outcomes)
    }

    /// A small step of compaction: a little beside requests, more when there are none.
    fn forget(&mut self, group: &mut Group<'_, '_>, requests: u64) -> Result<(), StoreError> {
        let target = self.history.compact_to(Instant::now(), self.state.revision, self.state.keys);
        let due = target.saturating_sub(self.state.compacted);
        if due >= IDLE_CLEAN_STEP || (due > 0 && requests > 0) {
            group.compact_at_least(target);
        }
        group.clean(if requests == 0 { IDLE_CLEAN_STEP } else { CLEAN_STEP + 2 * requests })
    }

    fn publish(&mut self, state: State, events: &[Event]) -> Result<(), StoreError> {
        let view = View::open(&self.db, &self.shared.path, state.revision, state.compacted)?;
        *self.shared.view.write() = Some(Arc::new(view));
        self.state = state;
        self.shared.hub.publish(events, state.revision);
        Ok(())
    }
}

pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
