//! Fair queues: which of the waiting requests runs next. Pure; time is given, in seconds.
//!
//! Each flow is dealt a small hand of queues (shuffle sharding) and joins the least loaded of them.
//! Queues share the seats evenly: each has a virtual time, in seat seconds, at which its next
//! request would begin if it had run in a round robin of infinitely small steps; the queue whose
//! next request would end first is served first (KEP-1040).

use std::collections::VecDeque;

/// What a request is expected to take before it is known, in seconds.
const ESTIMATE: f64 = 0.003;

/// How a priority level queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queuing {
    pub queues: usize,
    pub hand_size: usize,
    pub length_limit: usize,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    seats: u32,
    arrived: f64,
}

impl Waiting {
    fn work(&self) -> f64 {
        f64::from(self.seats) * ESTIMATE
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Virtual time at which its next request begins.
    next: f64,
    running: usize,
    seats: u32,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running == 0
    }

    /// A queue gathers no credit for time in which it had nothing to run.
    fn bound(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.next = self.next.max(first.arrived);
        }
    }
}

/// A request that may run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    pub id: u64,
    pub queue: usize,
    pub seats: u32,
}

/// What a queue looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueView {
    pub waiting: usize,
    pub running: usize,
    pub seats: u32,
    pub waiting_seats: u32,
    pub next: f64,
}

/// The queues of one priority level.
#[derive(Debug)]
pub struct QueueSet {
    config: Queuing,
    queues: Vec<Queue>,
    /// Virtual time now.
    virtual_now: f64,
    now: f64,
    next_id: u64,
    turn: usize,
    waiting: usize,
}

impl QueueSet {
    pub fn new(config: Queuing) -> Self {
        let mut set = Self { config, queues: Vec::new(), virtual_now: 0.0, now: 0.0, next_id: 0, turn: 0, waiting: 0 };
        set.configure(config);
        set
    }

    /// Queues are added at once; those too many are not joined any more and empty themselves.
    pub fn configure(&mut self, config: Queuing) {
        self.config = config;
        let count = self.queues.len().max(config.queues);
        self.queues.resize_with(count, Queue::default);
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    pub fn view(&self) -> impl Iterator<Item = QueueView> + '_ {
        self.queues.iter().map(|queue| QueueView {
            waiting: queue.waiting.len(),
            running: queue.running,
            seats: queue.seats,
            waiting_seats: queue.waiting.iter().map(|waiting| waiting.seats).sum(),
            next: queue.next,
        })
    }

    /// Virtual time goes on at the rate at which each busy queue gets seats.
    pub fn advance(&mut self, now: f64, limit: u32) {
        let passed = (now - self.now).max(0.0);
        self.now = now;
        let (mut busy, mut seats) = (0_u32, 0);
        for queue in self.queues.iter().filter(|queue| !queue.is_idle()) {
            busy += 1;
            seats += queue.seats + queue.waiting.iter().map(|waiting| waiting.seats).sum::<u32>();
        }
        if busy > 0 {
            self.virtual_now += passed * f64::from(seats.min(limit)) / f64::from(busy);
        }
    }

    /// Queues a request of a flow; none when its queue is full and all seats are taken (`crowded`).
    pub fn join(&mut self, flow: u64, seats: u32, crowded: bool) -> Option<(u64, usize)> {
        let at = self.choose(flow);
        let arrived = self.virtual_now;
        let queue = self.queues.get_mut(at)?;
        if crowded && queue.waiting.len() >= self.config.length_limit {
            return None;
        }
        if queue.is_idle() {
            queue.next = arrived;
        }
        let id = self.next_id;
        self.next_id += 1;
        queue.waiting.push_back(Waiting { id, seats, arrived });
        queue.bound();
        self.waiting += 1;
        Some((id, at))
    }

