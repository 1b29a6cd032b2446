//! The search: device after device for request after request, one step back whenever it comes to an
//! end. The first solution is taken.
//!
//! Within a request devices are only tried in their order, so that sets are tried, not sequences.

use std::collections::{BTreeSet, HashMap};

use super::constraint::Constraint;
use super::counters::Counters;
use super::inventory::{Offer, Pool, State};
use super::request::{Asked, Wanted, has_room, is_kept_off, matches, shown};
use super::taken::Amounts;
use super::{Failure, MOST_RESULTS, Task, capacity};

/// A device given for a request.
#[derive(Clone)]
pub struct Given<'a> {
    pub wanted: &'a Wanted<'a>,
    pub offer: Offer<'a>,
    /// What of it, if others may have the rest.
    pub share: Option<Amounts>,
}

/// Which alternative was chosen, by claim and request.
pub type Chosen = HashMap<(usize, usize), usize>;

/// Why a branch ended.
enum Stop {
    /// More devices than a claim can hold: fewer may do.
    TooMany,
    Failed(Failure),
}

/// The device that is looked for: the how many-th of which request.
#[derive(Clone, Copy)]
struct Slot {
    claim: usize,
    request: usize,
    option: usize,
    nth: usize,
}

/// Where among pools and their devices to begin.
type From = (usize, usize);

pub struct Search<'a> {
    task: &'a Task<'a>,
    pools: &'a [Pool<'a>],
    asked: &'a [Asked<'a>],
    constraints: Vec<Vec<Constraint<'a>>>,
    /// What selectors said: by claim, request, alternative and device.
    matched: HashMap<(usize, usize, usize, (usize, usize)), bool>,
    /// Devices given wholly, and to which claims.
    given_to: HashMap<(usize, usize), BTreeSet<usize>>,
    /// What was given of devices that can be shared, and how often.
    shares: HashMap<(usize, usize), (usize, Amounts)>,
    counters: Counters<'a>,
    given: Vec<Vec<Given<'a>>>,
    chosen: Chosen,
}

