//! Sends what changed since the last time to `iptables-restore --noflush`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use super::{JUMPS, Table, Text, render};
use crate::model::Rules;
use crate::{Error, Settings};

/// Chains of ours start with one of these; KUBE-KUBELET-CANARY and the like are others'.
const PREFIXES: &[&str] = &[
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
    "KUBE-FORWARD",
    "KUBE-FIREWALL",
    "KUBE-MARK-MASQ",
    "KUBE-POSTROUTING",
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
    "KUBE-EXT-",
    "KUBE-FW-",
];

/// Holds what the kernel is known to hold; nothing at start and after a failure.
#[derive(Debug, Default)]
pub struct Writer {
    written: Option<Text>,
}

fn run(program: &'static str, arguments: &[&str], input: Option<&str>) -> Result<Output, Error> {
    let failed = |source| Error::Spawn { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that refuses its input says why on its standard error.
        let _ = stdin.write_all(text.as_bytes());
    }
    child.wait_with_output().map_err(failed)
}

fn checked(program: &'static str, arguments: &[&str], input: Option<&str>) -> Result<String, Error> {
    let output = run(program, arguments, input)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Refused { program, status: output.status, message })
}

/// Our chains in what `iptables-save` lists of a table, and how many rules each has. Pure.
fn rules_of_chains(saved: &str) -> BTreeMap<String, usize> {
    let mut chains = BTreeMap::new();
    for line in saved.lines() {
        let first = |prefix: &str| line.strip_prefix(prefix)?.split(' ').next();
        if let Some(chain) = first(":").filter(|chain| is_ours(chain)) {
            chains.insert(chain.to_owned(), 0);
        }
        let Some(chain) = first("-A ") else { continue };
        if let Some(rules) = chains.get_mut(chain) {
            *rules += 1;
        }
    }
    chains
}

fn listed(table: &str) -> Result<BTreeMap<String, usize>, Error> {
    Ok(rules_of_chains(&checked("iptables-save", &["-t", table], None)?))
}

/// Our chains in a table.
fn existing(table: &str) -> Result<BTreeSet<String>, Error> {
    Ok(listed(table)?.into_keys().collect())
}

/// Whether a table has our chains with as many rules as they were given.
fn is_untouched(table: &str, written: &Table) -> Result<bool, Error> {
    let found = listed(table)?;
    Ok(found.len() == written.len() && written.iter().all(|(chain, rules)| found.get(chain) == Some(&rules.len())))
}

fn is_ours(chain: &str) -> bool {
    PREFIXES.iter().any(|prefix| if prefix.ends_with('-') { chain.starts_with(prefix) } else { chain == *prefix })
}

