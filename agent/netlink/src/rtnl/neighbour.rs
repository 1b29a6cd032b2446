//! Neighbours (ARP and ND entries) and forwarding database entries of bridges and VXLAN links.

use std::net::IpAddr;

use super::net::{address_from, family, octets};
use super::{Mac, Rtnl};
use crate::Result;
use crate::message::{Message, flag, u32_at};

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
/// Length of `struct ndmsg`.
const BODY: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const PERMANENT: u16 = 0x80;
const SELF: u8 = 0x02;
const AF_BRIDGE: u8 = 7;

/// A permanent neighbour entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub link: u32,
    pub address: IpAddr,
    pub mac: Mac,
}

/// A permanent forwarding entry of a VXLAN link: frames to `mac` go to the host `remote`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardingEntry {
    pub link: u32,
    pub mac: Mac,
    pub remote: IpAddr,
}

fn body(family: u8, link: u32, state: u16, flags: u8) -> [u8; BODY] {
    let mut bytes = [0; BODY];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&link.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

fn entry(kind: u16, flags: u16, body: [u8; BODY], address: IpAddr, mac: Mac) -> Message {
    let mut message = Message::new(kind, flags, &body);
    message.attribute(NDA_DST, &octets(address)).attribute(NDA_LLADDR, &mac.0);
    message
}

impl Rtnl {
    pub fn replace_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        let body = body(family(neighbour.address), neighbour.link, PERMANENT, 0);
        let message = entry(RTM_NEWNEIGH, flag::CREATE | flag::REPLACE, body, neighbour.address, neighbour.mac);
        self.socket.request(&format!("set neighbour {}", neighbour.address), message).map(drop)
    }

    pub fn delete_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        let body = body(family(neighbour.address), neighbour.link, 0, 0);
        let message = entry(RTM_DELNEIGH, 0, body, neighbour.address, neighbour.mac);
        self.socket.request(&format!("delete neighbour {}", neighbour.address), message).map(drop)
    }

    /// Permanent entries of one link.
    pub fn neighbours(&mut self, link: u32) -> Result<Vec<Neighbour>> {
        let found = self.entries(0, link)?;
        Ok(found.into_iter().map(|(mac, address)| Neighbour { link, address, mac }).collect())
    }

    pub fn replace_forwarding(&mut self, entry_: &ForwardingEntry) -> Result<()> {
        let body = body(AF_BRIDGE, entry_.link, PERMANENT, SELF);
        let message = entry(RTM_NEWNEIGH, flag::CREATE | flag::REPLACE, body, entry_.remote, entry_.mac);
        self.socket.request(&format!("set forwarding entry {} to {}", entry_.mac, entry_.remote), message).map(drop)
    }

    pub fn delete_forwarding(&mut self, entry_: &ForwardingEntry) -> Result<()> {
        let body = body(AF_BRIDGE, entry_.link, PERMANENT, SELF);
        let message = entry(RTM_DELNEIGH, 0, body, entry_.remote, entry_.mac);
        self.socket.request(&format!("delete forwarding entry {} to {}", entry_.mac, entry_.remote), message).map(drop)
    }

    /// Permanent forwarding entries of one VXLAN link.
    pub fn forwarding(&mut self, link: u32) -> Result<Vec<ForwardingEntry>> {
        let found = self.entries(AF_BRIDGE, link)?;
        Ok(found.into_iter().map(|(mac, remote)| ForwardingEntry { link, mac, remote }).collect())
    }

    fn entries(&mut self, family: u8, link: u32) -> Result<Vec<(Mac, IpAddr)>> {
        // The bridge family's dump reads its body as `struct ifinfomsg`, four bytes longer.
        let mut request = body(family, 0, 0, 0).to_vec();
        if family == AF_BRIDGE {
            request.resize(16, 0);
            request[4..8].copy_from_slice(&link.to_ne_bytes());
        }
        let replies = self.socket.dump("list neighbours", Message::new(RTM_GETNEIGH, 0, &request))?;
        let mut found = Vec::new();
        for reply in &replies {
            let Some(fixed) = reply.payload.get(..BODY) else { continue };
            let permanent = crate::message::u16_at(fixed, 8) & PERMANENT != 0;
            if u32_at(fixed, 4) != link || !permanent {
                continue;
            }
            let attributes = reply.attributes(BODY);
            let mac = attributes.get(NDA_LLADDR).and_then(|bytes| bytes.try_into().ok()).map(Mac);
            let address = attributes.get(NDA_DST).and_then(address_from);
            if let (Some(mac), Some(address)) = (mac, address) {
                found.push((mac, address));
            }
        }
        Ok(found)
    }
}
