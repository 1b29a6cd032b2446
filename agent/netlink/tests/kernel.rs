//! Against the running kernel, in network namespaces of the tests' own threads: they vanish with
//! the thread. Needs root; `nft` is used to read back what was written.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;
use std::time::Duration;

use netlink::nft::{
    BaseChain, ChainType, Family, Field, Hook, KeyPart, KeyType, Nft, Reject, Rule, Ruleset, SetKind, SetSpec,
    Statement, Table, Verdict, key, priority,
};
use netlink::{
    Address, BridgePort, ForwardingEntry, IpNet, LinkKind, Mac, Namespace, Neighbour, PROTOCOL_SKIFF, Route, Rtnl,
    TokenBucket, VethPeer,
};

/// Runs `test` on a thread in a network namespace of its own.
fn isolated(test: impl FnOnce() + Send + 'static) {
    let outcome = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("making a network namespace needs root: run the tests as root");
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A second namespace, kept open by its handle.
fn other_namespace() -> Namespace {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        Namespace::current().unwrap()
    })
    .join()
    .unwrap()
}

fn nft_list() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("nft: apt-get install nftables");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn links_addresses_and_routes() {
    isolated(|| {
        let mut here = Rtnl::open().unwrap();
        let pod = other_namespace();
        let lo = here.link("lo").unwrap();
        assert!(lo.loopback && !lo.up);
        here.set_up(lo.index).unwrap();
        here.create_link("skiff0", &LinkKind::Bridge, 1450, None).unwrap();
        assert!(here.create_link("skiff0", &LinkKind::Bridge, 0, None).unwrap_err().is_exists());
        let bridge = here.link("skiff0").unwrap();
        assert_eq!((bridge.kind.as_str(), bridge.mtu), ("bridge", 1450));
        let mac: Mac = "0a:58:0a:2a:00:02".parse().unwrap();
        let peer = VethPeer { name: "eth0", mac: Some(mac), namespace: Some(&pod) };
        here.create_link("veth1", &LinkKind::Veth { peer }, 1450, None).unwrap();
        let veth = here.link("veth1").unwrap();
        here.attach_to_bridge(veth.index, bridge.index, BridgePort { hairpin: true, isolated: false }).unwrap();
        assert_eq!(here.link("veth1").unwrap().master, Some(bridge.index));
        here.set_up(bridge.index).unwrap();
        let gateway: IpNet = "10.42.0.1/24".parse().unwrap();
        here.add_address(&Address::new(bridge.index, gateway)).unwrap();
        assert_eq!(here.addresses_of(bridge.index).unwrap()[0].net, gateway);

        let mut there = Rtnl::open_in(&pod).unwrap();
        let eth0 = there.link("eth0").unwrap();
        assert_eq!(eth0.mac, Some(mac));
        there.set_up(eth0.index).unwrap();
        there.add_address(&Address::new(eth0.index, "10.42.0.2/24".parse().unwrap())).unwrap();
        let default = Route::via("0.0.0.0/0".parse().unwrap(), gateway.address, eth0.index);
        there.add_route(&default).unwrap();
        assert!(there.add_route(&default).unwrap_err().is_exists());
        assert!(there.routes().unwrap().contains(&default));
        assert_eq!(there.route_to("9.9.9.9".parse().unwrap()).unwrap().0, eth0.index);

        let mut route = Route::via("10.42.1.0/24".parse().unwrap(), "192.0.2.7".parse().unwrap(), bridge.index);
        route.onlink = true;
        route.protocol = PROTOCOL_SKIFF;
        here.replace_route(&route).unwrap();
        here.replace_route(&route).unwrap();
        assert!(here.routes().unwrap().contains(&route));
        here.delete_route(&route).unwrap();
        assert!(here.delete_route(&route).unwrap_err().is_missing());
        here.delete_link("veth1").unwrap();
        assert!(there.find_link("eth0").unwrap().is_none());
        assert!(here.delete_link("veth1").unwrap_err().is_missing());
    });
}

