//! The kubelet's server over a real containerd: exec and attach as WebSocket clients speak them,
//! logs, and who may.
//!
//! Needs root, containerd, runc and busybox-static; everything is in a temporary directory and a
//! network namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::containerd::{Containerd, remove};
use agent::images::{Importer, pause, presets};
use component::Supervisor;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::Pod;
use kubelet::cgroups::Cgroups;
use kubelet::config::{CgroupDriver, ServerConfig};
use kubelet::cri::Runtime;
use kubelet::server_contract::{ContainerRun, NodePods, PodRuntimeView};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::{CleanUp, in_namespace, options, remove_cgroups, run_container};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, tungstenite};

/// One pod `p` with one container `c`.
struct OnePod {
    pod: Arc<Pod>,
    view: PodRuntimeView,
    runtime: Runtime,
    cgroups: Cgroups,
}

#[async_trait::async_trait]
impl NodePods for OnePod {
    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        (namespace == "default" && name == "p").then(|| self.pod.clone())
    }

    fn runtime_view(&self, _: &str) -> PodRuntimeView {
        self.view.clone()
    }

    async fn volume_usage(&self, _: &Pod) -> Vec<kubelet::volume_contract::VolumeUsage> {
        Vec::new()
    }

    fn certificates(&self) -> kubelet::volume_contract::CertificateStates {
        Default::default()
    }

    fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    fn probe_metrics(&self) -> String {
        String::new()
    }

    fn image_metrics(&self) -> String {
        String::new()
    }

    fn pods_api_metrics(&self) -> String {
        String::new()
    }

    fn user_namespace_metrics(&self) -> String {
        String::new()
    }

    async fn healthy(&self) -> Result<(), String> {
        Ok(())
    }
}

/// An API server that lets `admin` do everything and others nothing.
fn api() -> kube::Client {
    let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let body = request.into_body().collect().await?.to_bytes();
        let mut review: serde_json::Value = serde_json::from_slice(&body)?;
        review["status"] = serde_json::json!({ "allowed": review["spec"]["user"] == "admin" });
        let body = serde_json::to_vec(&review)?;
        Ok::<_, tower::BoxError>(http::Response::builder().status(201).body(Full::from(body))?)
    });
    kube::Client::new(service, "default")
}

/// A CA and what it signed, in files.
struct Pki {
    directory: PathBuf,
    ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    fn new(directory: &Path) -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test-ca");
        let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.join("ca.crt"), ca.pem()).unwrap();
        Self { directory: directory.to_owned(), ca }
    }

    /// One file with certificate and key.
    fn issue(&self, name: &str, usage: rcgen::ExtendedKeyUsagePurpose) -> PathBuf {
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        let path = self.directory.join(format!("{name}.pem"));
        std::fs::write(&path, certificate.pem() + &key.serialize_pem()).unwrap();
        path
    }

    async fn connect(&self, address: SocketAddr, user: &str) -> TlsStream<TcpStream> {
        let identity = self.issue(user, rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(&identity).unwrap()],
                PrivateKeyDer::from_pem_file(&identity).unwrap(),
            )
            .unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }
}

struct Client {
    pki: Pki,
    address: SocketAddr,
}

impl Client {
    async fn get(&self, user: &str, path: &str) -> (u16, String) {
        self.ask(http::Method::GET, user, path).await
    }

