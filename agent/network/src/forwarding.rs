//! Hosts whose iptables drop forwarded packets (Docker sets the policy so): the pods' packets are
//! accepted there, in a chain of our own. Our nf_tables rules could not: a packet must pass every table.

use std::process::Command;

use netlink::IpNet;
use netlink::nft::{Family, Nft};

const CHAIN: &str = "SKIFF-FORWARD";

/// Whether iptables has a filter table in this network namespace; cheaper than asking iptables.
fn has_filter_table() -> bool {
    let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names")
        .is_ok_and(|names| names.lines().any(|name| name == "filter"));
    let tables = Nft::open().and_then(|mut nft| nft.tables(Family::Ipv4));
    legacy || tables.is_ok_and(|names| names.iter().any(|name| name == "filter"))
}

/// The output of a successful call.
fn iptables(arguments: &[&str]) -> Option<String> {
    let output = Command::new("iptables").args(["-w", "5"]).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is missing in `listing`, the FORWARD chain and ours as `iptables -S` shows them. Pure.
fn missing(listing: &str, cluster: IpNet) -> Vec<Vec<String>> {
    let drops = listing.lines().any(|line| line == "-P FORWARD DROP");
    if !drops {
        return Vec::new();
    }
    let has = |wanted: &str| listing.lines().any(|line| line == wanted);
    let words = |line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut calls = Vec::new();
    if !has(&format!("-N {CHAIN}")) {
        calls.push(words(format!("-N {CHAIN}")));
    }
    for side in ["-s", "-d"] {
        let rule = format!("-A {CHAIN} {side} {} -j ACCEPT", cluster.network());
        if !has(&rule) {
            calls.push(words(rule));
        }
    }
    if !has(&format!("-A FORWARD -j {CHAIN}")) {
        calls.push(words(format!("-I FORWARD 1 -j {CHAIN}")));
    }
    calls
}

/// Does nothing where forwarding is not restricted. What fails is logged: the host's administrator
/// may mean it.
pub fn accept(cluster: IpNet) {
    if !has_filter_table() {
        return;
    }
    let Some(forward) = iptables(&["-S", "FORWARD"]) else { return };
    let own = iptables(&["-S", CHAIN]).unwrap_or_default();
    for call in missing(&format!("{forward}{own}"), cluster) {
        let arguments: Vec<&str> = call.iter().map(String::as_str).collect();
        if iptables(&arguments).is_none() {
            let rule = call.join(" ");
            tracing::warn!(rule, "iptables drops forwarded packets and refused an exception for pods");
        }
    }
}

pub fn remove() {
    if has_filter_table() && iptables(&["-S", CHAIN]).is_some() {
        iptables(&["-D", "FORWARD", "-j", CHAIN]);
        iptables(&["-F", CHAIN]);
        iptables(&["-X", CHAIN]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_made_once_and_only_where_packets_are_dropped() {
        let cluster = "10.42.0.0/16".parse().unwrap();
        assert!(missing("-P FORWARD ACCEPT\n", cluster).is_empty());
        assert_eq!(missing("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n", cluster).len(), 4);
        let done = "-P FORWARD DROP\n-A FORWARD -j SKIFF-FORWARD\n-N SKIFF-FORWARD\n-A SKIFF-FORWARD -s 10.42.0.0/16 -j ACCEPT\n-A SKIFF-FORWARD -d 10.42.0.0/16 -j ACCEPT\n";
        assert!(missing(done, cluster).is_empty());
    }

    #[test]
    fn a_host_that_drops_lets_pods_through() {
        let host = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            let cluster = "10.42.0.0/16".parse().unwrap();
            accept(cluster);
            assert!(!has_filter_table(), "nothing is made where nothing drops");
            iptables(&["-P", "FORWARD", "DROP"]).expect("iptables: apt-get install iptables");
            accept(cluster);
            accept(cluster);
            let forward = iptables(&["-S", "FORWARD"]).unwrap();
            assert_eq!(forward.matches(CHAIN).count(), 1, "{forward}");
            assert_eq!(iptables(&["-S", CHAIN]).unwrap().matches("ACCEPT").count(), 2);
            remove();
            assert!(iptables(&["-S", CHAIN]).is_none());
        };
        std::thread::spawn(host).join().unwrap();
    }
}
