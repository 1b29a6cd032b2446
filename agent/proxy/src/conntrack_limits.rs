//! How many connections the kernel remembers, and how long: kube-proxy's defaults
//! (`pkg/proxy/conntrack/sysctls.go`).
//!
//! The kernel forgets a connection of which one half is closed after a minute; what the other half still
//! sends is no longer translated then.

use netlink::sysctl;

const PER_CORE: u32 = 32 * 1024;
const LEAST: u32 = 128 * 1024;
const MOST: u32 = 1024 * 1024;
const MAX: &str = "net/netfilter/nf_conntrack_max";
/// How many buckets the table has; a fourth of its entries at least.
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// In seconds.
const TIMEOUTS: [(&str, u32); 2] = [
    ("net/netfilter/nf_conntrack_tcp_timeout_established", 24 * 60 * 60),
    ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", 60 * 60),
];

/// Sets what differs in this network namespace; a table that is larger stays so. Goes on after a failure
/// and returns all of them. Conntrack must be in the kernel: rules that use it load it.
pub fn apply() -> Vec<String> {
    let timeouts = TIMEOUTS.map(|(name, seconds)| sysctl::ensure(name, &seconds.to_string()));
    let failed = timeouts.into_iter().chain([grow()]).filter_map(Result::err);
    failed.map(|error| error.to_string()).collect()
}

fn grow() -> netlink::Result<()> {
    let cores = std::fs::read_to_string("/sys/devices/system/cpu/online").map_or(1, |online| count(&online));
    let entries = entries(cores);
    if sysctl::read(MAX).ok().and_then(|now| now.parse::<u32>().ok()).is_none_or(|now| now < entries) {
        sysctl::write(MAX, &entries.to_string())?;
    }
    let buckets = std::fs::read_to_string(HASH_SIZE).ok().and_then(|now| now.trim().parse::<u32>().ok());
    if buckets.is_none_or(|now| now >= entries / 4) {
        return Ok(());
    }
    std::fs::write(HASH_SIZE, (entries / 4).to_string())
        .map_err(|source| netlink::Error::Io { operation: format!("write {} to {HASH_SIZE}", entries / 4), source })
}

fn entries(cores: u32) -> u32 {
    PER_CORE.saturating_mul(cores).clamp(LEAST, MOST)
}

/// How many processors a list such as `0-3,8` names.
fn count(list: &str) -> u32 {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<u32>().ok()?.saturating_sub(first.parse().ok()?) + 1)
    });
    ranges.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_grows_with_the_machine() {
        for (online, wanted) in [("0\n", LEAST), ("0-3\n", LEAST), ("0-7", 8 * PER_CORE), ("0-3,8-11,20", 9 * PER_CORE)]
        {
            assert_eq!(entries(count(online)), wanted, "{online}");
        }
        assert_eq!(entries(count("0-255")), MOST);
    }

    #[test]
    fn half_closed_connections_are_remembered_for_an_hour() {
        let test = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
            // A rule about connections brings conntrack into the namespace.
            drop(netlink::conntrack::Conntrack::open().unwrap().list(6).unwrap());
            // The table is the machine's: a namespace may not make it larger.
            let failures = apply();
            for (name, seconds) in TIMEOUTS {
                assert_eq!(sysctl::read(name).unwrap(), seconds.to_string(), "{name}: {failures:?}");
            }
        };
        std::thread::spawn(test).join().unwrap();
    }
}
