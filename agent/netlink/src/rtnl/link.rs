//! Links: what `ip link` shows and does.

use std::os::fd::AsRawFd;

use nix::libc;

use super::{Mac, Rtnl};
use crate::message::{Attributes, Message, Reply, flag, u32_at};
use crate::{Error, Namespace, Result};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
/// Length of `struct ifinfomsg`.
const BODY: usize = 16;

mod ifla {
    pub const ADDRESS: u16 = 1;
    pub const IFNAME: u16 = 3;
    pub const MTU: u16 = 4;
    pub const LINK: u16 = 5;
    pub const MASTER: u16 = 10;
    pub const LINKINFO: u16 = 18;
    pub const IFALIAS: u16 = 20;
    pub const NET_NS_FD: u16 = 28;
    pub const PROMISCUITY: u16 = 30;
    pub const TXQLEN: u16 = 13;
    /// Inside LINKINFO.
    pub const KIND: u16 = 1;
    pub const DATA: u16 = 2;
    pub const SLAVE_KIND: u16 = 4;
    pub const SLAVE_DATA: u16 = 5;
    /// Inside a veth's DATA.
    pub const VETH_PEER: u16 = 1;
}

mod vxlan {
    pub const ID: u16 = 1;
    pub const LINK: u16 = 3;
    pub const LOCAL: u16 = 4;
    pub const LEARNING: u16 = 7;
    pub const PORT: u16 = 15;
}

mod bridge_port {
    pub const HAIRPIN: u16 = 4;
    pub const ISOLATED: u16 = 33;
}

/// A link as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    /// Administratively up (IFF_UP).
    pub up: bool,
    pub loopback: bool,
    pub promiscuous: bool,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Index of the veth peer, or of the device that carries a VXLAN or VLAN link.
    pub parent: Option<u32>,
    /// `bridge`, `veth`, `vxlan`, ...; empty for hardware.
    pub kind: String,
    pub alias: String,
    /// The attributes of its kind (IFLA_INFO_DATA), for comparing a VXLAN with what is wanted.
    pub data: Vec<u8>,
}

impl Link {
    /// Identifier of a VXLAN link.
    pub fn vxlan_id(&self) -> Option<u32> {
        (self.kind == "vxlan").then(|| Attributes(&self.data).u32(vxlan::ID)).flatten()
    }

    /// UDP port of a VXLAN link.
    pub fn vxlan_port(&self) -> Option<u16> {
        (self.kind == "vxlan").then(|| Attributes(&self.data).u16_be(vxlan::PORT)).flatten()
    }
}

/// What to create.
#[derive(Debug)]
pub enum LinkKind<'a> {
    Bridge,
    Veth { peer: VethPeer<'a> },
    Vxlan { id: u32, port: u16, local: std::net::Ipv4Addr, device: u32 },
    Vlan { id: u16, device: u32 },
    Ifb,
}

/// The other end of a veth pair.
#[derive(Debug)]
pub struct VethPeer<'a> {
    pub name: &'a str,
    pub mac: Option<Mac>,
    /// Where the peer is born; none for the caller's own namespace.
    pub namespace: Option<&'a Namespace>,
}

/// Settings of a bridge's port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BridgePort {
    /// Frames may leave by the port on which they came.
    pub hairpin: bool,
    /// No frames to other isolated ports.
    pub isolated: bool,
}

