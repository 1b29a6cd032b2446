//! ServiceCIDRs: says that they are ready, and keeps those that are being deleted while an address
//! of a Service would be left in no network (finalizer `networking.k8s.io/service-cidr-finalizer`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use component::{Outcome, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::context::{Context, Controller, at, synced};
use crate::error::{During, Result};
use crate::meta;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// Every server has seen by then that no address may come from it any longer.
const GRACE: Duration = Duration::from_secs(10);
const READY: &str = "Kubernetes Service CIDR is ready";
const BLOCKED: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// A network of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    length: u32,
}

fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (address.into(), 128),
    }
}

impl Network {
    fn parse(cidr: &str) -> Option<Self> {
        let (address, length) = cidr.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let length = length.parse().ok().filter(|length| *length <= bits(address).1)?;
        Some(Self { address, length })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let ((own, width), (other, of)) = (bits(self.address), bits(address));
        width == of && (self.length == 0 || (own ^ other) >> (width - self.length) == 0)
    }

    fn covers(&self, other: &Network) -> bool {
        self.length <= other.length && self.contains(other.address)
    }
}

fn networks(cidr: &ServiceCIDR) -> Vec<Network> {
    let cidrs = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| Network::parse(cidr)).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is in use and must say so, and have the finalizer.
    Serve,
    /// An address would be left over.
    Block,
    WaitUntil(Timestamp),
    /// Nothing keeps it.
    Release,
}

fn step(cidr: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>], now: Timestamp) -> Step {
    let Some(deleted) = cidr.metadata.deletion_timestamp.as_ref().map(|time| time.0) else { return Step::Serve };
    let others: Vec<Network> =
        all.iter().filter(|other| other.name_any() != cidr.name_any()).flat_map(|other| networks(other)).collect();
    let own = networks(cidr);
    let covered = own.iter().all(|network| others.iter().any(|other| other.covers(network)));
    let orphans = |address: &IPAddress| {
        address.labels().get(MANAGED_BY).is_some_and(|by| by == ALLOCATOR)
            && address.name_any().parse().is_ok_and(|address| {
                own.iter().any(|network| network.contains(address))
                    && !others.iter().any(|other| other.contains(address))
            })
    };
    if !covered && addresses.iter().any(|address| orphans(address)) {
        return Step::Block;
    }
    let until = deleted.checked_add(GRACE).unwrap_or(deleted);
    if now < until { Step::WaitUntil(until) } else { Step::Release }
}

pub fn start(context: &Context) {
    let queue = WorkQueue::<String>::new();
    let controller = context.controller("service-cidrs-controller");
    let (cidrs, addresses) = (context.informers.of::<ServiceCIDR>(), context.informers.of::<IPAddress>());
    // What happens to one may release another: there are few.
    let (changed, all) = (queue.clone(), cidrs.clone());
    cidrs.on_change(move |change| {
        changed.add(change.object().name_any());
        all.list().iter().for_each(|other| changed.add(other.name_any()));
    });
    let (changed, all) = (queue.clone(), cidrs.clone());
    addresses.on_change(move |change| {
        if let Ok(address) = change.object().name_any().parse() {
            let holding = |cidr: &ServiceCIDR| networks(cidr).iter().any(|network| network.contains(address));
            all.list()
                .iter()
                .filter(|cidr| meta::is_deleting(&cidr.metadata) && holding(cidr))
                .for_each(|cidr| changed.add(cidr.name_any()));
        }
    });
    let ready = synced!(cidrs, addresses);
    let writer = controller.clone();
    controller.run(&queue, 1, ready, move |name: String| {
        let (cidrs, addresses, writer) = (cidrs.clone(), addresses.clone(), writer.clone());
        async move {
            let Some(cidr) = cidrs.get("", &name) else { return Ok(Outcome::Done) };
            let now = meta::now();
            match step(&cidr, &cidrs.list(), &addresses.list(), now) {
                Step::Serve => {
                    keep(&writer, &cidr).await?;
                    tell(&writer, &cidr, "True", "", READY, now).await?;
                }
                Step::Block => tell(&writer, &cidr, "False", "Terminating", BLOCKED, now).await?,
                Step::WaitUntil(moment) => return Ok(at(moment, now)),
                Step::Release => release(&writer, &cidr).await?,
            }
            Ok(Outcome::Done)
        }
    });
}

