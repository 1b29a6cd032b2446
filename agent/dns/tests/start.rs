//! The whole room against an API of a few lines, in a network namespace of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../proxy/tests/api/mod.rs"]
mod api;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use api::Api;
use component::{Informers, Supervisor};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use netlink::Rtnl;
use serde_json::{Value, json};

fn service(version: &str, name: &str, ip: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default", "resourceVersion": version },
        "spec": { "clusterIP": ip, "ports": [{ "port": 80 }] },
    })
}

/// The first address of a Service's name, asked at the cluster DNS address.
fn resolve(name: &str) -> Option<String> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(format!("{name}.default.svc.cluster.local.")).unwrap();
    message.add_query(Query::query(name, RecordType::A));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.send_to(&message.to_vec().unwrap(), "10.43.0.10:53").unwrap();
    let mut buffer = [0; 1500];
    let (length, server) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(server.to_string(), "10.43.0.10:53", "the answer comes from where the question went");
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    answer.answers.first().map(|record| record.data.to_string())
}

async fn scenario() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api::default();
    api.list("services", "Service", vec![service("1", "web", "10.43.0.20")]);
    let supervisor = Supervisor::new("test");
    let informers = Informers::new(api.client(), &supervisor);
    let config = dns::Config { resolv_conf: directory.path().join("none"), ..dns::Config::default() };
    let running = dns::start(config, informers, &supervisor);
    tokio::time::timeout(Duration::from_secs(10), running.ready()).await.expect("DNS");
    let ask = |name: &'static str| tokio::task::spawn_blocking(move || resolve(name));
    assert_eq!(ask("web").await.unwrap().as_deref(), Some("10.43.0.20"));
    assert_eq!(ask("new").await.unwrap(), None);
    let began = Instant::now();
    api.push("services", "ADDED", &service("2", "new", "10.43.0.21"));
    while ask("new").await.unwrap().as_deref() != Some("10.43.0.21") {
        assert!(began.elapsed() < Duration::from_secs(5), "the new Service never got its name");
    }
    // conntrack saw nothing of it
    let flows = tokio::task::spawn_blocking(|| netlink::conntrack::Conntrack::open().unwrap().list(17).unwrap());
    assert!(flows.await.unwrap().is_empty());
    assert!(supervisor.shut_down(Duration::from_secs(5)).await);
    assert_eq!(dns::cleanup(), Vec::<String>::new());
    let addresses = Rtnl::open().unwrap().addresses().unwrap();
    assert!(!addresses.iter().any(|address| address.net.address.to_string() == "10.43.0.10"));
}

#[test]
fn names_are_answered_at_the_cluster_address() {
    let host = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run the tests as root");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(scenario());
    };
    std::thread::spawn(host).join().unwrap();
}
