//! nf_tables: rules as data, sent as atomic transactions.
//!
//! - [`Ruleset`]: one table as it should be; [`Ruleset::changes`] is the transaction that leads from
//!   one to another, [`Ruleset::adopt`] the one that leads from whatever the kernel holds.
//! - [`Rule`] and [`Statement`]: what a rule does, symbolic, so that a test can walk a packet
//!   through it; `expression` translates them into the kernel's register machine.
//! - [`Transaction`]: what is sent: all of it takes effect at once, or nothing does.
//! - [`Nft`]: the socket; commits transactions and lists what is there.

mod element;
mod expression;
mod list;
mod model;
mod ruleset;
mod transaction;

pub use element::{Element, ElementValue, KeyPart, KeyType, SetKind, SetSpec, key};
pub use list::{ListedChain, ListedRule, ListedSet, ListedTable};
pub use model::{
    BaseChain, ChainType, Comparison, Family, Field, Hook, Reject, Rule, Statement, Table, Verdict, priority,
};
pub use ruleset::{Chain, Ruleset, Set};
pub use transaction::Transaction;

use crate::{Protocol, Result, Socket};

/// A netfilter socket, bound to the namespace in which it was opened.
#[derive(Debug)]
pub struct Nft {
    pub(crate) socket: Socket,
}

impl Nft {
    pub fn open() -> Result<Self> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }
}

/// Message numbers within the nf_tables subsystem.
pub(crate) mod operation {
    pub const NEW_TABLE: u16 = 0;
    pub const GET_TABLE: u16 = 1;
    pub const DELETE_TABLE: u16 = 2;
    pub const NEW_CHAIN: u16 = 3;
    pub const GET_CHAIN: u16 = 4;
    pub const DELETE_CHAIN: u16 = 5;
    pub const NEW_RULE: u16 = 6;
    pub const GET_RULE: u16 = 7;
    pub const DELETE_RULE: u16 = 8;
    pub const NEW_SET: u16 = 9;
    pub const GET_SET: u16 = 10;
    pub const DELETE_SET: u16 = 11;
    pub const NEW_ELEMENT: u16 = 12;
    pub const GET_ELEMENT: u16 = 13;
    pub const DELETE_ELEMENT: u16 = 14;
    /// High byte of every message type: NFNL_SUBSYS_NFTABLES.
    pub const SUBSYSTEM: u16 = 10 << 8;
}

/// Length of `struct nfgenmsg`, the fixed body of every message.
pub(crate) const BODY: usize = 4;