async fn patch(writer: &Controller, cidr: &ServiceCIDR, patch: Value) -> Result<()> {
    let name = cidr.name_any();
    let patched = writer.cluster::<ServiceCIDR>().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.unless_gone("patching ServiceCIDR", &name).map(drop)
}

async fn keep(writer: &Controller, cidr: &ServiceCIDR) -> Result<()> {
    if meta::has_finalizer(&cidr.metadata, FINALIZER) {
        return Ok(());
    }
    let finalizers: Vec<&str> = cidr.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
    let version = &cidr.metadata.resource_version;
    patch(writer, cidr, json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}})).await
}

async fn release(writer: &Controller, cidr: &ServiceCIDR) -> Result<()> {
    if !meta::has_finalizer(&cidr.metadata, FINALIZER) {
        return Ok(());
    }
    let finalizers: Vec<&String> = cidr.finalizers().iter().filter(|held| *held != FINALIZER).collect();
    let version = &cidr.metadata.resource_version;
    patch(writer, cidr, json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}})).await
}

/// Writes the condition `Ready`, unless it says the same.
async fn tell(
    writer: &Controller,
    cidr: &ServiceCIDR,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Result<()> {
    let conditions = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if conditions.into_iter().any(|held| held.type_ == "Ready" && held.status == status && held.reason == reason) {
        return Ok(());
    }
    let condition = json!({
        "type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": meta::stamp(now),
    });
    let (name, change) = (cidr.name_any(), Patch::Merge(json!({"status": {"conditions": [condition]}})));
    let told = writer.cluster::<ServiceCIDR>().patch_status(&name, &PatchParams::default(), &change).await;
    told.unless_gone("writing the status of ServiceCIDR", &name).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(name: &str, cidr: &str, deleted: Option<&str>) -> Arc<ServiceCIDR> {
        let object = json!({"metadata": {"name": name, "deletionTimestamp": deleted}, "spec": {"cidrs": [cidr]}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn address(name: &str) -> Arc<IPAddress> {
        let object = json!({"metadata": {"name": name, "labels": {MANAGED_BY: ALLOCATOR}}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_network_stays_while_an_address_needs_it() {
        let deleted = "2026-01-01T00:00:00Z";
        let now: Timestamp = "2026-01-01T00:00:20Z".parse().unwrap();
        let soon: Timestamp = "2026-01-01T00:00:03Z".parse().unwrap();
        let going = cidr("going", "10.0.1.0/24", Some(deleted));
        let others = |cidrs: &[Arc<ServiceCIDR>]| [std::slice::from_ref(&going), cidrs].concat();
        let (inside, outside) = ([address("10.0.1.9")], [address("10.0.2.9"), address("fd00::1")]);
        let until = Step::WaitUntil("2026-01-01T00:00:10Z".parse().unwrap());
        let wide = cidr("wide", "10.0.0.0/16", None);
        let part = cidr("part", "10.0.1.0/28", None);
        for (all, addresses, at, want) in [
            (others(&[]), &inside[..], now, Step::Block),
            (others(&[]), &outside[..], now, Step::Release),
            (others(&[]), &outside[..], soon, until),
            (others(&[wide]), &inside[..], now, Step::Release),
            (others(&[part]), &inside[..], now, Step::Release),
            (others(&[cidr("v6", "fd00::/64", None)]), &inside[..], now, Step::Block),
        ] {
            assert_eq!(step(&going, &all, addresses, at), want);
        }
        assert_eq!(step(&cidr("a", "10.0.0.0/24", None), &[], &[], now), Step::Serve);
    }

    #[test]
    fn networks_contain_and_cover() {
        let network = |cidr| Network::parse(cidr).unwrap();
        assert!(network("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()));
        assert!(!network("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(network("10.0.0.0/8").covers(&network("10.1.0.0/16")));
        assert!(!network("10.1.0.0/16").covers(&network("10.0.0.0/8")));
        assert!(["10.0.0.0/33", "x/8", "10.0.0.0", ""].iter().all(|bad| Network::parse(bad).is_none()));
    }
}