fn body(index: u32, flags: u32, change: u32) -> [u8; BODY] {
    let mut bytes = [0; BODY];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn parse(reply: &Reply) -> Option<Link> {
    let fixed = reply.payload.get(..BODY)?;
    let attributes = reply.attributes(BODY);
    let flags = u32_at(fixed, 8);
    let info = attributes.nested(ifla::LINKINFO);
    Some(Link {
        index: u32_at(fixed, 4),
        name: attributes.string(ifla::IFNAME)?,
        mac: attributes.get(ifla::ADDRESS).and_then(|bytes| bytes.try_into().ok()).map(Mac),
        mtu: attributes.u32(ifla::MTU).unwrap_or(0),
        up: flags & libc::IFF_UP as u32 != 0,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        promiscuous: attributes.u32(ifla::PROMISCUITY).unwrap_or(0) > 0,
        master: attributes.u32(ifla::MASTER),
        parent: attributes.u32(ifla::LINK),
        kind: info.string(ifla::KIND).unwrap_or_default(),
        alias: attributes.string(ifla::IFALIAS).unwrap_or_default(),
        data: info.get(ifla::DATA).unwrap_or_default().to_vec(),
    })
}

impl Rtnl {
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let replies = self.socket.dump("list links", Message::new(RTM_GETLINK, 0, &body(0, 0, 0)))?;
        Ok(replies.iter().filter_map(parse).collect())
    }

    /// None when there is no link of that name.
    pub fn find_link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = Message::new(RTM_GETLINK, 0, &body(0, 0, 0));
        message.string(ifla::IFNAME, name);
        match self.socket.request(&format!("look up link {name}"), message) {
            Ok(replies) => Ok(replies.iter().find_map(parse)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn link(&mut self, name: &str) -> Result<Link> {
        self.find_link(name)?.ok_or_else(|| Error::NoSuchLink { name: name.to_owned() })
    }

    pub fn link_at(&mut self, index: u32) -> Result<Link> {
        let message = Message::new(RTM_GETLINK, 0, &body(index, 0, 0));
        let replies = self.socket.request(&format!("look up link number {index}"), message)?;
        replies.iter().find_map(parse).ok_or_else(|| Error::NoSuchLink { name: format!("number {index}") })
    }

    /// Creates a link, down. `mtu` 0 leaves the kernel's default.
    pub fn create_link(&mut self, name: &str, kind: &LinkKind<'_>, mtu: u32, mac: Option<Mac>) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, flag::CREATE | flag::EXCLUSIVE, &body(0, 0, 0));
        message.string(ifla::IFNAME, name);
        if mtu > 0 {
            message.u32(ifla::MTU, mtu);
        }
        if let Some(mac) = mac {
            message.attribute(ifla::ADDRESS, &mac.0);
        }
        if let LinkKind::Vlan { device, .. } = kind {
            message.u32(ifla::LINK, *device);
        }
        message.nested(ifla::LINKINFO, |info| write_kind(info, kind, mtu));
        self.socket.request(&format!("create {} link {name}", kind_name(kind)), message).map(drop)
    }

    pub fn delete_link(&mut self, name: &str) -> Result<()> {
        let mut message = Message::new(RTM_DELLINK, 0, &body(0, 0, 0));
        message.string(ifla::IFNAME, name);
        self.socket.request(&format!("delete link {name}"), message).map(drop)
    }

    pub fn set_up(&mut self, index: u32) -> Result<()> {
        self.change_flags(index, libc::IFF_UP as u32, true, "set up")
    }

    pub fn set_down(&mut self, index: u32) -> Result<()> {
        self.change_flags(index, libc::IFF_UP as u32, false, "set down")
    }

    pub fn set_promiscuous(&mut self, index: u32, on: bool) -> Result<()> {
        self.change_flags(index, libc::IFF_PROMISC as u32, on, "set promiscuous mode of")
    }

    pub fn set_all_multicast(&mut self, index: u32, on: bool) -> Result<()> {
        self.change_flags(index, libc::IFF_ALLMULTI as u32, on, "set all-multicast mode of")
    }

    fn change_flags(&mut self, index: u32, flags: u32, on: bool, what: &str) -> Result<()> {
        let message = Message::new(RTM_NEWLINK, 0, &body(index, if on { flags } else { 0 }, flags));
        self.socket.request(&format!("{what} link number {index}"), message).map(drop)
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &body(index, 0, 0));
        message.u32(ifla::MTU, mtu);
        self.socket.request(&format!("set the MTU of link number {index} to {mtu}"), message).map(drop)
    }

    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &body(index, 0, 0));
        message.attribute(ifla::ADDRESS, &mac.0);
        self.socket.request(&format!("set the address of link number {index} to {mac}"), message).map(drop)
    }

    pub fn set_transmit_queue(&mut self, index: u32, packets: u32) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &body(index, 0, 0));
        message.u32(ifla::TXQLEN, packets);
        self.socket.request(&format!("set the transmit queue of link number {index}"), message).map(drop)
    }

    /// The link must be down.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &body(index, 0, 0));
        message.string(ifla::IFNAME, name);
        self.socket.request(&format!("rename link number {index} to {name}"), message).map(drop)
    }

    /// Makes a link a port of a bridge, up at once and with its settings, in one request.
    pub fn attach_to_bridge(&mut self, index: u32, bridge: u32, port: BridgePort) -> Result<()> {
        let up = libc::IFF_UP as u32;
        let mut message = Message::new(RTM_NEWLINK, 0, &body(index, up, up));
        message.u32(ifla::MASTER, bridge);
        let operation = format!("attach link number {index} to bridge number {bridge}");
        self.socket.request(&operation, message)?;
        if port == BridgePort::default() {
            return Ok(());
        }
        let mut message = Message::new(RTM_NEWLINK, 0, &body(index, 0, 0));
        message.nested(ifla::LINKINFO, |info| {
            info.string(ifla::SLAVE_KIND, "bridge");
            info.nested(ifla::SLAVE_DATA, |data| {
                data.u8(bridge_port::HAIRPIN, port.hairpin.into());
                if port.isolated {
                    data.u8(bridge_port::ISOLATED, 1);
                }
            });
        });
        self.socket.request(&format!("configure bridge port number {index}"), message).map(drop)
    }

    pub fn move_to_namespace(&mut self, index: u32, namespace: &Namespace) -> Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0, &body(index, 0, 0));
        message.u32(ifla::NET_NS_FD, namespace.raw_fd() as u32);
        self.socket.request(&format!("move link number {index} to {}", namespace.path().display()), message).map(drop)
    }
}