#[test]
fn vxlan_neighbours_and_forwarding_entries() {
    isolated(|| {
        let mut rtnl = Rtnl::open().unwrap();
        let mac: Mac = "0a:58:00:00:00:01".parse().unwrap();
        rtnl.create_link("under", &LinkKind::Bridge, 0, None).unwrap();
        let device = rtnl.link("under").unwrap().index;
        let kind = LinkKind::Vxlan { id: 42, port: 8472, local: "192.0.2.1".parse().unwrap(), device };
        rtnl.create_link("skiff.vxlan", &kind, 0, Some(mac)).unwrap();
        let link = rtnl.link("skiff.vxlan").unwrap();
        assert_eq!((link.vxlan_id(), link.vxlan_port(), link.mac), (Some(42), Some(8472), Some(mac)));
        rtnl.set_up(link.index).unwrap();
        let neighbour = Neighbour { link: link.index, address: "10.42.1.0".parse().unwrap(), mac };
        rtnl.replace_neighbour(&neighbour).unwrap();
        assert_eq!(rtnl.neighbours(link.index).unwrap(), [neighbour]);
        let entry = ForwardingEntry { link: link.index, mac, remote: "192.0.2.2".parse().unwrap() };
        rtnl.replace_forwarding(&entry).unwrap();
        assert_eq!(rtnl.forwarding(link.index).unwrap(), [entry]);
        rtnl.delete_forwarding(&entry).unwrap();
        rtnl.delete_neighbour(&neighbour).unwrap();
        assert!(rtnl.forwarding(link.index).unwrap().is_empty());
    });
}

#[test]
fn rates_are_limited_both_ways() {
    isolated(|| {
        let mut rtnl = Rtnl::open().unwrap();
        let peer = VethPeer { name: "b", mac: None, namespace: None };
        rtnl.create_link("a", &LinkKind::Veth { peer }, 0, None).unwrap();
        rtnl.create_link("ifb1", &LinkKind::Ifb, 0, None).unwrap();
        let (a, ifb) = (rtnl.link("a").unwrap().index, rtnl.link("ifb1").unwrap().index);
        rtnl.set_up(ifb).unwrap();
        let bucket = TokenBucket { rate: 125_000, burst: 15_000, latency: 25 };
        rtnl.replace_token_bucket(a, &bucket).unwrap();
        rtnl.replace_token_bucket(ifb, &bucket).unwrap();
        rtnl.redirect_ingress(a, ifb).unwrap();
        let kinds = rtnl.qdiscs(a).unwrap();
        assert!(kinds.contains(&"tbf".to_owned()) && kinds.contains(&"ingress".to_owned()), "{kinds:?}");
        let shown = Command::new("tc").args(["qdisc", "show", "dev", "a"]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("rate 1Mbit burst 1500") && shown.contains("lat 25ms"), "{shown}");
        rtnl.delete_root_qdisc(a).unwrap();
    });
}

