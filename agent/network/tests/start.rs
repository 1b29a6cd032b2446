//! The whole room against an API of a few lines, in a network namespace of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../proxy/tests/api/mod.rs"]
mod api;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Api;
use component::{Informers, Supervisor};
use k8s_openapi::api::core::v1::Pod;
use netlink::nft::{Family, Nft};
use netlink::{Address, LinkKind, Rtnl};
use network::{Attachment, Config};
use serde_json::{Value, json};

fn node(version: &str, pod_cidr: Option<&str>) -> Value {
    json!({
        "metadata": { "name": "n1", "resourceVersion": version },
        "spec": { "podCIDR": pod_cidr },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }] },
    })
}

/// Plugins that note how they were called.
fn plugins(directory: &std::path::Path) {
    for name in ["bridge", "portmap", "bandwidth"] {
        let path = directory.join(name);
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho $CNI_COMMAND >> {0}/{name}.calls\ncat >> {0}/{name}.calls\n", directory.display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn scenario() {
    let directory = tempfile::tempdir().unwrap();
    plugins(directory.path());
    let api = Api::default();
    api.list("nodes", "Node", vec![node("1", None)]);
    let long_namespace = "n".repeat(63);
    let pod = json!({
        "metadata": { "name": "a", "namespace": long_namespace, "resourceVersion": "1" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c" }] },
        "status": { "podIP": "10.42.7.9", "phase": "Running" },
    });
    api.list("pods", "Pod", vec![pod]);
    let supervisor = Supervisor::new("test");
    let informers = Informers::new(api.client(), &supervisor);
    let config = Config {
        cni_conf_dir: directory.path().join("net.d"),
        cni_bin_dir: directory.path().to_owned(),
        cni_data_dir: directory.path().join("addresses"),
        ..Config::new("n1", "192.0.2.1".parse().unwrap())
    };
    let network = network::start(config, informers, &supervisor);
    assert!(network.problem().unwrap().contains("no pod CIDR"));
    api.push("nodes", "MODIFIED", &node("2", Some("10.42.7.0/24")));
    tokio::time::timeout(Duration::from_secs(10), network.ready()).await.expect("the pod network");
    assert_eq!(network.problem(), None);
    let conflist = std::fs::read_to_string(directory.path().join("net.d/10-skiff.conflist")).unwrap();
    let conflist: Value = serde_json::from_str(&conflist).unwrap();
    assert_eq!(conflist["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.42.7.0/24");
    assert!(Rtnl::open().unwrap().link("skiff0").unwrap().up);

    network.status().await.unwrap();
    network.collect(vec![Attachment { container_id: "abc".into(), ifname: "eth0".into() }]).await.unwrap();
    let calls = std::fs::read_to_string(directory.path().join("bridge.calls")).unwrap();
    assert!(
        calls.starts_with("STATUS\n") && calls.contains("GC\n") && calls.contains("\"containerID\":\"abc\""),
        "{calls}"
    );

    // another node's pods become a route, and it goes with the node
    let mut other = node("3", Some("10.42.8.0/24"));
    other["metadata"]["name"] = json!("n2");
    other["status"]["addresses"][0]["address"] = json!("192.0.2.2");
    let routed =
        || Rtnl::open().unwrap().routes().unwrap().iter().any(|route| route.destination.to_string() == "10.42.8.0/24");
    api.push("nodes", "ADDED", &other);
    until("a route to the other node's pods", routed).await;
    api.push("nodes", "DELETED", &other);
    until("the route's end", || !routed()).await;

    // the first policy makes the table, the last one's end removes it
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "name": "p", "namespace": "default", "resourceVersion": "4" }, "spec": { "podSelector": {} },
    });
    let new = json!({
        "metadata": { "name": "new", "namespace": "default", "uid": "1" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c" }] },
    });
    let new: Arc<Pod> = Arc::new(serde_json::from_value(new).unwrap());
    let isolate = |last: u8| {
        let (network, new) = (network.clone(), new.clone());
        async move {
            let address = [10, 42, 7, last].into();
            tokio::time::timeout(Duration::from_secs(10), network.isolate(&new, &[address])).await
        }
    };
    let chain_of = |last: u8| {
        let table = Nft::open().unwrap().list(&network::policy::table()).unwrap().unwrap_or_default();
        table.chains.iter().any(|chain| chain.name == format!("ingress-10.42.7.{last}"))
    };
    let has_table = || Nft::open().unwrap().tables(Family::Ipv4).unwrap().contains(&"skiff_policy".to_owned());
    assert!(!has_table());
    isolate(20).await.expect("without a policy nobody waits");
    api.push("networkpolicies", "ADDED", &policy);
    until("a policy table", has_table).await;

    // a pod whose address the API does not show has its rules when the answer comes, and so has another sandbox
    isolate(20).await.expect("the rules of a new pod");
    assert!(chain_of(20));
    isolate(21).await.expect("the rules of its other sandbox");
    assert!(chain_of(21) && !chain_of(20));
    api.push("networkpolicies", "DELETED", &policy);
    until("no policy table", || !has_table()).await;

    // one that the kernel refuses, with nothing shorter than its name: what was written before it goes all
    // the same, with the policies that it was written for
    let mut refused = policy.clone();
    refused["metadata"] = json!({ "name": "p".repeat(253), "namespace": long_namespace, "resourceVersion": "6" });
    refused["spec"]["ingress"] = json!([{ "from": [{ "podSelector": {} }] }]);
    api.push("networkpolicies", "ADDED", &policy);
    until("a policy table again", has_table).await;
    api.push("networkpolicies", "ADDED", &refused);
    // Nothing shows that it was tried. Without a try the rest holds too, and proves nothing.
    tokio::time::sleep(Duration::from_millis(300)).await;
    api.push("networkpolicies", "DELETED", &policy);
    api.push("networkpolicies", "DELETED", &refused);
    until("no policy table after a refusal", || !has_table()).await;
    assert!(supervisor.shut_down(Duration::from_secs(5)).await);
    assert_eq!(network::cleanup(&directory.path().join("net.d")), Vec::<String>::new());
}

#[test]
fn a_node_gets_its_pod_network() {
    let host = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.create_link("uplink", &LinkKind::Bridge, 0, None).unwrap();
        let uplink = rtnl.link("uplink").unwrap().index;
        rtnl.add_address(&Address::new(uplink, "192.0.2.1/24".parse().unwrap())).unwrap();
        rtnl.set_up(uplink).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(scenario());
    };
    std::thread::spawn(host).join().unwrap();
}
