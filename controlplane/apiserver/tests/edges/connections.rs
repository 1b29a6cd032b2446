//! Connections that become something else: watches through a WebSocket, requests passed on to a node.

use apiserver::testing::{Cluster, authority};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::http::Request;

use super::{ask, connect, connect_for, exchange};

#[tokio::test]
async fn browsers_watch_through_a_websocket_with_their_token_among_the_protocols() {
    let cluster = Cluster::start().await;
    let address = cluster.listen().await;
    let client = cluster.admin();
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "bot"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "bot", "namespace": "default"}]});
    ask(&client, "POST", accounts, r#"{"metadata": {"name": "bot"}}"#).await;
    ask(&client, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding.to_string()).await;
    let (_, token) = ask(&client, "POST", &format!("{accounts}/bot/token"), r#"{"spec": {}}"#).await;
    let token =
        base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, token["status"]["token"].as_str().unwrap());

    let stream = connect(cluster.ca_pem(), None, address).await.unwrap();
    let request = Request::get("wss://localhost/api/v1/namespaces/default/configmaps?watch=true")
        .header("host", "localhost")
        .header("origin", "https://localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key())
        .header(
            "sec-websocket-protocol",
            format!("base64url.bearer.authorization.k8s.io.{token}, base64.binary.k8s.io"),
        );
    let (mut socket, answer) = tokio_tungstenite::client_async(request.body(()).unwrap(), stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "base64.binary.k8s.io");
    let mut next = async || -> Value {
        let message = socket.next().await.unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    };
    // What there is comes first, one event a message, and then what changes.
    let mut seen = Vec::new();
    for name in ["a", "b"] {
        let map = json!({"metadata": {"name": name}}).to_string();
        ask(&client, "POST", "/api/v1/namespaces/default/configmaps", &map).await;
        while seen.last().is_none_or(|last| last != name) {
            let event = next().await;
            assert_eq!(event["type"], "ADDED", "{event}");
            seen.push(event["object"]["metadata"]["name"].as_str().unwrap().to_owned());
        }
    }
}

/// Answers every request with a redirect whose body is the request's head, and `/page` with one.
async fn backend() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let answer = format!(
                "HTTP/1.1 302 Found\r\nlocation: /login?next=x\r\naccess-control-allow-origin: *\r\ncontent-length: {}\r\n\r\n",
                head.len()
            );
            let page =
                "HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\nconnection: close\r\n\r\n<a href='/x'>";
            let answer = if head.starts_with(b"GET /page") { page.into() } else { [answer.as_bytes(), &head].concat() };
            let _ = stream.write_all(&answer).await;
        }
    });
    port
}