impl<'a> Search<'a> {
    pub fn new(task: &'a Task<'a>, pools: &'a [Pool<'a>], asked: &'a [Asked<'a>]) -> Self {
        let constraints = |asked: &Asked<'a>| asked.constraints.iter().filter_map(Constraint::new).collect();
        Self {
            task,
            pools,
            asked,
            constraints: asked.iter().map(constraints).collect(),
            matched: HashMap::new(),
            given_to: HashMap::new(),
            shares: HashMap::new(),
            counters: Counters::default(),
            given: asked.iter().map(|_| Vec::new()).collect(),
            chosen: Chosen::new(),
        }
    }

    /// Whether all that is asked for was found.
    pub fn run(&mut self) -> Result<bool, Failure> {
        match self.request(0, 0) {
            Ok(found) => Ok(found),
            Err(Stop::TooMany) => Ok(false),
            Err(Stop::Failed(failure)) => Err(failure),
        }
    }

    /// What was found: devices by claim, and the alternatives chosen.
    pub fn outcome(self) -> (Vec<Vec<Given<'a>>>, Chosen) {
        (self.given, self.chosen)
    }

    /// Meets this request and all that come after it.
    fn request(&mut self, claim: usize, request: usize) -> Result<bool, Stop> {
        let Some(asked) = self.asked.get(claim) else { return Ok(true) };
        let Some(options) = asked.requests.get(request) else {
            return match self.request(claim + 1, 0) {
                // Other devices for this claim may leave the next one an alternative with fewer.
                Err(Stop::TooMany) => Ok(false),
                outcome => outcome,
            };
        };
        let mut all_too_many = true;
        for (option, wanted) in options.iter().enumerate() {
            match self.device(Slot { claim, request, option, nth: 0 }, (0, 0)) {
                Err(Stop::TooMany) if wanted.is_option() => {}
                Err(stop) => return Err(stop),
                Ok(true) => {
                    self.chosen.insert((claim, request), option);
                    return Ok(true);
                }
                Ok(false) => all_too_many = false,
            }
        }
        if all_too_many { Err(Stop::TooMany) } else { Ok(false) }
    }

    /// Finds one more device for a request, and then all the rest.
    fn device(&mut self, slot: Slot, from: From) -> Result<bool, Stop> {
        self.task.look_at_the_clock().map_err(Stop::Failed)?;
        let (asked, pools) = (self.asked, self.pools);
        let wanted = &asked[slot.claim].requests[slot.request][slot.option];
        if wanted.all.as_ref().is_some_and(Vec::is_empty) {
            return Ok(false);
        }
        if slot.nth >= wanted.count {
            return self.request(slot.claim, slot.request + 1);
        }
        if self.given[slot.claim].len().saturating_add(wanted.count - slot.nth) > MOST_RESULTS {
            return Err(Stop::TooMany);
        }
        let next = Slot { nth: slot.nth + 1, ..slot };
        if let Some(all) = &wanted.all {
            let offer = &all[slot.nth];
            if !self.give(slot, wanted, offer, true)? {
                return Ok(false);
            }
            return self.or_take_back(slot, wanted, |search| search.device(next, (0, 0)));
        }
        for (pool, place) in pools.iter().enumerate().skip(from.0) {
            if place.state != State::Usable {
                continue;
            }
            let first = if pool == from.0 { from.1 } else { 0 };
            for (at, offer) in place.offers.iter().enumerate().skip(first) {
                // One look costs far less than a selector.
                self.task.look_at_the_clock().map_err(Stop::Failed)?;
                if !self.is_free(slot, wanted, offer)
                    || !self.matches(slot, wanted, offer)?
                    || !self.give(slot, wanted, offer, false)?
                {
                    continue;
                }
                if self.or_take_back(slot, wanted, |search| search.device(next, (pool, at + 1)))? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Goes on; if that leads nowhere the device given last is taken back.
    fn or_take_back(
        &mut self,
        slot: Slot,
        wanted: &'a Wanted<'a>,
        go_on: impl FnOnce(&mut Self) -> Result<bool, Stop>,
    ) -> Result<bool, Stop> {
        let outcome = go_on(self);
        if !matches!(outcome, Ok(true)) {
            self.take_back(slot, wanted);
        }
        outcome
    }

    fn matches(&mut self, slot: Slot, wanted: &Wanted<'_>, offer: &Offer<'_>) -> Result<bool, Stop> {
        let key = (slot.claim, slot.request, slot.option, offer.key);
        if let Some(known) = self.matched.get(&key) {
            return Ok(*known);
        }
        let matched = matches(self.task, self.asked[slot.claim].claim, wanted, offer).map_err(Stop::Failed)?;
        self.matched.insert(key, matched);
        Ok(matched)
    }

    /// Whether nobody has it. Administrators get at devices of others, but not twice at the same.
    fn is_free(&self, slot: Slot, wanted: &Wanted<'_>, offer: &Offer<'_>) -> bool {
        let holders = self.given_to.get(&offer.key);
        if wanted.admin {
            return !holders.is_some_and(|holders| holders.contains(&slot.claim));
        }
        !offer.taken && holders.is_none_or(BTreeSet::is_empty)
    }

    /// Gives a device, if nothing speaks against it. `must`: this one or none.
    fn give(&mut self, slot: Slot, wanted: &'a Wanted<'a>, offer: &Offer<'a>, must: bool) -> Result<bool, Stop> {
        let shared = offer.may_be_shared();
        let given_share = self.shares.get(&offer.key).map(|(_, amounts)| amounts);
        if !self.is_free(slot, wanted, offer) || is_kept_off(wanted, offer) || !has_room(wanted, offer, given_share) {
            return Ok(false);
        }
        if self.counts(offer) && !self.counters.take(self.task.inventory, offer) {
            return Ok(false);
        }
        if !self.constrain(slot, wanted, offer) {
            if self.counts(offer) {
                self.counters.give_back(offer);
            }
            if must {
                let (claim, id) = (shown(self.asked[slot.claim].claim), &offer.entry.id);
                return Err(Stop::Failed(Failure::Broken(format!(
                    "claim {claim}, request {}: cannot add device {}/{}/{} because a claim constraint would not be satisfied",
                    wanted.name, id.driver, id.pool, id.device
                ))));
            }
            return Ok(false);
        }
        let share = shared.then(|| {
            let none = Default::default();
            capacity::consumed(offer.device.capacity.as_ref().unwrap_or(&none), wanted.capacity)
        });
        match &share {
            Some(share) => {
                let (count, sum) = self.shares.entry(offer.key).or_default();
                *count += 1;
                for (name, amount) in share {
                    sum.entry(name.clone()).and_modify(|sum| *sum = *sum + *amount).or_insert(*amount);
                }
            }
            None => drop(self.given_to.entry(offer.key).or_default().insert(slot.claim)),
        }
        self.given[slot.claim].push(Given { wanted, offer: *offer, share });
        Ok(true)
    }

    /// Whether a device takes counters: of one that can be shared only the first share does.
    fn counts(&self, offer: &Offer<'_>) -> bool {
        let consumes = offer.device.consumes_counters.as_ref().is_some_and(|consumed| !consumed.is_empty());
        let in_use = offer.share.is_some() || self.shares.contains_key(&offer.key);
        consumes && !(offer.may_be_shared() && in_use)
    }

    /// Adds a device to all constraints of its claim, or to none.
    fn constrain(&mut self, slot: Slot, wanted: &Wanted<'_>, offer: &Offer<'a>) -> bool {
        let constraints = &mut self.constraints[slot.claim];
        let Some(refused) = constraints.iter_mut().position(|constraint| !constraint.add(wanted, offer)) else {
            return true;
        };
        constraints[..refused].iter_mut().for_each(|constraint| constraint.remove(wanted));
        false
    }

    /// Undoes the last [`Search::give`] of this claim.
    fn take_back(&mut self, slot: Slot, wanted: &Wanted<'_>) {
        let Some(Given { offer, share, .. }) = self.given[slot.claim].pop() else { return };
        match share {
            Some(share) => {
                if let Some((count, sum)) = self.shares.get_mut(&offer.key) {
                    *count -= 1;
                    for (name, amount) in share {
                        sum.entry(name).and_modify(|sum| *sum = *sum - amount);
                    }
                    if *count == 0 {
                        self.shares.remove(&offer.key);
                    }
                }
            }
            None => {
                if let Some(holders) = self.given_to.get_mut(&offer.key) {
                    holders.remove(&slot.claim);
                }
            }
        }
        if self.counts(&offer) {
            self.counters.give_back(&offer);
        }
        self.constraints[slot.claim].iter_mut().for_each(|constraint| constraint.remove(wanted));
    }
}
