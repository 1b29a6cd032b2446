//! The one thread that writes: takes whatever waits, commits it with one sync, then answers.
//!
//! One commit: `plan` decides, `cleaner` adds copies, `tail` writes and syncs the group, the index
//! takes it in under the lock, watchers get the events, callers their answers. Nothing is visible,
//! published or answered before the sync. An error while writing ends the writer for good: what the
//! files hold is then only known to the next start.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};

use super::cleaner::{self, Cleaner, Move};
use super::core::Core;
use super::damage::Damage;
use super::footer::Entry;
use super::group::{Buffer, Within};
use super::inbox::{Inbox, Outcome, Request};
use super::keeper::Keeper;
use super::plan::{Expiry, Plan, Planned};
use super::retention::History;
use super::segment::Place;
use super::tail::Tail;
use crate::hub::Hub;
use crate::{Event, Revision, StoreError};

/// Keys that expire in one commit: the rest waits for the next.
const EXPIRE_STEP: usize = 256;
/// Revisions forgotten beside one commit, and two for each request in it.
const FORGET_STEP: usize = 64;
/// The same without requests; less than that is left alone while nothing is written.
const IDLE_FORGET_STEP: usize = 512;
/// Bytes copied at a time while nothing is written.
const IDLE_GROUP: u64 = 128 * 1024;
/// How often history is looked at while nothing is written and there is some to forget.
const HISTORY_TICK: Duration = Duration::from_secs(10);
/// Expiry is no more exact than this.
const EXPIRY_TICK: Duration = Duration::from_secs(1);

/// What readers and the writer share.
pub struct Shared {
    pub path: PathBuf,
    pub inbox: Inbox,
    pub hub: Arc<Hub>,
    pub core: RwLock<Core>,
    /// Revisions that are being read: what they see is not forgotten.
    pub pins: Mutex<BTreeMap<Revision, usize>>,
}

pub struct Writer {
    pub shared: Arc<Shared>,
    pub store: u64,
    pub tail: Tail,
    pub keeper: Keeper,
    pub cleaner: Cleaner,
    pub history: History,
    pub expiry: Expiry,
    /// What the log says is compacted.
    pub compacted: Revision,
    pub group: Buffer,
}

/// What one commit changes.
struct Change {
    writes: Vec<Planned>,
    moves: Vec<Move>,
    events: Vec<Event>,
    revision: Revision,
    compacted: Revision,
}

impl Writer {
    /// Runs until the inbox is closed, or writing fails.
    pub fn run(mut self) {
        let mut crowded = false;
        while let Some(requests) = self.shared.inbox.take(self.patience(), crowded) {
            crowded = requests.len() > 1;
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
        if let Err(error) = self.finish() {
            // All that was answered is durable; the next start does without the footer.
            tracing::warn!(%error, "the store could not be closed in good order");
        }
        self.shared.hub.close(StoreError::Closed);
        self.shared.core.write().closed = true;
    }

    fn fail(self, requests: Vec<Request>, error: &StoreError) {
        tracing::error!(%error, "the store takes no more writes");
        let waiting = self.shared.inbox.fail(error);
        requests.into_iter().chain(waiting).for_each(|request| request.refuse(error));
        self.shared.hub.close(error.clone());
    }

    /// Seals the log, so that the next start reads no records and notices any damage to them.
    pub fn finish(&mut self) -> Result<(), StoreError> {
        self.tail.seal(&self.keeper);
        self.keeper.finish(self.tail.state.sequence);
        self.keeper.join()
    }

    /// How long to wait for requests before looking after expiry, history and garbage.
    fn patience(&self) -> Option<Duration> {
        let core = self.shared.core.read();
        let can_forget = core.index.cleaned() < core.index.compacted.min(self.pinned());
        let can_clean = cleaner::effort(&core.index.usage, &self.tail.active, 0) > 0 && core.segments.len() > 1;
        if can_forget || can_clean || self.cleaner.awaits().is_some() {
            return Some(Duration::ZERO);
        }
        let young = (core.index.revision - core.index.compacted) as usize;
        let history = (young >= IDLE_FORGET_STEP).then_some(HISTORY_TICK);
        let expiry = self.expiry.first_key_value().map(|((due, _), _)| *due);
        let expiry = expiry.map(|due| Duration::from_secs(due.saturating_sub(unix_seconds())).max(EXPIRY_TICK));
        history.into_iter().chain(expiry).min()
    }

    /// The oldest revision that is being read.
    fn pinned(&self) -> Revision {
        self.shared.pins.lock().first_key_value().map_or(Revision::MAX, |(revision, _)| *revision)
    }

    /// One group, one sync. Nothing is visible, published or answered unless it returns `Ok`.
    fn commit(&mut self, requests: &[Request]) -> Result<Vec<Outcome>, StoreError> {
        self.keeper.check()?;
        self.turn()?;
        self.group.clear();
        let (outcomes, change) = self.plan(requests)?;
        let compacting = requests.iter().any(|request| matches!(request, Request::Compact { .. }));
        let dropping = self.cleaner.awaits().is_some_and(|awaits| self.compacted < awaits);
        if !self.group.is_empty() || compacting || dropping {
            let start = self.tail.write(&mut self.group, change.revision, change.compacted)?;
            self.compacted = change.compacted;
            self.note(&change, start);
            self.take_in(&change, start, requests.len())?;
            self.shared.hub.publish(&change.events, change.revision);
        } else {
            self.take_in(&change, 0, requests.len())?;
        }
        Ok(outcomes)
    }

    fn turn(&mut self) -> Result<(), StoreError> {
        let needed = self.shared.core.read().index.usage.needed();
        if let Some(next) = self.tail.turn(&self.keeper, needed)? {
            self.shared.core.write().segments.insert(next.number, next);
        }
        Ok(())
    }

    fn plan(&mut self, requests: &[Request]) -> Result<(Vec<Outcome>, Change), StoreError> {
        // Only this thread changes the index: others may read it meanwhile.
        let core = self.shared.core.read();
        let now = unix_seconds();
        let mut plan = Plan::new(&core, self.store, &mut self.group);
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            outcomes.push(match request {
                Request::Txn { txn, .. } => Outcome::Txn(plan.apply(txn, now)?),
                Request::Compact { revision, .. } => Outcome::Compact(plan.compact(*revision)),
            });
        }
        plan.expire(&mut self.expiry, now, EXPIRE_STEP)?;
        let target = self.history.compact_to(Instant::now(), core.index.revision, core.index.keys());
        let target = target.max(core.index.heavy_until(self.history.bytes()));
        let due = target.saturating_sub(plan.compacted);
        if due >= IDLE_FORGET_STEP as u64 || (due > 0 && !requests.is_empty()) {
            plan.compacted = target.min(core.index.revision);
        }
        let Plan { writes, events, revision, compacted, .. } = plan;
        let written = if requests.is_empty() { IDLE_GROUP } else { self.group.len() as u64 };
        let effort = cleaner::effort(&core.index.usage, &self.tail.active, written);
        let moves = self.cleaner.step(&core, self.tail.active.number, effort, &mut self.group)?;
        Ok((outcomes, Change { writes, moves, events, revision, compacted }))
    }

