//! Pure: how long a node is left alone after a daemon pod has failed there. A kubelet may refuse or evict
//! each new pod at once: without a pause pods would be made and deleted as fast as both sides can.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::meta;

/// Seconds.
const FIRST: i64 = 1;
const LONGEST: i64 = 15 * 60;

/// The set's UID, the generation it acts on, and the node's name.
pub type Place = (String, i64, String);

#[derive(Default)]
pub struct Backoffs {
    places: HashMap<Place, Pause>,
}

struct Pause {
    since: Timestamp,
    seconds: i64,
}

impl Backoffs {
    /// Until when the place is left alone, if it is.
    pub fn until(&self, place: &Place, now: Timestamp) -> Option<Timestamp> {
        let pause = self.places.get(place)?;
        Some(meta::after(pause.since, pause.seconds)).filter(|end| *end > now)
    }

    /// A failed pod of the place is deleted now. The next one is left for twice as long.
    pub fn deleted(&mut self, place: Place, now: Timestamp) {
        self.places.retain(|_, pause| meta::after(pause.since, 2 * LONGEST) > now);
        let seconds = self.places.get(&place).map_or(FIRST, |pause| (2 * pause.seconds).min(LONGEST));
        self.places.insert(place, Pause { since: now, seconds });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podstate::testing::at;

    #[test]
    fn a_place_where_pods_keep_failing_is_left_alone_for_longer_each_time() {
        let mut backoffs = Backoffs::default();
        let place = |node: &str| ("uid".to_owned(), 1, node.to_owned());
        let mut now = 1000;
        for pause in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            assert_eq!(backoffs.until(&place("n"), at(now)), None);
            backoffs.deleted(place("n"), at(now));
            assert_eq!(backoffs.until(&place("n"), at(now)), Some(at(now + pause)));
            now += pause;
        }
        assert_eq!(backoffs.until(&place("other"), at(now)), None);
        backoffs.deleted(place("other"), at(now + 2000));
        assert_eq!(backoffs.places.len(), 1, "what has not failed for long is forgotten");
    }
}
