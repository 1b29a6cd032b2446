//! Service addresses and node ports, taken for the whole cluster however many servers it has.
//!
//! An address is taken by creating the `IPAddress` of that name, a port by setting its bit in one
//! record (`port_map`): the store lets only one server do either. What a write took is given back
//! when the write fails ([`Hold`]); what a crash leaves behind is found by the repair
//! (`service_repair`). Addresses come from the `ServiceCIDR`s that are ready. The lower band of each
//! is left to people who ask for a certain address, as upstream does (`ServiceIPStaticSubrange`).

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use async_trait::async_trait;
use rand::Rng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use super::port_map::PortMap;
use crate::admit::Cluster;
use crate::error::{ApiError, Result};
use crate::kinds::value::{has, list, name, namespace, text, texts};
use crate::resource::Reservation;

pub const GROUP: &str = "networking.k8s.io";
pub const ADDRESSES: &str = "ipaddresses";
pub const NETWORKS: &str = "servicecidrs";
/// Where upstream keeps the node ports, under `/registry`.
pub const PORTS: &str = "/registry/ranges/servicenodeports";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// Addresses tried blindly before it is looked which are taken.
const BLIND: usize = 8;

/// Ranges that Service addresses and node ports come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRanges {
    /// IPv4 network of cluster addresses, until others are added.
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
    #[error("the provided network does not match the current range")]
    Mismatch,
    #[error("range is full")]
    Full,
}

/// One IPv4 network of Service addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    cidr: String,
    /// First and last address that Services may have: not the network's own, not its broadcast.
    first: u32,
    last: u32,
    /// Addresses before this one are taken last.
    middle: u32,
    mask: u32,
}

impl Network {
    /// None if it is no IPv4 network with room for Services.
    pub fn parse(cidr: &str) -> Option<Self> {
        let (address, length) = cidr.split_once('/')?;
        let address: Ipv4Addr = address.parse().ok()?;
        let length: u32 = length.parse().ok().filter(|length| (1..=30).contains(length))?;
        let mask = u32::MAX << (32 - length);
        let network = u32::from(address) & mask;
        let (first, last) = (network + 1, (network | !mask) - 1);
        // Upstream sizes the band by the whole network.
        let middle = first + static_band(last - first + 3, 16, 256).min(last - first);
        Some(Self { cidr: cidr.to_owned(), first, last, middle, mask })
    }

    pub fn first(&self) -> Ipv4Addr {
        self.first.into()
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask == self.first & self.mask
    }

    /// Every address once: the upper band from a random place on, then the lower one.
    fn candidates(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let round = |from: u32, to: u32| {
            let start = if from < to { rand::rng().random_range(from..to) } else { from };
            (start..to).chain(from..start)
        };
        round(self.middle, self.last + 1).chain(round(self.first, self.middle)).map(Ipv4Addr::from)
    }
}

/// `min(max(16, size / step), most)`, nothing in ranges that small.
pub fn static_band(size: u32, step: u32, most: u32) -> u32 {
    if size < 16 { 0 } else { (size / step).clamp(16, most) }
}

/// Whether new addresses may come from a `ServiceCIDR`.
fn is_ready(network: &Value) -> bool {
    let condition = list(network, "status.conditions").iter().find(|condition| condition["type"] == "Ready");
    !has(network, "metadata.deletionTimestamp") && condition.is_none_or(|condition| condition["status"] == "True")
}

/// The networks that addresses may come from now.
async fn networks(cluster: &dyn Cluster) -> Result<Vec<Network>> {
    let networks = cluster.list(GROUP, NETWORKS, "").await?;
    let cidrs = networks.iter().filter(|network| is_ready(network)).flat_map(|network| texts(network, "spec.cidrs"));
    let mut networks: Vec<Network> = cidrs.filter_map(Network::parse).collect();
    networks.dedup();
    Ok(networks)
}

/// Namespace and name of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    namespace: String,
    name: String,
}

impl Owner {
    pub fn of(service: &Value) -> Self {
        Self { namespace: namespace(service).to_owned(), name: name(service).to_owned() }
    }

    pub fn of_address(address: &Value) -> Self {
        let part = |field: &str| text(address, &format!("spec.parentRef.{field}")).to_owned();
        Self { namespace: part("namespace"), name: part("name") }
    }

    /// The `IPAddress` that says that this Service has `address`.
    pub fn address_object(&self, address: Ipv4Addr) -> Value {
        json!({
            "metadata": {"name": address.to_string(), "labels": {FAMILY: "IPv4", MANAGED_BY: ALLOCATOR}},
            "spec": {"parentRef": {"group": "", "resource": "services", "namespace": self.namespace, "name": self.name}},
        })
    }
}