    async fn ask(&self, method: http::Method, user: &str, path: &str) -> (u16, String) {
        let stream = hyper_util::rt::TokioIo::new(self.pki.connect(self.address, user).await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::builder().method(method).uri(path).header("host", "node");
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new());
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn open(&self, path: &str, protocol: &str) -> WebSocketStream<TlsStream<TcpStream>> {
        use tungstenite::client::IntoClientRequest;
        let mut request = format!("ws://127.0.0.1{path}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        let stream = self.pki.connect(self.address, "admin").await;
        tokio_tungstenite::client_async(request, stream).await.unwrap().0
    }

    /// Runs a command as kubectl does since 1.31: stdout, stderr and the final status.
    async fn exec(&self, script: &str, stdin: Option<&[u8]>) -> (String, String, serde_json::Value) {
        let script = script.replace(' ', "+").replace(';', "%3B").replace('&', "%26").replace('>', "%3E");
        let input = if stdin.is_some() { "&stdin=true" } else { "" };
        let path = format!("/exec/default/p/c?command=sh&command=-c&command={script}&output=1&error=1{input}");
        let mut socket = self.open(&path, "v5.channel.k8s.io").await;
        if let Some(stdin) = stdin {
            let mut message = vec![0];
            message.extend_from_slice(stdin);
            socket.send(Message::Binary(message.into())).await.unwrap();
            socket.send(Message::Binary(vec![255, 0].into())).await.unwrap();
        }
        collect(&mut socket).await
    }
}

async fn collect(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> (String, String, serde_json::Value) {
    let mut channels = vec![Vec::new(); 4];
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message
            && let Some((channel, content)) = bytes.split_first()
        {
            channels[usize::from(*channel)].extend_from_slice(content);
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let status = serde_json::from_slice(&channels[3]).unwrap_or(serde_json::Value::Null);
    (text(&channels[1]), text(&channels[2]), status)
}

#[test]
fn exec_attach_and_logs_reach_the_container() {
    in_namespace(|| async {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let _cleanup = CleanUp(options.paths.clone());
        let cgroup = format!("/skiff-test-streams-{}", std::process::id());
        let agent = Supervisor::new("agent");
        let containerd = Containerd::start(options.clone(), &agent).await.unwrap();
        let importer = Importer::new(containerd.channel.clone());
        importer.import_pinned(&pause::image().unwrap()).await.unwrap();
        importer.import(&presets::busybox().unwrap()).await.unwrap();
        let script = "echo started; while read line; do echo got $line; done; sleep 600";
        let (sandbox, container) = run_container(&containerd.channel, directory.path(), &cgroup, script, true).await;
        let client = start_server(directory.path(), &containerd, sandbox, container, &agent).await;

        refused_without_rights(&client).await;
        exec(&client).await;
        checkpoint(&client).await;
        attach_and_logs(&client).await;

        assert!(agent.shut_down(Duration::from_secs(5)).await);
        assert_eq!(remove(&options.paths).await, Vec::<String>::new());
        remove_cgroups(&cgroup);
    });
}

async fn start_server(
    directory: &Path,
    containerd: &Containerd,
    sandbox: String,
    container: String,
    agent: &Supervisor,
) -> Client {
    let pki = Pki::new(directory);
    let serving = pki.issue("server", rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    let pod = serde_json::json!({ "metadata": { "name": "p", "namespace": "default", "uid": "u" },
        "spec": { "containers": [{ "name": "c", "stdin": true }] } });
    let run = ContainerRun {
        name: "c".to_owned(),
        id: container,
        attempt: 0,
        running: true,
        started_at: Some(jiff::Timestamp::now()),
        finished_at: None,
        log_path: directory.join("logs/c.log"),
    };
    let pods = OnePod {
        pod: Arc::new(serde_json::from_value(pod).unwrap()),
        view: PodRuntimeView { sandbox_id: Some(sandbox), containers: vec![run] },
        runtime: Runtime::new(&containerd.socket),
        cgroups: Cgroups::on_host("/", CgroupDriver::Cgroupfs).unwrap(),
    };
    let options = kubelet::server::Options {
        config: ServerConfig {
            address: ([127, 0, 0, 1], 0).into(),
            certificate: serving.clone(),
            key: serving,
            client_ca: directory.join("ca.crt"),
        },
        node_name: "n".to_owned(),
        client: api(),
        root: directory.to_owned(),
        configz: serde_json::json!({}),
    };
    let address = kubelet::server::start(options, Arc::new(pods), agent).await.unwrap();
    Client { pki, address }
}

async fn refused_without_rights(client: &Client) {
    let (status, body) = client.get("eve", "/pods").await;
    assert_eq!(
        (status, body.as_str()),
        (403, "Forbidden (user=eve, verb=get, resource=nodes, subresource(s)=[pods proxy])\n")
    );
    assert_eq!(client.get("admin", "/healthz").await, (200, "ok".to_owned()));
    assert_eq!(client.get("admin", "/nonsense").await.0, 404);
    let (status, body) = client.get("admin", "/containerLogs/default/p/none").await;
    assert_eq!((status, body.as_str()), (404, "container \"none\" not found in pod \"p\"\n"));
    let (status, body) = client.get("admin", "/exec/default/p/c?command=ls&output=1").await;
    assert_eq!((status, body.as_str()), (400, "unable to upgrade: missing upgrade headers in request"));
    let (status, body) = client.get("admin", "/exec/default/p/none?command=ls&output=1").await;
    assert_eq!((status, body.as_str()), (500, "container not found (\"none\")"));
    let (status, body) = client.get("admin", "/attach/default/p/none?output=1").await;
    assert_eq!((status, body.as_str()), (500, "container none not found in pod p_default"));
    for (path, line) in [
        ("/statusz", "kubelet statusz"),
        ("/flagz", "kubelet flagz"),
        ("/metrics/slis", "kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 1"),
    ] {
        let (status, body) = client.get("admin", path).await;
        assert!(status == 200 && body.lines().any(|found| found == line), "{path}: {status} {body}");
    }
}

/// Whether the runtime can make an archive is its own business: not all can, and none without CRIU.
async fn checkpoint(client: &Client) {
    let ask = |path: &'static str| client.ask(http::Method::POST, "admin", path);
    assert_eq!(ask("/checkpoint/default/none/c").await, (404, "pod does not exist".to_owned()));
    assert_eq!(ask("/checkpoint/default/p/none").await, (404, "container none does not exist".to_owned()));
    let (status, body) = ask("/checkpoint/default/p/c?timeout=soon").await;
    assert_eq!((status, body.as_str()), (404, "cannot parse value of timeout parameter"));
    assert_eq!(client.get("admin", "/checkpoint/default/p/c").await.0, 405);
    let (status, body) = ask("/checkpoint/default/p/c").await;
    let failed = status == 500 && body.starts_with("checkpointing of default/p/c failed (rpc error: code = ");
    let made = status == 200 && body.contains("/checkpoints/checkpoint-p_default-c-");
    assert!(failed || made, "{status} {body}");
}

async fn exec(client: &Client) {
    let (out, err, status) = client.exec("echo out; echo err >&2", None).await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!(status["status"], "Success", "{status}");

    let (_, _, status) = client.exec("exit 7", None).await;
    assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
    assert_eq!(status["details"]["causes"][0]["message"], "7", "{status}");

    // the client's end of input reaches the command
    let large = vec![b'x'; 300_000];
    let (out, _, status) = client.exec("cat", Some(&large)).await;
    assert_eq!(out.len(), large.len());
    assert_eq!(status["status"], "Success", "{status}");

    // an older subprotocol goes through to the runtime
    let mut socket = client.open("/exec/default/p/c?command=echo&command=old&output=1", "v4.channel.k8s.io").await;
    let (out, _, status) = collect(&mut socket).await;
    assert_eq!((out.as_str(), &status["status"]), ("old\n", &"Success".into()));
}

async fn attach_and_logs(client: &Client) {
    let mut socket = client.open("/attach/default/p/c?input=1&output=1&error=1", "v5.channel.k8s.io").await;
    socket.send(Message::Binary(b"\0hello\n".to_vec().into())).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(bytes) if bytes.len() > 1 => return bytes,
                _ => {}
            }
        }
    });
    assert_eq!(&answer.await.unwrap()[..], b"\x01got hello\n");
    drop(socket);
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.get("admin", "/containerLogs/default/p/c").await.1 != "started\ngot hello\n" {
        assert!(Instant::now() < deadline, "{:?}", client.get("admin", "/containerLogs/default/p/c").await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.get("admin", "/containerLogs/default/p/c?tailLines=1").await.1, "got hello\n");
}
