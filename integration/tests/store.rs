//! The store as people and faults meet it: looked into, copied, killed, and shared by servers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use integration::Server;
use integration::etcd::Member;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::networking::v1::IPAddress;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(120);

#[test]
fn a_snapshot_is_saved_from_a_running_server_and_restored_into_a_stopped_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    let mut server = Server::start(dir.path(), &[]);
    server.ready();
    server.kubectl(&["create", "configmap", "before", "--from-literal=a=1"]);
    let place = ["--data-dir", &data];
    let printed = server.skiff(&[&["snapshot", "save", "first"], &place[..]].concat()).expect_ok();
    assert_eq!(printed.trim(), dir.path().join("server/snapshots/first").display().to_string());
    server.skiff(&[&["snapshot", "save", "first"], &place[..]].concat()).expect_failure("is there already");
    server.kubectl(&["create", "configmap", "after"]);
    let listed = server.skiff(&[&["snapshot", "list", "-o", "json"], &place[..]].concat()).expect_ok();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["name"], "first");
    assert!(listed[0]["keys"].as_u64().unwrap() > 50, "{listed}");

    let restore = [&["snapshot", "restore", "first"], &place[..]].concat();
    server.skiff(&restore).expect_failure("runs; stop it, restore");
    server.kill();
    server.skiff(&restore).expect_ok();
    server.restart();
    server.ready();
    assert_eq!(server.kubectl(&["get", "configmap", "before", "-o", "jsonpath={.data.a}"]), "1");
    server.try_kubectl(&["get", "configmap", "after"]).expect_failure("NotFound");

    std::fs::write(dir.path().join("server/snapshots/bad"), "rubbish").unwrap();
    let listed = server.skiff(&[&["snapshot", "list"], &place[..]].concat()).expect_ok();
    assert!(listed.contains("bad") && listed.contains("is damaged"), "{listed}");
}

#[test]
fn the_store_is_shown_in_the_words_of_etcdctl() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.ready();
    for name in ["one", "two"] {
        server.kubectl(&["create", "configmap", name, "--from-literal=a=1"]);
    }
    let get = |arguments: &[&str]| server.skiff(&[&["store", "get"], arguments].concat()).expect_ok();
    let keys = get(&["/registry/configmaps/default/", "--prefix", "--keys-only"]);
    let keys: Vec<&str> = keys.lines().filter(|line| !line.is_empty()).collect();
    let wanted = ["kube-root-ca.crt", "one", "two"].map(|name| format!("/registry/configmaps/default/{name}"));
    assert_eq!(keys, wanted);
    let all = get(&["/", "--prefix", "--keys-only"]);
    assert!(all.contains("/registry/namespaces/kube-system\n"), "{all}");
    let value = get(&["/registry/configmaps/default/one", "--print-value-only"]);
    assert_eq!(serde_json::from_str::<Value>(&value).unwrap()["data"]["a"], "1");
    let shown: Value =
        serde_json::from_str(&get(&["/registry/namespaces/", "--prefix", "-w", "json", "--limit=1"])).unwrap();
    assert_eq!(shown["kvs"].as_array().unwrap().len(), 1);
    assert_eq!(shown["count"], 4);
    assert_eq!(get(&["/registry/none"]), "");
    let anonymous = format!("--as={}", "system:serviceaccount:default:default");
    server.try_kubectl(&["get", "--raw", "/skiff/v1/store/keys?prefix=/", &anonymous]).expect_failure("Forbidden");
}

fn config_map(name: &str, number: u64) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"n": number.to_string()}})).unwrap()
}