const fn kind_name(kind: &LinkKind<'_>) -> &'static str {
    match kind {
        LinkKind::Bridge => "bridge",
        LinkKind::Veth { .. } => "veth",
        LinkKind::Vxlan { .. } => "vxlan",
        LinkKind::Vlan { .. } => "vlan",
        LinkKind::Ifb => "ifb",
    }
}

fn write_kind(info: &mut Message, kind: &LinkKind<'_>, mtu: u32) {
    info.string(ifla::KIND, kind_name(kind));
    match kind {
        LinkKind::Bridge | LinkKind::Ifb => {}
        LinkKind::Veth { peer } => {
            info.nested(ifla::DATA, |data| {
                data.nested(ifla::VETH_PEER, |attributes| write_peer(attributes, peer, mtu));
            });
        }
        LinkKind::Vxlan { id, port, local, device } => {
            info.nested(ifla::DATA, |data| {
                data.u32(vxlan::ID, *id)
                    .u32(vxlan::LINK, *device)
                    .attribute(vxlan::LOCAL, &local.octets())
                    // Every peer is known from its Node; learning would only add stale entries.
                    .u8(vxlan::LEARNING, 0)
                    .u16_be(vxlan::PORT, *port);
            });
        }
        LinkKind::Vlan { id, .. } => {
            info.nested(ifla::DATA, |data| {
                data.u16(1, *id);
            });
        }
    }
}

fn write_peer(message: &mut Message, peer: &VethPeer<'_>, mtu: u32) {
    message.raw(&body(0, 0, 0));
    message.string(ifla::IFNAME, peer.name);
    if mtu > 0 {
        message.u32(ifla::MTU, mtu);
    }
    if let Some(mac) = peer.mac {
        message.attribute(ifla::ADDRESS, &mac.0);
    }
    if let Some(namespace) = peer.namespace {
        message.u32(ifla::NET_NS_FD, std::os::fd::AsFd::as_fd(namespace).as_raw_fd() as u32);
    }
}
