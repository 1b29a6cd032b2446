//! Which pod is next. Pure: time is handed in.
//!
//! A pod waits in one [`Place`]: ready to be tried, backing off after a try, held until something
//! changes that could help it, or gated. While a pod is being tried it is in flight: events of that
//! time are kept, since the try may have missed them. A pod that was placed stays in flight until it is
//! bound, without events: if binding fails, it backs off whatever happened.
//!
//! ```text
//! add ─┬─ gated ──(update)──┐
//!      └──────► active ◄────┴─(back-off over, or nothing else to do)── backoff ◄─┐
//!                 │ pop                                                           │ event that helps
//!                 ▼                                                               │
//!             in flight ──(no node fits)──► unschedulable ────────────────────────┘
//! ```

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::ClusterEvent;
use crate::framework::{Framework, PluginSet};
use crate::pod::{PodInfo, Uid};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// After this long without an event that helps, a pod is tried again anyway.
const LONGEST_UNSCHEDULABLE: Duration = Duration::from_secs(300);

#[derive(Default)]
pub struct Queue {
    pods: HashMap<Uid, Entry>,
    /// In the order of QueueSort, then of arrival.
    active: VecDeque<Uid>,
    /// By the end of the back-off.
    backoff: BTreeSet<(Instant, Uid)>,
    /// Unschedulable ones, by the time since when.
    held: BTreeSet<(Instant, Uid)>,
    in_flight: HashMap<Uid, InFlight>,
    gated: HashSet<Uid>,
}

struct Entry {
    pod: Arc<PodInfo>,
    tries: u32,
    last_try: Option<Instant>,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    Backoff { until: Instant, after_error: bool },
    Unschedulable { since: Instant, rejected_by: PluginSet },
    Gated { by: usize },
}

struct InFlight {
    entry: Entry,
    /// Those of the time of the try; none: the pod was placed, and is being bound.
    events: Option<Vec<ClusterEvent>>,
    /// The pod itself changed meanwhile, in a way that could let it be placed.
    changed: bool,
}

/// How a try ended that did not place the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// No node fits; these plugins said so.
    Unschedulable(PluginSet),
    /// Something failed that says nothing about nodes.
    Error,
}

impl Queue {
    /// A pod to place appeared or changed.
    pub fn add(&mut self, pod: Arc<PodInfo>, framework: &Framework, now: Instant) {
        if let Some(flight) = self.in_flight.get_mut(&pod.uid) {
            flight.changed |= matters(&flight.entry.pod, &pod);
            flight.entry.pod = pod;
            return;
        }
        let uid = pod.uid.clone();
        let Some(entry) = self.pods.get_mut(&uid) else {
            let entry = Entry { pod, tries: 0, last_try: None, place: Place::Gated { by: 0 } };
            self.pods.insert(uid.clone(), entry);
            return self.consider(&uid, framework, now);
        };
        let changed = matters(&entry.pod, &pod);
        entry.pod = pod;
        if changed && matches!(entry.place, Place::Gated { .. } | Place::Unschedulable { .. }) {
            self.consider(&uid, framework, now);
        }
    }

    /// The try placed the pod, which is to be bound now.
    pub fn place(&mut self, uid: &Uid) {
        if let Some(flight) = self.in_flight.get_mut(uid) {
            flight.events = None;
        }
    }

    /// A pod that was placed but is not bound yet changed: should it come back, it is tried as it is now.
    pub fn refresh(&mut self, pod: Arc<PodInfo>) {
        if let Some(flight) = self.in_flight.get_mut(&pod.uid) {
            flight.entry.pod = pod;
        }
    }

    /// The pod is gone, or placed: nothing is to be done for it any more.
    pub fn remove(&mut self, uid: &Uid) {
        self.in_flight.remove(uid);
        self.unlink(uid);
        self.pods.remove(uid);
    }

    /// Takes the next pod to try. It is in flight until [`Queue::remove`] or [`Queue::set_back`].
    /// With nothing active the pod that would be tried next anyway is taken early.
    pub fn pop(&mut self, framework: &Framework, now: Instant) -> Option<Arc<PodInfo>> {
        self.flush(framework, now);
        let uid = self.active.pop_front().or_else(|| self.take_early())?;
        let mut entry = self.pods.remove(&uid)?;
        entry.tries += 1;
        entry.last_try = Some(now);
        let pod = entry.pod.clone();
        self.in_flight.insert(uid, InFlight { entry, events: Some(Vec::new()), changed: false });
        Some(pod)
    }

