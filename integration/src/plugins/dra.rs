//! A driver of dynamically allocated resources, in either version of its interface.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::k8s::io::kubelet::pkg::apis::dra::{v1, v1beta1};
use proto::pluginregistration::PluginInfo;
use tonic::{Request, Response, Status};

use super::{Record, Servers};

/// A driver that serves until it is dropped.
pub struct Dra {
    pub record: Record,
    failing: Arc<AtomicBool>,
    _servers: Servers,
}

impl Dra {
    /// Serves the version (`v1` or `v1beta1`) in the kubelet's directory `root`.
    pub fn start(name: &str, root: &Path, version: &str) -> Self {
        let record = Record::default();
        let failing = Arc::new(AtomicBool::new(false));
        let driver = Driver { record: record.clone(), failing: failing.clone() };
        let mut servers = Servers::new();
        let endpoint = root.join("plugins").join(name).join("dra.sock");
        match version {
            "v1beta1" => servers.serve(&endpoint, v1beta1::dra_plugin_server::DraPluginServer::new(driver)),
            _ => servers.serve(&endpoint, v1::dra_plugin_server::DraPluginServer::new(driver)),
        }
        let info = PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: name.to_owned(),
            endpoint: endpoint.display().to_string(),
            supported_versions: vec![format!("{version}.DRAPlugin")],
        };
        servers.register(&root.join("plugins_registry").join(format!("{name}-reg.sock")), info, &record);
        Self { record, failing, _servers: servers }
    }

    /// From now on preparing fails, or does not.
    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }
}

struct Driver {
    record: Record,
    failing: Arc<AtomicBool>,
}

macro_rules! serves {
    ($version:ident) => {
        #[tonic::async_trait]
        impl $version::dra_plugin_server::DraPlugin for Driver {
            async fn node_prepare_resources(
                &self,
                request: Request<$version::NodePrepareResourcesRequest>,
            ) -> Result<Response<$version::NodePrepareResourcesResponse>, Status> {
                let answer = |claim: $version::Claim| {
                    self.record.note(format!("prepare {}/{}", claim.namespace, claim.name));
                    let failing = self.failing.load(Ordering::Relaxed);
                    let device = $version::Device {
                        request_names: vec!["one".to_owned()],
                        pool_name: "pool".to_owned(),
                        device_name: "device-0".to_owned(),
                        cdi_device_ids: vec![format!("test.example.com/device={}", claim.name)],
                        share_id: None,
                    };
                    let error = if failing { "the device is on fire".to_owned() } else { String::new() };
                    (claim.uid, $version::NodePrepareResourceResponse { devices: vec![device], error })
                };
                let claims = request.into_inner().claims.into_iter().map(answer).collect();
                Ok(Response::new($version::NodePrepareResourcesResponse { claims }))
            }

            async fn node_unprepare_resources(
                &self,
                request: Request<$version::NodeUnprepareResourcesRequest>,
            ) -> Result<Response<$version::NodeUnprepareResourcesResponse>, Status> {
                let answer = |claim: $version::Claim| {
                    self.record.note(format!("unprepare {}/{}", claim.namespace, claim.name));
                    (claim.uid, $version::NodeUnprepareResourceResponse { error: String::new() })
                };
                let claims = request.into_inner().claims.into_iter().map(answer).collect();
                Ok(Response::new($version::NodeUnprepareResourcesResponse { claims }))
            }
        }
    };
}

serves!(v1);
serves!(v1beta1);
