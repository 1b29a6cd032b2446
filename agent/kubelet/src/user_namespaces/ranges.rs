//! Who has which of the node's user IDs: ranges of one size that do not overlap. Pure.

use std::collections::{HashMap, HashSet};

/// How many IDs a pod has; its range begins at a multiple of this.
pub const PER_POD: u32 = 1 << 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error(
        "the IDs for pods begin at {first}; in /etc/subuid and /etc/subgid they must begin at a multiple of {unit}, and above zero",
        unit = PER_POD
    )]
    First { first: u32 },
    #[error(
        "there are {count} IDs for pods; in /etc/subuid and /etc/subgid there must be a multiple of {unit}",
        unit = PER_POD
    )]
    Count { count: u64 },
    #[error(
        "there are {count} IDs for pods: too few for {pods} pods with {unit} each; give the user kubelet more in /etc/subuid and /etc/subgid",
        unit = PER_POD
    )]
    Few { count: u64, pods: u32 },
    #[error("could not find an empty slot to allocate a user namespace")]
    Full,
    #[error("{length} IDs from {first} on are no range of this node")]
    Foreign { first: u32, length: u32 },
    #[error("the IDs from {first} on are another pod's")]
    Taken { first: u32 },
}

/// The node's IDs for pods, and who has which.
#[derive(Debug)]
pub struct Ranges {
    first: u32,
    slots: u32,
    /// The slot of each pod, by UID.
    taken: HashMap<String, u32>,
}

impl Ranges {
    /// `count` IDs from `first` on, which have to do for so many pods.
    pub fn new(first: u32, count: u64, pods: u32) -> Result<Self, RangeError> {
        if first == 0 || !first.is_multiple_of(PER_POD) {
            // With the host's root in it, a namespace would keep nothing out.
            return Err(RangeError::First { first });
        }
        if !count.is_multiple_of(u64::from(PER_POD)) {
            return Err(RangeError::Count { count });
        }
        // The last ID of all stands for no user: the kernel maps no range with it.
        let possible = u64::from(u32::MAX / PER_POD - first / PER_POD);
        let slots = u32::try_from((count / u64::from(PER_POD)).min(possible)).unwrap_or(u32::MAX);
        if slots < pods {
            return Err(RangeError::Few { count, pods });
        }
        Ok(Self { first, slots, taken: HashMap::new() })
    }

    /// The first ID that the pod has.
    pub fn of(&self, pod: &str) -> Option<u32> {
        self.taken.get(pod).map(|slot| self.first_of(*slot))
    }

    fn first_of(&self, slot: u32) -> u32 {
        self.first + slot * PER_POD
    }

    /// Gives the pod a range that is free, looked for from a chance one on: what was given back is not the
    /// next to be given.
    pub fn take(&mut self, pod: &str, chance: u32) -> Result<u32, RangeError> {
        let used: HashSet<u32> = self.taken.values().copied().collect();
        let begin = if self.slots == 0 { 0 } else { chance % self.slots };
        let slot = (begin..self.slots).chain(0..begin).find(|slot| !used.contains(slot)).ok_or(RangeError::Full)?;
        self.taken.insert(pod.to_owned(), slot);
        Ok(self.first_of(slot))
    }

    /// What the pod is known to have.
    pub fn record(&mut self, pod: &str, first: u32, length: u32) -> Result<(), RangeError> {
        let offset = first.checked_sub(self.first).filter(|offset| offset.is_multiple_of(PER_POD) && length == PER_POD);
        let slot = offset.map(|offset| offset / PER_POD).filter(|slot| *slot < self.slots);
        let slot = slot.ok_or(RangeError::Foreign { first, length })?;
        if self.taken.iter().any(|(other, taken)| *taken == slot && other != pod) {
            return Err(RangeError::Taken { first });
        }
        self.taken.insert(pod.to_owned(), slot);
        Ok(())
    }

    pub fn release(&mut self, pod: &str) {
        self.taken.remove(pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 32) - PER_POD as u64;

    #[test]
    fn no_two_pods_have_the_same_ids() {
        let mut ranges = Ranges::new(PER_POD * 2, u64::from(PER_POD) * 3, 3).unwrap();
        assert_eq!(ranges.take("a", 1), Ok(PER_POD * 3));
        assert_eq!(ranges.take("b", 4), Ok(PER_POD * 4), "the next that is free");
        assert_eq!(ranges.take("c", 2), Ok(PER_POD * 2), "from the beginning again");
        assert_eq!(ranges.take("d", 0), Err(RangeError::Full));
        ranges.release("b");
        assert_eq!((ranges.take("d", 0), ranges.of("d"), ranges.of("b")), (Ok(PER_POD * 4), Some(PER_POD * 4), None));
    }

    #[test]
    fn the_node_has_enough_or_says_so() {
        assert!(Ranges::new(PER_POD, ALL, 110).is_ok());
        for (first, count, pods, wrong) in [
            (0, ALL, 1, RangeError::First { first: 0 }),
            (100_000, ALL, 1, RangeError::First { first: 100_000 }),
            (PER_POD, 65537, 1, RangeError::Count { count: 65537 }),
            (PER_POD, 65536 * 10, 11, RangeError::Few { count: 65536 * 10, pods: 11 }),
        ] {
            assert_eq!(Ranges::new(first, count, pods).err(), Some(wrong));
        }
    }

    #[test]
    fn no_range_has_the_id_of_nobody() {
        let mut ranges = Ranges::new(PER_POD, ALL, 1).unwrap();
        let last = u32::MAX - 2 * PER_POD + 1;
        assert_eq!(ranges.record("a", last, PER_POD), Ok(()));
        let beyond = last + PER_POD;
        assert_eq!(ranges.record("b", beyond, PER_POD), Err(RangeError::Foreign { first: beyond, length: PER_POD }));
    }

    #[test]
    fn what_was_recorded_is_checked() {
        let mut ranges = Ranges::new(PER_POD, u64::from(PER_POD) * 4, 4).unwrap();
        assert_eq!(ranges.record("a", PER_POD, PER_POD), Ok(()));
        assert_eq!(ranges.record("a", PER_POD, PER_POD), Ok(()), "once more");
        assert_eq!(ranges.record("b", PER_POD, PER_POD), Err(RangeError::Taken { first: PER_POD }));
        for (first, length) in [(0, PER_POD), (PER_POD + 1, PER_POD), (PER_POD * 2, 1), (PER_POD * 5, PER_POD)] {
            assert_eq!(ranges.record("b", first, length), Err(RangeError::Foreign { first, length }));
        }
    }
}