    /// Whether the pod's try has not ended.
    pub fn is_in_flight(&self, uid: &Uid) -> bool {
        self.in_flight.contains_key(uid)
    }

    /// Ends a try that did not place the pod, or the binding of a placed one. False: the pod was gone, or
    /// bound, before that.
    pub fn set_back(&mut self, uid: &Uid, setback: Setback, framework: &Framework, now: Instant) -> bool {
        let Some(InFlight { mut entry, events, changed }) = self.in_flight.remove(uid) else { return false };
        let place = match setback {
            Setback::Error => Place::Backoff { until: now + backoff(entry.tries), after_error: true },
            Setback::Unschedulable(plugins) => {
                if changed || events.iter().flatten().any(|event| framework.helps(&entry.pod, plugins, event)) {
                    Place::Backoff { until: now + backoff(entry.tries), after_error: false }
                } else {
                    Place::Unschedulable { since: now, rejected_by: plugins }
                }
            }
        };
        entry.place = place;
        self.pods.insert(uid.clone(), entry);
        match place {
            Place::Backoff { until, .. } => self.backoff.insert((until, uid.clone())),
            Place::Unschedulable { since, .. } => self.held.insert((since, uid.clone())),
            Place::Active | Place::Gated { .. } => false,
        };
        true
    }

    /// Something changed: lets those pods go on that it could help.
    pub fn event(&mut self, event: &ClusterEvent, framework: &Framework, now: Instant) {
        for events in self.in_flight.values_mut().filter_map(|flight| flight.events.as_mut()) {
            events.push(event.clone());
        }
        let is_helped = |uid: &Uid| match self.pods.get(uid) {
            Some(Entry { pod, place: Place::Unschedulable { rejected_by, .. }, .. }) => {
                framework.helps(pod, *rejected_by, event)
            }
            _ => false,
        };
        let is_opened = |uid: &Uid| match self.pods.get(uid) {
            Some(Entry { pod, place: Place::Gated { by }, .. }) => {
                framework.plugin(*by).is_some_and(|plugin| plugin.helps(pod, event))
            }
            _ => false,
        };
        let helped = self.held.iter().filter(|(_, uid)| is_helped(uid)).map(|(_, uid)| uid);
        let helped: Vec<Uid> = helped.chain(self.gated.iter().filter(|uid| is_opened(uid))).cloned().collect();
        for uid in helped {
            self.consider(&uid, framework, now);
        }
    }

    /// When something is due without an event.
    pub fn next_due(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let held = self.held.first().map(|(since, _)| *since + LONGEST_UNSCHEDULABLE);
        held.into_iter().chain(backoff).min()
    }

    /// Moves a pod that waits for something to where its back-off and its gates allow.
    fn consider(&mut self, uid: &Uid, framework: &Framework, now: Instant) {
        self.unlink(uid);
        let Some(entry) = self.pods.get_mut(uid) else { return };
        if let Err((by, _)) = framework.pre_enqueue(&entry.pod) {
            entry.place = Place::Gated { by };
            self.gated.insert(uid.clone());
            return;
        }
        let until = entry.last_try.map_or(now, |tried| tried + backoff(entry.tries));
        if until > now {
            entry.place = Place::Backoff { until, after_error: false };
            self.backoff.insert((until, uid.clone()));
        } else {
            self.activate(uid, framework);
        }
    }

