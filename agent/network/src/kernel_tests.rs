//! Nodes in network namespaces of their own, joined by a bridge; pods connected by the plan.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use netlink::nft::{Family, Nft};
use netlink::{Address, IpNet, LinkKind, Namespace, Rtnl, VethPeer};

use super::*;
use crate::plan::plan;
use crate::{Backend, Config};

fn namespace() -> Namespace {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("making a network namespace needs root: run the tests as root");
        let mut rtnl = Rtnl::open().unwrap();
        let lo = rtnl.link("lo").unwrap();
        rtnl.set_up(lo.index).unwrap();
        Namespace::current().unwrap()
    });
    made.join().unwrap()
}

struct Node {
    namespace: Namespace,
    config: Config,
    pods: IpNet,
}

/// Nodes 192.0.2.1, 192.0.2.2, ... on one bridge, in a namespace that is only cable.
fn nodes(count: u8, backend: Backend) -> (Namespace, Vec<Node>) {
    let cable = namespace();
    let mut rtnl = Rtnl::open_in(&cable).unwrap();
    rtnl.create_link("cable", &LinkKind::Bridge, 0, None).unwrap();
    let bridge = rtnl.link("cable").unwrap().index;
    rtnl.set_up(bridge).unwrap();
    let nodes = (1..=count).map(|number| {
        let namespace = namespace();
        let peer = VethPeer { name: "eth0", mac: None, namespace: Some(&namespace) };
        let name = format!("node{number}");
        rtnl.create_link(&name, &LinkKind::Veth { peer }, 0, None).unwrap();
        let port = rtnl.link(&name).unwrap().index;
        rtnl.attach_to_bridge(port, bridge, netlink::BridgePort::default()).unwrap();
        let mut inside = Rtnl::open_in(&namespace).unwrap();
        let eth0 = inside.link("eth0").unwrap().index;
        let ip = Ipv4Addr::new(192, 0, 2, number);
        inside.add_address(&Address::new(eth0, IpNet::new(ip.into(), 24))).unwrap();
        inside.set_up(eth0).unwrap();
        let config = Config { backend, ..Config::new(name, ip) };
        Node { namespace, config, pods: IpNet::new(Ipv4Addr::new(10, 42, number, 0).into(), 24) }
    });
    let nodes = nodes.collect();
    (cable, nodes)
}

fn peers(nodes: &[Node]) -> Vec<Peer> {
    nodes
        .iter()
        .map(|node| Peer { name: node.config.node_name.clone(), address: node.config.node_ip, pods: node.pods })
        .collect()
}

fn bring_up(node: &Node, peers: Vec<Peer>) {
    let work = || {
        let plan = plan(&node.config, &uplink(node.config.node_ip).unwrap(), peers).unwrap();
        apply(&plan).unwrap();
        // again: nothing to do is no error
        apply(&plan).unwrap();
    };
    node.namespace.run(work).unwrap();
}

/// A pod as the CNI plugin makes it.
fn pod(node: &Node, number: u8) -> (Namespace, Ipv4Addr) {
    let pod = namespace();
    let IpAddr::V4(base) = node.pods.address else { panic!("an IPv4 prefix") };
    let address = Ipv4Addr::from(u32::from(base) + u32::from(number));
    let gateway = Ipv4Addr::from(u32::from(base) + 1);
    let mut host = Rtnl::open_in(&node.namespace).unwrap();
    let name = format!("pod{number}");
    let peer = VethPeer { name: "eth0", mac: None, namespace: Some(&pod) };
    host.create_link(&name, &LinkKind::Veth { peer }, 0, None).unwrap();
    let bridge = host.link(BRIDGE).unwrap().index;
    let port = host.link(&name).unwrap().index;
    host.attach_to_bridge(port, bridge, netlink::BridgePort::default()).unwrap();
    let mut inside = Rtnl::open_in(&pod).unwrap();
    let eth0 = inside.link("eth0").unwrap().index;
    inside.add_address(&Address::new(eth0, IpNet::host(address.into()))).unwrap();
    inside.set_up(eth0).unwrap();
    inside.add_route(&Route::direct(IpNet::host(gateway.into()), eth0, RouteScope::Link)).unwrap();
    inside.add_route(&Route::via("0.0.0.0/0".parse().unwrap(), gateway.into(), eth0)).unwrap();
    (pod, address)
}

/// Connects and returns the client's address as the server sees it.
fn reach(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> std::io::Result<IpAddr> {
    let listener = to.run(|| TcpListener::bind((address, 80))).unwrap()?;
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept()?;
        // more than one full segment, so that a wrong MTU shows
        stream.write_all(&[7; 20_000])?;
        std::io::Result::Ok(peer.ip())
    });
    let outcome = from.run(|| {
        let mut stream = TcpStream::connect_timeout(&(address, 80).into(), Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        stream.read_exact(&mut [0; 20_000])
    });
    outcome.unwrap()?;
    server.join().unwrap()
}