fn number(object: &ConfigMap) -> u64 {
    object.data.as_ref().and_then(|data| data.get("n")).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// One writer: a new object each time, and one object counted up. What was acknowledged: the names
/// created, and the count.
#[derive(Default, Debug)]
struct Acknowledged {
    created: Vec<String>,
    counted: u64,
}

/// Writes until `stop`, or (when `gives_up`) until the first answer that is none.
async fn write(
    clients: Vec<Client>,
    writer: usize,
    round: usize,
    stop: Arc<AtomicBool>,
    gives_up: bool,
) -> Acknowledged {
    let mut done = Acknowledged::default();
    let counter = format!("counter-{writer}-{round}");
    let (mut turn, mut attempt) = (writer, 0);
    while !stop.load(Ordering::Relaxed) {
        let maps: Api<ConfigMap> = Api::default_namespaced(clients[turn % clients.len()].clone());
        attempt += 1;
        let name = format!("w-{writer}-{round}-{attempt}");
        let outcome = async {
            maps.create(&PostParams::default(), &config_map(&name, 0)).await?;
            done.created.push(name);
            let next = done.counted + 1;
            let patch = kube::api::Patch::Apply(json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": counter}, "data": {"n": next.to_string()},
            }));
            maps.patch(&counter, &kube::api::PatchParams::apply("test"), &patch).await?;
            done.counted = next;
            Ok::<_, kube::Error>(())
        };
        // A server that is gone, or is going, leaves the question open: no acknowledgement.
        if outcome.await.is_err() {
            if gives_up {
                break;
            }
            turn += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    done
}

#[track_caller]
fn assert_nothing_lost(there: &BTreeMap<String, u64>, writer: usize, round: usize, done: &Acknowledged) {
    let lost: Vec<_> = done.created.iter().filter(|name| !there.contains_key(*name)).collect();
    assert!(lost.is_empty(), "of {} acknowledged creates these are lost: {lost:?}", done.created.len());
    let counted = there.get(&format!("counter-{writer}-{round}")).copied().unwrap_or(0);
    assert!(counted >= done.counted, "counted to {} and acknowledged, found {counted}", done.counted);
}

async fn all(client: Client) -> BTreeMap<String, u64> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let list = maps.list(&ListParams::default()).await.unwrap();
    list.items.iter().map(|object| (object.name_any(), number(object))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_amid_bulk_writes_of_many_clients_loses_nothing_it_acknowledged() {
    const WRITERS: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path(), &[]);
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        server.ready();
        let client = server.client().await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(vec![client.clone()], writer, round, stop.clone(), true)))
            .collect();
        // Killed when the writing is well under way, not at a certain time.
        let wanted = format!("w-0-{round}-{}", 20 + round * 7);
        let deadline = Instant::now() + LONG;
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        while maps.get_opt(&wanted).await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "the writers are stuck");
        }
        server.kill();
        for (writer, task) in writers.into_iter().enumerate() {
            acknowledged.push((writer, round, task.await.unwrap()));
        }
        server.restart();
    }
    server.ready();
    let there = all(server.client().await.unwrap()).await;
    for (writer, round, done) in &acknowledged {
        assert_nothing_lost(&there, *writer, *round, done);
    }
    let count: usize = acknowledged.iter().map(|(_, _, done)| done.created.len()).sum();
    assert!(count > 3 * WRITERS, "too few writes to mean anything: {count}");
}

/// Follows ConfigMaps through one server after another, always from where the last one ended, until
/// `stop` and the object `last` was seen. Names of those added, with their revisions.
async fn follow(clients: Vec<Client>, from: String, last: String) -> Vec<(String, u64)> {
    let (mut version, mut seen, mut turn) = (from, Vec::new(), 0);
    let deadline = Instant::now() + 3 * LONG;
    loop {
        assert!(Instant::now() < deadline, "{last} was not seen");
        turn += 1;
        let maps: Api<ConfigMap> = Api::default_namespaced(clients[turn % clients.len()].clone());
        let Ok(events) = maps.watch(&WatchParams::default().timeout(30), &version).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut events = events.boxed();
        while let Some(Ok(event)) = events.next().await {
            match event {
                WatchEvent::Added(object) => {
                    version = object.resource_version().unwrap();
                    seen.push((object.name_any(), version.parse().unwrap()));
                    if object.name_any() == last {
                        return seen;
                    }
                }
                WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
                    version = object.resource_version().unwrap();
                }
                WatchEvent::Bookmark(mark) => version = mark.metadata.resource_version,
                WatchEvent::Error(status) => panic!("the watch did not resume at {version}: {status:?}"),
            }
        }
    }
}

