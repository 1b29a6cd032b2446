//! One priority level: its seats, who sits on them, and who waits.
//!
//! While nobody waits, a request takes its seats with one compare-and-swap and gives them back with
//! one subtraction. The first one that finds no room marks the level as crowded; from then on every
//! request goes through the queues, behind a lock, until they are empty again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use super::queues::{QueueSet, QueueView, Queuing};
use super::schema::Schema;
use super::seen::{Entry, Seen};
use super::shares::{Bounds, Demand};

/// In [`Level::seats`]: somebody waits.
const CROWDED: u64 = 1 << 63;

/// What a priority level does with requests for which there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Exempt,
    Reject,
    Queue(Queuing),
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    QueueFull = 0,
    ConcurrencyLimit = 1,
    TimeOut = 2,
}

impl Refused {
    pub const ALL: [Refused; 3] = [Refused::QueueFull, Refused::ConcurrencyLimit, Refused::TimeOut];

    pub fn name(self) -> &'static str {
        match self {
            Refused::QueueFull => "queue-full",
            Refused::ConcurrencyLimit => "concurrency-limit",
            Refused::TimeOut => "time-out",
        }
    }
}

/// What is counted per FlowSchema.
#[derive(Debug, Default)]
pub struct Counters {
    pub dispatched: AtomicU64,
    pub executing: AtomicU32,
    pub executing_seats: AtomicU32,
    pub waiting: AtomicU32,
    pub waited_nanos: AtomicU64,
    pub waited: AtomicU64,
    pub executed_nanos: AtomicU64,
    pub refused: [AtomicU64; 3],
}

/// Goes on counting when the schema is changed.
pub type SchemaCounters = Arc<Counters>;

pub struct Level {
    pub name: String,
    pub uid: String,
    /// `uid` as answers carry it.
    pub shown: HeaderValue,
    pub kind: Kind,
    bounds: Mutex<Bounds>,
    seats: AtomicU64,
    pub limit: AtomicU32,
    /// Of the seats wanted at once, since the last look.
    peak: AtomicU32,
    /// Seat nanoseconds of ended requests, since the last look.
    busy: AtomicU64,
    pub demand: Mutex<Demand>,
    waiting: Mutex<WaitingRoom>,
    started: Instant,
}

struct WaitingRoom {
    queues: QueueSet,
    wake: HashMap<u64, oneshot::Sender<()>>,
}

/// Seats that a request holds. They are free when this is dropped.
pub struct Ticket {
    level: Arc<Level>,
    schema: Arc<Schema>,
    seats: u32,
    since: Instant,
    queue: Option<usize>,
    /// Shows the request as long as it has its seats.
    entry: Option<Entry>,
}

impl Level {
    /// `before`: the level of this name as it was; who sits or waits there goes on there.
    pub fn new(name: &str, uid: &str, kind: Kind, bounds: Bounds, before: Option<&Level>) -> Self {
        let queuing = match kind {
            Kind::Queue(queuing) => queuing,
            _ => Queuing { queues: 0, hand_size: 0, length_limit: 0 },
        };
        let limit = before.filter(|before| before.bounds() == bounds).map(Level::limit);
        Self {
            name: name.to_owned(),
            uid: uid.to_owned(),
            shown: super::header(uid),
            kind,
            bounds: Mutex::new(bounds),
            seats: AtomicU64::new(0),
            limit: AtomicU32::new(limit.unwrap_or(bounds.initial())),
            peak: AtomicU32::new(0),
            busy: AtomicU64::new(0),
            demand: Mutex::new(before.map(|before| *before.demand.lock()).unwrap_or_default()),
            waiting: Mutex::new(WaitingRoom { queues: QueueSet::new(queuing), wake: HashMap::new() }),
            started: Instant::now(),
        }
    }

    pub fn bounds(&self) -> Bounds {
        *self.bounds.lock()
    }

