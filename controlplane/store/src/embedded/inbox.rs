//! Requests on their way to the writer.
//!
//! Memory in it is bounded by the callers' permits (`Embedded`).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use crate::{Revision, StoreError, Txn, TxnOutcome, Write};

/// A commit takes no more requests than this, nor another beyond so many bytes: the first in the
/// group would wait for the last.
const GROUP_REQUESTS: usize = 1024;
const GROUP_BYTES: usize = 2 * 1024 * 1024;

pub enum Request {
    Txn { txn: Txn, reply: oneshot::Sender<Result<TxnOutcome, StoreError>> },
    Compact { revision: Revision, reply: oneshot::Sender<Result<(), StoreError>> },
}

/// What is said to one request, once its commit is durable.
pub enum Outcome {
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
    pub fn answer(self, outcome: Outcome) {
        match (self, outcome) {
            (Self::Txn { reply, .. }, Outcome::Txn(outcome)) => drop(reply.send(Ok(outcome))),
            (Self::Compact { reply, .. }, Outcome::Compact(outcome)) => drop(reply.send(outcome)),
            // The writer answers each request with its own kind.
            (request, _) => request.refuse(&StoreError::Closed),
        }
    }

    pub fn refuse(self, error: &StoreError) {
        match self {
            Self::Txn { reply, .. } => drop(reply.send(Err(error.clone()))),
            Self::Compact { reply, .. } => drop(reply.send(Err(error.clone()))),
        }
    }
}

#[derive(Default)]
pub struct Inbox {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// The writer has failed.
    failing: Notify,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    /// No more requests are taken; those that wait are still answered.
    closed: bool,
    /// The writer should look around, though there is no request.
    nudged: bool,
    failed: Option<StoreError>,
}

impl Waiting {
    /// Why no requests are taken, if that is so.
    fn check(&self) -> Result<(), StoreError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.closed => Err(StoreError::Closed),
            None => Ok(()),
        }
    }

    /// The oldest requests, as many as share a commit well.
    fn group(&mut self) -> Vec<Request> {
        self.nudged = false;
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
        waiting.check()?;
        waiting.requests.push_back(request);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// Why no requests are taken, if that is so.
    pub fn check(&self) -> Result<(), StoreError> {
        self.waiting.lock().check()
    }

    /// Waits until the writer has failed. Returns why.
    pub async fn failed(&self) -> StoreError {
        loop {
            // Before the look: what comes after it is heard.
            let failing = self.failing.notified();
            let failed = self.waiting.lock().failed.clone();
            if let Some(error) = failed {
                return error;
            }
            failing.await;
        }
    }

    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Lets the writer look what there is to do.
    pub fn nudge(&self) {
        self.waiting.lock().nudged = true;
        self.arrived.notify_one();
    }

    /// Takes no more requests. Returns those that wait.
    pub fn fail(&self, error: &StoreError) -> VecDeque<Request> {
        let mut waiting = self.waiting.lock();
        waiting.failed = Some(error.clone());
        self.failing.notify_waiters();
        std::mem::take(&mut waiting.requests)
    }

    /// What waits, up to a group; empty after `limit` with nothing. None: closed and all is done.
    /// `crowded`: several have been writing at a time. Those of them that are about to hand in a request, and
    /// have a processor's turn to come, go first: it then shares the sync.
    pub fn take(&self, limit: Option<Duration>, crowded: bool) -> Option<Vec<Request>> {
        let mut waiting = self.waiting.lock();
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if !waiting.requests.is_empty() || (waiting.nudged && !waiting.closed) {
                if crowded {
                    MutexGuard::unlocked(&mut waiting, std::thread::yield_now);
                }
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
