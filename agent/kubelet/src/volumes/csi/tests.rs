//! Volumes with a driver that mounts nothing, and says what it is asked.

use std::path::Path;

use http::Method;
use k8s_openapi::api::core::v1::Pod;
use proto::csi::v1::node_server::{Node as Service, NodeServer};
use proto::csi::v1::node_service_capability::rpc::Type as Ability;
use proto::csi::v1::node_service_capability::{Rpc, Type};
use proto::csi::v1::*;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use super::driver::Version;
use super::volume::Lifecycle;
use super::*;
use crate::volumes::owner::Owner;

const DRIVER: &str = "d.example";

/// What the driver was asked, and what it refuses.
#[derive(Clone, Default)]
struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    failing: Arc<Mutex<HashSet<&'static str>>>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Fake {
    fn note<T: Default>(&self, call: &'static str) -> Answer<T> {
        self.asked.lock().push(call.to_owned());
        match self.failing.lock().contains(call) {
            true => Err(Status::internal("the disk is on fire")),
            false => Ok(Response::new(T::default())),
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock())
    }
}

#[async_trait]
impl Service for Fake {
    async fn node_stage_volume(&self, _: Request<NodeStageVolumeRequest>) -> Answer<NodeStageVolumeResponse> {
        self.note("stage")
    }

    async fn node_unstage_volume(&self, _: Request<NodeUnstageVolumeRequest>) -> Answer<NodeUnstageVolumeResponse> {
        self.note("unstage")
    }

    async fn node_publish_volume(&self, _: Request<NodePublishVolumeRequest>) -> Answer<NodePublishVolumeResponse> {
        self.note("publish")
    }

    async fn node_unpublish_volume(
        &self,
        _: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        self.note("unpublish")
    }

    async fn node_get_volume_stats(&self, _: Request<NodeGetVolumeStatsRequest>) -> Answer<NodeGetVolumeStatsResponse> {
        self.note("stats")
    }

    async fn node_expand_volume(&self, _: Request<NodeExpandVolumeRequest>) -> Answer<NodeExpandVolumeResponse> {
        self.note("expand")
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let capability =
            |ability: Ability| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: ability as i32 })) };
        let capabilities = [Ability::StageUnstageVolume, Ability::GetVolumeStats].map(capability).into();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        Ok(Response::new(NodeGetInfoResponse { node_id: "id".to_owned(), ..Default::default() }))
    }
}

/// An API with a CSIDriver, a Node and a CSINode that cannot be written.
fn client(requests: Arc<Mutex<Vec<String>>>) -> Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let path = request.uri().path().to_owned();
        requests.lock().push(format!("{} {path}", request.method()));
        let (code, body): (u16, Value) = match (request.method(), path.rsplit('/').nth(1).unwrap_or_default()) {
            (&Method::GET, "csidrivers") => {
                let spec =
                    json!({"attachRequired": false, "requiresRepublish": true, "volumeLifecycleModes": ["Persistent"]});
                (
                    200,
                    json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER}, "spec": spec}),
                )
            }
            (_, "nodes") => {
                let ids = json!({"csi.volume.kubernetes.io/nodeid": "{\"d.example\":\"id\"}"});
                (200, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": ids}}))
            }
            (&Method::GET, "csinodes") => (
                200,
                json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": "n"}, "spec": {"drivers": []}}),
            ),
            _ => (
                500,
                json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": "no", "reason": "InternalError", "code": 500}),
            ),
        };
        async move {
            let body = kube::client::Body::from(body.to_string().into_bytes());
            http::Response::builder().status(code).body(body).map_err(tower::BoxError::from)
        }
    });
    Client::new(service, "default")
}

struct Stage {
    directory: tempfile::TempDir,
    supervisor: Supervisor,
    driver: Fake,
    csi: Arc<Csi>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new("test");
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let client = client(requests.clone());
        let layout = Layout::new(directory.path().join("kubelet"), "/logs");
        let informers = Informers::new(client.clone(), &supervisor);
        let recorder = EventRecorder::new(client, &supervisor, "kubelet", "n");
        let csi = Csi::start(layout.clone(), "n", &informers, recorder, &supervisor);
        let driver = Fake::default();
        let socket = directory.path().join("csi.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let server = tonic::transport::Server::builder().add_service(NodeServer::new(driver.clone()));
        supervisor.spawn_try("driver", server.serve_with_incoming(incoming));
        Self { directory, supervisor, driver, csi, requests }
    }

    /// The driver is known already.
    fn registered() -> Self {
        let stage = Self::new();
        let socket = stage.socket();
        stage.csi.drivers.put(Arc::new(Driver::new(DRIVER, &socket, &socket, Version(1, 0, 0), &stage.csi.layout)));
        stage
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("csi.sock")
    }

    async fn set_up(&self, pod: &Arc<Pod>, volume: &Volume) -> Result<(), String> {
        let order = Order { pod, name: "v", volume: volume.clone(), owner: Owner::default(), claim: None };
        self.csi.set_up(order).await.map(drop).map_err(|error| error.to_string())
    }

    async fn tear_down(&self, uid: &str) -> Result<(), String> {
        self.csi.tear_down(uid).await.map_err(|error| error.to_string())
    }

    fn is_clean(&self) -> bool {
        let is_empty = |path: &Path| std::fs::read_dir(path).unwrap().next().is_none();
        data::of_all(&self.csi.layout).is_empty() && is_empty(&self.csi.layout.plugin(PLUGIN).join(DRIVER))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.supervisor.cancel();
    }
}

