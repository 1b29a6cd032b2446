//! Routes of the main table.

use std::net::IpAddr;

use super::net::{address_from, family, octets};
use super::{IpNet, Rtnl};
use crate::Result;
use crate::message::{Message, Reply, flag, u32_at};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
/// Length of `struct rtmsg`.
const BODY: usize = 12;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RTA_TABLE: u16 = 15;
const TABLE_MAIN: u8 = 254;
const TYPE_UNICAST: u8 = 1;
const NEXT_HOP_ONLINK: u32 = 4;
const PROTOCOL_STATIC: u8 = 4;

/// The routing protocol number that marks a route as skiff's; unassigned in iproute2's table.
pub const PROTOCOL_SKIFF: u8 = 115;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteScope {
    #[default]
    Universe = 0,
    Link = 253,
}

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    pub gateway: Option<IpAddr>,
    /// Index of the link it leaves by; 0 lets the kernel find it from the gateway.
    pub link: u32,
    pub source: Option<IpAddr>,
    pub scope: RouteScope,
    /// The gateway is taken to be on the link even if no prefix says so.
    pub onlink: bool,
    pub priority: u32,
    /// Who made it; [`PROTOCOL_SKIFF`] for the agent's own.
    pub protocol: u8,
    pub mtu: u32,
    pub advertised_mss: u32,
}

impl Route {
    pub fn via(destination: IpNet, gateway: IpAddr, link: u32) -> Self {
        Self { gateway: Some(gateway), ..Self::direct(destination, link, RouteScope::Universe) }
    }

    pub fn direct(destination: IpNet, link: u32, scope: RouteScope) -> Self {
        Self {
            destination,
            gateway: None,
            link,
            source: None,
            scope,
            onlink: false,
            priority: 0,
            protocol: PROTOCOL_STATIC,
            mtu: 0,
            advertised_mss: 0,
        }
    }
}

fn message(kind: u16, flags: u16, route: &Route) -> Message {
    let destination = route.destination.network();
    let mut body = [0; BODY];
    body[0] = family(destination.address);
    body[1] = destination.prefix;
    body[4] = TABLE_MAIN;
    body[5] = route.protocol;
    body[6] = route.scope as u8;
    body[7] = TYPE_UNICAST;
    if route.onlink {
        body[8..12].copy_from_slice(&NEXT_HOP_ONLINK.to_ne_bytes());
    }
    let mut message = Message::new(kind, flags, &body);
    message.attribute(RTA_DST, &octets(destination.address));
    if let Some(gateway) = route.gateway {
        message.attribute(RTA_GATEWAY, &octets(gateway));
    }
    if route.link > 0 {
        message.u32(RTA_OIF, route.link);
    }
    if let Some(source) = route.source {
        message.attribute(RTA_PREFSRC, &octets(source));
    }
    if route.priority > 0 {
        message.u32(RTA_PRIORITY, route.priority);
    }
    if route.mtu > 0 || route.advertised_mss > 0 {
        message.nested(RTA_METRICS, |metrics| {
            for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advertised_mss)] {
                if value > 0 {
                    metrics.u32(kind, value);
                }
            }
        });
    }
    message
}

fn parse(reply: &Reply) -> Option<Route> {
    let fixed = reply.payload.get(..BODY)?;
    let attributes = reply.attributes(BODY);
    let table = attributes.u32(RTA_TABLE).unwrap_or_else(|| fixed[4].into());
    if table != u32::from(TABLE_MAIN) || fixed[7] != TYPE_UNICAST {
        return None;
    }
    let unspecified = if fixed[0] == 2 { vec![0; 4] } else { vec![0; 16] };
    Some(Route {
        destination: IpNet::new(address_from(attributes.get(RTA_DST).unwrap_or(&unspecified))?, fixed[1]),
        gateway: attributes.get(RTA_GATEWAY).and_then(address_from),
        link: attributes.u32(RTA_OIF).unwrap_or(0),
        source: attributes.get(RTA_PREFSRC).and_then(address_from),
        scope: if fixed[6] == RouteScope::Link as u8 { RouteScope::Link } else { RouteScope::Universe },
        onlink: u32_at(fixed, 8) & NEXT_HOP_ONLINK != 0,
        priority: attributes.u32(RTA_PRIORITY).unwrap_or(0),
        protocol: fixed[5],
        mtu: attributes.nested(RTA_METRICS).u32(RTAX_MTU).unwrap_or(0),
        advertised_mss: attributes.nested(RTA_METRICS).u32(RTAX_ADVMSS).unwrap_or(0),
    })
}

impl Rtnl {
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let message = message(RTM_NEWROUTE, flag::CREATE | flag::EXCLUSIVE, route);
        self.socket.request(&format!("add route {}", route.destination), message).map(drop)
    }

    /// Adds, or changes the route of the same destination and priority.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        let message = message(RTM_NEWROUTE, flag::CREATE | flag::REPLACE, route);
        self.socket.request(&format!("set route {}", route.destination), message).map(drop)
    }

    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        let message = message(RTM_DELROUTE, 0, route);
        self.socket.request(&format!("delete route {}", route.destination), message).map(drop)
    }

    /// Unicast routes of the main table, both families.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        let replies = self.socket.dump("list routes", Message::new(RTM_GETROUTE, 0, &[0; BODY]))?;
        Ok(replies.iter().filter_map(parse).collect())
    }

    /// The link and source address that a packet to `address` would leave with.
    pub fn route_to(&mut self, address: IpAddr) -> Result<(u32, Option<IpAddr>, Option<IpAddr>)> {
        let mut body = [0; BODY];
        body[0] = family(address);
        body[1] = IpNet::host(address).prefix;
        let mut message = Message::new(RTM_GETROUTE, 0, &body);
        message.attribute(RTA_DST, &octets(address));
        let operation = format!("look up the route to {address}");
        let replies = self.socket.request(&operation, message)?;
        let reply = replies.first().ok_or_else(|| crate::Error::malformed(&operation, "no route in it"))?;
        let attributes = reply.attributes(BODY);
        Ok((
            attributes.u32(RTA_OIF).unwrap_or(0),
            attributes.get(RTA_PREFSRC).and_then(address_from),
            attributes.get(RTA_GATEWAY).and_then(address_from),
        ))
    }
}