    /// Changes what the level has of itself; who sits or waits stays.
    pub fn set_bounds(&self, bounds: Bounds) {
        if std::mem::replace(&mut *self.bounds.lock(), bounds) != bounds {
            self.set_limit(bounds.initial());
        }
    }

    /// Seats in use.
    pub fn in_use(&self) -> u32 {
        (self.seats.load(Ordering::Relaxed) & !CROWDED) as u32
    }

    fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    fn now(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// The most that was wanted at once and the average since the last call, `period` ago.
    pub fn take_demand(&self, period: Duration) -> (u32, f64) {
        let (in_use, waiting) = (self.in_use(), self.waiting_seats());
        let peak = self.peak.swap(in_use + waiting, Ordering::Relaxed).max(in_use + waiting);
        let busy = self.busy.swap(0, Ordering::Relaxed) as f64 / 1e9;
        (peak, (busy / period.as_secs_f64().max(0.001)).min(f64::from(peak)))
    }

    fn waiting_seats(&self) -> u32 {
        self.waiting.lock().queues.view().map(|queue| queue.waiting_seats).sum()
    }

    /// Changes the number of seats; who waits may then sit down.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
        if self.seats.load(Ordering::Relaxed) & CROWDED != 0 {
            self.seat_waiting(&mut self.waiting.lock());
        }
    }

