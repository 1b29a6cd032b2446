//! Counters that devices of a pool share: a device that is a part of a larger one takes its share
//! of what that has (partitionable devices).

use std::collections::HashMap;

use api::quantity::Quantity;

use super::inventory::{Inventory, Offer};

/// What is left of the counters of the pools that were asked for.
#[derive(Default)]
pub struct Counters<'a> {
    /// By pool; within it by set and counter.
    left: HashMap<usize, HashMap<(&'a str, &'a str), Quantity>>,
}

impl<'a> Counters<'a> {
    /// Takes what a device consumes, if that much is left.
    pub fn take(&mut self, inventory: &'a Inventory, offer: &Offer<'a>) -> bool {
        let left = self.left.entry(offer.pool).or_insert_with(|| left_of(inventory, offer.pool));
        // Of a pool that gave more than it has nothing is given.
        let sound = left.values().all(|left| !left.is_negative());
        let enough = consumed(offer).all(|(counter, amount)| left.get(&counter).is_some_and(|left| *left >= amount));
        // A device may name a set once only, so that amounts of one counter are not added up.
        if sound && enough {
            for (counter, amount) in consumed(offer) {
                left.entry(counter).and_modify(|left| *left = *left - amount);
            }
        }
        sound && enough
    }

    /// Undoes [`Counters::take`].
    pub fn give_back(&mut self, offer: &Offer<'a>) {
        let Some(left) = self.left.get_mut(&offer.pool) else { return };
        for (counter, amount) in consumed(offer) {
            left.entry(counter).and_modify(|left| *left = *left + amount);
        }
    }
}

/// A pool's counters without what allocated devices consume: less than nothing may be left.
fn left_of(inventory: &Inventory, pool: usize) -> HashMap<(&str, &str), Quantity> {
    let mut left = HashMap::new();
    for set in inventory.counter_sets(pool) {
        for (name, counter) in &set.counters {
            left.insert((set.name.as_str(), name.as_str()), Quantity::from(&counter.value));
        }
    }
    for offer in inventory.pool_offers(pool).filter(|offer| offer.taken || offer.share.is_some()) {
        for (counter, amount) in consumed(&offer) {
            left.entry(counter).and_modify(|left| *left = *left - amount);
        }
    }
    left
}

fn consumed<'a>(offer: &Offer<'a>) -> impl Iterator<Item = ((&'a str, &'a str), Quantity)> + use<'a> {
    let device = offer.device;
    device.consumes_counters.iter().flatten().flat_map(|used| {
        let counters = used.counters.iter();
        counters.map(|(name, counter)| ((used.counter_set.as_str(), name.as_str()), Quantity::from(&counter.value)))
    })
}
