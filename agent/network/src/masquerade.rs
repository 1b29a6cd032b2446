//! Pods leaving the cluster take the node's address: a table of nf_tables, or a chain of iptables where
//! the kernel has no nf_tables.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use netlink::IpNet;
use netlink::nft::{
    BaseChain, ChainType, ElementValue, Family, Field, Hook, KeyPart, KeyType, Nft, Rule, Ruleset, SetKind, SetSpec,
    Statement, Table, key, priority,
};

use crate::Error;
use crate::plan::Plan;

const CHAIN: &str = "SKIFF-MASQUERADE";
/// Ours and the portmap plugin's.
const CHAINS: [&str; 2] = [CHAIN, "SKIFF-HOSTPORTS"];
const BUILT_IN: [&str; 3] = ["PREROUTING", "OUTPUT", "POSTROUTING"];

pub fn apply(plan: &Plan) -> Result<(), Error> {
    let mut nft = Nft::open()?;
    match nft.tables(Family::Ipv4) {
        Ok(_) => Ok(render(plan).apply_over_unknown(&mut nft)?),
        Err(_) => apply_with_iptables(plan),
    }
}

pub fn table() -> Table {
    Table::new(Family::Ipv4, "skiff_network")
}

/// Pods reach each other, and nodes on the same link, with their own addresses; everything else
/// sees the node's.
fn render(plan: &Plan) -> Ruleset {
    let mut ruleset = Ruleset::new(table());
    let nodes = ruleset.set("nodes", SetSpec::new([KeyType::Ipv4], SetKind::Set));
    for peer in &plan.routed {
        nodes.elements.insert(key(&[KeyPart::Address(peer.address.into())]), ElementValue::None);
    }
    ruleset.base_chain("postrouting", BaseChain::new(ChainType::Nat, Hook::Postrouting, priority::SRCNAT));
    let multicast = IpNet::new(Ipv4Addr::new(224, 0, 0, 0).into(), 4);
    ruleset.rule(
        "postrouting",
        Rule::new([
            Statement::in_net(Field::SourceAddress, plan.pods.network()),
            Statement::not_in_net(Field::DestinationAddress, plan.cluster),
            Statement::not_in_net(Field::DestinationAddress, multicast),
            Statement::InSet { fields: vec![Field::DestinationAddress], set: "nodes".into(), negated: true },
            Statement::Masquerade { fully_random: true },
        ])
        .comment("pods leaving the cluster"),
    );
    ruleset
}

/// Input for iptables-restore: the chain anew, whatever was in it.
fn restore_text(plan: &Plan) -> String {
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n");
    let kept = [plan.cluster.network().to_string(), "224.0.0.0/4".to_owned()];
    let nodes = plan.routed.iter().map(|peer| format!("{}/32", peer.address));
    for destination in kept.into_iter().chain(nodes) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "-A {CHAIN} -d {destination} -j RETURN");
    }
    let _ = writeln!(text, "-A {CHAIN} -j MASQUERADE --random-fully\nCOMMIT");
    text
}

fn apply_with_iptables(plan: &Plan) -> Result<(), Error> {
    run("iptables-restore", &["--noflush", "-w", "5"], Some(&restore_text(plan)))?;
    let pods = plan.pods.network().to_string();
    let jump = |action| ["-w", "5", "-t", "nat", action, "POSTROUTING", "-s", &pods, "-j", CHAIN];
    if run("iptables", &jump("-C"), None).is_err() {
        run("iptables", &jump("-A"), None)?;
    }
    Ok(())
}

fn run(program: &'static str, arguments: &[&str], input: Option<&str>) -> Result<String, Error> {
    let failed = |message: String| Error::Iptables { program, message };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that refuses its input says why on its standard error.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Removes what iptables was given, here and by the portmap plugin; nothing where it was given nothing.
pub fn remove_from_iptables() {
    let Ok(listed) = run("iptables", &["-w", "5", "-t", "nat", "-S"], None) else { return };
    let ours = |line: &&str| CHAINS.iter().any(|chain| line.contains(chain));
    let of_built_in = |line: &&str| BUILT_IN.iter().any(|chain| line.starts_with(&format!("-A {chain} ")));
    for rule in listed.lines().filter(ours).filter(of_built_in) {
        let rule: Vec<&str> = rule.split(' ').skip(1).collect();
        let _ = run("iptables", &[&["-w", "5", "-t", "nat", "-D"][..], &rule].concat(), None);
    }
    for chain in CHAINS.iter().filter(|chain| listed.contains(&format!("-N {chain}"))) {
        for action in ["-F", "-X"] {
            let _ = run("iptables", &["-w", "5", "-t", "nat", action, chain], None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use crate::plan::{Peer, Uplink, plan};

    #[test]
    fn iptables_takes_the_same_rules() {
        let peer = |name: &str, address: &str, pods: &str| Peer {
            name: name.into(),
            address: address.parse().unwrap(),
            pods: pods.parse().unwrap(),
        };
        let config = Config::new("a", "192.0.2.1".parse().unwrap());
        let uplink = Uplink { index: 2, mtu: 1500, net: "192.0.2.1/24".parse().unwrap() };
        let peers = [peer("a", "192.0.2.1", "10.42.0.0/24"), peer("b", "192.0.2.2", "10.42.1.0/24")];
        let plan = plan(&config, &uplink, peers).unwrap();
        let host = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            apply_with_iptables(&plan).unwrap();
            apply_with_iptables(&plan).unwrap();
            let listed = run("iptables", &["-t", "nat", "-S"], None).unwrap();
            let expected = [
                "-A POSTROUTING -s 10.42.0.0/24 -j SKIFF-MASQUERADE",
                "-A SKIFF-MASQUERADE -d 10.42.0.0/16 -j RETURN",
                "-A SKIFF-MASQUERADE -d 224.0.0.0/4 -j RETURN",
                "-A SKIFF-MASQUERADE -d 192.0.2.2/32 -j RETURN",
                "-A SKIFF-MASQUERADE -j MASQUERADE --random-fully",
            ];
            let rules: Vec<&str> = listed.lines().filter(|line| line.starts_with("-A")).collect();
            assert_eq!(rules, expected);
            // as the portmap plugin leaves it
            run("iptables", &["-t", "nat", "-N", "SKIFF-HOSTPORTS"], None).unwrap();
            run("iptables", &["-t", "nat", "-I", "OUTPUT", "-j", "SKIFF-HOSTPORTS"], None).unwrap();
            remove_from_iptables();
            assert!(!run("iptables", &["-t", "nat", "-S"], None).unwrap().contains("SKIFF"));
        };
        std::thread::spawn(host).join().unwrap();
    }
}
