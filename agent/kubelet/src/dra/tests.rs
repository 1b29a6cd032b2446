//! Claims with a driver that says what it is asked.

use std::path::Path;

use futures::FutureExt;
use proto::k8s::io::kubelet::pkg::apis::dra::v1;
use proto::k8s::io::kubelet::pkg::apis::dra::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use serde_json::json;
use tonic::{Request, Response, Status};

use super::*;
use crate::plugins::{Handler, Plugin};

/// Takes back every claim but those whose names it refuses.
struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    refused: &'static str,
}

#[tonic::async_trait]
impl DraPlugin for Fake {
    async fn node_prepare_resources(
        &self,
        _: Request<v1::NodePrepareResourcesRequest>,
    ) -> Result<Response<v1::NodePrepareResourcesResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<v1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<v1::NodeUnprepareResourcesResponse>, Status> {
        let answer = |claim: v1::Claim| {
            self.asked.lock().push(claim.name.clone());
            let error = if claim.name == self.refused { "the device is on fire" } else { "" };
            (claim.uid, v1::NodeUnprepareResourceResponse { error: error.to_owned() })
        };
        let claims = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(v1::NodeUnprepareResourcesResponse { claims }))
    }
}

fn start(root: &Path, supervisor: &Supervisor) -> Arc<Dra> {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, tower::BoxError>("no API".into())
    });
    Dra::start(&Layout::new(root, "/logs"), Client::new(service, "default"), "n", supervisor)
}

/// The pod has the claim, which was given devices of these drivers.
fn reserve(dra: &Dra, pod: &str, name: &str, drivers: &[&str]) {
    let results = drivers.iter().map(|driver| json!({"request": "r", "driver": driver, "pool": "p", "device": "d"}));
    let claim: ResourceClaim = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")}, "spec": {},
        "status": {"allocation": {"devices": {"results": results.collect::<Vec<_>>()}}}}))
    .unwrap();
    dra.change(|ledger| ledger.reserve(Entry::of(&claim).unwrap(), pod)).unwrap().unwrap();
}

async fn register(dra: &Arc<Dra>, root: &Path, supervisor: &Supervisor, name: &str, fake: Fake) {
    let socket = root.join(format!("{name}.sock"));
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let incoming = futures::stream::unfold(listener, |listener| async {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let server = tonic::transport::Server::builder().add_service(DraPluginServer::new(fake));
    supervisor.spawn_try("driver", server.serve_with_incoming(incoming));
    let versions = vec!["v1.DRAPlugin".to_owned()];
    let plugin = Plugin { name: name.to_owned(), endpoint: socket.clone(), socket, versions };
    Registration(dra.clone()).register(&plugin).await.unwrap();
}

#[tokio::test]
async fn what_one_driver_does_not_take_back_does_not_keep_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new("test");
    let dra = start(root.path(), &supervisor);
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let fake = |refused| Fake { asked: asked.clone(), refused };
    register(&dra, root.path(), &supervisor, "b.example", fake("burns")).await;
    reserve(&dra, "p", "away", &["a.example"]);
    reserve(&dra, "p", "burns", &["b.example"]);
    reserve(&dra, "p", "good", &["b.example"]);
    reserve(&dra, "p", "shared", &["b.example"]);
    reserve(&dra, "q", "shared", &["b.example"]);

    let problem = dra.unprepare("p").await.unwrap_err();
    assert_eq!(
        problem,
        "unprepare dynamic resources: DRA driver a.example is not registered; NodeUnprepareResources failed for ResourceClaim burns: the device is on fire"
    );
    assert_eq!(std::mem::take(&mut *asked.lock()), ["burns", "good"]);
    let left = |pod: &str| dra.ledger.lock().used_by(pod).into_iter().map(|claim| claim.name).collect::<Vec<_>>();
    assert_eq!((left("p"), left("q")), (vec!["away".to_owned(), "burns".to_owned()], vec!["shared".to_owned()]));

    register(&dra, root.path(), &supervisor, "a.example", fake("")).await;
    dra.unprepare("p").await.unwrap_err();
    assert_eq!(left("p"), ["burns"]);
    supervisor.cancel();
}

#[tokio::test]
async fn a_claim_waits_only_for_those_that_share_it() {
    let root = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new("test");
    let dra = start(root.path(), &supervisor);
    register(&dra, root.path(), &supervisor, "b.example", Fake { asked: Arc::default(), refused: "" }).await;
    reserve(&dra, "p", "one", &["b.example"]);
    reserve(&dra, "q", "two", &["b.example"]);
    let hanging = dra.working.hold("ns/one").await;
    dra.unprepare("q").await.unwrap();
    assert!(dra.unprepare("p").now_or_never().is_none());
    drop(hanging);
    dra.unprepare("p").await.unwrap();
    supervisor.cancel();
}

#[tokio::test]
async fn a_registration_that_fails_leaves_the_one_before_it() {
    let root = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::new("test");
    let dra = start(root.path(), &supervisor);
    let versions = vec!["v1.DRAPlugin".to_owned()];
    let plugin = Plugin { name: "d.example".to_owned(), endpoint: "/s".into(), socket: "/s".into(), versions };
    let registration = Registration(dra.clone());
    registration.register(&plugin).await.unwrap();
    registration.register(&plugin).await.unwrap_err();
    assert!(dra.drivers.get("d.example").is_ok());
    supervisor.cancel();
}
