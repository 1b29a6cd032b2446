//! Real packets through the rules of both writers, in network namespaces of the tests' own threads.
//! Needs root, nft and iptables.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use netlink::{Address, BridgePort, LinkKind, Namespace, Route, Rtnl, VethPeer, sysctl};
use proxy::model::{Endpoint, PortName, Protocol, Rules, ServicePort};
use proxy::{Kernel, Mode, Settings};

/// Runs `test` once per writer, each on a node of its own.
fn on_nodes(test: impl Fn(&Node) + Send + Sync) {
    for mode in [Mode::Nftables, Mode::Iptables] {
        let outcome = std::thread::scope(|scope| scope.spawn(|| test(&Node::new(mode))).join());
        if let Err(panic) = outcome {
            eprintln!("failed with {mode:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn namespace() -> Namespace {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
        let mut rtnl = Rtnl::open().unwrap();
        let lo = rtnl.link("lo").unwrap();
        rtnl.set_up(lo.index).unwrap();
        Namespace::current().unwrap()
    })
    .join()
    .unwrap()
}

/// A node with three pods and a client outside. The calling thread is in its namespace.
struct Node {
    mode: Mode,
    pods: Vec<Namespace>,
    outside: Namespace,
}

const NODE_IP: &str = "192.0.2.1";

impl Node {
    fn new(mode: Mode) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
        let mut rtnl = Rtnl::open().unwrap();
        let lo = rtnl.link("lo").unwrap();
        rtnl.set_up(lo.index).unwrap();
        sysctl::ensure("net/ipv4/ip_forward", "1").unwrap();
        rtnl.create_link("skiff0", &LinkKind::Bridge, 0, None).unwrap();
        let bridge = rtnl.link("skiff0").unwrap().index;
        rtnl.add_address(&Address::new(bridge, "10.42.0.1/24".parse().unwrap())).unwrap();
        rtnl.set_up(bridge).unwrap();
        for name in ["net/ipv4/conf/skiff0/send_redirects", "net/ipv4/conf/all/send_redirects"] {
            sysctl::ensure(name, "0").unwrap();
        }
        let pods: Vec<Namespace> = (2..5)
            .map(|number| {
                let pod = namespace();
                let index =
                    plug(&mut rtnl, &pod, &format!("pod{number}"), &format!("10.42.0.{number}/32"), "10.42.0.1");
                rtnl.attach_to_bridge(index, bridge, BridgePort { hairpin: true, isolated: false }).unwrap();
                pod
            })
            .collect();
        let outside = namespace();
        let uplink = plug(&mut rtnl, &outside, "uplink", "192.0.2.9/24", NODE_IP);
        rtnl.add_address(&Address::new(uplink, format!("{NODE_IP}/24").parse().unwrap())).unwrap();
        rtnl.set_up(uplink).unwrap();
        // Without a route to it, a process here cannot even begin to send to a cluster IP.
        rtnl.add_route(&Route::direct("10.43.0.0/16".parse().unwrap(), bridge, netlink::RouteScope::Link)).unwrap();
        Self { mode, pods, outside }
    }

    fn serve_tcp(&self, pod: usize) {
        let listener = self.pods[pod].run(|| TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip();
                let local = stream.local_addr().unwrap().ip();
                std::thread::spawn(move || {
                    let mut buffer = [0; 4];
                    while stream.read_exact(&mut buffer).is_ok() {
                        stream.write_all(format!("{local} {peer}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
    }
}

fn plug(rtnl: &mut Rtnl, other: &Namespace, name: &str, address: &str, gateway: &str) -> u32 {
    let peer = VethPeer { name: "eth0", mac: None, namespace: Some(other) };
    rtnl.create_link(name, &LinkKind::Veth { peer }, 0, None).unwrap();
    let mut inside = Rtnl::open_in(other).unwrap();
    let eth0 = inside.link("eth0").unwrap().index;
    inside.add_address(&Address::new(eth0, address.parse().unwrap())).unwrap();
    inside.set_up(eth0).unwrap();
    let gateway_net = netlink::IpNet::host(gateway.parse().unwrap());
    inside.add_route(&Route::direct(gateway_net, eth0, netlink::RouteScope::Link)).unwrap();
    inside.add_route(&Route::via("0.0.0.0/0".parse().unwrap(), gateway.parse().unwrap(), eth0)).unwrap();
    rtnl.link(name).unwrap().index
}

fn connect(to: &str) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(stream)
}

/// The server's address and the client's as the server sees it.
fn ask(stream: &mut TcpStream) -> std::io::Result<(String, String)> {
    stream.write_all(b"ping")?;
    let mut line = String::new();
    let mut byte = [0];
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte)?;
        line.push(byte[0].into());
    }
    let (server, client) = line.trim().split_once(' ').unwrap();
    Ok((server.to_owned(), client.to_owned()))
}

fn talk(to: &str) -> std::io::Result<(String, String)> {
    ask(&mut connect(to)?)
}

fn settings() -> Settings {
    Settings {
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        node_port_nets: Vec::new(),
        served_here: Some("10.43.0.10".parse().unwrap()),
        node_ip: None,
    }
}

fn endpoints(numbers: &[u8]) -> Vec<Endpoint> {
    numbers
        .iter()
        .map(|number| Endpoint { address: Ipv4Addr::new(10, 42, 0, *number), port: 8080, local: true })
        .collect()
}

fn rules(protocol: Protocol, numbers: &[u8], affinity: Option<Duration>) -> Rules {
    let name = PortName { namespace: "default".into(), service: "web".into(), port: "http".into(), protocol };
    let port = ServicePort {
        cluster_ip: "10.43.0.20".parse().unwrap(),
        port: 80,
        node_port: Some(30080),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity,
        internal_local: false,
        external_local: false,
        cluster_endpoints: endpoints(numbers),
        local_endpoints: Vec::new(),
        usable_elsewhere: !numbers.is_empty(),
        serving_endpoints: endpoints(numbers),
    };
    Rules { ports: BTreeMap::from([(name, port)]), health_checks: BTreeMap::new() }
}

fn servers_seen(count: usize, to: &str) -> BTreeSet<String> {
    (0..count).map(|_| talk(to).unwrap().0).collect()
}

#[test]
fn services_reach_their_endpoints_as_these_come_and_go() {
    on_nodes(|node| {
        let mut kernel = Kernel::new(node.mode);
        node.serve_tcp(0);
        node.serve_tcp(1);
        let both = BTreeSet::from(["10.42.0.2".to_owned(), "10.42.0.3".to_owned()]);
        kernel.write(&rules(Protocol::Tcp, &[2, 3], None), &settings()).unwrap();
        // from a pod, with its own address
        assert_eq!(node.pods[2].run(|| servers_seen(40, "10.43.0.20:80")).unwrap(), both);
        assert_eq!(node.pods[2].run(|| talk("10.43.0.20:80").unwrap().1).unwrap(), "10.42.0.4");
        // from an endpoint to itself: through the node
        assert_eq!(node.pods[0].run(|| servers_seen(40, "10.43.0.20:80")).unwrap(), both);
        // from the node itself and from outside
        assert_eq!(servers_seen(40, "10.43.0.20:80"), both);
        assert_eq!(node.outside.run(|| servers_seen(40, &format!("{NODE_IP}:30080"))).unwrap(), both);
        assert_eq!(servers_seen(40, &format!("{NODE_IP}:30080")), both);
        if node.mode == Mode::Iptables {
            assert_eq!(servers_seen(40, "127.0.0.1:30080").len(), 2);
        }
        // one endpoint goes: its open connection stays, new ones go to the other
        let mut open = node.pods[2].run(|| connect("10.43.0.20:80").unwrap()).unwrap();
        let (held_by, _) = ask(&mut open).unwrap();
        kernel.write(&rules(Protocol::Tcp, &[3], None), &settings()).unwrap();
        assert_eq!(
            node.pods[2].run(|| servers_seen(20, "10.43.0.20:80")).unwrap(),
            BTreeSet::from(["10.42.0.3".to_owned()])
        );
        assert_eq!(ask(&mut open).unwrap().0, held_by);
        // another process takes over: nothing breaks
        let mut kernel = Kernel::new(node.mode);
        kernel.write(&rules(Protocol::Tcp, &[2, 3], None), &settings()).unwrap();
        assert_eq!(ask(&mut open).unwrap().0, held_by);
        assert_eq!(node.pods[2].run(|| servers_seen(40, "10.43.0.20:80")).unwrap(), both);
        // none left: refused at once, everywhere
        kernel.write(&rules(Protocol::Tcp, &[], None), &settings()).unwrap();
        let refused = |outcome: std::io::Result<(String, String)>| {
            let error = outcome.unwrap_err();
            assert!(
                matches!(error.kind(), std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::HostUnreachable),
                "{error:?}"
            );
        };
        refused(node.pods[2].run(|| talk("10.43.0.20:80")).unwrap());
        refused(talk("10.43.0.20:80"));
        refused(node.outside.run(|| talk(&format!("{NODE_IP}:30080"))).unwrap());
        // the Service itself goes
        kernel.write(&Rules::default(), &settings()).unwrap();
        kernel.audit().unwrap();
        assert_eq!(proxy::cleanup(), Vec::<String>::new());
        assert_nothing_left();
    });
}

fn assert_nothing_left() {
    let output = |program: &str, arguments: &[&str]| {
        String::from_utf8(Command::new(program).args(arguments).output().unwrap().stdout).unwrap()
    };
    let tables = output("nft", &["list", "ruleset"]);
    assert!(!tables.contains("skiff") && !tables.contains("KUBE-"), "{tables}");
}

#[test]
fn clients_stick_to_their_endpoint_when_asked() {
    on_nodes(|node| {
        node.serve_tcp(0);
        node.serve_tcp(1);
        let mut kernel = Kernel::new(node.mode);
        let sticky = rules(Protocol::Tcp, &[2, 3], Some(Duration::from_secs(60)));
        kernel.write(&sticky, &settings()).unwrap();
        let first = node.pods[2].run(|| servers_seen(20, "10.43.0.20:80")).unwrap();
        assert_eq!(first.len(), 1, "one client, one endpoint");
        if node.mode == Mode::Nftables {
            // what the kernel learnt outlives the process that wrote the rules
            Kernel::new(node.mode).write(&sticky, &settings()).unwrap();
            assert_eq!(node.pods[2].run(|| servers_seen(20, "10.43.0.20:80")).unwrap(), first);
        }
        proxy::cleanup();
    });
}

/// Answers with the pod's number.
fn serve_udp(node: &Node, pod: usize) {
    let socket = node.pods[pod].run(|| UdpSocket::bind("0.0.0.0:8080").unwrap()).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&[pod as u8], peer);
        }
    });
}

