//! The same mappings as iptables rules, for kernels without nf_tables and for `"backend": "iptables"`.
//! A rule's comment names its owner, as in the nf_tables writer.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use netlink::IpNet;

use super::{Config, Mapping};
use crate::spec::{Error, Result};

const CHAIN: &str = "SKIFF-HOSTPORTS";

fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
    let failed =
        |message: &dyn std::fmt::Display| Error::internal(format!("{program} {}: {message}", arguments.join(" ")));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that refuses its input says why on its standard error.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(&String::from_utf8_lossy(&output.stderr).trim()))
}

fn nat(arguments: &[&str]) -> Result<String> {
    run("iptables", &[&["-w", "5", "-t", "nat"], arguments].concat(), None)
}

/// The chain and the jumps to it, made where they are missing.
fn base(mark: u32) -> Result<()> {
    if nat(&["-S", CHAIN]).is_err() {
        // Another call may be quicker: what counts is that it is there in the end.
        let _ = nat(&["-N", CHAIN]);
    }
    let marked = format!("{mark:#x}/{mark:#x}");
    let to_mappings = ["-m", "addrtype", "--dst-type", "LOCAL", "-j", CHAIN];
    let masquerade = ["-m", "mark", "--mark", &marked, "-m", "comment", "--comment", CHAIN, "-j", "MASQUERADE"];
    for (chain, rule) in [("PREROUTING", &to_mappings[..]), ("OUTPUT", &to_mappings), ("POSTROUTING", &masquerade)] {
        if nat(&[&["-C", chain], rule].concat()).is_err() {
            nat(&[&["-I", chain], rule].concat())?;
        }
    }
    Ok(())
}

/// Rules as after `-A CHAIN`. Pure.
fn rules(config: &Config, mapping: &Mapping, target: IpNet, owner: &str) -> Result<Vec<String>> {
    let name = match mapping.protocol_number()? {
        6 => "tcp",
        17 => "udp",
        _ => "sctp",
    };
    let host = mapping.host_address()?.map(|address| format!("-d {address}/32 ")).unwrap_or_default();
    let matches = format!("{host}-p {name} -m {name} --dport {} -m comment --comment \"{owner}\"", mapping.host_port);
    let mark = config.mark();
    let mut found = Vec::new();
    if config.snat {
        let sources = if config.masq_all {
            vec![String::new()]
        } else {
            vec![format!("-s {} ", target.network()), "-s 127.0.0.0/8 ".to_owned()]
        };
        found.extend(sources.iter().map(|source| format!("{source}{matches} -j MARK --or-mark {mark:#x}")));
    }
    found.push(format!("{matches} -j DNAT --to-destination {}:{}", target.address, mapping.container_port));
    Ok(found)
}

pub fn install(config: &Config, mappings: &[Mapping], target: IpNet, owner: &str) -> Result<()> {
    base(config.mark())?;
    let mut text = "*nat\n".to_owned();
    // ADD again after a crash: the old rules of this owner go in the same step.
    for rule in owned(&|comment| comment == owner)? {
        let _ = writeln!(text, "-D {rule}");
    }
    for mapping in mappings {
        for rule in rules(config, mapping, target, owner)? {
            let _ = writeln!(text, "-A {CHAIN} {rule}");
        }
    }
    text.push_str("COMMIT\n");
    run("iptables-restore", &["--noflush", "-w", "5"], Some(&text)).map(drop)
}

/// The chain's rules whose comment is picked, as after `-A`.
fn owned(pick: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
    let listed = nat(&["-S", CHAIN]).unwrap_or_default();
    let comment = |rule: &str| {
        let after = rule.split_once("--comment ")?.1;
        Some(after.split(' ').next().unwrap_or_default().trim_matches('"').to_owned())
    };
    let rules = listed.lines().filter_map(|line| line.strip_prefix("-A "));
    Ok(rules.filter(|rule| comment(rule).is_some_and(|comment| pick(&comment))).map(str::to_owned).collect())
}

pub fn count(owner: &str) -> Result<usize> {
    Ok(owned(&|comment| comment == owner)?.len())
}

pub fn remove_where(gone: &dyn Fn(&str) -> bool) -> Result<()> {
    let rules = owned(gone)?;
    if rules.is_empty() {
        return Ok(());
    }
    let mut text = "*nat\n".to_owned();
    for rule in rules {
        let _ = writeln!(text, "-D {rule}");
    }
    text.push_str("COMMIT\n");
    run("iptables-restore", &["--noflush", "-w", "5"], Some(&text)).map(drop)
}
