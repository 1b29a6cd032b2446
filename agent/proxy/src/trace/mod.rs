//! Packets walked through the rules of both writers: the same questions, the same answers.

mod iptables_walk;
mod nft_walk;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::model::{Endpoint, PortName, Protocol, Rules, ServicePort};
use crate::{Settings, iptables, nftables};

/// A first packet of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: Protocol,
    pub port: u16,
    pub mark: u32,
}

/// This node's addresses in every test.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);

pub fn is_local(address: Ipv4Addr) -> bool {
    address == NODE || address == GATEWAY || address.is_loopback() || address == Ipv4Addr::new(10, 43, 0, 10)
}

impl Packet {
    pub fn is_from_here(&self) -> bool {
        is_local(self.source)
    }
}

/// Every way a packet may go: `address:port`, with ` masq` when it is masqueraded; `reject`, `drop`,
/// or `pass` for one that is nobody's.
pub type Ways = BTreeSet<String>;

fn settings() -> Settings {
    Settings {
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        node_port_nets: Vec::new(),
        served_here: Some("10.43.0.10".parse().unwrap()),
        node_ip: None,
    }
}

fn endpoint(text: &str, local: bool) -> Endpoint {
    Endpoint { address: text.parse().unwrap(), port: 8080, local }
}

fn service(cluster_ip: &str) -> ServicePort {
    ServicePort {
        cluster_ip: cluster_ip.parse().unwrap(),
        port: 80,
        node_port: None,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_local: false,
        external_local: false,
        cluster_endpoints: Vec::new(),
        local_endpoints: Vec::new(),
        usable_elsewhere: false,
        serving_endpoints: Vec::new(),
    }
}

fn name(service: &str) -> PortName {
    PortName { namespace: "default".into(), service: service.into(), port: String::new(), protocol: Protocol::Tcp }
}

/// One Service of every sort.
fn rules() -> Rules {
    let near = endpoint("10.42.0.5", true);
    let far = endpoint("10.42.1.5", false);
    let both = || vec![near.clone(), far.clone()];
    let mut ports = BTreeMap::new();
    ports.insert(
        name("web"),
        ServicePort { cluster_endpoints: both(), usable_elsewhere: true, ..service("10.43.0.20") },
    );
    ports.insert(
        name("node"),
        ServicePort {
            node_port: Some(30080),
            external_ips: vec!["198.51.100.7".parse().unwrap()],
            cluster_endpoints: both(),
            usable_elsewhere: true,
            ..service("10.43.0.21")
        },
    );
    ports.insert(name("empty"), ServicePort { node_port: Some(30081), ..service("10.43.0.22") });
    ports.insert(
        name("inner"),
        ServicePort {
            internal_local: true,
            cluster_endpoints: both(),
            local_endpoints: vec![near.clone()],
            usable_elsewhere: true,
            ..service("10.43.0.23")
        },
    );
    ports.insert(
        name("outer"),
        ServicePort {
            node_port: Some(30082),
            external_local: true,
            cluster_endpoints: both(),
            local_endpoints: vec![near.clone()],
            usable_elsewhere: true,
            ..service("10.43.0.24")
        },
    );
    ports.insert(
        name("elsewhere"),
        ServicePort {
            node_port: Some(30083),
            external_local: true,
            internal_local: true,
            cluster_endpoints: vec![far.clone()],
            usable_elsewhere: true,
            ..service("10.43.0.25")
        },
    );
    ports.insert(
        name("guarded"),
        ServicePort {
            load_balancer_ips: vec!["198.51.100.9".parse().unwrap()],
            source_ranges: vec!["203.0.113.0/24".parse().unwrap()],
            cluster_endpoints: vec![near.clone()],
            usable_elsewhere: true,
            ..service("10.43.0.26")
        },
    );
    ports.insert(
        name("sticky"),
        ServicePort {
            affinity: Some(Duration::from_secs(60)),
            cluster_endpoints: both(),
            usable_elsewhere: true,
            ..service("10.43.0.27")
        },
    );
    Rules { ports, health_checks: BTreeMap::new() }
}