async fn holder(client: &Client) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    let lease = leases.get_opt("kube-controller-manager").await.ok()??;
    lease.spec?.holder_identity
}

async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LONG:?}");
        // The pace of asking.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A Deployment gets its ReplicaSet: somebody runs the controllers.
async fn controllers_act(client: &Client, name: &str) {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}},
    });
    let deployments: Api<k8s_openapi::api::apps::v1::Deployment> = Api::default_namespaced(client.clone());
    let made = serde_json::from_value(deployment).unwrap();
    eventually("a deployment is created", async || deployments.create(&PostParams::default(), &made).await.ok()).await;
    let sets: Api<ReplicaSet> = Api::default_namespaced(client.clone());
    let chosen = ListParams::default().labels(&format!("app={name}"));
    eventually("the controllers act", async || {
        sets.list(&chosen).await.ok().filter(|list| !list.items.is_empty()).map(drop)
    })
    .await;
}

/// Services made through all servers at once get addresses and node ports of their own.
async fn services_share_nothing(clients: &[Client]) {
    let make = |name: String, client: Client| async move {
        let service = json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let services: Api<Service> = Api::default_namespaced(client);
        services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap()
    };
    let making = (0..60).map(|n| make(format!("s-{n}"), clients[n % clients.len()].clone()));
    let made = futures::future::join_all(making).await;
    let specs: Vec<_> = made.into_iter().map(|service| service.spec.unwrap()).collect();
    let addresses: BTreeSet<String> = specs.iter().map(|spec| spec.cluster_ip.clone().unwrap()).collect();
    let ports: BTreeSet<i32> = specs.iter().map(|spec| spec.ports.as_ref().unwrap()[0].node_port.unwrap()).collect();
    assert_eq!((addresses.len(), ports.len()), (60, 60));

    let (address, port) = (addresses.first().unwrap(), ports.first().unwrap());
    for (spec, message) in [
        (json!({"clusterIP": address, "ports": [{"port": 80}]}), "provided IP is already allocated"),
        (json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}), "provided port is already allocated"),
    ] {
        for client in clients {
            let service = serde_json::from_value(json!({"metadata": {"name": "again"}, "spec": spec})).unwrap();
            let services: Api<Service> = Api::default_namespaced(client.clone());
            let refused = services.create(&PostParams::default(), &service).await.unwrap_err().to_string();
            assert!(refused.contains(message), "{refused}");
        }
    }
    let objects: Api<IPAddress> = Api::all(clients[0].clone());
    let object = objects.get(address).await.unwrap();
    let parent = object.spec.parent_ref;
    assert_eq!((parent.resource.as_str(), parent.namespace.as_deref()), ("services", Some("default")));
    let services: Api<Service> = Api::default_namespaced(clients[1].clone());
    services.delete(&parent.name, &Default::default()).await.unwrap();
    assert!(objects.get_opt(address).await.unwrap().is_none(), "its address is free again");
}

