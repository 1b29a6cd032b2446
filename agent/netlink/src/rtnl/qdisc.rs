//! Queueing disciplines: a token bucket on a link, and the redirection of what a link receives to
//! another one, which is how received traffic is shaped.

use super::Rtnl;
use crate::Result;
use crate::message::{Message, flag, u32_at};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
/// Length of `struct tcmsg`.
const BODY: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const HANDLE_ROOT: u32 = 0xffff_ffff;
const HANDLE_INGRESS: u32 = 0xffff_fff1;
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
const U32_SEL: u16 = 5;
const U32_ACT: u16 = 7;
const MIRRED_PARMS: u16 = 2;
const ACTION_STOLEN: u32 = 4;
const EGRESS_REDIRECT: u32 = 1;
const ETH_P_ALL: u16 = 3;

/// A token bucket filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes.
    pub burst: u32,
    /// Longest time a packet may wait, in milliseconds.
    pub latency: u32,
}

fn body(link: u32, handle: u32, parent: u32, info: u32) -> [u8; BODY] {
    let mut bytes = [0; BODY];
    for (at, value) in [(4, link), (8, handle), (12, parent), (16, info)] {
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// `struct tc_ratespec` (12 bytes): rates above 4 GiB/s are in the 64-bit attribute beside it.
fn rate_spec(rate: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[1] = 1; // link layer: Ethernet
    bytes[8..12].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    bytes
}

/// `struct tc_tbf_qopt`: rate, peak rate, limit, buffer, mtu. Buffer is in scheduler ticks of
/// 64 ns and is overridden by the burst attribute, in bytes.
fn tbf_parameters(bucket: &TokenBucket) -> Vec<u8> {
    let limit = bucket.rate.saturating_mul(bucket.latency.into()) / 1000 + u64::from(bucket.burst);
    let ticks = u64::from(bucket.burst).saturating_mul(1_000_000_000 / 64) / bucket.rate.max(1);
    let mut bytes = Vec::with_capacity(36);
    bytes.extend_from_slice(&rate_spec(bucket.rate));
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend_from_slice(&u32::try_from(limit).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(&u32::try_from(ticks).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes
}

/// `struct tc_netem_qopt`: latency, limit in packets, loss, gap, duplicate, jitter; times in scheduler
/// ticks of 64 ns.
fn netem_parameters(delay: u32, jitter: u32) -> Vec<u8> {
    let ticks = |milliseconds: u32| u32::try_from(u64::from(milliseconds) * 1_000_000 / 64).unwrap_or(u32::MAX);
    [ticks(delay), 10_000, 0, 0, 0, ticks(jitter)].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Rtnl {
    /// Limits what leaves by a link.
    pub fn replace_token_bucket(&mut self, link: u32, bucket: &TokenBucket) -> Result<()> {
        let body = body(link, 1 << 16, HANDLE_ROOT, 0);
        let mut message = Message::new(RTM_NEWQDISC, flag::CREATE | flag::REPLACE, &body);
        message.string(TCA_KIND, "tbf").nested(TCA_OPTIONS, |options| {
            options.attribute(TBF_PARMS, &tbf_parameters(bucket)).u32(TBF_BURST, bucket.burst);
            if bucket.rate > u32::MAX.into() {
                options.attribute(TBF_RATE64, &bucket.rate.to_ne_bytes());
            }
        });
        self.socket.request(&format!("limit the rate of link number {link}"), message).map(drop)
    }

    /// Holds what leaves by a link back, `delay` ± `jitter` milliseconds. Needs the kernel's netem.
    pub fn replace_delay(&mut self, link: u32, delay: u32, jitter: u32) -> Result<()> {
        let mut message =
            Message::new(RTM_NEWQDISC, flag::CREATE | flag::REPLACE, &body(link, 1 << 16, HANDLE_ROOT, 0));
        message.string(TCA_KIND, "netem").attribute(TCA_OPTIONS, &netem_parameters(delay, jitter));
        self.socket.request(&format!("delay what leaves link number {link}"), message).map(drop)
    }

    pub fn delete_root_qdisc(&mut self, link: u32) -> Result<()> {
        let message = Message::new(RTM_DELQDISC, 0, &body(link, 0, HANDLE_ROOT, 0));
        self.socket.request(&format!("remove the rate limit of link number {link}"), message).map(drop)
    }

    /// Sends everything that `link` receives out of `target`.
    pub fn redirect_ingress(&mut self, link: u32, target: u32) -> Result<()> {
        let operation = format!("redirect what link number {link} receives to number {target}");
        let mut qdisc =
            Message::new(RTM_NEWQDISC, flag::CREATE | flag::EXCLUSIVE, &body(link, 0xffff_0000, HANDLE_INGRESS, 0));
        qdisc.string(TCA_KIND, "ingress");
        match self.socket.request(&operation, qdisc) {
            Ok(_) => {}
            Err(error) if error.is_exists() => {}
            Err(error) => return Err(error),
        }
        let info = (1 << 16) | u32::from(ETH_P_ALL.to_be());
        let mut filter =
            Message::new(RTM_NEWTFILTER, flag::CREATE | flag::EXCLUSIVE, &body(link, 0, 0xffff_0000, info));
        filter.string(TCA_KIND, "u32").nested(TCA_OPTIONS, |options| {
            options.attribute(U32_SEL, &match_everything());
            options.nested(U32_ACT, |actions| {
                actions.nested(1, |action| {
                    action.string(1, "mirred").nested(2, |parameters| {
                        parameters.attribute(MIRRED_PARMS, &redirect_parameters(target));
                    });
                });
            });
        });
        self.socket.request(&operation, filter).map(drop)
    }

    /// Kinds of the qdiscs of one link, e.g. `tbf`.
    pub fn qdiscs(&mut self, link: u32) -> Result<Vec<String>> {
        let replies =
            self.socket.dump("list queueing disciplines", Message::new(RTM_GETQDISC, 0, &body(link, 0, 0, 0)))?;
        Ok(replies
            .iter()
            .filter(|reply| reply.payload.len() >= BODY && u32_at(&reply.payload, 4) == link)
            .filter_map(|reply| reply.attributes(BODY).string(TCA_KIND))
            .collect())
    }
}

/// `struct tc_u32_sel` with one key whose mask is zero; terminal.
fn match_everything() -> Vec<u8> {
    let mut bytes = vec![0; 16 + 16];
    bytes[0] = 1; // TC_U32_TERMINAL
    bytes[2] = 1; // one key
    bytes
}

/// `struct tc_mirred`: index, capab, action, refcnt, bindcnt, eaction, ifindex.
fn redirect_parameters(target: u32) -> Vec<u8> {
    [0, 0, ACTION_STOLEN, 0, 0, EGRESS_REDIRECT, target].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}
