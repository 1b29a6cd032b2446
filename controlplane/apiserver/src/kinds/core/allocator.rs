//! Service addresses and node ports: who holds which.
//!
//! In memory, rebuilt from the stored Services at start and brought up to date with them while
//! Services are written ([`Allocator::sync`]: other servers on the same store write some). A value is taken before the write of its
//! Service and given back when the write fails ([`Hold`] dropped) or the Service goes, so that
//! concurrent creates never get the same one. The lower band of each range is left to people who
//! ask for a certain value, as upstream does (`ServiceIPStaticSubrange`,
//! `ServiceNodePortStaticSubrange`): it is used only when the upper band is full.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::Rng;

/// Ranges that Service addresses and node ports come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRanges {
    /// IPv4 network of cluster addresses.
    pub cidr: String,
    /// First and last node port.
    pub node_ports: (u16, u16),
}

impl Default for ServiceRanges {
    fn default() -> Self {
        Self { cidr: api::defaults::SERVICE_CIDR.to_owned(), node_ports: (30000, 32767) }
    }
}

/// Why a value cannot be had; the texts are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    #[error("provided {0} is already allocated")]
    Taken(&'static str),
    #[error("{0}")]
    OutOfRange(String),
    #[error("range is full")]
    Full,
}

/// How long what the stored Services say is trusted.
const FRESH: Duration = Duration::from_secs(1);
/// Longer than any write takes: what is held longer and not stored has gone.
const IN_FLIGHT: Duration = Duration::from_secs(120);

/// Who holds a value, since when this server knows it, and whether it was seen stored.
#[derive(Debug)]
struct Holder {
    owner: String,
    since: Instant,
    stored: bool,
}

/// What one stored Service holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub owner: String,
    pub addresses: Vec<Ipv4Addr>,
    pub ports: Vec<u16>,
}

/// One range of numbers and who holds which of them, by the owner's UID.
#[derive(Debug)]
struct Range {
    first: u32,
    last: u32,
    /// Values before this one are taken last.
    band: u32,
    held: HashMap<u32, Holder>,
    /// Given back here a moment ago; a cache that is behind may still show them as held.
    released: HashMap<(u32, String), Instant>,
}

impl Range {
    fn new(first: u32, last: u32, band: u32) -> Self {
        Self { first, last, band: band.min(last - first), held: HashMap::new(), released: HashMap::new() }
    }

    fn contains(&self, value: u32) -> bool {
        (self.first..=self.last).contains(&value)
    }

    /// Whether `value` was free or already `owner`'s; new for it when free.
    fn take(&mut self, value: u32, owner: &str) -> Option<bool> {
        match self.held.get(&value) {
            Some(holder) if holder.owner == owner => Some(false),
            Some(_) => None,
            None => {
                self.released.remove(&(value, owner.to_owned()));
                self.hold(value, owner, false);
                Some(true)
            }
        }
    }

    fn take_any(&mut self, owner: &str) -> Option<u32> {
        let (middle, end) = (self.first + self.band, self.last + 1);
        let value = self.free_in(middle, end).or_else(|| self.free_in(self.first, middle))?;
        self.hold(value, owner, false);
        Some(value)
    }

    fn hold(&mut self, value: u32, owner: &str, stored: bool) {
        self.held.insert(value, Holder { owner: owner.to_owned(), since: Instant::now(), stored });
    }

    /// Makes the range what is stored, but for what writes under way have just taken or given back.
    fn sync(&mut self, stored: &HashMap<u32, &str>, now: Instant) {
        self.released.retain(|_, at| now.duration_since(*at) < IN_FLIGHT);
        self.held.retain(|value, holder| {
            stored.contains_key(value) || !holder.stored && now.duration_since(holder.since) < IN_FLIGHT
        });
        for (value, owner) in stored {
            match self.held.get_mut(value) {
                Some(holder) if holder.owner == *owner => holder.stored = true,
                _ if self.released.contains_key(&(*value, (*owner).to_owned())) => {}
                _ => self.hold(*value, owner, true),
            }
        }
    }

    /// A free value of `[from, to)`, searched from a random place on.
    fn free_in(&self, from: u32, to: u32) -> Option<u32> {
        if from >= to {
            return None;
        }
        let start = rand::rng().random_range(from..to);
        (start..to).chain(from..start).find(|value| !self.held.contains_key(value))
    }

    fn release(&mut self, value: u32, owner: &str) {
        if self.held.get(&value).is_some_and(|holder| holder.owner == owner) {
            self.held.remove(&value);
            self.released.insert((value, owner.to_owned()), Instant::now());
        }
    }
}

/// The allocator of one server, shared by the Service hooks and the holds under way.
#[derive(Debug)]
pub struct Allocator {
    ranges: ServiceRanges,
    addresses: Mutex<Range>,
    ports: Mutex<Range>,
    synced: Mutex<Option<Instant>>,
}