/// Every statement there is, so that nft can be asked how the kernel understood it.
fn everything() -> Ruleset {
    let mut ruleset = Ruleset::new(Table::new(Family::Ipv4, "skiff_test"));
    let nat = BaseChain::new(ChainType::Nat, Hook::Prerouting, priority::DSTNAT);
    ruleset.base_chain("prerouting", nat);
    ruleset.base_chain("postrouting", BaseChain::new(ChainType::Nat, Hook::Postrouting, priority::SRCNAT));
    ruleset.base_chain("forward", BaseChain::new(ChainType::Filter, Hook::Forward, priority::FILTER));
    ruleset.base_chain("raw", BaseChain::new(ChainType::Filter, Hook::Prerouting, priority::RAW));
    let services = SetSpec::new([KeyType::Ipv4, KeyType::Protocol, KeyType::Port], SetKind::VerdictMap);
    let fields = vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
    ruleset.rule("prerouting", Rule::new([Statement::VerdictMap { fields, map: "services".into() }]));
    let ip = "10.43.0.1".parse().unwrap();
    let service_key = key(&[KeyPart::Address(ip), KeyPart::Protocol(6), KeyPart::Port(443)]);
    let goto = netlink::nft::ElementValue::Verdict(Verdict::Goto("service".into()));
    ruleset.set("services", services).elements.insert(service_key, goto);
    let sticky = SetKind::Dynamic { timeout: Duration::from_secs(10_800) };
    ruleset.set("sticky", SetSpec::new([KeyType::Ipv4], sticky));
    ruleset.set("pods", SetSpec::new([KeyType::Ipv4], SetKind::Set));
    ruleset.rule(
        "service",
        Rule::new([
            Statement::not_in_net(Field::SourceAddress, "10.42.0.0/16".parse().unwrap()),
            Statement::OrMark(0x4000),
        ])
        .comment("from outside"),
    );
    ruleset.rule(
        "service",
        Rule::new([Statement::RandomVerdict(vec![Verdict::Goto("endpoint".into()), Verdict::Goto("endpoint".into())])]),
    );
    let source = vec![Field::SourceAddress];
    ruleset.rule("endpoint", Rule::new([Statement::UpdateSet { set: "sticky".into(), fields: source.clone() }]));
    let target = Statement::DestinationNat { address: "10.42.0.5".parse().unwrap(), port: 8080 };
    ruleset.rule("endpoint", Rule::new([Statement::equals(Field::Protocol, [6]), target]));
    ruleset.rule(
        "postrouting",
        Rule::new([Statement::has_bits(Field::Mark, 0x4000), Statement::Masquerade { fully_random: true }]),
    );
    ruleset.rule(
        "forward",
        Rule::new([Statement::InSet { fields: source, set: "pods".into(), negated: true }, Statement::Counter]),
    );
    ruleset.rule(
        "forward",
        Rule::new([Statement::has_bits(Field::ConntrackState, Field::NEW), Statement::Reject(Reject::PortUnreachable)]),
    );
    ruleset
        .rule("forward", Rule::new([Statement::interface(Field::InputInterface, "skiff0", false), Statement::drop()]));
    ruleset.rule(
        "forward",
        Rule::new([Statement::has_bits(Field::ConntrackStatus, Field::STATUS_DNAT), Statement::accept()]),
    );
    ruleset.rule("forward", Rule::new([Statement::equals(Field::OriginalDestination, [10, 43, 0, 1])]));
    ruleset.rule(
        "raw",
        Rule::new([Statement::equals(Field::DestinationType, Field::LOCAL.to_ne_bytes()), Statement::NoTrack]),
    );
    ruleset
}

#[test]
fn rules_are_what_nft_reads_back() {
    isolated(|| {
        let mut nft = Nft::open().unwrap();
        let ruleset = everything();
        ruleset.apply_over_unknown(&mut nft).unwrap();
        let listed = nft_list();
        for expected in [
            "ip daddr . meta l4proto . th dport vmap @services",
            "10.43.0.1 . tcp . 443 : goto service",
            "ip saddr != 10.42.0.0/16 meta mark set meta mark | 0x00004000 comment \"from outside\"",
            "numgen random mod 2 vmap { 0 : goto endpoint, 1 : goto endpoint }",
            "update @sticky { ip saddr }",
            "dnat to 10.42.0.5:8080",
            "masquerade fully-random",
            "ip saddr != @pods counter",
            "reject",
            "iifname \"skiff0\" drop",
            "ct status dnat accept",
            "ct original ip daddr 10.43.0.1",
            "fib daddr type local notrack",
            "timeout 3h",
        ] {
            assert!(listed.contains(expected), "no {expected:?} in:\n{listed}");
        }
    });
}