fn copy_authorities(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("server/tls")).unwrap();
    for name in ["ca.crt", "ca.key", "front-proxy-ca.crt", "front-proxy-ca.key", "service-account.key"] {
        std::fs::copy(from.join("server/tls").join(name), to.join("server/tls").join(name)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_on_three_etcd_members_survive_the_loss_of_any() {
    const WRITERS: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let mut members = Member::cluster(dir.path(), 3);
    let urls = members.iter().map(|member| member.url.as_str()).collect::<Vec<_>>().join(",");
    let store = format!("--store=etcd={urls}");
    let mut servers = vec![Server::start(&dir.path().join("server0"), &[&store])];
    servers[0].ready();
    for n in 1..3 {
        let place = dir.path().join(format!("server{n}"));
        copy_authorities(&servers[0].data_dir, &place);
        servers.push(Server::start(&place, &[&store]));
    }
    let mut clients = Vec::new();
    for server in &servers {
        server.ready();
        clients.push(server.client().await.unwrap());
    }
    services_share_nothing(&clients).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(clients[0].clone());
    let from = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let follower = tokio::spawn(follow(clients.clone(), from, "last".to_owned()));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write(clients.clone(), writer, 0, stop.clone(), false))).collect();

    for n in 0..3 {
        // Whoever leads is the one that is lost, once in any case.
        let leader = eventually("somebody leads", async || holder(&clients[n]).await).await;
        servers[n].kill();
        let other = clients[(n + 1) % 3].clone();
        controllers_act(&other, &format!("without-server-{n}")).await;
        let now = eventually("somebody leads", async || holder(&other).await).await;
        println!("server {n} lost: {leader} led, {now} leads");
        servers[n].restart();
        servers[n].ready();
        members[n].kill();
        for client in &clients {
            let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
            let name = format!("without-member-{n}");
            eventually("a write without a member", async || {
                match maps.create(&PostParams::default(), &config_map(&name, 0)).await {
                    Ok(_) => Some(()),
                    Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Some(()),
                    Err(error) => {
                        println!("without member {n}: {error}");
                        None
                    }
                }
            })
            .await;
        }
        members[n].start();
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = Vec::new();
    for (writer, task) in writers.into_iter().enumerate() {
        acknowledged.push((writer, task.await.unwrap()));
    }
    eventually("the last write", async || maps.create(&PostParams::default(), &config_map("last", 0)).await.ok()).await;
    let seen = tokio::time::timeout(LONG, follower).await.unwrap().unwrap();
    for client in &clients {
        let there = all(client.clone()).await;
        for (writer, done) in &acknowledged {
            assert_nothing_lost(&there, *writer, 0, done);
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1), "once each and in order, over all servers");
    let missed: Vec<_> = acknowledged
        .iter()
        .flat_map(|(_, done)| &done.created)
        .filter(|name| !seen.iter().any(|(added, _)| added == *name))
        .collect();
    assert!(missed.is_empty(), "the watch missed {missed:?}");
}

#[test]
fn addresses_come_from_service_cidrs_which_stay_while_they_are_needed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), &[]);
    server.ready();
    let get = |what: &[&str]| server.kubectl(&[&["get"], what].concat());
    assert_eq!(get(&["servicecidr", "kubernetes", "-o", "jsonpath={.spec.cidrs}"]), "[\"10.43.0.0/16\"]");
    assert_eq!(get(&["ip", "10.43.0.1", "-o", "jsonpath={.spec.parentRef.name}"]), "kubernetes");
    let make = ["create", "service", "clusterip", "extra", "--tcp=80", "--clusterip=10.99.0.5"];
    server.try_kubectl(&make).expect_failure("the provided network does not match the current range");
    let cidr = dir.path().join("cidr.yaml");
    std::fs::write(
        &cidr,
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.99.0.0/24]}\n",
    )
    .unwrap();
    server.kubectl(&["apply", "-f", &cidr.display().to_string()]);
    server.kubectl(&["wait", "servicecidr/more", "--for=condition=Ready", "--timeout=60s"]);
    server.kubectl(&make);
    server.kubectl(&["delete", "servicecidr", "more", "--wait=false"]);
    server.kubectl(&["wait", "servicecidr/more", "--for=condition=Ready=False", "--timeout=60s"]);
    let why = get(&["servicecidr", "more", "-o", "jsonpath={.status.conditions[0].message}"]);
    assert!(why.starts_with("There are still IPAddresses referencing the ServiceCIDR"), "{why}");
    server.kubectl(&["delete", "service", "extra"]);
    server.kubectl(&["wait", "servicecidr/more", "--for=delete", "--timeout=60s"]);
}