fn pod(uid: &str) -> Arc<Pod> {
    Arc::new(serde_json::from_value(json!({"metadata": {"uid": uid, "name": uid, "namespace": "ns"}})).unwrap())
}

fn volume() -> Volume {
    Volume::of("pv", DRIVER, "h", Lifecycle::Persistent)
}

#[tokio::test]
async fn an_unstaging_that_failed_is_tried_again() {
    let stage = Stage::registered();
    stage.set_up(&pod("one"), &volume()).await.unwrap();
    stage.set_up(&pod("two"), &volume()).await.unwrap();
    assert_eq!(stage.driver.take(), ["stage", "publish", "stage", "publish"]);
    stage.tear_down("one").await.unwrap();
    assert_eq!(stage.driver.take(), ["unpublish"], "another pod has it");

    stage.driver.failing.lock().insert("unstage");
    let error = stage.tear_down("two").await.unwrap_err();
    assert!(error.starts_with("UnmountDevice failed for volume \"pv\" : rpc error: code = Internal"), "{error}");
    assert_eq!(stage.driver.take(), ["unpublish", "unstage"]);
    stage.driver.failing.lock().clear();
    stage.tear_down("two").await.unwrap();
    assert_eq!(stage.driver.take(), ["unpublish", "unstage"]);
    assert!(stage.is_clean());
}

#[tokio::test]
async fn what_an_earlier_attempt_staged_is_unstaged() {
    let stage = Stage::registered();
    stage.driver.failing.lock().insert("publish");
    stage.set_up(&pod("u"), &volume()).await.unwrap_err();
    let secret = Some(("ns".to_owned(), "gone".to_owned()));
    stage.set_up(&pod("u"), &Volume { stage_secret: secret, ..volume() }).await.unwrap_err();
    assert_eq!(stage.driver.take(), ["stage", "publish"], "the second came no further than its secret");
    stage.tear_down("u").await.unwrap();
    assert_eq!(stage.driver.take(), ["unpublish", "unstage"]);
    assert!(stage.is_clean());
}

#[tokio::test]
async fn a_volume_without_a_readable_record_is_not_given_up() {
    let stage = Stage::registered();
    stage.set_up(&pod("u"), &volume()).await.unwrap();
    stage.set_up(&pod("other"), &volume()).await.unwrap();
    stage.driver.take();
    let file = stage.csi.layout.volume("u", PLUGIN, "pv").join("vol_data.json");
    let record = std::fs::read(&file).unwrap();
    std::fs::write(&file, "").unwrap();
    let error = stage.tear_down("u").await.unwrap_err();
    let words = "UnmountVolume.NewUnmounter failed for volume \"pv\" : kubernetes.io/csi: unmounter failed to load volume data file [";
    assert!(error.starts_with(words), "{error}");
    stage.tear_down("other").await.unwrap();
    assert_eq!(stage.driver.take(), ["unpublish"], "the other may be of the same volume");
    std::fs::write(&file, record).unwrap();
    stage.tear_down("u").await.unwrap();
    assert_eq!(stage.driver.take(), ["unpublish", "unstage"]);
}

#[tokio::test]
async fn a_volume_that_cannot_be_published_again_stays_known() {
    let stage = Stage::registered();
    let pod = pod("u");
    stage.set_up(&pod, &volume()).await.unwrap();
    stage.driver.failing.lock().insert("publish");
    let refreshed = stage.csi.refresh(&pod, Owner::default()).await;
    assert!(refreshed.again && refreshed.failed[0].contains("the disk is on fire"), "{:?}", refreshed.failed);
    assert!(stage.csi.known(&pod, "v").is_some());
    stage.driver.failing.lock().clear();
    assert!(stage.csi.refresh(&pod, Owner::default()).await.failed.is_empty());
    assert_eq!(stage.driver.take(), ["stage", "publish", "publish", "publish"]);
}

#[tokio::test]
async fn a_driver_that_does_not_say_how_full_a_volume_is_has_its_peace() {
    let stage = Stage::registered();
    let pod = pod("u");
    stage.set_up(&pod, &volume()).await.unwrap();
    stage.driver.take();
    stage.driver.failing.lock().insert("stats");
    for _ in 0..3 {
        assert!(stage.csi.usage(&pod).await.is_empty());
    }
    assert_eq!(stage.driver.take(), ["stats"]);
    stage.driver.failing.lock().clear();
    // as if a minute had passed
    stage.csi.mounted.lock().values().for_each(|published| *published.usage.lock() = None);
    assert_eq!(stage.csi.usage(&pod).await.len(), 1);
}

#[tokio::test]
async fn a_registration_that_fails_half_way_is_undone() {
    let stage = Stage::new();
    let plugin = Plugin {
        name: DRIVER.to_owned(),
        endpoint: stage.socket(),
        socket: stage.socket(),
        versions: vec!["1.0.0".to_owned()],
    };
    let error = Registration(stage.csi.clone()).register(&plugin).await.unwrap_err();
    assert_eq!(error, "error updating CSINode object with CSI driver node info: no");
    assert!(stage.csi.drivers.get(DRIVER).is_err());
    let patched = |request: &&String| *request == "PATCH /api/v1/nodes/n";
    assert_eq!(stage.requests.lock().iter().filter(patched).count(), 1, "the node has no driver of that name");
}