    /// The least loaded queue of the flow's hand.
    fn choose(&mut self, flow: u64) -> usize {
        let hand = deal(flow, self.config.queues, self.config.hand_size);
        self.turn = self.turn.wrapping_add(1);
        let load = |at: &usize| self.queues.get(*at).map_or(0, |q| q.waiting.iter().map(|w| w.seats).sum::<u32>());
        let from = self.turn % hand.len().max(1);
        let (after, before) = (hand.get(from..).unwrap_or_default(), hand.get(..from).unwrap_or_default());
        after.iter().chain(before).copied().min_by_key(load).unwrap_or(0)
    }

    /// The request to run next, if it fits beside `in_use` seats.
    pub fn next(&mut self, in_use: u32, limit: u32) -> Option<Started> {
        // Without a seat nothing runs, not even alone.
        if in_use >= limit {
            return None;
        }
        let count = self.queues.len();
        let order = (1..=count).map(|step| (self.turn + step) % count);
        let ends = |at: &usize| self.queues[*at].waiting.front().map(|first| self.queues[*at].next + first.work());
        let (at, _) = order.filter_map(|at| Some((at, ends(&at)?))).min_by(|a, b| a.1.total_cmp(&b.1))?;
        let queue = &mut self.queues[at];
        let seats = queue.waiting.front()?.seats;
        // What is wider than the level runs alone.
        let fits = if seats > limit { in_use == 0 } else { in_use + seats <= limit };
        if !fits {
            return None;
        }
        let first = queue.waiting.pop_front()?;
        queue.next += first.work();
        queue.running += 1;
        queue.seats += seats;
        queue.bound();
        self.waiting -= 1;
        self.turn = at;
        Some(Started { id: first.id, queue: at, seats })
    }

    /// A request ended; its queue pays for what it really took.
    pub fn finish(&mut self, at: usize, seats: u32, took: f64) {
        let Some(queue) = self.queues.get_mut(at) else { return };
        queue.running = queue.running.saturating_sub(1);
        queue.seats = queue.seats.saturating_sub(seats);
        queue.next -= f64::from(seats) * (ESTIMATE - took);
        queue.bound();
    }

    /// Takes a request out of its queue; false if it is not in it any more.
    pub fn leave(&mut self, id: u64, at: usize) -> bool {
        let Some(queue) = self.queues.get_mut(at) else { return false };
        let Some(place) = queue.waiting.iter().position(|waiting| waiting.id == id) else { return false };
        queue.waiting.remove(place);
        queue.bound();
        self.waiting -= 1;
        true
    }
}

