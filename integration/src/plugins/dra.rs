//! A driver of dynamically allocated resources, in either version of its interface; in the newer it also
//! tells how its device is.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::stream::BoxStream;
use proto::k8s::io::kubelet::pkg::apis::dra::v1;
use proto::k8s::io::kubelet::pkg::apis::dra::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use proto::pluginregistration::PluginInfo;
use proto::v1::dra_resource_health_server::{DraResourceHealth, DraResourceHealthServer};
use proto::v1::{DeviceHealth, DeviceIdentifier, HealthStatus, NodeWatchResourcesRequest, NodeWatchResourcesResponse};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::Service;

use super::{Record, Servers};

/// A driver that serves until it is dropped.
pub struct Dra {
    pub record: Record,
    failing: Arc<AtomicBool>,
    works: watch::Sender<bool>,
    _servers: Servers,
}

impl Dra {
    /// Serves the version (`v1` or `v1beta1`) in the kubelet's directory `root`.
    pub fn start(name: &str, root: &Path, version: &str) -> Self {
        let record = Record::default();
        let failing = Arc::new(AtomicBool::new(false));
        let driver = Driver { record: record.clone(), failing: failing.clone() };
        let (works, told) = watch::channel(true);
        let mut servers = Servers::new();
        let endpoint = root.join("plugins").join(name).join("dra.sock");
        let mut supported_versions = vec![format!("{version}.DRAPlugin")];
        if version == "v1beta1" {
            servers.serve(&endpoint, Older(DraPluginServer::new(driver)));
        } else {
            let teller = DraResourceHealthServer::new(Teller(told));
            servers.serve_all(&endpoint, Routes::new(DraPluginServer::new(driver)).add_service(teller));
            supported_versions.push("v1.DRAResourceHealth".to_owned());
        }
        let info = PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: name.to_owned(),
            endpoint: endpoint.display().to_string(),
            supported_versions,
        };
        servers.register(&root.join("plugins_registry").join(format!("{name}-reg.sock")), info, &record);
        Self { record, failing, works, _servers: servers }
    }

    /// From now on preparing fails, or does not.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// Says anew whether its device works.
    pub fn say(&self, works: bool) {
        self.works.send_replace(works);
    }
}

struct Driver {
    record: Record,
    failing: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<v1::NodePrepareResourcesRequest>,
    ) -> Result<Response<v1::NodePrepareResourcesResponse>, Status> {
        let answer = |claim: v1::Claim| {
            self.record.note(format!("prepare {}/{}", claim.namespace, claim.name));
            let failing = self.failing.load(Ordering::Relaxed);
            let device = v1::Device {
                request_names: vec!["one".to_owned()],
                pool_name: "pool".to_owned(),
                device_name: "device-0".to_owned(),
                cdi_device_ids: vec![format!("test.example.com/device={}", claim.name)],
                share_id: None,
            };
            let error = if failing { "the device is on fire".to_owned() } else { String::new() };
            (claim.uid, v1::NodePrepareResourceResponse { devices: vec![device], error })
        };
        let claims = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(v1::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<v1::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<v1::NodeUnprepareResourcesResponse>, Status> {
        let answer = |claim: v1::Claim| {
            self.record.note(format!("unprepare {}/{}", claim.namespace, claim.name));
            (claim.uid, v1::NodeUnprepareResourceResponse { error: String::new() })
        };
        let claims = request.into_inner().claims.into_iter().map(answer).collect();
        Ok(Response::new(v1::NodeUnprepareResourcesResponse { claims }))
    }
}

struct Teller(watch::Receiver<bool>);

#[tonic::async_trait]
impl DraResourceHealth for Teller {
    type NodeWatchResourcesStream = BoxStream<'static, Result<NodeWatchResourcesResponse, Status>>;

    async fn node_watch_resources(
        &self,
        _: Request<NodeWatchResourcesRequest>,
    ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
        let mut works = self.0.clone();
        works.mark_changed();
        let stream = futures::stream::unfold(works, |mut works| async {
            works.changed().await.ok()?;
            let devices = vec![device(*works.borrow_and_update())];
            Some((Ok(NodeWatchResourcesResponse { devices }), works))
        });
        Ok(Response::new(stream.boxed()))
    }
}

/// Its word counts for as long as a test takes.
fn device(works: bool) -> DeviceHealth {
    let health = if works { HealthStatus::Healthy } else { HealthStatus::Unhealthy };
    DeviceHealth {
        device: Some(DeviceIdentifier { pool_name: "pool".to_owned(), device_name: "device-0".to_owned() }),
        health: health.into(),
        health_check_timeout_seconds: 3600,
        message: if works { String::new() } else { "the device is too hot".to_owned() },
        ..Default::default()
    }
}

/// The service under its older name, with the same messages.
#[derive(Clone)]
struct Older(DraPluginServer<Driver>);

impl tonic::server::NamedService for Older {
    const NAME: &'static str = "k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin";
}

impl Service<http::Request<Body>> for Older {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = <DraPluginServer<Driver> as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path().replacen(".v1beta1.", ".v1.", 1);
        parts.uri = path.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        self.0.call(http::Request::from_parts(parts, body))
    }
}
