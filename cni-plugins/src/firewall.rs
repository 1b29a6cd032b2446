//! `firewall`: lets the host forward a sandbox's packets: one rule each way per address in table
//! `skiff_cni_firewall`, for hosts whose own rules accept what another table has accepted by mark.
//! nf_tables evaluates every table, so a host that drops forwarded packets in a table of its own
//! must make its own exception; this plugin says so rather than editing somebody else's table.

use std::collections::HashSet;
use std::net::IpAddr;

use netlink::IpNet;
use netlink::nft::{BaseChain, ChainType, Family, Field, Hook, Nft, Rule, Statement, Table, Transaction, priority};
use serde_json::Value;

use crate::Plugin;
use crate::spec::{Call, Error, Result, owner};

pub const PLUGIN: Plugin = Plugin { add, delete, check, collect, status: crate::nothing };

const FORWARD: &str = "forward";

fn table() -> Table {
    Table::new(Family::Inet, "skiff_cni_firewall")
}

fn rules(address: IpAddr) -> [Rule; 2] {
    let (protocol, source, destination) = match address {
        IpAddr::V4(_) => (2, Field::SourceAddress, Field::DestinationAddress),
        IpAddr::V6(_) => (10, Field::SourceAddress6, Field::DestinationAddress6),
    };
    let family = Statement::equals(Field::NetworkProtocol, [protocol]);
    let answered = Statement::has_bits(Field::ConntrackState, Field::ESTABLISHED_OR_RELATED);
    [
        Rule::new([
            family.clone(),
            Statement::in_net(destination, IpNet::host(address)),
            answered,
            Statement::accept(),
        ]),
        Rule::new([family, Statement::in_net(source, IpNet::host(address)), Statement::accept()]),
    ]
}

fn add(call: &Call) -> Result<Value> {
    let previous = call.required_previous()?;
    let mut transaction = Transaction::new(&table());
    transaction.add_table();
    let base = BaseChain::new(ChainType::Filter, Hook::Forward, priority::FILTER - 5);
    transaction.add_chain(FORWARD, Some(&base));
    for ip in &previous.ips {
        for rule in rules(ip.address.address) {
            transaction.add_rule(FORWARD, &rule.comment(call.owner()));
        }
    }
    Nft::open()?.commit(transaction)?;
    previous.into_json(&call.version)
}

fn remove_where(gone: &dyn Fn(&str) -> bool) -> Result<()> {
    Ok(Nft::open()?.remove_rules(&table(), gone)?)
}

fn delete(call: &Call) -> Result<()> {
    let gone = call.owner();
    remove_where(&|comment| comment == gone)
}

fn check(call: &Call) -> Result<()> {
    let wanted = call.required_previous()?.ips.len() * 2;
    let owner = call.owner();
    let found = Nft::open()?.rules(&table())?.iter().filter(|rule| rule.comment == owner).count();
    if found < wanted {
        return Err(Error::internal(format!("{found} of {wanted} rules are in table skiff_cni_firewall")));
    }
    Ok(())
}

fn collect(call: &Call) -> Result<()> {
    let prefix = format!("{}/", call.network);
    let valid: HashSet<String> =
        call.valid_attachments()?.iter().map(|each| owner(&call.network, &each.container_id, &each.ifname)).collect();
    remove_where(&|comment| comment.starts_with(&prefix) && !valid.contains(comment))
}
