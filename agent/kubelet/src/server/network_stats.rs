//! What went through a pod's network, as its processes see it (`NetworkStats` of `/stats/summary`).

use serde_json::{Value, json};

/// The link that counts for the pod as a whole.
const MAIN: &str = "eth0";
/// Links that are told of nowhere: the loopback, and those that lead to others (cAdvisor leaves them out).
const LEFT_OUT: [&str; 3] = ["lo", "veth", "docker"];

#[derive(Debug, PartialEq, Eq)]
struct Link {
    name: String,
    rx_bytes: u64,
    rx_errors: u64,
    tx_bytes: u64,
    tx_errors: u64,
}

impl Link {
    fn told(&self) -> Value {
        json!({ "name": self.name, "rxBytes": self.rx_bytes, "rxErrors": self.rx_errors,
            "txBytes": self.tx_bytes, "txErrors": self.tx_errors })
    }
}

/// The network of one process; none if it has ended.
pub fn of_process(pid: u32, time: String) -> Option<Value> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(told(&links(&text), time))
}

fn told(links: &[Link], time: String) -> Value {
    let main = links.iter().find(|link| link.name == MAIN).map(Link::told);
    let mut told = main.unwrap_or_else(|| json!({ "name": "" }));
    told["time"] = time.into();
    told["interfaces"] = links.iter().map(Link::told).collect();
    told
}

/// From `/proc/<pid>/net/dev`: after two lines of headings, a link each, with eight counters of what came in
/// and eight of what went out.
fn links(text: &str) -> Vec<Link> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let of_line = |(name, counters): (&str, &str)| {
        let counters: Vec<u64> = counters.split_whitespace().map_while(|counter| counter.parse().ok()).collect();
        let &[rx_bytes, _, rx_errors, _, _, _, _, _, tx_bytes, _, tx_errors, ..] = counters.as_slice() else {
            return None;
        };
        Some(Link { name: name.trim().to_owned(), rx_bytes, rx_errors, tx_bytes, tx_errors })
    };
    let told = |link: &Link| !LEFT_OUT.iter().any(|prefix| link.name.starts_with(prefix));
    lines.filter_map(of_line).filter(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_each_pods_network() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:       5       1    0    0    0     0          0         0        5       1    0    0    0     0       0          0\n  \
            eth0: 1000      10    2    0    0     0          0         0     2000      20    3    0    0     0       0          0\n";
        let eth0 = json!({ "name": "eth0", "rxBytes": 1000, "rxErrors": 2, "txBytes": 2000, "txErrors": 3 });
        let mut expected = eth0.clone();
        expected["time"] = "t".into();
        expected["interfaces"] = json!([eth0]);
        assert_eq!(told(&links(text), "t".to_owned()), expected);
        assert_eq!(told(&links(""), "t".to_owned()), json!({ "name": "", "time": "t", "interfaces": [] }));
    }
}
