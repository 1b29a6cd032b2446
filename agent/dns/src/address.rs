//! The cluster DNS address on this node: a /32 of the loopback interface, and rules that keep its
//! packets out of conntrack.

use std::net::Ipv4Addr;

use netlink::nft::{BaseChain, ChainType, Family, Field, Hook, Nft, Rule, Ruleset, Statement, Table, priority};
use netlink::{Address, AddressScope, IpNet, Rtnl};

/// Says whose address it is, in `ip address`. Labels begin with the interface's name.
const LABEL: &str = "lo:skiff";
const PORT: u16 = 53;

fn table() -> Table {
    Table::new(Family::Ipv4, "skiff_dns")
}

/// The address, and the rules beside it. Idempotent.
pub fn ensure(address: Ipv4Addr) -> netlink::Result<()> {
    put(address)?;
    if let Err(error) = untracked(address).apply_over_unknown(&mut Nft::open()?) {
        // Answers are as right with conntrack, only dearer.
        tracing::debug!(%error, "DNS packets stay in conntrack");
    }
    Ok(())
}

/// Puts the address where it belongs, if it is not there.
pub fn put(address: Ipv4Addr) -> netlink::Result<()> {
    let mut rtnl = Rtnl::open()?;
    let lo = rtnl.link("lo")?;
    if !lo.up {
        rtnl.set_up(lo.index)?;
    }
    let net = IpNet::host(address.into());
    // Global scope: packets to it come from other interfaces.
    let wanted = Address { link: lo.index, net, scope: AddressScope::Global, label: LABEL.to_owned() };
    match rtnl.add_address(&wanted) {
        Err(error) if !error.is_exists() => Err(error),
        _ => Ok(()),
    }
}

/// Both directions, before conntrack looks at a packet.
fn untracked(address: Ipv4Addr) -> Ruleset {
    let mut ruleset = Ruleset::new(table());
    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        ruleset.base_chain(chain, BaseChain::new(ChainType::Filter, hook, priority::RAW));
        for (ip, port) in
            [(Field::DestinationAddress, Field::DestinationPort), (Field::SourceAddress, Field::SourcePort)]
        {
            for protocol in [17, 6] {
                ruleset.rule(
                    chain,
                    Rule::new([
                        Statement::equals(ip, address.octets()),
                        Statement::equals(Field::Protocol, [protocol]),
                        Statement::equals(port, PORT.to_be_bytes()),
                        Statement::NoTrack,
                    ]),
                );
            }
        }
    }
    ruleset
}

/// Removes the address and the rules from this network namespace; returns what could not be.
pub fn cleanup() -> Vec<String> {
    let mut failures = Vec::new();
    let mut note = |outcome: netlink::Result<()>| match outcome {
        Err(error) if !error.is_missing() => failures.push(error.to_string()),
        _ => {}
    };
    note(remove_addresses());
    note(Nft::open().and_then(|mut nft| nft.delete_table(&table())));
    failures
}

fn remove_addresses() -> netlink::Result<()> {
    let mut rtnl = Rtnl::open()?;
    for address in rtnl.addresses()?.iter().filter(|address| address.label == LABEL) {
        rtnl.delete_address(address)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_somebody_took_away_is_put_back() {
        let host = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            let address = Ipv4Addr::new(10, 43, 0, 10);
            let is_there = || Rtnl::open().unwrap().addresses().unwrap().iter().any(|each| each.label == LABEL);
            ensure(address).unwrap();
            put(address).unwrap();
            assert!(is_there());
            remove_addresses().unwrap();
            assert!(!is_there());
            put(address).unwrap();
            assert!(is_there());
        };
        std::thread::spawn(host).join().unwrap();
    }
}
