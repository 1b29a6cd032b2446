//! `portmap`: ports of the host that lead to a sandbox.
//!
//! Everything is in table `skiff_hostports`; a mapping's rules carry their owner in the comment. The
//! base chains' few rules are written again in every transaction, so that no call depends on which
//! came first. Kernels without nf_tables get the same from [`iptables`].

mod iptables;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink::conntrack::Conntrack;
use netlink::nft::{BaseChain, ChainType, Family, Field, Hook, Nft, Rule, Statement, Table, Transaction, priority};
use netlink::{IpNet, sysctl};
use serde::Deserialize;
use serde_json::Value;

use crate::Plugin;
use crate::spec::{Call, Error, NetworkResult, Result, owner};

pub const PLUGIN: Plugin = Plugin { add, delete, check, collect, status: crate::nothing };

const MAPPINGS: &str = "hostports";
const TABLE: &str = "skiff_hostports";
/// Before the Service proxy: a pod's host port is nearer than a NodePort.
const BEFORE_SERVICES: i32 = priority::DSTNAT - 10;
const UDP: u8 = 17;

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    snat: bool,
    masq_all: bool,
    mark_masq_bit: u32,
    /// `nftables` or `iptables`; what the kernel has when empty.
    backend: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { snat: true, masq_all: false, mark_masq_bit: 13, backend: String::new() }
    }
}

impl Config {
    /// Of packets that must seem to come from the host.
    fn mark(&self) -> u32 {
        1u32.checked_shl(self.mark_masq_bit).unwrap_or(1 << 13)
    }

    fn uses_iptables(&self) -> Result<bool> {
        match self.backend.as_str() {
            "iptables" => Ok(true),
            "nftables" => Ok(false),
            "" => Ok(Nft::open().and_then(|mut nft| nft.tables(Family::Ipv4)).is_err()),
            other => Err(Error::config(format!("backend {other:?} is neither nftables nor iptables"))),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

impl Mapping {
    fn protocol_number(&self) -> Result<u8> {
        match self.protocol.to_ascii_lowercase().as_str() {
            "tcp" | "" => Ok(6),
            "udp" => Ok(UDP),
            "sctp" => Ok(132),
            other => Err(Error::config(format!("portMappings protocol {other:?} is not tcp, udp or sctp"))),
        }
    }

    /// None when the mapping is for every address of the host.
    fn host_address(&self) -> Result<Option<Ipv4Addr>> {
        match self.host_ip.as_str() {
            "" | "0.0.0.0" | "::" => Ok(None),
            text => match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => Ok(Some(address)),
                Ok(IpAddr::V6(_)) => Err(Error::unsupported_field(format!("hostIP {text}: IPv6 host ports"))),
                Err(_) => Err(Error::config(format!("hostIP {text:?} is not an address"))),
            },
        }
    }
}

fn mappings(call: &Call) -> Result<Vec<Mapping>> {
    let mut found: Vec<Mapping> = call.runtime("portMappings")?.unwrap_or_default();
    if let Some(mapping) = found.iter().find(|mapping| mapping.container_port == 0) {
        return Err(Error::config(format!("Invalid container port number: 0 (host port {})", mapping.host_port)));
    }
    // A mapping without a host port only documents the container's.
    found.retain(|mapping| mapping.host_port != 0);
    Ok(found)
}

fn add(call: &Call) -> Result<Value> {
    let previous = call.required_previous()?;
    let config: Config = call.config()?;
    let mappings = mappings(call)?;
    if let (Some(target), false) = (sandbox_address(&previous), mappings.is_empty()) {
        install(call, &config, &mappings, target, &previous)?;
    }
    previous.into_json(&call.version)
}

/// The first IPv4 address of an interface inside the sandbox.
fn sandbox_address(previous: &NetworkResult) -> Option<IpNet> {
    let inside = |at: usize| previous.interfaces.get(at).is_none_or(|interface| !interface.sandbox.is_empty());
    let found = previous.ips.iter().find(|ip| ip.address.address.is_ipv4() && ip.interface.is_none_or(inside));
    found.map(|ip| ip.address)
}

fn install(call: &Call, config: &Config, mappings: &[Mapping], target: IpNet, previous: &NetworkResult) -> Result<()> {
    let owner = call.owner();
    if config.uses_iptables()? {
        iptables::install(config, mappings, target, &owner)?;
    } else {
        install_table(config, mappings, target, &owner)?;
    }
    if config.snat {
        // Packets from 127.0.0.1 may leave by the interface that leads to the sandbox.
        for interface in previous.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
            let _ = sysctl::ensure(&format!("net/ipv4/conf/{}/route_localnet", interface.name), "1");
        }
    }
    forget_udp_flows(mappings)
}

fn install_table(config: &Config, mappings: &[Mapping], target: IpNet, owner: &str) -> Result<()> {
    let mut nft = Nft::open()?;
    let mut transaction = Transaction::new(&table());
    base(&mut transaction, config);
    // ADD again after a crash: the old rules of this owner go in the same step.
    for rule in nft.rules(&table())?.iter().filter(|rule| rule.comment == owner) {
        transaction.delete_rule(&rule.chain, rule.handle);
    }
    for mapping in mappings {
        for rule in rules(config, mapping, target)? {
            transaction.add_rule(MAPPINGS, &rule.comment(owner));
        }
    }
    Ok(nft.commit(transaction)?)
}

fn table() -> Table {
    Table::new(Family::Ipv4, TABLE)
}

/// Hooks and the rules that lead to the mappings.
fn base(transaction: &mut Transaction, config: &Config) {
    let mark = config.mark();
    let local = || Statement::equals(Field::DestinationType, Field::LOCAL.to_ne_bytes());
    let to_mappings = Rule::new([local(), Statement::jump(MAPPINGS)]);
    let masquerade = Rule::new([Statement::has_bits(Field::Mark, mark), Statement::Masquerade { fully_random: false }]);
    transaction.add_table();
    transaction.add_chain(MAPPINGS, None);
    for (name, hook, order, rule) in [
        ("prerouting", Hook::Prerouting, BEFORE_SERVICES, &to_mappings),
        ("output", Hook::Output, BEFORE_SERVICES, &to_mappings),
        ("postrouting", Hook::Postrouting, priority::SRCNAT, &masquerade),
    ] {
        transaction.add_chain(name, Some(&BaseChain::new(ChainType::Nat, hook, order)));
        transaction.flush_chain(name);
        transaction.add_rule(name, rule);
    }
}

fn rules(config: &Config, mapping: &Mapping, target: IpNet) -> Result<Vec<Rule>> {
    let IpAddr::V4(address) = target.address else { return Ok(Vec::new()) };
    let protocol = mapping.protocol_number()?;
    let mut matches = Vec::new();
    if let Some(host) = mapping.host_address()? {
        matches.push(Statement::equals(Field::DestinationAddress, host.octets()));
    }
    matches.push(Statement::equals(Field::Protocol, [protocol]));
    matches.push(Statement::equals(Field::DestinationPort, mapping.host_port.to_be_bytes()));
    let mark = Statement::OrMark(config.mark());
    let mut found = Vec::new();
    if config.snat {
        // A neighbour on the same bridge would answer directly, and 127.0.0.1 cannot be answered
        // at all: both must seem to come from the host.
        let localhost = IpNet::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8);
        let sources = if config.masq_all { vec![None] } else { vec![Some(target.network()), Some(localhost)] };
        for source in sources {
            let mut statements = matches.clone();
            statements.extend(source.map(|net| Statement::in_net(Field::SourceAddress, net)));
            statements.push(mark.clone());
            found.push(Rule::new(statements));
        }
    }
    let mut statements = matches;
    statements.push(Statement::DestinationNat { address, port: mapping.container_port });
    found.push(Rule::new(statements));
    Ok(found)
}