    fn activate(&mut self, uid: &Uid, framework: &Framework) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.place = Place::Active;
        let pod = entry.pod.clone();
        let at = self.active.partition_point(|other| {
            self.pods.get(other).is_none_or(|other| framework.compare(&other.pod, &pod).is_le())
        });
        self.active.insert(at, uid.clone());
    }

    /// Back-offs that are over, and pods held for too long.
    fn flush(&mut self, framework: &Framework, now: Instant) {
        let over = self.backoff.iter().take_while(|(until, _)| *until <= now);
        let held = self.held.iter().take_while(|(since, _)| *since + LONGEST_UNSCHEDULABLE <= now);
        let due: Vec<Uid> = held.chain(over).map(|(_, uid)| uid.clone()).collect();
        for uid in due {
            self.unlink(&uid);
            self.activate(&uid, framework);
        }
    }

    /// The pod whose back-off ends first, unless it backs off after an error.
    fn take_early(&mut self) -> Option<Uid> {
        let after_error = |uid: &Uid| {
            let entry = self.pods.get(uid);
            entry.is_some_and(|entry| matches!(entry.place, Place::Backoff { after_error: true, .. }))
        };
        let uid = self.backoff.iter().find(|(_, uid)| !after_error(uid)).map(|(_, uid)| uid.clone())?;
        self.unlink(&uid);
        Some(uid)
    }

    /// Takes a pod out of the orderings; its entry stays.
    fn unlink(&mut self, uid: &Uid) {
        match self.pods.get(uid).map(|entry| entry.place) {
            Some(Place::Active) => self.active.retain(|other| other != uid),
            Some(Place::Backoff { until, .. }) => {
                self.backoff.remove(&(until, uid.clone()));
            }
            Some(Place::Unschedulable { since, .. }) => {
                self.held.remove(&(since, uid.clone()));
            }
            Some(Place::Gated { .. }) => {
                self.gated.remove(uid);
            }
            _ => {}
        }
    }
}

/// Whether an update of a waiting pod could change where it fits.
fn matters(old: &PodInfo, new: &PodInfo) -> bool {
    let claims = |pod: &PodInfo| pod.pod.status.as_ref().and_then(|status| status.resource_claim_statuses.clone());
    old.labels != new.labels || old.pod.spec != new.pod.spec || claims(old) != claims(new)
}

