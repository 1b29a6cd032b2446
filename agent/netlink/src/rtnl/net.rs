//! Hardware addresses and IP prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A 48-bit hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a hardware address; write six hexadecimal pairs joined by colons");
        let mut bytes = [0; 6];
        let mut pairs = text.split([':', '-']);
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| pair.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        if pairs.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

/// An address with a prefix length: `10.42.0.1/24`. Host bits are kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpNet {
    pub address: IpAddr,
    pub prefix: u8,
}

impl IpNet {
    pub const fn new(address: IpAddr, prefix: u8) -> Self {
        Self { address, prefix }
    }

    /// A single address.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    pub const fn bits(&self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The mask's octets, as long as the address.
    pub fn mask(&self) -> Vec<u8> {
        let length = usize::from(self.bits() / 8);
        (0..length)
            .map(|at| {
                let ones = usize::from(self.prefix).saturating_sub(at * 8).min(8);
                (0xff00u16 >> ones) as u8
            })
            .collect()
    }

    /// The same prefix with host bits zero.
    pub fn network(&self) -> Self {
        let masked: Vec<u8> = octets(self.address).iter().zip(self.mask()).map(|(byte, mask)| byte & mask).collect();
        Self { address: address_from(&masked).unwrap_or(self.address), prefix: self.prefix }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let theirs = octets(address);
        let ours = octets(self.network().address);
        theirs.len() == ours.len()
            && theirs.iter().zip(self.mask()).zip(&ours).all(|((byte, mask), ours)| byte & mask == *ours)
    }
}

/// 4 or 16 bytes in network order.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The reverse of [`octets`].
pub(crate) fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(four)));
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| IpAddr::V6(Ipv6Addr::from(sixteen)))
}

pub(crate) const fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for IpNet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a prefix; write it as 10.42.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let prefix = prefix.parse().map_err(|_| bad())?;
        let net = Self { address, prefix };
        if prefix > net.bits() { Err(bad()) } else { Ok(net) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_mask_and_contain() {
        let net: IpNet = "10.42.3.7/20".parse().unwrap();
        assert_eq!(net.network().to_string(), "10.42.0.0/20");
        assert_eq!(net.mask(), [255, 255, 240, 0]);
        assert!(net.contains("10.42.15.255".parse().unwrap()));
        assert!(!net.contains("10.42.16.0".parse().unwrap()));
        assert!(!net.contains("::1".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<IpNet>().is_err());
        assert!("0.0.0.0/0".parse::<IpNet>().unwrap().contains("9.9.9.9".parse().unwrap()));
        let six: IpNet = "fd00:1::5/64".parse().unwrap();
        assert_eq!(six.network().to_string(), "fd00:1::/64");
    }

    #[test]
    fn hardware_addresses_round_trip() {
        let mac: Mac = "0A:58:0a:2a:00:05".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:58:0a:2a:00:05");
        for bad in ["", "0a:58", "0a:58:0a:2a:00:05:06", "zz:58:0a:2a:00:05", "a:58:0a:2a:00:05"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn prefixes_survive_their_text(bits in proptest::prelude::any::<u32>(), prefix in 0u8..=32) {
            let net = IpNet::new(IpAddr::from(bits.to_be_bytes()), prefix);
            proptest::prop_assert_eq!(net.to_string().parse::<IpNet>().unwrap(), net);
            proptest::prop_assert!(net.network().contains(net.address) && net.contains(net.network().address));
        }

        #[test]
        fn odd_text_is_refused_not_fatal(text in ".{0,40}") {
            let _ = (text.parse::<IpNet>(), text.parse::<Mac>());
        }
    }
}
