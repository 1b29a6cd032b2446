//! A device plugin whose devices are `/dev/null` under other names.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use futures::stream::BoxStream;
use proto::v1beta1::device_plugin_server::{DevicePlugin as Service, DevicePluginServer};
use proto::v1beta1::registration_client::RegistrationClient;
use proto::v1beta1::*;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{Record, Servers};

/// A plugin that serves until it is dropped.
pub struct DevicePlugin {
    pub record: Record,
    resource: String,
    root: PathBuf,
    devices: watch::Sender<Vec<Device>>,
    servers: Servers,
}

impl DevicePlugin {
    /// Serves in the kubelet's directory `root`, and registers.
    pub fn start(resource: &str, root: &Path, devices: &[(&str, bool)]) -> Self {
        let record = Record::default();
        let devices = watch::channel(list(devices)).0;
        let mut servers = Servers::new();
        let plugin = Plugin { record: record.clone(), resource: resource.to_owned(), devices: devices.subscribe() };
        servers.serve(&root.join("device-plugins").join(socket(resource)), DevicePluginServer::new(plugin));
        let this = Self { record, resource: resource.to_owned(), root: root.to_owned(), devices, servers };
        this.register("v1beta1").unwrap_or_else(|status| panic!("{resource} was turned away: {status}"));
        this
    }

    /// As a plugin does that sees that the kubelet began anew.
    pub fn register(&self, version: &str) -> Result<(), Status> {
        let kubelet = self.root.join("device-plugins/kubelet.sock");
        let request = RegisterRequest {
            version: version.to_owned(),
            endpoint: socket(&self.resource),
            resource_name: self.resource.clone(),
            options: Some(options()),
        };
        let register = async {
            let channel =
                proto::unix_channel(&kubelet).await.map_err(|error| Status::unavailable(error.to_string()))?;
            RegistrationClient::new(channel).register(request).await.map(drop)
        };
        match &self.servers.runtime {
            Some(runtime) => runtime.block_on(register),
            None => Ok(()),
        }
    }

    /// Says anew which devices there are and whether they work.
    pub fn say(&self, devices: &[(&str, bool)]) {
        self.devices.send_replace(list(devices));
    }
}

fn socket(resource: &str) -> String {
    format!("{}.sock", resource.replace('/', "-"))
}

fn options() -> DevicePluginOptions {
    DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }
}

fn list(devices: &[(&str, bool)]) -> Vec<Device> {
    let health = |works: bool| if works { "Healthy" } else { "Unhealthy" }.to_owned();
    devices.iter().map(|(id, works)| Device { id: (*id).to_owned(), health: health(*works), topology: None }).collect()
}

struct Plugin {
    record: Record,
    resource: String,
    devices: watch::Receiver<Vec<Device>>,
}

#[tonic::async_trait]
impl Service for Plugin {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let mut devices = self.devices.clone();
        devices.mark_changed();
        let stream = futures::stream::unfold(devices, |mut devices| async {
            devices.changed().await.ok()?;
            let answer = ListAndWatchResponse { devices: devices.borrow_and_update().clone() };
            Some((Ok(answer), devices))
        });
        Ok(Response::new(stream.boxed()))
    }

    /// The last ones first.
    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let answer = |request: ContainerPreferredAllocationRequest| {
            let mut ids = request.available_device_i_ds;
            ids.sort();
            ids.reverse();
            ids.truncate(usize::try_from(request.allocation_size).unwrap_or(0));
            ContainerPreferredAllocationResponse { device_i_ds: ids }
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(answer).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let answer = |request: ContainerAllocateRequest| {
            let ids = request.devices_ids.join(",");
            self.record.note(format!("allocate {ids}"));
            ContainerAllocateResponse {
                envs: [("DEVICES".to_owned(), ids), ("RESOURCE".to_owned(), self.resource.clone())].into(),
                mounts: vec![Mount {
                    container_path: "/plugin-mount".to_owned(),
                    host_path: "/etc".to_owned(),
                    read_only: true,
                }],
                devices: vec![DeviceSpec {
                    container_path: "/dev/test-device".to_owned(),
                    host_path: "/dev/null".to_owned(),
                    permissions: "rw".to_owned(),
                }],
                annotations: [("test.example.com/device".to_owned(), "given".to_owned())].into(),
                cdi_devices: Vec::new(),
            }
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(answer).collect();
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.record.note(format!("prestart {}", request.into_inner().devices_ids.join(",")));
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