/// One socket, one source port: one conntrack entry.
fn udp_client(namespace: &Namespace) -> UdpSocket {
    let client = namespace.run(|| UdpSocket::bind("0.0.0.0:5555").unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    client
}

fn ask_udp(client: &UdpSocket, to: &str) -> u8 {
    let mut answer = [9];
    for _ in 0..5 {
        client.send_to(b"ping", to).unwrap();
        if client.recv_from(&mut answer).is_ok() {
            break;
        }
    }
    answer[0]
}

#[test]
fn udp_clients_follow_their_service() {
    on_nodes(|node| {
        serve_udp(node, 0);
        serve_udp(node, 1);
        let mut kernel = Kernel::new(node.mode);
        kernel.write(&rules(Protocol::Udp, &[2], None), &settings()).unwrap();
        let client = udp_client(&node.pods[2]);
        assert_eq!(ask_udp(&client, "10.43.0.20:80"), 0);
        kernel.write(&rules(Protocol::Udp, &[3], None), &settings()).unwrap();
        assert_eq!(ask_udp(&client, "10.43.0.20:80"), 1, "the flow of the endpoint that is gone was ended");
        proxy::cleanup();
    });
}

#[test]
fn udp_flows_stay_with_who_serves_and_leave_who_went_while_no_proxy_ran() {
    on_nodes(|node| {
        serve_udp(node, 0);
        serve_udp(node, 1);
        let node_port = format!("{NODE_IP}:30080");
        let mut kernel = Kernel::new(node.mode);
        kernel.write(&rules(Protocol::Udp, &[2], None), &settings()).unwrap();
        let client = udp_client(&node.outside);
        assert_eq!(ask_udp(&client, &node_port), 0);
        // it terminates: new flows go to the other one
        let mut leaving = rules(Protocol::Udp, &[3], None);
        for port in leaving.ports.values_mut() {
            port.serving_endpoints = endpoints(&[2, 3]);
        }
        kernel.write(&leaving, &settings()).unwrap();
        assert_eq!(ask_udp(&client, &node_port), 0, "an endpoint that still serves keeps its flow");
        // another process: nobody told it of the endpoint that is gone
        let mut kernel = Kernel::new(node.mode);
        kernel.write(&rules(Protocol::Udp, &[3], None), &settings()).unwrap();
        assert_eq!(ask_udp(&client, &node_port), 1, "its flow was ended");
        proxy::cleanup();
    });
}

#[test]
fn a_table_that_somebody_removed_comes_back() {
    on_nodes(|node| {
        node.serve_tcp(0);
        let rules = rules(Protocol::Tcp, &[2], None);
        let mut kernel = Kernel::new(node.mode);
        kernel.write(&rules, &settings()).unwrap();
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
        assert!(node.pods[2].run(|| talk("10.43.0.20:80")).unwrap().is_err());
        kernel.audit().unwrap();
        kernel.write(&rules, &settings()).unwrap();
        node.pods[2].run(|| talk("10.43.0.20:80")).unwrap().unwrap();
        proxy::cleanup();
    });
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    on_nodes(|node| {
        node.serve_tcp(0);
        let rules = rules(Protocol::Tcp, &[2], None);
        let mut kernel = Kernel::new(node.mode);
        kernel.write(&rules, &settings()).unwrap();
        // the chains stay, without their rules
        let flush: &[&str] = match node.mode {
            Mode::Iptables => &["iptables", "-t", "nat", "-F"],
            Mode::Auto | Mode::Nftables => &["nft", "flush", "table", "ip", "skiff_proxy"],
        };
        assert!(Command::new(flush[0]).args(&flush[1..]).status().unwrap().success());
        assert!(node.pods[2].run(|| talk("10.43.0.20:80")).unwrap().is_err());
        kernel.audit().unwrap();
        kernel.write(&rules, &settings()).unwrap();
        node.pods[2].run(|| talk("10.43.0.20:80")).unwrap().unwrap();
        proxy::cleanup();
    });
}
