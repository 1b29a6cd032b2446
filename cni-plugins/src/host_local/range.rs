//! Ranges of addresses and which one comes next.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink::IpNet;
use serde::Deserialize;

/// A range as a configuration writes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RangeSpec {
    pub subnet: Option<String>,
    pub range_start: Option<IpAddr>,
    pub range_end: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
}

/// A valid range; both ends belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub subnet: IpNet,
    pub start: IpAddr,
    pub end: IpAddr,
    pub gateway: Option<IpAddr>,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// `like` only says which family.
fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // The number came from a four-byte address and a range's bounds.
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl Range {
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.start.is_ipv4() && (number(self.start)..=number(self.end)).contains(&number(ip))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || self.contains(other.end) || other.contains(self.start)
    }
}

fn validate(spec: RangeSpec) -> Result<Range, String> {
    let text = spec.subnet.ok_or("range has no subnet")?;
    let subnet: IpNet = text.parse()?;
    if subnet.network() != subnet {
        return Err(format!("network has host bits set: a subnet mask of length {} cannot hold {text}", subnet.prefix));
    }
    if subnet.prefix > subnet.bits() - 2 {
        return Err(format!("network {text} too small to allocate from"));
    }
    let base = number(subnet.address);
    let size = 1u128.checked_shl(u32::from(subnet.bits() - subnet.prefix)).unwrap_or(0);
    let last = base.wrapping_add(size.wrapping_sub(1));
    // The last IPv4 address is the broadcast address.
    let last_usable = if subnet.address.is_ipv4() { last - 1 } else { last };
    let within = |name: &str, ip: IpAddr| {
        if subnet.contains(ip) { Ok(ip) } else { Err(format!("{name} {ip} not in network {text}")) }
    };
    let start = spec.range_start.map_or(Ok(address(base + 1, subnet.address)), |ip| within("RangeStart", ip))?;
    let end = spec.range_end.map_or(Ok(address(last_usable, subnet.address)), |ip| within("RangeEnd", ip))?;
    if number(start) > number(end) {
        return Err(format!("RangeStart {start} is after RangeEnd {end}"));
    }
    let gateway = spec.gateway.or(Some(address(base + 1, subnet.address)));
    Ok(Range { subnet, start, end, gateway })
}

pub fn validate_set(specs: Vec<RangeSpec>) -> Result<Vec<Range>, String> {
    if specs.is_empty() {
        return Err("empty range set".to_owned());
    }
    let ranges = specs.into_iter().map(validate).collect::<Result<Vec<_>, _>>()?;
    if ranges.iter().any(|range| range.start.is_ipv4() != ranges[0].start.is_ipv4()) {
        return Err("mixed address families".to_owned());
    }
    for (at, range) in ranges.iter().enumerate() {
        if let Some(other) = ranges[..at].iter().find(|other| other.overlaps(range)) {
            return Err(format!("subnets {} overlap {}", describe_one(range), describe_one(other)));
        }
    }
    Ok(ranges)
}

pub fn no_overlaps(sets: &[Vec<Range>]) -> Result<(), String> {
    for (at, set) in sets.iter().enumerate() {
        for other in &sets[..at] {
            if set.iter().any(|range| other.iter().any(|before| before.overlaps(range))) {
                return Err(format!("range set {at} overlaps with an earlier one"));
            }
        }
    }
    Ok(())
}

fn describe_one(range: &Range) -> String {
    format!("{}-{}", range.start, range.end)
}

pub fn describe(set: &[Range]) -> String {
    set.iter().map(describe_one).collect::<Vec<_>>().join(",")
}

/// The first free address after `last`, going round once. Gateways are never given out.
pub fn next_free(set: &[Range], last: Option<IpAddr>, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let first = last.and_then(|ip| set.iter().position(|range| range.contains(ip)).map(|at| (at, number(ip))));
    let (start_range, after) = first.map_or((0, None), |(at, ip)| (at, Some(ip)));
    // Round: the rest of the range of `last`, the other ranges, then that range's beginning.
    let rest = std::iter::once((start_range, after.map(|ip| ip + 1), None));
    let others = (1..set.len()).map(|step| ((start_range + step) % set.len(), None, None));
    let beginning = after.map(|ip| (start_range, None, Some(ip)));
    for (at, from, to) in rest.chain(others).chain(beginning) {
        let range = set.get(at)?;
        let from = from.unwrap_or_else(|| number(range.start));
        let to = to.unwrap_or_else(|| number(range.end));
        let mut candidates = (from..=to).map(|each| address(each, range.start));
        if let Some(free) = candidates.find(|ip| Some(*ip) != range.gateway && !taken(*ip)) {
            return Some(free);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(subnets: &[(&str, &str, &str)]) -> Vec<Range> {
        let specs = subnets.iter().map(|(subnet, start, end)| RangeSpec {
            subnet: Some((*subnet).to_owned()),
            range_start: start.parse().ok(),
            range_end: end.parse().ok(),
            gateway: None,
        });
        validate_set(specs.collect()).unwrap()
    }

    #[test]
    fn addresses_go_round_and_skip_the_gateway_and_what_is_taken() {
        let whole = set(&[("10.42.0.0/29", "", "")]);
        let two = set(&[("10.1.0.0/24", "10.1.0.10", "10.1.0.11"), ("10.2.0.0/24", "10.2.0.20", "10.2.0.20")]);
        type Case<'a> = (&'a [Range], &'a str, &'a [&'a str], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            (&whole, "", &[], Some("10.42.0.2")),
            (&whole, "10.42.0.2", &[], Some("10.42.0.3")),
            (&whole, "10.42.0.6", &[], Some("10.42.0.2")),
            (&whole, "10.42.0.3", &["10.42.0.4", "10.42.0.5", "10.42.0.6", "10.42.0.2"], Some("10.42.0.3")),
            (&whole, "", &["10.42.0.2", "10.42.0.3", "10.42.0.4", "10.42.0.5", "10.42.0.6"], None),
            (&whole, "192.168.0.1", &[], Some("10.42.0.2")),
            (&two, "10.1.0.11", &[], Some("10.2.0.20")),
            (&two, "10.2.0.20", &[], Some("10.1.0.10")),
            (&two, "10.1.0.10", &["10.1.0.11", "10.2.0.20"], Some("10.1.0.10")),
        ];
        for (ranges, last, taken, expected) in cases {
            let free = next_free(ranges, last.parse().ok(), |ip| taken.contains(&ip.to_string().as_str()));
            assert_eq!(free.map(|ip| ip.to_string()).as_deref(), *expected, "after {last}, taken {taken:?}");
        }
    }

    #[test]
    fn bad_ranges_are_refused() {
        for (subnet, start, end) in [
            ("10.0.0.1/24", "", ""),
            ("10.0.0.0/31", "", ""),
            ("10.0.0.0/24", "10.0.1.1", ""),
            ("10.0.0.0/24", "10.0.0.9", "10.0.0.8"),
            ("nonsense", "", ""),
        ] {
            let spec = RangeSpec {
                subnet: Some(subnet.to_owned()),
                range_start: start.parse().ok(),
                range_end: end.parse().ok(),
                gateway: None,
            };
            assert!(validate(spec).is_err(), "{subnet} {start} {end}");
        }
        let overlapping = ["10.0.0.0/24", "10.0.0.0/25"]
            .map(|subnet| RangeSpec { subnet: Some(subnet.to_owned()), ..RangeSpec::default() });
        assert!(validate_set(overlapping.into()).is_err());
    }
}
