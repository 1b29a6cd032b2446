//! `host-local`: addresses from ranges, remembered as files on this host.
//!
//! `range` is the pure part (which addresses a range has, which comes next), `store` the files.

mod range;
mod store;

use std::net::IpAddr;
use std::path::PathBuf;

use netlink::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::Plugin;
use crate::spec::{Call, Dns, Error, Ip, NetworkResult, Result, Route};
use range::{Range, RangeSpec, next_free};
use store::{Owner, Store};

pub const PLUGIN: Plugin = Plugin { add, delete, check, collect, status };

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    #[serde(flatten)]
    single: RangeSpec,
    ranges: Vec<Vec<RangeSpec>>,
    routes: Vec<Route>,
    data_dir: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
}

struct Plan {
    sets: Vec<Vec<Range>>,
    routes: Vec<Route>,
    dns: Dns,
    store_dir: PathBuf,
    requested: Vec<IpAddr>,
}

fn plan(call: &Call) -> Result<Plan> {
    let ipam = call.config.get("ipam").ok_or_else(|| Error::config("IPAM config missing 'ipam' key"))?;
    let config = Config::deserialize(ipam).map_err(|error| Error::decode(format!("ipam cannot be read: {error}")))?;
    let mut specs: Vec<Vec<RangeSpec>> = Vec::new();
    if config.single.subnet.is_some() {
        specs.push(vec![config.single]);
    }
    specs.extend(config.ranges);
    // A runtime that knows the node's ranges passes them as a capability; they come first.
    specs.extend(call.runtime::<Vec<Vec<RangeSpec>>>("ipRanges")?.unwrap_or_default());
    if specs.is_empty() {
        return Err(Error::config("no IP ranges specified; set ipam.ranges or ipam.subnet"));
    }
    let sets = specs
        .into_iter()
        .enumerate()
        .map(|(at, set)| {
            range::validate_set(set).map_err(|error| Error::config(format!("invalid range set {at}: {error}")))
        })
        .collect::<Result<Vec<_>>>()?;
    range::no_overlaps(&sets).map_err(Error::config)?;
    let dns = config.resolv_conf.as_ref().map_or_else(|| Ok(Dns::default()), |path| read_resolv_conf(path))?;
    let directory = config.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
    Ok(Plan { sets, routes: config.routes, dns, store_dir: directory.join(&call.network), requested: requested(call)? })
}

/// Addresses asked for by CNI_ARGS (`IP=`), by `args.cni.ips` or by the `ips` capability.
fn requested(call: &Call) -> Result<Vec<IpAddr>> {
    let mut texts: Vec<String> = Vec::new();
    if let Some(list) = call.args.get("IP") {
        texts.extend(list.split(',').filter(|text| !text.is_empty()).map(str::to_owned));
    }
    if let Some(list) = call.config.pointer("/args/cni/ips").and_then(Value::as_array) {
        texts.extend(list.iter().filter_map(|text| text.as_str().map(str::to_owned)));
    }
    texts.extend(call.runtime::<Vec<String>>("ips")?.unwrap_or_default());
    texts
        .iter()
        .map(|text| {
            let address = text.split('/').next().unwrap_or_default();
            address.parse().map_err(|_| Error::config(format!("requested IP {text:?} is not an address")))
        })
        .collect()
}

fn read_resolv_conf(path: &std::path::Path) -> Result<Dns> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::io(format!("cannot read resolvConf {}: {error}", path.display())))?;
    let mut dns = Dns::default();
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.nameservers.extend(words.next().map(str::to_owned)),
            Some("domain") => words.next().unwrap_or_default().clone_into(&mut dns.domain),
            Some("search") => dns.search.extend(words.map(str::to_owned)),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    Ok(dns)
}

fn owner(call: &Call) -> Owner {
    Owner { id: call.container_id.clone(), ifname: call.ifname.clone() }
}

fn add(call: &Call) -> Result<Value> {
    let plan = plan(call)?;
    let store = Store::open(&plan.store_dir)?;
    let owner = owner(call);
    let mut requested = plan.requested;
    let mut ips: Vec<Ip> = Vec::new();
    // Half an allocation is none. What the container held before stays: it may be running with it.
    let undo = |ips: &[Ip]| ips.iter().try_for_each(|ip| store.free(ip.address.address));
    for (at, set) in plan.sets.iter().enumerate() {
        let wanted = requested.iter().position(|ip| set.iter().any(|range| range.contains(*ip)));
        let wanted = wanted.map(|at| requested.swap_remove(at));
        match allocate(&store, &owner, at, set, wanted) {
            Ok(ip) => ips.push(ip),
            Err(error) => {
                undo(&ips)?;
                return Err(Error::internal(format!("failed to allocate for range {at}: {error}")));
            }
        }
    }
    if !requested.is_empty() {
        undo(&ips)?;
        return Err(Error::internal(format!("failed to allocate all requested IPs: {requested:?}")));
    }
    NetworkResult { ips, routes: plan.routes, dns: plan.dns, ..NetworkResult::default() }.into_json(&call.version)
}

