//! Tables, chains and rules as symbols. Field and statement names follow nft(8).

use std::net::Ipv4Addr;

/// The packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    Ipv4 = 2,
    Bridge = 7,
    Ipv6 = 10,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    pub family: Family,
    pub name: String,
}

impl Table {
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainType {
    Filter,
    Nat,
    Route,
}

/// Where a chain is hooked into the kernel's packet path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BaseChain {
    pub kind: ChainType,
    pub hook: Hook,
    pub priority: i32,
    pub drop_by_default: bool,
}

impl BaseChain {
    pub const fn new(kind: ChainType, hook: Hook, priority: i32) -> Self {
        Self { kind, hook, priority, drop_by_default: false }
    }
}

/// The usual places within a hook.
pub mod priority {
    pub const RAW: i32 = -300;
    pub const MANGLE: i32 = -150;
    pub const DSTNAT: i32 = -100;
    pub const FILTER: i32 = 0;
    pub const SRCNAT: i32 = 100;
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// What a rule can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// `ip saddr`, 4 bytes.
    SourceAddress,
    /// `ip daddr`, 4 bytes.
    DestinationAddress,
    /// `ip6 saddr`, 16 bytes.
    SourceAddress6,
    /// `ip6 daddr`, 16 bytes.
    DestinationAddress6,
    /// `meta l4proto`, 1 byte.
    Protocol,
    /// `th sport`, 2 bytes in network order.
    SourcePort,
    /// `th dport`, 2 bytes in network order.
    DestinationPort,
    /// `iifname`, 16 bytes.
    InputInterface,
    /// `oifname`, 16 bytes.
    OutputInterface,
    /// `meta mark`, 4 bytes in host order.
    Mark,
    /// `ct state`, 4 bytes in host order.
    ConntrackState,
    /// `ct status`, 4 bytes in host order.
    ConntrackStatus,
    /// `ct mark`, 4 bytes in host order.
    ConntrackMark,
    /// `ct original ip daddr`, 4 bytes.
    OriginalDestination,
    /// `ct original proto-dst`, 2 bytes in network order.
    OriginalDestinationPort,
    /// `fib daddr type`, 4 bytes in host order.
    DestinationType,
    /// `fib saddr type`, 4 bytes in host order.
    SourceType,
    /// `meta nfproto`, 1 byte.
    NetworkProtocol,
}

impl Field {
    /// Bits of [`Field::ConntrackState`].
    pub const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
    pub const NEW: u32 = 8;
    pub const UNTRACKED: u32 = 64;
    pub const INVALID: u32 = 1;
    /// Bit of [`Field::ConntrackStatus`].
    pub const STATUS_DNAT: u32 = 1 << 5;
    /// Value of [`Field::DestinationType`] for this host's own addresses.
    pub const LOCAL: u32 = 2;

    /// Bytes it fills in a register, unpadded.
    pub const fn width(self) -> usize {
        match self {
            Self::Protocol | Self::NetworkProtocol => 1,
            Self::SourcePort | Self::DestinationPort | Self::OriginalDestinationPort => 2,
            Self::SourceAddress6 | Self::DestinationAddress6 | Self::InputInterface | Self::OutputInterface => 16,
            _ => 4,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    Equal,
    NotEqual,
    AtMost,
    AtLeast,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    PortUnreachable,
    AdminProhibited,
    TcpReset,
}

/// One step of a rule. A comparison or set look-up that fails ends the rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// `field op value`; `value` may be shorter than the field (an interface name's start).
    Compare {
        field: Field,
        comparison: Comparison,
        value: Vec<u8>,
    },
    /// `field & mask == value` (or `!=`).
    Masked {
        field: Field,
        mask: Vec<u8>,
        negated: bool,
        value: Vec<u8>,
    },
    /// `field . field @set` (or `!=`).
    InSet {
        fields: Vec<Field>,
        set: String,
        negated: bool,
    },
    /// `field . field vmap @map`: ends the rule when the map has no such key.
    VerdictMap {
        fields: Vec<Field>,
        map: String,
    },
    /// `numgen random mod n vmap { ... }`: one of these, each as likely.
    RandomVerdict(Vec<Verdict>),
    Verdict(Verdict),
    /// `meta mark set mark | bits`.
    OrMark(u32),
    /// `meta mark set mark & bits`.
    AndMark(u32),
    /// `dnat to address:port`.
    DestinationNat {
        address: Ipv4Addr,
        port: u16,
    },
    /// `masquerade`, optionally with fully random ports.
    Masquerade {
        fully_random: bool,
    },
    /// `update @set { field . field }`: adds the key or renews its time.
    UpdateSet {
        set: String,
        fields: Vec<Field>,
    },
    Reject(Reject),
    /// `notrack`: conntrack does not see the packet.
    NoTrack,
    Counter,
}

impl Statement {
    pub fn equals(field: Field, value: impl Into<Vec<u8>>) -> Self {
        Self::Compare { field, comparison: Comparison::Equal, value: value.into() }
    }

    pub fn differs(field: Field, value: impl Into<Vec<u8>>) -> Self {
        Self::Compare { field, comparison: Comparison::NotEqual, value: value.into() }
    }

    /// `ip saddr`/`ip daddr` (or their IPv6 likes) in a prefix.
    pub fn in_net(field: Field, net: crate::IpNet) -> Self {
        Self::net(field, net, false)
    }

    pub fn not_in_net(field: Field, net: crate::IpNet) -> Self {
        Self::net(field, net, true)
    }

    fn net(field: Field, net: crate::IpNet, negated: bool) -> Self {
        let value = match net.network().address {
            std::net::IpAddr::V4(address) => address.octets().to_vec(),
            std::net::IpAddr::V6(address) => address.octets().to_vec(),
        };
        Self::Masked { field, mask: net.mask(), negated, value }
    }

    /// An interface of exactly this name.
    pub fn interface(field: Field, name: &str, negated: bool) -> Self {
        let mut value = name.as_bytes().to_vec();
        value.resize(16, 0);
        let comparison = if negated { Comparison::NotEqual } else { Comparison::Equal };
        Self::Compare { field, comparison, value }
    }

    pub fn has_bits(field: Field, bits: u32) -> Self {
        Self::Masked { field, mask: bits.to_ne_bytes().to_vec(), negated: true, value: vec![0; 4] }
    }

    pub fn lacks_bits(field: Field, bits: u32) -> Self {
        Self::Masked { field, mask: bits.to_ne_bytes().to_vec(), negated: false, value: vec![0; 4] }
    }

    pub fn jump(chain: impl Into<String>) -> Self {
        Self::Verdict(Verdict::Jump(chain.into()))
    }

    pub fn goto(chain: impl Into<String>) -> Self {
        Self::Verdict(Verdict::Goto(chain.into()))
    }

    pub fn accept() -> Self {
        Self::Verdict(Verdict::Accept)
    }

    pub fn drop() -> Self {
        Self::Verdict(Verdict::Drop)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Rule {
    pub statements: Vec<Statement>,
    /// Shown by `nft list`; at most 127 bytes are kept.
    pub comment: String,
}

impl Rule {
    pub fn new(statements: impl Into<Vec<Statement>>) -> Self {
        Self { statements: statements.into(), comment: String::new() }
    }

    #[must_use]
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = text.into();
        self
    }
}