/// 1 s, doubled with each try, 10 s at most.
fn backoff(tries: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::deciding;
    use crate::testing::{asking, named, node};
    use serde_json::json;

    struct Bench {
        queue: Queue,
        framework: Framework,
        start: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { queue: Queue::default(), framework: Framework::new(deciding()), start: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn add(&mut self, pod: PodInfo) {
            self.queue.add(Arc::new(pod), &self.framework, self.start);
        }

        fn pop(&mut self, seconds: u64) -> Option<String> {
            let now = self.at(seconds);
            self.queue.pop(&self.framework, now).map(|pod| pod.name.clone())
        }

        fn reject(&mut self, name: &str, plugin: &str, seconds: u64) {
            let mut by = PluginSet::default();
            let position = deciding().iter().position(|p| p.name() == plugin).unwrap();
            by.insert(position);
            self.queue.set_back(&name.into(), Setback::Unschedulable(by), &self.framework, self.at(seconds));
        }

        fn event(&mut self, event: ClusterEvent, seconds: u64) {
            self.queue.event(&event, &self.framework, self.at(seconds));
        }
    }

    fn urgent(name: &str, priority: i32) -> PodInfo {
        named(name, json!({"containers": [], "priority": priority}))
    }

    #[test]
    fn priority_then_age() {
        let mut bench = Bench::new();
        for pod in [urgent("a", 0), urgent("b", 10), urgent("c", 0), urgent("d", 10)] {
            bench.add(pod);
        }
        let order: Vec<_> = std::iter::from_fn(|| bench.pop(0)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn an_unschedulable_pod_waits_for_an_event_that_helps() {
        let mut bench = Bench::new();
        bench.add(asking("a", "2", "1Gi"));
        assert_eq!(bench.pop(0).as_deref(), Some("a"));
        bench.reject("a", "NodeResourcesFit", 0);
        assert_eq!(bench.pop(20), None);
        bench.event(
            ClusterEvent::NodeAdded(Arc::new(node("small", json!({"status": {"allocatable": {"cpu": "1"}}})))),
            20,
        );
        assert_eq!(bench.pop(20), None, "too small a node");
        bench.event(ClusterEvent::NodeAdded(Arc::new(node("large", json!({})))), 21);
        assert_eq!(bench.pop(21).as_deref(), Some("a"), "its back-off is long over");
    }

    #[test]
    fn an_event_during_the_try_is_not_missed() {
        let mut bench = Bench::new();
        bench.add(asking("a", "2", "1Gi"));
        bench.pop(0);
        bench.event(ClusterEvent::PodGone(Arc::new(asking("b", "2", "1Gi"))), 0);
        bench.reject("a", "NodeResourcesFit", 0);
        assert_eq!(bench.queue.next_due(), Some(bench.at(1)), "it backs off for a second");
        assert_eq!(bench.pop(0).as_deref(), Some("a"), "but nothing else is to be done");
    }

    #[test]
    fn a_change_of_the_pod_during_its_try_is_not_missed() {
        let mut bench = Bench::new();
        bench.add(named("a", json!({"containers": []})));
        bench.pop(0);
        bench.add(named("a", json!({"containers": [], "tolerations": [{"operator": "Exists"}]})));
        bench.reject("a", "TaintToleration", 0);
        assert_eq!(bench.pop(0).as_deref(), Some("a"), "it tolerates more by now");
        bench.add(named("a", json!({"containers": [], "tolerations": [{"operator": "Exists"}]})));
        bench.reject("a", "TaintToleration", 0);
        assert_eq!(bench.pop(20), None, "nothing that matters changed");
    }

    #[test]
    fn a_pod_whose_victims_are_being_told_is_not_tried_before_all_know() {
        let mut bench = Bench::new();
        bench.add(asking("a", "2", "1Gi"));
        bench.pop(0);
        bench.event(ClusterEvent::PodGone(Arc::new(asking("first", "1", "1Gi"))), 0);
        assert_eq!((bench.pop(2), bench.queue.is_in_flight(&"a".into())), (None, true));
        bench.reject("a", "NodeResourcesFit", 2);
        assert_eq!(bench.pop(2).as_deref(), Some("a"), "what went meanwhile helps it");
        bench.queue.remove(&"a".into());
        assert!(!bench.queue.is_in_flight(&"a".into()));
    }

    #[test]
    fn a_pod_being_bound_gathers_no_events_and_is_tried_again_as_it_is_then() {
        let mut bench = Bench::new();
        bench.add(asking("a", "2", "1Gi"));
        bench.pop(0);
        let gathered = |bench: &Bench| bench.queue.in_flight["a"].events.as_ref().map(Vec::len);
        bench.event(ClusterEvent::NamespaceChanged, 0);
        assert_eq!(gathered(&bench), Some(1));
        bench.queue.place(&"a".into());
        bench.event(ClusterEvent::NamespaceChanged, 0);
        assert_eq!(gathered(&bench), None);
        bench.queue.refresh(Arc::new(asking("a", "3", "1Gi")));
        assert!(bench.queue.set_back(&"a".into(), Setback::Error, &bench.framework, bench.at(0)));
        let again = bench.queue.pop(&bench.framework, bench.at(1)).unwrap();
        assert_eq!(again.requests.milli_cpu, 3000);
        assert_eq!(gathered(&bench), Some(0), "this is another try");
    }

    #[test]
    fn errors_back_off_for_longer_each_time() {
        let mut bench = Bench::new();
        bench.add(urgent("a", 0));
        let mut now = 0;
        for pause in [1, 2, 4, 8, 10, 10] {
            assert_eq!(bench.pop(now).as_deref(), Some("a"));
            bench.queue.set_back(&"a".into(), Setback::Error, &bench.framework, bench.at(now));
            assert_eq!(bench.pop(now), None);
            assert_eq!(bench.queue.next_due(), Some(bench.at(now + pause)));
            now += pause;
        }
    }

    #[test]
    fn held_pods_are_tried_again_after_five_minutes() {
        let mut bench = Bench::new();
        bench.add(urgent("a", 0));
        bench.pop(0);
        bench.reject("a", "NodeName", 0);
        assert_eq!(bench.queue.next_due(), Some(bench.at(300)));
        assert_eq!(bench.pop(299), None);
        assert_eq!(bench.pop(300).as_deref(), Some("a"));
    }

    #[test]
    fn gates_and_updates() {
        let mut bench = Bench::new();
        bench.add(named("a", json!({"containers": [], "schedulingGates": [{"name": "g"}]})));
        assert_eq!(bench.pop(0), None);
        bench.add(named("a", json!({"containers": []})));
        assert_eq!(bench.pop(0).as_deref(), Some("a"));
        bench.reject("a", "TaintToleration", 0);
        bench.add(named("a", json!({"containers": []})));
        assert_eq!(bench.pop(20), None, "nothing that matters changed");
        bench.add(named("a", json!({"containers": [], "tolerations": [{"operator": "Exists"}]})));
        assert_eq!(bench.pop(20).as_deref(), Some("a"));
        bench.queue.remove(&"a".into());
        bench.reject("a", "TaintToleration", 20);
        assert_eq!((bench.pop(1000), bench.queue.pods.len()), (None, 0), "it is gone");
    }
}
