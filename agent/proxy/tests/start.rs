//! The whole proxy against an API of a few lines: from an event on a watch to a packet's way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod api;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use api::Api;
use component::{Informers, Supervisor};
use netlink::{Address, Route, RouteScope, Rtnl};
use proxy::{Config, Mode};
use serde_json::{Value, json};

fn slice(version: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true }, "nodeName": "n1" }))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "web-1", "namespace": "default", "resourceVersion": version, "labels": { "kubernetes.io/service-name": "web" } },
        "endpoints": endpoints, "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
    })
}

fn serve(address: &str) {
    let listener = TcpListener::bind((address, 8080)).unwrap();
    let name = address.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(name.as_bytes());
        }
    });
}

/// Who answers at the Service.
fn who() -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&"10.43.0.20:80".parse().unwrap(), Duration::from_secs(2)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn http(path: &str, port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

fn on_a_node(mode: Mode) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
    let mut rtnl = Rtnl::open().unwrap();
    let lo = rtnl.link("lo").unwrap().index;
    rtnl.set_up(lo).unwrap();
    for address in ["10.42.0.2/32", "10.42.0.3/32", "192.0.2.1/32"] {
        rtnl.add_address(&Address::new(lo, address.parse().unwrap())).unwrap();
    }
    rtnl.add_route(&Route::direct("10.43.0.0/16".parse().unwrap(), lo, RouteScope::Link)).unwrap();
    serve("10.42.0.2");
    serve("10.42.0.3");
    // Every thread of the runtime is made by this one, so all are in its namespace.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(scenario(mode));
}

async fn scenario(mode: Mode) {
    let api = Api::default();
    let service = json!({
        "metadata": { "name": "web", "namespace": "default", "resourceVersion": "1" },
        "spec": {
            "clusterIP": "10.43.0.20", "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31999,
            "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 8080 }],
        },
    });
    api.list("services", "Service", vec![service]);
    api.list("endpointslices", "EndpointSlice", vec![slice("1", &["10.42.0.2"])]);
    api.list("nodes", "Node", vec![json!({ "metadata": { "name": "n1", "resourceVersion": "1" } })]);
    let supervisor = Supervisor::new("test");
    let informers = Informers::new(api.client(), &supervisor);
    let proxy = proxy::start(Config { mode, ..Config::new("n1") }, informers, &supervisor);
    tokio::time::timeout(Duration::from_secs(20), proxy.ready()).await.expect("the first rules");
    assert_eq!(proxy.mode(), mode);
    let blocking = |work: fn() -> Option<String>| tokio::task::spawn_blocking(work);
    assert_eq!(blocking(who).await.unwrap().as_deref(), Some("10.42.0.2"));
    // until the health check's server is there too
    let check = tokio::task::spawn_blocking(|| {
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", 31999)).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        (http("/healthz", 10256), http("/livez", 10256), http("/", 31999))
    });
    let (healthz, livez, node_check) = check.await.unwrap();
    assert!(healthz.starts_with("HTTP/1.1 200") && healthz.contains("\"nodeEligible\":true"), "{healthz}");
    assert!(livez.starts_with("HTTP/1.1 200"), "{livez}");
    let local = tokio::task::spawn_blocking(|| ["/proxyMode", "/healthz", "/metrics"].map(|path| http(path, 10249)));
    let [shown, local_healthz, metrics] = local.await.unwrap();
    assert!(shown.ends_with(&format!("\r\n\r\n{mode}")), "{shown}");
    assert!(local_healthz.ends_with("\r\n\r\nok"), "{local_healthz}");
    assert!(metrics.contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds{"), "{metrics}");
    assert!(node_check.starts_with("HTTP/1.1 200") && node_check.contains("\"localEndpoints\":1"), "{node_check}");

    let began = Instant::now();
    api.push("endpointslices", "MODIFIED", &slice("2", &["10.42.0.3"]));
    while blocking(who).await.unwrap().as_deref() != Some("10.42.0.3") {
        assert!(began.elapsed() < Duration::from_secs(10), "the new endpoint never came");
    }
    eprintln!("{mode:?}: from event to packet in {:?}", began.elapsed());
    // an endpoint that comes back in the middle of a burst of other changes
    for version in 3..60 {
        let addresses: &[&str] = if version % 2 == 0 { &["10.42.0.3"] } else { &["10.42.0.2", "10.42.0.3"] };
        api.push("endpointslices", "MODIFIED", &slice(&version.to_string(), addresses));
    }
    api.push("endpointslices", "MODIFIED", &slice("60", &["10.42.0.2"]));
    let began = Instant::now();
    while (0..8).any(|_| who().as_deref() != Some("10.42.0.2")) {
        assert!(began.elapsed() < Duration::from_secs(10), "the last change got lost");
    }
    assert!(supervisor.shut_down(Duration::from_secs(5)).await);
    assert_eq!(
        tokio::task::spawn_blocking(who).await.unwrap().as_deref(),
        Some("10.42.0.2"),
        "rules outlive the proxy"
    );
    assert_eq!(tokio::task::spawn_blocking(proxy::cleanup).await.unwrap(), Vec::<String>::new());
}

#[test]
fn an_endpoint_becomes_a_rule_at_once() {
    for mode in [Mode::Nftables, Mode::Iptables] {
        if let Err(panic) = std::thread::spawn(move || on_a_node(mode)).join() {
            eprintln!("failed with {mode:?}");
            std::panic::resume_unwind(panic);
        }
    }
}