#[tokio::test]
async fn a_proxied_server_seems_to_be_below_the_path_of_the_proxy() {
    let cluster = Cluster::start_with(|config| config.proxies_to_itself = true).await;
    let address = cluster.listen().await;
    let client = cluster.admin();
    let root = cluster.key_pair("root", &["system:masters"]);
    let port = backend().await;
    let node = json!({"metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}});
    ask(&client, "POST", "/api/v1/nodes", &node.to_string()).await;
    let send = async |request: &str| {
        exchange(connect(cluster.ca_pem(), Some(&root), address).await.unwrap(), request).await.unwrap()
    };
    let proxy = format!("/api/v1/nodes/http:n:{port}/proxy");
    let answer = send(&format!("GET {proxy}?a=b HTTP/1.1")).await;
    assert!(answer.starts_with("HTTP/1.1 301 ") && answer.contains(&format!("location: {proxy}/?a=b\r\n")), "{answer}");
    let answer = send(&format!("POST {proxy} HTTP/1.1\ncontent-length: 0")).await;
    assert!(answer.starts_with("HTTP/1.1 302 ") && answer.contains("POST / HTTP/1.1"), "{answer}");
    let answer =
        send(&format!("GET {proxy}/x/?a=b HTTP/1.1\nimpersonate-user: root\nimpersonate-group: system:masters")).await;
    assert!(answer.contains(&format!("location: {proxy}/login?next=x\r\n")), "{answer}");
    assert!(!answer.contains("access-control"), "{answer}");
    for line in [
        "GET /x/?a=b HTTP/1.1\r\n".to_owned(),
        "host: localhost\r\n".to_owned(),
        "x-forwarded-for: 127.0.0.1\r\n".to_owned(),
        format!("x-forwarded-uri: {proxy}/x/\r\n"),
    ] {
        assert!(answer.contains(&line), "{line} {answer}");
    }
    assert!(!answer.contains("impersonate"), "{answer}");
    let answer = send(&format!("GET {proxy}/page HTTP/1.1")).await;
    assert!(answer.contains(&format!("<a href='{proxy}/x'>")), "{answer}");
    // The kubelet's own port is spoken to as a kubelet, whatever scheme is named; nobody listens there.
    for (path, code, why) in [
        (
            "nodes/http:n:1/proxy/",
            503,
            "error trying to reach service: dial tcp 127.0.0.1:1: connect: connection refused",
        ),
        ("nodes/ftp:n:1/proxy/", 400, "invalid node request \"ftp:n:1\""),
        ("namespaces/default/pods/a:b:c:d/proxy/", 400, "invalid pod request \"a:b:c:d\""),
        ("namespaces/default/services/kubernetes:1/proxy/", 503, "no service port 1 found for service \"kubernetes\""),
        ("namespaces/default/services/none:http/proxy/", 404, "services \"none\" not found"),
    ] {
        let (found, answer) = ask(&client, "GET", &format!("/api/v1/{path}"), "").await;
        assert_eq!((found, answer["message"].as_str().unwrap()), (code, why), "{path}");
    }
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n"}});
    ask(&client, "POST", "/api/v1/namespaces/default/serviceaccounts", r#"{"metadata": {"name": "default"}}"#).await;
    let (code, answer) = ask(&client, "POST", "/api/v1/namespaces/default/pods", &pod.to_string()).await;
    assert_eq!(code, 201, "{answer}");
    for (subresource, code, why) in [
        ("exec?command=ls", 400, "Upgrade request required"),
        ("attach", 400, "Upgrade request required"),
        ("proxy/", 400, "address not allowed"),
        (
            "log",
            500,
            "Get \"https://127.0.0.1:1/containerLogs/default/p/c\": dial tcp 127.0.0.1:1: connect: connection refused",
        ),
    ] {
        let (found, answer) =
            ask(&client, "GET", &format!("/api/v1/namespaces/default/pods/p/{subresource}"), "").await;
        assert_eq!((found, answer["message"].as_str().unwrap()), (code, why), "{subresource}");
    }
}

#[tokio::test]
async fn a_node_whose_address_is_this_machines_own_leads_to_its_kubelet_alone() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for (name, address) in [("own", "127.0.0.1"), ("link", "169.254.169.254")] {
        let node = json!({"metadata": {"name": name}, "status": {
            "addresses": [{"type": "InternalIP", "address": address}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}});
        ask(&client, "POST", "/api/v1/nodes", &node.to_string()).await;
        let (code, answer) = ask(&client, "GET", &format!("/api/v1/nodes/http:{name}:2/proxy/"), "").await;
        assert_eq!((code, answer["message"].as_str().unwrap()), (400, "address not allowed"), "{name}");
    }
    let (code, answer) = ask(&client, "GET", "/api/v1/nodes/own/proxy/", "").await;
    assert_eq!(code, 503, "{answer}");
}

/// WebSockets begin as a GET, which who may read pods may send; to run commands takes the right to create.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_get_an_exec_may_not_run_anything() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let role = json!({"metadata": {"name": "reader"}, "rules": [
        {"apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward", "pods/log"], "verbs": ["get"]}]});
    ask(&admin, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role.to_string()).await;
    let binding = json!({"metadata": {"name": "reader"}, "subjects": [{"kind": "User", "name": "jane"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"}});
    ask(&admin, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding.to_string()).await;
    let jane = cluster.client("jane");
    let pod = "/api/v1/namespaces/default/pods/p";
    for subresource in ["exec", "attach", "portforward"] {
        let (code, answer) = ask(&jane, "GET", &format!("{pod}/{subresource}"), "").await;
        let why = format!(
            "pods \"p\" is forbidden: User \"jane\" cannot create resource \"pods/{subresource}\" in API group \"\" in the namespace \"default\""
        );
        assert_eq!((code, answer["message"].as_str().unwrap()), (403, why.as_str()));
    }
    assert_eq!(ask(&jane, "GET", &format!("{pod}/log"), "").await.0, 404, "logs are read");
    assert_eq!(ask(&jane, "GET", &format!("{pod}/log?stream=Stdout"), "").await.0, 404);
}

#[tokio::test]
async fn who_has_not_said_who_they_are_gets_one_request_of_an_http2_connection() {
    let cluster = Cluster::start().await;
    let address = cluster.listen().await;
    let admin = cluster.key_pair("admin", &["system:masters"]);
    for identity in [None, Some(&admin)] {
        let stream = connect_for(&[b"h2"], cluster.ca_pem(), identity, address).await.unwrap();
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        let mut connection = tokio::spawn(connection);
        let request = || {
            let body = http_body_util::Empty::<bytes::Bytes>::new();
            Request::get("https://localhost/version").body(body).unwrap()
        };
        assert_eq!(sender.send_request(request()).await.unwrap().status(), 200);
        if identity.is_some() {
            assert_eq!(sender.send_request(request()).await.unwrap().status(), 200);
            connection.abort();
        } else {
            let ended = tokio::time::timeout(std::time::Duration::from_secs(10), &mut connection).await;
            assert!(ended.is_ok(), "the connection stays open");
        }
    }
}

#[tokio::test]
async fn an_authority_that_is_taken_out_is_not_believed_on_open_connections_either() {
    let cluster = Cluster::start().await;
    let address = cluster.listen().await;
    let admin = cluster.key_pair("admin", &["system:masters"]);
    let stream = connect_for(&[b"h2"], cluster.ca_pem(), Some(&admin), address).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut ask = async || {
        let body = http_body_util::Empty::<bytes::Bytes>::new();
        let request = Request::get("https://localhost/api/v1/nodes").body(body).unwrap();
        sender.send_request(request).await.unwrap().status().as_u16()
    };
    assert_eq!(ask().await, 200);
    std::fs::write(&cluster.server.config().client_ca, authority().1).unwrap();
    let mut code = 200;
    for _ in 0..600 {
        code = ask().await;
        if code != 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(code, 401);
    connection.abort();
}

#[tokio::test]
async fn a_bad_certificate_is_nobodys_whatever_comes_along_but_a_token() {
    let cluster = Cluster::start().await;
    let address = cluster.listen().await;
    let foreign = cluster.foreign_key_pair("admin");
    for shown in ["Basic YTpi", "Bearer", "Bearer wrong"] {
        let stream = connect(cluster.ca_pem(), Some(&foreign), address).await.unwrap();
        let answer = exchange(stream, &format!("GET /version HTTP/1.1\nauthorization: {shown}")).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 401 "), "{shown}: {answer}");
    }
}