#[test]
fn a_table_is_adopted_changed_and_removed() {
    isolated(|| {
        let mut nft = Nft::open().unwrap();
        let old = everything();
        old.apply_over_unknown(&mut nft).unwrap();
        let add = ["add", "element", "ip", "skiff_test", "sticky", "{ 10.42.0.9 }"];
        assert!(Command::new("nft").args(add).status().unwrap().success());
        let before = nft_list();
        // a process that knows nothing about the table's content makes it the same again
        old.apply_over_unknown(&mut nft).unwrap();
        let sticky = nft.keys(&old.table, "sticky").unwrap();
        assert_eq!(sticky, [[10, 42, 0, 9]], "what a rule learnt outlives an adoption");
        assert_eq!(before.lines().count(), nft_list().lines().count());

        let mut new = old.clone();
        new.chains.remove("service");
        new.sets.get_mut("services").unwrap().elements.clear();
        new.chain("forward").rules.clear();
        new.sets.remove("pods");
        nft.commit(new.changes(&old)).unwrap();
        let listed = nft_list();
        assert!(!listed.contains("chain service {") && !listed.contains("@pods"), "{listed}");
        new.apply_over_unknown(&mut nft).unwrap();
        let error = nft.commit(old.changes(&new).tap_missing_chain()).unwrap_err();
        assert!(error.to_string().contains("add a rule to chain nowhere"), "{error}");
        assert!(!nft_list().contains("chain service {"), "a refused transaction changes nothing");
        nft.delete_table(&new.table).unwrap();
        nft.delete_table(&new.table).unwrap();
        assert_eq!(nft_list(), "");
    });
}

trait TapMissingChain {
    fn tap_missing_chain(self) -> Self;
}

impl TapMissingChain for netlink::nft::Transaction {
    fn tap_missing_chain(mut self) -> Self {
        self.add_rule("nowhere", &Rule::new([Statement::accept()]));
        self
    }
}

#[test]
fn thousands_of_services_fit_in_one_transaction() {
    isolated(|| {
        let mut ruleset = everything();
        for number in 0..2000u32 {
            let name = format!("service-{number}");
            ruleset.rule(&name, Rule::new([Statement::RandomVerdict(vec![Verdict::Goto("endpoint".into())])]));
            let ip = std::net::IpAddr::from((0x0a2b_0000 + 10 + number).to_be_bytes());
            let element = key(&[KeyPart::Address(ip), KeyPart::Protocol(6), KeyPart::Port(80)]);
            let goto = netlink::nft::ElementValue::Verdict(Verdict::Goto(name));
            ruleset.sets.get_mut("services").unwrap().elements.insert(element, goto);
        }
        let mut nft = Nft::open().unwrap();
        ruleset.apply_over_unknown(&mut nft).unwrap();
        assert_eq!(nft.keys(&ruleset.table, "services").unwrap().len(), 2001);
        ruleset.apply_over_unknown(&mut nft).unwrap();
    });
}

#[test]
fn conntrack_entries_are_listed_and_deleted() {
    isolated(|| {
        let mut rtnl = Rtnl::open().unwrap();
        let lo = rtnl.link("lo").unwrap();
        rtnl.set_up(lo.index).unwrap();
        // conntrack only runs where a rule asks for it
        let mut nft = Nft::open().unwrap();
        let mut ruleset = Ruleset::new(Table::new(Family::Ipv4, "skiff_test"));
        ruleset.base_chain("output", BaseChain::new(ChainType::Nat, Hook::Output, priority::DSTNAT));
        let dnat = Statement::DestinationNat { address: "127.0.0.1".parse().unwrap(), port: 9999 };
        ruleset.rule(
            "output",
            Rule::new([
                Statement::equals(Field::Protocol, [17]),
                Statement::equals(Field::DestinationPort, 53u16.to_be_bytes()),
                dnat,
            ]),
        );
        ruleset.apply_over_unknown(&mut nft).unwrap();
        let server = std::net::UdpSocket::bind("127.0.0.1:9999").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"ping", "127.0.0.53:53").unwrap();
        server.recv_from(&mut [0; 8]).unwrap();
        let mut conntrack = netlink::conntrack::Conntrack::open().unwrap();
        let flows = conntrack.list(17).unwrap();
        assert_eq!(flows.len(), 1);
        assert!(flows[0].is_destination_nat());
        assert_eq!(flows[0].original.destination_port, 53);
        assert_eq!((flows[0].reply.source, flows[0].reply.source_port), ("127.0.0.1".parse().unwrap(), 9999));
        assert_eq!(conntrack.delete_matching(17, |flow| flow.original.destination_port == 53).unwrap(), 1);
        assert!(conntrack.list(17).unwrap().is_empty());
    });
}
