//! The same questions to our plugins and to the distribution's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{BOTH, Call, Host, Sandbox, Suite, call, on_hosts, with_previous};
use netlink::{Rtnl, sysctl};
use serde_json::{Value, json};

const VERSIONS: [&str; 3] = ["0.3.1", "0.4.0", "1.0.0"];

fn bridge_config(host: &Host, version: &str, subnet: &str) -> Value {
    json!({
        "cniVersion": version, "name": "podnet", "type": "bridge", "bridge": "skiff0",
        "isGateway": true, "hairpinMode": true, "mtu": 1450,
        "ipam": {
            "type": "host-local", "ranges": [[{ "subnet": subnet }]],
            "routes": [{ "dst": "0.0.0.0/0" }], "dataDir": host.data_dir(),
        },
    })
}

fn host_veths() -> Vec<String> {
    let links = Rtnl::open().unwrap().links().unwrap();
    links.into_iter().filter(|link| link.kind == "veth").map(|link| link.name).collect()
}

fn echo_once(listener: TcpListener) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).unwrap();
        stream.write_all(&buffer).unwrap();
        peer.ip().to_string()
    })
}

fn talk(address: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

#[test]
fn loopback_comes_up_and_goes_down() {
    on_hosts(&BOTH, |host| {
        let sandbox = Sandbox::new("c1");
        for version in VERSIONS {
            let config = json!({ "cniVersion": version, "name": "cni-loopback", "type": "loopback" });
            let result = call(host, "loopback", "ADD", &sandbox, &config).unwrap();
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["interfaces"][0]["name"], "lo");
            assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
            assert!(Rtnl::open_in(&sandbox.namespace).unwrap().link("lo").unwrap().up);
            call(host, "loopback", "CHECK", &sandbox, &with_previous(&config, &result)).unwrap_or(Value::Null);
            call(host, "loopback", "DEL", &sandbox, &config).unwrap();
            assert!(!Rtnl::open_in(&sandbox.namespace).unwrap().link("lo").unwrap().up);
        }
    });
}

