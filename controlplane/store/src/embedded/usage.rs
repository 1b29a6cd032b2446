//! How much of each segment is needed. Pure.
//!
//! Only the bytes of records count, not what stands around them, so that a log of tiny records does
//! not look as if it could be cleaned.

use std::collections::BTreeMap;

use super::segment::Place;

/// Bytes of records, per segment and in all.
#[derive(Debug, Default)]
pub struct Usage {
    segments: BTreeMap<u32, Bytes>,
    needed: u64,
    written: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Bytes {
    written: u64,
    needed: u64,
}

impl Usage {
    /// Records of so many bytes were written to a segment.
    pub fn wrote(&mut self, segment: u32, bytes: u64) {
        self.segments.entry(segment).or_default().written += bytes;
        self.written += bytes;
    }

    pub fn need(&mut self, place: Place) {
        if place.exists() {
            self.segments.entry(place.segment).or_default().needed += u64::from(place.length);
            self.needed += u64::from(place.length);
        }
    }

    pub fn release(&mut self, place: Place) {
        if let Some(segment) = self.segments.get_mut(&place.segment).filter(|_| place.exists()) {
            segment.needed -= u64::from(place.length);
            self.needed -= u64::from(place.length);
        }
    }

    /// The segment is gone.
    pub fn remove(&mut self, segment: u32) {
        if let Some(gone) = self.segments.remove(&segment) {
            self.written -= gone.written;
            self.needed -= gone.needed;
        }
    }

    /// Bytes that live, or are history.
    pub fn needed(&self) -> u64 {
        self.needed
    }

    /// Bytes nobody needs, outside of `active`, which cannot be cleaned yet.
    pub fn garbage(&self, active: u32) -> u64 {
        let active = self.segments.get(&active).copied().unwrap_or_default();
        (self.written - active.written).saturating_sub(self.needed - active.needed)
    }

    /// Whether nothing of a segment is needed.
    pub fn is_dead(&self, segment: u32) -> bool {
        self.segments.get(&segment).is_none_or(|bytes| bytes.needed == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_what_nobody_needs_in_sealed_segments() {
        let mut usage = Usage::default();
        let place = |segment| Place { segment, offset: 1, length: 30 };
        usage.wrote(1, 100);
        usage.wrote(2, 100);
        usage.need(place(1));
        usage.need(place(2));
        assert_eq!((usage.needed(), usage.garbage(2), usage.garbage(9)), (60, 70, 140));
        usage.release(place(1));
        assert_eq!((usage.garbage(2), usage.is_dead(1), usage.is_dead(2)), (100, true, false));
        usage.remove(1);
        assert_eq!((usage.needed(), usage.garbage(2)), (30, 0));
    }
}
