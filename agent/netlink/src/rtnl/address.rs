//! Addresses of links.

use std::net::IpAddr;

use super::net::{address_from, family, octets};
use super::{IpNet, Rtnl};
use crate::Result;
use crate::message::{Message, Reply, flag, u32_at};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// Length of `struct ifaddrmsg`.
const BODY: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
/// Duplicate address detection would keep an IPv6 address unusable for a second.
const IFA_F_NODAD: u8 = 0x02;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AddressScope {
    #[default]
    Global = 0,
    Link = 253,
    Host = 254,
}

/// One address of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    pub net: IpNet,
    pub scope: AddressScope,
    /// IPv4 only; empty for the link's own name.
    pub label: String,
}

impl Address {
    pub fn new(link: u32, net: IpNet) -> Self {
        Self { link, net, scope: AddressScope::Global, label: String::new() }
    }
}

fn message(kind: u16, flags: u16, address: &Address) -> Message {
    let ip = address.net.address;
    let mut body = [family(ip), address.net.prefix, 0, address.scope as u8, 0, 0, 0, 0];
    if ip.is_ipv6() {
        body[2] = IFA_F_NODAD;
    }
    body[4..8].copy_from_slice(&address.link.to_ne_bytes());
    let mut message = Message::new(kind, flags, &body);
    message.attribute(IFA_LOCAL, &octets(ip)).attribute(IFA_ADDRESS, &octets(ip));
    if let (IpAddr::V4(ip), true) = (ip, address.net.prefix < 31 && kind == RTM_NEWADDR) {
        let host_bits = u32::MAX.checked_shr(address.net.prefix.into()).unwrap_or(0);
        message.attribute(IFA_BROADCAST, &(u32::from(ip) | host_bits).to_be_bytes());
    }
    if !address.label.is_empty() {
        message.string(IFA_LABEL, &address.label);
    }
    message
}

fn parse(reply: &Reply) -> Option<Address> {
    let fixed = reply.payload.get(..BODY)?;
    let attributes = reply.attributes(BODY);
    let bytes = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS))?;
    Some(Address {
        link: u32_at(fixed, 4),
        net: IpNet::new(address_from(bytes)?, fixed[1]),
        scope: match fixed[3] {
            253 => AddressScope::Link,
            254 => AddressScope::Host,
            _ => AddressScope::Global,
        },
        label: attributes.string(IFA_LABEL).unwrap_or_default(),
    })
}

impl Rtnl {
    /// Fails with [`crate::Error::is_exists`] when it is there.
    pub fn add_address(&mut self, address: &Address) -> Result<()> {
        let message = message(RTM_NEWADDR, flag::CREATE | flag::EXCLUSIVE, address);
        self.socket.request(&format!("add address {} to link number {}", address.net, address.link), message).map(drop)
    }

    pub fn delete_address(&mut self, address: &Address) -> Result<()> {
        let message = message(RTM_DELADDR, 0, address);
        let operation = format!("delete address {} from link number {}", address.net, address.link);
        self.socket.request(&operation, message).map(drop)
    }

    /// All addresses of this namespace.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        let replies = self.socket.dump("list addresses", Message::new(RTM_GETADDR, 0, &[0; BODY]))?;
        Ok(replies.iter().filter_map(parse).collect())
    }

    pub fn addresses_of(&mut self, link: u32) -> Result<Vec<Address>> {
        Ok(self.addresses()?.into_iter().filter(|address| address.link == link).collect())
    }
}