#[test]
fn two_sandboxes_on_a_bridge_reach_each_other_and_the_host() {
    on_hosts(&BOTH, |host| {
        let (a, b) = (Sandbox::new("a"), Sandbox::new("b"));
        let config = bridge_config(host, "1.0.0", "10.42.7.0/24");
        let first = call(host, "bridge", "ADD", &a, &config).unwrap();
        let second = call(host, "bridge", "ADD", &b, &config).unwrap();
        assert_eq!(first["ips"], json!([{ "interface": 2, "address": "10.42.7.2/24", "gateway": "10.42.7.1" }]));
        assert_eq!(second["ips"][0]["address"], "10.42.7.3/24");
        assert_eq!(first["routes"], json!([{ "dst": "0.0.0.0/0" }]));
        assert_eq!(first["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(first["interfaces"][0]["name"], "skiff0");
        assert_eq!(first["interfaces"][2]["sandbox"], a.path());
        assert_eq!(sysctl::read("net/ipv4/ip_forward").unwrap(), "1");
        let server = echo_once(b.namespace.run(|| TcpListener::bind("10.42.7.3:80").unwrap()).unwrap());
        a.namespace.run(|| talk("10.42.7.3:80")).unwrap().unwrap();
        assert_eq!(server.join().unwrap(), "10.42.7.2");
        let server = echo_once(TcpListener::bind("10.42.7.1:80").unwrap());
        a.namespace.run(|| talk("10.42.7.1:80")).unwrap().unwrap();
        server.join().unwrap();
        let eth0 = Rtnl::open_in(&a.namespace).unwrap().link("eth0").unwrap();
        assert_eq!(eth0.mtu, 1450);
        call(host, "bridge", "CHECK", &a, &with_previous(&config, &first)).unwrap();
        Rtnl::open_in(&a.namespace).unwrap().delete_link("eth0").unwrap();
        call(host, "bridge", "CHECK", &a, &with_previous(&config, &first)).unwrap_err();
        for sandbox in [&a, &b, &a] {
            call(host, "bridge", "DEL", sandbox, &config).unwrap();
        }
        assert!(host_veths().is_empty());
        let left: Vec<_> =
            std::fs::read_dir(host.data_dir().join("podnet")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("10.")), "{left:?}");
    });
}

#[test]
fn routed_sandboxes_meet_in_the_hosts_ip_hooks() {
    on_hosts(&[Suite::Ours], |host| {
        // With and without packets on bridges going through the IP hooks.
        for call_iptables in ["0", "1"] {
            if sysctl::read("net/bridge/bridge-nf-call-iptables").is_ok() {
                sysctl::write("net/bridge/bridge-nf-call-iptables", call_iptables).unwrap();
            }
            let (a, b) = (Sandbox::new("a"), Sandbox::new("b"));
            let mut config = bridge_config(host, "1.0.0", "10.42.19.0/24");
            config["routed"] = json!(true);
            let first = call(host, "bridge", "ADD", &a, &config).unwrap();
            let second = call(host, "bridge", "ADD", &b, &config).unwrap();
            assert!(first["ips"][0]["address"].as_str().unwrap().ends_with("/32"));
            let target = second["ips"][0]["address"].as_str().unwrap().trim_end_matches("/32").to_owned();
            let bound = format!("{target}:80");
            let server = echo_once(b.namespace.run(|| TcpListener::bind(&bound).unwrap()).unwrap());
            a.namespace.run(|| talk(&format!("{target}:80"))).unwrap().unwrap();
            server.join().unwrap();
            call(host, "bridge", "CHECK", &a, &with_previous(&config, &first)).unwrap();
            let mut nft = netlink::nft::Nft::open().unwrap();
            use netlink::nft::{BaseChain, ChainType, Family, Hook, Rule, Ruleset, Statement, Table};
            let mut closed = Ruleset::new(Table::new(Family::Ipv4, "skiff_test"));
            closed.base_chain("forward", BaseChain::new(ChainType::Filter, Hook::Forward, 0));
            closed.rule("forward", Rule::new([Statement::drop()]));
            closed.apply_over_unknown(&mut nft).unwrap();
            a.namespace.run(|| talk(&format!("{target}:80"))).unwrap().unwrap_err();
            nft.delete_table(&closed.table).unwrap();
            for sandbox in [&a, &b] {
                call(host, "bridge", "DEL", sandbox, &config).unwrap();
            }
        }
    });
}

#[test]
fn every_version_is_answered_in_itself() {
    on_hosts(&BOTH, |host| {
        for (at, version) in VERSIONS.iter().enumerate() {
            let sandbox = Sandbox::new(&format!("c{at}"));
            let config = bridge_config(host, version, "10.42.8.0/24");
            let result = call(host, "bridge", "ADD", &sandbox, &config).unwrap();
            assert_eq!(result["cniVersion"], *version);
            let family = result["ips"][0].get("version").cloned();
            assert_eq!(family, (*version != "1.0.0").then(|| json!("4")), "{version}");
            call(host, "bridge", "DEL", &sandbox, &config).unwrap();
        }
        let sandbox = Sandbox::new("old");
        let error = call(host, "bridge", "ADD", &sandbox, &bridge_config(host, "9.9.9", "10.42.8.0/24")).unwrap_err();
        assert_eq!((error["code"].as_u64(), error["msg"].as_str()), (Some(1), Some("incompatible CNI versions")));
        let asked = Call {
            host,
            plugin: "bridge",
            command: "VERSION",
            sandbox: None,
            args: "",
            config: json!({"cniVersion": "1.0.0"}),
        };
        let supported = asked.run().unwrap()["supportedVersions"].clone();
        for version in VERSIONS {
            assert!(supported.as_array().unwrap().contains(&json!(version)));
        }
    });
}

#[test]
fn a_full_range_is_an_error_and_leaves_nothing() {
    on_hosts(&BOTH, |host| {
        // a /29: gateway and five sandboxes
        let config = bridge_config(host, "1.0.0", "10.42.9.0/29");
        let sandboxes: Vec<_> = (0..6).map(|number| Sandbox::new(&format!("c{number}"))).collect();
        for sandbox in &sandboxes[..5] {
            call(host, "bridge", "ADD", sandbox, &config).unwrap();
        }
        let error = call(host, "bridge", "ADD", &sandboxes[5], &config).unwrap_err();
        let message = error["msg"].as_str().unwrap();
        assert!(message.contains("no IP addresses available in range set: 10.42.9.1-10.42.9.6"), "{message}");
        call(host, "bridge", "DEL", &sandboxes[5], &config).unwrap();
        assert_eq!(host_veths().len(), 5, "the failed one left no veth");
        call(host, "bridge", "DEL", &sandboxes[2], &config).unwrap();
        let result = call(host, "bridge", "ADD", &sandboxes[5], &config).unwrap();
        assert_eq!(result["ips"][0]["address"], "10.42.9.4/29", "the address that was given back");
    });
}

#[test]
fn addresses_can_be_asked_for() {
    on_hosts(&BOTH, |host| {
        let config = bridge_config(host, "1.0.0", "10.42.10.0/24");
        let (a, b) = (Sandbox::new("a"), Sandbox::new("b"));
        let add = |sandbox, args| {
            Call { host, plugin: "bridge", command: "ADD", sandbox: Some(sandbox), args, config: config.clone() }.run()
        };
        let result = add(&a, "IgnoreUnknown=1;IP=10.42.10.77").unwrap();
        assert_eq!(result["ips"][0]["address"], "10.42.10.77/24");
        add(&b, "IP=10.42.10.77").unwrap_err();
        add(&b, "IP=10.99.0.1").unwrap_err();
        let mut config = config.clone();
        config["runtimeConfig"] = json!({ "mac": "c2:11:22:33:44:55" });
        config["capabilities"] = json!({ "mac": true });
        let result = call(host, "bridge", "ADD", &b, &config).unwrap();
        assert_eq!(result["interfaces"][2]["mac"], "c2:11:22:33:44:55");
    });
}

#[test]
fn bad_configurations_are_refused_with_codes() {
    on_hosts(&BOTH, |host| {
        let sandbox = Sandbox::new("c1");
        let good = bridge_config(host, "1.0.0", "10.42.11.0/24");
        let mut unnamed = good.clone();
        unnamed["name"] = json!("");
        assert_eq!(call(host, "bridge", "ADD", &sandbox, &unnamed).unwrap_err()["code"], 7);
        let mut both = good.clone();
        both["promiscMode"] = json!(true);
        call(host, "bridge", "ADD", &sandbox, &both).unwrap_err();
        let mut subnet = good.clone();
        subnet["ipam"]["ranges"] = json!([[{ "subnet": "10.42.11.0/33" }]]);
        call(host, "bridge", "ADD", &sandbox, &subnet).unwrap_err();
        let mut gone = good.clone();
        gone["ipam"]["type"] = json!("no-such-plugin");
        call(host, "bridge", "ADD", &sandbox, &gone).unwrap_err();
        let named = Sandbox { id: "../../etc".into(), ..Sandbox::new("x") };
        assert_eq!(call(host, "bridge", "ADD", &named, &good).unwrap_err()["code"], 4);
        // The reference leaves the pair of a failed ADD to the runtime's DEL.
        assert!(host.suite == Suite::Reference || host_veths().is_empty());
        let mut same = good.clone();
        same["bridge"] = json!("lo");
        call(host, "bridge", "ADD", &sandbox, &same).unwrap_err();
    });
}

#[test]
fn point_to_point_sandboxes_are_routed() {
    on_hosts(&BOTH, |host| {
        let config = json!({
            "cniVersion": "1.0.0", "name": "ptpnet", "type": "ptp",
            "ipam": { "type": "host-local", "subnet": "10.42.12.0/24", "routes": [{ "dst": "0.0.0.0/0" }], "dataDir": host.data_dir() },
        });
        let (a, b) = (Sandbox::new("a"), Sandbox::new("b"));
        let first = call(host, "ptp", "ADD", &a, &config).unwrap();
        call(host, "ptp", "ADD", &b, &config).unwrap();
        assert_eq!(first["ips"][0]["address"], "10.42.12.2/24");
        let server = echo_once(b.namespace.run(|| TcpListener::bind("10.42.12.3:80").unwrap()).unwrap());
        a.namespace.run(|| talk("10.42.12.3:80")).unwrap().unwrap();
        assert_eq!(server.join().unwrap(), "10.42.12.2");
        call(host, "ptp", "DEL", &a, &config).unwrap();
        call(host, "ptp", "DEL", &b, &config).unwrap();
        assert!(host_veths().is_empty());
    });
}

/// A bridge with a sandbox, then port mappings for it.
fn map_ports(host: &Host, sandbox: &Sandbox, mappings: &Value, routed: bool, backend: &str) -> (Value, Value, Value) {
    let mut config = bridge_config(host, "1.0.0", "10.42.13.0/24");
    config["routed"] = json!(routed);
    let result = call(host, "bridge", "ADD", sandbox, &config).unwrap();
    let ports = json!({
        "cniVersion": "1.0.0", "name": "podnet", "type": "portmap", "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": mappings },
    });
    let mut chained = with_previous(&ports, &result);
    if !backend.is_empty() {
        chained["backend"] = json!(backend);
    }
    let passed = call(host, "portmap", "ADD", sandbox, &chained).unwrap();
    assert_eq!(passed["ips"], result["ips"]);
    (config, chained, result)
}

