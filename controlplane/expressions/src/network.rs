//! Addresses, networks and URLs as values of expressions.

use std::net::IpAddr;

use cel::common::value::CowVal;
use cel::extractors::This;
use cel::objects::Opaque;
use cel::{ExecutionError, Value};

use crate::library::{Outcome, failed, known, opaque, opaque_type};
use crate::{list, map};

/// `net.IP`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ip(pub(crate) IpAddr);
opaque_type!(Ip, "net.IP");

/// An address in Go's words; zones and IPv4 in IPv6 are refused.
pub(crate) fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let parsed = parse_address(text)
        .map_err(|why| format!("IP Address {text:?} parse error during conversion from string: {why}"))?;
    let Some(ip) = parsed else { return Err(format!("IP address {text:?} with zone value is not allowed")) };
    plain(ip, text)
}

fn plain(ip: IpAddr, text: &str) -> Result<IpAddr, String> {
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        ip => Ok(ip),
    }
}

/// What Go's `netip.ParseAddr` makes of a text; none inside: an address with a zone.
fn parse_address(text: &str) -> Result<Option<IpAddr>, String> {
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    if let Ok(ip) = address.parse::<IpAddr>()
        && zone.is_none_or(|zone| ip.is_ipv6() && !zone.is_empty())
    {
        return Ok(zone.is_none().then_some(ip));
    }
    let why = match text.find(['.', ':', '%']).map(|at| text.as_bytes()[at]) {
        Some(b'.') => ipv4_problem(text),
        Some(b'%') => "missing IPv6 address".to_owned(),
        _ => "unable to parse IP".to_owned(),
    };
    Err(format!("ParseAddr({text:?}): {why}"))
}

fn ipv4_problem(text: &str) -> String {
    for (index, field) in text.split('.').enumerate() {
        if index == 4 {
            return "IPv4 address too long".to_owned();
        }
        if let Some(at) = field.find(|c: char| !c.is_ascii_digit()) {
            return format!("unexpected character (at {:?})", &field[at..]);
        }
        match field.parse::<u32>() {
            Err(_) if field.is_empty() => return "IPv4 field must have at least one digit".to_owned(),
            Ok(..256) if field.len() > 1 && field.starts_with('0') => {
                return "IPv4 field has octet with leading zero".to_owned();
            }
            Ok(..256) => {}
            _ => return "IPv4 field has value >255".to_owned(),
        }
    }
    "IPv4 address too short".to_owned()
}

/// `string(ip)` and `string(cidr)`.
pub(crate) fn to_string<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Outcome<CowVal<'b, 'v>> {
    let [value] = args.as_slice() else { return Err(ExecutionError::invalid_argument_count(1, args.len())) };
    let value = Value::try_from(value.as_ref())?;
    let text = match known::<Ip>(&value) {
        Ok(ip) => ip.0.to_string(),
        Err(_) => {
            let Cidr { ip, length } = known::<Cidr>(&value)?;
            format!("{ip}/{length}")
        }
    };
    Ok(CowVal::Owned(Value::from(text).try_into()?))
}

/// `ip(text)`, or the address of a network: `cidr.ip()`.
pub(crate) fn ip(This(this): This<Value>) -> Outcome<Value> {
    match &this {
        Value::String(text) => parse_ip(text).map(|ip| opaque(Ip(ip))).map_err(|why| failed("ip", why)),
        other => Ok(opaque(Ip(known::<Cidr>(other)?.ip))),
    }
}

pub(crate) fn link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

pub(crate) fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

/// `net.CIDR`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) ip: IpAddr,
    pub(crate) length: u8,
}
opaque_type!(Cidr, "net.CIDR");

impl Cidr {
    pub(crate) fn parse(text: &str) -> Result<Cidr, String> {
        let parsed = Self::prefix(text).map_err(|why| {
            format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}")
        })?;
        plain(parsed.ip, text)?;
        Ok(parsed)
    }

    /// As Go's `netip.ParsePrefix` reads it.
    fn prefix(text: &str) -> Result<Cidr, String> {
        let (address, bits) = text.rsplit_once('/').ok_or("no '/'")?;
        let ip = parse_address(address)?.ok_or("IPv6 zones cannot be present in a prefix")?;
        let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
        let length: u32 = Some(bits)
            .filter(|bits| digits && (*bits == "0" || !bits.starts_with('0')))
            .and_then(|bits| bits.parse().ok())
            .ok_or_else(|| format!("bad bits after slash: {bits:?}"))?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let length = u8::try_from(length).ok().filter(|length| *length <= most).ok_or("prefix length out of range")?;
        Ok(Cidr { ip, length })
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

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.ip.is_ipv4() && self.mask(ip) == self.mask(self.ip)
    }

    pub(crate) fn masked(&self) -> Cidr {
        Cidr { ip: self.mask(self.ip), length: self.length }
    }
}

/// `kubernetes.URL`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) scheme: String,
    pub(crate) host: String,
    pub(crate) path: String,
    query: String,
}
opaque_type!(Url, "kubernetes.URL");

impl Url {
    /// An absolute URI or an absolute path, as Go's `url.ParseRequestURI` takes them.
    pub(crate) fn parse(text: &str) -> Option<Url> {
        if text.bytes().any(|b| b < b' ' || b == 0x7f) {
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
        let (rest, _fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
            None => ("", rest),
        };
        let host = authority.rsplit('@').next().unwrap_or_default();
        let url = Url { scheme, host: host.to_owned(), path: escaped_path(path), query: query.to_owned() };
        let port = url.split_port().1;
        (port.bytes().all(|b| b.is_ascii_digit()) && !authority.contains(' ')).then_some(url)
    }

    pub(crate) fn split_port(&self) -> (&str, &str) {
        match self.host.rfind(':') {
            Some(at) if !self.host[at..].contains(']') => (&self.host[..at], &self.host[at + 1..]),
            _ => (&self.host, ""),
        }
    }

    pub(crate) fn query_map(&self) -> Value {
        let mut values: std::collections::BTreeMap<String, Vec<Value>> = std::collections::BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(decoded(name)).or_default().push(decoded(value).into());
        }
        map(values.into_iter().map(|(name, values)| (name, list(values.into_iter()))))
    }
}

/// A path with what may not be in one percent-encoded.
fn escaped_path(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Percent-decoding, with `+` for a space.
pub(crate) fn decoded(text: &str) -> String {
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
