//! Source translation of single sandboxes (`ipMasq`): one rule per address in table
//! `skiff_cni_masquerade`, found again by its comment, which names the owner.

use std::collections::HashSet;
use std::net::IpAddr;

use netlink::nft::{BaseChain, ChainType, Family, Field, Hook, Nft, Rule, Statement, Table, Transaction, priority};

use crate::spec::{Call, Ip, Result, owner};

const POSTROUTING: &str = "postrouting";

fn table(family: Family) -> Table {
    Table::new(family, "skiff_cni_masquerade")
}

pub fn add(call: &Call, ips: &[Ip]) -> Result<()> {
    let mut nft = Nft::open()?;
    for ip in ips {
        let (family, source, destination, multicast) = match ip.address.address {
            IpAddr::V4(_) => (Family::Ipv4, Field::SourceAddress, Field::DestinationAddress, "224.0.0.0/4"),
            IpAddr::V6(_) => (Family::Ipv6, Field::SourceAddress6, Field::DestinationAddress6, "ff00::/8"),
        };
        let multicast = multicast.parse().map_err(crate::spec::Error::internal)?;
        let mut transaction = Transaction::new(&table(family));
        transaction.add_table();
        let base = BaseChain::new(ChainType::Nat, Hook::Postrouting, priority::SRCNAT);
        transaction.add_chain(POSTROUTING, Some(&base));
        let rule = Rule::new([
            Statement::in_net(source, netlink::IpNet::host(ip.address.address)),
            Statement::not_in_net(destination, ip.address),
            Statement::not_in_net(destination, multicast),
            Statement::Masquerade { fully_random: false },
        ]);
        transaction.add_rule(POSTROUTING, &rule.comment(call.owner()));
        nft.commit(transaction)?;
    }
    Ok(())
}

pub fn remove(call: &Call) -> Result<()> {
    let gone = call.owner();
    remove_where(&|comment| comment == gone)
}

/// Removes the rules of this network's attachments that are no more.
pub fn collect(call: &Call) -> Result<()> {
    let prefix = format!("{}/", call.network);
    let valid: HashSet<String> =
        call.valid_attachments()?.iter().map(|each| owner(&call.network, &each.container_id, &each.ifname)).collect();
    remove_where(&|comment| comment.starts_with(&prefix) && !valid.contains(comment))
}

fn remove_where(gone: &dyn Fn(&str) -> bool) -> Result<()> {
    let mut nft = Nft::open()?;
    for family in [Family::Ipv4, Family::Ipv6] {
        nft.remove_rules(&table(family), gone)?;
    }
    Ok(())
}