#[test]
fn pods_of_two_nodes_reach_each_other() {
    for backend in [Backend::Auto, Backend::Vxlan] {
        let (_cable, nodes) = nodes(2, backend);
        for node in &nodes {
            bring_up(node, peers(&nodes));
        }
        let (a, _) = pod(&nodes[0], 2);
        let (b, address) = pod(&nodes[1], 3);
        assert_eq!(reach(&a, &b, address).unwrap(), "10.42.1.2".parse::<IpAddr>().unwrap(), "{backend:?}");
        // the other node itself: with the pod's own address where the way back is the same
        let seen = reach(&a, &nodes[1].namespace, nodes[1].config.node_ip).unwrap();
        let expected = if backend == Backend::Vxlan { "192.0.2.1" } else { "10.42.1.2" };
        assert_eq!(seen.to_string(), expected, "{backend:?}");
        // and from the other node to the pod
        reach(&nodes[0].namespace, &b, address).unwrap();
        // a node that leaves takes its routes with it
        bring_up(&nodes[0], peers(&nodes[..1]));
        assert!(reach(&a, &b, address).is_err(), "{backend:?}");
        let left = nodes[0].namespace.run(|| Rtnl::open().unwrap().routes().unwrap()).unwrap();
        assert!(!left.iter().any(|route| route.destination == nodes[1].pods), "{left:?}");
    }
}

#[test]
fn what_leaves_the_cluster_has_the_nodes_address() {
    let (_cable, nodes) = nodes(2, Backend::Auto);
    // the second node is not one of the cluster's: a host outside
    bring_up(&nodes[0], peers(&nodes[..1]));
    let (a, _) = pod(&nodes[0], 2);
    let seen = reach(&a, &nodes[1].namespace, nodes[1].config.node_ip).unwrap();
    assert_eq!(seen.to_string(), "192.0.2.1");
}

#[test]
fn cleaning_up_leaves_nothing() {
    let (_cable, nodes) = nodes(1, Backend::Vxlan);
    bring_up(&nodes[0], peers(&nodes));
    pod(&nodes[0], 2);
    let directory = tempfile::tempdir().unwrap();
    nodes[0]
        .namespace
        .run(|| {
            assert_eq!(crate::cleanup(directory.path()), Vec::<String>::new());
            assert_eq!(crate::cleanup(directory.path()), Vec::<String>::new());
            let names: Vec<_> = Rtnl::open().unwrap().links().unwrap().into_iter().map(|link| link.name).collect();
            assert_eq!(names.iter().filter(|name| *name != "lo" && *name != "eth0").count(), 0, "{names:?}");
            assert!(Nft::open().unwrap().tables(Family::Ipv4).unwrap().is_empty());
        })
        .unwrap();
}

#[test]
fn a_changed_pod_prefix_moves_the_gateway() {
    let (_cable, mut nodes) = nodes(1, Backend::Auto);
    bring_up(&nodes[0], peers(&nodes));
    nodes[0].pods = "10.42.9.0/24".parse().unwrap();
    bring_up(&nodes[0], peers(&nodes));
    let addresses = nodes[0].namespace.run(|| {
        let mut rtnl = Rtnl::open().unwrap();
        let bridge = rtnl.link(BRIDGE).unwrap().index;
        rtnl.addresses_of(bridge).unwrap()
    });
    let nets: Vec<String> =
        addresses.unwrap().iter().filter(|each| each.net.address.is_ipv4()).map(|each| each.net.to_string()).collect();
    assert_eq!(nets, ["10.42.9.1/24"]);
}

#[test]
fn a_node_whose_address_changed_tunnels_from_the_new_one() {
    let (_cable, mut nodes) = nodes(2, Backend::Vxlan);
    for node in &nodes {
        bring_up(node, peers(&nodes));
    }
    let (a, _) = pod(&nodes[0], 2);
    let (b, address) = pod(&nodes[1], 3);
    reach(&a, &b, address).unwrap();
    nodes[0].config.node_ip = Ipv4Addr::new(192, 0, 2, 77);
    let net = |last: u8| IpNet::new(Ipv4Addr::new(192, 0, 2, last).into(), 24);
    let change = || {
        let mut rtnl = Rtnl::open().unwrap();
        let eth0 = rtnl.link("eth0").unwrap().index;
        rtnl.delete_address(&Address::new(eth0, net(1))).unwrap();
        rtnl.add_address(&Address::new(eth0, net(77))).unwrap();
    };
    nodes[0].namespace.run(change).unwrap();
    for node in &nodes {
        bring_up(node, peers(&nodes));
    }
    reach(&a, &b, address).unwrap();
}

#[test]
fn a_tunnel_follows_the_mtu_of_its_link() {
    let (_cable, nodes) = nodes(1, Backend::Vxlan);
    for mtu in [1500, 1400, 1450] {
        let change = || {
            let mut rtnl = Rtnl::open().unwrap();
            let eth0 = rtnl.link("eth0").unwrap().index;
            rtnl.set_mtu(eth0, mtu).unwrap();
        };
        nodes[0].namespace.run(change).unwrap();
        bring_up(&nodes[0], peers(&nodes));
        let found = nodes[0].namespace.run(|| {
            let mut rtnl = Rtnl::open().unwrap();
            [VXLAN, BRIDGE].map(|name| rtnl.link(name).unwrap().mtu)
        });
        assert_eq!(found.unwrap(), [mtu - 50, mtu - 50]);
    }
}