/// What one write took, and what it gives up once it is stored.
#[derive(Debug)]
pub struct Hold {
    allocator: Arc<Allocator>,
    owner: String,
    taken_addresses: Vec<u32>,
    taken_ports: Vec<u32>,
    freed_addresses: Vec<u32>,
    freed_ports: Vec<u32>,
}

impl Allocator {
    /// `ranges.cidr` must be an IPv4 network of at most 20 host bits' worth of use; anything
    /// unparsable falls back to the default network.
    pub fn new(ranges: ServiceRanges) -> Arc<Self> {
        let (first, last) = usable(&ranges.cidr).or_else(|| usable(api::defaults::SERVICE_CIDR)).unwrap_or((1, 2));
        let size = last - first + 1;
        let ports = (u32::from(ranges.node_ports.0), u32::from(ranges.node_ports.1.max(ranges.node_ports.0)));
        let port_count = ports.1 - ports.0 + 1;
        Arc::new(Self {
            addresses: Mutex::new(Range::new(first, last, static_band(size, 16, 256))),
            ports: Mutex::new(Range::new(ports.0, ports.1, static_band(port_count, 32, 128))),
            ranges,
            synced: Mutex::new(None),
        })
    }

    pub fn hold(self: &Arc<Self>, owner: &str) -> Hold {
        Hold {
            allocator: Arc::clone(self),
            owner: owner.to_owned(),
            taken_addresses: Vec::new(),
            taken_ports: Vec::new(),
            freed_addresses: Vec::new(),
            freed_ports: Vec::new(),
        }
    }

    /// Whether it is time to look at the stored Services again.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.synced.lock().is_none_or(|synced| now.duration_since(synced) >= FRESH)
    }

    /// Brings the allocator up to date with the stored Services.
    pub fn sync(&self, stored: &[Holding], now: Instant) {
        let addresses = stored
            .iter()
            .flat_map(|held| held.addresses.iter().map(|address| (u32::from(*address), held.owner.as_str())));
        let ports =
            stored.iter().flat_map(|held| held.ports.iter().map(|port| (u32::from(*port), held.owner.as_str())));
        self.addresses.lock().sync(&addresses.collect(), now);
        self.ports.lock().sync(&ports.collect(), now);
        *self.synced.lock() = Some(now);
    }

    pub fn release(&self, owner: &str, addresses: &[Ipv4Addr], ports: &[u16]) {
        let (mut held_addresses, mut held_ports) = (self.addresses.lock(), self.ports.lock());
        for address in addresses {
            held_addresses.release(u32::from(*address), owner);
        }
        for port in ports {
            held_ports.release(u32::from(*port), owner);
        }
    }
}

impl Hold {
    pub fn any_address(&mut self) -> Result<Ipv4Addr, AllocationError> {
        let value = self.allocator.addresses.lock().take_any(&self.owner).ok_or(AllocationError::Full)?;
        self.taken_addresses.push(value);
        Ok(Ipv4Addr::from(value))
    }

    pub fn address(&mut self, address: Ipv4Addr) -> Result<(), AllocationError> {
        let value = u32::from(address);
        let mut range = self.allocator.addresses.lock();
        if !range.contains(value) {
            return Err(AllocationError::OutOfRange(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                self.allocator.ranges.cidr
            )));
        }
        if range.take(value, &self.owner).ok_or(AllocationError::Taken("IP"))? {
            self.taken_addresses.push(value);
        }
        Ok(())
    }

    pub fn any_port(&mut self) -> Result<u16, AllocationError> {
        let value = self.allocator.ports.lock().take_any(&self.owner).ok_or(AllocationError::Full)?;
        self.taken_ports.push(value);
        u16::try_from(value).map_err(|_| AllocationError::Full)
    }

    pub fn port(&mut self, port: u16) -> Result<(), AllocationError> {
        let value = u32::from(port);
        let mut range = self.allocator.ports.lock();
        if !range.contains(value) {
            let (first, last) = self.allocator.ranges.node_ports;
            return Err(AllocationError::OutOfRange(format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            )));
        }
        if range.take(value, &self.owner).ok_or(AllocationError::Taken("port"))? {
            self.taken_ports.push(value);
        }
        Ok(())
    }

    /// Given back once the write is stored.
    pub fn free_later(&mut self, addresses: &[Ipv4Addr], ports: &[u16]) {
        self.freed_addresses.extend(addresses.iter().map(|address| u32::from(*address)));
        self.freed_ports.extend(ports.iter().map(|port| u32::from(*port)));
    }
}

impl crate::resource::Reservation for Hold {
    fn commit(mut self: Box<Self>) {
        self.taken_addresses = std::mem::take(&mut self.freed_addresses);
        self.taken_ports = std::mem::take(&mut self.freed_ports);
        // Dropping gives back what is now listed: what the stored object no longer has.
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut addresses = self.allocator.addresses.lock();
        for value in &self.taken_addresses {
            addresses.release(*value, &self.owner);
        }
        drop(addresses);
        let mut ports = self.allocator.ports.lock();
        for value in &self.taken_ports {
            ports.release(*value, &self.owner);
        }
    }
}