fn allocate(store: &Store, owner: &Owner, at: usize, set: &[Range], wanted: Option<IpAddr>) -> Result<Ip> {
    let held = store.addresses_of(owner)?;
    if let Some(ip) = held.iter().find(|ip| set.iter().any(|range| range.contains(**ip))) {
        return Err(Error::internal(format!(
            "{ip} has been allocated to {}, duplicate allocation is not allowed",
            owner.id
        )));
    }
    let address = match wanted {
        Some(wanted) => {
            let range = set.iter().find(|range| range.contains(wanted));
            if range.is_some_and(|range| range.gateway == Some(wanted)) {
                return Err(Error::internal(format!("requested ip {wanted} is subnet's gateway")));
            }
            if !store.reserve(owner, wanted, at)? {
                return Err(Error::internal(format!(
                    "requested IP address {wanted} is not available in range set {}",
                    range::describe(set)
                )));
            }
            wanted
        }
        None => pick(store, owner, at, set)?,
    };
    // `address` came from one of these ranges.
    let range = set.iter().find(|range| range.contains(address)).unwrap_or(&set[0]);
    Ok(Ip {
        version: String::new(),
        interface: None,
        address: IpNet::new(address, range.subnet.prefix),
        gateway: range.gateway,
    })
}

fn pick(store: &Store, owner: &Owner, at: usize, set: &[Range]) -> Result<IpAddr> {
    let taken = store.taken()?;
    let free = next_free(set, store.last_reserved(at), |ip| taken.contains(&ip));
    let full = || Error::internal(format!("no IP addresses available in range set: {}", range::describe(set)));
    let ip = free.ok_or_else(full)?;
    // The lock is held, so nobody took it between the listing and now.
    if store.reserve(owner, ip, at)? { Ok(ip) } else { Err(full()) }
}

fn delete(call: &Call) -> Result<()> {
    let plan = plan(call)?;
    if !plan.store_dir.exists() {
        return Ok(());
    }
    Store::open(&plan.store_dir)?.release(&owner(call))
}

fn check(call: &Call) -> Result<()> {
    let plan = plan(call)?;
    let held = Store::open(&plan.store_dir)?.addresses_of(&owner(call))?;
    if held.is_empty() {
        return Err(Error::internal(format!(
            "host-local: Failed to find address added by container {}",
            call.container_id
        )));
    }
    Ok(())
}

fn collect(call: &Call) -> Result<()> {
    let plan = plan(call)?;
    if !plan.store_dir.exists() {
        return Ok(());
    }
    let valid = call.valid_attachments()?;
    Store::open(&plan.store_dir)?.retain(|owner| {
        valid
            .iter()
            .any(|each| each.container_id == owner.id && (owner.ifname.is_empty() || each.ifname == owner.ifname))
    })
}

/// Whether an ADD could be served: the ranges are valid and the directory can be written.
fn status(call: &Call) -> Result<()> {
    let unavailable = |error: Error| Error::unavailable(error.message);
    let plan = plan(call).map_err(unavailable)?;
    Store::open(&plan.store_dir).map(drop).map_err(unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    #[test]
    fn a_second_add_leaves_the_address_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let call = |ranges: Value| Call {
            container_id: "c1".to_owned(),
            netns: String::new(),
            ifname: "eth0".to_owned(),
            path: Vec::new(),
            args: Default::default(),
            config: json!({"ipam": {"ranges": ranges, "dataDir": directory.path()}}),
            version: "1.0.0".to_owned(),
            network: "net".to_owned(),
        };
        let one = call(json!([[{"subnet": "10.1.0.0/24"}]]));
        add(&one).unwrap();
        assert!(add(&one).is_err(), "it has one already");
        let more = call(json!([[{"subnet": "fd00::/64"}], [{"subnet": "10.1.0.0/24"}]]));
        assert!(add(&more).is_err());
        let store = Store::open(&directory.path().join("net")).unwrap();
        assert_eq!(store.taken().unwrap(), HashSet::from(["10.1.0.2".parse().unwrap()]));
    }
}