#[test]
fn host_ports_lead_to_the_sandbox() {
    on_hosts(&BOTH, |host| host_ports(host, false));
    on_hosts(&[Suite::Ours], |host| host_ports(host, true));
}

#[test]
fn host_ports_by_iptables() {
    on_hosts(&[Suite::Ours], |host| host_ports_by(host, true, "iptables"));
}

fn host_ports(host: &Host, routed: bool) {
    host_ports_by(host, routed, "");
}

fn host_ports_by(host: &Host, routed: bool, backend: &str) {
    let (web, client) = (Sandbox::new("web"), Sandbox::new("client"));
    let mappings = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }, { "hostPort": 5353, "containerPort": 53, "protocol": "UDP" }]);
    let (config, chained, result) = map_ports(host, &web, &mappings, routed, backend);
    let result_client = call(host, "bridge", "ADD", &client, &config).unwrap();
    assert_ne!(result["ips"], result_client["ips"]);
    // Bound once: a process that another test is just starting may hold a copy of a socket for a moment.
    let listener = web.namespace.run(|| TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
    let serve = || echo_once(listener.try_clone().unwrap());
    // from a neighbour, from the host by its address, from the host by localhost
    let server = serve();
    client.namespace.run(|| talk("10.42.13.1:8080")).unwrap().unwrap();
    server.join().unwrap();
    let server = serve();
    talk("10.42.13.1:8080").unwrap();
    server.join().unwrap();
    let server = serve();
    talk("127.0.0.1:8080").unwrap();
    assert_eq!(server.join().unwrap(), "10.42.13.1", "localhost is translated");
    // the sandbox itself, by the host's port
    let server = serve();
    web.namespace.run(|| talk("10.42.13.1:8080")).unwrap().unwrap();
    server.join().unwrap();
    let udp = web.namespace.run(|| UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"ping", "10.42.13.1:5353").unwrap();
    udp.recv_from(&mut [0; 8]).unwrap();
    if host.suite == Suite::Ours {
        // The reference (1.1.1) looks for IPv6 rules that it did not make.
        call(host, "portmap", "CHECK", &web, &chained).unwrap();
    }
    call(host, "portmap", "DEL", &web, &chained).unwrap();
    call(host, "portmap", "DEL", &web, &chained).unwrap();
    talk("127.0.0.1:8080").unwrap_err();
    talk("10.42.13.1:8080").unwrap_err();
}