/// First and last address that Services may have: not the network's own, not its broadcast.
fn usable(cidr: &str) -> Option<(u32, u32)> {
    let (address, length) = cidr.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let length: u32 = length.parse().ok().filter(|length| (1..=30).contains(length))?;
    let mask = u32::MAX << (32 - length);
    let network = u32::from(address) & mask;
    Some((network + 1, (network | !mask) - 1))
}

/// `min(max(16, size / step), most)`, nothing in ranges that small.
fn static_band(size: u32, step: u32, most: u32) -> u32 {
    if size < 16 { 0 } else { (size / step).clamp(16, most) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Reservation;
    use std::collections::HashSet;

    fn small() -> Arc<Allocator> {
        Allocator::new(ServiceRanges { cidr: "10.0.0.0/29".into(), node_ports: (30000, 30002) })
    }

    #[test]
    fn nothing_twice_and_full() {
        let allocator = small();
        let mut hold = allocator.hold("a");
        let got: HashSet<Ipv4Addr> = (0..6).map(|_| hold.any_address().unwrap()).collect();
        assert_eq!(got.len(), 6);
        assert!(!got.contains(&Ipv4Addr::new(10, 0, 0, 0)) && !got.contains(&Ipv4Addr::new(10, 0, 0, 7)));
        assert_eq!(hold.any_address(), Err(AllocationError::Full));
        assert_eq!(allocator.hold("b").address(Ipv4Addr::new(10, 0, 0, 3)), Err(AllocationError::Taken("IP")));
        drop(hold);
        assert_eq!(allocator.hold("b").address(Ipv4Addr::new(10, 0, 0, 3)), Ok(()));
    }

    #[test]
    fn committed_holds_stay() {
        let allocator = small();
        let mut hold = Box::new(allocator.hold("a"));
        hold.port(30001).unwrap();
        hold.commit();
        assert_eq!(allocator.hold("b").port(30001), Err(AllocationError::Taken("port")));
        let mut update = Box::new(allocator.hold("a"));
        update.port(30001).unwrap();
        update.free_later(&[], &[30001]);
        update.commit();
        assert_eq!(allocator.hold("b").port(30001), Ok(()));
        let held = Holding { owner: "c".into(), addresses: vec![], ports: vec![30002] };
        allocator.sync(&[held], Instant::now());
        allocator.release("other", &[], &[30002]);
        assert_eq!(allocator.hold("b").port(30002), Err(AllocationError::Taken("port")));
        allocator.release("c", &[], &[30002]);
        assert_eq!(allocator.hold("b").port(30002), Ok(()));
    }

    #[test]
    fn other_servers_write_too() {
        let allocator = small();
        let (now, later) = (Instant::now(), Instant::now() + IN_FLIGHT + FRESH);
        assert!(allocator.is_stale(now));
        let mut hold = Box::new(allocator.hold("a"));
        hold.port(30000).unwrap();
        hold.commit();
        // Not seen yet, but too young to be gone; what others stored is taken.
        let theirs = Holding { owner: "b".into(), addresses: vec![Ipv4Addr::new(10, 0, 0, 2)], ports: vec![30001] };
        allocator.sync(std::slice::from_ref(&theirs), now);
        assert!(!allocator.is_stale(now) && allocator.is_stale(now + FRESH));
        assert_eq!(allocator.hold("c").port(30000), Err(AllocationError::Taken("port")));
        assert_eq!(allocator.hold("c").port(30001), Err(AllocationError::Taken("port")));
        // Given back here; a cache that is behind does not take it again.
        allocator.release("b", &theirs.addresses, &theirs.ports);
        allocator.sync(&[theirs], now);
        assert_eq!(allocator.hold("c").port(30001), Ok(()));
        // Deleted through another server.
        allocator.sync(&[], later);
        assert_eq!(allocator.hold("c").port(30000), Ok(()));
        assert_eq!(allocator.hold("c").address(Ipv4Addr::new(10, 0, 0, 2)), Ok(()));
    }

    #[test]
    fn ranges() {
        let allocator = Allocator::new(ServiceRanges::default());
        let mut hold = allocator.hold("a");
        for _ in 0..200 {
            let address = hold.any_address().unwrap();
            assert!(u32::from(address) > u32::from(Ipv4Addr::new(10, 43, 1, 0)), "{address} is in the static band");
        }
        assert_eq!(
            hold.address(Ipv4Addr::new(10, 9, 0, 1)).unwrap_err().to_string(),
            "the provided IP (10.9.0.1) is not in the valid range. The range of valid IPs is 10.43.0.0/16"
        );
        assert_eq!(
            hold.port(80).unwrap_err().to_string(),
            "provided port is not in the valid range. The range of valid ports is 30000-32767"
        );
    }
}
