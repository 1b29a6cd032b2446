//! rtnetlink: links, addresses, routes, neighbours and queueing disciplines, one module each.

mod address;
mod link;
mod neighbour;
mod net;
mod qdisc;
mod route;

pub use address::{Address, AddressScope};
pub use link::{BridgePort, Link, LinkKind, VethPeer};
pub use neighbour::{ForwardingEntry, Neighbour};
pub use net::{IpNet, Mac};
pub use qdisc::TokenBucket;
pub use route::{PROTOCOL_SKIFF, Route, RouteScope};

use crate::{Namespace, Protocol, Result, Socket};

/// An rtnetlink socket, bound to the namespace in which it was opened.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
}

impl Rtnl {
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Route)? })
    }

    /// A socket in another namespace, usable from this one.
    pub fn open_in(namespace: &Namespace) -> Result<Self> {
        namespace.run(Self::open)?
    }
}
