//! Brings IPAddresses and the record of node ports in line with the Services there are: what a
//! crash, or a write around the API, left behind. Upstream's repair loops. The decisions are pure.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::Value;

use super::allocator::{ADDRESSES, GROUP, Owner, PORTS, is_managed};
use super::port_map::PortMap;
use super::service::held;
use crate::admit::Cluster;
use crate::error::Result;
use crate::kinds::value::{name, text};

/// An address younger than this may be one whose Service is just being written.
const YOUNG: SignedDuration = SignedDuration::from_secs(60);
/// A port that no Service has is freed when it was seen so for this many rounds.
const LEAK_ROUNDS: u8 = 3;

/// How often in a row each port was seen taken by nobody.
#[derive(Debug, Default)]
pub struct Leaks(Mutex<HashMap<u16, u8>>);

pub async fn repair(cluster: &dyn Cluster, range: (u16, u16), leaks: &Leaks) -> Result<()> {
    let services = cluster.list("", "services", "").await?;
    let addresses = cluster.list(GROUP, ADDRESSES, "").await?;
    for (owner, address) in missing(&services, &addresses) {
        match cluster.create(GROUP, ADDRESSES, owner.address_object(address)).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
    }
    for orphan in orphans(&services, &addresses, Timestamp::now()) {
        tracing::info!(address = name(&orphan), "no Service has this address; it is freed");
        match cluster.delete(GROUP, ADDRESSES, &orphan).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    let used: HashSet<u16> = services.iter().flat_map(|service| held(service).ports).collect();
    let mut counted = HashMap::new();
    let mut change = |record: Option<&Value>| {
        let before = PortMap::read(range, record);
        let mut map = before.clone();
        counted = count(&mut map, &used, &leaks.0.lock());
        Ok((record.is_none() || map != before).then(|| map.record()))
    };
    cluster.record(PORTS, &mut change).await?;
    *leaks.0.lock() = counted;
    Ok(())
}

/// Addresses of Services that no IPAddress stands for.
fn missing(services: &[Arc<Value>], addresses: &[Arc<Value>]) -> Vec<(Owner, Ipv4Addr)> {
    let known: HashMap<&str, &Arc<Value>> = addresses.iter().map(|address| (name(address), address)).collect();
    let mut missing = Vec::new();
    for service in services {
        for address in held(service).addresses {
            match known.get(address.to_string().as_str()) {
                None => missing.push((Owner::of(service), address)),
                Some(object) if Owner::of_address(object) != Owner::of(service) => {
                    let (namespace, service) = (text(service, "metadata.namespace"), name(service));
                    tracing::warn!(%address, namespace, service, "two Services have one address; recreate one of them");
                }
                Some(_) => {}
            }
        }
    }
    missing
}

/// The allocator's IPAddresses whose Service is gone, or has another address.
fn orphans(services: &[Arc<Value>], addresses: &[Arc<Value>], now: Timestamp) -> Vec<Arc<Value>> {
    let used: HashSet<(Owner, String)> = services
        .iter()
        .flat_map(|service| held(service).addresses.into_iter().map(|a| (Owner::of(service), a.to_string())))
        .collect();
    let is_old = |address: &Value| {
        let created = text(address, "metadata.creationTimestamp").parse::<Timestamp>();
        created.is_ok_and(|created| now.duration_since(created) > YOUNG)
    };
    let orphans = addresses.iter().filter(|address| is_managed(address) && is_old(address));
    orphans.filter(|address| !used.contains(&(Owner::of_address(address), name(address).to_owned()))).cloned().collect()
}

/// Takes what is used, frees what has leaked long enough; the leaks there still are.
fn count(map: &mut PortMap, used: &HashSet<u16>, before: &HashMap<u16, u8>) -> HashMap<u16, u8> {
    let mut leaks = HashMap::new();
    for port in map.taken().filter(|port| !used.contains(port)).collect::<Vec<_>>() {
        let rounds = before.get(&port).copied().unwrap_or(0) + 1;
        if rounds >= LEAK_ROUNDS {
            map.set(port, false);
        } else {
            leaks.insert(port, rounds);
        }
    }
    used.iter().for_each(|port| map.set(*port, true));
    leaks
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, address: &str) -> Arc<Value> {
        Arc::new(json!({"metadata": {"namespace": "n", "name": name}, "spec": {"clusterIP": address}}))
    }

    fn address(address: &str, service: &str, created: &str) -> Arc<Value> {
        let owner = Owner::of(&json!({"metadata": {"namespace": "n", "name": service}}));
        let mut object = owner.address_object(address.parse().unwrap());
        object["metadata"]["creationTimestamp"] = created.into();
        Arc::new(object)
    }

    #[test]
    fn addresses_follow_the_services() {
        let old = "2026-01-01T00:00:00Z";
        let services = [service("a", "10.0.0.1"), service("b", "10.0.0.2"), service("c", "None")];
        let mut by_hand = (*address("10.0.0.7", "x", old)).clone();
        by_hand["metadata"]["labels"] = json!({});
        let addresses = [
            address("10.0.0.1", "a", old),
            address("10.0.0.3", "gone", old),
            address("10.0.0.4", "new", "2026-01-01T00:04:30Z"),
            address("10.0.0.5", "a", old),
            Arc::new(by_hand),
        ];
        let missing = missing(&services, &addresses);
        assert_eq!(missing, [(Owner::of(&services[1]), Ipv4Addr::new(10, 0, 0, 2))]);
        let orphans = orphans(&services, &addresses, "2026-01-01T00:05:00Z".parse().unwrap());
        assert_eq!(orphans.iter().map(|orphan| name(orphan)).collect::<Vec<_>>(), ["10.0.0.3", "10.0.0.5"]);
    }

    #[test]
    fn leaked_ports_are_freed_after_three_rounds() {
        let mut map = PortMap::read((30000, 30010), None);
        map.take(30001).unwrap();
        let (used, mut leaks) = (HashSet::from([30002]), HashMap::new());
        for round in 1..=4 {
            leaks = count(&mut map, &used, &leaks);
            let want: &[u16] = if round < 3 { &[30001, 30002] } else { &[30002] };
            assert_eq!(map.taken().collect::<Vec<_>>(), want, "round {round}");
        }
    }
}
