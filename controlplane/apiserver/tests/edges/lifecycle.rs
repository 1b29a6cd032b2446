//! Certificates change under a running server, and a server ends without breaking anybody's request.

use std::time::Duration;

use apiserver::testing::{Cluster, authority, leaf};
use futures::{AsyncBufReadExt, StreamExt};
use http::Request;
use serde_json::{Value, json};
use store::{Embedded, Options, Store, Txn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ask, connect, eventually, exchange};

#[tokio::test]
async fn new_certificates_and_authorities_are_taken_without_a_restart() {
    let cluster = Cluster::start().await;
    let address = cluster.listen().await;
    let (ca, pem) = authority();
    assert!(connect(&pem, None, address).await.is_err(), "signed by another authority so far");

    // The files are replaced one by one, as a renewal does.
    let config = cluster.server.config().clone();
    let other = tempfile::tempdir().unwrap();
    let renewed = leaf(other.path(), &ca, "kube-apiserver", &[], true);
    std::fs::copy(&renewed.key, &config.serving.key).unwrap();
    std::fs::copy(&renewed.certificate, &config.serving.certificate).unwrap();
    let both = format!("{}{pem}", cluster.ca_pem());
    std::fs::write(&config.client_ca, both).unwrap();

    let client = leaf(other.path(), &ca, "jane", &["system:masters"], false);
    let old = cluster.key_pair("joe", &["system:masters"]);
    for identity in [&client, &old] {
        let mut last = String::new();
        for _ in 0..600 {
            if let Ok(stream) = connect(&pem, Some(identity), address).await
                && let Ok(answer) = exchange(stream, "GET /api/v1/nodes HTTP/1.1").await
            {
                last = answer;
                if last.starts_with("HTTP/1.1 200") {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(last.starts_with("HTTP/1.1 200"), "{last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_says_so_first_and_finishes_what_it_began() {
    let cluster = Cluster::start_with(|config| config.shutdown_delay = Duration::from_secs(3)).await;
    let address = cluster.listen().await;
    let root = cluster.key_pair("root", &["system:masters"]);
    let open = || connect(cluster.ca_pem(), Some(&root), address);

    // A watch by HTTP/2 and one by HTTP/1.1, and a request whose body is still on its way.
    let kubeconfig = kube::config::Kubeconfig::read_from(cluster.kubeconfig("root", &["system:masters"])).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let request = Request::get("/api/v1/namespaces?watch=true&allowWatchBookmarks=true").body(Vec::new()).unwrap();
    let mut lines = client.request_stream(request).await.unwrap().lines();
    assert!(lines.next().await.unwrap().unwrap().contains("ADDED"));
    let plain_watch = exchange(open().await.unwrap(), "GET /api/v1/namespaces?watch=true HTTP/1.1");
    let plain_watch = tokio::spawn(plain_watch);
    let mut slow = open().await.unwrap();
    let body = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"slow"}}"#;
    let head = format!(
        "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{{",
        body.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();

    let server = cluster.server.clone();
    let drained = tokio::spawn(async move { server.drain().await });
    // New connections are still taken, and learn that they should go elsewhere.
    let mut ready = String::new();
    for _ in 0..100 {
        ready = exchange(open().await.unwrap(), "GET /readyz HTTP/1.1").await.unwrap();
        if !ready.starts_with("HTTP/1.1 200") {
            break;
        }
    }
    assert!(ready.starts_with("HTTP/1.1 500") && ready.contains("[-]shutdown failed"), "{ready}");
    let alive = exchange(open().await.unwrap(), "GET /livez HTTP/1.1").await.unwrap();
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");

    while let Some(line) = lines.next().await {
        line.expect("a watch ends without an error");
    }
    let watched = plain_watch.await.unwrap().unwrap();
    assert!(watched.ends_with("0\r\n\r\n"), "a complete answer: {watched:?}");
    slow.write_all(&body.as_bytes()[1..]).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    drained.await.unwrap();
    assert!(open().await.is_err(), "nobody listens any more");
}

/// A full disk, or one that is gone: only a restart mends it, so whoever looks after the server must see it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_store_takes_no_more_writes_is_neither_alive_nor_ready() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 64 * 1024, ..Options::default() };
    let store = Embedded::open_with(&dir.path().join("db"), &options).unwrap();
    let cluster = Cluster::start_over(store).await;
    let address = cluster.listen().await;
    let client = cluster.admin();
    for path in ["/livez", "/readyz", "/healthz", "/livez/etcd", "/readyz/etcd-readiness"] {
        assert_eq!(ask(&client, "GET", path, "").await, (200, json!("ok")), "{path}");
    }
    // No file can be made any more.
    std::fs::remove_dir_all(dir.path().join("db")).unwrap();
    let (mut refused, filler) = (Value::Null, "x".repeat(10_000));
    for number in 0..1000 {
        let metadata = json!({"name": format!("m-{number}")});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"filler": filler}});
        let path = "/api/v1/namespaces/default/configmaps";
        let (code, answer) = ask(&client, "POST", path, &map.to_string()).await;
        if code != 201 {
            refused = answer;
            break;
        }
    }
    let why = refused["message"].as_str().unwrap_or_default();
    assert!(why.ends_with("; check the disk's free space and health, then start the server again"), "{refused}");
    for endpoint in ["livez", "readyz", "healthz"] {
        let (code, page) = ask(&client, "GET", &format!("/{endpoint}"), "").await;
        let page = page.as_str().unwrap();
        assert!(code == 500 && page.contains("[-]etcd failed: reason withheld\n"), "{page}");
        assert!(page.ends_with(&format!("{endpoint} check failed\n")), "{page}");
        let (code, page) = ask(&client, "GET", &format!("/{endpoint}/etcd"), "").await;
        let said = page.as_str().unwrap();
        assert!(code == 500 && said.starts_with("internal server error: error getting data from etcd: "), "{said}");
    }
    let (code, components) = ask(&client, "GET", "/api/v1/componentstatuses/etcd-0", "").await;
    assert_eq!((code, &components["conditions"][0]["status"]), (200, &json!("False")));
    // It ends all the same, with a client that listens, whose answer may be cut short.
    let root = cluster.key_pair("root", &["system:masters"]);
    let stream = connect(cluster.ca_pem(), Some(&root), address).await.unwrap();
    let watch = tokio::spawn(exchange(stream, "GET /api/v1/namespaces?watch=true HTTP/1.1"));
    tokio::time::timeout(Duration::from_secs(20), cluster.server.drain()).await.expect("the server drains");
    drop(watch.await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubernetes_service_leads_to_every_server_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("db")).unwrap();
    // Two other servers, of which one was lost a while ago.
    for (address, seconds) in [("10.9.9.8", 120), ("10.9.9.9", 3)] {
        let key = format!("/registry/masterleases/{address}");
        store.txn(Txn::create(key, "{}").with_ttl(Duration::from_secs(seconds))).await.unwrap();
    }
    let cluster = Cluster::start_over(store).await;
    let client = cluster.admin();
    let endpoints = "/api/v1/namespaces/default/endpoints/kubernetes";
    let addresses = |endpoints: &Value| endpoints["subsets"][0]["addresses"].clone();
    let all = json!([{"ip": "10.9.9.8"}, {"ip": "10.9.9.9"}, {"ip": "127.0.0.1"}]);
    assert_eq!(addresses(&ask(&client, "GET", endpoints, "").await.1), all);
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let slice = ask(&client, "GET", slice, "").await.1;
    let of_slice: Vec<&Value> = slice["endpoints"].as_array().unwrap().iter().map(|one| &one["addresses"]).collect();
    assert_eq!(of_slice, [&json!(["10.9.9.8"]), &json!(["10.9.9.9"]), &json!(["127.0.0.1"])]);
    // Nobody has heard of the one since.
    let rest = json!([{"ip": "10.9.9.8"}, {"ip": "127.0.0.1"}]);
    eventually(&client, endpoints, |_, found| addresses(found) == rest).await;
    // And a server that ends says so.
    cluster.server.drain().await;
    eventually(&client, endpoints, |_, found| addresses(found) == json!([{"ip": "10.9.9.8"}])).await;
}
