//! Sets, maps and verdict maps, and their elements.

use std::net::IpAddr;
use std::time::Duration;

use super::Verdict;

/// The type of one part of a key, as `nft list` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyType {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    /// A number in host order.
    Number,
}

impl KeyType {
    /// nft's own number for the type.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Number => 4,
        }
    }

    pub(crate) const fn width(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Number => 4,
            Self::Ipv6 => 16,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

/// One part of an element's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPart {
    Address(IpAddr),
    Protocol(u8),
    Port(u16),
}

/// The bytes of a key; each part of a concatenation is padded to four bytes.
pub fn key(parts: &[KeyPart]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.len() * 4);
    for part in parts {
        match part {
            KeyPart::Address(IpAddr::V4(address)) => bytes.extend_from_slice(&address.octets()),
            KeyPart::Address(IpAddr::V6(address)) => bytes.extend_from_slice(&address.octets()),
            KeyPart::Protocol(number) => bytes.push(*number),
            KeyPart::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
        }
        if parts.len() > 1 {
            bytes.resize(crate::message::aligned(bytes.len()), 0);
        }
    }
    bytes
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SetKind {
    /// Keys only.
    Set,
    /// Keys only, filled by rules; elements vanish after this long without renewal.
    Dynamic { timeout: Duration },
    /// Keys to verdicts.
    VerdictMap,
}

/// The shape of a set. Two sets of one name with different shapes cannot follow one another
/// without being deleted in between.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SetSpec {
    pub key: Vec<KeyType>,
    pub kind: SetKind,
}

impl SetSpec {
    pub fn new(key: impl Into<Vec<KeyType>>, kind: SetKind) -> Self {
        Self { key: key.into(), kind }
    }

    pub(crate) fn key_type(&self) -> u32 {
        // nft concatenates type numbers, six bits each
        self.key.iter().fold(0, |number, part| number << 6 | part.number())
    }

    pub(crate) fn key_length(&self) -> u32 {
        match self.key.as_slice() {
            [single] => single.width(),
            parts => parts.iter().map(|part| part.width().next_multiple_of(4)).sum(),
        }
    }

    pub(crate) fn flags(&self) -> u32 {
        match self.kind {
            SetKind::Set => 0,
            SetKind::Dynamic { .. } => flag::TIMEOUT | flag::EVAL,
            SetKind::VerdictMap => flag::MAP,
        }
    }
}

pub(crate) mod flag {
    pub const ANONYMOUS: u32 = 0x1;
    pub const CONSTANT: u32 = 0x2;
    pub const MAP: u32 = 0x8;
    pub const TIMEOUT: u32 = 0x10;
    pub const EVAL: u32 = 0x20;
    /// Of these the kernel's answer must agree with ours for a set to be kept.
    pub const SHAPE: u32 = MAP | TIMEOUT | EVAL;
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ElementValue {
    None,
    Verdict(Verdict),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    pub value: ElementValue,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concatenated_keys_are_padded_and_single_ones_are_not() {
        let address = KeyPart::Address("10.43.0.1".parse().unwrap());
        assert_eq!(key(&[address, KeyPart::Protocol(6), KeyPart::Port(443)]), [10, 43, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0]);
        assert_eq!(key(&[KeyPart::Port(443)]), [1, 187]);
        let spec = SetSpec::new([KeyType::Ipv4, KeyType::Protocol, KeyType::Port], SetKind::VerdictMap);
        assert_eq!(spec.key_length(), 12);
        assert_eq!(spec.key_type(), (7 << 6 | 12) << 6 | 13);
    }
}
