//! The kernel's network objects, thin and typed: links, addresses, routes, neighbours, queueing
//! disciplines, nf_tables transactions and conntrack entries.
//!
//! Layer: below everything on the node; knows nothing of Kubernetes.
//!
//! - [`Rtnl`]: one rtnetlink socket; links, addresses, routes, neighbours, qdiscs.
//! - [`nft`]: rules as data, sent as atomic transactions, listed for adoption.
//! - [`conntrack`]: list and delete entries.
//! - [`Namespace`]: a network namespace by path; [`Namespace::run`] runs a closure inside it.
//! - [`sysctl`]: `/proc/sys/net` of the calling thread's namespace.
//!
//! Everything here is blocking: a request to the kernel takes microseconds, and the same code then
//! serves the short-lived CNI executable (which cannot afford a runtime) and the agent (which calls
//! it from its own tasks for single requests, and from blocking threads for long batches). A socket
//! stays in the namespace in which it was opened and may be used from any thread.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on fails"))]

pub mod conntrack;
mod error;
pub mod message;
mod netns;
pub mod nft;
mod rtnl;
mod socket;
pub mod sysctl;

pub use error::{Error, Result};
pub use netns::Namespace;
pub use rtnl::{
    Address, AddressScope, BridgePort, ForwardingEntry, IpNet, Link, LinkKind, Mac, Neighbour, PROTOCOL_SKIFF, Route,
    RouteScope, Rtnl, TokenBucket, VethPeer,
};
pub use socket::{Protocol, Socket};