/// Whether an `IPAddress` is the allocator's: people may make others.
pub fn is_managed(address: &Value) -> bool {
    address["metadata"]["labels"][MANAGED_BY] == ALLOCATOR
}

/// What one write of a Service took, and what it gives up once it is stored.
#[derive(Debug)]
pub struct Hold {
    owner: Owner,
    range: (u16, u16),
    taken: Held,
    pub freed: Held,
}

/// Addresses and ports of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    pub addresses: Vec<Ipv4Addr>,
    pub ports: Vec<u16>,
}

impl Hold {
    /// `range`: of node ports.
    pub fn new(owner: Owner, range: (u16, u16)) -> Self {
        Self { owner, range, taken: Held::default(), freed: Held::default() }
    }

    /// Takes `asked`, or any address. A dry run takes nothing and says what it might have been.
    pub async fn address(
        &mut self,
        cluster: &dyn Cluster,
        asked: Option<Ipv4Addr>,
        dry_run: bool,
    ) -> Result<std::result::Result<Ipv4Addr, AllocationError>> {
        let mut networks = networks(cluster).await?;
        let Some(address) = asked else {
            networks.shuffle(&mut rand::rng());
            return self.any_address(cluster, &networks, dry_run).await;
        };
        let Some(network) = networks.iter().find(|network| network.contains(address)) else {
            return Ok(Err(AllocationError::Mismatch));
        };
        if !(network.first..=network.last).contains(&u32::from(address)) {
            return Ok(Err(AllocationError::OutOfRange(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                network.cidr
            ))));
        }
        Ok(if dry_run || self.create(cluster, address).await? {
            Ok(address)
        } else {
            Err(AllocationError::Taken("IP"))
        })
    }

    async fn any_address(
        &mut self,
        cluster: &dyn Cluster,
        networks: &[Network],
        dry_run: bool,
    ) -> Result<std::result::Result<Ipv4Addr, AllocationError>> {
        let mut known: Option<HashSet<String>> = None;
        let candidates: Vec<_> = networks.iter().map(Network::candidates).collect();
        for (tried, address) in candidates.into_iter().flatten().enumerate() {
            if tried == BLIND {
                let taken = cluster.list(GROUP, ADDRESSES, "").await?;
                known = Some(taken.iter().map(|address| name(address).to_owned()).collect());
            }
            if known.as_ref().is_some_and(|known| known.contains(&address.to_string())) {
                continue;
            }
            if dry_run || self.create(cluster, address).await? {
                return Ok(Ok(address));
            }
        }
        Ok(Err(AllocationError::Full))
    }

    /// False when somebody has it.
    async fn create(&mut self, cluster: &dyn Cluster, address: Ipv4Addr) -> Result<bool> {
        match cluster.create(GROUP, ADDRESSES, self.owner.address_object(address)).await {
            Ok(_) => {
                self.taken.addresses.push(address);
                Ok(true)
            }
            Err(error) if error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets `assign` take ports. It gets what is free and says which it took, or what is wrong with
    /// the wishes; it may be called again when another server was faster.
    pub async fn ports<E: Send>(
        &mut self,
        cluster: &dyn Cluster,
        dry_run: bool,
        mut assign: impl FnMut(&mut PortMap) -> std::result::Result<Vec<u16>, E> + Send,
    ) -> Result<std::result::Result<(), E>> {
        let (range, mut outcome) = (self.range, Ok(Vec::new()));
        let mut change = |record: Option<&Value>| {
            let mut map = PortMap::read(range, record);
            outcome = assign(&mut map);
            Ok(outcome.as_ref().is_ok_and(|taken| !taken.is_empty() && !dry_run).then(|| map.record()))
        };
        cluster.record(PORTS, &mut change).await?;
        Ok(outcome.map(|taken| {
            if !dry_run {
                self.taken.ports = taken;
            }
        }))
    }
}

#[async_trait]
impl Reservation for Hold {
    async fn commit(self: Box<Self>, cluster: &dyn Cluster) {
        give_back(cluster, &self.owner, self.range, &self.freed).await;
    }

    async fn release(self: Box<Self>, cluster: &dyn Cluster) {
        give_back(cluster, &self.owner, self.range, &self.taken).await;
    }
}

/// Frees what a Service no longer has. What cannot be freed now is left to the repair.
pub async fn give_back(cluster: &dyn Cluster, owner: &Owner, range: (u16, u16), held: &Held) {
    for address in &held.addresses {
        if let Err(error) = free_address(cluster, owner, *address).await {
            tracing::warn!(%address, %error, "a Service's address is not freed; the next repair does it");
        }
    }
    if held.ports.is_empty() {
        return;
    }
    let mut change = |record: Option<&Value>| {
        let mut map = PortMap::read(range, record);
        held.ports.iter().for_each(|port| map.set(*port, false));
        Ok(Some(map.record()))
    };
    if let Err(error) = cluster.record(PORTS, &mut change).await {
        tracing::warn!(ports = ?held.ports, %error, "a Service's ports are not freed; the next repair does it");
    }
}

async fn free_address(cluster: &dyn Cluster, owner: &Owner, address: Ipv4Addr) -> Result<()> {
    let object: Option<Arc<Value>> = cluster.get_live(GROUP, ADDRESSES, "", &address.to_string()).await?;
    // Another Service's by now, or a person's.
    let Some(object) = object.filter(|object| is_managed(object) && Owner::of_address(object) == *owner) else {
        return Ok(());
    };
    match cluster.delete(GROUP, ADDRESSES, &object).await {
        Err(error) if error.is_not_found() || ApiError::is_conflict(&error) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;

    fn cluster(cidr: &str) -> Fixed {
        Fixed::with(&[(GROUP, NETWORKS, json!({"metadata": {"name": "n"}, "spec": {"cidrs": [cidr]}}))])
    }

    fn hold(name: &str) -> Hold {
        Hold::new(Owner { namespace: "default".into(), name: name.into() }, (30000, 30002))
    }

    #[tokio::test]
    async fn no_address_twice_whoever_asks() {
        let cluster = cluster("10.0.0.0/28");
        let mut got = HashSet::new();
        for n in 0..14 {
            // Each from another server's point of view.
            got.insert(hold(&n.to_string()).address(&cluster, None, false).await.unwrap().unwrap());
        }
        assert_eq!(got.len(), 14);
        assert!(!got.contains(&Ipv4Addr::new(10, 0, 0, 0)) && !got.contains(&Ipv4Addr::new(10, 0, 0, 15)));
        assert_eq!(hold("x").address(&cluster, None, false).await.unwrap(), Err(AllocationError::Full));
        let third = Ipv4Addr::new(10, 0, 0, 3);
        for (asked, error) in [
            (third, "provided IP is already allocated"),
            (Ipv4Addr::new(10, 9, 0, 1), "the provided network does not match the current range"),
            (
                Ipv4Addr::new(10, 0, 0, 15),
                "the provided IP (10.0.0.15) is not in the valid range. The range of valid IPs is 10.0.0.0/28",
            ),
        ] {
            let refused = hold("x").address(&cluster, Some(asked), false).await.unwrap().unwrap_err();
            assert_eq!(refused.to_string(), error);
        }
    }

    #[tokio::test]
    async fn what_a_failed_write_took_is_free_again() {
        let cluster = cluster("10.0.0.0/24");
        let mut first = hold("a");
        let address = first.address(&cluster, None, false).await.unwrap().unwrap();
        first.ports(&cluster, false, |map| map.take(30001).map(|()| vec![30001])).await.unwrap().unwrap();
        let taken = |map: &mut PortMap| map.take(30001).map(|()| vec![30001]);
        assert_eq!(hold("b").ports(&cluster, false, taken).await.unwrap(), Err(AllocationError::Taken("port")));
        // Another Service cannot free it.
        let held = Held { addresses: vec![address], ports: vec![] };
        give_back(&cluster, &Owner { namespace: "default".into(), name: "b".into() }, (0, 1), &held).await;
        assert!(hold("b").address(&cluster, Some(address), false).await.unwrap().is_err());
        Box::new(first).release(&cluster).await;
        assert_eq!(hold("b").ports(&cluster, true, taken).await.unwrap(), Ok(()), "a dry run takes nothing");
        assert_eq!(hold("b").ports(&cluster, false, taken).await.unwrap(), Ok(()));
        assert_eq!(hold("b").address(&cluster, Some(address), true).await.unwrap(), Ok(address));
        assert_eq!(hold("b").address(&cluster, Some(address), false).await.unwrap(), Ok(address));
    }

    #[test]
    fn networks_that_are_ready() {
        for (object, ready) in [
            (json!({}), true),
            (json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}), true),
            (json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}), false),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), false),
        ] {
            assert_eq!(is_ready(&object), ready, "{object}");
        }
        let network = Network::parse("10.43.0.0/16").unwrap();
        assert_eq!(network.first(), Ipv4Addr::new(10, 43, 0, 1));
        assert!(network.candidates().take(200).all(|address| address > Ipv4Addr::new(10, 43, 1, 0)));
        assert_eq!(network.candidates().count(), 65_534);
        assert!(["fd00::/64", "10.0.0.0/31", "x", ""].iter().all(|bad| Network::parse(bad).is_none()));
    }
}
