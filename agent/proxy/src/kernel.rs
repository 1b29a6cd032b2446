//! One writer and the UDP flows that its rules decide about.

use crate::conntrack::UdpTable;
use crate::model::Rules;
use crate::{Error, Mode, Settings, iptables, nftables};

enum Writer {
    Nftables(nftables::Writer),
    Iptables(iptables::Writer),
}

/// The kernel's Service rules of this network namespace, and what it is known to hold.
pub struct Kernel {
    writer: Writer,
    flows: UdpTable,
}

impl Kernel {
    /// `Mode::Auto` is taken as nftables; the proxy resolves it before.
    pub fn new(mode: Mode) -> Self {
        let writer = match mode {
            Mode::Iptables => Writer::Iptables(iptables::Writer::default()),
            Mode::Auto | Mode::Nftables => Writer::Nftables(nftables::Writer::default()),
        };
        Self { writer, flows: UdpTable::default() }
    }

    /// Makes the kernel hold `rules`: only what differs from the last call, everything on the first.
    pub fn write(&mut self, rules: &Rules, settings: &Settings) -> Result<(), Error> {
        match &mut self.writer {
            Writer::Nftables(writer) => writer.write(rules, settings)?,
            Writer::Iptables(writer) => writer.write(rules, settings)?,
        }
        let flows = UdpTable::new(rules);
        if flows != self.flows {
            match flows.reconcile(&self.flows) {
                Ok(0) => {}
                Ok(deleted) => tracing::debug!(deleted, "ended UDP flows of endpoints that are gone"),
                // The rules are right; only old flows are not. They end by their own timeout.
                Err(error) => tracing::warn!(%error, "stale UDP flows could not be ended"),
            }
            self.flows = flows;
        }
        Ok(())
    }

    /// Notices what others changed; the next write then begins anew.
    pub fn audit(&mut self) -> Result<(), Error> {
        match &mut self.writer {
            Writer::Nftables(writer) => writer.audit(),
            Writer::Iptables(writer) => writer.audit(),
        }
    }
}