/// A UDP flow that began before its mapping changed would never look at the rules again.
fn forget_udp_flows(mappings: &[Mapping]) -> Result<()> {
    let ports: HashSet<u16> = mappings
        .iter()
        .filter(|mapping| mapping.protocol.eq_ignore_ascii_case("udp"))
        .map(|mapping| mapping.host_port)
        .collect();
    if ports.is_empty() {
        return Ok(());
    }
    Conntrack::open()?.delete_matching(UDP, |flow| ports.contains(&flow.original.destination_port))?;
    Ok(())
}

fn delete(call: &Call) -> Result<()> {
    let gone = call.owner();
    remove_where(call, &|comment| comment == gone)?;
    // Some runtimes DEL without the mappings: then their flows end by themselves.
    forget_udp_flows(&mappings(call)?)
}

fn remove_where(call: &Call, gone: &dyn Fn(&str) -> bool) -> Result<()> {
    if call.config::<Config>()?.uses_iptables()? {
        return iptables::remove_where(gone);
    }
    Ok(Nft::open()?.remove_rules(&table(), gone)?)
}

fn check(call: &Call) -> Result<()> {
    call.required_previous()?;
    let owner = call.owner();
    let wanted = mappings(call)?.len();
    let found = match call.config::<Config>()?.uses_iptables()? {
        true => iptables::count(&owner)?,
        false => Nft::open()?.rules(&table())?.iter().filter(|rule| rule.comment == owner).count(),
    };
    if found < wanted {
        return Err(Error::internal(format!("{found} rules for {wanted} port mappings")));
    }
    Ok(())
}

fn collect(call: &Call) -> Result<()> {
    let prefix = format!("{}/", call.network);
    let valid: HashSet<String> =
        call.valid_attachments()?.iter().map(|each| owner(&call.network, &each.container_id, &each.ifname)).collect();
    remove_where(call, &|comment| comment.starts_with(&prefix) && !valid.contains(comment))
}