    /// Keeps what the footer will say, and when keys expire.
    fn note(&mut self, change: &Change, start: u32) {
        let before = change.revision - change.writes.len() as u64;
        for (revision, write) in (before + 1..).zip(&change.writes) {
            let Planned { key, deleted, previous, expires, would_expire, within } = write;
            self.tail.note(&entry(key, revision, *deleted, *previous, *expires, start, *within));
            if *would_expire != 0 {
                self.expiry.remove(&(*would_expire, previous.revision));
            }
            if *expires != 0 {
                self.expiry.insert((*expires, revision), key.clone());
            }
        }
        for Move { key, revision, deleted, previous, expires, within, .. } in &change.moves {
            self.tail.note(&entry(key, *revision, *deleted, *previous, *expires, start, *within));
        }
    }

    /// Lets readers see a group that is durable, forgets a little, drops what is cleaned.
    fn take_in(&mut self, change: &Change, start: u32, requests: usize) -> Result<(), StoreError> {
        let steps = if requests == 0 { IDLE_FORGET_STEP } else { FORGET_STEP + 2 * requests };
        let segment = self.tail.active.number;
        let place = |within: Within| Place { segment, offset: start + within.offset, length: within.length };
        let mut core = self.shared.core.write();
        // Under the lock, under which readers pin.
        let pinned = self.pinned();
        let index = &mut core.index;
        for write in &change.writes {
            index.usage.wrote(segment, u64::from(write.within.length));
            index.push(write.key.clone(), place(write.within), write.deleted, write.previous);
        }
        for copy in &change.moves {
            index.usage.wrote(segment, u64::from(copy.within.length));
            index.moved(&copy.key, copy.revision, copy.from, place(copy.within));
        }
        index.compacted = change.compacted;
        for _ in 0..steps {
            if !index.forget(pinned) {
                break;
            }
        }
        if let Some(gone) = self.cleaner.finished(&index.usage, self.compacted)? {
            index.usage.remove(gone);
            core.segments.remove(&gone);
            self.keeper.drop_below(gone + 1, self.tail.state.sequence);
        }
        Ok(())
    }
}

fn entry(
    key: &str,
    revision: Revision,
    deleted: bool,
    previous: super::record::Head,
    expires: u64,
    start: u32,
    within: Within,
) -> Entry<'_> {
    Entry { key, revision, deleted, previous, expires, offset: start + within.offset, length: within.length }
}

pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::super::open::{self, Options};
    use super::*;
    use crate::{Txn, TxnOutcome};

    /// Commits together; the revision of the last.
    fn commit(writer: &mut Writer, txns: Vec<Txn>) -> Revision {
        let requests = txns.into_iter().map(|txn| Request::Txn { txn, reply: oneshot::channel().0 });
        match writer.commit(&requests.collect::<Vec<_>>()).unwrap().pop() {
            Some(Outcome::Txn(TxnOutcome::Done { revision })) => revision,
            _ => panic!("nobody else writes"),
        }
    }

    /// An Event is written again whenever it happens again, and lasts an hour from then on.
    #[test]
    fn a_key_waits_once_to_expire_however_often_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = open::open(dir.path(), &Options::default()).unwrap();
        let lasting = |expected, seconds| Txn::update("/e", expected, "1").with_ttl(Duration::from_secs(seconds));
        let first = commit(&mut writer, vec![lasting(0, 3600)]);
        let third = commit(&mut writer, vec![lasting(first, 3601), lasting(first + 1, 3602)]);
        assert_eq!(writer.expiry.keys().map(|(_, revision)| *revision).collect::<Vec<_>>(), [third]);
        let deleted = commit(&mut writer, vec![Txn::delete("/e", third)]);
        assert!(writer.expiry.is_empty());
        let again = commit(&mut writer, vec![Txn::create("/f", "1"), lasting(0, 3600)]);
        assert_eq!((again, writer.expiry.len()), (deleted + 2, 1));
        commit(&mut writer, vec![Txn::update("/e", again, "now it stays")]);
        assert!(writer.expiry.is_empty());
    }
}
