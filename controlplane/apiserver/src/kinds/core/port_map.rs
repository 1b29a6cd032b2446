//! Which node ports are taken: a bitmap, stored as upstream stores it (`RangeAllocation`), and who
//! gets which. Pure.
//!
//! The lower band of the range is left to people who ask for a certain port, as upstream does
//! (`ServiceNodePortStaticSubrange`): it is used only when the upper band is full.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rand::Rng;
use serde_json::{Value, json};

use super::allocator::AllocationError;

/// Taken ports of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMap {
    first: u16,
    last: u16,
    taken: Vec<bool>,
}

impl PortMap {
    /// What `record` says; nothing is taken when there is none, or when it is of another range
    /// (the repair finds again what Services hold).
    pub fn read((first, last): (u16, u16), record: Option<&Value>) -> Self {
        let last = last.max(first);
        let mut map = Self { first, last, taken: vec![false; usize::from(last - first) + 1] };
        let Some(record) = record.filter(|record| record["range"] == map.range()) else { return map };
        let bytes = BASE64_STANDARD.decode(record["data"].as_str().unwrap_or_default()).unwrap_or_default();
        for (at, taken) in map.taken.iter_mut().enumerate() {
            // One big number, its last byte the lowest.
            let byte = bytes.len().checked_sub(1 + at / 8).map_or(0, |index| bytes[index]);
            *taken = byte >> (at % 8) & 1 == 1;
        }
        map
    }

    pub fn record(&self) -> Value {
        let mut bytes = vec![0u8; self.taken.len().div_ceil(8)];
        let length = bytes.len();
        for (at, _) in self.taken.iter().enumerate().filter(|(_, taken)| **taken) {
            bytes[length - 1 - at / 8] |= 1 << (at % 8);
        }
        let data = BASE64_STANDARD.encode(&bytes);
        json!({"kind": "RangeAllocation", "apiVersion": "v1", "metadata": {}, "range": self.range(), "data": data})
    }

    fn range(&self) -> String {
        format!("{}-{}", self.first, self.last)
    }

    fn index(&self, port: u16) -> Option<usize> {
        (self.first..=self.last).contains(&port).then(|| usize::from(port - self.first))
    }

    /// Ports that are taken, ascending.
    pub fn taken(&self) -> impl Iterator<Item = u16> {
        (self.first..=self.last).zip(&self.taken).filter(|(_, taken)| **taken).map(|(port, _)| port)
    }

    /// Notes `port` as taken or free; nothing if it is of another range.
    pub fn set(&mut self, port: u16, taken: bool) {
        if let Some(index) = self.index(port) {
            self.taken[index] = taken;
        }
    }

    pub fn out_of_range(&self) -> AllocationError {
        AllocationError::OutOfRange(format!(
            "provided port is not in the valid range. The range of valid ports is {}",
            self.range()
        ))
    }

    pub fn take(&mut self, port: u16) -> Result<(), AllocationError> {
        let Some(index) = self.index(port) else { return Err(self.out_of_range()) };
        if std::mem::replace(&mut self.taken[index], true) { Err(AllocationError::Taken("port")) } else { Ok(()) }
    }

    pub fn take_any(&mut self) -> Result<u16, AllocationError> {
        let size = self.taken.len();
        let band = super::allocator::static_band(size as u32, 32, 128) as usize;
        let index = self.free_in(band, size).or_else(|| self.free_in(0, band)).ok_or(AllocationError::Full)?;
        self.taken[index] = true;
        // The range's ports are 16 bits wide.
        Ok(self.first + index as u16)
    }

    /// A free place of `[from, to)`, searched from a random one on.
    fn free_in(&self, from: usize, to: usize) -> Option<usize> {
        if from >= to {
            return None;
        }
        let start = rand::rng().random_range(from..to);
        (start..to).chain(from..start).find(|index| !self.taken[*index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_twice_until_it_is_full() {
        let mut map = PortMap::read((30000, 30002), None);
        let mut got: Vec<u16> = (0..3).map(|_| map.take_any().unwrap()).collect();
        got.sort_unstable();
        assert_eq!(got, [30000, 30001, 30002]);
        assert_eq!(map.take_any(), Err(AllocationError::Full));
        assert_eq!(map.take(30001), Err(AllocationError::Taken("port")));
        map.set(30001, false);
        map.set(80, true);
        assert_eq!(map.take_any(), Ok(30001));
        assert_eq!(
            map.take(80).unwrap_err().to_string(),
            "provided port is not in the valid range. The range of valid ports is 30000-30002"
        );
    }

    #[test]
    fn the_static_band_is_taken_last() {
        let mut map = PortMap::read((30000, 32767), None);
        assert!((0..500).all(|_| map.take_any().unwrap() >= 30086));
    }

    #[test]
    fn records_read_back_as_upstream_writes_them() {
        let mut map = PortMap::read((30000, 32767), None);
        for port in [30000, 30009, 32767] {
            map.take(port).unwrap();
        }
        assert_eq!(PortMap::read((30000, 32767), Some(&map.record())), map);
        // A big-endian number without leading zeros: bits 0 and 9.
        let short = json!({"range": "30000-32767", "data": BASE64_STANDARD.encode([0b10, 1])});
        assert_eq!(PortMap::read((30000, 32767), Some(&short)).taken().collect::<Vec<_>>(), [30000, 30009]);
        assert_eq!(PortMap::read((30000, 30010), Some(&short)).taken().count(), 0, "another range");
    }
}
