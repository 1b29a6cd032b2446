//! A pod's volumes on a real file system, fed by a small API server of the test's own: made,
//! refreshed when objects change, removed with everything that was mounted.
//!
//! Needs root (tmpfs mounts, ownership).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use component::{EventRecorder, Informers, Supervisor};
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::Pod;
use kubelet::layout::Layout;
use kubelet::volume_contract::Volumes;
use kubelet::volumes::csi::Csi;
use kubelet::volumes::{Home, NodeVolumes};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Bytes = Result<Frame<bytes::Bytes>, std::io::Error>;

/// Objects by path (`configmaps/settings`), all in the namespace `default`.
#[derive(Clone)]
struct Api {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(String, Value)>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: HashMap<String, Value>,
    /// How many tokens were issued.
    tokens: u32,
    /// Open watches by path.
    watches: HashMap<String, u32>,
}

impl Api {
    fn new() -> Self {
        Self { state: Arc::default(), events: broadcast::channel(16).0 }
    }

    fn put(&self, path: &str, content: Value) {
        let mut state = self.state.lock();
        state.version += 1;
        let mut object = content;
        let name = path.split('/').nth(1).unwrap();
        object["metadata"] =
            json!({ "name": name, "namespace": "default", "resourceVersion": state.version.to_string() });
        let kind = if state.objects.insert(path.to_owned(), object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        let _ = self.events.send((path.to_owned(), json!({ "type": kind, "object": object })));
    }

    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, tower::BoxError>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(
        &self,
        request: Request<kube::client::Body>,
    ) -> Response<http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, std::io::Error>> {
        let path = request.uri().path().trim_start_matches("/api/v1/namespaces/default/").to_owned();
        let query = request.uri().query().unwrap_or_default().replace("%3D", "=");
        let answer = if request.method() == Method::POST && path.ends_with("/token") {
            self.token()
        } else if query.contains("watch=true") {
            return Response::new(self.watch(path + "/" + name_in(&query)));
        } else {
            self.list(&path, name_in(&query))
        };
        let chunk: Bytes = Ok(Frame::data(answer.to_string().into()));
        Response::new(StreamBody::new(futures::stream::iter([chunk])).boxed_unsync())
    }

    fn token(&self) -> Value {
        let mut state = self.state.lock();
        state.tokens += 1;
        // so short that it is due at once
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
        json!({ "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": { "audiences": [] },
            "status": { "token": format!("token-{}", state.tokens), "expirationTimestamp": expires } })
    }

    fn list(&self, resource: &str, name: &str) -> Value {
        let state = self.state.lock();
        let found: Vec<Value> = state.objects.get(&format!("{resource}/{name}")).cloned().into_iter().collect();
        json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": state.version.to_string() }, "items": found })
    }

    fn watch(&self, path: String) -> http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, std::io::Error> {
        *self.state.lock().watches.entry(path.clone()).or_default() += 1;
        let closed = Closed { state: self.state.clone(), path: path.clone() };
        let events =
            futures::stream::unfold((self.events.subscribe(), path, closed), |(mut events, path, closed)| async move {
                loop {
                    let (changed, event) = events.recv().await.ok()?;
                    if changed == path {
                        let chunk: Bytes = Ok(Frame::data(format!("{event}\n").into()));
                        return Some((chunk, (events, path, closed)));
                    }
                }
            });
        StreamBody::new(events.boxed()).boxed_unsync()
    }

    fn open_watches(&self) -> u32 {
        // The Node is watched as long as there is a kubelet.
        let state = self.state.lock();
        state.watches.iter().filter(|(path, _)| !path.contains("nodes")).map(|(_, count)| count).sum()
    }
}

struct Closed {
    state: Arc<Mutex<State>>,
    path: String,
}

impl Drop for Closed {
    fn drop(&mut self) {
        if let Some(count) = self.state.lock().watches.get_mut(&self.path) {
            *count -= 1;
        }
    }
}

fn name_in(query: &str) -> &str {
    let rest = query.split("metadata.name=").nth(1).unwrap_or_default();
    rest.split('&').next().unwrap_or_default()
}

fn pod(uid: &str, volumes: Value, group: Option<i64>) -> Arc<Pod> {
    let pod = json!({
        "metadata": { "name": "p", "namespace": "default", "uid": uid, "labels": { "app": "one" } },
        "spec": { "serviceAccountName": "default", "containers": [{ "name": "c" }], "volumes": volumes,
            "securityContext": { "fsGroup": group } },
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

struct Node {
    api: Api,
    volumes: Arc<NodeVolumes>,
    root: tempfile::TempDir,
    supervisor: Supervisor,
}

fn start(layout: &Layout, api: &Api, supervisor: &Supervisor) -> Arc<NodeVolumes> {
    let informers = Informers::new(api.client(), supervisor);
    let recorder = EventRecorder::discard();
    let csi = Csi::start(layout.clone(), "node-1", &informers, recorder.clone(), supervisor);
    let home = Home { layout: layout.clone(), node: "node-1", informers: &informers, recorder };
    NodeVolumes::start(home, Arc::new(Default::default), csi, supervisor)
}

impl Node {
    fn new() -> Self {
        let (api, supervisor, root) = (Api::new(), Supervisor::new("test"), tempfile::tempdir().unwrap());
        let layout = Layout::new(root.path(), root.path().join("logs"));
        let volumes = start(&layout, &api, &supervisor);
        Self { api, volumes, root, supervisor }
    }

    fn mounts(&self) -> usize {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(&*self.root.path().to_string_lossy())).count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.supervisor.cancel();
    }
}

async fn eventually(what: &str, wished: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !wished() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn files_follow_their_objects_until_the_pod_is_gone() {
    let node = Node::new();
    node.api.put("configmaps/settings", json!({ "data": { "a": "1" } }));
    node.api.put("secrets/password", json!({ "data": { "pw": "eA==" } }));
    let volumes = json!([
        { "name": "settings", "configMap": { "name": "settings" } },
        { "name": "password", "secret": { "secretName": "password", "defaultMode": 256 } },
        { "name": "all", "projected": { "sources": [
            { "configMap": { "name": "settings", "items": [{ "key": "a", "path": "deep/er" }] } },
            { "secret": { "name": "absent", "optional": true } },
            { "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
        ] } },
    ]);
    let pod = pod("u1", volumes, Some(4321));
    let paths = node.volumes.set_up(&pod).await.unwrap();
    let at = |volume: &str, file: &str| paths[volume].host_path.join(file);
    assert_eq!(read(&at("settings", "a")), "1");
    assert_eq!(read(&at("all", "deep/er")), "1");
    assert_eq!(read(&at("all", "labels")), "app=\"one\"");
    let secret = std::fs::metadata(at("password", "pw")).unwrap();
    assert_eq!((secret.permissions().mode() & 0o777, secret.gid()), (0o440, 4321));
    assert!(paths["settings"].read_only);
    assert_eq!(node.mounts(), 2, "secret and projected volumes are in memory only");
    assert_eq!(node.volumes.set_up(&pod).await.unwrap(), paths, "a second set-up finds everything");

    node.api.put("configmaps/settings", json!({ "data": { "a": "2", "b": "3" } }));
    eventually("the ConfigMap's change did not arrive", || read(&at("settings", "b")) == "3").await;
    eventually("the projected volume did not change", || read(&at("all", "deep/er")) == "2").await;
    node.api.put("secrets/absent", json!({ "data": { "late": "eA==" } }));
    eventually("the optional Secret did not appear", || read(&at("all", "late")) == "x").await;

    let mut changed = (*pod).clone();
    changed.metadata.labels = Some([("app".to_owned(), "two".to_owned())].into());
    node.volumes.refresh(&Arc::new(changed));
    eventually("the label's change did not arrive", || read(&at("all", "labels")) == "app=\"two\"").await;

    assert_eq!(node.api.open_watches(), 3, "one watch for each object, however many volumes show it");
    node.volumes.tear_down("u1").await.unwrap();
    assert_eq!(node.mounts(), 0);
    assert!(!node.root.path().join("pods/u1/volumes").exists());
    eventually("watches are left open", || node.api.open_watches() == 0).await;
    node.volumes.tear_down("u1").await.unwrap();
}

#[tokio::test]
async fn another_agent_follows_what_an_earlier_one_set_up() {
    let node = Node::new();
    node.api.put("configmaps/settings", json!({ "data": { "a": "1" } }));
    let pod = pod("u5", json!([{ "name": "settings", "configMap": { "name": "settings" } }]), None);
    let path = node.volumes.set_up(&pod).await.unwrap()["settings"].host_path.join("a");
    node.supervisor.cancel();

    let supervisor = Supervisor::new("another");
    let layout = Layout::new(node.root.path(), node.root.path().join("logs"));
    let other = start(&layout, &node.api, &supervisor);
    node.api.put("configmaps/settings", json!({ "data": { "a": "2" } }));
    other.resume(&pod);
    eventually("the change in between did not arrive", || read(&path) == "2").await;
    node.api.put("configmaps/settings", json!({ "data": { "a": "3" } }));
    eventually("the change afterwards did not arrive", || read(&path) == "3").await;
    other.tear_down("u5").await.unwrap();
    supervisor.cancel();
}

#[tokio::test]
async fn tokens_are_renewed_before_they_expire() {
    let node = Node::new();
    let sources = json!([{ "serviceAccountToken": { "path": "token", "expirationSeconds": 600 } }]);
    let pod = pod("u2", json!([{ "name": "t", "projected": { "sources": sources } }]), None);
    let paths = node.volumes.set_up(&pod).await.unwrap();
    let token = paths["t"].host_path.join("token");
    assert_eq!(read(&token), "token-1");
    assert_eq!(std::fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o644);
    // due at once; the jitter spreads renewals over ten seconds
    let renewed = || {
        node.volumes.refresh(&pod);
        read(&token) == "token-2"
    };
    eventually("the token was not renewed", renewed).await;
    node.volumes.tear_down("u2").await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let node = Node::new();
    let volumes = json!([
        { "name": "v", "configMap": { "name": "later" } },
        { "name": "host", "hostPath": { "path": node.root.path().join("none"), "type": "Directory" } },
        { "name": "w", "secret": { "secretName": "later" } },
    ]);
    let pod = pod("u3", volumes, None);
    let errors = node.volumes.set_up(&pod).await.unwrap_err();
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        errors[..2],
        [
            "MountVolume.SetUp failed for volume \"v\" : configmap \"later\" not found",
            "MountVolume.SetUp failed for volume \"w\" : secret \"later\" not found"
        ]
    );
    assert!(errors[2].contains("\"host\" : hostPath type check failed"), "{errors:?}");
    std::fs::create_dir(node.root.path().join("none")).unwrap();
    node.api.put("secrets/later", json!({ "data": {} }));
    node.api.put("configmaps/later", json!({ "data": {} }));
    let mut outcome = node.volumes.set_up(&pod).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while outcome.is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        outcome = node.volumes.set_up(&pod).await;
    }
    outcome.unwrap();
    node.volumes.tear_down("u3").await.unwrap();
}

#[tokio::test]
async fn the_directory_of_a_volume_of_files_is_the_groups_too() {
    let node = Node::new();
    node.api.put("secrets/s", json!({ "data": {} }));
    node.api.put("configmaps/c", json!({ "data": {} }));
    let volumes = json!([
        { "name": "memory", "secret": { "secretName": "s" } },
        { "name": "disk", "configMap": { "name": "c" } },
    ]);
    let paths = node.volumes.set_up(&pod("u5", volumes, Some(4321))).await.unwrap();
    for (volume, mode) in [("memory", 0o3777), ("disk", 0o2777)] {
        let directory = std::fs::metadata(&paths[volume].host_path).unwrap();
        assert_eq!((directory.permissions().mode() & 0o7777, directory.gid()), (mode, 4321), "{volume}");
    }
    node.volumes.tear_down("u5").await.unwrap();
}

#[tokio::test]
async fn empty_directories_keep_their_content_and_host_paths_stay() {
    let node = Node::new();
    let host = node.root.path().join("host");
    let volumes = json!([
        { "name": "disk", "emptyDir": {} },
        { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "64Ki" } },
        { "name": "host", "hostPath": { "path": host, "type": "DirectoryOrCreate" } },
    ]);
    let pod = pod("u4", volumes, Some(4321));
    let paths = node.volumes.set_up(&pod).await.unwrap();
    let disk = std::fs::metadata(&paths["disk"].host_path).unwrap();
    assert_eq!((disk.permissions().mode() & 0o7777, disk.gid()), (0o2777, 4321));
    let memory = std::fs::metadata(&paths["memory"].host_path).unwrap();
    assert_eq!((memory.permissions().mode() & 0o7777, memory.gid()), (0o3777, 4321));
    std::fs::write(paths["disk"].host_path.join("kept"), "x").unwrap();
    std::fs::write(host.join("kept"), "x").unwrap();
    assert!(
        std::fs::write(paths["memory"].host_path.join("large"), vec![0; 128 << 10]).is_err(),
        "the size limit holds"
    );
    node.volumes.set_up(&pod).await.unwrap();
    assert_eq!(read(&paths["disk"].host_path.join("kept")), "x");

    // another agent tears down what it never made
    let layout = Layout::new(node.root.path(), node.root.path().join("logs"));
    let other = start(&layout, &node.api, &node.supervisor);
    other.tear_down("u4").await.unwrap();
    assert_eq!(node.mounts(), 0);
    assert!(!node.root.path().join("pods/u4/volumes").exists());
    assert_eq!(read(&host.join("kept")), "x", "what is on the host is not the pod's");
}