    /// Takes seats if nobody waits and there is room.
    fn take(&self, seats: u32) -> bool {
        let limit = u64::from(self.limit());
        let exempt = self.kind == Kind::Exempt;
        // Where requests queue and there is no seat at all, they wait.
        let closed = limit == 0 && matches!(self.kind, Kind::Queue(_));
        let taken = self.seats.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            let alone = held == 0 && u64::from(seats) > limit && !closed;
            (exempt || alone || held + u64::from(seats) <= limit).then_some(held + u64::from(seats))
        });
        if let Ok(before) = taken {
            self.peak.fetch_max((before & !CROWDED) as u32 + seats, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// Lets a request of `schema` in: at once, or after a wait of at most `patience`. `seen` is told
    /// the queue.
    pub async fn enter(
        self: &Arc<Self>,
        schema: &Arc<Schema>,
        flow: &str,
        seats: u32,
        patience: Duration,
        seen: Option<&Seen>,
    ) -> Result<Ticket, Refused> {
        let outcome = if self.take(seats) {
            Ok(self.ticket(schema, seats, None))
        } else if let Kind::Queue(_) = self.kind {
            Box::pin(self.wait(schema, flow, seats, patience, seen)).await
        } else {
            Err(Refused::ConcurrencyLimit)
        };
        if let Err(why) = outcome {
            schema.counters.refused[why as usize].fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    fn ticket(self: &Arc<Self>, schema: &Arc<Schema>, seats: u32, queue: Option<usize>) -> Ticket {
        let counters = &schema.counters;
        counters.dispatched.fetch_add(1, Ordering::Relaxed);
        counters.executing.fetch_add(1, Ordering::Relaxed);
        counters.executing_seats.fetch_add(seats, Ordering::Relaxed);
        Ticket { level: self.clone(), schema: schema.clone(), seats, since: Instant::now(), queue, entry: None }
    }

    async fn wait(
        self: &Arc<Self>,
        schema: &Arc<Schema>,
        flow: &str,
        seats: u32,
        patience: Duration,
        seen: Option<&Seen>,
    ) -> Result<Ticket, Refused> {
        let (sender, receiver) = oneshot::channel();
        let (id, queue) = {
            let mut room = self.waiting.lock();
            let in_use = (self.seats.fetch_or(CROWDED, Ordering::AcqRel) & !CROWDED) as u32;
            room.queues.advance(self.now(), self.limit());
            let place = room.queues.join(flow_hash(&schema.name, flow), seats, in_use >= self.limit());
            if let Some((id, _)) = place {
                room.wake.insert(id, sender);
            }
            self.seat_waiting(&mut room);
            place.ok_or(Refused::QueueFull)?
        };
        if let Some(seen) = seen {
            seen.joined(queue);
        }
        self.peak.fetch_max(self.in_use() + seats, Ordering::Relaxed);
        let mut place = Place { level: self, schema, id, queue, seats, since: Instant::now(), seated: false };
        schema.counters.waiting.fetch_add(1, Ordering::Relaxed);
        let called = tokio::time::timeout(patience, receiver).await;
        if !matches!(called, Ok(Ok(()))) && place.leave() {
            return Err(Refused::TimeOut);
        }
        place.seated = true;
        Ok(self.ticket(schema, seats, Some(queue)))
    }

    /// Lets those in for whom there is room; ends the crowd when nobody waits any more.
    fn seat_waiting(&self, room: &mut WaitingRoom) {
        while let Some(started) = room.queues.next(self.in_use(), self.limit()) {
            self.seats.fetch_add(u64::from(started.seats), Ordering::AcqRel);
            if let Some(sender) = room.wake.remove(&started.id) {
                // One who does not listen any more finds his seat taken when he leaves his place.
                let _ = sender.send(());
            }
        }
        if room.queues.waiting() == 0 {
            self.seats.fetch_and(!CROWDED, Ordering::AcqRel);
        }
    }

    fn give_back(&self, seats: u32, queue: Option<usize>, took: Duration) {
        let before = self.seats.fetch_sub(u64::from(seats), Ordering::AcqRel);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.busy.fetch_add(nanos.saturating_mul(u64::from(seats)), Ordering::Relaxed);
        if before & CROWDED == 0 && queue.is_none() {
            return;
        }
        let mut room = self.waiting.lock();
        room.queues.advance(self.now(), self.limit());
        if let Some(at) = queue {
            room.queues.finish(at, seats, took.as_secs_f64());
        }
        if room.queues.waiting() > 0 || before & CROWDED != 0 {
            self.seat_waiting(&mut room);
        }
    }

    /// Each queue as it is.
    pub fn queues(&self) -> Vec<QueueView> {
        self.waiting.lock().queues.view().collect()
    }
}

/// A place in a queue; who goes away leaves it.
struct Place<'a> {
    level: &'a Arc<Level>,
    schema: &'a Arc<Schema>,
    id: u64,
    queue: usize,
    seats: u32,
    since: Instant,
    seated: bool,
}

impl Place<'_> {
    /// False if a seat has been given meanwhile.
    fn leave(&mut self) -> bool {
        let mut room = self.level.waiting.lock();
        room.wake.remove(&self.id);
        let left = room.queues.leave(self.id, self.queue);
        if left {
            self.seated = true;
            self.level.seat_waiting(&mut room);
        }
        left
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let counters = &self.schema.counters;
        counters.waiting.fetch_sub(1, Ordering::Relaxed);
        counters.waited.fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        counters.waited_nanos.fetch_add(nanos, Ordering::Relaxed);
        if !self.seated && !self.leave() {
            self.level.give_back(self.seats, Some(self.queue), Duration::ZERO);
        }
    }
}

impl Ticket {
    /// The ticket of the request that `entry` shows.
    pub fn of(mut self, entry: Entry) -> Self {
        self.entry = Some(entry);
        self
    }

    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    pub fn level(&self) -> &Level {
        &self.level
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        let counters = &self.schema.counters;
        counters.executing.fetch_sub(1, Ordering::Relaxed);
        counters.executing_seats.fetch_sub(self.seats, Ordering::Relaxed);
        counters.executed_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.level.give_back(self.seats, self.queue, took);
    }
}

fn flow_hash(schema: &str, flow: &str) -> u64 {
    let mut digest = Sha256::new();
    digest.update(schema);
    digest.update([0]);
    digest.update(flow);
    let first: [u8; 8] = digest.finalize()[..8].try_into().unwrap_or_default();
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn level(kind: Kind, seats: u32) -> Arc<Level> {
        Arc::new(Level::new("x", "", kind, Bounds { nominal: seats, least: seats, most: seats }, None))
    }

    fn schema() -> Arc<Schema> {
        Arc::new(Schema::from_json(&json!({"metadata": {"name": "s"}, "spec": {}})))
    }

    const LONG: Duration = Duration::from_secs(60);
    const QUEUING: Kind = Kind::Queue(Queuing { queues: 2, hand_size: 1, length_limit: 2 });

    #[tokio::test]
    async fn a_full_level_refuses_or_queues() {
        let (reject, schema) = (level(Kind::Reject, 1), schema());
        let first = reject.enter(&schema, "", 1, LONG, None).await.ok().unwrap();
        assert_eq!(reject.enter(&schema, "", 1, LONG, None).await.err(), Some(Refused::ConcurrencyLimit));
        drop(first);
        assert!(reject.enter(&schema, "", 1, LONG, None).await.is_ok());
        assert_eq!(reject.in_use(), 0);
        let exempt = level(Kind::Exempt, 0);
        let all = [exempt.enter(&schema, "", 1, LONG, None).await, exempt.enter(&schema, "", 9, LONG, None).await];
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(exempt.in_use(), 10);
    }

    #[tokio::test]
    async fn who_waits_is_served_when_a_seat_is_free() {
        let (level, schema) = (level(QUEUING, 1), schema());
        let first = level.enter(&schema, "a", 1, LONG, None).await.ok().unwrap();
        let waiting = |flow: &'static str| {
            let (level, schema) = (level.clone(), schema.clone());
            tokio::spawn(async move { level.enter(&schema, flow, 1, LONG, None).await.map(|_| ()) })
        };
        let (one, two) = (waiting("a"), waiting("a"));
        while level.queues().iter().map(|queue| queue.waiting).sum::<usize>() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(level.enter(&schema, "a", 1, LONG, None).await.err(), Some(Refused::QueueFull));
        drop(first);
        one.await.unwrap().unwrap();
        two.await.unwrap().unwrap();
        assert_eq!(level.in_use(), 0);
        assert!(level.take(1), "nobody waits: no crowd");
    }

    #[tokio::test]
    async fn a_level_without_seats_lets_nobody_in() {
        let (level, schema) = (level(QUEUING, 0), schema());
        let soon = Duration::from_millis(20);
        assert_eq!(level.enter(&schema, "a", 1, soon, None).await.err(), Some(Refused::TimeOut));
        level.set_limit(1);
        assert!(level.enter(&schema, "a", 1, soon, None).await.is_ok());
    }

    #[tokio::test]
    async fn patience_ends_and_those_who_leave_hold_nobody_up() {
        let (level, schema) = (level(QUEUING, 1), schema());
        let first = level.enter(&schema, "a", 1, LONG, None).await.ok().unwrap();
        assert_eq!(level.enter(&schema, "a", 1, Duration::from_millis(20), None).await.err(), Some(Refused::TimeOut));
        // A client that goes away while it waits.
        let gone = tokio::time::timeout(Duration::from_millis(20), level.enter(&schema, "a", 1, LONG, None)).await;
        assert!(gone.is_err());
        drop(first);
        assert_eq!(level.in_use(), 0);
        assert!(level.enter(&schema, "a", 1, LONG, None).await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn seats_are_never_lost_nor_overrun() {
        let (level, schema) = (level(Kind::Queue(Queuing { queues: 8, hand_size: 2, length_limit: 100 }), 3), schema());
        let tasks: Vec<_> = (0..64_u32)
            .map(|task| {
                let (level, schema) = (level.clone(), schema.clone());
                tokio::spawn(async move {
                    for round in 0..50 {
                        let ticket = level.enter(&schema, &format!("{}", task % 5), 1 + task % 2, LONG, None).await;
                        assert!(level.in_use() <= 3);
                        if (task + round) % 3 == 0 {
                            tokio::task::yield_now().await;
                        }
                        drop(ticket.ok().unwrap());
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(level.in_use(), 0);
        assert_eq!(level.seats.load(Ordering::SeqCst), 0);
        assert_eq!(schema.counters.dispatched.load(Ordering::SeqCst), 64 * 50);
    }
}