/// A hand of distinct queues for a flow: the digits of its hash in a base that shrinks with each
/// card, each digit counted among the cards that are left.
fn deal(mut hash: u64, deck: usize, hand_size: usize) -> Vec<usize> {
    let mut hand: Vec<usize> = Vec::with_capacity(hand_size);
    for dealt in 0..hand_size.min(deck) {
        let left = (deck - dealt) as u64;
        let mut card = usize::try_from(hash % left).unwrap_or(0);
        hash /= left;
        let mut gone = hand.clone();
        gone.sort_unstable();
        for taken in gone {
            card += usize::from(card >= taken);
        }
        hand.push(card);
    }
    hand
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const CONFIG: Queuing = Queuing { queues: 16, hand_size: 4, length_limit: 5 };

    #[test]
    fn hands_are_distinct_and_differ_between_flows() {
        let hands: HashSet<Vec<usize>> =
            (0..500_u64).map(|flow| deal(flow.wrapping_mul(0x9e37_79b9_7f4a_7c15), 64, 6)).collect();
        assert!(hands.len() > 490);
        for hand in hands {
            assert_eq!(hand.iter().collect::<HashSet<_>>().len(), 6);
            assert!(hand.iter().all(|card| *card < 64));
        }
    }

    /// An elephant that always has requests waiting and a mouse that sends one at a time.
    #[test]
    fn a_mouse_is_not_kept_waiting_by_an_elephant() {
        let mut set = QueueSet::new(Queuing { queues: 2, hand_size: 1, length_limit: 1000 });
        let (elephant, mouse) = (0, 1);
        for _ in 0..100 {
            set.join(elephant, 1, true).unwrap();
        }
        let first = set.next(0, 1).unwrap();
        assert_eq!(first.queue, 0);
        let (id, _) = set.join(mouse, 1, true).unwrap();
        set.advance(0.1, 1);
        set.finish(first.queue, 1, 0.1);
        assert_eq!(set.next(0, 1).unwrap().id, id);
    }

    #[test]
    fn seats_are_shared_evenly_between_busy_flows() {
        let mut set = QueueSet::new(Queuing { queues: 4, hand_size: 1, length_limit: 1000 });
        let (mut now, mut served) = (0.0, [0; 3]);
        // Flow 0 sends wide requests, 1 slow ones, 2 ordinary ones; one seat's worth of 4 at a time.
        let shape = [(4, 0.01), (1, 0.04), (1, 0.01)];
        for flow in [0_u64, 1, 2] {
            for _ in 0..800 {
                set.join(flow, shape[flow as usize].0, true);
            }
        }
        let (mut running, mut in_use): (Vec<(f64, Started)>, u32) = (Vec::new(), 0);
        while now < 2.0 {
            while let Some(started) = set.next(in_use, 4) {
                in_use += started.seats;
                running.push((now + shape[started.queue].1, started));
            }
            running.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (end, ended) = running.remove(0);
            now = end;
            set.advance(now, 4);
            in_use -= ended.seats;
            let (_, took) = shape[ended.queue];
            set.finish(ended.queue, ended.seats, took);
            served[ended.queue] += (f64::from(ended.seats) * took * 1000.0) as u32;
        }
        // Seat milliseconds of each flow: the same within a fifth.
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(f64::from(*most) < 1.2 * f64::from(*least), "{served:?}");
    }

    #[test]
    fn full_queues_refuse_and_wide_requests_run_alone() {
        let mut set = QueueSet::new(CONFIG);
        for _ in 0..20 {
            assert!(set.join(7, 1, true).is_some(), "four queues of five");
        }
        assert!(set.join(7, 1, true).is_none());
        assert!(set.join(7, 1, false).is_some());
        let mut wide = QueueSet::new(CONFIG);
        wide.join(1, 9, false);
        assert!(wide.next(1, 4).is_none());
        assert_eq!(wide.next(0, 4).unwrap().seats, 9);
    }

    proptest! {
        /// Against a plain list: nothing is lost, nothing runs twice, seats stay within the limit,
        /// and nobody waits while his request fits and nobody else's is before it.
        #[test]
        fn requests_run_exactly_once(steps in proptest::collection::vec((0_u8..4, 0_u64..6, 1_u32..4), 1..200)) {
            let mut set = QueueSet::new(CONFIG);
            let (limit, mut in_use, mut now) = (6, 0_u32, 0.0);
            let mut waiting: HashSet<(u64, usize)> = HashSet::new();
            let mut running: Vec<Started> = Vec::new();
            let mut seen = HashSet::new();
            for (step, flow, seats) in steps {
                now += 0.001;
                set.advance(now, limit);
                match step {
                    0 | 1 => {
                        if let Some(place) = set.join(flow, seats, in_use >= limit) {
                            prop_assert!(waiting.insert(place));
                        }
                    }
                    2 if !running.is_empty() => {
                        let ended = running.remove(flow as usize % running.len());
                        in_use -= ended.seats;
                        set.finish(ended.queue, ended.seats, 0.002);
                    }
                    3 => {
                        if let Some((id, at)) = waiting.iter().next().copied() {
                            prop_assert!(set.leave(id, at));
                            waiting.remove(&(id, at));
                            prop_assert!(!set.leave(id, at));
                        }
                    }
                    _ => {}
                }
                while let Some(started) = set.next(in_use, limit) {
                    prop_assert!(waiting.remove(&(started.id, started.queue)));
                    prop_assert!(seen.insert(started.id));
                    in_use += started.seats;
                    running.push(started);
                }
                prop_assert!(in_use <= limit);
                prop_assert_eq!(set.waiting(), waiting.len());
                prop_assert!(in_use > 0 || waiting.is_empty());
            }
        }
    }
}
