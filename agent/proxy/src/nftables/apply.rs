//! Sends what changed since the last time.

use netlink::nft::{Nft, Ruleset};

use super::{render, table};
use crate::model::Rules;
use crate::{Error, Settings};

/// Holds what the kernel is known to hold; nothing at start and after a failure.
#[derive(Debug, Default)]
pub struct Writer {
    written: Option<Ruleset>,
}

impl Writer {
    /// One transaction; whatever fails leaves the kernel as it was, and the next call begins by
    /// looking at what is there.
    pub fn write(&mut self, rules: &Rules, settings: &Settings) -> Result<(), Error> {
        let wanted = render(rules, settings);
        let mut nft = Nft::open()?;
        if let Some(written) = self.written.take() {
            match nft.commit(wanted.changes(&written)) {
                Ok(()) => {
                    self.written = Some(wanted);
                    return Ok(());
                }
                Err(error) => tracing::warn!(%error, "the Service table is not as it was left; writing it anew"),
            }
        }
        wanted.apply_over_unknown(&mut nft)?;
        self.written = Some(wanted);
        Ok(())
    }

    /// Notices when somebody else removed or emptied the table.
    pub fn audit(&mut self) -> Result<(), Error> {
        let Some(written) = &self.written else { return Ok(()) };
        let mut nft = Nft::open()?;
        let found = nft.list(&table())?.unwrap_or_default();
        let chains = found.chains.len();
        let rules = nft.rules(&table())?.len();
        let expected: usize = written.chains.values().map(|chain| chain.rules.len()).sum();
        if chains != written.chains.len() || rules != expected {
            tracing::warn!(chains, rules, "somebody changed the Service table; it will be written anew");
            self.written = None;
        }
        Ok(())
    }
}
