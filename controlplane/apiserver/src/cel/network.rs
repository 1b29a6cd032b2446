//! Addresses, networks and URLs as values of expressions.

use std::net::IpAddr;

use cel::Value;
use cel::extractors::This;
use cel::objects::Opaque;

use super::library::{Outcome, failed, known, opaque, opaque_type};
use super::{list, map};

/// `net.IP`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ip(pub(super) IpAddr);
opaque_type!(Ip, "net.IP");

/// Zones and IPv4 in IPv6 are refused, as upstream does.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        ip => Some(ip),
    }
}

/// `ip(text)`, or the address of a network: `cidr.ip()`.
pub(super) fn ip(This(this): This<Value>) -> Outcome<Value> {
    match &this {
        Value::String(text) => {
            parse_ip(text).map(|ip| opaque(Ip(ip))).ok_or_else(|| failed("ip", "IP Address parse error"))
        }
        other => Ok(opaque(Ip(known::<Cidr>(other)?.ip))),
    }
}

pub(super) fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

pub(super) fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

/// `net.CIDR`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cidr {
    pub(super) ip: IpAddr,
    pub(super) length: u8,
}
opaque_type!(Cidr, "net.CIDR");

impl Cidr {
    pub(super) fn parse(text: &str) -> Option<Cidr> {
        let (ip, length) = text.split_once('/')?;
        let ip = parse_ip(ip)?;
        let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
        let length: u8 = Some(length).filter(|l| digits && (*l == "0" || !l.starts_with('0')))?.parse().ok()?;
        (length <= if ip.is_ipv4() { 32 } else { 128 }).then_some(Cidr { ip, length })
    }

    fn mask(&self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length.min(32))).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
        }
    }

    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.ip.is_ipv4() && self.mask(ip) == self.mask(self.ip)
    }

    pub(super) fn masked(&self) -> Cidr {
        Cidr { ip: self.mask(self.ip), length: self.length }
    }
}

/// `kubernetes.URL`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: String,
    pub(super) host: String,
    pub(super) path: String,
    query: String,
}
opaque_type!(Url, "kubernetes.URL");

impl Url {
    /// An absolute URI or an absolute path, as Go's `url.ParseRequestURI` takes them.
    pub(super) fn parse(text: &str) -> Option<Url> {
        if text.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return None;
        }
        let colon = text.find(':').filter(|at| {
            let scheme = &text[..*at];
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        });
        let (scheme, rest) = match colon {
            Some(at) => (text[..at].to_lowercase(), &text[at + 1..]),
            None if text.starts_with('/') => (String::new(), text),
            None => return None,
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
            None => ("", rest),
        };
        let host = authority.rsplit('@').next().unwrap_or_default();
        let url = Url { scheme, host: host.to_owned(), path: path.to_owned(), query: query.to_owned() };
        let port = url.split_port().1;
        port.bytes().all(|b| b.is_ascii_digit()).then_some(url)
    }

    pub(super) fn split_port(&self) -> (&str, &str) {
        match self.host.rfind(':') {
            Some(at) if !self.host[at..].contains(']') => (&self.host[..at], &self.host[at + 1..]),
            _ => (&self.host, ""),
        }
    }

    pub(super) fn query_map(&self) -> Value {
        let mut values: std::collections::BTreeMap<String, Vec<Value>> = std::collections::BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(decoded(name)).or_default().push(decoded(value).into());
        }
        map(values.into_iter().map(|(name, values)| (name, list(values.into_iter()))))
    }
}

/// Percent-decoding, with `+` for a space.
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let hex = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut ahead = rest.clone();
                match (hex(ahead.next()), hex(ahead.next())) {
                    (Some(high), Some(low)) => {
                        bytes.push((high * 16 + low) as u8);
                        rest = ahead;
                    }
                    _ => bytes.push(byte),
                }
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