#[test]
fn packets_go_where_they_should_with_either_writer() {
    let (rules, settings) = (rules(), settings());
    let tables = nftables::render(&rules, &settings);
    let text = iptables::render(&rules, &settings);
    let pod = "10.42.0.9";
    let outside = "203.0.113.5";
    let stranger = "198.18.0.1";
    // source, destination, port, ways
    let cases: &[(&str, &str, u16, &[&str])] = &[
        (pod, "10.43.0.20", 80, &["10.42.0.5:8080", "10.42.1.5:8080"]),
        (outside, "10.43.0.20", 80, &["10.42.0.5:8080 masq", "10.42.1.5:8080 masq"]),
        // an endpoint that calls its own Service must be answered through the node
        ("10.42.0.5", "10.43.0.20", 80, &["10.42.0.5:8080 masq", "10.42.1.5:8080"]),
        ("192.0.2.1", "10.43.0.20", 80, &["10.42.0.5:8080 masq", "10.42.1.5:8080 masq"]),
        // node ports and external addresses
        (outside, "192.0.2.1", 30080, &["10.42.0.5:8080 masq", "10.42.1.5:8080 masq"]),
        (pod, "10.42.0.1", 30080, &["10.42.0.5:8080 masq", "10.42.1.5:8080 masq"]),
        (outside, "198.51.100.7", 80, &["10.42.0.5:8080 masq", "10.42.1.5:8080 masq"]),
        (outside, "192.0.2.9", 30080, &["pass"]),
        (outside, "192.0.2.1", 80, &["pass"]),
        // without endpoints
        (pod, "10.43.0.22", 80, &["reject"]),
        ("192.0.2.1", "10.43.0.22", 80, &["reject"]),
        (outside, "192.0.2.1", 30081, &["reject"]),
        // internalTrafficPolicy: Local
        (pod, "10.43.0.23", 80, &["10.42.0.5:8080"]),
        (pod, "10.43.0.25", 80, &["drop"]),
        // externalTrafficPolicy: Local keeps the client's address, and lets those inside go anywhere
        (outside, "192.0.2.1", 30082, &["10.42.0.5:8080"]),
        (pod, "192.0.2.1", 30082, &["10.42.0.5:8080", "10.42.1.5:8080"]),
        ("192.0.2.1", "192.0.2.1", 30082, &["10.42.0.5:8080 masq", "10.42.1.5:8080 masq"]),
        (outside, "192.0.2.1", 30083, &["drop"]),
        (pod, "192.0.2.1", 30083, &["10.42.1.5:8080"]),
        (pod, "10.43.0.24", 80, &["10.42.0.5:8080", "10.42.1.5:8080"]),
        // loadBalancerSourceRanges
        (outside, "198.51.100.9", 80, &["10.42.0.5:8080 masq"]),
        (stranger, "198.51.100.9", 80, &["drop"]),
        (stranger, "10.43.0.26", 80, &["10.42.0.5:8080 masq"]),
        (pod, "10.43.0.27", 80, &["10.42.0.5:8080", "10.42.1.5:8080"]),
        // the cluster DNS is this node's own
        (pod, "10.43.0.10", 53, &["pass"]),
        (pod, "192.0.2.80", 443, &["pass"]),
    ];
    for (source, destination, port, expected) in cases {
        let packet = Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: *port,
            mark: 0,
        };
        let expected: Ways = expected.iter().map(|way| (*way).to_owned()).collect();
        assert_eq!(nft_walk::ways(&tables, packet), expected, "nftables: {source} to {destination}:{port}");
        assert_eq!(iptables_walk::ways(&text, packet), expected, "iptables: {source} to {destination}:{port}");
    }
}

#[test]
fn a_node_reaches_a_load_balancers_address_that_is_its_own() {
    let own: Ipv4Addr = "198.51.100.9".parse().unwrap();
    let packet = Packet { source: own, destination: own, protocol: Protocol::Tcp, port: 80, mark: 0 };
    // whether loadBalancerSourceRanges have the node's address
    for (node, way) in [("203.0.113.1", "10.42.0.5:8080 masq"), ("192.0.2.1", "drop")] {
        let settings = Settings { node_ip: Some(node.parse().unwrap()), ..settings() };
        let expected = Ways::from([way.to_owned()]);
        assert_eq!(nft_walk::ways(&nftables::render(&rules(), &settings), packet), expected, "nftables: {node}");
        assert_eq!(iptables_walk::ways(&iptables::render(&rules(), &settings), packet), expected, "iptables: {node}");
    }
}

#[test]
fn the_nf_tables_writer_rejects_unknown_ports_of_cluster_ips() {
    let tables = nftables::render(&rules(), &settings());
    let packet = Packet {
        source: "10.42.0.9".parse().unwrap(),
        destination: "10.43.0.20".parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 81,
        mark: 0,
    };
    assert_eq!(nft_walk::ways(&tables, packet), Ways::from(["reject".to_owned()]));
}

#[test]
fn another_time_of_affinity_leaves_other_services_their_clients() {
    let (mut rules, settings) = (rules(), settings());
    let before = nftables::render(&rules, &settings);
    rules.ports.get_mut(&name("sticky")).unwrap().affinity = Some(Duration::from_secs(90));
    let changes = nftables::render(&rules, &settings).changes(&before);
    assert!(!changes.describe().contains(&"delete table skiff_proxy"), "{:?}", changes.describe());
    assert!(changes.describe().iter().any(|line| line.starts_with("delete set affinity60-")));
}

#[test]
fn one_changed_endpoint_changes_one_service() {
    let (mut rules, settings) = (rules(), settings());
    let before = nftables::render(&rules, &settings);
    let lines_before = iptables::render(&rules, &settings);
    rules.ports.get_mut(&name("web")).unwrap().cluster_endpoints.pop();
    let changes = nftables::render(&rules, &settings).changes(&before);
    // the Service's chain is refilled, the endpoint's flushed and deleted
    assert!(changes.len() <= 6, "{:?}", changes.describe());
    let lines = iptables::render(&rules, &settings);
    let changed = lines.nat.iter().filter(|(chain, rules)| lines_before.nat.get(*chain) != Some(*rules)).count();
    assert_eq!(changed, 1);
}
