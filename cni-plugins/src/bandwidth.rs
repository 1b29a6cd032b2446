//! `bandwidth`: limits the rates of a sandbox with token buckets on the host's end of its veth.
//!
//! What the sandbox receives leaves the host by that veth, so it is limited there. What it sends is
//! redirected to an interface of its own (`skifb...`) and limited where it leaves that one.

use netlink::{Link, LinkKind, Rtnl, TokenBucket};
use serde::Deserialize;
use serde_json::Value;

use crate::Plugin;
use crate::spec::{Call, Error, NetworkResult, Result};

pub const PLUGIN: Plugin = Plugin { add, delete, check, collect: crate::nothing, status: crate::nothing };

/// Longest wait of a packet in a bucket, milliseconds.
const LATENCY: u32 = 25;

/// Rates in bits per second, bursts in bits; zero for no limit.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Limits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

fn limits(call: &Call) -> Result<Limits> {
    let limits: Limits = match call.runtime("bandwidth")? {
        Some(limits) => limits,
        None => call.config()?,
    };
    for (name, rate, burst) in
        [("ingress", limits.ingress_rate, limits.ingress_burst), ("egress", limits.egress_rate, limits.egress_burst)]
    {
        if (rate == 0) != (burst == 0) {
            return Err(Error::config(format!("{name} rate and burst must be set together")));
        }
        if burst / 8 >= u64::from(u32::MAX) {
            return Err(Error::config(format!("{name} burst cannot be more than 4GB")));
        }
    }
    Ok(limits)
}

fn bucket(rate: u64, burst: u64) -> TokenBucket {
    TokenBucket { rate: rate / 8, burst: u32::try_from(burst / 8).unwrap_or(u32::MAX), latency: LATENCY }
}

/// The host's end of the veth: the interface of the result that is not in a sandbox and no bridge.
fn host_end(host: &mut Rtnl, previous: &NetworkResult) -> Result<Link> {
    for interface in previous.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        if let Some(link) = host.find_link(&interface.name)?.filter(|link| link.kind == "veth") {
            return Ok(link);
        }
    }
    Err(Error::internal("no veth of the host in prevResult; bandwidth must come after a plugin that makes one"))
}

/// Name of the interface that limits what the sandbox sends; the same for every call.
fn redirect_name(call: &Call) -> String {
    // FNV-1a over the owner: interface names have 15 characters, container ids 64.
    let hash = call
        .owner()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("skifb{:010x}", hash & 0xff_ffff_ffff)
}

fn add(call: &Call) -> Result<Value> {
    let previous = call.required_previous()?;
    let limits = limits(call)?;
    if limits.ingress_rate > 0 || limits.egress_rate > 0 {
        let mut host = Rtnl::open()?;
        let veth = host_end(&mut host, &previous)?;
        if limits.ingress_rate > 0 {
            host.replace_token_bucket(veth.index, &bucket(limits.ingress_rate, limits.ingress_burst))?;
        }
        if limits.egress_rate > 0 {
            limit_sending(call, &mut host, &veth, &bucket(limits.egress_rate, limits.egress_burst))?;
        }
    }
    previous.into_json(&call.version)
}

fn limit_sending(call: &Call, host: &mut Rtnl, veth: &Link, bucket: &TokenBucket) -> Result<()> {
    let name = redirect_name(call);
    match host.create_link(&name, &LinkKind::Ifb, veth.mtu, None) {
        Err(error) if !error.is_exists() => return Err(error.into()),
        _ => {}
    }
    let redirect = host.link(&name)?;
    host.set_up(redirect.index)?;
    host.replace_token_bucket(redirect.index, bucket)?;
    Ok(host.redirect_ingress(veth.index, redirect.index)?)
}

fn delete(call: &Call) -> Result<()> {
    match Rtnl::open()?.delete_link(&redirect_name(call)) {
        Err(error) if !error.is_missing() => Err(error.into()),
        _ => Ok(()),
    }
}

fn check(call: &Call) -> Result<()> {
    let previous = call.required_previous()?;
    let limits = limits(call)?;
    let mut host = Rtnl::open()?;
    if limits.ingress_rate > 0 {
        let veth = host_end(&mut host, &previous)?;
        if !host.qdiscs(veth.index)?.contains(&"tbf".to_owned()) {
            return Err(Error::internal(format!("no rate limit on {}", veth.name)));
        }
    }
    if limits.egress_rate > 0 {
        host.link(&redirect_name(call))?;
    }
    Ok(())
}