/// Input for iptables-restore: declared chains are emptied and filled, those gone are emptied first
/// and deleted last.
fn restore_text(table: &str, changed: &Table, gone: &BTreeSet<String>) -> String {
    let mut text = format!("*{table}\n");
    for chain in changed.keys().chain(gone) {
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for (chain, rules) in changed {
        for rule in rules {
            let _ = writeln!(text, "-A {chain} {rule}");
        }
    }
    for chain in gone {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    text
}

fn differing(wanted: &Table, written: &Table) -> Table {
    let differs = |(chain, rules): &(&String, &Vec<String>)| written.get(*chain) != Some(*rules);
    wanted.iter().filter(differs).map(|(chain, rules)| (chain.clone(), rules.clone())).collect()
}

impl Writer {
    pub fn write(&mut self, rules: &Rules, settings: &Settings) -> Result<(), Error> {
        let wanted = render(rules, settings);
        let written = self.written.take();
        let mut input = String::new();
        for (table, now, before) in [
            ("filter", &wanted.filter, written.as_ref().map(|text| &text.filter)),
            ("nat", &wanted.nat, written.as_ref().map(|text| &text.nat)),
        ] {
            let (changed, known) = match before {
                Some(before) => (differing(now, before), before.keys().cloned().collect()),
                None => (now.clone(), existing(table)?),
            };
            let gone: BTreeSet<String> = known.into_iter().filter(|chain| !now.contains_key(chain)).collect();
            if !changed.is_empty() || !gone.is_empty() {
                input.push_str(&restore_text(table, &changed, &gone));
            }
        }
        if !input.is_empty() {
            checked("iptables-restore", &["--noflush", "-w", "5"], Some(&input))?;
        }
        if written.is_none() {
            prepare()?;
        }
        self.written = Some(wanted);
        Ok(())
    }

    /// Notices when somebody else flushed the tables.
    pub fn audit(&mut self) -> Result<(), Error> {
        let Some(written) = &self.written else { return Ok(()) };
        if !is_untouched("filter", &written.filter)? || !is_untouched("nat", &written.nat)? {
            tracing::warn!("somebody changed the Service chains; they will be written anew");
            self.written = None;
            return Ok(());
        }
        prepare()
    }
}

/// Arguments of a rule, with quoted comments kept whole.
fn arguments(rule: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, part) in rule.split('"').enumerate() {
        if at % 2 == 1 {
            found.push(part.to_owned());
        } else {
            found.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    found
}

fn jump(action: &str, table: &str, chain: &str, rule: &str) -> Result<Output, Error> {
    let rule = arguments(rule);
    let mut line = vec!["-w", "5", "-t", table, action, chain];
    line.extend(rule.iter().map(String::as_str));
    run("iptables", &line, None)
}

/// The jumps from the built-in chains, first in line, and node ports on 127.0.0.1.
fn prepare() -> Result<(), Error> {
    for (table, chain, rule) in JUMPS {
        if jump("-C", table, chain, rule)?.status.success() {
            continue;
        }
        let output = jump("-I", table, chain, rule)?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Refused { program: "iptables", status: output.status, message });
        }
    }
    Ok(netlink::sysctl::ensure("net/ipv4/conf/all/route_localnet", "1")?)
}

/// Whether anybody has used iptables in this network namespace: its nf_tables flavour leaves tables of
/// the old names, the legacy one a list. Asking iptables itself would cost processes at every start.
fn is_in_use() -> bool {
    let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").is_ok_and(|names| !names.is_empty());
    let tables = netlink::nft::Nft::open().and_then(|mut nft| nft.tables(netlink::nft::Family::Ipv4));
    legacy || tables.is_ok_and(|names| names.iter().any(|name| name == "nat" || name == "filter"))
}

/// Removes every jump and chain of ours. Nothing to do where iptables is not installed.
pub fn remove() -> Result<(), Error> {
    if !is_in_use() {
        return Ok(());
    }
    for table in ["filter", "nat"] {
        let found = match existing(table) {
            Ok(found) => found,
            Err(Error::Spawn { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // A kernel without the table has nothing of ours in it.
            Err(Error::Refused { .. }) => continue,
            Err(error) => return Err(error),
        };
        if found.is_empty() {
            continue;
        }
        for (_, chain, rule) in JUMPS.iter().filter(|(of, _, _)| *of == table) {
            while jump("-D", table, chain, rule)?.status.success() {}
        }
        checked("iptables-restore", &["--noflush", "-w", "5"], Some(&restore_text(table, &Table::new(), &found)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_chains_are_ours() {
        for (chain, ours) in [
            ("KUBE-SVC-ABC", true),
            ("KUBE-SERVICES", true),
            ("KUBE-KUBELET-CANARY", false),
            ("KUBE-SERVICES-X", false),
            ("INPUT", false),
        ] {
            assert_eq!(is_ours(chain), ours, "{chain}");
        }
    }

    #[test]
    fn a_flushed_chain_shows_by_its_rules() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -d 10.43.0.1/32 -j KUBE-SVC-A\n-A KUBE-SERVICES -j KUBE-SVC-A\nCOMMIT\n";
        let expected = BTreeMap::from([("KUBE-SERVICES".to_owned(), 2), ("KUBE-SVC-A".to_owned(), 0)]);
        assert_eq!(rules_of_chains(saved), expected);
    }

    #[test]
    fn comments_stay_whole() {
        assert_eq!(
            arguments("-m comment --comment \"a b; c\" -j X"),
            ["-m", "comment", "--comment", "a b; c", "-j", "X"]
        );
    }
}
