//! Hosts whose iptables drop packets, by the policy of a chain (Docker and ufw set it so) or by its last rule:
//! those of pods, and of labs, are accepted there, in chains of our own. Our nf_tables rules could not: a packet
//! must pass every table.

use std::process::Command;
use std::sync::Once;

use netlink::IpNet;
use netlink::nft::{Family, Nft};

/// The built-in chains in which pods' packets are accepted, and the chains of our own that do.
const OF_PODS: [(&str, &str); 2] = [("FORWARD", "SKIFF-FORWARD"), ("INPUT", "SKIFF-INPUT")];

/// Packets that pass a built-in chain of iptables' filter table, where it drops the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    /// `FORWARD` or `INPUT`.
    pub built_in: &'static str,
    /// Accepts them; ours alone. At most 28 characters.
    pub chain: String,
    /// As `iptables -S` shows them: `-s 10.42.0.0/16`.
    pub packets: Vec<String>,
}

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

impl Exception {
    /// Does nothing where nothing is dropped. What iptables refuses is said: the host's administrator may mean it.
    pub fn ensure(&self) -> Result<(), String> {
        if !has_filter_table() {
            return Ok(());
        }
        let Some(listing) = iptables(&["-S", self.built_in]) else { return Ok(()) };
        let own = iptables(&["-S", &self.chain]).unwrap_or_default();
        for call in self.missing(&format!("{listing}{own}")) {
            let arguments: Vec<&str> = call.split(' ').collect();
            if iptables(&arguments).is_none() {
                return Err(format!("iptables drops packets in {} and refused an exception: {call}", self.built_in));
            }
        }
        Ok(())
    }

    pub fn remove(&self) {
        if has_filter_table() && iptables(&["-S", &self.chain]).is_some() {
            iptables(&["-D", self.built_in, "-j", &self.chain]);
            iptables(&["-F", &self.chain]);
            iptables(&["-X", &self.chain]);
        }
    }

    /// What is missing in `listing`, the built-in chain and ours as `iptables -S` shows them. Pure.
    fn missing(&self, listing: &str) -> Vec<String> {
        let Self { built_in, chain, packets } = self;
        let has = |wanted: &str| listing.lines().any(|line| line == wanted);
        // Those of rules for all packets.
        let start = format!("-A {built_in} -j ");
        let mut targets = listing.lines().filter_map(|line| line.strip_prefix(&start)?.split(' ').next());
        let refused = targets.any(|target| matches!(target, "DROP" | "REJECT"));
        if !refused && !has(&format!("-P {built_in} DROP")) {
            return Vec::new();
        }
        let rules = packets.iter().map(|packets| format!("-A {chain} {packets} -j ACCEPT"));
        let mut calls: Vec<String> =
            [format!("-N {chain}")].into_iter().chain(rules).filter(|call| !has(call)).collect();
        if !has(&format!("-A {built_in} -j {chain}")) {
            calls.push(format!("-I {built_in} 1 -j {chain}"));
        }
        calls
    }
}

/// What is forwarded from and to pods, and what they ask of the cluster DNS: of the Services' addresses the
/// only one that is a node's own.
fn of_pods(cluster: IpNet, services: IpNet) -> impl Iterator<Item = Exception> {
    let (pods, services) = (cluster.network(), services.network());
    OF_PODS.into_iter().map(move |(built_in, chain)| {
        let packets = match built_in {
            "FORWARD" => vec![format!("-s {pods}"), format!("-d {pods}")],
            _ => vec![format!("-s {pods} -d {services}")],
        };
        Exception { built_in, chain: chain.to_owned(), packets }
    })
}

pub fn accept(cluster: IpNet, services: IpNet) {
    for exception in of_pods(cluster, services) {
        if let Err(error) = exception.ensure() {
            tracing::warn!(error, "pods' packets may be lost");
        }
    }
    tell_of_firewalld(cluster);
}

/// No other table overrules firewalld's, and its zones are the administrator's.
fn tell_of_firewalld(cluster: IpNet) {
    static ASKED: Once = Once::new();
    let tables = Nft::open().and_then(|mut nft| nft.tables(Family::Inet));
    if !tables.is_ok_and(|names| names.iter().any(|name| name == "firewalld")) {
        return;
    }
    ASKED.call_once(|| {
        let pods = cluster.network();
        let query = format!("--query-source={pods}");
        let asked = Command::new("firewall-cmd").args(["--zone=trusted", &query]).output();
        if asked.is_ok_and(|output| !output.status.success()) {
            let fix = format!("firewall-cmd --permanent --zone=trusted --add-source={pods} && firewall-cmd --reload");
            tracing::warn!(fix, "firewalld does not trust the pods, and may refuse what they ask, names among it");
        }
    });
}

pub fn remove() {
    for (built_in, chain) in OF_PODS {
        Exception { built_in, chain: chain.to_owned(), packets: Vec::new() }.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exceptions() -> [Exception; 2] {
        let found: Vec<_> = of_pods("10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()).collect();
        found.try_into().unwrap()
    }

    #[test]
    fn exceptions_are_made_once_and_only_where_packets_are_dropped() {
        let [forward, _] = exceptions();
        assert!(forward.missing("-P FORWARD ACCEPT\n").is_empty());
        assert_eq!(forward.missing("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n").len(), 4);
        let done = "-P FORWARD DROP\n-A FORWARD -j SKIFF-FORWARD\n-N SKIFF-FORWARD\n-A SKIFF-FORWARD -s 10.42.0.0/16 -j ACCEPT\n-A SKIFF-FORWARD -d 10.42.0.0/16 -j ACCEPT\n";
        assert!(forward.missing(done).is_empty());
    }

    #[test]
    fn a_last_rule_that_rejects_everything_is_a_policy_too() {
        let [forward, input] = exceptions();
        let rejects = "-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        assert_eq!(forward.missing(rejects).len(), 4);
        let other = "-P FORWARD ACCEPT\n-A FORWARD -j DROP-LOUDLY\n-A FORWARD -i eth9 -j DROP\n";
        assert!(forward.missing(other).is_empty());
        assert!(input.missing(rejects).is_empty(), "another chain's");
    }

    #[test]
    fn pods_ask_the_cluster_dns_of_a_host_that_takes_nothing() {
        let [_, input] = exceptions();
        let expected =
            ["-N SKIFF-INPUT", "-A SKIFF-INPUT -s 10.42.0.0/16 -d 10.43.0.0/16 -j ACCEPT", "-I INPUT 1 -j SKIFF-INPUT"];
        assert_eq!(input.missing("-P INPUT DROP\n-A INPUT -j ufw-before-input\n"), expected);
    }

    #[test]
    fn a_host_that_drops_lets_pods_through() {
        let host = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            let accept = || accept("10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap());
            accept();
            assert!(!has_filter_table(), "nothing is made where nothing drops");
            for built_in in ["FORWARD", "INPUT"] {
                iptables(&["-P", built_in, "DROP"]).expect("iptables: apt-get install iptables");
            }
            accept();
            accept();
            for (exception, rules) in exceptions().iter().zip([2, 1]) {
                let listing = iptables(&["-S", exception.built_in]).unwrap();
                assert_eq!(listing.matches(&exception.chain).count(), 1, "{listing}");
                assert_eq!(iptables(&["-S", &exception.chain]).unwrap().matches("ACCEPT").count(), rules);
            }
            remove();
            for exception in exceptions() {
                assert!(iptables(&["-S", &exception.chain]).is_none());
            }
        };
        std::thread::spawn(host).join().unwrap();
    }
}
