//! Conntrack entries: listed, and deleted one by one. An entry outlives the rule that made it, so
//! a UDP flow keeps going to an endpoint that is gone until its entry is deleted.

use std::net::IpAddr;

use crate::message::{Attributes, Message};
use crate::{Protocol, Result, Socket};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
/// Length of `struct nfgenmsg`.
const BODY: usize = 4;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const FAMILY_IPV4: u8 = 2;

/// One direction's addresses and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// 6 TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
    /// 0 for protocols without ports.
    pub source_port: u16,
    pub destination_port: u16,
}

/// One tracked flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// As the first packet was sent: its destination is the Service.
    pub original: Tuple,
    /// As answers come: its source is the endpoint.
    pub reply: Tuple,
    /// IPS_* bits.
    pub status: u32,
    /// The original tuple and zone as received, which is how the kernel wants them back.
    raw_original: Vec<u8>,
    zone: Option<Vec<u8>>,
}

impl Flow {
    /// Packets came back.
    pub fn is_answered(&self) -> bool {
        self.status & (1 << 1) != 0
    }

    /// Its destination was translated.
    pub fn is_destination_nat(&self) -> bool {
        self.status & (1 << 5) != 0
    }
}

/// A ctnetlink socket, bound to the namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }

    /// IPv4 flows of one protocol.
    pub fn list(&mut self, protocol: u8) -> Result<Vec<Flow>> {
        let message = Message::new(SUBSYSTEM | GET, 0, &[FAMILY_IPV4, 0, 0, 0]);
        let replies = self.socket.dump("list conntrack entries", message)?;
        Ok(replies
            .iter()
            .filter_map(|reply| parse(reply.attributes(BODY)))
            .filter(|flow| flow.original.protocol == protocol)
            .collect())
    }

    /// No error when it has gone meanwhile.
    pub fn delete(&mut self, flow: &Flow) -> Result<()> {
        let mut message = Message::new(SUBSYSTEM | DELETE, 0, &[FAMILY_IPV4, 0, 0, 0]);
        message.nested(TUPLE_ORIGINAL, |tuple| {
            tuple.raw(&flow.raw_original);
        });
        if let Some(zone) = &flow.zone {
            message.attribute(ZONE, zone);
        }
        match self.socket.request("delete a conntrack entry", message) {
            Err(error) if !error.is_missing() => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes the flows of `protocol` that `stale` picks; returns how many.
    pub fn delete_matching(&mut self, protocol: u8, stale: impl Fn(&Flow) -> bool) -> Result<usize> {
        let flows: Vec<Flow> = self.list(protocol)?.into_iter().filter(|flow| stale(flow)).collect();
        for flow in &flows {
            self.delete(flow)?;
        }
        Ok(flows.len())
    }
}

fn parse(attributes: Attributes<'_>) -> Option<Flow> {
    Some(Flow {
        original: parse_tuple(attributes.nested(TUPLE_ORIGINAL))?,
        reply: parse_tuple(attributes.nested(TUPLE_REPLY))?,
        status: attributes.u32_be(STATUS).unwrap_or(0),
        raw_original: attributes.get(TUPLE_ORIGINAL)?.to_vec(),
        zone: attributes.get(ZONE).map(<[u8]>::to_vec),
    })
}

fn parse_tuple(tuple: Attributes<'_>) -> Option<Tuple> {
    let address = |kind| -> Option<IpAddr> {
        let bytes: [u8; 4] = tuple.nested(TUPLE_IP).get(kind)?.try_into().ok()?;
        Some(IpAddr::from(bytes))
    };
    let protocol = tuple.nested(TUPLE_PROTOCOL);
    Some(Tuple {
        source: address(1)?,
        destination: address(2)?,
        protocol: protocol.u8(1)?,
        source_port: protocol.u16_be(2).unwrap_or(0),
        destination_port: protocol.u16_be(3).unwrap_or(0),
    })
}