#[test]
fn tuning_sets_parameters() {
    on_hosts(&BOTH, |host| {
        let sandbox = Sandbox::new("c1");
        let result = call(host, "bridge", "ADD", &sandbox, &bridge_config(host, "1.0.0", "10.42.14.0/24")).unwrap();
        let config = json!({ "cniVersion": "1.0.0", "name": "podnet", "type": "tuning", "sysctl": { "net.core.somaxconn": "500" }, "mtu": 1400 });
        let config = with_previous(&config, &result);
        call(host, "tuning", "ADD", &sandbox, &config).unwrap();
        assert_eq!(sandbox.namespace.run(|| sysctl::read("net/core/somaxconn")).unwrap().unwrap(), "500");
        assert_eq!(Rtnl::open_in(&sandbox.namespace).unwrap().link("eth0").unwrap().mtu, 1400);
        call(host, "tuning", "CHECK", &sandbox, &config).unwrap();
        let mut bad = config.clone();
        bad["sysctl"] = json!({ "kernel.hostname": "x" });
        call(host, "tuning", "ADD", &sandbox, &bad).unwrap_err();
    });
}

#[test]
fn bandwidth_is_limited_both_ways() {
    on_hosts(&BOTH, |host| {
        let sandbox = Sandbox::new("c1");
        let result = call(host, "bridge", "ADD", &sandbox, &bridge_config(host, "1.0.0", "10.42.15.0/24")).unwrap();
        let config = json!({
            "cniVersion": "1.0.0", "name": "podnet", "type": "bandwidth",
            "runtimeConfig": { "bandwidth": { "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000 } },
        });
        let config = with_previous(&config, &result);
        call(host, "bandwidth", "ADD", &sandbox, &config).unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        let limited = rtnl.links().unwrap().into_iter().filter(|link| rtnl_has_bucket(link.index)).count();
        assert_eq!(limited, 2, "the veth and the redirection");
        call(host, "bandwidth", "CHECK", &sandbox, &config).unwrap();
        call(host, "bandwidth", "DEL", &sandbox, &config).unwrap();
        assert!(!rtnl.links().unwrap().iter().any(|link| link.kind == "ifb" && !link.name.starts_with("ifb")));
    });
}

fn rtnl_has_bucket(link: u32) -> bool {
    Rtnl::open().unwrap().qdiscs(link).unwrap().contains(&"tbf".to_owned())
}

#[test]
fn masquerading_hides_the_sandbox_from_outside() {
    on_hosts(&BOTH, |host| {
        let mut config = bridge_config(host, "1.0.0", "10.42.16.0/24");
        config["ipMasq"] = json!(true);
        let (a, outside) = (Sandbox::new("a"), Sandbox::new("outside"));
        call(host, "bridge", "ADD", &a, &config).unwrap();
        // a second bridge is the network outside; it knows no route to the sandbox
        let mut other = bridge_config(host, "1.0.0", "192.0.2.0/24");
        other["bridge"] = json!("outside0");
        other["name"] = json!("outside");
        other["ipam"]["routes"] = json!([]);
        call(host, "bridge", "ADD", &outside, &other).unwrap();
        let server = echo_once(outside.namespace.run(|| TcpListener::bind("192.0.2.2:80").unwrap()).unwrap());
        a.namespace.run(|| talk("192.0.2.2:80")).unwrap().unwrap();
        assert_eq!(server.join().unwrap(), "192.0.2.1");
        call(host, "bridge", "DEL", &a, &config).unwrap();
        if host.suite == Suite::Ours {
            let mut nft = netlink::nft::Nft::open().unwrap();
            let table = netlink::nft::Table::new(netlink::nft::Family::Ipv4, "skiff_cni_masquerade");
            assert!(nft.rules(&table).unwrap().is_empty());
        }
    });
}

#[test]
fn garbage_collection_keeps_what_is_valid() {
    on_hosts(&[Suite::Ours], |host| {
        let sandboxes: Vec<_> = ["keep", "lost", "gone"].iter().map(|id| Sandbox::new(id)).collect();
        let mut config = bridge_config(host, "1.1.0", "10.42.17.0/24");
        config["ipMasq"] = json!(true);
        let mut ports = json!({ "cniVersion": "1.1.0", "name": "podnet", "type": "portmap" });
        for (at, sandbox) in sandboxes.iter().enumerate() {
            let result = call(host, "bridge", "ADD", sandbox, &config).unwrap();
            assert_eq!(result["interfaces"][2]["mtu"], 1450);
            ports["runtimeConfig"] =
                json!({ "portMappings": [{ "hostPort": 9000 + at, "containerPort": 80, "protocol": "tcp" }] });
            call(host, "portmap", "ADD", sandbox, &with_previous(&ports, &result)).unwrap();
        }
        let valid = json!([{ "containerID": "keep", "ifname": "eth0" }]);
        for (plugin, config) in [("bridge", &config), ("portmap", &ports)] {
            let mut config = config.clone();
            config["cni.dev/valid-attachments"] = valid.clone();
            Call { host, plugin, command: "GC", sandbox: None, args: "", config }.run().unwrap();
        }
        let reserved = std::fs::read_dir(host.data_dir().join("podnet")).unwrap().flatten();
        let reserved: Vec<_> =
            reserved.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).collect();
        assert_eq!(reserved.len(), 1);
        let mut nft = netlink::nft::Nft::open().unwrap();
        for table in ["skiff_hostports", "skiff_cni_masquerade"] {
            let table = netlink::nft::Table::new(netlink::nft::Family::Ipv4, table);
            let rules = nft.rules(&table).unwrap();
            let owners: Vec<_> = rules.iter().filter(|rule| !rule.comment.is_empty()).collect();
            assert!(!owners.is_empty() && owners.iter().all(|rule| rule.comment == "podnet/keep/eth0"), "{owners:?}");
        }
        let status =
            |config: Value| Call { host, plugin: "bridge", command: "STATUS", sandbox: None, args: "", config }.run();
        status(config.clone()).unwrap();
        let mut broken = config;
        broken["ipam"]["ranges"] = json!([]);
        assert_eq!(status(broken).unwrap_err()["code"], 50);
    });
}

#[test]
fn many_sandboxes_at_once_get_different_addresses() {
    on_hosts(&[Suite::Ours], |host| {
        let config = bridge_config(host, "1.0.0", "10.42.18.0/24");
        let namespace = netlink::Namespace::current().unwrap();
        let addresses: Vec<Value> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20)
                .map(|number| {
                    let (config, namespace) = (&config, &namespace);
                    scope.spawn(move || {
                        let sandbox = Sandbox::new(&format!("c{number}"));
                        namespace
                            .run(|| call(host, "bridge", "ADD", &sandbox, config).unwrap()["ips"][0]["address"].clone())
                            .unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let distinct: std::collections::HashSet<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(distinct.len(), 20);
    });
}
